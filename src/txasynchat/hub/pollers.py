"""
What the system offers to wait for many descriptors, in one shape: `select.epoll`'s.

No state of ours beyond what an emulation needs, no Twisted, no channels: `hub` keeps the books.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from typing import Any, Protocol

from txasynchat.hub.descriptors import Owned

__all__ = [
    "ENDED",
    "ERROR",
    "HANGUP",
    "INVALID",
    "ONCE",
    "READ",
    "URGENT",
    "WRITE",
    "Events",
    "KqueuePoller",
    "PollPoller",
    "Poller",
    "SelectPoller",
    "knows_once",
    "new_poller",
    "unread",
]

# The figures are poll(2)'s on every system that has it, and epoll's.
READ = 0x001
URGENT = 0x002
WRITE = 0x004
ERROR = 0x008
HANGUP = 0x010
INVALID = 0x020

#: Wanted and reported with READ: the peer has sent its last; what came before may not be read yet.
ENDED = 0x2000

#: Report what stays true once, until the registration is renewed; for pollers that `knows_once`.
ONCE = 0x80000000

Events = list[tuple[int, int]]

_INT = struct.Struct("i")

# ENDED is Linux's alone there.
_POLL_KNOWS = READ | URGENT | WRITE | getattr(select, "POLLRDHUP", 0)


class Poller(Protocol):
    """
    What a hub needs from the system: `select.epoll`'s own methods, in its units.

    `poll` takes seconds (a negative number: for ever; PyPy's epoll takes no `None`) and the
    largest number of events.
    """

    def register(self, fd: int, events: int, /) -> None: ...  # noqa: D102 - see the class
    def modify(self, fd: int, events: int, /) -> None: ...  # noqa: D102 - see the class
    def unregister(self, fd: int, /) -> None: ...  # noqa: D102 - see the class
    def poll(self, timeout: float, maxevents: int, /) -> Events: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102 - see the class


class PollPoller:
    """
    poll(2) in `select.epoll`'s clothes: no descriptor of its own, so it does not nest.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._known: set[int] = set()

    def register(self, fd: int, events: int) -> None:
        """
        Begin to watch *fd*; `FileExistsError` when it is watched already, as in epoll.
        """
        if fd in self._known:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.fstat(fd)  # poll(2) takes closed descriptors; epoll says EBADF at once
        self._poll.register(fd, events & _POLL_KNOWS)
        self._known.add(fd)

    def modify(self, fd: int, events: int) -> None:
        """
        Change what is watched; `FileNotFoundError` when nothing is.
        """
        if fd not in self._known:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.fstat(fd)
        self._poll.modify(fd, events & _POLL_KNOWS)

    def unregister(self, fd: int) -> None:
        """
        Stop watching; `FileNotFoundError` when nothing was watched.
        """
        if fd not in self._known:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._known.discard(fd)
        self._poll.unregister(fd)

    def poll(self, timeout: float, maxevents: int) -> Events:
        """
        Wait up to *timeout* seconds; for ever if that is negative.
        """
        milliseconds = None if timeout < 0 else int(timeout * 1000 + 0.999)
        return self._poll.poll(milliseconds)[:maxevents]

    def close(self) -> None:
        """
        Nothing to give back.
        """


class SelectPoller:
    """
    select(2) in `select.epoll`'s clothes, for where there is nothing better: 1,024 descriptors.

    That is so in programs that take the others out of the `select` module, as eventlet does. It is
    looked up on each call, because they put a function of their own in its place.
    """

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        """
        Begin to watch *fd*; `FileExistsError` when it is watched already, as in epoll.
        """
        if fd in self._masks:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.fstat(fd)
        self._masks[fd] = events

    def modify(self, fd: int, events: int) -> None:
        """
        Change what is watched; `FileNotFoundError` when nothing is.
        """
        if fd not in self._masks:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.fstat(fd)
        self._masks[fd] = events

    def unregister(self, fd: int) -> None:
        """
        Stop watching; `FileNotFoundError` when nothing was watched.
        """
        if self._masks.pop(fd, None) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def poll(self, timeout: float, maxevents: int) -> Events:
        """
        Wait up to *timeout* seconds; for ever if that is negative.

        Raises:
            ValueError: a descriptor is above 1,023.
        """
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

    def close(self) -> None:
        """
        Nothing to give back.
        """


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class KqueuePoller:
    """
    kqueue(2) in `select.epoll`'s clothes.

    kqueue has one filter for each direction and reports them one by one; `poll` joins them.
    Urgent data has no filter that all systems share and is not reported.
    """

    def __init__(self) -> None:
        # The module has these names on the BSDs and macOS only, so they are looked up late.
        self._select: Any = select
        self._kqueue: Any = self._select.kqueue()
        self._own = Owned(self._kqueue.fileno())
        self._masks: dict[int, int] = {}

    def fileno(self) -> int:
        """
        Returns:
            the descriptor of the queue, readable while an event waits.
        """
        number: int = self._kqueue.fileno()
        return number

    def register(self, fd: int, events: int) -> None:
        """
        Begin to watch *fd*.
        """
        if not self._own.is_ours():  # a fork, or the program, closed it
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if fd in self._masks:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._masks[fd] = 0
        try:
            self.modify(fd, events)
        except OSError:
            del self._masks[fd]
            raise

    def modify(self, fd: int, events: int) -> None:
        """
        Change what is watched, one filter at a time.
        """
        if fd not in self._masks:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        old = self._masks[fd]
        s = self._select
        for bit, kind in ((READ, s.KQ_FILTER_READ), (WRITE, s.KQ_FILTER_WRITE)):
            if events & bit and not old & bit:
                self._kqueue.control([s.kevent(fd, kind, s.KQ_EV_ADD)], 0)
            elif old & bit and not events & bit:
                self._kqueue.control([s.kevent(fd, kind, s.KQ_EV_DELETE)], 0)
        self._masks[fd] = events

    def unregister(self, fd: int) -> None:
        """
        Stop watching; a filter that went with its descriptor is no error here.
        """
        try:
            self.modify(fd, 0)
        finally:
            self._masks.pop(fd, None)

    def poll(self, timeout: float, maxevents: int) -> Events:
        """
        Wait up to *timeout* seconds; for ever if that is negative.
        """
        s = self._select
        ready: dict[int, int] = {}
        for event in self._kqueue.control(None, maxevents, None if timeout < 0 else timeout):
            bits = READ if event.filter == s.KQ_FILTER_READ else WRITE
            if event.flags & s.KQ_EV_EOF:
                bits |= HANGUP if event.filter == s.KQ_FILTER_WRITE else ENDED
            ready[event.ident] = ready.get(event.ident, 0) | bits
        return list(ready.items())

    def close(self) -> None:
        """
        Give the queue's descriptor back.
        """
        self._kqueue.close()


def unread(fd: int) -> int:
    """
    Returns:
        how many bytes wait in the system to be read from *fd*; -1 where it does not say, as of a
        listener.
    """
    answer = bytearray(_INT.size)
    try:
        from fcntl import ioctl  # noqa: PLC0415 - not on every system, and rarely needed
        from termios import FIONREAD  # noqa: PLC0415 - as above

        ioctl(fd, FIONREAD, answer)
    except (ImportError, OSError):
        return -1
    count: int = _INT.unpack(answer)[0]
    return count


def knows_once(poller: Poller) -> bool:
    """
    Whether *poller* can be told to report something `ONCE`: epoll, also where a program took that out
    of the `select` module since.
    """
    return not isinstance(poller, (KqueuePoller, PollPoller, SelectPoller))


def new_poller() -> Poller:
    """
    Returns:
        the best poller that there is: epoll, kqueue, poll, select.
    """
    if hasattr(select, "epoll"):
        return select.epoll()
    if hasattr(select, "kqueue"):
        return KqueuePoller()
    return PollPoller() if hasattr(select, "poll") else SelectPoller()
