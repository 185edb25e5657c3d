"""
Whether the peer still takes what it was sent, the question behind every limit on a slow ending; and
what it sent that nobody has read.

What was written waits in a transport, then in the operating system, and is in flight until the peer's
system has acknowledged it. A peer that reads slowly may show in the last of these only: a socket takes
no more until a third of its buffer is free, and that buffer may hold megabytes.

Numbers and sockets only: no Twisted, no clock of its own. Callers say how long is too long.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

_ioctl: Any = None
with suppress(ImportError):  # not on every system
    from fcntl import ioctl as _ioctl
    from termios import FIONREAD, TIOCOUTQ

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Progress", "StallWatch", "carried", "unacknowledged", "unread", "without_delay"]

#: How often a `StallWatch` looks in the time that it allows without progress.
LOOKS = 8
#: Seconds that clocks may be wrong by, because they add up fractions.
_NO_TIME = 1e-6
_NO_BYTES = bytes(4)
# What Linux tells of a connection, up to the two counters; see tcp_info in linux/tcp.h.
_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_INFO_SIZE = 136
_COUNTS = struct.Struct("=QQ")
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # on Linux


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
    """Looks at what waits now and then, until there was no progress for so many seconds."""

    __slots__ = ("_cancelled", "_looked", "_since", "_timer")

    def __init__(self) -> None:
        super().__init__()
        self._timer: Any = None  # an IDelayedCall
        self._cancelled = False
        # Moments: of the last look, and of the one since when there was no progress.
        self._looked = self._since = 0.0

    def stalled(
        self,
        clock: Any,
        limit: float,
        look: Callable[[], None],
        *counts: int | None,
        over: bool = False,
        soon: bool = False,
    ) -> bool:
        """
        Return whether *counts* have been the same for *limit* seconds; False for the first look.

        Args:
            clock: an IReactorTime, which calls *look*; None: nothing does, and this is always False.
            limit: the seconds.
            look: called for the next look, unless this was the last one. It calls this again, and so
                may others, at any time.
            counts: see `Progress.made`.
            over: the peer has taken everything, and there can be no more progress. Then the time counts
                from the last look at which it had not, so this lasts no longer than *limit*.
            soon: look `LOOKS` times a second at least.
        """
        if clock is None or self._cancelled:
            return False
        now: float = clock.seconds()
        pause = min(limit, 1.0 if soon else limit) / LOOKS
        first = self._timer is None
        if self.made(*counts):
            # What kept the looks away does not shorten the time.
            self._since = max(self._looked, now - pause) if over and not first else now
        left = self._since + limit - now
        if left <= _NO_TIME and not first:
            return True
        self._looked = now
        if self.waiting:
            self._timer.cancel()
        self._timer = clock.callLater(min(pause, left), look)
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
        answer = _ioctl(sock, TIOCOUTQ, _NO_BYTES)
    except (OSError, ValueError):
        return None
    return int.from_bytes(answer, sys.byteorder)


def carried(sock: Any) -> tuple[int, int] | None:
    """
    Count the bytes that a TCP connection has ever received, and those that its peer has acknowledged.

    Returns:
        The two numbers; None where the system does not say, or the socket is closed.
    """
    if _TCP_INFO is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_SIZE)
    except OSError:
        return None
    if len(info) < _INFO_SIZE:  # an old kernel
        return None
    acknowledged, received = _COUNTS.unpack_from(info, _INFO_SIZE - _COUNTS.size)
    return received, acknowledged


def unread(fd: int) -> int:
    """
    Return how many bytes wait to be read from *fd*; -1 if the system does not say, as of a listener.
    """
    if _ioctl is None or fd < 0:
        return -1
    try:
        return int.from_bytes(_ioctl(fd, FIONREAD, _NO_BYTES), sys.byteorder)
    except OSError:
        return -1


def without_delay(sock: socket.socket | None) -> None:
    """
    Let neither side of a new TLS connection wait up to 40 ms for the other to acknowledge.

    The client's last flight is acknowledged now: no session tickets answer it, and until then the
    client may hold back its first request. And small pieces are sent though others are not
    acknowledged: else close_notify would wait behind the last answer.
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with suppress(OSError):  # the peer may be gone
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _QUICKACK is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
