"""
`Connections`: which connections are live, whoever made them.

A connection counts from ``makeConnection`` of its protocol until ``connectionLost``, however it ends.
One that was refused, or whose protocol could not be built, never counts.

There is no wrapper around the protocol. Those two methods are replaced on the object, so the transport
stays what it is, and a protocol that forgets ``super()`` is counted all the same.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from zope.interface import directlyProvides, implementer, providedBy

from txasynchat import endings, transports
from txasynchat.limits.admission import Place
from txasynchat.limits.deadlines import Deadlines, begin
from txasynchat.limits.options import Limits, in_force
from txasynchat.limits.refusing import refuse_socket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from txasynchat.limits.admission import Admission

__all__ = ["Connections", "WatchedFactory"]


class Connections:
    """The protocols of live connections, oldest first; iterating walks over a copy."""

    _log = Logger()

    def __init__(self) -> None:
        # By transport: a protocol may be compared, and hashed, as its author likes.
        self._live: dict[Any, Any] = {}
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._live.values()))

    def watch(self, protocol: Any, limits: Limits | None = None, place: Place | None = None) -> Any:
        """
        Count the connection that *protocol*, which has no transport yet, will have, and hold it to the
        deadlines of *limits*; return *protocol*. It leaves its *place* at the end.
        """
        protocol.makeConnection = _Watch(self, protocol, limits, place).made
        return protocol

    def began(self, transport: Any, protocol: Any) -> None:
        """Count a connection, until `ended` is called with the same *transport*."""
        self._live[transport] = protocol

    def when_empty(self) -> Deferred[None]:
        """Return a Deferred that fires as soon as there is no connection."""
        if not self._live:
            return succeed(None)
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def finish(self) -> None:
        """
        Ask every connection to finish, by ``handle_shutdown()`` or ``loseConnection``.

        One that raises is logged and aborted.
        """
        for transport, protocol in list(self._live.items()):
            handler = _handler(protocol)
            try:
                told = getattr(type(handler), "_server_stops", None)
                if told is not None:
                    told(handler)
                result = getattr(handler, "handle_shutdown", transport.loseConnection)()
                returned = getattr(type(handler), "shutdown_returned", None)
                if result is not None and returned is not None:
                    returned(handler, result)
            except BaseException:  # noqa: BLE001 an exit in a handler does not end the shutdown
                self._log.failure("{handler!r} cannot be shut down", handler=handler)
                self._abort(transport, handler)

    def abort(self) -> None:
        """
        End every connection now; what the operating system does not have yet is lost.

        One that raises is logged and no longer counts.
        """
        for transport, protocol in list(self._live.items()):
            self._abort(transport, _handler(protocol))

    def _abort(self, transport: Any, handler: Any) -> None:
        try:
            # So that an AsyncChat can tell its application who ended the connection.
            stopped = getattr(type(handler), "_stopped_by_server", None)
            if stopped is not None:
                stopped(handler)
            endings.end(transport)
        except BaseException:  # noqa: BLE001 see finish()
            self._log.failure("cannot end the connection of {transport!r}", transport=transport)
            # Its end will not be reported.
            self.ended(transport)

    def ended(self, transport: Any) -> None:
        """Count a connection no more; harmless when repeated."""
        self._live.pop(transport, None)
        if not self._live:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)


class _Watch(Place):
    # Stands in for two methods of a protocol during one connection, of which it is itself the second,
    # and has its place; one small object, because there are many.
    __slots__ = ("connections", "original", "protocol", "times", "transport")

    def __init__(
        self, connections: Connections, protocol: Any, limits: Limits | None, place: Place | None
    ) -> None:
        super().__init__()
        if place is not None:
            self.take_over(place)
        self.connections = connections
        self.protocol = protocol
        self.original = protocol.makeConnection
        #: Its limits, and once it is made its deadlines.
        self.times: Limits | Deadlines | None = limits

    def made(self, transport: Any) -> None:
        protocol, make = self.protocol, self.original
        original = protocol.connectionLost
        its_own = getattr(original, "__func__", None) is not getattr(
            type(protocol), "connectionLost", original
        )
        #: None for the method of the class, which is there again once this is not.
        self.original = original if its_own else None
        self.transport = transport
        del protocol.makeConnection
        protocol.connectionLost = self
        self.connections.began(transport, protocol)
        try:
            make(transport)
        except BaseException as error:
            its = getattr(protocol, "transport", transport)
            if its is None:
                # Nobody else can end it, or would hear that the peer did.
                protocol.transport = transport
                transports.abort(transport)
            elif isinstance(error, RuntimeError) and its is not transport:
                # It has another connection, and refused this one.
                self._step_aside()
                self.connections.ended(transport)
                self.leave()
            raise
        if isinstance(self.times, Limits):
            self.times = begin(_handler(protocol), transport, self.times)

    def __call__(self, reason: Failure = connectionDone) -> None:
        original = self._step_aside()
        times, self.times = self.times, None  # which may not hold for makeConnection any more
        if isinstance(times, Deadlines):
            times.end()
        try:
            original(reason)
        finally:
            self.connections.ended(self.transport)
            self.leave()

    def _step_aside(self) -> Any:
        """Let ``connectionLost`` be what it was, and return it."""
        protocol = self.protocol
        del protocol.connectionLost
        if self.original is not None:
            protocol.connectionLost = self.original
        return protocol.connectionLost


def _handler(protocol: Any) -> Any:
    while isinstance(protocol, ProtocolWrapper):
        protocol = protocol.wrappedProtocol
    return protocol


@implementer(IProtocolFactory)
class WatchedFactory:
    """
    Any protocol factory, with its connections counted; in everything else it is that factory.

    Args:
        factory: it.
        connections: counts them.
        limits, default: what a peer may take; see `in_force`.
        admission: says who is taken; None: everybody.
    """

    def __init__(
        self,
        factory: Any,
        connections: Connections,
        limits: Limits | None = None,
        default: Limits | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._factory = factory
        self._connections = connections
        self._limits = limits, default
        self._admission = admission
        # Twisted's transports ask a factory what it provides: names for the log, protocols for ALPN.
        directlyProvides(self, providedBy(factory))

    def buildProtocol(self, addr: IAddress | None) -> Any:  # noqa: D102, N802 - IProtocolFactory
        admission, place = self._admission, None
        if admission is not None:
            place = admission.enter(addr)
            if place is None:
                return admission.refusing()
        protocol = None
        try:
            protocol = self._factory.buildProtocol(addr)
        finally:
            if protocol is None and place is not None:
                place.leave()
        if protocol is None:
            return None if admission is None else admission.failing()
        return self._connections.watch(protocol, in_force(_handler(protocol), *self._limits), place)

    def socket_accepted(self, sock: Any, address: Any) -> None:
        """Let the factory serve a socket, if it takes sockets, and count the connection."""
        admission, place = self._admission, None
        if admission is not None:
            place = admission.enter(address)
            if place is None:
                refuse_socket(sock, address, admission.refusing(), admission.clock)
                return
        connection = None
        try:
            connection = self._factory.socket_accepted(sock, address)
        finally:
            self._count(place, connection)

    def secure_socket_accepted(self, sock: Any, address: Any, options: Any) -> None:
        """
        As `socket_accepted`, with TLS; the connection counts when the handshake is done, and has its
        place before that.
        """
        admission, place = self._admission, None
        if admission is not None:
            place = admission.enter(address)
            if place is None:
                sock.close()
                return
        count = partial(self._count, place)
        try:
            self._factory.secure_socket_accepted(sock, address, options, count)
        except BaseException:
            count(None)
            raise

    def _count(self, place: Place | None, connection: Any) -> None:
        if connection is not None:
            self._connections.began(connection, connection)
            connection.when_ended(partial(self._connections.ended, connection))
            if place is not None:
                connection.when_ended(place.leave)
        elif place is not None:
            place.leave()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)
