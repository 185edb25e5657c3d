"""
`Gates`: what a server's ports do with connections before anybody serves them.

Three things are decided here, because they have to be before there is a transport: how many are
accepted one after the other, what happens without a descriptor, and who waits.

Who waits (``when_full="queue"``) has been accepted, and nothing more: there is no transport, no
handler, no TLS, and nothing is read, so it costs a descriptor, and its bytes stay in the system.
Connections that are not accepted would cost less still. But nobody could say how many wait, or end one
that has waited for too long; those of several ports would not be served in their order; and those that
have gone again, of whom there may be any number, would each be given a place first.
"""

from __future__ import annotations

import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet import tcp
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from typing_extensions import override

from txasynchat.hub.accepting import LARGEST_BATCH, Accepting
from txasynchat.limits.exhaustion import Exhaustion
from txasynchat.limits.refusing import say_and_close
from txasynchat.tls.factory import TLSFactory
from txasynchat.transports import TLSBase

if TYPE_CHECKING:
    from txasynchat.limits.admission import Admission
    from txasynchat.limits.options import Limits

__all__ = ["Gates"]

#: How many may wait, and for how many seconds, where nothing else is said.
QUEUE, QUEUE_TIMEOUT = 128, 60.0
#: Seconds between two looks whether some of those that wait have gone, when no more may wait; and
#: whether connections that a proxy was to introduce have.
_LOOK = 0.25
#: The same, for places that nobody said are free.
_SOMETIMES = 1.0
#: The shortest delay, in seconds.
_SHORTEST = 0.001


class _Waiting(NamedTuple):
    sock: socket.socket
    address: Any
    gate: _Gate
    since: float


class Gates:
    """
    Those of one server's ports.

    Args:
        admission: says who is taken.
        limits: of the server.
    """

    def __init__(self, admission: Admission, limits: Limits) -> None:
        self.admission = admission
        self.exhaustion = Exhaustion(admission.clock)
        self.queues = limits.value("when_full") == "queue"
        self.batch: int = min(limits.value("accepts") or LARGEST_BATCH, LARGEST_BATCH)
        self._most: int = limits.value("queue", QUEUE)
        self._timeout: float | None = limits.value("queue_timeout", QUEUE_TIMEOUT)
        self._waiting: deque[_Waiting] = deque()
        # The factories whose connections a proxy has to introduce first.
        self._introducers: list[Any] = []
        self._timer: Any = None
        self._looked = 0.0
        self._closed = False
        admission.when_free = self._soon

    def guard(self, port: Any) -> None:
        """Decide for *port* from now on, if it accepts sockets in a way that is known here."""
        for one in _factories(port):
            if hasattr(one, "introducing"):
                self.admission.trust(one.options.trusted)
                self._introducers.append(one)
            elif isinstance(one, WrappingFactory) and not isinstance(one, TLSFactory):
                one.__dict__["buildProtocol"] = partial(_build_within, self.admission, one)
        if not isinstance(port, Accepting):
            if getattr(type(port), "doRead", None) is not tcp.Port.doRead:
                return
            port.__class__ = _gated(type(port))
            port.socket.setblocking(False)
        self._closed = False
        self.keep_descriptor()
        port.gate = _Gate(self, port)

    def keep_descriptor(self) -> None:
        """Keep one, with which connections can be refused."""
        if not self.queues:
            self.exhaustion.begin()

    def close(self) -> None:
        """The server stops: nobody waits any more."""
        self._closed = True
        self._stop_timer()
        self.exhaustion.end()
        self.admission.end_refusals()
        self._introducers.clear()
        while self._waiting:
            self._waiting.popleft().sock.close()
        self.admission.waiting = 0

    def passes(self, gate: _Gate, sock: socket.socket, address: Any) -> bool:
        """Return whether a connection is served now; else let it wait, or refuse it."""
        admission = self.admission
        has_room = admission.has_room(self._coming())  # which finds places that were forgotten, too
        if has_room and not self._waiting:
            return True
        now = admission.clock.seconds()
        if len(self._waiting) >= self._most and now - self._looked >= _LOOK:
            self._looked = now
            self._forget_gone()
        if self._closed:
            sock.close()
        elif len(self._waiting) >= self._most:
            admission.refuse(address, "queue")
            gate.say(sock)
        else:
            self._waiting.append(_Waiting(sock, address, gate, now))
            admission.waiting += 1
            if self._timer is None:
                self._set_timer()
        return False

    # -- internals

    def _coming(self) -> int:
        """Count the connections, of every port, that a proxy still has to introduce."""
        return sum(one.introducing for one in self._introducers)

    def _soon(self) -> None:
        """A place is free; somebody's end is being told at the moment."""
        if self._waiting:
            self._stop_timer()
            self._timer = self.admission.clock.callLater(0, self._turn)

    def _turn(self) -> None:
        """Serve who may be served, and refuse who has waited for too long."""
        self._timer = None
        admission = self.admission
        now = admission.clock.seconds()
        while self._waiting:
            sock, address, gate, since = self._waiting[0]
            if admission.has_room(self._coming()):
                self._next()
                if _has_gone(sock):
                    sock.close()
                else:
                    gate.serve(sock, address)
            elif self._timeout is not None and now - since >= self._timeout:
                self._next()
                admission.refuse(address, "queue_timeout")
                gate.say(sock)
            else:
                break
        if self._waiting and self._timer is None:
            self._set_timer()

    def _next(self) -> None:
        self._waiting.popleft()
        self.admission.waiting -= 1

    def _set_timer(self) -> None:
        first = self._waiting[0]
        clock = self.admission.clock
        delays = [_LOOK if self._coming() else _SOMETIMES]
        if wait := self.admission.wait():
            delays.append(wait)
        if self._timeout is not None:
            delays.append(first.since + self._timeout - clock.seconds())
        self._timer = clock.callLater(max(_SHORTEST, min(delays)), self._turn)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _forget_gone(self) -> None:
        kept: deque[_Waiting] = deque()
        for one in self._waiting:
            if _has_gone(one.sock):
                one.sock.close()
            else:
                kept.append(one)
        self._waiting = kept
        self.admission.waiting = len(kept)


class _Gate:
    """That of one port; a `hub.accepting.Gate`."""

    __slots__ = ("_gates", "_port", "_refusal", "asks", "batch")

    def __init__(self, gates: Gates, port: Any) -> None:
        self._gates = gates
        self._port = port
        self.asks = gates.queues
        self.batch = gates.batch
        self._refusal = b"" if any(map(_secures, _factories(port))) else gates.admission.refusal

    def passes(self, sock: socket.socket, address: Any) -> bool:
        return self._gates.passes(self, sock, address)

    def exhausted(self, listener: socket.socket) -> bool:
        gates = self._gates
        gates.exhaustion.happened(refuses=not gates.queues)
        if gates.queues:
            return False
        count, fine = gates.exhaustion.refuse(listener, self.batch, self.say)
        gates.admission.refused["descriptors"] += count
        return fine

    def rested(self) -> None:
        # The first descriptor that there is must not be a connection's, or nobody could be refused.
        self._gates.keep_descriptor()

    def say(self, sock: socket.socket) -> None:
        """Refuse a connection that nobody serves."""
        say_and_close(sock, self._refusal)

    def serve(self, sock: socket.socket, address: Any) -> None:
        """Serve one that has waited."""
        if self._port.connected and not self._port.disconnecting:
            self._port.serve(sock, address)
        else:
            sock.close()


def _factories(port: Any) -> list[Any]:
    """Return the factories of a port, the lowest first."""
    found: list[Any] = [getattr(port, "factory", None)]
    while isinstance(found[-1], WrappingFactory):
        found.append(found[-1].wrappedFactory)
    return found


def _build_within(admission: Admission, factory: Any, address: Any) -> Any:
    """Build a protocol of one of Twisted's factories, which may be that of ``haproxy:``."""
    with admission.within(unknown=type(factory).__name__ == "HAProxyWrappingFactory"):
        return type(factory).buildProtocol(factory, address)


def _secures(factory: Any) -> bool:
    """Return whether what *factory* serves speaks TLS."""
    protocol = getattr(factory, "protocol", None)
    return getattr(type(factory), "secures", False) or (
        isinstance(protocol, type) and issubclass(protocol, TLSBase | TLSMemoryBIOProtocol)
    )


def _has_gone(sock: socket.socket) -> bool:
    """Return whether the peer has ended, or reset, a connection on which it had sent nothing."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


# Without types.
_Port: Any = tcp.Port


class _Gated(Accepting, _Port):  # type: ignore[misc] # see above
    """The part of one of Twisted's ports that accepts as ours do."""

    sessionno: int

    def doRead(self) -> None:  # noqa: N802 Twisted's
        """Accept what has connected."""
        self.accept_some()

    @override
    def serve_socket(self, sock: socket.socket, address: Any) -> None:
        self.make_connection(sock, address, self.factory)

    @override
    def make_transport(self, sock: socket.socket, protocol: Any, peer: Any) -> Any:
        number: int = self.sessionno
        self.sessionno = number + 1
        return self.transport(sock, protocol, peer, self, number, self.reactor)

    @override
    def startReading(self) -> None:
        if not self.resting:
            super().startReading()

    @override
    def stopReading(self) -> None:
        self.end_rest()
        super().stopReading()

    @override
    def connectionLost(self, reason: Any) -> None:
        self.end_rest()
        super().connectionLost(reason)


_classes: dict[type, type] = {}


def _gated(cls: type) -> type:
    made = _classes.get(cls)
    if made is None:
        made = _classes[cls] = type(cls.__name__, (_Gated, cls), {})
    return made
