r"""
For tests of applications: record a handler's calls, split its input, connect two ends in memory.

Nothing here needs a reactor, a socket or a thread.

    >>> from txasynchat import AsyncChat
    >>> from txasynchat.testing import check_cuts
    >>> class Echo(AsyncChat):
    ...     terminator = b"\n"
    ...     def message_received(self, message):
    ...         self.push(message + b"\n")
    >>> check_cuts(Echo, b"one\ntwo\n").sent
    b'one\ntwo\n'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from typing_extensions import override

from txasynchat.protocol import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from twisted.internet.interfaces import IProtocol
    from twisted.internet.protocol import BaseProtocol

    from txasynchat.protocol import AsyncChat

__all__ = ["MemoryEnd", "MemoryLink", "Outcome", "check_cuts", "record", "run"]

#: The hooks of a handler that are recorded.
_HOOKS = (
    "collect_incoming_data",
    "found_terminator",
    "message_received",
    "message_too_long",
    "handle_connect",
    "handle_secure",
    "handle_error",
    "handle_close",
)


def record(chat: AsyncChat) -> list[tuple[Any, ...]]:
    """
    Record each call of one of *chat*'s hooks, from now on, as ``(name, *arguments)``.

    Pieces of one message are recorded as one, because where they are split says nothing about the
    handler. Once the connection is closing only `handle_error` and `handle_close` are recorded, because
    how much is still delivered depends on how much arrived at once.

    Returns:
        The list that the calls are appended to.
    """
    calls: list[tuple[Any, ...]] = []

    def noting(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            if chat._state in (State.CONNECTING, State.OPEN) or name.startswith("handle_"):
                if name == "collect_incoming_data" and calls and calls[-1][0] == name:
                    calls[-1] = (name, calls[-1][1] + arguments[0])
                else:
                    calls.append((name, *arguments))
            return hook(*arguments)

        return noted

    for name in _HOOKS:
        setattr(chat, name, noting(name, getattr(chat, name)))
    return calls


@dataclass(frozen=True)
class Outcome:
    """
    The result of a conversation.

    Attributes:
        calls: the handler's hooks that were called; see `record`.
        sent: every byte that it sent.
        state: the state of the connection at the end.
    """

    calls: tuple[tuple[Any, ...], ...]
    sent: bytes
    state: State


def run(chat: AsyncChat, chunks: Iterable[bytes]) -> Outcome:
    """Connect *chat* to a transport in memory, and deliver *chunks* one by one."""
    calls = record(chat)
    transport = StringTransport()  # type: ignore[no-untyped-call] # Twisted's, untyped
    chat.makeConnection(transport)
    for chunk in chunks:
        chat.dataReceived(chunk)
    sent = transport.value()  # type: ignore[no-untyped-call] # Twisted's, untyped
    return Outcome(tuple(calls), sent, chat._state)


def check_cuts(build: Callable[[], AsyncChat], data: bytes) -> Outcome:
    """
    Check that a handler does not depend on how its input is split: *data* arrives in one piece, byte by
    byte, and split in two at each place, each time for a new handler.

    Args:
        build: makes the handler; its class will do.
        data: what the peer sends.

    Returns:
        The outcome, which is the same for every split.

    Raises:
        AssertionError: it is not; the message has the first split that makes a difference.
    """
    outcome = run(build(), [data])
    whole = _comparable(outcome)
    for chunks in _cuts(data):
        if (other := _comparable(run(build(), chunks))) != whole:
            raise AssertionError(f"split as {chunks!r:.200}\n{other}\nbut in one piece\n{whole}")
    return outcome


def _cuts(data: bytes) -> Iterator[list[bytes]]:
    yield [data[place : place + 1] for place in range(len(data))]
    for place in range(1, len(data)):
        yield [data[:place], data[place:]]


def _comparable(outcome: Outcome) -> tuple[Any, ...]:
    # Errors are compared by their text, because no two of them are equal.
    calls = [
        tuple(str(a) if isinstance(a, Exception) else a for a in call) for call in outcome.calls
    ]
    return calls, outcome.sent, outcome.state


class MemoryEnd(StringTransport):
    """One end of a `MemoryLink`: a transport that can be full, half-closed, and aborted."""

    #: Bytes waiting above which a producer is paused.
    room = 65_536

    def __init__(self, protocol: IProtocol | BaseProtocol) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Twisted's, untyped
        self.protocol: Any = protocol
        self.peer: MemoryEnd
        self.lost = False
        self._full = False
        self._write_ended = False
        self._write_end_told = False

    @override
    def write(self, data: bytes) -> None:
        if self.lost or self._write_ended:
            return
        super().write(data)  # type: ignore[no-untyped-call] # Twisted's, untyped
        if self.producer is not None and len(self._waiting()) > self.room:
            self._full = True
            self.producer.pauseProducing()

    def loseWriteConnection(self) -> None:  # noqa: N802 Twisted's name
        """Send nothing more; the peer hears of it when it has everything that was sent before."""
        self._write_ended = True

    @override
    def abortConnection(self) -> None:
        self._end(ConnectionAborted())

    def step(self, size: int | None) -> bool:
        """Do the next thing that this end has to do; return whether there was one."""
        waiting = self._waiting()
        if self.lost:
            return False
        if waiting and (self.peer.lost or self.peer.producerState == "producing"):
            piece = waiting[:size]
            self.clear()  # type: ignore[no-untyped-call] # Twisted's, untyped
            self.io.write(waiting[len(piece) :])
            if not self.peer.lost:  # or nobody takes it any more
                self.peer.protocol.dataReceived(piece)
        elif not waiting and self.producer is not None and (self._full or not self.streaming):
            self._full = False
            self.producer.resumeProducing()
        elif not waiting and self.disconnecting and self.producer is None:
            self._end(ConnectionDone(), self)
            self._tell_peer()
        elif not waiting and self._write_ended and not self._write_end_told:
            if IHalfCloseableProtocol.providedBy(self.protocol):
                self.protocol.writeConnectionLost()
            self._tell_peer()
        else:
            return False
        return True

    def _waiting(self) -> bytes:
        waiting: bytes = self.value()  # type: ignore[no-untyped-call] # Twisted's, untyped
        return waiting

    def _tell_peer(self) -> None:
        """Let the peer hear, once, that nothing more comes."""
        told, self._write_end_told = self._write_end_told, True
        if told or self.peer.lost:
            return
        if IHalfCloseableProtocol.providedBy(self.peer.protocol):
            self.peer.protocol.readConnectionLost()
        else:
            self.peer._end(ConnectionDone())

    def _end(self, reason: Exception, *ends: MemoryEnd) -> None:
        for end in ends or (self, self.peer):
            if not end.lost:
                end.lost = True
                failure = Failure(reason)  # type: ignore[no-untyped-call] # Twisted's, untyped
                end.protocol.connectionLost(failure)


class MemoryLink:
    """
    Two protocols, connected in memory. Nothing moves except in `flush`.

    Args:
        client, server: protocols without a transport; both are connected at once.
        size: bytes that arrive at once, at most; None for no limit.
    """

    def __init__(
        self,
        client: IProtocol | BaseProtocol,
        server: IProtocol | BaseProtocol,
        size: int | None = None,
    ) -> None:
        self.size = size
        self.client = MemoryEnd(client)
        self.server = MemoryEnd(server)
        self.client.peer, self.server.peer = self.server, self.client
        server.makeConnection(self.server)
        client.makeConnection(self.client)

    def flush(self) -> None:
        """Deliver everything, and do what follows from it at both ends, until nothing moves."""
        while self.client.step(self.size) | self.server.step(self.size):
            pass
