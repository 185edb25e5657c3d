"""
The state of one connection of `AsyncChat`, and how a class prepares its connections.

Nothing happens here. The classes that follow, each made from the one before, add one concern each:
`calling`, `settling`, `ends`, `coupling`, `limited`, and last `chat`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.protocol import Protocol

from txasynchat import ranges
from txasynchat.limits.options import check_limits
from txasynchat.protocol import lines, reports, settings, text
from txasynchat.protocol.hooks import Hooks
from txasynchat.protocol.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from twisted.internet.interfaces import IDelayedCall

    from txasynchat import errors
    from txasynchat.limits.deadlines import Deadlines
    from txasynchat.limits.modes import Mode
    from txasynchat.protocol.awaiting import Awaiting
    from txasynchat.protocol.closing import Closing
    from txasynchat.protocol.inbox import Inbox
    from txasynchat.protocol.pipe import Pipe
    from txasynchat.protocol.starttls import Upgrade
    from txasynchat.protocol.stream import Stream

__all__ = ["HasState", "State"]


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

# What `ranges.HANDLER` has, in the order of `HasState._checked`.
_CHECKED = (
    "high_water",
    "low_water",
    "max_unsent",
    "ac_out_buffer_size",
    "close_timeout",
    "clock",
    "max_message_length",
)


class HasState(Hooks, Protocol):
    """
    All that a connection knows of itself. Neither this nor a class between it and `AsyncChat` is to be
    used by itself.
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
    _closing: Closing | None
    #: While it is made, if it has any; and the latest `set_limits`.
    _deadlines: Deadlines | None
    _mode: Mode | None
    #: It takes the messages, in the place of the hooks.
    _stream: Stream | None
    #: Where what arrives goes, and whose it is that comes here; see `pipe_to`.
    _pipe: Pipe | None
    _fed_by: HasState | None
    #: While something waits for the reactor's next iteration, so that others have their turn.
    _turn: IDelayedCall | None

    # What later classes define and earlier ones call.
    _choke: Callable[[], None]
    _unchoke: Callable[[], None]
    _set_reading: Callable[[], None]
    _drop_output: Callable[[], None]
    _close: Callable[[], None]
    _abort: Callable[[errors.PeerError | None], None]
    _leave: Callable[[], None]
    _cannot_send: Callable[[], None]
    _close_if_idle: Callable[[], None]
    _uncouple: Callable[[], None]
    _end_when_quiet: Callable[[], None]
    close_when_done: Callable[[], None]
    push: Callable[[Any], None]

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
        if settings.restore(cls, HasState, names):
            cls._computes = True
        if "_begins_with" not in cls.__dict__:
            reports.unheard_hooks(cls._log, cls)
        text.check_encoding(cls.__qualname__, cls.encoding, cls.encoding_errors)
        lines.check_line_ends(cls.__qualname__, cls.line_ends)
        cls._begins_with = (cls.terminator, cls.max_message_length, cls.overflow, cls.encoding)

    @settings.shown
    def state(self) -> State:
        """Where the connection is in its life."""
        return self._state

    def _check_settings(self) -> None:
        """Check the settings of this object; those of its class need no check on the next one."""
        ranges.check_owner(self, ranges.HANDLER, HasState)
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
