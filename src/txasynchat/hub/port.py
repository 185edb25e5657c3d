"""
Ports whose sockets are in a `SharedHub`: connections are accepted in batches.

How a port binds, locks, reports errors and stops is Twisted's; how it accepts is not; see `accepting`.

A factory that provides `ISocketFactory` gets the accepted sockets themselves.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IListeningPort
from typing_extensions import override
from zope.interface import Attribute, Interface, implementer

from txasynchat.hub.accepting import Accepting
from txasynchat.hub.pollers import READ
from txasynchat.hub.shared import shared_hub
from txasynchat.hub.transport import Connection, UNIXConnection
from txasynchat.transports import Lent

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.hub.shared import SharedHub

    # Without types, as Twisted's ports are.
    _Port: Any = tcp.Port
else:
    _Port = object

__all__ = ["IIntroducer", "ISocketFactory", "LentPort", "TCPPort", "UNIXPort"]


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


class _HubPort(Accepting, _Port):  # type: ignore[misc] # see above
    """The part of a port that differs from Twisted's."""

    _hub: SharedHub | None = None
    _number = -1
    # The socket, until it listens.
    _created: Any = None

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
        if self.resting:
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
        self.end_rest()
        if self._hub is not None:
            self._hub.watch(self._number, 0)

    @override
    def stopWriting(self) -> None:
        pass

    @override
    def connectionLost(self, reason: Any) -> None:
        self.end_rest()
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.remove(self._number, self)
        super().connectionLost(reason)

    # -- Served

    def ready(self, _events: int) -> None:
        """Accept what has connected."""
        self.accept_some()

    def proceed(self) -> None:
        """Do nothing: a port never asks for it."""

    def failed(self) -> None:
        """Do nothing: the port goes on, as Twisted's do."""

    # -- Accepting

    @override
    def serve_socket(self, sock: socket.socket, address: Any) -> None:
        if self._introduce is None:
            self._serve(sock, address)
        else:
            self._introduce(sock, address, self._serve)

    def _serve(self, sock: socket.socket, address: Any) -> None:
        if self._accepted is None:
            self.make_connection(sock, address, self._factory, known=self._introduce is not None)
            return
        try:
            self._accepted(sock, address)
        except BaseException:
            sock.close()
            raise

    @override
    def make_transport(self, sock: socket.socket, protocol: Any, peer: Any) -> Any:
        return self.transport(self._hub, sock, protocol, peer, self)


@implementer(IListeningPort)
class TCPPort(_HubPort, tcp.Port):
    """A TCP port, over IPv4 or IPv6."""

    transport: Any = Connection


@implementer(IListeningPort)
class UNIXPort(_HubPort, unix.Port):
    """A port on a Unix socket."""

    transport: Any = UNIXConnection


class LentPort(Lent, UNIXPort):
    """A port on a Unix socket that was lent."""
