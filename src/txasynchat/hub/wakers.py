"""
What ends a hub's wait from another thread.

A poller that nests (epoll, kqueue) is woken by changing a registration. The process has one descriptor
that is always writable and never readable. Every such poller registers it for reading, which reports
nothing. Registering it for writing as well ends the wait at once, in whichever thread waits. Nothing
is ever written to it: if the program closed its number, or the poller's, and somebody else has that
by now, the kernel refuses.

poll(2) does not notice changes while it waits, so there each poller has its own pipe.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from txasynchat.hub.descriptors import Owned, is_registered
from txasynchat.hub.pollers import READ, WRITE

if TYPE_CHECKING:
    from txasynchat.hub.pollers import Poller

__all__ = ["PipeWaker", "Waker", "new_waker"]


class Waker:
    """
    For all pollers that nest; closed by the last of its users.

    Attributes:
        number: its descriptor, which belongs to no channel.
        users: how many have still to `close` it.
    """

    def __init__(self) -> None:
        self.users = 1
        # A datagram socket that is neither bound nor connected: no bytes get into it.
        self._socket = Owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach())
        self.number = self._socket.number

    def ring(self, poller: Poller) -> None:
        """
        End the current wait in *poller*, or the next one; an OSError if the program closed one of them.
        """
        poller.modify(self.number, READ | WRITE)

    def hush(self, poller: Poller) -> None:
        """Undo `ring`; raises what that does."""
        poller.modify(self.number, READ)

    def is_in(self, poller: Poller) -> bool:
        """Return whether *poller*, and this, are still what they were."""
        return is_registered(self.number, poller)

    def close(self) -> None:
        """End one use."""
        with _lock:
            self.users -= 1
            if not self.users:
                self._socket.close()

    def is_ours(self) -> bool:
        """Return whether nobody has closed it."""
        return self._socket.is_ours()


class PipeWaker:
    """
    For one poller that does not nest. Its owner makes sure that calls do not overlap.

    Attributes:
        number: the descriptor that `ring` makes readable.
    """

    def __init__(self) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._read = Owned(read)
        self._write = Owned(write)
        self.number = read

    def ring(self, poller: Poller) -> None:  # noqa: ARG002, D102 - see Waker
        self._write.check()
        with suppress(BlockingIOError):  # full: it is readable
            os.write(self._write.number, b"\0")

    def hush(self, poller: Poller) -> None:  # noqa: ARG002, D102 - see Waker
        self._read.check()
        with suppress(BlockingIOError):
            os.read(self._read.number, 4096)

    def is_in(self, poller: Poller) -> bool:  # noqa: ARG002, D102 - see Waker
        return self._read.is_ours() and self._write.is_ours()

    def close(self) -> None:  # noqa: D102 - see Waker
        self._read.close()
        self._write.close()


_current: Waker | None = None
_lock = threading.RLock()  # reentrant: a hub that is collected meanwhile closes its own


def new_waker(*, nests: bool) -> Waker | PipeWaker:
    """Return what wakes a poller, which has a descriptor if it *nests*; the caller closes it."""
    global _current  # noqa: PLW0603 - the one of this process
    if not nests:
        return PipeWaker()
    with _lock:
        waker = _current
        if waker is not None:
            waker.users += 1  # before the check: from here on nobody else closes it
            if waker.is_ours():
                return waker
        waker = _current = Waker()
        return waker


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - its holder may not exist here
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
