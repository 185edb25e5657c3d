"""
Producers, which give their bytes when they are asked. No I/O here, no Twisted, no clock.

A producer may be

* an object with ``more()``, which returns bytes, and nothing at its end (``asynchat``);
* an iterator or generator of bytes, whose empty pieces are skipped;
* an open binary file, or a `FileProducer`, which opens one and closes it;
* an object with ``resumeProducing()``, which writes when it is asked (`twisted.internet.interfaces`
  calls it `IPullProducer`, or `IPushProducer` if it goes on by itself until it is paused).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, Protocol, TypeAlias, runtime_checkable

__all__ = ["FileProducer", "MoreProducer", "Producer", "simple_producer"]

#: What may be pushed.
Buffer: TypeAlias = bytes | bytearray | memoryview


@runtime_checkable
class MoreProducer(Protocol):
    """The producer of ``asynchat``."""

    def more(self) -> bytes:
        """Return the next bytes, or nothing at the end; not called again after that."""


Producer: TypeAlias = MoreProducer | Iterable[bytes] | IO[bytes]


class simple_producer:  # noqa: N801 the stdlib's name
    """
    Bytes, produced in pieces.

    Args:
        data: all of the bytes.
        buffer_size: the length of a piece; the last one may be shorter.

    Stdlib: asynchat.simple_producer.
    """

    def __init__(self, data: bytes, buffer_size: int = 512) -> None:
        self.data = data
        self.buffer_size = buffer_size

    def more(self) -> bytes:
        """Return the next piece, empty at the end."""
        piece = self.data[: self.buffer_size]
        self.data = self.data[self.buffer_size :]
        return piece


class FileProducer:
    """
    The rest of a file, in pieces.

    Args:
        file: an open binary file, which stays open; or a path, which is opened now, and closed at
            the end or when the connection is lost.
        buffer_size: bytes asked of the file at once.

    Raises:
        OSError: the path cannot be opened.
    """

    def __init__(self, file: IO[bytes] | str | os.PathLike[str], buffer_size: int = 65_536) -> None:
        self.buffer_size = buffer_size
        self._owned = isinstance(file, str | os.PathLike)
        self._file: IO[bytes] = open(file, "rb") if isinstance(file, str | os.PathLike) else file  # noqa: SIM115, PTH123 closed by close()

    def __repr__(self) -> str:
        return f"FileProducer({getattr(self._file, 'name', self._file)!r})"

    def more(self) -> bytes:
        """Return the next piece, empty at the end."""
        return self._file.read(self.buffer_size)

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()
