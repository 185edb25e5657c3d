"""
What the system offers to wait for many descriptors, in the shape and units of `select.epoll`.

No state of ours beyond what an emulation needs, no Twisted, no channels: those are the hub's.
"""

from __future__ import annotations

import errno
import os
import select
from typing import Any, Protocol

from txasynchat.delivery import unread
from txasynchat.hub.descriptors import Owned

__all__ = [
    "ENDED", "ERROR", "HANGUP", "INVALID", "ONCE", "READ", "URGENT", "WRITE", "Events",
    "KqueuePoller", "PollPoller", "Poller", "SelectPoller", "knows_once", "new_poller",
]  # fmt: skip

# The same values in poll(2), on every system that has it, and in epoll.
READ = 0x001
URGENT = 0x002
WRITE = 0x004
ERROR = 0x008
HANGUP = 0x010
INVALID = 0x020

#: Wanted and reported with READ: the peer has sent its last; earlier data may still be unread.
ENDED = 0x2000

#: Report a lasting condition once, until the registration is renewed; for pollers that `knows_once`.
ONCE = 0x80000000

Events = list[tuple[int, int]]

_select: Any = select  # for names that it has on the BSDs and macOS only

# Of poll(2)'s flags, ENDED exists on Linux only.
_POLL_KNOWS = READ | URGENT | WRITE | getattr(select, "POLLRDHUP", 0)


class Poller(Protocol):
    """
    What a hub needs from the system: `select.epoll`'s own methods, in its units.

    `poll` takes seconds (negative: for ever, because PyPy's epoll takes no `None`) and the largest
    number of events.
    """

    def register(self, fd: int, events: int, /) -> None: ...  # noqa: D102 - see the class
    def modify(self, fd: int, events: int, /) -> None: ...  # noqa: D102 - see the class
    def unregister(self, fd: int, /) -> None: ...  # noqa: D102 - see the class
    def poll(self, timeout: float, maxevents: int, /) -> Events: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102 - see the class


class _Emulated:
    """
    The bookkeeping of a poller in `select.epoll`'s shape, and epoll's errors; closing does nothing.
    """

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        if fd in self._masks:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.fstat(fd)  # poll(2) and select(2) accept closed descriptors; epoll says EBADF at once
        self._change(fd, 0, events)
        self._masks[fd] = events

    def modify(self, fd: int, events: int) -> None:
        old = self._mask_of(fd)
        os.fstat(fd)
        self._change(fd, old, events)
        self._masks[fd] = events

    def unregister(self, fd: int) -> None:
        old = self._mask_of(fd)
        del self._masks[fd]
        self._change(fd, old, None)

    def close(self) -> None: ...  # there is no descriptor to close

    def _mask_of(self, fd: int) -> int:
        try:
            return self._masks[fd]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None

    def _change(self, fd: int, old: int, new: int | None) -> None:
        pass  # to be passed on to the system; *new* is None when nothing is watched any more


class PollPoller(_Emulated):
    """poll(2). It has no descriptor of its own, so it does not nest."""

    def __init__(self) -> None:
        super().__init__()
        self._poll = select.poll()

    def _change(self, fd: int, old: int, new: int | None) -> None:  # noqa: ARG002 - kqueue's
        if new is None:
            self._poll.unregister(fd)
        else:
            self._poll.register(fd, new & _POLL_KNOWS)

    def poll(self, timeout: float, maxevents: int) -> Events:  # noqa: D102 - see Poller
        milliseconds = None if timeout < 0 else int(timeout * 1000 + 0.999)
        return self._poll.poll(milliseconds)[:maxevents]


class SelectPoller(_Emulated):
    """
    select(2), for where there is nothing better: 1,024 descriptors.

    That is so in programs that remove the others from the `select` module, as eventlet does. They put
    a function of their own in the place of `select.select`, so it is looked up on each call.

    Its `poll` raises ValueError if a descriptor is above 1,023.
    """

    def poll(self, timeout: float, maxevents: int) -> Events:  # noqa: D102 - see Poller
        masks = self._masks
        reads, writes, urgent = (
            [fd for fd in masks if masks[fd] & bit] for bit in (READ, WRITE, URGENT)
        )
        try:
            ready = select.select(reads, writes, urgent, None if timeout < 0 else timeout)
        except OSError:
            closed = [fd for fd in masks if not _is_open(fd)]
            if not closed:
                raise
            return [(fd, INVALID) for fd in closed]
        events: dict[int, int] = {}
        for fds, bit in zip(ready, (READ, WRITE, URGENT), strict=True):
            for fd in fds:
                events[fd] = events.get(fd, 0) | bit
        for fd in ready[0]:
            if masks[fd] & ENDED and unread(fd) == 0:
                events[fd] |= ENDED
        return list(events.items())[:maxevents]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class KqueuePoller(_Emulated):
    """
    kqueue(2).

    It has one filter for each direction and reports them one by one; `poll` joins them. Urgent data
    is not reported, because no filter for it exists on all systems.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kqueue: Any = _select.kqueue()
        self._own = Owned(self._kqueue.fileno())

    def fileno(self) -> int:  # noqa: D102 - as an epoll's
        return int(self._kqueue.fileno())

    def register(self, fd: int, events: int) -> None:  # noqa: D102 - see _Emulated
        self._own.check()  # a fork, or the program, may have closed it
        super().register(fd, events)

    def _change(self, fd: int, old: int, new: int | None) -> None:
        s = _select
        new = new or 0
        for bit, kind in ((READ, s.KQ_FILTER_READ), (WRITE, s.KQ_FILTER_WRITE)):
            if (old ^ new) & bit:
                action = s.KQ_EV_ADD if new & bit else s.KQ_EV_DELETE
                self._kqueue.control([s.kevent(fd, kind, action)], 0)

    def poll(self, timeout: float, maxevents: int) -> Events:  # noqa: D102 - see Poller
        s = _select
        ready: dict[int, int] = {}
        for event in self._kqueue.control(None, maxevents, None if timeout < 0 else timeout):
            bits = READ if event.filter == s.KQ_FILTER_READ else WRITE
            if event.flags & s.KQ_EV_EOF:
                bits |= HANGUP if event.filter == s.KQ_FILTER_WRITE else ENDED
            ready[event.ident] = ready.get(event.ident, 0) | bits
        return list(ready.items())

    def close(self) -> None:  # noqa: D102 - see _Emulated
        self._kqueue.close()


def knows_once(poller: Poller) -> bool:
    """
    Return whether *poller* accepts `ONCE`: epoll does, even if `select` has no such name any more.
    """
    return not isinstance(poller, _Emulated)


def new_poller() -> Poller:
    """Make the best poller that there is: epoll, kqueue, poll, select."""
    if hasattr(select, "epoll"):
        return select.epoll()
    if hasattr(select, "kqueue"):
        return KqueuePoller()
    return PollPoller() if hasattr(select, "poll") else SelectPoller()
