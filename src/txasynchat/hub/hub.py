"""
One descriptor in the reactor for many channels.

An epoll or kqueue descriptor can itself be polled. A `Hub` keeps the descriptors of many channels in
such a nested poller and shows the reactor a single reader. So a ready channel costs a place in a batch
instead of a pass through the reactor's own machinery. Any reactor will do, even one built on select(2)
with its 1,024 descriptors.

This module knows descriptors and events. It does not know what a channel is, nor who dispatches:
`Hub.wait` returns what is ready, and its owner (the facade's loop) acts on it.

Four rules shape the code:

- A descriptor may be closed, and its number reused, behind our back. So no answer of the kernel to a
  registration (EEXIST, ENOENT, EBADF, EPERM) is a surprise.
- That holds for the hub's own descriptors too: daemons close all descriptors that they do not know. The
  hub notices (`check`, or an error), starts again with new ones, and closes no number that is somebody
  else's by then.
- An epoll object is shared across fork(2): a child that unregisters a descriptor would take it from its
  parent. So in a child every hub starts again with its own poller.
- Any thread may call `wake` and `forget`; only the owner's thread watches and waits. The locks are
  reentrant, because a signal handler may close a channel.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from txasynchat.hub.descriptors import pollers
from txasynchat.hub.pollers import ONCE, READ, URGENT, WRITE, Events, knows_once, new_poller
from txasynchat.hub.wakers import new_waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.hub.hosts import Host
    from txasynchat.hub.pollers import Poller
    from txasynchat.hub.wakers import PipeWaker, Waker

__all__ = ["Hub"]

#: The most events that one `Hub.wait` returns, because each call allocates room for all of them.
LARGEST_BATCH = 2048

_WANTED = READ | URGENT | WRITE


class Hub:
    """
    Descriptors, what is wanted from each, and a way to wait for them all.

    Args:
        make_poller: builds the nested poller; called again in the child of a fork, and when the
            program closed the poller's descriptor.

    Attributes:
        masks: what is wanted of each descriptor. For the owner to read; `watch` changes it.
        stale: True if there is a reason to `renew`.
        waker: the descriptor that `wake` makes readable, for a host that polls each one itself.
    """

    def __init__(self, make_poller: Callable[[], Poller] = new_poller) -> None:
        self._make_poller = make_poller
        self.masks: dict[int, int] = {}
        # Descriptors that never block, such as regular files: the poller refuses them.
        self._always: set[int] = set()
        # Descriptors that `quiet` silenced.
        self._once: set[int] = set()
        # Held by whoever passes the poller's number to the system, except to wait, because that number
        # may be another's once it is closed. Waking has its own lock: a thread that was woken goes on
        # to register, and must not wait for the thread that woke it.
        self._lock = threading.RLock()
        self._wake_lock = threading.RLock()
        self._host: Host | None = None
        self._waker: Waker | PipeWaker | None = None
        self.stale = self._woken = False
        self._open()
        _hubs.add(self)

    def _open(self) -> None:
        poller = self._make_poller()
        fileno: Callable[[], int] | None = getattr(poller, "fileno", None)
        try:
            waker = new_waker(nests=fileno is not None)
        except OSError:  # no descriptor left for it
            poller.close()
            raise
        self._poller = poller
        self._knows_once = knows_once(poller)
        self._fileno = -1
        if fileno is not None:
            self._fileno = fileno()
            pollers.hold(poller, self._lose)
        self._waker = waker
        self.waker = waker.number
        poller.register(self.waker, READ)
        self.stale = False
        if self._woken:
            waker.ring(poller)

    # -- descriptors of its own

    def check(self) -> bool:
        """
        Return whether the hub's own descriptors are still open and its own.

        False when the program closed one: `wait` then starts again with new ones.
        """
        with self._lock:
            if not self.stale and not self._is_intact():
                self.stale = True
            return not self.stale

    def _lose(self) -> None:
        self.stale = True

    def _is_intact(self) -> bool:
        if self._waker is None or (self._fileno >= 0 and not pollers.holds(self._poller)):
            return False
        return self._waker.is_in(self._poller)

    def renew(self) -> None:
        """
        Start again with a new poller if there is a reason: in the child of a fork, where the program
        closed ours, or because `quiet` needs it. `wait` does so by itself.
        """
        if not self.stale:
            return
        with self._lock, self._wake_lock:
            host = self._host
            if host is not None:
                host.detach()
            # Closing a child's copy of an epoll descriptor leaves the parent's registrations alone.
            self._close_descriptors()
            self._open()
            if host is not None:
                host.attach(self._shown)
            self._always.clear()
            self._once.clear()
            for fd, mask in list(self.masks.items()):
                with suppress(OSError):  # the owner learns of it by `verify`
                    if fd >= 0:
                        self._register(fd, mask, known=False)

    # -- registration

    def watch(self, fd: int, mask: int) -> None:
        """
        Want *mask* of *fd* from now on.

        If another thread may close *fd* meanwhile, check for that afterwards, and `forget` it then.

        Args:
            fd: an open descriptor; or a number below -1, which stands for something that the owner
                polls: it is noted in `masks`, and no more.
            mask: any of READ, WRITE, URGENT, and ENDED beside READ; with one of them ERROR and HANGUP
                come too. 0 means nothing at all.

        Raises:
            OSError: EBADF, the descriptor is not open; nothing is watched then.
            ValueError: *fd* is -1.
        """
        old = self.masks.get(fd, 0)
        if mask == old:
            return
        if not mask:
            self.forget(fd)
            return
        with self._lock:
            if not (self.stale or fd < -1):  # otherwise `wait` will register them all
                self._register(fd, mask, known=old != 0)
            self.masks[fd] = mask

    def _register(self, fd: int, mask: int, *, known: bool) -> None:
        if fd in (self._fileno, self.waker):
            # The hub's or the channel's descriptor was closed behind its owner's back.
            if not self._is_intact():
                self.stale = True
                return
            self.masks.pop(fd, None)
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._once:
            self._once.discard(fd)
        if fd in self._always:
            self._always.discard(fd)
            known = False
        host = self._host
        if host is not None and host.owns_channels:
            host.watch(fd, mask)
        poller = self._poller
        ways = (poller.modify, poller.register) if known else (poller.register, poller.modify)
        try:
            try:
                ways[0](fd, mask)
            except (
                FileNotFoundError,
                FileExistsError,
            ):  # closed behind our back, the number reused
                ways[1](fd, mask)
        except PermissionError:  # EPERM: a regular file or a directory, which never blocks
            self._always.add(fd)
        except OSError:
            if not self._is_intact():
                self.stale = True
                return
            self.masks.pop(fd, None)
            with suppress(OSError):
                self._poller.unregister(fd)
            raise

    def forget(self, fd: int) -> None:
        """
        Stop watching *fd*; harmless when it is not watched or is closed. From any thread.

        Call it before the descriptor is closed: a copy of it in another process would keep the
        registration alive, and nobody could end it.
        """
        if fd not in self.masks:
            return
        with self._lock:
            if self.masks.pop(fd, None) is None or self.stale or fd < -1:
                return
            self._once.discard(fd)
            if fd in self._always:
                self._always.discard(fd)
                return
            host = self._host
            if host is not None and host.owns_channels:
                host.watch(fd, 0)
            try:  # `suppress` takes 0.6 us, for each connection
                self._poller.unregister(fd)
            except (OSError, ValueError):  # it was closed first, or the hub was
                return

    def quiet(self, fd: int) -> None:
        """
        Silence what *fd* reports unasked and lastingly: HANGUP, ERROR; anything if it is not watched.

        It is reported again when something that is wanted happens, or after `watch`.
        """
        with self._lock:
            if self.stale:
                return
            if fd == self.waker:  # not by `wake`: the number is another's, or was
                if self.check() and self._waker is not None:
                    self._waker.hush(self._poller)
                return
            mask = self.masks.get(fd)
            if mask is None:
                # Closed here but open in another process, which keeps it in our epoll. Such a
                # registration cannot be named any more, so a new poller is needed.
                try:
                    self._poller.unregister(fd)
                except OSError:
                    self.stale = True
            elif fd not in self._once:
                with suppress(OSError):  # closed by another thread, which will report it
                    if self._knows_once:
                        self._register(fd, mask | ONCE, known=True)
                    else:
                        self._poller.unregister(fd)
                    self._once.add(fd)

    def verify(self, fd: int) -> bool:
        """
        Return whether *fd* is open. If its number was reused, register it again; if closed, forget it.
        """
        with self._lock:
            mask = self.masks.get(fd)
            if mask is None or self.stale or fd < 0 or (self._knows_once and fd in self._once):
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

    # -- waiting

    def wait(self, timeout: float | None, limit: int = -1) -> Events:
        """
        Wait for events, at most *timeout* seconds.

        Python's signal handlers run meanwhile; this raises what they raise.

        Args:
            timeout: seconds; 0 does not wait; `None` waits for ever.
            limit: the largest number of events; -1 means all that are ready, up to `LARGEST_BATCH`. The
                rest comes first the next time.

        Returns:
            pairs of a descriptor and what happened to it, in the system's order. Empty when the time is
            over, another thread called `wake`, or the hub has to start again.
        """
        if self.stale:
            self.renew()
        if self._fileno < 0 and self._host is not None:
            self._host.catch_up()
        if limit < 0:
            limit = min(len(self.masks) + 1, LARGEST_BATCH)
        if self._always:
            timeout = 0
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, limit)
        except OSError:
            if self.check():
                raise
            return []
        if self._woken:
            events = self._end_wake(events)
        if self._always:
            with self._lock:
                events += [(fd, self.masks.get(fd, 0) & (READ | WRITE)) for fd in self._always]
        if self._once:
            with self._lock:
                for fd, bits in events:
                    if fd in self._once and bits & _WANTED:
                        with suppress(OSError):  # closed by another thread
                            self._register(fd, self.masks.get(fd, 0), known=True)
        return events

    def _end_wake(self, events: Events) -> Events:
        number, waker = self.waker, self._waker
        others = [event for event in events if event[0] != number]
        if len(others) < len(events) and waker is not None:  # else it comes with the next wait
            try:
                waker.hush(self._poller)
            except OSError:
                self.stale = True
            # Last: a `wake` by a signal handler in between has had its effect.
            self._woken = False
        return others

    def wake(self) -> None:
        """End a `wait` in another thread, or the next one; from any thread."""
        if not self._woken:  # else that `wait` has not returned yet
            with self._wake_lock:
                self._ring()

    def _ring(self) -> None:
        waker = self._waker
        if self._woken or waker is None:
            return
        self._woken = True  # before it rings, or `wait` misses it
        if not self.stale:  # in the child of a fork it would be the parent's
            try:
                waker.ring(self._poller)
            except OSError:
                self.stale = True

    # -- in a reactor or event loop

    @property
    def busy(self) -> bool:
        """
        Return whether `wait` returns at once because of descriptors that never block, such as regular
        files; no host is told of those.
        """
        return bool(self._always)

    @property
    def attached(self) -> bool:
        """Return whether a reactor or event loop polls this hub."""
        return self._host is not None

    def attach(self, host: Any, on_ready: Callable[[], None]) -> None:
        """
        Let *host* poll this hub, beside whatever else it serves.

        Args:
            host: an `IReactorFDSet` provider, or an asyncio event loop.
            on_ready: called in the host's thread, again and again, while ``wait(0)`` would return
                something. The host logs what it raises.

        Raises:
            RuntimeError: it is attached already.
            TypeError: *host* is something else.
        """
        from txasynchat.hub.hosts import host_for  # noqa: PLC0415 - a loop of its own needs no Twisted

        if self._host is not None:
            raise RuntimeError(f"already attached to {self._host.loop!r}; call detach() first")
        self.renew()
        new = host_for(host, self.masks, on_ready, self._fileno < 0)
        new.attach(self._shown)
        self._host = new

    @property
    def _shown(self) -> int:
        # The descriptor of our own that a host watches.
        return self.waker if self._fileno < 0 else self._fileno

    def detach(self) -> None:
        """Leave the host; harmless when not attached."""
        host = self._host
        if host is not None:
            host.detach()
            self._host = None

    def abandon(self) -> None:
        """
        Leave a host that is shared with another process, without touching what is shared.

        For the child of a fork: an epoll reactor that it inherited still belongs to its parent.
        """
        host, self._host = self._host, None
        if host is not None:
            host.abandon()

    def fileno(self) -> int:
        """
        Return the nested poller's descriptor, readable while something is ready; -1 if none nests.
        """
        self.renew()
        return self._fileno

    def close(self) -> None:
        """Close the hub's own descriptors; the channels' stay open. May be repeated."""
        self.detach()
        with self._lock, self._wake_lock:
            self._close_descriptors()
        self.masks.clear()
        self._always.clear()
        self._once.clear()

    def _close_descriptors(self) -> None:
        waker = self._waker
        if waker is None:
            return
        if self._fileno < 0:
            self._poller.close()
        elif self._is_intact():
            pollers.close(self._poller)
        else:
            pollers.lose(self._poller)
        self._waker = None
        self.waker = -1
        waker.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit modules may be gone
            self._close_descriptors()


_hubs: weakref.WeakSet[Hub] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for hub in list(_hubs):
        hub._lock = threading.RLock()  # the thread that held it does not exist here
        hub._wake_lock = threading.RLock()
        hub.stale = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
