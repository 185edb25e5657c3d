r"""
Calls that block, in threads: a handler that waits for them, and a WSGI application beside it.

    python threads.py --port 8007 --web-port 8008
    printf 'secret\n' | nc 127.0.0.1 8007
    curl --data 'hello, everybody' http://127.0.0.1:8008/

A line is answered by a hash of it that takes long to compute. What is posted to the web application
goes to all who are connected. ``--listen`` takes any other endpoint.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from twisted.web.server import Site
from twisted.web.wsgi import WSGIResource
from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, serve

reactor: Any = _reactor


# -- the handler


def slow_hash(password: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password, b"salt", 100_000).hex().encode()


class Hasher(AsyncChat):
    terminator = (b"\n", b"\r\n")

    @override
    async def message_received(self, message: bytes) -> None:
        # In a thread of the reactor's pool. The answer comes back to the reactor's own thread.
        answer = await deferToThread(slow_hash, message)
        self.push(answer + self.matched_terminator)


# -- the web application


class Announcer:
    """A WSGI application, as any framework makes one. It is called in a thread of the pool."""

    def __init__(self, factory: ChatFactory) -> None:
        self.factory = factory

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        text = environ["wsgi.input"].read(1_000)
        for line in text.splitlines():
            reactor.callFromThread(self.announce, line)  # no other call from here to a handler
        start_response("202 Accepted", [("Content-Length", "0")])
        return []

    def announce(self, line: bytes) -> None:
        for chat in self.factory.connections:
            chat.push(b"* %b\n" % line)


# -- both in one process


def main() -> None:
    parser = argparse.ArgumentParser(description="Hash lines, and pass on what is posted.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    parser.add_argument("--web-port", type=int, default=8008, help="of 127.0.0.1; 0: a free one")
    options = parser.parse_args()
    factory = ChatFactory(Hasher)
    application = WSGIResource(reactor, reactor.getThreadPool(), Announcer(factory))
    reactor.listenTCP(options.web_port, Site(application), interface="127.0.0.1")
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    serve(factory, endpoint, announce=True)


if __name__ == "__main__":
    main()
