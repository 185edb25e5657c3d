"""
Clients: `connect` for one connection, `reconnecting` for one that is made anew whenever it is lost.

A connection counts when it is open: its TLS handshake is done, and ``handle_connect`` was called.
Whatever fails before that is raised, and nothing is left of the attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import TimeoutError as EndpointTimedOut
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import implementer

from txasynchat import transports
from txasynchat.endpoints import SecureClientEndpoint
from txasynchat.errors import ConnectionReset, ConnectTimedOut
from txasynchat.protocol import AsyncChat
from txasynchat.ranges import Range
from txasynchat.server import ChatFactory
from txasynchat.waits import Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from twisted.internet.interfaces import IAddress
    from twisted.internet.protocol import BaseProtocol

    from txasynchat.functions import HandlerFunction
    from txasynchat.protocol import Stream
    from txasynchat.tls.options import ClientOptions

__all__ = ["connect", "reconnecting"]

P = TypeVar("P", bound="BaseProtocol")

_SECONDS = Range(0, 1_000_000, above=True, optional=True)
_SETTLED = Range(0, 1_000_000)


@overload
def connect(
    where: Any,
    handler: None = None,
    *,
    tls: ClientOptions | None = None,
    reactor: Any = None,
    timeout: float | None = 30.0,
) -> Coroutine[Any, Any, Stream]: ...


@overload
def connect(
    where: Any,
    handler: Callable[..., P],
    *,
    tls: ClientOptions | None = None,
    reactor: Any = None,
    timeout: float | None = 30.0,
) -> Coroutine[Any, Any, P]: ...


@overload
def connect(
    where: Any,
    handler: IProtocolFactory | Factory[Any] | HandlerFunction,
    *,
    tls: ClientOptions | None = None,
    reactor: Any = None,
    timeout: float | None = 30.0,
) -> Coroutine[Any, Any, Any]: ...


async def connect(
    where: Any,
    handler: Any = None,
    *,
    tls: ClientOptions | None = None,
    reactor: Any = None,
    timeout: float | None = 30.0,  # noqa: ASYNC109 - there need not be an asyncio
) -> Any:
    """
    Connect, and return when the connection is open.

    Under the asyncio reactor any task of asyncio may await this, elsewhere what Twisted runs.

    Args:
        where: a client endpoint's description, such as ``"tcp:chat.example.org:8007"``; or an endpoint.
        handler: a handler class, a handler function, or a protocol factory; None for a `Stream`.
        tls: speak TLS from the beginning, with these options.
        reactor: connects and measures time; None for the global one.
        timeout: seconds for everything, the handshake included; None for no limit.

    Returns:
        The `Stream`, or the handler, whose ``handle_connect`` has been called.

    Raises:
        ConnectTimedOut: it took longer.
        TLSError: the handshake failed; `CertificateRejected` if the server did not prove who it is.
        twisted.internet.error.ConnectError, DNSLookupError: see Twisted's endpoints.
        ChatError: the connection ended before it was open.
        TypeError, ValueError: an argument is wrong, or *where* is not an endpoint's description.
    """
    _SECONDS.check("timeout", timeout)
    reactor = _global_reactor() if reactor is None else reactor
    endpoint = _endpoint(where, tls, reactor)
    attempt = _Attempt(reactor, _Streamed.factory() if handler is None else _factory(handler))
    try:
        opened = await attempt.begin(endpoint, timeout)
    except BaseException:
        attempt.abandon()
        raise
    return opened.stream() if handler is None else opened


class _Streamed(AsyncChat):
    # A connection whose messages are read by whoever has connected it.

    terminator = b"\n"

    @classmethod
    def factory(cls) -> ChatFactory:
        return ChatFactory(cls)

    @override
    def handle_connect(self) -> None:
        self.stream()


class _Attempt(Factory):
    """One call of `connect`: builds the protocol, and notes when its connection is open."""

    noisy = False

    def __init__(self, reactor: Any, factory: Any) -> None:
        self._reactor = reactor
        self._factory = factory
        self._protocol: Any = None
        self._opened: Wait[Any] = Wait()
        # The endpoint's Deferred; whether it has fired, and handle_connect was called.
        self._connecting: Deferred[Any] | None = None
        self._connected = self._introduced = False
        self._deadline: Any = None
        self._began = reactor.seconds()

    def begin(self, endpoint: Any, timeout: float | None) -> Wait[Any]:
        """Begin to connect; return what fires with the protocol, or fails."""
        if timeout is not None:
            error = ConnectTimedOut(timeout)
            self._deadline = self._reactor.callLater(timeout, self._fail, Failure(error))
        connecting = maybeDeferred(endpoint.connect, self)
        self._connecting = connecting
        connecting.addCallbacks(self._has_connected, self._fail)
        return self._opened

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._end()
        if self._connecting is not None and not self._connected:
            self._connecting.cancel()
        transport = getattr(self._protocol, "transport", None)
        if transport is not None:
            transports.abort(transport)

    @override
    def doStart(self) -> None:
        self._factory.doStart()

    @override
    def doStop(self) -> None:
        self._factory.doStop()

    @override
    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self._opened.called:
            return None
        protocol = self._factory.buildProtocol(addr)
        self._protocol = protocol
        if isinstance(protocol, AsyncChat):
            _Watch(protocol, self._has_introduced, self._has_ended)
        else:
            self._introduced = True
        return protocol

    # -- internals

    def _has_connected(self, protocol: Any) -> None:
        # Of the endpoint, which may have wrapped it; but not in what the application sees.
        self._protocol = self._protocol or protocol
        self._connected = True
        self._proceed()

    def _has_introduced(self) -> None:
        self._introduced = True
        self._proceed()

    def _has_ended(self, reason: Any) -> None:
        # Before handle_connect. The endpoint may know more, and then says so at once.
        if self._connected:
            self._fail(Failure(reason or ConnectionReset()))

    def _proceed(self) -> None:
        if self._connected and self._introduced and not self._opened.called:
            self._end()
            self._opened.callback(self._protocol)

    def _fail(self, failure: Failure) -> None:
        self._end()
        if self._opened.called:
            return
        if isinstance(failure.value, EndpointTimedOut):
            seconds = self._reactor.seconds() - self._began
            failure = Failure(ConnectTimedOut(seconds))
        self._opened.errback(failure)

    def _end(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()


class _Watch:
    """Stands in for two hooks of a chat until its connection is open."""

    def __init__(self, chat: Any, opened: Callable[[], None], ended: Callable[[Any], None]) -> None:
        self._chat = chat
        self._opened, self._ended = opened, ended
        chat.handle_connect = self.handle_connect
        chat.handle_end = self.handle_end

    def handle_connect(self) -> Any:
        self._leave()
        try:
            return self._chat.handle_connect()
        finally:
            self._opened()

    def handle_end(self, reason: Any) -> Any:
        self._leave()
        try:
            return self._chat.handle_end(reason)
        finally:
            self._ended(reason)

    def _leave(self) -> None:
        del self._chat.handle_connect, self._chat.handle_end


def reconnecting(  # noqa: PLR0913 - four of them by name
    where: Any,
    handler: Any,
    *,
    tls: ClientOptions | None = None,
    reactor: Any = None,
    settled: float = 5.0,
    policy: Callable[[int], float] | None = None,
) -> ClientService:
    """
    Make Twisted's `ClientService` for a connection that is made anew whenever it is lost.

    It says in the log why it has no connection, once for each reason until a connection has lived for
    *settled* seconds. One that lived shorter counts as a failure, so it backs off from a server, or a
    balancer before it, that accepts connections and closes them.

    Args:
        where: as for `connect`.
        handler: as for `connect`, but not optional.
        tls: as for `connect`.
        reactor: as for `connect`.
        settled: seconds.
        policy: returns the seconds to wait after so many failures, from 1 up; None for Twisted's
            `backoffPolicy`, which begins with about 2 s and ends with 60.

    Returns:
        The service, which is not started.

    Raises:
        TypeError, ValueError: as by `connect`.
    """
    _SETTLED.check("settled", settled)
    reactor = _global_reactor() if reactor is None else reactor
    endpoint = _endpoint(where, tls, reactor)
    attempts = _Attempts(
        reactor, str(where), endpoint, _factory(handler), settled, policy or backoffPolicy()
    )
    return ClientService(attempts, attempts.factory, attempts.delay, reactor)


@implementer(IStreamClientEndpoint)
class _Attempts:
    """Counts the failures of a `ClientService`, and says why; its endpoint, and its policy."""

    _log = Logger()

    def __init__(  # noqa: PLR0913, PLR0917 - called at one place
        self,
        reactor: Any,
        where: str,
        endpoint: Any,
        factory: Any,
        settled: float,
        policy: Callable[[int], float],
    ) -> None:
        self._reactor = reactor
        self._where = where
        self._endpoint = endpoint
        self._settled = settled
        self._policy = policy
        self._failures = 0
        # When the connection was made, while there is one.
        self._opened: float | None = None
        # What was told, and what is to be told with the next delay.
        self._told: set[str] = set()
        self._why = ""
        self.factory = _Watched(factory, self)

    def connect(self, protocolFactory: Any) -> Deferred[Any]:  # noqa: N803 Twisted's
        """Connect the endpoint."""
        self._opened = None
        connecting = maybeDeferred(self._endpoint.connect, protocolFactory)
        return connecting.addCallbacks(self._connected, self._failed)

    def delay(self, _attempts: int) -> float:
        """Return the seconds until the next attempt."""
        seconds = self._policy(self._failures)
        if self._why not in self._told:
            self._told.add(self._why)
            self._log.warn(
                "{where}: {why}; trying again in {seconds:.1f} s",
                where=self._where,
                why=self._why,
                seconds=seconds,
            )
        return seconds

    def lost(self, error: Any) -> None:
        """A connection is lost; not called for one that the endpoint did not give away."""
        if self._opened is None:
            return  # it was told already
        if self._reactor.seconds() - self._opened >= self._settled:
            self._failures = 0
            self._told.clear()
        self._count(error)

    def _connected(self, protocol: Any) -> Any:
        self._opened = self._reactor.seconds()
        return protocol

    def _failed(self, failure: Failure) -> Failure:
        if not failure.check(CancelledError):
            self._count(failure.value)
        return failure

    def _count(self, error: Any) -> None:
        self._failures += 1
        self._why = f"{type(error).__name__}: {error}"


class _Watched(Factory):
    # A factory whose connections tell how long they lived.

    noisy = False

    def __init__(self, factory: Any, attempts: _Attempts) -> None:
        self._factory = factory
        self._attempts = attempts

    @override
    def doStart(self) -> None:
        self._factory.doStart()

    @override
    def doStop(self) -> None:
        self._factory.doStop()

    @override
    def buildProtocol(self, addr: IAddress | None) -> Any:
        protocol: Any = self._factory.buildProtocol(addr)
        if protocol is not None:
            lose = protocol.connectionLost

            def lost(reason: Failure = connectionDone) -> None:
                vars(protocol).pop("connectionLost", None)
                lose(reason)
                self._attempts.lost(getattr(protocol, "close_reason", None) or reason.value)

            protocol.connectionLost = lost
        return protocol


def _endpoint(where: Any, tls: ClientOptions | None, reactor: Any) -> Any:
    if isinstance(where, str):
        endpoint: Any = clientFromString(reactor, where)
    elif callable(getattr(where, "connect", None)):
        endpoint = where
    else:
        raise TypeError(f"{where!r} is not an endpoint; write 'tcp:host:port'")
    return endpoint if tls is None else SecureClientEndpoint(reactor, endpoint, tls)


def _factory(handler: Any) -> Any:
    return handler if IProtocolFactory.providedBy(handler) else ChatFactory(handler)


def _global_reactor() -> Any:
    from twisted.internet import reactor  # noqa: PLC0415 - this is a program

    return reactor
