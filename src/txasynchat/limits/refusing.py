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

#: Seconds that a refused peer has to read why, and to close; and how many have that at a time.
PATIENCE = 2.0
MOST = 64
#: Bytes that are read of what a refused peer has sent.
_LAST_READ = 65_536

_all: set[Refusal] = set()


class Refusal(Protocol):
    """
    In the place of a handler: says why, waits for the peer to close, but not for long.

    So what the peer still sends does not reset the connection, which could destroy what it is told.

    Args:
        text: that.
        clock: measures time.
    """

    transport: Any

    def __init__(self, text: bytes, clock: Any) -> None:
        self._text = text
        self._clock = clock
        self._timer: Any = None

    @override
    def connectionMade(self) -> None:
        transport = self.transport
        if transports.tls_layer(transport) is not None:
            # Not by TLS, which would say something, or reset the connection.
            transports.innermost(transport).loseConnection()
            return
        transport.write(self._text)
        if len(_all) >= MOST or not transports.can_half_close(transport):
            transport.loseConnection()
            return
        _all.add(self)
        self._timer = self._clock.callLater(PATIENCE, self._end)
        transport.loseWriteConnection()

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        _all.discard(self)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _end(self) -> None:
        transports.abort(self.transport)


def refuse_socket(sock: socket.socket, address: Any, text: bytes, reactor: Any) -> None:
    """
    Do as `Refusal` does on an accepted socket.

    Args:
        sock: non-blocking; it is closed in the end.
        address: the peer's, as the `socket` module gives it.
        text: empty to say nothing.
        reactor: one that has a hub.
    """
    if not text:
        sock.close()
        return
    from txasynchat.hub.shared import shared_hub  # noqa: PLC0415 - loaded where sockets come from it
    from txasynchat.hub.transport import Connection, UNIXConnection  # noqa: PLC0415 - as above

    protocol: Any = Refusal(text, reactor)
    cls = UNIXConnection if sock.family == socket.AF_UNIX else Connection
    try:
        transport = cls(shared_hub(reactor), sock, protocol, address, None)
    except BaseException:
        sock.close()
        raise
    protocol.makeConnection(transport)


def say_and_close(sock: socket.socket, text: bytes) -> None:
    """Do the same at once, where nothing can be waited for."""
    with suppress(OSError):
        if text:
            sock.send(text)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(_LAST_READ)  # or closing would reset the connection
    sock.close()
