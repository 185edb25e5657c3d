"""
`Connection`: a transport on a socket of its own, in a `SharedHub`.

What applications may ask of ``self.transport`` is Twisted's, by inheritance: addresses, options, half
closes, producers, ``startTLS``. The way of the bytes is not. An event is one ``recv``, and one call of
``dataReceived``. What is written while handlers run goes out when they have run, joined, by one system
call; the reactor is asked to wait only for what the operating system did not take. `AsyncChat` does not
wait for that, but sends at once (`Connection.send_now`).

An idle connection has no timer, closure or wrapper. Its attributes are slots; the rarer ones
(producers, TLS, what an application sets) come into a dict when they are used.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IFileDescriptorReceiver,
    IHalfCloseableProtocol,
    ILoggingContext,
    IUNIXTransport,
)
from twisted.internet.unix import _SendmsgMixin
from twisted.logger import Logger
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import implementer

from txasynchat.delivery import unread as unread_bytes
from txasynchat.endings import DONE
from txasynchat.hub.pollers import READ, WRITE
from txasynchat.hub.shared import LOST
from txasynchat.log import failure
from txasynchat.transports import address_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from txasynchat.hub.shared import SharedHub

__all__ = ["Connection", "Outgoing", "OutgoingUNIX", "UNIXConnection"]

#: Bytes that are read at once.
LARGEST_READ = 65_536
#: How often an event reads while it gets that many.
READS = 4
#: Bytes, of several pieces, that are joined to be sent; more go by ``sendmsg``.
JOINED = 65_536
#: Pieces that one ``sendmsg`` is given.
PIECES = 64

# Twisted's methods have no types.
_Connection: Any = tcp.Connection
_Failure: Any = Failure
_getsockname: Any = tcp._getsockname
_DescriptorsMixin: Any = _SendmsgMixin

_SLOTS = (
    "_hub",
    "_mask",
    "_number",
    "_tempDataBuffer",
    "_tempDataLen",
    "_waits",
    "client",
    "connected",
    "disconnected",
    "disconnecting",
    "owner",
    "protocol",
    "server",
    "socket",
)

_RESET = struct.pack("ii", 1, 0)
#: Stands for a list of what waits, where nothing does.
_NOTHING: Any = ()


class Connection(_Connection):  # type: ignore[misc] # without types
    """
    A connection that a port accepted, or that a client made.

    Args:
        hub: serves it.
        sock: connected, and non-blocking.
        peer: the peer's address, as the `socket` module gives it.
        server: the port that accepted it; None for a client's.

    Attributes:
        owner: who is asked before the connection is ended or written to; see
            `endings.let_protocol_end`. A protocol right above sets it; policies are found otherwise.
    """

    # Not literally, so that type checkers know of the dict as well.
    __slots__ = (*_SLOTS,)

    # Attributes of the class there, and not of each instance.
    producer: Any
    streamingProducer: bool  # noqa: N815 Twisted's
    producerPaused: bool  # noqa: N815 Twisted's
    TLS: bool
    _aborting: bool
    _writeDisconnecting: bool  # noqa: N815 Twisted's
    _writeDisconnected: bool  # noqa: N815 Twisted's

    _log = Logger()

    def __init__(  # no super(): it would set attributes that are not slots
        self, hub: SharedHub, sock: socket.socket, protocol: Any, peer: Any, server: Any
    ) -> None:
        self._hub = hub
        self.socket = sock
        self.protocol = protocol
        self.client = peer
        self.server = server
        self.owner: Any = None
        # Names that Twisted's own methods use: what waits to be sent, and how many bytes that is.
        self._tempDataBuffer: Any = _NOTHING
        self._tempDataLen = 0
        # `SharedHub.later` was called, and proceed() was not yet.
        self._waits = False
        self.connected = 1
        self.disconnected = 0
        self.disconnecting = 0
        self._number = sock.fileno()
        self._mask = READ
        hub.add(self._number, self, READ)

    # -- what Twisted's connections keep as attributes

    @property
    def reactor(self) -> Any:
        """The reactor that has the hub."""
        return self._hub.reactor

    @property
    def hostname(self) -> Any:
        """The peer's host."""
        return self.client[0]

    @property
    def _tlsClientDefault(self) -> bool:  # noqa: N802 Twisted's
        return self.server is None

    @property
    def proxied(self) -> Any:
        """What a proxy said of the connection (`Proxied`); None if it comes by no proxy, or is lost."""
        return getattr(getattr(self, "socket", None), "proxied", None)

    @override
    def fileno(self) -> int:
        """Return the socket's descriptor; -1 when the connection is gone."""
        return -1 if self.disconnected else self._number

    @override
    def logPrefix(self) -> str:
        protocol = getattr(self, "protocol", None)
        if ILoggingContext.providedBy(protocol):
            return str(protocol.logPrefix())
        return type(protocol).__name__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.logPrefix()} with {self.client!r}>"

    # -- ITransport

    def getHost(self) -> Any:  # noqa: N802 Twisted's
        """Return this side's address."""
        return address_of(_getsockname(self.socket))

    def getPeer(self) -> Any:  # noqa: N802 Twisted's
        """Return the peer's address."""
        return address_of(self.client)

    @override
    def write(self, data: bytes) -> None:
        owner = self.owner
        if owner is not None and self._asks(owner) and owner._takes_write(self, data):
            return
        if self.TLS:
            super().write(data)
            return
        if not isinstance(data, bytes | memoryview):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        if not self.connected or self._writeDisconnected or not data:
            return
        if self._tempDataBuffer:
            self._tempDataBuffer.append(data)
        else:
            self._tempDataBuffer = [data]
        self._tempDataLen += len(data)
        if self.producer is not None:
            self._maybePauseProducer()
        if not self._waits and not self._mask & WRITE:
            self._waits = True
            self._hub.later(self)

    @override
    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def send_now(self, data: bytes) -> bytes:
        """Send at once, if nothing waits before; return what was not sent. See `immediate_sender`."""
        if self._tempDataLen or self.disconnecting or self.TLS or self._writeDisconnecting:
            return data
        try:
            sent = self.socket.send(data)
        except (OSError, AttributeError):  # of a connection that is gone, too
            return data
        return b"" if sent == len(data) else memoryview(data)[sent:]  # type: ignore[return-value] # for write()

    def close_at_once(self, *, unread: bool) -> bool:
        """
        Close when the handlers have run, if nothing waits to be sent.

        Args:
            unread: check for bytes that nobody has read. Closing then would reset the connection, which
                may destroy what was sent last.

        Returns:
            False if nothing was done, because bytes wait, or nobody has read some.
        """
        if self._tempDataLen or self.TLS or self.disconnecting or self._writeDisconnecting:
            return False
        if unread and unread_bytes(self._number) > 0:
            return False
        self.disconnecting = 1
        self._mask = 0
        if not self._waits:
            self._waits = True
            self._hub.later(self)
        return True

    @override
    def loseWriteConnection(self) -> None:
        owner = self.owner
        if owner is None or not self._asks(owner) or not owner._takes_half_closing():
            super().loseWriteConnection()

    @override
    def loseConnection(self) -> None:
        owner = self.owner
        if owner is not None and self._asks(owner) and owner._takes_closing():
            return
        if self.TLS:
            super().loseConnection()
        elif self.connected and not self.disconnecting:
            self.disconnecting = 1
            self._mask = 0  # the hub is told when bytes wait
            if self._writeDisconnected:
                self.connectionLost(DONE)
            elif not self._waits:
                self._waits = True
                self._hub.later(self)

    @override
    def abortConnection(self) -> None:
        if not self.disconnected and not self._aborting:
            self._aborting = True
            self._watch(0)
            # Not in this turn: a client that has just connected should find out first.
            self.reactor.callLater(0, self.connectionLost, _Failure(ConnectionAborted()))

    def startTLS(self, ctx: Any, normal: bool = True) -> None:  # noqa: N802 Twisted's
        """Begin TLS with Twisted's options; see `ITLSTransport`."""
        owner = self.owner
        if owner is not None and self._asks(owner):
            owner._takes_tls()
        if not self._tempDataBuffer:
            self._tempDataBuffer = []  # Twisted's own write() appends to it
        super().startTLS(ctx, normal)

    # -- Twisted's FileDescriptor

    @override
    def startReading(self) -> None:
        if self.connected and not (self.disconnecting or self._aborting):
            self._watch(self._mask | READ)

    @override
    def stopReading(self) -> None:
        if self.connected:
            self._watch(self._mask & ~READ)

    @override
    def startWriting(self) -> None:
        if self.connected and not self._waits:
            self._waits = True
            self._hub.later(self)

    @override
    def stopWriting(self) -> None:
        if self.connected:
            self._watch(self._mask & ~WRITE)

    @override
    def connectionLost(self, reason: Failure) -> None:
        if self.disconnected:
            return
        self.disconnected = 1
        self.connected = 0
        self._mask = 0
        self._hub.remove(self._number, self)
        producer = self.producer
        if producer is not None:
            self.producer = None
            try:
                producer.stopProducing()
            except BaseException:  # noqa: BLE001 the protocol has to hear of the loss all the same
                failure(
                    self._log,
                    "{connection!r}: a producer raised when it was stopped",
                    connection=self,
                )
        sock, protocol = self.socket, self.protocol
        del self.socket, self.protocol
        self.owner = None
        try:
            if isinstance(reason.value, ConnectionAborted):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sock.close()
        self._tempDataBuffer = _NOTHING
        protocol.connectionLost(reason)

    # -- Served

    def ready(self, events: int) -> None:
        """Read, and send what waits."""
        mask = self._mask
        if mask & READ and events != WRITE:
            try:
                data = self.socket.recv(LARGEST_READ)
            except BlockingIOError:
                pass
            except OSError:
                self.connectionLost(LOST)
            else:
                if data:
                    self.protocol.dataReceived(data)
                    if len(data) == LARGEST_READ:
                        del data  # so that the next piece comes into the same memory
                        self._read_on()
                else:
                    self._read_end()
        # An error or a hang-up is found out by sending, where nothing is read.
        if events != READ and self._mask & WRITE and (events & WRITE or not mask & READ):
            self.proceed()

    def proceed(self) -> None:
        """
        Send what waits; when nothing does, ask the producer for more, or end what was to be ended.
        """
        self._waits = False
        if not self.connected or self._aborting:
            return
        if self._tempDataBuffer:
            lost = self._send()
            if lost is not None:
                self.connectionLost(lost)
                return
            if self._tempDataBuffer:
                self._watch(self._mask | WRITE)
                return
        if self._mask & WRITE:
            self._watch(self._mask & ~WRITE)
        if self.producer is not None and (self.producerPaused or not self.streamingProducer):
            self.producerPaused = False
            self.producer.resumeProducing()
        elif self.disconnecting:
            self.connectionLost(DONE)
        elif self._writeDisconnecting and not self._writeDisconnected:
            self._writeDisconnected = True
            self._closeWriteConnection()

    def failed(self) -> None:
        """Be lost by the exception that is being handled."""
        self.connectionLost(_Failure())

    # -- internals

    def _asks(self, owner: Any) -> bool:
        # Not while TLS of another kind is above, which writes what no protocol wrote.
        return owner is self.protocol or self.TLS

    def _watch(self, mask: int) -> None:
        self._mask = mask
        self._hub.watch(self._number, mask)

    def _read_on(self) -> None:
        """Read more of what arrives in bulk, without another event for each piece."""
        for _ in range(READS):
            if not self._mask & READ:
                return
            try:
                data = self.socket.recv(LARGEST_READ)
            except OSError:  # nothing more, or an end that the next event finds
                return
            if not data:
                return
            self.protocol.dataReceived(data)
            if len(data) < LARGEST_READ:
                return
            del data

    def _read_end(self) -> None:
        self._watch(self._mask & ~READ)
        protocol: Any = IHalfCloseableProtocol(self.protocol, None)
        if protocol is None:
            self.connectionLost(DONE)
        else:
            protocol.readConnectionLost()

    def _send(self) -> Failure | None:
        """
        Send as much of what waits as the operating system takes; return why the connection is lost.
        """
        pieces = self._tempDataBuffer
        try:
            if len(pieces) == 1:
                sent = self.socket.send(pieces[0])
            elif self._tempDataLen <= JOINED:
                pieces[:] = [b"".join(pieces)]
                sent = self.socket.send(pieces[0])
            else:
                sent = self.socket.sendmsg(pieces[:PIECES])
        except BlockingIOError:
            return None
        except OSError:
            return LOST
        self._sent(sent)
        return None

    def _sent(self, count: int) -> None:
        self._tempDataLen -= count
        if not self._tempDataLen:
            self._tempDataBuffer = [] if self.TLS else _NOTHING
            return
        pieces = self._tempDataBuffer
        done = 0
        while count >= len(pieces[done]):
            count -= len(pieces[done])
            done += 1
        if count:
            pieces[done] = memoryview(pieces[done])[count:]
        del pieces[:done]


@implementer(IUNIXTransport)
class UNIXConnection(_DescriptorsMixin, Connection):  # type: ignore[misc] # without types
    """A connection on a Unix socket, over which descriptors may be passed too."""

    __slots__ = ()

    _writeSomeDataBase = tcp.Connection  # noqa: N815 Twisted's
    # A list as soon as there is one to send.
    _sendmsgQueue: Any = ()  # noqa: N815 Twisted's

    __init__ = Connection.__init__  # not the mixin's

    @property
    def hostname(self) -> Any:
        """The peer's path."""
        return self.client

    @override
    def getHost(self) -> Any:
        name = self.socket.getsockname()
        return address_of(name) if isinstance(name, tuple) else UNIXAddress(name)

    def getTcpNoDelay(self) -> bool:  # noqa: N802 Twisted's
        """Return False: there is no such thing here."""
        return False

    def setTcpNoDelay(self, enabled: bool) -> None:  # noqa: N802 Twisted's
        """Do nothing."""

    def sendFileDescriptor(self, fileno: int) -> None:  # noqa: N802 Twisted's
        """Send a copy of a descriptor, with the next byte."""
        if not self._sendmsgQueue:
            self._sendmsgQueue = []
        super().sendFileDescriptor(fileno)

    @override
    def send_now(self, data: bytes) -> bytes:
        return data if self._sendmsgQueue else super().send_now(data)

    @override
    def _send(self) -> Failure | None:
        if not self._sendmsgQueue:
            return super()._send()
        self._tempDataBuffer[:] = [b"".join(self._tempDataBuffer)]
        sent = self.writeSomeData(self._tempDataBuffer[0])
        if isinstance(sent, Exception):
            lost: Failure = _Failure(sent)
            return lost
        self._sent(sent)
        return None

    @override
    def ready(self, events: int) -> None:
        # Without such a protocol the system closes descriptors that are received.
        if not (self._mask & READ and IFileDescriptorReceiver.providedBy(self.protocol)):
            super().ready(events)
            return
        if events != WRITE:
            lost = self.doRead()
            if isinstance(lost, ConnectionDone):
                self._read_end()
            elif lost is not None:
                self.connectionLost(LOST)
        if events & self._mask & WRITE:
            self.proceed()


class Outgoing(Connection):
    """
    A connection that a client made.

    Args:
        hub, sock, protocol, peer: see `Connection`.
        factory: the client's; it is told of the end.
    """

    __slots__ = ("factory",)

    def __init__(
        self, hub: SharedHub, sock: socket.socket, protocol: Any, peer: Any, factory: Any
    ) -> None:
        self.factory = factory
        super().__init__(hub, sock, protocol, peer, None)

    @override
    def connectionLost(self, reason: Failure) -> None:
        if not self.disconnected:
            try:
                super().connectionLost(reason)
            finally:
                self.factory.doStop()


class OutgoingUNIX(Outgoing, UNIXConnection):
    """A connection that a client made to a Unix socket."""

    __slots__ = ()
