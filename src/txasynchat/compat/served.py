"""
Legacy handlers on endpoints: `LegacyFactory`.

An ``asyncore`` handler wants a socket, and somebody who calls it when the socket is ready. A port of
the hub gives its sockets (`compat._accepted`); every other connection is worn as one (`compat._worn`).
Either way the facade's own driver calls the handler, beside the reactor, and in the maps that it would
use in ``loop()``.

This module finds out how a handler wants to be built, builds it, and says why if it cannot.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from typing_extensions import override
from zope.interface import implementer

from txasynchat.compat import asynchat, asyncore
from txasynchat.compat._accepted import Accepted, Beside, Handshake
from txasynchat.compat._worn import Connection, TransportSocket
from txasynchat.handlers import Hears, arguments_for, hears, wanted
from txasynchat.hub.port import ISocketFactory
from txasynchat.limits.deadlines import begin
from txasynchat.limits.options import Limits, check_limits
from txasynchat.log import failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress

    from txasynchat.limits.deadlines import Deadlines

__all__ = ["LegacyFactory", "TransportSocket"]

_SOCKET_NAMES = frozenset({"sock", "conn", "connection", "client", "channel", "socket", "s"})
_ADDRESS_NAMES = frozenset({"addr", "address", "client_address", "client_addr", "peer"})


@implementer(ISocketFactory)
class LegacyFactory(ServerFactory):
    """
    Builds a legacy handler for each connection, with its socket.

    A port of the hub (``hub:tcp:…``) gives real sockets, and the handlers run as in ``loop()``, beside
    the reactor: see `compat._accepted`. Everywhere else the handler gets the transport in the shape of
    a socket.

    ``LegacyFactory(Handler)`` calls ``Handler(sock)``, or ``Handler(sock, addr)``, as the names of
    the parameters say; *arguments* follow what was recognised. ``LegacyFactory(build=…)`` calls
    ``build(sock, addr)`` instead, where the server of old did more than that.

    Channels register in ``asyncore.socket_map``, or in a map that they are given. Either is driven
    beside the reactor as long as it has channels, and ``asyncore.loop()`` need not run.

    Args:
        handler: a subclass of ``asyncore.dispatcher``, in most cases of ``asynchat.async_chat``.
        arguments: further positional arguments for the handler.
        build: called in place of the handler.
        reactor: for sockets, and for transports that do not know theirs; by default the installed one.
        limits: what a peer may take; see `Limits`. A `Server` that has limits puts them before these.
        on_timeout: called with the channel and the kind of the deadline that has passed, before the
            channel has to close; it may push a last word.
        keywords: keyword arguments for the handler.

    Raises:
        TypeError: neither or both of *handler* and *build*; *handler* cannot be called so, or is a
            class that listens.

    Attributes:
        connections: those that are open.
        limits, on_timeout: as above.
        default_limits: what holds where *limits* say nothing.
    """

    protocol = Connection
    noisy = False
    _log = Logger()

    def __init__(
        self,
        handler: Callable[..., Any] | None = None,
        *arguments: Any,
        build: Callable[[Any, Any], Any] | None = None,
        reactor: Any = None,
        limits: Limits | None = None,
        on_timeout: Callable[[Any, str], object] | None = None,
        **keywords: Any,
    ) -> None:
        if (handler is None) is (build is None):
            raise TypeError("LegacyFactory takes either a handler or build=")
        self.handler = handler
        self.reactor = reactor
        self.limits = check_limits(limits)
        self.default_limits: Limits | None = None
        self.on_timeout = on_timeout
        self._beside: Beside | None = None
        self._handshakes: WeakSet[Handshake] = WeakSet()
        self.connections: dict[Any, Any] = {}
        self.build_channel = build or _builder(handler, arguments, keywords)

    @override
    def stopFactory(self) -> None:
        for handshake in list(self._handshakes):
            handshake.abandon()
        if self._beside is not None:
            self._beside.leave(self)

    @override
    def buildProtocol(self, addr: IAddress | None) -> Connection:
        """Return the protocol of a transport that is to be worn as a socket."""
        connection = Connection(self._wear, self.reactor)
        connection.factory = self
        return connection

    def socket_accepted(self, sock: Any, address: Any) -> Accepted | None:
        """
        Build a handler for an accepted socket, and run it beside the reactor; see `ISocketFactory`.

        Returns:
            the connection; None if there is no handler, and the socket is closed.
        """
        beside = self._join()
        channel = self._build(beside, sock, address)
        if channel is None:
            sock.close()
            return None
        connection = Accepted(channel, address, self.on_timeout)
        self.connections[connection] = connection
        connection.when_ended(partial(self.connections.pop, connection))
        beside.watch(channel, connection)
        deadlines = self._begin(connection, connection, beside.reactor)
        if deadlines is not None:
            connection.when_ended(deadlines.end)
        return connection

    def secure_socket_accepted(
        self,
        sock: Any,
        address: Any,
        options: Any,
        done: Callable[[Accepted | None], object] = lambda _: None,
    ) -> None:
        """
        Shake hands on an accepted socket, and then do as `socket_accepted` does.

        Args:
            sock: see `ISocketFactory`.
            address: see there.
            options: a `ServerOptions`.
            done: called with what `socket_accepted` returns, or None after a handshake that failed.
        """
        with self._join().handlers():
            self._handshakes.add(Handshake(sock, address, options, self.socket_accepted, done))

    def _join(self) -> Beside:
        """Return where handlers of accepted sockets run, until this factory stops."""
        beside = self._beside = Beside.of(self.reactor)
        beside.users.add(self)
        return beside

    def _wear(self, beside: Beside, sock: TransportSocket, connection: Connection) -> Any:
        if self.numPorts:
            self._beside = beside
            beside.users.add(self)
        self.connections[connection] = connection
        channel = self._build(beside, sock, sock.getpeername())
        if channel is not None and connection.connected:
            connection.deadlines = self._begin(connection, connection.transport, beside.reactor)
        return channel

    def _begin(self, connection: Any, transport: Any, reactor: Any) -> Deadlines | None:
        limits = (self.limits or Limits()).over(self.default_limits)
        return begin(connection, transport, limits, clock=reactor) if limits.given() else None

    def _build(self, beside: Beside, sock: Any, address: Any) -> Any:
        """Return a new handler, which is in its map; None, and say why, if there is none."""
        with beside.handlers():
            try:
                made = self.build_channel(sock, address)
            except asyncore._reraised_exceptions:
                beside.stop()
                return None
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                failure(self._log, "{peer}: no handler could be built", peer=address)
                return None
        if isinstance(made, asyncore.dispatcher) and made.socket is not None:
            return made
        # The builder did not return it; or it has closed already.
        number = sock.channel_key if isinstance(sock, TransportSocket) else sock.fileno()
        channel = asyncore.socket_map.get(number)
        if channel is not None and channel.socket is sock:
            return channel
        if number != -1:
            self._log.error("{peer}: the handler took no socket", peer=address)
        return None


def _builder(
    handler: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Callable[[Any, Any], Any]:
    """Find out by the names of its parameters how *handler* wants its socket and its address."""
    name = getattr(handler, "__qualname__", None) or repr(handler)
    if not callable(handler):
        raise TypeError(f"{name} is not a class of handlers, nor can it be called to make one")
    if _listens(handler):
        raise TypeError(
            f"{name} listens by itself, as it overrides handle_accept or handle_accepted: serve the "
            f"class that it makes for each connection; write {_example('', inspect.Signature())}"
        )
    names: list[str] = []
    for each, parameter in inspect.signature(handler).parameters.items():
        if parameter.kind not in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            break
        names.append(each)
    first, second = [*names, "", ""][:2]
    if first in _ADDRESS_NAMES and second in _SOCKET_NAMES:
        given = ["addr", "sock"]
        build = lambda sock, addr: handler(addr, sock, *arguments, **keywords)  # noqa: E731 one of three
    elif second in _ADDRESS_NAMES:
        given = ["sock", "addr"]
        build = lambda sock, addr: handler(sock, addr, *arguments, **keywords)  # noqa: E731 see above
    else:
        given = ["sock"]
        build = lambda sock, _addr: handler(sock, *arguments, **keywords)  # noqa: E731 see above
    want = wanted(handler, (*given, *arguments), keywords)
    if want is not None:
        called = ", ".join([*given, *map(repr, arguments), *keywords])
        raise TypeError(
            f"{name} wants {want}, and would be called with ({called}); "
            f"write {_example(name, want)}"
        )
    return build


def _example(name: str, wants: inspect.Signature) -> str:
    """Write a factory that gives a handler the socket and the address, as far as they can be told."""
    arguments = [
        "sock" if one in _SOCKET_NAMES else "addr" if one in _ADDRESS_NAMES else one
        for one in arguments_for(wants)
    ]
    if "sock" not in arguments:
        return "LegacyFactory(build=make), where make(sock, addr) makes one for a socket"
    return f"LegacyFactory(build=lambda sock, addr: {name}({', '.join(arguments)}))"


def _listens(handler: Any) -> bool:
    accepts = ("handle_accept", "handle_accepted")
    return (
        isinstance(handler, type)
        and issubclass(handler, asyncore.dispatcher)
        and any(getattr(handler, one) is not getattr(asyncore.dispatcher, one) for one in accepts)
        and takes_data(handler) is not Hears.YES
    )


def takes_data(handler: type[asyncore.dispatcher]) -> Hears:
    """Return whether a legacy handler takes what a peer sends."""
    hooks = ["handle_read", "handle_read_event", "recv"]
    if issubclass(handler, asynchat.async_chat):
        return hears(
            handler, asynchat.async_chat, [*hooks, "collect_incoming_data", "found_terminator"]
        )
    return hears(handler, asyncore.dispatcher, hooks)
