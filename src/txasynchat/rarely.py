"""
Things that happen often are said once in a while, with a count.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Rarely"]


class Rarely:
    """
    Tells whether a thing of some kind is to be said now.

    Args:
        interval: seconds for which no other thing of its kind is said.
        now: the clock that *interval* is measured by.
    """

    def __init__(self, interval: float, now: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._now = now
        self._said: dict[Hashable, tuple[float, int]] = {}

    def hidden(self, kind: Hashable) -> int | None:
        """
        Return how many of this kind were not said since the last one that was; None: nor is this.
        """
        now = self._now()
        since, hidden = self._said.get(kind, (now - self._interval, 0))
        if now - since < self._interval:
            self._said[kind] = (since, hidden + 1)
            return None
        self._said[kind] = (now, 0)
        return hidden
