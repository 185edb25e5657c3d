"""
`Accepting`: how a port accepts, in batches.

Without a descriptor for the next connection it rests, and says so once; what waits stays in the
backlog. Whoever wants to decide about that, and about each connection, sets a `Gate`.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Protocol

from twisted.logger import Logger

from txasynchat.log import failure
from txasynchat.transports import address_of

__all__ = ["EXHAUSTED", "LARGEST_BATCH", "Accepting", "Gate"]

#: Connections that one event accepts at most.
LARGEST_BATCH = 100
#: Seconds between two attempts to accept while no descriptor is left.
REST = 0.1

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What happened to one connection before it was accepted (Linux, accept(2)).
_BROKEN_OFF = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        getattr(errno, "ENONET", errno.ENETDOWN),
    }
)


class Gate(Protocol):
    """Who decides what a port accepts."""

    #: Connections that one event accepts at most.
    batch: int
    #: `passes` is to be asked.
    asks: bool

    def passes(self, sock: socket.socket, address: Any) -> bool:
        """Return whether a connection is served now; else it is the gate's from now on."""

    def exhausted(self, listener: socket.socket) -> bool:
        """Note that no descriptor is left; return whether the port need not rest."""

    def rested(self) -> None:
        """The port has rested, and will try again."""


if TYPE_CHECKING:
    # Without types, as Twisted's ports are.
    _Base: Any = object
else:
    _Base = object


class Accepting(_Base):  # type: ignore[misc] # see above
    """
    The part of a port that accepts.

    Attributes:
        gate: decides about connections; None: all are served.
        rested: how often it had to rest since it last accepted something.
        resting: it rests now.
    """

    numberAccepts: int  # noqa: N815 Twisted's
    gate: Gate | None = None
    rested = 0
    # The timer of a rest.
    _rest_timer: Any = None
    _log = Logger()

    # -- to be overridden

    def serve_socket(self, sock: socket.socket, address: Any) -> None:
        """Serve an accepted socket. If this raises, it is closed."""
        raise NotImplementedError

    def make_transport(self, sock: socket.socket, protocol: Any, peer: Any) -> Any:
        """Make the transport of a connection."""
        raise NotImplementedError

    # -- for those who do

    def accept_some(self) -> None:
        """Accept what has connected, up to a limit that grows while it is reached."""
        gate = self.gate
        if self.rested and gate is not None:
            gate.rested()
        largest = LARGEST_BATCH if gate is None else gate.batch
        most = min(self.numberAccepts, largest)
        self.numberAccepts = min(most + 20, largest)  # or fewer, by `transports.accept_fewer`
        accept = self.socket._accept
        family, kind = self.addressFamily, self.socketType
        for accepted in range(most):
            try:
                number, address = accept()
            except OSError as error:
                if error.errno in _BROKEN_OFF:
                    continue
                if error.errno in EXHAUSTED:
                    if gate is None or not gate.exhausted(self.socket):
                        self._rest()
                elif error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                    raise
                self.numberAccepts = min(self.numberAccepts, accepted or 1)
                return
            # As socket.accept() does; that looks each of these up, and the enums of two, every time.
            sock = socket.socket(family, kind, 0, number)
            sock.setblocking(False)
            self.rested = 0
            if gate is None or not gate.asks or gate.passes(sock, address):
                self.serve(sock, address)
            if not self.connected or self.disconnecting:
                return

    def serve(self, sock: socket.socket, address: Any) -> None:
        """Serve an accepted socket; what is raised is logged."""
        try:
            self.serve_socket(sock, address)
        except BaseException:  # noqa: BLE001 it is the factory's, and is logged
            failure(self._log, "{port!r}: {peer} cannot be served", port=self, peer=address)

    def make_connection(
        self, sock: socket.socket, peer: Any, factory: Any, *, known: bool = False
    ) -> None:
        """
        Connect a protocol of *factory*; close the socket if it has none.

        Args:
            sock: connected, and non-blocking.
            peer: its address.
            factory: an `IProtocolFactory`.
            known: a proxy named the address, which may be of another family.
        """
        # Twisted's own methods, so that a subclass may override them.
        try:
            if known:
                place = address_of(peer)
            else:
                if self.addressFamily == socket.AF_INET6:
                    peer = _with_scope(peer)
                place = self._buildAddr(peer)
            protocol = factory.buildProtocol(place)
            if protocol is None:
                sock.close()
                return
            transport: Any = self.make_transport(sock, protocol, peer)
        except BaseException:
            sock.close()
            raise
        protocol.makeConnection(transport)

    @property
    def resting(self) -> bool:
        """Nothing is accepted for a moment."""
        return self._rest_timer is not None

    def end_rest(self) -> None:
        """Accept again, when the port reads."""
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    # -- internals

    def _rest(self) -> None:
        self.rested += 1
        if self.rested == 1 and self.gate is None:
            self._log.warn(
                "no descriptor is left for the connections that {port!r} could accept, and they wait; "
                "raise the limit on open files (ulimit -n)",
                port=self,
            )
        self.stopReading()
        self._rest_timer = self.reactor.callLater(REST, self._wake)

    def _wake(self) -> None:
        self._rest_timer = None
        self.startReading()


def _with_scope(address: Any) -> Any:
    """Return a peer's IPv6 *address*, with the name of the interface if it is one of a link."""
    if not address[3]:
        return address
    host = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return (host, *address[1:])
