"""
`TLSFactory` puts a `TLSTransport` below each protocol of a factory; `adopt` puts one in the place of
Twisted's own TLS.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from typing_extensions import override

from txasynchat import transports
from txasynchat.tls.handshakes import HandshakeLimit
from txasynchat.tls.pyopenssl import PyOpenSSLEngine
from txasynchat.tls.transport import TLSTransport

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

__all__ = ["TLSFactory", "adopt"]


class TransportForTwisteds(TLSTransport, TLSMemoryBIOProtocol):
    """A `TLSTransport` for Twisted's options, which expect Twisted's own TLS."""

    @override
    def getHandle(self) -> Any:
        """Return pyOpenSSL's connection; None when the connection is lost."""
        return None if self.engine is None else self.engine.tls

    @override
    def _checkHandshakeStatus(self) -> None:
        """Called by Twisted when the protocol above is connected; see `adopt`."""
        if not self._aborted:
            limit = HandshakeLimit.of(self.factory) if self.engine.is_server else None
            self.begin(transports.reactor_of(self.transport), limit)


class TLSFactory(WrappingFactory[Any]):
    """
    Puts a `TLSTransport` below each protocol of another factory.

    Args:
        options: a `ServerOptions` or `ClientOptions`, or a connection creator of Twisted's.
        is_client: this side begins.
        factory: makes the protocols; None where they are there already.
        clock: the reactor that the connections live on; None for no limits on time.
    """

    protocol = TLSTransport
    noisy = False

    def __init__(
        self, options: Any, is_client: bool, factory: Any, clock: IReactorTime | None
    ) -> None:
        super().__init__(factory)
        self._make_ours = getattr(options, "engine", None)
        if self._make_ours is None:
            self.protocol = TransportForTwisteds
            # Without a clock that would install a reactor.
            theirs = TLSMemoryBIOFactory(options, is_client, factory, clock=_NO_CLOCK)
            self._make_theirs: Any = theirs._creatorCallable
        self._is_client = is_client
        self.clock = clock
        self.limit: HandshakeLimit | None = None if is_client else getattr(options, "limit", None)
        # Of the class where the options are Twisted's.
        self.handshake_timeout: float | None
        self.close_timeout: float
        self.flush_timeout: float
        for name in ("handshake_timeout", "close_timeout", "flush_timeout"):
            setattr(self, name, getattr(options, name, getattr(TLSTransport, name)))

    @override
    def buildProtocol(self, addr: Any) -> Any:
        """Build the other factory's protocol, and TLS below it; None if that refuses the connection."""
        protocol = self.wrappedFactory.buildProtocol(addr)
        return None if protocol is None else self.protocol(self, protocol)

    def make_engine(self, transport: TLSTransport) -> Any:
        """Make the engine of one connection."""
        if self._make_ours is not None:
            return self._make_ours()
        return PyOpenSSLEngine(partial(self._make_theirs, transport), is_server=not self._is_client)

    def settled(self, transport: TLSTransport, failure: Failure | None) -> None:
        """
        The handshake of *transport* is done, or its connection is lost, because of *failure*.

        The first call counts: a connection is lost in the end, and may be so for several reasons.
        """


_NO_CLOCK: Any = object()


def adopt(transport: Any) -> None:
    """
    Put a `TLSTransport` in the place of the TLS below *transport*, if Twisted's own endpoints made it.

    To be called when the connection is made, before the handshake begins. So ``ssl:`` and ``tls:``
    endpoints have the same limits, events and errors as those of this package. Subclasses of Twisted's
    classes are left alone.
    """
    layer = transports.tls_layer(transport)
    if type(layer) is BufferingTLSTransport and not layer._handshakeDone:
        layer._aggregator.flush()  # close() is newer than the oldest Twisted
        del layer.write, layer._aggregator
        connection, layer._tlsConnection = layer._tlsConnection, None  # type: ignore[assignment] # it is held there only
        layer.__class__ = TransportForTwisteds  # type: ignore[assignment] # it differs in methods only
        adopted: Any = layer
        adopted.set_up()
        adopted._early = layer._appSendBuffer or None
        is_server = transports.was_accepted(layer.transport)
        adopted.engine = PyOpenSSLEngine(lambda: connection, is_server=is_server)
        adopted.engine.tls = connection
