"""
One descriptor in the reactor for many channels.

An epoll or kqueue descriptor can itself be polled.  A `Hub` keeps the descriptors of many
channels in such a nested poller and shows the reactor a single reader, so that a ready
channel costs a place in a batch instead of a round through the reactor's own machinery, and
any reactor will do, also one built on select(2) with its 1,024 descriptors.

This module knows descriptors and events.  It does not know what a channel is, nor who
dispatches: `Hub.wait` hands out what is ready, and an owner (the facade's loop; transports of
our own) acts on it.

Three rules that shape the code:

- A descriptor may be closed, and its number used again, behind our back.  So nothing that
  the kernel answers to a registration (EEXIST, ENOENT, EBADF, EPERM) is a surprise.
- An epoll object is shared across fork(2): a child that unregisters a descriptor would take
  it from its parent.  So in a child every hub starts again with a poller of its own.
- Any thread may call `wake`, `watch` and `forget`; only the owner's thread waits.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from txasynchat.pollers import (
    ERROR,
    HANGUP,
    INVALID,
    ONCE,
    READ,
    URGENT,
    WRITE,
    Events,
    Poller,
    new_poller,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.seats import Seat

__all__ = ["ERROR", "HANGUP", "INVALID", "READ", "URGENT", "WRITE", "Events", "Hub"]

#: The most events that one `Hub.wait` returns: the system wants room for all of them each time.
LARGEST_BATCH = 2048

_WANTED = READ | URGENT | WRITE


class Hub:
    """
    Descriptors, what is wanted from each, and a way to wait for them all.

    Args:
        make_poller: builds the nested poller; called again in the child of a fork.
    """

    __slots__ = (
        "__weakref__",
        "_always",
        "_fileno",
        "_lock",
        "_make_poller",
        "_once",
        "_poller",
        "_seat",
        "_stale",
        "_wake_read",
        "_wake_write",
        "_woken",
        "masks",
    )

    def __init__(self, make_poller: Callable[[], Poller] = new_poller) -> None:
        self._make_poller = make_poller
        #: Descriptor to what is wanted of it.  For the owner to read; `watch` changes it.
        self.masks: dict[int, int] = {}
        # Descriptors that the poller refuses because they never block, such as regular files.
        self._always: set[int] = set()
        # Descriptors that `quiet` silenced.
        self._once: set[int] = set()
        self._lock = threading.Lock()  # between `wake` and `close`: closed numbers are re-used
        self._seat: Seat | None = None
        self._open()
        _hubs.add(self)

    def _open(self) -> None:
        self._stale = self._woken = False
        self._poller = self._make_poller()
        fileno: Callable[[], int] | None = getattr(self._poller, "fileno", None)
        self._fileno = -1 if fileno is None else fileno()
        self._wake_read, self._wake_write = _new_waker()
        self._poller.register(self._wake_read, READ)

    # -- registration

    def watch(self, fd: int, mask: int) -> None:
        """
        Want *mask* of *fd* from now on.  May be called while another thread waits.

        Args:
            fd: an open descriptor.
            mask: any of READ, WRITE, URGENT; with one of them ERROR and HANGUP come too.  0
                means nothing at all.

        Raises:
            OSError: EBADF, the descriptor is not open; nothing is watched then.
            ValueError: *fd* is negative.
        """
        old = self.masks.get(fd, 0)
        if mask == old:
            return
        if not mask:
            self.forget(fd)
            return
        if not self._stale:  # otherwise `wait` is going to register them all
            self._register(fd, mask, known=old != 0)
        self.masks[fd] = mask

    def _register(self, fd: int, mask: int, *, known: bool) -> None:
        if fd in (self._wake_read, self._wake_write, self._fileno) and fd >= 0:
            # A channel's number, closed behind its back, that the hub itself was given since.
            self.masks.pop(fd, None)
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._once:
            self._once.discard(fd)
        if fd in self._always:
            self._always.discard(fd)
            known = False
        seat = self._seat
        if seat is not None and seat.owns_channels:
            seat.watch(fd, mask)
        try:
            if known:
                try:
                    self._poller.modify(fd, mask)
                except FileNotFoundError:  # closed behind our back, and the number re-used
                    self._poller.register(fd, mask)
            else:
                try:
                    self._poller.register(fd, mask)
                except FileExistsError:
                    self._poller.modify(fd, mask)
        except PermissionError:  # EPERM: a regular file or a directory, which never blocks
            self._always.add(fd)
        except OSError:
            self.masks.pop(fd, None)
            with suppress(OSError):
                self._poller.unregister(fd)
            raise

    def forget(self, fd: int) -> None:
        """
        Stop watching *fd*; harmless when it is not watched or is closed already.

        Call it before the descriptor is closed: a copy of it in another process would keep
        the registration alive with nobody left to end it.
        """
        if self.masks.pop(fd, None) is None or self._stale:
            return
        self._once.discard(fd)
        if fd in self._always:
            self._always.discard(fd)
            return
        seat = self._seat
        if seat is not None and seat.owns_channels:
            seat.watch(fd, 0)
        with suppress(OSError, ValueError):  # it was closed first, or the hub was
            self._poller.unregister(fd)

    def quiet(self, fd: int) -> None:
        """
        Silence what comes from *fd* unasked and does not go away: HANGUP, ERROR, or anything
        at all when it is not watched.

        It is reported again when something that is wanted happens, or after `watch`.
        """
        mask = self.masks.get(fd)
        if mask is None:
            # Closed here but open in another process, which keeps it in our epoll.  Such a
            # registration can not be named any more, so the poller has to be built anew.
            try:
                self._poller.unregister(fd)
            except OSError:
                self._stale = True
        elif fd not in self._once and not self._stale:
            if ONCE:
                self._register(fd, mask | ONCE, known=True)
            else:
                with suppress(OSError):
                    self._poller.unregister(fd)
            self._once.add(fd)

    def verify(self, fd: int) -> bool:
        """
        Look whether *fd* is still open; registers it again when its number was re-used.

        Returns:
            False when it is closed; it is forgotten then.
        """
        mask = self.masks.get(fd)
        if mask is None or self._stale or (ONCE and fd in self._once):
            return True
        try:
            if fd in self._always:
                os.fstat(fd)
            else:
                self._register(fd, mask, known=True)
        except OSError:
            self.forget(fd)
            return False
        return True

    def _renew(self) -> None:
        """
        Start again with a new poller: in the child of a fork, or because `quiet` had to.
        """
        seat = self._seat
        if seat is not None:
            seat.leave()
        # Closing a child's copy of an epoll descriptor leaves the parent's registrations be.
        self._close_descriptors()
        self._open()
        if seat is not None:
            seat.sit()
        self._always.clear()
        self._once.clear()
        for fd, mask in list(self.masks.items()):
            with suppress(OSError, ValueError):  # the owner finds out by `verify`
                self._register(fd, mask, known=False)

    # -- waiting

    def wait(self, timeout: float | None, limit: int = -1) -> Events:
        """
        Wait for events, at most *timeout* seconds.

        Python's signal handlers run meanwhile; what they raise comes out of here.

        Args:
            timeout: seconds; 0 only looks; `None` waits for ever.
            limit: the largest number of events; -1 means all that are ready, up to
                `LARGEST_BATCH`.  The rest comes first the next time.

        Returns:
            pairs of a descriptor and what happened to it, in the system's order.  Empty when
            the time is over or another thread called `wake`.
        """
        if self._stale:
            self._renew()
        if limit < 0:
            limit = min(len(self.masks) + 1, LARGEST_BATCH)
        if self._always:
            events = self._poller.poll(0, limit)
            events += [(fd, self.masks[fd] & (READ | WRITE)) for fd in self._always]
        else:
            events = self._poller.poll(-1 if timeout is None else timeout, limit)
        if self._woken:
            with self._lock:  # or the flag would go before its byte has come
                self._woken = False
                _drain(self._wake_read)
            events = [event for event in events if event[0] != self._wake_read]
        if self._once:
            for fd, bits in events:
                if fd in self._once and bits & _WANTED:
                    self._register(fd, self.masks[fd], known=True)
        return events

    def wake(self) -> None:
        """
        End a `wait` that sits in another thread, or the next one; from any thread.
        """
        with self._lock:
            if self._wake_write >= 0:
                self._woken = True  # before the descriptor is ready, or `wait` misses it
                _write_waker(self._wake_write)

    # -- in a reactor or event loop

    @property
    def busy(self) -> bool:
        """
        Whether `wait` returns at once because of descriptors that never block (regular files);
        no host is told of those.
        """
        return bool(self._always)

    @property
    def attached(self) -> bool:
        """
        Whether a reactor or event loop polls this hub.
        """
        return self._seat is not None

    def attach(self, host: Any, on_ready: Callable[[], None]) -> None:
        """
        Let *host* poll this hub, beside whatever else it serves.

        Args:
            host: an `IReactorFDSet` provider, or an asyncio event loop.
            on_ready: called in the host's thread when ``wait(0)`` would return something,
                again and again while that is so.  What it raises is the host's to log.

        Raises:
            RuntimeError: it is attached already.
            TypeError: *host* is something else.
        """
        from txasynchat.seats import take_seat  # noqa: PLC0415 - a loop of its own needs no Twisted

        if self._seat is not None:
            raise RuntimeError(f"attached to {self._seat.host!r} already")
        self._seat = take_seat(host, self, on_ready)

    def detach(self) -> None:
        """
        Leave the host; harmless when not attached.
        """
        seat = self._seat
        if seat is not None:
            seat.leave()
            self._seat = None

    def abandon(self) -> None:
        """
        Leave a host that is shared with another process, without touching what is shared.

        For the child of a fork: an epoll reactor that it inherited is still its parent's.
        """
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.abandon()

    def fileno(self) -> int:
        """
        Returns:
            the nested poller's descriptor, readable while something is ready; -1 where pollers
            do not nest.
        """
        if self._stale:
            self._renew()
        return self._fileno

    @property
    def waker(self) -> int:
        """
        The descriptor that `wake` makes readable, for a host that polls each one itself.
        """
        return self._wake_read

    # -- the end

    def close(self) -> None:
        """
        Give all descriptors back; the channels' own stay open.  May be called twice.
        """
        self.detach()
        with self._lock:
            self._close_descriptors()
        self.masks.clear()
        self._always.clear()
        self._once.clear()

    def _close_descriptors(self) -> None:
        self._poller.close()
        descriptors = {self._wake_read, self._wake_write} - {-1}
        self._wake_read = self._wake_write = -1
        for fd in descriptors:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_wake_read", -1) >= 0:
            self._close_descriptors()


def _new_waker() -> tuple[int, int]:
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return fd, fd
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write


def _write_waker(fd: int) -> None:
    with suppress(BlockingIOError):  # full: a wake-up waits there already
        os.write(fd, b"\1\0\0\0\0\0\0\0")  # for an eventfd these eight bytes are one count


def _drain(fd: int) -> None:
    with suppress(BlockingIOError):
        os.read(fd, 4096)


_hubs: weakref.WeakSet[Hub] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for hub in list(_hubs):
        hub._lock = threading.Lock()  # whoever held it does not exist here
        hub._stale = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
