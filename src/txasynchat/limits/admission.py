"""
`Admission`: which connections a server takes, by their number, their addresses, and how fast they come.

A connection that is taken has a `Place`, from the moment it is accepted (behind a proxy: from when its
address is known) until it has ended, however that is. It is asked for before a handler is built.

Twisted's own policies are not enough. ``LimitConnectionsByPeer`` raises a TypeError for every
connection, as addresses are no tuples any more, and knows neither networks nor exceptions. What
``LimitTotalConnectionsFactory`` counts is not given back for a connection that never was made. Both
cannot be put below a handler that gets its socket, and say nothing of whom they refuse.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from txasynchat.limits.options import EXEMPT
from txasynchat.limits.refusing import Refusal
from txasynchat.log import Throttle, escape
from txasynchat.networks import network_of, number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from txasynchat.limits.options import Limits

__all__ = ["Admission", "Place"]

#: Addresses that are remembered at most, of those that came lately.
MOST_ADDRESSES = 65_536
_LEAST_ADDRESSES = 1024
#: Answers about exceptions that are remembered at most.
_MOST_ANSWERS = 1024

_WHY = {
    "connections": "{limit} are open already",
    "per_address": "{limit} of its address are open already",
    "rate": "more than {limit:g} come in a second",
    "per_address_rate": "more than {limit:g} of its address come in a second",
    "queue": "{limit} wait already",
    "queue_timeout": "no place was free for {limit:g} s",
}


class Place:
    """
    That of one connection. If it is forgotten, it has been left.

    Args:
        admission: counts it; None: nobody does.
        network: whose it is.
    """

    __slots__ = ("_admission", "_network")

    def __init__(self, admission: Admission | None = None, network: Hashable = None) -> None:
        self._admission = admission
        self._network = network

    def take_over(self, other: Place) -> None:
        """Be from now on what *other* was, which need not be kept."""
        self._network = other._network
        self._admission, other._admission = other._admission, None

    def leave(self) -> None:
        """The connection has ended, or will never be made. Harmless when repeated."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._left(self._network)

    def __del__(self) -> None:
        if self._admission is not None:
            # Of a connection that never was made. Any thread may come here, at any moment.
            self._admission._lost.append(self._network)


class Rate:
    """
    New connections a second: as many as may come within a second may come at once.

    Args:
        limit: how many.
    """

    __slots__ = ("_ahead", "_interval", "_look_at", "_times")

    def __init__(self, limit: float) -> None:
        self._interval = 1 / limit
        self._ahead = max(1.0, limit) * self._interval - self._interval
        # When all that have come would have come one by one; what is over counts as never.
        self._times: dict[Hashable, float] = {}
        # How many there are when they are looked through.
        self._look_at = _LEAST_ADDRESSES

    def __len__(self) -> int:
        return len(self._times)

    def wait(self, who: Hashable, now: float, coming: int = 0) -> float:
        """Return the seconds until *who* may come, after so many *coming* ones; 0 for now."""
        ahead = max(0.0, self._times.get(who, 0.0) - now) + coming * self._interval
        return max(0.0, ahead - self._ahead)

    def came(self, who: Hashable, now: float) -> None:
        """Count one."""
        times = self._times
        time = max(times.pop(who, 0.0), now) + self._interval
        if len(times) >= self._look_at:
            self.forget(now)
            if len(times) >= MOST_ADDRESSES:
                del times[next(iter(times))]  # who has not come for the longest time
            self._look_at = min(max(_LEAST_ADDRESSES, 2 * len(times)), MOST_ADDRESSES)
        times[who] = time

    def forget(self, now: float) -> None:
        """Forget those about whom there is nothing to remember."""
        for who in [who for who, time in self._times.items() if time <= now]:
            del self._times[who]


class Admission:
    """
    Who is taken by one server, and what became of the others.

    Args:
        clock: an `IReactorTime`.
        limits: of the server. Where a limit is UNSET there is none.

    Attributes:
        waiting: how many wait for their turn; see ``when_full``.
        refused: a `Counter` of those that were refused, by the name of the limit; ``descriptors`` for
            those that came when none was left.
    """

    _log = Logger()

    def __init__(self, clock: Any, limits: Limits) -> None:
        self.clock = clock
        self.refusal: bytes = limits.value("refusal") or b""
        self.refused: Counter[str] = Counter()
        self.waiting = 0
        #: Called when a place becomes free.
        self.when_free: Callable[[], object] | None = None
        self._limits = limits
        # Those that have not closed.
        self._refusals: set[Refusal] = set()
        self._open = 0
        # Of places that were forgotten.
        self._lost: deque[Hashable] = deque()
        self._most: float = limits.value("connections") or math.inf
        self._per_address: float = limits.value("per_address") or math.inf
        rate, address_rate = limits.value("rate"), limits.value("per_address_rate")
        self._rate = Rate(rate) if rate else None
        self._address_rate = Rate(address_rate) if address_rate else None
        # See `within`.
        self._wrapped = self._unknown = False
        self._by_address = self._per_address < math.inf or self._address_rate is not None
        self._networks: dict[Hashable, int] = {}
        exempt = limits.value("exempt", EXEMPT) or ()
        self._words = frozenset(exempt)
        self._exempt: list[Any] = [ipaddress.ip_network(one) for one in exempt if one not in EXEMPT]
        self._answers: dict[Hashable, bool] = {}
        self._throttle = Throttle(1.0)

    def __repr__(self) -> str:
        refused = self.refused.total()
        return f"<Admission: {self.connections} open, {self.waiting} waiting, {refused} refused>"

    @property
    def connections(self) -> int:
        """How many are open."""
        if self._lost:
            self._sweep()
        return self._open

    @property
    def addresses(self) -> int:
        """How many addresses and networks are remembered."""
        rate = self._address_rate
        if rate is not None:
            rate.forget(self.clock.seconds())
        return len(self._networks) + (0 if rate is None else len(rate))

    def trust(self, networks: Any) -> None:
        """Let *networks*, of proxies, be among those that ``exempt`` means by that."""
        if "proxies" in self._words:
            found = [ipaddress.ip_network(one) for one in networks if one != "unix"]
            self._exempt.extend(one for one in found if one not in self._exempt)
            self._answers.clear()

    @contextmanager
    def within(self, *, unknown: bool) -> Iterator[None]:
        """
        A factory of Twisted's asks for a protocol, to put one of its own around it.

        Args:
            unknown: the address is that of a proxy, which will name another.
        """
        self._wrapped, self._unknown = True, unknown
        try:
            yield
        finally:
            self._wrapped = self._unknown = False

    def enter(self, address: Any) -> Place | None:
        """
        Take a connection, if the limits allow it; else count and log that it is refused.

        Args:
            address: the peer's, as Twisted or the `socket` module gives it.
        """
        if self._lost:
            self._sweep()
        if self._open >= self._most:
            self.refuse(address, "connections")
            return None
        network = None
        if self._by_address:
            host = None if self._unknown else getattr(address, "host", address)
            network = network_of(host if isinstance(host, tuple) else (host,))
            refused = self._counts(network, host)
            if refused:
                self.refuse(address, refused)
                return None
        if self._rate is not None:
            now = self.clock.seconds()
            if self._rate.wait(None, now):
                self.refuse(address, "rate")
                return None
            self._rate.came(None, now)
        if self._by_address:
            self._networks[network] = self._networks.get(network, 0) + 1
            if self._address_rate is not None:
                self._address_rate.came(network, self.clock.seconds())
        self._open += 1
        return Place(self, network)

    def refusing(self) -> Refusal | None:
        """Return what stands in the place of a handler for one that is refused, if anything does."""
        return self._refusing(self.refusal)

    def failing(self) -> Refusal | None:
        """Return what stands in the place of a handler that could not be built, if anything does."""
        return self._refusing(b"")

    def _refusing(self, text: bytes) -> Refusal | None:
        # Twisted's factories take None for a protocol, too.
        return Refusal(text, self.clock, self._refusals) if text or self._wrapped else None

    def end_refusals(self) -> None:
        """Wait no longer for peers that were refused to close."""
        for one in list(self._refusals):
            one.end()

    def has_room(self, coming: int = 0) -> bool:
        """
        Return whether one more would be taken now, whatever its address.

        Args:
            coming: connections whose address is not known yet, and which are not counted.
        """
        if self.connections + coming >= self._most:
            return False
        return self.wait(coming) == 0.0

    def wait(self, coming: int = 0) -> float:
        """Return the seconds until ``rate`` lets one more come; see `has_room`."""
        return 0.0 if self._rate is None else self._rate.wait(None, self.clock.seconds(), coming)

    def refuse(self, address: Any, limit: str) -> None:
        """Count, and log once a second at most, that a connection is refused."""
        self.refused[limit] += 1
        suppressed = self._throttle.suppressed(limit)
        if suppressed is not None:
            self._log.info(
                "{peer} is refused: {why} ({limit}){before}",
                peer=escape(str(address)),
                limit=limit,
                why=_WHY[limit].format(limit=self._limits.value(limit)),
                before=f"; so were {suppressed} before it, which were not logged"
                * bool(suppressed),
            )

    # -- internals

    def _counts(self, network: Hashable, host: Any) -> str:
        """Return which limit of an address is reached, if one is."""
        if self._networks.get(network, 0) >= self._per_address:
            limit = "per_address"
        elif self._address_rate is not None and self._address_rate.wait(
            network, self.clock.seconds()
        ):
            limit = "per_address_rate"
        else:
            return ""
        if self._unknown or self._is_exempt(host[0] if isinstance(host, tuple) else host):
            return ""
        return limit

    def _is_exempt(self, host: Any) -> bool:
        found = self._answers.get(host)
        if found is None:
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            found = self._answers[host] = self._find(host)
        return found

    def _find(self, host: Any) -> bool:
        address = number_of(host)
        if address is None:
            return "unix" in self._words
        if address.is_loopback and "loopback" in self._words:
            return True
        return any(address in one for one in self._exempt)

    def _sweep(self) -> None:
        while self._lost:
            self._left(self._lost.popleft())

    def _left(self, network: Hashable) -> None:
        self._open -= 1
        if self._by_address:
            left = self._networks[network] - 1
            if left:
                self._networks[network] = left
            else:
                del self._networks[network]
        if self.waiting and self.when_free is not None:
            self.when_free()
