"""
A Twisted transport worn as a socket, for legacy handlers whose connection has none of its own for us.

That is so in memory, for processes, below Twisted's TLS and policies, and wherever Twisted accepted.
The handler gets a `TransportSocket` and registers with it in a map, which the facade drives beside the
reactor like any other. In place of a descriptor the channel has a number below -1. The transport's
protocol, a `Connection`, answers what a poller would: bytes or the end wait to be read, or there is
room to write. This module does not know who is asked, nor when handlers are called and in which order.

A descriptor, where there is one, stays Twisted's: whoever got its number could close it, and the
reactor would go on with a number that is somebody else's by then. What needs one (`ssl`, `select`,
`os`) raises an error that says what to do instead, and a handler that puts another socket in the place
of its transport is told the same; either way its own connection is the only one that ends.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from typing_extensions import override
from zope.interface import implementer

from txasynchat import endings, transports
from txasynchat.compat import _loop
from txasynchat.compat._accepted import Beside, end, standing, tell_of_end, tell_of_timeout
from txasynchat.compat._interest import Pollable, Quiet, pollables
from txasynchat.delivery import StallWatch
from txasynchat.hub import ENDED, READ, WRITE
from txasynchat.tls.factory import adopt

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from txasynchat.errors import TimedOut
    from txasynchat.limits.deadlines import Deadlines, Standing

__all__ = ["Connection", "TransportSocket"]

#: Bytes that one ``send`` takes at most.
LARGEST_SEND = 262_144
#: Bytes that wait for a handler to read them above which the transport stops reading.
UNREAD = 65_536
#: Seconds without progress after which a transport that was told to close is aborted.
CLOSE_TIMEOUT = 10.0

_numbers = itertools.count(-2, -1)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _no_descriptor() -> OSError:
    return OSError(
        errno.EOPNOTSUPP,
        "this socket is a Twisted transport: it has no descriptor to wrap, copy or select on, and no"
        " other socket can take its place; for TLS, call txasynchat.compat.start_tls(self, context);"
        " for a real socket, listen on hub:tcp: or hub:unix:",
    )


class TransportSocket(Quiet):
    """
    A connected Twisted transport in the shape of a non-blocking `socket.socket`.

    What a channel does with its socket works, and raises what a socket would: `BlockingIOError` when
    there is nothing to read or no room to write, ``ConnectionResetError`` when the connection was
    lost, ``EBADF`` when it was closed. `accept`, `connect` and the like do not exist, and there is no
    descriptor (see `fileno`). As with a socket, the connection ends when nobody refers to this any
    more.

    Attributes:
        transport: the transport underneath, for what a socket cannot tell: its certificates, for one.
        channel_key: the number under which a dispatcher registers; negative, and no descriptor.
    """

    type = socket.SOCK_STREAM
    proto = 0
    is_quiet = True

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.transport: Any = connection.transport
        self.channel_key = connection.number
        self._host = transports.own_address(self.transport)
        self._peer = transports.peer_address(self.transport)
        self._real = transports.real_socket(self.transport)
        self.family = socket.AF_INET if self._real is None else self._real.family

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit modules may be gone
            self._connection.let_go()

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

    def pending(self) -> int:
        """Count the bytes that arrived and were not received."""
        return len(self._connection.unread)

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

    detach = fileno

    def dup(self, *_arguments: Any, **_keywords: Any) -> Any:
        """As `fileno`, but EBADF when this is closed."""
        raise _error(errno.EBADF) if self._connection.closed else _no_descriptor()

    makefile = dup

    def getpeername(self) -> Any:
        """Return the peer's address; ENOTCONN when this is closed."""
        if self._connection.closed:
            raise _error(errno.ENOTCONN)
        return self._peer

    @property
    def proxied(self) -> Any:
        """What a proxy said of the connection, a `Proxied`; None if it comes by no proxy."""
        return getattr(self.transport, "proxied", None)

    def getsockname(self) -> Any:
        """Return this side's address."""
        return self._host

    def outstanding(self) -> tuple[int | None, int | None]:
        """Count what is on its way to the peer: see `transports.outstanding_bytes`."""
        return transports.outstanding_bytes(self.transport)

    # -- settings: those of the socket underneath, where there is one

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        """Return an option of the socket underneath; without one its type, and 0 for the others."""
        if self._real is not None:
            return self._real.getsockopt(level, option, *size)
        is_type = (level, option) == (socket.SOL_SOCKET, socket.SO_TYPE)
        return socket.SOCK_STREAM if is_type else 0

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        """Set an option of the socket underneath."""
        if self._real is not None:
            self._real.setsockopt(level, option, *value)

    def setblocking(self, flag: bool) -> None:
        """Accept that this never blocks; a ValueError if it is asked to."""
        if flag:
            raise ValueError("a transport of Twisted's never blocks")

    def settimeout(self, value: float | None) -> None:
        """As ``setblocking(value != 0)``."""
        self.setblocking(value != 0)

    def gettimeout(self) -> float:
        """Return 0.0: never blocking."""
        return 0.0


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class Connection(Protocol, Pollable):
    """
    The protocol of a worn transport.

    Args:
        serve: builds the handler: given where it runs, a `TransportSocket` and this, it returns the
            channel, or None.
        reactor: for transports that do not know theirs.

    Attributes:
        number: what its channel has in place of a descriptor.
        unread: what arrived and was not received.
        closed: this side has closed.
    """

    transport: Any = None
    #: Bytes have come.
    _begun = False

    def __init__(self, serve: Any, reactor: Any) -> None:
        self._serve = serve
        self._reactor = reactor
        self.number = next(_numbers)
        # Where the channel is, from when there is one.
        self._channels: dict[Any, Any] | None = None
        self._attachment: Any = None
        self._built = False
        self._thread = threading.get_ident()
        self.unread = b""
        self.closed = False
        # Nobody refers to the socket any more.
        self._let_go = False
        self._end: OSError | None = None
        self._ended = False
        # The handler was told of the end.
        self._told = False
        self._full = False
        self._reading = True
        self._shut = False
        # As the transport's producer: only while something waits, or TLS would not close.
        self._registered = False
        self._stall = StallWatch()
        #: Once there is a handler.
        self.deadlines: Deadlines | None = None

    # -- Pollable

    def poll(self) -> int:
        bits = 0 if self._full else WRITE
        if self._ended or self.closed:
            return bits | READ | ENDED
        return bits | READ if self.unread else bits

    def _tell(self, *, now: bool = True) -> None:
        if self._channels is not None:
            _loop.tell(self._channels, self.number, now=now)

    # -- Watcher: see `_attach`

    def settle(self, channel: Any) -> bool:
        """
        Part from a channel that has left, has no connection any more, or has put another in its place.
        """
        if channel is None:
            self._channels = self._attachment = None
            return False
        if self._let_go or isinstance(getattr(channel, "socket", None), socket.socket):
            self._forget()
            self.close()
            try:
                raise _no_descriptor()
            except OSError:
                channel.handle_error()
        elif self.closed or (self._told and not self.connected and not self.unread):
            self._forget()
            self.close()
            if not self._told:
                tell_of_end(channel)
            if self.closed:
                end(channel)
        else:
            return True
        return False

    def _forget(self) -> None:
        channels, self._channels = self._channels, None
        self._attachment = None
        if channels is not None and channels.pop(self.number, None) is not None:
            _loop.removed(channels, self.number)

    # -- IProtocol, IHalfCloseableProtocol, IHandshakeListener: called by the transport

    @override
    def makeConnection(self, transport: Any) -> None:
        adopt(transport)
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
        if self._built or self.closed:
            return
        self._built = True
        beside = Beside.of(transports.reactor_of(self.transport) or self._reactor)
        self._reactor = beside.reactor
        pollables[self.number] = self
        # The handler alone refers to the socket afterwards: see `let_go`.
        channel = self._serve(beside, TransportSocket(self), self)
        if channel is None:
            self.close()
        elif not self.closed:
            self._channels = channel._map
            self._attachment = beside.watch(channel, self)
            self._tell(now=False)

    @override
    def dataReceived(self, data: bytes) -> None:
        if self.closed:
            return
        self._begun = True
        self.unread = self.unread + data if self.unread else data
        if self._reading and len(self.unread) >= UNREAD:
            self._reading = False
            self.transport.pauseProducing()
        attachment = self._attachment
        if attachment is None or not attachment.serve(self.number):
            self._tell()

    def readConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """The peer will send no more: the handler reads an empty string, when it reads."""
        self._ended = True
        self._tell()

    def writeConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """The other direction was closed, by ``shutdown``."""

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._ended and not isinstance(reason.value, ConnectionDone):
            self._end = _error(errno.ECONNRESET)
        self._ended = True
        self._full = self._registered = False
        self.connected = False
        self._stall.cancel()
        if self.deadlines is not None:
            self.deadlines.end()
        self._tell()

    # -- for `limits.deadlines`

    def _standing(self) -> Standing:
        return standing(self._channel(), begun=self._begun, closing=self.closed)

    def _timed_out(self, error: TimedOut) -> None:
        channel = self._channel()
        if channel is not None:
            peer = transports.peer_name(self.transport)
            tell_of_timeout(channel, peer, error, self.factory.on_timeout)
        if not self.connected:
            return
        if error.kind == "write_stall":
            transports.abort(self.transport)
        else:
            self.handle_shutdown()

    def _channel(self) -> Any:
        return None if self._channels is None else self._channels.get(self.number)

    def handle_shutdown(self) -> None:
        """
        The server stops: the channel sends what it has queued, and closes. Called by `Server`.

        One that is no ``async_chat`` has no queue: it meets the end of the connection.
        """
        channel = self._channel()
        if hasattr(type(channel), "close_when_done"):
            channel.close_when_done()
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
        self._tell()

    def stopProducing(self) -> None:  # noqa: N802 Twisted's name
        """The connection is lost; ``connectionLost`` follows."""

    # -- called by the socket

    def receive(self, size: int, *, peek: bool) -> bytes:
        """See `TransportSocket.recv`."""
        if self.closed:
            self._told = True
            raise _error(errno.EBADF)
        data = self.unread
        if data:
            if not peek:
                self.unread = data[size:]
                if not self._reading and len(self.unread) < UNREAD and not self._ended:
                    self._reading = True
                    self.transport.resumeProducing()
            return data[:size]
        if not self._ended:
            raise _error(errno.EAGAIN)
        self._told = True
        end, self._end = self._end, None
        if end is not None:
            raise end
        return b""

    def send(self, data: Any, *, ignore_full: bool = False) -> int:
        """See `TransportSocket.send`."""
        if self.closed:
            self._told = True
            raise _error(errno.EBADF)
        if self._shut or not self.connected:
            self._told = self._told or not self.connected
            raise _error(errno.EPIPE)
        is_elsewhere = threading.get_ident() != self._thread
        if (self._full and not ignore_full) or is_elsewhere:
            if is_elsewhere:
                self._tell(now=False)
            raise _error(errno.EAGAIN)
        if type(data) is not bytes or len(data) > LARGEST_SEND:
            data = bytes(memoryview(data).cast("B")[:LARGEST_SEND])
        if data:
            send_now = self._send_now
            rest = data if send_now is None else send_now(self.transport, data)
            if rest:
                self._register()
                self.transport.write(rest)
                if not self._full:
                    self._unregister()
        return len(data)

    def close(self) -> None:
        """See `TransportSocket.close`."""
        if not self.closed:
            self.closed = True
            self.factory.connections.pop(self, None)
            if threading.get_ident() == self._thread:
                self._lose()
            else:
                self._reactor.callFromThread(self._lose)
            self._tell(now=False)

    def let_go(self) -> None:
        """Nobody refers to the socket any more; from any thread, at any moment."""
        if not self.closed and self._reactor is not None:
            is_here = threading.get_ident() == self._thread
            soon = partial(self._reactor.callLater, 0) if is_here else self._reactor.callFromThread
            soon(self._close_unreferenced)

    def _close_unreferenced(self) -> None:
        self._let_go = True
        self.close()

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
            self.unread = b""
            self._ended = True
            self._tell(now=False)

    # -- internals

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
        if not self.connected:
            return
        self._unregister()
        if not self._reading:
            self.transport.resumeProducing()  # TLS waits for what the peer says at the end
        self.transport.loseConnection()
        if not transports.closes_by_itself(self.transport):
            self._watch()

    def _takes_closing(self) -> bool:
        """Called by the transport, which somebody told to close: it may, and that has to end."""
        if not self.closed and self._built:
            self._watch()
        return False

    def _watch(self) -> None:
        """End a closing transport whose peer has taken nothing since this was called last."""
        if not self._stall.waiting and self._stall.stalled(
            self._reactor,
            CLOSE_TIMEOUT,
            self._watch,
            *transports.outstanding_bytes(self.transport),
        ):
            endings.end(self.transport)
