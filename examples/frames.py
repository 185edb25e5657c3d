r"""
Frames of a fixed length: four bytes are a number, big-endian; twice that comes back, and then the end.

    python frames.py --port 8007
    printf '\0\0\0\25' | nc 127.0.0.1 8007 | od -An -tu1

A number whose double needs more than four bytes is an error of its connection, which is logged.
``frames_legacy.py`` is the same for asyncore and asynchat.
"""

import argparse
import struct

from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, serve


class Doubler(AsyncChat):
    terminator = 4

    @override
    def message_received(self, message: bytes) -> None:
        (number,) = struct.unpack("!I", message)
        if number > 0x7FFFFFFF:
            raise OverflowError(f"{number} doubled is more than four bytes can hold")
        self.push(struct.pack("!I", 2 * number))
        self.close()  # sends the answer first, and looks at nothing that follows


def main() -> None:
    parser = argparse.ArgumentParser(description="Double a number of four bytes.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    options = parser.parse_args()
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    serve(ChatFactory(Doubler), endpoint, announce=True)


if __name__ == "__main__":
    main()
