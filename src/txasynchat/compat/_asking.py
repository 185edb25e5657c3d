"""
Who is asked what it waits for, and when.

The stdlib asks every channel of the map on every pass.  Here that is done for what may have changed:

- A channel whose class overrides `readable` or `writable`, or that is not a dispatcher of ours, is
  asked on every pass, as in the stdlib: its answer may depend on anything.
- A *steady* channel, with the predicates of our own classes, is asked when it had an event, when
  one of its methods or its queue changed something (`touch`), and in a full pass.
- A channel that another thread adds is left alone at first: see `Newcomers`.
- A full pass asks everyone.  It comes first in a ``loop()``, and then every 20 ms while
  passes go on, or every 100 ms where there are so many channels that it would cost more than a
  fortieth of the time; a wait for longer than that has one within it.  It bounds what slips
  through, such as a predicate that one channel puts on another, idle one for the first time.

They are asked in this order: who had an event, who was touched, and then, in the map's order, those
that are asked on every pass, or all.

What is done on every pass, whatever else happens, is lean: the answers of the last one are kept, and
only what differs goes on to `_wants`.  That holds as long as the hub knows what they said then: if
one came, departed or had an event since, or what follows from an answer depends on more than the
answer, each is looked at in full.  An echo with 10 active channels beside 1,000 idle takes 23 us of
CPU time; with each looked at in full on every pass, 66 us.

This module does not know what follows from an answer (see `_wants`), nor who waits for events.
"""

from __future__ import annotations

import math
import socket
import time
from itertools import chain, compress
from operator import is_, ne
from typing import TYPE_CHECKING, Any

from txasynchat.compat._attributes import socket_of
from txasynchat.compat._backoff import PAUSE
from txasynchat.compat._entries import copy_of
from txasynchat.compat._interest import LayeredSocket, Quiet, is_open, kind_of, pending_of
from txasynchat.compat._wants import IDLE
from txasynchat.hub import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from txasynchat.compat._entries import Entry
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

_BOTH = READ | WRITE

_monotonic = time.monotonic
_socket: Any = socket.socket


class Asking:
    """
    Asks the channels of a map; `touch` and `rest` are for any thread.

    Attributes:
        touched: who is to be asked before the next wait; with the end of its rest, if it begins one.
        recent: who had an event since it was asked, and may wait for another thing.
        next_full: when everyone is asked.
    """

    def __init__(self, wants: Wants) -> None:
        self._wants = wants
        self._entries = wants.entries
        self._newcomers = wants.entries.newcomers
        self._resting = wants.backoff.resting
        self.touched: dict[Any, float | None] = {}
        self.recent: dict[Any, int] = {}
        # Who had an event in the last batch of mere reads.
        self._last_read: list[Any] = []
        self.next_full = 0.0
        self._next_classify = 0.0
        # Of those that are asked on every pass: who was asked on the last, and the answers, None when
        # the hub may know another thing; and who had an event or reported something since.
        self._asked: list[Any] = []
        self._answers: list[int] | None = None
        self._doubted: set[Any] = set()

    def touch(self, fd: Any) -> None:  # its answers may have changed
        if not (self._newcomers.moments and self._newcomers.report(fd)):
            self.touched.setdefault(fd)  # it may be there, to rest for a while

    def rest(self, fd: Any) -> None:  # it cannot take what it is told of
        self.touched[fd] = _monotonic() + PAUSE

    def look_again(self, fds: list[Any] | None = None) -> None:
        """
        Note who of *fds* may wait for another thing since it had a read event, and waited for no other.

        Without *fds* it is those of the last time, because a ``loop()`` ended since.
        """
        if fds is None:
            fds = self._last_read
        self._last_read = fds
        known = self._entries.known
        for fd in fds:
            entry = known.get(fd)
            channel: Any = None if entry is None else entry.ref()
            if entry is None or channel is None:
                continue
            sock = socket_of(channel)
            if (
                not sock._closed
                if type(sock) is _socket
                else entry.kind and isinstance(sock, Quiet) and sock.is_quiet
            ) and (not entry.kind or (channel.readable() and not channel.writable())):
                continue
            self.recent[fd] = READ

    def release(self) -> None:
        self._asked = []  # until the next ``loop()`` no channel is kept alive

    def take_due(self, now: float) -> None:
        """Let those be asked whose rest is over, and newcomers that were left alone for long enough."""
        self.touched.update((fd, None) for fd, _ in self._resting.take_due(now))
        self.touched.update(dict.fromkeys(self._newcomers.take_due(now)))

    def refresh(self, *, ask_always: bool = True) -> bool:
        """
        Ask those whose answer may have changed; with *ask_always*, but not within a wait, also who is
        asked on every pass. Return whether all were asked, because the map is not what it was.
        """
        if self.recent or self.touched or self._entries.departed:
            self._ask_changed(ask_always)
        if not self._entries.seem_current():
            self.refresh_all(ask_always=ask_always)
            return True
        if ask_always and self._entries.always:
            self._ask_on_every_pass()
        return False

    def refresh_all(self, *, ask_always: bool = True) -> None:
        """A full pass: look at the whole map, and ask everyone."""
        begin = _monotonic()
        classify = begin >= self._next_classify
        self._ask_changed(ask_always)
        self._answers = None
        entries = self._entries
        known = entries.known
        ranks = entries.ranks
        wants = self._wants
        masks = wants.hub.masks
        snapshot = copy_of(entries.channels)
        newcomers = self._newcomers.moments
        rank = -1
        in_order = True
        for fd, channel in snapshot.items():
            entry = known.get(fd)
            fresh = entry is None or entry.ref() is not channel
            if entry is None or fresh:
                entry = wants.adopt(fd, channel)
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
                    and not sock._closed
                    and ranks[fd] > rank
                    and channel.readable()
                    and not channel.writable()
                ):
                    rank = ranks[fd]
                    continue
                if (entry.kind or classify) and entry.kind != kind_of(channel):
                    entries.classify(fd, entry, kind_of(channel))
                    fresh = True
                # Another file may be under the same number, too, by os.dup2().
                if classify or not is_open(channel, fd):
                    # If it is closed, that is an event of its own: see `Wants.closed`.
                    fresh = not wants.hub.verify(entries.number(fd)) or fresh
            if ranks[fd] <= rank:
                in_order = False
            rank = ranks[fd]
            if (ask_always or entry.kind or fresh) and fd not in newcomers:
                wants.set(fd, channel, channel.readable(), channel.writable())
        if len(known) != len(snapshot):
            for fd in [fd for fd in known if fd not in snapshot]:
                wants.drop(fd)
        if not in_order:
            entries.sort(snapshot)
        now = _monotonic()
        if classify:
            pause = max(CLASSIFY_SOONEST, (now - begin) * CLASSIFY_SHARE)
            self._next_classify = now + min(CLASSIFY_LATEST, pause)
        pause = max(FULL_PASS_SOONEST, (now - begin) * FULL_PASS_SHARE)
        self.next_full = now + min(FULL_PASS_LATEST, pause)

    def _ask_changed(self, ask_always: bool) -> None:
        entries = self._entries
        wants = self._wants
        while entries.departed:
            try:
                fd, _ = entries.departed.popitem()
            except KeyError:  # a signal handler looked through them
                break
            wants.drop(fd)
        recent, self.recent = self.recent, {}
        for fd, bits in chain(recent.items(), self._take_touched()):
            channel = entries.channels.get(fd)
            entry = entries.known.get(fd)
            if channel is None:
                if entry is not None:
                    wants.drop(fd)
                continue
            if entry is None or entry.ref() is not channel:
                entry = wants.adopt(fd, channel)
            elif bits:
                sock = socket_of(channel)
                if type(sock) is not _socket:
                    if bits & READ and pending_of(sock):
                        wants.buffered[fd] = None
                elif sock._closed:  # fileno() costs ten times as much
                    self._answers = None
                    wants.hub.verify(entries.number(fd))
                if not entry.kind:
                    continue  # it is asked on every pass
            if fd not in self._newcomers.moments:
                self._ask_again(fd, channel, entry, ask_always)

    def _take_touched(self) -> Iterator[tuple[Any, int]]:
        touched = []
        while self.touched:
            try:
                fd, until = self.touched.popitem()  # other threads add and replace
            except KeyError:  # a signal handler looked through them
                break
            touched.append(fd)
            if until is not None:
                self._resting.set(fd, until)
        for fd in reversed(touched):
            yield fd, 0

    def _ask_again(self, fd: Any, channel: Any, entry: Entry, ask_always: bool) -> None:
        """Ask a channel that may have changed, unless it is asked with those that are on every pass."""
        if entry.kind and entry.kind != kind_of(channel):
            self._entries.classify(fd, entry, kind_of(channel))
        if entry.kind or not ask_always:
            self._wants.set(fd, channel, channel.readable(), channel.writable())
        else:
            self._doubted.add(fd)  # to listen changes what the same answers mean

    def _ask_on_every_pass(self) -> None:
        entries = self._entries
        always = entries.always
        fds = tuple(always)
        channels = entries.channels
        current: list[Any] = list(map(channels.get, fds))
        before = self._answers
        changed = entries.changed
        asked = self._asked
        if not asked and before is not None:  # between two calls of loop() nobody is kept alive
            asked = self._asked = [entry.ref() for entry in always.values()]
        if (
            before is None
            or changed
            or len(asked) != len(current)
            or not all(map(is_, current, asked))
            or self._wants.closed
            or self._resting.next != math.inf
            or LayeredSocket.are_used
        ):
            self._ask_each_of(fds)
            return
        answers = [
            (
                (_BOTH if channel.writable() else READ)
                if channel.readable()
                else (WRITE if channel.writable() else 0)
            )
            for channel in current
        ]
        places: Any
        if entries.changed:  # one of them changed the map, say
            places = range(len(fds))
        elif answers == before and not self._doubted:
            return  # by far the commonest
        else:
            self._answers = answers
            places = list(compress(range(len(fds)), map(ne, answers, before)))
            places += [fds.index(fd) for fd in self._doubted if fd in always]
        self._doubted.clear()
        for place in places:
            fd, channel, answer = fds[place], current[place], answers[place]
            if channels.get(fd) is channel:
                self._wants.set(fd, channel, answer & READ, answer & WRITE)

    def _ask_each_of(self, fds: tuple[Any, ...]) -> None:
        entries = self._entries
        entries.changed = False  # first: what changes meanwhile is seen the next time
        asked = []
        answers = []
        for fd in fds:
            channel = entries.channels.get(fd)
            if channel is None or fd in self._newcomers.moments:
                continue
            entry = entries.known.get(fd)
            if entry is None or entry.ref() is not channel:
                self._wants.adopt(fd, channel)
            answer = READ if channel.readable() else 0
            if channel.writable():
                answer |= WRITE
            self._wants.set(fd, channel, answer & READ, answer & WRITE)
            asked.append(channel)
            answers.append(answer)
        self._asked = asked
        self._answers = answers
        self._doubted.clear()
