"""
Channels that are told the same thing again and again, and are left alone for a while in the end.

The stdlib tells a channel that is still in the map of the end of its stream on every pass, for ever,
with the processor at 100 %; likewise of urgent data that it does not take, and in poll mode of a
hang-up.  A program may count on being told more than once, so the first `PATIENCE` times come without
delay, and after that one each `PAUSE`.  A listener that has no descriptor for a connection
rests at once.

Who reads by the facade's ``recv`` says itself that it was told of the end.  Others are seen to have
been told by the event alone; as long as they go on with what came before the end, that counts as
nothing.

This module counts.  It does not know what is told, nor who asks the channels again when their rest is
over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txasynchat.compat._deadlines import Deadlines
from txasynchat.hub import ENDED, READ, URGENT, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PATIENCE", "PAUSE", "Backoff"]

#: Seconds that a channel is left alone.
PAUSE = 0.1
#: So often it is told without delay.
PATIENCE = 100

_TO_READ = READ | URGENT | ENDED


class Backoff:
    """
    How often the channels of a map were told, and which of them rest.

    What counts how often a channel was told of something returns whether it has to rest.  `end`, and
    `drop`, for a channel that departs, are for any thread.

    Attributes:
        ends: how often each was told of the end of its stream.
        resting: until when; for the loop's thread, but for `Deadlines.drop`.
    """

    def __init__(self) -> None:
        self.ends: dict[Any, int] = {}
        self.resting = Deadlines()
        # Since they last could read.
        self._urged: dict[Any, int] = {}
        # Of those that do not read by our recv(), what was left to read at the last look.
        self._unread: dict[Any, int] = {}
        # They rest from everything, because poll mode reports a hang-up whatever they wait for.
        self._hung: set[Any] = set()

    def drop(self, fd: Any) -> None:
        self.ends.pop(fd, None)
        self._unread.pop(fd, None)
        self._hung.discard(fd)
        self._urged.pop(fd, None)
        self.resting.drop(fd)

    def end(self, fd: Any, left: int = 0) -> bool:
        """
        The channel under *fd* was told of the end of its stream, is in the map, and has *left* bytes.
        """
        if left and left != self._unread.get(fd):  # it goes on with what came before the end
            self._unread[fd] = left
            self.ends[fd] = 0
            return False
        return _count(fd, self.ends)

    def hang(self, fd: Any) -> bool:  # told by poll mode that it is gone, and still in the map
        self._hung.add(fd)
        return self.end(fd)

    def urge(self, fd: Any) -> bool:  # told of urgent data
        return _count(fd, self._urged)

    def read(self, fds: Iterable[Any]) -> None:  # told that they can read
        if self._urged:
            for fd in fds:
                self._urged.pop(fd, None)

    def mask(self, fd: Any, mask: int) -> int:  # what is left of it while *fd* rests
        return mask & ~(_TO_READ | WRITE if fd in self._hung else _TO_READ)


def _count(fd: Any, told: dict[Any, int]) -> bool:
    count = told[fd] = told.get(fd, 0) + 1
    return count > PATIENCE
