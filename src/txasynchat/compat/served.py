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
that has predicates of its own is asked again when any handler of the factory has run, and every
`RESTLESS` seconds, since its answers may depend on anything.

The descriptor stays Twisted's: whoever got its number could close it, and the reactor would go on with
a number that is somebody else's by then. What needs one (`ssl`, `select`, `os`) raises an error that
says what to do instead, and a handler that puts another socket in the place of its transport is told
the same; either way its own connection is the only one that ends.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import os
import socket
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from typing_extensions import override
from zope.interface import implementer

from txasynchat import endings, transports
from txasynchat.compat import _interest, _loop, asynchat, asyncore
from txasynchat.delivery import Progress
from txasynchat.handlers import Hears, arguments_for, hears, wanted
from txasynchat.log import failure
from txasynchat.tls import layer as tlslayer

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


#: What a handler is told that treats its transport as a socket of the system's.
_NO_DESCRIPTOR = (
    "this socket is a Twisted transport: it has no descriptor to wrap, copy or select on, and no other"
    " socket can take its place; to begin TLS, call txasynchat.compat.start_tls(self, context)"
)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _no_descriptor() -> OSError:
    return OSError(errno.EOPNOTSUPP, _NO_DESCRIPTOR)


class TransportSocket:
    """
    A connected Twisted transport in the shape of a non-blocking `socket.socket`.

    What a channel does with its socket works, and raises what a socket would: `BlockingIOError` when
    there is nothing to read or no room to write, ``ConnectionResetError`` when the connection was
    lost, ``EBADF`` when it was closed. `accept`, `connect` and the like do not exist, and there is no
    descriptor (see `fileno`). As with a socket, the connection ends when nobody refers to this any
    more.

    Attributes:
        transport: the transport underneath, for what a socket cannot tell: its certificates, for one.
        channel_map: where a dispatcher that is given this socket registers if it names no map.
        channel_key: the number under which it does so; negative, and no descriptor.
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
        self.channel_key = next(_keys)

    def __del__(self) -> None:
        connection = self._connection
        if not connection.closed:
            with suppress(Exception):  # at interpreter exit modules may be gone
                connection.let_go()

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
        """As `recv`, into a writable buffer; return the number of bytes."""
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
        """Write all of *data*, whether there is room or not."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self._connection.send(view, ignore_full=True) :]

    def close(self) -> None:
        """Close; what was sent before still goes out. Harmless when repeated."""
        self._connection.close()

    def shutdown(self, how: int) -> None:
        """Close one direction, or both."""
        self._connection.shut_down(how)

    def fileno(self) -> int:
        """
        Refuse to name the descriptor underneath, which is the reactor's; -1 when this is closed.

        Raises:
            OSError: EOPNOTSUPP, it is open. ``channel_key``, a dispatcher's ``_fileno``, is a number to
                tell connections apart by.
        """
        if self._connection.closed:
            return -1
        raise _no_descriptor()

    def detach(self) -> int:
        """As `fileno`."""
        return self.fileno()

    def dup(self) -> Any:
        """As `fileno`, but EBADF when this is closed."""
        raise _error(errno.EBADF) if self._connection.closed else _no_descriptor()

    def makefile(self, *_arguments: Any, **_keywords: Any) -> Any:
        """As `dup`."""
        self.dup()

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
        """Return this side's address."""
        return self._host

    def outstanding(self) -> tuple[int | None, int | None]:
        """Count what is on its way to the peer: see `transports.outstanding_bytes`."""
        return transports.outstanding_bytes(self.transport)

    # -- settings: those of the socket underneath, where there is one

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        """
        Return an option of the socket underneath; where there is none its type, and 0 for the others.
        """
        if self._real is not None:
            return self._real.getsockopt(level, option, *size)
        is_type = (level, option) == (socket.SOL_SOCKET, socket.SO_TYPE)
        return socket.SOCK_STREAM if is_type else 0

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        """Set an option of the socket underneath."""
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
        """As ``setblocking(value != 0)``."""
        self.setblocking(value != 0)

    def gettimeout(self) -> float:
        """Return 0.0: never blocking."""
        return 0.0


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class Connection(Protocol):
    """One transport, and the channel that a legacy handler is: the poller of that one channel."""

    _log = Logger()
    transport: Any = None

    def __init__(self, factory: LegacyFactory) -> None:
        self.factory: Any = factory
        # The factory's map, and where the channel is in it; None before there is one.
        self._channels = factory.channels
        self._key: int | None = None
        self.closed = False
        # Nobody refers to the socket any more.
        self._let_go = False
        self._unread = bytearray()
        self._end: OSError | None = None
        self._ended = False
        # The handler was told of the end; it is told once.
        self._told = False
        self._full = False
        self._reading = True
        self._passing = False
        self._scheduled = False
        # Something changed since the channel was asked in this pass.
        self._touched = False
        self._sent = 0
        self._thread = threading.get_ident()
        # The transport's producer: only while something waits, or TLS would not close.
        self._registered = False
        self._shut = False
        self._progress = Progress()
        self._watcher: Any = None
        self._reactor: Any = None

    # -- IProtocol, IHalfCloseableProtocol, IHandshakeListener: called by the transport

    @override
    def makeConnection(self, transport: Any) -> None:
        tlslayer.adopt(transport)
        endings.let_protocol_end(transport)
        self._send_now = transports.immediate_sender(transport)
        transports.tell_of_half_close(transport, self)
        super().makeConnection(transport)  # type: ignore[no-untyped-call] # Twisted's, untyped
        if transports.when_secure(transport, self):
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:  # noqa: N802 Twisted's name
        """The TLS handshake is done: now there is somebody to talk to."""
        if transports.when_introduced(self.transport, self._build):
            self._build()

    def _build(self) -> None:
        if self._key is not None or self.closed:
            return
        self._reactor = transports.reactor_of(self.transport) or self.factory.reactor
        made = self._build_channel()
        if self.channel is None and not self.closed:
            self._log.error("{peer}: {what}", peer=self.transport.getPeer(), what=_not_ours(made))
            self.close()
        self.schedule()

    def _build_channel(self) -> Any:
        # The handler alone refers to the socket afterwards: see `let_go`.
        sock = TransportSocket(self, self.factory.channels)
        self._key = sock.channel_key
        self.factory.connections[self._key] = self
        self._passing = True  # or what it lets go at once would be looked at from here
        try:
            return self.factory.build_channel(sock, sock.getpeername())
        except asyncore._reraised_exceptions:
            self._stop_reactor()
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            failure(
                self._log,
                "{peer}: no handler could be built",
                peer=transports.peer_name(self.transport),
            )
            self._told = True  # what is not built yet is called no more
            self.close()
        finally:
            self._passing = False
        return None

    @override
    def dataReceived(self, data: bytes) -> None:
        if self.closed:
            return
        self._unread += data
        self.run_pass()

    def readConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """The peer will send no more: the handler reads an empty string, when it reads."""
        self._ended = True
        self.run_pass()

    def writeConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """The other direction was closed, by ``shutdown``."""

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
        self.run_pass()

    def handle_shutdown(self) -> None:
        """
        The server stops: the channel sends what it has queued, and closes. Called by `Server`.

        One that is no ``async_chat`` has no queue: it meets the end of the connection.
        """
        channel = self.channel
        if hasattr(type(channel), "close_when_done"):
            channel.close_when_done()
            self.schedule()
        else:
            self._unregister()
            self.transport.loseConnection()

    # -- IPushProducer: called by the transport

    def pauseProducing(self) -> None:  # noqa: N802 Twisted's name
        """The transport is full."""
        self._full = True

    def resumeProducing(self) -> None:  # noqa: N802 Twisted's name
        """The transport has room again."""
        self._full = False
        self._unregister()
        self.run_pass()

    def stopProducing(self) -> None:  # noqa: N802 Twisted's name
        """The connection is lost; ``connectionLost`` follows."""

    # -- called by the socket

    def receive(self, size: int, *, peek: bool) -> bytes:
        """See `TransportSocket.recv`."""
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
        """See `TransportSocket.send`."""
        if self.closed:
            raise _error(errno.EBADF)
        if self._shut or not self.connected:
            self._told = self._told or not self.connected
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
            if self._passing:
                self._touched = True
            else:
                self.schedule()
        return len(piece)

    def close(self) -> None:
        """See `TransportSocket.close`."""
        if self.closed:
            return
        self.closed = True
        self.factory.connections.pop(self._key, None)
        if threading.get_ident() == self._thread:
            self._lose()
        else:
            self._reactor.callFromThread(self._lose)
        if self.channel is not None:
            self.schedule()

    def let_go(self) -> None:
        """Nobody refers to the socket any more; from any thread, at any moment."""
        self._let_go = True
        self.schedule()

    def shut_down(self, how: int) -> None:
        """See `TransportSocket.shutdown`."""
        if self.closed:
            raise _error(errno.EBADF)
        if how != socket.SHUT_RD and not self._shut:
            self._shut = True
            self._full = False
            self._unregister()  # a transport whose producer is paused forgets it
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
        """
        Become the transport's producer, while something waits in it.

        Not for longer: TLS with a producer does not close when a policy around it says so.
        """
        register = getattr(self.transport, "registerProducer", None)
        if register is not None and not self._registered:
            self._registered = True
            register(self, True)

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            self.transport.unregisterProducer()

    def _lose(self) -> None:
        if not self.connected:
            return
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
        if not self.closed and self._key is not None:
            self._watch()
        return False

    def _watch(self) -> None:
        """End a closing transport whose peer has taken nothing since this was called last."""
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
        """The channel that registered with the socket; None when it left."""
        return self._channels.get(self._key)

    def schedule(self) -> None:
        """Look at the channel again in the reactor's next turn; from any thread, at any moment."""
        if threading.get_ident() != self._thread:
            if not self._scheduled and self._reactor is not None:
                self._scheduled = True
                self._reactor.callFromThread(self._scheduled_pass)
        elif self._passing:
            self._touched = True
        elif not self._scheduled and self._reactor is not None:
            self._scheduled = True
            self._reactor.callLater(0, self._scheduled_pass)

    def _scheduled_pass(self) -> None:
        self._scheduled = False
        self.run_pass()

    def run_pass(self) -> None:
        """Ask the channel, and call its handlers, as long as that leads anywhere."""
        if self._passing or self._key is None:
            return
        self._passing = True
        again = False
        factory = self.factory
        sent, unread, told = self._sent, len(self._unread), self._told
        try:
            if not self.closed:
                self._read()
                again = self._write()
            channel = self._channels.get(self._key)
            if channel is not None:
                self._part(channel)
        except asyncore._reraised_exceptions:
            self._stop_reactor()
        except Exception:  # noqa: BLE001 asyncore lets these end its loop; here one channel
            failure(
                self._log, "{peer}: the handler raised", peer=transports.peer_name(self.transport)
            )
            self.close()
            self._tell_of_end()
        finally:
            self._passing = False
        self._set_reading()
        others = factory.restless
        if others and (self._sent != sent or len(self._unread) != unread or self._told is not told):
            factory.look_soon(self)
        channel = self._channels.get(self._key)
        if channel is not None:
            if again or self._touched:
                self.schedule()
            if self._is_restless(channel):
                others.add(self)
                factory.look_again(self)
                return
        elif self._let_go:
            self.close()
        if others:
            factory.leave_alone(self)

    def _read(self) -> None:
        """Let the channel read while it wants to and that leads anywhere."""
        while (channel := self._channels.get(self._key)) is not None:
            before = len(self._unread)
            is_ready = before or (self._ended and not self._told)
            if not _interest.LayeredSocket.are_used:
                if not (is_ready and channel.readable()):
                    return
            else:
                reads, _, is_due = _interest.ask_layer(channel, channel.readable(), False)
                if not (is_due or (is_ready and reads)):
                    return
            if not before and self._ended:
                self._told = True
            asyncore.read(channel)
            if len(self._unread) >= before:
                return  # it did not read, or it was told of the end

    def _write(self) -> bool:
        """Let the channel write while it wants to; return whether it should soon be asked again."""
        for _ in range(WRITES_IN_A_ROW):
            channel = self._channels.get(self._key)
            self._touched = False
            if channel is None or self._full:
                return False
            writes = channel.writable()
            if _interest.LayeredSocket.are_used:
                _, writes, _ = _interest.ask_layer(channel, False, writes)
            if not writes:
                return False
            before = self._sent
            asyncore.write(channel)
            if self._sent == before:
                return False
        return True

    def _is_restless(self, channel: Any) -> bool:
        """
        Return whether the channel's next answer may come from anywhere, or with time.

        One that does not read does not notice the end, and is asked until it does.
        """
        if self._ended and not self._told:
            return True
        sock: Any = getattr(channel, "socket", None)
        if isinstance(sock, _interest.LayeredSocket) and (
            sock.deadline is not None or sock.pending()
        ):
            return True
        return _interest.kind_of(channel) == _interest.ALWAYS

    def _part(self, channel: Any) -> None:
        """Part from a channel that has no connection any more, or has put another in its place."""
        if self._let_go or isinstance(getattr(channel, "socket", None), socket.socket):
            self._told = True
            self._channels.pop(self._key, None)
            self.close()
            try:
                raise _no_descriptor()
            except OSError:
                channel.handle_error()
        elif self.closed or (self._told and not self.connected and not self._unread):
            self.close()
            self._tell_of_end()

    def _tell_of_end(self) -> None:
        """Forget the channel, whose connection is gone; it is told, unless it was already."""
        channel = self._channels.pop(self._key, None)
        if self._told or channel is None:
            return
        self._told = True
        try:
            channel.handle_close()
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            failure(
                self._log, "{peer}: handle_close raised", peer=transports.peer_name(self.transport)
            )

    def _set_reading(self) -> None:
        reading = len(self._unread) < UNREAD
        if reading is not self._reading and not self._ended and not self.closed:
            self._reading = reading
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _stop_reactor(self) -> None:
        """A handler asked to leave ``loop()``; here that is the reactor."""
        self._log.info("{peer}: the handler ends the program", peer=self.transport.getPeer())
        self.close()
        self._channels.pop(self._key, None)
        if self._reactor is not None and self._reactor.running:
            self._reactor.stop()


class LegacyFactory(ServerFactory):
    """
    Builds a legacy handler for each connection, with the transport in the shape of its socket.

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
        # When the restless are asked next; whether that is in the next turn.
        self._looking: Any = None
        self._looks_soon = False
        self.build_channel = build or _builder(handler, arguments, keywords)
        _loop.register(_FactoryDriver(self), self)

    @override
    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(self)

    def look_again(self, connection: Connection, *, soon: bool = False) -> None:
        """
        See to it that the restless are asked once more: in the reactor's next turn, or a while later.

        Args:
            connection: one of them; its reactor is the one that they live on.
            soon: not later than in the next turn.
        """
        if self._looking is None:
            if connection._reactor is not None:
                self._looking = connection._reactor.callLater(0 if soon else RESTLESS, self._look)
        elif soon and not self._looks_soon:
            self._looking.reset(0)
        self._looks_soon = self._looks_soon or soon

    def look_soon(self, connection: Connection) -> None:
        """
        A handler of *connection* has run: the answers of the others' predicates may be others now.
        """
        if len(self.restless) > (connection in self.restless):
            self.look_again(connection, soon=True)

    def leave_alone(self, connection: Connection) -> None:
        """Ask *connection* no more; with none left, nothing is scheduled either."""
        self.restless.discard(connection)
        if not self.restless and self._looking is not None:
            self._looking.cancel()
            self._looking = None
            self._looks_soon = False

    def _look(self) -> None:
        self._looking = None
        self._looks_soon = False
        for connection in list(self.restless):
            connection.run_pass()
            if connection in self.restless:
                self.look_again(connection)


class _FactoryDriver:
    """
    What the channels of a factory's map report to, in place of a loop's driver.

    A ``loop()`` that is called for the map is refused.
    """

    attachment = "a LegacyFactory"

    def __init__(self, factory: LegacyFactory) -> None:
        self.channels = factory.channels
        self._factory = weakref.ref(factory)

    def touch(self, fd: Any) -> None:
        factory = self._factory()
        connection = None if factory is None else factory.connections.get(fd)
        if connection is not None:
            connection.schedule()

    add = touch

    def remove(self, fd: Any) -> None:
        """Nothing is registered anywhere."""

    end = rest = remove

    def wait_for(self, fd: Any, doing: str, wants: str) -> None:
        """TLS is the transport's."""

    def wake(self) -> None:
        """Nothing sleeps."""


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


def _not_ours(made: Any) -> str:
    """Say why a handler that was built is not in the factory's map."""
    if isinstance(getattr(made, "socket", None), TransportSocket):
        return (
            f"{type(made).__qualname__} registered in another map, which nobody drives here; "
            "leave map= out, or give it sock.channel_map"
        )
    return "the handler took no socket"


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
