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

from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.error import UnsupportedAddressFamily
from twisted.internet.interfaces import (
    IReactorSocket,
    IReactorTCP,
    IReactorUNIX,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import directlyProvides, implementer, providedBy

from txasynchat.hub.port import LentPort, TCPPort, UNIXPort
from txasynchat.hub.shared import has_descriptors

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory
    from twisted.internet.protocol import Factory

__all__ = ["HubReactor", "HubServerEndpoint", "parse_server"]

#: The kinds of servers that `parse_server` takes.
SERVERS = ("tcp", "tcp6", "unix", "systemd")

_log = Logger()


class HubReactor:
    """
    A reactor whose stream ports are in its hub; in everything else it is that reactor.

    Args:
        reactor: one that `has_descriptors`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        directlyProvides(self, providedBy(reactor), IReactorTCP, IReactorUNIX, IReactorSocket)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(  # noqa: N802 Twisted's name
        self, port: int, factory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """
        Listen on a TCP port; see `IReactorTCP`.
        """
        return _begin(TCPPort(port, factory, backlog, interface, self._reactor))

    def listenUNIX(  # noqa: N802 Twisted's name
        self,
        address: Any,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: int = 0,  # noqa: N803 Twisted's
    ) -> IListeningPort:
        """
        Listen on a Unix socket; see `IReactorUNIX`.
        """
        return _begin(UNIXPort(address, factory, backlog, mode, self._reactor, wantPID))

    def adoptStreamPort(  # noqa: N802 Twisted's name
        self, descriptor: int, family: int, factory: Any
    ) -> IListeningPort:
        """
        Listen on a socket that somebody else bound; see `IReactorSocket`.
        """
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

    def listen(self, protocolFactory: IProtocolFactory | Factory[Any]) -> Deferred[Any]:  # noqa: N803 Twisted's
        """
        Listen.
        """
        listening: Deferred[Any] = self._wrappedEndpoint.listen(protocolFactory)
        return listening


def parse_server(reactor: Any, *arguments: str, **words: str) -> Any:
    """
    Make the endpoint of a ``hub:`` string; called by Twisted, with the string split.

    Raises:
        ValueError: the string is wrong, or the inner one is.
    """
    inner = _inner(arguments, words)
    kind = re.match(r"\w*", inner)[0]  # type: ignore[index] # it matches nothing, too
    if kind not in SERVERS:
        raise ValueError(f"hub: is for {', '.join(f'{one}:' for one in SERVERS)}, not {kind!r}")
    if not has_descriptors(reactor):
        _log.warn(
            "{reactor} has no descriptors for a hub; {endpoint!r} is served by Twisted's transports",
            reactor=type(reactor).__name__,
            endpoint=inner,
        )
        return serverFromString(reactor, inner)  # type: ignore[no-untyped-call] # Twisted's, untyped
    endpoint = serverFromString(HubReactor(reactor), inner)  # type: ignore[no-untyped-call] # as above
    return HubServerEndpoint(endpoint)


def _inner(arguments: tuple[str, ...], words: dict[str, str]) -> str:
    """
    Return the description behind ``hub:``.
    """
    first = next(iter(words), "")
    if not arguments and ":" in first:
        # An inner string that was written as one argument, and that Twisted split at its first "=".
        arguments = (f"{first}={words.pop(first)}",)
    if not arguments:
        raise ValueError("hub: needs another endpoint behind it, as in hub:tcp:8007")
    if len(arguments) > 1:
        arguments = tuple(map(quoteStringArgument, arguments))
    return ":".join(
        (*arguments, *(f"{name}={quoteStringArgument(value)}" for name, value in words.items()))  # type: ignore[no-untyped-call] # Twisted's
    )
