"""
The reference framer: one piece of a message after the other. No I/O here, no Twisted, no clock.

Nothing re-slices the rest of the buffer for a message, searches the same bytes twice, or recurses. So
the cost is linear in the number of bytes, times the length of the terminator in the worst case, which
the application chooses and the peer does not.

The order of calls is that of the standard library's ``asynchat.async_chat.handle_read``, and a piece
whose handler raised stays in the buffer, as it does there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from txasynchat.errors import MalformedMessage
from txasynchat.framing.overlong import ENDLESS, PASSED_ON, SAMPLE, Overflow, drop, too_long
from txasynchat.terminators import (
    Expected,
    LengthPrefix,
    Terminator,
    check_terminator,
    compile_delimiters,
    prefix_length_at_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.errors import MessageTooLong
    from txasynchat.framing.receivers import LimitReceiver, Receiver

__all__ = ["StepwiseFramer"]

# CPython compares numbers up to this one faster than greater ones.
_ORDINARY: Final = (1 << 30) - 1


class _Earlier(bytes):
    """The delimiter of a message that had ended when `StepwiseFramer.message_ended` was called."""


class StepwiseFramer:
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
        terminator: what ends the current message; a number counts down, and is 0 when its message is
            complete. May be assigned at any moment, unchecked; `set_terminator` checks.
        matched: the delimiter that ended the latest message; ``None`` where it was a length.
        paused: nothing is delivered; bytes are kept.
        closed: nothing will ever be delivered again; bytes are dropped.
        overflow: as above; may be changed at any moment.
    """

    __slots__ = (
        *("_backlog", "_buffer", "_position", "_searched", "_seen", "_unread"),
        *("_announced", "_body", "_count", "_kept", "_limit", "_longest", "_over_long"),
        *("_ending", "_stopped", "closed", "matched", "overflow", "paused", "terminator", "whole"),
    )

    def __init__(
        self,
        terminator: Terminator = None,
        *,
        limit: int | None = None,
        overflow: Overflow = Overflow.CLOSE,
        whole: bool = False,
    ) -> None:
        self.terminator: Any = check_terminator(terminator)
        self.overflow = overflow
        self.whole = whole
        self.matched: bytes | None = None
        self.paused = self.closed = False
        # What is left: _buffer from _position on, then _backlog. No delimiter begins in the buffer
        # before _searched. That and _body belong to _seen, the terminator of the latest round.
        self._buffer = b""
        self._backlog: list[bytes] | None = None
        # What was given back, and goes before all of that; then there is a backlog, too.
        self._unread = b""
        self._position = self._searched = 0
        self._seen: Any = self.terminator
        # Of the current message: bytes passed on or kept; these, if the message is to be whole, or
        # else the first of them, for the error; bytes of a prefixed body still to come, None before
        # the prefix.
        self._count = 0
        self._kept: bytearray | None = None
        self._body: int | None = None
        # It broke the limit: PASSED_ON, or what ends its dropping.
        self._over_long: Any = None
        # The terminator was set to a number above the limit, and nobody was told yet.
        self._announced = False
        self._limit = limit
        # `stop` was called; and the arguments of _end_passed that were put off because of it.
        self._stopped = False
        self._ending: tuple[bytes, bytes | None, int] | None = None
        # Numbers set as the terminator up to this one are within the limit.
        self._longest = _ORDINARY if limit is None else min(limit, _ORDINARY)
        self._prepare()

    def set_terminator(self, terminator: Terminator) -> bool:
        """
        Choose where the current message ends; holds for bytes not yet delivered.

        May be called from inside any handler. A number within the limit is set unchecked: 594 → 467 ns
        for each frame of 4 bytes.

        Returns:
            True if it is a number above the limit, which `deliver` tells without a byte: the running
            one, or else it has to be called.

        Raises:
            TypeError, ValueError: see `check_terminator`.
        """
        if type(terminator) is int and 0 < terminator <= self._longest:
            self.terminator = terminator
            return False
        if type(terminator) is not tuple or terminator is not self.terminator:  # which takes long
            terminator = check_terminator(terminator)
        limit = self._limit
        if limit is not None and isinstance(terminator, int) and terminator > limit:
            self._announced = True
            self._disturb()
        else:
            self._announced = False
        if type(terminator) is not bytes or terminator != self.terminator:
            self.terminator = terminator
        return self._announced

    def expect(self, length: int, limit: int | None = None) -> bool:
        """
        Let *length* bytes be the next message; then the terminator in force now is in force again.

        In a message that has begun, so many more bytes end it. May be called from inside any handler.

        Args:
            length: of the message; 0 is an empty one, for which no byte has to come.
            limit: in place of the framer's own.

        Returns:
            True if `deliver` has something to tell without a byte: the running one, or else it has to
            be called.

        Raises:
            TypeError, ValueError: *length* is not a number, or a negative one; or *limit* is.
        """
        for number in (length, limit):
            if number is None and number is not length:
                continue
            if type(number) is not int:
                raise TypeError(f"a number of bytes must be an int: {number!r}")
            if number < 0:
                raise ValueError(f"a number of bytes must not be negative: {number!r}")
        now = self.terminator
        self.terminator = Expected(length, limit, now.then if type(now) is Expected else now)
        limit = self._limit if limit is None else limit
        self._announced = not length or (limit is not None and length > limit)
        if self._announced:
            self._disturb()
        return self._announced

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
        if limit != self._limit:
            self._disturb()
            if self._limit is None and not self.whole:
                self._kept = (
                    None  # the first bytes are gone; the error shows what comes from now on
                )
            self._limit = limit
            self._longest = _ORDINARY if limit is None else min(limit, _ORDINARY)

    # -- bytes in

    def feed(self, data: bytes) -> None:
        """Append received bytes; nothing is delivered. May be called from inside any handler."""
        if self.closed or not data:
            return
        self._disturb()
        if self._position < len(self._buffer) or self._backlog:
            if self._backlog is None:
                self._backlog = [data]
            else:
                self._backlog.append(data)
        else:
            self._buffer = data
            self._position = self._searched = 0

    def unread(self, data: bytes) -> None:
        """
        Put *data* in front of all bytes that were not passed on; nothing is delivered.

        May be called from inside any handler, with what that was given, and more than once: what is
        given back last comes first. Pieces of a message that has not ended count no longer.
        """
        if self.closed or not data:
            return
        self._disturb()
        self._unread = data + self._unread
        self._backlog = self._backlog or [b""]  # so that the next round looks

    @property
    def buffer(self) -> bytes:
        """
        The bytes that are not yet passed on, as ``async_chat.ac_in_buffer`` would hold them now.

        Inside ``collect_incoming_data`` the piece itself is still among them; inside
        ``found_terminator`` the message and its terminator are gone.
        """
        if self._buffer or self._position:  # or nothing is left, and there is nothing to disturb
            self._disturb()
            self._join()
        return self._buffer

    def take_back(self, collected: bytes = b"") -> bytes:
        """
        Return all that was not passed on, as it came, and forget it.

        Args:
            collected: the pieces of the unfinished message that were passed on; they go before.
        """
        self._disturb()
        terminator, body = self.terminator, self._body
        if collected and body is not None and self._seen is terminator:
            collected = terminator.prefix(body + self._count) + collected
        self._put_back()
        data = collected + self.buffer
        self.clear()
        return data

    @property
    def unfinished(self) -> bytes:
        """What has come of a message that has no end yet, without what was passed on or dropped."""
        if self._over_long not in {None, PASSED_ON}:
            return b""
        return b"".join((self._kept or b"", self.buffer)) if self.whole else self.buffer

    @property
    def in_message(self) -> bool:
        """
        A message has begun and its end has not come, or bytes wait to be delivered.

        Where there is no terminator no message ends, and none is waited for.
        """
        return bool(self.terminator) and bool(
            self._count
            or (self._body is not None and self._seen is self.terminator)
            or self._backlog
            or self._position < len(self._buffer)
        )

    @property
    def waiting(self) -> bool:
        """Bytes wait to be passed on."""
        return bool(self._backlog) or self._position < len(self._buffer)

    @property
    def length(self) -> int:
        """Bytes of the current message that have come, and of what waits behind it."""
        waiting = len(self._buffer) - self._position
        return self._count + waiting + sum(map(len, self._backlog or ()))

    def message_ended(self) -> bool:
        """
        Return whether a message has ended since this was called last; True for the first call.

        Each message that ends sets `matched` anew. So what it is now is replaced by its equal (None by
        nothing), which is gone after the next one: that costs a message nothing.
        """
        if type(self.matched) is _Earlier:
            return False
        self.matched = _Earlier(self.matched or b"")
        return True

    @property
    def untouched(self) -> bool:
        """No message has ended or begun since `message_ended` was called, and none had begun."""
        return type(self.matched) is _Earlier and not self.in_message

    def pause(self) -> None:
        """Deliver nothing from the next message or piece on; a message just ending is still ended."""
        self.paused = True
        self._disturb()

    def stop(self) -> None:
        """As `pause`, but not even a message just ending is ended before `resume`."""
        self._stopped = True
        self.pause()

    def resume(self) -> None:
        """Allow delivery again; it goes on with the next `deliver`, or at once inside a running one."""
        self.paused = self.closed
        self._stopped = False

    def clear(self) -> None:
        """
        Drop every byte that was not yet passed on, and the beginning of a message that is kept.

        What arrives next is taken as the beginning of a message; a number set as the terminator
        goes on counting down.
        """
        self._disturb()
        self._buffer = self._unread = b""
        self._position = self._searched = 0
        self._backlog = self._body = self._ending = None
        self._end_message()

    def close(self) -> None:
        """Drop everything, now and in future; not even a message just ending is ended."""
        self.clear()
        self.closed = self.paused = True

    # -- events out

    def receive(self, receiver: Receiver, data: bytes) -> None:
        """`feed`, then `deliver`: the way for a driver; raises what `deliver` raises."""
        self.feed(data)
        self.deliver(receiver)

    def deliver(self, receiver: Receiver, get_terminator: Callable[[], Any] | None = None) -> None:
        """
        Pass on what can be passed on, until nothing is left, or a pause, or an exception.

        Not to be called inside a handler: the delivery that called it goes on by itself.

        Args:
            receiver: its methods are looked up for each call.
            get_terminator: asked for the terminator on each round, in place of `terminator`.

        Raises:
            MalformedMessage: what came is not a message; everything was dropped, as by `close`.
            Exception: whatever a handler raised. The state is then the one that ``asynchat`` leaves:
                a piece whose handler raised is still in the buffer.
        """
        if self._ending is not None and not self.paused:
            (piece, matched, total), self._ending = self._ending, None
            self._position -= len(piece) + len(matched or b"")  # which it adds again
            # What was given back since then is no part of the message, which is to end.
            unread, self._unread = self._unread, b""
            self._end_passed(receiver, piece, matched, total)
            self._unread += unread
        while not self.paused:
            if self._backlog:
                if self._unread:
                    self._put_back()
                self._join()
            if self._position >= len(self._buffer):
                self._buffer = b""  # not to keep a chunk alive for an idle connection
                self._position = self._searched = 0
                if not self._announced or self._over_long not in {None, PASSED_ON}:
                    return
                self._announced = False
            terminator = self.terminator if get_terminator is None else get_terminator()
            if terminator is not self._seen:
                self._notice(terminator)
            if (
                terminator
                and not self._count
                and self._over_long is None
                and get_terminator is None
                and self._deliver_many(receiver, terminator)
            ):
                continue
            if not self._step(receiver, terminator) and not self._backlog:
                if self._position:
                    self._join()  # not to keep a chunk alive for the few bytes that wait for more
                return

    # -- messages out on demand, instead of events

    def pull(self, receiver: LimitReceiver) -> bytes | None:
        """
        Return the next message, which `deliver` would pass to ``message_received``; None if no whole
        one is there.

        For a framer that is paused meanwhile, and asks for whole messages.

        Raises:
            Exception: whatever *receiver* raised.
        """
        taker = _Taker(self, receiver)
        self.resume()
        try:
            StepwiseFramer.deliver(self, taker, taker.get_terminator)
        finally:
            self.pause()
        return taker.message

    def rewind(self) -> None:
        """
        Put what is kept of an unfinished message back, as if it had just arrived, for another
        terminator; for a framer that asks for whole messages.
        """
        self._disturb()
        if self._over_long is None and (self._kept or self._body is not None):
            self._put_back()
            self._body = None

    def take(self, most: int) -> bytes:
        """
        Return bytes that wait, at most so many, whatever ends a message; empty if there are none.
        """
        self.rewind()
        if self._backlog:
            self._join()
        if self._over_long is not None and self._over_long is not PASSED_ON:
            self._position, self._over_long = drop(self._buffer, self._position, self._over_long)
            if self._over_long is not None:
                return b""
        piece = self._buffer[self._position : self._position + most]
        self._position += len(piece)
        if self._position >= len(self._buffer):
            self._buffer = b""
            self._position = 0
        self._searched = self._position
        return piece

    def _notice(self, terminator: Any) -> None:
        """Forget what belongs to another terminator."""
        self._seen = terminator
        self._searched = 0
        self._body = None
        if self._over_long is ENDLESS:
            self._over_long = None

    # -- for short ways beside the reference

    def _prepare(self) -> None:
        """The last step of ``__init__``."""

    def _disturb(self) -> None:
        """Something happens that a short way does not expect: make the position exact."""

    def _deliver_many(self, receiver: Receiver, terminator: Any) -> bool:  # noqa: ARG002 there is none
        """Deliver whole messages from the position on; return whether there were any."""
        return False

    # -- the reference

    def _step(self, receiver: Receiver, terminator: Any) -> bool:
        """Take one piece from the buffer, and the end of message behind it; return whether to go on."""
        buffer = self._buffer
        position = self._position
        if self._over_long is not None and self._over_long is not PASSED_ON:
            self._position, self._over_long = drop(buffer, position, self._over_long)
            return self._over_long is None or self._position >= len(buffer)
        size = len(buffer) - position
        length = size  # of the piece
        held = 0  # bytes at the end of the buffer that may begin a delimiter
        matched: bytes | None = None
        announced: int | None = None
        limit = self._limit
        if terminator and (
            type(terminator) is bytes or not isinstance(terminator, (int, LengthPrefix))
        ):
            start = max(position, self._searched)
            if type(terminator) is tuple:
                delimiters = compile_delimiters(terminator)
                if found := delimiters.find(buffer, start):
                    matched = found[0]
                    length = found.start() - position
                else:
                    held = delimiters.prefix_length_at_end(buffer, position)
            elif (index := buffer.find(terminator, start)) >= 0:
                matched = terminator
                length = index - position
            elif len(terminator) > 1:
                held = prefix_length_at_end(buffer, terminator, position)
            ends = matched is not None
            length -= held
        elif not terminator:
            ends = False
            if not self.whole:
                limit = None
        elif isinstance(terminator, int):
            announced = terminator
            ends = size >= terminator
            # A running count that a handler lowered below zero: the message ends that many bytes
            # before the end of the buffer, as in asynchat.
            length = min(size, terminator) if terminator > 0 else max(0, size + terminator)
        else:
            if self._body is None:
                try:
                    found = terminator.read(buffer, position)
                except MalformedMessage:
                    self.close()
                    raise
                if found is None:
                    return False
                self._body, self._position = found
                size += position - self._position
                position = self._position
            announced = self._body
            if terminator.limit is not None or type(terminator) is not Expected:
                limit = terminator.limit
            ends = size >= announced
            if ends and terminator.end:
                ends = buffer.startswith(terminator.end, position + announced)
                if not ends and announced:
                    held = size - announced  # the body is passed on first, however it was cut
                elif not ends and size:
                    self.close()
                    raise MalformedMessage(f"no {terminator.end.decode()!r} behind a message")
            length = min(size, announced)
        total = self._count + (length if announced is None else announced)
        if limit is not None and total > limit:
            if self._over_long is None:
                known = None if announced is None else total
                return self._overflow(receiver, terminator, limit, known)
            room = max(0, max(1, limit) - len(self._kept or b""))
            if self.whole and length > room:
                return self._pass_part(receiver, terminator, length, room)

        piece = buffer[position : position + length]
        if not ends:
            if piece:
                self._pass_unfinished(receiver, piece, terminator, held)
                if announced is not None and not self.closed:
                    self._count_down(terminator, length)
                if held and self._announced:  # what a handler set is told of all the same
                    self._announced = False
                    return True
            return not held or announced is not None
        if self.whole:
            self._position += length + len(matched or b"")
            if self._kept is not None:
                piece = b"".join((self._kept, piece))
        elif piece:
            if (result := receiver.collect_incoming_data(piece)) is not None:
                self._returned(receiver, result)
            if self.closed:
                return False
            if self._unread:
                return self._given_back(piece, terminator, length)
        if announced is not None:
            if isinstance(terminator, int):
                self.terminator = 0
            else:
                self._body = None
                if type(terminator) is Expected and self.terminator is terminator:
                    self.terminator = terminator.then
                    self._announced = False
                if terminator.end:
                    self._position += 1
        if not self.whole:
            return self._end_passed(receiver, piece, matched, total)
        self._end_message()
        self.matched = matched
        if (result := receiver.message_received(piece)) is not None:
            self._returned(receiver, result)
        return True

    # -- internals: the buffer and the current message

    def _join(self) -> None:
        """Make what is left one `bytes` object that begins at position 0."""
        position = self._position
        if self._backlog:
            self._buffer = b"".join((memoryview(self._buffer)[position:], *self._backlog))
            self._backlog = [b""] if self._unread else None
        elif position:
            self._buffer = self._buffer[position:]
        self._searched = max(0, self._searched - position)
        self._position = 0

    def _given_back(self, piece: bytes, terminator: Any, length: int) -> bool:
        """The last piece of a message was given back, or a part of it, so the message goes on."""
        self._piece_passed(piece, terminator, 0)
        runs = isinstance(terminator, int) and self.terminator is terminator
        if runs or not isinstance(terminator, int):
            self._count_down(terminator, length)
        self._put_back(runs=runs)
        return True

    def _put_back(self, *, runs: bool = False) -> None:
        """Put what was given back, and before that what is kept here, into the buffer again."""
        data, self._unread = self._unread, b""
        terminator = self.terminator
        body = self._body if self._seen is terminator else None
        if self.whole and self._over_long is None:
            kept = bytes(self._kept or b"")
            again = len(kept)
            self._end_message()
        else:
            kept = b""
            again = min(len(data), self._count)
        if body is not None and not self._count and type(terminator) is not Expected:
            data += terminator.prefix(body + again)
            body = self._body = None
        if self._count:
            self._count -= again
            if self._kept is not None:
                del self._kept[self._count :]
        data += kept
        if body is not None:
            self._body = body + again
        elif runs or (type(terminator) is int and terminator):
            self.terminator += again
        self._buffer = data + self._buffer[self._position :]
        self._position = self._searched = 0

    def _keep(self, piece: bytes) -> None:
        if self._kept is None:
            self._kept = bytearray(piece)
        else:
            self._kept += piece
        self._count += len(piece)

    def _pass_unfinished(
        self, receiver: Receiver, piece: bytes, terminator: Any, held: int
    ) -> None:
        """Pass on or keep a piece that only *held* bytes follow, and no end of the message."""
        if self.whole:
            self._keep(piece)
            self._position += len(piece)
        else:
            if (result := receiver.collect_incoming_data(piece)) is not None:
                self._returned(receiver, result)
            self._piece_passed(piece, terminator, held)

    def _piece_passed(self, piece: bytes, terminator: Any, held: int) -> None:  # noqa: ARG002 see LegacyFramer
        """Count a piece, and cut it off."""
        if self.closed:
            return
        if terminator:
            if self._limit is not None and self._count < SAMPLE:
                self._kept = (self._kept or bytearray()) + piece[: SAMPLE - self._count]
            self._count += len(piece)
        self._position += len(piece)

    def _end_passed(
        self, receiver: Receiver, piece: bytes, matched: bytes | None, total: int
    ) -> bool:
        """End a message of *total* bytes whose last *piece* was passed on; return whether to go on."""
        if self.closed:
            return False
        if self._unread:
            return self._given_back(piece, matched, 0)
        self._position += len(piece) + len(matched or b"")
        if self._stopped:
            self._ending = piece, matched, total
            return False
        begin = None
        if matched and self._limit is not None and total > self._limit and self._over_long is None:
            begin = bytes(self._kept or b"") + piece  # it was lowered just now
        self._count = 0
        self._kept = self._over_long = None
        self.matched = matched
        if begin is not None and self._limit is not None:
            self._tell(receiver, too_long(self._limit, None, begin))
            if self.overflow is not Overflow.DELIVER:
                return not self.closed
        if (result := receiver.found_terminator()) is not None:
            self._returned(receiver, result)
        return True

    def _count_down(self, terminator: Any, length: int) -> None:
        """Count *length* bytes of a message of known length."""
        if isinstance(terminator, int):
            # A handler that put a delimiter in place of a running count meets the TypeError here,
            # as it does in asynchat.
            self.terminator -= length
        elif self._body is not None:
            self._body = max(0, self._body - length)  # on the facade another may be running

    def _end_message(self) -> None:
        self._count = 0
        self._kept = self._over_long = None

    def _returned(self, receiver: Receiver, result: object) -> None:
        receiver.hook_returned(result)

    # -- messages that are too long

    def _overflow(
        self, receiver: Receiver, terminator: Any, limit: int, announced: int | None
    ) -> bool:
        """The current message is longer than *limit*; return whether to go on."""
        self._disturb()
        self._announced = False
        position = self._position
        # How much of it the limit still allows; none, where it was lowered in mid-message.
        allowed = max(0, limit - self._count)
        if announced is None and allowed:
            # A message comes up to its limit, or is kept up to it, however it was cut. A handler may
            # change anything, so what follows is looked at anew.
            piece = self._buffer[position : position + allowed]
            self._pass_unfinished(receiver, piece, terminator, 0)
            return True
        begin = bytes((self._kept or b"")[:SAMPLE])
        if announced is None:
            begin += self._buffer[position : position + 1]
        current = self.terminator
        counts = announced is not None and isinstance(terminator, int)
        once = counts or type(terminator) is Expected
        following = 0 if counts or not once else terminator.then
        if once:
            self.terminator = following  # what the hook sets is for what comes after the message
        end = terminator
        if self._body is not None and announced is not None and not counts:
            end = self._body + len(terminator.end)
        self._over_long = PASSED_ON
        try:
            self._tell(receiver, too_long(limit, announced, begin))
        finally:
            if self._over_long is not PASSED_ON:
                pass  # a close or the hook dropped it
            elif self.overflow is Overflow.DELIVER:
                if once and self.terminator is following:
                    self.terminator = current
            else:
                self._end_message()
                self._body = None
                if end or (once and not counts):
                    self._over_long = end or None
                else:
                    # The byte that is too many, however it was cut; then everything, until a
                    # terminator is set.
                    self._position += 1
                    self._over_long = ENDLESS if self.terminator is current else None
        return not self.closed

    def _tell(self, receiver: Receiver, error: MessageTooLong) -> None:
        """Call the hook, and close where that is what follows."""
        try:
            receiver.overflowed(error)
        finally:
            if self.overflow is Overflow.CLOSE:
                self.close()

    def _pass_part(self, receiver: Receiver, terminator: Any, length: int, room: int) -> bool:
        """
        Pass on as much of an over-long message as the limit allows at once; return whether to go on.
        """
        position = self._position
        part = self._buffer[position : position + room]
        if self._kept is not None:
            part = bytes(self._kept) + part
            self._kept = None
        self._position = position + room
        self._searched = position + length
        self._count += room
        self._count_down(terminator, room)
        if (result := receiver.message_received(part)) is not None:
            self._returned(receiver, result)
        return True


class _Taker:
    """Takes one message, then pauses the framer."""

    __slots__ = ("_framer", "_receiver", "message")

    def __init__(self, framer: StepwiseFramer, receiver: LimitReceiver) -> None:
        self._framer = framer
        self._receiver = receiver
        self.message: bytes | None = None

    def message_received(self, message: bytes) -> None:
        self.message = message
        self._framer.pause()

    def get_terminator(self) -> Any:
        """Return the terminator in force; to be asked for it opens no short way."""
        return self._framer.terminator

    def overflowed(self, error: MessageTooLong) -> None:
        self._receiver.overflowed(error)

    def collect_incoming_data(self, _: bytes) -> None:
        raise AssertionError("a framer that is pulled asks for whole messages")

    found_terminator: Any = collect_incoming_data
    hook_returned: Any = collect_incoming_data
