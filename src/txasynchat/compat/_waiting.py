"""
The wait of a pass, and what is due before it and within it.

A wait ends by an event, by its timeout, or when another thread changed something.  In between it sees
to what is due: channels whose rest is over, newcomers, handshakes that last too long, one full pass.

It waits on the hub alone, or where the thread has a reactor of its own or the main one, inside that.
The reactor is never run.  It waits, with the hub among its descriptors, so that its timers and
descriptors are served too; what became ready in the hub is then only fetched.  Whether there is a
reactor can change with any import, so that is looked at before each wait.

A program may close descriptors that it does not know, such as the hub's or a reactor's.  Mostly an
error tells; every `CHECK` seconds it is looked for.

This module does not know who is asked and why, nor what an event means.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from txasynchat.compat import _reactor, _renewal

if TYPE_CHECKING:
    from txasynchat.compat._asking import Asking
    from txasynchat.compat._dispatch import Dispatch
    from txasynchat.compat._wants import Wants
    from txasynchat.hub import Events

__all__ = ["Waiting"]

#: Seconds between two looks whether descriptors were closed.
CHECK = 0.1

_monotonic = time.monotonic


class Waiting:
    """
    Waits for the channels of a map.

    Attributes:
        is_going_on: it waits, or is about to: `Hub.wake` ends it.
    """

    def __init__(self, wants: Wants, asking: Asking, dispatch: Dispatch) -> None:
        self._wants = wants
        self._asking = asking
        self._dispatch = dispatch
        self._entries = wants.entries
        self._hub = wants.hub
        self._next_check = _monotonic() + CHECK
        # For a reactor.
        self._check_is_due = True
        self.is_going_on = False

    def prepare(self, now: float) -> bool:
        """See to what is due, and ask those whose answer may have changed; return whether everyone."""
        asking = self._asking
        wants = self._wants
        if now >= self._next_check:
            self._check(now)
        if now >= wants.backoff.resting.next or self._entries.newcomers.moments:
            asking.take_due(now)
        if now >= wants.deadlines.next:
            self._dispatch.expire(now)
        if now >= asking.next_full:
            asking.refresh_all()
            return True
        return asking.refresh()

    def wait(self, timeout: float | None, now: float, full: bool) -> Events:
        """
        Wait for events up to *timeout* seconds, `None` for ever; *full* if all were asked just *now*.
        """
        deadline = math.inf if timeout is None else now + timeout
        asking = self._asking
        wants = self._wants
        hub = self._hub
        entries = self._entries
        newcomers = entries.newcomers
        resting = wants.backoff.resting
        while True:
            if wants.closed:
                wants.refuse_closed()
            until = min(deadline, resting.next, wants.deadlines.next)
            if not full and asking.next_full < until:
                until = asking.next_full
            if newcomers.moments or newcomers.has_news:
                until = min(until, newcomers.next)
            if until < deadline:
                now = _monotonic()  # what is due does not wait for longer because asking took long
            limit = None if until == math.inf else max(0.0, until - now)
            if (wants.closed or wants.buffered) and wants.ready():
                limit = 0.0
            reactor = _reactor.here()
            if reactor is not None and (self._check_is_due or hub.stale or not hub.attached):
                self._sit_in(reactor)
            self.is_going_on = True
            try:
                if (  # another thread changed something; only now: from here on it wakes the hub
                    asking.touched or entries.departed or newcomers.has_news or not entries.channels
                ):
                    limit = 0.0
                if reactor is not None:
                    _reactor.turn(reactor, 0.0 if hub.busy else limit)
                    limit = 0.0
                events = hub.wait(limit)
            finally:
                self.is_going_on = False
            if wants.closed or wants.buffered:
                events = wants.with_ready(events)
            if events or not entries.channels:
                return events
            now = _monotonic()
            if now >= deadline:
                return events
            # Woken, or only half the wait is over, or the reactor had something to do.
            if now >= resting.next or newcomers.moments:
                asking.take_due(now)
            if now >= wants.deadlines.next and self._dispatch.expire(now):
                return []
            if now >= asking.next_full and not full:
                self._check(now)
                asking.refresh_all(ask_always=False)
                full = True
            else:
                asking.refresh(ask_always=reactor is not None)

    def end(self) -> None:
        if self._hub.attached:
            self._hub.detach()
            _reactor.rest()

    def _check(self, now: float) -> None:
        self._next_check = now + CHECK
        self._check_is_due = True
        self._hub.check()

    def _sit_in(self, reactor: Any) -> None:
        """See to it that *reactor* polls the hub, and that the descriptors of both are their own."""
        hub = self._hub
        if self._check_is_due or hub.stale:
            self._check_is_due = False
            _renewal.renew(reactor)
            hub.renew()
        if hub.attached:
            return
        try:
            hub.attach(reactor, lambda: _reactor.interrupt(reactor))
        except OSError:  # the program closed one just now
            _renewal.renew(reactor)
            hub.check()
            hub.renew()
            hub.attach(reactor, lambda: _reactor.interrupt(reactor))
