"""
`AsyncChat`: messages in, a queue of bytes and producers out, on any Twisted transport.

Theory of operation
===================

*Input.* ``dataReceived`` gives the chunk to a `Framer`, which calls the handlers. While handlers run
nothing is delivered a second time. What is held back waits in an `Inbox`, which knows why.

*Output.* `push` appends to an `Outbox`. What was pushed while one chunk was handled is written when the
handlers are done, as one write.

*Closing.* One `State`, changed by one method. CLOSING takes nothing new, sends what is queued, and
then lets the transport go; see `txasynchat.protocol.closing`. Others may call ``loseConnection`` or
``loseWriteConnection`` of the transport: the application, a mixin, a policy. The transport asks us
first (`endings.let_protocol_end`), so that what is queued goes before the end, in limited time. What
somebody writes to the transport goes behind it in the same way.

What may happen at any moment is done at one: handlers may push, pause, close or fail, and so may
producers that are asked meanwhile. Each of these notes that something changed, and `_settle` goes round
until nothing does.
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
from txasynchat.protocol.hooks import Hooks
from txasynchat.protocol.inbox import Inbox
from txasynchat.protocol.outbox import HalfClose, Level, Outbox, Phase
from txasynchat.protocol.sending import Sending
from txasynchat.protocol.starttls import Upgrade, is_for_client
from txasynchat.terminators import check_terminator
from txasynchat.tls import layer as tlslayer
from txasynchat.tls.layer import TLSInfo
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
    #: failed: what is queued is sent, what is pushed now is dropped.
    CLOSING = "closing"
    #: The connection is gone.
    CLOSED = "closed"


# A name of the module costs a tenth of a member of an enum in 3.11.
_CONNECTING = State.CONNECTING
_OPEN = State.OPEN
_CLOSING = State.CLOSING
_CLOSED = State.CLOSED
_READY = Phase.READY
_DEPARTED = Phase.DEPARTED


@implementer(IPushProducer, IConsumer, IHalfCloseableProtocol, IHandshakeListener)
class AsyncChat(Hooks, Sending, Protocol):
    """
    A connection that speaks in messages: ``asynchat.async_chat`` as a Twisted protocol.

    Override either `message_received`, or `collect_incoming_data` and `found_terminator`; and set a
    terminator, as the class attribute or by `set_terminator` in `handle_connect` or ``__init__``.
    No ``__init__`` of this class need be called, and ``connectionMade`` belongs to the subclass;
    one that overrides ``connectionLost`` calls ``super()``.

    All methods belong to the reactor's thread; another one uses ``reactor.callFromThread``. Under
    ``python -X dev`` the methods that an application calls raise `RuntimeError` in any other.

    Stdlib: asynchat.async_chat (3.11 library reference), whose names and order of calls these are.
    Deliberate differences: `max_message_length`; `set_terminator` checks its argument; `pause` takes
    effect before the next message; nothing is delivered after `close`.
    """

    # -- state that an application may read

    transport: Any = None
    #: What ended the connection otherwise than in order: what the peer did or what befell it, or
    #: `StoppedByServer`. None if it ended in order, if this side ended it (by `abort`, or because a
    #: handler raised), or if it has not ended. To be read in `handle_close`; `handle_end` is given it.
    close_reason: ChatError | None = None

    # What may be set and overridden is in `txasynchat.protocol.hooks`; what takes output is in
    # `txasynchat.protocol.sending`.

    #: `get_terminator` is overridden, and is asked.
    _asks: ClassVar[bool] = False
    #: handle_secure is overridden.
    _hears_of_tls: ClassVar[bool] = False
    # It is set before __init__, all at once, and is nothing of the class's: CPython gives instances
    # room for the attributes that the first ones of their class have, up to thirty; with later ones, or
    # more, each connection has a dict, and each look into it takes longer, as it does where the class
    # has an attribute of that name.
    _state: State
    _framer: Framer
    _inbox: Inbox
    _outbox: Outbox
    #: Handlers are running. What they change, or (_redeliver) what lets delivery go on, is looked at
    #: when they have run.
    _delivering: bool
    _unsettled: bool
    _redeliver: bool
    #: Each chunk is settled: `get_terminator` is overridden, or the connection closes when it is idle.
    _settles: bool
    _close_when_idle: bool
    #: `close` or `abort` was called.
    _close_requested: bool
    #: `start_tls` was called, and the handshake is not over; the end of the connection was asked for.
    _upgrade: Upgrade | None
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
            TypeError, ValueError: it is no terminator, or a number above `max_message_length`; or a
                setting is out of its range.
        """
        super().__init_subclass__(**arguments)
        ranges.check_class(cls, ranges.HANDLER)
        cls._asks = cls.get_terminator is not AsyncChat.get_terminator
        cls._hears_of_tls = cls.handle_secure is not AsyncChat.handle_secure
        settings.check_terminator_of(cls)

    @classmethod
    def _set_up(cls) -> None:
        """
        Prepare the class for its first connection; decorators such as ``dataclass`` are done with it.

        Once more where a setting was assigned to the class later.
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

        All of it happens here, so that ``connectionMade`` belongs to the subclass altogether.

        Raises:
            RuntimeError: this object has, or had, another connection; the new one is aborted.
        """
        if self.transport is not None:
            error = RuntimeError(
                f"{self!r} is used for a second connection; a factory makes a new protocol for each"
            )
            transports.turn_away(transport, self, error)
            raise error
        tlslayer.adopt(transport)
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

        A short way for the commonest moment, at which nothing is held: a line of 64 bytes and its
        answer, one at a time on 50 connections, cost a server 10.9 microseconds with it and 13.1 with
        `_receive_otherwise` for all (CPython 3.11).
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
        Tell the producers that are left, `handle_close` unless the application closed, `handle_end`.

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
        self._outbox.lose()
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

        Bytes behind the last terminator are no message, and are dropped. An application that is not
        ready to answer when `found_terminator` is called pauses delivery until it is.
        """
        self._inbox.peer_finished = True
        if self._closing is not None:
            self._closing.peer_finished()
        self.close_when_idle()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """
        Nothing can be sent any more: the connection ends, unless this side asked for that.

        What has arrived is delivered first. A process that closes its input may have no use for any;
        there the connection ends when there is something to send.
        """
        # So the next attempt to send finds out; a request to close is none.
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

        May be called at any time, and from inside any handler. A number above `max_message_length`,
        which may be what the peer said, is a message that is too long: `message_too_long` is called
        without waiting for a byte of it, here or, from inside a handler, when that has returned.

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
    terminator: Any = settings.setting(
        None, "_framer", "terminator", check=check_terminator, assign=set_terminator
    )

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
        The server stops: come to an end; see `Server`. Called once, however long that takes.

        By default `close_when_idle`. A handler that is at work between messages (a transaction, an
        answer that comes later) does better to finish that, and close then.
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
        Speak TLS from here on: as server or as client, in mid-connection.

        What was pushed before, producers included, is sent in the clear; what is pushed afterwards
        waits for the handshake. Nothing more is delivered until `handle_secure` was called. When
        the connection is closing, nothing happens.

        Args:
            options: a `ServerOptions`, a `ClientOptions`, or a connection creator of Twisted's.
            leftovers: what becomes of bytes behind the message that made the application call this,
                and of bytes that come before the last plaintext was handed to the transport.

        Raises:
            RuntimeError: there is TLS already, or its handshake is going on; the connection is not
                open yet; or its transport is of a kind that TLS cannot be put on.
            TypeError: *options* are none of those above.
            ValueError: *leftovers* is no `Leftovers`.
        """
        is_client = is_for_client(options)
        if self._outbox.closing:
            return
        if self._upgrade is not None:
            raise RuntimeError("TLS was started already")
        upgrade = Upgrade(
            self,
            self._inbox,
            self._outbox,
            options,
            leftovers,
            is_client=is_client,
            give_up=self._give_up,
            forget_input=self._forget_input,
        )
        if upgrade.begin():
            self._upgrade = upgrade
            self._go_on()

    def discard_buffers(self) -> None:
        """
        Drop what was received and not delivered, and what is queued and not sent; stop producers.

        Stdlib: asynchat.async_chat.discard_buffers.
        """
        self._forget_input()
        self._drop_output(hold_back=self._upgrade is not None and self._upgrade.waits)
        if self._state is not _CLOSED:
            self._pushed()

    def pause(self) -> None:
        """
        Deliver nothing from the next message on, and stop reading; harmless when repeated.

        Bytes that were read already wait, decrypted ones of TLS too.
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
        The peer's address as the `socket` module gives it, ``(host, port)`` or a path.

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
        Open the connection as soon as `addr` is the peer's, and not a proxy's.
        """
        if transports.when_introduced(self.transport, self._open):
            self._open()
        elif self._outbox.closing:
            self._leave()

    def _open(self) -> None:
        """
        The transport is ready for both directions.
        """
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

    def _give_up(self, error: PeerError | None) -> None:
        """
        Close now, because of *error* where there is one.
        """
        if error is not None:
            self._report(error)
        self._abort()

    def _abort(self) -> None:
        """
        Close now; the transport calls ``connectionLost`` when it is done.
        """
        if self._state is _CLOSED:
            return
        self._inbox.discard()
        self._set_state(_CLOSING)
        self._outbox.abandon()
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
            # What stands behind it would follow a piece that is cut off.
            self._drop_output()
        try:
            self.handle_error()
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            reports.handler_raised(self._log, self, "{peer}: {handler}.handle_error raised")
        self._close()

    def _report(self, error: PeerError) -> None:
        """
        Log a peer's mistake, and remember it if it is what ends the connection.
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
        Take bytes that arrive at any other moment than the usual one.
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
        Deliver what waits, as far as that is allowed; then do what there is to do.
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

        What is done here may call handlers again, so it goes round until there is nothing to do.
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
        """
        A reason to hold delivery has come.
        """
        self._framer.pause()
        if self._delivering:
            self._unsettled = True
        else:
            self._set_reading()

    def _release(self) -> None:
        """
        A reason to hold delivery has gone.
        """
        if self._inbox.release():
            self._go_on()

    def _unchoke(self) -> None:
        """
        What waits to be sent is no reason any more to hold delivery.
        """
        if self._inbox.choked:
            self._inbox.choked = False
            self._release()

    def _set_reading(self) -> None:
        if self._outbox.phase is _READY:
            self._inbox.set_reading(self.transport)

    def _forget_input(self) -> None:
        """
        Drop what was received, be it delivered and collected, or not.
        """
        self._inbox.clear()
        self._incoming = None

    # -- internals: output

    def _drop_output(self, *, hold_back: bool = False) -> None:
        """
        Forget what is queued, and tell the producers; see `Outbox.stop`.
        """
        errors = self._outbox.stop(hold_back=hold_back)
        if errors:
            reports.stopped_producers_raised(self._log, self, errors)

    def _pushed(self) -> None:
        """
        Something was queued: write it, unless the handlers are running and there is little of it.
        """
        if not self._delivering or self._outbox.size >= self._outbox.piece:
            self._flush()
        else:
            self._unsettled = True
        self._check_level()

    def _check_level(self) -> None:
        """
        Do what the number of bytes that wait calls for.
        """
        outbox = self._outbox
        level = outbox.level(self)
        if level is Level.EXCESSIVE:
            if outbox.phase is not _DEPARTED:
                self._give_up(UnsentLimitExceeded(self.max_unsent or 0, outbox.size))
        elif level is Level.HIGH:
            # While closing nothing is added, and a peer that is not read may not read either.
            if not (outbox.closing or self._inbox.choked):
                self._inbox.choked = True
                self._hold()
        elif level is Level.LOW:
            self._unchoke()

    def _flush(self) -> None:
        """
        Write what the transport takes, and do what follows when it has.
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
            self._end_sending()
        if outbox.size or self._inbox.choked:
            self._check_level()
        if self._upgrade is not None and not self._delivering:
            self._upgrade.proceed()

    def _takes_write(self, transport: Any, data: bytes) -> bool:
        """
        Called by the transport, which somebody told to write: send that behind what is queued.

        Returns:
            False, if it may be written at once: it is we who wrote it, or nothing is queued. What a
            policy in between writes is ours, kept for later, unless a handler is running.
        """
        if self._outbox.flushing or not self._outbox:
            return False
        if not self._delivering and self.transport is not transport:
            return False
        AsyncChat.push(self, data)
        return True

    def _takes_tls(self) -> None:
        """
        Called by the transport, which somebody told to start TLS: send in the clear what is queued.

        Raises:
            RuntimeError: not all of it can be sent now.
        """
        self._flush()
        if self._outbox:
            raise RuntimeError(
                "startTLS() with something queued that cannot be sent yet, and would be sent encrypted;"
                " AsyncChat.start_tls() waits for it"
            )

    # -- internals: closing

    def _stopped_by_server(self) -> None:
        """
        Called by the server that stops, and ends this connection now.
        """
        if self.close_reason is None:
            self.close_reason = StoppedByServer()

    def _takes_closing(self) -> bool:
        """
        Called by the transport, which somebody told to close: see to it that this comes to an end.

        Returns:
            False, if it may close at once: we let it go, or have nothing to send yet.
        """
        if self._outbox.phase is _DEPARTED or not (self._outbox.phase is _READY or self._outbox):
            return False
        self._close()
        return True

    def _takes_half_closing(self) -> bool:
        """
        Called by the transport, which somebody told to end the sending: do that when all is sent.

        What is pushed from now on is dropped; messages are delivered as before.

        Returns:
            False, if it may do so at once: it is we who told it.
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

    def _end_sending(self) -> None:
        """
        Everything up to the end of the sending was taken.
        """
        self._outbox.half_close = HalfClose.DONE
        self._outbox.resign(self.transport)
        self.transport.loseWriteConnection()

    def _cannot_send(self) -> None:
        """
        The transport takes nothing any more: deliver what has arrived, and close.
        """
        outbox = self._outbox
        if outbox.phase is _DEPARTED or self._state is _CLOSED:
            return
        outbox.full = True  # or the end of the queue, which is next, would end the connection
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
            self._closing = closing.Closing(self, self._inbox, self._outbox, self._give_up)
        self._closing.proceed()


if sys.flags.dev_mode:
    check_threads(AsyncChat)
