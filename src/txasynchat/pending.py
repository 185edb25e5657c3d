"""
Connections whose TLS handshake is not over: so many are held, and which one gives way to a new one.

Whoever connects and says nothing, or begins a handshake and does not go on, holds a descriptor and some
memory until a time limit. Their number is bounded here. When there are more, the one that has made the
server wait longest gives way, of those from the address that has the most. So a client from elsewhere
is not affected by what one address does; and where the connections come from many addresses, it has as
much time to answer as it takes that many connections to come.

Nothing here knows TLS, Twisted or sockets.
"""

from __future__ import annotations

import ipaddress
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["GAVE_WAY", "PENDING", "Pending", "default_limit", "network_of"]

#: How many are held, unless the process may not open as many descriptors.
PENDING = 1024
#: What a connection that gave way ends with.
GAVE_WAY = "too many handshakes are not over, and this one has made the server wait longest"


class Member(Protocol):
    """
    A connection that can be pending.
    """

    def give_way(self) -> None:
        """
        End, to make room for others; called once, when this is not pending any more.
        """


class Pending:
    """
    The connections whose handshake is not over. May be used by several threads.

    Args:
        limit: how many; None for any number.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        # With their networks; the one that has made us wait longest comes first.
        self._members: dict[Member, Hashable] = {}
        self._counts: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Member, network: Hashable) -> None:
        """
        Hold *member*; another one gives way if that is too many.
        """
        with self._lock:
            self._insert(member, network)
            if self.limit is None or len(self._members) <= self.limit:
                return
            other = self._choose()
            self._remove(other)
        other.give_way()

    def progressed(self, member: Member) -> None:
        """
        Note that *member* did what was waited for: it has not made anybody wait since now.
        """
        with self._lock:
            if member in self._members:
                self._members[member] = self._members.pop(member)

    def comes_from(self, member: Member, network: Hashable) -> None:
        """
        As `progressed`; and *network* is known now, where something stood in for it.
        """
        with self._lock:
            if member in self._members:
                self._remove(member)
                self._insert(member, network)

    def discard(self, member: Member) -> None:
        """
        Hold *member* no longer; harmless if it is not held.
        """
        with self._lock:
            if member in self._members:
                self._remove(member)

    def _choose(self) -> Member:
        most = max(self._counts.values())
        return next(one for one, its in self._members.items() if self._counts[its] == most)

    def _insert(self, member: Member, network: Hashable) -> None:
        self._members[member] = network
        self._counts[network] = self._counts.get(network, 0) + 1

    def _remove(self, member: Member) -> None:
        network = self._members.pop(member)
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]


def network_of(address: Any) -> Hashable:
    """
    Return what the clients of one origin have in common.

    Args:
        address: of a peer, as `socket.socket.getpeername` gives it, or anything.

    Returns:
        the host of an IPv4 address; the first 64 bits of an IPv6 address, since whoever has one address
        has as many as that leaves; None for anything else, which counts as one origin.
    """
    host = address[0] if isinstance(address, tuple) and address else None
    if not isinstance(host, str) or ":" not in host:
        return host if isinstance(host, str) else None
    try:
        number = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    mapped = number.ipv4_mapped
    return number.packed[:8] if mapped is None else str(mapped)


def default_limit() -> int:
    """
    Return how many connections may be pending if nothing else is said.

    That is `PENDING`, or half of the descriptors that this process may open, if that is less.
    """
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return PENDING
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return PENDING
    return max(1, min(PENDING, descriptors // 2))
