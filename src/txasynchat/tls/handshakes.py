"""
How much handshakes may cost a server: how many at once, and their share of each turn of the reactor.

A full handshake costs a server a thousand times what a message does. Without a bound, two thousand
clients that come back after a network failure would be served in one turn, and everybody else on that
reactor would wait for seconds.

Nothing here speaks TLS: a handshake is a callable that does its next step.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, ref

from txasynchat.networks import network_of
from txasynchat.tls.pending import HandshakeBudget, Pending, default_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from txasynchat.tls.pending import Member

__all__ = ["HANDSHAKES", "HandshakeLimit", "Scheduler"]

#: The default number of handshakes that go on at once.
HANDSHAKES = 128
#: Seconds of each turn of the reactor that their steps may take.
SHARE = 0.01


class Scheduler:
    """
    Runs the steps of handshakes, for a limited time in each turn of one reactor.

    A step runs at once while this turn's `budget` has time left; otherwise it waits for the next turn,
    behind earlier steps. The reactor's other work is done in between.
    """

    _of: ClassVar[WeakKeyDictionary[Any, Scheduler]] = WeakKeyDictionary()

    def __init__(self, clock: IReactorTime) -> None:
        # Weakly, because `_of` maps the reactor to this for as long as the reactor lives.
        self._clock = ref(clock)
        self.budget = HandshakeBudget(SHARE)
        self._waiting: deque[Callable[[], object]] = deque()
        self._next: IDelayedCall | None = None

    @classmethod
    def of(cls, clock: IReactorTime) -> Scheduler:
        """Return the scheduler of this reactor."""
        if clock not in cls._of:
            cls._of[clock] = cls(clock)
        return cls._of[clock]

    def run(self, step: Callable[[], object]) -> bool:
        """Run *step* now, or later if this turn has no time left; return whether it ran."""
        if self._next is not None and (self._waiting or self.budget.is_spent()):
            self._waiting.append(step)
            return False
        self._do(step)
        return True

    def _do(self, step: Callable[[], object]) -> None:
        try:
            self.budget.run(step)
        finally:
            clock = self._clock()
            if self._next is None and clock is not None:
                self._next = clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._next = None
        self.budget.renew()
        while self._waiting:
            self._do(self._waiting.popleft())
            if self.budget.is_spent():
                break


class HandshakeLimit:
    """
    Limits how many handshakes go on at once. The others queue, and networks take turns in the queue.

    A handshake is admitted when its ClientHello is complete; before that, a connection takes no place
    and is merely `pending`. A handshake that waits for its client gives its place to one in the queue
    once either has waited for `patience`; it continues without a place. So clients that do not answer,
    however many, delay others by no more than that.

    Args:
        count: how many are admitted at once; None for no limit.
        pending: how many connections may have an unfinished handshake, admitted or not; or None.
    """

    patience = 0.1  # seconds

    _of: ClassVar[WeakKeyDictionary[Any, HandshakeLimit]] = WeakKeyDictionary()

    def __init__(self, count: int | None, pending: int | None) -> None:
        self.count = count
        self.pending = Pending(pending)
        self._admitted: set[Member] = set()
        # Admitted handshakes that wait for their client, and since when; longest first.
        self._unanswered: dict[Member, float] = {}
        # Queued handshakes with their network, and since when; longest first. Then with what admits
        # them, by network, in the order of the networks' turns.
        self._waiting: dict[Member, tuple[Hashable, float]] = {}
        self._queues: dict[Hashable, dict[Member, Callable[[], object]]] = {}
        self._check: IDelayedCall | None = None

    @classmethod
    def of(cls, factory: Any) -> HandshakeLimit:
        """Return the limit, with default numbers, of a factory whose options have none."""
        if factory not in cls._of:
            cls._of[factory] = cls(HANDSHAKES, default_limit())
        return cls._of[factory]

    @property
    def in_flight(self) -> int:
        """How many handshakes have a place."""
        return len(self._admitted)

    @property
    def waiting(self) -> int:
        """The number of handshakes in the queue."""
        return len(self._waiting)

    def connected(self, who: Member, address: Any) -> None:
        """
        Count *who* as pending, which may evict another connection.

        Args:
            who: a connection that calls `leave` in the end, whatever happens.
            address: of its peer, as `txasynchat.transports.peer_address` gives it.
        """
        self.pending.add(who, network_of(address))

    def enter(
        self, who: Member, address: Any, clock: IReactorTime | None, admit: Callable[[], object]
    ) -> bool:
        """
        Admit *who*, whose ClientHello is complete, or put it into the queue.

        Args:
            who: a connection that was passed to `connected`.
            address: of its peer again, because a proxy may have named another by now.
            clock: measures `patience`; None admits at once.
            admit: called when *who* leaves the queue, never during this call.

        Returns:
            True if it is admitted now.
        """
        network = network_of(address)
        self.pending.moved(who, network)
        if self.count is None or clock is None:
            return True
        if not self._waiting and self._has_room(clock):
            self._admitted.add(who)
            return True
        self._waiting[who] = (network, clock.seconds())
        self._queues.setdefault(network, {})[who] = admit
        self._look_later(clock)
        return False

    def answered(self, who: Member, clock: IReactorTime | None) -> None:
        """Note that *who* now waits for its client."""
        self.pending.progressed(who)
        if clock is not None and who in self._admitted:
            self._unanswered.pop(who, None)
            self._unanswered[who] = clock.seconds()
            self._look_later(clock)

    def leave(self, who: Member, clock: IReactorTime | None) -> None:
        """Forget *who*, whose handshake has finished or failed; harmless when repeated."""
        self.pending.discard(who)
        self._unanswered.pop(who, None)
        if who in self._waiting:
            self._dequeue(who)
        if who in self._admitted:
            self._admitted.remove(who)
            if clock is not None:
                self._fill(clock)
        if not self._waiting and self._check is not None:
            self._check.cancel()
            self._check = None

    def _dequeue(self, who: Member) -> Callable[[], object]:
        network, _ = self._waiting.pop(who)
        queue = self._queues[network]
        admit = queue.pop(who)
        if not queue:
            del self._queues[network]
        return admit

    def _has_room(self, clock: IReactorTime) -> bool:
        # A place may be taken from a handshake that waits for its client.
        if self.count is None or len(self._admitted) < self.count:
            return True
        if not self._unanswered or self._next_place_at() > clock.seconds():
            return False
        who = next(iter(self._unanswered))
        del self._unanswered[who]
        self._admitted.remove(who)
        return True

    def _fill(self, clock: IReactorTime) -> None:
        while self._waiting and self._has_room(clock):
            network, queue = next(iter(self._queues.items()))
            who = next(iter(queue))
            admit = self._dequeue(who)
            if queue:
                self._queues[network] = self._queues.pop(network)  # to the end
            self._admitted.add(who)
            admit()
        self._look_later(clock)

    def _look_later(self, clock: IReactorTime) -> None:
        if self._check is None and self._waiting and self._unanswered:
            delay = max(0.0, self._next_place_at() - clock.seconds())
            self._check = clock.callLater(delay, self._look, clock)

    def _next_place_at(self) -> float:
        # When one can next be taken from a handshake that waits for its client.
        since = next(iter(self._unanswered.values()))
        if self._waiting:
            since = min(since, next(iter(self._waiting.values()))[1])
        return since + self.patience

    def _look(self, clock: IReactorTime) -> None:
        self._check = None
        self._fill(clock)
