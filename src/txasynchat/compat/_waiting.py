"""
One wait on the hub: alone, or where the thread has a reactor of its own or the main one, inside that.

The reactor is never run.  It waits, with the hub among its descriptors, so that its timers and
descriptors are served too; what became ready in the hub is then only fetched.  Whether there is a
reactor can change with any import, so that is looked at before each wait.

A program may close descriptors that it does not know, such as the hub's or a reactor's.  Mostly an
error tells; every `CHECK` seconds it is looked for.

This module does not know channels, nor why a wait lasts as long as it does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from txasynchat.compat import _reactor, _renewal

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.hub import Events, Hub

__all__ = ["Waiting"]

#: Seconds between two looks whether descriptors were closed.
CHECK = 0.1


class Waiting:
    """
    Waits on *hub*.

    Args:
        hub: of which nobody else waits.
        has_news: returns whether another thread changed something since the wait was decided on.

    Attributes:
        is_going_on: it waits, or is about to: `Hub.wake` ends it.
        next_check: when `check` is due.
    """

    __slots__ = (
        "_check_is_due",
        "_has_news",
        "_hub",
        "is_going_on",
        "next_check",
    )

    def __init__(self, hub: Hub, has_news: Callable[[], object]) -> None:
        self._hub = hub
        self._has_news = has_news
        self.is_going_on = False
        self.next_check = time.monotonic() + CHECK
        # For a reactor.
        self._check_is_due = True

    def end(self) -> None:
        """
        The outermost ``loop()`` ends.
        """
        self._hub.detach()
        _reactor.rest()

    def check(self, now: float) -> None:
        """
        Look whether the program closed descriptors of the hub, or of the reactor.
        """
        self.next_check = now + CHECK
        self._check_is_due = True
        self._hub.check()

    def wait(self, limit: float | None) -> Events:
        """
        Wait for events, at most *limit* seconds; `None` for ever.
        """
        reactor = _reactor.here()
        hub = self._hub
        if reactor is not None and (self._check_is_due or hub.stale or not hub.attached):
            self._sit(reactor)
        self.is_going_on = True
        try:
            if self._has_news():  # only now: from here on it wakes the hub
                limit = 0.0
            if reactor is not None:
                _reactor.turn(reactor, 0.0 if hub.busy else limit)
                limit = 0.0
            return hub.wait(limit)
        finally:
            self.is_going_on = False

    def _sit(self, reactor: Any) -> None:
        """
        See to it that *reactor* polls the hub, and that the descriptors of both are their own.
        """
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
