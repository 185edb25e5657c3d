"""Moments at which something is due for a channel, of which only the next one is ever looked at."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Any

__all__ = ["Deadlines"]


class Deadlines:
    """
    At most one moment for each key, the one that was `set` last.  Not for several threads, but for
    `drop` and ``in``.

    Attributes:
        next: no moment is before this one; infinite where there is none.  (An early one may be that of
            a key that was dropped since.)
    """

    def __init__(self) -> None:
        self.next = math.inf
        self._moments: dict[Any, float] = {}
        # The numbers are for keys that cannot be compared.
        self._heap: list[tuple[float, int, Any]] = []
        self._numbers = itertools.count()

    def __contains__(self, key: Any) -> bool:
        return key in self._moments

    def set(self, key: Any, moment: float) -> None:
        if self._moments.get(key) == moment:
            return
        self._moments[key] = moment
        heapq.heappush(self._heap, (moment, next(self._numbers), key))
        self.next = self._heap[0][0]

    def drop(self, key: Any) -> None:
        self._moments.pop(key, None)

    def take_due(self, now: float) -> list[tuple[Any, float]]:
        """Return the keys that are due, with their moments, earliest first, and forget them."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            moment, _, key = heapq.heappop(self._heap)
            if self._moments.get(key) == moment:
                self._moments.pop(key, None)  # another thread may drop it
                due.append((key, moment))
        self.next = self._heap[0][0] if self._heap else math.inf
        return due
