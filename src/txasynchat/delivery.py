"""
Whether the peer still takes what it was sent: the question behind every limit on a slow ending.

What was written waits in a transport, then in the operating system, and is in flight until the peer's
system has acknowledged it. A peer that reads slowly may show in the last of these only: a socket takes
no more until a third of its buffer is free, and that buffer may hold megabytes.

Numbers and sockets only: no Twisted, no clock of its own. Callers say how long is too long.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if sys.platform == "linux":
    import fcntl
    import termios

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Progress", "StallWatch", "unacknowledged"]


class Progress:
    """Compares one look at what waits with the one before."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: tuple[int | None, ...] | None = None

    def made(self, *counts: int | None) -> bool:
        """
        Return whether any of *counts* has changed since the last call; True for the first one.

        Args:
            counts: bytes that wait somewhere, or were taken, in the same order each time; None where
                that is not known.
        """
        before, self._seen = self._seen, counts
        return counts != before


class StallWatch(Progress):
    """Compares what waits every so many seconds, until one look finds no progress since the last."""

    __slots__ = ("_cancelled", "_timer")

    def __init__(self) -> None:
        super().__init__()
        self._timer: IDelayedCall | None = None
        self._cancelled = False

    def stalled(
        self,
        clock: IReactorTime | None,
        interval: float,
        look: Callable[[], None],
        *counts: int | None,
    ) -> bool:
        """
        Return whether *counts* are those of the last look; False for the first one.

        Args:
            clock: what calls *look*; None: nothing does, and this is always False.
            interval: the seconds until then.
            look: called for the next look, unless this was the last one. It calls this again.
            counts: see `Progress.made`.
        """
        if clock is None or self._cancelled:
            return False
        if not self.made(*counts):
            return True
        self._timer = clock.callLater(interval, look)
        return False

    @property
    def waiting(self) -> bool:
        """There will be another look."""
        return self._timer is not None and self._timer.active()

    def cancel(self) -> None:
        """Look no more, whatever is asked later."""
        self._cancelled = True
        if self.waiting and self._timer is not None:
            self._timer.cancel()


def unacknowledged(sock: socket.socket) -> int | None:
    """
    Count the bytes that this system has taken and the peer's has not acknowledged.

    Returns:
        The number of bytes; None where the system does not say, or the socket is closed.
    """
    if sys.platform != "linux":  # no portable way is known to ask
        return None
    try:
        # The kernel calls it SIOCOUTQ, and answers for TCP and Unix sockets.
        answer = fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):
        return None
    return int.from_bytes(answer, sys.byteorder)
