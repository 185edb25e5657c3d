"""
`TLSLayer`: Twisted's TLS with limits on time, told ends, and no more work per message than it takes;
`TLSInfo`: what its handshake, or that of Twisted's own layer, led to.

Theory of operation
===================

Twisted's `TLSMemoryBIOProtocol` sits between a transport and a protocol: bytes of the transport go
into OpenSSL's memory, bytes for the protocol come out, and the other way round. This class is that one
with other insides. `adopt` turns one that Twisted's own endpoints made into this class.

*Reading.* OpenSSL tells "nothing more" by an error, and pyOpenSSL makes an exception of it, which costs
as much as decrypting a message. So the layer counts the records that arrived, from their headers, and
asks OpenSSL no more often than that. Only when a record was no data (a ticket, a key update) is
there an exception, and only then may OpenSSL have something to send on its own.

*Writing.* Twisted waits for the reactor's next turn, to join what is written until then. Here, what is
written while received data is handled is joined, encrypted and sent when the handling is done; what is
written at other times is sent at once.

*Handshake.* A server starts OpenSSL when the ClientHello is complete (`Greeting`) and `HandshakeLimit`
has admitted the handshake. Its steps run when `Scheduler` has time for them. One timer runs from the
beginning to the end of it.

*Ending.* After close_notify was received the other direction still works, if the protocol wants that
(`IHalfCloseableProtocol`). After it was sent, and everything before it has come to the peer, the peer
has `close_timeout` seconds to answer; then the transport is closed, in order, because the peer may
still be reading. A connection that ends without one was truncated: that is an error, after all data
was delivered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from OpenSSL.SSL import RECEIVED_SHUTDOWN, Error, SysCallError, WantReadError, ZeroReturnError
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import directlyProvides, providedBy

from txasynchat import endings, transports
from txasynchat.delivery import Progress
from txasynchat.errors import (
    CloseTimedOut,
    HandshakeFailed,
    HandshakeTimedOut,
    MissingClientCertificate,
    PeerError,
    TLSError,
    TruncatedConnection,
)
from txasynchat.log import failure
from txasynchat.tls.greeting import Greeting
from txasynchat.tls.handshakes import HandshakeLimit, Scheduler
from txasynchat.tls.pending import EVICTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["TLSFactory", "TLSInfo", "TLSLayer", "adopt"]

#: The most that one record holds (RFC 8446, section 5.1), and with its header and expansion.
_RECORD = 16_384
_WHOLE_RECORD = _RECORD + 512
#: Bytes written while data is handled, above which they are sent at once.
_JOINED = 65_536
#: Bytes that OpenSSL may have to send on its own (answers to key updates) behind what the peer has not
#: read: enough for ten thousand of them.
_UNASKED = 262_144
#: Connections accepted in one turn of the reactor while handshakes go on.
_ACCEPTS = 10
#: As many records as there are.
_ALL = -1
#: The type of records that have data in them, or what is encrypted like data (section 5.2).
_DATA = 23
#: The fatal alert of RFC 6066, section 3, in the clear: nothing is encrypted yet.
_UNRECOGNIZED_NAME = bytes((21, 3, 3, 0, 2, 2, 112))


class TLSLayer(TLSMemoryBIOProtocol):
    """
    One TLS connection, server or client, below any Twisted protocol.

    The protocol's ``connectionLost`` gets a `TLSError` as reason where TLS failed.
    """

    _log = Logger()

    #: Seconds that the peer may take for the handshake; None for no limit.
    handshake_timeout: float | None = 10.0
    #: Seconds for the peer to answer our close_notify, once it has everything.
    close_timeout: float = 3.0
    #: Seconds in which the peer must have taken something of what was written before.
    flush_timeout: float = 10.0

    #: What ``connectionLost`` will tell, from a callback that OpenSSL made.
    refusal: TLSError | None = None

    # Narrower in Twisted, untyped, or None at times that do not concern us.
    transport: Any
    disconnecting: bool
    __provides__: Any
    _tlsConnection: Any = None  # noqa: N815 Twisted's name
    #: What a server has received before OpenSSL is started; None from then on, and for a client.
    _greeting: Greeting | None = None
    _reason: Failure | None

    _clock: IReactorTime | None = None
    _limit: HandshakeLimit | None = None
    _send_now: Callable[[Any, bytes], bytes] | None = None
    _timer: IDelayedCall | None = None
    #: What the transport writes to, where that may be lost by itself.
    _writing_end: Any = None
    _began = False
    #: Something of the handshake was sent.
    _answered = False
    #: A step of the handshake waits for its turn, since when; and how long others did before.
    _step_waits = False
    _waits_since = 0.0
    _waited = 0.0
    #: What was written while received data is handled.
    _outgoing: list[bytes] | None = None
    _outgoing_size = 0
    #: What OpenSSL had to send on its own since there was last nothing unsent.
    _unasked = 0
    #: Where the records are in what arrives: bytes missing of the last one, or a part of its header.
    #: None: no longer known.
    _missing: int | None = 0
    _head = b""
    #: The peer sent close_notify, and the protocol goes on writing.
    _half_closed = False
    #: The protocol has a queue, which goes before what others write.
    _asks_writes = False
    #: `loseWriteConnection` was called: nothing more is written.
    _write_closed = False
    _progress: Progress | None = None
    _stalled = 0.0

    # -- IProtocol: called by the transport

    @override
    def makeConnection(self, transport: Any) -> None:
        """Connect the protocol above, unless it is connected already; then begin the handshake."""
        is_client = getattr(self.factory, "is_client", True)
        self._greeting = None if is_client else Greeting(transport, self._greeted)
        self._tlsConnection = None
        self._appSendBuffer = []
        _provide(self, transport, half_close=False)
        Protocol.makeConnection(self, transport)
        self._writing_end = transports.writing_end(transport)
        transports.tell_of_ends(transport, self)
        self.factory.registerProtocol(self)
        try:
            if is_client:
                self._create_connection()
        except Exception:  # noqa: BLE001 the options may be the application's; it is logged
            if self._connectWrapped:
                # It has no connection, so it cannot lose one.
                self.wrappedProtocol = Protocol()
            self._failed()
            return
        try:
            if self._connectWrapped:
                self.wrappedProtocol.makeConnection(self)
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
            return
        self._checkHandshakeStatus()

    @override
    def dataReceived(self, data: bytes) -> None:
        """Decrypt, deliver, and send what that made the protocol write."""
        if self._greeting is not None:
            if not self._lostTLSConnection:
                self._greeting.receive(data)
            return
        connection = self._tlsConnection
        if connection is None or self._lostTLSConnection or self._half_closed:
            return
        connection.bio_write(data)
        if (
            len(data) > 5
            and data[0] == _DATA
            and self._missing == 0
            and not self._head
            and len(data) == 5 + (data[3] << 8 | data[4])
        ):
            records = 1
        else:
            records = self._count_records(data)
        if not self._handshakeDone:
            self._go_on()
            return
        if self._appSendBuffer:
            self._unbufferPendingWrites()
        self._receive(connection, records)

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Deliver what is left, then tell the protocol, with the reason as TLS sees it."""
        self._finish_handshake()
        self._stop_timer()
        self._leave_queue()
        connection = self._tlsConnection
        if not self._lostTLSConnection:
            if self._handshakeDone and not (self._aborted or self._half_closed):
                self._receive(connection, _ALL)
            if not self._lostTLSConnection:
                self._lostTLSConnection = True
                if self._reason is None and not self.disconnecting:
                    self._reason = self._explain_loss(connection, reason.getErrorMessage())
        reason = self._reason or reason
        self._reason = None
        self.connected = False
        self._outgoing = None
        self._tell_factory(reason)
        try:
            ProtocolWrapper.connectionLost(self, reason)
        finally:
            # The connection refers to this object as its data.
            self._greeting = self._tlsConnection = None

    def readConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """
        The peer will send no more bytes: the end of TLS, or after close_notify of one direction only.
        """
        self._finish_handshake()
        if self._handshakeDone and not self._reads_no_more():
            self._receive(self._tlsConnection, _ALL)
        if self._reads_no_more():
            return
        reason = None
        if not self.disconnecting:
            reason = self._explain_loss(self._tlsConnection, "the peer stopped sending")
        self._tlsShutdownFinished(reason)

    def _reads_no_more(self) -> bool:
        return self._lostTLSConnection or self._half_closed

    def writeConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """Nothing can be sent any more, not even an alert: that is the end, unless it was asked for."""
        if self._lostTLSConnection or transports.writing_was_ended(
            self.transport, self._writing_end
        ):
            return
        transports.read_what_is_there(self.transport)
        if self._reason is None and not self.disconnecting:
            self._reason = self._explain_loss(self._tlsConnection, "the peer stopped reading")
        self.abortConnection()

    # -- ITransport: called by the protocol

    @override
    def write(self, data: bytes) -> None:
        """Encrypt and send: when received data is handled, or at once."""
        if (self.disconnecting or self._write_closed) and self._producer is None:
            return
        if self._asks_writes and endings.asks_protocol(self, "_takes_write", self, data):
            return
        outgoing = self._outgoing
        if outgoing is None:
            self._write(data)
            return
        outgoing.append(data)
        self._outgoing_size += len(data)
        if self._outgoing_size >= _JOINED:
            self._send_outgoing()

    def send_now(self, data: bytes) -> bytes:
        """
        Do as `write` does, if nothing waits in the transport; else return *data*.

        So a protocol need not become a producer before there is something to wait for.
        """
        if (
            self._send_now is None
            or self.disconnecting
            or not self._handshakeDone
            or not transports.has_room(self.transport)
        ):
            return data
        if self._outgoing is None:
            self._write(data)
        else:
            self._outgoing.append(data)
            self._outgoing_size += len(data)
            if self._outgoing_size >= _JOINED:
                self._send_outgoing()
        return b""

    @override
    def loseConnection(self) -> None:
        """Send what was written, then close_notify; wait for the peer's, not for ever."""
        if self.disconnecting or not self.connected:
            return
        if endings.asks_protocol(self, "_takes_closing"):
            return
        self._send_outgoing()
        super().loseConnection()
        self._watch_closing()

    def loseWriteConnection(self) -> None:  # noqa: N802 Twisted's name
        """
        Send what was written, then close_notify; go on reading. What is written later is dropped.

        The peer sees the end of the stream, and may go on sending (RFC 8446, section 6.1). Where a
        producer is registered, this waits until it is not.
        """
        if self._write_closed or self.disconnecting or not self.connected:
            return
        if endings.asks_protocol(self, "_takes_half_closing"):
            return
        self._send_outgoing()
        self._write_closed = True
        self._send_now = None  # so that send_now() takes nothing either
        self._close_writing()

    def _close_writing(self) -> None:
        """Send close_notify, if everything before it was written."""
        if self.disconnecting or self._producer or self._appSendBuffer or not self._handshakeDone:
            return
        self._shutdownTLS()
        if self._half_closed:
            self._watch_closing()
        elif IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.writeConnectionLost()

    @override
    def unregisterProducer(self) -> None:
        """Do what `loseConnection` or `loseWriteConnection` put off, if one of them was called."""
        had_one = self._producer is not None
        super().unregisterProducer()
        if had_one and self._write_closed:
            self._close_writing()

    @override
    def abortConnection(self) -> None:
        """Close at once."""
        self._outgoing = None
        self._stop_timer()
        self._aborted = True
        self.disconnecting = True
        if self._tlsConnection is not None:
            self._shutdownTLS()
        self._tell_factory(self._reason or Failure(ConnectionAborted()))
        transports.abort(self.transport)

    @override
    def _shutdownTLS(self) -> None:
        if self._tlsConnection is not None:
            super()._shutdownTLS()

    @override
    def getHandle(self) -> Any:
        """Return OpenSSL's connection; None when the connection is lost."""
        if self._greeting is not None:
            self._create_connection()
        return self._tlsConnection

    @override
    def getPeerCertificate(self) -> Any:
        """Return the peer's certificate; None if it has not sent one, or not yet."""
        connection = self._tlsConnection
        return None if connection is None else connection.get_peer_certificate()

    # -- the handshake

    def _create_connection(self) -> None:
        if self._tlsConnection is None:
            factory: Any = self.factory
            # Older versions of Twisted have a method of the factory for it.
            create = getattr(factory, "_creatorCallable", None) or factory._createConnection
            self._tlsConnection = create(self)

    @override
    def _checkHandshakeStatus(self) -> None:
        """Begin; called once, when the connection is made."""
        if self._began or self._aborted:
            return
        self._began = True
        self._asks_writes = hasattr(type(endings.protocol_above(self)), "_takes_write")
        transport = self.transport
        # Now and not before: a policy's wrapper above claims what is provided here, and has it not.
        _provide(self, transport, half_close=True)
        self._send_now = transports.immediate_sender(transport)
        factory = self.factory
        if isinstance(factory, TLSFactory):
            self._clock = factory.clock
            self._limit = factory.limit
            self.handshake_timeout = factory.handshake_timeout
            self.close_timeout = factory.close_timeout
            self.flush_timeout = factory.flush_timeout
        else:
            self._clock = transports.reactor_of(transport)
            if self._greeting is not None:
                options = self._tlsConnection.get_context().get_app_data()
                self._limit = getattr(options, "limit", None) or HandshakeLimit.of(factory)
        self._start_timer()
        if self._limit is not None:
            self._limit.connected(self, transports.peer_address(transport))
        if self._greeting is None:
            self._step()

    def _greeted(self) -> None:
        """The ClientHello is complete, or the client does not speak TLS."""
        limit = self._limit
        if limit is None or limit.enter(
            self, transports.peer_address(self.transport), self._clock, self._admitted
        ):
            self._go_on()

    def _admitted(self) -> None:
        """There is a place for this handshake now."""
        if self._lostTLSConnection or self._aborted:
            return
        self._start_timer()
        self._go_on()

    def evict(self) -> None:
        """Called by `Pending`."""
        self._reason = Failure(HandshakeFailed(EVICTED))
        self.abortConnection()

    def _go_on(self) -> None:
        """Bytes came: do the next step, when it is its turn."""
        if self._step_waits:
            return
        if self._clock is None:
            self._step()
        else:
            self._step_waits = True
            transports.accept_fewer(self.transport, _ACCEPTS)
            if not Scheduler.of(self._clock).run(self._step):
                self._waits_since = self._clock.seconds()

    def _finish_handshake(self) -> None:
        """No more bytes will come: do the step that waits, if it may be the last and not in vain."""
        if self._step_waits and self._answered:
            self._step()

    def _ended(self) -> bool:
        return self._aborted or self._lostTLSConnection or self._handshakeDone

    def _step(self) -> None:
        self._step_waits = False
        if self._waits_since and self._clock is not None:
            self._waited += self._clock.seconds() - self._waits_since
            self._waits_since = 0.0
        if self._ended():
            return
        begins = self._greeting is not None
        if begins:
            self._start_openssl()
        connection = self._tlsConnection
        if connection is None:
            return
        try:
            connection.do_handshake()
        except WantReadError:
            if self.refusal is None:
                answered = self._flushSendBIO()
                self._answered = answered or self._answered
                if self._limit is not None and (answered or begins):
                    self._limit.answered(self, self._clock)
                return
        except (Error, PeerError) as error:
            self._tlsShutdownFinished(Failure(self._explain(error)))
            return
        if self._ended():
            return  # a callback of the options aborted it
        if self.refusal is not None:
            self._refuse_name(self.refusal)
            return
        # Contexts of ours have their options as their data.
        check = getattr(connection.get_context().get_app_data(), "check", None)
        refusal = None if check is None else check(connection)
        if refusal is not None:
            self._shutdownTLS()
            self._tlsShutdownFinished(Failure(refusal))
            return
        self._handshakeDone = True
        self._stop_timer()
        self._leave_queue()
        self._flushSendBIO()
        if self._appSendBuffer:
            self._unbufferPendingWrites()
        if self._write_closed:
            self._close_writing()
        if self.disconnecting:
            self._watch_closing()
        if IHandshakeListener.providedBy(self.wrappedProtocol):
            try:
                self.wrappedProtocol.handshakeCompleted()
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                self._failed()
                return
        self._tell_factory(None)
        if self._tlsConnection is not None:
            # What came behind the last flight; how many records that is was not counted.
            self._receive(connection, _ALL)

    def _start_openssl(self) -> None:
        """Create the connection and give it what has arrived."""
        greeting, self._greeting = self._greeting, None
        try:
            self._create_connection()
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._log.failure("the options of {factory!r} raised", factory=self.factory)
            self._reason = Failure()
            self.abortConnection()
            return
        if greeting is not None:
            data = greeting.finish()
            self._tlsConnection.bio_write(data)
            self._count_records(data)

    def _refuse_name(self, refusal: TLSError) -> None:
        """
        End a handshake that OpenSSL would go on with: send the alert instead of what it has to send.
        """
        connection = self._tlsConnection
        try:
            while connection.bio_read(_WHOLE_RECORD):
                pass
        except Error:
            pass
        self._send_ciphertext(_UNRECOGNIZED_NAME)
        self._tlsShutdownFinished(Failure(refusal))

    def _failed(self) -> None:
        """Log the application's exception that is being handled, and end this connection."""
        peer = transports.peer_name(self.transport)
        failure(self._log, "{peer}: {what} raised", peer=peer, what=self.logPrefix())
        if self._reason is None:
            self._reason = Failure()
        self.abortConnection()

    def _tell_factory(self, failure: Failure | None) -> None:
        """The handshake is done, or will not be: tell who waits for that, before anybody else."""
        if isinstance(self.factory, TLSFactory):
            self.factory.settled(self, failure)

    def _leave_queue(self) -> None:
        if self._limit is not None:
            self._limit.leave(self, self._clock)
            self._limit = None

    def _start_timer(self) -> None:
        self._stop_timer()
        if self._clock is not None and self.handshake_timeout is not None:
            self._timer = self._clock.callLater(self.handshake_timeout, self._handshake_timed_out)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _handshake_timed_out(self) -> None:
        self._timer = None
        if self._clock is not None and (self._waited or self._step_waits):
            # The time that it took us is not the peer's.
            waited, self._waited = self._waited, 0.0
            self._timer = self._clock.callLater(waited or 1.0, self._handshake_timed_out)
            return
        self._reason = Failure(HandshakeTimedOut(self.handshake_timeout or 0.0))
        self.abortConnection()

    # -- reading

    def _count_records(self, data: bytes) -> int:
        """Count the records that *data* completes, so that OpenSSL has them whole; _ALL: not known."""
        position = self._missing
        if position is None:
            return _ALL
        if self._head:
            data = self._head + data
            self._head = b""
        elif position == 0 and not 20 <= data[0] <= 23:
            # Not a record at all. OpenSSL will say so, or, to a hello in the style of SSLv2, not.
            self._missing = None
            return _ALL
        size = len(data)
        count = 1 if 0 < position <= size else 0
        while position + 5 <= size:
            position += 5 + (data[position + 3] << 8 | data[position + 4])
            if position <= size:
                count += 1
        if position < size:
            self._head = data[position:]
            self._missing = 0
        else:
            self._missing = position - size
        return count

    def _receive(self, connection: Any, records: int) -> None:
        """
        Deliver what OpenSSL makes of so many records, or, for _ALL, until it says that it has no more.
        """
        outgoing = self._outgoing
        if outgoing is None:
            self._outgoing = []
        try:
            while records:
                records -= 1
                data = connection.recv(_RECORD)
                if not self._aborted:
                    self.wrappedProtocol.dataReceived(data)
                if self._reads_no_more():
                    break
        except WantReadError:
            self._flushSendBIO()
        except ZeroReturnError:
            self._peer_closed()
        except Error as error:
            if not _is_end(error):
                self._tlsShutdownFinished(Failure(self._explain(error)))
            elif self.disconnecting:
                self._tlsShutdownFinished(None)
        finally:
            if outgoing is None:
                if self._outgoing:
                    self._send_outgoing()
                self._outgoing = None

    def _peer_closed(self) -> None:
        """close_notify came: answer it, now or when the protocol has no more to say."""
        protocol = self.wrappedProtocol
        if not self.disconnecting and IHalfCloseableProtocol.providedBy(protocol):
            self._half_closed = True
            protocol.readConnectionLost()
            return
        self._send_outgoing()
        self._shutdownTLS()
        self._tlsShutdownFinished(None)

    # -- writing

    def _send_outgoing(self) -> None:
        outgoing = self._outgoing
        if outgoing:
            data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
            outgoing.clear()
            self._outgoing_size = 0
            self._write(data)

    @override
    def _write(self, data: bytes) -> None:
        if self._lostTLSConnection or not data:
            return
        if not self._handshakeDone:
            self._bufferedWrite(data)
            return
        connection = self._tlsConnection
        sent = 0
        try:
            if len(data) <= _RECORD:
                connection.send(data)
                record = connection.bio_read(_WHOLE_RECORD)
                if self._send_now is None or (record := self._send_now(self.transport, record)):
                    self.transport.write(record)
                return
            records = []
            view = memoryview(data)
            while sent < len(data):
                sent += connection.send(view[sent : sent + _RECORD])
                records.append(connection.bio_read(_WHOLE_RECORD))
            self._send_ciphertext(b"".join(records))
        except WantReadError:
            # A renegotiation of TLS 1.2 is going on, where the options allow it.
            self._flushSendBIO()
            self._bufferedWrite(data[sent:])
        except Error as error:
            self._tlsShutdownFinished(Failure(self._explain(error)))

    @override
    def _flushSendBIO(self) -> bool:
        """
        Send what OpenSSL has to send by itself: handshakes, alerts, close_notify; return if it had any.
        """
        connection = self._tlsConnection
        if connection is None:
            return False
        pieces = []
        try:
            while True:
                pieces.append(connection.bio_read(_WHOLE_RECORD))
        except Error:
            # There is no more.
            if pieces:
                data = b"".join(pieces)
                self._send_ciphertext(data)
                if self._handshakeDone:
                    self._limit_unasked(len(data))
        return bool(pieces)

    def _limit_unasked(self, size: int) -> None:
        """Abort a connection whose peer has OpenSSL answer, and reads no answers."""
        self._unasked = self._unasked + size if transports.unsent_bytes(self.transport) else 0
        if self._unasked > _UNASKED and not self._aborted:
            self._reason = Failure(TLSError("the peer reads no answers to its key updates"))
            self.abortConnection()

    def _send_ciphertext(self, data: bytes) -> None:
        transport = self.transport
        if self._send_now is not None:
            data = self._send_now(transport, data)
            if not data:
                return
        transport.write(data)

    # -- the end

    @override
    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        """TLS is over: send what it still has to send, and let the transport go."""
        if self._reason is None:
            self._reason = reason
        self._lostTLSConnection = True
        self._leave_queue()
        self._flushSendBIO()
        self.transport.loseConnection()
        self._watch_closing()
        if not self._handshakeDone and self._reason is not None:
            self._tell_factory(self._reason)

    def _watch_closing(self) -> None:
        """
        End it if the peer takes nothing of what is left, or has all and does not answer; else look
        again later.
        """
        self._stop_timer()
        if self._clock is None or not self.connected or self._aborted:
            return
        if not self._handshakeDone and not self._lostTLSConnection:
            # What was written is waiting for the handshake to end, which has its own limit.
            self._start_timer()
            return
        unsent, unacknowledged = transports.outstanding_bytes(self.transport)
        if self._progress is None:
            self._progress = Progress()
        if self._progress.made(unsent, unacknowledged) or self._producer_works():
            self._stalled = 0.0
        else:
            self._stalled += self.close_timeout
            if self._stalled >= self.flush_timeout or not (unsent or unacknowledged):
                if unsent:
                    self._reason = Failure(CloseTimedOut(self.flush_timeout, unsent))
                endings.end(self)
                return
        self._timer = self._clock.callLater(self.close_timeout, self._watch_closing)

    def _producer_works(self) -> bool:
        """Return whether a producer has yet to finish, and it is not the peer that it waits for."""
        producer: Any = self._producer
        return producer is not None and not producer._producerPaused

    def _explain_loss(self, connection: Any, what: str) -> Any:
        """Say why the transport went away, where that is not all there is to say."""
        if not self._handshakeDone:
            return Failure(self.refusal or HandshakeFailed("the peer closed during the handshake"))
        if connection.get_shutdown() & RECEIVED_SHUTDOWN:
            return None
        return Failure(TruncatedConnection(f"no end of TLS before this: {what}"))

    def _explain(self, error: Exception) -> Exception:
        """Say what an error of OpenSSL's means."""
        if isinstance(error, PeerError):
            return error
        if self.refusal is not None:
            return self.refusal
        if _is_end(error):
            return HandshakeFailed("the peer closed during the handshake")
        reasons = [str(entry[2]) for entry in error.args[0]] if error.args else []
        text = reasons[-1] if reasons else type(error).__name__
        if "certificate required" in text or "did not return a certificate" in text:
            return MissingClientCertificate(text)
        return TLSError(text) if self._handshakeDone else HandshakeFailed(text)


class TLSFactory(TLSMemoryBIOFactory):
    """
    Puts a `TLSLayer` below each protocol of another factory.

    Args:
        options: a `ServerOptions` or `ClientOptions`, or a connection creator of Twisted's.
        is_client: this side begins.
        factory: makes the protocols; None where they are there already.
        clock: the reactor that the connections live on; None for no limits on time.
    """

    protocol = TLSLayer

    def __init__(
        self, options: Any, is_client: bool, factory: Any, clock: IReactorTime | None
    ) -> None:
        # Only Twisted's own layer uses this clock; without one given it would install a reactor.
        super().__init__(options, is_client, factory, clock=clock or _NO_CLOCK)
        self.options = options
        self.is_client = is_client
        self.clock = clock
        self.limit: HandshakeLimit | None = None if is_client else getattr(options, "limit", None)
        self.handshake_timeout: float | None = getattr(
            options, "handshake_timeout", TLSLayer.handshake_timeout
        )
        self.close_timeout: float = getattr(options, "close_timeout", TLSLayer.close_timeout)
        self.flush_timeout: float = getattr(options, "flush_timeout", TLSLayer.flush_timeout)

    @override
    def buildProtocol(self, addr: Any) -> Any:
        """Build the other factory's protocol, and TLS below it; None if that refuses the connection."""
        protocol = self.wrappedFactory.buildProtocol(addr)
        return None if protocol is None else self.protocol(self, protocol)

    def settled(self, layer: TLSLayer, failure: Failure | None) -> None:
        """
        The handshake of *layer* is done, or its connection is lost, because of *failure*.

        The first call counts: a connection is lost in the end, and may be so for several reasons.
        """


_NO_CLOCK: Any = object()


def adopt(transport: Any) -> None:
    """
    Let the TLS below *transport*, if Twisted's own endpoints made it, be a `TLSLayer`.

    To be called when the connection is made, before the handshake begins. So ``ssl:`` and ``tls:``
    endpoints have the same limits and the same speed as those of this package. Subclasses of
    Twisted's classes are left alone.
    """
    layer = transports.tls_layer(transport)
    if type(layer) is BufferingTLSTransport and not layer._handshakeDone:
        layer._aggregator.flush()  # close() is newer than the oldest Twisted
        del layer.write, layer._aggregator
        layer.__class__ = TLSLayer  # type: ignore[assignment] # it differs in methods only
        adopted: Any = layer
        accepted = transports.was_accepted(layer.transport)
        adopted._greeting = Greeting(layer.transport, adopted._greeted) if accepted else None


# What layers provide, by what their transports do: zope takes longer to work it out than a message.
_provided: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def _provide(layer: TLSLayer, transport: Any, *, half_close: bool) -> None:
    """Let *layer* provide the interfaces of its transport, as Twisted's does, and this one."""
    beneath = providedBy(transport)
    known = _provided.get(beneath)
    if known is None:
        known = _provided[beneath] = []
        for more in ((), (IHalfCloseableProtocol,)):
            directlyProvides(layer, beneath, *more)
            known.append(layer.__provides__)
    layer.__provides__ = known[half_close]


def _is_end(error: Exception) -> bool:
    """Return whether OpenSSL means that the bytes ended where they should not."""
    if isinstance(error, SysCallError):
        return True
    # An empty queue is what OpenSSL 4 leaves.
    queue = error.args[0] if error.args else []
    return not queue or str(queue[-1][2]).casefold().startswith("unexpected eof")


@dataclass(frozen=True)
class TLSInfo:
    """
    What the two ends agreed on.

    Attributes:
        version: ``"TLSv1.2"`` or ``"TLSv1.3"``.
        cipher: OpenSSL's name of the cipher suite.
        alpn: the protocol that was negotiated; None for none.
        server_name: the name that the client asked for; None for none.
        peer_certificate: the peer's, already verified; None if it sent none.
    """

    version: str
    cipher: str
    alpn: bytes | None
    server_name: str | None
    peer_certificate: x509.Certificate | None

    @classmethod
    def of(cls, transport: Any) -> TLSInfo | None:
        """Ask the TLS that *transport* is or is wrapped around; None: there is none, or not yet."""
        layer = None if transport is None else transports.tls_layer(transport)
        if layer is None or not layer._handshakeDone:
            return None
        connection: Any = layer._tlsConnection
        if connection is None:
            return None
        name = connection.get_servername()
        certificate = connection.get_peer_certificate()
        return cls(
            version=connection.get_protocol_version_name(),
            cipher=connection.get_cipher_name(),
            alpn=connection.get_alpn_proto_negotiated() or None,
            server_name=None if name is None else name.decode("ascii", "replace"),
            peer_certificate=None if certificate is None else certificate.to_cryptography(),
        )
