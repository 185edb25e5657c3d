r"""
What a program tells the service manager that started it with ``Type=notify``: that it serves, that it
stops, and that its reactor still runs.

It is the protocol of systemd's ``sd_notify``, which others speak too: a datagram with lines such as
``READY=1``, sent to the Unix socket that the environment names. Without that name nothing happens.

Twisted has nothing for it (`twisted.python.systemd` is about sockets), and these lines stand in the
place of a library. systemd promises that the protocol stays, and documents how to speak it without one.
The libraries on libsystemd have to be compiled; sdnotify, the common one in Python, is connected to a
manager once and for all, may block the reactor, leaves the variables to children, and has no watchdog.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sized

__all__ = ["ServiceManager", "Tells", "find", "service_manager"]

#: Seconds after which a changed number of connections is told.
STATUS_INTERVAL = 10.0
#: Seconds after which a message is sent again that the manager had no room for.
RETRY = 0.1

_log = Logger()


class Tells(Protocol):
    """A part of the program that a service manager waits for."""

    @property
    def connections(self) -> Sized:
        """Those that are open."""


class ServiceManager:
    """
    The service manager, as the parts of one program see it.

    Args:
        reactor: is watched, and says when the program stops.
        address: of the socket, as `socket.socket.sendto` takes it.
        watchdog: seconds in which the manager has to hear of the reactor; None if it need not.
    """

    def __init__(self, reactor: Any, address: str, watchdog: float | None) -> None:
        self._reactor = reactor
        self._address = address
        self._watchdog = watchdog
        # Opened now, and addressed each time: see the module's docstring. A manager that was started
        # anew listens under the same name.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._parts: list[Tells] = []
        self._waiting: list[Tells] = []
        self._is_ready = self._is_broken = False
        self._status = ""
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = reactor

    def expect(self, part: Tells) -> None:
        """Wait for *part*, before the program is ready; harmless when repeated."""
        if part not in self._parts:
            self._parts.append(part)
            self._waiting.append(part)

    def listens(self, part: Tells) -> None:
        """
        Count *part* as ready.

        When all are, and the reactor runs and so a signal ends it in order, the manager hears of it.
        """
        if part in self._waiting:
            self._waiting.remove(part)
            self._reactor.callWhenRunning(self._ready)

    def _ready(self) -> None:
        if self._waiting or self._is_ready:
            return
        self._is_ready = True
        self._status = self._count()
        self._send("READY=1", f"STATUS={self._status}")
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stopping)
        self._reactor.addSystemEventTrigger("during", "shutdown", self._stopped)
        # Twice in the time allowed, as systemd asks for.
        interval = min(STATUS_INTERVAL, (self._watchdog or STATUS_INTERVAL * 2) / 2)
        self._ticking.start(interval, now=self._watchdog is not None)

    def _tick(self) -> None:
        lines = [] if self._watchdog is None else ["WATCHDOG=1"]
        if (status := self._count()) != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        if lines:
            self._send(*lines)

    def _stopping(self) -> None:
        self._send("STOPPING=1")

    def _stopped(self) -> None:
        self._ticking.stop()
        self._socket.close()

    def _count(self) -> str:
        count = sum(len(part.connections) for part in self._parts)
        return "1 connection" if count == 1 else f"{count} connections"

    def _send(self, *lines: str) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except BlockingIOError:
            self._reactor.callLater(RETRY, self._send, *lines)
        except OSError as error:
            # A server serves on, whatever becomes of its manager.
            if not self._is_broken:
                self._is_broken = True
                _log.warn(
                    "txasynchat: cannot tell the service manager {lines}: {error}",
                    lines=", ".join(lines),
                    error=error,
                )
        else:
            self._is_broken = False


#: That of this process, once it was found.
_found: list[ServiceManager] = []


def service_manager(reactor: Any) -> ServiceManager | None:
    """
    Return the service manager that wants to be told of this process; None if there is none.

    When it is found, its variables are removed from the environment, and no child inherits them.
    """
    if not _found and (manager := find(reactor, os.environ)) is not None:
        _found.append(manager)
    return _found[0] if _found else None


def find(reactor: Any, environ: MutableMapping[str, str]) -> ServiceManager | None:
    """
    Return the service manager that *environ* names, and remove it from there; None if there is none.

    A value that cannot be used is logged, and ignored as it is by systemd's own function.
    """
    name = environ.pop("NOTIFY_SOCKET", "")
    if not name:
        return None
    microseconds, process = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if len(name) < 2 or name[0] not in "/@":
        _log.warn("txasynchat: NOTIFY_SOCKET={name} names no Unix socket; ignored", name=repr(name))
        return None
    watchdog = None
    if microseconds and process in ("", str(os.getpid())):
        # Of digits alone, as systemd reads it.
        if microseconds.isascii() and microseconds.isdecimal() and int(microseconds):
            watchdog = int(microseconds) / 1e6
        else:
            _log.warn(
                "txasynchat: WATCHDOG_USEC={value} is no number of microseconds; ignored",
                value=repr(microseconds),
            )
    # A name that begins with @ is one of Linux's abstract ones.
    return ServiceManager(reactor, f"\0{name[1:]}" if name[0] == "@" else name, watchdog)
