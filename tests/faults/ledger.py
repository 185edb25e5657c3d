"""
The account: what was sent, acknowledged and answered, how long each fault was kept, and what was wrong.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass

#: Seconds after trouble in which connections may still feel it.
AFTERMATH = 1.5
CLIENTS_HELD_UP, SERVER_HELD_UP = "clients held up", "server held up"


class Ledger:
    """Written by all clients, at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self.bytes_sent = 0
        self.bytes_unanswered = 0
        self.bytes_received = 0
        self.waits: Counter[int] = Counter()  # milliseconds, in steps of 10
        #: By limit and client: how many were kept, the longest, and the narrowest margin.
        self.faults: dict[tuple[str, str], tuple[int, float, float]] = {}
        self.wrong: Counter[str] = Counter()
        self.details: dict[str, str] = {}
        self._told: set[str] = set()

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def answered(self, sent: int, received: int, seconds: float) -> None:
        """A request of *sent* bytes had its right answer."""
        with self._lock:
            self.requests += 1
            self.bytes_sent += sent
            self.bytes_received += received
            self.waits[int(seconds * 100)] += 1

    def unanswered(self, acknowledged: int, what: str, when: str) -> None:
        """A well-behaved client lost its connection, with so many bytes of requests acknowledged."""
        with self._lock:
            self.bytes_sent += acknowledged
            self.bytes_unanswered += acknowledged
            self.wrong[what] += 1
            self.details.setdefault(
                what, f"{acknowledged} bytes acknowledged and not answered, {when}"
            )

    def kept(self, what: str, limit: str, seconds: float, allowed: float) -> None:
        """The server ended a connection after so many seconds; infinity: it did not."""
        with self._lock:
            count, longest, margin = self.faults.get((limit, what), (0, 0.0, float("inf")))
            longest, margin = max(longest, seconds), min(margin, allowed - seconds)
            self.faults[limit, what] = count + 1, longest, margin
            if seconds > allowed:
                key = f"{what} outlasted {limit}"
                self.wrong[key] += 1
                self.details.setdefault(key, f"{seconds:.1f} s, where {allowed:.1f} are allowed")

    def mistake(self, what: str, detail: str = "") -> None:
        with self._lock:
            self.wrong[what] += 1
            if detail:
                self.details.setdefault(what, detail)

    def news(self) -> list[tuple[str, str]]:
        """Return what was wrong since this was asked last, with details."""
        with self._lock:
            told, self._told = self._told, set(self.wrong)
            return [(what, self.details.get(what, "")) for what in self._told - told]

    def wait_of(self, part: float) -> float:
        """Return in how many seconds that part of the answers came."""
        with self._lock:
            rest = part * sum(self.waits.values())
            for hundredths in sorted(self.waits):
                rest -= self.waits[hundredths]
                if rest <= 0:
                    return (hundredths + 1) / 100
        return 0.0


@dataclass
class Window:
    """A time in which new connections may be turned away: at one listener, or where *place* is None."""

    what: str
    place: str | None
    began: float
    ended: float = float("inf")


class Windows:
    """When descriptors were out, and when listeners were away."""

    def __init__(self) -> None:
        self._windows: list[Window] = []

    def open(self, what: str, place: str | None = None, began: float | None = None) -> Window:
        window = Window(what, place, time.monotonic() if began is None else began)
        # Nothing lasts so long that older ones matter.
        self._windows = [*self._windows[-30:], window]
        return window

    def close(self, window: Window) -> None:
        window.ended = time.monotonic() + AFTERMATH

    def troubled(self, place: str, since: float) -> bool:
        """Return whether one was open at any time since then."""
        return self.overlap(place, since, time.monotonic()) > 0

    def held_up(self, since: float) -> bool:
        """Return whether clients or server were held up, by the machine, at any time since then."""
        held_up = (CLIENTS_HELD_UP, SERVER_HELD_UP)
        return any(one.what in held_up and one.ended > since for one in self._windows)

    def overlap(self, place: str, began: float, ended: float) -> float:
        """Return for how many seconds of a time they were open."""
        return sum(
            max(0.0, min(ended, one.ended) - max(began, one.began))
            for one in self._windows
            if one.place in (None, place)
        )

    def describe(self, since: float) -> str:
        """Say what went on since then."""
        found = [
            f"{one.what}{f' of {one.place}' if one.place else ''}"
            for one in self._windows
            if one.ended > since
        ]
        return "during: " + (", ".join(found) or "nothing else")
