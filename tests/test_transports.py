"""
What is known of transports: of real ones, and the answers for unknown ones.
"""

import gc
import os
import socket
import weakref

import pytest
import trustme
from OpenSSL import SSL
from twisted.internet import reactor, ssl
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.internet.unix import Server as UnixServer
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from typing_extensions import override
from zope.interface import implementer

from txasynchat import transports


class TCP(Connection):
    """A connection that joins the reactor only when it asks to."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.connected = 1

    @override
    def getPeer(self):
        return IPv4Address("TCP", "127.0.0.1", 7)

    @override
    def getHost(self):
        return IPv4Address("TCP", "127.0.0.1", 8)


@pytest.fixture
def pair():
    """A Twisted connection and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    connection = TCP(ours, Protocol(), reactor)
    yield connection, theirs
    connection.stopWriting()
    connection.stopReading()
    ours.close()
    theirs.close()


def wrapped(transport, protocol, layers=1):
    """*protocol* above so many wrappers above *transport*."""
    built = [protocol]
    factory = Factory.forProtocol(built.pop)
    del protocol
    for _ in range(layers):
        factory = WrappingFactory(factory)
    outermost = factory.buildProtocol(None)
    transport.protocol = outermost
    outermost.makeConnection(transport)
    while isinstance(outermost.wrappedProtocol, ProtocolWrapper):
        outermost = outermost.wrappedProtocol
    return outermost


class TestSendingAtOnce:
    def test_bytes_are_sent_at_once_only_where_the_transport_owns_a_socket(self, pair):
        connection, _ = pair
        assert transports.immediate_sender(connection) is not None
        assert transports.immediate_sender(StringTransport()) is None
        assert transports.immediate_sender(wrapped(connection, Protocol())) is None

    def test_bytes_reach_the_system_before_the_call_returns(self, pair):
        connection, theirs = pair
        send_now = transports.immediate_sender(connection)
        assert send_now(connection, b"x" * 100) == b""
        theirs.setblocking(False)
        assert theirs.recv(1_000) == b"x" * 100

    def test_bytes_the_system_does_not_take_are_returned(self, pair):
        connection, theirs = pair
        data = os.urandom(8 << 20)
        rest = transports.immediate_sender(connection)(connection, data)
        assert 0 < len(rest) < len(data)
        assert transports.immediate_sender(connection)(connection, rest) == rest  # full
        theirs.setblocking(False)
        taken = b""
        while len(taken) < len(data) - len(rest):
            taken += theirs.recv(1 << 20)
        assert taken + rest == data

    @pytest.mark.parametrize(
        "waits",
        [
            lambda connection: connection.write(b"before"),
            lambda connection: setattr(connection, "dataBuffer", b"before"),
            lambda connection: setattr(connection, "TLS", True),
            lambda connection: connection.loseConnection(),
            lambda connection: connection.loseWriteConnection(),
        ],
    )
    def test_nothing_overtakes_waiting_bytes_or_follows_the_end(self, pair, waits):
        connection, theirs = pair
        waits(connection)
        assert transports.immediate_sender(connection)(connection, b"behind") == b"behind"
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)

    def test_lost_connection_accepts_nothing_and_raises_nothing(self, pair):
        connection, theirs = pair
        theirs.close()
        assert transports.immediate_sender(connection)(connection, b"x") == b"x"

    def test_descriptors_that_wait_on_a_unix_socket_are_sent_first(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            server = UnixServer(ours, Protocol(), None, None, 1, reactor)
            send_now = transports.immediate_sender(server)
            assert send_now(server, b"x") == b""
            server.sendFileDescriptor(ours.fileno())
            assert send_now(server, b"y") == b"y"
            server.stopReading()
            server.stopWriting()


class TestUnsentAndUnread:
    def test_bytes_that_wait_are_counted_through_wrappers(self, pair):
        connection, _ = pair
        outermost = wrapped(connection, Protocol(), 2)
        assert transports.unsent_bytes(outermost) == 0
        connection.write(b"x" * 10)
        connection.write(b"x" * 5)
        assert transports.unsent_bytes(outermost) == transports.unsent_bytes(connection) == 15
        connection.doWrite()
        assert transports.unsent_bytes(outermost) == 0

    def test_transport_in_memory_has_no_count_of_unsent_bytes(self):
        assert transports.unsent_bytes(StringTransport()) is None
        assert transports.has_unread_bytes(StringTransport()) is False

    def test_unread_bytes_are_seen_and_stay_where_they_are(self, pair):
        connection, theirs = pair
        assert not transports.has_unread_bytes(connection)
        theirs.send(b"xyz")
        assert transports.has_unread_bytes(connection)
        assert transports.has_unread_bytes(wrapped(connection, Protocol()))
        assert connection.socket.recv(10) == b"xyz"
        assert not transports.has_unread_bytes(connection)

    def test_end_and_closed_socket_have_no_unread_bytes(self, pair):
        connection, theirs = pair
        theirs.close()
        assert not transports.has_unread_bytes(connection)
        connection.socket.close()
        assert not transports.has_unread_bytes(connection)

    def test_socket_is_found_through_wrappers(self, pair):
        connection, _ = pair
        assert transports.real_socket(wrapped(connection, Protocol())) is connection.socket
        assert transports.real_socket(StringTransport()) is None

    def test_transport_that_half_closes_is_recognized(self, pair):
        connection, _ = pair
        assert transports.closes_by_itself(connection)
        connection.write(b"x")
        assert not transports.closes_by_itself(connection)
        assert not transports.closes_by_itself(StringTransport())

    def test_reactor_of_a_transport_is_found(self, pair):
        connection, _ = pair
        assert transports.reactor_of(wrapped(connection, Protocol())) is reactor
        assert transports.reactor_of(StringTransport()) is None


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class Listener(Protocol):
    def __init__(self):
        self.heard = []

    @override
    def readConnectionLost(self):
        self.heard.append("read")

    @override
    def writeConnectionLost(self):
        self.heard.append("write")

    @override
    def handshakeCompleted(self):
        self.heard.append("handshake")

    @override
    def dataReceived(self, data):
        self.heard.append(data)

    @override
    def connectionLost(self, reason):
        self.heard.append("lost")


class TestHalfClose:
    @pytest.mark.parametrize("layers", [1, 2, 3])
    def test_listener_above_policies_learns_of_a_half_close(self, pair, layers):
        connection, theirs = pair
        listener = Listener()
        transport = wrapped(connection, listener, layers)
        transports.tell_of_half_close(transport, listener)
        assert transports.can_half_close(transport)
        theirs.send(b"last")
        connection.doRead()
        connection.readConnectionLost(None)
        transport.loseWriteConnection()
        connection.doWrite()
        assert listener.heard == [b"last", "read", "write"]
        assert theirs.recv(1) == b""

    def test_wrapper_with_its_own_half_close_is_kept(self, pair):
        @implementer(IHalfCloseableProtocol)
        class Knowing(ProtocolWrapper):
            heard = 0

            @override
            def readConnectionLost(self):
                self.heard += 1

            @override
            def writeConnectionLost(self):
                pass

        connection, _ = pair
        listener = Listener()
        factory = WrappingFactory(Factory.forProtocol(lambda: listener))
        factory.protocol = Knowing
        wrapper = connection.protocol = factory.buildProtocol(None)
        wrapper.makeConnection(connection)
        transports.tell_of_half_close(wrapper, listener)
        connection.readConnectionLost(None)
        assert (wrapper.heard, listener.heard) == (1, [])

    def test_nothing_is_changed_without_a_wrapper_or_a_socket(self, pair):
        connection, _ = pair
        listener = connection.protocol = Listener()
        transports.tell_of_half_close(connection, listener)
        assert "readConnectionLost" not in vars(listener)
        memory = StringTransport()
        before = dict(vars(memory))
        transports.tell_of_half_close(memory, listener)
        assert vars(memory) == before

    @pytest.mark.counts_references
    def test_listener_is_not_kept_alive(self, pair):
        connection, _ = pair
        listener = Listener()
        transport = wrapped(connection, listener)
        transports.tell_of_half_close(transport, listener)
        wrapper = connection.protocol
        wrapper.wrappedProtocol = None  # as Twisted does when the connection is lost
        gone = weakref.ref(listener)
        gc.disable()
        try:
            del listener, transport
            assert gone() is None
        finally:
            gc.enable()
        wrapper.readConnectionLost()  # there is no listener any more


class TestTLS:
    @pytest.fixture
    def contexts(self):
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        server = SSL.Context(SSL.TLS_METHOD)
        with certificate.private_key_pem.tempfile() as key:
            server.use_privatekey_file(key)
        with certificate.cert_chain_pems[0].tempfile() as chain:
            server.use_certificate_chain_file(chain)

        class Server(ssl.ContextFactory):
            @override
            def getContext(self):
                return server

        return Server(), ssl.CertificateOptions(verify=False)

    def over_tls(self, transport, context, protocol, layers=0, is_client=False):
        factory = Factory.forProtocol(lambda: protocol)
        for _ in range(layers):
            factory = WrappingFactory(factory)
        tls = TLSMemoryBIOFactory(context, is_client, factory, reactor).buildProtocol(None)
        transport.protocol = tls
        tls.makeConnection(transport)
        return tls

    @pytest.mark.parametrize("layers", [0, 1, 2])
    def test_listener_learns_of_the_handshake_through_policies(self, contexts, layers):
        ours, theirs = StringTransport(), StringTransport()
        listener = Listener()
        server = self.over_tls(ours, contexts[0], listener, layers)
        assert transports.tls_layer(listener.transport) is server
        assert not transports.when_secure(listener.transport, listener)
        assert not transports.can_half_close(listener.transport)
        assert not transports.closes_by_itself(listener.transport)
        client = self.over_tls(theirs, contexts[1], Protocol(), is_client=True)
        for _ in range(5):
            for sent, receiver in ((theirs, server), (ours, client)):
                data = sent.value()
                sent.clear()
                if data:
                    receiver.dataReceived(data)
        assert listener.heard == ["handshake"]
        assert transports.when_secure(listener.transport, listener)

    def test_connection_without_tls_is_ready_at_once(self, pair):
        connection, _ = pair
        listener = Listener()
        assert transports.tls_layer(connection) is None
        assert transports.when_secure(connection, listener)
        assert transports.when_secure(StringTransport(), listener)
        assert not IHandshakeListener.providedBy(connection.protocol)


class TestAddresses:
    @pytest.mark.parametrize(
        ("twisted", "plain"),
        [
            (IPv4Address("TCP", "127.0.0.1", 7), ("127.0.0.1", 7)),
            (IPv6Address("TCP", "::1", 7, 1, 2), ("::1", 7, 1, 2)),
            (UNIXAddress(b"/run/socket"), "/run/socket"),
            (UNIXAddress(None), ""),
            (HostnameAddress(b"name", 7), HostnameAddress(b"name", 7)),
        ],
    )
    def test_address_has_the_form_of_the_socket_module(self, twisted, plain):
        transport = StringTransport(hostAddress=twisted, peerAddress=twisted)
        transport.peerAddr = transport.hostAddr = twisted
        assert transports.peer_address(transport) == plain
        assert transports.own_address(transport) == plain
