"""
`Stream`: the messages of an `AsyncChat`, awaited one by one instead of delivered.

Theory of operation
===================

Nothing is parsed here. A read says what ends the message, and pulls that from the connection's own
`Inbox`, with the same limits and errors. A message that is there is returned at once, without a
Deferred or an iteration of the reactor. If it is not there, the read waits. Whatever happens to the
connection wakes it (`Stream.arrived`), and it looks again, so nothing is lost if it is cancelled.

The transport reads while a read waits, and else until about 64 KiB are unread.

A coroutine that was waiting runs as a handler does: what it writes until it waits again is one write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from txasynchat import transports
from txasynchat.errors import ConnectionReset, IncompleteMessage
from txasynchat.framing import Overflow
from txasynchat.protocol.outbox import Phase
from txasynchat.ranges import Range
from txasynchat.terminators import check_terminator
from txasynchat.waits import Wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from txasynchat.errors import ChatError, MalformedMessage, MessageTooLong
    from txasynchat.producers import Buffer, Producer
    from txasynchat.protocol.inbox import Inbox
    from txasynchat.protocol.outbox import Outbox
    from txasynchat.terminators import Terminator
    from txasynchat.tls.info import TLSInfo

__all__ = ["Stream"]

#: What a chat lends to its stream: it calls a function as handlers are called; closes, as when a
#: handler has failed; notes what a peer did wrong.
Ways: TypeAlias = (
    "tuple[Callable[..., object], Callable[[], None], Callable[[MalformedMessage], None]]"
)

_LIMIT = Range(0, whole=True)
_COUNT = Range(0, whole=True, optional=False)
_SOME = Range(1, whole=True, optional=False)
#: No read has a limit of its own.
_USUAL: Any = object()


class Stream:
    """
    A connection whose messages are awaited; from `AsyncChat.stream`, `connect`, or as the argument of a
    handler function. Not to be made by applications.

    One coroutine reads at a time; others may write meanwhile. Under the asyncio reactor any task of
    asyncio may await these methods, elsewhere what Twisted runs (``Deferred.fromCoroutine``).

    What a read raises when the message cannot come any more:

    * the `close_reason` of the connection, such as a `ConnectionReset` or a `TLSError`;
    * `IncompleteMessage` at the end of what the peer sends, with the bytes that came, which may be
      none. For a read that finds nothing, the end is also there after `close`, and when the server is
      stopping; see `busy`.

    Messages that have arrived before that are returned first. They are bytes, also where the class of
    the `AsyncChat` has an `encoding`.

    Attributes:
        chat: the `AsyncChat` whose connection it is.
        busy: while True, a server that stops does not end a read that has nothing yet. To be set by a
            handler in the middle of something, such as between the header and the body of a request.
    """

    __slots__ = (
        *("_close", "_drains", "_end", "_ending", "_finishing", "_inbox", "_is_unusual"),
        *("_outbox", "_report", "_run", "_terminator", "_usual_limit", "_wait", "_waits_for_end"),
        *("busy", "chat", "took"),
    )

    def __init__(
        self,
        chat: Any,
        inbox: Inbox,
        outbox: Outbox,
        ways: Ways,
    ) -> None:
        self.chat = chat
        self._inbox = inbox
        self._outbox = outbox
        self._run, self._close, self._report = ways
        terminator = inbox.terminator
        # () is refused when it is used.
        self._terminator = terminator if terminator and not isinstance(terminator, int) else ()
        # The connection's limit, while that of a read is in force.
        self._usual_limit = _USUAL
        # The read that waits. One does, or was cancelled and has left the beginning of its message
        # behind, or the limit is that of a read.
        self._wait: Wait[None] | None = None
        self._is_unusual = False
        self._drains: list[Wait[None]] = []
        self._waits_for_end: list[Wait[None]] = []
        self._finishing = False
        self._ending: Any = None
        # What the latest read or drain() raised of the connection's end.
        self._end: ChatError | None = None
        self.busy = False
        #: Not for applications: `read` has returned something.
        self.took = False
        inbox.begin_pulling()

    # -- reading

    @property
    def terminator(self) -> Terminator:
        """What ends a message for ``async for``, and for `read_until` without an argument."""
        terminator: Terminator = self._terminator
        return terminator

    @terminator.setter
    def terminator(self, terminator: Terminator) -> None:
        self._terminator = _delimiter(terminator)

    @property
    def matched(self) -> bytes:
        """The delimiter that ended the latest message; ``b""`` where its length did."""
        return self._inbox.matched or b""

    async def read_until(self, delimiter: Terminator = None, limit: int | None = None) -> bytes:
        """
        Return the next message without the *delimiter* that ends it, which `matched` is then.

        Args:
            delimiter: bytes, a tuple of them, or a `LengthPrefix`, as `AsyncChat.set_terminator` takes
                them; None for `terminator`.
            limit: the longest message, in place of `max_message_length`; None for that.

        Raises:
            MalformedMessage: there is no `LengthPrefix`, or no comma behind a `Netstring`; the
                connection closes as below.
            MessageTooLong: the message is longer than that; the connection closes, and what is written
                until the coroutine waits again is still sent. Where ``chat.overflow`` is ``SKIP``, the
                next message is returned instead.
            IncompleteMessage, ChatError: it cannot come any more; see `Stream`.
            RuntimeError: another coroutine is reading.
            TypeError, ValueError: *delimiter* or *limit* is not one.
        """
        inbox = self._inbox
        if delimiter is None:
            delimiter = self._terminator
        if delimiter is not inbox.terminator or limit is not None or self._is_unusual:
            self._begin(_delimiter(delimiter), limit)
        message = inbox.pull(self)
        return await self._message() if message is None else message

    async def read_exactly(self, count: int, limit: int | None = None) -> bytes:
        """
        Return the next *count* bytes; none at once, if that is 0.

        Args:
            count: how many.
            limit: the most that they may be, in place of `max_message_length`; None for that. It is
                for a number that the peer has sent.

        Raises:
            MessageTooLong: *count* is above the limit; nothing was read. The connection closes, as by
                `read_until`.
            IncompleteMessage, ChatError, RuntimeError, TypeError, ValueError: as by `read_until`.
        """
        _COUNT.check("count", count)
        if not count:
            return b""
        self._begin(count, limit)
        message = self._inbox.pull(self)
        return await self._message() if message is None else message

    async def read(self, most: int = 65_536) -> bytes:
        """
        Return what has come, at least one byte and at most so many; ``b""`` at the end.

        Raises:
            ChatError, RuntimeError, TypeError, ValueError: as by `read_until`.
        """
        _SOME.check("most", most)
        self._check_reader()
        inbox = self._inbox
        while not (data := inbox.take(most)):
            if self._is_over():
                return b""
            await self._arrival()
        self.took = True
        self._is_unusual = self._usual_limit is not _USUAL
        if not inbox.reading:
            self.has_room()
        return data

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """
        Return the next message, by `terminator`; end where the peer ends between two messages.

        Raises:
            IncompleteMessage: the last message has no end; its beginning is in ``partial``.
        """
        if self._terminator is not self._inbox.terminator or self._is_unusual:
            self._begin(_delimiter(self._terminator), None)
        message = self._inbox.pull(self)
        if message is not None:
            return message
        try:
            return await self._message()
        except IncompleteMessage as error:
            if error.partial:
                raise
        raise StopAsyncIteration

    # -- writing

    def write(self, data: Buffer) -> None:
        """Send bytes; see `AsyncChat.push`, and `drain`."""
        self.chat.push(data)

    def write_from(self, producer: Producer) -> None:
        """Send what a producer gives; see `AsyncChat.push_with_producer`."""
        self.chat.push_with_producer(producer)

    async def drain(self) -> None:
        """
        Wait while more than ``high_water`` bytes are unsent, until ``low_water`` or fewer are.

        To be awaited between writes, as in asyncio: `AsyncChat.max_unsent` ends a connection for which
        too much is written.

        Raises:
            ChatError: the `close_reason`, or `ConnectionReset`, if the connection has ended and not by
                `close`.
        """
        outbox = self._outbox
        high = self.chat.high_water
        if outbox.size and high is not None and outbox.size > high:
            while outbox.phase is not Phase.DEPARTED and outbox.size > self.chat.low_water:
                wait: Wait[None] = Wait(self._run)
                self._drains.append(wait)
                await wait
        if outbox.phase is Phase.DEPARTED:
            if (reason := self._reason()) is not None:
                raise reason
            if not self._inbox.shut:
                self._end = ConnectionReset()
                raise self._end

    # -- the connection

    @property
    def addr(self) -> Any:
        """The peer's address; see `AsyncChat.addr`."""
        return self.chat.addr

    @property
    def tls(self) -> TLSInfo | None:
        """What the TLS handshake agreed on; see `AsyncChat.tls`."""
        info: TLSInfo | None = self.chat.tls
        return info

    async def start_tls(self, options: Any, **more: Any) -> TLSInfo:
        """
        Speak TLS from here on; see `AsyncChat.start_tls`. What was written before goes in the clear.

        Returns:
            What was agreed on.

        Raises:
            TLSError: the handshake failed, or the peer had sent more in the clear.
            ChatError, RuntimeError, TypeError, ValueError: as by `AsyncChat.start_tls`.
        """
        self._check_reader()
        self._inbox.rewind()
        self.chat.start_tls(options, **more)
        while (info := self.tls) is None or self._outbox.phase is Phase.WAITING:
            if self._is_over():
                self._end = IncompleteMessage(b"")
                raise self._end
            await self._arrival()
        return info

    def close(self) -> None:
        """Read nothing more, send what was written, and end; see `AsyncChat.close`."""
        self.chat.close()

    def abort(self) -> None:
        """End now; see `AsyncChat.abort`."""
        self.chat.abort()

    async def wait_closed(self) -> None:
        """
        Wait until the connection has ended, by whatever.

        Raises:
            ChatError: the `close_reason`, where it did not end in order.
        """
        if self.chat.connected:
            wait: Wait[None] = Wait(self._run)
            self._waits_for_end.append(wait)
            await wait
        if (reason := self._reason()) is not None:
            raise reason

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """`close`, and wait until everything is sent and the connection has ended."""
        self.close()
        try:
            await self.wait_closed()
        except Exception:
            if error is None:
                raise

    # -- called by the chat

    @property
    def waits(self) -> bool:
        """A coroutine waits for the peer, to send something or to end."""
        return self._wait is not None or bool(self._waits_for_end)

    def arrived(self) -> None:
        """Something came, or happened to the connection: the read that waits looks again."""
        wait = self._wait
        if wait is not None and not wait.called:
            wait.fire()

    def has_room(self) -> None:
        """Little is left unread: the transport may read."""
        if self._outbox.phase is Phase.READY:
            self._inbox.set_reading(self.chat.transport)

    def drained(self) -> None:
        """`low_water` bytes or fewer are unsent, or nothing will be sent any more."""
        drains, self._drains = self._drains, []
        for wait in drains:
            if not wait.called:
                wait.fire()

    def finish(self) -> None:
        """The server stops: a read that waits for a message that has not begun is at the end."""
        self._finishing = True
        self.arrived()

    def overflowed(self, error: MessageTooLong) -> None:
        """A message broke its limit; called while the message is pulled."""
        self.chat.overflowed(error)
        if self.chat.overflow is Overflow.CLOSE:
            self._end_soon()
            raise error

    def malformed(self, error: MalformedMessage) -> None:
        """What came is not a message; *error* is raised when this returns."""
        self._report(error)
        self._end_soon()

    def lost(self) -> bool:
        """The connection is lost; return whether somebody waited, and is told by that."""
        told = self._wait is not None or bool(self._drains or self._waits_for_end)
        if self._ending is not None and self._ending.active():
            self._ending.cancel()
        self.arrived()
        self.drained()
        waits, self._waits_for_end = self._waits_for_end, []
        for wait in waits:
            if not wait.called:
                wait.fire()
        return told

    def ended_with(self, error: BaseException | None) -> bool:
        """Return whether *error* says how the connection ended, and nothing else."""
        return error is not None and (error is self._end or error is self.chat.close_reason)

    # -- internals

    def _end_soon(self) -> None:
        # Not at once: whoever reads may answer.
        clock = self.chat.clock or transports.reactor_of(self.chat.transport)
        self._ending = clock.callLater(0, self._close)

    def _check_reader(self) -> None:
        if self._wait is not None:
            raise RuntimeError("another coroutine is reading from this stream")

    def _begin(self, terminator: Terminator, limit: int | None) -> None:
        """Prepare for a message that ends otherwise than the latest one, or has another limit."""
        self._check_reader()
        inbox = self._inbox
        if self._is_unusual:
            inbox.rewind()
        if limit is not None:
            _LIMIT.check("limit", limit)
            if self._usual_limit is _USUAL:
                self._usual_limit = inbox.limit
            inbox.limit = limit
        elif self._usual_limit is not _USUAL:
            inbox.limit = self._usual_limit
            self._usual_limit = _USUAL
        self._is_unusual = limit is not None
        inbox.set_terminator(terminator)

    async def _message(self) -> bytes:
        """Wait for a message that is not there yet."""
        inbox = self._inbox
        self._is_unusual = True
        while True:
            if self._is_over():
                inbox.rewind()
                self._end = IncompleteMessage(inbox.take(1 << 62))
                raise self._end
            wait: Wait[None] = Wait(self._run)
            self._wait = wait
            try:
                await wait
            finally:
                self._wait = None
            message = inbox.pull(self)
            if message is not None:
                self._is_unusual = self._usual_limit is not _USUAL
                return message

    async def _arrival(self) -> None:
        """Wait until something comes or happens; nothing is taken."""
        wait: Wait[None] = Wait(self._run)
        self._wait = wait
        try:
            await wait
        finally:
            self._wait = None

    def _is_over(self) -> bool:
        """Return whether nothing more comes; raise the reason where the end was not in order."""
        inbox = self._inbox
        departed = inbox.shut or self._outbox.phase is Phase.DEPARTED
        if departed or (inbox.peer_finished and not inbox.held):
            reason = self._reason()
            if reason is not None:
                raise reason
            return True
        return self._finishing and not (self.busy or inbox.in_message)

    def _reason(self) -> ChatError | None:
        reason: ChatError | None = self.chat.close_reason
        return None if reason is None else reason.with_traceback(None)


def _delimiter(terminator: Any) -> Terminator:
    if isinstance(terminator, int) or not terminator:
        raise ValueError(
            f"a message ends with bytes, or begins with a LengthPrefix: {terminator!r};"
            " read_exactly() returns a number of bytes, read() what has come"
        )
    return check_terminator(terminator)
