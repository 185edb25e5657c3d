"""
A line echo: each line comes back as ``ECHO: line``, ended as the client ended it.

    python echo.py --port 8007
    nc 127.0.0.1 8007

``--listen`` takes any other endpoint, as ``unix:echo.sock``.
``echo_legacy.py`` is the same for asyncore and asynchat.
"""

import argparse
from collections.abc import Callable

from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, serve


class Echo(AsyncChat):
    terminator = (b"\n", b"\r\n")

    def __init__(self, on_line: Callable[[bytes], object] | None = None) -> None:
        self.on_line = on_line

    @override
    def message_received(self, message: bytes) -> None:
        if self.on_line is not None:
            self.on_line(message)
        self.push(b"ECHO: " + message + self.matched_terminator)


def main() -> None:
    parser = argparse.ArgumentParser(description="Send each line back.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    parser.add_argument("--verbose", action="store_true", help="print each line")
    options = parser.parse_args()
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    on_line = (lambda line: print("received", line, flush=True)) if options.verbose else None
    serve(ChatFactory(Echo, on_line), endpoint, announce=True)


if __name__ == "__main__":
    main()
