"""
What drives a map of channels: a `MapDriver`, over a hub; `_loop` has one for each map.

The stdlib asks every channel of the map on every pass what it waits for, and hands all of
them to the system again.  Here that is done for what may have changed:

- A channel whose class overrides `readable` or `writable`, or is no dispatcher of ours, is
  asked on every pass, as in the stdlib: its answer may depend on anything.
- A *steady* channel, with the predicates of our own classes, is asked when it had an event, when
  one of its methods or its queue changed something (`touch`), and in a full pass.
- A channel that another thread adds is left alone at first: see `_newcomers`.
- A full pass asks everyone.  It comes first in a ``loop()``, and then every 20 ms while
  passes go on, or every 100 ms where there are so many channels that it would cost more than a
  fortieth of the time; a wait for longer than that has one within it.  It bounds what slips
  through, such as a predicate that one channel puts on another, idle one for the first time.
- A ``loop()`` whose map has the same channels as at the end of the last one goes on with its passes,
  and with its time.  What was changed meanwhile of a steady channel, with no method called, is found
  by the next full pass, at most 100 ms after the last.

The map stays the user's own plain dict and is the truth.  What is put in or taken out with no
method called is noticed on the next pass: insertion order makes that cheap.  Between two calls of
``loop()`` neither the map nor what is in it is kept alive.

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
import weakref
from contextlib import suppress
from itertools import compress
from operator import is_, ne
from typing import TYPE_CHECKING, Any

from txasynchat.compat import _reactor, _renewal
from txasynchat.compat._attributes import own, socket_of
from txasynchat.compat._deadlines import Deadlines
from txasynchat.compat._interest import (
    ALWAYS,
    STEADY,
    LayeredSocket,
    is_open,
    kind_of,
    pending_of,
    tls_wants,
)
from txasynchat.compat._newcomers import Newcomers
from txasynchat.hub import ENDED, ERROR, HANGUP, INVALID, READ, URGENT, WRITE, Events, Hub
from txasynchat.hub.pollers import unread

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MapDriver", "copy_of"]

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

_DIRECTIONS = {"read": READ, "write": WRITE}

# What says that nothing more comes.
_LAST = ENDED | HANGUP | ERROR

# What a channel waits for that reads, such as a chat channel that has nothing to send.
_IDLE = READ | URGENT | ENDED

_BOTH = READ | WRITE

# The values of the commonest batch by far.
_ALL_READ = {READ}

_get_ident = threading.get_ident
_monotonic = time.monotonic
_modules = sys.modules
_socket = socket.socket


def _nobody() -> None:
    return None


class _Entry:
    """
    A channel as the driver last saw it.

    Attributes:
        ref: returns the channel, which is not kept alive: a program may drop it without a word, and
            its peer sees the end.  `_nobody` once it has left.
    """

    __slots__ = ("kind", "ref")

    def __init__(self) -> None:
        self.ref: Callable[[], Any] = _nobody
        self.kind = ALWAYS


class MapDriver:
    """
    The passes over one map.

    Its methods are for the thread that runs the passes, but for those of the section "from
    any thread".

    Args:
        channels: the map, descriptor to channel; kept alive, like what is in it, only while it is
            driven.
        names: the globals of the facade's asyncore module.
    """

    def __init__(self, channels: dict[Any, Any], names: dict[str, Any]) -> None:
        #: Empty between two ``loop()`` calls.
        self.channels = channels
        #: The map's `id`.
        self.key = id(channels)
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
        # Whether an entry keeps its channel alive, which knows no weak references.
        self._is_holding = False
        # Channels to ask before the next wait: by events, and by `touch`.
        self._recent: dict[Any, int] = {}
        self._touched: dict[Any, float | None] = {}
        self._newcomers = Newcomers()
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
        # Of those that do not read by our recv(), what was left to read when it was last looked at.
        self._unread: dict[Any, int] = {}
        # Those of which poll mode said that they are gone, whatever they wait for.
        self._hung: set[Any] = set()
        self._urged: dict[Any, int] = {}
        self._penance = Deadlines()
        # Channels whose TLS, which is the program's own, wants the other direction than they do: what
        # they do and what it wants, by any thread; and what they themselves wait for, while the hub
        # waits for what TLS wants instead.
        self._tls_waits: dict[Any, tuple[int, int]] = {}
        self._exchanged: dict[Any, int] = {}
        # When the handshake of a channel must be done, or its last bytes be gone.
        self._deadlines = Deadlines()
        # Who was asked on the last pass, and the answers, reversed; None when what the hub knows may
        # not be what they said.
        self._asked: list[Any] = []
        self._answers: list[int] | None = None
        # Of them, those who had an event or reported something since.
        self._doubted: set[Any] = set()
        # Who had an event in the last batch, if nobody looked at them again.
        self._last_heard: list[Any] = []
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
        if self.depth and _get_ident() != self.thread:
            self._newcomers.announce(fd)
        else:
            self._newcomers.drop(fd)
            self._touched[fd] = None
        self.wake()

    def remove(self, fd: Any) -> None:
        """
        The channel under *fd* was taken out of the map; its descriptor is still open.
        """
        self._newcomers.drop(fd)
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
            entry.ref = _nobody
        for batch in self._batches:
            batch.add(fd)  # whoever is found in the map under this number, later on, is another
        if entry is not None:
            self.hub.forget(self._number(fd))
            self._buffered.pop(fd, None)
            self._closed.pop(fd, None)
            self._ends.pop(fd, None)
            self._unread.pop(fd, None)
            self._hung.discard(fd)
            self._urged.pop(fd, None)
            self._penance.drop(fd)
            self._deadlines.drop(fd)
        self._tls_waits.pop(fd, None)
        self._exchanged.pop(fd, None)

    def touch(self, fd: Any) -> None:
        """
        The answer of the predicates of the channel under *fd* may have changed.
        """
        if not (self._newcomers and self._newcomers.report(fd)):
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

    def rest(self, fd: Any) -> None:
        """
        Leave the channel under *fd* alone for a while: it cannot take what it is told of.
        """
        self._touched[fd] = _monotonic() + PENANCE

    def wait_for(self, fd: Any, doing: str, wants: str) -> None:
        """
        Let the channel under *fd* wait for what its TLS *wants* in order to go on with *doing*.

        Args:
            fd: its key in the map.
            doing: "read" or "write"; it is called again when *wants* comes.
            wants: the other one.
        """
        self._tls_waits[fd] = _DIRECTIONS[doing], _DIRECTIONS[wants]
        self.touch(fd)

    def _bear(self, fd: Any, told: dict[Any, int]) -> None:
        """
        Count what a channel is told again and again, and leave it alone for a while in the end.
        """
        count = told[fd] = told.get(fd, 0) + 1
        if count > PATIENCE:
            self.rest(fd)

    def _bear_end(self, fd: Any, channel: Any, before: int | None) -> None:
        """
        Likewise for a channel whose stream ends, and that reads past our `recv`; *before* its event
        it had been told of the end so often.
        """
        if self.channels.get(fd) is not channel or self._ends.get(fd) != before:
            return  # gone, or counted by `recv`
        if (before or 0) >= PATIENCE:
            left = max(0, unread(self._number(fd))) + pending_of(socket_of(channel))
            if left and left != self._unread.get(fd):  # it goes on with what came before the end
                self._unread[fd] = left
                self._ends[fd] = 0
                return
        self._bear(fd, self._ends)

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
            entry = self._entries[fd] = _Entry()
        elif entry.ref is not _nobody:  # replaced with no method called
            self._leave(fd)
        try:
            entry.ref = weakref.ref(channel)
        except TypeError:
            entry.ref = lambda: channel
            self._is_holding = True
        self._answers = None
        if fd in self._newcomers:
            entry.kind = STEADY  # for now: nobody asks it
            self._always.pop(fd, None)
        else:
            self._classify(fd, entry, channel)
        sock = socket_of(channel)
        if pending_of(sock):
            self._buffered[fd] = None
        if isinstance(sock, LayeredSocket):
            sock.belong_to(channel)
        leaves_at = own(channel, "_leaves_at")
        if leaves_at is not None:
            self._deadlines.set(fd, leaves_at)
        return entry

    def _classify(self, fd: Any, entry: _Entry, channel: Any) -> None:
        entry.kind = kind_of(channel)
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
        if LayeredSocket.are_used and isinstance(socket_of(channel), LayeredSocket):
            is_readable, is_writable = channel.socket.interest(is_readable, is_writable)
            if channel.socket.deadline is not None:
                self._deadlines.set(fd, channel.socket.deadline)
        if self.poll_mode:
            mask = _IDLE if is_readable else 0
            if is_writable and not channel.accepting:
                mask |= WRITE
        elif is_writable:
            mask = URGENT if channel.accepting else WRITE | URGENT
            if is_readable:
                mask |= READ | ENDED
        else:
            mask = _IDLE if is_readable else 0
        if self._tls_waits:
            mask = self._exchange(fd, mask)
        if fd in self._penance:
            mask &= ~(_IDLE | WRITE if fd in self._hung else _IDLE)
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

    def _exchange(self, fd: Any, mask: int) -> int:
        """
        Return what to wait for in place of *mask*, where TLS wants the other direction.
        """
        self._exchanged.pop(fd, None)
        waits = self._tls_waits.get(fd)
        if waits is None:
            return mask
        doing, wants = waits
        if not mask & doing:  # the channel does not want to go on
            self._tls_waits.pop(fd, None)
            return mask
        self._exchanged[fd] = mask
        return mask & ~(doing | ENDED) | wants

    def _change_back(self, ready: dict[Any, int]) -> None:
        """
        Let the event that TLS wanted be one for what it kept the channel from; once.
        """
        for fd, mask in list(self._exchanged.items()):
            bits = ready.get(fd, 0)
            doing, wants = self._tls_waits.get(fd, (0, 0))
            if bits & (wants | _GONE):
                ready[fd] = bits & (mask | _GONE) | doing
                self._tls_waits.pop(fd, None)
                self._exchanged.pop(fd, None)
                channel = self.channels.get(fd)
                if channel is not None:
                    self._want(fd, channel, mask & READ, mask & WRITE)

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
        before = self._answers
        asked = self._asked
        if not asked and before is not None:  # between two calls of loop() nobody is kept alive
            asked = self._asked = [entry.ref() for entry in self._always.values()]
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
        answers = [
            (
                (_BOTH if channel.writable() else READ)
                if channel.readable()
                else (WRITE if channel.writable() else 0)
            )
            for channel in current
        ]
        places: Any
        if self._answers is None:  # one of them changed the map, say
            places = range(len(fds))
        elif answers == before and not self._doubted:
            return  # by far the commonest
        else:
            self._answers = answers
            places = list(compress(range(len(fds)), map(ne, answers, before)))
            places += [fds.index(fd) for fd in self._doubted if fd in self._always]
        self._doubted.clear()
        for place in places:
            fd, channel, answer = fds[place], current[place], answers[place]
            if channels.get(fd) is channel:
                self._want(fd, channel, answer & READ, answer & WRITE)

    def _ask_each_of(self, fds: tuple[Any, ...]) -> None:
        channels = self.channels
        entries = self._entries
        asked = []
        answers = []
        for fd in fds:
            channel = channels.get(fd)
            if channel is None or fd in self._newcomers:
                continue
            entry = entries.get(fd)
            if entry is None or entry.ref() is not channel:
                self._adopt(fd, channel)
            answer = READ if channel.readable() else 0
            if channel.writable():
                answer |= WRITE
            self._want(fd, channel, answer & READ, answer & WRITE)
            asked.append(channel)
            answers.append(answer)
        self._asked = asked
        self._answers = answers
        self._doubted.clear()

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
            if entry is None or entry.ref() is not channel:
                self._touched[fd] = None
                continue
            sock = socket_of(channel)
            if type(sock) is not _socket:
                if bits & READ and pending_of(sock):
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
            self._classify(fd, entry, channel)
        if entry.kind or not ask_always:
            self._ask(fd, channel)
        else:
            self._doubted.add(fd)  # to listen changes what the same answers mean

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
            if entry is None or entry.ref() is not channel:
                entry = self._adopt(fd, channel)
            if fd not in self._newcomers:
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
        if last != known or channel is not self._entries[known].ref():
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
        self._asked = []
        self._without_reactor = -1
        entries = self._entries
        ranks = self._ranks
        masks = self.hub.masks
        snapshot = copy_of(self.channels)
        newcomers: Any = self._newcomers or ()
        rank = -1
        in_order = True
        for fd, channel in snapshot.items():
            entry = entries.get(fd)
            fresh = entry is None or entry.ref() is not channel
            if entry is None or fresh:
                entry = self._adopt(fd, channel)
                fresh = fd not in newcomers
            elif fd not in newcomers:
                try:
                    sock = channel.socket
                except Exception:  # noqa: BLE001 - what socket_of() does, for a call less
                    sock = None
                if (
                    entry.kind
                    and not classify
                    and masks.get(fd) == _IDLE
                    and type(sock) is _socket
                    and not sock._closed  # type: ignore[attr-defined] # see _ask_recent
                    and ranks[fd] > rank
                    and channel.readable()
                    and not channel.writable()
                ):
                    rank = ranks[fd]
                    continue
                if (entry.kind or classify) and entry.kind != kind_of(channel):
                    self._classify(fd, entry, channel)
                    fresh = True
                # Another file may be under the same number, too, by os.dup2().
                if classify or not is_open(channel, fd):
                    self.hub.verify(self._number(fd))
            if ranks[fd] <= rank:
                in_order = False
            rank = ranks[fd]
            if (ask_always or entry.kind or fresh) and fd not in newcomers:
                self._ask(fd, channel)
        if len(entries) != len(snapshot):
            for fd in [fd for fd in entries if fd not in snapshot]:
                self._drop(fd)
        if not in_order:
            self._reorder(snapshot)
        now = _monotonic()
        if classify:
            pause = max(CLASSIFY_SOONEST, (now - begin) * CLASSIFY_SHARE)
            self._next_classify = now + min(CLASSIFY_LATEST, pause)
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
        self.thread = _get_ident()  # a reactor may run in another one than it was attached in
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
        if self._newcomers:
            self._touched.update(dict.fromkeys(self._newcomers.take_due(now)))
        if now >= self._next_full:
            self._refresh_all()
            return True
        return self._refresh()

    def start(self, poll_mode: bool) -> None:
        """
        A ``loop()`` begins: the next pass is a full one, unless all is as the last one left it.

        Programs that call ``loop(count=1)`` in a circle would have nothing but full passes otherwise.
        """
        if poll_mode is not self.poll_mode or not self._is_unchanged():
            self._next_full = 0.0
        self._without_reactor = -1
        self.poll_mode = poll_mode

    def distrust(self) -> None:
        """
        Let the next pass be a full one: the last was left in the middle.
        """
        self._next_full = 0.0

    def _is_unchanged(self) -> bool:
        """
        Whether the map, which may be another one by now, has the channels of the entries.
        """
        entries = self._entries
        try:
            current = copy_of(self.channels)
        except Exception:  # noqa: BLE001 - no mapping: a full pass raises what has to be raised
            return False
        if list(current) != list(entries):
            return False
        if len(self._always) == len(entries):
            return True  # each pass looks at them
        return all(map(is_, current.values(), [entry.ref() for entry in entries.values()]))

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
            sock = socket_of(channel)
            has_layer = isinstance(sock, LayeredSocket)
            if until == (sock.deadline if has_layer else own(channel, "_leaves_at")):
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
            if self._newcomers or self._newcomers.has_news:
                until = min(until, self._newcomers.next)
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
            if self._newcomers:
                self._touched.update(dict.fromkeys(self._newcomers.take_due(now)))
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
            # By another thread, just now.
            if self._touched or self._gone or self._newcomers.has_news or not self.channels:
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
                changed.update(fd for fd in ready if fd in entries and entries[fd].ref is _nobody)
            try:
                order = sorted(ready, key=ranks.__getitem__)
            except KeyError:  # nobody's
                for fd in tuple(ready):
                    if fd not in ranks:
                        del ready[fd]
                        self.hub.quiet(self._number(fd))
                order = sorted(ready, key=lambda fd: ranks.get(fd, 0))
            if self._exchanged:
                self._change_back(ready)
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
                    wants = tls_wants(channel)
                    if wants is None:
                        channel.handle_error()
                    elif wants != "read" and channels.get(fd) is channel:
                        self.wait_for(fd, "read", wants)
        except BaseException:
            recent.update(dict.fromkeys(order, READ))
            raise
        if self._urged:
            for fd in order:
                self._urged.pop(fd, None)
        self._last_heard = order
        # In a loop of its own: after a system call each instruction costs a multiple.
        entries = self._entries
        for fd in order:
            entry = entries.get(fd)
            if entry is None:
                continue
            channel = entry.ref()
            if channel is None:
                continue
            try:
                sock = channel.socket
            except Exception:  # noqa: BLE001 - what socket_of() does, for a call less
                sock = None
            if entry.kind:
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
            elif type(sock) is _socket and not sock._closed:  # type: ignore[attr-defined] # as there
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
                    told = self._ends.get(fd)
                    call(channel)
                    if fds is reads and ready[fd] & _LAST:
                        self._bear_end(fd, channel, told)
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
                told = self._ends.get(fd)
                readwrite(channel, bits & ~ENDED)
                if bits & READ:
                    self._urged.pop(fd, None)
                if bits & (_GONE | URGENT) and channels.get(fd) is channel:
                    if bits & _GONE:
                        self._hung.add(fd)
                    self._bear(fd, self._ends if bits & _GONE else self._urged)
                elif bits & ENDED:
                    self._bear_end(fd, channel, told)

    # -- the end

    @property
    def is_holding(self) -> bool:
        """
        Whether it keeps alive a channel, or a key of the map.
        """
        return self._is_holding or bool(self._keys)

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
        self._recent.update(dict.fromkeys(self._last_heard, READ))
        self._last_heard = []
        self._last_channel = None
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
