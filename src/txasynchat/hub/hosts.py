"""
Hosts: what a hub needs from the reactor or event loop that polls it.

One adapter for Twisted's reactors, one for asyncio's event loops. If the hub's poller has a
descriptor, the host sees only that one. If not, each channel becomes a reader and writer of the host.
Of a hub this module knows what `Hosted` names. Importing it installs no reactor.
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
    A descriptor in the form that Twisted's reactors want.

    Args:
        fd: its number.
        on_ready: called for every event on it.
    """

    def __init__(self, fd: int, on_ready: Callable[[], None]) -> None:
        self._fd = fd
        self._on_ready = on_ready

    def fileno(self) -> int:
        """
        Return the number of the descriptor.
        """
        return self._fd

    def doRead(self) -> None:  # noqa: N802 - Twisted's name
        """
        Called by the reactor when the descriptor is readable, or, as `doWrite`, writable.
        """
        self._on_ready()

    doWrite = doRead  # noqa: N815 - Twisted's name

    def connectionLost(self, reason: Failure | None) -> None:  # noqa: ARG002, N802 - Twisted's
        """
        Called by the reactor for an error on a channel's descriptor; the owner learns of it by reading.
        """
        self._on_ready()

    def logPrefix(self) -> str:  # noqa: N802 - Twisted's name
        """
        Name the hub in the reactor's log.
        """
        return "txasynchat hub"


class Hosted(Protocol):
    """
    What a host knows of its hub; see `Hub`.
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
        self.on_ready = on_ready
        #: Pollers do not nest here: each channel is a reader and writer of the host.
        self.owns_channels = hub.fileno() < 0
        self._hub = hub
        # The descriptor of the hub's own that the host watches.
        self._own = -1
        # Where the host owns the channels: its thread, and what other threads changed meanwhile.
        self._thread = threading.get_ident()
        self._late: set[int] = set()

    def attach(self) -> None:
        """
        Begin to be polled.
        """
        self._own = self._hub.waker if self.owns_channels else self._hub.fileno()
        self.show(self._own, READ)
        if self.owns_channels:
            for fd, mask in list(self._hub.masks.items()):
                self.show(fd, mask)

    def detach(self) -> None:
        """
        Stop being polled.
        """
        self.show(self._own, 0)
        if self.owns_channels:
            for fd in list(self._hub.masks):
                self.show(fd, 0)

    def abandon(self) -> None:
        """
        Stop being polled, in this process only.
        """
        self.detach()

    def watch(self, fd: int, mask: int) -> None:
        """
        Make a channel's descriptor the host's reader or writer, as *mask* says.

        From any thread; outside the host's thread it takes effect with the next `catch_up`.
        """
        if threading.get_ident() == self._thread:
            self.show(fd, mask)
        else:
            self._late.add(fd)

    def catch_up(self) -> None:
        """
        Called in the host's thread, before the hub asks what is ready.
        """
        self._thread = threading.get_ident()
        while self._late:
            fd = self._late.pop()
            self.show(fd, self._hub.masks.get(fd, 0))

    def show(self, fd: int, mask: int) -> None:
        """
        Make *fd* the host's reader or writer, as *mask* says, in the host's thread.
        """
        raise NotImplementedError


class AsyncioHost(Host):
    """
    An asyncio event loop.
    """

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
    def abandon(self) -> None:
        if not self._is_on_epoll():  # nothing is shared
            self.detach()
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
            one = self._descriptors[fd] = HostedDescriptor(fd, self.on_ready)
            if mask & READ:
                self.loop.addReader(one)
            if mask & WRITE:
                self.loop.addWriter(one)

    def _remove(self, one: HostedDescriptor) -> None:
        # Reactors on poll and epoll go by the number, which may be reused since it was closed.
        if getattr(self.loop, "_selectables", {}).get(one.fileno(), one) is not one:
            return
        try:
            self.loop.removeReader(one)
            self.loop.removeWriter(one)
        except OSError:  # the descriptor was closed first, or the reactor's own
            self._forget(one)

    def _is_on_epoll(self) -> bool:
        return isinstance(getattr(self.loop, "_reads", None), set) and hasattr(
            self.loop, "_selectables"
        )

    def _forget(self, one: HostedDescriptor) -> None:
        """
        Take *one* out of what an epoll reactor remembers, and leave its epoll alone.
        """
        number = one.fileno()
        if self._is_on_epoll() and self.loop._selectables.pop(number, one) is one:
            self.loop._reads.discard(number)
            self.loop._writes.discard(number)


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
