"""
Transports that ask the protocol before they close; and how a connection ends when its time is over.

An application, a mixin (``TimeoutMixin``) or a policy's wrapper calls ``loseConnection`` of whatever
layer it knows, and the call arrives at the innermost transport, or at TLS. That layer knows nothing of
what a protocol has queued, and waits for ever for a peer that reads nothing. So it is made to ask the
protocol first, and likewise before a write that bypasses the queue.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from OpenSSL.SSL import SENT_SHUTDOWN
from twisted.internet.endpoints import _WrappingProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.tcp import Connection
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

from txasynchat import transports
from txasynchat.delivery import unread

if TYPE_CHECKING:
    from collections.abc import Iterable

    _Base = Connection
else:
    _Base = object

__all__ = ["DONE", "asks_protocol", "end", "let_protocol_end", "own", "protocol_above", "sent_all"]

#: How many bytes, and how often, are read at most to empty a socket before it is closed.
_LAST_READ = 65_536
_LAST_READS = 64

# Shared, as in Twisted's reactors: a failure costs as much as a message.
DONE = Failure(ConnectionDone())  # type: ignore[no-untyped-call] # Twisted's, untyped


def own(transport: Any, protocol: Any) -> bool:
    """
    Do what `let_protocol_end` does, for a connection right beneath *protocol*, without TLS: one of the
    hub, or one whose port has accepted others before.

    Returns:
        False if *transport* is something else, and nothing was done.
    """
    if getattr(transport, "protocol", None) is not protocol:
        return False
    if hasattr(type(transport), "owner"):
        transport.owner = protocol
        return True
    return isinstance(transport, _Asking) and not transport.TLS


def let_protocol_end(transport: Any) -> None:
    """
    Make *transport* ask the protocol above it before the connection ends, whoever ends it.

    The protocol has two methods for that, ``_takes_closing`` and ``_takes_half_closing``. They return
    True if the protocol will end the connection, or the sending, itself, once everything is sent. It
    may have two more: ``_takes_write`` returns True for bytes that it sends itself, behind what it has
    queued; ``_takes_tls``, called before ``startTLS``, sends in the clear what is queued, or raises.

    A `TLSTransport` asks by itself; Twisted's own TLS is left alone.
    """
    connection = transports.innermost(transport)
    cls: Any = type(connection)
    if not isinstance(connection, Connection) or issubclass(cls, _Asking):
        return
    if transports.tls_layer(transport) is None:
        # By its class: attributes of each connection would cost more, and make a reference cycle.
        asking = connection.__class__ = _asking(cls)
        port: Any = getattr(connection, "server", None)
        if getattr(port, "transport", None) is cls:
            port.transport = asking  # what it accepts from now on has the class already


class _Asking(_Base):
    """Asks the protocol before a transport does what it is told."""

    def loseConnection(self) -> None:  # noqa: N802 Twisted's name
        if not asks_protocol(self, "_takes_closing"):
            super().loseConnection()  # type: ignore[no-untyped-call] # Twisted's, untyped

    def loseWriteConnection(self) -> None:  # noqa: N802 Twisted's name
        if not asks_protocol(self, "_takes_half_closing"):
            super().loseWriteConnection()  # type: ignore[no-untyped-call] # Twisted's, untyped

    def write(self, data: bytes) -> None:
        if not asks_protocol(self, "_takes_write", self, data):
            super().write(data)  # type: ignore[no-untyped-call] # Twisted's, untyped

    def writeSequence(self, iovec: Iterable[bytes]) -> None:  # noqa: N802 Twisted's name
        data = b"".join(iovec)
        if not asks_protocol(self, "_takes_write", self, data):
            super().write(data)  # type: ignore[no-untyped-call] # Twisted's, untyped

    def close_at_once(self, *, unread: bool) -> bool:
        """
        Close in the reactor's next iteration, without waiting until the socket is writable, if nothing
        waits to be sent.

        A line, its answer and the end cost a server 50 us with it and 71 without (CPython 3.11).

        Args:
            unread: see `hub.transport.Connection.close_at_once`, and for what this returns, too.
        """
        if not transports.has_room(self) or self.producer is not None:
            return False
        if unread and transports.has_unread_bytes(self):
            return False
        self.disconnecting = True
        reactor: Any = self.reactor
        reactor.removeReader(self)
        reactor.callLater(0, _close, self)
        return True

    def startTLS(self, *arguments: Any, **named: Any) -> None:  # noqa: N802 Twisted's name
        asks_protocol(self, "_takes_tls")
        super().startTLS(*arguments, **named)  # type: ignore[no-untyped-call] # Twisted's, untyped


@functools.cache
def _asking(cls: type) -> type:
    return type(cls.__name__, (_Asking, cls), {})


def asks_protocol(transport: Any, question: str, *arguments: Any) -> bool:
    """Ask the protocol above *transport*, or above the policies there; see `let_protocol_end`."""
    above = protocol_above(transport)
    ask = getattr(type(above), question, None)
    return ask is not None and bool(ask(above, *arguments))


def protocol_above(transport: Any) -> Any:
    """
    Return the protocol above *transport*, or above the policies there.

    None if other TLS is above it: that closes what is beneath it only when it is done, and writes what
    no protocol wrote.
    """
    if transports.is_tls(transport):
        above: Any = transport.wrappedProtocol
    else:
        above = getattr(transport, "protocol", None)
        if transport.TLS:
            above = above.wrappedProtocol  # skips the TLS that startTLS put in between
    while True:
        if transports.is_tls(above):
            return None
        if isinstance(above, ProtocolWrapper):
            above = above.wrappedProtocol
        elif isinstance(above, _WrappingProtocol):
            above = above._wrappedProtocol
        else:
            return above


def end(transport: Any) -> None:
    """
    End a connection whose time is over: in order if the operating system has everything.

    The operating system then delivers it, even after this process exits; an abort would destroy it.
    If something is still to be sent the connection is aborted, so that the peer does not take what it
    has received for everything.
    """
    connection: Any = transports.innermost(transport)
    if sent_all(transport):
        # Not by loseConnection, which waits until the socket is writable.
        reactor: Any = connection.reactor
        reactor.removeReader(connection)
        reactor.removeWriter(connection)
        reactor.callLater(0, _close, connection)
    else:
        transports.abort(transport)


def sent_all(transport: Any) -> bool:
    """
    Return whether the sending was ended, and the operating system has everything up to its end.

    False where that is not known.
    """
    connection = transports.innermost(transport)
    if not isinstance(connection, Connection):
        return False
    tls: Any = transports.tls_layer(transport)
    if tls is None:
        ended = connection.disconnecting or connection._writeDisconnecting
    elif isinstance(tls, transports.TLSBase):
        ended = tls.sent_everything
    elif tls._lostTLSConnection or tls._tlsConnection is None:
        ended = True
    else:
        ended = tls._tlsConnection.get_shutdown() & SENT_SHUTDOWN
    return bool(ended) and connection.producer is None and not transports.unsent_bytes(connection)


def _close(connection: Any) -> None:
    sock = getattr(connection, "socket", None)
    if sock is None:
        return  # lost meanwhile
    if unread(sock.fileno()):
        with suppress(OSError):
            # Closing a socket with bytes unread resets the connection.
            for _ in range(_LAST_READS):
                if not sock.recv(_LAST_READ):
                    break
    connection.connectionLost(DONE)
