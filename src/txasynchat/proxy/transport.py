"""
Headers on any transport: `ProxiedTransport`, a layer between it and a protocol that is built later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from typing_extensions import override
from zope.interface import directlyProvides, providedBy

from txasynchat import transports
from txasynchat.errors import (
    PeerError,
    ProxyHeaderTimedOut,
    TruncatedProxyHeader,
    UntrustedProxy,
)
from txasynchat.log import failure
from txasynchat.proxy.header import HeaderReader
from txasynchat.proxy.refusals import log_refusal
from txasynchat.tls.factory import adopt

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from txasynchat.proxy.header import Proxied

__all__ = ["ProxiedTransport"]

_log = Logger()


# Twisted's methods have no types.
_Wrapper: Any = ProtocolWrapper


class ProxiedTransport(_Wrapper):  # type: ignore[misc] # see above
    """
    Reads the header, builds the protocol for the address in it, and then passes everything on.

    Args:
        factory: the `ProxyFactory`.

    Attributes:
        proxied: what the header says; None until it is complete.
    """

    def __init__(self, factory: Any) -> None:
        super().__init__(factory, None)  # the protocol is built later
        self.proxied: Proxied | None = None
        self._reader: HeaderReader | None = HeaderReader(factory.options.longest)
        self._timer: Any = None

    @override
    def makeConnection(self, transport: Any) -> None:
        directlyProvides(self, providedBy(transport))
        Protocol.makeConnection(self, transport)  # type: ignore[no-untyped-call] # Twisted's, untyped
        self.factory.registerProtocol(self)
        self.factory.reading.add(self)
        adopt(transport)
        options = self.factory.options
        if not options.trusts(transports.peer_address(transport)):
            self._refuse(UntrustedProxy())
        elif options.timeout is not None:
            reactor = transports.reactor_of(transport) or self.factory.reactor
            error = ProxyHeaderTimedOut(options.timeout)
            self._timer = reactor.callLater(options.timeout, self._refuse, error)

    @override
    def dataReceived(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            if self.wrappedProtocol is not None:
                self.wrappedProtocol.dataReceived(data)
            return
        try:
            used = reader.feed(data)
        except PeerError as error:
            self._refuse(error)
            return
        if reader.proxied is not None:
            self._leave()
            self.proxied = reader.proxied
            self._connect(data[used:])

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        reader = self._reader
        self._leave()
        if self.wrappedProtocol is not None:
            super().connectionLost(reason)
            return
        self.factory.unregisterProtocol(self)
        if reader is not None and reader.begun:
            log_refusal(transports.peer_name(self.transport), TruncatedProxyHeader())

    @override
    def getPeer(self) -> Any:
        """Return the address in the header; without one that of the transport."""
        source = None if self.proxied is None else self.proxied.source
        return super().getPeer() if source is None else transports.address_of(source)

    @override
    def getHost(self) -> Any:
        """Return where the client connected to, as `getPeer` does."""
        destination = None if self.proxied is None else self.proxied.destination
        return super().getHost() if destination is None else transports.address_of(destination)

    def abandon(self) -> None:
        """The port is gone: end, unless the header is complete."""
        if self._reader is not None:
            self._refuse(None)

    # -- internals

    def _connect(self, rest: bytes) -> None:
        try:
            protocol = self.factory.wrappedFactory.buildProtocol(self.getPeer())
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            failure(_log, "{peer}: no protocol could be built", peer=self.getPeer())
            protocol = None
        if protocol is None:
            transports.abort(self.transport)
            return
        self.wrappedProtocol = protocol
        protocol.makeConnection(self)
        if rest and self.wrappedProtocol is not None:
            self.wrappedProtocol.dataReceived(rest)

    def _leave(self) -> None:
        self._reader = None
        self.factory.reading.discard(self)
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _refuse(self, error: PeerError | None) -> None:
        self._leave()
        if error is not None:
            log_refusal(transports.peer_name(self.transport), error)
        transports.abort(self.transport)
