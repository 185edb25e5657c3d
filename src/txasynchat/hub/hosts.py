"""
Hosts: what a hub needs from the reactor or event loop that polls it.

One adapter for Twisted's reactors, one for asyncio's event loops. If the hub's poller has a
descriptor, the host sees only that one. If not, each channel becomes a reader and writer of the host.
Importing it installs no reactor.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReadWriteDescriptor
from typing_extensions import override
from zope.interface import implementer

from txasynchat.hub.pollers import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.python.failure import Failure

__all__ = ["AsyncioHost", "Host", "ReactorHost", "host_for"]


@implementer(IReadWriteDescriptor)
class HostedDescriptor:
    """
    A descriptor in the form that Twisted's reactors want; *on_ready* is called for every event on it.
    """

    def __init__(self, fd: int, on_ready: Callable[[], None]) -> None:
        self._fd = fd
        self._on_ready = on_ready

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:  # noqa: N802 - Twisted's
        self._on_ready()

    doWrite = doRead  # noqa: N815 - Twisted's

    def connectionLost(self, reason: Failure | None) -> None:  # noqa: ARG002, N802 - Twisted's
        self._on_ready()  # an error on a channel's descriptor, of which the owner learns by reading

    def logPrefix(self) -> str:  # noqa: N802 - Twisted's
        return "txasynchat hub"


class Host:
    """
    What a hub asks of its host.

    Args:
        loop: the reactor or event loop.
        masks: what the hub wants of each descriptor.
        on_ready: see `Hub.attach`.
        owns_channels: pollers do not nest here: each channel is a reader and writer of the host.
    """

    def __init__(
        self, loop: Any, masks: Mapping[int, int], on_ready: Callable[[], None], owns_channels: bool
    ) -> None:
        self.loop = loop
        self.on_ready = on_ready
        self.owns_channels = owns_channels
        self._masks = masks
        self._own = -1
        # Where the host owns the channels: its thread, and what other threads changed meanwhile.
        self._thread = threading.get_ident()
        self._late: set[int] = set()

    def attach(self, own: int) -> None:
        """Begin to poll the hub, whose *own* descriptor becomes readable when something is ready."""
        self._own = own
        self.show(own, READ)
        if self.owns_channels:
            for fd, mask in list(self._masks.items()):
                if fd >= 0:
                    self.show(fd, mask)

    def detach(self) -> None:
        """Stop polling it."""
        self.show(self._own, 0)
        if self.owns_channels:
            for fd in list(self._masks):
                if fd >= 0:
                    self.show(fd, 0)

    def abandon(self) -> None:
        """Stop polling it, in this process only."""
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
        """Called in the host's thread, before the hub asks what is ready."""
        self._thread = threading.get_ident()
        while self._late:
            fd = self._late.pop()
            self.show(fd, self._masks.get(fd, 0))

    def show(self, fd: int, mask: int) -> None:
        """Make *fd* the host's reader or writer, as *mask* says, in the host's thread."""
        raise NotImplementedError


class AsyncioHost(Host):
    """An asyncio event loop."""

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
    """A Twisted reactor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
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
        """Take *one* out of what an epoll reactor remembers, and leave its epoll alone."""
        number = one.fileno()
        if self._is_on_epoll() and self.loop._selectables.pop(number, one) is one:
            self.loop._reads.discard(number)
            self.loop._writes.discard(number)


def host_for(
    loop: Any, masks: Mapping[int, int], on_ready: Callable[[], None], owns_channels: bool
) -> Host:
    """
    Return the host that *loop* is; a TypeError if it is neither a Twisted reactor nor an asyncio event
    loop. For the arguments see `Host`.
    """
    for name, kind in (("addReader", ReactorHost), ("add_reader", AsyncioHost)):
        if hasattr(loop, name):
            return kind(loop, masks, on_ready, owns_channels)
    raise TypeError(f"neither a Twisted reactor nor an asyncio event loop: {loop!r}")
