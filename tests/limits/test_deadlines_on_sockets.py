"""
Who takes too long ends, whatever carries the connection and whatever serves it, on real sockets.
"""

import contextlib
import select
import socket
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers.support import HOST, client_context, in_thread, leaf, pem, until
from helpers.wire import Memory, raw
from txasynchat import AsyncChat, ChatFactory, Limits, Server
from txasynchat.compat import LegacyFactory, asynchat

# Twisted passes pyOpenSSL's own certificates to pyOpenSSL, which deprecates them.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

FLOOD = b"x" * 12_000_000
SOON = 0.4


class Chat(AsyncChat):
    terminator = b"\n"
    max_unsent = None

    def message_received(self, message):
        self.push(FLOOD if message == b"flood" else message + b"\n")

    def handle_timeout(self, kind):
        self.factory.kinds.append(kind)
        self.push(b"bye\n")


class Streamed(Chat):
    async def handle_connect(self):
        stream = self.stream()
        async for line in stream:
            stream.write(FLOOD if line == b"flood" else line + b"\n")


class Other(Protocol):
    @override
    def dataReceived(self, data):
        self.transport.write(FLOOD if data == b"flood\n" else data)

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
        self.push(FLOOD if line == b"flood" else line + b"\n")


class Peer:
    """A client in the calling thread, plain or over TLS by hand."""

    def __init__(self, port, *, secure):
        self.sock = raw(port)
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

    def ask(self, line):
        self.send(line + b"\n")
        return self.read(len(line) + 1)


def hung_up(sock, seconds):
    """Whether the connection is gone in both directions, which needs no reading to be seen."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(seconds * 1000))


class Ways:
    description = "tcp:0:interface=127.0.0.1"
    secure = False
    transport = "twisted"
    timeout = 30

    def make(self):
        return ChatFactory(Chat)

    def setUp(self):
        self.pem = self.mktemp()
        Path(self.pem).write_bytes(pem(leaf()))

    async def start(self, **limits):
        """Serve with *limits*; return a client that has connected."""
        factory = self.make()
        self.kinds = factory.kinds = []
        self.server = Server(
            reactor,
            factory,
            [self.description.format(pem=quoteStringArgument(self.pem))],
            stop_timeout=5,
            transport=self.transport,
            limits=Limits(**limits),
        )
        self.server.startService()
        self.addCleanup(self.server.stopService)
        port = self.server.ports[0].getHost().port
        peer = await in_thread(lambda: Peer(port, secure=self.secure))
        self.addCleanup(peer.sock.close)
        await until(lambda: len(self.server.connections) == 1)
        return peer

    async def gone(self):
        await until(lambda: not self.server.connections)

    async def test_a_silent_peer_hears_a_last_word(self):
        peer = await self.start(first_message=SOON)
        assert await in_thread(peer.read) == b"bye\n"
        peer.sock.close()
        await self.gone()
        assert self.kinds == ["first_message"]

    async def test_a_silent_peer_that_never_answers_the_end_is_gone(self):
        await self.start(first_message=SOON, write_stall=1)
        await self.gone()
        assert self.kinds == ["first_message"]

    async def test_an_idle_one_is_closed_and_a_busy_one_is_not(self):
        peer = await self.start(first_message=SOON, idle=1)
        start = reactor.seconds()
        while reactor.seconds() < start + 2:
            assert await in_thread(peer.ask, b"hello") == b"hello\n"
        assert self.kinds == []
        assert await in_thread(peer.read) == b"bye\n"
        peer.sock.close()
        await self.gone()
        assert self.kinds == ["idle"]

    async def test_a_peer_that_reads_nothing_is_aborted(self):
        peer = await self.start(write_stall=1)
        peer.send(b"flood\n")
        await self.gone()
        assert self.kinds == ["write_stall"]
        assert await in_thread(lambda: hung_up(peer.sock, 3))  # not after its last bytes' own limit

    async def test_a_session_ends_though_the_peer_reads_nothing(self):
        peer = await self.start(session=SOON, write_stall=2)
        peer.send(b"flood\n")
        await self.gone()
        assert self.kinds == ["session"]

    async def test_a_reader_that_is_fast_enough_gets_everything(self):
        peer = await self.start(write_stall=1, minimum_rate=10_000, session=1)
        peer.send(b"flood\n")

        def slowly():
            """Take as long as the session may last, twice over."""
            data = bytearray()
            end = reactor.seconds() + 2
            while reactor.seconds() < end:
                data += peer.read(60_000)
            return data + peer.read()

        data = await in_thread(slowly)
        assert data.startswith(FLOOD)
        peer.sock.close()
        await self.gone()

    async def test_a_message_that_dribbles_in_is_not_waited_for(self):
        peer = await self.start(message=1)

        def dribble():
            """Send a byte now and then, until the server ends the connection."""
            peer.sock.settimeout(0.05)
            with contextlib.suppress(ConnectionError):
                while True:
                    peer.send(b"x")
                    with contextlib.suppress(TimeoutError):
                        if not peer.sock.recv(65_536):
                            return

        dribbled = in_thread(dribble)
        await self.gone()
        await dribbled
        assert self.kinds == ["message"]


class OfOthers(Ways):
    test_a_message_that_dribbles_in_is_not_waited_for = None

    def make(self):
        return ChatFactory(Other)


class OfStreams(Ways):
    def make(self):
        return ChatFactory(Streamed)


class OfLegacy(Ways):
    def make(self):
        def on_timeout(channel, kind):
            self.kinds.append(kind)
            channel.push(b"bye\n")

        return LegacyFactory(Legacy, on_timeout=on_timeout)


WAYS = {
    "Plain": {},
    "Hub": {"transport": "hub"},
    "Secure": {
        "description": "secure:tcp:0:interface=127.0.0.1:certificate={pem}",
        "secure": True,
    },
    "SecureHub": {
        "description": "secure:hub:tcp:0:interface=127.0.0.1:certificate={pem}",
        "secure": True,
    },
    "SSL": {
        "description": "ssl:0:interface=127.0.0.1:privateKey={pem}",
        "secure": True,
    },
}
for way, settings in WAYS.items():
    for base in (Ways, OfOthers, OfLegacy, OfStreams):
        name = f"Test{way}{base.__name__}"
        globals()[name] = type(name, (base, TestCase), dict(settings, __module__=__name__))
