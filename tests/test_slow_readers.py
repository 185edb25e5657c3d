"""
Answers to peers that read slowly, later, or never, on every way to serve them over Twisted.

Bytes in the operating system's buffer leave it as slowly as the peer reads. No limit on the end of a
connection may destroy it, and yet every connection ends.
"""

import contextlib
import select
import socket
import sys
import time

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.protocols.policies import WrappingFactory

from helpers.kinds import KINDS, NATIVE, SERVED, Client, KindsCase
from helpers.support import PATIENCE, in_thread, until
from txasynchat import AsyncChat, ChatFactory, Server, State, transports
from txasynchat.compat import asynchat
from txasynchat.errors import CloseTimedOut

# Twisted's own endpoints pass certificates in a way that pyOpenSSL deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class Answering(AsyncChat):
    """Answers a line with so many bytes, and closes."""

    terminator = b"\n"
    max_unsent = None
    max_message_length = None

    def __init__(self, size, send_buffer):
        self.size = size
        self.send_buffer = send_buffer

    def handle_connect(self):
        sock = transports.real_socket(self.transport)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)

    def message_received(self, message):
        self.push(bytes(self.size))
        self.close_when_done()


class LegacyAnswering(asynchat.async_chat):
    """The same, written for asyncore."""

    def __init__(self, sock, size, send_buffer):
        super().__init__(sock)
        self.size = size
        self.set_terminator(b"\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)

    def collect_incoming_data(self, data):
        pass

    def found_terminator(self):
        self.push(bytes(self.size))
        self.close_when_done()


def answering(way, size, send_buffer):
    """The handler class, or function, of one way to serve."""
    cls = Answering if way in NATIVE else LegacyAnswering
    return lambda *sock: cls(*sock, size, send_buffer)


@pytest.mark.skipif(
    sys.platform != "linux", reason="no other system says how much it holds, and so who still reads"
)
class SteadyReaders(KindsCase):
    """The socket accepts nothing new for longer than any limit, while the peer reads."""

    async def check(self, ways):
        everything = dict.fromkeys(ways, (1_300_000, "end"))
        for limit in (0.7, 1.4, 2.8):
            self.limits(limit)
            clients = []
            results = await gatherResults(
                [Deferred.fromCoroutine(self.read(way, 140_000 / limit, clients)) for way in ways]
            )
            if dict(results) == everything or all(
                client.longest_wait < limit / 2 for client in clients
            ):
                break  # else the machine stopped a reader for longer than it may
        assert dict(results) == everything

    async def read(self, way, rate, clients):
        client, _ = await self.serve(way, answering(way, 1_300_000, 524_288))
        clients.append(client)
        await in_thread(client.ask)
        return way, await in_thread(client.read_to_the_end, rate)

    @pytest.mark.slow
    async def test_steady_readers_get_everything_from_a_native_handler(self):
        await self.check(NATIVE)

    @pytest.mark.slow
    async def test_steady_readers_get_everything_from_a_legacy_handler(self):
        await self.check(SERVED)


class LateReaders(KindsCase):
    """Their answer is in the operating system's buffer, and our side's limits have passed."""

    async def test_late_readers_get_everything_after_our_side_closed(self):
        self.limits(0.3)
        for way in NATIVE + SERVED:
            client, handlers = await self.serve(way, answering(way, 200_000, 1 << 20))
            await in_thread(client.ask)
            await self.gone(handlers)
            assert await in_thread(client.read_to_the_end) == (200_000, "end"), way

    async def test_late_readers_get_everything_although_the_server_stops(self):
        """The process may have exited when they read it."""
        self.limits(PATIENCE)
        for kind in ("secure", "ssl"):
            factory = ChatFactory(Answering, 200_000, 1 << 20)
            server = Server(reactor, factory, [self.endpoint(kind)], stop_timeout=0.3)
            server.startService()
            host = server.ports[0].getHost()
            client = Client((host.host, host.port), kind)
            self.addCleanup(client.close)
            await in_thread(client.ask)
            await until(
                lambda of=factory: [chat for chat in of.connections if chat.state is State.CLOSING]
            )
            await server.stopService()
            assert await in_thread(client.read_to_the_end) == (200_000, "end"), kind


class Greeting(AsyncChat):
    """Greets, and says goodbye to the first message, though there is another behind it."""

    terminator = b"\n"

    def __init__(self):
        self.ends = []

    def handle_connect(self):
        self.push(b"hello\n")

    def message_received(self, message):
        self.push(b"bye\n")
        self.close()

    def handle_end(self, reason):
        self.ends.append(reason)


def part(client):
    """Ask for the end with more behind, read up to it, and keep the socket open; return what came."""
    client.connect()
    with client.socket.makefile("rb") as lines:
        greeting = lines.readline()
        client.socket.sendall(b"quit\nnever\n")
        return greeting + lines.read()


class Lingerers(KindsCase):
    """They have read everything, and do not close."""

    async def test_lingerers_are_waited_for_no_longer_than_the_limit(self):
        """It counts from when they have everything, though that is seen a little later."""
        self.limits(1.0)
        for way in ("native tcp", "native hub-tcp", "native hub-unix"):
            client, handlers = await self.serve(way, Greeting)
            assert await in_thread(part, client) == b"hello\nbye\n"
            began = time.monotonic()
            handler = await self.gone(handlers)
            assert 0.7 < time.monotonic() - began < 1.5, way
            assert handler.ends == [None]

    async def stop(self, kind, build, come, stop_timeout=15.0):
        """Stop a server whose client has come; return the seconds, and the reason of the end."""
        server = Server(
            reactor, ChatFactory(build), [self.endpoint(kind)], stop_timeout=stop_timeout
        )
        server.startService()
        host = server.ports[0].getHost()
        client = Client((host.host, host.port), kind)
        self.addCleanup(client.close)
        await in_thread(come, client)
        [handler] = server.connections
        began = time.monotonic()
        await server.stopService()
        [reason] = handler.ends
        return time.monotonic() - began, reason

    async def test_a_server_that_stops_does_not_wait_long_for_lingerers(self):
        for kind in ("tcp", "hub-tcp"):
            seconds, reason = await self.stop(kind, Greeting, part)
            assert seconds < 2, kind
            assert reason is None

    async def test_a_server_that_stops_does_not_wait_long_for_those_who_begin_to_linger(self):
        class Abrupt(Greeting):
            def handle_shutdown(self):
                self.close()  # of which the client takes no notice

        def begin(client):
            client.connect()
            assert client.socket.recv(6) == b"hello\n"
            client.socket.sendall(b"half a message")

        for kind in ("tcp", "hub-tcp"):
            seconds, reason = await self.stop(kind, Abrupt, begin)
            assert seconds < 2, kind
            assert reason is None

    async def test_a_connection_that_has_ended_does_not_hear_that_the_server_stopped(self):
        """It had sent everything when the server would wait no longer."""
        for kind in ("tcp", "hub-tcp"):
            _, reason = await self.stop(kind, Greeting, part, stop_timeout=0.1)
            assert reason is None, kind


class SilentReaders(KindsCase):
    """They never read."""

    async def check(self, way, build):
        self.limits(0.5)
        client, handlers = await self.serve(way, build)
        await in_thread(client.ask)
        began = time.monotonic()
        handler = await self.gone(handlers)
        assert time.monotonic() - began < 10, way
        count, _ = await in_thread(client.read_to_the_end)
        assert count < 6_000_000, way
        return handler

    async def test_silent_readers_are_disconnected_after_the_limit(self):
        for way in NATIVE:
            handler = await self.check(way, answering(way, 6_000_000, 65_536))
            assert isinstance(handler.close_reason, CloseTimedOut), way

    async def test_silent_readers_are_disconnected_after_a_legacy_handler_closed(self):
        class Closing(LegacyAnswering):
            def found_terminator(self):
                self.socket.sendall(bytes(self.size))  # then the transport has it
                self.close()

        for way in SERVED:
            await self.check(way, lambda sock: Closing(sock, 6_000_000, 65_536))

    async def test_silent_readers_are_disconnected_when_only_a_full_socket_remains(self):
        """The socket cannot be written to, so it does not close by itself."""

        class Filling(Answering):
            def message_received(self, message):
                sock = transports.real_socket(self.transport)
                poller = select.poll()
                poller.register(sock, select.POLLOUT)
                while poller.poll(0):
                    self.size += sock.send(bytes(1_000))
                self.close()

        self.limits(0.3)
        for wrap in (lambda factory: factory, WrappingFactory):
            for way in ("native tcp", "native unix"):
                client, handlers = await self.serve(way, lambda: Filling(0, 200_000), wrap)
                await in_thread(client.ask)
                handler = await self.gone(handlers)
                assert handler.close_reason is None
                assert await in_thread(client.read_to_the_end) == (handler.size, "end")

    async def test_silent_readers_are_disconnected_even_if_they_send_for_ever(self):
        def talk(client):
            with contextlib.suppress(OSError):
                while True:
                    client.socket.sendall(bytes(1_000))

        self.limits(0.5)
        for kind in KINDS:
            client, handlers = await self.serve(f"native {kind}", lambda: Answering(100, 65_536))
            await in_thread(client.ask)
            talking = in_thread(talk, client)
            await self.gone(handlers)
            await talking
