"""
What Twisted's transports over pipes and terminals lack: an abort, and notice of each end.

Standard input and output, and a child process, have one descriptor for each direction, and each is
lost by itself. A terminal or a serial port has one for both. None of them has ``abortConnection``;
`StandardIO` does not report the loss of its second descriptor; a process reports only its exit.

A connection over pipes is the pipes, not the process at the other end. To abort it is to hang up, as
over a network; the process is not killed.

This module knows those transports, and no protocol. `transports` adds what is known of sockets.
"""

from __future__ import annotations

import fcntl
import sys
import termios
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

from twisted.internet import stdio
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone
from twisted.internet.process import Process, PTYProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "GRACE",
    "STANDARD_IO",
    "call_weakly",
    "close_input",
    "end",
    "innermost",
    "layers",
    "let_go",
    "reactor_of",
    "read_what_is_there",
    "tell_of_ends",
    "waits_for_exit",
    "writing_end",
]

#: Twisted's `StandardIO`; what it is to a type checker depends on the platform.
STANDARD_IO: Any = stdio.StandardIO
#: Without types, because its methods have none.
_PROCESS: Any = Process
#: Seconds that a process has between the end of its input and that of its output, at an abort.
GRACE = 1.0
#: Bytes that Twisted reads from a pipe at once.
_READ = 8_192


def layers(transport: Any) -> list[Any]:
    """List *transport* and what it is wrapped around, outermost first."""
    if isinstance(transport, FileDescriptor):
        return [transport]  # at once, because most are, and are asked several times
    found = []
    while transport is not None and transport not in found:
        found.append(transport)
        names = vars(transport) if hasattr(transport, "__dict__") else {}
        # Twisted's endpoint for processes uses the second name.
        transport = names.get("transport") or names.get("_process")
    return found


def innermost(transport: Any) -> Any:
    """Return *transport*, or what it is wrapped around at last."""
    return transport if isinstance(transport, FileDescriptor) else layers(transport)[-1]


def writing_end(transport: Any) -> Any:
    """Return the descriptor that *transport* writes to; None if it has none, or not any more."""
    transport = innermost(transport)
    if isinstance(transport, FileDescriptor):
        return transport
    if isinstance(transport, STANDARD_IO):
        return transport._writer
    return transport.pipes.get(0) if isinstance(transport, Process) else None


def waits_for_exit(transport: Any) -> bool:
    """Return whether the loss of the connection is reported only when a process exits."""
    return isinstance(innermost(transport), Process | PTYProcess)


def reactor_of(transport: Any) -> Any:
    """Return the reactor that drives *transport*; None for one in memory."""
    transport = innermost(transport)
    if isinstance(transport, STANDARD_IO):
        transport = transport._reader or transport._writer
    return getattr(transport, "reactor", None) or getattr(transport, "_reactor", None)


def call_weakly(method: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls *method* of an object that it does not keep alive."""
    reference = WeakMethod(method)

    def call() -> None:
        if (alive := reference()) is not None:
            alive()

    return call


def tell_of_ends(transport: Any, listener: Any) -> None:
    """Call *listener*, an `IHalfCloseableProtocol`, when a process closes one of its two ends."""
    transport = innermost(transport)
    if isinstance(transport, Process) and transport.proto is not None:
        proto: Any = transport.proto
        proto.outConnectionLost = call_weakly(listener.readConnectionLost)
        proto.inConnectionLost = call_weakly(listener.writeConnectionLost)


def read_what_is_there(transport: Any) -> None:
    """Deliver what has already arrived: a peer that hangs up may have said something before."""
    transport = innermost(transport)
    reader: Any = None
    if isinstance(transport, STANDARD_IO):
        reader = transport._reader
    elif isinstance(transport, Process):
        reader = transport.pipes.get(1)
    if reader is None or reader.disconnected or reader.disconnecting:
        return
    try:
        size = fcntl.ioctl(reader.fileno(), termios.FIONREAD, bytes(4))
    except OSError:  # standard input may be anything
        return
    for _ in range(0, int.from_bytes(size, sys.byteorder), _READ):
        # What this returns is about the end of the pipe, which the reactor finds out by itself.
        reader.doRead()


def close_input(transport: Any) -> bool:
    """Close the standard input of a process, once all is written; return whether it had one."""
    transport = innermost(transport)
    if isinstance(transport, _PROCESS) and 0 in transport.pipes:
        transport.closeStdin()
        return True
    return False


def let_go(transport: Any, *, sent: bool) -> bool:
    """
    Close *transport* in the order that suits it, when it has sent everything.

    Only the input of a process is closed, because it may still write before it exits, and closing its
    output would be an error to it. A process on a terminal can only be hung up on, and loses what it
    has not read; if anything was *sent*, that waits for an abort. `StandardIO` that can no longer
    write would not report its end by itself.

    Returns:
        False if ``loseConnection`` does the right thing, and nothing was done.
    """
    if close_input(transport):
        return True
    transport = innermost(transport)
    if isinstance(transport, STANDARD_IO) and transport._writer is None:
        return end(transport, ConnectionDone())
    return sent and isinstance(transport, PTYProcess)


def end(transport: Any, error: Exception) -> bool:
    """
    Hang up, whatever was not sent; the protocol hears of *error* in the reactor's next iteration.

    If a process lives on, Twisted still waits for its exit. Its output is closed `GRACE` seconds after
    its input, so that it may end in order.

    Returns:
        False if *transport* is of another kind, and nothing was done.
    """
    transport = innermost(transport)
    if isinstance(transport, STANDARD_IO):
        ends = [one for one in (transport._reader, transport._writer) if one is not None]
    elif isinstance(transport, _PROCESS):
        transport.pauseProducing()
        ends = [transport.pipes[0]] if 0 in transport.pipes else []
    elif isinstance(transport, FileDescriptor):
        ends = [transport]
    else:
        return False
    for one in ends:
        # The reactor may still have an event for it in this iteration.
        one.doRead = one.doWrite = lambda: None
        one.stopReading()
        one.stopWriting()
    reactor = reactor_of(transport)
    reason = Failure(error)  # type: ignore[no-untyped-call] # Twisted's, untyped
    if reactor is None:
        # Both ends of standard input and output are gone, and nothing was reported.
        _finish(transport, ends, reason)
    else:
        reactor.callLater(0, _finish, transport, ends, reason)
    return True


def _finish(transport: Any, ends: list[Any], reason: Failure) -> None:
    if isinstance(transport, Process):
        for one in ends:
            if not one.disconnected:
                one.connectionLost(reason)
    elif not transport.disconnected:
        transport.connectionLost(reason)
    if waits_for_exit(transport) and transport.proto is not None:
        # It has not exited.
        proto = transport.proto
        transport.proto = _Nobody(transport, GRACE if ends else 0.0)
        proto.processEnded(reason)


class _Nobody(ProcessProtocol):
    """Takes the place of a protocol that hung up on a process, until the process exits."""

    def __init__(self, process: Any, grace: float) -> None:
        self._timer: Any = None
        if isinstance(process, _PROCESS):
            process.resumeProducing()
            self._timer = process._reactor.callLater(grace, process.loseConnection)

    @override
    def processEnded(self, reason: Failure) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
