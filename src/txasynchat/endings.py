"""
Who has a say in what others do to a Twisted transport; what to do when its end takes too long.

An application, a mixin (``TimeoutMixin``) or a policy's wrapper calls ``loseConnection`` of whatever
layer it knows, and that comes down to the transport at the bottom, or to TLS. That layer knows
nothing of what a protocol has queued, and waits for ever for a peer that reads nothing. So it is made
to ask the protocol first. So it is for what is written to it past the queue.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from OpenSSL.SSL import SENT_SHUTDOWN
from twisted.internet.endpoints import _WrappingProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.tcp import Connection
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from txasynchat import transports

if TYPE_CHECKING:
    from collections.abc import Iterable

    _Base = Connection
else:
    _Base = object

__all__ = ["asks_protocol", "end", "let_protocol_end", "protocol_above"]

#: Reads of so many bytes, and so often, empty a socket that is about to be closed.
_LAST_READ = 65_536
_LAST_READS = 64


def let_protocol_end(transport: Any) -> None:
    """
    Let the protocol above *transport* have its say before the connection ends, whoever ends it.

    The protocol has two methods for that, ``_takes_closing`` and ``_takes_half_closing``. They return
    True if the protocol ends the connection, or the sending, itself, when it can. It may have two more:
    ``_takes_write`` returns True for bytes that it sends itself, behind what it has queued;
    ``_takes_tls``, called before ``startTLS`` of the transport, sends what is queued, or raises.

    A `TLSLayer` asks by itself; Twisted's own TLS is left alone.
    """
    connection = transports.innermost(transport)
    cls = type(connection)
    if not isinstance(connection, Connection) or issubclass(cls, _Asking):
        return
    if transports.tls_layer(transport) is None:
        # By its class: attributes of each connection would cost more, and be a circle to break.
        asking = connection.__class__ = _asking.get(cls) or _make_asking(cls)
        port: Any = getattr(connection, "server", None)
        if getattr(port, "transport", None) is cls:
            port.transport = asking  # what it accepts from now on has the class already


class _Asking(_Base):
    """
    Goes before the methods of a transport.
    """

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

    def startTLS(self, *arguments: Any, **named: Any) -> None:  # noqa: N802 Twisted's name
        asks_protocol(self, "_takes_tls")
        super().startTLS(*arguments, **named)  # type: ignore[no-untyped-call] # Twisted's, untyped


_asking: dict[type, type] = {}


def _make_asking(cls: type) -> type:
    asking = _asking[cls] = type(cls.__name__, (_Asking, cls), {})
    return asking


def asks_protocol(transport: Any, question: str, *arguments: Any) -> bool:
    """
    Ask the protocol above *transport*, or above the policies there; see `let_protocol_end`.
    """
    above = protocol_above(transport)
    ask = getattr(type(above), question, None)
    return ask is not None and bool(ask(above, *arguments))


def protocol_above(transport: Any) -> Any:
    """
    Return the protocol above *transport*, or above the policies there; None above other TLS, which is
    at its end when it ends what is beneath it, and writes what no protocol wrote.
    """
    if isinstance(transport, TLSMemoryBIOProtocol):
        above: Any = transport.wrappedProtocol
    else:
        above = getattr(transport, "protocol", None)
        if transport.TLS:
            above = above.wrappedProtocol  # startTLS put TLS in between, which does not call this
    while True:
        if isinstance(above, TLSMemoryBIOProtocol):
            return None
        if isinstance(above, ProtocolWrapper):
            above = above.wrappedProtocol
        elif isinstance(above, _WrappingProtocol):
            above = above._wrappedProtocol
        else:
            return above


def end(transport: Any) -> None:
    """
    End a connection whose time is over: in order where all was handed to the operating system.

    That goes on to deliver what it holds, also when this process is gone, while an abort destroys
    it. Where something was still to be sent the connection is aborted, so that the peer does not
    take what it has for all.
    """
    connection = transports.innermost(transport)
    if isinstance(connection, Connection) and _sent_all(transport, connection):
        # Not by loseConnection, which waits for a socket that can be written to.
        reactor: Any = connection.reactor
        reactor.removeReader(connection)
        reactor.removeWriter(connection)
        reactor.callLater(0, _close, connection)
    else:
        transports.abort(transport)


def _sent_all(transport: Any, connection: Connection) -> bool:
    """
    Tell whether the sending was ended, and the operating system has everything up to its end.
    """
    tls: Any = transports.tls_layer(transport)
    if tls is None:
        ended = connection.disconnecting or connection._writeDisconnecting
    elif tls._lostTLSConnection or tls._tlsConnection is None:
        ended = True
    else:
        ended = tls._tlsConnection.get_shutdown() & SENT_SHUTDOWN
    return bool(ended) and connection.producer is None and not transports.unsent_bytes(connection)


def _close(connection: Any) -> None:
    sock = getattr(connection, "socket", None)
    if sock is None:
        return  # lost meanwhile
    with suppress(OSError):
        # To close a socket with bytes unread is to reset the connection.
        for _ in range(_LAST_READS):
            if not sock.recv(_LAST_READ):
                break
    connection.connectionLost(Failure(ConnectionDone()))  # type: ignore[no-untyped-call] # Twisted's
