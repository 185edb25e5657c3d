"""
Bytes and a terminator in, events out. No I/O here, no Twisted, no clock.

A `Framer` keeps the bytes that were received and not yet passed on, and the terminator, which says
where the current message ends. `Framer.deliver` passes what it has to a *receiver*, in the order of
the standard library's ``asynchat.async_chat.handle_read``:

* data is passed on as it comes, never empty, never kept until a message is whole, but for a tail
  that may be the beginning of the terminator;
* the terminator is read again before each step, and every handler call may change it, stop the
  delivery, look at the buffer or replace it, deliver again (nested), or raise.

Two ways through the same bytes
===============================

`Framer._step` is the reference: one look at the buffer, at most one piece and one end of message.
`Framer._deliver_batch` is the fast way for the commonest case, a delimiter that does not change: it
splits a window of the buffer once and walks the pieces. Whatever disturbs that (a new terminator, a
pause, somebody reading `Framer.buffer`) makes it put back what it has not delivered
(`Framer._leave_batch`) and go on by steps; after a disturbance `SETTLE` messages go by steps, so that
a handler that alternates between modes is not charged one split per message. The two ways agree on
everything; the tests compare them.

Positions, not slices
=====================

The buffer is one `bytes` object and a position in it. Nothing re-slices the rest of the buffer for a
message, nothing searches the same bytes twice, and nothing recurses, so the cost is linear in the
number of bytes for every size of message and of chunk (times the length of the terminator in the
worst case, which the application chooses and the peer does not).

Limits
======

A limit is a property of the bytes, not of the packets: the messages, and the error, are the same
however the bytes were cut. See `Framer` for what counts and `Overflow` for what follows.
"""

from __future__ import annotations

import enum
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, Protocol

from txasynchat.errors import MessageTooLong
from txasynchat.terminators import (
    LengthPrefix,
    Terminator,
    check_terminator,
    compile_delimiters,
    prefix_length_at_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "CheckedReceiver",
    "Framer",
    "LimitedReceiver",
    "Overflow",
    "Receiver",
    "WholeReceiver",
]

#: Bytes split at once by the fast way: enough to make the split cheap per message, little enough
#: that splitting in vain (the handler changed the terminator at once) is cheap as well.
WINDOW: Final = 16_384

#: Messages that go by steps after something disturbed the fast way.
SETTLE: Final = 8

#: Bytes of an over-long message that `MessageTooLong.sample` shows.
SAMPLE: Final = 128


# CPython compares numbers up to this one faster than greater ones.
_ORDINARY: Final = (1 << 30) - 1

# In place of a delimiter.
_NO_SHORT_WAY: Final = object()
# The same, while frames of known length are delivered and nothing has disturbed that.
_COUNTING: Final = object()


class _Nothing(bytes):
    """
    An empty buffer that counts as something to deliver.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_NOTHING: Final = _Nothing()

# In place of what ends a message that is being dropped: whether it is, is not known yet.
_UNDECIDED: Final = object()


class Overflow(enum.Enum):
    """
    What follows when a message is longer than the limit; the hook is called first in each case.

    It is decided when the hook returns, once for each message: what is set later is for later ones.
    """

    #: Deliver nothing more. The driver closes the connection.
    CLOSE = "close"
    #: Drop the message, up to and with its terminator, and go on with the next one.
    SKIP = "skip"
    #: Pass the message on all the same, in pieces, as ``asynchat`` did.
    DELIVER = "deliver"


class Receiver(Protocol):
    """
    What a `Framer` calls; each call may call the framer again.
    """

    def collect_incoming_data(self, data: bytes, /) -> object:
        """Take a piece of the current message; it is never empty."""

    def found_terminator(self) -> object:
        """The current message is complete."""


class LimitedReceiver(Receiver, Protocol):
    """
    A receiver for a framer that has a limit.
    """

    def overflowed(self, error: MessageTooLong, /) -> object:
        """The current message broke the limit; called once for each such message."""


class CheckedReceiver(LimitedReceiver, Protocol):
    """
    A receiver for a framer that checks results.
    """

    def hook_returned(self, result: object, /) -> object:
        """A hook returned something else than None."""


class WholeReceiver(LimitedReceiver, Protocol):
    """
    A receiver that takes each message in one call instead of two.
    """

    def message_received(self, message: bytes, /) -> object:
        """Take a complete message, which may be empty."""


class Framer:
    """
    The received bytes that were not yet passed on, and the terminator they are cut by.

    Args:
        terminator: see `set_terminator`.
        limit: the longest message accepted, in bytes and without its terminator; ``None`` for no
            limit. A number of bytes above it breaks it as soon as it is set as the terminator.
            Collecting without end breaks no limit, as nothing is kept here, unless whole messages
            are asked for. A `LengthPrefix` has its own limit instead.
        overflow: what follows when a message breaks the limit.
        whole: the receiver has ``message_received`` and is called once a message; a message is kept
            here until it is whole. In `Overflow.DELIVER` an over-long one comes in pieces of as many
            bytes as its limit, the rest last.

    Attributes:
        matched: the delimiter that ended the latest message; ``None`` where it was a length.
        paused: nothing is delivered; bytes are kept.
        closed: nothing will ever be delivered again; bytes are dropped.
        checks_results: what ``message_received`` or ``found_terminator`` returns, if that is not None,
            goes to ``receiver.hook_returned``.
        overflow: as above; may be changed at any moment.
    """

    __slots__ = (
        "_announced",
        "_backlog",
        "_batch",
        "_body",
        "_buffer",
        "_collecting",
        "_count",
        "_delimiter",
        "_head",
        "_limit",
        "_longest",
        "_partial",
        "_pieces",
        "_position",
        "_searched",
        "_skipping",
        "_terminator",
        "_unlimited",
        "_unsettled",
        "checks_results",
        "closed",
        "matched",
        "overflow",
        "paused",
        "whole",
    )

    def __init__(
        self,
        terminator: Terminator = None,
        *,
        limit: int | None = None,
        overflow: Overflow = Overflow.CLOSE,
        whole: bool = False,
    ) -> None:
        self._limit = limit
        # The same for numbers set as the terminator, if they are of ordinary size.
        self._longest = _ORDINARY if limit is None else min(limit, _ORDINARY)
        self.overflow = overflow
        self.whole = whole
        self.matched: bytes | None = None
        self.paused = False
        self.closed = False
        self.checks_results = False
        self._terminator: Any = check_terminator(terminator)
        # The terminator, once `receive` found it to be a delimiter and its short way to be free:
        # _position is 0 then when nothing is left.  Whatever gets in the way puts an object here
        # that is no terminator.
        self._delimiter: Any = _NO_SHORT_WAY
        # What is left: _buffer from _position on, then _backlog.
        self._buffer = b""
        self._position = 0
        self._backlog: list[bytes] | None = None
        # No delimiter begins in the buffer before this position, as far as was looked.
        self._searched = 0
        # The current message: bytes passed on or kept, their first ones, and what is kept of it.
        self._count = 0
        self._head = b""
        self._partial: bytearray | None = None
        self._unlimited = False
        # Bytes of a prefixed body still to come; None before the prefix.
        self._body: int | None = None
        # What ends the message that is being dropped: delimiters, or bytes still to drop.
        self._skipping: Any = None
        # The terminator was set to a number above the limit, and nobody was told yet.
        self._announced = False
        # The fast way: its iterator while it runs undisturbed, its pieces, and the piece in
        # collect_incoming_data at this moment.
        self._batch: Iterator[bytes] | None = None
        self._pieces: list[bytes] = []
        self._collecting: bytes | None = None
        self._unsettled = 0

    # -- the terminator

    @property
    def terminator(self) -> Any:
        """
        What ends the current message; a number counts down, and is 0 when its message is complete.

        Assigned without a check, as ``async_chat.terminator`` could be: `set_terminator` checks.
        """
        return self._terminator

    @terminator.setter
    def terminator(self, terminator: Any) -> None:
        current = self._terminator
        if terminator is current or (type(terminator) is bytes and terminator == current):
            return
        self._terminator = terminator
        if type(terminator) is int and terminator > self._longest:
            self._delimiter = _NO_SHORT_WAY
        self._body = None
        self._searched = 0
        if self._skipping == b"":
            self._skipping = None
        if self._batch is not None:
            self._leave_batch()

    def set_terminator(self, terminator: Terminator) -> bool:
        """
        Choose where the current message ends; holds for bytes not yet delivered.

        May be called from inside any handler. A number above the limit is told of by the running
        `deliver`, or by the next one, without a byte.

        Returns:
            True if it is such a number, so that `deliver` has something to do.

        Raises:
            TypeError, ValueError: see `check_terminator`.
        """
        if (
            type(terminator) is int
            and 0 < terminator <= self._longest
            and self._batch is None
            and self._skipping is None
        ):
            # The short way for frames of a known length, each of which sets the next one's. What
            # else the setter does, it does when the next delimiter or prefix is set.
            self._terminator = terminator
            return False
        self.terminator = terminator = check_terminator(terminator)
        limit = self._limit
        self._announced = isinstance(terminator, int) and limit is not None and terminator > limit
        if self._announced:
            self._delimiter = _NO_SHORT_WAY
            if not self._buffer:
                self._buffer = _NOTHING
        return self._announced

    # -- the limit

    @property
    def limit(self) -> int | None:
        """
        The longest message accepted; may be changed at any moment, and holds from the next byte on.

        So a message that is longer already breaks a lowered limit with its next byte, be it one of
        the delimiter. One that broke the limit before is not judged again.
        """
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit == self._limit:
            return
        if self._limit is None:
            # Of a message in pieces it is known no more, and the sample begins here.
            self._head = bytes(self._partial[:SAMPLE]) if self._partial is not None else b""
        self._limit = limit
        self._longest = _ORDINARY if limit is None else min(limit, _ORDINARY)
        self._delimiter = _NO_SHORT_WAY
        if self._batch is not None:
            self._leave_batch()

    # -- bytes in

    def feed(self, data: bytes) -> None:
        """
        Append received bytes; nothing is delivered. May be called from inside any handler.

        In ``collect_incoming_data``, `deliver` before it returns: where the piece is all there is,
        everything behind it is dropped with it, as ``asynchat`` does.
        """
        if self.closed or not data:
            return
        if self._batch is not None:
            self._leave_batch()
        if self._position < len(self._buffer) or self._backlog:
            self._delimiter = _NO_SHORT_WAY
            if self._backlog is None:
                self._backlog = [data]
            else:
                self._backlog.append(data)
        else:
            self._buffer = data
            self._position = self._searched = 0

    @property
    def buffer(self) -> bytes:
        """
        The bytes that are not yet passed on, as ``async_chat.ac_in_buffer`` would hold them now.

        Inside ``collect_incoming_data`` the piece itself is still among them; inside
        ``found_terminator`` the message and its terminator are gone. May be replaced at any moment;
        inside ``collect_incoming_data`` the piece, with its terminator, is then cut from the
        beginning of the new value, as ``asynchat`` does.
        """
        if self._batch is not None:
            self._leave_batch()
        self._join()
        return self._buffer

    @buffer.setter
    def buffer(self, data: bytes) -> None:
        if self._batch is not None:
            self._leave_batch()
        self._buffer = data
        self._position = self._searched = 0
        self._backlog = None
        self._delimiter = _NO_SHORT_WAY  # a cut that is still to come may go beyond it

    @property
    def in_message(self) -> bool:
        """
        A message has begun and its end has not come, or bytes wait to be delivered.

        Where there is no terminator no message ends, and none is waited for.
        """
        terminator = self._terminator
        return bool(terminator) and bool(
            self._count
            or (self._body is not None and isinstance(terminator, LengthPrefix))
            or self._backlog
            or self._position < len(self._buffer)
        )

    def _join(self) -> None:
        """
        Make what is left one `bytes` object that begins at position 0.
        """
        position = self._position
        if self._backlog:
            # A cut made in a replaced buffer may reach into what came after it.
            behind = max(0, position - len(self._buffer))
            left = memoryview(self._buffer)[position:]
            self._buffer = b"".join((left, *self._backlog))[behind:]
            self._backlog = None
        elif position:
            self._buffer = self._buffer[position:]
        self._searched = max(0, self._searched - position)
        self._position = 0

    # -- stop and go

    def pause(self) -> None:
        """
        Deliver nothing from the next message or piece on; a message just ending is still ended.
        """
        self.paused = True
        self._delimiter = _NO_SHORT_WAY
        if self._batch is not None:
            self._leave_batch()

    def resume(self) -> None:
        """
        Allow delivery again; it goes on with the next `deliver`, or at once inside a running one.
        """
        self.paused = self.closed

    def clear(self) -> None:
        """
        Drop every byte that was not yet passed on, and the beginning of a message that is kept.

        What arrives next is taken as the beginning of a message; a number set as the terminator
        goes on counting down.
        """
        self.buffer = b""
        self._end_message()
        self._skipping = self._body = None

    def close(self) -> None:
        """
        Drop everything, now and in future; not even a message just ending is ended.
        """
        self.clear()
        self.closed = self.paused = True
        self._delimiter = _NO_SHORT_WAY

    # -- events out

    def receive(self, receiver: Any, data: bytes) -> None:
        """
        `feed`, then `deliver`: the way for a driver; raises what `deliver` raises.

        The two commonest chunks, one message or a piece of one, take a short way here: each
        instruction counts, for nothing of the interpreter is left in the processor's caches
        after the system call that gave the bytes.
        """
        delimiter = self._delimiter
        if delimiter is not self._terminator or self._buffer:
            self._receive_otherwise(receiver, data)
            return
        self._buffer = data
        message, found, rest = data.partition(delimiter)
        if (
            rest
            or not found
            or self._count
            or (self._limit is not None and len(message) > self._limit)
        ):
            if found:
                self._searched = 0
                self.deliver(receiver)
            else:
                self._receive_piece(receiver, data, delimiter)
            return
        if self.whole:
            self._buffer = b""
            self.matched = delimiter
            if (result := receiver.message_received(message)) is not None and self.checks_results:
                receiver.hook_returned(result)
        else:
            if message:
                receiver.collect_incoming_data(message)
            if self._buffer is data and self._delimiter is delimiter:
                self._buffer = b""
                self.matched = delimiter
                if (result := receiver.found_terminator()) is not None and self.checks_results:
                    receiver.hook_returned(result)
            else:  # a nested delivery, another buffer, a pause, another limit
                self._end_passed(receiver, message, delimiter, len(message))
        if self._buffer:
            self.deliver(receiver)

    def _receive_otherwise(self, receiver: Any, data: bytes) -> None:
        """
        `receive` where the short way was not open, at least until now.
        """
        terminator = self._terminator
        if self._buffer or self._backlog or self.paused or self._skipping is not None or not data:
            self.feed(data)
            self.deliver(receiver)
        elif type(terminator) is bytes and terminator and not self._unlimited:
            self._position = 0  # a cut may have gone beyond a replaced buffer
            self._delimiter = terminator
            self.receive(receiver, data)
        elif terminator or self.whole:
            self.feed(data)
            self.deliver(receiver)
        else:  # no message to be seen, and nothing kept: the way of bulk data
            self._position = 0
            self._buffer = data
            receiver.collect_incoming_data(data)
            self._buffer = b""
            self._position = 0
            self._backlog = None
            if self._announced:
                self.deliver(receiver)

    def _receive_piece(self, receiver: Any, data: bytes, delimiter: bytes) -> None:
        """
        `receive` of a chunk that is all there is and has no delimiter in it.
        """
        if not data:
            return
        length = len(delimiter)
        size = len(data)
        if (
            length > 1 and data.find(delimiter[0], size - length + 1 if size >= length else 0) >= 0
        ) or not self._pass_rest(receiver, data):
            self._searched = max(0, size - length + 1)
            self.deliver(receiver)

    def deliver(self, receiver: Any, get_terminator: Callable[[], Any] | None = None) -> None:
        """
        Pass on what can be passed on, until nothing is left, or a pause, or an exception.

        May be called again from inside a handler: the inner call then goes on where the outer one
        is, as a nested ``handle_read`` does in ``asynchat``.

        Args:
            receiver: a `Receiver`; a `LimitedReceiver` where there is a limit; a `WholeReceiver`
                for whole messages. Its methods are looked up for each call.
            get_terminator: asked for the terminator on each round, in place of `terminator`.

        Raises:
            Exception: whatever a handler raised. The state is then the one that ``asynchat`` leaves:
                a piece whose handler raised is still in the buffer.
        """
        if self._batch is not None:
            self._leave_batch()
        while not self.paused:
            if self._backlog:
                self._join()
            if self._position >= len(self._buffer):
                # Not to keep a chunk alive for an idle connection.
                self._buffer = b""
                self._position = self._searched = 0
                if not self._announced or self._skipping is not None:
                    return
                self._announced = False
                terminator = self._terminator if get_terminator is None else get_terminator()
            elif get_terminator is not None:
                terminator = get_terminator()
                self._searched = 0
            else:
                terminator = self._terminator
                if type(terminator) is bytes and terminator and self._skipping is None:
                    if (
                        not (self._count or self._unsettled or self._unlimited)
                        and self._searched <= self._position
                        and self._deliver_batch(receiver, terminator)
                    ):
                        continue
                    if self._deliver_rest(receiver, terminator):
                        if self._announced:
                            continue
                        return
                elif (
                    type(terminator) is int
                    and terminator > 0
                    and not (self._count or self._unlimited)
                    and self._skipping is None
                    and self._deliver_counted(receiver, terminator)
                ):
                    continue
            if not self._step(receiver, terminator):
                if self._announced and self._skipping is None:
                    self._announced = self._position >= len(self._buffer)  # once more, and no more
                    continue
                if self._position:
                    # Not to keep a chunk alive for the few bytes that wait for more.
                    self._join()
                return

    # -- the fast ways

    def _deliver_rest(self, receiver: Any, terminator: bytes) -> bool:
        """
        Pass on all that is left, if no byte of it belongs to a delimiter; tell whether that was so.
        """
        buffer = self._buffer
        position = self._position
        if buffer.find(terminator, max(position, self._searched)) >= 0:
            return False
        length = len(terminator)
        if length > 1:
            self._searched = start = max(position, len(buffer) - length + 1)
            if buffer.find(terminator[0], start) >= 0:
                return False
        return self._pass_rest(receiver, buffer[position:] if position else buffer)

    def _pass_rest(self, receiver: Any, data: bytes) -> bool:
        """
        Pass on *data*, all that is left and all content, unless a limit has a say in it.
        """
        length = len(data)
        limit = self._limit
        if limit is not None and (self._count + length > limit or self._unlimited):
            return False
        if self.whole:
            if self._partial is None:
                self._partial = bytearray(data)
            else:
                self._partial += data
        else:
            receiver.collect_incoming_data(data)
            if self.closed:
                return True
        if self._limit is not None and self._count < SAMPLE:
            self._head += data[: SAMPLE - self._count]
        self._count += length
        self._buffer = b""
        self._position = self._searched = 0
        self._backlog = None
        return True

    def _deliver_counted(self, receiver: Any, length: int) -> bool:
        """
        Deliver messages of known length while the buffer holds them whole, and each sets the next
        one's length; tell whether there were any.
        """
        whole = self.whole
        any_delivered = False
        if length > self._longest:
            return False
        # A longer one disturbs that.
        self._delimiter = _COUNTING
        while True:
            buffer = self._buffer
            position = self._position
            end = position + length
            if end > len(buffer):
                return any_delivered
            any_delivered = True
            if whole:
                self._position = end
                self._terminator = 0
                self.matched = None
                if (
                    result := receiver.message_received(buffer[position:end])
                ) is not None and self.checks_results:
                    receiver.hook_returned(result)
            else:
                receiver.collect_incoming_data(buffer[position:end])
                if self.closed:
                    return True
                self._position += length
                self._terminator = 0
                self.matched = None
                if self._count or self._unlimited:
                    self._end_message()  # of what a nested delivery began
                if (result := receiver.found_terminator()) is not None and self.checks_results:
                    receiver.hook_returned(result)
            length = self._terminator
            if (
                type(length) is not int
                or length <= 0
                or self._delimiter is not _COUNTING
                or self._count
            ):
                return True

    def _deliver_batch(self, receiver: Any, terminator: bytes) -> bool:
        """
        Deliver the messages that lie whole in one window of the buffer; tell whether there were any.
        """
        buffer = self._buffer
        position = self._position
        if position or len(buffer) > WINDOW:
            buffer = buffer[position : position + WINDOW]
        pieces = buffer.split(terminator)
        tail = len(pieces.pop())
        end = position + len(buffer)
        self._searched = end - len(terminator) + 1
        if not pieces:
            return False
        limit = self._limit
        if limit is not None and limit < len(buffer) and max(map(len, pieces)) > limit:
            self._unsettled = len(pieces)
            self._searched = 0
            return False
        # As if all were delivered already; _leave_batch puts it right.
        self._position = end - tail
        self.matched = terminator
        self._pieces = pieces
        self._batch = iterator = iter(pieces)
        try:
            if self.whole:
                for piece in iterator:
                    if (
                        result := receiver.message_received(piece)
                    ) is not None and self.checks_results:
                        receiver.hook_returned(result)
                    if self._batch is not iterator:
                        return True
            else:
                for piece in iterator:
                    if piece:
                        self._collecting = piece
                        receiver.collect_incoming_data(piece)
                        if self._batch is not iterator:
                            self._end_passed(receiver, piece, terminator, len(piece))
                            return True
                        self._collecting = None
                    if (result := receiver.found_terminator()) is not None and self.checks_results:
                        receiver.hook_returned(result)
                    if self._batch is not iterator:
                        return True
        except BaseException:
            if self._batch is iterator:
                self._leave_batch()
            raise
        self._batch = None
        self._pieces = []
        return True

    def _leave_batch(self) -> None:
        """
        Turn the running fast way into a position: where the reference way would stand.
        """
        left = length_hint(self._batch)
        pieces = self._pieces
        length = len(self.matched or b"")
        rest = sum(map(len, pieces[len(pieces) - left :])) + left * length
        if self._collecting is not None:
            rest += len(self._collecting) + length
            self._collecting = None
        self._position -= rest
        self._searched = 0
        self._batch = None
        self._pieces = []
        # A disturbance is paid for by the messages that come before the next split.
        self._unsettled = max(SETTLE, left >> 3)

    # -- the reference way

    def _step(self, receiver: Any, terminator: Any) -> bool:
        """
        Take one piece from the buffer, and the end of message behind it; tell whether to go on.
        """
        if self._skipping is not None:
            return self._skip()
        buffer = self._buffer
        position = self._position
        size = len(buffer) - position
        behind = 0  # bytes of the delimiter behind the piece
        held = 0  # bytes at the end of the buffer that may begin a delimiter
        announced = False
        limit = self._limit
        matched: bytes | None = None
        if not terminator:
            length, ends = size, False
            if not self.whole:
                limit = None
            total = self._count + length
        elif isinstance(terminator, int):
            announced = True
            total = self._count + terminator
            ends = size >= terminator
            length = terminator if ends else size
            if length < 0:
                # A handler lowered a running count by more than was left of it. As in asynchat the
                # message ends that many bytes before the end of the buffer.
                length = max(0, size + length)
        elif isinstance(terminator, LengthPrefix):
            if self._body is None:
                if size < terminator.size:
                    return False
                self._body = terminator.unpack(buffer, position)
                self._position = position = position + terminator.size
                size -= terminator.size
            announced = True
            limit = terminator.limit
            total = self._count + self._body
            ends = size >= self._body
            length = self._body if ends else size
        else:
            if type(terminator) is tuple:
                delimiters = compile_delimiters(terminator)
                found = delimiters.find(buffer, max(position, self._searched))
                index = -1
                if found:
                    index = found.start()
                    matched = found[0]
                    behind = len(matched)
                else:
                    held = delimiters.prefix_length_at_end(buffer, position)
            else:
                matched = terminator
                behind = len(terminator)
                index = buffer.find(terminator, max(position, self._searched))
                if index < 0:
                    held = prefix_length_at_end(buffer, terminator, position)
            ends = index >= 0
            length = index - position if ends else size - held
            total = self._count + length
        if limit is not None and total > limit:
            if not self._unlimited:
                return self._overflow(receiver, terminator, limit, total if announced else None)
            room = max(0, max(1, limit) - len(self._partial or b""))
            if self.whole and length > room:
                return self._pass_part(receiver, terminator, length, room)

        piece = buffer[position : position + length]
        if not ends:
            return self._pass_unfinished(receiver, piece, terminator, held)
        if self._unsettled:
            self._unsettled -= 1
        if self.whole:
            self._position += length + behind
            if self._partial is not None:
                self._partial += piece
                piece = bytes(self._partial)
        else:
            if piece:
                receiver.collect_incoming_data(piece)
                if matched:
                    return self._end_passed(receiver, piece, matched, total)
                if self.closed:
                    return False
            # Somebody may have replaced the buffer; the cut is made in what is there now.
            self._position += length + behind
        if announced:
            if isinstance(terminator, int):
                self._terminator = 0
            else:
                self._body = None
        self._end_message()
        self.matched = matched
        if self.whole:
            if (result := receiver.message_received(piece)) is not None and self.checks_results:
                receiver.hook_returned(result)
        elif (result := receiver.found_terminator()) is not None and self.checks_results:
            receiver.hook_returned(result)
        return True

    def _end_passed(self, receiver: Any, piece: bytes, delimiter: bytes, total: int) -> bool:
        """
        End a message of *total* bytes whose last *piece* was passed on; tell whether to go on.
        """
        if self.closed:
            return False
        # Somebody may have replaced the buffer; the cut is made in what is there now.
        self._position += len(piece) + len(delimiter)
        limit = self._limit
        error = None
        if limit is not None and total > limit and not self._unlimited:  # it was lowered just now
            sample = (self._head + piece)[: limit + 1]
            error = MessageTooLong(limit, limit + 1, sample[:SAMPLE])
        self._end_message()
        self.matched = delimiter
        if error is not None:
            try:
                self._tell(receiver, error)
            finally:
                if self._skipping is _UNDECIDED:
                    self._skipping = None
            if self.overflow is not Overflow.DELIVER:
                return not self.closed
        if (result := receiver.found_terminator()) is not None and self.checks_results:
            receiver.hook_returned(result)
        return True

    def _pass_unfinished(self, receiver: Any, piece: bytes, terminator: Any, held: int) -> bool:
        """
        Pass on or keep a piece with no end of message behind it; tell whether to go on.
        """
        length = len(piece)
        if not length:
            return self._position >= len(self._buffer)
        if self.whole:
            self._add_to_head(piece)
            self._count += length
            self._position += length
            self._count_down(terminator, length)
            if self._partial is None:
                self._partial = bytearray(piece)
            else:
                self._partial += piece
            return not held
        receiver.collect_incoming_data(piece)
        if self.closed:
            return False
        if terminator:
            self._add_to_head(piece)
            self._count += length
        if held:
            # The tail of what is there now: somebody may have replaced the buffer.
            if self._backlog or len(self._buffer) - self._position != length + held:
                self.buffer = self.buffer[-held:]
            else:
                self._position += length
            return False
        self._buffer = b""
        self._position = self._searched = 0
        self._backlog = None
        self._count_down(terminator, length)
        return False

    def _count_down(self, terminator: Any, length: int) -> None:
        if not terminator:
            return
        if isinstance(terminator, int):
            # A handler that put a delimiter in place of a running count meets the TypeError here,
            # as it does in asynchat.
            self._terminator -= length
        elif self._body is not None:
            self._body -= length

    def _pass_part(self, receiver: Any, terminator: Any, length: int, room: int) -> bool:
        """
        Hand over as much of an over-long message as the limit allows at once; tell whether to go on.
        """
        position = self._position
        part = self._buffer[position : position + room]
        if self._partial is not None:
            part = bytes(self._partial) + part
            self._partial = None
        self._position = position + room
        self._searched = position + length
        self._count += room
        self._count_down(terminator, room)
        if (result := receiver.message_received(part)) is not None and self.checks_results:
            receiver.hook_returned(result)
        return True

    def _add_to_head(self, piece: bytes) -> None:
        if self._count < SAMPLE and self._limit is not None:
            self._head += piece[: SAMPLE - self._count]

    def _end_message(self) -> None:
        if self._count:
            self._count = 0
            self._head = b""
            self._partial = None
        self._unlimited = False

    # -- limits

    def _overflow(self, receiver: Any, terminator: Any, limit: int, announced: int | None) -> bool:
        """
        The current message is longer than *limit*; tell whether to go on.
        """
        position = self._position
        self._delimiter = _NO_SHORT_WAY
        self._announced = False
        # How much of it the limit still allows; none, where it was lowered in mid-message.
        allowed = max(0, limit - self._count)
        if announced is None and allowed and not self.whole:
            # A message in pieces comes up to its limit, however it was cut. The handler may change
            # anything, so what follows is looked at anew.
            piece = self._buffer[position : position + allowed]
            receiver.collect_incoming_data(piece)
            if self.closed:
                return False
            self._add_to_head(piece)
            self._count += allowed
            self._position += allowed
            return True
        sample = self._head
        if announced is None:
            sample = (sample + self._buffer[position : position + allowed + 1])[: limit + 1]
        error = MessageTooLong(limit, announced or limit + 1, sample[:SAMPLE])
        body = self._body
        current = self._terminator
        counts = announced is not None and isinstance(terminator, int)
        if counts:
            self._terminator = 0  # what the hook sets is for what comes after the message
        try:
            self._tell(receiver, error)
        finally:
            if self._skipping is _UNDECIDED:
                self._skipping = None
                if self.overflow is Overflow.DELIVER:
                    self._unlimited = True
                    if counts and self._terminator == 0:
                        self._terminator = current
                else:
                    if counts:
                        self._skipping = terminator
                    elif announced is not None:
                        self._skipping = body
                        self._body = None
                    elif terminator:
                        self._skipping = terminator
                    else:
                        # Up to and with the byte that is too many, however it was cut; then
                        # everything, until a terminator is set.
                        self._position += allowed + 1
                        if self._terminator is current:
                            self._skipping = b""
                    self._end_message()
        return not self.closed

    def _tell(self, receiver: Any, error: MessageTooLong) -> None:
        """
        Call the hook, and close where that is what follows; meanwhile nothing is delivered.

        Where neither a close nor the hook dropped the message, the caller has to see to it.
        """
        self._skipping = _UNDECIDED
        try:
            receiver.overflowed(error)
        finally:
            if self.overflow is Overflow.CLOSE:
                self.close()

    def _skip(self) -> bool:
        """
        Drop bytes of an over-long message; tell whether to go on.
        """
        buffer = self._buffer
        position = self._position
        end = self._skipping
        if end is _UNDECIDED:
            return False
        if isinstance(end, int):
            dropped = min(end, len(buffer) - position)
            self._position += dropped
            self._skipping = (end - dropped) or None
            return True
        if not end:
            self._position = len(buffer)
            return True
        delimiters = compile_delimiters(end if isinstance(end, tuple) else (end,))
        found = delimiters.find(buffer, position)
        if found:
            self._position = found.end()
            self._skipping = None
            return True
        held = delimiters.prefix_length_at_end(buffer, position)
        self._position = len(buffer) - held
        return not held
