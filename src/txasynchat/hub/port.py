"""
Ports whose sockets are in a `SharedHub`: connections are accepted in batches.

How a port binds, locks, reports errors and stops is Twisted's; how it accepts is not. Without a
descriptor for the next connection it rests, and says so once; what waits stays in the backlog.

A factory that provides `ISocketFactory` gets the accepted sockets themselves.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from typing_extensions import override
from zope.interface import Attribute, Interface, implementer

from txasynchat.hub.pollers import READ
from txasynchat.hub.shared import shared_hub
from txasynchat.hub.transport import Connection, UNIXConnection
from txasynchat.log import failure
from txasynchat.transports import Lent, address_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.hub.shared import SharedHub

    # Without types, as Twisted's ports are.
    _Port: Any = tcp.Port
else:
    _Port = object

__all__ = ["IIntroducer", "ISocketFactory", "LentPort", "TCPPort", "UNIXPort"]

#: Connections that one event accepts at most.
LARGEST_BATCH = 100
#: Seconds between two attempts to accept while no descriptor is left.
REST = 0.1

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
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


class ISocketFactory(Interface):
    """A factory for ports of a hub that serves sockets by itself."""

    def socket_accepted(sock: socket.socket, address: Any) -> Any:  # noqa: N805 an interface
        """
        Serve a connection; it is the factory's from now on, to be closed too.

        If this raises, the exception is logged and the socket closed.

        Args:
            sock: non-blocking, close-on-exec.
            address: the peer's, as `socket.socket.accept` gives it.
        """


class IIntroducer(Interface):
    """A factory that finds out first whose connections a port of a hub accepted."""

    wrappedFactory = Attribute("The factory that serves them.")  # noqa: N815 Twisted's

    def introduce(sock: socket.socket, address: Any, serve: Any) -> Any:  # noqa: N805 an interface
        """
        Find out about a connection, and then call *serve*; or close the socket.

        Args:
            sock: non-blocking, close-on-exec.
            address: the peer's, as `socket.socket.accept` gives it.
            serve: takes the socket to be served, and the address of whose connection it is.
        """


class _Accepting(_Port):  # type: ignore[misc] # see above
    """The part of a port that differs from Twisted's."""

    _hub: SharedHub | None = None
    _number = -1
    # The socket, until it listens.
    _created: Any = None
    numberAccepts: int  # noqa: N815 Twisted's
    # The timer of a rest.
    _resting: Any = None
    #: How often it had to rest since it last accepted something.
    rested = 0
    _log = Logger()

    # -- Twisted's ports

    @override
    def createInternetSocket(self) -> Any:
        self._created = super().createInternetSocket()
        return self._created

    @override
    def startListening(self) -> None:
        try:
            super().startListening()
        except BaseException:
            if self._created is not None:
                self._created.close()  # Twisted leaves one that it cannot bind to the collector
            raise
        self._created = None

    # -- Twisted's FileDescriptor

    @override
    def startReading(self) -> None:
        if self._resting is not None:
            return
        if self._hub is None:
            self._number = self.fileno()
            self._accepted: Callable[[socket.socket, Any], None] | None = None
            self._introduce: Any = None
            self._factory = self.factory
            if IIntroducer.providedBy(self.factory):
                self._introduce = self.factory.introduce
                self._factory = self.factory.wrappedFactory
            if ISocketFactory.providedBy(self._factory):
                self._accepted = self._factory.socket_accepted
            elif self.addressFamily != socket.AF_UNIX:
                # Accepted sockets inherit it. Writes are joined here, and Nagle's algorithm could only
                # delay them.
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.setblocking(False)
            hub = shared_hub(self.reactor)
            hub.add(self._number, self, READ)
            self._hub = hub
        else:
            self._hub.watch(self._number, READ)

    @override
    def stopReading(self) -> None:
        self._end_rest()
        if self._hub is not None:
            self._hub.watch(self._number, 0)

    @override
    def stopWriting(self) -> None:
        pass

    @override
    def connectionLost(self, reason: Any) -> None:
        self._end_rest()
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.remove(self._number, self)
        super().connectionLost(reason)

    # -- Served

    def ready(self, _events: int) -> None:
        """Accept what has connected, up to a limit that grows while it is reached."""
        most = self.numberAccepts
        self.numberAccepts = min(most + 20, LARGEST_BATCH)  # or fewer, by `transports.accept_fewer`
        accept = self.socket._accept
        family, kind = self.addressFamily, self.socketType
        for accepted in range(most):
            try:
                number, address = accept()
            except OSError as error:
                if error.errno in _BROKEN_OFF:
                    continue
                if error.errno in _EXHAUSTED:
                    self._rest()
                elif error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                    raise
                self.numberAccepts = min(self.numberAccepts, accepted or 1)
                return
            # As socket.accept() does; that looks each of these up, and the enums of two, every time.
            sock = socket.socket(family, kind, 0, number)
            sock.setblocking(False)
            self.rested = 0
            try:
                if self._introduce is None:
                    self._serve(sock, address)
                else:
                    self._introduce(sock, address, self._serve)
            except BaseException:  # noqa: BLE001 it is the factory's, and is logged
                failure(self._log, "{port!r}: {peer} cannot be served", port=self, peer=address)
            if not self.connected or self.disconnecting:
                return

    def proceed(self) -> None:
        """Do nothing: a port never asks for it."""

    def failed(self) -> None:
        """Do nothing: the port goes on, as Twisted's do."""

    # -- internals

    def _serve(self, sock: socket.socket, address: Any) -> None:
        if self._accepted is not None:
            try:
                self._accepted(sock, address)
            except BaseException:
                sock.close()
                raise
            return
        # Twisted's own methods, so that a subclass may override them.
        try:
            peer = address
            if self._introduce is not None:
                place = address_of(address)  # which may be of another family
            else:
                if self.addressFamily == socket.AF_INET6:
                    peer = _with_scope(address)
                place = self._buildAddr(peer)
            protocol = self._factory.buildProtocol(place)
            if protocol is None:
                sock.close()
                return
            transport: Any = self.transport(self._hub, sock, protocol, peer, self)
        except BaseException:
            sock.close()
            raise
        protocol.makeConnection(transport)

    def _rest(self) -> None:
        self.rested += 1
        if self.rested == 1:
            self._log.warn(
                "no descriptor is left for the connections that {port!r} could accept, and they wait; "
                "raise the limit on open files (ulimit -n)",
                port=self,
            )
        self.stopReading()
        self._resting = self.reactor.callLater(REST, self._wake)

    def _wake(self) -> None:
        self._resting = None
        self.startReading()

    def _end_rest(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None


def _with_scope(address: Any) -> Any:
    """Return a peer's IPv6 *address*, with the name of the interface if it is one of a link."""
    if not address[3]:
        return address
    host = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return (host, *address[1:])


@implementer(IListeningPort)
class TCPPort(_Accepting, tcp.Port):
    """A TCP port, over IPv4 or IPv6."""

    transport: Any = Connection


@implementer(IListeningPort)
class UNIXPort(_Accepting, unix.Port):
    """A port on a Unix socket."""

    transport: Any = UNIXConnection


class LentPort(Lent, UNIXPort):
    """A port on a Unix socket that was lent."""
