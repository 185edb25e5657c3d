"""
`TLSTransport`: TLS between any transport and any protocol; `TLSFactory`, which makes it; and `adopt`,
which puts it in the place of Twisted's own.

Theory of operation
===================

To the transport below it is the protocol, to the protocol above it is the transport. An engine turns
one's bytes into the other's: `Engine` where the options are ours, `PyOpenSSLEngine` where they are
Twisted's. All else is here, and is the same for both.

*Writing.* What is written while received data is handled is joined, encrypted and sent when that is
done; what is written at other times is sent at once.

*Handshake.* A server's begins when the ClientHello is complete and `HandshakeLimit` has admitted it.
Its steps run when `Scheduler` has time for them; meanwhile the transport is read no further, because no
peer has a reason to send more. One timer runs from the beginning to the end of it.

*Ending.* After close_notify was received the other direction still works, if the protocol wants that
(`IHalfCloseableProtocol`). After it was sent, and everything before it has come to the peer, the peer
has `close_timeout` seconds to answer; then the transport is closed, in order, because the peer may
still be reading. A connection that ends without one was truncated: that is an error, after all data
was delivered.
"""

from __future__ import annotations

from functools import partial
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
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import directlyProvides, implementer, providedBy

from txasynchat import endings, transports
from txasynchat.delivery import Progress
from txasynchat.errors import CloseTimedOut, HandshakeFailed, HandshakeTimedOut
from txasynchat.log import failure
from txasynchat.tls.engine import LARGEST_WRITE, RECORD
from txasynchat.tls.handshakes import HandshakeLimit, Scheduler
from txasynchat.tls.pending import EVICTED
from txasynchat.tls.pyopenssl import PyOpenSSLEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["TLSFactory", "TLSTransport", "adopt"]

#: Connections accepted in one turn of the reactor while handshakes go on.
_ACCEPTS = 10


@implementer(ISystemHandle, INegotiated, ITransport)
class TLSTransport(transports.TLSBase):
    """
    One TLS connection, server or client, below any Twisted protocol.

    The protocol's ``connectionLost`` gets a `TLSError` as reason where TLS failed.

    Args:
        factory: the `TLSFactory`.
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

    #: An `Engine` or `PyOpenSSLEngine`; None before the connection and after it.
    engine: Any = None

    # Narrower in Twisted, untyped, or None at times that do not concern us.
    transport: Any
    wrappedProtocol: Any  # noqa: N815 Twisted's name
    __provides__: Any

    _clock: IReactorTime | None = None
    _limit: HandshakeLimit | None = None
    _send_below: Callable[[Any, bytes], bytes] | None = None
    _timer: IDelayedCall | None = None
    #: What the transport writes to, where that may be lost by itself.
    _writing_end: Any = None
    _began = False
    #: The handshake waits, for a place or for the time of its next step.
    _waits = False
    #: The ClientHello is complete, or this is a client.
    _greeted = False
    #: Something of the handshake was sent.
    _answered = False
    #: Since when a step waits for time; and how long others did before.
    _waits_since = 0.0
    _waited = 0.0
    #: The transport is not read, because the handshake waits.
    _paused = False
    #: What was written before it could be encrypted.
    _early: list[bytes] | None = None
    #: What was written while received data is handled.
    _outgoing: list[bytes] | None = None
    _outgoing_size = 0
    _producer: Any = None
    #: The protocol has a queue, which goes before what others write.
    _asks_writes = False
    #: The peer sent close_notify, and the protocol goes on writing.
    _half_closed = False
    #: `loseWriteConnection` was called: nothing more is written.
    _write_closed = False
    #: TLS is over, and the transport was told to close.
    _over = False
    _aborted = False
    _progress: Progress | None = None
    _stalled = 0.0

    def __init__(self, factory: Any, protocol: Any, connects: bool = True) -> None:
        super().__init__(factory, protocol)
        self._connects = connects

    # -- IProtocol: called by the transport below

    @override
    def makeConnection(self, transport: Any) -> None:
        """
        Connect the protocol above, unless it is connected already; then begin the handshake.
        """
        _provide(self, transport, half_close=False)
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        try:
            self.engine = self.factory.make_engine(self)
        except Exception:  # noqa: BLE001 the options may be the application's; it is logged
            if self._connects:
                # It has no connection, so it cannot lose one.
                self.wrappedProtocol = Protocol()
            self._failed()
            return
        try:
            if self._connects:
                self.wrappedProtocol.makeConnection(self)
        except Exception:  # noqa: BLE001 it is the application's, and is logged
            self._failed()
            return
        self._begin()

    @override
    def dataReceived(self, data: bytes) -> None:
        """
        Decrypt, deliver, and send what that made the protocol write.
        """
        if self.is_secure:
            if self._early:
                self._send_early()
                self._say_goodbye()
            if not self._half_closed:
                self._deliver(data)
        elif not self._has_ended():
            ready = self.engine.feed(data)
            if self._waits:
                self._pause()
            elif ready and self._greeted:
                self._go_on()
            elif ready:
                self._enter()

    @override
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Tell the protocol, with the reason as TLS sees it.
        """
        self._finish_handshake()
        self._stop_timer()
        self._leave_limit()
        if not self._over:
            self._over = True
            if self.reason is None and not self.disconnecting:
                self.reason = self._explain_loss(reason.getErrorMessage())
        reason, self.reason = self.reason or reason, None
        self.connected = False
        self._outgoing = self._early = None
        self._settle(reason)
        try:
            ProtocolWrapper.connectionLost(self, reason)
        finally:
            self.engine = None

    def readConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """
        The peer will send no more bytes: the end of TLS, or after close_notify of one direction only.
        """
        self._finish_handshake()
        if not (self._over or self._half_closed):
            self._finish(
                None if self.disconnecting else self._explain_loss("the peer stopped sending")
            )

    def writeConnectionLost(self) -> None:  # noqa: N802 Twisted's name
        """
        Nothing can be sent any more, not even an alert: that is the end, unless it was asked for.
        """
        if self._over or transports.writing_was_ended(self.transport, self._writing_end):
            return
        transports.read_what_is_there(self.transport)
        if self.reason is None and not self.disconnecting:
            self.reason = self._explain_loss("the peer stopped reading")
        self.abortConnection()

    # -- ITransport: called by the protocol above

    @override
    def write(self, data: bytes) -> None:
        """
        Encrypt and send: when received data is handled, or at once.
        """
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
        """
        Write all of *data*.
        """
        self.write(b"".join(data))

    @override
    def send_now(self, data: bytes) -> bytes:
        """
        Do as `write` does, if nothing waits in the transport; else return *data*.

        So a protocol need not become a producer before there is something to wait for.
        """
        if (
            self._send_below is None
            or self.disconnecting
            or not self.is_secure
            or not transports.has_room(self.transport)
        ):
            return data
        if self._outgoing:
            self._join(data)
        else:
            self._encrypt(data)
        return b""

    @override
    def loseConnection(self) -> None:
        """
        Send what was written, then close_notify; wait for the peer's, not for ever.
        """
        if self.disconnecting or not self.connected:
            return
        if endings.asks_protocol(self, "_takes_closing"):
            return
        self._send_outgoing()
        self.disconnecting = True
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
        self._send_below = None  # so that send_now() takes nothing either
        self._say_goodbye()

    def abortConnection(self) -> None:  # noqa: N802 Twisted's name
        """
        Close at once. There is no close_notify: the peer may not have everything.
        """
        self._outgoing = None
        self._stop_timer()
        self._aborted = self.disconnecting = True
        self._flush()
        self._settle(self.reason or Failure(ConnectionAborted()))
        transports.abort(self.transport)

    @override
    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Let *producer* write when the transport below has room, and the handshake is done.
        """
        if self._over:
            producer.stopProducing()
            return
        if self._producer is not None:
            raise RuntimeError(f"a producer is registered already: {self._producer.producer!r}")
        self._producer = _Producer(producer, streaming)
        if self.is_secure:
            self.transport.registerProducer(self._producer, streaming)
        elif streaming:
            self._producer.pauseProducing()

    @override
    def unregisterProducer(self) -> None:
        """
        Do what `loseConnection` or `loseWriteConnection` put off, if one of them was called.
        """
        if self._producer is None:
            return
        self._producer = None
        if self.is_secure:
            self.transport.unregisterProducer()
        self._say_goodbye()

    def getPeerCertificate(self) -> crypto.X509 | None:  # noqa: N802 Twisted's name
        """
        Return the peer's certificate; None if it has not sent one, or not yet.
        """
        der = None if self.engine is None else self.engine.peer_certificate_der
        return None if der is None else crypto.load_certificate(crypto.FILETYPE_ASN1, der)

    #: What Twisted's ``Certificate.peerFromTransport`` asks the handle.
    get_peer_certificate = getPeerCertificate

    def getHandle(self) -> Any:  # noqa: N802 Twisted's name
        """
        Return what Twisted's ``Certificate.peerFromTransport`` asks for the certificate.
        """
        return self

    @property
    def negotiatedProtocol(self) -> bytes | None:  # noqa: N802 Twisted's name
        """
        The protocol that ALPN chose; None for none, or not yet.
        """
        return None if self.engine is None else self.engine.alpn

    @property
    @override
    def sent_everything(self) -> bool:
        return self._over or self.engine is None or self.engine.write_closed

    # -- the handshake

    def _begin(self) -> None:
        if self._began or self._aborted:
            return
        self._began = True
        transport = self.transport
        self._writing_end = transports.writing_end(transport)
        transports.tell_of_ends(transport, self)
        self._asks_writes = hasattr(type(endings.protocol_above(self)), "_takes_write")
        # Now and not before: a policy's wrapper above claims what is provided here, and has it not.
        _provide(self, transport, half_close=True)
        self._send_below = transports.immediate_sender(transport)
        factory = self.factory
        if isinstance(factory, TLSFactory):
            self._clock = factory.clock
            self._limit = factory.limit
            self.handshake_timeout = factory.handshake_timeout
            self.close_timeout = factory.close_timeout
            self.flush_timeout = factory.flush_timeout
        else:
            self._clock = transports.reactor_of(transport)
            self._limit = HandshakeLimit.of(factory) if self.engine.is_server else None
        self._start_timer()
        if self._limit is not None:
            self._limit.connected(self, transports.peer_address(transport))
        if not self.engine.is_server:
            self._greeted = True
            self._step()

    def _enter(self) -> None:
        """
        The ClientHello is complete, or the client does not speak TLS.
        """
        self._greeted = True
        limit = self._limit
        if limit is None or limit.enter(
            self, transports.peer_address(self.transport), self._clock, self._admitted
        ):
            self._go_on()
        else:
            self._waits = True

    def _admitted(self) -> None:
        """
        There is a place for this handshake now.
        """
        if not self._has_ended():
            self._start_timer()
            self._go_on()

    def evict(self) -> None:
        """
        Called by `Pending`.
        """
        self.reason = Failure(HandshakeFailed(EVICTED))
        self.abortConnection()

    def failVerification(self, reason: Failure) -> None:  # noqa: N802 Twisted's name
        """
        Called by Twisted's options during the handshake: end it because of *reason*.
        """
        self.reason = reason
        self.abortConnection()

    def _go_on(self) -> None:
        """
        Bytes came: do the next step, when it is its turn.
        """
        if self._clock is None:
            self._step()
            return
        self._waits = True
        transports.accept_fewer(self.transport, _ACCEPTS)
        if not Scheduler.of(self._clock).run(self._step):
            self._waits_since = self._clock.seconds()

    def _has_ended(self) -> bool:
        return self._over or self._aborted

    def _pause(self) -> None:
        pause = getattr(self.transport, "pauseProducing", None)
        if pause is not None:
            self._paused = True
            pause()

    def _finish_handshake(self) -> None:
        """
        No more bytes will come: do the step that waits, if it may be the last and not in vain.
        """
        if self._waits and self._answered:
            self._step()

    def _step(self) -> None:
        self._waits = False
        if self._waits_since and self._clock is not None:
            self._waited += self._clock.seconds() - self._waits_since
            self._waits_since = 0.0
        if self._has_ended() or self.is_secure:
            return
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
        engine = self.engine
        begins = engine.tls is None
        try:
            engine.shake_hands()
        except Exception:  # noqa: BLE001 the options may be the application's; it is logged
            self._failed()
            return
        if self._has_ended():
            return  # a callback of the options aborted it
        if engine.ended:
            self._finish(Failure(engine.failure))
        elif engine.is_secure:
            self._secured()
        else:
            answered = self._flush()
            self._answered = answered or self._answered
            if self._limit is not None and (answered or begins):
                self._limit.answered(self, self._clock)

    def _secured(self) -> None:
        """
        The handshake is done.
        """
        self.is_secure = True
        self._stop_timer()
        self._leave_limit()
        if self._early:
            self._send_early()
        self._flush()
        producer = self._producer
        if producer is not None:
            self.transport.registerProducer(producer, producer.streaming)
            if producer.streaming:
                producer.resumeProducing()
        self._say_goodbye()
        if self.disconnecting:
            self._watch_closing()
        if IHandshakeListener.providedBy(self.wrappedProtocol):
            try:
                self.wrappedProtocol.handshakeCompleted()
            except Exception:  # noqa: BLE001 it is the application's, and is logged
                self._failed()
                return
        self._settle(None)
        if self.engine is not None:
            self._deliver(b"")  # what came behind the last flight

    def _failed(self) -> None:
        """
        Log the application's exception that is being handled, and end this connection.
        """
        peer = transports.peer_name(self.transport)
        failure(self._log, "{peer}: {what} raised", peer=peer, what=self.logPrefix())
        if self.reason is None:
            self.reason = Failure()
        self.abortConnection()

    def _settle(self, failure: Failure | None) -> None:
        """
        The handshake is done, or will not be: tell who waits for that, before anybody else.
        """
        if isinstance(self.factory, TLSFactory):
            self.factory.settled(self, failure)

    def _leave_limit(self) -> None:
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
        if self._clock is not None and (self._waited or self._waits_since):
            # The time that it took us is not the peer's.
            waited, self._waited = self._waited, 0.0
            self._timer = self._clock.callLater(waited or 1.0, self._handshake_timed_out)
            return
        self.reason = Failure(HandshakeTimedOut(self.handshake_timeout or 0.0))
        self.abortConnection()

    # -- data

    def _deliver(self, data: bytes) -> None:
        """
        Decrypt, and give the protocol what there is.
        """
        engine = self.engine
        nested = self._outgoing is not None
        if not nested:
            self._outgoing = []
        try:
            text = engine.receive(data)
            if text and not self._aborted:
                self.wrappedProtocol.dataReceived(text)
            while engine.more and not self._aborted:
                self.wrappedProtocol.dataReceived(engine.receive(b""))
        finally:
            if not nested:
                if self._outgoing:
                    self._send_outgoing()
                self._outgoing = None
        if engine.owes:
            self._flush()
        if engine.ended and not (self._aborted or self._over):
            self._ended(engine)

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

    def _encrypt(self, data: bytes) -> None:
        """
        Encrypt and send; keep what cannot be encrypted yet.
        """
        if not self.is_secure or self._early:
            if self._early is None:
                self._early = []
            self._early.append(data)
        elif len(data) <= RECORD:
            record = self.engine.encrypt(data)
            if record:
                self._send(record)
            else:
                self._not_encrypted(data)
        else:
            self._encrypt_records(memoryview(data))

    def _encrypt_records(self, data: memoryview) -> None:
        records: list[bytes] = []
        for at in range(0, len(data), RECORD):
            record = self.engine.encrypt(data[at : at + RECORD])
            if not record:
                self._not_encrypted(bytes(data[at:]))
                break
            records.append(record)
            if len(records) * RECORD == LARGEST_WRITE:
                self._send(b"".join(records))
                records.clear()
        if records:
            self._send(b"".join(records))

    def _not_encrypted(self, data: bytes) -> None:
        """
        The engine took nothing of *data*: it failed, or a peer renegotiates TLS 1.2.
        """
        engine = self.engine
        if engine.failure is not None:
            self._ended(engine)
        elif engine.can_write and data:
            self._early = [data]
            self._flush()

    def _send(self, data: bytes) -> None:
        send_below = self._send_below
        if send_below is None or (data := send_below(self.transport, data)):
            self.transport.write(data)

    def _flush(self) -> bool:
        """
        Send what the engine has to send by itself; return whether it had anything.
        """
        engine = self.engine
        if engine is None or not engine.owes:
            return False
        data = engine.take(transports.unsent_bytes(self.transport) or 0)
        if data:
            self._send(data)
        return bool(data)

    # -- the end

    def _ended(self, engine: Any) -> None:
        """
        No more plaintext will come: the peer sent close_notify, or TLS failed.
        """
        protocol = self.wrappedProtocol
        if engine.failure is not None:
            self._finish(Failure(engine.failure))
        elif self.disconnecting or not IHalfCloseableProtocol.providedBy(protocol):
            engine.close()
            self._finish(None)
        elif not self._half_closed:
            self._half_closed = True
            protocol.readConnectionLost()
            if engine.write_closed and not self._over:
                self._finish(None)

    def _say_goodbye(self) -> None:
        """
        Send close_notify, if that was asked for, and everything before it was written.
        """
        engine = self.engine
        if (
            not (self.disconnecting or self._write_closed)
            or self._producer is not None
            or self._early
            or not self.is_secure
            or engine is None
        ):
            return
        engine.close()
        self._flush()
        if engine.ended:
            self._finish(None)
        elif not self.disconnecting and IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self.wrappedProtocol.writeConnectionLost()

    def _finish(self, reason: Failure | None) -> None:
        """
        TLS is over: send what it still has to send, and let the transport go.
        """
        if self.reason is None:
            self.reason = reason
        if not self._over:
            self._over = True
            self._leave_limit()
            self._flush()
            producer = self._producer
            if producer is not None:
                self.unregisterProducer()
                producer.stopProducing()
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
            # What was written is waiting for the handshake to end, which has its own limit.
            self._start_timer()
            return
        unsent, unacknowledged = transports.outstanding_bytes(self.transport)
        if self._progress is None:
            self._progress = Progress()
        producer = self._producer
        if self._progress.made(unsent, unacknowledged) or (
            producer is not None and producer.works(unsent)
        ):
            self._stalled = 0.0
        else:
            self._stalled += self.close_timeout
            if self._stalled >= self.flush_timeout or not (unsent or unacknowledged):
                if unsent:
                    self.reason = Failure(CloseTimedOut(self.flush_timeout, unsent))
                endings.end(self)
                return
        self._timer = self._clock.callLater(self.close_timeout, self._watch_closing)

    def _explain_loss(self, what: str) -> Failure | None:
        """
        Say why the transport went away, where that is not all there is to say.
        """
        engine = self.engine
        if engine is None:
            return None
        engine.end_of_stream(what)
        return None if engine.failure is None else Failure(engine.failure)


class _Producer:
    """
    The producer of a `TLSTransport`, as the transport below sees it.
    """

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
        """
        Return whether it has yet to finish, and it is not the peer that it waits for.
        """
        return not (self._paused if self.streaming else unsent)


class OverTwisteds(TLSTransport, TLSMemoryBIOProtocol):
    """
    A `TLSTransport` where Twisted's options expect Twisted's own.
    """

    @override
    def getHandle(self) -> Any:
        """
        Return pyOpenSSL's connection; None when the connection is lost.
        """
        return None if self.engine is None else self.engine.tls

    @override
    def _checkHandshakeStatus(self) -> None:
        """
        Called by Twisted when the protocol above is connected; see `adopt`.
        """
        self._begin()


class TLSFactory(WrappingFactory[Any]):
    """
    Puts a `TLSTransport` below each protocol of another factory.

    Args:
        options: a `ServerOptions` or `ClientOptions`, or a connection creator of Twisted's.
        is_client: this side begins.
        factory: makes the protocols; None where they are there already.
        clock: the reactor that the connections live on; None for no limits on time.
    """

    protocol = TLSTransport
    noisy = False

    def __init__(
        self, options: Any, is_client: bool, factory: Any, clock: IReactorTime | None
    ) -> None:
        super().__init__(factory)
        self._make_ours = getattr(options, "engine", None)
        if self._make_ours is None:
            self.protocol = OverTwisteds
            # Without a clock that would install a reactor.
            theirs = TLSMemoryBIOFactory(options, is_client, factory, clock=_NO_CLOCK)
            self._make_theirs: Any = theirs._creatorCallable
        self._is_client = is_client
        self.clock = clock
        self.limit: HandshakeLimit | None = None if is_client else getattr(options, "limit", None)
        # Of the class where the options are Twisted's.
        self.handshake_timeout: float | None
        self.close_timeout: float
        self.flush_timeout: float
        for name in ("handshake_timeout", "close_timeout", "flush_timeout"):
            setattr(self, name, getattr(options, name, getattr(TLSTransport, name)))

    @override
    def buildProtocol(self, addr: Any) -> Any:
        """
        Build the other factory's protocol, and TLS below it; None if that refuses the connection.
        """
        protocol = self.wrappedFactory.buildProtocol(addr)
        return None if protocol is None else self.protocol(self, protocol)

    def make_engine(self, transport: TLSTransport) -> Any:
        """
        Make the engine of one connection.
        """
        if self._make_ours is not None:
            return self._make_ours()
        return PyOpenSSLEngine(partial(self._make_theirs, transport), is_server=not self._is_client)

    def settled(self, transport: TLSTransport, failure: Failure | None) -> None:
        """
        The handshake of *transport* is done, or its connection is lost, because of *failure*.

        The first call counts: a connection is lost in the end, and may be so for several reasons.
        """


_NO_CLOCK: Any = object()


def adopt(transport: Any) -> None:
    """
    Put a `TLSTransport` in the place of the TLS below *transport*, if Twisted's own endpoints made it.

    To be called when the connection is made, before the handshake begins. So ``ssl:`` and ``tls:``
    endpoints have the same limits, events and errors as those of this package. Subclasses of Twisted's
    classes are left alone.
    """
    layer = transports.tls_layer(transport)
    if type(layer) is BufferingTLSTransport and not layer._handshakeDone:
        layer._aggregator.flush()  # close() is newer than the oldest Twisted
        del layer.write, layer._aggregator
        connection = layer._tlsConnection
        layer.__class__ = OverTwisteds  # type: ignore[assignment] # it differs in methods only
        adopted: Any = layer
        adopted._early = adopted._appSendBuffer
        adopted.engine = PyOpenSSLEngine(
            lambda: connection, is_server=transports.was_accepted(layer.transport)
        )


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
