"""
`ProxyFactory` stands before a factory that serves connections whose proxy introduces them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.protocols.policies import WrappingFactory
from typing_extensions import override
from zope.interface import implementer

from txasynchat.errors import UntrustedProxy
from txasynchat.hub.port import IIntroducer
from txasynchat.proxy.refusals import log_refusal
from txasynchat.proxy.sockets import Introduction
from txasynchat.proxy.transport import ProxiedTransport

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from txasynchat.proxy.trust import ProxyOptions

__all__ = ["ProxyFactory"]


@implementer(IIntroducer)
class ProxyFactory(WrappingFactory[Any]):
    """
    Has the header read before a connection is served: from the socket on ports of the hub, by a
    `ProxiedTransport` everywhere else.

    Args:
        options: whose headers are believed.
        factory: serves the connections.
        reactor: measures time.
    """

    protocol = ProxiedTransport
    noisy = False

    def __init__(self, options: ProxyOptions, factory: Any, reactor: Any) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call] # Twisted's, untyped
        self.options = options
        self.reactor = reactor
        self._introductions: set[Introduction] = set()
        #: Layers whose header is not complete.
        self.reading: set[ProxiedTransport] = set()

    @property
    def introducing(self) -> int:
        """How many connections have no complete header yet."""
        return len(self._introductions) + len(self.reading)

    @override
    def buildProtocol(self, addr: Any) -> Any:
        """Build the layer; the other factory is asked when the header is complete."""
        return self.protocol(self)

    def introduce(
        self, sock: socket.socket, address: Any, serve: Callable[[socket.socket, Any], object]
    ) -> None:
        """Read the header from an accepted socket; see `IIntroducer`."""
        if not self.options.trusts(address):
            sock.close()
            log_refusal(address, UntrustedProxy())
            return
        discard = self._introductions.discard
        self._introductions.add(
            Introduction(self.reactor, sock, address, self.options, serve, discard)
        )

    @override
    def stopFactory(self) -> None:
        for introduction in list(self._introductions):
            introduction.abandon()
        for layer in list(self.reading):
            layer.abandon()
