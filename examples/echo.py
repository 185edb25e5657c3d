"""
A line-echo server as a program of its own.

Run it, and talk to it: ``nc 127.0.0.1 8007``. It takes other endpoints as arguments, for example
``unix:echo.sock`` or ``ssl:4433:privateKey=key.pem:certKey=cert.pem``.
"""

import sys

from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, serve


class Echo(AsyncChat):
    terminator = (b"\n", b"\r\n")

    @override
    def message_received(self, message: bytes) -> None:
        self.push(message + b"\r\n")


def main(*endpoints: str) -> None:
    serve(ChatFactory(Echo), *(endpoints or ["tcp:8007:interface=127.0.0.1"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
