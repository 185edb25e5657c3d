"""
`AsyncChat`: messages in, a queue of bytes and producers out, on any Twisted transport.

Theory of operation
===================

*Input.* ``dataReceived`` gives the chunk to an `Inbox`, which calls the handlers, and knows what holds
delivery. Delivery never nests: what arrives while handlers run waits there. What a handler returns that
is not None goes to `hook_returned`; if it waits for something, delivery waits for it.

*Output.* `push` appends to an `Outbox`. What was pushed while one chunk was handled is written when the
handlers are done, as one write.

*Closing.* One method changes the `State`. CLOSING takes nothing new, sends what is queued, and then
closes the transport; see `txasynchat.protocol.closing`. Where others end the connection or write to the
transport, it asks us first (`endings.let_protocol_end`).

Handlers may push, pause, close or fail at any moment, and so may producers that are asked meanwhile.
Each of these only notes that something changed; `_settle` acts on it, until nothing changes any more.
"""

from __future__ import annotations

import enum
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet import defer, interfaces
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from typing_extensions import override
from zope.interface import implementer

from txasynchat import endings, errors, ranges, transports
from txasynchat.framing import Overflow
from txasynchat.handlers import check_threads
from txasynchat.limits.deadlines import Standing, begin
from txasynchat.limits.modes import Mode
from txasynchat.limits.options import UNSET, Limits, check_limits
from txasynchat.producers import Buffer
from txasynchat.protocol import closing, lines, reports, settings, text
from txasynchat.protocol.awaiting import CANCELLED, Awaiting
from txasynchat.protocol.draining import AT_ONCE
from txasynchat.protocol.hooks import Hooks
from txasynchat.protocol.inbox import LOW
from txasynchat.protocol.outbox import HalfClose, Outbox, Phase
from txasynchat.protocol.pipe import HIGH_WATER, Pipe
from txasynchat.protocol.starttls import Upgrade
from txasynchat.protocol.stream import Stream
from txasynchat.tls.factory import adopt
from txasynchat.tls.info import TLSInfo
from txasynchat.tls.leftovers import Leftovers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from txasynchat.limits.deadlines import Deadlines
    from txasynchat.producers import Producer
    from txasynchat.protocol.awaiting import Pending
    from txasynchat.protocol.inbox import Inbox

__all__ = ["AsyncChat", "State"]


class State(enum.Enum):
    """Where a connection is in its life; it only ever moves down this list."""

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


# What `ranges.HANDLER` has, in the order of `AsyncChat._checked`.
_CHECKED = (
    "high_water",
    "low_water",
    "max_unsent",
    "ac_out_buffer_size",
    "close_timeout",
    "clock",
    "max_message_length",
)


@implementer(interfaces.IPushProducer, interfaces.IConsumer)
@implementer(interfaces.IHalfCloseableProtocol, interfaces.IHandshakeListener)
class AsyncChat(Hooks, Protocol):
    """
    A connection that speaks in messages: ``asynchat.async_chat`` as a Twisted protocol.

    Override either `message_received`, or `collect_incoming_data` and `found_terminator`; and set a
    terminator, as the class attribute or by `set_terminator` in `handle_connect` or ``__init__``.
    A subclass need not call ``__init__`` or ``connectionMade`` of this class; one that overrides
    ``connectionLost`` calls ``super()``.

    All methods belong to the reactor's thread; other threads use ``reactor.callFromThread``. Under
    ``python -X dev`` the methods that an application calls raise `RuntimeError` in any other thread.

    Stdlib: asynchat.async_chat (3.11 library reference), whose names and order of calls these are.
    Deliberate differences: `max_message_length`; `set_terminator` checks its argument; `pause` takes
    effect before the next message; nothing is delivered after `close`.
    """

    # -- state that an application may read

    transport: Any = None
    #: Why the connection did not end in order: what the peer did, what happened to it, or that this
    #: program stopped before it had finished (`ProgramStopped`, `StoppedByServer`). None if it ended in
    #: order, if this side ended it (by `abort`, or because a handler raised), or if it has not ended.
    #: `handle_close` may read it; `handle_end` is given it.
    close_reason: errors.ChatError | None = None

    #: Bytes that were dropped, because they were pushed after the connection began to close.
    dropped: int = 0

    # What may be set and overridden is in `txasynchat.protocol.hooks`.

    #: `get_terminator` is overridden, and is asked.
    _asks: ClassVar[bool] = False
    #: The settings of the class, once they were checked.
    _checked: ClassVar[tuple[Any, ...]] = (None,) * len(_CHECKED)
    #: The server is stopping; set on the connections that it has then.
    _server_is_stopping: bool = False
    #: handle_secure is overridden; handle_drained is.
    _hears_of_tls: ClassVar[bool] = False
    _hears_of_drain: ClassVar[bool] = False
    # `__new__` sets all of these at once, and the class has no attribute of the same name. CPython
    # keeps up to thirty attributes in the instance itself, if the first instances of a class have them.
    # Otherwise each connection has a dict, and reading any attribute takes longer.
    _state: State
    _inbox: Inbox
    _outbox: Outbox
    #: Handlers are running. They note here what has to be looked at when they have run: something
    #: changed (_unsettled), or delivery may go on (_redeliver).
    _delivering: bool
    _unsettled: bool
    _redeliver: bool
    #: The fast path of ``dataReceived`` is closed: the connection is not open, or closes when it is
    #: idle, or a hook is not done, or `get_terminator` or `handle_drained` is overridden, or what
    #: arrives is piped.
    _settles: bool
    _close_when_idle: bool
    #: `close` or `abort` was called.
    _close_requested: bool
    #: Once a hook returned something.
    _awaiting: Awaiting | None
    #: From `start_tls` until its handshake is over.
    _upgrade: Upgrade | None
    #: Once the connection is closing.
    _closing: closing.Closing | None
    #: While it is made, if it has any; and the latest `set_limits`.
    _deadlines: Deadlines | None
    _mode: Mode | None
    #: It takes the messages, in the place of the hooks.
    _stream: Stream | None
    #: Where what arrives goes, and whose it is that comes here; see `pipe_to`.
    _pipe: Pipe | None
    _fed_by: AsyncChat | None
    #: While something waits for the reactor's next iteration, so that others have their turn.
    _turn: IDelayedCall | None

    def __new__(cls, *_arguments: Any, **_named: Any) -> Self:
        """Set the state up, so that subclasses need not call this class's ``__init__``."""
        begins_with = (cls.terminator, cls.max_message_length, cls.overflow, cls.encoding)
        if cls.__dict__.get("_begins_with") != begins_with:
            cls._set_up()
        chat = super().__new__(cls)
        chat._state = _CONNECTING
        chat._inbox = cls._make_inbox()
        if begins_with[3] is None:
            chat._outbox = Outbox()
        else:
            chat._outbox = text.TextOutbox(begins_with[3], cls.encoding_errors)
        chat._delivering = chat._unsettled = chat._redeliver = False
        chat._settles = True
        chat._close_when_idle = chat._close_requested = False
        chat._deadlines = chat._mode = None
        chat._awaiting = chat._upgrade = chat._closing = chat._stream = chat._incoming = None
        chat._turn = chat._pipe = chat._fed_by = None
        return chat

    def __init_subclass__(cls, **arguments: Any) -> None:
        """
        Check what the class body sets.

        Raises:
            TypeError, ValueError: ``terminator`` is not a terminator, or is a number above
                `max_message_length`; ``encoding`` or ``line_ends`` is not one; or a setting is out of
                its range.
        """
        super().__init_subclass__(**arguments)
        ranges.check_class(cls, ranges.HANDLER)
        check_limits(cls.limits)
        cls._asks = cls.get_terminator is not Hooks.get_terminator
        cls._hears_of_tls = cls.handle_secure is not Hooks.handle_secure
        cls._hears_of_drain = cls.handle_drained is not Hooks.handle_drained
        settings.check_terminator_of(cls)
        text.check_encoding(cls.__qualname__, cls.encoding, cls.encoding_errors)
        lines.check_line_ends(cls.__qualname__, cls.line_ends)

    @classmethod
    def _set_up(cls) -> None:
        """
        Prepare the class for its first connection, after decorators such as ``dataclass``; and again
        when a setting was assigned to the class later.
        """
        names = "terminator", "max_message_length", "overflow", "encoding", "line_ends"
        if settings.restore(cls, AsyncChat, names):
            cls._computes = True
        if "_begins_with" not in cls.__dict__:
            reports.unheard_hooks(cls._log, cls)
        text.check_encoding(cls.__qualname__, cls.encoding, cls.encoding_errors)
        lines.check_line_ends(cls.__qualname__, cls.line_ends)
        cls._begins_with = (cls.terminator, cls.max_message_length, cls.overflow, cls.encoding)

    # -- IProtocol: called by the transport

    @override
    def makeConnection(self, transport: Any) -> None:
        """
        Set up, call ``connectionMade``, and open the connection: at once, or after a TLS handshake.

        Raises:
            RuntimeError: this object has, or had, another connection; the new one is aborted.
        """
        if self.transport is not None:
            error = RuntimeError(
                f"{self!r} is used for a second connection; a factory makes a new protocol for each"
            )
            transports.turn_away(transport, self, error)
            raise error
        self._outbox.connect(transport)
        bare = endings.own(transport, self)
        if not bare:
            adopt(transport)
            endings.let_protocol_end(transport)
            transports.tell_of_half_close(transport, self)
        try:
            super().makeConnection(transport)  # type: ignore[no-untyped-call] # Twisted's, untyped
            checked = self._checked
            if not (
                self.high_water is checked[0]
                and self.low_water is checked[1]
                and self.max_unsent is checked[2]
                and self.ac_out_buffer_size is checked[3]
                and self.close_timeout is checked[4]
                and self.clock is checked[5]
                and self.max_message_length is checked[6]
            ):
                self._check_settings()
            if self._computes:
                self._inbox.limit = self.max_message_length
                self._inbox.overflow = self.overflow
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
        if self._outbox.phase is _DEPARTED:
            transports.abort(transport)  # abort() was called before there was anything to abort
        elif bare:
            self._open()
        elif transports.when_secure(transport, self):
            self._open_if_introduced()
        elif self._state is _CLOSING:
            self._leave()

    @override
    def dataReceived(self, data: bytes) -> None:
        """
        Deliver the messages in *data*, then write what they made the handlers push.

        A fast path: a line of 64 bytes and its answer, one at a time on 50 connections, cost a server
        10.9 microseconds with it and 13.1 without (CPython 3.11).
        """
        if self._delivering or self._settles:
            self._receive_otherwise(data)
            return
        self._delivering = True
        try:
            try:
                self._inbox.receive(self, data)  # which keeps the bytes where delivery is held
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                self._failed()
            outbox = self._outbox
            if self._unsettled:
                if self._state is not _CLOSING or not closing.at_once(
                    self.transport, self._inbox, outbox
                ):
                    self._settle()
            elif outbox.size and not outbox.send_reply(self.transport):
                self._settle()
        finally:
            self._delivering = False

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Stop the queued producers, and cancel hooks that are not done; call `handle_close`, unless the
        application closed, and `handle_end`.
        """
        if self._state is _CLOSED:
            return
        self._set_state(_CLOSED)
        self.connected = False
        error = closing.why_lost(reason.value, self.transport, self._outbox)
        if isinstance(error, errors.PeerError) and error is reason.value:
            self._report(error)
        elif self.close_reason is None:
            self.close_reason = error
        outbox = self._outbox
        outbox.phase = _DEPARTED
        outbox.registered = False
        if self._pipe is not None:
            self._pipe.pass_on(last=True)
        if self._stream is None or self._pipe is not None:
            self._inbox.close()
        else:
            self._inbox.end_pulling()
        sent = outbox.finished and not outbox.incomplete
        if outbox:
            self._drop_output()
        for ending in (self._closing, self._upgrade):
            if ending is not None:
                ending.stall.cancel()
        self._closing = self._upgrade = None
        if self._deadlines is not None:
            self._deadlines.end()
            self._deadlines = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        told = self._stream is not None and (self._stream.lost() or self._close_requested)
        if self._awaiting is not None and not told:
            for cancel in self._awaiting.cancel():
                self._call(cancel)
        try:
            if not self._close_requested:
                self._call(self.handle_close)
        finally:
            self._call(self.handle_end, self.close_reason)
            self._uncouple()
            if (draining := outbox.draining) is not None:
                outbox.draining = None
                draining.over(None if sent else self.close_reason or reason.value)

    # -- IHalfCloseableProtocol, IHandshakeListener: called by the transport

    def readConnectionLost(self) -> None:  # noqa: N802
        """
        The peer will send no more: deliver what it sent, call `handle_eof`, send what is queued, close.

        An application that cannot answer yet when a hook is called makes that ``async def``, or pauses
        delivery until it can.
        """
        self._inbox.peer_finished = True
        if self._closing is not None:
            self._closing.peer_finished()
        if self._stream is None or self._pipe is not None:
            self.close_when_idle()
        else:
            self._go_on()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """
        Nothing more can be sent: the connection ends, unless this side ended the sending.

        What has arrived is delivered first. A process may close its input because it needs none; that
        connection ends when there is something to send.
        """
        transport, outbox = self.transport, self._outbox
        outbox.full = False  # so the next attempt to send finds out; a request to close is not one
        end = outbox.writing_end or transports.writing_end(transport)
        # TLS ends its own sending, and leaves the descriptor beneath it open.
        if outbox.half_close is HalfClose.DONE or transports.writing_was_ended(transport, end):
            return
        if outbox or self._state is not _OPEN or not transports.waits_for_exit(transport):
            self._cannot_send()

    def handshakeCompleted(self) -> None:  # noqa: N802
        """The TLS handshake is done: the connection opens, or goes on after `start_tls`."""
        self._upgrade = None
        if self._outbox.phase is Phase.WAITING:
            self._open_if_introduced()

    # -- IPushProducer: called by the transport

    def pauseProducing(self) -> None:  # noqa: N802
        """
        The transport is full: take nothing more from the queue.

        Raises:
            RuntimeError: the application called it, and means `pause`.
        """
        self._check_caller("pauseProducing", "pause() stops delivery and reading")
        self._outbox.full = True
        try:
            self._outbox.pause()
        except errors.ProducerError:
            self._failed()

    def resumeProducing(self) -> None:  # noqa: N802
        """The transport has room again."""
        self._outbox.full = False
        self._flush()

    def stopProducing(self) -> None:  # noqa: N802
        """
        The transport takes nothing more; the loss of the connection, or of this half, follows.

        Raises:
            RuntimeError: the application called it, and means `abort`.
        """
        self._check_caller("stopProducing", "abort() ends the connection")
        self._outbox.full = True
        self._outbox.registered = False

    # -- IConsumer: called by a Twisted producer whose turn in the queue it is

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802
        """
        Queue a Twisted producer, which then calls `write`, and at its end `unregisterProducer`.

        So ``FileSender().beginFileTransfer(file, chat)`` works. It takes its turn in the queue, and
        several may be registered. Once the connection is closing it is stopped at once.
        """
        self._outbox.register(producer, streaming)
        if not self._outbox.closing:
            self._pushed()

    def unregisterProducer(self) -> None:  # noqa: N802
        """The registered producer whose turn it is has ended."""
        self._outbox.unregister()
        self._pushed()

    def write(self, data: bytes) -> None:
        """
        Take bytes of the registered producer whose turn it is; without one this is `push`.

        Raises:
            TypeError, ValueError: see `push`.
        """
        self._outbox.check_length(data, self.max_unsent)
        if self._outbox.write(data):
            self._pushed()
        else:
            self.push(data)

    # -- asynchat: called by the application

    def push(self, data: Buffer | str) -> None:
        """
        Send bytes after everything that is queued; a producer is better for large data.

        What is pushed inside handlers is written when they have run, in one write. Once the connection
        is closing it is dropped, and counted in `dropped`.

        Args:
            data: bytes-like; or, where the class has an `encoding`, text.

        Raises:
            TypeError: *data* is anything else.
            ValueError: *data* alone is longer than `max_unsent`, or cannot be encoded.
        """
        outbox = self._outbox
        if outbox.closing:
            self.dropped += outbox.length(data)
            return
        outbox.push(data)  # type: ignore[arg-type] # a TextOutbox takes text
        if self._delivering and outbox.size < outbox.piece:
            return
        if self.max_unsent is not None and outbox.size > self.max_unsent:
            try:
                outbox.check_length(data, self.max_unsent)
            except ValueError:
                outbox.take_back()
                raise
        self._pushed()

    def push_line(self, line: Buffer | str) -> None:
        """
        `push` one line, and the delimiter behind it.

        That is the terminator, or the class's, where the one in force is no delimiter. Of a tuple it is
        `matched_terminator`, so that an answer ends as the peer ends its lines; before there was one,
        the first.

        Args:
            line: without its end; bytes-like or, where the class has an `encoding`, text.

        Raises:
            TypeError: *line* is anything else.
            ValueError: *line* contains the delimiter, so that it would be several lines; or, where
                that is a line end, any CR or LF. Or there is no delimiter. Nothing is sent.
        """
        matched = self._inbox.matched
        ends = lines.delimiters(self._inbox.chosen) or lines.delimiters(type(self).terminator)
        if not ends:
            raise ValueError(f"{type(self).__qualname__} has no delimiter to end a line with")
        data = bytes(memoryview(self._outbox.encoded(line)))
        lines.check_line(data, ends)
        self.push(data + (matched if matched in ends else ends[0]))

    def withdraw(self, data: bytes) -> bool:
        """
        Forget what was pushed and need not be sent any more, such as a state that has changed since.

        Args:
            data: the very object that was given to `push`; the oldest, if it was given more than once.

        Returns:
            whether it is forgotten; not, if some of it is with the transport.
        """
        withdrawn = self._outbox.withdraw(data)
        if withdrawn:
            self._pushed()
        return withdrawn

    def push_with_producer(
        self,
        producer: Producer | Buffer | interfaces.IPushProducer | interfaces.IPullProducer,
    ) -> None:
        """
        Send what *producer* gives after everything that is queued; see `txasynchat.producers`.

        It is asked only when the transport takes data. If it fails, what was queued before it is
        sent, and the connection closes as after an exception in a handler. Once the connection is
        closing it is never asked, and stopped at once.

        Raises:
            TypeError: *producer* is not a producer.
        """
        if isinstance(producer, Buffer):
            self.push(producer)
        else:
            self._outbox.add(producer)
            if not self._outbox.closing:
                self._pushed()

    @settings.shown
    def unsent(self) -> int:
        """Bytes that were pushed, and that the transport does not have yet."""
        return self._outbox.size

    def drained(self) -> Deferred[None]:
        """
        Return what fires when everything that was pushed is with the transport.

        So a coroutine sends no faster than the peer reads, and never asks for `unsent`::

            for piece in pieces:
                self.push(piece)
                await self.drained()

        It fires at once if nothing waits, or in the reactor's next iteration when much was sent in this
        one. While the connection closes it fires at the end, when everything was sent.

        Returns:
            A Deferred, which fails with `close_reason`, or with the reason that ``connectionLost`` was
            given, if something that was pushed is lost with the connection.
        """
        if self._state is _CLOSED:
            return defer.fail(self.close_reason or ConnectionDone())
        outbox = self._outbox
        at_once = outbox.taken - outbox.drained_at < AT_ONCE
        if not outbox and at_once and self._state is not _CLOSING:
            return defer.succeed(None)
        waiting = outbox.await_drain().wait()
        if not at_once:
            self._take_turn()
        if self._delivering:
            self._unsettled = True
        return waiting

    def close_when_done(self) -> None:
        """
        Close when everything queued so far is sent; what is pushed from now on is dropped.

        Messages are delivered until then, as in ``asynchat``. `handle_close` is called at the end.
        """
        if self._state is _CLOSING or self._state is _CLOSED:
            return
        if self._delivering and (self._inbox.kept or self._inbox.buffer):
            # The peer did not wait for the answer, so more may come when the connection is closed.
            self._inbox.overran = True
        self._set_state(_CLOSING)
        self._unchoke()
        if self._delivering:
            self._unsettled = True
        else:
            self._pushed()
            self._leave()

    def close_when_idle(self) -> None:
        """
        `close_when_done`, as soon as no message is half received, no hook waits for anything, and
        delivery is not paused.

        So a message that has begun is still answered, and so is one whose handler paused delivery
        until its answer is there.
        """
        if self._stream is not None and self._pipe is None:
            self._stream.finish()
            return
        self._close_when_idle = self._settles = True
        if self._is_idle and self._state is _OPEN:
            self._go_on()

    def end_sending(self) -> None:
        """
        Send what is queued, then tell the peer that this was all, and go on reading.

        The peer sees the end of the stream: a FIN, close_notify over TLS, the end of its standard input
        where it is a process. `state` stays OPEN and messages are still delivered; what is pushed from
        now on is dropped, and counted in `dropped`. When the peer ends its sending too, the connection
        closes. One that never does is the application's to end. Harmless when repeated.

        Terminals, serial ports, and TLS that Twisted's ``startTLS`` has put on a connection cannot end
        one direction only: the peer sees the end when the connection closes.
        """
        outbox = self._outbox
        if outbox.closing:
            return
        outbox.half_close = HalfClose.WHEN_SENT
        outbox.close_when_done()
        self._unchoke()
        self._pushed()
        if self._pipe is not None and self._inbox.peer_finished:
            self._go_on()

    def handle_shutdown(self) -> Awaitable[object] | None:
        """
        The server is stopping, so finish; see `Server`. Called once, however long that takes.

        By default `close_when_idle`. A handler that works between messages (a transaction) should
        finish that, and then close. It may be ``async def``; messages are delivered meanwhile.
        """
        if self._state is _CONNECTING:
            self.abort()
        else:
            self.close_when_idle()
        return None

    def close(self) -> None:
        """
        Deliver nothing more, send what is queued, and close; `handle_close` is not called.

        Harmless when repeated.
        """
        self._close_requested = True
        self._close()

    def abort(self, reason: errors.PeerError | None = None) -> None:
        """
        Close now; what is queued is lost, and `handle_close` is not called.

        Args:
            reason: what the peer did; it is logged, and is the `close_reason`.
        """
        self._close_requested = True
        self._abort(reason)

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
        ways = self._inbox, self._outbox, self._abort, self._forget_input
        upgrade = Upgrade(self, options, leftovers, *ways)
        if self._outbox.closing:
            return
        if self._upgrade is not None:
            raise RuntimeError("TLS was already started")
        if upgrade.begin():
            self._upgrade = upgrade
            self._go_on()

    def set_limits(self, **limits: Any) -> Mode:
        """
        Let other limits hold from now on, for this connection and a part of its conversation.

        They come before all others, the server's too, and take the place of those of an earlier call;
        without arguments there are none. What was measured so far counts: a message that has begun is
        not younger than it was.

        Args:
            limits: as for `Limits`. ``first_message`` has an effect before the connection is open.

        Returns:
            A context manager, at whose end holds what held before this call.

        Raises:
            TypeError, ValueError: see `Limits`.
        """
        before = self._mode
        mode = Mode(
            Limits(**limits),
            self.max_message_length if before is None else before.longest,
            partial(self._enter_mode, before),
        )
        self._enter_mode(mode if limits else None)
        return mode

    def stream(self) -> Stream:
        """
        Return the connection as a `Stream`, whose messages are awaited instead of delivered.

        From now on no hook gets a message, and the end of what the peer sends closes nothing: the
        application does. `close_when_idle`, as when the server stops, ends the stream; see there.
        To be called inside `handle_connect`, or between two messages. Always returns the same object.

        Raises:
            RuntimeError: the connection is not open yet, or is gone; a message has begun whose pieces
                were passed on; or `get_terminator` is overridden.
        """
        if self._stream is None:
            if self._state is _CONNECTING or self._state is _CLOSED:
                raise RuntimeError(f"the connection is {self._state.value}; it has no stream")
            if self._asks or (self._inbox.in_message and not self._inbox.whole):
                raise RuntimeError("stream() comes too late, or get_terminator() is overridden")
            ways = self._run_handler, self._close, self._is_malformed
            self._stream = Stream(self, self._inbox, self._outbox, ways)
            self._settles = True
            if self._close_when_idle:
                self._stream.finish()
        return self._stream

    def pipe_to(self, other: AsyncChat) -> None:
        """
        Send to *other* whatever this connection receives from now on, as it came.

        With all that no hook was given yet, the beginning of an unfinished message included; no hook
        for messages is called any more. Two calls couple the two connections both ways. *other* need
        not be connected yet: what comes before waits in its queue.

        While more than `high_water` bytes of *other* wait there, this connection does not read, until
        no more than its `low_water` do; `max_unsent` of *other* does not count. `pause` holds what
        arrives, as ever. When the peer ends its sending, *other* does (`end_sending`), and not
        `handle_eof` is called; this connection stays open for what is still to be sent, until its own
        sending has ended too. When either is lost, what has arrived is passed on, and the other one
        closes once everything is sent.

        Raises:
            TypeError: *other* is no `AsyncChat`.
            RuntimeError: this connection is piped already, or another one is piped to *other*.
        """
        if not isinstance(other, AsyncChat):
            raise TypeError(f"pipe_to() takes an AsyncChat, not {other!r:.80}")
        if self._pipe is not None or other._fed_by is not None:
            raise RuntimeError("only one connection is piped to one other")
        collected = b"" if self._delivering else b"".join(self._incoming or ())
        self._incoming = None
        self._pipe = Pipe(self._inbox, other, other._take_piped, collected)
        other._fed_by = self
        self._settles = True
        if _CLOSED in (self._state, other._state):
            ended = self if self._state is _CLOSED else other
            ended._uncouple()
            return
        self._unchoke()  # what waits here is no reason to stop reading any more
        other._check_level()
        if self._outbox.phase is _READY:
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
        self._inbox.held = True
        self._hold()

    def resume(self) -> None:
        """
        Deliver and read again.

        No hook is called before this returns: from inside a hook of this connection, delivery goes on
        when that has returned; else in the reactor's next iteration. So a program that resumes many
        connections in a loop has finished the loop when the first message makes it pause them again.
        (On a transport in memory, which has no reactor, delivery goes on at once.)
        """
        inbox = self._inbox
        if inbox.held:
            inbox.held = False
            if inbox.waits and not self._delivering:
                inbox.resting = True
                self._take_turn()
            elif inbox.release():
                self._go_on()

    @settings.shown
    def state(self) -> State:
        """Where the connection is in its life."""
        return self._state

    @settings.shown
    def idle(self) -> bool:
        """
        Nothing is going on: the connection is open, no message is half received, no hook runs or waits
        for anything, delivery is not held, and nothing that was pushed waits here.
        """
        return self._is_idle and not (self._delivering or self._outbox)

    @settings.shown
    def pending(self) -> bool:
        """A hook that takes input is not done: it waits, and the peer waits for its answer."""
        return self._inbox.awaited > 0

    @settings.shown
    def paused(self) -> bool:
        """The application paused delivery."""
        return self._inbox.held

    @settings.shown
    def tls(self) -> TLSInfo | None:
        """What was agreed on in the TLS handshake; None before, and without TLS."""
        return TLSInfo.of(self.transport)

    @settings.shown
    def addr(self) -> Any:
        """
        The peer's address as the `socket` module would give it, ``(host, port)`` or a path.

        None before there is a connection, and where there are no addresses, as with a process.
        """
        return None if self.transport is None else transports.peer_address(self.transport)

    @property
    def proxied(self) -> Any:
        """
        What a proxy said of this connection, a `Proxied`, behind ``proxy:``; None for other ones.

        None, too, before there is a connection, and after it.
        """
        return getattr(self.transport, "proxied", None)

    # -- internals: state

    def _check_settings(self) -> None:
        """Check the settings of this object; those of its class need no check on the next one."""
        ranges.check_owner(self, ranges.HANDLER, AsyncChat)
        cls = type(self)
        values = tuple(getattr(cls, name) for name in _CHECKED)
        if values != cls._checked:
            cls._checked = values

    def _set_state(self, state: State) -> None:
        self._state = state
        self._choose_path()
        if state is not _OPEN:
            self._outbox.close_when_done()

    def _choose_path(self) -> None:
        """Whether the fast path of ``dataReceived`` is closed."""
        self._settles = (
            self._state is not _OPEN
            or self._asks
            or self._close_when_idle
            or self._inbox.awaited > 0
            or self._inbox.pulled
            or self._hears_of_drain
            or self._pipe is not None
        )

    def _open_if_introduced(self) -> None:
        """Open the connection as soon as `addr` is the peer's and not a proxy's."""
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
            if not self._inbox.closed:
                if first:
                    self._inbox.open()
                then = self._opened if first else None
                if self._hears_of_tls and (info := TLSInfo.of(self.transport)) is not None:
                    self._call(self.handle_secure, info, then=then)
                elif then is not None:
                    then()
            self._settle()
        finally:
            self._delivering = False

    def _opened(self) -> None:
        if self._state is not _OPEN or self._inbox.closed:
            return
        self._call(self.handle_connect)
        inbox = self._inbox
        framed = inbox.terminator or inbox.awaited or self._asks or self._pipe is not None
        if inbox.whole and not framed:
            reports.no_terminator(self._log, self)

    def _close(self) -> None:
        if self._state is _CLOSED:
            return
        self._inbox.discard()
        self.close_when_done()
        if not self._delivering:
            self._set_reading()
        if self._stream is not None:
            self._go_on()

    def _abort(self, error: errors.PeerError | None = None) -> None:
        """Close now, because of *error* where there is one; the transport calls ``connectionLost``."""
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

    def _call(self, handler: Any, *arguments: Any, then: Callable[[], None] | None = None) -> None:
        """
        Call a handler of the application, and *then* when it is done; an exception ends this
        connection only.
        """
        try:
            result = handler(*arguments)
            if result is not None and self._waits(result, then):
                return
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
        if then is not None:
            then()

    def _failed(self) -> None:
        """Log the exception that is being handled, ask `handle_error`, and close."""
        error = sys.exc_info()[1]
        if isinstance(error, errors.OtherProtocol):
            self._inbox.discarded = True
            self._report(error)
            self.push(lines.ANSWERS[error.protocol])
            self._close()
            return
        if isinstance(error, errors.MalformedMessage):
            self._is_malformed(error)
        else:
            reports.handler_raised(self._log, self)
        if isinstance(error, errors.ProducerError):
            # What is queued behind it would follow a piece that is cut off.
            self._drop_output()
        try:
            result: object = self.handle_error()
            if result is not None and self._waits(result, self._close, self._error_failed):
                self._inbox.discard()
                return
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._error_failed()
        self._close()

    def _is_malformed(self, error: errors.MalformedMessage) -> None:
        self._inbox.discarded = True
        self._report(error)

    def _error_failed(self) -> None:
        reports.handler_raised(self._log, self, "{peer}: {handler}.handle_error raised")

    # -- internals: hooks that wait

    @property
    def _is_idle(self) -> bool:
        if self._stream is not None and self._pipe is None:
            return False  # it is for the application to close
        return self._inbox.idle and (self._awaiting is None or not self._awaiting.busy)

    def hook_returned(self, result: object) -> None:
        """Called by the framer with what a hook returned, for which delivery waits."""
        awaiting = self._awaiting
        if awaiting is None:
            awaiting = self._expect_hooks()
        self._inbox.awaits = awaiting.starts
        if (pending := awaiting.begin(result)) is not None:
            self._watch(pending)

    def shutdown_returned(self, result: object) -> None:
        """Called by a server with what `handle_shutdown` returned; delivery goes on meanwhile."""
        if (pending := self._expect_hooks().begin(result)) is not None:
            self._watch(pending, holds=False)

    def _expect_hooks(self) -> Awaiting:
        if self._awaiting is None:
            self._awaiting = Awaiting()
            self._awaiting.lost = self._state is _CLOSED
        return self._awaiting

    def _waits(self, result: object, *watched: Any) -> bool:
        """
        Run what a hook returned; `_watch` it, and return True, if it has to wait for something.

        Raises:
            BaseException: what it raised without waiting.
        """
        pending = self._expect_hooks().begin(result)
        if pending is not None:
            self._watch(pending, *watched)
        return pending is not None

    def _watch(
        self,
        pending: Pending,
        then: Callable[[], None] | None = None,
        failed: Callable[[], None] | None = None,
        *,
        holds: bool = True,
    ) -> None:
        """
        Wait for a hook that is not done.

        Args:
            pending: the hook.
            then: called when it is done.
            failed: called, before *then*, while what it raises is handled; by default `_failed`,
                without *then*.
            holds: nothing is delivered until it is done.
        """
        holds = holds and self._state is not _CLOSED
        if holds:
            self._inbox.await_hook()
            self._settles = True
            if self._delivering:
                self._unsettled = True
            else:
                self._set_reading()
        self._expect_hooks().watch(pending, partial(self._waited, holds, then, failed))

    def _waited(
        self,
        holds: bool,
        then: Callable[[], None] | None,
        failed: Callable[[], None] | None,
        error: BaseException | None,
    ) -> None:
        """A hook that had to wait is done; see `_watch`."""
        if holds:
            self._inbox.hook_done()
            self._choose_path()
        if self._state is _CLOSED and (error is None or isinstance(error, CANCELLED)):
            return
        nested, self._delivering = self._delivering, True
        try:
            if error is not None:
                try:
                    raise error
                except BaseException:  # noqa: BLE001 it is the application's, and is logged
                    (failed or self._failed)()
            if then is not None and (error is None or failed is not None):
                then()
        finally:
            self._delivering = nested
        if self._state is not _CLOSED:
            self._inbox.release()
            self._go_on()

    def _report(self, error: errors.PeerError) -> None:
        if not isinstance(error, errors.MessageTooLong) or self.overflow is Overflow.CLOSE:
            self.close_reason = error
        reports.peer_erred(self._log, self, error)

    # -- internals: input

    def overflowed(self, error: errors.MessageTooLong) -> None:
        """Called by the framer when a message broke its limit; `message_too_long` is the hook."""
        self._report(error)
        self._inbox.discarded |= self.overflow is Overflow.CLOSE
        result: object = self.message_too_long(error)
        closes = self.overflow is Overflow.CLOSE  # which the hook may have changed
        then = partial(self._after_overflow, error, closes)
        if result is None or not self._waits(result, then):
            then()

    def _after_overflow(self, error: errors.MessageTooLong, closes: bool) -> None:
        if closes:
            self._inbox.discarded = True
            self.close_reason = error
            if self._stream is None:
                self._close()
        elif self.close_reason is error:
            self._inbox.discarded = False
            self.close_reason = None

    def _receive_otherwise(self, data: bytes) -> None:
        if self._inbox.shut and self._state is not _CONNECTING:
            self._inbox.discarded = True
        elif self._delivering:
            self._inbox.keep(data)
            self._unsettled = True
        else:
            stream = self._stream
            if stream is None:
                self._inbox.feed(data)
                if self._outbox.phase is _READY:
                    self._go_on()
                return
            inbox, outbox = self._inbox, self._outbox
            inbox.add(data)
            if outbox.phase is not _READY:
                return
            # What `_settle` does, where nothing unusual happens.
            self._delivering = True
            try:
                stream.arrived()
                sent = not outbox.size or outbox.send_reply(self.transport)
                if self._unsettled or not sent or inbox.ahead > LOW or not inbox.reading:
                    self._settle()
            finally:
                self._delivering = False

    def _go_on(self) -> None:
        """Deliver what waits, as far as that is allowed, and settle what follows from it."""
        self._redeliver = True
        if self._delivering:
            self._unsettled = True
            return
        self._delivering = True
        try:
            self._settle()
        finally:
            self._delivering = False

    def _run_handler(self, function: Any, *arguments: Any) -> None:
        """Call something as handlers are called: what it pushes is one write."""
        if self._delivering:
            function(*arguments)
            return
        self._delivering = True
        try:
            function(*arguments)
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
                    if self._pipe is not None:
                        self._pipe.pass_on()
                    elif self._stream is not None:
                        self._stream.arrived()
                    else:
                        inbox.deliver(self, self.get_terminator if self._asks else None)
                except Exception:  # noqa: BLE001 it is the application's, and is logged
                    self._failed()
            if inbox.resting:
                self._take_turn()
            if self._outbox or self._state is _CLOSING:
                self._flush()
            if self._outbox.draining is not None and self._turn is None:
                self._tell_drained()
            if self._upgrade is not None:
                self._upgrade.proceed()
            if inbox.paused or not inbox.reading:
                self._set_reading()
            if self._close_when_idle and not self._unsettled:
                self._close_if_idle()

    def _take_turn(self) -> None:
        """Settle again in the reactor's next iteration; at once where there is no reactor."""
        if self._turn is not None:
            return
        reactor = None if self.transport is None else transports.reactor_of(self.transport)
        if reactor is None:
            self._next_turn()
        else:
            self._turn = reactor.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        self._outbox.drained_at = self._outbox.taken
        self._inbox.go_on()
        self._go_on()

    def _close_if_idle(self) -> None:
        """Everything was delivered that can be: at the peer's end call `handle_eof`; then close."""
        inbox = self._inbox
        if self._state is not _OPEN or not self._is_idle:
            return
        if self._pipe is not None:
            if inbox.peer_finished and not inbox.told_of_end:
                inbox.told_of_end = True
                self._pipe.target.end_sending()
            if not (inbox.peer_finished and self._outbox.closing):
                return
        elif inbox.peer_finished and not inbox.told_of_end:
            inbox.told_of_end = True
            ours = getattr(self.handle_eof, "__func__", None) is Hooks.handle_eof
            if not (ours or inbox.suspended):  # what comes before TLS is not handled
                rest = b"".join((*(self._incoming or ()), inbox.unfinished))
                self._forget_input()
                self._call(self.handle_eof, rest)
                self._unsettled = True
                return
        self.close_when_done()

    def _hold(self) -> None:
        self._inbox.pause()
        if self._delivering:
            self._unsettled = True
        else:
            self._set_reading()

    def _choke(self) -> None:
        """Hold delivery, because too much waits to be sent."""
        if not self._inbox.choked:
            self._inbox.choked = True
            self._hold()

    def _unchoke(self) -> None:
        """What waits to be sent is not a reason to hold delivery any more."""
        if self._stream is not None:
            self._stream.drained()
        if self._inbox.choked:
            self._inbox.choked = False
            if self._inbox.release():
                self._go_on()

    def _set_reading(self) -> None:
        if self._outbox.phase is _READY:
            self._inbox.set_reading(self.transport)

    def _forget_input(self) -> None:
        self._inbox.clear()
        self._incoming = None

    # -- internals: output

    def _check_caller(self, name: str, remedy: str) -> None:
        if not self._outbox.registered and self._outbox.phase is not _DEPARTED:
            raise RuntimeError(
                f"{type(self).__qualname__}.{name}() is called by the transport, and stops output;"
                f" {remedy}"
            )

    def _drop_output(self, *, hold_back: bool = False) -> None:
        """Forget what is queued, and stop the producers; see `Outbox.stop`."""
        if raised := self._outbox.stop(hold_back=hold_back):
            reports.stopped_producers_raised(self._log, self, raised)

    def _pushed(self) -> None:
        """Something was queued: write it, unless handlers are running and it is less than a piece."""
        if not self._delivering or self._outbox.size >= self._outbox.piece:
            self._flush()
        else:
            self._unsettled = True
        self._check_level()

    def _check_level(self) -> None:
        outbox, size = self._outbox, self._outbox.size
        source = self._fed_by
        if source is not None:
            high_water = HIGH_WATER if self.high_water is None else self.high_water
            if size > high_water:
                source._choke()
            elif size <= self.low_water:
                source._unchoke()
        elif self.max_unsent is not None and size > self.max_unsent:
            if outbox.phase is not _DEPARTED:
                self._abort(errors.UnsentLimitExceeded(self.max_unsent, size))
            return
        if self._pipe is not None:
            return  # what it receives is not answered here
        if self.high_water is not None and size > self.high_water:
            # While closing nothing is added, and a peer that we do not read from may stop reading too.
            if not (outbox.closing or self._inbox.pulled):
                self._choke()
        elif size <= self.low_water:
            self._unchoke()

    def _take_piped(self, data: bytes) -> None:
        if self._outbox.closing:
            self.dropped += len(data)
        else:
            self._outbox.push(data)
            self._pushed()

    def _uncouple(self) -> None:
        """This connection is lost: end those that it is coupled with."""
        pipe, source = self._pipe, self._fed_by
        self._pipe = self._fed_by = None
        if pipe is not None and pipe.target is not self:
            pipe.target._fed_by = None
            pipe.target._close()
        if source is not None and source is not self:
            source._pipe = None
            source._inbox.choked = False
            source._close()

    def _flush(self) -> None:
        """Write what the transport takes, and do what had to wait for that."""
        outbox = self._outbox
        if outbox.flushing or outbox.phase is not _READY:
            return
        heard = self._hears_of_drain and bool(outbox)
        try:
            if not outbox.flush(self):
                self._cannot_send()
        except errors.ProducerError:
            self._failed()
        if self._state is _CLOSING:
            if outbox.phase is not _DEPARTED:
                self._leave()
        elif outbox.half_close is HalfClose.WHEN_SENT and outbox.finished:
            outbox.half_close = HalfClose.DONE
            outbox.resign(self.transport)
            transports.end_sending(self.transport)
        if outbox.size or self._inbox.choked or self._inbox.pulled or self._fed_by is not None:
            self._check_level()
        if (heard or outbox.draining is not None) and not outbox and self._state is _OPEN:
            if heard:
                outbox.await_drain().heard = True
            if self._delivering:
                self._unsettled = True
            else:
                self._take_turn()  # not inside a call of push()
        if self._upgrade is not None and not self._delivering:
            self._upgrade.proceed()

    def _tell_drained(self) -> None:
        """Tell who waits for it that the queue is empty, if it is; handlers are running."""
        outbox = self._outbox
        draining = outbox.draining
        if draining is None or outbox or self._state is not _OPEN:
            return
        pending = self._inbox.awaited > 0
        if pending and not draining.awaited:
            return  # the hook is not called while another one is pending
        outbox.draining = None
        draining.over()
        if draining.heard:
            if pending:
                outbox.await_drain().heard = True
            else:
                self._call(self.handle_drained)
        self._unsettled = True
        if outbox and self._state is _OPEN:
            # That is told too, be it sent at once; but others have their turn before.
            outbox.await_drain().heard |= draining.heard
            self._take_turn()

    # -- internals: limits

    def _enter_mode(self, mode: Mode | None) -> None:
        before, self._mode = self._mode, mode
        limits = Limits() if mode is None else mode.limits
        for one in (mode, before):
            if one is not None and one.limits.max_message_length is not UNSET:
                self.max_message_length = limits.value("max_message_length", one.longest)
                break
        if self._deadlines is not None:
            self._deadlines.enter_mode(limits)
        elif self.transport is not None and self._state is not _CLOSED:
            begin(self, self.transport, limits)

    def _begin_deadlines(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        if self._mode is not None:
            deadlines.enter_mode(self._mode.limits)

    # -- internals: asked by `Deadlines`

    def _standing(self) -> Standing:
        inbox, outbox = self._inbox, self._outbox
        begun = outbox.taken > 0 or outbox.size > 0 or not (inbox.terminator or self._asks)
        busy = inbox.awaited > 0
        if (stream := self._stream) is not None:
            busy = not stream.waits
            begun = begun or busy or stream.took
        return Standing(
            opening=self._state is _CONNECTING or self._upgrade is not None,
            closing=self._state is _CLOSING,
            busy=inbox.held or inbox.choked or busy,
            begun=begun,
            ended=inbox.message_ended(),
            length=inbox.length if inbox.in_message else None,
            sent=outbox.taken,
            unsent=outbox.size,
        )

    def _quiet(self, sent: int) -> bool:
        """
        Return whether there is nothing to tell, since `_standing` said that so much was *sent*.
        """
        inbox, outbox = self._inbox, self._outbox
        return (
            outbox.taken == sent
            and not outbox.size
            and self._state is _OPEN
            and self._upgrade is None
            and bool(inbox.terminator)
            and not inbox.paused
            and inbox.kept is None
            and inbox.untouched
        )

    def _timed_out(self, error: errors.TimedOut) -> None:
        if self._state is not _OPEN:
            self._abort(error)
            return
        self._report(error)
        # A peer that takes nothing would not take an answer either.
        ends = self._abort if error.kind == "write_stall" else self._close
        self._call(self.handle_timeout, error.kind, then=ends)

    # -- internals: asked by the transport, see `endings.let_protocol_end`

    def _takes_closing(self) -> bool:
        # What we are done with, or have nothing to send to yet, may close at once.
        if self._outbox.phase is _DEPARTED or not (self._outbox.phase is _READY or self._outbox):
            return False
        self._close()
        return True

    def _takes_half_closing(self) -> bool:
        outbox = self._outbox
        if outbox.phase is _DEPARTED or outbox.half_close is HalfClose.DONE:
            return False  # it was we who told it
        self.end_sending()
        return True

    def _takes_write(self, transport: Any, data: bytes) -> bool:
        # What a policy in between writes is our own, which it delayed, unless a handler is running.
        own = not self._delivering and self.transport is not transport
        if own or self._outbox.flushing or not self._outbox:
            return False
        AsyncChat.push(self, data)
        return True

    def _takes_tls(self) -> None:
        self._flush()
        if self._outbox:
            raise RuntimeError(
                "startTLS() was called with output queued that cannot be sent yet, and would be"
                " encrypted; call AsyncChat.start_tls(), which waits for it"
            )

    # -- internals: closing

    def _server_stops(self) -> None:
        """Called by a server that is stopping, before `handle_shutdown`."""
        self._server_is_stopping = True
        if self._closing is not None:
            self._closing.server_stops()

    def _stopped_by_server(self) -> None:
        """Called by a server that is stopping, and that ends this connection now."""
        over = self._outbox.phase is _DEPARTED and endings.sent_all(self.transport)
        if self.close_reason is None and not over:
            self.close_reason = errors.StoppedByServer()

    def _cannot_send(self) -> None:
        """The transport takes nothing more: deliver what has arrived, and close."""
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
        """While closing: something was written, or there is nothing to write."""
        if self.transport is None:
            return
        if self._closing is None:
            if closing.at_once(self.transport, self._inbox, self._outbox):
                return
            self._closing = closing.Closing(self, self._inbox, self._outbox, self._abort)
            self._closing.server_is_stopping = self._server_is_stopping
        self._closing.proceed()


if sys.flags.dev_mode:
    check_threads(AsyncChat)
