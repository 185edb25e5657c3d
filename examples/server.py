"""
A server for any handler: it makes one for each connection, and each knows the others.

    python server.py --port 8007
    nc 127.0.0.1 8007

``ChatFactory`` is that server, and ``server_legacy.py`` is what had to be written for asyncore.
"""

import argparse

from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, serve


class Greeter(AsyncChat):
    terminator = (b"\n", b"\r\n")

    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting

    @override
    def message_received(self, message: bytes) -> None:
        connected = len(self.factory.connections)
        answer = b"%b, %b: %d connected" % (self.greeting, message, connected)
        self.push(answer + self.matched_terminator)


def main() -> None:
    parser = argparse.ArgumentParser(description="Greet whoever gives a name.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    options = parser.parse_args()
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    serve(ChatFactory(Greeter, b"hello"), endpoint, announce=True)


if __name__ == "__main__":
    main()
