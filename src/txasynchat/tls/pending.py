"""
How much unfinished TLS handshakes may cost a server: connections, and time of each turn.

A client that says nothing, or starts a handshake and never continues it, costs a descriptor and some
memory until a time limit. `Pending` limits how many of these there are. Above the limit it evicts one
from the network that has the most of them: the one that has kept the server waiting longest. So clients
from elsewhere are not affected by what one network does. If the connections come from many networks,
each has as long to continue as it takes the limit's worth of new connections to arrive.

Nothing here knows TLS, Twisted or sockets.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["EVICTED", "PENDING", "HandshakeBudget", "Pending", "default_limit"]

#: The default limit, where the process may open enough descriptors for it.
PENDING = 1024
#: The reason that an evicted connection ends with.
EVICTED = "too many handshakes are unfinished, and this one has kept the server waiting longest"


class Member(Protocol):
    """
    A connection that can be pending; `evict`, called once when it no longer is, ends it for others.
    """

    def evict(self) -> None: ...


class Pending:
    """
    The connections whose handshake has not finished: *limit* at most, or, if None, any number.

    Threads may share it.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        # Each with its network; the one that has kept the server waiting longest comes first.
        self._members: dict[Member, Hashable] = {}
        self._counts: Counter[Hashable] = Counter()
        self._lock = threading.Lock()
        # Discarded, and not yet removed from those two.
        self._discarded: deque[Member] = deque()

    def __len__(self) -> int:
        with self._lock:
            self._sweep()
            return len(self._members)

    def add(self, member: Member, network: Hashable) -> None:
        """Count *member* from now on; evict another one if that exceeds the limit."""
        with self._lock:
            self._sweep()
            self._insert(member, network)
            if self.limit is None or len(self._members) <= self.limit:
                return
            most = max(self._counts.values())
            evicted = next(one for one, its in self._members.items() if self._counts[its] == most)
            self._remove(evicted)
        evicted.evict()

    def progressed(self, member: Member) -> None:
        """Note that *member* did what the server waited for: its waiting time restarts."""
        with self._lock:
            if member in self._members:
                self._members[member] = self._members.pop(member)

    def moved(self, member: Member, network: Hashable) -> None:
        """Do what `progressed` does, and note that *member* comes from *network*."""
        with self._lock:
            if member in self._members:
                self._remove(member)
                self._insert(member, network)

    def discard(self, member: Member) -> None:
        """
        Stop counting *member*; harmless if it is not counted.

        May be called at any moment, by the garbage collector for example: it never waits for the lock.
        """
        self._discarded.append(member)
        if self._lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._lock.release()

    def _sweep(self) -> None:
        while self._discarded:
            member = self._discarded.popleft()
            if member in self._members:
                self._remove(member)

    def _insert(self, member: Member, network: Hashable) -> None:
        self._members[member] = network
        self._counts[network] += 1

    def _remove(self, member: Member) -> None:
        network = self._members.pop(member)
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]


class HandshakeBudget:
    """
    The *seconds* for handshakes in one turn of a reactor, or in one pass over a map of channels.

    The step that exceeds them is the last of the turn. The first one always runs.
    """

    __slots__ = ("_spent", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Begin the next turn."""
        self._spent: float | None = None  # None before the first step

    def is_spent(self) -> bool:
        """Return whether the next step has to wait for the next turn."""
        return self._spent is not None and self._spent >= self.seconds

    def run(self, step: Callable[[], object]) -> None:
        """Run *step*, and count the time that it takes."""
        began = perf_counter()
        try:
            step()
        finally:
            self._spent = (self._spent or 0.0) + perf_counter() - began


def default_limit() -> int:
    """
    Return the default limit: `PENDING`, or half of the descriptors that this process may open if fewer.
    """
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return PENDING
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return PENDING
    return max(1, min(PENDING, descriptors // 2))
