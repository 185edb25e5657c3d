"""
``hub:`` strings, for servers and clients; and which strings a program gives to the hub by itself.
"""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    clientFromString,
    connectProtocol,
    serverFromString,
)
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionDone,
    NoProtocol,
)
from twisted.internet.error import (
    ConnectionRefusedError as Refused,
)
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase
from typing_extensions import override
from zope.interface import implementer

from helpers.support import authority, in_thread, leaf, pem, until
from txasynchat import AsyncChat, ChatFactory, Server
from txasynchat.hub.places import HubClientEndpoint, HubServerEndpoint, on_hub
from txasynchat.hub.transport import Connection, Outgoing, OutgoingUNIX, UNIXConnection
from txasynchat.listening import make_endpoint


class Line(AsyncChat):
    terminator = b"\n"

    @override
    def message_received(self, message):
        self.push(message + b"\n")


class Asking(AsyncChat):
    terminator = b"\n"

    def __init__(self):
        self.answers = []
        self.ended = Deferred()
        self.answered = Deferred()

    @override
    def handle_connect(self):
        self.push(b"hello\n")

    @override
    def message_received(self, message):
        self.answers.append(message)
        self.answered.callback(None)

    @override
    def handle_end(self, reason):
        self.ended.callback(reason)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("tcp:8007", "hub:tcp:8007"),
        (r"tcp6:8007:interface=\:\:1", r"hub:tcp6:8007:interface=\:\:1"),
        ("unix:chat.sock:mode=660", "hub:unix:chat.sock:mode=660"),
        ("systemd:domain=INET:index=0", "hub:systemd:domain=INET:index=0"),
        ("secure:tcp:8443:certificate=c.pem", "secure:hub:tcp:8443:certificate=c.pem"),
        (r"secure:tcp\:8443:certificate=c.pem", r"secure:hub:tcp\:8443:certificate=c.pem"),
        ("haproxy:tcp:8007", "haproxy:hub:tcp:8007"),
        ("secure:haproxy:tcp:8443:certificate=c", "secure:haproxy:hub:tcp:8443:certificate=c"),
        ("hub:tcp:8007", "hub:tcp:8007"),
        ("ssl:8443", "ssl:8443"),
        ("stdio:", "stdio:"),
        ("8007", "8007"),
        ("secure:hub:tcp:1:certificate=c", "secure:hub:tcp:1:certificate=c"),
    ],
)
def test_descriptions_that_end_in_a_socket_are_the_hubs(given, expected):
    assert on_hub(given) == expected


class Strings(TestCase):
    def test_strings_make_endpoints_of_the_hub(self):
        self.assertIsInstance(serverFromString(reactor, "hub:tcp:0"), HubServerEndpoint)
        self.assertIsInstance(clientFromString(reactor, "hub:tcp:localhost:1"), HubClientEndpoint)
        self.assertIsInstance(make_endpoint(reactor, "tcp:0", hub=True), HubServerEndpoint)
        self.assertIsInstance(make_endpoint(reactor, "tcp:0"), TCP4ServerEndpoint)

    def test_what_is_no_socket_is_refused(self):
        for description in ("hub:", "hub:ssl:8443", "hub:stdio:", "hub:hub:tcp:0"):
            with self.assertRaises(ValueError):
                serverFromString(reactor, description)
        with self.assertRaises(ValueError):
            clientFromString(reactor, "hub:tls:example.org:443")

    def test_a_reactor_without_descriptors_keeps_twisteds_transports_and_says_so(self):
        events = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        memory = MemoryReactorClock()
        serverFromString(memory, "hub:tcp:8007").listen(Factory.forProtocol(Line))
        clientFromString(memory, "hub:tcp:127.0.0.1:8007").connect(Factory.forProtocol(Line))
        self.assertEqual(len(memory.tcpServers), 1)
        said = [one for one in events if "no descriptors" in str(one.get("log_format"))]
        self.assertEqual([one["endpoint"] for one in said], ["tcp:8007", "tcp:127.0.0.1:8007"])


class Clients(TestCase):
    async def listen(self, where="hub:tcp:0:interface=127.0.0.1", handler=Line):
        server = Server(reactor, ChatFactory(handler), [where])
        server.startService()
        self.addCleanup(server.stopService)
        return server

    def place(self, server):
        return f"hub:tcp:127.0.0.1:{server.ports[0].getHost().port}"

    async def converse(self, where, cls):
        chat = await connectProtocol(clientFromString(reactor, where), Asking())
        await chat.answered
        self.assertEqual(chat.answers, [b"hello"])
        self.assertIsInstance(chat.transport, cls)
        self.assertIsNone(chat.transport.server)
        host, peer = chat.transport.getHost(), chat.transport.getPeer()
        chat.close()
        self.assertIsNone(await chat.ended)
        return host, peer

    async def test_a_client_talks_over_tcp(self):
        server = await self.listen()
        [served] = [server.ports[0]]
        _, peer = await self.converse(self.place(server), Outgoing)
        self.assertEqual(peer, served.getHost())

    async def test_a_client_talks_over_unix(self):
        path = self.mktemp()
        await self.listen(f"hub:unix:{path}")
        _, peer = await self.converse(f"hub:unix:{path}", OutgoingUNIX)
        self.assertEqual(peer.name, path.encode())

    async def test_both_ends_are_the_hubs(self):
        server = await self.listen()
        chat = await connectProtocol(clientFromString(reactor, self.place(server)), Asking())
        await chat.answered
        [served] = server.connections
        self.assertIs(type(served.transport), Connection)
        self.assertEqual(served.transport.getPeer(), chat.transport.getHost())
        chat.close()
        await chat.ended

    async def test_secure_strings_compose(self):
        """``secure:hub:tcp:`` is TLS over the hub's connections, at both ends."""
        file = self.mktemp()
        with open(file, "wb") as out:
            out.write(pem(leaf()))
        trusted = self.mktemp()
        with open(trusted, "wb") as out:
            out.write(authority().cert_pem.bytes())
        server = await self.listen(
            f"secure:hub:tcp:0:interface=127.0.0.1:certificate={file}",
        )
        port = server.ports[0].getHost().port
        where = f"secure:hub:tcp:127.0.0.1:{port}:ca={trusted}"
        chat = await connectProtocol(clientFromString(reactor, where), Asking())
        await chat.answered
        self.assertIsNotNone(chat.tls)
        chat.close()
        await chat.ended

    async def test_a_refusal_is_the_connectors_error(self):
        with socket.socket() as silent:  # does not listen, and keeps the port from other tests
            silent.bind(("127.0.0.1", 0))
            place = f"hub:tcp:127.0.0.1:{silent.getsockname()[1]}"
            with self.assertRaises(Refused):
                await connectProtocol(clientFromString(reactor, place), Asking())
        with self.assertRaises(ConnectError):
            await connectProtocol(clientFromString(reactor, "hub:unix:/nowhere/at/all"), Asking())

    async def test_an_attempt_can_be_cancelled(self):
        attempt = clientFromString(reactor, "hub:tcp:192.0.2.1:9").connect(
            Factory.forProtocol(Asking)
        )
        attempt.cancel()
        with self.assertRaises((CancelledError, ConnectingCancelledError)):
            await attempt

    async def test_a_factory_hears_of_its_beginning_and_its_end(self):
        """As with Twisted's clients; one that builds nothing is an error of the Deferred."""
        told = []

        class Noting(Factory):
            noisy = False
            protocol = Asking

            @override
            def startFactory(self):
                told.append("start")

            @override
            def stopFactory(self):
                told.append("stop")

        server = await self.listen()
        endpoint = clientFromString(reactor, self.place(server))
        chat = await endpoint.connect(Noting())
        self.assertEqual(told, ["start"])
        await chat.answered
        chat.close()
        await chat.ended
        await until(lambda: len(told) == 2)
        self.assertEqual(told, ["start", "stop"])

        for build, error in ((lambda _: None, NoProtocol), (lambda _: 1 / 0, ZeroDivisionError)):
            refusing = Noting()
            refusing.buildProtocol = build
            with self.assertRaises(error):
                await endpoint.connect(refusing)
        self.assertEqual(told[2:], ["start", "stop"] * 2)

    async def test_a_protocol_that_is_not_ours_is_served_as_well(self):
        @implementer(IHalfCloseableProtocol)
        class Plain(Protocol):
            def __init__(self):
                self.lost = Deferred()
                self.data = b""

            @override
            def dataReceived(self, data):
                self.data += data
                self.transport.loseConnection()

            @override
            def connectionLost(self, reason):
                self.lost.callback(reason.type)

        server = await self.listen()
        plain = await connectProtocol(clientFromString(reactor, self.place(server)), Plain())
        plain.transport.write(b"line\n")
        self.assertIs(await plain.lost, ConnectionDone)
        self.assertEqual(plain.data, b"line\n")


class Servers(TestCase):
    async def test_a_server_takes_the_hub_only_where_it_is_asked_to(self):
        for transport, expected in (("twisted", False), ("hub", True)):
            for where in ("tcp:0:interface=127.0.0.1", f"unix:{self.mktemp()}"):
                server = Server(reactor, ChatFactory(Line), [where], transport=transport)
                server.startService()
                host = server.ports[0].getHost()
                client = socket.socket(socket.AF_UNIX if hasattr(host, "name") else socket.AF_INET)
                client.settimeout(20)
                client.connect(host.name if hasattr(host, "name") else (host.host, host.port))
                client.sendall(b"x\n")
                self.assertEqual(await in_thread(client.recv, 2), b"x\n")
                [chat] = server.connections
                self.assertIs(
                    isinstance(chat.transport, Connection | UNIXConnection), expected, where
                )
                client.close()
                await server.stopService()

    def test_other_transports_are_refused(self):
        with self.assertRaisesRegex(ValueError, "hub or twisted, not 'tcp'"):
            Server(reactor, ChatFactory(Line), ["tcp:0"], transport="tcp")


STOPPING = """
import socket
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from txasynchat.hub.places import HubReactor

class Told(Protocol):
    def connectionMade(self):
        reactor.stop()
    def connectionLost(self, reason):
        print(reason.type.__name__)

port = HubReactor(reactor).listenTCP(0, Factory.forProtocol(Told), interface="127.0.0.1")
client = socket.create_connection(("127.0.0.1", port.getHost().port))
reactor.run()
"""


def test_connections_are_told_when_the_reactor_stops():
    """As by Twisted's reactors: whoever keeps something for a peer can let it go."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", STOPPING],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("ConnectionLost\n", "")
