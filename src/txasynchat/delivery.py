"""
Whether the peer still takes what it was sent: the question behind every limit on a slow ending.

What was written waits in a transport, then in the operating system, and is on its way until the
peer's system has acknowledged it. A peer that reads slowly may be noticed at the last of these only:
a socket takes no more before a third of its buffer is free, and that buffer may hold megabytes.

Numbers and sockets only: no Twisted, no clock. How long is too long is for its users to say.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Progress", "StallWatch", "unacknowledged"]


class Progress:
    """
    Compares one look at what waits with the one before.
    """

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: tuple[int | None, ...] | None = None

    def made(self, *counts: int | None) -> bool:
        """
        Return whether any of *counts* has changed since the last call; True for the first one.

        Args:
            counts: bytes that wait somewhere, or that left, in the same order each time; None where
                that is not known.
        """
        before, self._seen = self._seen, counts
        return counts != before


class StallWatch(Progress):
    """
    A look every so many seconds at what waits, until there is no progress from one to the next.
    """

    __slots__ = ("_timer",)

    def __init__(self) -> None:
        super().__init__()
        self._timer: IDelayedCall | None = None

    def stalled(
        self,
        clock: IReactorTime | None,
        interval: float,
        look: Callable[[], None],
        *counts: int | None,
    ) -> bool:
        """
        Return whether *counts* are those of the look before; False for the first one.

        Args:
            clock: what calls *look*; None: nobody does.
            interval: the seconds until then.
            look: called for the next look if this is not the last one. It calls this again.
            counts: see `Progress.made`.
        """
        if not self.made(*counts):
            return True
        if clock is not None:
            self._timer = clock.callLater(interval, look)
        return False

    @property
    def waiting(self) -> bool:
        """
        There will be another look.
        """
        return self._timer is not None and self._timer.active()

    def cancel(self) -> None:
        """
        Look no more.
        """
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


if sys.platform == "linux":
    import fcntl
    import termios

    def unacknowledged(sock: socket.socket) -> int | None:
        """
        Count the bytes that the system has taken and the peer's has not acknowledged.

        Returns:
            The number of bytes; None where the system does not say, or the socket is closed.
        """
        try:
            # The kernel calls it SIOCOUTQ, and answers for TCP and Unix sockets.
            answer = fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0")
        except (OSError, ValueError):
            return None
        return int.from_bytes(answer, sys.byteorder)

else:

    def unacknowledged(sock: socket.socket) -> int | None:  # noqa: ARG001 see above
        """
        Return None: no portable way is known to ask.
        """
        return None
