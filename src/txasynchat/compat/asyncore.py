"""
The interface of the standard library's ``asyncore`` module of Python 3.11, driven by a hub.

Every name of that module is here with its behaviour. The contract is the library reference of 3.11
and, where that is silent, the module itself. The project's documentation lists the differences. They
are repairs: nothing here spins, leaks or crashes where the original did. ``compat._loop`` drives the
channels.

Names are looked up in this module's globals when they are used, because programs replace them
(`socket_map`, `poll`, `read`, `compact_traceback`, `socket`, ...).
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
import warnings
from contextlib import suppress
from errno import (
    EAGAIN,
    EALREADY,
    EBADF,
    ECONNABORTED,
    ECONNRESET,
    EINPROGRESS,
    EINVAL,
    EISCONN,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOMEM,
    ENOTCONN,
    EPIPE,
    ESHUTDOWN,
    EWOULDBLOCK,
    errorcode,
)  # fmt: skip
from functools import partial
from typing import TYPE_CHECKING, Any

from txasynchat.compat import _interest, _loop
from txasynchat.compat._attributes import own
from txasynchat.compat._backoff import PAUSE
from txasynchat.compat._entries import copy_of
from txasynchat.compat._interest import LayeredSocket
from txasynchat.compat._queues import OutBuffer
from txasynchat.compat._sending import Sender, call_within, sender_of
from txasynchat.log import Throttle, escape, unlogged

if TYPE_CHECKING:
    from collections.abc import Iterator

_DISCONNECTED = frozenset({ECONNRESET, ENOTCONN, ESHUTDOWN, ECONNABORTED, EPIPE, EBADF})

# The process, or the system, has no descriptor or memory left for a connection.
_EXHAUSTED = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})
# Logged once in ten seconds: listeners try again ten times a second.
_exhausted = Throttle(10.0)
# Listeners that `poll` and `poll2` leave alone, by id(), and until when.
_resting: dict[int, float] = {}

#: The default map of channels: descriptor to channel.
socket_map: dict[Any, Any] = {}

# How many more full buffers of ciphertext one event may read: that speeds up bulk data, but the other
# channels wait meanwhile.
_TLS_READS = 3


def _strerror(err: int) -> str:
    try:
        return os.strerror(err)
    except (ValueError, OverflowError, NameError):
        return errorcode.get(err, f"Unknown error {err}")


class ExitNow(Exception):
    """Raised in a handler, it ends `loop`. The map stays as it is."""

    __module__ = "asyncore"


_reraised_exceptions = (ExitNow, KeyboardInterrupt, SystemExit)


# -- one event, one channel ----------------------------------------------------------------


def read(obj: Any) -> None:
    """Dispatch a read event to *obj*, any object with the handlers; its errors go to `handle_error`."""
    try:
        obj.handle_read_event()
    except _reraised_exceptions:
        raise
    except:  # noqa: E722 - the channel handles every other exception
        if not _loop.waits_for_tls(obj, "read"):
            obj.handle_error()


def write(obj: Any) -> None:
    """Dispatch a write event to *obj*."""
    try:
        obj.handle_write_event()
    except _reraised_exceptions:
        raise
    except:  # noqa: E722 - see read()
        if not _loop.waits_for_tls(obj, "write"):
            obj.handle_error()


def _exception(obj: Any) -> None:
    try:
        obj.handle_expt_event()
    except _reraised_exceptions:
        raise
    except:  # noqa: E722 - see read()
        obj.handle_error()


def readwrite(obj: Any, flags: int) -> None:
    """
    Dispatch everything that poll(2) reported of *obj*, by its bits *flags*: reading, then writing, then
    urgent data, the end last.
    """
    sock = getattr(obj, "socket", None)
    doing = "read"
    waits = False
    try:
        if flags & select.POLLIN:
            obj.handle_read_event()
            if flags == select.POLLIN:  # by far the commonest case
                return
        # An event after the first may be that of a former socket: the channel has reconnected.
        if flags & select.POLLOUT and getattr(obj, "socket", None) is sock:
            doing = "write"
            obj.handle_write_event()
        doing = ""
        if flags & select.POLLPRI and getattr(obj, "socket", None) is sock:
            obj.handle_expt_event()
        if (
            flags & (select.POLLHUP | select.POLLERR | select.POLLNVAL)
            and getattr(obj, "socket", None) is sock
            # With TLS a read event has read to the end, and it knows.
            and not (isinstance(sock, LayeredSocket) and sock.hang_up())
        ):
            obj.handle_close()
    except _reraised_exceptions:
        raise
    except BaseException as error:  # noqa: BLE001 - see read()
        if isinstance(error, OSError) and error.errno in _DISCONNECTED:
            obj.handle_close()
        elif doing and _loop.waits_for_tls(obj, doing):
            waits = True
        else:
            obj.handle_error()
    if waits and getattr(obj, "socket", None) is sock:
        done = select.POLLIN if doing == "read" else select.POLLIN | select.POLLOUT
        readwrite(obj, flags & ~done)


# -- one pass ------------------------------------------------------------------------------


def _limit(timeout: float | None) -> float | None:
    now = time.monotonic()
    for key, until in list(_resting.items()):
        if now >= until:
            _resting.pop(key, None)
        elif timeout is None or until - now < timeout:
            timeout = until - now
    return timeout


def _ask(channels: Any, due: list[Any]) -> Iterator[tuple[Any, Any, Any, Any]]:
    """
    Yield key, channel, `readable` and `writable` of each channel of a map but of listeners that rest.

    Add to *due* the keys of channels for which a read event is due that no system knows of.
    """
    layers_are_used = LayeredSocket.are_used
    for fd, obj in copy_of(channels).items():
        is_r = obj.readable()
        is_w = obj.writable()
        if layers_are_used:
            is_r, is_w, is_due = _interest.ask_layer(obj, is_r, is_w)
            if is_due:
                due.append(fd)
        if not _resting or time.monotonic() >= _resting.get(id(obj), 0.0):
            yield fd, obj, is_r, is_w


def poll(timeout: float | None = 0.0, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
    """
    One pass by select(2): ask every channel, then wait at most *timeout* seconds.

    Read events come first, then write events, then exceptional ones, each in the map's order. No
    reactor takes part.
    """
    channels = socket_map if map is None else map
    if not channels:
        return
    r: list[Any] = []
    w: list[Any] = []
    e: list[Any] = []
    due: list[Any] = []
    if _resting:
        timeout = _limit(timeout)
    for fd, obj, is_r, is_w in _ask(channels, due):
        if is_r:
            r.append(fd)
        if is_w and not obj.accepting:  # a listener never waits to write
            w.append(fd)
        if is_r or is_w:
            e.append(fd)
    if not e:
        time.sleep(timeout)  # type: ignore[arg-type] # None is a TypeError, as in the stdlib
        return
    reads, *others = _select(r, w, e, 0.0 if due else timeout)
    if due:
        reads = [*due, *(fd for fd in reads if fd not in due)]
    # An event after the first may be that of a socket that is closed by then, its number reused.
    sockets = {fd: getattr(channels.get(fd), "socket", None) for ready in others for fd in ready}
    for call, ready in zip((read, write, _exception), (reads, *others), strict=True):
        for fd in ready:
            obj = channels.get(fd)
            if obj is not None and (call is read or getattr(obj, "socket", None) is sockets[fd]):
                call(obj)


def _select(
    r: list[Any], w: list[Any], e: list[Any], timeout: float | None
) -> tuple[list[Any], list[Any], list[Any]]:
    """select(2), also for descriptors from 1,024 on, which it does not accept."""
    try:
        return select.select(r, w, e, timeout)
    except ValueError:
        if all(isinstance(fd, int) and 0 <= fd < 1024 for fd in e):
            raise
    asked: dict[Any, int] = {}
    for fds, flag in ((r, select.POLLIN), (w, select.POLLOUT), (e, select.POLLPRI)):
        for fd in fds:
            asked[fd] = asked.get(fd, 0) | flag
    pollster = select.poll()
    for fd, flags in asked.items():
        pollster.register(fd, flags)
    ready = dict(pollster.poll(None if timeout is None else timeout * 1000))
    got = {fd: ready.get(fd if isinstance(fd, int) else fd.fileno(), 0) for fd in asked}
    if any(flags & select.POLLNVAL for flags in got.values()):
        raise OSError(EBADF, os.strerror(EBADF))
    readable = select.POLLIN | select.POLLHUP | select.POLLERR
    writable = select.POLLOUT | select.POLLERR
    return (
        [fd for fd in r if got[fd] & readable],
        [fd for fd in w if got[fd] & writable],
        [fd for fd in e if got[fd] & select.POLLPRI],
    )


def poll2(timeout: float | None = 0.0, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
    """
    One pass by poll(2): ask every channel, then wait at most *timeout* seconds.

    All events of one channel come before the next channel's. The peer's end closes the channel even if
    data was not read yet. No reactor takes part.
    """
    channels = socket_map if map is None else map
    if _resting:
        timeout = _limit(timeout)
    milliseconds = None if timeout is None else int(timeout * 1000)
    pollster = select.poll()
    if not channels:
        return
    keys = {}
    due: list[Any] = []
    for fd, obj, is_r, is_w in _ask(channels, due):
        flags = select.POLLIN | select.POLLPRI if is_r else 0
        if is_w and not obj.accepting:
            flags |= select.POLLOUT
        if flags:
            pollster.register(fd, flags)
            if type(fd) is not int:
                keys[fd.fileno()] = fd
    ready = pollster.poll(0 if due else milliseconds)
    if due:
        known = dict(ready)
        ready = [(fd, known.pop(fd, 0) | select.POLLIN) for fd in due] + list(known.items())
    for fd, flags in ready:
        obj = channels.get(keys.get(fd, fd))
        if obj is not None:
            readwrite(obj, flags)


poll3 = poll2  # an old name for it

_own = (poll, poll2, select)


def loop(
    timeout: float | None = 30.0,
    use_poll: bool = False,
    map: dict[Any, Any] | None = None,  # noqa: A002 - the stdlib's name
    count: int | None = None,
) -> None:
    """
    Serve the channels of a map until it is empty.

    May be called repeatedly, in any thread, in several at once with a map each, and from inside a
    handler. Signal handlers are left alone. Twisted code works meanwhile: see
    `txasynchat.compat.current_reactor`.

    Args:
        timeout: how many seconds one pass may wait; `None` for ever. Another thread that pushes on a
            channel of the map, adds one or closes one ends the wait.
        use_poll: the semantics of poll(2) instead of select(2)'s (see `poll2`).
        map: descriptor to channel; `socket_map` if not given.
        count: the largest number of passes; `None` for no limit.

    Raises:
        RuntimeError: a Twisted reactor or an asyncio event loop runs in this thread: use
            `txasynchat.compat.attach`, or a *timeout* of 0 with a *count*, which does not block.
        ExitNow, KeyboardInterrupt, SystemExit: from a handler.
        Exception: whatever `readable`, `writable` or `handle_error` of a channel raised.
        OSError: EBADF, a channel's descriptor is closed; select mode only.
    """
    channels = socket_map if map is None else map
    poll_mode = bool(use_poll) and hasattr(select, "poll")
    poll_fun = poll2 if poll_mode else poll
    if poll_fun in _own and select in _own:
        _loop.run(channels, timeout, poll_mode, count, globals())
        return
    # The program has replaced one of them.
    _loop.repeat(lambda timeout: poll_fun(timeout, channels), timeout, channels, count)


# -- channels ------------------------------------------------------------------------------


class dispatcher:  # noqa: N801 - the stdlib's name
    """
    A non-blocking socket and the handlers for its events.

    Args:
        sock: a socket, connected or not; made non-blocking.
        map: where to register; `socket_map` if not given.
    """

    __module__ = "asyncore"

    debug = False
    connected = False
    accepting = False
    connecting = False
    closing = False
    addr: Any = None
    ignore_log_types = frozenset({"warning"})

    _tls_context: Any = None

    # For channels that queue what they send: see sender_of().
    _txasynchat_sender: Sender | None

    socket: Any
    _map: dict[Any, Any]
    _fileno: Any

    def __init__(self, sock: Any = None, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
        self._map = socket_map if map is None else map
        self._fileno = None
        self._txasynchat_sender = None
        if not sock:
            self.socket = None
            return
        sock.setblocking(False)
        self.set_socket(sock, map)
        self.connected = True
        try:
            self.addr = sock.getpeername()
        except OSError as error:
            if error.errno in (ENOTCONN, EINVAL):
                self.connected = False  # not connected yet, which is allowed
            else:
                self.del_channel(map)  # broken: it must not be polled
                raise

    def __repr__(self) -> str:
        kind = type(self)
        words = [f"{kind.__module__}.{kind.__qualname__}"]
        if self.accepting and self.addr:
            words.append("listening")
        elif self.connected:
            words.append("connected")
        if self.addr is not None:
            try:
                words.append("%s:%d" % self.addr)  # noqa: UP031 - the TypeError decides
            except TypeError:
                words.append(repr(self.addr))
        return f"<{' '.join(words)} at {id(self):#x}>"

    def add_channel(self, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
        """Put this channel into a map, its own by default."""
        channels = self._map if map is None else map
        channels[self._fileno] = self
        _loop.added(channels, self._fileno)

    def del_channel(self, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
        """Take this channel out of a map, its own by default, if it is there."""
        fd = self._fileno
        channels = self._map if map is None else map
        try:
            del channels[fd]
        except KeyError:
            pass  # not there, or another thread closes it too
        else:
            _loop.removed(channels, fd)
        self._fileno = None

    def create_socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - the stdlib's name
    ) -> None:
        """Make a new non-blocking socket this channel's, and register it."""
        self.family_and_type = family, type
        sock = socket.socket(family, type)
        sock.setblocking(False)
        self.set_socket(sock)

    def set_socket(self, sock: Any, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
        """Make *sock* this channel's, and register it."""
        self.socket = sock
        # A transport in the shape of a socket (`compat._worn`) has a key, and no descriptor.
        key = getattr(sock, "channel_key", None)
        self._fileno = key if type(key) is int else sock.fileno()
        self.add_channel(map)

    def set_reuse_addr(self) -> None:
        """Allow the address to be bound while old connections on it linger."""
        with suppress(OSError):
            before = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, before | 1)

    # -- what to wait for

    @_interest.steady()
    def readable(self) -> Any:
        """Asked on every pass: does this channel want to read?"""
        return True

    @_interest.steady()
    def writable(self) -> Any:
        """Asked on every pass: does this channel want to write?"""
        return True

    # -- what a socket does

    def listen(self, num: int, *, tls: Any = None) -> Any:
        """
        Wait for connections, *num* of them in the system's queue.

        Args:
            num: as in `socket.socket.listen`.
            tls: a `ssl.SSLContext`, or `ServerOptions`: `accept` then returns a
                `txasynchat.compat.tls.TLSSocket`, and a handler that is built with it speaks TLS
                unchanged. Not in the stdlib.

        Raises:
            ssl.SSLError: *tls* is for clients.
            TypeError: it is neither a context nor options.
        """
        if tls is not None:
            from txasynchat.compat.tls import check_server_context  # noqa: PLC0415 - as below

            check_server_context(tls)
        self._tls_context = tls
        self.accepting = True
        _loop.touch(self)
        if os.name == "nt" and num > 5:
            num = 5
        return self.socket.listen(num)

    def bind(self, addr: Any) -> Any:
        """Give the socket an address of this host."""
        self.addr = addr
        return self.socket.bind(addr)

    def connect(self, address: Any) -> None:
        """
        Begin to connect; `handle_connect` follows, during this call if the connection stands at once.

        Raises:
            OSError: refused at once.
        """
        self.connected = False
        self.connecting = True
        try:
            err = self.socket.connect_ex(address)
        finally:
            _loop.touch(self)
        if err in (EINPROGRESS, EALREADY, EWOULDBLOCK) or (err == EINVAL and os.name == "nt"):
            self.addr = address
        elif err in (0, EISCONN):
            self.addr = address
            self.handle_connect_event()
        else:
            raise OSError(err, errorcode[err])

    def accept(self) -> Any:
        """
        Take a connection.

        Returns:
            the new socket and its peer's address; or `None` if there is no connection after all, or no
            descriptor or memory for it. The listener then rests, and tries again.
        """
        try:
            conn, addr = self.socket.accept()
        except TypeError:
            return None
        except OSError as why:
            if why.errno in _EXHAUSTED:
                self.__rest(why)
            elif why.errno not in (EWOULDBLOCK, ECONNABORTED, EAGAIN):
                raise
            return None
        if self._tls_context is not None:
            from txasynchat.compat import tls  # noqa: PLC0415 - loaded only where it is used

            conn = tls.wrap_accepted(conn, self._tls_context)
        return conn, addr

    def __rest(self, why: OSError) -> None:
        suppressed = _exhausted.suppressed(why.errno)
        if suppressed is not None:
            name = f"{type(self).__module__}.{type(self).__qualname__}"
            text = f"{name} cannot accept, and tries again: {why.strerror}{unlogged(suppressed)}"
            self.log_info(text, "error")
        _resting[id(self)] = time.monotonic() + PAUSE
        _loop.rest(self)

    def send(self, data: Any) -> int:
        """
        Send what the system takes now.

        Returns:
            the number of bytes taken; 0 after `handle_close` was called for a lost connection, and if
            the TLS of a socket that the program wrapped has to wait.
        """
        try:
            sent: int = self.socket.send(data)
        except Exception as why:
            code = why.errno if isinstance(why, OSError) else None  # pyOpenSSL's is not an OSError
            if code in _DISCONNECTED:
                call_within(self, self.handle_close)
            elif code != EWOULDBLOCK and not _loop.waits_for_tls(self, "write"):
                raise
            return 0
        return sent

    def recv(self, buffer_size: int) -> Any:
        """
        Receive at most *buffer_size* bytes.

        Returns:
            the bytes; ``b""`` after `handle_close` was called, at the end of the stream.

        Raises:
            BlockingIOError: there is nothing yet.
            ssl.SSLWantReadError: likewise, or a similar one, from a socket that the program wrapped.
                `read`, `write` and `readwrite` drop it.
        """
        try:
            data = self.socket.recv(buffer_size)
            if data:
                return data
            self.handle_close()
        except OSError as why:
            if why.errno not in _DISCONNECTED:
                raise
            self.handle_close()
        _loop.ended(self)
        return b""

    def close(self) -> None:
        """Leave the map and close the socket. May be repeated."""
        self.connected = False
        self.accepting = False
        self.connecting = False
        self.del_channel()
        if self.socket is not None:
            try:
                self.socket.close()
            except OSError as why:
                if why.errno not in (ENOTCONN, EBADF):
                    raise
            if isinstance(self.socket, LayeredSocket):
                self.socket.leave(partial(_Leaving, self._map))

    # -- logging

    def log(self, message: Any) -> None:
        """Write *message* to the error stream."""
        sys.stderr.write(f"log: {message!s}\n")

    def log_info(self, message: Any, type: str = "info") -> None:  # noqa: A002 - the stdlib's name
        """Print *message*, unless *type* is one of `ignore_log_types`."""
        if type not in self.ignore_log_types:
            print(f"{type}: {message}")  # noqa: T201 - the stdlib's way

    # -- events, as the loop delivers them

    def handle_read_event(self) -> None:
        """Called when the socket is readable: accept, or finish connecting, or `handle_read`."""
        if self.accepting:
            self.handle_accept()
            return
        if not self.connected and self.connecting:
            self.handle_connect_event()
        if LayeredSocket.are_used and isinstance(self.socket, LayeredSocket):
            self._handle_layer_read()
        else:
            self.handle_read()

    def handle_connect_event(self) -> None:
        """Called when an attempt to connect is over; an OSError if it failed."""
        err = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if err != 0:
            raise OSError(err, _strerror(err))
        if isinstance(self.socket, LayeredSocket) and not self.socket.is_secure_now():
            return  # called again, for each event of the handshake
        self.handle_connect()
        self.connected = True
        self.connecting = False

    def handle_write_event(self) -> None:
        """Called when the socket is writable: finish connecting, then `handle_write`."""
        if self.accepting:
            return
        if not self.connected and self.connecting:
            self.handle_connect_event()
        if not isinstance(self.socket, LayeredSocket) or (
            # Perhaps only TLS had something to write.
            self.connected and self.socket.ready_to_write() and self.writable()
        ):
            self.handle_write()

    def _handle_layer_read(self) -> None:
        """Let TLS take what arrived, and call `handle_read` as long as there is plain text for it."""
        sock = self.socket
        more = _TLS_READS
        while sock.advance():
            received = sock.received
            ends = sock.end_waits
            try:
                self.handle_read()
            except BaseException:
                sock.is_quiet = False  # the loop has to check what remains
                raise
            if not (sock.received or sock.end_waits):
                if not (sock.has_more and more):
                    return
                more -= 1
            elif sock.pending() >= len(received) + ends:
                return
            if self.socket is not sock or not self.readable():
                return

    def handle_expt_event(self) -> None:
        """Called for urgent data (`handle_expt`) or a pending error (`handle_close`)."""
        err = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if err != 0:
            self.handle_close()
        else:
            self.handle_expt()

    def handle_error(self) -> None:
        """Called inside the ``except`` block of an exception in a handler: report it, and close."""
        _, kind, value, where = compact_traceback()
        try:
            self_repr = repr(self)
        except:  # noqa: E722 - a program's __repr__ may do anything
            self_repr = f"<__repr__(self) failed for object at {id(self):0x}>"
        text = f"uncaptured python exception, closing channel {self_repr} ({kind}:{value} {where})"
        # What it quotes of the peer must neither begin a line nor control a terminal.
        self.log_info(escape(text), "error")
        self.handle_close()

    # -- for subclasses

    def handle_expt(self) -> None:
        """Called when there is urgent data."""
        self.log_info("unhandled incoming priority event", "warning")

    def handle_read(self) -> None:
        """Called when `recv` will return something."""
        self.log_info("unhandled read event", "warning")

    def handle_write(self) -> None:
        """Called when `send` will take something."""
        self.log_info("unhandled write event", "warning")

    def handle_connect(self) -> None:
        """Called once connected; `connected` is set after it returns."""
        self.log_info("unhandled connect event", "warning")

    def handle_accept(self) -> None:
        """Called on a listener when a connection waits; by default it is taken."""
        pair = self.accept()
        if pair is not None:
            self.handle_accepted(*pair)

    def handle_accepted(self, sock: Any, addr: Any) -> None:  # noqa: ARG002 - for subclasses
        """Called on a listener with a new connection; by default it is closed."""
        sock.close()
        self.log_info("unhandled accepted event", "warning")

    def handle_close(self) -> None:
        """Called when the connection is lost or at its end."""
        self.log_info("unhandled close event", "warning")
        self.close()


class _Leaving(dispatcher):
    """The last bytes of a closed connection, sent as long as that makes progress."""

    def __init__(self, map: dict[Any, Any], last: Any) -> None:  # noqa: A002
        super().__init__(None, map)
        self._last = last
        self._leaves_at = last.until
        self.connected = True
        self.set_socket(last.sock)

    def readable(self) -> bool:
        return False

    def handle_read(self) -> None:  # called when the time is over: nothing is read here
        if self._last.go_on():
            self._leaves_at = self._last.until
            self.del_channel()
            self.set_socket(self.socket)  # so the loop notes the new time
        else:
            self.close()

    def handle_write(self) -> None:
        if self._last.send():
            self.close()

    def handle_close(self) -> None:
        self.close()


def _kept_by(channel: Any) -> OutBuffer | None:
    kept: OutBuffer | None = own(channel, "_dispatcher_with_send__kept")
    return kept


def _reports(channel: Any) -> bool:
    """Return whether changes of an `out_buffer` are reported: it is ours, and its value immutable."""
    kept = _kept_by(channel)
    return type(channel).out_buffer is _out_buffer and kept is not None and type(kept.data) is bytes


class dispatcher_with_send(dispatcher):  # noqa: N801 - the stdlib's name
    """A dispatcher whose `send` keeps what the system did not take."""

    __module__ = "asyncore"

    # Missing if a program did not call __init__; missing or None if its class has its own out_buffer.
    # The type is checked, because a program's __getattr__ may answer.
    __kept: OutBuffer | None

    def __init__(self, sock: Any = None, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
        self.__kept = None
        dispatcher.__init__(self, sock, map)
        self.out_buffer = b""

    @property
    def out_buffer(self) -> Any:
        """What `send` could not send yet, for reading and assigning, by other channels too."""
        kept = _kept_by(self)
        if kept is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'out_buffer'")
        return kept.get()

    @out_buffer.setter
    def out_buffer(self, data: Any) -> None:
        kept = _kept_by(self)
        if kept is None:
            self.__kept = OutBuffer(data)
            if not data:
                return  # mostly the constructor
        else:
            kept.set(data)
        _loop.touch(self)

    def initiate_send(self) -> None:
        """Send at most 64 KiB of what is kept. Safe from several threads: see `send`."""
        sender_of(self).send(self.__send_chunk)

    def __send_chunk(self) -> None:
        try:
            kept = self.__kept
        except AttributeError:
            kept = None
        if type(kept) is not OutBuffer:
            num_sent = dispatcher.send(self, self.out_buffer[:65536])
            self.out_buffer = self.out_buffer[num_sent:]
            return
        data = kept.data[:65536]
        num_sent = dispatcher.send(self, data)
        if num_sent:
            kept.cut(data, num_sent)

    def handle_write(self) -> None:
        """Go on sending."""
        self.initiate_send()

    @_interest.steady(_reports)
    def writable(self) -> Any:
        """True while not connected, or while something is kept."""
        try:
            kept = self.__kept
        except AttributeError:
            kept = None
        return (not self.connected) or len(
            kept.data if type(kept) is OutBuffer else self.out_buffer
        )

    def send(self, data: Any) -> None:  # type: ignore[override] # the stdlib's signature
        """
        Send *data*, now or as soon as possible; from any thread.

        One thread sends at a time; meanwhile the others add to what it continues with.
        """
        if self.debug:
            self.log_info(f"sending {data!r}")
        try:
            kept = self.__kept
        except AttributeError:
            kept = None
        if type(kept) is not OutBuffer:
            self.out_buffer = self.out_buffer + data
            self.initiate_send()
            _loop.touch(self)
            return
        waited = kept.append(data)
        try:
            self.initiate_send()
        finally:
            if waited or kept.data:
                _loop.touch(self)


_out_buffer = dispatcher_with_send.out_buffer


# -- tools ---------------------------------------------------------------------------------


def compact_traceback() -> tuple[tuple[str, str, str], Any, Any, str]:
    """
    Return the exception being handled: its innermost place (file, function, line), type and value, and
    all places as text on one line. It is an AssertionError if there is none.
    """
    kind, value, tb = sys.exc_info()
    if tb is None:
        raise AssertionError("traceback does not exist")
    places = []
    while tb is not None:
        code = tb.tb_frame.f_code
        places.append((code.co_filename, code.co_name, str(tb.tb_lineno)))
        tb = tb.tb_next
    text = " ".join(f"[{'|'.join(place)}]" for place in places)
    return places[-1], kind, value, text


def close_all(map: dict[Any, Any] | None = None, ignore_all: bool = False) -> None:  # noqa: A002
    """
    Close everything in a map, then empty it.

    Args:
        map: its values are any objects with ``close()``; `socket_map` if not given.
        ignore_all: whether errors of ``close()`` are ignored.
    """
    channels = socket_map if map is None else map
    for channel in copy_of(channels).values():
        try:
            channel.close()
        except _reraised_exceptions:
            raise
        except BaseException as error:
            if not ignore_all and not (isinstance(error, OSError) and error.errno == EBADF):
                raise
    channels.clear()
    _loop.emptied(channels)


# -- files ---------------------------------------------------------------------------------

if os.name == "posix":

    class file_wrapper:  # noqa: N801 - the stdlib's name
        """A duplicate of a descriptor that is not a socket's, with as much of a socket as is needed."""

        __module__ = "asyncore"

        def __init__(self, fd: int) -> None:
            self.fd = os.dup(fd)

        def __del__(self) -> None:
            if self.fd >= 0:
                warnings.warn(f"unclosed file {self!r}", ResourceWarning, source=self, stacklevel=1)
            self.close()

        def recv(self, *args: Any) -> bytes:
            """Read, as os.read() does."""
            return os.read(self.fd, *args)

        def send(self, *args: Any) -> int:
            """Write, as os.write() does."""
            return os.write(self.fd, *args)

        def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> int:
            """Return 0 for the pending error, the only option that a file has."""
            if level == socket.SOL_SOCKET and optname == socket.SO_ERROR and not buflen:
                return 0
            raise NotImplementedError("Only asyncore specific behaviour implemented.")

        read = recv
        write = send

        def close(self) -> None:
            """Close the duplicate. May be repeated."""
            if self.fd < 0:
                return
            fd, self.fd = self.fd, -1
            os.close(fd)

        def fileno(self) -> int:
            """Return the duplicate's number; -1 when closed."""
            return self.fd

    class file_dispatcher(dispatcher):  # noqa: N801 - the stdlib's name
        """
        A channel over a pipe, a terminal or another file.

        Args:
            fd: a descriptor or an object with ``fileno()``; it is duplicated.
            map: see `dispatcher`.
        """

        __module__ = "asyncore"

        def __init__(self, fd: Any, map: dict[Any, Any] | None = None) -> None:  # noqa: A002
            dispatcher.__init__(self, None, map)
            self.connected = True
            with suppress(AttributeError):
                fd = fd.fileno()
            self.set_file(fd)
            os.set_blocking(fd, False)

        def set_file(self, fd: int) -> None:
            """Make a duplicate of *fd* this channel's, and register it."""
            self.socket = file_wrapper(fd)
            self._fileno = self.socket.fileno()
            self.add_channel()
