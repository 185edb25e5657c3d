"""
A message that is longer than its limit: what follows, and what of it is dropped. No I/O here.

A limit is a property of the bytes, not of the packets: the messages, and the error, are the same
however the bytes were cut. `Framer` notices the message; an `OverLong` says what becomes of its rest.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from txasynchat.errors import MessageTooLong
from txasynchat.terminators import compile_delimiters

if TYPE_CHECKING:
    from typing import TypeAlias

    #: What ends a message that is dropped: delimiters, or a number of bytes still to come.
    End: TypeAlias = bytes | tuple[bytes, ...] | int

__all__ = ["SAMPLE", "OverLong", "Overflow", "too_long"]

#: Bytes of an over-long message that `MessageTooLong.sample` shows.
SAMPLE: Final = 128


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


def too_long(limit: int, announced: int | None, begin: bytes) -> MessageTooLong:
    """
    Return the error for a message that begins with *begin*, which may hold more than the limit.

    Args:
        limit: the one that the message broke.
        announced: the length of the message, where it is known before its bytes.
        begin: shown up to `SAMPLE` bytes and, where no length is known, to the first byte too many.
    """
    if announced is None:
        announced = limit + 1
        begin = begin[:announced]
    return MessageTooLong(limit, announced, begin[:SAMPLE])


class OverLong:
    """
    The message that broke its limit. It is passed on all the same until `drop_until` is called.

    Attributes:
        dropped: its bytes are dropped, by `drop`.
        ended: its end was dropped too.
    """

    __slots__ = ("_end", "dropped", "ended")

    def __init__(self) -> None:
        self._end: End = b""
        self.dropped = self.ended = False

    def drop_until(self, end: End) -> None:
        """
        Drop what is left of the message, up to and with its end; ``b""``: it has none.
        """
        self._end = end
        self.dropped = True

    @property
    def endless(self) -> bool:
        """
        Everything is dropped, until another terminator is set.
        """
        return self.dropped and self._end == b""

    def drop(self, buffer: bytes, position: int) -> int:
        """
        Return the position behind what has to be dropped, from *position* on.

        It is before the end of the buffer if the message ended there, or if the last bytes may be
        the beginning of its delimiter.
        """
        end = self._end
        if isinstance(end, int):
            dropped = min(end, len(buffer) - position)
            self._end = end - dropped
            self.ended = not self._end
            return position + dropped
        if not end:
            return len(buffer)
        delimiters = compile_delimiters(end if isinstance(end, tuple) else (end,))
        found = delimiters.find(buffer, position)
        if found:
            self.ended = True
            return found.end()
        return len(buffer) - delimiters.prefix_length_at_end(buffer, position)
