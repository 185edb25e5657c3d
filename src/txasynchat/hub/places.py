"""
Endpoints whose sockets are in a `SharedHub`, and the strings for them: ``hub:tcp:…``, ``hub:unix:…``.

Behind ``hub:`` stands any of Twisted's descriptions that ends in a socket. What it means, how names are
resolved and addresses tried, stays Twisted's. A server's endpoint is given a reactor that listens by
the ports of `txasynchat.hub.port`.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString
from twisted.internet.error import ConnectionDone, NoProtocol, UnsupportedAddressFamily
from twisted.internet.interfaces import (
    IReactorSocket,
    IReactorTCP,
    IReactorUNIX,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import directlyProvides, implementer, providedBy

from txasynchat.hub.port import ISocketFactory, LentPort, TCPPort, UNIXPort
from txasynchat.hub.shared import has_descriptors, shared_hub
from txasynchat.hub.transport import Outgoing, OutgoingUNIX

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory

__all__ = [
    "HubClientEndpoint",
    "HubReactor",
    "HubServerEndpoint",
    "on_hub",
    "parse_client",
    "parse_server",
]

#: What may stand behind ``hub:``, for a server and for a client.
SERVERS = ("tcp", "tcp6", "unix", "systemd")
CLIENTS = ("tcp", "unix")

# A server's description that ends in a socket, which the hub would serve.
_SERVER = re.compile(rf"((?:(?:secure|haproxy|proxy):)*)(?=(?:{'|'.join(SERVERS)})\\?:)")

_log = Logger()


class HubReactor:
    """
    A reactor whose stream ports are in its hub; in everything else it is that reactor.

    Args:
        reactor: one that `has_descriptors`.
    """

    #: Unix sockets that it adopts are only lent to it; see `transports.Lent`.
    lends = True

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        directlyProvides(self, providedBy(reactor), IReactorTCP, IReactorUNIX, IReactorSocket)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(  # noqa: N802 Twisted's name
        self, port: int, factory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """Listen on a TCP port; see `IReactorTCP`."""
        return _begin(TCPPort(port, factory, backlog, interface, self._reactor))

    def listenUNIX(  # noqa: N802 Twisted's name
        self,
        address: Any,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: int = 0,  # noqa: N803 Twisted's
    ) -> IListeningPort:
        """Listen on a Unix socket; see `IReactorUNIX`."""
        return _begin(UNIXPort(address, factory, backlog, mode, self._reactor, wantPID))

    def adoptStreamPort(  # noqa: N802 Twisted's name
        self, descriptor: int, family: int, factory: Any
    ) -> IListeningPort:
        """Listen on a socket that somebody else bound; see `IReactorSocket`."""
        if family == socket.AF_UNIX:
            return _begin(LentPort._fromListeningDescriptor(self._reactor, descriptor, factory))  # type: ignore[no-untyped-call] # Twisted's, untyped
        if family not in (socket.AF_INET, socket.AF_INET6):
            raise UnsupportedAddressFamily(family)
        return _begin(
            TCPPort._fromListeningDescriptor(self._reactor, descriptor, family, factory)  # type: ignore[no-untyped-call] # Twisted's, untyped
        )


def _begin(port: Any) -> IListeningPort:
    port.startListening()
    listening: IListeningPort = port
    return listening


@implementer(ISocketFactory)
class SecureSockets:
    """
    Stands before a factory that serves sockets over TLS by itself; in all else it is that factory.
    """

    #: What it serves speaks TLS.
    secures = True

    def __init__(self, factory: Any, options: Any) -> None:
        self._factory = factory
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)

    def socket_accepted(self, sock: Any, address: Any) -> None:
        """Give the socket to the factory, with how to speak TLS on it."""
        self._factory.secure_socket_accepted(sock, address, self._options)


@implementer(IStreamServerEndpoint)
class HubServerEndpoint:
    """
    Listens where one of Twisted's endpoints would, by a port of the hub.

    Args:
        endpoint: it was made for a `HubReactor`.
    """

    def __init__(self, endpoint: Any) -> None:
        # Under the name that Twisted's own endpoints around others use; see `listening.parse`.
        self._wrappedEndpoint = endpoint

    def over_sockets(self, factory: Any, options: Any) -> Any:
        """
        Return what to listen with, for a factory that serves sockets over TLS by itself.

        Args:
            factory: to be listened with.
            options: a `ServerOptions`.

        Returns:
            None if *factory* does not.
        """
        return SecureSockets(factory, options) if ISocketFactory.providedBy(factory) else None

    def listen(self, protocolFactory: IProtocolFactory | Factory[Any]) -> Deferred[Any]:  # noqa: N803 Twisted's
        """Listen."""
        listening: Deferred[Any] = self._wrappedEndpoint.listen(protocolFactory)
        return listening


@implementer(IStreamClientEndpoint)
class HubClientEndpoint:
    """
    Connects as one of Twisted's endpoints does; the connection is the hub's.

    Args:
        reactor: whose hub that is.
        endpoint: one whose connections are sockets of that reactor.
    """

    def __init__(self, reactor: Any, endpoint: Any) -> None:
        self._reactor = reactor
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory | Factory[Any]) -> Deferred[Any]:  # noqa: N803 Twisted's
        """
        Connect.

        Returns:
            A Deferred that fires with the protocol; or fails with what the other endpoint or the
            factory raised. Cancelling it ends the attempt.
        """
        attempt = _Attempt(protocolFactory)
        connecting: Deferred[Any] = self._endpoint.connect(attempt)
        return connecting.addCallback(self._take_over, attempt)

    def _take_over(self, first: Any, attempt: _Attempt) -> Any:
        """Put a connection of the hub in the place of Twisted's, with the same socket."""
        transport = first.transport
        factory = attempt.factory
        address, peer, theirs = transport.getPeer(), transport.realAddress, transport.socket
        transport.stopReading()
        sock = socket.socket(theirs.family, theirs.type, theirs.proto, theirs.detach())
        attempt.taken = True
        transport.connectionLost(Failure(ConnectionDone()))  # type: ignore[no-untyped-call] # Twisted's
        cls = OutgoingUNIX if sock.family == socket.AF_UNIX else Outgoing
        try:
            protocol = factory.buildProtocol(address)
            if protocol is None:
                raise NoProtocol
            connection = cls(shared_hub(self._reactor), sock, protocol, peer, factory)
            connection.setTcpNoDelay(True)
        except BaseException:
            sock.close()
            factory.doStop()
            raise
        try:
            protocol.makeConnection(connection)
        except BaseException:
            connection.abortConnection()
            raise
        return protocol


class _Attempt(Factory):
    """The factory that Twisted's endpoint connects, in the place of the application's."""

    protocol = Protocol
    noisy = False

    def __init__(self, factory: Any) -> None:
        self.factory = factory
        self.taken = False

    @override
    def doStart(self) -> None:
        self.factory.doStart()

    @override
    def doStop(self) -> None:
        if not self.taken:
            self.factory.doStop()


def on_hub(description: str) -> str:
    """Return a server's *description* with ``hub:`` in it, where it ends in a socket."""
    return (
        _SERVER.sub(r"\1hub:", description, count=1) if _SERVER.match(description) else description
    )


def parse_server(reactor: Any, *arguments: str, **words: str) -> Any:
    """
    Make the endpoint of a ``hub:`` string; called by Twisted, with the string split.

    Raises:
        ValueError: the string is wrong, or the inner one is.
    """
    inner = _inner(SERVERS, arguments, words)
    if not _takes(reactor, inner):
        return serverFromString(reactor, inner)  # type: ignore[no-untyped-call] # Twisted's, untyped
    return HubServerEndpoint(serverFromString(HubReactor(reactor), inner))  # type: ignore[no-untyped-call] # as above


def parse_client(reactor: Any, *arguments: str, **words: str) -> Any:
    """
    Make the client endpoint of a ``hub:`` string; called by Twisted, with the string split.

    Raises:
        ValueError: the string is wrong, or the inner one is.
    """
    inner = _inner(CLIENTS, arguments, words)
    endpoint = clientFromString(reactor, inner)  # type: ignore[no-untyped-call] # as above
    return HubClientEndpoint(reactor, endpoint) if _takes(reactor, inner) else endpoint


def _takes(reactor: Any, inner: str) -> bool:
    """Return whether *reactor* can have a hub; say so if it cannot."""
    if has_descriptors(reactor):
        return True
    _log.warn(
        "{reactor} has no descriptors for a hub; Twisted's transports serve {endpoint!r}",
        reactor=type(reactor).__name__,
        endpoint=inner,
    )
    return False


def _inner(kinds: tuple[str, ...], arguments: tuple[str, ...], words: dict[str, str]) -> str:
    """Return the description behind ``hub:``, which is of one of those *kinds*."""
    first = next(iter(words), "")
    if not arguments and ":" in first:
        # An inner string that was written as one argument, and that Twisted split at its first "=".
        arguments = (f"{first}={words.pop(first)}",)
    if not arguments:
        raise ValueError("hub: needs another endpoint behind it, as in hub:tcp:8007")
    kind = arguments[0].partition(":")[0]
    if kind not in kinds:
        raise ValueError(f"hub: is for {', '.join(f'{one}:' for one in kinds)} not {kind!r}")
    if len(arguments) > 1:
        arguments = tuple(map(quoteStringArgument, arguments))
    return ":".join(
        (*arguments, *(f"{name}={quoteStringArgument(value)}" for name, value in words.items()))  # type: ignore[no-untyped-call] # Twisted's
    )
