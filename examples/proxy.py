"""
A TCP proxy: what clients send goes to one destination, and what that answers goes back.

    python proxy.py --port 8008 --to 127.0.0.1:8080
    curl http://127.0.0.1:8008/

``--certificate FILE`` speaks TLS with the clients; the proxy ends it. ``--connect`` instead of ``--to``
lets each client choose its destination, by HTTP's CONNECT (``curl -px http://127.0.0.1:8008 URL``).
``proxy_legacy.py`` is the same for asyncore.
"""

import argparse
import re
from http import HTTPStatus

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, quoteStringArgument
from twisted.python.failure import Failure
from typing_extensions import override

from txasynchat import AsyncChat, ChatError, ChatFactory, MessageTooLong, serve

ADDRESS = re.compile(r"\[?([^\[\]]+)\]?:([0-9]{1,5})")
CONNECT = re.compile(rb"CONNECT ([!-~]+) HTTP/1\.[01](?:\r\n.*)?", re.DOTALL)


def parse_address(text: str) -> tuple[str, int]:
    match = ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65_536:
        raise ValueError(f"not HOST:PORT: {text!r}")
    return match[1], int(match[2])


class Front(AsyncChat):
    """A client's connection; without a destination it has to name one first."""

    terminator = b"\r\n\r\n"
    connecting: Deferred[AsyncChat] | None = None

    def __init__(self, destination: tuple[str, int] | None) -> None:
        self.destination = destination

    @override
    def handle_connect(self) -> None:
        if self.destination is not None:
            self.couple(*self.destination)

    @override
    def message_received(self, message: bytes) -> None:
        match = CONNECT.fullmatch(message)
        try:
            self.couple(*parse_address(match[1].decode() if match else ""))
        except ValueError:
            self.answer(400)
            self.close()

    @override
    def message_too_long(self, error: MessageTooLong) -> None:
        self.answer(431)

    def couple(self, host: str, port: int) -> None:
        # What the client says before the destination is there waits in the queue of `back`.
        back = AsyncChat()
        self.pipe_to(back)
        back.pipe_to(self)
        self.connecting = connectProtocol(  # type: ignore[no-untyped-call]
            HostnameEndpoint(reactor, host, port), back
        )
        self.connecting.addCallbacks(self.reached, self.failed)

    def reached(self, _: AsyncChat) -> None:
        self.connecting = None
        if self.destination is None:
            self.push(b"HTTP/1.1 200 Connection established\r\n\r\n")

    def failed(self, why: Failure) -> None:
        if self.connecting is None:
            return  # because the client left
        self.connecting = None
        print("cannot connect:", why.getErrorMessage(), flush=True)
        if self.destination is None:
            self.answer(502)
        self.close()

    def answer(self, status: int) -> None:
        phrase = HTTPStatus(status).phrase.encode()
        self.push(b"HTTP/1.1 %d %b\r\nContent-Length: 0\r\n" % (status, phrase))
        self.push(b"Connection: close\r\n\r\n")

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        connecting, self.connecting = self.connecting, None
        if connecting is not None:
            connecting.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pass connections on.")
    parser.add_argument("--port", type=int, default=8008, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    parser.add_argument("--certificate", metavar="FILE", help="speak TLS: certificate and key")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=parse_address, metavar="HOST:PORT", help="the destination")
    where.add_argument("--connect", action="store_true", help="clients name it, by CONNECT")
    options = parser.parse_args()
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    if options.certificate:
        name = quoteStringArgument(options.certificate)  # type: ignore[no-untyped-call]
        endpoint = f"secure:{endpoint}:certificate={name}"
    serve(ChatFactory(Front, options.to), endpoint, announce=True)


if __name__ == "__main__":
    main()
