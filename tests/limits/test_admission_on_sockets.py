"""
Who is refused and who waits, whatever carries the connection and whatever serves it, on real sockets.
"""

import contextlib
import random
import socket
import ssl
import struct
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers.support import client_context, in_thread, leaf, pem, stdlib_client, until
from txasynchat import AsyncChat, ChatFactory, Limits, Server
from txasynchat.compat import LegacyFactory, asynchat

# Twisted passes pyOpenSSL's own certificates to pyOpenSSL, which deprecates them.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

BUSY = b"421 busy\r\n"


def begin(handler):
    """Count a handler, or fail."""
    handler.made += 1
    if handler.fails_every and handler.made % handler.fails_every == 0:
        raise ValueError("this handler fails")


class Chat(AsyncChat):
    terminator = b"\n"
    made = 0
    fails_every = 0

    def __init__(self):
        begin(type(self))

    def message_received(self, message):
        self.push(message + b"\n")


class Other(Protocol):
    made = 0
    fails_every = 0

    def __init__(self):
        begin(type(self))

    @override
    def dataReceived(self, data):
        self.transport.write(data)


class Legacy(asynchat.async_chat):
    made = 0
    fails_every = 0

    def __init__(self, sock):
        begin(type(self))
        super().__init__(sock)
        self.set_terminator(b"\n")

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self):
        self.push(self._get_data() + b"\n")


class Client:
    """One that connects in the calling thread, says a line, and reads the answer."""

    def __init__(self, address, *, secure=False, family=socket.AF_INET, header=b"", source=None):
        self.sock = socket.socket(family)
        if source is not None:
            self.sock.bind((source, 0))
        self.sock.settimeout(20)
        self.sock.connect(address)
        self.secure = secure
        if header:
            self.sock.sendall(header)

    def shake_hands(self):
        if self.secure:
            self.sock = stdlib_client(self.sock, client_context())

    def ask(self, line):
        if not isinstance(self.sock, ssl.SSLSocket):
            self.shake_hands()
        self.sock.sendall(line)
        return self.sock.recv(len(line))

    def read_all(self):
        """Read to the end; TLS is not begun."""
        data = bytearray()
        while piece := self.sock.recv(65_536):
            data += piece
        return bytes(data)

    def close(self):
        self.sock.close()


class Ways:
    description = "tcp:0:interface=127.0.0.1"
    secure = False
    transport = "twisted"
    handler = Chat
    timeout = 30

    def make(self):
        return ChatFactory(self.handler)

    def setUp(self):
        self.handler.made = self.handler.fails_every = 0
        self.pem = self.mktemp()
        Path(self.pem).write_bytes(pem(leaf()))
        self.events = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def start(self, factory=None, description=None, more=(), **limits):
        """Serve with *limits*."""
        self.server = Server(
            reactor,
            factory or self.make(),
            [(description or self.description).format(pem=quoteStringArgument(self.pem)), *more],
            stop_timeout=5,
            transport=self.transport,
            limits=Limits(**limits),
        )
        self.server.startService()
        self.addCleanup(self.server.stopService)
        self.counts = self.server.admission

    def connect(self, **more):
        """Return a client that has connected; nobody may have accepted it yet."""
        host = self.server.ports[0].getHost()
        address = (host.host, host.port) if hasattr(host, "host") else host.name
        client = Client(address, secure=self.secure, **more)
        self.addCleanup(client.close)
        return client

    async def served(self, **more):
        client = self.connect(**more)
        self.assertEqual(await in_thread(client.ask, b"hello\n"), b"hello\n")
        return client

    async def test_a_refused_peer_is_told_why_and_closed_in_order(self):
        """Nothing is built for it; and its place is another's when one has gone."""
        self.start(connections=2, refusal=BUSY)
        first, _ = [await self.served() for _ in range(2)]
        refused = self.connect()
        if not self.secure:
            with contextlib.suppress(ConnectionError):
                refused.sock.sendall(b"x" * 100)  # which is in nobody's way
        said = b"" if self.secure else BUSY
        self.assertEqual(await in_thread(refused.read_all), said)
        refused.close()
        self.assertEqual(self.handler.made, 2)
        self.assertEqual((self.counts.connections, self.counts.refused.total()), (2, 1))
        first.close()
        await until(lambda: self.counts.connections == 1)
        await self.served()

    async def test_who_waits_is_served_in_order(self):
        """What they say meanwhile is answered then, and those who have left are not missed."""
        self.start(connections=1, when_full="queue", refusal=BUSY)
        first = await self.served()
        waiting = []
        for number in range(3):
            waiting.append(self.connect())
            await until(lambda expected=number + 1: self.counts.waiting == expected)
        gone = waiting.pop(1)
        answers = [in_thread(client.ask, b"hello\n") for client in waiting]
        gone.close()
        self.assertEqual((self.handler.made, self.counts.connections), (1, 1))
        first.close()
        self.assertEqual(await answers[0], b"hello\n")
        self.assertEqual((self.handler.made, self.counts.waiting), (2, 2))
        waiting[0].close()
        self.assertEqual(await answers[1], b"hello\n")
        self.assertEqual(self.handler.made, 3)
        waiting[1].close()
        await until(lambda: self.counts.connections == 0)
        self.assertEqual(self.counts.waiting, 0)

    async def test_nothing_is_left_of_whatever_came(self):
        """Connections that end in order and by force, early and late, refused, or without a handler."""
        self.handler.fails_every = 5
        self.start(connections=8, per_address=4, per_address_rate=1000, exempt=[], refusal=BUSY)
        address = self.server.ports[0].getHost().port
        await in_thread(self.misbehave, address, random.Random(3))
        await until(lambda: self.counts.connections == 0)
        self.assertGreater(self.counts.refused.total(), 5)
        self.flushLoggedErrors(ValueError)
        self.handler.fails_every = 0
        await self.served()

    def misbehave(self, port, chance):
        opened = []
        for _ in range(100):
            source = f"127.0.0.{chance.randrange(1, 4)}"
            client = Client(("127.0.0.1", port), secure=self.secure, source=source)
            opened.append(client)
            with contextlib.suppress(OSError):
                match chance.randrange(5):
                    case 0:
                        client.sock.sendall(b"\x16\x03\x01\x02\x00")
                    case 1:
                        client.ask(b"hello\n")
                    case 2:
                        client.sock.shutdown(socket.SHUT_WR)
                    case 3:
                        reset = struct.pack("ii", 1, 0)
                        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                        opened.pop().close()
            if len(opened) > 12:  # more than may be open, whatever the server is late with
                opened.pop(chance.randrange(12)).close()
        for client in opened:
            client.close()


class OfOthers(Ways):
    handler = Other

    def make(self):
        factory = Factory.forProtocol(Other)
        factory.noisy = False
        return factory


class OfLegacy(Ways):
    handler = Legacy

    def make(self):
        return LegacyFactory(Legacy)


PEM = ":certificate={pem}"
WAYS = {
    "Plain": {},
    "Hub": {"transport": "hub"},
    "Secure": {"description": f"secure:{Ways.description}{PEM}", "secure": True},
    "SecureHub": {"description": f"secure:hub:{Ways.description}{PEM}", "secure": True},
    "SSL": {"description": "ssl:0:interface=127.0.0.1:privateKey={pem}", "secure": True},
}
for way, settings in WAYS.items():
    for base in (Ways, OfOthers, OfLegacy):
        name = f"Test{way}{base.__name__}"
        globals()[name] = type(name, (base, TestCase), dict(settings, __module__=__name__))


class Once(Ways):
    """What does not depend on who serves."""

    test_a_refused_peer_is_told_why_and_closed_in_order = None
    test_who_waits_is_served_in_order = None
    test_nothing_is_left_of_whatever_came = None

    async def test_no_more_may_wait_than_the_queue_holds(self):
        """Those who have left make room, too."""
        self.start(connections=1, when_full="queue", queue=2, refusal=BUSY)
        await self.served()
        waiting = [self.connect() for _ in range(2)]
        await until(lambda: self.counts.waiting == 2)
        self.assertEqual(await in_thread(self.connect().read_all), BUSY)
        self.assertEqual(self.counts.refused, {"queue": 1})
        waiting[0].close()
        await deferLater(reactor, 0.25)
        self.connect()
        await until(lambda: self.counts.waiting == 2)
        self.assertEqual(self.counts.refused, {"queue": 1})

    async def test_nobody_waits_for_ever(self):
        self.start(connections=1, when_full="queue", queue_timeout=0.2, refusal=BUSY)
        first = await self.served()
        waiting = [self.connect() for _ in range(2)]
        for client in waiting:
            self.assertEqual(await in_thread(client.read_all), BUSY)
        self.assertEqual(self.counts.refused, {"queue_timeout": 2})
        self.assertEqual(await in_thread(first.ask, b"still\n"), b"still\n")

    async def test_who_comes_faster_than_the_rate_waits(self):
        self.start(rate=10, when_full="queue")
        began = reactor.seconds()
        for client in [await in_thread(self.connect) for _ in range(12)]:
            self.assertEqual(await in_thread(client.ask, b"hello\n"), b"hello\n")
        self.assertGreater(reactor.seconds() - began, 0.15)
        self.assertEqual(self.counts.refused.total(), 0)

    async def test_who_waits_is_closed_when_the_server_stops(self):
        self.start(connections=1, when_full="queue")
        await self.served()
        waiting = self.connect()
        await until(lambda: self.counts.waiting == 1)
        await self.server.stopService()
        self.assertEqual(await in_thread(waiting.read_all), b"")
        self.assertEqual((self.counts.waiting, self.counts.connections), (0, 0))

    async def test_a_flood_of_connections_leaves_turns_to_others(self):
        """So many are accepted at most before the reactor asks others."""
        self.start(accepts=3)
        batches = []
        port = self.server.ports[0]
        accept = port.accept_some

        def counted():
            before = self.handler.made
            accept()
            batches.append(self.handler.made - before)

        port.accept_some = counted
        clients = [self.connect() for _ in range(20)]
        await until(lambda: self.counts.connections == 20)
        self.assertLessEqual(max(batches), 3)
        self.assertEqual(len(clients), 20)

    async def test_a_handler_that_does_not_take_its_connection_ends_it(self):
        """Nobody else could, and the server would keep its descriptor for ever."""

        class Fails(Chat):
            @override
            def makeConnection(self, transport):
                raise RuntimeError("this handler fails")

        self.start(ChatFactory(Fails), connections=1)
        for _ in range(2):
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(await in_thread(self.connect().read_all), b"")
            await until(lambda: self.counts.connections == 0)
        self.assertEqual(list(self.server.connections), [])
        self.assertEqual(self.counts.refused.total(), 0)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    async def test_a_flood_of_refusals_is_a_line_a_second(self):
        self.start(connections=1, refusal=BUSY)
        await self.served()
        for _ in range(50):
            self.assertEqual(await in_thread(self.connect().read_all), BUSY)
        said = [event for event in self.events if event.get("limit") == "connections"]
        self.assertLess(len(said), 4)
        self.assertEqual(self.counts.refused, {"connections": 50})

    async def test_an_address_counts_once_whatever_way_it_comes(self):
        """IPv4 addresses count as such on a port for IPv6."""
        self.start(per_address=1, exempt=[], description="tcp6:0:interface=\\:\\:")
        await self.served_at("127.0.0.1")
        self.assertEqual(await in_thread(self.at("127.0.0.1").read_all), b"")
        await self.served_at("127.0.0.2")
        await self.served_at("::1")
        self.assertEqual(self.counts.addresses, 3)
        self.assertIn("127.0.0.1", self.counts._networks)

    def at(self, host):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address = host, self.server.ports[0].getHost().port
        client = Client(address, family=family, source=host)
        self.addCleanup(client.close)
        return client

    async def served_at(self, host):
        client = self.at(host)
        self.assertEqual(await in_thread(client.ask, b"hello\n"), b"hello\n")

    async def test_peers_of_unix_sockets_are_exempt(self):
        self.start(per_address=1, description=f"unix:{self.mktemp()}")
        for _ in range(3):
            await self.served(family=socket.AF_UNIX)

    async def test_unix_sockets_wait_and_are_refused_too(self):
        self.start(connections=1, refusal=BUSY, description=f"unix:{self.mktemp()}")
        await self.served(family=socket.AF_UNIX)
        refused = self.connect(family=socket.AF_UNIX)
        self.assertEqual(await in_thread(refused.read_all), BUSY)

    async def test_behind_a_proxy_the_address_in_the_header_counts(self):
        """The proxy's own connections, which check it, are exempt."""
        self.start(
            per_address=1,
            exempt=["proxies"],
            refusal=BUSY,
            description="proxy:tcp\\:0\\:interface=127.0.0.1:from=127.0.0.0/8",
        )

        def header(host):
            return f"PROXY tcp4 {host} 192.0.2.1 1 2\r\n".replace("tcp4", "TCP4").encode()

        first = await self.served(header=header("192.0.2.7"))
        await self.served(header=header("192.0.2.8"))
        for _ in range(2):
            refused = self.connect(header=header("192.0.2.7"))
            self.assertEqual(await in_thread(refused.read_all), BUSY)
            await self.served(header=b"PROXY UNKNOWN\r\n")
        first.close()
        await until(lambda: self.counts.connections == 3)
        await self.served(header=header("192.0.2.7"))

    async def test_who_waits_behind_a_proxy_is_served_in_its_turn(self):
        self.start(
            connections=1,
            when_full="queue",
            description="proxy:tcp\\:0\\:interface=127.0.0.1:from=127.0.0.0/8",
        )
        header = b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n"
        half = self.connect(header=header[:9])  # which takes a place while it may come to something
        await until(lambda: self.server._gates._waiting or self.events)
        second = self.connect(header=header)
        await until(lambda: self.counts.waiting == 1)
        half.close()
        self.assertEqual(await in_thread(second.ask, b"hello\n"), b"hello\n")

    async def test_who_comes_by_another_port_leaves_the_place_of_one_behind_a_proxy(self):
        """Its header comes later than the other's words, but it was there first."""
        proxied = "proxy:tcp\\:0\\:interface=127.0.0.1:from=127.0.0.0/8"
        self.start(connections=1, when_full="queue", more=[proxied])
        plain, behind = [one.getHost().port for one in self.server.ports]
        first = Client(("127.0.0.1", behind))
        self.addCleanup(first.close)
        await until(lambda: self.server.ports[1].factory.introducing)
        second = Client(("127.0.0.1", plain))
        self.addCleanup(second.close)
        await until(lambda: self.counts.waiting == 1)
        first.sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")
        self.assertEqual(await in_thread(first.ask, b"hello\n"), b"hello\n")
        first.close()
        self.assertEqual(await in_thread(second.ask, b"hello\n"), b"hello\n")
        self.assertEqual(self.counts.refused.total(), 0)

    async def test_who_comes_faster_than_the_rate_behind_a_proxy_waits(self):
        """They are accepted before any header is read, and nobody is refused for that."""
        self.start(
            rate=10,
            when_full="queue",
            description="proxy:tcp\\:0\\:interface=127.0.0.1:from=127.0.0.0/8",
        )
        header = b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n"
        began = reactor.seconds()
        for client in [self.connect(header=header) for _ in range(12)]:
            self.assertEqual(await in_thread(client.ask, b"hello\n"), b"hello\n")
        self.assertGreater(reactor.seconds() - began, 0.15)
        self.assertEqual(self.counts.refused.total(), 0)

    async def test_behind_haproxy_no_address_counts(self):
        """It is known too late, and the proxy's own is everybody's."""
        self.start(per_address=1, exempt=[], description="haproxy:tcp:0:interface=127.0.0.1")
        for _ in range(3):
            await self.served(header=b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")

    async def test_handshakes_count(self):
        """A client that never says hello has a place."""
        self.secure = True
        self.start(connections=1, description=f"secure:tcp:0:interface=127.0.0.1{PEM}")
        silent = self.connect()
        await until(lambda: self.counts.connections == 1)
        self.assertEqual(await in_thread(self.connect().read_all), b"")
        silent.close()
        await until(lambda: self.counts.connections == 0)
        await self.served()


for way in ("Plain", "Hub"):
    name = f"TestOnce{way}"
    globals()[name] = type(name, (Once, TestCase), dict(WAYS[way], __module__=__name__))
