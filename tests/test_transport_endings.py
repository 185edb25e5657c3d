"""
Connections that are ended by their transport: by the application, a mixin, a policy, a legacy handler.

Bytes sent before arrive, later calls behave as documented, and the end has a time limit.

Also covers `endings`.
"""

import socket
import ssl
import struct
import time

import pytest
from twisted.internet import reactor
from twisted.protocols.policies import TimeoutFactory, TimeoutMixin, WrappingFactory
from typing_extensions import override

from helpers.kinds import KINDS, NATIVE, SERVED, WORN, Client, KindsCase
from helpers.support import in_thread, read_line, until
from txasynchat import AsyncChat, ChatFactory, Server, State, transports
from txasynchat.compat import asynchat
from txasynchat.errors import (
    CloseTimedOut,
    ConnectionReset,
    StoppedByServer,
    TruncatedConnection,
)

# Twisted's own endpoints pass certificates in a way that pyOpenSSL deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

#: Under a policy, and not.
WRAPS = (lambda factory: factory, WrappingFactory)


class Line(AsyncChat):
    """Notes its calls."""

    terminator = b"\n"
    max_unsent = None

    def __init__(self):
        self.events = []

    def message_received(self, message):
        self.events.append(message)

    def handle_close(self):
        self.events.append("close")


class LegacyLine(asynchat.async_chat):
    """Notes its calls."""

    def __init__(self, sock):
        super().__init__(sock)
        self.events = []
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.message_received(self._get_data())

    def message_received(self, message):
        self.events.append(message)

    def handle_close(self):
        self.events.append("close")
        self.close()


class TimeLimits(KindsCase):
    async def test_policy_ends_an_idle_connection(self):
        for way in NATIVE + SERVED:
            build = Line if way in NATIVE else LegacyLine
            client, handlers = await self.serve(way, build, lambda f: TimeoutFactory(f, 0.3))
            await in_thread(client.connect)
            assert await in_thread(client.read_to_the_end) == (0, "end"), way
            client.socket.close()
            await self.gone(handlers)

    async def check_never_read(self, way, build, wrap):
        client, handlers = await self.serve(way, build, wrap)
        await in_thread(client.ask)
        began = time.monotonic()
        handler = await self.gone(handlers)
        assert time.monotonic() - began < 10, way
        return handler

    @pytest.mark.slow
    async def test_a_mixin_ends_a_connection_whose_peer_never_reads(self):
        class Limited(Line, TimeoutMixin):
            @override
            def connectionMade(self):
                self.setTimeout(0.3)

            def message_received(self, message):
                self.push(bytes(6_000_000))

            @override
            def connectionLost(self, reason):
                self.setTimeout(None)
                super().connectionLost(reason)

        self.limits(0.5)
        for wrap in WRAPS:
            for way in NATIVE:
                handler = await self.check_never_read(way, Limited, wrap)
                assert isinstance(handler.close_reason, CloseTimedOut), way
                assert handler.events == ["close"], way

    @pytest.mark.slow
    async def test_a_policy_ends_a_connection_whose_peer_never_reads(self):
        class Sending(Line):
            def message_received(self, message):
                self.push(bytes(6_000_000))

        class LegacySending(LegacyLine):
            def message_received(self, message):
                self.push(bytes(6_000_000))

        self.limits(0.5)
        for way in NATIVE + SERVED:
            build = Sending if way in NATIVE else LegacySending
            await self.check_never_read(way, build, lambda f: TimeoutFactory(f, 0.3))


class Closing(KindsCase):
    async def test_bytes_pushed_before_arrive_and_nothing_is_delivered_or_sent_later(self):
        class Ending(Line):
            def message_received(self, message):
                super().message_received(message)
                self.push(bytes(300_000))
                self.transport.loseConnection()
                assert self.state is State.CLOSING
                self.push(b"too late")

        for wrap in WRAPS:
            for way in NATIVE:
                client, handlers = await self.serve(way, Ending, wrap)
                await in_thread(client.connect)
                await in_thread(client.socket.sendall, b"one\ntwo\n")
                assert await in_thread(client.read_to_the_end, 1_000_000) == (300_000, "end"), way
                client.socket.close()
                handler = await self.gone(handlers)
                assert handler.events == [b"one", "close"], way
                assert handler.dropped == len(b"too late")

    async def test_greeting_is_sent_to_a_client_that_is_turned_away(self):
        class Busy(Line):
            @override
            def connectionMade(self):
                self.push(b"busy\n")
                self.transport.loseConnection()

        for wrap in WRAPS:
            for way in NATIVE:
                client, handlers = await self.serve(way, Busy, wrap)
                await in_thread(client.connect)
                assert await in_thread(read_line, client.socket) == b"busy\n", way
                assert await in_thread(client.read_to_the_end) == (0, "end"), way
                client.socket.close()
                await self.gone(handlers)

    async def test_lose_connection_from_outside_ends_an_idle_connection(self):
        for wrap in WRAPS:
            for way in NATIVE:
                client, handlers = await self.serve(way, Line, wrap)
                await in_thread(client.connect)
                handler = await self.made(handlers)
                await until(lambda of=handler: of.state is not State.CONNECTING)
                handler.transport.loseConnection()
                handler.transport.loseConnection()
                assert await in_thread(client.read_to_the_end) == (0, "end"), way
                client.socket.close()
                await self.gone(handlers)
                assert handler.events == ["close"]


class HalfClosing(KindsCase):
    """All bytes and then the end of the stream arrive, and reading continues."""

    async def check(self, way, build, wrap, count):
        client, handlers = await self.serve(way, build, wrap)
        await in_thread(client.ask)
        assert await in_thread(client.read_to_the_end, 1_000_000) == (count, "end"), way
        handler = await self.made(handlers)
        assert not self.is_gone(handler)
        await in_thread(client.socket.sendall, b"and\nanother\n")
        await until(lambda: len(handler.events) >= 3)
        assert handler.events == [b"go", b"and", b"another"], way
        await in_thread(client.socket.close)
        await self.gone(handlers)
        return handler

    async def check_native(self, count, act):
        class Ending(Line):
            def message_received(self, message):
                super().message_received(message)
                if message == b"go":
                    act(self)
                else:
                    self.push(b"too late")

        for wrap in WRAPS:
            for way in NATIVE:
                handler = await self.check(way, Ending, wrap, count)
                assert handler.events[3:] == ["close"], way
                assert handler.dropped == 2 * len(b"too late"), way

    async def test_half_close_after_one_push(self):
        def act(chat):
            chat.push(bytes(340_000))
            chat.transport.loseWriteConnection()

        await self.check_native(340_000, act)

    async def test_half_close_after_joined_pushes(self):
        def act(chat):
            for _ in range(10):
                chat.push(b"x")
            chat.transport.loseWriteConnection()
            chat.transport.loseWriteConnection()

        await self.check_native(10, act)

    async def test_half_close_after_a_producer(self):
        def act(chat):
            chat.push_with_producer(bytes(1_000) for _ in range(340))
            chat.transport.loseWriteConnection()

        await self.check_native(340_000, act)

    async def test_half_close_with_an_empty_queue(self):
        await self.check_native(0, lambda chat: chat.transport.loseWriteConnection())

    async def test_half_close_while_the_transport_is_full(self):
        def act(chat):
            chat.push(bytes(340_000))
            reactor.callLater(0.01, chat.transport.loseWriteConnection)

        class Ending(Line):
            def message_received(self, message):
                super().message_received(message)
                if message == b"go":
                    act(self)

        for wrap in WRAPS:
            for way in NATIVE:
                await self.check(way, Ending, wrap, 340_000)

    async def test_half_close_before_the_handshake(self):
        class Greeting(Line):
            @override
            def connectionMade(self):
                self.push(b"hello\n")
                self.transport.loseWriteConnection()

        for wrap in WRAPS:
            for way in NATIVE:
                await self.check(way, Greeting, wrap, 6)

    async def test_half_close_then_close(self):
        class Ending(Line):
            def message_received(self, message):
                if message == b"go":
                    self.push(bytes(340_000))
                    self.transport.loseWriteConnection()
                else:
                    self.close_when_done()

        self.limits(0.3)
        for wrap in WRAPS:
            for way in NATIVE:
                client, handlers = await self.serve(way, Ending, wrap)
                await in_thread(client.ask)
                assert await in_thread(client.read_to_the_end) == (340_000, "end"), way
                await in_thread(client.socket.sendall, b"quit\n")
                await self.gone(handlers)
                assert handlers[0].events == ["close"], way

    async def test_half_close_by_a_legacy_handler(self):
        """On a worn transport, whose ``sendall`` takes everything at once."""

        class Ending(LegacyLine):
            def message_received(self, message):
                super().message_received(message)
                if message == b"go":
                    self.socket.sendall(bytes(340_000))
                    self.socket.shutdown(socket.SHUT_WR)
                    with pytest.raises(BrokenPipeError):
                        self.socket.send(b"too late")

        for wrap in WRAPS:
            for way in WORN:
                await self.check(way, Ending, wrap, 340_000)

    async def test_half_close_by_a_legacy_handler_that_closes_later(self):
        class Ending(LegacyLine):
            asked = False

            def message_received(self, message):
                if message == b"go":
                    self.asked = True
                    self.push(bytes(340_000))
                else:
                    self.close_when_done()

            def initiate_send(self):
                super().initiate_send()
                if self.asked and not self.producer_fifo:
                    self.asked = False
                    self.socket.shutdown(socket.SHUT_WR)

        self.limits(0.3)
        for way in SERVED:
            client, handlers = await self.serve(way, Ending)
            await in_thread(client.ask)
            assert await in_thread(client.read_to_the_end) == (340_000, "end"), way
            await in_thread(client.socket.sendall, b"quit\n")
            await self.gone(handlers)


class Reasons(KindsCase):
    """The reasons that `handle_end` gets."""

    async def end(self, way, ending, build=Line):
        ends = []

        class Told(build):
            def handle_end(self, reason):
                ends.append(reason)

        client, handlers = await self.serve(way, Told)
        await in_thread(client.ask)
        handler = await self.made(handlers)
        await until(lambda: handler.events or handler.state is State.CLOSED)
        await ending(client, handler)
        await self.gone(handlers)
        assert ends == [handler.close_reason]
        return ends[0]

    async def test_reset_is_distinguished_from_an_end(self):
        """A truncated upload is not mistaken for a complete one."""

        async def reset(client, handler):
            sock = client.socket
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await in_thread(sock.close)

        async def finish(client, handler):
            if isinstance(client.socket, ssl.SSLSocket):
                client.socket = await in_thread(client.socket.unwrap)
            await in_thread(client.close)

        for way in NATIVE:
            if not way.endswith("unix"):  # it has no reset of this kind
                kind = ConnectionReset if way.endswith("tcp") else TruncatedConnection
                assert type(await self.end(way, reset)) is kind, way
            assert await self.end(way, finish) is None, way

    async def test_end_by_this_side_has_no_reason(self):
        async def abort(client, handler):
            handler.abort()

        for way in NATIVE:
            assert await self.end(way, abort) is None, way

    async def test_handle_end_tells_that_the_server_stopped(self):
        """A connection cut off after stop_timeout gets the reason; others end in order."""

        class Busy(Line):
            def handle_shutdown(self):
                self.events.append("asked")

        for build, expected in ((Line, type(None)), (Busy, StoppedByServer)):
            for kind in KINDS:
                ends = []

                class Told(build):
                    def handle_end(self, reason, ends=ends):
                        ends.append(reason)

                server = Server(reactor, ChatFactory(Told), [self.endpoint(kind)], stop_timeout=0.1)
                server.startService()
                host = server.ports[0].getHost()
                client = Client(host.name if kind == "unix" else (host.host, host.port), kind)
                self.addCleanup(client.close)
                await in_thread(client.ask)
                await until(lambda of=server: any(chat.events for chat in of.connections))
                stopped = server.stopService()
                await in_thread(client.read_to_the_end)
                client.close()
                await stopped
                assert [type(reason) for reason in ends] == [expected], kind


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="no other system has the option")
class Promptness(KindsCase):
    """Neither side of a TLS connection waits 40 ms for an acknowledgement by the other's system."""

    async def test_clients_last_flight_is_acknowledged_at_once(self):
        """Else a client that sends its request in a packet of its own waits with it."""
        asked = []

        def ask(sock):
            options = (socket.TCP_QUICKACK, socket.TCP_NODELAY)
            asked.extend(sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)

        class Native(Line):
            @override
            def handle_connect(self):
                ask(transports.real_socket(self.transport))

        class Legacy(LegacyLine):
            def __init__(self, sock):
                super().__init__(sock)
                ask(sock)

        for way in NATIVE + SERVED:
            if way.endswith("secure"):
                asked.clear()
                client, handlers = await self.serve(way, Native if way in NATIVE else Legacy)
                await in_thread(client.connect)
                await self.made(handlers)
                await until(lambda: asked)
                assert all(asked), (way, asked)
                client.socket.close()
                await self.gone(handlers)
