"""
`Wheel`: many things that are due later, on one timer of a reactor.

Who has to look after each of ten thousand connections every few seconds needs no exact moments, so
what is due at about the same time is kept together, and one call of the reactor serves all of it.
Nothing is due too early; it may be late by an eighth of its delay. A reactor that was held up reads
what came meanwhile before anything is due, so that no peer is blamed for that.
"""

from __future__ import annotations

import heapq
import math
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from twisted.logger import Logger

from txasynchat.log import failure

__all__ = ["Due", "Wheel"]

#: The shortest delay, in seconds: a mistake must not keep the reactor busy.
SHORTEST = 1 / 256
#: Seconds by which a call of the reactor is late if it was held up: by a handler, or by the machine.
LATE = 0.05


class Due(Protocol):
    """Something in a `Wheel`; once at most."""

    #: Its neighbours in the wheel; None if it is not in it.
    before: Any
    after: Any

    def due(self, now: float) -> None:
        """Called at its time, when it is not in the wheel any more; it may enter again."""


class _Slot:
    # What is due at one moment: a ring of all of it and this, which takes less memory than any set.
    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: Any = self
        self.after: Any = self


class Wheel:
    """
    What is due later.

    Args:
        clock: an `IReactorTime`.
    """

    __slots__ = ("__weakref__", "_clock", "_read_first", "_serving", "_slots", "_timer", "_times")

    _log = Logger()

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        #: By the moment at which all in the slot is due; and these moments, as a heap.
        self._slots: dict[float, _Slot] = {}
        self._times: list[float] = []
        self._timer: Any = None
        self._serving = False
        self._read_first = False

    @classmethod
    def of(cls, clock: Any) -> Wheel:
        """Return the one of a reactor or clock that has something in it, or else a new one."""
        try:
            return _wheels.get(clock) or cls(clock)
        except TypeError:  # a reactor in memory may not be hashable, or referred to weakly
            return cls(clock)

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        count = 0
        for slot in self._slots.values():
            one = slot.after
            while one is not slot:
                one = one.after
                count += 1
        return count

    def now(self) -> float:
        """Return the clock's time."""
        return float(self._clock.seconds())

    def enter(self, one: Due, delay: float, now: float) -> None:
        """
        Call ``one.due()`` in *delay* seconds from *now*, the time, on; or up to an eighth later.

        Only that call is moved if *one* is in the wheel already.
        """
        if one.after is not None:
            _take_out(one)  # if its slot is empty then, that time passes in vain
        delay = max(delay, SHORTEST)
        # A power of two, so that the moments of all delays are among those of the shortest.
        unit = math.ldexp(0.5, math.frexp(delay)[1] - 3)
        time = math.ceil((now + delay) / unit) * unit
        slot = self._slots.get(time)
        if slot is not None:
            last = slot.before
            one.before, one.after = last, slot
            last.after = slot.before = one
            return
        slot = self._slots[time] = _Slot()
        one.before = one.after = slot
        slot.before = slot.after = one
        if not self._times:
            with suppress(TypeError):
                _wheels[self._clock] = self
        heapq.heappush(self._times, time)
        if not self._serving and self._times[0] == time:
            self._set_timer(now)

    def leave(self, one: Due) -> None:
        """Do not call it; harmless when repeated."""
        if one.after is None:
            return
        alone = one.before is one.after
        _take_out(one)
        if alone and not self._serving and _is_empty(self._slots[self._times[0]]):
            self._set_timer(self.now())

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # What all have left needs no call.
        while self._times and _is_empty(self._slots[self._times[0]]):
            _forget(self._slots.pop(heapq.heappop(self._times)))
        if self._times:
            self._timer = self._clock.callLater(max(0.0, self._times[0] - now), self._turn)
            return
        with suppress(TypeError):
            if _wheels.get(self._clock) is self:
                del _wheels[self._clock]  # or it would never be forgotten

    def _turn(self) -> None:
        now = self.now()
        if now - self._times[0] > LATE and not self._read_first:
            # The reactor was held up. What came meanwhile is still in the sockets, and is read first.
            self._read_first = True
            self._timer = self._clock.callLater(0, self._turn)
            return
        self._read_first = False
        self._timer = None
        self._serving = True
        try:
            while self._times and self._times[0] <= now:
                slot = self._slots.pop(heapq.heappop(self._times))
                while (one := slot.after) is not slot:
                    _take_out(one)
                    try:
                        one.due(now)
                    except Exception:  # noqa: BLE001 the others are due all the same
                        failure(self._log, "{one!r} raised", one=one)
                _forget(slot)
        finally:
            self._serving = False
            self._set_timer(now)


def _take_out(one: Due) -> None:
    before, after = one.before, one.after
    before.after, after.before = after, before
    one.before = one.after = None


def _is_empty(slot: _Slot) -> bool:
    return slot.after is slot


def _forget(slot: _Slot) -> None:
    slot.before = slot.after = None  # without its circle it goes at once


_wheels: WeakKeyDictionary[Any, Wheel] = WeakKeyDictionary()
