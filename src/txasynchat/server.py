"""
`ChatFactory` builds handlers and knows the live ones; `Server` listens, and stops in good order.

No reactor is imported here: it is given to `Server`.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    maybeDeferred,
    succeed,
)
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from typing_extensions import override

from txasynchat import transports
from txasynchat.connections import Connections, WatchedFactory
from txasynchat.errors import ListenError
from txasynchat.functions import class_of, is_function
from txasynchat.handlers import arguments_for, is_legacy, wanted
from txasynchat.limits.admission import Admission
from txasynchat.limits.options import UNSET, Limits, check_limits, in_force
from txasynchat.listening import make_endpoint, unlock, why
from txasynchat.ranges import STOPPING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from twisted.internet.interfaces import IAddress, IProtocol, IStreamServerEndpoint
    from twisted.internet.protocol import BaseProtocol

    from txasynchat.functions import HandlerFunction
    from txasynchat.limits.gate import Gates
    from txasynchat.limits.options import Unset
    from txasynchat.listening import Listens

__all__ = ["ChatFactory", "Server"]

#: What a server takes: a factory, or a handler function.
Serves: TypeAlias = "IProtocolFactory | Factory[Any] | HandlerFunction"

#: Seconds that connections have to finish when their server stops.
STOP_TIMEOUT = 15.0
#: What may carry connections; see `Server`.
TRANSPORTS = ("hub", "twisted")
#: Seconds that clients have for their first message when their server stops; see `Server.stopService`.
NEWCOMERS_TIMEOUT = 0.5
#: Seconds that ports and connections have to report their end, after connections were aborted.
ABORT_TIMEOUT = 5.0


class ChatFactory(Factory):
    """
    Builds one handler for each connection, and knows the live ones.

    Args:
        handler: a handler class, or anything else that returns a protocol when it is called; or a
            handler function, ``async def handle(stream)``, which is called with the `Stream` of each
            connection. See `FunctionChat`.
        arguments, keywords: what it is called with, behind the stream where there is one.
        limits: what a peer may take; it comes before the handler class's. A `Server` that has limits
            puts them before these.

    Attributes:
        default_limits: what holds where nobody else says anything.
        admission: says who is taken; a `Server` sets it. None: everybody.
        connections: the handlers of live connections; each has this factory as ``factory``.

    Raises:
        TypeError: *handler* is an instance or a legacy handler, or cannot be called with these.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        handler: Callable[..., IProtocol | BaseProtocol | Awaitable[object]],
        /,
        *arguments: Any,
        limits: Limits | None = None,
        **keywords: Any,
    ) -> None:
        given: Any = handler  # without its type, which says that it can be called
        name = getattr(handler, "__qualname__", None) or repr(handler)
        if is_legacy(handler):
            raise TypeError(f"{name} is a legacy handler; write LegacyFactory({name})")
        if not callable(given):
            text = f"{given!r} is not a class of handlers, nor can it be called to make one"
            if hasattr(given, "makeConnection"):
                text += f"; write ChatFactory({type(given).__qualname__})"
            raise TypeError(text)
        # What is called in its place, where it is a handler function.
        self._class = class_of(handler) if is_function(handler) else None
        first = ("stream",) if self._class else ()
        if (want := wanted(handler, (*first, *arguments), keywords)) is not None:
            needed = arguments_for(want)
            if first and not needed:
                raise TypeError(f"{name} wants {want}; write async def {name}(stream)")
            called = f"{name} wants {want}{', the stream first' if first else ''}"
            example = ", ".join([name, *needed[len(first) :]])
            raise TypeError(f"{called}; write ChatFactory({example})")
        self.handler, self.arguments, self.keywords = handler, arguments, keywords
        self.limits = check_limits(limits)
        self.default_limits: Limits | None = None
        self.admission: Admission | None = None
        self.connections = Connections()

    @override
    def buildProtocol(self, addr: IAddress | None) -> Any:
        """
        Build the handler of a connection from *addr*; None, which refuses it, if the handler raises.
        """
        admission, place = self.admission, None
        if admission is not None:
            place = admission.enter(addr)
            if place is None:
                return admission.refusing()
        try:
            make: Any = self._class or self.handler
            handler = make(*self.arguments, **self.keywords)
        except Exception:  # noqa: BLE001 - it is the application's, and is logged
            self._log.failure("{peer}: cannot build {handler!r}", peer=addr, handler=self.handler)
            if place is not None:
                place.leave()
            return None if admission is None else admission.failing()
        handler.factory = self
        limits = in_force(handler, self.limits, self.default_limits)
        if limits is not None and limits.max_message_length is not UNSET:
            handler.max_message_length = limits.max_message_length
        return self.connections.watch(handler, limits, place)


class Server(Service):
    """
    A service that listens on any number of endpoints, and stops in good order.

    It belongs to a Twisted application (``setServiceParent``), or is started and stopped by hand.

    Args:
        reactor: the reactor that listens and measures time.
        factory: a `ChatFactory`, or any other `IProtocolFactory`; or a handler function, for which a
            `ChatFactory` is made. A `ChatFactory` has one server: of several, the latest says who is
            taken, and what is limited.
        endpoints: endpoints, or their descriptions, as `serverFromString` takes them.
        stop_timeout: seconds that connections have to finish when the service stops; None for no limit.
            The same as in *limits*; by default 15.
        transport: what carries the connections of a description that ends in a socket (``tcp:``,
            ``tcp6:``, ``unix:``, ``systemd:``): ``twisted``, or ``hub``, connections of our own, which
            cost less. An endpoint that is not a description brings its own.
        limits: what a peer may take. It comes before the *factory*'s, and that before the handler
            class's.
        default_limits: what holds where none of them says anything; by default nothing is limited.

    Attributes:
        limits: those given, and those of the factory where nothing was given.
        admission: how many connections are open, were refused, and wait; see `Admission`.
        connections: the protocols of live connections.
        ports: what listens, in the order of the endpoints; empty before and after.

    Raises:
        ListenError: a description is not an endpoint's.
        TypeError: *factory* is not a factory, *endpoints* is a single string, *stop_timeout* is not a
            number, or *limits* are no `Limits`.
        ValueError: *stop_timeout* is below 0, or above 1,000,000, or is in *limits* too; or there is no
            such *transport*.
    """

    _log = Logger()

    def __init__(  # noqa: PLR0913 - four of them by name
        self,
        reactor: Any,
        factory: Serves,
        endpoints: Iterable[str | IStreamServerEndpoint | Listens],
        *,
        stop_timeout: float | Unset | None = UNSET,
        transport: str = "twisted",
        limits: Limits | None = None,
        default_limits: Limits | None = None,
    ) -> None:
        given: Any = factory
        if is_function(given):
            given = factory = ChatFactory(given)
        if not IProtocolFactory.providedBy(factory):
            raise TypeError(f"{factory!r} is not a protocol factory; write ChatFactory(Handler)")
        if isinstance(endpoints, str):
            raise TypeError(f"endpoints is the single string {endpoints!r}; give a list of them")
        if not hasattr(endpoints, "__iter__"):
            raise TypeError(f"endpoints is {endpoints!r}; give a list of them, as ['tcp:8007']")
        limits = check_limits(limits) or Limits()
        if stop_timeout is not UNSET:
            STOPPING.check("stop_timeout", stop_timeout)
            if limits.stop_timeout is not UNSET:
                raise ValueError("stop_timeout is given twice: as an argument, and in limits")
        if transport not in TRANSPORTS:
            raise ValueError(f"transport must be {' or '.join(TRANSPORTS)}, not {transport!r}")
        self.reactor = reactor
        theirs = getattr(factory, "limits", None)
        self.limits = limits.over(theirs if isinstance(theirs, Limits) else None)
        self.stop_timeout: float | None
        if stop_timeout is UNSET:
            every = self.limits.over(default_limits)
            self.stop_timeout = every.value("stop_timeout", STOP_TIMEOUT)
        else:
            self.stop_timeout = stop_timeout
        self._factory = given
        its_class = getattr(getattr(factory, "handler", None), "limits", None)
        admits = self.limits.over(its_class if isinstance(its_class, Limits) else None)
        admits = admits.over(default_limits)
        self.admission = Admission(reactor, admits)
        # Of the ports; made when they listen.
        self._gates: Gates | None = None
        self._admits = admits
        its_own = hasattr(factory, "default_limits")  # a ChatFactory's, or a LegacyFactory's
        if its_own:
            limited: Any = factory
            limited.limits, limited.default_limits = self.limits, default_limits
        if isinstance(factory, ChatFactory):
            self.connections = factory.connections
            factory.admission = self.admission
        else:
            self.connections = Connections()
            both: tuple[Limits | None, Limits | None] = (None, None)
            if not its_own:
                both = self.limits, default_limits
            self._factory = WatchedFactory(given, self.connections, *both, self.admission)
        hub = transport == "hub"
        self._endpoints = [(str(each), make_endpoint(reactor, each, hub=hub)) for each in endpoints]
        if self.limits.handshakes is not UNSET:
            for description, endpoint in self._endpoints:
                limit = getattr(endpoint, "limit_handshakes", None)
                try:
                    if limit is not None:
                        limit(self.limits.handshakes)
                except ValueError as error:
                    raise ListenError(description, error, str(error)) from None
        self.ports: list[IListeningPort] = []
        # The calls of listen() that are not done; whether they were made.
        self._pending: list[Deferred[IListeningPort]] = []
        self._started = False
        # What stopService() returned since the service began to stop; None unless it is stopping.
        self._stopping: list[Deferred[None]] | None = None
        self._stop_task: Deferred[None] | None = None
        # Timers: connections are aborted; they are not waited for any more.
        self._deadline: Any = None
        self._last_resort: Any = None
        self._trigger: Any = None

    # -- IService: called by the application

    @override
    def privilegedStartService(self) -> None:
        """
        Listen on every endpoint.

        Raises:
            ListenError: one of them cannot be listened on; the others are closed again. If an endpoint
                fails only later, `listening_failed` is called instead.
            RuntimeError: the service is stopping; wait for what `stopService` returned.
        """
        if self._stopping is not None:
            raise RuntimeError("this server is still stopping: wait for stopService()'s Deferred")
        if self._started:
            return
        self._started = True
        super().privilegedStartService()  # type: ignore[no-untyped-call] # Twisted's, untyped
        listening: Deferred[None] = Deferred.fromCoroutine(self._listen())
        if not listening.called:
            listening.addErrback(self._failed_later)
            return
        failures: list[Failure] = []
        listening.addErrback(failures.append)
        if failures:
            self._started = False
            atexit.unregister(_close_ports)
            atexit.register(_close_ports, self.reactor, os.getpid())
            failures[0].raiseException()

    @override
    def startService(self) -> None:
        """Listen, unless `privilegedStartService` already did; it may raise the same."""
        self.privilegedStartService()
        super().startService()  # type: ignore[no-untyped-call] # Twisted's, untyped
        if self._trigger is None:
            add = self.reactor.addSystemEventTrigger
            self._trigger = add("before", "shutdown", self._reactor_stops)

    @override
    def stopService(self) -> Deferred[None]:
        """
        Stop in three steps.

        The ports close, so that no new connections arrive. If a socket stays open in another process,
        as systemd's do, what connects now waits for the next server, and what was accepted has half a
        second for its first message. Every connection is asked to finish
        (`AsyncChat.handle_shutdown`): idle ones close at once, busy ones when they are done. `abort`
        ends what remains after `stop_timeout` seconds, or at once after a second call or signal.

        A port, a transport or a handler that raises meanwhile is logged, and one that does not report
        its end is not waited for: the others are stopped all the same.

        Returns:
            A Deferred that fires when all ports and connections are gone.
        """
        super().stopService()  # type: ignore[no-untyped-call] # Twisted's, untyped
        if not self._started:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        if self._stopping is not None:
            self._stopping.append(stopped)
            self.abort()
            return stopped
        self._stopping = [stopped]
        self._stop_task = Deferred.fromCoroutine(self._stop())
        self._stop_task.addErrback(self._stop_failed).addCallback(self._stopped)
        return stopped

    # -- called and overridden by the application

    def abort(self) -> None:
        """End every connection now. What the operating system has is delivered; the rest is lost."""
        if self.connections:
            self._log.warn("aborting {count} connections", count=len(self.connections))
        self.connections.abort()
        if self._stopping is not None and self._last_resort is None:
            self._last_resort = self.reactor.callLater(ABORT_TIMEOUT, self._give_up)

    def listening_failed(self, error: ListenError) -> None:
        """An endpoint failed after `startService` had returned; the others are closed again."""
        self._log.critical("{error}", error=str(error))

    def listening(self) -> None:
        """Every endpoint is listened on; see `ports`. An exception is logged, and serving goes on."""

    # -- internals

    async def _listen(self) -> None:
        from txasynchat.limits.gate import Gates  # noqa: PLC0415 - loaded by servers that listen

        gates = self._gates = self._gates or Gates(self.admission, self._admits)
        self._pending = [
            maybeDeferred(endpoint.listen, self._factory) for _, endpoint in self._endpoints
        ]
        results: list[tuple[bool, Any]] = await DeferredList(self._pending, consumeErrors=True)
        self._pending = []
        ports = [port for done, port in results if done]
        for (description, _), (done, result) in zip(self._endpoints, results, strict=True):
            if not done:
                for port in ports:
                    _close(port)
                error = result.value
                unlock(self.reactor, error)
                raise ListenError(description, error, why(description, error)) from error
        for port in ports:
            gates.guard(port)
        self.ports = ports
        try:
            self.listening()
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._log.failure("{server}.listening raised", server=type(self).__qualname__)

    def _failed_later(self, failure: Failure) -> None:
        self._started = False
        error: Any = failure.value
        if self._stopping is None:
            self.listening_failed(error)

    async def _stop(self) -> None:
        for pending in self._pending:
            try:
                pending.cancel()
            except Exception:  # noqa: BLE001 - it is the endpoint's, and is logged
                self._log.failure("a port that is not open yet cannot be cancelled")
        if self.stop_timeout is not None:
            self._deadline = self.reactor.callLater(self.stop_timeout, self.abort)
        ports, self.ports = self.ports, []
        if self._gates is not None:
            self._gates.close()
        # A port closes in the reactor's next iteration; until then it accepts, so connections wait.
        closed = await DeferredList([_close(port) for port in ports], consumeErrors=True)
        for is_closed, result in closed:
            if not is_closed:
                self._log.failure("a port cannot be closed", failure=result)
        if any(map(transports.stays_open, ports)):
            await self._hear_newcomers()
        self.connections.finish()
        await self.connections.when_empty()

    async def _hear_newcomers(self) -> None:
        # The last clients that were accepted have not spoken yet, or what they said was not read yet.
        empty = self.connections.when_empty()
        with suppress(TimedOut):
            await empty.addTimeout(NEWCOMERS_TIMEOUT, self.reactor)

    def _give_up(self) -> None:
        self._log.warn(
            "not waiting any longer: {count} connections do not report their end",
            count=len(self.connections),
        )
        if self._stop_task is not None:
            self._stop_task.cancel()

    def _stop_failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._log.failure("stopping failed", failure=failure)

    def _stopped(self, _result: object) -> None:
        for timer in (self._deadline, self._last_resort):
            if timer is not None and timer.active():
                timer.cancel()
        self._deadline = self._last_resort = self._stop_task = None
        if self._trigger is not None:
            self.reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None
        self._started = False
        waiting, self._stopping = self._stopping or [], None
        for each in waiting:
            each.callback(None)

    def _reactor_stops(self) -> None:
        # The reactor ignores a second signal, which is to abort what remains.
        self._trigger = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            current = signal.getsignal(number)
            if isinstance(current, _SecondSignal):
                current.servers.append(self)
            elif getattr(current, "__self__", None) is self.reactor:
                signal.signal(number, _SecondSignal(self.reactor, self))


class _SecondSignal:
    def __init__(self, reactor: Any, server: Server) -> None:
        self.reactor = reactor
        self.servers = [server]

    def __call__(self, _number: int, _frame: object) -> None:
        for server in self.servers:
            self.reactor.callFromThread(server.abort)


def _close_ports(reactor: Any, process: int) -> None:
    # When a program ends because a server could not start, its other services were never stopped, and
    # the files of their Unix sockets would stay.
    if os.getpid() != process:
        return  # a child, which does not own the ports
    from txasynchat.hub.shared import served_by  # noqa: PLC0415 - loaded where something failed

    readers: list[Any] = [*getattr(reactor, "getReaders", list)(), *served_by(reactor)]
    ports: list[Any] = [each for each in readers if IListeningPort.providedBy(each)]
    for port in ports:
        with suppress(Exception):
            port.connectionLost(Failure(ConnectionDone()))  # type: ignore[no-untyped-call] # Twisted's, untyped


def _close(port: Any) -> Deferred[Any]:
    # "stdio:" returns the connection itself, not a port; it is asked to finish like any other.
    stop_listening = getattr(port, "stopListening", None)
    return succeed(None) if stop_listening is None else maybeDeferred(stop_listening)
