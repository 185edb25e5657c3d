"""
A legacy handler on a Twisted transport: `LegacyFactory` serves it from any endpoint.

An ``asyncore`` handler wants a socket, and somebody who calls it when the socket is ready. Here the
transport is worn as a socket (`TransportSocket`), and a `Connection` stands in for the poller: what
arrives is kept until the handler reads it, what the handler sends goes to the transport while that
has room, and the handlers are called in the order in which a pass of ``asyncore`` would call them.
TLS, Unix sockets, socket activation and whatever else an endpoint does lie beneath, unseen.

Nobody polls here, so three things stand in for the question "are you readable? writable?" that
``asyncore`` asks on every pass. A channel is asked after each event and after whatever it did itself;
the methods of our own classes report through `touch` when they are called from elsewhere; and a class
that has predicates of its own is asked every `RESTLESS` seconds as well, since its answers may depend
on anything.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from typing_extensions import override
from zope.interface import implementer

from txasynchat import endings, tlslayer, transports
from txasynchat.compat import _interest, _loop, asynchat, asyncore
from txasynchat.delivery import Progress
from txasynchat.handlers import Hears, arguments_for, hears, wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

__all__ = ["LegacyFactory", "TransportSocket"]

#: Seconds between two looks at a channel whose predicates may depend on anything.
RESTLESS = 0.1
#: Bytes that one ``send`` takes at most.
LARGEST_SEND = 262_144
#: Times that a handler may write in a row before others have their turn.
WRITES_IN_A_ROW = 16
#: Bytes that wait for a handler to read them above which the transport stops reading.
UNREAD = 65_536
#: Seconds without progress after which a transport that was told to close is aborted.
CLOSE_TIMEOUT = 10.0

_SOCKET_NAMES = frozenset({"sock", "conn", "connection", "client", "channel", "socket", "s"})
_ADDRESS_NAMES = frozenset({"addr", "address", "client_address", "client_addr", "peer"})
_keys = itertools.count(-2, -1)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class TransportSocket:
    """
    A connected Twisted transport in the clothes of a non-blocking `socket.socket`.

    What a channel does with its socket works, and raises what a socket would: `BlockingIOError` when
    there is nothing to read or no room to write, ``ConnectionResetError`` when the connection was
    lost, ``EBADF`` when it was closed. `accept`, `connect` and the like do not exist.

    Attributes:
        transport: the transport underneath, for what a socket cannot tell: its certificates, for one.
        channel_map: where a dispatcher that is given this socket registers if it names no map.
    """

    type = socket.SOCK_STREAM
    proto = 0

    def __init__(self, connection: Connection, channel_map: dict[Any, Any]) -> None:
        self._connection = connection
        self.transport: Any = connection.transport
        self.channel_map = channel_map
        self._host = transports.own_address(self.transport)
        self._peer = transports.peer_address(self.transport)
        real = transports.real_socket(self.transport)
        self._real = real
        self.family = socket.AF_INET if real is None else real.family
        self._key = next(_keys) if real is None else real.fileno()

    def __repr__(self) -> str:
        return f"<TransportSocket {self._host!r} to {self._peer!r}>"

    # -- what a dispatcher calls

    def recv(self, size: int, flags: int = 0) -> bytes:
        """
        Return up to *size* bytes that arrived; nothing at the end of the stream.

        Raises:
            BlockingIOError: nothing has arrived.
            OSError: ECONNRESET, the connection was lost; EBADF, it was closed here.
        """
        return self._connection.receive(size, peek=bool(flags and flags & socket.MSG_PEEK))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """
        As `recv`, into a writable buffer; return the number of bytes.
        """
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ARG002 a socket has them
        """
        Write as much of *data* as there is room for; return how much that was.

        Raises:
            BlockingIOError: the transport is full, or this is not the reactor's thread.
            OSError: EPIPE, the connection was lost; EBADF, it was closed here.
        """
        return self._connection.send(data)

    def sendall(self, data: Any, flags: int = 0) -> None:  # noqa: ARG002 see send()
        """
        Write all of *data*, whether there is room or not.
        """
        view = memoryview(data).cast("B")
        while view:
            view = view[self._connection.send(view, ignore_full=True) :]

    def close(self) -> None:
        """
        Close; what was sent before still goes out. Harmless when repeated.
        """
        self._connection.close()

    def shutdown(self, how: int) -> None:
        """
        Close one direction, or both.
        """
        self._connection.shut_down(how)

    def fileno(self) -> int:
        """
        Return the descriptor underneath, or a negative number of our own where there is none.
        """
        return self._key

    def getpeername(self) -> Any:
        """
        Return the peer's address.

        Raises:
            OSError: ENOTCONN, the connection is gone.
        """
        if self._connection.closed:
            raise _error(errno.ENOTCONN)
        return self._peer

    def getsockname(self) -> Any:
        """
        Return this side's address.
        """
        return self._host

    # -- settings: those of the socket underneath, where there is one

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        """
        Return an option of the socket underneath; 0 where there is none.
        """
        return 0 if self._real is None else self._real.getsockopt(level, option, *size)

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        """
        Set an option of the socket underneath.
        """
        if self._real is not None:
            self._real.setsockopt(level, option, *value)

    def setblocking(self, flag: bool) -> None:
        """
        Accept that this never blocks.

        Raises:
            ValueError: it is asked to.
        """
        if flag:
            raise ValueError("a transport of Twisted's never blocks")

    def settimeout(self, value: float | None) -> None:
        """
        As ``setblocking(value != 0)``.
        """
        self.setblocking(value != 0)

    def gettimeout(self) -> float:
        """
        Return 0.0: never blocking.
        """
        return 0.0


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class Connection(Protocol):
    """
    One transport, and the channel that a legacy handler is: the poller of that one channel.
    """

    _log = Logger()
    transport: Any = None
    factory: Any = None

    def __init__(self) -> None:
        self.socket: TransportSocket | None = None
        self.closed = False
        self._unread = bytearray()
        self._end: OSError | None = None
        self._ended = False
        # The handler has read the end of the stream.
        self._told = False
        self._full = False
        self._reading = True
        self._passing = False
        self._scheduled = False
        self._sent = 0
        self._thread = threading.get_ident()
        # The transport's producer: only while something waits, or TLS would not close.
        self._registered = False
        self._shut = False
        self._progress = Progress()
        self._watcher: Any = None

    # -- IProtocol, IHalfCloseableProtocol, IHandshakeListener: called by the transport

    @override
    def makeConnection(self, transport: Any) -> None:
        tlslayer.adopt(transport)
        endings.let_protocol_end(transport)
        self._send_now = transports.immediate_sender(transport)
        super().makeConnection(transport)  # type: ignore[no-untyped-call] # Twisted's, untyped
        if transports.when_secure(transport, self):
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:  # noqa: N802 Twisted's name
        """
        The TLS handshake is done: now there is somebody to talk to.
        """
        if transports.when_introduced(self.transport, self._build):
            self._build()

    def _build(self) -> None:
        if self.socket is not None or self.closed:
            return
        self._reactor = transports.reactor_of(self.transport) or self.factory.reactor
        self.socket = TransportSocket(self, self.factory.channels)
        self.factory.connections[self.socket.fileno()] = self
        made = None
        try:
            made = self.factory.build_channel(self.socket, self.socket.getpeername())
        except asyncore._reraised_exceptions:
            self._stop_reactor()
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._log.failure("{peer}: no handler could be built", peer=self.transport.getPeer())
            self.close()
            return
        if self.channel is None and not self.closed:
            self._log.error("{peer}: {what}", peer=self.transport.getPeer(), what=_not_ours(made))
            self.close()
            return
        self.schedule()

    @override
    def dataReceived(self, data: bytes) -> None:
        if self.closed:
            return
        self._unread += data
        self.run_pass()

    def readConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """
        The peer will send no more: the handler reads an empty string, when it reads.
        """
        self._ended = True
        self.run_pass()

    def writeConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """
        The other direction was closed, by ``shutdown``.
        """

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._ended and not isinstance(reason.value, ConnectionDone):
            self._end = _error(errno.ECONNRESET)
        self._ended = True
        self._full = self._registered = False
        self.connected = False
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        if self.socket is not None:
            self.run_pass()

    def handle_shutdown(self) -> None:
        """
        The server stops: the channel sends what it has queued, and closes. Called by `Server`.

        One that is no ``async_chat`` has no queue: it meets the end of the connection.
        """
        channel = self.channel
        if hasattr(channel, "close_when_done"):
            channel.close_when_done()
            self.schedule()
        else:
            self.transport.loseConnection()

    # -- IPushProducer: called by the transport

    def pauseProducing(self) -> None:  # noqa: N802 Twisted's name
        """
        The transport is full.
        """
        self._full = True

    def resumeProducing(self) -> None:  # noqa: N802 Twisted's name
        """
        The transport has room again.
        """
        self._full = False
        self._unregister()
        self.run_pass()

    def stopProducing(self) -> None:  # noqa: N802 Twisted's name
        """
        The connection is lost; ``connectionLost`` follows.
        """

    # -- called by the socket

    def receive(self, size: int, *, peek: bool) -> bytes:
        """
        See `TransportSocket.recv`.
        """
        if self.closed:
            raise _error(errno.EBADF)
        if self._unread:
            data = bytes(self._unread[:size])
            if not peek:
                del self._unread[:size]
            return data
        if self._end is not None:
            raise self._end
        if self._ended:
            return b""
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def send(self, data: Any, *, ignore_full: bool = False) -> int:
        """
        See `TransportSocket.send`.
        """
        if self.closed:
            raise _error(errno.EBADF)
        if self._end is not None or not self.connected or self._shut:
            raise _error(errno.EPIPE)
        if (self._full and not ignore_full) or threading.get_ident() != self._thread:
            self.schedule()
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        piece = bytes(memoryview(data).cast("B")[:LARGEST_SEND])
        if piece:
            self._sent += len(piece)
            send_now = self._send_now
            rest = piece if send_now is None else send_now(self.transport, piece)
            if rest:
                self._register()
                self.transport.write(rest)
                if not self._full:
                    self._unregister()
            self.schedule()
        return len(piece)

    def close(self) -> None:
        """
        See `TransportSocket.close`.
        """
        if self.closed:
            return
        self.closed = True
        if self.socket is not None:
            self.factory.connections.pop(self.socket.fileno(), None)
        self.factory.leave_alone(self)
        if threading.get_ident() == self._thread:
            self._lose()
        else:
            self._reactor.callFromThread(self._lose)

    def shut_down(self, how: int) -> None:
        """
        See `TransportSocket.shutdown`.
        """
        if self.closed:
            raise _error(errno.EBADF)
        if how != socket.SHUT_RD:
            self._shut = True
            self._full = False
            self._unregister()
            half = getattr(self.transport, "loseWriteConnection", None)
            if how == socket.SHUT_WR and half is not None:
                half()
            else:
                self.transport.loseConnection()
        if how != socket.SHUT_WR:
            self._unread.clear()
            self._ended = True
            self.schedule()

    def _register(self) -> None:
        register = getattr(self.transport, "registerProducer", None)
        if register is not None and not self._registered:
            self._registered = True
            register(self, True)

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            self.transport.unregisterProducer()

    def _lose(self) -> None:
        self._unregister()
        if not self._reading:
            self.transport.resumeProducing()  # TLS waits for what the peer says at the end
        self.transport.loseConnection()
        if not transports.closes_by_itself(self.transport):
            self._watch()

    def _takes_closing(self) -> bool:
        """
        Called by the transport, which somebody told to close: see to it that this ends.

        Returns:
            False: it may close, when all that it was given is sent.
        """
        if not self.closed and self.socket is not None:
            self._watch()
        return False

    def _watch(self) -> None:
        """
        End a closing transport whose peer has taken nothing since this was called last.
        """
        if self._watcher is not None and self._watcher.active():
            return
        self._watcher = None
        if not self.connected or self._reactor is None:
            return
        if not self._progress.made(*transports.outstanding_bytes(self.transport)):
            endings.end(self.transport)
            return
        self._watcher = self._reactor.callLater(CLOSE_TIMEOUT, self._watch)

    # -- the passes over the one channel

    @property
    def channel(self) -> Any:
        """
        The channel that registered with the socket; None when it left.
        """
        return None if self.socket is None else self.factory.channels.get(self.socket.fileno())

    def schedule(self) -> None:
        """
        Look at the channel again in the reactor's next turn; from any thread.
        """
        if self._passing or self._scheduled or self._reactor is None:
            return
        self._scheduled = True
        if threading.get_ident() == self._thread:
            self._reactor.callLater(0, self._scheduled_pass)
        else:
            self._reactor.callFromThread(self._scheduled_pass)

    def _scheduled_pass(self) -> None:
        self._scheduled = False
        self.run_pass()

    def run_pass(self) -> None:
        """
        Ask the channel, and call its handlers, as long as that leads anywhere.
        """
        if self._passing or self.socket is None:
            return
        self._passing = True
        again = False
        try:
            channel = self.channel
            while channel is not None and self._readable() and channel.readable():
                before = len(self._unread)
                asyncore.read(channel)
                channel = self.channel
                if len(self._unread) >= before:
                    self._told = self._ended and not before
                    break  # it did not read, or it was told of the end
            again = channel is not None and self._write(channel)
        except asyncore._reraised_exceptions:
            self._stop_reactor()
        except Exception:  # noqa: BLE001 asyncore lets these end its loop; here one channel
            self._log.failure("{peer}: the handler raised", peer=self.transport.getPeer())
            self.close()
        finally:
            self._passing = False
        self._set_reading()
        channel = self.channel
        if channel is None or self._told:
            self.factory.leave_alone(self)
            return
        if again:
            self.schedule()
        # A channel that does not read does not notice the end, and is asked until it does.
        if self._ended or self._is_restless(channel):
            self.factory.restless.add(self)
            self.factory.look_again()

    def _readable(self) -> bool:
        return bool(self._unread) or self._ended

    def _write(self, channel: Any) -> bool:
        """
        Let the channel write while it wants to; tell whether it should soon be asked again.
        """
        for _ in range(WRITES_IN_A_ROW):
            if self._full or not self.connected or not channel.writable():
                return False
            before = self._sent
            asyncore.write(channel)
            if self.channel is not channel or self._sent == before:
                return False
        return True

    def _is_restless(self, channel: Any) -> bool:
        """
        Tell whether the channel's next answer may come from anywhere.
        """
        return _interest.kind_of(channel) == _interest.ALWAYS

    def _set_reading(self) -> None:
        reading = len(self._unread) < UNREAD
        if reading is not self._reading and not self._ended and not self.closed:
            self._reading = reading
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _stop_reactor(self) -> None:
        """
        A handler asked to leave ``loop()``; here that is the reactor.
        """
        self._log.info("{peer}: the handler ends the program", peer=self.transport.getPeer())
        self.close()
        if self._reactor is not None and self._reactor.running:
            self._reactor.stop()


class LegacyFactory(ServerFactory):
    """
    Builds a legacy handler for each connection, with the transport worn as its socket.

    ``LegacyFactory(Handler)`` calls ``Handler(sock)``, or ``Handler(sock, addr)``, as the names of
    the parameters say; *arguments* follow what was recognised. ``LegacyFactory(build=…)`` calls
    ``build(sock, addr)`` instead, where the server of old did more than that.

    Channels register in a map of the factory's own unless they are given another one: nothing else
    drives it, and ``asyncore.loop()`` need not run.

    Args:
        handler: a subclass of ``asyncore.dispatcher``, in most cases of ``asynchat.async_chat``.
        arguments: further positional arguments for the handler.
        build: called in place of the handler.
        reactor: for transports that do not know theirs.
        keywords: keyword arguments for the handler.

    Raises:
        TypeError: neither or both of *handler* and *build*; *handler* cannot be called so, or is a
            class that listens.
    """

    protocol = Connection
    noisy = False

    def __init__(
        self,
        handler: Callable[..., Any] | None = None,
        *arguments: Any,
        build: Callable[[Any, Any], Any] | None = None,
        reactor: Any = None,
        **keywords: Any,
    ) -> None:
        if (handler is None) is (build is None):
            raise TypeError("LegacyFactory takes either a handler or build=")
        self.handler = handler
        self.reactor = reactor
        #: Descriptor to channel, as `asyncore.socket_map`.
        self.channels: dict[Any, Any] = {}
        self.connections: dict[Any, Connection] = {}
        #: Connections whose channels are asked again and again.
        self.restless: set[Connection] = set()
        self._looking: Any = None
        self.build_channel = build or _builder(handler, arguments, keywords)
        _Driver(self)

    @override
    def buildProtocol(self, addr: IAddress | None) -> Connection:
        connection = Connection()
        connection.factory = self
        return connection

    def look_again(self) -> None:
        """
        See to it that the restless are asked once more, `RESTLESS` seconds from now.
        """
        if self._looking is not None:
            return
        for connection in self.restless:
            clock = connection._reactor
            if clock is not None:
                self._looking = clock.callLater(RESTLESS, self._look)
                return

    def leave_alone(self, connection: Connection) -> None:
        """
        Ask *connection* no more; with none left, nothing is scheduled either.
        """
        self.restless.discard(connection)
        if not self.restless and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> None:
        self._looking = None
        for connection in list(self.restless):
            connection.run_pass()
        self.look_again()


class _Driver:
    """
    What `txasynchat.compat._loop` finds for a factory's map, in place of a loop's driver.

    Channels report to it; a ``loop()`` that is called for the map is refused.
    """

    attachment = "a LegacyFactory"
    #: Somebody else, always, is driving already.
    thread = 0

    def __init__(self, factory: LegacyFactory) -> None:
        self.channels = factory.channels
        self._factory = weakref.ref(factory)
        self._batches: list[Any] = []
        key = id(self.channels)
        _loop._drivers[key] = self  # type: ignore[assignment] # only these methods are called
        weakref.finalize(factory, _loop._drivers.pop, key, None)

    @property
    def depth(self) -> int:
        return 1

    @depth.setter
    def depth(self, depth: int) -> None:
        """Whatever happens to the loops of this thread, of this process."""

    def touch(self, fd: Any) -> None:
        factory = self._factory()
        connection = None if factory is None else factory.connections.get(fd)
        if connection is not None:
            connection.schedule()

    add = touch

    def remove(self, fd: Any) -> None:
        """Nothing is registered anywhere."""

    end = remove

    def wake(self) -> None:
        """Nothing sleeps."""

    stop = wake


def _builder(
    handler: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Callable[[Any, Any], Any]:
    """
    Find out by the names of its parameters how *handler* wants its socket and its address.
    """
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


def _not_ours(made: Any) -> str:
    """
    Say why a handler that was built is not in the factory's map.
    """
    if isinstance(getattr(made, "socket", None), TransportSocket):
        return (
            f"{type(made).__qualname__} registered in another map, which nobody drives here; "
            "leave map= out, or give it sock.channel_map"
        )
    return "the handler took no socket"


def _example(name: str, wants: inspect.Signature) -> str:
    """
    Write a factory that gives a handler the socket and the address, as far as they can be told.
    """
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
    """
    Return whether a legacy handler takes what a peer sends.
    """
    hooks = ["handle_read", "handle_read_event", "recv"]
    if issubclass(handler, asynchat.async_chat):
        return hears(
            handler, asynchat.async_chat, [*hooks, "collect_incoming_data", "found_terminator"]
        )
    return hears(handler, asyncore.dispatcher, hooks)
