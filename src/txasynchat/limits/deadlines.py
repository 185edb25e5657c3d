"""
`Deadlines`: whether one connection takes too long, and how it ends then.

Nothing is done for each byte or message. A connection is looked at every few seconds, a quarter of its
shortest deadline, and what has changed since the last look shows what happened: the system's own counts
of a TCP connection, and what an `AsyncChat` says of itself. So nobody is cut off too early, and whoever
is too late hears of it within a quarter, and an eighth, of that time.

A protocol may answer for itself, by methods of its class that are looked for:

- ``_standing`` returns a `Standing`;
- ``_quiet``, where that says what was sent, returns whether nothing has happened since;
- ``_timed_out`` ends the connection in its own way, with a `TimedOut`;
- ``_begin_deadlines`` is given the `Deadlines`.

Any other is watched from outside, its ``handle_timeout`` called where it has one, and its transport
closed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.logger import Logger

from txasynchat import endings, transports
from txasynchat.delivery import carried, unacknowledged
from txasynchat.errors import TimedOut
from txasynchat.limits.wheel import Wheel
from txasynchat.log import Throttle, escape, failure, unlogged

if TYPE_CHECKING:
    from txasynchat.limits.options import DeadlineTimes, Limits

__all__ = ["Deadlines", "Standing", "begin", "report"]

_KINDS = ("first_message", "idle", "message", "write_stall", "session")
#: Seconds without progress that a connection has to end, once a deadline has passed, where
#: ``write_stall`` says nothing.
GRACE = 10.0
#: Seconds after which a connection without deadlines is looked at, in case it is given some.
LONGEST = 3600.0

_log = Logger()
#: Of reports, for each limit.
throttle = Throttle(1.0)


class Standing(NamedTuple):
    """What a protocol says of itself, as far as it can be told."""

    #: Not open yet: a handshake is going on, which has a limit of its own.
    opening: bool = False
    #: Nothing more is delivered, and the end is near.
    closing: bool = False
    #: This side is at work, or does not want to be told more.
    busy: bool = False
    #: No first message is waited for.
    begun: bool = True
    #: A message has ended since this was asked last; or this was not asked before.
    ended: bool = False
    #: Bytes of the message that has begun; None if none has.
    length: int | None = None
    #: Bytes that were ever given to the transport, and those that are still to be.
    sent: int | None = None
    unsent: int = 0


def begin(
    protocol: Any,
    transport: Any,
    limits: Limits,
    *,
    clock: Any = None,
) -> Deadlines | None:
    """
    Hold a connection that has just been made to its deadlines.

    Args:
        protocol: whose connection it is.
        transport: its transport.
        limits: where a deadline is UNSET there is none.
        clock: an `IReactorTime`; by default the protocol's ``clock``, or the transport's reactor.

    Returns:
        What `Deadlines.end` has to be called of when the connection is lost; None if it has none,
        because there are no deadlines, or its peer is on this machine.
    """
    if not any(limits.value(kind) for kind in _KINDS) or not _is_distant(transport):
        return None
    clock = clock or getattr(protocol, "clock", None) or transports.reactor_of(transport)
    if not hasattr(clock, "callLater"):
        return None
    earlier = getattr(protocol, "_deadlines", None)
    if isinstance(earlier, Deadlines):  # of a factory inside another's policy
        earlier.prefer(limits)
        return None
    deadlines = Deadlines(protocol, transport, limits, Wheel.of(clock))
    told = getattr(type(protocol), "_begin_deadlines", None)
    if told is not None:
        told(protocol, deadlines)
    return deadlines


def report(peer: Any, error: TimedOut) -> None:
    """Log that a deadline has passed: each kind at most once a second, because peers can repeat it."""
    suppressed = throttle.suppressed(error.kind)
    if suppressed is not None:
        _log.info(
            "{peer}: {error}{before}",
            peer=peer,
            error=escape(str(error)),
            kind=type(error).__name__,
            limit=error.kind,
            before=unlogged(suppressed),
        )


def _is_distant(transport: Any) -> bool:
    try:
        return isinstance(transport.getPeer(), IPv4Address | IPv6Address)
    except Exception:  # noqa: BLE001 a transport may be anybody's
        return False


class Deadlines:
    """The deadlines of one connection; see `begin`."""

    __slots__ = (
        *("_active", "_began", "_begun", "_counts", "_deaf", "_ending", "_heard"),
        *("_message", "_mode", "_opened", "_protocol", "_sent", "_stall", "_transport"),
        *("_wheel", "after", "before", "limits"),
    )

    def __init__(
        self,
        protocol: Any,
        transport: Any,
        limits: Limits,
        wheel: Wheel,
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._wheel: Wheel | None = wheel
        #: What holds now: those of the mode, and where that has none, these.
        self.limits = limits
        #: The mode, and these.
        self._mode: tuple[Limits, Limits] | None = None
        self.before: Any = None
        self.after: Any = None
        now = wheel.now()
        self._began = self._active = now
        # When it was open; since when a message comes.
        self._opened: float | None = None
        self._message: float | None = None
        # Since when too little is taken of what waits, and what had been acknowledged then.
        self._stall: tuple[float, int] | None = None
        # Which deadline has passed, and when the connection is ended by force.
        self._ending: tuple[str, float] | None = None
        # All counts at the last look; what had been sent then, if nothing went on.
        self._counts: Any = None
        self._sent: int | None = None
        #: Bytes came since the last look, as far as that is noticed here.
        self._heard = False
        self._begun = not limits.value("first_message")
        knows_itself = hasattr(type(protocol), "_standing")
        #: Bytes that come are noticed by nobody.
        self._deaf = False
        if self._traffic() is None:
            self._deaf = not _Ear.listen(self, protocol, once=False)
        elif not (self._begun or knows_itself):
            _Ear.listen(self, protocol, once=True)
        self._look(now)

    def enter_mode(self, mode: Limits | None) -> None:
        """Let the limits of a mode come before others from now on; what was measured so far counts."""
        base = self._base
        self._mode = None if mode is None else (mode, base)
        self.limits = base if mode is None else mode.over(base)
        if self._wheel is not None and self._ending is None:
            self._sent = None
            now = self._wheel.now()
            self._enter(self._interval(now), now)

    def prefer(self, limits: Limits) -> None:
        """Let *limits* come before those that were given at the beginning."""
        mode, self._mode = self._mode, None
        self.limits = limits.over(self.limits if mode is None else mode[1])
        self.enter_mode(None if mode is None else mode[0])

    def end(self) -> None:
        """The connection is lost. Harmless when repeated."""
        if self._wheel is not None:
            self._wheel.leave(self)
            self._wheel = None
            _Ear.remove(self._protocol)
            self._protocol = self._transport = None

    def hear(self, *, once: bool) -> None:
        """Bytes came, which the protocol is given next."""
        self._heard = True
        if once:
            _Ear.remove(self._protocol)

    # -- called by the wheel

    def due(self, now: float) -> None:
        """Look at the connection."""
        if self._ending is None:
            self._look(now)
        else:
            self._drain(now)

    # -- internals

    @property
    def _base(self) -> Limits:
        return self.limits if self._mode is None else self._mode[1]

    def _look(self, now: float) -> None:
        """End the connection if a deadline has passed, or look again in time."""
        times = self.limits.deadlines
        if self._sent is not None:
            # Nothing can pass before that if nothing has happened.
            wake = min(
                self._active + (times.idle or math.inf), self._began + (times.session or math.inf)
            )
            if now < wake and self._protocol._quiet(self._sent):
                self._enter(min(times.every, wake - now), now)
                return
        its = self._ask()
        if its.begun or (its.ended and self._counts is not None):
            self._begun = True
        waiting, acknowledged, changed = self._measure(its)
        if its.opening:
            self._active = now
        elif self._opened is None:
            self._opened = now
        if changed or waiting or its.busy:
            self._active = now
        if its.length is None or its.busy:
            self._message = None
        elif its.ended or self._message is None:
            self._message = now
        passed = self._passed(times, its, now)
        stall = times.write_stall
        if stall and self._stalls(now, stall, waiting, acknowledged):
            passed = "write_stall"
        if passed:
            self._time_out(passed, now, tell=not its.closing or passed == "write_stall")
            return
        delay = self._interval(now)
        # An AsyncChat for which nothing is going on knows by itself whether that is still so; to ask
        # costs less.
        quiet = self._begun and not (waiting or its.opening or its.length)
        self._sent = its.sent if quiet else None
        self._enter(delay, now)

    def _passed(self, times: DeadlineTimes, its: Standing, now: float) -> str:
        """Return which deadline has passed, of those that the peer's silence lets pass."""
        if times.session and now - self._began >= times.session:
            return "session"
        if its.opening or its.closing:
            return ""
        first, limit = times.first_message, times.message
        if first and not self._begun and self._opened is not None and now - self._opened >= first:
            return "first_message"
        if limit and self._message is not None and now - self._message >= limit:
            rate = times.minimum_rate
            if not rate or (its.length or 0) < rate * (now - self._message):
                return "message"
        return "idle" if times.idle and now - self._active >= times.idle else ""

    def _stalls(self, now: float, seconds: float, waiting: int, acknowledged: int) -> bool:
        """Return whether the peer took too little of what waits for too long."""
        if not waiting:
            self._stall = None
            return False
        enough = max(1, seconds * self.limits.deadlines.minimum_rate)
        if self._stall is None or acknowledged - self._stall[1] >= enough:
            self._stall = now, acknowledged
            return False
        return now - self._stall[0] >= seconds

    def _interval(self, now: float) -> float:
        """Return the seconds until the next look."""
        times = self.limits.deadlines
        delay = times.every
        if times.idle:
            delay = min(delay, self._active + times.idle - now)
        if times.session:
            delay = min(delay, self._began + times.session - now)
        if times.first_message and not self._begun:
            # While it is not open, nobody tells when it is.
            opened, first = self._opened, times.first_message
            delay = min(delay, first / 4 if opened is None else opened + first - now)
        return min(max(0.0, delay), LONGEST)

    def _enter(self, delay: float, now: float) -> None:
        if self._wheel is not None:
            self._wheel.enter(self, delay, now)

    def _ask(self) -> Standing:
        protocol = self._protocol
        ask = getattr(type(protocol), "_standing", None)
        if ask is not None:
            standing: Standing = ask(protocol)
            return standing
        opening = self._opened is None and not transports.is_open(self._transport)
        return Standing(opening=opening, begun=self._begun or self._heard)

    def _socket(self) -> Any:
        transport = self._transport
        if hasattr(type(transport), "carrier"):
            return transport.carrier
        return transports.real_socket(transport)

    def _traffic(self) -> tuple[int, int] | None:
        sock = self._socket()
        return None if sock is None else carried(sock)

    def _measure(self, its: Standing) -> tuple[int, int, bool]:
        """
        Return how many bytes wait to be taken by the peer, how many it has ever taken, and whether
        bytes went either way since the last look.
        """
        sock = self._socket()
        unsent = transports.unsent_bytes(self._transport)
        in_flight = None if sock is None else unacknowledged(sock)
        waiting = its.unsent + (unsent or 0) + (in_flight or 0)
        counts: Any = None if sock is None else carried(sock)
        heard, self._heard = self._heard, False
        if counts is not None:
            acknowledged = counts[1]
            counts = sum(counts)  # which takes less memory, and changes with either
        elif its.sent is not None:
            acknowledged = its.sent - (unsent or 0) - (in_flight or 0)
            counts = (its.sent, acknowledged)
        else:
            # Less is known: any change counts as enough.
            counts = (unsent, in_flight)
            acknowledged = 0 if self._stall is None else self._stall[1]
            if counts != self._counts:
                acknowledged += 1 << 40
        changed = heard or self._deaf or counts != self._counts
        self._counts = counts
        return waiting, acknowledged, changed

    def _time_out(self, kind: str, now: float, *, tell: bool) -> None:
        """Say so, and end the connection; by force if that does not come to an end."""
        grace = self._grace()
        self._ending = kind, now + grace
        self._stall = None
        if tell:
            self._tell(TimedOut(kind, float(self.limits.value(kind))))
        self._enter(grace / 4, now)

    def _grace(self) -> float:
        return float(self.limits.value("write_stall") or GRACE)

    def _tell(self, error: TimedOut) -> None:
        protocol, transport = self._protocol, self._transport
        own = getattr(type(protocol), "_timed_out", None)
        if own is not None:
            own(protocol, error)
            return
        report(transports.peer_name(transport), error)
        if callable(getattr(type(protocol), "handle_timeout", None)):
            try:
                protocol.handle_timeout(error.kind)
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                failure(_log, "{protocol!r}: the hook of a timeout raised", protocol=protocol)
        if self._wheel is None:
            return  # the hook ended it
        if error.kind == "write_stall":
            transports.abort(transport)
        else:
            transport.loseConnection()

    def _drain(self, now: float) -> None:
        """The connection is to end: let it, while the peer still takes something."""
        grace = self._grace()
        waiting, acknowledged, _ = self._measure(self._ask())
        stalls = self._stalls(now, grace, waiting, acknowledged)
        kind, until = self._ending or ("", now)
        if waiting and not stalls and kind != "write_stall":
            self._ending = kind, now + grace
        elif stalls or now >= until:
            # With start_tls there is another one between the two.
            endings.end(getattr(self._protocol, "transport", None) or self._transport)
        self._enter(grace / 4, now)


class _Ear:
    """Notices the bytes that a protocol is given, in the place of its ``dataReceived``."""

    __slots__ = ("_deadlines", "_once", "_original")

    def __init__(self, deadlines: Deadlines, original: Any, *, once: bool) -> None:
        self._deadlines = deadlines
        self._original = original
        self._once = once

    @classmethod
    def listen(cls, deadlines: Deadlines, protocol: Any, *, once: bool) -> bool:
        """Begin; *once* for the first bytes only. Return False if that is not possible."""
        try:
            protocol.dataReceived = cls(deadlines, protocol.dataReceived, once=once)
        except AttributeError:
            return False
        return True

    @classmethod
    def remove(cls, protocol: Any) -> None:
        """End."""
        if isinstance(getattr(protocol, "__dict__", {}).get("dataReceived"), cls):
            del protocol.dataReceived

    def __call__(self, data: bytes) -> None:
        self._deadlines.hear(once=self._once)
        self._original(data)
