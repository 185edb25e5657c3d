r"""
What the clients and the server of this program say to each other; both sides write it with this module.

A client numbers its requests, and names the length and the checksum of what follows the line:

    17 echo 5 3610a686\r\nhello

The answer to each has its number, and its length and checksum too. ``echo`` gets its bytes back,
``give`` as many bytes as its own say, ``wait`` its bytes after so many milliseconds; ``raise`` has the
handler raise, and ``quit`` is answered and the connection closed in order. Number 0 is what the server
says unasked: that it is going, or that it has waited too long.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

END = b"\r\n"
#: Bytes of the longest body of a request.
LONGEST = 200_000


class Head(NamedTuple):
    """The line before a body."""

    number: int
    word: bytes
    length: int
    checksum: int


def frame(number: int, word: bytes, body: bytes = b"") -> bytes:
    """Write a request or an answer."""
    return b"%d %s %d %08x\r\n%s" % (number, word, len(body), crc32(body), body)


def parse(line: bytes) -> Head:
    """
    Read a line.

    Raises:
        ValueError: it is none of ours.
    """
    number, word, length, checksum = line.split(b" ")
    head = Head(int(number), word, int(length), int(checksum, 16))
    if not 0 <= head.length <= 1 << 30 or head.number < 0:
        raise ValueError(line[:80])
    return head


def pattern(number: int, length: int) -> bytes:
    """Return the bytes of a ``give``, of which no 16 in a row are in another request's."""
    unit = b"%015d\n" % number
    return (unit * (length // 16 + 1))[:length]
