"""
Hosts: what a hub asks of the reactor or event loop that polls it.

One adapter for Twisted's reactors, one for asyncio's event loops.  Where the hub's poller has a
descriptor, that one is all the host sees.  Where it has none, each channel becomes a reader and
writer of the host's.  Of a hub this module knows what `Hosted` names, and importing it installs no
reactor.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import IReadWriteDescriptor
from typing_extensions import override
from zope.interface import implementer

from txasynchat.hub.pollers import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.python.failure import Failure

__all__ = ["AsyncioHost", "Host", "Hosted", "ReactorHost", "attach_to"]


@implementer(IReadWriteDescriptor)
class HostedDescriptor:
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


class Hosted(Protocol):
    """
    What a host needs to know of its hub; see `Hub`.
    """

    @property
    def masks(self) -> Mapping[int, int]: ...  # noqa: D102 - see the class
    @property
    def waker(self) -> int: ...  # noqa: D102 - see the class
    def fileno(self) -> int: ...  # noqa: D102 - see the class


class Host:
    """
    What a hub asks of its host.

    Args:
        loop: the reactor or event loop.
        hub: the hub that it polls.
        on_ready: see `Hub.attach`.
    """

    def __init__(self, loop: Any, hub: Hosted, on_ready: Callable[[], None]) -> None:
        self.loop = loop
        self.hub = hub
        self.on_ready = on_ready
        #: Pollers do not nest here: each channel is a reader and writer of the host.
        self.owns_channels = hub.fileno() < 0
        # Where that is so: the hub's waker, the host's thread, and what others forgot meanwhile.
        self._waker = -1
        self._thread = threading.get_ident()
        self._late: set[int] = set()

    def attach(self) -> None:
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

    def detach(self) -> None:
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
        self.detach()

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


class AsyncioHost(Host):
    """
    An asyncio event loop.
    """

    _fd = -1

    @override
    def add(self) -> None:
        self._fd = self.hub.fileno()
        self.loop.add_reader(self._fd, self.on_ready)

    @override
    def remove(self) -> None:
        if not self.loop.is_closed():
            self.loop.remove_reader(self._fd)

    @override
    def show(self, fd: int, mask: int) -> None:
        if self.loop.is_closed():
            return
        if mask & READ:
            self.loop.add_reader(fd, self.on_ready)
        else:
            self.loop.remove_reader(fd)
        if mask & WRITE:
            self.loop.add_writer(fd, self.on_ready)
        else:
            self.loop.remove_writer(fd)


class ReactorHost(Host):
    """
    A Twisted reactor.
    """

    def __init__(self, loop: Any, hub: Hosted, on_ready: Callable[[], None]) -> None:
        super().__init__(loop, hub, on_ready)
        self._descriptors: dict[int, HostedDescriptor] = {}

    @override
    def add(self) -> None:
        one = self._descriptors[-1] = HostedDescriptor(self.hub.fileno(), self.on_ready)
        self.loop.addReader(one)

    @override
    def remove(self) -> None:
        one = self._descriptors.pop(-1, None)
        if one is not None:
            self._remove(one)

    @override
    def abandon(self) -> None:
        if self._books() is None:
            self.detach()  # no epoll, nothing is shared
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
            one = HostedDescriptor(fd, self.on_ready)
            self._descriptors[fd] = one
            if mask & READ:
                self.loop.addReader(one)
            if mask & WRITE:
                self.loop.addWriter(one)

    def _remove(self, one: HostedDescriptor) -> None:
        # Reactors on poll and epoll go by the number, which may be another's since it was closed.
        now = getattr(self.loop, "_selectables", {}).get(one.fileno(), one)
        if now is not one:
            return
        try:
            self.loop.removeReader(one)
            self.loop.removeWriter(one)
        except OSError:  # the descriptor was closed first, or the reactor's own
            self._forget(one)

    def _books(self) -> tuple[dict[int, Any], set[int], set[int]] | None:
        """
        What a reactor on epoll knows of its descriptors, by number; `None` for the others.
        """
        reads = getattr(self.loop, "_reads", None)
        selectables = getattr(self.loop, "_selectables", None)
        if not isinstance(reads, set) or selectables is None:
            return None
        return selectables, reads, self.loop._writes

    def _forget(self, one: HostedDescriptor) -> None:
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


def attach_to(loop: Any, hub: Hosted, on_ready: Callable[[], None]) -> Host:
    """
    Have *loop* poll *hub*.

    Raises:
        TypeError: *loop* is neither a Twisted reactor nor an asyncio event loop.
    """
    host: Host
    if hasattr(loop, "addReader"):
        host = ReactorHost(loop, hub, on_ready)
    elif hasattr(loop, "add_reader"):
        host = AsyncioHost(loop, hub, on_ready)
    else:
        raise TypeError(f"neither a Twisted reactor nor an asyncio event loop: {loop!r}")
    host.attach()
    return host
