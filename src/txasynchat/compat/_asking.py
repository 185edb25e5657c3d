"""
Who is asked what it waits for, and when.

The stdlib asks every channel of the map on every pass.  Here that is done for what may have changed:

- A channel whose class overrides `readable` or `writable`, or that is not a dispatcher of ours, is
  asked on every pass, as in the stdlib: its answer may depend on anything (see `_every_pass`).
- A *steady* channel, with the predicates of our own classes, is asked when it had an event, when
  one of its methods or its queue changed something (`touch`), and in a full pass.
- A channel that another thread adds is left alone at first: see `_newcomers`.
- A full pass asks everyone.  It comes first in a ``loop()``, and then every 20 ms while
  passes go on, or every 100 ms where there are so many channels that it would cost more than a
  fortieth of the time; a wait for longer than that has one within it.  It bounds what slips
  through, such as a predicate that one channel puts on another, idle one for the first time.

They are asked in this order: who had an event, who was touched, and then, in the map's order, those
that are asked on every pass, or all.

This module does not know what follows from an answer (see `_wants`), nor who waits for events.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from txasynchat.compat._attributes import socket_of
from txasynchat.compat._backoff import PAUSE
from txasynchat.compat._entries import copy_of
from txasynchat.compat._interest import is_open, kind_of, pending_of
from txasynchat.compat._wants import IDLE
from txasynchat.hub import READ

if TYPE_CHECKING:
    from txasynchat.compat._backoff import Backoff
    from txasynchat.compat._entries import Entries, Entry
    from txasynchat.compat._every_pass import EveryPass
    from txasynchat.compat._wants import Wants

__all__ = ["Asking"]

#: Seconds from one full pass to the next while passes go on, at least and at most.
FULL_PASS_SOONEST = 0.02
FULL_PASS_LATEST = 0.1
#: Between these, a full pass may take one part in so many of the time.
FULL_PASS_SHARE = 40
#: Seconds between two looks whether channels are still to be asked as they are, which mostly is found
#: sooner, by an answer that a steady one would not give; and whether another file is under the number.
CLASSIFY_SOONEST = 0.25
CLASSIFY_LATEST = 1.0
#: Between these, such a look may take one part in so many of the time.
CLASSIFY_SHARE = 100

_monotonic = time.monotonic
_socket = socket.socket


class Asking:
    """
    Asks the channels of a map.

    Attributes:
        touched: who is to be asked before the next wait; with the end of its rest, if it begins one.
        next_full: when everyone is asked.
    """

    __slots__ = (
        "_backoff",
        "_entries",
        "_every_pass",
        "_newcomers",
        "_next_classify",
        "_recent",
        "_wants",
        "next_full",
        "touched",
    )

    def __init__(
        self, entries: Entries, wants: Wants, backoff: Backoff, every_pass: EveryPass
    ) -> None:
        self._entries = entries
        self._wants = wants
        self._backoff = backoff
        self._newcomers = entries.newcomers
        self._every_pass = every_pass
        self.touched: dict[Any, float | None] = {}
        self.next_full = 0.0
        self._next_classify = 0.0
        # Who had an event and may wait for another thing since.
        self._recent: dict[Any, int] = {}

    # -- from any thread

    def touch(self, fd: Any) -> None:
        """
        The answers of the channel under *fd* may have changed.
        """
        if not (self._newcomers.moments and self._newcomers.report(fd)):
            self.touched.setdefault(fd)  # it may be there, to rest for a while

    def rest(self, fd: Any) -> None:
        """
        Leave the channel under *fd* alone for a while: it cannot take what it is told of.
        """
        self.touched[fd] = _monotonic() + PAUSE

    # -- from the loop's thread

    def heard(self, events: dict[Any, int]) -> None:
        """
        Ask those that had *events* before the next wait.
        """
        self._recent.update(events)

    def take_due(self, now: float) -> None:
        """
        Let those be asked whose rest is over, and newcomers that were left alone for long enough.
        """
        self.touched.update((fd, None) for fd, _ in self._backoff.resting.take_due(now))
        self.touched.update(dict.fromkeys(self._newcomers.take_due(now)))

    def refresh(self, *, ask_always: bool = True) -> bool:
        """
        Ask those whose answer may have changed.

        Args:
            ask_always: also those that are asked on every pass; False within a wait.

        Returns:
            whether everyone was asked, because the map is not what it was.
        """
        entries = self._entries
        self._ask_changed(ask_always)
        if not entries.seem_current():
            self.refresh_all(ask_always=ask_always)
            return True
        if ask_always and entries.always:
            self._every_pass.ask()
        return False

    def refresh_all(self, *, ask_always: bool = True) -> None:
        """
        A full pass: look at the whole map, and ask everyone.
        """
        begin = _monotonic()
        classify = begin >= self._next_classify
        self._ask_changed(ask_always)
        self._every_pass.distrust()
        entries = self._entries
        known = entries.known
        ranks = entries.ranks
        masks = self._wants.masks
        snapshot = copy_of(entries.channels)
        newcomers: Any = self._newcomers if self._newcomers.moments else ()
        rank = -1
        in_order = True
        for fd, channel in snapshot.items():
            entry = known.get(fd)
            fresh = entry is None or entry.ref() is not channel
            if entry is None or fresh:
                entry = self._wants.adopt(fd, channel)
                fresh = fd not in newcomers
            elif fd not in newcomers:
                sock = socket_of(channel)
                # What follows comes to the same for an idle one.  An echo with 10 active channels
                # beside 9,000 idle takes 5.5 us of CPU time, without this 5.8 us.
                if (
                    entry.kind
                    and not classify
                    and masks.get(fd) == IDLE
                    and type(sock) is _socket
                    and not sock._closed  # type: ignore[attr-defined] # see _ask_recent
                    and ranks[fd] > rank
                    and channel.readable()
                    and not channel.writable()
                ):
                    rank = ranks[fd]
                    continue
                if (entry.kind or classify) and entry.kind != kind_of(channel):
                    self._entries.classify(fd, entry, kind_of(channel))
                    fresh = True
                # Another file may be under the same number, too, by os.dup2().
                if (classify or not is_open(channel, fd)) and not self._wants.verify(fd):
                    fresh = True  # it is closed, which is an event of its own: see `Wants.closed`
            if ranks[fd] <= rank:
                in_order = False
            rank = ranks[fd]
            if (ask_always or entry.kind or fresh) and fd not in newcomers:
                self._wants.set(fd, channel, channel.readable(), channel.writable())
        if len(known) != len(snapshot):
            for fd in [fd for fd in known if fd not in snapshot]:
                self._wants.drop(fd)
        if not in_order:
            entries.sort(snapshot)
        now = _monotonic()
        if classify:
            pause = max(CLASSIFY_SOONEST, (now - begin) * CLASSIFY_SHARE)
            self._next_classify = now + min(CLASSIFY_LATEST, pause)
        pause = max(FULL_PASS_SOONEST, (now - begin) * FULL_PASS_SHARE)
        self.next_full = now + min(FULL_PASS_LATEST, pause)

    # -- internals

    def _ask_changed(self, ask_always: bool) -> None:
        departed = self._entries.departed
        while departed:
            try:
                fd, _ = departed.popitem()
            except KeyError:  # a signal handler looked through them
                break
            self._wants.drop(fd)
        if self._recent:
            self._ask_recent(ask_always)
        if self.touched:
            self._ask_touched(ask_always)

    def _ask_recent(self, ask_always: bool) -> None:
        recent, self._recent = self._recent, {}
        channels = self._entries.channels
        known = self._entries.known
        for fd, bits in recent.items():
            channel = channels.get(fd)
            if channel is None:
                continue
            entry = known.get(fd)
            if entry is None or entry.ref() is not channel:
                self.touched[fd] = None
                continue
            sock = socket_of(channel)
            if type(sock) is not _socket:
                if bits & READ and pending_of(sock):
                    self._wants.buffered[fd] = None
            elif sock._closed:  # type: ignore[attr-defined] # fileno() costs ten times as much
                self._every_pass.distrust()
                self._wants.verify(fd)
            if entry.kind:
                self._ask_again(fd, channel, entry, ask_always)

    def _ask_touched(self, ask_always: bool) -> None:
        entries = self._entries
        touched = []
        while self.touched:
            try:
                fd, until = self.touched.popitem()  # other threads add and replace
            except KeyError:  # a signal handler looked through them
                break
            touched.append(fd)
            if until is not None:
                self._backoff.resting.set(fd, until)
        for fd in reversed(touched):
            channel = entries.channels.get(fd)
            entry = entries.known.get(fd)
            if channel is None:
                if entry is not None:
                    self._wants.drop(fd)
                continue
            if entry is None or entry.ref() is not channel:
                entry = self._wants.adopt(fd, channel)
            if fd not in self._newcomers:
                self._ask_again(fd, channel, entry, ask_always)

    def _ask_again(self, fd: Any, channel: Any, entry: Entry, ask_always: bool) -> None:
        """
        Ask a channel that may have changed, unless it is asked with those that are on every pass.
        """
        if entry.kind and entry.kind != kind_of(channel):
            self._entries.classify(fd, entry, kind_of(channel))
        if entry.kind or not ask_always:
            self._wants.set(fd, channel, channel.readable(), channel.writable())
        else:
            self._every_pass.doubted.add(fd)  # to listen changes what the same answers mean
