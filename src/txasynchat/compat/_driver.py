"""
What drives a map of channels: a `MapDriver`, over a hub; `_loop` has one for each map.

The stdlib asks every channel of the map on every pass what it waits for, and hands all of
them to the system again.  Here that is done for what may have changed:

- A channel whose class overrides `readable` or `writable`, or is no dispatcher of ours, is
  asked on every pass, as in the stdlib: its answer may depend on anything.
- A *steady* channel, with the predicates of our own classes, is asked when it had an event, when
  one of its methods or its queue changed something (`touch`), and in a full pass.
- A full pass asks everyone.  It comes first in each ``loop()``, and then every 20 ms while
  passes go on, or every 100 ms where there are so many channels that it would cost more than a
  fortieth of the time; a wait for longer than that has one within it.  It bounds what slips
  through, such as a predicate that one channel puts on another, idle one for the first time.

The map stays the user's own plain dict and is the truth.  What is put in or taken out with no
method called is noticed on the next pass: insertion order makes that cheap.

Handlers are called by the functions found in the facade's asyncore module (`read`, `write`,
`readwrite`, `_exception`), because programs replace those.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from operator import is_
from typing import Any

from txasynchat.compat import _reactor, _renewal
from txasynchat.compat._deadlines import Deadlines
from txasynchat.compat._interest import ALWAYS, LayeredSocket, has_pending, is_open, kind_of
from txasynchat.hub import ERROR, HANGUP, INVALID, READ, URGENT, WRITE, Events, Hub

__all__ = ["MapDriver", "copy_of"]

#: Seconds from one full pass to the next while passes go on, at least and at most.
FULL_PASS_SOONEST = 0.02
FULL_PASS_LATEST = 0.1
#: Between these, a full pass may take one part in so many of the time.
FULL_PASS_SHARE = 40
#: Seconds between two looks whether channels are still to be asked as they are; mostly that is found
#: sooner, by an answer that a steady one would not give.
CLASSIFY = 1.0
#: Seconds between two looks whether the program closed descriptors of the hub, or of the reactor
#: beside it; mostly an error tells sooner.
CHECK = 0.1
#: Seconds: how long a channel is left alone that was told the same thing again and again: the end
#: of its stream, or urgent data that it does not take.
PENANCE = 0.1
#: So often it is told without delay.
PATIENCE = 100

# What select(2) counts as readable and as writable.
_READABLE = READ | HANGUP | ERROR
_WRITABLE = WRITE | ERROR
# What poll(2) reports of a channel that is gone.
_GONE = HANGUP | ERROR | INVALID

# What a chat channel waits for that has nothing to send.
_IDLE = READ | URGENT

# The values of the commonest batch by far.
_ALL_READ = {READ}

_get_ident = threading.get_ident
_monotonic = time.monotonic
_modules = sys.modules
_socket = socket.socket


class _Entry:
    """
    A channel as the driver last saw it.
    """

    __slots__ = ("channel", "kind")

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.kind = ALWAYS


class MapDriver:
    """
    The passes over one map.

    Its methods are for the thread that runs the passes, but for those of the section "from
    any thread".

    Args:
        channels: the map, descriptor to channel; kept alive.
        names: the globals of the facade's asyncore module.
    """

    def __init__(self, channels: dict[Any, Any], names: dict[str, Any]) -> None:
        self.channels = channels
        self.names = names
        self.hub = Hub()
        #: How many ``loop()`` calls, nested in each other, use this driver, and in which thread.
        self.depth = 0
        self.thread = 0
        self.attachment: Any = None
        #: The semantics of poll(2) instead of select(2)'s.
        self.poll_mode = False
        self._entries: dict[Any, _Entry] = {}
        # Grow along the map: events are handed out in the map's order.
        self._ranks: dict[Any, int] = {}
        self._always: dict[Any, _Entry] = {}
        self._rank = 0
        # Keys of the map that are no numbers but have a fileno().
        self._keys: dict[int, Any] = {}
        # Channels to ask before the next wait: by events, and by `touch`.
        self._recent: dict[Any, int] = {}
        self._touched: dict[Any, float | None] = {}
        # Descriptors whose channels were taken out of the map, by another thread, a signal handler or
        # a predicate.  What is known of the channels (entries, ranks, who is always asked) is for the
        # driver's thread alone, and nothing of it goes while it is looked through.
        self._gone: dict[Any, None] = {}
        # Descriptors that changed hands, one set for each batch that is being handed out.
        self._batches: list[set[Any]] = []
        # Channels with decrypted bytes inside OpenSSL; whose descriptor is not open; that were
        # told of the end of their stream, how often; of urgent data, how often since they last
        # could read; and until when they are left alone.
        self._buffered: dict[Any, None] = {}
        self._closed: dict[Any, None] = {}
        self._ends: dict[Any, int] = {}
        self._urged: dict[Any, int] = {}
        self._penance = Deadlines()
        # When the handshake of a channel must be done, or its last bytes be gone.
        self._deadlines = Deadlines()
        # Who was asked on the last pass, and the answers, reversed; None when what the hub knows may
        # not be what they said.
        self._asked: list[Any] = []
        self._answers: list[Any] | None = None
        # The map's last item when it was last seen to be that of the entries, too.
        self._last_key: Any = None
        self._last_channel: Any = None
        # How many modules and private reactors there were when this thread had no reactor.
        self._without_reactor = -1
        self._next_full = 0.0
        self._next_classify = 0.0
        self._next_check = _monotonic() + CHECK
        self._check_is_due = True
        self._waiting = False

    # -- from any thread

    def add(self, fd: Any) -> None:
        """
        A channel was put into the map under *fd*.
        """
        self._leave(fd)
        self._touched[fd] = None
        self.wake()

    def remove(self, fd: Any) -> None:
        """
        The channel under *fd* was taken out of the map; its descriptor is still open.
        """
        if self._batches and _get_ident() == self.thread:  # by a handler: nothing else is under way
            self._drop(fd)
        else:
            self._gone[fd] = None  # first: see _hand_out
            self._leave(fd)
        if self.depth:
            self.wake()

    def _leave(self, fd: Any) -> None:
        self._last_channel = self._answers = None
        entry = self._entries.get(fd)
        if entry is not None:
            entry.channel = None
        for batch in self._batches:
            batch.add(fd)  # whoever is found in the map under this number, later on, is another
        if entry is not None:
            self.hub.forget(self._number(fd))
            self._buffered.pop(fd, None)
            self._closed.pop(fd, None)
            self._ends.pop(fd, None)
            self._urged.pop(fd, None)
            self._penance.drop(fd)
            self._deadlines.drop(fd)

    def touch(self, fd: Any) -> None:
        """
        The answer of the predicates of the channel under *fd* may have changed.
        """
        self._touched.setdefault(fd)  # it may be there, to be left alone for a while
        self.wake()

    def wake(self) -> None:
        """
        Let what was changed just now take effect, if the driver sits in a wait.
        """
        if self._waiting:
            self.hub.wake()
        elif self.attachment is not None and not self._batches:
            self.attachment.poke()

    def end(self, fd: Any) -> None:
        """
        The channel under *fd* was told of the end of its stream, and is still in the map.

        The stdlib would tell it again at once, for ever, with the processor at 100 %.
        """
        self._bear(fd, self._ends)

    def _bear(self, fd: Any, told: dict[Any, int]) -> None:
        """
        Count what a channel is told again and again, and leave it alone for a while in the end.
        """
        count = told[fd] = told.get(fd, 0) + 1
        if count > PATIENCE:
            self._touched[fd] = _monotonic() + PENANCE

    # -- asking

    def _drop_gone(self) -> None:
        while self._gone:
            try:
                fd, _ = self._gone.popitem()
            except KeyError:  # as above
                break
            self._drop(fd)

    def _drop(self, fd: Any) -> None:
        """
        Forget the channel under *fd*, which is in the map no more.
        """
        self._leave(fd)
        if self._entries.pop(fd, None) is not None:
            self._ranks.pop(fd, None)
            self._always.pop(fd, None)

    def _number(self, fd: Any) -> int:
        if type(fd) is int:
            return fd
        number: int = fd if isinstance(fd, int) else fd.fileno()
        self._keys[number] = fd
        return number

    def _adopt(self, fd: Any, channel: Any) -> _Entry:
        entry = self._entries.get(fd)
        if entry is None:
            self._rank += 1
            self._ranks[fd] = self._rank
            entry = self._entries[fd] = _Entry(channel)
        elif entry.channel is not None:  # replaced with no method called
            self._leave(fd)
        entry.channel = channel
        self._answers = None
        self._classify(fd, entry)
        sock: Any = getattr(channel, "socket", None)
        if has_pending(sock):
            self._buffered[fd] = None
        if isinstance(sock, LayeredSocket):
            sock.belong_to(channel)
        leaves_at = getattr(channel, "_leaves_at", None)
        if leaves_at is not None:
            self._deadlines.set(fd, leaves_at)
        return entry

    def _classify(self, fd: Any, entry: _Entry) -> None:
        entry.kind = kind_of(entry.channel)
        if entry.kind:
            self._always.pop(fd, None)
        elif fd not in self._always:
            self._always[fd] = entry
            if self._ranks[fd] < self._rank:  # not the map's last: keep the map's order
                order = sorted(self._always, key=self._ranks.__getitem__)
                self._always = {one: self._entries[one] for one in order}

    def _ask(self, fd: Any, channel: Any) -> None:
        """
        Ask *channel* what it waits for, and tell the hub.
        """
        is_readable = channel.readable()
        is_writable = channel.writable()
        self._want(fd, channel, is_readable, is_writable)

    def _want(self, fd: Any, channel: Any, is_readable: Any, is_writable: Any) -> None:
        if LayeredSocket.are_used and isinstance(getattr(channel, "socket", None), LayeredSocket):
            is_readable, is_writable = channel.socket.interest(is_readable, is_writable)
            if channel.socket.deadline is not None:
                self._deadlines.set(fd, channel.socket.deadline)
        if self.poll_mode:
            mask = READ | URGENT if is_readable else 0
            if is_writable and not channel.accepting:
                mask |= WRITE
        elif is_writable:
            mask = URGENT if channel.accepting else WRITE | URGENT
            if is_readable:
                mask |= READ
        else:
            mask = READ | URGENT if is_readable else 0
        if fd in self._penance:
            mask &= ~(READ | URGENT | WRITE if self.poll_mode else READ | URGENT)
        if self._closed:
            self._closed.pop(fd, None)
        number = fd if type(fd) is int else self._number(fd)
        hub = self.hub
        if hub.masks.get(number, 0) != mask:
            try:
                hub.watch(number, mask)
            except OSError:
                if self.channels.get(fd) is channel:  # else another thread just closed it
                    self._closed[fd] = None
            else:
                if self.channels.get(fd) is not channel:  # likewise
                    hub.forget(number)

    def _refresh(self, *, ask_always: bool = True) -> bool:
        """
        Ask those whose answer may have changed.

        Returns:
            whether everyone was asked, because the map is not what it was.
        """
        channels = self.channels
        entries = self._entries
        if self._gone:
            self._drop_gone()
        if self._recent:
            self._ask_recent(ask_always)
        if self._touched:
            self._ask_touched(ask_always)
        try:
            last = next(reversed(channels))
            alike = last is self._last_key and channels[last] is self._last_channel
        except (KeyError, RuntimeError, StopIteration, TypeError):  # see _ends_alike
            alike = False
        if len(channels) != len(entries) or not (alike or self._ends_alike()):
            self._refresh_all(ask_always=ask_always)
            return True
        if ask_always and self._always:
            self._ask_always()
        return False

    def _ask_always(self) -> None:
        """
        Ask those that are asked on every pass; done for each of them, so it is lean.
        """
        fds = tuple(self._always)
        channels = self.channels
        current: list[Any] = list(map(channels.get, fds))
        asked = self._asked
        before = self._answers
        if (
            before is None
            or len(asked) != len(current)
            or not all(map(is_, current, asked))
            or self._closed
            or self._penance.next != math.inf
            or LayeredSocket.are_used
        ):
            self._ask_each_of(fds)
            return
        answers = [(not channel.readable(), not channel.writable()) for channel in current]
        if self._answers is None:  # one of them changed the map, say
            before = [None] * len(answers)
        elif answers == before:
            return  # by far the commonest
        else:
            self._answers = answers
        for fd, channel, answer, old in zip(fds, current, answers, before, strict=True):
            if answer != old and channels.get(fd) is channel:
                self._want(fd, channel, not answer[0], not answer[1])

    def _ask_each_of(self, fds: tuple[Any, ...]) -> None:
        channels = self.channels
        entries = self._entries
        asked = []
        answers = []
        for fd in fds:
            channel = channels.get(fd)
            if channel is None:
                continue
            entry = entries.get(fd)
            if entry is None or entry.channel is not channel:
                self._adopt(fd, channel)
            answer = (not channel.readable(), not channel.writable())
            self._want(fd, channel, not answer[0], not answer[1])
            asked.append(channel)
            answers.append(answer)
        self._asked = asked
        self._answers = answers

    def _ask_recent(self, ask_always: bool) -> None:
        """
        Ask the channels that had an event and may wait for another thing since.
        """
        recent, self._recent = self._recent, {}
        channels = self.channels
        entries = self._entries
        for fd, bits in recent.items():
            channel = channels.get(fd)
            if channel is None:
                continue
            entry = entries.get(fd)
            if entry is None or entry.channel is not channel:
                self._touched[fd] = None
                continue
            sock: Any = getattr(channel, "socket", None)
            if type(sock) is not _socket:
                if bits & READ and has_pending(sock):
                    self._buffered[fd] = None
            elif sock._closed:  # type: ignore[attr-defined] # fileno() costs ten times as much
                self._answers = None
                self.hub.verify(self._number(fd))
            if entry.kind:
                self._ask_again(fd, channel, entry, ask_always)

    def _ask_again(self, fd: Any, channel: Any, entry: _Entry, ask_always: bool) -> None:
        """
        Ask a channel that may have changed, unless it is asked with those that are on every pass.
        """
        if entry.kind and entry.kind != kind_of(channel):
            self._classify(fd, entry)
        if entry.kind or not ask_always:
            self._ask(fd, channel)
        else:
            self._answers = None  # to listen changes what the same answers mean

    def _ask_touched(self, ask_always: bool) -> None:
        touched = []
        while self._touched:
            try:
                fd, until = self._touched.popitem()  # other threads add and replace
            except KeyError:  # a signal handler looked through them
                break
            touched.append(fd)
            if until is not None:
                self._penance.set(fd, until)
        for fd in reversed(touched):
            channel = self.channels.get(fd)
            entry = self._entries.get(fd)
            if channel is None:
                if entry is not None:
                    self._drop(fd)
                continue
            if entry is None or entry.channel is not channel:
                entry = self._adopt(fd, channel)
            self._ask_again(fd, channel, entry, ask_always)

    def _ends_alike(self) -> bool:
        """
        Whether map and entries have the same last item: an insertion always changes that.
        """
        if not self._entries:
            return True
        try:
            last = next(reversed(self.channels))
            known = next(reversed(self._entries))
        except (RuntimeError, StopIteration, TypeError):  # changed by a thread; no plain dict
            return False
        channel = self.channels.get(last)
        if last != known or channel is not self._entries[known].channel:
            return False
        self._last_key = last
        self._last_channel = channel
        return True

    def _refresh_all(self, *, ask_always: bool = True) -> None:
        """
        A full pass: look at the whole map, and ask everyone.
        """
        begin = _monotonic()
        classify = begin >= self._next_classify
        if classify:
            self._next_classify = begin + CLASSIFY
        if begin >= self._next_check:
            self._next_check = begin + CHECK
            self._check_is_due = True  # for a reactor; see _sit
            self.hub.check()
        if self._gone:
            self._drop_gone()
        if self._recent:
            self._ask_recent(ask_always)
        if self._touched:
            self._ask_touched(ask_always)
        self._answers = None
        self._without_reactor = -1
        entries = self._entries
        ranks = self._ranks
        masks = self.hub.masks
        snapshot = copy_of(self.channels)
        rank = -1
        in_order = True
        for fd, channel in snapshot.items():
            entry = entries.get(fd)
            fresh = entry is None or entry.channel is not channel
            if entry is None or fresh:
                entry = self._adopt(fd, channel)
            else:
                if (
                    entry.kind
                    and not classify
                    and masks.get(fd) == _IDLE
                    and type(channel.socket) is _socket
                    and not channel.socket._closed  # type: ignore[attr-defined] # as above
                    and ranks[fd] > rank
                    and channel.readable()
                    and not channel.writable()
                ):
                    rank = ranks[fd]
                    continue
                if (entry.kind or classify) and entry.kind != kind_of(channel):
                    self._classify(fd, entry)
                    fresh = True
                if not is_open(channel, fd):
                    self.hub.verify(self._number(fd))
            if ranks[fd] <= rank:
                in_order = False
            rank = ranks[fd]
            if ask_always or entry.kind or fresh:
                self._ask(fd, channel)
        if len(entries) != len(snapshot):
            for fd in [fd for fd in entries if fd not in snapshot]:
                self._drop(fd)
        if not in_order:
            self._reorder(snapshot)
        now = _monotonic()
        pause = max(FULL_PASS_SOONEST, (now - begin) * FULL_PASS_SHARE)
        self._next_full = now + min(FULL_PASS_LATEST, pause)

    def _reorder(self, snapshot: dict[Any, Any]) -> None:
        old = self._entries
        self._entries = {fd: old[fd] for fd in snapshot if fd in old}
        self._ranks = {fd: rank for rank, fd in enumerate(self._entries)}
        self._rank = len(self._ranks)
        self._always = {fd: entry for fd, entry in self._entries.items() if not entry.kind}

    # -- passes

    def run_pass(self, timeout: float | None) -> None:
        """
        Ask, wait, and hand out what happened: what the stdlib's ``poll()`` does.

        Args:
            timeout: seconds, `None` for ever.
        """
        now = _monotonic()
        full = self._get_ready(now)
        events = self._wait(timeout, now, full)
        if events:
            self._hand_out(events)

    def turn(self, limit: int) -> bool:
        """
        A pass that does not wait, for a reactor that runs.

        Args:
            limit: events to hand out at most; the rest comes with the next turn.

        Returns:
            whether another turn is due at once, with nothing that would tell the reactor so.
        """
        self._get_ready(_monotonic())
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        events = self.hub.wait(0.0, limit)
        if self._buffered:
            events = self._with_ready(events)
        if events:
            self._hand_out(events)
            self._refresh()
        return self.hub.busy or self._no_limit_for_ready(None) == 0.0

    def _get_ready(self, now: float) -> bool:
        """
        See to what is due, and ask those whose answer may have changed.

        Returns:
            whether everyone was asked.
        """
        if now >= self._penance.next:
            self._forgive(now)
        if now >= self._deadlines.next:
            self._expire(now)
        if now >= self._next_full:
            self._refresh_all()
            return True
        return self._refresh()

    def start(self, poll_mode: bool) -> None:
        """
        A ``loop()`` begins: the next pass is a full one.
        """
        self._next_full = 0.0
        self._without_reactor = -1
        self.poll_mode = poll_mode

    def _forgive(self, now: float) -> None:
        for fd, _ in self._penance.take_due(now):
            self._touched[fd] = None

    def _expire(self, now: float) -> bool:
        """
        Tell the channels whose time is over, by a read event.

        Returns:
            whether there were any.
        """
        over = self._deadlines.take_due(now)
        for fd, until in over:
            channel = self.channels.get(fd)
            sock: Any = getattr(channel, "socket", None)
            has_layer = isinstance(sock, LayeredSocket)
            if until == (sock.deadline if has_layer else getattr(channel, "_leaves_at", None)):
                self.names["read"](channel)
                self._touched[fd] = None
        return bool(over)

    def _wait(self, timeout: float | None, now: float, full: bool) -> Events:
        deadline = math.inf if timeout is None else now + timeout
        while True:
            if self._closed and not self.poll_mode:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            until = deadline
            if not full and self._next_full < until:
                until = self._next_full
            until = min(until, self._penance.next)
            until = min(until, self._deadlines.next)
            limit = None if until == math.inf else max(0.0, until - now)
            if self._closed or self._buffered:
                limit = self._no_limit_for_ready(limit)
            events = self._sleep(limit)
            if self._closed or self._buffered:
                events = self._with_ready(events)
            if events or not self.channels:
                return events
            now = _monotonic()
            if now >= deadline:
                return events
            # Woken, or only half the wait is over, or the reactor had something to do.
            if now >= self._penance.next:
                self._forgive(now)
            if now >= self._deadlines.next and self._expire(now):
                return []
            if now >= self._next_full and not full:
                self._refresh_all(ask_always=False)
                full = True
            else:
                self._refresh(ask_always=_reactor.here() is not None)

    def _sleep(self, limit: float | None) -> Events:
        # None until something is imported, or made, that could be one; asking costs more.
        known = len(_modules) + _reactor.private_reactors
        reactor = None
        if known != self._without_reactor:
            reactor = _reactor.here()
            self._without_reactor = -1 if reactor else known
        hub = self.hub
        if reactor is not None and (self._check_is_due or hub.stale or not hub.attached):
            self._sit(reactor)
        self._waiting = True
        try:
            if self._touched or self._gone or not self.channels:  # by another thread, just now
                limit = 0.0
            if reactor is not None:
                _reactor.turn(reactor, 0.0 if hub.busy else limit)
                limit = 0.0
            return hub.wait(limit)
        finally:
            self._waiting = False

    def _sit(self, reactor: Any) -> None:
        """
        See to it that *reactor* polls the hub, and that the descriptors of both are their own.
        """
        hub = self.hub
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

    def _no_limit_for_ready(self, limit: float | None) -> float | None:
        masks = self.hub.masks
        if any(masks.get(self._number(fd), 0) & READ for fd in list(self._buffered)) or any(
            fd not in self._penance for fd in list(self._closed)
        ):
            return 0.0
        return limit

    def _with_ready(self, events: Events) -> Events:
        """
        Add what the system does not report: decrypted bytes, closed descriptors.
        """
        ready = dict(events)
        masks = self.hub.masks
        for fd in list(self._buffered):
            number = self._number(fd)
            if masks.get(number, 0) & READ:
                self._buffered.pop(fd, None)
                ready[number] = ready.get(number, 0) | READ
        for fd in list(self._closed):
            if fd not in self._penance:
                ready[self._number(fd)] = INVALID
        return list(ready.items())

    # -- handing out

    def _hand_out(self, events: Events) -> None:
        if self._keys:
            events = [(self._keys.get(fd, fd), bits) for fd, bits in events]
        ready = dict(events)
        ranks = self._ranks
        changed: set[Any] = set()
        self._batches.append(changed)
        try:
            if self._gone:  # since the wait began, by another thread
                entries = self._entries
                changed.update(fd for fd in ready if fd in entries and entries[fd].channel is None)
            try:
                order = sorted(ready, key=ranks.__getitem__)
            except KeyError:  # nobody's
                for fd in tuple(ready):
                    if fd not in ranks:
                        del ready[fd]
                        self.hub.quiet(self._number(fd))
                order = sorted(ready, key=lambda fd: ranks.get(fd, 0))
            if not self.poll_mode and set(ready.values()) == _ALL_READ:
                self._hand_out_reads(order, changed)
            else:
                try:
                    if self.poll_mode:
                        self._hand_out_polled(order, ready, changed)
                    else:
                        self._hand_out_selected(order, ready, changed)
                finally:
                    self._recent.update(ready)
        finally:
            self._batches.pop()

    def _hand_out_reads(self, order: list[Any], changed: set[Any]) -> None:
        """
        The commonest batch by far: everybody has something to read, and nothing else.

        A steady channel that waits for the same as before need not be looked at again before the
        next pass: whatever else changes it reports by `touch`, or a full pass finds it.
        """
        channels = self.channels
        recent = self._recent
        names = self.names
        read = names["read"]
        is_own = read is names["_own_read"]
        try:
            for fd in order:
                channel = channels.get(fd)
                if channel is None or (changed and fd in changed):  # in this order: see _leave
                    continue
                if not is_own:
                    read(channel)
                    continue
                try:  # what it does, for a call less
                    channel.handle_read_event()
                except names["_reraised_exceptions"]:
                    raise
                except:  # noqa: E722 - see asyncore.read
                    channel.handle_error()
        except BaseException:
            recent.update(dict.fromkeys(order, READ))
            raise
        if self._urged:
            for fd in order:
                self._urged.pop(fd, None)
        # In a loop of its own: after a system call each instruction costs a multiple.
        entries = self._entries
        for fd in order:
            entry = entries.get(fd)
            if entry is None:
                continue
            channel = entry.channel
            if channel is None:
                continue
            if entry.kind:
                sock = channel.socket
                kind = type(sock)
                if (
                    (
                        not sock._closed
                        if kind is _socket
                        else isinstance(sock, LayeredSocket) and sock.is_quiet
                    )
                    and channel.readable()
                    and not channel.writable()
                ):
                    continue
            else:
                sock = getattr(channel, "socket", None)
                if type(sock) is _socket and not sock._closed:  # type: ignore[attr-defined] # see above
                    continue
            recent[fd] = READ

    def _hand_out_selected(
        self, order: list[Any], ready: dict[Any, int], changed: set[Any]
    ) -> None:
        """
        As select mode does: all that can be read, all that can be written, the urgent rest.
        """
        names = self.names
        channels = self.channels
        masks = self.hub.masks
        reads = []
        writes = []
        urgent = []
        for fd in order:
            bits = ready[fd]
            if bits == READ:
                reads.append(fd)
                continue
            mask = masks.get(fd if type(fd) is int else self._number(fd), 0)
            wanted = False
            if mask & READ and bits & _READABLE:
                reads.append(fd)
                wanted = True
            if mask & WRITE and bits & _WRITABLE:
                writes.append(fd)
                wanted = True
            if bits & URGENT:
                urgent.append(fd)
                wanted = True
            if not wanted and fd not in changed:
                self.hub.quiet(self._number(fd))
        for fds, name in ((reads, "read"), (writes, "write"), (urgent, "_exception")):
            if not fds:
                continue
            call = names[name]
            for fd in fds:
                channel = channels.get(fd)
                if channel is not None and not (changed and fd in changed):
                    call(channel)
                    if fds is urgent and channels.get(fd) is channel:
                        self._bear(fd, self._urged)
                    elif fds is reads:
                        self._urged.pop(fd, None)

    def _hand_out_polled(self, order: list[Any], ready: dict[Any, int], changed: set[Any]) -> None:
        """
        As poll mode does: everything of one channel, then of the next.
        """
        readwrite = self.names["readwrite"]
        channels = self.channels
        for fd in order:
            channel = channels.get(fd)
            if channel is not None and not (changed and fd in changed):
                bits = ready[fd]
                readwrite(channel, bits)
                if bits & READ:
                    self._urged.pop(fd, None)
                if bits & (_GONE | URGENT) and channels.get(fd) is channel:
                    self._bear(fd, self._ends if bits & _GONE else self._urged)

    # -- the end

    def go_on_in_child(self) -> None:
        """
        This is the child of a fork, and its one thread.
        """
        if self.attachment is None:
            self.hub.abandon()
        if self.thread != _get_ident():
            self.depth = 0
            self._batches.clear()

    def stop(self) -> None:
        """
        The outermost ``loop()`` ends.
        """
        self.hub.detach()
        self._last_channel = self._answers = None
        self._asked = []
        _reactor.rest()

    def close(self) -> None:
        """
        Give the hub's descriptors back.
        """
        self.hub.close()
        self._entries.clear()
        self._ranks.clear()


def copy_of(channels: Any) -> dict[Any, Any]:
    if type(channels) is dict:
        return channels.copy()
    while True:
        with suppress(RuntimeError):  # changed by another thread meanwhile
            return dict(channels.items())
