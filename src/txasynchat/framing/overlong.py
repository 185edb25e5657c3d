"""
A message that is longer than its limit: its error, what follows, and dropping its rest. No I/O here.

A limit is a property of the bytes, not of the packets: the messages, and the error, are the same
however the bytes were cut.
"""

from __future__ import annotations

import enum
from typing import Any, Final

from txasynchat.errors import MessageTooLong
from txasynchat.terminators import compile_delimiters

__all__ = ["ENDLESS", "PASSED_ON", "SAMPLE", "Overflow", "drop", "too_long"]

#: Bytes of an over-long message that `MessageTooLong.sample` shows.
SAMPLE: Final = 128

#: What becomes of an over-long message where no delimiter and no number of bytes ends its dropping:
#: it is passed on; or everything is dropped until another terminator is set.
PASSED_ON: Final = object()
ENDLESS: Final = object()


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


def drop(buffer: bytes, position: int, end: Any) -> tuple[int, Any]:
    """
    Drop the rest of an over-long message, from *position* on, as far as it is in *buffer*.

    Returns:
        the position behind what was dropped, and what still ends the message; None if that was
        dropped too. The last bytes may be the beginning of a delimiter, and are left.
    """
    if end is ENDLESS:
        return len(buffer), end
    if isinstance(end, int):
        dropped = min(end, len(buffer) - position)
        return position + dropped, end - dropped or None
    delimiters = compile_delimiters(end if isinstance(end, tuple) else (end,))
    if found := delimiters.find(buffer, position):
        return found.end(), None
    return len(buffer) - delimiters.prefix_length_at_end(buffer, position), end
