"""
Who takes too long ends, whatever carries the connection and whatever serves it, on real sockets.

Each test has one client on each way to serve, all at the same time.
"""

import contextlib
import select
import socket
import threading
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers.support import (
    HOST,
    PATIENCE,
    client_context,
    credentials,
    in_thread,
    leaf,
    pem,
    until,
)
from helpers.wire import Memory
from txasynchat import AsyncChat, ChatFactory, Limits, Server
from txasynchat.compat import LegacyFactory, asynchat
from txasynchat.errors import TimedOut
from txasynchat.tls import ServerOptions

# Twisted passes pyOpenSSL's own certificates to pyOpenSSL, which deprecates them.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

#: More than the system holds for a client that does not read.
FLOOD = b"x" * 6_000_000
SOON = 0.2

CARRIERS = {
    "tcp": "tcp:0:interface=127.0.0.1",
    "hub": "hub:tcp:0:interface=127.0.0.1",
    "secure": "secure:tcp:0:interface=127.0.0.1:certificate={pem}",
    "secure hub": "secure:hub:tcp:0:interface=127.0.0.1:certificate={pem}",
    "ssl": "ssl:0:interface=127.0.0.1:privateKey={pem}",
}
HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n"
PROXIED = {
    "proxy": "proxy:tcp:0:interface=127.0.0.1:from=127.0.0.1",
    "proxy hub": "proxy:hub:tcp:0:interface=127.0.0.1:from=127.0.0.1",
    "secure proxy": "secure:proxy:tcp:0:interface=127.0.0.1:from=127.0.0.1:certificate={pem}",
    "secure proxy hub": "secure:proxy:hub:tcp:0:interface=127.0.0.1:from=127.0.0.1:certificate={pem}",
}


class Chat(AsyncChat):
    terminator = b"\n"
    max_unsent = None

    def message_received(self, message):
        self.push(message + b"\n" if message == b"hello" else FLOOD)
        if message == b"fetch":
            self.close_when_done()

    def handle_timeout(self, kind):
        self.factory.kinds.append(kind)
        self.push(b"bye\n")


class Streamed(Chat):
    async def handle_connect(self):
        stream = self.stream()
        async for line in stream:
            stream.write(line + b"\n" if line == b"hello" else FLOOD)
            if line == b"fetch":
                stream.close()


class Other(Protocol):
    @override
    def dataReceived(self, data):
        self.transport.write(data if data == b"hello\n" else FLOOD)
        if data == b"fetch\n":
            self.transport.loseConnection()

    def handle_timeout(self, kind):
        self.factory.kinds.append(kind)
        self.transport.write(b"bye\n")


class Legacy(asynchat.async_chat):
    def __init__(self, sock):
        super().__init__(sock)
        self.set_terminator(b"\n")
        # So small that the system takes the half of a record, whose rest waits in the socket of TLS.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self):
        line = self._get_data()
        self.push(line + b"\n" if line == b"hello" else FLOOD)
        if line == b"fetch":
            self.close_when_done()


class Peer:
    """A client in the calling thread, plain or over TLS by hand; the system holds little for it."""

    def __init__(self, port, *, secure, header=b""):
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self.sock.connect(("127.0.0.1", port))
        self.sock.sendall(header)
        self.tls = None
        if secure:
            self.tls = Memory(client_context(), HOST)
            self.tls.finish(self.sock)

    def send(self, data):
        self.sock.sendall(self.tls.encrypt(data) if self.tls else data)

    def read(self, size=1 << 30):
        """Read so many bytes, or all before the end, orderly or not."""
        data = bytearray()
        with contextlib.suppress(ConnectionError):
            if self.tls:
                return self.tls.read(self.sock, size)
            while len(data) < size and (piece := self.sock.recv(min(65536, size - len(data)))):
                data += piece
        return bytes(data)

    def hung_up(self, seconds):
        """Whether the connection is gone in both directions, which needs no reading to be seen."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return bool(poll.poll(seconds * 1000))

    def ask_for(self, seconds):
        """Ask again and again, for so long."""
        end = reactor.seconds() + seconds
        pace = threading.Event()
        while reactor.seconds() < end:
            self.send(b"hello\n")
            assert self.read(6) == b"hello\n"
            pace.wait(SOON / 10)

    def read_for(self, seconds):
        """Read everything, in so many seconds; return it."""
        began = reactor.seconds()
        pace = threading.Event()
        data = bytearray()
        while piece := self.read(65_536):
            data += piece
            pace.wait(began + len(data) / len(FLOOD) * seconds - reactor.seconds())
        return bytes(data)

    def trickle(self, over):
        """Read a byte now and then, until that is over."""
        with contextlib.suppress(ConnectionError):
            while not over.wait(SOON / 20):
                self.sock.recv(1)

    def dribble(self):
        """Send a byte now and then, until the other side ends the connection."""
        self.sock.settimeout(SOON / 10)
        with contextlib.suppress(ConnectionError):
            while True:
                self.send(b"x")
                with contextlib.suppress(TimeoutError):
                    if not self.sock.recv(65_536):
                        return


class Way:
    """A server with one client."""

    def __init__(self, name, case, limits):
        carrier, _, served = name.rpartition(" ")
        self.name = name
        self.kinds = []
        if served == "legacy":
            factory = LegacyFactory(Legacy, on_timeout=self.on_timeout)
        else:
            factory = ChatFactory({"chat": Chat, "stream": Streamed, "other": Other}[served])
        factory.kinds = self.kinds
        description = (CARRIERS | PROXIED)[carrier].format(pem=quoteStringArgument(case.pem))
        self.server = Server(reactor, factory, [description], stop_timeout=PATIENCE, limits=limits)
        self.server.startService()
        case.addCleanup(self.server.stopService)
        self.secure = carrier not in {"tcp", "hub", "proxy", "proxy hub"}
        self.header = HEADER if carrier in PROXIED else b""

    def on_timeout(self, channel, kind):
        self.kinds.append(kind)
        channel.push(b"bye\n")

    async def connect(self, case):
        port = self.server.ports[0].getHost().port
        self.peer = await in_thread(lambda: Peer(port, secure=self.secure, header=self.header))
        case.addCleanup(self.peer.sock.close)
        await until(lambda: len(self.server.connections) == 1)

    async def gone(self, *kinds):
        await until(lambda: not self.server.connections)
        assert self.kinds == list(kinds)


WAYS = tuple(
    f"{carrier} {served}" for carrier in CARRIERS for served in ("chat", "other", "legacy")
)
BEHIND = tuple(f"{carrier} {served}" for carrier in PROXIED for served in ("chat", "legacy"))
STREAMS = ("tcp stream", "secure hub stream")


class TestDeadlines(TestCase):
    timeout = 30

    def setUp(self):
        self.pem = self.mktemp()
        Path(self.pem).write_bytes(pem(leaf()))
        # For all clients at the same time.
        pool = reactor.getThreadPool()
        self.addCleanup(pool.adjustPoolsize, pool.min, pool.max)
        pool.adjustPoolsize(pool.min, len(WAYS + STREAMS) + 3)

    async def on_each(self, scenario, *, ways=WAYS + STREAMS, **limits):
        async def run(name):
            try:
                way = Way(name, self, Limits(**limits))
                await way.connect(self)
                await scenario(way)
            except Exception as error:
                error.add_note(name)
                raise

        results = await DeferredList(
            [Deferred.fromCoroutine(run(name)) for name in ways], consumeErrors=True
        )
        for done, result in results:
            if not done:
                result.raiseException()

    async def test_a_silent_peer_hears_a_last_word(self):
        async def scenario(way):
            assert await in_thread(way.peer.read) == b"bye\n"
            way.peer.sock.close()
            await way.gone("first_message")

        await self.on_each(scenario, first_message=SOON)

    async def test_the_header_of_a_proxy_is_not_the_first_message(self):
        """A silent client hears a last word behind a proxy, too; for one that speaks others hold."""

        async def silent(way):
            assert await in_thread(way.peer.read) == b"bye\n"
            way.peer.sock.close()
            await way.gone("first_message")

        async def speaking(way):
            await in_thread(way.peer.send, b"h")
            assert await in_thread(way.peer.read) == b"bye\n"
            way.peer.sock.close()
            await way.gone("message")

        await self.on_each(silent, ways=BEHIND, first_message=SOON)
        legacy = [name for name in BEHIND if name.endswith("legacy")]
        await self.on_each(speaking, ways=legacy, first_message=SOON, message=2 * SOON)

    async def test_a_client_of_a_proxy_on_this_machine_has_a_session(self):
        """The proxy connects by a Unix socket, but the address that it names is distant."""
        path = self.mktemp()
        factory = LegacyFactory(Legacy, on_timeout=lambda channel, _: channel.push(b"bye\n"))
        server = Server(
            reactor, factory, [f"proxy:hub:unix:{path}:from=unix"], limits=Limits(session=SOON)
        )
        server.startService()
        self.addCleanup(server.stopService)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(path)
            sock.sendall(HEADER)
            assert await in_thread(sock.recv, 10) == b"bye\n"
            assert await in_thread(sock.recv, 10) == b""

    async def test_a_silent_peer_that_never_answers_the_end_is_gone(self):
        await self.on_each(
            lambda way: way.gone("first_message"), first_message=SOON, write_stall=SOON
        )

    async def test_an_idle_one_is_closed_and_a_busy_one_is_not(self):
        async def scenario(way):
            await in_thread(way.peer.ask_for, 12 * SOON)
            assert way.kinds == []
            assert await in_thread(way.peer.read) == b"bye\n"
            way.peer.sock.close()
            await way.gone("idle")

        # Long enough for a busy machine, on which a client that is busy, too, may be held up.
        await self.on_each(scenario, first_message=4 * SOON, idle=8 * SOON)

    async def test_a_peer_that_reads_nothing_is_aborted(self):
        async def scenario(way):
            way.peer.send(b"flood\n")
            await way.gone("write_stall")
            assert await in_thread(way.peer.hung_up, 2)  # not after its last bytes' own limit

        await self.on_each(scenario, write_stall=SOON)

    async def test_a_session_ends_though_the_peer_reads_nothing(self):
        async def scenario(way):
            way.peer.send(b"flood\n")
            await way.gone("session")

        # It counts from the beginning, and a handshake that lasts longer is nobody's to hear of.
        await self.on_each(scenario, session=4 * SOON, write_stall=6 * SOON)

    async def test_one_that_reads_fast_enough_gets_everything_that_was_sent_before_the_end(self):
        """It takes several times as long as a stall may last: after the session, a close, or a stop."""

        async def fetch(way):
            way.peer.send(b"fetch\n")
            assert await in_thread(way.peer.read_for, 6 * SOON) == FLOOD
            way.peer.sock.close()
            await way.gone()

        async def stop(way):
            way.peer.send(b"flood\n")
            assert await in_thread(way.peer.read, 100) == FLOOD[:100]
            stopped = way.server.stopService()
            assert await in_thread(way.peer.read_for, 6 * SOON) == FLOOD[100:]
            way.peer.sock.close()
            await stopped

        limits = {"write_stall": 2 * SOON, "minimum_rate": 10_000}
        await self.on_each(fetch, **limits)
        await self.on_each(stop, ways=("tcp chat", "tcp legacy", "secure hub other"), **limits)

    async def test_one_that_reads_a_byte_now_and_then_ends(self):
        """While the connection is open, closes, and while the server stops."""

        async def trickle(way, ended):
            over = threading.Event()
            trickling = in_thread(way.peer.trickle, over)
            await ended()
            over.set()
            await trickling

        async def stay(way):
            way.peer.send(b"flood\n")
            await trickle(way, lambda: way.gone("write_stall"))

        async def fetch(way):
            way.peer.send(b"fetch\n")
            await trickle(way, lambda: until(lambda: not way.server.connections))

        async def stop(way):
            way.peer.send(b"flood\n")
            await in_thread(way.peer.sock.recv, 1)
            await trickle(way, way.server.stopService)

        began = reactor.seconds()
        limits = {"write_stall": SOON, "minimum_rate": 1_000_000}
        await self.on_each(stay, **limits)
        await self.on_each(fetch, **limits)
        await self.on_each(stop, ways=("tcp chat", "tcp legacy", "secure hub other"), **limits)
        # No other limit on the end of a connection has passed.
        assert reactor.seconds() < began + 9

    async def test_a_message_that_dribbles_in_is_not_waited_for(self):
        async def scenario(way):
            dribbled = in_thread(way.peer.dribble)
            await way.gone("message")
            await dribbled

        ways = [name for name in WAYS + STREAMS if not name.endswith("other")]
        await self.on_each(scenario, ways=ways, message=SOON, write_stall=2 * SOON)

    async def test_a_deadline_is_the_reason_though_tls_never_comes(self):
        """Nor does the log say that the peer left, which is still there."""
        reasons = []

        class Starts(AsyncChat):
            terminator = b"\n"

            @override
            def handle_connect(self):
                self.start_tls(ServerOptions(credentials()))

            @override
            def handle_end(self, reason):
                reasons.append(reason)

        for carrier in ("tcp", "hub"):
            server = Server(
                reactor,
                ChatFactory(Starts),
                [CARRIERS[carrier]],
                limits=Limits(session=SOON, write_stall=SOON),
            )
            server.startService()
            self.addCleanup(server.stopService)
            port = server.ports[0].getHost().port
            peer = await in_thread(lambda port=port: Peer(port, secure=False))
            self.addCleanup(peer.sock.close)
            assert await in_thread(peer.read) == b""
            await until(lambda server=server: not server.connections)
        assert [(type(one), one.kind) for one in reasons] == [(TimedOut, "session")] * 2
