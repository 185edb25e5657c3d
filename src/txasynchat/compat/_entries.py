"""
The table of a map's channels, as the loop last saw them.

The map stays the user's own plain dict and is the truth; this is what was known of it at the last
look.  A channel that was put in, taken out or replaced with no method called is noticed on the next
pass, because a dict keeps the order of insertion: every change but a replacement in the middle
changes the number of items or the last one, and the next full pass finds that one.

Whatever another thread does to a channel is marked here at once (`depart`), so that nobody takes
what comes next under the same number for the old one.  The table itself changes in the loop's thread
only, and nothing of it goes while it is looked through: what is to go waits in `departed`.

A channel that another thread adds may still be in the making: it registers itself in the middle of
its constructor, and what its predicates look at is often set at the end.  Nothing tells when that is;
so it is left alone for a while, less if it reports something (`Newcomers`).

This module does not know what a channel waits for, nor what was told to it.
"""

from __future__ import annotations

import math
import time
import weakref
from contextlib import suppress
from operator import is_
from typing import TYPE_CHECKING, Any

from txasynchat.compat._interest import ALWAYS, are_open, are_steady

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Entries", "Entry", "copy_of"]

#: Seconds: how long a newcomer is left alone that reports nothing.
ALONE = 0.1
#: Seconds: how long after its last report, by `connect` or `push`; within the time above.
AFTER_REPORT = 0.01


def _nobody() -> None: ...


class Entry:
    """
    A channel as it was last seen.

    Attributes:
        ref: returns the channel, which is not kept alive: a program may drop it without a word, and
            its peer sees the end.  None once it has departed.
        kind: how it is asked: see `kind_of`.
    """

    __slots__ = ("kind", "ref")

    def __init__(self) -> None:
        self.ref: Callable[[], Any] = _nobody
        self.kind = ALWAYS


class Newcomers:
    """
    Keys of new channels, and when they are first asked.

    Attributes:
        moments: when each is first asked, and when at the latest; whoever takes one out asks at once.
        has_news: whether there was anything since the last look at `next`.
    """

    def __init__(self) -> None:
        self.moments: dict[Any, tuple[float, float]] = {}
        self.has_news = False

    # -- from any thread

    def announce(self, key: Any) -> None:  # and leave it alone from now on
        latest = time.monotonic() + ALONE
        self.moments[key] = latest, latest
        self.has_news = True

    def report(self, key: Any) -> bool:
        """
        Note that the channel of *key* called one of its methods; return False if it is none of these.
        """
        moments = self.moments.get(key)
        if moments is None:
            return False
        self.moments[key] = min(moments[1], time.monotonic() + AFTER_REPORT), moments[1]
        self.has_news = True
        return True

    # -- from the loop's thread

    @property
    def next(self) -> float:
        """When the first of them is asked; infinite where there is none."""
        self.has_news = False
        return min(list(self.moments.values()), default=(math.inf, 0.0))[0]

    def take_due(self, now: float) -> list[Any]:  # those that may be asked
        due = [key for key, (moment, _) in list(self.moments.items()) if moment <= now]
        for key in due:
            self.moments.pop(key, None)
        return due


class Entries:
    """
    The entries of one map, by its keys.  Its attributes are for the other parts of the driver to read.

    Attributes:
        channels: the map; an empty one between two ``loop()`` calls.
        known: the entries, in the map's order.
        ranks: grow along the map: events are dispatched in this order.
        always: those entries that are asked on every pass, in the map's order.
        keys: keys of the map that are not numbers but have a fileno(), by that.
        departed: keys whose channels were taken out of the map by another thread, a signal handler or
            a predicate, and whose entries are still here.
        batches: for each batch of events that is being dispatched, the keys that changed hands since.
        newcomers: who is left alone at first.
        is_holding: an entry keeps its channel alive, which knows no weak references.
        changed: a channel came or departed since the last time that this was set to False.
    """

    def __init__(self, channels: dict[Any, Any]) -> None:
        self.channels = channels
        self.known: dict[Any, Entry] = {}
        self.ranks: dict[Any, int] = {}
        self.always: dict[Any, Entry] = {}
        self.keys: dict[int, Any] = {}
        self.departed: dict[Any, None] = {}
        self.batches: list[set[Any]] = []
        self.newcomers = Newcomers()
        self.is_holding = False
        self.changed = True
        self._rank = 0

    # -- from any thread

    def depart(self, fd: Any) -> bool:
        """
        Whoever is found under *fd* from now on is another channel; return whether there was an entry.
        """
        self.changed = True
        entry = self.known.get(fd)
        if entry is not None:
            entry.ref = _nobody
        for batch in self.batches:
            batch.add(fd)
        return entry is not None

    def has_departed(self, fd: Any) -> bool:
        entry = self.known.get(fd)
        return entry is not None and entry.ref is _nobody

    def number(self, fd: Any) -> int:
        """Return the descriptor that a key of the map stands for."""
        if type(fd) is int:
            return fd
        number: int = fd if isinstance(fd, int) else fd.fileno()
        self.keys[number] = fd
        return number

    # -- from the loop's thread

    def enter(self, fd: Any, channel: Any, kind: int) -> Entry:
        """
        Let the entry of *fd*, if there is one, be that of *channel*, which is asked as *kind* says.
        """
        self.changed = True
        entry = self.known.get(fd)
        if entry is None:
            self._rank += 1
            self.ranks[fd] = self._rank
            entry = self.known[fd] = Entry()
        try:
            entry.ref = weakref.ref(channel)
        except TypeError:
            entry.ref = lambda: channel
            self.is_holding = True
        self.classify(fd, entry, kind)
        return entry

    def classify(self, fd: Any, entry: Entry, kind: int) -> None:
        entry.kind = kind
        if kind != ALWAYS:
            self.always.pop(fd, None)
        elif fd not in self.always:
            self.always[fd] = entry
            if self.ranks[fd] < self._rank:  # not the map's last: keep the map's order
                order = sorted(self.always, key=self.ranks.__getitem__)
                self.always = {one: self.known[one] for one in order}

    def drop(self, fd: Any) -> None:
        if self.known.pop(fd, None) is not None:
            self.ranks.pop(fd, None)
            self.always.pop(fd, None)

    def sort(self, snapshot: dict[Any, Any]) -> None:
        """Put the entries into the order of *snapshot*, and forget those that are not in there."""
        old = self.known
        self.known = {fd: old[fd] for fd in snapshot if fd in old}
        self.ranks = {fd: rank for rank, fd in enumerate(self.known)}
        self._rank = len(self.ranks)
        self.always = {fd: entry for fd, entry in self.known.items() if entry.kind == ALWAYS}

    def seem_current(self) -> bool:
        """Return whether map and table have equally many items and the same last one."""
        channels = self.channels
        known = self.known
        if len(channels) != len(known):
            return False
        if not known:
            return True
        try:
            last = next(reversed(channels))
            return last == next(reversed(known)) and channels.get(last) is known[last].ref()
        except (KeyError, RuntimeError, StopIteration, TypeError):
            return False  # changed by another thread; not a plain dict

    def are_current(self) -> bool:
        """
        Return whether the map, which may be another one by now, has the channels of the entries, their
        sockets are open, and those of the steady ones have the predicates of our own classes.

        Those that are always asked may be others: the next pass looks at them.
        """
        known = self.known
        always = self.always
        try:
            current = copy_of(self.channels)
        except Exception:  # noqa: BLE001 - not a mapping: a full pass raises what has to be raised
            return False
        if list(current) != list(known):
            return False
        if len(always) == len(known):
            return are_open(current.values())
        if always:
            if not are_open([current[fd] for fd in always]):
                return False
            known = {fd: entry for fd, entry in known.items() if fd not in always}
            current = {fd: current[fd] for fd in known}
        refs = [entry.ref() for entry in known.values()]
        return all(map(is_, current.values(), refs)) and are_steady(current.values())


def copy_of(channels: Any) -> dict[Any, Any]:
    if type(channels) is dict:
        return channels.copy()
    while True:
        with suppress(RuntimeError):  # changed by another thread meanwhile
            return dict(channels.items())
