"""
`AsyncChat`: messages in, a queue of bytes and producers out, on any Twisted transport.

Theory of operation
===================

*Input.* ``dataReceived`` gives the chunk to a `Framer`, which calls the handlers. While handlers run
nothing is delivered a second time: bytes that arrive meanwhile wait, and the running delivery picks
them up. Delivery is held for three reasons, each a bit of ``_held``: the application called `pause`,
the output queue is above `high_water`, or the connection is not open. Reading from the transport
follows: it is switched once, after the handlers have run, and only if it has to change.

*Output.* `push` appends to an `OutputQueue`. What was pushed while one chunk was handled is written
when the handlers are done, as one write, and without waiting for the reactor's next turn where the
transport allows it (`txasynchat.transports`). While something waits, the protocol is the transport's
push producer: once the transport says that it is full nothing is taken from the queue until it says
otherwise. So producers are asked for no more than the transport can hold, and whatever waits, waits
here, where it is counted. Only while something waits, because a transport with a producer does not
close: a policy's ``loseConnection`` on an idle TLS connection would never be done.

*Closing.* One `State`, changed by one method. CLOSING takes nothing new, sends what is queued, and
then lets the transport go; see `txasynchat.closing`. Others may call ``loseConnection`` or
``loseWriteConnection`` of the transport: the application, a mixin, a policy. The transport asks us
first (`endings.let_protocol_end`), so that what is queued goes before the end, in limited time. What
somebody writes to the transport goes behind it in the same way.
"""

from __future__ import annotations

import enum
import inspect
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPullProducer,
    IPushProducer,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from typing_extensions import override
from zope.interface import implementer

from txasynchat import endings, ranges, tlslayer, transports
from txasynchat.closing import Closing
from txasynchat.errors import (
    ConnectionReset,
    MessageTooLong,
    PeerError,
    ProducerError,
    StoppedByServer,
    TLSError,
    UnsentLimitExceeded,
)
from txasynchat.framing import Framer, Overflow
from txasynchat.handlers import unawaited
from txasynchat.leftovers import Leftovers
from txasynchat.log import Throttle, escape, failure
from txasynchat.producers import Buffer, OutputQueue, refuse
from txasynchat.reactor_thread import check_threads
from txasynchat.starttls import start_tls
from txasynchat.terminators import check_terminator
from txasynchat.tlsinfo import TLSInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from txasynchat.errors import ChatError
    from txasynchat.producers import Producer
    from txasynchat.starttls import Upgrade
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


_peer_errors = Throttle(1.0)

# Why delivery and reading are held: bits of AsyncChat._held.
_BY_APPLICATION = 1
_BY_OUTPUT = 2
_BY_CLOSE = 4
# A value of AsyncChat._after.
_REPLY = "reply"
# Values of AsyncChat._half_close, in their order.
_NOT_ASKED = 0
_WHEN_SENT = 1
_DONE = 2

# A name of the module costs a tenth of a member of an enum, and these are asked for on every message.
_CONNECTING = State.CONNECTING
_OPEN = State.OPEN
_CLOSING = State.CLOSING
_CLOSED = State.CLOSED


# What may be overridden, and is not waited for.
_HOOKS = (
    "connectionMade",
    "handle_connect",
    "handle_secure",
    "message_received",
    "collect_incoming_data",
    "found_terminator",
    "message_too_long",
    "handle_shutdown",
    "handle_error",
    "handle_close",
    "handle_end",
)


def _is_field(value: object) -> bool:
    """
    Return whether *value* stands in a class body for a field of `dataclasses` or of attrs.
    """
    return type(value).__module__.partition(".")[0] in {"attr", "attrs", "dataclasses"}


if TYPE_CHECKING:
    _shown = property
else:

    class _shown:  # noqa: N801 stands where `property` would
        """
        A property that an instance may hide by an attribute of its own.

        Applications that never meant these names use them: ``self.state = "AUTH"`` and ``self.addr =
        addr`` are idioms of Twisted's.
        """

        def __init__(self, read: Any) -> None:
            self._read = read
            self.__doc__ = read.__doc__

        def __get__(self, chat: Any, owner: Any = None) -> Any:
            return self if chat is None else self._read(chat)


class _Setting:
    """
    An attribute of `AsyncChat` that its framer keeps: of a class, what its connections begin with; of
    a connection, what is in force. Read and written there, it costs a message nothing.

    Subclasses set a plain value, which hides this; `AsyncChat._set_up` puts it in place again.
    """

    def __init__(self, value: Any, name: str, kept_as: str) -> None:
        self._value = value
        self._name = name
        self._kept_as = kept_as

    def begin_with(self, value: Any) -> _Setting:
        """
        Return the same attribute for a class with another value.
        """
        return type(self)(value, self._name, self._kept_as)

    def __get__(self, chat: Any, owner: Any = None) -> Any:
        if chat is None or chat._lazy_framer is None:
            return self._value
        return getattr(chat._lazy_framer, self._kept_as)

    def __set__(self, chat: Any, value: Any) -> None:
        if self._name in ranges.HANDLER:
            ranges.HANDLER[self._name].check(f"{type(chat).__qualname__}.{self._name}", value)
        setattr(chat._framer, self._kept_as, value)

    def __delete__(self, chat: Any) -> None:
        self.__set__(chat, self._value)


class _Terminator(_Setting):
    """
    The attribute `AsyncChat.terminator`, which is checked.
    """

    @override
    def begin_with(self, value: Any) -> _Setting:
        return super().begin_with(check_terminator(value))

    @override
    def __set__(self, chat: Any, value: Terminator) -> None:
        AsyncChat.set_terminator(chat, value)


def _setting(value: Any, name: str, kept_as: str) -> Any:
    """
    Make a `_Setting`, which for a type checker is the value that it begins with.
    """
    return _Setting(value, name, kept_as)


@implementer(IPushProducer, IConsumer, IHalfCloseableProtocol, IHandshakeListener)
class AsyncChat(Protocol):
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

    # -- settings: class attributes, or instance attributes set before the connection is made. They are
    # checked there: see `txasynchat.ranges`.

    #: The longest message, in bytes without its terminator; None for no limit. See `Framer`.
    #: May be changed at any moment, and holds from the next byte on.
    max_message_length: int | None = _setting(16_384, "max_message_length", "limit")
    #: What follows when a message is longer, after `message_too_long`. May be changed at any moment,
    #: in that hook too; a message of which it was decided already stays as it is.
    overflow: Overflow = _setting(Overflow.CLOSE, "overflow", "overflow")
    #: Bytes waiting to be sent above which delivery and reading stop; None for never.
    high_water: int | None = 65_536
    #: Bytes waiting to be sent at which they go on.
    low_water: int = 16_384
    #: Bytes waiting to be sent above which the connection is aborted; None for no limit. A single
    #: `push` of more is a ValueError.
    max_unsent: int | None = 8 << 20
    #: Seconds, while closing, in which the peer must take something, or the connection is aborted;
    #: None: wait.
    close_timeout: float | None = 10.0
    #: Bytes asked of a producer, or written, at once.
    ac_out_buffer_size: int = 65_536
    #: Where the time for `close_timeout` comes from; None for the transport's own reactor.
    clock: IReactorTime | None = None

    # -- state that an application may read

    transport: Any = None
    #: Bytes pushed too late, which were dropped.
    dropped: int = 0
    #: What ended the connection otherwise than in order: what the peer did or what befell it, or
    #: `StoppedByServer`. None if it ended in order, if this side ended it (by `abort`, or because a
    #: handler raised), or if it has not ended. To be read in `handle_close`; `handle_end` is given it.
    close_reason: ChatError | None = None

    _log = Logger()
    #: The transport was last told to read.
    _reading = True
    #: `get_terminator` is overridden, and is asked.
    _asks: ClassVar[bool] = False
    #: handle_secure is overridden.
    _hears_of_tls: ClassVar[bool] = False
    #: Set in the namespace of each class that had a connection, or was warned of.
    _begins_with: ClassVar[tuple[Any, ...]]
    #: `max_message_length` or `overflow` is a property of a subclass.
    _computes: ClassVar[bool] = False
    _warned_of_terminator: ClassVar[bool]
    _warned_of_result: ClassVar[bool]
    #: What arrived while handlers were running.
    _received: list[bytes] | None = None
    #: `close` or `abort` was called; the peer will send no more; input was thrown away.
    _close_requested = False
    _peer_finished = False
    _discarded = False
    #: The transport was let go, or is lost.
    _left = False
    #: The sending alone is to be ended, or was.
    _half_close = _NOT_ASKED
    #: `start_tls` was called, and the handshake is not over.
    _upgrade: Upgrade | None = None
    #: The end of the connection, once it was asked for.
    _closing: Closing | None = None
    #: What the transport writes to, where that may be lost by itself.
    _writing_end: Any = None
    _incoming: list[bytes] | None = None

    # What each message needs. It is set before __init__, all at once, and is nothing of the class's:
    # CPython gives instances room for the attributes that the first ones of their class have, up to
    # thirty; with later ones, or more, each connection has a dict, and each look into it takes
    # longer, as it does where the class has an attribute of that name.
    _state: State
    #: Why delivery and reading are held; 0 for not at all.
    _held: int
    #: Handlers are running; when they have run, there is something to do, or (_REPLY) only to write
    #: what they pushed; delivery goes on then.
    _delivering: bool
    _after: object
    _resumed: bool
    #: What is pushed is dropped: CLOSING, CLOSED or half-closed; `close_when_idle` was called.
    _ending: bool
    _close_when_idle: bool
    #: The transport is ready for both directions.
    _opened: bool
    #: Bytes are being taken from the queue; the transport has no room for more.
    _flushing: bool
    _full: bool
    #: This is the transport's producer; how to send without the reactor's next turn.
    _registered: bool
    _send_now: Callable[[Any, bytes], bytes] | None
    #: Bytes taken from the queue, ever.
    _taken: int
    _lazy_framer: Framer | None
    _lazy_output: OutputQueue | None

    def __new__(cls, *_arguments: Any, **_named: Any) -> Self:
        """
        Set the state up, so that subclasses need not call this class's ``__init__``.
        """
        settings = (cls.terminator, cls.max_message_length, cls.overflow)
        if cls.__dict__.get("_begins_with") != settings:
            cls._set_up()
        chat = super().__new__(cls)
        chat._state = State.CONNECTING
        chat._held = _BY_CLOSE
        chat._delivering = chat._after = chat._resumed = False
        chat._ending = chat._close_when_idle = chat._opened = False
        chat._flushing = chat._full = chat._registered = False
        chat._send_now = None
        chat._taken = 0
        chat._lazy_framer = None
        chat._lazy_output = None
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
        terminator = cls.terminator
        # Whatever has __get__ or is a field is somebody else's, who puts a value there later.
        if hasattr(terminator, "__get__") or _is_field(terminator):
            return
        check_terminator(terminator)
        limit = cls.max_message_length
        if isinstance(terminator, int) and isinstance(limit, int) and terminator > limit:
            raise ValueError(
                f"{cls.__qualname__}: terminator {terminator} is above max_message_length {limit}, so "
                "that every message is too long"
            )

    @classmethod
    def _set_up(cls) -> None:
        """
        Prepare the class for its first connection; decorators such as ``dataclass`` are done with it.

        Once more where a setting was assigned to the class later.
        """
        for name in ("terminator", "max_message_length", "overflow"):
            owner = next(base for base in cls.__mro__ if name in vars(base))
            value = vars(owner)[name]
            ours = vars(AsyncChat)[name]
            if isinstance(value, _Setting):
                continue
            if not issubclass(owner, AsyncChat):
                owner = cls  # that of a class mixed in
            if not hasattr(value, "__get__"):
                setattr(owner, name, ours.begin_with(value))
            elif isinstance(value, property) and name != "terminator":
                cls._computes = True
            else:
                setattr(owner, name, ours)  # in place of a slot, which would hide it
        if "_begins_with" not in cls.__dict__:
            for hook, why in unawaited(cls, _HOOKS):
                cls._warned_of_result = True
                cls._log.warn(
                    "{handler}.{hook} {why}", handler=cls.__qualname__, hook=hook, why=why
                )
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
        self._send_now = transports.immediate_sender(transport)
        if self._send_now is None:
            self._writing_end = transports.writing_end(transport)
        framer = self._framer
        transports.tell_of_half_close(transport, self)
        try:
            super().makeConnection(transport)  # type: ignore[no-untyped-call] # Twisted's, untyped
            ranges.check_owner(self, ranges.HANDLER, AsyncChat)
            if self._computes:
                framer.limit = self.max_message_length
                framer.overflow = self.overflow
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
        if self._left:
            self._abort_transport()  # abort() was called before there was anything to abort
        elif transports.when_secure(transport, self):
            self._open_if_introduced()
        elif self._state is _CLOSING:
            self._leave()

    @override
    def dataReceived(self, data: bytes) -> None:
        """
        Deliver the messages in *data*, then write what they made the handlers push.
        """
        if self._held or self._delivering or self._asks:
            self._receive_otherwise(data)
            return
        self._delivering = True
        try:
            try:
                self._lazy_framer.receive(self, data)  # type: ignore[union-attr] # since makeConnection
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                self._failed()
            if self._after and not (self._after is _REPLY and self._send_reply()):
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
        elif self.close_reason is None and self._broke_off(error):
            self.close_reason = ConnectionReset()
        self._registered = False
        self._left = True
        self._framer.close()
        self._drop_output()
        for ending in (self._closing, self._upgrade):
            if ending is not None:
                ending.cancel()
        self._closing = None
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
        self._peer_finished = True
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
        self._full = False
        end = self._writing_end or transports.writing_end(self.transport)
        if (
            # TLS ends its own direction, and leaves the descriptor beneath it open.
            self._half_close == _DONE
            or transports.writing_was_ended(self.transport, end)
            or (
                self._state is _OPEN
                and not self._output
                and transports.waits_for_exit(self.transport)
            )
        ):
            return
        self._cannot_send()

    def handshakeCompleted(self) -> None:  # noqa: N802
        """
        The TLS handshake is done: the connection opens, or goes on after `start_tls`.
        """
        self._upgrade = None
        if not self._opened:
            self._open_if_introduced()

    # -- IPushProducer: called by the transport

    def pauseProducing(self) -> None:  # noqa: N802
        """
        The transport is full: take nothing more from the queue.

        Raises:
            RuntimeError: the application called it, who means `pause`.
        """
        self._check_caller("pauseProducing", "pause() stops delivery and reading")
        self._full = True
        if self._lazy_output is not None:
            try:
                self._lazy_output.pause()
            except ProducerError:
                self._failed()

    def resumeProducing(self) -> None:  # noqa: N802
        """
        The transport has room again.
        """
        self._full = False
        self._flush()

    def stopProducing(self) -> None:  # noqa: N802
        """
        The transport takes nothing any more; the loss of the connection, or of this half, follows.

        Raises:
            RuntimeError: the application called it, who means `abort`.
        """
        self._check_caller("stopProducing", "abort() ends the connection")
        self._full = True
        self._registered = False

    # -- IConsumer: called by a Twisted producer whose turn in the queue it is

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802
        """
        Queue a Twisted producer, which then calls `write`, and at its end `unregisterProducer`.

        So ``FileSender().beginFileTransfer(file, chat)`` works. It takes its turn in the queue like
        any other; several may be registered. Stopped at once if the connection is closing.
        """
        if self._ending:
            producer.stopProducing()
            return
        self._output.register(producer, streaming)
        self._pushed()

    def unregisterProducer(self) -> None:  # noqa: N802
        """
        The registered producer whose turn it is has ended.
        """
        if self._lazy_output is not None:
            self._lazy_output.unregister()
            self._pushed()

    def write(self, data: bytes) -> None:
        """
        Take bytes of the registered producer whose turn it is; without one this is `push`.

        Raises:
            TypeError, ValueError: see `push`.
        """
        self._check_length(data)
        if self._lazy_output is not None and self._lazy_output.write(data):
            self._pushed()
        else:
            self.push(data)

    # -- asynchat: overridden by the application

    def handle_connect(self) -> None:
        """
        The connection is open: both ways, and after the TLS handshake where there is one.

        What is pushed here, or was pushed before, is sent in one write when this returns.
        """

    def handle_secure(self, info: TLSInfo) -> None:
        """
        A TLS handshake is done, before `handle_connect` or, after `start_tls`, in mid-connection.

        Nothing that came in the clear is left to be delivered, and what `_collect_incoming_data` had
        is dropped. After `start_tls`, forget here what else the peer said in the clear (RFC 3207,
        section 4.2): somebody else may have said it. To refuse the peer, `close` or `abort`.
        """

    def message_received(self, message: bytes) -> None:
        """
        A whole message came, without its terminator; it may be empty.

        Not called where `found_terminator` is overridden.
        """
        raise NotImplementedError(
            f"{type(self).__qualname__} overrides neither message_received nor found_terminator"
        )

    def collect_incoming_data(self, data: bytes) -> None:
        """
        A piece of the current message came; it is never empty. By default it is collected.

        Stdlib: asynchat.async_chat.collect_incoming_data.
        """
        self._collect_incoming_data(data)

    def found_terminator(self) -> None:
        """
        The current message is complete. By default it goes to `message_received`.

        A terminator that was a number of bytes is 0 by now, which collects without end.

        Stdlib: asynchat.async_chat.found_terminator.
        """
        hook: Callable[[bytes], object] = self.message_received
        result = hook(self._get_data())
        if result is not None:
            self.hook_returned(result)

    def message_too_long(self, error: MessageTooLong) -> None:
        """
        A message broke `max_message_length`; `overflow` says what follows when this returns.

        Called once for each such message, with the connection still open: a last word may be
        pushed. A terminator set here holds for what comes after the message.
        """

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

    def handle_error(self) -> None:
        """
        A handler, or a producer, raised: ``sys.exc_info()`` has the exception.

        It is logged already, and the connection closes when this returns, after what was pushed
        before, or here, is sent.
        """

    def handle_close(self) -> None:
        """
        The connection has ended, though not by `close` or `abort`. Called once; `state` is CLOSED.

        Stdlib: asyncore.dispatcher.handle_close, which had to close the channel; here it is closed.
        """

    def handle_end(self, reason: ChatError | None) -> None:
        """
        The connection has ended, whatever ended it: the place to leave a registry.

        Called exactly once for each connection that was made, after `handle_close` where that is
        called: after `close` and `abort` too, when ``connectionMade`` or `handle_connect` raised, and
        when the TLS handshake failed, so that `handle_connect` was never called.

        Args:
            reason: the `close_reason`.
        """

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
        framer = self._lazy_framer
        if framer is None:
            framer = self._framer
        if framer.set_terminator(term) and self._opened:
            self._go_on()

    #: The terminator in force; in a class body, or as a field of a dataclass, the one that a connection
    #: begins with. Assigning it is `set_terminator`, reading it `get_terminator`.
    terminator: Any = _Terminator(None, "terminator", "terminator")

    def get_terminator(self) -> Any:
        """
        Return the terminator; a number of bytes counts down, and is 0 at the end of its message.

        A subclass may override this; it is then asked on each round, as in ``asynchat``.
        """
        return self._framer.terminator

    @_shown
    def matched_terminator(self) -> bytes | None:
        """
        The delimiter that ended the latest message; None where its length did.
        """
        return self._framer.matched

    def push(self, data: Buffer) -> None:
        """
        Send bytes after everything that is queued; what is large is better sent by a producer.

        What is pushed from inside handlers is written when they have run, in one write. Dropped, and
        counted in `dropped`, once the connection is closing.

        Raises:
            TypeError: *data* is not bytes-like.
            ValueError: *data* alone is longer than `max_unsent`.
        """
        if self._ending:
            data = memoryview(data)
            self.dropped += data.nbytes
            return
        output = self._lazy_output
        if output is None:
            output = self._output
        if type(data) is bytes and data:
            output._items.append(data)  # as the queue does; a call less for each reply
            output.size += len(data)
        else:
            output.push(data)
        if self._delivering and output.size < self.ac_out_buffer_size:
            if not self._after:
                self._after = _REPLY
        else:
            limit = self.max_unsent
            if limit is not None and output.size > limit:
                self._check_length(data, output)
            self._pushed()

    def push_with_producer(
        self, producer: Producer | Buffer | IPushProducer | IPullProducer
    ) -> None:
        """
        Send what *producer* gives after everything that is queued; see `txasynchat.producers`.

        It is asked only when the transport takes data. If it fails, what was queued before it is
        sent, and the connection is handled as after an exception in a handler. Once the connection
        is closing it is not asked at all, and told at once that it is not needed.

        Raises:
            TypeError: *producer* is no producer.
        """
        if self._ending:
            self._refuse(producer)
        elif isinstance(producer, Buffer):
            self.push(producer)
        elif IPushProducer.providedBy(producer):
            self.registerProducer(producer, True)
        elif IPullProducer.providedBy(producer):
            self.registerProducer(producer, False)
        else:
            self._output.push_producer(producer)
            self._pushed()

    def close_when_done(self) -> None:
        """
        Close when everything queued so far is sent; what is pushed from now on is dropped.

        Messages are delivered until then, as in ``asynchat``. `handle_close` is called at the end.
        """
        if self._state is _CLOSING or self._state is _CLOSED:
            return
        self._output.close_when_done()
        self._set_state(_CLOSING)
        self._release(_BY_OUTPUT)
        self._pushed()
        if not self._delivering:
            self._leave()

    def close_when_idle(self) -> None:
        """
        `close_when_done`, as soon as no message is half received and delivery is not paused.

        So a message that has begun is still answered, and so is one whose handler paused delivery
        until its answer is there.
        """
        self._close_when_idle = True
        if not self._delivering and self._is_idle():
            self.close_when_done()

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
            ValueError: *leftovers* is not a `Leftovers`.
        """
        start_tls(self, options, leftovers)

    def discard_buffers(self) -> None:
        """
        Drop what was received and not delivered, and what is queued and not sent; stop producers.

        Stdlib: asynchat.async_chat.discard_buffers.
        """
        self._framer.clear()
        self._received = self._incoming = None
        self._drop_output()
        if self._upgrade is not None:
            self._upgrade.discarded()
        if self._ending and self._state is not _CLOSED:
            self._output.close_when_done()
        if self._state is not _CLOSED:
            self._pushed()

    def pause(self) -> None:
        """
        Deliver nothing from the next message on, and stop reading; harmless when repeated.

        Bytes that were read already wait, decrypted ones of TLS too.
        """
        self._hold(_BY_APPLICATION)

    def resume(self) -> None:
        """
        Deliver and read again: at once, or, from inside a handler, when it returns.
        """
        self._release(_BY_APPLICATION)

    @_shown
    def state(self) -> State:
        """
        Where the connection is in its life.
        """
        return self._state

    @_shown
    def paused(self) -> bool:
        """
        The application paused delivery.
        """
        return bool(self._held & _BY_APPLICATION)

    @_shown
    def unsent(self) -> int:
        """
        Bytes that were pushed and not yet given to the transport.
        """
        return 0 if self._lazy_output is None else self._lazy_output.size

    @_shown
    def tls(self) -> TLSInfo | None:
        """
        What was agreed on in the TLS handshake; None before, and without TLS.
        """
        return TLSInfo.of(self.transport)

    @_shown
    def addr(self) -> Any:
        """
        The peer's address as the `socket` module gives it, ``(host, port)`` or a path.

        None before there is a connection, and where there are no addresses, as with a process.
        """
        return None if self.transport is None else transports.peer_address(self.transport)

    @property
    def incoming(self) -> list[bytes]:
        """
        The pieces that `_collect_incoming_data` has collected.
        """
        if self._incoming is None:
            self._incoming = []
        return self._incoming

    @incoming.setter
    def incoming(self, pieces: list[bytes]) -> None:
        self._incoming = pieces

    def _collect_incoming_data(self, data: bytes) -> None:
        """
        Keep a piece in `incoming`.

        Stdlib: asynchat.async_chat._collect_incoming_data.
        """
        self.incoming.append(data)

    def _get_data(self) -> bytes:
        """
        Return what is in `incoming`, joined, and empty it.

        Stdlib: asynchat.async_chat._get_data.
        """
        data = b"".join(self.incoming)
        self.incoming.clear()
        return data

    # -- internals: the two halves, made when they are first needed

    @property
    def _framer(self) -> Framer:
        framer = self._lazy_framer
        if framer is None:
            cls = type(self)
            terminator, limit, overflow = cls._begins_with
            if cls._computes:  # asked when the connection is made
                limit = AsyncChat.max_message_length if isinstance(limit, property) else limit
                overflow = AsyncChat.overflow if isinstance(overflow, property) else overflow
            framer = self._lazy_framer = Framer(
                terminator,
                limit=limit,
                overflow=overflow,
                whole=cls.found_terminator is AsyncChat.found_terminator
                and cls.collect_incoming_data is AsyncChat.collect_incoming_data,
            )
        return framer

    @property
    def _output(self) -> OutputQueue:
        output = self._lazy_output
        if output is None:
            output = self._lazy_output = OutputQueue()
        return output

    # -- internals: state

    def _set_state(self, state: State) -> None:
        self._state = state
        self._ending = state is _CLOSING or state is _CLOSED or self._half_close != _NOT_ASKED
        if state is _CLOSED:
            self.connected = False

    def _open_if_introduced(self) -> None:
        """
        Open the connection as soon as `addr` is the peer's, and not a proxy's.
        """
        if transports.when_introduced(self.transport, self._open):
            self._open()
        elif self._ending:
            self._leave()

    def _open(self) -> None:
        """
        The transport is ready for both directions.
        """
        self._opened = True
        if self.max_unsent is not None and self.max_unsent < self.ac_out_buffer_size:
            self.ac_out_buffer_size = max(1, self.max_unsent)  # so push() looks at what is longer
        first = self._state is _CONNECTING
        self._set_state(_OPEN if first else self._state)
        self._delivering = self._after = self._resumed = True
        try:
            if not self._framer.closed:
                if first:
                    self._held &= ~_BY_CLOSE
                if self._hears_of_tls and (info := TLSInfo.of(self.transport)) is not None:
                    self._call(self.handle_secure, info)
                if first and self._state is _OPEN:
                    self._call(self.handle_connect)
                    if self._framer.whole and not self._framer.terminator:
                        self._tell_of_no_terminator()
            self._settle()
        finally:
            self._delivering = False

    def _tell_of_no_terminator(self) -> None:
        """
        Warn, once for each class, that `message_received` waits for a message that never ends.
        """
        cls = type(self)
        if self._asks or "_warned_of_terminator" in cls.__dict__:
            return
        cls._warned_of_terminator = True
        self._log.warn(
            "{handler} has message_received and no terminator, so that no message ever ends: set "
            "terminator in the class, or by set_terminator in handle_connect{hint}",
            handler=cls.__qualname__,
            hint=" (delimiter is a name of LineReceiver's)" if hasattr(self, "delimiter") else "",
        )

    def _close(self) -> None:
        """
        Deliver nothing more, send what is queued, and close.
        """
        if self._state is _CLOSED:
            return
        self._stop_delivery()
        self.close_when_done()
        if not self._delivering:
            self._set_reading()

    def _abort(self) -> None:
        """
        Close now; the transport calls ``connectionLost`` when it is done.
        """
        if self._state is _CLOSED:
            return
        self._stop_delivery()
        self._set_state(_CLOSING)
        self._left = True
        self._drop_output()
        self._abort_transport()

    def _abort_transport(self) -> None:
        if self.transport is not None:
            transports.abort(self.transport)

    def _stop_delivery(self) -> None:
        """
        Deliver nothing any more, and remember whether that threw something away.
        """
        framer = self._framer
        if framer.in_message or framer.buffer or self._received is not None:
            self._discarded = True
        self._held |= _BY_CLOSE
        framer.close()
        self._received = None

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
        if isinstance(sys.exc_info()[1], ProducerError):
            # With the traceback of the producer's own exception, which is the cause.
            failure(self._log, "{peer}: a producer of {handler} failed", **self._about())
            # What stands behind it would follow a piece that is cut off.
            self._drop_output()
        else:
            failure(self._log, "{peer}: {handler} raised", **self._about())
        try:
            self.handle_error()
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            failure(self._log, "{peer}: {handler}.handle_error raised", **self._about())
        self._close()

    def _refuse(self, producer: Any) -> None:
        """
        Tell a producer that comes too late.
        """
        if IPullProducer.providedBy(producer) or IPushProducer.providedBy(producer):
            producer.stopProducing()
        elif isinstance(producer, Buffer):
            self.push(producer)
        else:
            refuse(producer)

    def _about(self) -> dict[str, Any]:
        """
        Say in a log event whose connection it is about.
        """
        transport = self.transport
        return {
            "peer": None if transport is None else transports.peer_name(transport),
            "handler": type(self).__qualname__,
        }

    def _report(self, error: PeerError) -> None:
        """
        Log a peer's mistake: what it is and its numbers, none of its data.

        Once a second for each kind, since a peer can repeat it, and scanners do.
        """
        if not isinstance(error, MessageTooLong) or self.overflow is Overflow.CLOSE:
            self.close_reason = error
        kind = type(error).__name__
        suppressed = _peer_errors.suppressed(kind)
        if suppressed is None:
            return
        # What a scanner does, or a peer that just goes, is no reason to look.
        log = self._log.info if isinstance(error, TLSError) else self._log.warn
        log(
            "{peer}: {error}{before}",
            error=escape(str(error)),
            kind=kind,
            suppressed=suppressed,
            before=f" ({suppressed} of these before it were not logged)" if suppressed else "",
            **self._about(),
        )

    # -- internals: input

    def overflowed(self, error: MessageTooLong) -> None:
        """
        Called by the framer when a message broke its limit; `message_too_long` is the hook.
        """
        self._report(error)
        self._discarded |= self.overflow is Overflow.CLOSE
        self.message_too_long(error)
        if self.overflow is Overflow.CLOSE:  # which the hook may have changed
            self._discarded = True
            self.close_reason = error
            self._close()
        elif self.close_reason is error:
            self._discarded = False
            self.close_reason = None

    def hook_returned(self, result: object) -> None:
        """
        Called when a hook returned something: warn, once for each class, if nobody waits for it.
        """
        cls = type(self)
        if "_warned_of_result" in cls.__dict__ or not (
            isinstance(result, Deferred) or inspect.isawaitable(result)
        ):
            return
        cls._warned_of_result = True
        self._log.warn(
            "a hook of {handler} returned a {kind}, which nobody waits for: "
            "the next hook may come before it",
            handler=cls.__qualname__,
            kind=type(result).__name__,
        )

    def _receive_otherwise(self, data: bytes) -> None:
        """
        Take bytes that arrive at any other moment than the usual one.
        """
        if self._held & _BY_CLOSE and self._state is not _CONNECTING:
            self._discarded = True
        elif not self._delivering:
            self._framer.feed(data)
            if self._opened:
                self._go_on()
        elif self._received is None:
            self._received = [data]
            self._after = True
        else:
            self._received.append(data)

    def _go_on(self) -> None:
        """
        Deliver what waits, as far as that is allowed; then do what there is to do.
        """
        if self._delivering:
            self._after = self._resumed = True
            return
        self._delivering = self._after = self._resumed = True
        try:
            self._settle()
        finally:
            self._delivering = False

    def _settle(self) -> None:
        """
        The handlers have run: write what they pushed, deliver what arrived meanwhile, set reading.

        What is done here may call handlers again, so it goes round until there is nothing to do.
        """
        while self._after:
            self._after = False
            if self._received is not None:
                self._framer.feed(b"".join(self._received))
                self._received = None
                self._resumed = True
            if self._resumed:
                self._resumed = False
                try:
                    self._framer.deliver(self, self.get_terminator if self._asks else None)
                except Exception:  # noqa: BLE001 it is the application's, and is logged
                    self._failed()
            if self._lazy_output is not None:
                self._flush()
            if self._upgrade is not None:
                self._upgrade.proceed()
            if (not 0 < self._held < _BY_CLOSE) is not self._reading:
                self._set_reading()
            if self._close_when_idle and self._state is _OPEN and self._is_idle():
                self.close_when_done()

    def _is_idle(self) -> bool:
        """
        Delivery is not held, and no message has begun that can still end.
        """
        return not self._held and (self._peer_finished or not self._framer.in_message)

    def _hold(self, reason: int) -> None:
        self._held |= reason
        self._framer.pause()
        if self._delivering:
            self._after = True
        else:
            self._set_reading()

    def _release(self, reason: int) -> None:
        if not self._held & reason:
            return
        self._held &= ~reason
        if self._held:
            return
        self._framer.resume()
        self._go_on()

    def _set_reading(self) -> None:
        """
        Tell the transport to read, or not, if that is news to it.
        """
        # What comes after close() is read, and dropped.
        reading = not 0 < self._held < _BY_CLOSE
        if reading is self._reading or not self._opened or self._peer_finished or self._left:
            return
        self._reading = reading
        change = getattr(self.transport, "resumeProducing" if reading else "pauseProducing", None)
        if change is not None:
            change()

    # -- internals: output

    def _drop_output(self) -> None:
        """
        Forget what is queued, and tell the producers.
        """
        if self._lazy_output is None:
            return
        for error in self._lazy_output.stop():
            try:
                raise error
            except Exception:  # noqa: BLE001 only to be logged with its traceback
                message = "{peer}: a producer of {handler} raised when it was stopped"
                failure(self._log, message, **self._about())

    def _pushed(self) -> None:
        """
        Something was queued: write it, unless the handlers are running and there is little of it.
        """
        output = self._output
        if not self._delivering or output.size >= self.ac_out_buffer_size:
            self._flush()
        else:
            self._after = True
        self._limit(output.size)

    def _check_length(self, data: Buffer, output: OutputQueue | None = None) -> None:
        """
        Raise if *data*, which stands at the end of *output* where that is given, can never be sent.
        """
        length = memoryview(data).nbytes
        if self.max_unsent is not None and length > self.max_unsent and not self._ending:
            if output is not None:
                output.take_back()
            raise ValueError(
                f"{length} bytes at once are more than max_unsent, {self.max_unsent}; send them by a"
                " producer"
            )

    def _limit(self, unsent: int) -> None:
        """
        Do what the number of bytes that wait calls for.
        """
        if self.max_unsent is not None and unsent > self.max_unsent:
            if not self._left:
                self._report(UnsentLimitExceeded(self.max_unsent, unsent))
                self._abort()
        elif self.high_water is not None and unsent > self.high_water:
            # While closing nothing is added, and a peer that is not read may not read either.
            if not (self._ending or self._held & _BY_OUTPUT):
                self._hold(_BY_OUTPUT)
        elif self._held & _BY_OUTPUT and unsent <= self.low_water:
            self._release(_BY_OUTPUT)

    def _flush(self) -> None:
        """
        Write what the transport takes.
        """
        if self._flushing or self._left or not self._opened:
            return
        output = self._output
        if not self._full:
            self._write(output)
        if self._state is _CLOSING:
            if not self._left:
                self._leave()
        elif self._half_close == _WHEN_SENT and output.finished:
            self._end_sending()
        if output.size or self._held & _BY_OUTPUT:
            self._limit(output.size)
        if self._upgrade is not None and not self._delivering:
            self._upgrade.proceed()

    def _send_reply(self) -> bool:
        """
        Send at once what the handlers pushed, where that is all that there is to do; tell whether.

        What `_settle`, `_flush` and `_write` do for the commonest case, for a third of the
        instructions.
        """
        send_now = self._send_now
        output = self._lazy_output
        if (
            send_now is None
            or output is None
            or self._held
            or self._full
            or self._ending
            or self._close_when_idle
            or self._registered
            or self._flushing
            or output._others
            or output._offset
        ):
            return False
        items = output._items
        self._after = False
        output.size = 0
        data = items[0] if len(items) == 1 else b"".join(items)
        items.clear()
        self._taken += len(data)
        left = data and send_now(self.transport, data)
        if left:
            self._register()
            self.transport.write(left)
            if not self._full:
                self._unregister()
        return True

    def _write(self, output: OutputQueue) -> None:
        transport = self.transport
        send_now = self._send_now
        self._flushing = True
        try:
            while output._items and not self._full:
                data = output.take(self.ac_out_buffer_size)
                if not data:
                    break
                self._taken += len(data)
                if send_now is not None:
                    data = send_now(transport, data)
                    # Once only: a peer that reads as fast as we send must not keep the reactor.
                    send_now = None
                    if not data:
                        continue
                if not self._registered:
                    self._register()
                transport.write(data)
        except ProducerError:
            self._flushing = False
            self._failed()
        finally:
            self._flushing = False
        if self._registered and not (output or self._full):
            self._unregister()

    def _register(self) -> None:
        """
        Become the transport's producer: it tells when it is full, and waits for us when it closes.
        """
        register = getattr(self.transport, "registerProducer", None)
        if register is not None and not self._registered:
            self._registered = True
            register(self, True)
            if not self._registered:  # it has no use for a producer any more
                self._cannot_send()

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            self.transport.unregisterProducer()

    def _check_caller(self, name: str, remedy: str) -> None:
        """
        Raise if it is not the transport that tells its producer something.
        """
        if self._registered or self._left:
            return
        raise RuntimeError(
            f"{type(self).__qualname__}.{name}() is called by the transport, and stops output; {remedy}"
        )

    def _takes_write(self, transport: Any, data: bytes) -> bool:
        """
        Called by the transport, which somebody told to write: send that behind what is queued.

        Returns:
            False, if it may be written at once: it is we who wrote it, or nothing is queued. What a
            policy in between writes is ours, kept for later, unless a handler is running.
        """
        if self._flushing or not self._lazy_output:
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
        if self._lazy_output:
            raise RuntimeError(
                "startTLS() with something queued that cannot be sent yet, and would be sent encrypted;"
                " AsyncChat.start_tls() waits for it"
            )

    # -- internals: closing

    def _broke_off(self, error: BaseException | None) -> bool:
        """
        Tell whether *error* stands for a connection that did not come to its end.
        """
        if not isinstance(error, ConnectionLost) or isinstance(error, ConnectionAborted):
            return False
        # The reactor calls it a loss, too, if the peer closes when we have just let the transport go;
        # and TLS has an error of its own for what it calls one.
        over = self._left or transports.tls_layer(self.transport) is not None
        return not over or bool(transports.unsent_bytes(self.transport))

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
        if self._left or not (self._opened or self._lazy_output):
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
        if self._left or self._half_close == _DONE:
            return False
        if not self._ending:
            self._half_close = _WHEN_SENT
            self._output.close_when_done()
            self._ending = True
            self._release(_BY_OUTPUT)
            self._pushed()
        return True

    def _end_sending(self) -> None:
        """
        Everything up to the end of the sending was taken.
        """
        self._half_close = _DONE
        self._unregister()
        self.transport.loseWriteConnection()

    def _cannot_send(self) -> None:
        """
        The transport takes nothing any more: deliver what has arrived, and close.
        """
        if self._left or self._state is _CLOSED:
            return
        self._set_state(_CLOSING)
        self._drop_output()
        self._release(_BY_OUTPUT)
        transports.read_what_is_there(self.transport)
        self._full = False
        self._output.close_when_done()
        if self._delivering:
            self._after = True
        else:
            self._flush()

    def _leave(self) -> None:
        """
        While closing: something was written, or there is nothing to write.
        """
        if self.transport is None:
            return
        if self._closing is None:
            self._closing = Closing(self)
        self._closing.proceed()

    def _before_leaving(self) -> None:
        """
        The transport is let go: from here on read, and drop, what comes.
        """
        self._held |= _BY_CLOSE
        self._framer.close()
        self._set_reading()
        self._left = True
        self._unregister()


if sys.flags.dev_mode:
    check_threads(
        AsyncChat,
        (
            "abort",
            "close",
            "close_when_done",
            "close_when_idle",
            "discard_buffers",
            "pause",
            "push",
            "push_with_producer",
            "registerProducer",
            "resume",
            "set_terminator",
            "start_tls",
            "unregisterProducer",
            "write",
        ),
    )
