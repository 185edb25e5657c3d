"""
Descriptors of our own, and checks that they still are ours.

A program may close descriptors that it does not know, as daemons do (``os.closerange``). Their
numbers then belong to whatever it opens next. So a number of ours is checked before it is closed or
written to. This module knows numbers and what is behind them, no events.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Owned", "Pollers", "is_registered", "pollers"]


def _identify(number: int) -> tuple[int, int, int]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


class Owned:
    """
    A descriptor that was opened for us: a socket or a pipe, because each of those has its own inode.
    One that is closed already is an OSError.
    """

    __slots__ = ("_identity", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._identity = _identify(number)

    def is_ours(self) -> bool:
        """Return whether the number still refers to what was opened."""
        try:
            return _identify(self.number) == self._identity
        except OSError:
            return False

    def check(self) -> None:
        """Raise EBADF if the number no longer refers to what was opened."""
        if not self.is_ours():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def is_same(self, other: Owned) -> bool:
        """Return whether both have the same inode, as the two ends of a pipe do."""
        return self._identity == other._identity

    def close(self) -> None:
        """Close it, unless somebody has done so. May be repeated."""
        if self.is_ours():
            os.close(self.number)
        self.number = -1


def is_registered(number: int, poller: Any) -> bool:
    """
    Return whether *number* is registered with *poller*, as it is while both are what they were.

    It changes nothing, not even in an epoll that the child of a fork shares with its parent.
    """
    try:
        poller.register(number, 0)
    except FileExistsError:
        return True
    except OSError:
        return False
    poller.unregister(number)  # it is a stranger's
    return False


class Pollers:
    """
    The nested pollers of this process, by number.

    All epoll descriptors share one inode, so `Owned` cannot tell them apart. Two other signs can. The
    kernel reuses a number only after it was closed, which `hold` notices. And a poller of ours knows
    what is registered with it, which its user checks before it calls `close`.

    ``select.epoll`` closes its number when it is deallocated, whoever owns that by then. So a poller
    that lost its number is kept until the process ends.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, weakref.WeakMethod[Callable[[], None]] | None]] = {}
        self._lost: list[Any] = []

    def hold(self, poller: Any, on_loss: Callable[[], None] | None = None) -> None:
        """
        Remember a *poller* that was just made; an earlier one with its number has lost it. *on_loss* is
        a method, called when a later poller gets that number.
        """
        number = poller.fileno()
        former, told = self._held.get(number, (None, None))
        self._held[number] = poller, None if on_loss is None else weakref.WeakMethod(on_loss)
        if former is not None:
            self._lost.append(former)
            notify = told and told()
            if notify is not None:
                notify()

    def holds(self, poller: Any) -> bool:
        """Return whether no later poller got the number of this one."""
        return self._held.get(poller.fileno(), (None,))[0] is poller

    def close(self, poller: Any) -> None:
        """Close *poller*, which still owns its number."""
        if self.holds(poller):
            del self._held[poller.fileno()]
            poller.close()

    def lose(self, poller: Any) -> None:
        """Leave *poller* open: its number is somebody else's, or may be."""
        if self.holds(poller):
            del self._held[poller.fileno()]
        self._lost.append(poller)

    def keep(self) -> None: ...  # noqa: D102 - see below


#: The only one of this process.
pollers = Pollers()

if hasattr(os, "register_at_fork"):
    # Not for the call: what is registered outlives all modules. A mere global of this module would be
    # deallocated while files of the program, on numbers that were a poller's, have bytes to write.
    os.register_at_fork(after_in_child=pollers.keep)
