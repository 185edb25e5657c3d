"""
`Exhaustion`: what happens when a process has no descriptor left for the next connection.

A connection that cannot be accepted stays ready, so a port that only tries again keeps its reactor
busy, and its peer waits for nothing. So one descriptor is kept: it is given up for a moment, in which
the connection is accepted, told why, and closed. If that is not possible either, the port rests.

Twisted's ports do so too (``tcp._reservedFD``), but not for a whole system without descriptors
(ENFILE). They write a line for each connection. And once their descriptor is lost, because another
thread was faster, they spin until a port begins to listen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["Exhaustion"]

#: Seconds without a connection that could not be accepted, after which it is over.
QUIET = 5.0


class Exhaustion:
    """
    The descriptor that is kept, and what is said of the times when there is no other.

    Each such time has two lines in the log: that it begins, and how many were refused when it is over.

    Args:
        clock: an `IReactorTime`.
    """

    _log = Logger()

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._kept: int | None = None
        self._timer: Any = None
        self._began = self._last = 0.0
        self._refused = 0

    def begin(self) -> None:
        """Keep a descriptor, if there is one."""
        if self._kept is None:
            with suppress(OSError):
                self._kept = os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def end(self) -> None:
        """Keep none any more, and say what is left to say."""
        self._give_up()
        if self._timer is not None:
            self._timer.cancel()
            self._over()

    def happened(self, *, refuses: bool) -> None:
        """No descriptor is left; *refuses*: connections are refused because of that."""
        self._last = self._clock.seconds()
        if self._timer is None:
            self._began = self._last
            self._refused = 0
            self._timer = self._clock.callLater(QUIET, self._look)
            self._log.warn(
                "no descriptor is left for new connections, which {do}; raise the limit on open files "
                "(ulimit -n)",
                do="are refused" if refuses else "wait",
            )

    def refuse(
        self, listener: socket.socket, most: int, say: Callable[[socket.socket], object]
    ) -> tuple[int, bool]:
        """
        Accept and refuse what waits.

        Args:
            listener: a listening socket, non-blocking.
            most: how many at a time.
            say: tells the peer, and closes the socket.

        Returns:
            how many were refused, and whether all is well; otherwise it is better to rest for a moment.
        """
        self.begin()
        if self._kept is None:
            return 0, False
        count, fine = 0, True
        self._give_up()
        try:
            while count < most:
                sock, _ = listener.accept()
                sock.setblocking(False)
                say(sock)
                count += 1
        except BlockingIOError:
            pass
        except OSError:
            fine = False
        finally:
            self.begin()
        self._refused += count
        return count, fine and self._kept is not None

    # -- internals

    def _give_up(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            with suppress(OSError):
                os.close(kept)

    def _look(self) -> None:
        left = self._last + QUIET - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._look)
        else:
            self._over()

    def _over(self) -> None:
        self._timer = None
        self._log.info(
            "descriptors were missing for {seconds:.1f} s, and {refused} connections were refused",
            seconds=self._last - self._began,
            refused=self._refused,
        )
