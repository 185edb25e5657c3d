"""
A hub's place in a host: a Twisted reactor or an asyncio event loop.

Where the hub's poller has a descriptor, that one is all the host sees.  Where it has none,
each channel becomes a reader and writer of the host's.  Importing this installs no reactor.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReadWriteDescriptor
from typing_extensions import override
from zope.interface import implementer

from txasynchat.pollers import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from txasynchat.hub import Hub

__all__ = ["AsyncioSeat", "ReactorSeat", "Seat", "take_seat"]


@implementer(IReadWriteDescriptor)
class SeatDescriptor:
    """
    A descriptor as Twisted's reactors want one.

    Args:
        fd: its number.
        on_ready: what to call, whatever happens to it.
    """

    def __init__(self, fd: int, on_ready: Callable[[], None]) -> None:
        self._fd = fd
        self._on_ready = on_ready

    def fileno(self) -> int:
        """
        Returns:
            the number of the descriptor.
        """
        return self._fd

    def doRead(self) -> None:  # noqa: N802 - Twisted's name
        """
        Called by the reactor when the descriptor is readable.
        """
        self._on_ready()

    def doWrite(self) -> None:  # noqa: N802 - Twisted's name
        """
        Called by the reactor when the descriptor is writable.
        """
        self._on_ready()

    def connectionLost(self, reason: Failure | None) -> None:  # noqa: ARG002, N802 - Twisted's
        """
        Called by the reactor for an error on a channel's descriptor: its owner finds it by reading.
        """
        self._on_ready()

    def logPrefix(self) -> str:  # noqa: N802 - Twisted's name
        """
        Name the hub in the reactor's log.
        """
        return "txasynchat hub"


class Seat:
    """
    What the hub asks of its place.

    Args:
        host: the reactor or event loop.
        hub: who sits.
        on_ready: see `Hub.attach`.
    """

    def __init__(self, host: Any, hub: Hub, on_ready: Callable[[], None]) -> None:
        self.host = host
        self.hub = hub
        self.on_ready = on_ready
        #: Pollers do not nest here: each channel is a reader and writer of the host.
        self.owns_channels = hub.fileno() < 0
        # Where that is so: the hub's waker, the host's thread, and what others forgot meanwhile.
        self._waker = -1
        self._thread = threading.get_ident()
        self._late: set[int] = set()

    def sit(self) -> None:
        """
        Begin to be polled.
        """
        if self.owns_channels:
            self._waker = self.hub.waker
            self.show(self._waker, READ)
            for fd, mask in list(self.hub.masks.items()):
                self.show(fd, mask)
        else:
            self.add()

    def leave(self) -> None:
        """
        Stop being polled.
        """
        if self.owns_channels:
            for fd in (self._waker, *list(self.hub.masks)):
                self.show(fd, 0)
        else:
            self.remove()

    def abandon(self) -> None:
        """
        Stop being polled, in this process alone.
        """
        self.leave()

    def add(self) -> None:
        """
        Add the hub's own descriptor to the host.
        """
        raise NotImplementedError

    def remove(self) -> None:
        """
        Take the hub's own descriptor out of the host.
        """
        raise NotImplementedError

    def watch(self, fd: int, mask: int) -> None:
        """
        Make a channel's descriptor the host's reader or writer, as *mask* says.

        From any thread; in another one than the host's it takes effect with the next `catch_up`.
        """
        if threading.get_ident() == self._thread:
            self.show(fd, mask)
        else:
            self._late.add(fd)

    def catch_up(self) -> None:
        """
        Called in the host's thread, before the hub looks what is ready.
        """
        self._thread = threading.get_ident()
        while self._late:
            fd = self._late.pop()
            self.show(fd, self.hub.masks.get(fd, 0))

    def show(self, fd: int, mask: int) -> None:
        """
        Do what `watch` says, in the host's thread.
        """
        raise NotImplementedError


class AsyncioSeat(Seat):
    """
    A place in an asyncio event loop.
    """

    _fd = -1

    @override
    def add(self) -> None:
        self._fd = self.hub.fileno()
        self.host.add_reader(self._fd, self.on_ready)

    @override
    def remove(self) -> None:
        if not self.host.is_closed():
            self.host.remove_reader(self._fd)

    @override
    def show(self, fd: int, mask: int) -> None:
        if self.host.is_closed():
            return
        if mask & READ:
            self.host.add_reader(fd, self.on_ready)
        else:
            self.host.remove_reader(fd)
        if mask & WRITE:
            self.host.add_writer(fd, self.on_ready)
        else:
            self.host.remove_writer(fd)


class ReactorSeat(Seat):
    """
    A place in a Twisted reactor.
    """

    def __init__(self, host: Any, hub: Hub, on_ready: Callable[[], None]) -> None:
        super().__init__(host, hub, on_ready)
        self._descriptors: dict[int, SeatDescriptor] = {}

    @override
    def add(self) -> None:
        one = self._descriptors[-1] = SeatDescriptor(self.hub.fileno(), self.on_ready)
        self.host.addReader(one)

    @override
    def remove(self) -> None:
        one = self._descriptors.pop(-1, None)
        if one is not None:
            self._remove(one)

    @override
    def abandon(self) -> None:
        if self._books() is None:
            self.leave()  # no epoll, nothing is shared
            return
        for one in self._descriptors.values():
            self._forget(one)
        self._descriptors.clear()

    @override
    def show(self, fd: int, mask: int) -> None:
        one = self._descriptors.pop(fd, None)
        if one is not None:
            self._remove(one)
        if mask:
            one = SeatDescriptor(fd, self.on_ready)
            self._descriptors[fd] = one
            if mask & READ:
                self.host.addReader(one)
            if mask & WRITE:
                self.host.addWriter(one)

    def _remove(self, one: SeatDescriptor) -> None:
        # Reactors on poll and epoll go by the number, which may be another's since it was closed.
        now = getattr(self.host, "_selectables", {}).get(one.fileno(), one)
        if now is not one:
            return
        try:
            self.host.removeReader(one)
            self.host.removeWriter(one)
        except OSError:  # the descriptor was closed first, or the reactor's own
            self._forget(one)

    def _books(self) -> tuple[dict[int, Any], set[int], set[int]] | None:
        """
        What a reactor on epoll knows of its descriptors, by number; `None` for the others.
        """
        reads = getattr(self.host, "_reads", None)
        selectables = getattr(self.host, "_selectables", None)
        if not isinstance(reads, set) or selectables is None:
            return None
        return selectables, reads, self.host._writes

    def _forget(self, one: SeatDescriptor) -> None:
        """
        Take *one* out of an epoll reactor's books, and leave its epoll alone.
        """
        books = self._books()
        if books is None:
            return
        selectables, reads, writes = books
        number = one.fileno()
        if selectables.pop(number, one) is one:
            reads.discard(number)
            writes.discard(number)


def take_seat(host: Any, hub: Hub, on_ready: Callable[[], None]) -> Seat:
    """
    Seat *hub* in *host*.

    Raises:
        TypeError: *host* is neither a Twisted reactor nor an asyncio event loop.
    """
    seat: Seat
    if hasattr(host, "addReader"):
        seat = ReactorSeat(host, hub, on_ready)
    elif hasattr(host, "add_reader"):
        seat = AsyncioSeat(host, hub, on_ready)
    else:
        raise TypeError(f"neither a Twisted reactor nor an asyncio event loop: {host!r}")
    seat.sit()
    return seat
