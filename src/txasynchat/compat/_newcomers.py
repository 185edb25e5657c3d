"""
Channels that another thread than the loop's has put into the map, and may still be making.

A channel registers itself in the middle of its constructor, and what its predicates look at is often
set at the end.  Nothing tells when that is; so it is left alone for a while, less if it reports
something.
"""

from __future__ import annotations

import math
import time
from typing import Any

__all__ = ["Newcomers"]

#: Seconds: how long a channel is left alone that reports nothing.
ALONE = 0.1
#: Seconds: how long after its last report, by `connect` or `push`; within the time above.
AFTER_REPORT = 0.01


class Newcomers:
    """
    Keys of new channels, and when they are first asked.

    Attributes:
        moments: when each is first asked; for others to look whether there are any.
        has_news: whether there was anything since the last look at `next`.
    """

    __slots__ = ("_latest", "has_news", "moments")

    def __init__(self) -> None:
        self.moments: dict[Any, float] = {}
        self._latest: dict[Any, float] = {}
        self.has_news = False

    def __contains__(self, key: Any) -> bool:
        return key in self.moments

    # -- from any thread

    def announce(self, key: Any) -> None:
        """
        Leave *key* alone from now on.
        """
        self._latest[key] = self.moments[key] = time.monotonic() + ALONE
        self.has_news = True

    def report(self, key: Any) -> bool:
        """
        Note that the channel of *key* called one of its methods.

        Returns:
            False where it is none of these.
        """
        latest = self._latest.get(key)
        if latest is None or key not in self.moments:
            return False
        self.moments[key] = min(latest, time.monotonic() + AFTER_REPORT)
        self.has_news = True
        return True

    def drop(self, key: Any) -> None:
        """
        Forget *key*; harmless where it is not there.
        """
        self.moments.pop(key, None)
        self._latest.pop(key, None)

    # -- from the loop's thread

    @property
    def next(self) -> float:
        """
        When the first of them is asked; infinite where there is none.
        """
        self.has_news = False
        return min(list(self.moments.values()), default=math.inf)

    def take_due(self, now: float) -> list[Any]:
        """
        Return those that may be asked, and forget them.
        """
        due = [key for key, moment in list(self.moments.items()) if moment <= now]
        for key in due:
            self.drop(key)
        return due
