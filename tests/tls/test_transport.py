"""
TLS as a transport, for protocols that are not an `AsyncChat`: with options of ours and of Twisted's.

Also covers `tls.factory`, `tls.info` and `tls.pyopenssl`.
"""

import socket

import pytest
from OpenSSL import crypto
from twisted.internet import reactor, task, tcp
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IPullProducer,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from typing_extensions import override
from zope.interface import implementer

from helpers import support
from helpers.support import HOST, Notes, Server, in_thread, leaf, pem, server_options, trust
from txasynchat import AsyncChat, errors, transports
from txasynchat.endpoints import SecureClientEndpoint, SecureServerEndpoint
from txasynchat.testing import MemoryLink
from txasynchat.tls import ClientOptions, TLSInfo
from txasynchat.tls.factory import TLSFactory
from txasynchat.tls.handshakes import Scheduler

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


def ours():
    return server_options(alpn=(b"chat",)), ClientOptions(HOST, trust(), alpn=(b"chat",))


def twisteds():
    server = PrivateCertificate.loadPEM(pem(leaf())).options()
    server._acceptableProtocols = [b"chat"]
    client = optionsForClientTLS(
        HOST, trustRoot=Certificate.loadPEM(trust()), acceptableProtocols=[b"chat"]
    )
    return server, client


@implementer(IHandshakeListener)
class Heard(Protocol):
    """Notes what it hears."""

    def __init__(self):
        self.heard = []
        self.received = b""

    @override
    def dataReceived(self, data):
        self.received += data

    def handshakeCompleted(self):  # noqa: N802 Twisted's name
        self.heard.append("handshake")

    @override
    def connectionLost(self, reason):
        self.heard.append(reason.type)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Heard):
    def readConnectionLost(self):  # noqa: N802
        self.heard.append("read lost")

    def writeConnectionLost(self):  # noqa: N802
        self.heard.append("write lost")


class Wire(StringTransport):
    """A transport in memory that counts its writes."""

    def __init__(self):
        super().__init__()
        self.writes = 0

    @override
    def write(self, data):
        self.writes += 1
        super().write(data)


class Pair:
    """A server and a client, and their transports in memory."""

    def __init__(self, options, kind=Heard):
        self.clock = task.Clock()
        self.wires, self.ends, self.protocols = [], [], []
        for one, is_client in zip(options, (False, True), strict=True):
            protocol = kind()
            made = Factory.forProtocol(lambda it=protocol: it)
            factory = TLSFactory(one, is_client, made, self.clock)
            self.protocols.append(protocol)
            self.ends.append(factory.buildProtocol(None))
            self.wires.append(Wire())
        for end, wire in zip(self.ends, self.wires, strict=True):
            end.makeConnection(wire)
        self.server, self.client = self.protocols

    def deliver(self, sender):
        """Deliver what one end has sent."""
        data = self.wires[sender].value()
        self.wires[sender].clear()
        if data:
            self.ends[1 - sender].dataReceived(data)

    def run(self):
        """Deliver until nothing is under way."""
        while any(wire.value() for wire in self.wires):
            for sender in (0, 1):
                self.deliver(sender)
            self.clock.advance(0)
        return self

    def end(self):
        for end in self.ends:
            end.connectionLost(Failure(ConnectionDone()))


@pytest.fixture(params=[ours, twisteds], ids=["ours", "Twisted's"])
def options(request):
    return request.param()


@pytest.fixture
def pair(options):
    pair = Pair(options).run()
    yield pair
    pair.end()


@pytest.fixture
def half_closeable(options):
    pair = Pair(options, HalfCloseable).run()
    yield pair
    pair.end()


def test_what_was_agreed_on_is_known_above(pair):
    tls = pair.client.transport
    assert pair.client.heard == ["handshake"]
    assert (tls.negotiatedProtocol, pair.server.transport.negotiatedProtocol) == (b"chat", b"chat")
    certificate = tls.getPeerCertificate()
    assert isinstance(certificate, crypto.X509)
    mine = crypto.load_certificate(crypto.FILETYPE_PEM, pem(leaf()))
    assert certificate.digest("sha256") == mine.digest("sha256")
    assert Certificate.peerFromTransport(tls).original.digest("sha256") == mine.digest("sha256")
    assert pair.server.transport.getPeerCertificate() is None
    info = TLSInfo.of(pair.server.transport)
    assert (info.version, info.alpn, info.server_name) == ("TLSv1.3", b"chat", HOST)
    assert tls.getPeer() == pair.wires[1].getPeer()


def test_what_was_written_before_the_handshake_is_sent_after_it(options):
    class Early(Heard):
        @override
        def connectionMade(self):
            self.transport.writeSequence([b"ear", b"ly"])
            self.transport.loseConnection()

    pair = Pair(options, Early).run()
    assert (pair.server.received, pair.client.received) == (b"early", b"early")
    assert all(wire.disconnecting for wire in pair.wires)
    pair.end()


def test_answers_to_one_batch_are_one_write(pair):
    def answer(data):
        for _ in range(10):
            pair.server.transport.write(b"answer ")

    pair.server.dataReceived = answer
    before = pair.wires[0].writes
    pair.client.transport.write(b"question")
    pair.run()
    assert pair.client.received == b"answer " * 10
    assert pair.wires[0].writes - before == 1


def test_last_answer_and_the_end_are_one_write(pair):
    def answer(data):
        pair.server.transport.write(b"answer")
        pair.server.transport.loseConnection()

    pair.server.dataReceived = answer
    before = pair.wires[0].writes
    pair.client.transport.write(b"question")
    pair.deliver(1)
    assert pair.wires[0].writes - before == 1
    pair.run()
    assert pair.client.received == b"answer"
    assert pair.wires[1].disconnecting


def test_large_data_arrives_whole(pair):
    data = bytes(range(256)) * 4_000
    pair.client.transport.write(data)
    pair.run()
    assert pair.server.received == data


def test_end_of_one_direction_leaves_the_other_open(half_closeable):
    pair = half_closeable
    pair.client.transport.write(b"last words")
    pair.client.transport.loseWriteConnection()
    pair.client.transport.write(b"too late")
    pair.run()
    assert (pair.server.received, pair.server.heard[1:]) == (b"last words", ["read lost"])
    assert pair.client.heard[1:] == ["write lost"]
    pair.server.transport.write(b"answer")
    pair.run()
    assert pair.client.received == b"answer"
    assert not any(wire.disconnecting for wire in pair.wires)
    pair.server.transport.loseConnection()
    pair.run()
    assert all(wire.disconnecting for wire in pair.wires)


class Producing:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def resumeProducing(self):  # noqa: N802 Twisted's name
        self.told.append("resume")

    def pauseProducing(self):  # noqa: N802
        self.told.append("pause")

    def stopProducing(self):  # noqa: N802
        self.told.append("stop")


def test_producers_wait_for_the_handshake_and_for_the_transport_below(options):
    for streaming in (True, False):
        producers = [Producing(), Producing()]

        class Eager(Heard):
            @override
            def connectionMade(self):
                self.transport.registerProducer(producers[0], streaming)  # noqa: B023 it is called at once

        pair = Pair(options, Eager)
        assert pair.wires[0].producer is None
        producers[0].told.clear()
        pair.run()
        below = pair.wires[0].producer
        assert pair.wires[0].streaming is streaming
        told = producers[0].told
        told.clear()
        below.pauseProducing()
        below.resumeProducing()
        assert told == ["pause", "resume"]
        with pytest.raises(RuntimeError, match="registered already"):
            pair.server.transport.registerProducer(producers[1], streaming)
        pair.server.transport.loseConnection()
        pair.run()
        assert not pair.wires[0].disconnecting, "the producer has not ended"
        pair.server.transport.write(b"produced late")
        pair.server.transport.unregisterProducer()
        pair.run()
        assert pair.client.received == b"produced late"
        assert pair.wires[0].disconnecting
        assert pair.wires[0].producer is None
        pair.server.transport.registerProducer(producers[1], streaming)
        assert producers[1].told == ["stop"], "TLS is over"
        pair.end()


def test_producer_is_stopped_when_tls_fails(pair):
    producer = Producing()
    pair.server.transport.registerProducer(producer, True)
    pair.ends[0].dataReceived(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert producer.told[-1] == "stop"
    assert (pair.wires[0].producer, pair.wires[0].disconnecting) == (None, True)
    pair.end()
    assert issubclass(pair.server.heard[-1], errors.TLSError)
    pair.ends.clear()


def test_abort_tells_the_peer_nothing(pair):
    """No close_notify: the peer does not take what it has for everything."""
    pair.server.transport.abortConnection()
    assert pair.wires[0].value() == b""
    assert pair.wires[0].disconnected


def test_missing_close_notify_is_a_truncation(pair):
    pair.end()
    assert pair.server.heard == ["handshake", errors.TruncatedConnection]
    pair.ends.clear()


def test_handshake_is_finished_by_bytes_that_came_before_the_end(options):
    """Its last step waited for its turn when the connection was lost."""
    pair = Pair(options)
    budget = Scheduler.of(pair.clock).budget
    budget.seconds = 60.0  # a machine may stand still here
    for sender in (1, 0):
        pair.deliver(sender)
    pair.client.transport.write(b"last words")
    assert pair.client.heard == ["handshake"]
    budget.seconds = 0.0
    budget.run(lambda: None)
    pair.deliver(1)
    assert pair.server.heard == []
    pair.end()
    assert pair.server.heard == ["handshake", errors.TruncatedConnection]
    assert pair.server.received == b"last words"


class Raises(Heard):
    @override
    def dataReceived(self, data):
        raise ValueError(data)


def test_protocol_that_raises_in_the_last_step_of_a_handshake_hears_of_the_end():
    pair = Pair(ours(), Raises)
    budget = Scheduler.of(pair.clock).budget
    budget.seconds = 60.0  # a machine may stand still here
    for sender in (1, 0):
        pair.deliver(sender)
    pair.client.transport.write(b"last words")
    budget.seconds = 0.0
    budget.run(lambda: None)
    pair.deliver(1)
    pair.end()
    assert pair.server.heard == ["handshake", ValueError]


class Greets(Heard):
    """Writes as soon as it may."""

    @override
    def handshakeCompleted(self):
        super().handshakeCompleted()
        self.transport.write(b"hello")


def test_handshake_is_finished_although_its_socket_is_gone(options):
    """Twisted deletes the socket of a lost connection before it says so."""
    pair = Pair(options)
    pair.clock, protocol = MemoryReactorClock(), Greets()
    factory = TLSFactory(options[0], False, Factory.forProtocol(lambda: protocol), pair.clock)
    pair.ends[0] = factory.buildProtocol(None)
    with socket.create_server(("127.0.0.1", 0)) as port:
        peer = socket.create_connection(port.getsockname())
        sock, address = port.accept()
    connection = tcp.Server(sock, pair.ends[0], address, None, 0, pair.clock)
    pair.ends[0].makeConnection(connection)
    with peer:
        pair.deliver(1)
        connection.doWrite()
        pair.ends[1].dataReceived(peer.recv(65_536))
        pair.client.transport.write(b"last words")
        budget = Scheduler.of(pair.clock).budget
        budget.seconds = 0.0
        budget.run(lambda: None)
        pair.deliver(1)
        assert protocol.heard == []
        connection.connectionLost(Failure(ConnectionLost()))
    assert protocol.heard == ["handshake", errors.TruncatedConnection]
    assert protocol.received == b"last words"
    assert transports.own_address(connection) is None
    assert transports.peer_address(connection) == address
    pair.ends[1].connectionLost(Failure(ConnectionDone()))


def test_end_of_sending_is_told_once(half_closeable):
    tls = half_closeable.client.transport
    tls.loseWriteConnection()
    tls.registerProducer(Producing(), True)
    tls.unregisterProducer()
    assert half_closeable.client.heard == ["handshake", "write lost"]


@implementer(IPullProducer)
class Pulled:
    """Writes a little each time that it is asked."""

    def __init__(self, consumer):
        self.consumer, self.left = consumer, 300

    def resumeProducing(self):  # noqa: N802 Twisted's name
        self.left -= 1
        self.consumer.write(b"x" * 999 + b"\n")
        if not self.left:
            self.consumer.unregisterProducer()
            self.consumer.loseConnection()

    def stopProducing(self):  # noqa: N802
        pass


class Pulling(Heard):
    """Sends by a pull producer that is registered before the handshake."""

    @override
    def connectionMade(self):
        self.transport.registerProducer(Pulled(self.transport), False)


class Refused(TestCase):
    """Whoever hands options of ours to Twisted's TLS learns at once what to use instead."""

    def check(self, error, word):
        text = str(error)
        assert "secure:" in text and "AsyncChat.start_tls" in text and word in text, text

    def test_options_are_not_twisteds(self):
        for one in ours():
            assert not IOpenSSLServerConnectionCreator.providedBy(one)
            assert not IOpenSSLClientConnectionCreator.providedBy(one)

    def test_endpoints_of_ours_take_those_of_their_side(self):
        server, client = ours()
        with pytest.raises(TypeError, match="must be ServerOptions"):
            SecureServerEndpoint(reactor, None, client)
        with pytest.raises(TypeError, match="must be ClientOptions"):
            SecureClientEndpoint(reactor, None, server)

    def test_factories_and_reactors_refuse_them(self):
        server, client = ours()
        factory = Factory.forProtocol(Protocol)
        for call, word in (
            (lambda: reactor.listenSSL(0, factory, server), "ServerOptions"),
            (lambda: reactor.connectSSL(HOST, 1, factory, client), "ClientOptions"),
            (lambda: TLSMemoryBIOFactory(server, False, factory, task.Clock()), "ServerOptions"),
            (lambda: TLSMemoryBIOFactory(client, True, factory, task.Clock()), "ClientOptions"),
        ):
            with pytest.raises(TypeError) as refused:
                call()
            self.check(refused.value, word)

    async def test_endpoints_refuse_them(self):
        server, client = ours()
        listening = SSL4ServerEndpoint(reactor, 0, server).listen(Factory.forProtocol(Protocol))
        self.check(await self.assertFailure(listening, TypeError), "SecureServerEndpoint")
        inner = TCP4ClientEndpoint(reactor, HOST, 1)
        with pytest.raises(TypeError) as refused:
            await connectProtocol(wrapClientTLS(client, inner), Protocol())
        self.check(refused.value, "SecureClientEndpoint")

    async def test_start_tls_of_the_transport_refuses_them(self):
        seen = Deferred()

        class Starting(Notes):
            def handle_connect(self):
                try:
                    self.transport.startTLS(server_options())
                except TypeError as error:
                    seen.callback(error)
                self.abort()

        server = await Server(self, None, handler=Starting, plain=True).listen()
        client = Notes()
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port), client)
        self.check(await seen, "ServerOptions")
        await gatherResults([client.closed, server.handlers[0].closed])


class Twisteds(TestCase):
    """What a Twisted application brings, on endpoints and in `AsyncChat.start_tls`."""

    async def test_start_tls_takes_twisteds_options_on_either_side(self):
        class Upgrading(Notes):
            def message_received(self, message):
                if message == b"STARTTLS":
                    self.push(b"go\n")
                    self.start_tls(creator)
                else:
                    super().message_received(message)

        class Client(Notes):
            def handle_connect(self):
                self.push(b"STARTTLS\n")

            def handle_secure(self, info):
                super().handle_secure(info)
                self.push(b"hello\n")

            def message_received(self, message):
                if message == b"go":
                    self.start_tls(twisteds()[1])
                else:
                    self.notes.append(message)
                    self.close()

        @implementer(IOpenSSLServerConnectionCreator)
        class Creator:
            def serverConnectionForTLS(self, protocol):  # noqa: N802 Twisted's name
                return twisteds()[0].serverConnectionForTLS(protocol)

        creator = Creator()
        server = await Server(self, None, handler=Upgrading, plain=True).listen()
        client = Client()
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port), client)
        await gatherResults([client.closed, server.handlers[0].closed])
        assert client.close_reason is None, server.handlers[0].close_reason
        (_, info), answer = client.notes
        assert (info.version, answer) == ("TLSv1.3", b"hello")
        assert client.close_reason is server.handlers[0].close_reason is None

    async def test_pull_producer_is_asked_until_it_ends(self):
        for options in (server_options(), twisteds()[0]):
            server = await Server(self, options, handler=Pulling).listen()

            def read(port=server.port):
                count = 0
                with support.stdlib_client(port, support.client_context()) as client:
                    while data := client.recv(65_536):
                        count += len(data)
                return count

            assert await in_thread(read) == 300_000

    async def test_tls_starts_in_memory_too(self):
        """As applications test it: nothing but `MemoryLink`, and no reactor."""

        class Upgrading(Notes):
            def message_received(self, message):
                self.push(b"go\n")
                self.start_tls(server_options(handshake_timeout=None))

        class Client(Notes):
            def handle_connect(self):
                self.push(b"STARTTLS\n")

            def message_received(self, message):
                self.start_tls(ClientOptions(HOST, trust(), handshake_timeout=None))

        client, server = Client(), Upgrading()
        MemoryLink(client, server, size=100).flush()
        assert client.tls.server_name == server.tls.server_name == HOST

    async def test_client_endpoint_takes_twisteds_options_for_any_protocol(self):
        server = await Server(self, server_options()).listen()
        inner = TCP4ClientEndpoint(reactor, "127.0.0.1", server.port)
        options = optionsForClientTLS(HOST, trustRoot=Certificate.loadPEM(trust()))
        protocol = Heard()
        await connectProtocol(SecureClientEndpoint(reactor, inner, options), protocol)
        assert protocol.heard == ["handshake"]
        assert transports.tls_layer(protocol.transport).is_secure
        protocol.transport.write(b"hello\n")
        protocol.transport.loseConnection()
        await server.handlers[0].closed
        assert server.handlers[0].notes[1:] == ["connect", b"hello", "close"]
        assert server.handlers[0].close_reason is None
        assert isinstance(server.handlers[0], AsyncChat)
