"""
What ends a hub's wait from another thread.

A poller that nests (epoll, kqueue) is woken by a change of a registration: one descriptor, of which
there is one for the whole process, can always be written and never be read.  Every such poller has it
registered for reading, so that nothing happens; to register it for writing as well makes something
happen at once, in whichever thread waits there.  Nothing is ever written to it: if its number, or the
poller's, was closed by the program and is somebody else's by now, the kernel refuses.

poll(2) does not look at changes while it waits, so there each poller has a pipe of its own.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from txasynchat.hub.descriptors import Owned
from txasynchat.hub.pollers import READ, WRITE

if TYPE_CHECKING:
    from txasynchat.hub.pollers import Poller

__all__ = ["PipeWaker", "Waker", "new_waker"]


class Waker:
    """
    For all pollers that nest; closed by the last of its users.

    Attributes:
        number: its descriptor, which is no channel's.
        users: how many `close` it one day.
    """

    def __init__(self) -> None:
        self.users = 1
        # A datagram socket that is neither bound nor connected: no bytes get into it.
        self._socket = Owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach())
        self.number = self._socket.number

    def ring(self, poller: Poller) -> None:
        """
        End a wait in *poller*, or the next one.

        Raises:
            OSError: the poller's descriptor or this one was closed by the program.
        """
        poller.modify(self.number, READ | WRITE)

    def hush(self, poller: Poller) -> None:
        """
        Undo `ring`.

        Raises:
            OSError: as there.
        """
        poller.modify(self.number, READ)

    def is_in(self, poller: Poller) -> bool:
        """
        Return whether *poller*, and this, are still what they were.

        It changes nothing, not even in an epoll that a child of fork shares with its parent.
        """
        try:
            poller.register(self.number, 0)
        except FileExistsError:
            return True
        except OSError:
            return False
        poller.unregister(self.number)  # it was a stranger's
        return False

    def close(self) -> None:
        """
        One user less.
        """
        with _lock:
            self.users -= 1
            if not self.users:
                self._socket.close()

    def is_ours(self) -> bool:
        """
        Return whether nobody closed it.
        """
        return self._socket.is_ours()


class PipeWaker:
    """
    For one poller that does not nest.  Its owner sees to it that calls do not overlap.

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

    def ring(self, poller: Poller) -> None:  # noqa: ARG002 - see Waker
        """
        End a wait in *poller*, or the next one.

        Raises:
            OSError: the pipe was closed by the program.
        """
        self._look(self._write)
        with suppress(BlockingIOError):  # full: it is readable
            os.write(self._write.number, b"\0")

    def hush(self, poller: Poller) -> None:  # noqa: ARG002 - see Waker
        """
        Undo `ring`.

        Raises:
            OSError: as there.
        """
        self._look(self._read)
        with suppress(BlockingIOError):
            os.read(self._read.number, 4096)

    def _look(self, end: Owned) -> None:
        if not end.is_ours():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def is_in(self, poller: Poller) -> bool:  # noqa: ARG002 - see Waker
        """
        Return whether the pipe is still what it was.
        """
        return self._read.is_ours() and self._write.is_ours()

    def close(self) -> None:
        """
        Give the pipe back.
        """
        self._read.close()
        self._write.close()


_current: Waker | None = None
_lock = threading.RLock()  # a hub that is collected in between closes its own


def new_waker(*, nests: bool) -> Waker | PipeWaker:
    """
    Returns:
        what wakes a poller, to be closed by who asked for it.

    Args:
        nests: whether the poller has a descriptor.
    """
    global _current  # noqa: PLW0603 - the one of this process
    if not nests:
        return PipeWaker()
    with _lock:
        waker = _current
        if waker is not None:
            waker.users += 1  # before the look: from here on nobody else closes it
            if waker.is_ours():
                return waker
        waker = _current = Waker()
        return waker


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - its holder may not exist here
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
