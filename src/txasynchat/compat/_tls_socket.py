"""
TLS on a connection, in the shape of its socket: an `Engine`, and the I/O. Of channels it knows `touch`.

The handler keeps its ``recv`` and ``send``. What TLS wants of the descriptor is not what the handler
wants: a handshake reads to be able to write, a reply leaves ciphertext that the system did not take.
So a `TLSSocket` says what to wait for (`TLSSocket.interest`), takes the descriptor's events first
(`TLSSocket.advance`, `TLSSocket.flush`), and the channel's handlers are called when there is plain
text for them, or room for theirs.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakKeyDictionary, ref

from txasynchat.compat import _loop
from txasynchat.compat._interest import LayeredSocket
from txasynchat.delivery import Progress, unacknowledged, without_delay
from txasynchat.errors import (
    HandshakeFailed,
    HandshakeTimedOut,
    NoCommonProtocol,
    TruncatedConnection,
    UnknownServerName,
)
from txasynchat.networks import network_of
from txasynchat.tls.engine import LARGEST_WRITE, Engine, OneContext
from txasynchat.tls.pending import EVICTED, HandshakeBudget, Pending, default_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.errors import TLSError

__all__ = ["HANDSHAKE_TIMEOUT", "LastBytes", "TLSSocket", "engine_of"]

#: Seconds that a handshake may take.
HANDSHAKE_TIMEOUT: Final = 10.0
#: Seconds in which the peer must take something of a closed connection's last bytes, close_notify
#: among them.
CLOSE_TIMEOUT: Final = 10.0
#: Bytes of ciphertext read at once.
READ_SIZE: Final = 65_536
#: Bytes of ciphertext left to send above which no more is read: more than `send` ever leaves, so
#: only a peer that has OpenSSL answer (key updates, say) and does not read gets there. With the
#: answers to one more reading it is still less than what the engine fails at.
MOST_UNSENT: Final = 2 * LARGEST_WRITE
#: The seconds of one pass that handshakes may take: whoever has a step to do then stays readable and
#: does it in the next pass, and everybody else is served in between.
handshake_budget: Final = HandshakeBudget(0.02)
# The enumeration's own operators cost as much as a system call.
_PEEK: Final = int(socket.MSG_PEEK)


class TLSSocket(LayeredSocket):
    """
    A connected, or connecting, non-blocking socket with TLS on it.

    Whatever is not here is the plain socket's: addresses, options, ``connect_ex``.

    Args:
        plain: the socket, which belongs to this object from now on.
        context: a `ssl.SSLContext`, or the `ServerOptions` or `ClientOptions` of this package.
        server_side: this side waits for the ClientHello. By default True, unless *server_hostname*,
            a context for clients or options say otherwise.
        server_hostname: the name, or IP address, that the peer's certificate is verified against;
            options have their own.
        handshake_timeout: seconds; None for no limit; options have their own.

    Raises:
        ValueError: the context verifies names (``check_hostname``), and *server_hostname* is missing;
            or an argument contradicts the options.
        TypeError: *context* is something else.

    Attributes:
        server_side: this side waits for the ClientHello.
        secure: the handshake is done.
        is_quiet: it is, and nothing waits to be sent: what the handler waits for is all there is.
        tls: the `ssl.SSLObject`, for the peer's certificate, the version, the cipher, ALPN; None before
            a server's ClientHello is complete.
        truncated: the peer ended the connection without close_notify: what was received may not be
            all that was sent.
        received: what was decrypted, and not yet asked for by `recv`.
        end_waits: `recv` has not yet reported the end.
        has_more: what arrived last filled the buffer, so that there is probably more.
        deadline: by `time.monotonic`, when the handshake must be done, or more of what leaves in plain
            before it be taken; None when there is no limit.
    """

    __slots__ = (
        "__weakref__",
        "_abandoned",
        "_channel",
        "_closed",
        "_connecting",
        "_encrypt",
        "_end",
        "_engine",
        "_evicted",
        "_free",
        "_later",
        "_pending",
        "_place",
        "_plain_socket",
        "_progress",
        "_receive",
        "_recv_plain",
        "_send_plain",
        "_sent_before",
        "_switched",
        "_timeout",
        "_unsent",
        "deadline",
        "end_waits",
        "has_more",
        "is_quiet",
        "received",
    )

    def __init__(
        self,
        plain: socket.socket,
        context: Any,
        *,
        server_side: bool | None = None,
        server_hostname: str | None = None,
        handshake_timeout: float | None = HANDSHAKE_TIMEOUT,
    ) -> None:
        super().__init__()
        engine = self._engine = engine_of(context, server_side, server_hostname)
        self._plain_socket = plain
        self._receive = engine.receive
        self._encrypt = engine.encrypt
        self._recv_plain = plain.recv
        self._send_plain = plain.send
        self.is_quiet = False
        is_plain = isinstance(context, ssl.SSLContext)
        self._timeout = handshake_timeout if is_plain else context.handshake_timeout
        self.deadline: float | None = None
        self.received = b""
        # Encrypted and not sent.
        self._unsent = b""
        self.end_waits = False
        self.has_more = False
        # What `recv` raises at the end, where that is an error.
        self._end: Exception | None = None
        self._closed = self._abandoned = False
        # Whether plain text that goes first has gone; until then, its size, and what the peer took.
        self._switched = False
        self._sent_before = 0
        self._progress: Progress | None = None
        # The plain socket is still connecting.
        self._connecting = False
        # A server's place among the pending handshakes, until its own has finished.
        self._pending = _Place.pending_of(context) if engine.is_server else None
        self._place: _Place | None = None
        self._evicted = False
        # Other threads push, or close, while the loop receives, and OpenSSL bears one at a time: the
        # one that has popped the item.  (A lock costs three to five times as much.)  What cannot be
        # left undone by the others is done by that one.
        self._free = [None]
        self._later: list[Callable[[], Any]] = []
        # The channel that waits for the descriptor, weakly.
        self._channel: ref[Any] | None = None

    def __repr__(self) -> str:
        return (
            f"<TLSSocket {'secure' if self.secure else 'in handshake'} on {self._plain_socket!r}>"
        )

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def server_side(self) -> bool:
        return self._engine.is_server

    @property
    def secure(self) -> bool:
        return self._engine.is_secure

    @property
    def tls(self) -> ssl.SSLObject | None:
        return self._engine.tls

    @property
    def truncated(self) -> bool:
        return isinstance(self._engine.failure, TruncatedConnection)

    # -- what a channel calls

    def recv(self, size: int, flags: int = 0) -> bytes:
        """
        Return up to *size* bytes of plain text; nothing after the end, however it came about.

        Raises:
            BlockingIOError: there is none yet.
            OSError: EBADF, it was closed; ECONNRESET, the peer ended it without close_notify.
            ssl.SSLError: the peer broke TLS. This and the one before are raised once.
        """
        data = self.received
        if data and not flags and len(data) <= size and not self._closed:
            self.received = b""
            return data
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if not data:
            if not (self._engine.ended or self.advance()):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            data = self.received
            if not data:
                return self._tell_end()
        if not flags & _PEEK:
            self.received = data[size:]
        return data[:size]

    def _tell_end(self) -> bytes:
        self.end_waits = False
        end, self._end = self._end, None
        if end is None:
            return b""
        try:
            raise end
        finally:
            # Its traceback has this frame: they would keep each other, and OpenSSL's memory.
            del end

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ARG002 a socket has them
        """
        Encrypt and send as much of *data* as is sensible; return how much that was.

        Raises:
            BlockingIOError: the handshake is not done, the system took no more, or another thread is
                receiving.
            OSError: as of a plain socket.
        """
        free = self._free
        try:
            free.pop()
        except IndexError:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        try:
            if not self.is_quiet:
                self._prepare_to_send()
                if not self._switched:
                    sent = self._plain_socket.send(data)
                    self._sent_before += sent
                    return sent
            if type(data) is not bytes:
                data = memoryview(data)
                data = data.cast("B") if data.nbytes else b""
            encrypt = self._encrypt
            record = encrypt(data)
            if not record:
                return self._explain_no_record(data)
            taken = len(data)
            send = self._send_plain
            try:
                sent = send(record)
            except OSError:  # a loss is told by the next one, or by recv()
                sent = 0
            if sent != len(record):
                self._unsent = record[sent:]
                self._send_the_rest()
            if taken > LARGEST_WRITE:  # min() is a call
                return LARGEST_WRITE
            return taken
        finally:
            free.append(None)
            if self._later:
                self._catch_up()

    def _explain_no_record(self, data: Any) -> int:
        engine = self._engine
        if not len(data):
            return 0
        if engine.failure is not None:
            raise _error_of(engine.failure)
        if not engine.can_write:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))  # a peer that renegotiates

    def _send_the_rest(self) -> None:
        """
        Send what is encrypted; whoever waits for the descriptor is told when the system leaves some.

        Raises:
            OSError: the connection is lost.
        """
        if not self.flush():
            channel = None if self._channel is None else self._channel()
            if channel is not None:
                _loop.touch(channel)

    def _prepare_to_send(self) -> None:
        """See to whatever is in the way of `send`."""
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._switched and (
            (self._unsent and not self.flush()) or not (self.secure or self._shake_hands())
        ):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def pending(self) -> int:
        """Count what `recv` has to say and no poller knows of: decrypted bytes, and one for the end."""
        return len(self.received) + self.end_waits

    def close(self) -> None:
        """
        Send close_notify, if that is possible at once, and close. Harmless when repeated.

        What the system does not take now is kept for `leave`.
        """
        if self._closed:
            return
        self._closed = True
        self.is_quiet = False
        self._leave_pending()
        self._end = None  # its traceback refers to this
        self._when_free(self._finish)

    def abandon(self) -> None:
        """Let `close` reset the connection: nothing more is sent, close_notify neither."""
        self._abandoned = True
        with suppress(OSError):
            reset = struct.pack("ii", 1, 0)
            self._plain_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)

    def _finish(self) -> None:
        if self._abandoned:
            self._unsent = b""
        else:
            self._say_goodbye()
        if not self._unsent:
            self._plain_socket.close()

    def shutdown(self, how: int) -> None:
        """Send close_notify unless only the reading side is closed; then as a plain socket."""
        self._when_free(lambda: self._shut_down(how))

    def _shut_down(self, how: int) -> None:
        if how != socket.SHUT_RD:
            self._say_goodbye()
        if how != socket.SHUT_WR:
            self._plain_socket.shutdown(how)

    def fileno(self) -> int:
        """Return the plain socket's descriptor."""
        return self._plain_socket.fileno()

    # -- what the loop calls: see `LayeredSocket`

    def belong_to(self, channel: Any) -> None:
        """
        Let *channel* be touched when what it does not wait for yet has to wait for the descriptor.
        """
        self._channel = ref(channel)

    def interest(self, readable: Any, writable: Any) -> tuple[Any, Any]:
        """Turn what the handler waits for into what its descriptor has to be watched for."""
        if not self._switched:
            return False, writable
        if not self.secure:
            handshake_budget.renew()  # channels are asked between passes
            return not self._connecting, self._connecting or bool(self._unsent)
        if len(self._unsent) > MOST_UNSENT:
            readable = False
        return readable, writable or self._unsent

    def advance(self) -> bool:
        """
        Take what arrived; return whether `recv` has something to say: plain text, or the end.

        Raises:
            ssl.SSLError: the handshake failed, the peer's certificate was not accepted.
            HandshakeTimedOut: it took too long.
            HandshakeFailed: it was evicted, because too many handshakes were unfinished; or options
                refuse the client's name, or the peer's protocols.
            OSError: the connection was lost during the handshake.
        """
        free = self._free
        try:
            free.pop()
        except IndexError:
            return False  # another thread is sending; the descriptor stays readable
        try:
            engine = self._engine
            if self.received or engine.ended:
                return not self._closed
            if not (self.is_quiet or self._may_advance()):
                return False
            # Into a name first, here and below: a call of an instance's attribute is not a method's.
            recv = self._recv_plain
            try:
                data = recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                data = None
            except OSError as error:
                self._lose(error.with_traceback(None))
                if engine.is_secure:
                    return True
                raise
            if data and engine.is_secure:
                receive = self._receive
                self.received = receive(data)
                if len(data) == READ_SIZE or self.has_more:
                    self.has_more = len(data) == READ_SIZE
            elif not self._advance_unusual(data):
                return False
            if self._engine.ended:
                self._note_end()
            if engine.owes or self._unsent:
                with suppress(OSError):  # what was received is delivered before the loss is told
                    self.flush()
            return True if self.received else engine.ended
        finally:
            free.append(None)
            if self._later:
                self._catch_up()

    def _advance_unusual(self, data: bytes | None) -> bool:
        """
        Go on with the handshake, or take the end of the stream; return whether the handshake is done.
        """
        engine = self._engine
        if data:
            engine.feed(data)
        elif data is not None:
            engine.end_of_stream()
        if not engine.is_secure:
            self._check_handshake()
            self._shake_hands()
            if self.secure:
                self.received = engine.receive(b"")
        return self.secure

    def _may_advance(self) -> bool:
        """Return whether what arrived is for TLS, and it is time for that."""
        if self._closed or self._connecting:
            return False
        if not self.secure and self._evicted:
            self._give_up()
            raise HandshakeFailed(EVICTED)
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self._expire()
        if self._switched and not self.secure and handshake_budget.is_spent():
            self._start_clock()  # it is us who are late
            return False
        return self._switched

    def flush(self) -> bool:
        """
        Send ciphertext that waits; return whether none is left, so that plain text has its turn.

        Raises:
            OSError: the connection is lost, and with it what waited.
        """
        data = self._unsent
        if self._engine.owes:
            data += self._engine.take(len(data))
        if data:
            try:
                sent = self._plain_socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._unsent = b""
                raise
            self._unsent = data[sent:]
        self.is_quiet = self.secure and not self._unsent and not self._closed
        return not self._unsent

    def hang_up(self) -> bool:
        """
        The connection is gone in both directions, with what was not received; return whether this was
        closed already.
        """
        self._engine.end_of_stream("it was reset")
        return self._closed

    def ready_to_write(self) -> bool:
        """Return whether it is news for the handler that the descriptor is writable."""
        if not self._switched:
            return True
        try:
            self._free.pop()
        except IndexError:
            return False  # another thread is sending; the descriptor stays writable
        try:
            with suppress(OSError):  # a loss is told by send(), or else by recv()
                self.flush()
            return not self._unsent and (self.secure or self._shake_hands())
        finally:
            self._free.append(None)
            if self._later:
                self._catch_up()

    def is_secure_now(self) -> bool:
        """Return whether the handshake is done, when the plain socket is connected."""
        if self._connecting:
            self._connecting = False
            self._start_clock()
        if not self.secure:
            self.advance()
        return self.secure

    def begin(self, *, connecting: bool = False) -> None:
        """
        Plain text that goes first has gone: TLS begins now, or when the plain socket is connected.
        """
        if self._switched:
            return
        self._switched = True
        self._connecting = connecting
        if not connecting:
            self._start_clock()
        if self._pending is not None:
            self._place = _Place(self, self._plain_socket, self._pending)

    def begin_later(self) -> None:
        """Something has to leave in plain first, and the peer to take it: `begin` follows."""
        self._made_progress()
        self._start_clock()

    def has_begun(self) -> bool:
        """
        Return whether the handshake may go on: nothing leaves in plain, and the connection stands.
        """
        return self._switched and not self._connecting

    def feed(self, data: bytes) -> None:
        """Take what arrived already for ciphertext."""
        self._engine.feed(data)

    def evict(self) -> None:
        """End the connection to make room for others; `advance` raises the reason."""
        self._evicted = True
        with suppress(OSError):
            self._plain_socket.shutdown(socket.SHUT_RDWR)

    def _expire(self) -> None:
        """
        Go on waiting if TLS has not begun, and the peer takes what has to leave before it.

        Raises:
            HandshakeTimedOut: the time for it is over.
        """
        if not self._switched and self._made_progress():
            self._start_clock()
            return
        self._give_up()
        raise HandshakeTimedOut(self._timeout or 0.0)

    def _made_progress(self) -> bool:
        """Return whether the peer has taken something of what leaves before TLS since the last call."""
        if self._progress is None:
            self._progress = Progress()
        return self._progress.made(self._sent_before, *_outstanding(self._plain_socket))

    def _start_clock(self) -> None:
        if self._timeout is not None:
            self.deadline = time.monotonic() + self._timeout

    def leave(self, see_out: Callable[[LastBytes], object]) -> None:
        """After `close`: if there are last bytes, call *see_out* with them."""
        self._when_free(lambda: self._leave(see_out))

    def _leave(self, see_out: Callable[[LastBytes], object]) -> None:
        if self._closed and self._unsent:
            see_out(LastBytes(self._plain_socket, self._unsent))
            self._unsent = b""

    def shake_hands(self) -> None:
        """
        Begin the handshake, and go on with what came already.

        Raises:
            ssl.SSLError: it failed.
        """
        self._when_free(self._shake_hands)

    # -- internals

    def _when_free(self, call: Callable[[], Any]) -> None:
        """Call *call* now, or have the thread do it that sends or receives at this moment."""
        self._later.append(call)
        self._catch_up()

    def _catch_up(self) -> None:
        while self._later:
            try:
                self._free.pop()
            except IndexError:
                return  # whoever has it looks here afterwards
            try:
                if self._later:
                    self._later.pop(0)()
            finally:
                self._free.append(None)

    def _shake_hands(self) -> bool:
        """Go on with the handshake; return whether plain text has its turn."""
        engine = self._engine
        if engine.ended:
            return False
        handshake_budget.run(engine.shake_hands)
        self._check_handshake()
        if engine.is_secure:
            without_delay(self._plain_socket)
            self._leave_pending()
        elif self._place is not None and engine.owes:
            self._place.progressed()
        try:
            flushed = self.flush()
        except OSError:
            if not engine.is_secure:
                self._give_up()
                raise
            return False  # there may be something to receive before that is told
        return flushed and engine.is_secure

    def _check_handshake(self) -> None:
        """Raise what went wrong, if anything did."""
        failure = self._engine.failure
        if failure is not None:
            with suppress(OSError):
                self.flush()  # the alert that says why
            self._give_up()
            raise _error_of(failure)

    def _note_end(self) -> None:
        """The peer ended, broke off, or broke TLS; `recv` says so when all before it was received."""
        self.end_waits = True
        failure = self._engine.failure
        if failure is not None and self._end is None:
            self._end = _error_of(failure)

    def _lose(self, error: OSError) -> None:
        """
        The connection is lost. During the handshake the caller raises that, and only the end waits.
        """
        if self.secure:
            self._end = error
        self._give_up()

    def _give_up(self) -> None:
        """Expect nothing more; a handler that does not close is told of the end, as of any other."""
        self._engine.end_of_stream()
        self.end_waits = True
        self._leave_pending()

    def _leave_pending(self) -> None:
        self.deadline = None
        if self._place is not None:
            self._place.release()
            self._place = None

    def _say_goodbye(self) -> None:
        self._engine.close()
        try:
            self.flush()
        except OSError:
            self._unsent = b""


def _of_plain_socket(name: str) -> property:
    return property(lambda self: getattr(self._plain_socket, name))


# Of a `ProxiedSocket`, like the addresses.
TLSSocket.proxied = property(lambda self: getattr(self._plain_socket, "proxied", None))  # type: ignore[attr-defined] # as those below
# Not by __getattr__: CPython then takes the long way to every attribute of the class.
for _name in set(dir(socket.socket)).difference(dir(TLSSocket)):
    if not _name.startswith("_"):
        setattr(TLSSocket, _name, _of_plain_socket(_name))


def engine_of(
    context: Any, server_side: bool | None = None, server_hostname: str | None = None
) -> Engine:
    """Make the engine for a `ssl.SSLContext`, or for options: see `TLSSocket`."""
    if not isinstance(context, ssl.SSLContext):
        make = getattr(context, "engine", None)
        if make is None:
            raise TypeError(
                f"neither a ssl.SSLContext nor ServerOptions or ClientOptions: {context!r}"
            )
        engine: Engine = make()
        if server_side not in (None, engine.is_server) or server_hostname is not None:
            raise ValueError(
                "server_side and server_hostname follow from the options:"
                f" {server_side!r}, {server_hostname!r}, {context!r}"
            )
        return engine
    if server_side is None:
        is_client = context.protocol == ssl.PROTOCOL_TLS_CLIENT or context.check_hostname
        server_side = not is_client and server_hostname is None
    if server_side:
        return Engine.server(OneContext(context))
    if context.check_hostname and not server_hostname:
        # Some patch releases of Python would accept any name.
        raise ValueError(
            f"server_hostname is {server_hostname!r}, and the context verifies it: pass"
            " server_hostname= (the name in the server's certificate), or set"
            " context.check_hostname = False to accept any name"
        )
    return Engine.client(context, server_hostname)


def _error_of(failure: TLSError) -> Exception:
    """
    Return what a handler of the standard library expects for a failure of the engine.

    That is OpenSSL's own error, if there is one, with the failure as its ``__cause__``; otherwise one
    with the failure's words.
    """
    found = failure.__cause__
    error: Exception
    if isinstance(found, Exception):
        failure.__cause__ = None  # they would keep each other
        error = found
    elif isinstance(failure, TruncatedConnection):
        error = ConnectionResetError(errno.ECONNRESET, str(failure))
    elif isinstance(failure, NoCommonProtocol | UnknownServerName):
        return failure
    else:
        error = ssl.SSLError(str(failure))
    error.__cause__ = failure
    return error


class _Place:
    """
    A socket's place in `Pending`. It refers to the socket weakly, because programs drop sockets
    without closing them.
    """

    __slots__ = ("_pending", "_sock")

    #: A server is told from others by its context.
    _all: ClassVar[WeakKeyDictionary[ssl.SSLContext, Pending]] = WeakKeyDictionary()

    def __init__(self, sock: TLSSocket, plain: socket.socket, pending: Pending) -> None:
        self._pending = pending
        self._sock: ref[TLSSocket] | None = ref(sock, self.release)
        try:
            address = plain.getpeername()
        except OSError:
            address = None
        pending.add(self, network_of(address))

    @classmethod
    def pending_of(cls, context: Any) -> Pending:
        """Return what counts a server's unfinished handshakes: options have that, and share it."""
        if not isinstance(context, ssl.SSLContext):
            shared: Pending = context.limit.pending
            return shared
        pending = cls._all.get(context)
        if pending is None:
            pending = cls._all.setdefault(context, Pending(default_limit()))
        return pending

    def progressed(self) -> None:
        """The client's message was answered."""
        self._pending.progressed(self)

    def release(self, _: object = None) -> None:
        """The handshake has finished or failed, or the socket is gone."""
        self._sock = None  # whose callback refers to this
        self._pending.discard(self)

    def evict(self) -> None:
        """Called by `Pending`."""
        sock = None if self._sock is None else self._sock()
        if sock is not None:
            sock.evict()


def _outstanding(plain: Any) -> tuple[int | None, ...]:
    """
    Count what is on its way to the peer, in a transport that is worn as a socket, and in the system.
    """
    worn = getattr(plain, "outstanding", None)
    return (unacknowledged(plain),) if worn is None else worn()


class LastBytes:
    """
    The last bytes of a closed connection, close_notify among them.

    Attributes:
        sock: the plain socket, which is whoever's has these.
        until: by `time.monotonic`, when the peer must have taken more of them.
    """

    __slots__ = ("_progress", "_unsent", "sock", "until")

    def __init__(self, sock: socket.socket, unsent: bytes) -> None:
        self.sock = sock
        self._unsent = unsent
        self._progress = Progress()
        self.go_on()

    def go_on(self) -> bool:
        """
        Allow more time if the peer has taken something since the last call; return whether it has.
        """
        if not self._progress.made(len(self._unsent), *_outstanding(self.sock)):
            return False
        self.until = time.monotonic() + CLOSE_TIMEOUT
        return True

    def send(self) -> bool:
        """Send what the system takes; return whether nothing is left to do."""
        try:
            sent = self.sock.send(self._unsent)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self._unsent = self._unsent[sent:]
        return not self._unsent
