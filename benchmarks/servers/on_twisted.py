"""
Servers on Twisted's transports: ours, LineReceiver and LineOnlyReceiver. With ``--asyncio`` on the
reactor over asyncio.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import BLOCK, DONE, END, Blocks, arguments, blocks, listening

if "--asyncio" in sys.argv:
    from twisted.internet import asyncioreactor

    asyncioreactor.install()
from twisted.internet import endpoints, reactor, ssl
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver, LineReceiver
from typing_extensions import override
from zope.interface import implementer


@implementer(IPullProducer)
class PullBlocks:
    """A pull producer of the known bytes."""

    def __init__(self, consumer, size: int) -> None:
        self.consumer = consumer
        self.left = size
        consumer.registerProducer(self, False)

    @override
    def resumeProducing(self) -> None:
        taken = min(self.left, len(BLOCK))
        self.left -= taken
        self.consumer.write(BLOCK if taken == len(BLOCK) else BLOCK[:taken])
        if not self.left:
            self.consumer.unregisterProducer()

    @override
    def stopProducing(self) -> None:
        pass


def twisted_handlers(base, options):
    """The roles on one of Twisted's own receivers."""

    class Echo(base):
        delimiter = END

        @override
        def lineReceived(self, line: bytes) -> None:
            self.sendLine(line)

    class OneShot(Echo):
        @override
        def lineReceived(self, line: bytes) -> None:
            self.sendLine(line)
            self.transport.loseConnection()

    class Source(Echo):
        @override
        def lineReceived(self, line: bytes) -> None:
            PullBlocks(self.transport, options.size)

    class Sink(Echo):
        left = options.size

        @override
        def connectionMade(self) -> None:
            self.setRawMode()

        @override
        def rawDataReceived(self, data: bytes) -> None:
            self.left -= len(data)
            if not self.left:
                self.left = options.size
                self.transport.write(DONE)

    return {"echo": Echo, "oneshot": OneShot, "source": Source, "sink": Sink}


def our_handlers(options):
    """The roles on AsyncChat, with the two calls of asynchat."""
    from txasynchat import AsyncChat

    class Echo(AsyncChat):
        terminator = END

        def __init__(self) -> None:
            super().__init__()
            self.parts: list[bytes] = []

        def collect_incoming_data(self, data: bytes) -> None:
            self.parts.append(data)

        def found_terminator(self) -> None:
            line = b"".join(self.parts)
            self.parts.clear()
            self.push(line + END)

    class OneShot(Echo):
        def found_terminator(self) -> None:
            super().found_terminator()
            self.close_when_done()

    class Source(Echo):
        def found_terminator(self) -> None:
            self.push_with_producer(Blocks(options.size))

    class FromGenerator(Echo):
        def found_terminator(self) -> None:
            self.push_with_producer(blocks(options.size))

    class Sink(AsyncChat):
        terminator = None
        left = options.size

        def collect_incoming_data(self, data: bytes) -> None:
            self.left -= len(data)
            if not self.left:
                self.left = options.size
                self.push(DONE)

    return {
        "echo": Echo,
        "oneshot": OneShot,
        "source": Source,
        "sink": Sink,
        "generator": FromGenerator,
    }


def our_message_handlers(options):
    """The same with whole messages."""
    from txasynchat import AsyncChat

    class Echo(AsyncChat):
        terminator = END

        def message_received(self, message: bytes) -> None:
            self.push(message + END)

    class OneShot(Echo):
        def message_received(self, message: bytes) -> None:
            self.push(message + END)
            self.close_when_done()

    return {"echo": Echo, "oneshot": OneShot}


def our_async_handlers(_options):
    """The same where the hook is a coroutine that does not wait."""
    from txasynchat import AsyncChat

    class Echo(AsyncChat):
        terminator = END

        async def message_received(self, message: bytes) -> None:
            self.push(message + END)

    return {"echo": Echo}


def our_functions(options):
    """The same as coroutines that read from a stream."""
    from txasynchat.functions import class_of

    async def echo(stream) -> None:
        async for line in stream:
            stream.write(line + END)
            await stream.drain()

    async def oneshot(stream) -> None:
        stream.write(await stream.read_until(END) + END)

    return {"echo": class_of(echo), "oneshot": class_of(oneshot)}


COMPETITORS = {
    "stream": our_functions,
    "LineReceiver": lambda options: twisted_handlers(LineReceiver, options),
    "LineOnlyReceiver": lambda options: twisted_handlers(LineOnlyReceiver, options),
    "AsyncChat": our_handlers,
    "message_received": our_message_handlers,
    "async": our_async_handlers,
}
OURS = ("AsyncChat", "message_received", "async", "stream")


def with_tls(place, options):
    """TLS above an endpoint: our layer for our handlers, unless told otherwise; else Twisted's."""
    if options.competitor in OURS and not options.stock_tls:
        from txasynchat.endpoints import SecureServerEndpoint
        from txasynchat.tls import Credentials, ServerOptions

        return SecureServerEndpoint(reactor, place, ServerOptions(Credentials(options.tls)))
    certificate = ssl.PrivateCertificate.loadPEM(Path(options.tls).read_bytes())
    return endpoints.SSL4ServerEndpoint(
        reactor, 0, certificate.options(), backlog=4096, interface="127.0.0.1"
    )


def main() -> None:
    options = arguments(
        COMPETITORS,
        and_plain="listen without TLS on a second port too",
        stock_tls="our handlers on Twisted's own TLS endpoint",
        hub="on connections of our own, in a hub",
        asyncio="on the reactor over asyncio, which was installed above",
        limits="with all limits that a server of the internet has by default",
    )
    handler = COMPETITORS[options.competitor](options)[options.role]
    factory = Factory.forProtocol(handler)
    if options.limits:
        from txasynchat import ChatFactory, Limits
        from txasynchat.limits import Admission

        factory = ChatFactory(handler)
        factory.default_limits = Limits.served()
        factory.admission = Admission(reactor, factory.default_limits)
    host = reactor
    if options.hub:
        from txasynchat.hub.places import HubReactor

        host = HubReactor(reactor)
    plain = endpoints.TCP4ServerEndpoint(host, 0, backlog=4096, interface="127.0.0.1")
    places = [plain]
    if options.tls:
        places = [with_tls(plain, options), *(places if options.and_plain else [])]
    ports = []
    for place in places:
        place.listen(factory).addCallback(lambda port: ports.append(port.getHost().port))
    listening(*ports)
    reactor.run()


if __name__ == "__main__":
    main()
