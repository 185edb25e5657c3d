"""
What handshakes may take of a server: a number at once, and a share of each turn of the reactor.

A full handshake costs a server a thousand times what a message does. Without a bound, two thousand
clients that come back after a network failure would be served in one turn, and everybody else on that
reactor waits for seconds.

Nothing here speaks TLS: a handshake is a callable that does its next step.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["HandshakeLimit", "Turns"]


class Turns:
    """
    Runs the steps of handshakes, for a limited time in each turn of one reactor.

    A step runs at once while there is time in this turn; else it waits for the next one, behind
    those that came before it. What else the reactor has to do happens in between.
    """

    #: Seconds for handshakes in one turn. At least one step runs in each, whatever it takes.
    seconds = 0.01

    _of: ClassVar[WeakKeyDictionary[Any, Turns]] = WeakKeyDictionary()

    def __init__(self, clock: IReactorTime) -> None:
        # Weakly, as it is a reactor's for as long as that lives.
        self._clock = ref(clock)
        self._spent = 0.0
        self._waiting: deque[Callable[[], object]] = deque()
        self._next: IDelayedCall | None = None

    @classmethod
    def of(cls, clock: IReactorTime) -> Turns:
        """
        Return the one of this reactor.
        """
        turns = cls._of.get(clock)
        if turns is None:
            turns = cls._of[clock] = cls(clock)
        return turns

    def run(self, step: Callable[[], object]) -> bool:
        """
        Run *step* now, or later if this turn has no time left; tell whether it ran.
        """
        if self._next is not None and (self._waiting or self._spent >= self.seconds):
            self._waiting.append(step)
            return False
        self._do(step)
        return True

    def _do(self, step: Callable[[], object]) -> None:
        began = perf_counter()
        try:
            step()
        finally:
            self._spent += perf_counter() - began
            clock = self._clock()
            if self._next is None and clock is not None:
                self._next = clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._next = None
        self._spent = 0.0
        while self._waiting:
            self._do(self._waiting.popleft())
            if self._spent >= self.seconds:
                break


class HandshakeLimit:
    """
    Admits a number of handshakes at once; the others wait in the order in which they came.

    One that lets the server wait gives its place to those that wait: a place is for handshakes that
    go on, so those that do not cannot keep others out for longer than `patience`.

    Args:
        count: how many; None for any number.
    """

    #: Seconds after which a handshake that is not over gives way to one that waits.
    patience = 1.0

    def __init__(self, count: int | None) -> None:
        self.count = count
        #: Those admitted, the oldest first, and when.
        self._admitted: dict[object, float] = {}
        self._waiting: dict[object, Callable[[], object]] = {}
        self._check: IDelayedCall | None = None

    @property
    def in_flight(self) -> int:
        """
        How many have a place.
        """
        return len(self._admitted)

    @property
    def waiting(self) -> int:
        """
        How many wait for one.
        """
        return len(self._waiting)

    def enter(self, who: object, clock: IReactorTime | None, admit: Callable[[], object]) -> bool:
        """
        Take a place for *who*, or call *admit* when there is one; tell whether there is one now.
        """
        if self.count is None or clock is None:
            return True
        if len(self._admitted) < self.count and not self._waiting:
            self._admitted[who] = clock.seconds()
            return True
        self._waiting[who] = admit
        if self._check is None:
            self._check = clock.callLater(0, self._make_room, clock)
        return False

    def leave(self, who: object, clock: IReactorTime | None) -> None:
        """
        Give the place of *who* back, or its wish for one; harmless if it has neither.
        """
        if clock is None:
            return
        self._waiting.pop(who, None)
        if self._admitted.pop(who, None) is not None and self._waiting:
            self._fill(clock)
        if not self._waiting and self._check is not None:
            self._check.cancel()
            self._check = None

    def _fill(self, clock: IReactorTime) -> None:
        while self._waiting and len(self._admitted) < (self.count or 0):
            who = next(iter(self._waiting))
            admit = self._waiting.pop(who)
            self._admitted[who] = clock.seconds()
            admit()

    def _make_room(self, clock: IReactorTime) -> None:
        """
        Take the places of those that are slow, as many as are wanted; look again in time.
        """
        self._check = None
        now = clock.seconds()
        for who, since in list(self._admitted.items())[: len(self._waiting)]:
            if now - since < self.patience:
                break
            del self._admitted[who]
        self._fill(clock)
        if self._waiting:
            oldest = next(iter(self._admitted.values()))
            self._check = clock.callLater(
                max(0.0, oldest + self.patience - now), self._make_room, clock
            )
