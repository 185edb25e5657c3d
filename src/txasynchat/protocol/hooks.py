"""`Hooks`: what an application sets and overrides on its `AsyncChat`, and the defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from twisted.logger import Logger

from txasynchat.framing import Overflow
from txasynchat.protocol import settings
from txasynchat.protocol.inbox import Inbox
from txasynchat.protocol.lines import LineInbox
from txasynchat.protocol.outbox import Phase
from txasynchat.protocol.text import TextInbox
from txasynchat.terminators import LineEnds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.internet.interfaces import IReactorTime

    from txasynchat.errors import ChatError, MessageTooLong
    from txasynchat.limits.options import Limits
    from txasynchat.producers import Buffer
    from txasynchat.protocol.outbox import Outbox
    from txasynchat.terminators import Terminator
    from txasynchat.tls.info import TLSInfo

__all__ = ["Hooks"]


def _of_the_class(name: str) -> Callable[[Any, Any], None]:
    def refuse(chat: Hooks, value: object) -> None:
        if value != getattr(chat, name):
            cls = type(chat).__qualname__
            raise TypeError(f"{name} belongs to the class: write {cls}.{name} = {value!r}")

    return refuse


class Hooks:
    """
    The part of `AsyncChat` that is the application's. Not to be used by itself.

    Each hook may be ``async def`` or return a Deferred: nothing more is delivered until that is done.
    It is cancelled when the connection is lost. What it raises is handled as if the hook had raised it.
    """

    # -- settings: class attributes, or instance attributes set before the connection is made, when
    # they are checked: see `txasynchat.ranges`.

    #: The longest message, in bytes without its terminator; None for no limit. See `Framer`.
    #: May be changed at any moment, and holds from the next byte on.
    max_message_length: int | None = settings.setting(16_384, "limit")
    #: What becomes of a longer message, after `message_too_long`. May be changed at any moment, in that
    #: hook too; it does not change what was already decided about a message.
    overflow: Overflow = settings.setting(Overflow.CLOSE, "overflow")
    #: The encoding of whole messages, as ``"utf-8"``: `message_received` gets text, and `push` takes
    #: it, too. None for bytes. Belongs to the class. A message that is not text in it is a
    #: `MalformedMessage`, which closes the connection.
    encoding: str | None = settings.setting(None, "encoding", assign=_of_the_class("encoding"))
    #: What becomes of bytes that are not text: ``"replace"``, ``"surrogateescape"`` and whatever else
    #: `bytes.decode` and `str.encode` know as ``errors``. Belongs to the class.
    encoding_errors: str = "strict"
    #: What becomes of a CR, LF or NUL inside a line. Belongs to the class.
    line_ends: LineEnds = settings.setting(
        LineEnds.EXACT, "line_ends", assign=_of_the_class("line_ends")
    )
    #: A connection that begins as HTTP or TLS do is answered in that protocol and closed, with one line
    #: in the log; see `OtherProtocol`. No whole message of it is delivered. Belongs to the class.
    refuse_other_protocols: bool = False
    #: Bytes waiting to be sent above which delivery and reading stop; None for never.
    high_water: int | None = 65_536
    #: Bytes waiting to be sent at or below which they go on.
    low_water: int = 16_384
    #: Bytes waiting to be sent above which the connection is aborted; None for no limit. A single
    #: `push` of more is a ValueError.
    max_unsent: int | None = 8 << 20
    #: Seconds, while closing, in which the peer must take something, or the connection is aborted;
    #: None for no limit.
    close_timeout: float | None = 10.0
    #: Bytes asked of a producer, or written, at once.
    ac_out_buffer_size: int = 65_536
    #: What a peer may take, where neither the server nor the factory says so. See `Limits`.
    limits: ClassVar[Limits | None] = None
    #: The clock for `close_timeout`; None for the transport's own reactor.
    clock: IReactorTime | None = None

    _log = Logger()
    #: Set on each class that had a connection: what its connections begin with.
    _begins_with: ClassVar[tuple[Any, ...]]
    #: `max_message_length` or `overflow` is a property of a subclass.
    _computes: ClassVar[bool] = False
    # The rest of `AsyncChat`, as far as it is used here.
    _inbox: Inbox
    _incoming: list[bytes] | None
    _outbox: Outbox
    _go_on: Callable[[], None]

    @classmethod
    def _make_inbox(cls) -> Inbox:
        terminator, limit, overflow, encoding = cls._begins_with
        if cls._computes:  # read when the connection is made
            limit = Hooks.max_message_length if isinstance(limit, property) else limit
            overflow = Hooks.overflow if isinstance(overflow, property) else overflow
        line_ends, look = cls.line_ends, cls.refuse_other_protocols
        kind = Inbox if encoding is None else TextInbox
        if kind is Inbox and (look or line_ends is not LineEnds.EXACT):
            kind = LineInbox
        inbox = kind(
            terminator,
            limit=limit,
            overflow=overflow,
            whole=cls.found_terminator is Hooks.found_terminator
            and cls.collect_incoming_data is Hooks.collect_incoming_data,
        )
        if isinstance(inbox, TextInbox):
            inbox.encoding, inbox.errors = encoding, cls.encoding_errors
        if isinstance(inbox, LineInbox):
            inbox.begin(line_ends, look=look)
        return inbox

    # -- asynchat: where messages end

    def set_terminator(self, term: Terminator) -> None:
        """
        Choose where the current message ends; holds for bytes not yet delivered.

        May be called at any time, and from inside any handler. A number above `max_message_length`, as
        a peer may have announced, is a message that is too long: `message_too_long` is called without
        waiting for a byte of it. It is called here or, from inside a handler, when that has returned.

        Args:
            term: bytes to match literally; a positive number of bytes; ``None``, ``b""`` or ``0`` to
                collect without end; a tuple of bytes, of which the match that ends first counts, and
                the longest of those that end together; or a `LengthPrefix`, such as a `Netstring`.

        Raises:
            ValueError: *term* is a negative number.
            TypeError: *term* is text, a bool, or of any other type.

        Stdlib: asynchat.async_chat.set_terminator, which fails later, while reading.
        """
        if self._inbox.set_terminator(term) and self._outbox.phase is Phase.READY:
            self._go_on()

    def expect(self, n: int, limit: int | None = None) -> None:
        """
        Let the next message be exactly *n* bytes; then the terminator in force now is in force again.

        Unless a hook sets another: the message's own hook finds the old one in force. 0 is an empty
        message, delivered at once or, from inside a handler, when it has returned. Where a message has
        begun, so many more bytes end it. A number above the limit is a message that is too long, as
        with `set_terminator`.

        Args:
            n: the number of bytes.
            limit: in place of `max_message_length`, for this message only.

        Raises:
            ValueError: a number is negative.
            TypeError: *n* or *limit* is not an int.
        """
        if self._inbox.expect(n, limit) and self._outbox.phase is Phase.READY:
            self._go_on()

    def unread(self, data: Buffer) -> None:
        """
        Give bytes back: they are delivered, by the terminator in force, before what waits.

        So a handler that got more than it wanted, or hands over to another way of framing, loses
        nothing. In front of all that no hook was given, the beginning of an unfinished message too; and
        behind pieces that `collect_incoming_data` was given, which may be given back by this and count
        only once towards `max_message_length`. Delivered at once or, from inside a handler, when it has
        returned. Dropped once nothing more is delivered.

        Raises:
            TypeError: *data* is not bytes-like.
        """
        self._inbox.unread(bytes(memoryview(data)))
        if self._outbox.phase is Phase.READY:
            self._go_on()

    #: The terminator in force; in a class body, or as a field of a dataclass, the one that a connection
    #: begins with. Assigning it is `set_terminator`, reading it `get_terminator`.
    terminator: Any = settings.setting(None, "chosen", assign=set_terminator)

    def get_terminator(self) -> Any:
        """
        Return the terminator; a number of bytes counts down, and is 0 at the end of its message.

        A subclass may override this; it is then asked on each round, as in ``asynchat``.
        """
        return self._inbox.chosen

    @settings.shown
    def matched_terminator(self) -> bytes:
        """
        The delimiter that ended the latest message, as for an answer that ends like it; empty where
        its length did.
        """
        return self._inbox.matched or b""

    # -- asynchat: overridden by the application

    def handle_connect(self) -> Awaitable[object] | None:
        """
        The connection is open in both directions, its TLS handshake done where there is one.

        What is pushed here, or was pushed before, is sent in one write when this returns.
        """

    def handle_secure(self, info: TLSInfo) -> Awaitable[object] | None:
        """
        A TLS handshake is done, before `handle_connect` or, after `start_tls`, in mid-connection.

        Nothing that came in the clear is still to be delivered, and what `_collect_incoming_data` had
        collected is dropped. After `start_tls`, forget here what else the peer said in the clear
        (RFC 3207, section 4.2): somebody else may have said it. To refuse the peer, call `close` or
        `abort`.
        """

    def message_received(self, message: Any) -> Awaitable[object] | None:
        """
        A whole message arrived, without its terminator; it may be empty.

        Not called where `found_terminator` is overridden.

        Args:
            message: bytes; or, where the class has an `encoding`, text.
        """
        raise NotImplementedError(
            f"{type(self).__qualname__} overrides neither message_received nor found_terminator"
        )

    def collect_incoming_data(self, data: bytes) -> Awaitable[object] | None:
        """
        A piece of the current message arrived; it is never empty. By default it is collected.

        Stdlib: asynchat.async_chat.collect_incoming_data.
        """
        self._collect_incoming_data(data)
        return None

    def found_terminator(self) -> Awaitable[object] | None:
        """
        The current message is complete. By default it goes to `message_received`.

        A terminator that was a number of bytes is 0 by then, which collects without end.

        Stdlib: asynchat.async_chat.found_terminator.
        """
        message: Any = self._get_data()
        if isinstance(self._inbox, TextInbox):
            message = self._inbox.decode(message)
        return self.message_received(message)

    def message_too_long(self, error: MessageTooLong) -> Awaitable[object] | None:
        """
        A message broke `max_message_length`; `overflow` says what happens when this returns.

        Called once for each such message, with the connection still open, so a last reply may be
        pushed. A terminator set here holds for what comes after the message.
        """

    def handle_timeout(self, kind: str) -> Awaitable[object] | None:
        """
        The peer let a deadline pass; see `Limits`. A last word may be pushed.

        When this returns the connection closes once that is sent, or is aborted if the peer does not
        take it. After ``write_stall`` it is aborted at once.

        Args:
            kind: which deadline: ``first_message``, ``idle``, ``message``, ``write_stall`` or
                ``session``.
        """

    def handle_eof(self, rest: bytes) -> Awaitable[object] | None:
        """
        The peer ended its sending, in order, and every message was delivered.

        Called once, unless this side has begun to close before. What is pushed here is still sent;
        then the connection closes, or when this hook is done, if it has to wait. If `pause` was called
        it closes after `resume`.

        Args:
            rest: what came behind the last message and no hook was given, such as a last line without
                its line end. What `_collect_incoming_data` had collected is part of it, and forgotten.
        """

    def handle_drained(self) -> Awaitable[object] | None:
        """
        The output queue has become empty: everything that was pushed is with the transport.

        Called when the hooks of one chunk have run, once for all that they pushed; or, for what could
        not be sent then, or was pushed elsewhere, in a later iteration of the reactor. A hook that
        pushes the next piece here is called again, so it sends all of them, no faster than the peer
        reads. Not called once the connection is closing.
        """

    def handle_error(self) -> Awaitable[object] | None:
        """
        A handler or a producer raised, or what came is not a message (`MalformedMessage`):
        ``sys.exc_info()`` has the exception.

        It is already logged. When this returns the connection closes, once everything that was pushed,
        here too, is sent.
        """

    def handle_close(self) -> Awaitable[object] | None:
        """
        The connection has ended, though not by `close` or `abort`: the peer, the network or, if this
        program stops, its reactor did that. Called once; `state` is CLOSED.

        Stdlib: asyncore.dispatcher.handle_close, which had to close the channel; here it is already
        closed.
        """

    def handle_end(self, reason: ChatError | None) -> Awaitable[object] | None:
        """
        The connection has ended, whatever ended it: the place to leave a registry.

        Called exactly once for each connection that was made, after `handle_close` where that is
        called. That includes connections that ended by `close` or `abort`, whose ``connectionMade`` or
        `handle_connect` raised, or whose TLS handshake failed before `handle_connect`.

        Args:
            reason: the `close_reason`. If the reactor of this program stopped while the connection was
                open, be it a server's or a client's, that is `ProgramStopped`.
        """

    # -- asynchat: the collected pieces

    @property
    def incoming(self) -> list[bytes]:
        """The pieces that `_collect_incoming_data` has collected."""
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
