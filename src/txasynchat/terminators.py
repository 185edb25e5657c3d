"""What may end a message: the kinds, their checks, and how each is found. No I/O here, no Twisted."""

from __future__ import annotations

import functools
import itertools
import re
import struct
from typing import Any, ClassVar, Final, TypeAlias

from typing_extensions import override

from txasynchat.errors import MalformedMessage

__all__ = [
    "Expected",
    "LengthPrefix",
    "Netstring",
    "Terminator",
    "check_terminator",
    "compile_delimiters",
    "prefix_length_at_end",
]


# Bytes of the longest varint, of 64 bits, and digits of the longest length of a netstring. A peer that
# sends more is not waited for.
_VARINT_SIZE: Final = 10
_DIGITS: Final = 20


class LengthPrefix:
    """
    A terminator for frames that begin with their own length.

    The prefix is not delivered; ``found_terminator`` is called after the body. It stays in force from
    frame to frame, as a delimiter does.

    Args:
        format: a `struct` format of one unsigned integer, with its byte order if it is wider than
            one byte: ``"!I"``, ``">H"``, ``"<Q"``, ``"B"``; or ``"varint"``, as before the messages of
            protobuf: seven bits a byte, the lowest first, and the eighth bit in all but the last.
        limit: the longest body accepted, in bytes, in place of the framer's own limit. 1 MiB is what
            NATS allows; ``None`` means as much as the format can express.

    Raises:
        ValueError: *format* is anything else, or *limit* is negative.
    """

    __slots__ = ("_struct", "limit")

    #: What stands behind the body, and is not delivered either; a byte at most.
    end: ClassVar[bytes] = b""
    limit: int
    _struct: struct.Struct | None

    def __init__(self, format: str = "!I", *, limit: int | None = 1 << 20) -> None:  # noqa: A002 struct's own word
        if format == "varint":
            self._struct = None
            self.limit = _checked_limit(limit, (1 << 64) - 1)
            return
        try:
            layout = struct.Struct(format)
            highest = layout.unpack(b"\xff" * layout.size)
        except struct.error as error:
            raise ValueError(f"not a struct format: {format!r} ({error})") from None
        if len(highest) != 1 or type(highest[0]) is not int or highest[0] < 0:
            raise ValueError(f"not a struct format of one unsigned integer: {format!r}")
        if format[:1] not in "<>!=" and layout.size > 1:
            raise ValueError(f"a length of several bytes needs its byte order: {format!r}")
        self._struct = layout
        self.limit = _checked_limit(limit, highest[0])

    def __repr__(self) -> str:
        name = "varint" if self._struct is None else self._struct.format
        return f"LengthPrefix({name!r}, limit={self.limit!r})"

    def pack(self, body: bytes) -> bytes:
        """
        Return *body* as a whole frame, ready to be pushed.

        Raises:
            ValueError: *body* is longer than the limit.
        """
        if len(body) > self.limit:
            raise ValueError(f"body of {len(body)} bytes exceeds the limit, {self.limit}")
        return b"".join((self.prefix(len(body)), body, self.end))

    def read(self, buffer: bytes, position: int) -> tuple[int, int] | None:
        """
        Read the prefix that begins at *position*.

        Returns:
            the length of the body, and the position where it begins; None if the prefix is not
            complete.

        Raises:
            MalformedMessage: what is there cannot become a prefix.
        """
        layout = self._struct
        if layout is None:
            return _read_varint(buffer, position)
        begin = position + layout.size
        if begin > len(buffer):
            return None
        return layout.unpack_from(buffer, position)[0], begin

    def prefix(self, length: int) -> bytes:
        """Return what stands before a body of that length."""
        if self._struct is not None:
            return self._struct.pack(length)
        prefix = bytearray()
        while length > 0x7F:
            prefix.append(length & 0x7F | 0x80)
            length >>= 7
        prefix.append(length)
        return bytes(prefix)


class Netstring(LengthPrefix):
    """
    A terminator for netstrings: the length in digits and a colon, the body, and a comma.

    It is a `LengthPrefix` in all else. The message is delivered when its comma is there.

    Args:
        limit: the longest body accepted, as a `LengthPrefix` has it.

    Raises:
        ValueError: *limit* is negative.
    """

    __slots__ = ()

    end = b","

    def __init__(self, *, limit: int | None = 1 << 20) -> None:
        self._struct = None
        self.limit = _checked_limit(limit, 10**_DIGITS - 1)

    @override
    def __repr__(self) -> str:
        return f"Netstring(limit={self.limit!r})"

    @override
    def read(self, buffer: bytes, position: int) -> tuple[int, int] | None:
        """Read digits and the colon; see `LengthPrefix.read`."""
        digits = buffer[position : position + _DIGITS + 1]
        digits, colon, _ = digits.partition(b":")
        if not digits.isdigit() or (digits[0] == 0x30 and len(digits) > 1):
            if digits or colon:
                raise MalformedMessage("a netstring does not begin with its length")
            return None
        if colon:
            return int(digits), position + len(digits) + 1
        if len(digits) > _DIGITS:
            raise MalformedMessage(f"the length of a netstring has more than {_DIGITS} digits")
        return None

    @override
    def prefix(self, length: int) -> bytes:
        return b"%d:" % length


class Expected(LengthPrefix):
    """
    A number of bytes, 0 being an empty message, once: then another terminator is in force again.

    To a framer it is a length before the message, of no bytes.

    Args:
        length: of the message.
        limit: the longest that is accepted; None for the framer's own limit.
        then: the terminator that follows.
    """

    __slots__ = ("length", "then")

    limit: int | None  # type: ignore[assignment] # there it is never None

    def __init__(self, length: int, limit: int | None, then: Any) -> None:  # no super(): no format
        self.length = length
        self.limit = limit
        self.then = then

    @override
    def __repr__(self) -> str:
        return f"Expected({self.length!r}, limit={self.limit!r}, then={self.then!r})"

    @override
    def prefix(self, length: int) -> bytes:
        return b""

    @override
    def read(self, buffer: bytes, position: int) -> tuple[int, int]:
        return self.length, position


def _checked_limit(limit: int | None, highest: int) -> int:
    if limit is not None and limit < 0:
        raise ValueError(f"limit must not be negative: {limit!r}")
    return highest if limit is None else min(limit, highest)


def _read_varint(buffer: bytes, position: int) -> tuple[int, int] | None:
    length = shift = 0
    for byte in buffer[position : position + _VARINT_SIZE]:
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, position
        shift += 7
    if shift == 7 * _VARINT_SIZE:
        raise MalformedMessage(f"a varint has more than {_VARINT_SIZE} bytes")
    return None


#: What may end a message: a delimiter; a number of bytes; nothing (`None`, ``b""`` or ``0``: collect
#: without end); the first of several delimiters; or a length that the message begins with.
Terminator: TypeAlias = bytes | int | tuple[bytes, ...] | LengthPrefix | None


def check_terminator(terminator: Any) -> Terminator:
    """
    Return *terminator* in the form that a `Framer` keeps.

    Raises:
        TypeError: it is text, a bool, or of any other type that is not a terminator's.
        ValueError: it is a negative number, an empty tuple, or a tuple with a delimiter that is empty
            or can never match, because another one always ends before it.
    """
    if terminator is None or type(terminator) is bytes or isinstance(terminator, LengthPrefix):
        return terminator
    if isinstance(terminator, bool):
        raise TypeError(f"terminator must not be a bool: {terminator!r}")
    if isinstance(terminator, int):
        if terminator < 0:
            raise ValueError(f"terminator must not be negative: {terminator!r}")
        return terminator
    if isinstance(terminator, bytes | bytearray | memoryview):
        return bytes(terminator)
    if isinstance(terminator, tuple):
        for delimiter in terminator:
            if not isinstance(delimiter, bytes):
                raise TypeError(f"terminators in a tuple must be bytes: {delimiter!r}")
            if not delimiter:
                raise ValueError(f"terminators in a tuple must not be empty: {terminator!r}")
        if not terminator:
            raise ValueError("a tuple of terminators must not be empty: ()")
        for delimiter, other in itertools.product(terminator, repeat=2):
            if other in delimiter[:-1]:
                raise ValueError(
                    f"terminator {delimiter!r} can never match, because {other!r} ends before it:"
                    f" {terminator!r}"
                )
        return tuple(terminator)
    raise TypeError(
        "terminator must be bytes, a number of bytes, None, a tuple of bytes or a LengthPrefix:"
        f" {terminator!r}"
    )


def prefix_length_at_end(data: bytes, terminator: bytes, start: int = 0) -> int:
    """
    Count the bytes at the end of *data*, from *start* on, that may begin *terminator*.

    The longest such tail counts. The caller has already looked for a whole terminator.
    """
    end = len(data)
    start = max(start, end - len(terminator) + 1)
    if start >= end:
        return 0
    first = terminator[:1]
    while (start := data.find(first, start)) >= 0:
        if terminator.startswith(data[start:]):
            return end - start
        start += 1
    return 0


class Delimiters:
    """
    Several delimiters, compiled for searching.

    The match that *ends* first counts, and of those that end together the longest. No delimiter
    contains another that ends earlier (`check_terminator` refuses those), so the match that ends first
    also begins first, which is the one that a regular expression finds.
    """

    __slots__ = ("_delimiters", "find")

    def __init__(self, delimiters: tuple[bytes, ...]) -> None:
        self._delimiters = delimiters
        self.find = re.compile(b"|".join(map(re.escape, delimiters))).search

    def prefix_length_at_end(self, data: bytes, start: int) -> int:
        """Count the bytes at the end of *data*, from *start* on, that may begin a delimiter."""
        return max(prefix_length_at_end(data, one, start) for one in self._delimiters)


compile_delimiters = functools.lru_cache(maxsize=128)(Delimiters)
