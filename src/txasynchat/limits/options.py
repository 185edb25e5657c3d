"""
`Limits`: the options object, and where each of its values comes from.

A value that is not given is `UNSET`, and left to whoever is asked next: command line, file, code,
handler class, and at last the place where it is used (`Limits.over`).
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from txasynchat import ranges
from txasynchat.ranges import UNSET, Unset

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["UNSET", "Limits", "Unset", "check_limits", "in_force", "nearest", "parse"]


#: What is on by default where a program serves a port of the internet.
_SERVED: dict[str, Any] = {
    "first_message": 30.0,
    "idle": 300.0,
    "message": 60.0,
    "minimum_rate": 500.0,
    "write_stall": 30.0,
    "session": None,
    "per_address": 50,
    "accepts": 50,
    "queue": 128,
    "queue_timeout": 60.0,
}
#: Most connections by default; fewer where the process may open fewer descriptors.
_MOST = 65_536
#: Who does not count for an address by default.
EXEMPT = ranges.Networks.WORDS


def most_connections() -> int | None:
    """
    Return the default of ``connections``: the descriptors that the process may open, but for a quarter,
    and at least 32, that are left to the program itself, and to peers that wait or are being refused.
    """
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return None
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return _MOST
    return max(1, min(_MOST, descriptors - max(32, descriptors // 4)))


class DeadlineTimes(NamedTuple):
    """The deadlines of `Limits`, and in how many seconds a connection is looked at again."""

    first_message: float
    idle: float
    message: float
    minimum_rate: float
    write_stall: float
    session: float
    every: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """
    What a peer may take: seconds, bytes, bytes a second. None switches a limit off; what is not given
    is `UNSET`, and left to the next of command line, file, code, handler class and default.

    Connections of Unix sockets, processes, pipes and serial ports have no deadlines: their peers are
    on this machine, and may be asked to behave.

    Args:
        first_message: seconds from the moment a connection is open until its first message has
            arrived. Over once the handler has pushed something, and not for one without a terminator.
            For a protocol that is no `AsyncChat`: until the first byte.
        idle: seconds without a byte in either direction, while nothing waits to be sent, no hook is
            waited for, and delivery is not paused.
        message: seconds from the first byte of a message until its end. A longer one has to come at
            `minimum_rate`. For an `AsyncChat`.
        minimum_rate: bytes a second, for `message` and `write_stall`. None: a long message gets no
            more time, and one byte in `write_stall` seconds is progress.
        write_stall: seconds, while something waits to be sent, in which the peer has to acknowledge
            that many times `minimum_rate` bytes, or all that waits.
        session: seconds that a connection may last.
        handshakes: TLS handshakes that go on at once, for each endpoint of a `Server` that is
            ``secure:`` or a `SecureServerEndpoint`; see `ServerOptions`.
        max_message_length: bytes of the longest message of an `AsyncChat`.
        stop_timeout: seconds that connections have to finish when their server stops.
        connections: connections of a server at a time. Over TLS they count from the moment they are
            accepted, behind a proxy from when its header is complete.
        per_address: those of one IPv4 address, or of one IPv6 network of 64 bits.
        exempt: whose connections count for no address: networks, ``"loopback"``, ``"unix"`` (peers of
            Unix sockets), ``"proxies"`` (the networks of trusted ones). None: nobody's.
        rate: new connections a second. As many as come within a second may come at once.
        per_address_rate: those of one address.
        refusal: what a peer that is refused is sent, if it does not speak TLS.
        when_full: ``"refuse"``, or ``"queue"``: who finds all places taken, or comes faster than
            *rate*, waits, and is served when it is its turn.
        queue: connections that may wait; others are refused.
        queue_timeout: seconds that one may wait; then it is refused.
        accepts: connections that are accepted one after the other before others have their turn.

    Raises:
        TypeError, ValueError: a value is not in its range; see `txasynchat.ranges`.
    """

    first_message: float | Unset | None = UNSET
    idle: float | Unset | None = UNSET
    message: float | Unset | None = UNSET
    minimum_rate: float | Unset | None = UNSET
    write_stall: float | Unset | None = UNSET
    session: float | Unset | None = UNSET
    handshakes: int | Unset | None = UNSET
    max_message_length: int | Unset | None = UNSET
    stop_timeout: float | Unset | None = UNSET
    connections: int | Unset | None = UNSET
    per_address: int | Unset | None = UNSET
    exempt: Iterable[str] | Unset | None = UNSET
    rate: float | Unset | None = UNSET
    per_address_rate: float | Unset | None = UNSET
    refusal: bytes | Unset | None = UNSET
    when_full: str | Unset = UNSET
    queue: int | Unset = UNSET
    queue_timeout: float | Unset | None = UNSET
    accepts: int | Unset | None = UNSET

    def __post_init__(self) -> None:
        exempt: Any = self.exempt
        if hasattr(exempt, "__iter__") and not isinstance(exempt, str | bytes):
            object.__setattr__(self, "exempt", tuple(exempt))
        for name, value in self.given():
            ranges.LIMITS[name].check(name, value)

    @classmethod
    def served(cls) -> Limits:
        """Return what ``twistd asynchat`` and `serve` have on where nobody says otherwise."""
        return cls(**_SERVED, connections=most_connections())

    def given(self) -> Iterable[tuple[str, Any]]:
        """Return the names and values that are not `UNSET`."""
        return [(name, value) for name in NAMES if (value := getattr(self, name)) is not UNSET]

    def over(self, other: Limits | None) -> Limits:
        """Return these limits, and those of *other* where these are `UNSET`."""
        if other is None or other is self:
            return self
        return Limits(**dict(other.given()) | dict(self.given()))

    def value(self, name: str, default: Any = None) -> Any:
        """Return the limit *name*; *default* where it is `UNSET`."""
        value = getattr(self, name)
        return default if value is UNSET else value

    @cached_property
    def deadlines(self) -> DeadlineTimes:
        """The deadlines, with 0 for those that are off."""
        first, idle, message, rate, stall, session = (
            self.value(name) or 0.0
            for name in (
                "first_message",
                "idle",
                "message",
                "minimum_rate",
                "write_stall",
                "session",
            )
        )
        every = min((one / 4 for one in (idle, message, stall) if one), default=math.inf)
        return DeadlineTimes(first, idle, message, rate, stall, session, every)


def check_limits(limits: Any) -> Limits | None:
    """Return *limits*; raise a TypeError if it is something else, such as a dict."""
    if limits is None or isinstance(limits, Limits):
        return limits
    raise TypeError(f"limits must be Limits(idle=300, …), not {limits!r:.80}")


def in_force(handler: Any, limits: Limits | None, default: Limits | None) -> Limits | None:
    """
    Return what holds for a connection of *handler*: *limits*, where they say nothing those of its
    class, and at last *default*. None if nothing was given.
    """
    of_class = getattr(type(handler), "limits", None)
    found = None
    for one in (limits, of_class, default):
        if isinstance(one, Limits):
            found = one if found is None else found.over(one)
    return found


NAMES = tuple(one.name for one in fields(Limits))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return what to say about a *name* that is none of *names*: the one that may be meant, or all."""
    known = list(names)
    like = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"did you mean {like[0]}?" if like else f"there are {', '.join(known)}"


def parse(text: str) -> tuple[str, Any]:
    """
    Read ``NAME=VALUE`` of a command line, where ``none`` stands for None.

    Raises:
        ValueError: there is no such limit, or its value is not in its range.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r:.80} should be NAME=VALUE, as in idle=300")
    if name not in NAMES:
        raise ValueError(f"{name!r:.80} is not a limit; {nearest(name, NAMES)}")
    its = ranges.LIMITS[name]
    if its.optional and value.lower() == "none":
        return name, None
    try:
        return name, its.parse(name, value)
    except ValueError:
        none = ", or none" if its.optional else ""
        raise ValueError(f"{name} must be {its}{none}, not {value!r:.80}") from None
