"""
Descriptors of our own, and whether they still are.

A program may close descriptors that it does not know, as daemons do (``os.closerange``), and the
numbers then belong to whatever it opens next.  So a number of ours is never closed, nor written
to, before it was looked at.  This module knows numbers and what is behind them, no events.
"""

from __future__ import annotations

import os
import stat
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Owned", "Pollers", "pollers"]


def _identify(number: int) -> tuple[int, int, int]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


class Owned:
    """
    A descriptor that was opened for us: a socket or a pipe, each of which has an inode of its own.

    Args:
        number: the open descriptor.

    Raises:
        OSError: it is closed already.
    """

    __slots__ = ("_identity", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._identity = _identify(number)

    def is_ours(self) -> bool:
        """
        Return whether the number still is that of what was opened.
        """
        try:
            return _identify(self.number) == self._identity
        except OSError:
            return False

    def is_same(self, other: Owned) -> bool:
        """
        Return whether both had one inode, as the two ends of a pipe have.
        """
        return self._identity == other._identity

    def close(self) -> None:
        """
        Close it, unless somebody did so already.  May be repeated.
        """
        if self.is_ours():
            os.close(self.number)
        self.number = -1


class Pollers:
    """
    The nested pollers of this process, by number.

    All epoll descriptors have one inode, so that `Owned` cannot tell them apart.  Two other signs
    can: the kernel hands out a number anew only when it was closed, which `hold` notices; and a
    poller of ours knows what is registered with it, which its user tries before it calls `close`.

    ``select.epoll`` closes its number when it is deallocated, whoever has it by then.  So one whose
    number is lost is kept until the process ends.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, weakref.WeakMethod[Callable[[], None]] | None]] = {}
        self._lost: list[Any] = []

    def hold(self, poller: Any, on_loss: Callable[[], None] | None = None) -> None:
        """
        Remember a *poller* that was just made; another one with its number has lost it.

        Args:
            poller: it has a ``fileno()``.
            on_loss: a method, which is called when a later poller is given that number.
        """
        number = poller.fileno()
        former = self._held.get(number)
        self._held[number] = poller, None if on_loss is None else weakref.WeakMethod(on_loss)
        if former is not None:
            self._lost.append(former[0])
            tell = None if former[1] is None else former[1]()
            if tell is not None:
                tell()

    def holds(self, poller: Any) -> bool:
        """
        Return whether no later poller was given the number of this one.
        """
        return self._held.get(poller.fileno(), (None,))[0] is poller

    def close(self, poller: Any) -> None:
        """
        Close *poller*, whose number is still its own.
        """
        if self.holds(poller):
            del self._held[poller.fileno()]
            poller.close()

    def lose(self, poller: Any) -> None:
        """
        Leave *poller* as it is: its number is somebody else's, or may be.
        """
        if self.holds(poller):
            del self._held[poller.fileno()]
        self._lost.append(poller)

    def keep(self) -> None:
        """
        Do nothing; see below.
        """


#: The one of this process.
pollers = Pollers()

if hasattr(os, "register_at_fork"):
    # Not for the call: what is registered is let go of after all modules.  A global of this one would
    # be deallocated while the program's files, on numbers that were a poller's, have bytes to write.
    os.register_at_fork(after_in_child=pollers.keep)
