r"""
Coroutines that read and write a stream, as programs on asyncio's streams do: a store of values.

    python coroutines.py --port 8007
    printf 'put color 4\nblueget color\nquit\n' | nc 127.0.0.1 8007

``put NAME LENGTH`` is a line with so many bytes behind it, and ``get NAME`` answers in the same way.
``--listen`` takes any other endpoint. ``inside_asyncio.py`` is a program of asyncio's itself.
"""

import argparse

from txasynchat import ChatFactory, MessageTooLong, Stream, serve

# -- the handler function

LIMIT = 1_000_000  # bytes of a value
VALUE_TIME = 600  # seconds in which it has to come; a line has 60


async def handle(stream: Stream, store: dict[bytes, bytes]) -> None:
    """Serve a connection, which ends with this."""
    stream.terminator = (b"\n", b"\r\n")
    async for line in stream:
        end = stream.matched or b""
        match line.split():
            case [b"put", name, length] if length.isdigit() and len(length) < 10:
                try:
                    with stream.chat.set_limits(message=VALUE_TIME):
                        store[name] = await stream.read_exactly(int(length), limit=LIMIT)
                except MessageTooLong:
                    stream.write(b"error: at most %d bytes" % LIMIT + end)
                    return
                stream.write(b"ok" + end)
            case [b"get", name] if name in store:
                stream.write(b"%d" % len(store[name]) + end + store[name])
            case [b"get", _]:
                stream.write(b"error: no such name" + end)
            case [b"quit"]:
                stream.write(b"bye" + end)
                return
            case _:
                stream.write(b"error: put NAME LENGTH, get NAME or quit" + end)
        await stream.drain()  # a client that reads slowly waits, and the others do not


# -- the command line


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep values.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    options = parser.parse_args()
    store: dict[bytes, bytes] = {}
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    serve(ChatFactory(handle, store), endpoint, announce=True)


if __name__ == "__main__":
    main()
