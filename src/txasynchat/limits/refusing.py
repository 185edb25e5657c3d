"""
What a peer hears that is refused, where it does not speak TLS; and how its connection ends then.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Protocol, connectionDone
from typing_extensions import override

from txasynchat import transports

if TYPE_CHECKING:
    from twisted.python.failure import Failure

__all__ = ["Refusal", "refuse_socket", "say_and_close"]

#: Seconds that a refused peer has to read why, and to close; and how many of a server's have that.
PATIENCE = 2.0
MOST = 64
#: Bytes that are read of what a refused peer has sent.
_LAST_READ = 65_536


class Refusal(Protocol):
    """
    In the place of a handler: says why, waits for the peer to close, but not for long.

    So what the peer still sends does not reset the connection, which could destroy what it is told.

    Args:
        text: that; empty to say nothing, and close.
        clock: measures time.
        others: those of the same server that have not closed; this will be among them.
    """

    transport: Any

    def __init__(self, text: bytes, clock: Any, others: set[Refusal]) -> None:
        self._text = text
        self._others = others
        self._clock = clock
        self._timer: Any = None

    @override
    def connectionMade(self) -> None:
        transport = self.transport
        if transports.tls_layer(transport) is not None:
            # Not by TLS, which would say something, or reset the connection.
            transports.innermost(transport).loseConnection()
            return
        if self._text:
            transport.write(self._text)
        if not self._text or len(self._others) >= MOST or not transports.can_half_close(transport):
            transport.loseConnection()
            return
        self._others.add(self)
        self._timer = self._clock.callLater(PATIENCE, self.end)
        transport.loseWriteConnection()

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._others.discard(self)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def end(self) -> None:
        """Wait no longer."""
        transports.abort(self.transport)


def refuse_socket(sock: socket.socket, address: Any, refusal: Any, reactor: Any) -> None:
    """
    Let a `Refusal` have an accepted socket.

    Args:
        sock: non-blocking; it is closed in the end.
        address: the peer's, as the `socket` module gives it.
        refusal: None to say nothing.
        reactor: one that has a hub.
    """
    if refusal is None:
        sock.close()
        return
    from txasynchat.hub.shared import shared_hub  # noqa: PLC0415 - loaded where sockets come from it
    from txasynchat.hub.transport import Connection, UNIXConnection  # noqa: PLC0415 - as above

    cls = UNIXConnection if sock.family == socket.AF_UNIX else Connection
    try:
        transport = cls(shared_hub(reactor), sock, refusal, address, None)
    except BaseException:
        sock.close()
        raise
    refusal.makeConnection(transport)


def say_and_close(sock: socket.socket, text: bytes) -> None:
    """Do the same at once, where nothing can be waited for."""
    with suppress(OSError):
        if text:
            sock.send(text)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(_LAST_READ)  # or closing would reset the connection
    sock.close()
