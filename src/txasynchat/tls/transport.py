"""
`TLSTransport`: TLS between any transport and any protocol.

Theory of operation
===================

To the transport below it is the protocol, to the protocol above it is the transport. An engine turns
one's bytes into the other's: `Engine` where the options are ours, `PyOpenSSLEngine` where they are
Twisted's. All else is here and in `Opening`, and is the same for both.

*Writing.* What is written while received data is handled is joined, encrypted and sent when that is
done; what is written at other times is sent at once.

*Ending.* After close_notify was received the other direction still works, if the protocol wants that
(`IHalfCloseableProtocol`). After it was sent, and everything before it has come to the peer, the peer
has `close_timeout` seconds to answer; then the transport is closed, in order, because the peer may
still be reading. A connection that ends without one was truncated: that is an error, after all data
was delivered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from OpenSSL import crypto
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    INegotiated,
    ISystemHandle,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import directlyProvides, implementer, providedBy

from txasynchat import endings, transports
from txasynchat.delivery import Progress, without_delay
from txasynchat.errors import CloseTimedOut
from txasynchat.log import failure
from txasynchat.tls.engine import LARGEST_WRITE, RECORD
from txasynchat.tls.opening import Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from txasynchat.tls.handshakes import HandshakeLimit

__all__ = ["TLSTransport"]


@implementer(ISystemHandle, INegotiated, ITransport)
class TLSTransport(transports.TLSBase):
    """
    One TLS connection, server or client, below any Twisted protocol.

    The protocol's ``connectionLost`` gets a `TLSError` as reason where TLS failed.

    Args:
        factory: a `TLSFactory`, whose limits on time count instead of the class's.
        protocol: the protocol above.
        connects: that gets this transport by ``makeConnection``; False if it was connected before.
    """

    _log = Logger()

    #: Seconds that the peer may take for the handshake; None for no limit.
    handshake_timeout: float | None = 10.0
    #: Seconds for the peer to answer our close_notify, once it has everything.
    close_timeout: float = 3.0
    #: Seconds in which the peer must have taken something of what was written before.
    flush_timeout: float = 10.0

    # Narrower in Twisted, or untyped.
    transport: Any
    wrappedProtocol: Any  # noqa: N815 Twisted's name
    __provides__: Any

    def __init__(self, factory: Any, protocol: Any, connects: bool = True) -> None:
        super().__init__(factory, protocol)
        self._connects = connects
        self.set_up()

    def set_up(self) -> None:
        """
        Set the attributes to what holds before the handshake.

        All at once, and none of them in the class, for the reason given in `AsyncChat`.
        """
        #: An `Engine` or `PyOpenSSLEngine`; None before the connection and after it.
        self.engine: Any = None
        self.is_secure = False
        self.reason: Failure | None = None
        self._opening: Opening | None = None
        self._clock: IReactorTime | None = None
        self._send_below: Callable[[Any, bytes], bytes] | None = None
        # What the transport writes to, where that may be lost by itself.
        self._writing_end: Any = None
        # The handshake is done, and this direction is open.
        self._reads = self._writes = False
        # What was written before it could be encrypted.
        self._early: list[bytes] | None = None
        # What was written while received data is handled, and what was encrypted meanwhile.
        self._outgoing: list[bytes] | None = None
        self._outgoing_size = 0
        self._records: list[bytes] | None = None
        self._producer: _Producer | None = None
        # The protocol has a queue, which goes before what others write.
        self._asks_writes = False
        # The peer sent close_notify, and the protocol goes on writing.
        self._half_closed = False
        # `loseWriteConnection` was called: nothing more is written.
        self._write_closed = False
        # TLS is over, and the transport was told to close; or it was aborted.
        self._over = self._aborted = False
        # The limit on the end: the next look, what was seen, and seconds without progress.
        self._timer: IDelayedCall | None = None
        self._progress: Progress | None = None
        self._stalled = 0.0

    # -- IProtocol: called by the transport below

    @override
    def makeConnection(self, transport: Any) -> None:
        """Connect the protocol above, unless it is connected already; then begin the handshake."""
        _provide(self, transport, half_close=False)
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        try:
            self.engine = self.factory.make_engine(self)
            if self._connects:
                self.wrappedProtocol.makeConnection(self)
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            if self.engine is None and self._connects:
                # The protocol has no connection, so it cannot lose one.
                self.wrappedProtocol = Protocol()
            self.failed()
            return
        if not self._aborted:
            self.begin(self.factory.clock, self.factory.limit)

    def begin(self, clock: IReactorTime | None, limit: HandshakeLimit | None) -> None:
        """
        Begin the handshake.

        Args:
            clock: measures time; None for no limits on that.
            limit: limits the number of handshakes; None for no limit.
        """
        self._clock = clock
        transport = self.transport
        self._writing_end = transports.writing_end(transport)
        transports.tell_of_ends(transport, self)
        self._asks_writes = hasattr(type(endings.protocol_above(self)), "_takes_write")
        # Now and not before: a policy's wrapper above claims what is provided here, and has it not.
        _provide(self, transport, half_close=True)
        self._opening = Opening(self, clock, limit, self._limit("handshake_timeout"))
        self._opening.begin()

    def _limit(self, name: str) -> Any:
        return getattr(self.factory, name, getattr(self, name))

    @override
    def dataReceived(self, data: bytes) -> None:
        """Decrypt, deliver, and send what that made the protocol write."""
        if not self._reads:
            if self._opening is not None:
                self._opening.receive(data)
            return
        engine = self.engine
        begins = self._outgoing is None
        if begins:
            self._outgoing = []
            self._records = []
        try:
            text = engine.receive(data)
            if text:
                self.wrappedProtocol.dataReceived(text)
            while engine.more and self._reads:
                self.wrappedProtocol.dataReceived(engine.receive(b""))
        finally:
            if begins:
                self._send_records()
        if engine.owes or self._early:
            self._send_early()
            self.flush()
        if engine.ended and self._reads:
            self._ended(engine)

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the protocol, with the reason as TLS sees it."""
        opening = self._opening
        if opening is not None:
            try:
                opening.receive_no_more()
            except Exception:  # noqa: BLE001 the protocol's, of its data; it is still told of the end
                self.failed()
            opening.cancel()
        self._stop_timer()
        if not self._over and self.reason is None and not self.disconnecting:
            self.reason = self._explain_loss(reason.getErrorMessage())
        reason, self.reason = self.reason or reason, None
        self._reads = self._writes = self.connected = False
        self._over = True
        self._outgoing = self._records = self._early = self._opening = None
        self._settle(reason)
        try:
            ProtocolWrapper.connectionLost(self, reason)
        finally:
            self.engine = None

    def readConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """
        The peer will send no more bytes: the end of TLS, or after close_notify of one direction only.
        """
        if self._opening is not None:
            self._opening.receive_no_more()
        if not (self._over or self._half_closed):
            self.finish(
                None if self.disconnecting else self._explain_loss("the peer stopped sending")
            )

    def writeConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """Nothing can be sent any more, not even an alert: that is the end, unless it was asked for."""
        if self._over or transports.writing_was_ended(self.transport, self._writing_end):
            return
        transports.read_what_is_there(self.transport)
        if self.reason is None and not self.disconnecting:
            self.reason = self._explain_loss("the peer stopped reading")
        self.abortConnection()

    # -- ITransport: called by the protocol above

    @override
    def write(self, data: bytes) -> None:
        """Encrypt and send: when received data is handled, or at once."""
        if (self.disconnecting or self._write_closed) and self._producer is None:
            return
        if self._asks_writes and endings.asks_protocol(self, "_takes_write", self, data):
            return
        if self._outgoing is None:
            self._encrypt(data)
        else:
            self._join(data)

    @override
    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    @override
    def send_now(self, data: bytes) -> bytes:
        """
        Do as `write` does, if nothing waits in the transport; else return *data*.

        So a protocol need not become a producer before there is something to wait for.
        """
        if not self._writes or not transports.has_room(self.transport):
            return data
        if self._outgoing:
            self._join(data)
        else:
            self._encrypt(data)
        return b""

    @override
    def loseConnection(self) -> None:
        """Send what was written, then close_notify; wait for the peer's, not for ever."""
        if self.disconnecting or not self.connected:
            return
        if endings.asks_protocol(self, "_takes_closing"):
            return
        self._send_outgoing()
        self.disconnecting = True
        self._writes = False
        if not (self.is_secure or self._early):
            self.abortConnection()
        self._say_goodbye()
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
        self._writes = False
        self._say_goodbye()

    def abortConnection(self) -> None:  # noqa: N802 Twisted's name
        """Close at once. There is no close_notify: the peer may not have everything."""
        self._outgoing = None
        self._aborted = self.disconnecting = True
        self._reads = self._writes = False
        self._stop_timer()
        if self._opening is not None:
            self._opening.cancel()
        self.flush()
        self._send_records()
        self._settle(self.reason or Failure(ConnectionAborted()))
        transports.abort(self.transport)

    def abort(self, reason: Failure) -> None:
        """Do the same because of *reason*."""
        self.reason = reason
        self.abortConnection()

    #: What Twisted's options call during the handshake.
    failVerification = abort  # noqa: N815 Twisted's name

    @override
    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let *producer* write when the transport below has room, and the handshake is done."""
        if self._over:
            producer.stopProducing()
            return
        if self._producer is not None:
            raise RuntimeError(f"a producer is registered already: {self._producer.producer!r}")
        self._producer = _Producer(producer, streaming)
        if self.is_secure:
            self._register_below(self._producer)
        elif streaming:
            self._producer.pauseProducing()

    def _register_below(self, producer: _Producer) -> None:
        if not producer.streaming:
            # It is asked for more when the transport has written something.
            self._send_below = None
            self._writes = False
        self.transport.registerProducer(producer, producer.streaming)

    @override
    def unregisterProducer(self) -> None:
        """Do what `loseConnection` or `loseWriteConnection` put off, if one of them was called."""
        if self._producer is None:
            return
        self._producer = None
        if self.is_secure:
            self.transport.unregisterProducer()
            self._open_sending()
        self._say_goodbye()

    def getPeerCertificate(self) -> crypto.X509 | None:  # noqa: N802 Twisted's name
        """Return the peer's certificate; None if it has not sent one, or not yet."""
        der = None if self.engine is None else self.engine.peer_certificate_der
        return None if der is None else crypto.load_certificate(crypto.FILETYPE_ASN1, der)

    #: What Twisted's ``Certificate.peerFromTransport`` asks the handle.
    get_peer_certificate = getPeerCertificate

    def getHandle(self) -> Any:  # noqa: N802 Twisted's name
        """Return what Twisted's ``Certificate.peerFromTransport`` asks for the certificate."""
        return self

    @property
    def negotiatedProtocol(self) -> bytes | None:  # noqa: N802 Twisted's name
        """The protocol that ALPN chose; None for none, or not yet."""
        return None if self.engine is None else self.engine.alpn

    # -- the handshake, called by `Opening`

    def secured(self) -> None:
        """The handshake is done."""
        without_delay(transports.real_socket(self.transport))
        self.is_secure = self._reads = True
        self._opening = None
        self._outgoing = []
        self._records = []
        try:
            self._begin_exchange()
        finally:
            self._send_records()

    def _begin_exchange(self) -> None:
        self._open_sending()
        self._send_early()
        self.flush()
        producer = self._producer
        if producer is not None:
            self._register_below(producer)
            if producer.streaming:
                producer.resumeProducing()
        self._say_goodbye()
        if self.disconnecting:
            self._watch_closing()
        if IHandshakeListener.providedBy(self.wrappedProtocol):
            try:
                self.wrappedProtocol.handshakeCompleted()
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                self.failed()
                return
        self._settle(None)
        self.dataReceived(b"")  # what came behind the last flight

    def _open_sending(self) -> None:
        self._send_below = transports.immediate_sender(self.transport)
        self._writes = self._send_below is not None and not (
            self.disconnecting or self._write_closed or self._over
        )

    def failed(self) -> None:
        """Log the application's exception that is being handled, and end this connection."""
        peer = transports.peer_name(self.transport)
        failure(self._log, "{peer}: {what} raised", peer=peer, what=self.logPrefix())
        self.abort(self.reason or Failure())

    def _settle(self, failure: Failure | None) -> None:
        """The handshake is done, or will not be: tell who waits for that, before anybody else."""
        settled = getattr(self.factory, "settled", None)
        if settled is not None:
            settled(self, failure)

    # -- data

    def _join(self, data: bytes) -> None:
        if self._outgoing is not None:
            self._outgoing.append(data)
            self._outgoing_size += len(data)
            if self._outgoing_size >= LARGEST_WRITE:
                self._send_outgoing()

    def _send_outgoing(self) -> None:
        outgoing = self._outgoing
        if outgoing:
            data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
            outgoing.clear()
            self._outgoing_size = 0
            self._encrypt(data)

    def _send_early(self) -> None:
        early, self._early = self._early, None
        if early:
            self._encrypt(b"".join(early))
            self._say_goodbye()

    def _encrypt(self, data: bytes) -> None:
        """Encrypt and send; keep what cannot be encrypted yet."""
        engine = self.engine
        if engine is None:
            return
        if self._early is None and self.is_secure:
            record = engine.encrypt(data) if len(data) <= RECORD else None
            if record:
                self._send(record)
            else:
                self._encrypt_records(engine, memoryview(data))
        elif self._early is None:
            self._early = [data]
        else:
            self._early.append(data)

    def _encrypt_records(self, engine: Any, data: memoryview) -> None:
        records: list[bytes] = []
        for at in range(0, len(data), RECORD):
            record = engine.encrypt(data[at : at + RECORD])
            if not record:
                if engine.can_write:  # a peer renegotiates TLS 1.2, and the options allow it
                    self._early = [bytes(data[at:])]
                elif engine.failure is not None and not self._over:
                    self.finish(Failure(engine.failure))
                break
            records.append(record)
            if len(records) * RECORD == LARGEST_WRITE:
                self._send(b"".join(records))
                records.clear()
        if records:
            self._send(b"".join(records))

    def _send_records(self) -> None:
        """Received data was handled: send what was written and encrypted meanwhile, in one piece."""
        if self._outgoing:
            self._send_outgoing()
        self._outgoing = None
        records, self._records = self._records, None
        if records:
            self._send(records[0] if len(records) == 1 else b"".join(records))

    def _send(self, data: bytes) -> None:
        records = self._records
        if records is not None and len(records) < LARGEST_WRITE // RECORD:
            records.append(data)
            return
        if records:
            data = b"".join((*records, data))
            records.clear()
        send_below = self._send_below
        if send_below is None or (data := send_below(self.transport, data)):
            self.transport.write(data)

    def flush(self) -> bool:
        """Send what the engine has to send by itself; return whether it had anything."""
        engine = self.engine
        if engine is None or not engine.owes:
            return False
        data = engine.take(transports.unsent_bytes(self.transport) or 0)
        if data:
            self._send(data)
        return bool(data)

    # -- the end

    @property
    @override
    def sent_everything(self) -> bool:
        return self._over or self.engine is None or self.engine.write_closed

    def _ended(self, engine: Any) -> None:
        """No more plaintext will come: the peer sent close_notify, or TLS failed."""
        self._reads = False
        if engine.failure is not None:
            self.finish(Failure(engine.failure))
            return
        protocol = self.wrappedProtocol
        if not self.disconnecting and IHalfCloseableProtocol.providedBy(protocol):
            self._half_closed = True
            protocol.readConnectionLost()
            if not engine.write_closed:
                return
        engine.close()
        if not self._over:
            self.finish(None)

    def _say_goodbye(self) -> None:
        """Send close_notify, if that was asked for, and everything before it was written."""
        engine = self.engine
        if (
            not (self.disconnecting or self._write_closed)
            or not self.is_secure
            or self._producer is not None
            or self._early
            or engine is None
            or engine.write_closed
        ):
            return
        engine.close()
        self.flush()
        if engine.ended:
            self.finish(None)
        elif not self.disconnecting and IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.writeConnectionLost()

    def finish(self, reason: Failure | None) -> None:
        """TLS is over: send what it still has to send, and let the transport go."""
        if self.reason is None:
            self.reason = reason
        if not self._over:
            self._over = True
            self._reads = self._writes = False
            if self._opening is not None:
                self._opening.cancel()
            self.flush()
            producer = self._producer
            if producer is not None:
                self.unregisterProducer()
                producer.stopProducing()
        self._send_records()
        self.transport.loseConnection()
        self._watch_closing()
        if not self.is_secure and self.reason is not None:
            self._settle(self.reason)

    def _watch_closing(self) -> None:
        """
        End it if the peer takes nothing of what is left, or has all and does not answer; else look
        again later.
        """
        self._stop_timer()
        if self._clock is None or not self.connected or self._aborted:
            return
        if not (self.is_secure or self._over):
            return  # what was written waits for the handshake, which has its own limit
        unsent, unacknowledged = transports.outstanding_bytes(self.transport)
        if self._progress is None:
            self._progress = Progress()
        producer = self._producer
        close_timeout, flush_timeout = self._limit("close_timeout"), self._limit("flush_timeout")
        if self._progress.made(unsent, unacknowledged) or (
            producer is not None and producer.works(unsent)
        ):
            self._stalled = 0.0
        else:
            self._stalled += close_timeout
            if self._stalled >= flush_timeout or not (unsent or unacknowledged):
                if unsent:
                    self.reason = Failure(CloseTimedOut(flush_timeout, unsent))
                endings.end(self)
                return
        self._timer = self._clock.callLater(close_timeout, self._watch_closing)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _explain_loss(self, what: str) -> Failure | None:
        """Say why the transport went away, where that is not all there is to say."""
        engine = self.engine
        if engine is None:
            return None
        engine.end_of_stream(what)
        return None if engine.failure is None else Failure(engine.failure)


class _Producer:
    """The producer of a `TLSTransport`, as the transport below sees it."""

    __slots__ = ("_paused", "producer", "streaming")

    def __init__(self, producer: Any, streaming: bool) -> None:
        self.producer = producer
        self.streaming = streaming
        self._paused = False

    def pauseProducing(self) -> None:  # noqa: N802 Twisted's name
        self._paused = True
        self.producer.pauseProducing()

    def resumeProducing(self) -> None:  # noqa: N802 Twisted's name
        self._paused = False
        self.producer.resumeProducing()

    def stopProducing(self) -> None:  # noqa: N802 Twisted's name
        self.producer.stopProducing()

    def works(self, unsent: int | None) -> bool:
        """Return whether it has yet to finish, and it is not the peer that it waits for."""
        return not (self._paused if self.streaming else unsent)


# What transports provide, by what those below them do: zope takes longer to work it out than a message.
_provided: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def _provide(above: TLSTransport, below: Any, *, half_close: bool) -> None:
    """
    Let *above* provide the interfaces of the transport *below* it, as Twisted's does, and this one.
    """
    beneath = providedBy(below)
    known = _provided.get(beneath)
    if known is None:
        known = _provided[beneath] = []
        for more in ((), (IHalfCloseableProtocol,)):
            directlyProvides(above, beneath, *more)
            known.append(above.__provides__)
    above.__provides__ = known[half_close]
