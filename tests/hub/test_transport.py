"""
Connections of the hub: whatever a protocol asks of ``self.transport`` works as on Twisted's.

Each test runs over both, so a difference shows.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IFileDescriptorReceiver,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IOpenSSLServerConnectionCreator,
    IPullProducer,
    IPushProducer,
    ISSLTransport,
    ISystemHandle,
    ITCPTransport,
    ITLSTransport,
    IUNIXTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from typing_extensions import override
from zope.interface import implementer

from helpers.kinds import on_the_hub_too
from helpers.support import HOST, client_context, in_thread, use_certificate
from txasynchat.hub.places import HubReactor

PATIENCE = 20.0


class Notes(Protocol):
    """Writes down what it is told."""

    def __init__(self):
        self.data = b""
        self.told = []
        self.lost = Deferred()
        self.waiting = []

    @override
    def dataReceived(self, data):
        self.data += data
        self.wake()

    @override
    def connectionLost(self, reason):
        self.told.append(reason.type)
        self.reason = reason
        self.lost.callback(None)

    def wake(self):
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback(None)

    async def gone(self):
        await self.lost
        return self.reason

    async def until(self, condition):
        while not condition():
            self.waiting.append(Deferred())
            await self.waiting[-1]


@implementer(IHalfCloseableProtocol)
class HalfClosing(Notes):
    @override
    def readConnectionLost(self):
        self.told.append("read")
        self.wake()

    @override
    def writeConnectionLost(self):
        self.told.append("write")
        self.wake()


class ConnectionCase(TestCase):
    reactor = reactor

    async def connect(self, build=Notes, family=socket.AF_INET):
        """Connect a blocking client; return it, and the protocol that serves it."""
        made = Deferred()

        def noted():
            protocol = build()
            made.callback(protocol)
            return protocol

        factory = Factory.forProtocol(noted)
        factory.noisy = False
        if family == socket.AF_UNIX:
            self.path = self.mktemp()
            endpoint = UNIXServerEndpoint(self.reactor, self.path)
        elif family == socket.AF_INET6:
            endpoint = TCP6ServerEndpoint(self.reactor, 0, interface="::1")
        else:
            endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        self.port = port
        host = port.getHost()
        client = socket.socket(family)
        self.addCleanup(client.close)
        client.settimeout(PATIENCE)
        client.connect(host.name if family == socket.AF_UNIX else (host.host, host.port))
        protocol = await made
        await deferLater(reactor, 0)

        async def gone():
            if not protocol.lost.called:
                protocol.transport.abortConnection()
                await protocol.lost

        self.addCleanup(lambda: Deferred.fromCoroutine(gone()))
        return client, protocol

    def read_all(self, client):
        return in_thread(lambda: b"".join(iter(lambda: client.recv(1 << 16), b"")))


@on_the_hub_too
class Bytes(ConnectionCase):
    async def test_what_is_written_arrives_in_order_before_the_end(self):
        """Pieces, joined pieces and large ones, and an end right behind them."""
        client, protocol = await self.connect()
        transport = protocol.transport
        large = bytes(range(256)) * 20_000
        transport.write(b"one ")
        transport.writeSequence([b"two ", b"three "])
        transport.write(b"")
        transport.write(large)
        for piece in (b"four ", b"five"):
            transport.write(piece)
        transport.loseConnection()
        transport.write(b" six")  # as Twisted's: still before the end
        self.assertTrue(transport.disconnecting)
        expected = b"one two three " + large + b"four five six"
        self.assertEqual(await self.read_all(client), expected)
        self.assertIs((await protocol.gone()).type, ConnectionDone)

    async def test_many_small_pieces_arrive(self):
        client, protocol = await self.connect()
        pieces = [b"%d," % number for number in range(50_000)]
        for piece in pieces:
            protocol.transport.write(piece)
        protocol.transport.loseConnection()
        self.assertEqual(await self.read_all(client), b"".join(pieces))

    async def test_bulk_input_arrives_whole(self):
        client, protocol = await self.connect()
        data = bytes(range(256)) * 40_000
        await in_thread(client.sendall, data)
        await protocol.until(lambda: len(protocol.data) == len(data))
        self.assertEqual(protocol.data, data)

    async def test_text_is_refused(self):
        _, protocol = await self.connect()
        for data in ("text", None, 3):
            with self.assertRaises(TypeError):
                protocol.transport.write(data)
        with self.assertRaises(TypeError):
            protocol.transport.writeSequence(["text"])

    async def test_nothing_is_delivered_after_the_end_was_asked_for(self):
        class Leaving(Notes):
            @override
            def dataReceived(self, data):
                super().dataReceived(data)
                self.transport.loseConnection()

        client, protocol = await self.connect(Leaving)
        with contextlib.suppress(ConnectionError):  # the end may come in the middle
            await in_thread(client.sendall, bytes(1_000_000))
        await protocol.lost
        self.assertLessEqual(len(protocol.data), 65_536)

    async def test_the_loss_is_not_reported_inside_the_call(self):
        """Neither by a close nor by an abort: callers need not expect to be called back."""
        for end in ("loseConnection", "abortConnection"):
            for within in (True, False):
                called = []

                class Leaving(Notes):
                    @override
                    def dataReceived(self, data, end=end, called=called):
                        super().dataReceived(data)
                        getattr(self.transport, end)()
                        called.append(list(self.told))

                client, protocol = await self.connect(Leaving if within else Notes)
                if within:
                    await in_thread(client.sendall, b"x")
                    await protocol.lost
                    self.assertEqual(called, [[]])
                else:
                    getattr(protocol.transport, end)()
                    self.assertEqual(protocol.told, [])
                    await protocol.lost
                client.close()


@on_the_hub_too
class Ends(ConnectionCase):
    async def test_the_peers_end_is_the_end(self):
        client, protocol = await self.connect()
        client.sendall(b"last")
        client.close()
        reason = await protocol.gone()
        self.assertIs(reason.type, ConnectionDone)
        self.assertEqual(protocol.data, b"last")
        self.assertFalse(protocol.transport.connected)
        self.assertTrue(protocol.transport.disconnected)
        protocol.transport.write(b"late")  # nobody minds
        protocol.transport.loseConnection()
        protocol.transport.abortConnection()
        protocol.transport.pauseProducing()

    async def test_a_reset_is_a_loss(self):
        client, protocol = await self.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        self.assertIs((await protocol.gone()).type, ConnectionLost)

    async def test_a_reset_is_noticed_while_something_waits_and_reading_is_paused(self):
        client, protocol = await self.connect()
        protocol.transport.pauseProducing()
        protocol.transport.write(bytes(30_000_000))
        await in_thread(client.recv, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        self.assertIs((await protocol.gone()).type, ConnectionLost)

    async def test_an_abort_resets(self):
        """Without waiting for a peer that does not read."""
        client, protocol = await self.connect()
        protocol.transport.write(bytes(30_000_000))
        protocol.transport.abortConnection()
        protocol.transport.abortConnection()
        self.assertIs((await protocol.gone()).type, ConnectionAborted)
        with self.assertRaises(ConnectionResetError):
            await self.read_all(client)

    async def test_an_exception_of_the_protocol_ends_that_connection_only(self):
        class Failing(Notes):
            @override
            def dataReceived(self, data):
                super().dataReceived(data)
                if data == b"fail":
                    raise ZeroDivisionError

        client, protocol = await self.connect(Failing)
        other, others = await self.connect(Failing)
        await in_thread(client.sendall, b"fail")
        self.assertIs((await protocol.gone()).type, ZeroDivisionError)
        self.assertEqual(await in_thread(client.recv, 1), b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        await in_thread(other.sendall, b"go on")
        await others.until(lambda: others.data == b"go on")

    async def test_an_exception_in_the_loss_is_logged(self):
        class Failing(Notes):
            @override
            def connectionLost(self, reason):
                super().connectionLost(reason)
                raise ZeroDivisionError

        client, protocol = await self.connect(Failing)
        client.close()
        await protocol.lost
        await deferLater(reactor, 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_an_end_from_a_timer_needs_no_event(self):
        client, protocol = await self.connect()
        reactor.callLater(0, protocol.transport.loseConnection)
        self.assertIs((await protocol.gone()).type, ConnectionDone)
        self.assertEqual(await in_thread(client.recv, 1), b"")


@on_the_hub_too
class HalfCloses(ConnectionCase):
    async def test_our_sending_ends_behind_what_waits(self):
        client, protocol = await self.connect(HalfClosing)
        protocol.transport.write(bytes(5_000_000))
        protocol.transport.loseWriteConnection()
        self.assertEqual(len(await self.read_all(client)), 5_000_000)
        await protocol.until(lambda: protocol.told == ["write"])
        protocol.transport.write(b"dropped")
        await in_thread(client.sendall, b"still heard")
        await protocol.until(lambda: protocol.data == b"still heard")
        client.close()
        await protocol.until(lambda: protocol.told == ["write", "read"])
        protocol.transport.loseConnection()
        self.assertIs((await protocol.gone()).type, ConnectionDone)

    async def test_the_peers_sending_ends_and_answers_still_go(self):
        client, protocol = await self.connect(HalfClosing)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        await protocol.until(lambda: protocol.told == ["read"])
        self.assertEqual(protocol.data, b"question")
        protocol.transport.write(b"answer")
        protocol.transport.loseConnection()
        self.assertEqual(await self.read_all(client), b"answer")
        await protocol.lost

    async def test_a_protocol_without_half_closes_is_lost_at_the_peers_end(self):
        client, protocol = await self.connect()
        client.shutdown(socket.SHUT_WR)
        self.assertIs((await protocol.gone()).type, ConnectionDone)


@implementer(IPushProducer)
class Pushing:
    def __init__(self, consumer):
        self.consumer = consumer
        self.told = []
        self.resumed = Deferred()
        self.paused = False

    @override
    def pauseProducing(self):
        self.told.append("pause")
        self.paused = True

    @override
    def resumeProducing(self):
        self.told.append("resume")
        self.paused = False
        if not self.resumed.called:
            self.resumed.callback(None)

    @override
    def stopProducing(self):
        self.told.append("stop")


@implementer(IPullProducer)
class Pulled:
    def __init__(self, consumer, count):
        self.consumer = consumer
        self.left = count

    @override
    def resumeProducing(self):
        self.consumer.write(bytes(10_000))
        self.left -= 1
        if not self.left:
            self.consumer.unregisterProducer()

    @override
    def stopProducing(self):
        self.left = -1


@on_the_hub_too
class Producers(ConnectionCase):
    async def test_a_push_producer_is_paused_and_resumed(self):
        client, protocol = await self.connect()
        producer = Pushing(protocol.transport)
        protocol.transport.registerProducer(producer, True)
        with self.assertRaises(RuntimeError):
            protocol.transport.registerProducer(producer, True)
        written = 0
        while not producer.paused:
            protocol.transport.write(bytes(100_000))
            written += 100_000
        self.assertLess(written, 10_000_000)
        reading = in_thread(lambda: len(client.makefile("rb").read(written)))
        await producer.resumed
        self.assertEqual(producer.told, ["pause", "resume"])
        self.assertEqual(await reading, written)
        protocol.transport.loseConnection()
        await deferLater(reactor, 0)
        protocol.transport.unregisterProducer()
        await protocol.lost

    async def test_a_pull_producer_is_asked_until_it_is_done(self):
        client, protocol = await self.connect()
        protocol.transport.registerProducer(Pulled(protocol.transport, 500), False)
        protocol.transport.loseConnection()  # waits for the producer
        self.assertEqual(len(await self.read_all(client)), 5_000_000)
        self.assertIs((await protocol.gone()).type, ConnectionDone)

    async def test_a_producer_is_stopped_at_the_loss(self):
        client, protocol = await self.connect()
        producer = Pushing(protocol.transport)
        protocol.transport.registerProducer(producer, True)
        client.close()
        await protocol.lost
        self.assertEqual(producer.told, ["stop"])
        late = Pushing(protocol.transport)
        protocol.transport.registerProducer(late, True)
        self.assertEqual(late.told, ["stop"])

    async def test_a_pull_producer_that_raises_ends_the_connection(self):
        class Failing(Pulled):
            @override
            def resumeProducing(self):
                if self.left == 1:
                    raise ZeroDivisionError
                super().resumeProducing()

        client, protocol = await self.connect()
        protocol.transport.registerProducer(Failing(protocol.transport, 5), False)
        self.assertEqual(len(await self.read_all(client)), 40_000)
        self.assertIs((await protocol.gone()).type, ZeroDivisionError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_reading_pauses_and_resumes(self):
        class Pausing(Notes):
            @override
            def dataReceived(self, data):
                super().dataReceived(data)
                self.transport.pauseProducing()

        client, protocol = await self.connect(Pausing)
        await in_thread(client.sendall, b"one")
        await protocol.until(lambda: protocol.data == b"one")
        await in_thread(client.sendall, b"two")
        for _ in range(20):
            await deferLater(reactor, 0)
        self.assertEqual(protocol.data, b"one")
        protocol.transport.resumeProducing()
        await protocol.until(lambda: protocol.data == b"onetwo")
        protocol.transport.stopProducing()
        await protocol.lost


@on_the_hub_too
class Attributes(ConnectionCase):
    async def test_addresses_over_ipv4(self):
        client, protocol = await self.connect()
        peer, host = protocol.transport.getPeer(), protocol.transport.getHost()
        self.assertEqual((peer.host, peer.port), client.getsockname())
        self.assertEqual((host.host, host.port), client.getpeername())
        self.assertEqual(host, self.port.getHost())

    async def test_addresses_over_ipv6(self):
        client, protocol = await self.connect(family=socket.AF_INET6)
        peer, host = protocol.transport.getPeer(), protocol.transport.getHost()
        self.assertEqual((peer.host, peer.port, peer.flowInfo, peer.scopeID), client.getsockname())
        self.assertEqual(host, self.port.getHost())

    async def test_addresses_over_unix(self):
        _, protocol = await self.connect(family=socket.AF_UNIX)
        self.assertEqual(protocol.transport.getHost().name, os.fsencode(self.path))
        self.assertIn(protocol.transport.getPeer().name, (None, b""))
        self.assertFalse(protocol.transport.getTcpNoDelay())
        protocol.transport.setTcpNoDelay(True)

    async def test_small_writes_are_not_delayed(self):
        _, protocol = await self.connect()
        on_the_hub = isinstance(self.reactor, HubReactor)
        self.assertIs(protocol.transport.getTcpNoDelay(), on_the_hub)

    async def test_options(self):
        _, protocol = await self.connect()
        transport = protocol.transport
        for value in (True, False):
            transport.setTcpNoDelay(value)
            transport.setTcpKeepAlive(value)
            self.assertIs(transport.getTcpNoDelay(), value)
            self.assertIs(transport.getTcpKeepAlive(), value)
        self.assertEqual(transport.getHandle().fileno(), transport.fileno())
        self.assertIn("Notes", transport.logPrefix())
        self.assertIn("Notes", repr(transport))
        transport.noted_by_the_application = 1

    async def test_interfaces(self):
        _, protocol = await self.connect()
        for one in (ITCPTransport, ITLSTransport, IConsumer, IPushProducer, ISystemHandle):
            self.assertTrue(one.providedBy(protocol.transport), one)
        self.assertTrue(IHalfCloseableDescriptor.providedBy(protocol.transport))
        _, protocol = await self.connect(family=socket.AF_UNIX)
        self.assertTrue(IUNIXTransport.providedBy(protocol.transport))


@implementer(IOpenSSLServerConnectionCreator)
class Options:
    """Made of nothing but Twisted and pyOpenSSL."""

    def serverConnectionForTLS(self, layer):  # noqa: N802 Twisted's name
        context = SSL.Context(SSL.TLS_METHOD)
        use_certificate(context)
        return SSL.Connection(context, None)


@on_the_hub_too
class Upgrades(ConnectionCase):
    async def test_twisteds_own_tls_can_be_started(self):
        """``startTLS`` with the options of a Twisted application, in mid-connection."""
        options = Options()

        class Starting(Notes):
            @override
            def dataReceived(self, data):
                super().dataReceived(data)
                if data == b"STARTTLS":
                    self.transport.write(b"go")
                    self.transport.startTLS(options)
                    self.transport.write(b"welcome")
                else:
                    self.transport.write(data)

        client, protocol = await self.connect(Starting)

        def talk():
            client.sendall(b"STARTTLS")
            self.assertEqual(client.recv(2), b"go")
            with client_context().wrap_socket(client, server_hostname=HOST) as secure:
                said = secure.recv(7)
                secure.sendall(b"echo")
                return said, secure.recv(4)

        self.assertEqual(await in_thread(talk), (b"welcome", b"echo"))
        self.assertTrue(ISSLTransport.providedBy(protocol.transport))
        protocol.transport.loseConnection()
        await protocol.lost


@on_the_hub_too
class Descriptors(ConnectionCase):
    async def test_a_descriptor_is_sent_over_unix(self):
        client, protocol = await self.connect(family=socket.AF_UNIX)
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        protocol.transport.sendFileDescriptor(write)
        protocol.transport.write(b"here")
        data, received, _, _ = await in_thread(socket.recv_fds, client, 100, 2)
        [copy] = received
        os.write(copy, b"x")
        os.close(copy)
        self.assertEqual(os.read(read, 1), b"x")
        data += await in_thread(client.recv, 4 - len(data)) if len(data) < 4 else b""
        self.assertEqual(data, b"here")

    async def test_a_descriptor_is_received_over_unix(self):
        @implementer(IFileDescriptorReceiver)
        class Receiving(Notes):
            def __init__(self):
                super().__init__()
                self.received = []

            @override
            def fileDescriptorReceived(self, descriptor):
                self.received.append(descriptor)

        client, protocol = await self.connect(Receiving, socket.AF_UNIX)
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        socket.send_fds(client, [b"here"], [write])
        os.close(write)
        await protocol.until(lambda: protocol.data == b"here")
        [copy] = protocol.received
        os.write(copy, b"x")
        os.close(copy)
        self.assertEqual(os.read(read, 1), b"x")
        client.close()
        self.assertIs((await protocol.gone()).type, ConnectionDone)
