"""
`AsyncChat`: messages in, a queue of bytes and producers out, on any Twisted transport.

Theory of operation
===================

*Input.* ``dataReceived`` gives the chunk to a `Framer`, which calls the handlers. Delivery never nests:
what arrives while handlers run waits in an `Inbox`, which also knows what holds delivery.

*Output.* `push` appends to an `Outbox`. What was pushed while one chunk was handled is written when the
handlers are done, as one write.

*Closing.* One method changes the `State`. CLOSING takes nothing new, sends what is queued, and then
closes the transport; see `txasynchat.protocol.closing`. The application, a mixin or a policy may call
``loseConnection`` or ``loseWriteConnection`` of the transport. The transport asks us first
(`endings.let_protocol_end`), so what is queued is sent before the end, in limited time. What others
write to the transport goes behind what is queued in the same way.

Handlers may push, pause, close or fail at any moment, and so may producers that are asked meanwhile.
Each of these only notes that something changed; `_settle` acts on it, until nothing changes any more.
"""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
)
from twisted.internet.protocol import Protocol, connectionDone
from typing_extensions import override
from zope.interface import implementer

from txasynchat import endings, ranges, transports
from txasynchat.errors import (
    ConnectionReset,
    MessageTooLong,
    PeerError,
    ProducerError,
    StoppedByServer,
    UnsentLimitExceeded,
)
from txasynchat.framing import Overflow
from txasynchat.handlers import check_threads
from txasynchat.protocol import closing, reports, settings
from txasynchat.protocol.inbox import Inbox
from txasynchat.protocol.outbox import HalfClose, Outbox, Phase
from txasynchat.protocol.sending import Sending
from txasynchat.protocol.starttls import Upgrade, is_for_client
from txasynchat.tls.factory import adopt
from txasynchat.tls.info import TLSInfo
from txasynchat.tls.leftovers import Leftovers

if TYPE_CHECKING:
    from typing import Self

    from twisted.python.failure import Failure

    from txasynchat.errors import ChatError
    from txasynchat.framing import Framer
    from txasynchat.terminators import Terminator

__all__ = ["AsyncChat", "State"]


class State(enum.Enum):
    """
    Where a connection is in its life; it only ever moves down this list.
    """

    #: Not connected yet, or the TLS handshake is going on. What is pushed waits.
    CONNECTING = "connecting"
    #: Both directions work.
    OPEN = "open"
    #: `AsyncChat.close` or `AsyncChat.close_when_done` was called, the peer finished, or a handler
    #: failed: what is queued is sent, and what is pushed from now on is dropped.
    CLOSING = "closing"
    #: The connection is gone.
    CLOSED = "closed"


# A module global is read about 10x faster than an enum member in 3.11.
_CONNECTING = State.CONNECTING
_OPEN = State.OPEN
_CLOSING = State.CLOSING
_CLOSED = State.CLOSED
_READY = Phase.READY
_DEPARTED = Phase.DEPARTED


@implementer(IPushProducer, IConsumer, IHalfCloseableProtocol, IHandshakeListener)
class AsyncChat(Sending, Protocol):
    """
    A connection that speaks in messages: ``asynchat.async_chat`` as a Twisted protocol.

    Override either `message_received`, or `collect_incoming_data` and `found_terminator`; and set a
    terminator, as the class attribute or by `set_terminator` in `handle_connect` or ``__init__``.
    A subclass need not call ``__init__`` of this class, and is free to define ``connectionMade``; one
    that overrides ``connectionLost`` calls ``super()``.

    All methods belong to the reactor's thread; other threads use ``reactor.callFromThread``. Under
    ``python -X dev`` the methods that an application calls raise `RuntimeError` in any other thread.

    Stdlib: asynchat.async_chat (3.11 library reference), whose names and order of calls these are.
    Deliberate differences: `max_message_length`; `set_terminator` checks its argument; `pause` takes
    effect before the next message; nothing is delivered after `close`.
    """

    # -- state that an application may read

    transport: Any = None
    #: Why the connection did not end in order: what the peer did, what happened to it, or
    #: `StoppedByServer`. None if it ended in order, if this side ended it (by `abort`, or because a
    #: handler raised), or if it has not ended. `handle_close` may read it; `handle_end` is given it.
    close_reason: ChatError | None = None

    # What may be set and overridden is in `txasynchat.protocol.hooks`; what takes output is in
    # `txasynchat.protocol.sending`.

    #: `get_terminator` is overridden, and is asked.
    _asks: ClassVar[bool] = False
    #: handle_secure is overridden.
    _hears_of_tls: ClassVar[bool] = False
    # `__new__` sets all of these at once, and the class has no attribute of the same name. CPython
    # keeps up to thirty attributes in the instance itself, if the first instances of a class have them.
    # Otherwise each connection has a dict, and reading any attribute takes longer.
    _state: State
    _framer: Framer
    _inbox: Inbox
    _outbox: Outbox
    #: Handlers are running. They note here what has to be looked at when they have run: something
    #: changed (_unsettled), or delivery may go on (_redeliver).
    _delivering: bool
    _unsettled: bool
    _redeliver: bool
    #: Each chunk is settled: `get_terminator` is overridden, or the connection closes when it is idle.
    _settles: bool
    _close_when_idle: bool
    #: `close` or `abort` was called.
    _close_requested: bool
    #: From `start_tls` until its handshake is over.
    _upgrade: Upgrade | None
    #: Once the connection is closing.
    _closing: closing.Closing | None

    def __new__(cls, *_arguments: Any, **_named: Any) -> Self:
        """
        Set the state up, so that subclasses need not call this class's ``__init__``.
        """
        begins_with = (cls.terminator, cls.max_message_length, cls.overflow)
        if cls.__dict__.get("_begins_with") != begins_with:
            cls._set_up()
        chat = super().__new__(cls)
        chat._state = _CONNECTING
        chat._framer = cls._make_framer()
        chat._inbox = Inbox(chat._framer)
        chat._outbox = Outbox()
        chat._delivering = chat._unsettled = chat._redeliver = False
        chat._settles = cls._asks
        chat._close_when_idle = chat._close_requested = False
        chat._upgrade = chat._closing = chat._incoming = None
        return chat

    def __init_subclass__(cls, **arguments: Any) -> None:
        """
        Check ``terminator = …`` in a class body: the terminator that a connection begins with.

        Raises:
            TypeError, ValueError: it is not a terminator, or is a number above `max_message_length`;
                or a setting is out of its range.
        """
        super().__init_subclass__(**arguments)
        ranges.check_class(cls, ranges.HANDLER)
        cls._asks = cls.get_terminator is not AsyncChat.get_terminator
        cls._hears_of_tls = cls.handle_secure is not AsyncChat.handle_secure
        settings.check_terminator_of(cls)

    @classmethod
    def _set_up(cls) -> None:
        """
        Prepare the class for its first connection, when decorators such as ``dataclass`` are done.

        Called again when a setting was assigned to the class later.
        """
        if settings.restore(cls, AsyncChat, ("terminator", "max_message_length", "overflow")):
            cls._computes = True
        if "_begins_with" not in cls.__dict__:
            reports.unawaited_hooks(cls._log, cls)
        cls._begins_with = (cls.terminator, cls.max_message_length, cls.overflow)

    # -- IProtocol: called by the transport

    @override
    def makeConnection(self, transport: Any) -> None:
        """
        Set up, call ``connectionMade``, and open the connection: at once, or after a TLS handshake.

        All of it happens here, so that a subclass need not call ``super().connectionMade()``.

        Raises:
            RuntimeError: this object has, or had, another connection; the new one is aborted.
        """
        if self.transport is not None:
            error = RuntimeError(
                f"{self!r} is used for a second connection; a factory makes a new protocol for each"
            )
            transports.turn_away(transport, self, error)
            raise error
        adopt(transport)
        endings.let_protocol_end(transport)
        self._outbox.connect(transport)
        transports.tell_of_half_close(transport, self)
        try:
            super().makeConnection(transport)  # type: ignore[no-untyped-call] # Twisted's, untyped
            ranges.check_owner(self, ranges.HANDLER, AsyncChat)
            if self._computes:
                self._framer.limit = self.max_message_length
                self._framer.overflow = self.overflow
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
        if self._outbox.phase is _DEPARTED:
            transports.abort(transport)  # abort() was called before there was anything to abort
        elif transports.when_secure(transport, self):
            self._open_if_introduced()
        elif self._state is _CLOSING:
            self._leave()

    @override
    def dataReceived(self, data: bytes) -> None:
        """
        Deliver the messages in *data*, then write what they made the handlers push.

        A fast path for when nothing is held: a line of 64 bytes and its answer, one at a time on 50
        connections, cost a server 10.9 microseconds with it and 13.1 without (CPython 3.11).
        """
        framer = self._framer
        if framer.paused or self._delivering or self._settles:
            self._receive_otherwise(data)
            return
        self._delivering = True
        try:
            try:
                framer.receive(self, data)
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                self._failed()
            outbox = self._outbox
            if self._unsettled or (outbox.size and not outbox.send_reply(self.transport)):
                self._settle()
        finally:
            self._delivering = False

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Stop the queued producers; call `handle_close`, unless the application closed, and `handle_end`.

        A subclass that overrides this calls ``super()``.
        """
        if self._state is _CLOSED:
            return
        self._set_state(_CLOSED)
        error = reason.value
        if isinstance(error, PeerError):
            self._report(error)
        elif self.close_reason is None and closing.broke_off(error, self.transport, self._outbox):
            self.close_reason = ConnectionReset()
        self._outbox.phase = _DEPARTED
        self._outbox.registered = False
        self._framer.close()
        self._drop_output()
        for ending in (self._closing, self._upgrade):
            if ending is not None:
                ending.cancel()
        self._closing = self._upgrade = None
        try:
            if not self._close_requested:
                self._call(self.handle_close)
        finally:
            self._call(self.handle_end, self.close_reason)

    # -- IHalfCloseableProtocol, IHandshakeListener: called by the transport

    def readConnectionLost(self) -> None:  # noqa: N802
        """
        The peer will send no more: deliver what it sent, send what is queued, then close.

        Bytes behind the last terminator are not a message, and are dropped. An application that cannot
        answer yet when `found_terminator` is called pauses delivery until it can.
        """
        self._inbox.peer_finished = True
        if self._closing is not None:
            self._closing.peer_finished()
        self.close_when_idle()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """
        Nothing more can be sent: the connection ends, unless this side ended the sending.

        What has arrived is delivered first. A process may close its input because it needs none; that
        connection ends when there is something to send.
        """
        # So the next attempt to send finds out; a request to close is not one.
        self._outbox.full = False
        if not closing.sending_was_ended(self.transport, self._outbox) and not (
            self._state is _OPEN and not self._outbox and transports.waits_for_exit(self.transport)
        ):
            self._cannot_send()

    def handshakeCompleted(self) -> None:  # noqa: N802
        """
        The TLS handshake is done: the connection opens, or goes on after `start_tls`.
        """
        self._upgrade = None
        if self._outbox.phase is Phase.WAITING:
            self._open_if_introduced()

    # -- asynchat: called by the application

    def set_terminator(self, term: Terminator) -> None:
        """
        Choose where the current message ends; holds for bytes not yet delivered.

        May be called at any time, and from inside any handler. A number above `max_message_length`, as
        a peer may have announced, is a message that is too long: `message_too_long` is called without
        waiting for a byte of it. It is called here or, from inside a handler, when that has returned.

        Args:
            term: bytes to match literally; a positive number of bytes; ``None``, ``b""`` or ``0`` to
                collect without end; a tuple of bytes, of which the match that ends first counts, and
                the longest of those that end together; or a `LengthPrefix`.

        Raises:
            ValueError: *term* is a negative number.
            TypeError: *term* is text, a bool, or of any other type.

        Stdlib: asynchat.async_chat.set_terminator, which fails later, while reading.
        """
        if self._framer.set_terminator(term) and self._outbox.phase is _READY:
            self._go_on()

    #: The terminator in force; in a class body, or as a field of a dataclass, the one that a connection
    #: begins with. Assigning it is `set_terminator`, reading it `get_terminator`.
    terminator: Any = settings.setting(None, "terminator", assign=set_terminator)

    def get_terminator(self) -> Any:
        """
        Return the terminator; a number of bytes counts down, and is 0 at the end of its message.

        A subclass may override this; it is then asked on each round, as in ``asynchat``.
        """
        return self._framer.terminator

    @settings.shown
    def matched_terminator(self) -> bytes | None:
        """
        The delimiter that ended the latest message; None where its length did.
        """
        return self._framer.matched

    def close_when_done(self) -> None:
        """
        Close when everything queued so far is sent; what is pushed from now on is dropped.

        Messages are delivered until then, as in ``asynchat``. `handle_close` is called at the end.
        """
        if self._state is _CLOSING or self._state is _CLOSED:
            return
        if self._delivering and self._inbox.undelivered:
            # The peer did not wait for the answer, so more may come when the connection is closed.
            self._inbox.overran = True
        self._set_state(_CLOSING)
        self._unchoke()
        self._pushed()
        if not self._delivering:
            self._leave()

    def close_when_idle(self) -> None:
        """
        `close_when_done`, as soon as no message is half received and delivery is not paused.

        So a message that has begun is still answered, and so is one whose handler paused delivery
        until its answer is there.
        """
        self._close_when_idle = self._settles = True
        if not self._delivering and self._inbox.idle:
            self.close_when_done()

    def handle_shutdown(self) -> None:
        """
        The server is stopping, so finish; see `Server`. Called once, however long that takes.

        By default `close_when_idle`. A handler that works between messages (a transaction, an answer
        that comes later) should finish that, and then close.
        """
        if self._state is _CONNECTING:
            self.abort()
        else:
            self.close_when_idle()

    def close(self) -> None:
        """
        Deliver nothing more, send what is queued, and close; `handle_close` is not called.

        Harmless when repeated.
        """
        self._close_requested = True
        self._close()

    def abort(self) -> None:
        """
        Close now; what is queued is lost, and `handle_close` is not called.
        """
        self._close_requested = True
        self._abort()

    def start_tls(self, options: Any, *, leftovers: Leftovers = Leftovers.REJECT) -> None:
        """
        Speak TLS from here on, as server or as client, in mid-connection.

        What was pushed before, producers included, is sent in the clear; what is pushed afterwards
        waits for the handshake. Nothing more is delivered until `handle_secure` has been called. If the
        connection is closing, nothing happens.

        Args:
            options: a `ServerOptions`, a `ClientOptions`, or one of Twisted's connection creators.
            leftovers: what becomes of bytes behind the message that made the application call this,
                and of bytes that arrive before the transport has the last of the plaintext.

        Raises:
            RuntimeError: there is TLS already, or its handshake is going on; the connection is not
                open yet; or TLS cannot be put on a transport of its kind.
            TypeError: *options* is none of those above.
            ValueError: *leftovers* is not a `Leftovers`.
        """
        is_client = is_for_client(options)
        if self._outbox.closing:
            return
        if self._upgrade is not None:
            raise RuntimeError("TLS was already started")
        upgrade = Upgrade(
            self,
            self._inbox,
            self._outbox,
            options,
            leftovers,
            is_client=is_client,
            abort=self._abort,
            forget_input=self._forget_input,
        )
        if upgrade.begin():
            self._upgrade = upgrade
            self._go_on()

    def discard_buffers(self) -> None:
        """
        Drop what was received and is not delivered, and what is queued; stop the producers.

        Stdlib: asynchat.async_chat.discard_buffers.
        """
        self._forget_input()
        self._drop_output(hold_back=self._upgrade is not None and self._upgrade.waits)
        if self._state is not _CLOSED:
            self._pushed()

    def pause(self) -> None:
        """
        Deliver nothing from the next message on, and stop reading; harmless when repeated.

        Bytes that were already read wait, and so do those that TLS has decrypted.
        """
        self._inbox.paused = True
        self._hold()

    def resume(self) -> None:
        """
        Deliver and read again: at once, or, from inside a handler, when it returns.
        """
        if self._inbox.paused:
            self._inbox.paused = False
            self._release()

    @settings.shown
    def state(self) -> State:
        """
        Where the connection is in its life.
        """
        return self._state

    @settings.shown
    def paused(self) -> bool:
        """
        The application paused delivery.
        """
        return self._inbox.paused

    @settings.shown
    def tls(self) -> TLSInfo | None:
        """
        What was agreed on in the TLS handshake; None before, and without TLS.
        """
        return TLSInfo.of(self.transport)

    @settings.shown
    def addr(self) -> Any:
        """
        The peer's address as the `socket` module would give it, ``(host, port)`` or a path.

        None before there is a connection, and where there are no addresses, as with a process.
        """
        return None if self.transport is None else transports.peer_address(self.transport)

    # -- internals: state

    def _set_state(self, state: State) -> None:
        self._state = state
        if state is not _OPEN:
            self._outbox.close_when_done()
        if state is _CLOSED:
            self.connected = False

    def _open_if_introduced(self) -> None:
        """
        Open the connection as soon as `addr` is the peer's and not a proxy's.
        """
        if transports.when_introduced(self.transport, self._open):
            self._open()
        elif self._outbox.closing:
            self._leave()

    def _open(self) -> None:
        self._outbox.open(self)
        first = self._state is _CONNECTING
        if first:
            self._set_state(_OPEN)
        self._delivering = self._redeliver = True
        try:
            if not self._framer.closed:
                if first:
                    self._inbox.open()
                if self._hears_of_tls and (info := TLSInfo.of(self.transport)) is not None:
                    self._call(self.handle_secure, info)
                if first and self._state is _OPEN:
                    self._call(self.handle_connect)
                    if self._framer.whole and not self._framer.terminator and not self._asks:
                        reports.no_terminator(self._log, self)
            self._settle()
        finally:
            self._delivering = False

    def _close(self) -> None:
        """
        Deliver nothing more, send what is queued, and close.
        """
        if self._state is _CLOSED:
            return
        self._inbox.discard()
        self.close_when_done()
        if not self._delivering:
            self._set_reading()

    def _abort(self, error: PeerError | None = None) -> None:
        """
        Close now, because of *error* where there is one; the transport calls ``connectionLost``.
        """
        if error is not None:
            self._report(error)
        if self._state is _CLOSED:
            return
        self._inbox.discard()
        self._set_state(_CLOSING)
        self._outbox.phase = _DEPARTED
        self._drop_output()
        if self.transport is not None:
            transports.abort(self.transport)

    def _call(self, handler: Any, *arguments: Any) -> None:
        """
        Call a handler of the application; an exception ends this connection only.
        """
        try:
            result = handler(*arguments)
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
        else:
            if result is not None:
                self.hook_returned(result)

    def _failed(self) -> None:
        """
        Log the exception that is being handled, ask `handle_error`, and close.
        """
        reports.handler_raised(self._log, self)
        if isinstance(sys.exc_info()[1], ProducerError):
            # What is queued behind it would follow a piece that is cut off.
            self._drop_output()
        try:
            self.handle_error()
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            reports.handler_raised(self._log, self, "{peer}: {handler}.handle_error raised")
        self._close()

    def _report(self, error: PeerError) -> None:
        """
        Log a peer's mistake, and remember it if it ends the connection.
        """
        if not isinstance(error, MessageTooLong) or self.overflow is Overflow.CLOSE:
            self.close_reason = error
        reports.peer_erred(self._log, self, error)

    # -- internals: input

    def overflowed(self, error: MessageTooLong) -> None:
        """
        Called by the framer when a message broke its limit; `message_too_long` is the hook.
        """
        self._report(error)
        self._inbox.discarded |= self.overflow is Overflow.CLOSE
        self.message_too_long(error)
        if self.overflow is Overflow.CLOSE:  # which the hook may have changed
            self._inbox.discarded = True
            self.close_reason = error
            self._close()
        elif self.close_reason is error:
            self._inbox.discarded = False
            self.close_reason = None

    def _receive_otherwise(self, data: bytes) -> None:
        """
        Take bytes when the fast path of ``dataReceived`` does not apply.
        """
        if self._inbox.shut and self._state is not _CONNECTING:
            self._inbox.discarded = True
        elif self._delivering:
            self._inbox.keep(data)
            self._unsettled = True
        else:
            self._framer.feed(data)
            if self._outbox.phase is _READY:
                self._go_on()

    def _go_on(self) -> None:
        """
        Deliver what waits, as far as that is allowed, and settle what follows from it.
        """
        self._redeliver = True
        if self._delivering:
            self._unsettled = True
            return
        self._delivering = True
        try:
            self._settle()
        finally:
            self._delivering = False

    def _settle(self) -> None:
        """
        The handlers have run: write what they pushed, deliver what arrived meanwhile, set reading.

        This may call handlers again, so it repeats until nothing changes.
        """
        inbox = self._inbox
        self._unsettled = True
        while self._unsettled:
            self._unsettled = False
            if inbox.kept is not None:
                inbox.feed_kept()
                self._redeliver = True
            if self._redeliver:
                self._redeliver = False
                try:
                    self._framer.deliver(self, self.get_terminator if self._asks else None)
                except Exception:  # noqa: BLE001 it is the application's, and is logged
                    self._failed()
            if self._outbox or self._state is _CLOSING:
                self._flush()
            if self._upgrade is not None:
                self._upgrade.proceed()
            if self._framer.paused or not inbox.reading:
                self._set_reading()
            if self._close_when_idle and self._state is _OPEN and inbox.idle:
                self.close_when_done()

    def _hold(self) -> None:
        self._framer.pause()
        if self._delivering:
            self._unsettled = True
        else:
            self._set_reading()

    def _release(self) -> None:
        if self._inbox.release():
            self._go_on()

    def _unchoke(self) -> None:
        """
        What waits to be sent is not a reason to hold delivery any more.
        """
        if self._inbox.choked:
            self._inbox.choked = False
            self._release()

    def _set_reading(self) -> None:
        if self._outbox.phase is _READY:
            self._inbox.set_reading(self.transport)

    def _forget_input(self) -> None:
        self._inbox.clear()
        self._incoming = None

    # -- internals: output

    def _drop_output(self, *, hold_back: bool = False) -> None:
        """
        Forget what is queued, and stop the producers; see `Outbox.stop`.
        """
        errors = self._outbox.stop(hold_back=hold_back)
        if errors:
            reports.stopped_producers_raised(self._log, self, errors)

    def _pushed(self) -> None:
        """
        Something was queued: write it, unless handlers are running and it is less than a piece.
        """
        if not self._delivering or self._outbox.size >= self._outbox.piece:
            self._flush()
        else:
            self._unsettled = True
        self._check_level()

    def _check_level(self) -> None:
        """
        Hold delivery, let it go on, or abort, depending on how many bytes wait.
        """
        outbox = self._outbox
        size = outbox.size
        if self.max_unsent is not None and size > self.max_unsent:
            if outbox.phase is not _DEPARTED:
                self._abort(UnsentLimitExceeded(self.max_unsent, size))
        elif self.high_water is not None and size > self.high_water:
            # While closing nothing is added, and a peer that we do not read from may stop reading too.
            if not (outbox.closing or self._inbox.choked):
                self._inbox.choked = True
                self._hold()
        elif size <= self.low_water:
            self._unchoke()

    def _flush(self) -> None:
        """
        Write what the transport takes, and do what had to wait for that.
        """
        outbox = self._outbox
        if outbox.flushing or outbox.phase is not _READY:
            return
        try:
            if not outbox.flush(self):
                self._cannot_send()
        except ProducerError:
            self._failed()
        if self._state is _CLOSING:
            if outbox.phase is not _DEPARTED:
                self._leave()
        elif outbox.half_close is HalfClose.WHEN_SENT and outbox.finished:
            outbox.half_close = HalfClose.DONE
            outbox.resign(self.transport)
            self.transport.loseWriteConnection()
        if outbox.size or self._inbox.choked:
            self._check_level()
        if self._upgrade is not None and not self._delivering:
            self._upgrade.proceed()

    def _takes_write(self, transport: Any, data: bytes) -> bool:
        """
        Called by the transport when it is told to write: send that behind what is queued.

        Returns:
            False if it may be written at once, because nothing is queued, or because it is our own.
            What a policy in between writes is our own, which it delayed, unless a handler is running.
        """
        if self._outbox.flushing or not self._outbox:
            return False
        if not self._delivering and self.transport is not transport:
            return False
        AsyncChat.push(self, data)
        return True

    def _takes_tls(self) -> None:
        """
        Called by the transport when it is told to start TLS: send in the clear what is queued.

        Raises:
            RuntimeError: not all of it can be sent now.
        """
        self._flush()
        if self._outbox:
            raise RuntimeError(
                "startTLS() was called with output queued that cannot be sent yet, and would be"
                " encrypted; call AsyncChat.start_tls(), which waits for it"
            )

    # -- internals: closing

    def _stopped_by_server(self) -> None:
        """
        Called by a server that is stopping, and that ends this connection now.
        """
        if self.close_reason is None:
            self.close_reason = StoppedByServer()

    def _takes_closing(self) -> bool:
        """
        Called by the transport when it is told to close: close in order, in limited time.

        Returns:
            False if it may close at once: we are done with it, or have nothing to send yet.
        """
        if self._outbox.phase is _DEPARTED or not (self._outbox.phase is _READY or self._outbox):
            return False
        self._close()
        return True

    def _takes_half_closing(self) -> bool:
        """
        Called by the transport when it is told to end the sending: do that once everything is sent.

        What is pushed from now on is dropped; messages are delivered as before.

        Returns:
            False if it may do so at once, because it was we who told it.
        """
        outbox = self._outbox
        if outbox.phase is _DEPARTED or outbox.half_close is HalfClose.DONE:
            return False
        if not outbox.closing:
            outbox.half_close = HalfClose.WHEN_SENT
            outbox.close_when_done()
            self._unchoke()
            self._pushed()
        return True

    def _cannot_send(self) -> None:
        """
        The transport takes nothing more: deliver what has arrived, and close.
        """
        outbox = self._outbox
        if outbox.phase is _DEPARTED or self._state is _CLOSED:
            return
        outbox.full = True  # or reaching the end of the queue would end the connection too soon
        self._set_state(_CLOSING)
        self._drop_output()
        self._unchoke()
        transports.read_what_is_there(self.transport)
        outbox.full = False
        if self._delivering:
            self._unsettled = True
        else:
            self._flush()

    def _leave(self) -> None:
        """
        While closing: something was written, or there is nothing to write.
        """
        if self.transport is None:
            return
        if self._closing is None:
            self._closing = closing.Closing(self, self._inbox, self._outbox, self._abort)
        self._closing.proceed()


if sys.flags.dev_mode:
    check_threads(AsyncChat)
