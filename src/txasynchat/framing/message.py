"""
The current message: its pieces are passed on or kept, until it ends or is too long. No I/O here.

The order of calls is that of the standard library's ``asynchat.async_chat.handle_read``, and a piece
whose handler raised stays in the buffer, as it does there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from txasynchat.framing.buffer import ReceivedBytes
from txasynchat.framing.overlong import ENDLESS, PASSED_ON, SAMPLE, Overflow, too_long

if TYPE_CHECKING:
    from txasynchat.errors import MessageTooLong
    from txasynchat.framing.receivers import Receiver
    from txasynchat.terminators import Terminator

__all__ = ["CurrentMessage"]

# CPython compares numbers up to this one faster than greater ones.
_ORDINARY: Final = (1 << 30) - 1


class CurrentMessage(ReceivedBytes):
    """
    What is known of the message whose bytes come now; see `StepwiseFramer` for the attributes.
    """

    __slots__ = (
        "_announced",
        "_body",
        "_count",
        "_kept",
        "_limit",
        "_longest",
        "_over_long",
        "matched",
        "overflow",
        "terminator",
        "whole",
    )

    def __init__(
        self, terminator: Terminator, limit: int | None, overflow: Overflow, *, whole: bool
    ) -> None:
        super().__init__()
        self.terminator: Any = terminator
        self.overflow = overflow
        self.whole = whole
        self.matched: bytes | None = None
        self._limit = limit
        # Numbers set as the terminator up to this one are within the limit.
        self._longest = _ORDINARY if limit is None else min(limit, _ORDINARY)
        # Bytes passed on or kept; these, if the message is to be whole, or else the first of them, for
        # the error; bytes of a prefixed body still to come, None before the prefix.
        self._count = 0
        self._kept: bytearray | None = None
        self._body: int | None = None
        # It broke the limit: PASSED_ON, or what ends its dropping.
        self._over_long: Any = None
        # The terminator was set to a number above the limit, and nobody was told yet.
        self._announced = False

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

    def clear(self) -> None:
        """
        Drop every byte that was not yet passed on, and the beginning of a message that is kept.

        What arrives next is taken as the beginning of a message; a number set as the terminator
        goes on counting down.
        """
        self._disturb()
        self._buffer = b""
        self._position = self._searched = 0
        self._backlog = self._body = None
        self._end_message()

    def close(self) -> None:
        """
        Drop everything, now and in future; not even a message just ending is ended.
        """
        self.clear()
        self.closed = self.paused = True

    def _keep(self, piece: bytes) -> None:
        if self._kept is None:
            self._kept = bytearray(piece)
        else:
            self._kept += piece
        self._count += len(piece)

    def _pass_unfinished(
        self, receiver: Receiver, piece: bytes, terminator: Any, held: int
    ) -> None:
        """
        Pass on or keep a piece that only *held* bytes follow, and no end of the message.
        """
        if self.whole:
            self._keep(piece)
            self._position += len(piece)
        else:
            receiver.collect_incoming_data(piece)
            self._piece_passed(piece, terminator, held)

    def _piece_passed(self, piece: bytes, terminator: Any, held: int) -> None:  # noqa: ARG002 see LegacyFramer
        """
        Count a piece, and cut it off.
        """
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
        """
        End a message of *total* bytes whose last *piece* was passed on; return whether to go on.
        """
        if self.closed:
            return False
        self._position += len(piece) + len(matched or b"")
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
        """
        Count *length* bytes of a message of known length.
        """
        if isinstance(terminator, int):
            # A handler that put a delimiter in place of a running count meets the TypeError here,
            # as it does in asynchat.
            self.terminator -= length
        elif self._body is not None:
            self._body -= length

    def _end_message(self) -> None:
        self._count = 0
        self._kept = self._over_long = None

    def _returned(self, receiver: Receiver, result: object) -> None:
        receiver.hook_returned(result)

    # -- messages that are too long

    def _overflow(
        self, receiver: Receiver, terminator: Any, limit: int, announced: int | None
    ) -> bool:
        """
        The current message is longer than *limit*; return whether to go on.
        """
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
        begin = bytes(self._kept[:SAMPLE]) if self._kept is not None else b""
        if announced is None:
            begin += self._buffer[position : position + 1]
        current = self.terminator
        counts = announced is not None and isinstance(terminator, int)
        if counts:
            self.terminator = 0  # what the hook sets is for what comes after the message
        end = self._body if announced is not None and not counts else terminator
        self._over_long = PASSED_ON
        try:
            self._tell(receiver, too_long(limit, announced, begin))
        finally:
            if self._over_long is not PASSED_ON:
                pass  # a close or the hook dropped it
            elif self.overflow is Overflow.DELIVER:
                if counts and self.terminator == 0:
                    self.terminator = current
            else:
                self._end_message()
                self._body = None
                if end:
                    self._over_long = end
                else:
                    # The byte that is too many, however it was cut; then everything, until a
                    # terminator is set.
                    self._position += 1
                    self._over_long = ENDLESS if self.terminator is current else None
        return not self.closed

    def _tell(self, receiver: Receiver, error: MessageTooLong) -> None:
        """
        Call the hook, and close where that is what follows.
        """
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
