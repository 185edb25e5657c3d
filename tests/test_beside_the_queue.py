"""
What an application does to its transport beside `push` keeps its order, or is refused.
"""

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.protocols.policies import ThrottlingFactory, WrappingFactory

from helpers.kinds import NATIVE, KindsCase
from helpers.support import HOST, client_context, in_thread, twisted_options
from txasynchat import AsyncChat

# Twisted's own endpoints pass certificates in a way that pyOpenSSL deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

WRAPS = (
    lambda factory: factory,
    WrappingFactory,
    lambda f: ThrottlingFactory(f, writeLimit=1 << 30),
)
LARGE = 3_000_000


class Line(AsyncChat):
    terminator = b"\n"


def read_all(client):
    return b"".join(iter(lambda: client.socket.recv(65_536), b""))


class WritingTests(KindsCase):
    async def ask(self, build, wrap, way):
        client, handlers = await self.serve(way, build, wrap)
        await in_thread(client.ask)
        answer = await in_thread(read_all, client)
        client.close()
        await self.gone(handlers)
        return answer

    async def check(self, build, expected):
        for wrap in WRAPS:
            for way in NATIVE:
                assert await self.ask(build, wrap, way) == expected, way

    async def test_pushes_and_writes_in_one_handler_keep_their_order(self):
        """1, 2, 3 arrives as 123, whether pushed or written."""

        class Both(Line):
            def message_received(self, message):
                self.push(b"1")
                self.transport.write(b"2")
                self.push(b"3")
                self.transport.writeSequence([b"4", b"5"])
                self.close_when_done()

        await self.check(Both, b"12345")

    async def test_bytes_written_follow_a_producer(self):
        """A line written to the transport does not land inside a file that is being sent."""

        class Producing(Line):
            def message_received(self, message):
                self.push_with_producer(b"x" * 1_000 for _ in range(1_000))
                self.transport.write(b"behind")
                self.close_when_done()

        await self.check(Producing, b"x" * 1_000_000 + b"behind")

    async def test_bytes_written_later_follow_the_queue(self):
        """A timer's write does not land inside a long answer to a slow reader."""

        class Slow(Line):
            high_water = None

            def message_received(self, message):
                for _ in range(LARGE // 100_000):
                    self.push(b"x" * 100_000)
                reactor.callLater(0, self.late)

            def late(self):
                self.transport.write(b"behind")
                self.close_when_done()

        for way in NATIVE:
            assert await self.ask(Slow, lambda f: f, way) == b"x" * LARGE + b"behind", way


def ask_then_read(client):
    client.ask()
    return client.socket.recv(100)


def secure_then_read(client):
    client.socket = client_context().wrap_socket(client.socket, server_hostname=HOST)
    return read_all(client)


class StartTLSTests(KindsCase):
    async def test_bytes_pushed_before_twisteds_start_tls_are_sent_in_the_clear(self):
        """The client waits for READY before its handshake, and gets it."""
        options = twisted_options()

        class Starting(Line):
            def message_received(self, message):
                self.push(b"READY\n")
                self.transport.startTLS(options)
                self.push(b"secret")
                self.transport.write(b" word")
                self.close_when_done()

        for wrap in WRAPS:
            client, handlers = await self.serve("native tcp", Starting, wrap)
            assert await in_thread(ask_then_read, client) == b"READY\n"
            assert await in_thread(secure_then_read, client) == b"secret word"
            client.close()
            await self.gone(handlers)

    async def test_twisteds_start_tls_is_refused_while_output_waits(self):
        """No plaintext may wait behind the handshake: the call raises and names the alternative."""
        seen = Deferred()

        class Starting(Line):
            max_unsent = None

            def message_received(self, message):
                self.push(bytes(20_000_000))
                try:
                    self.transport.startTLS(twisted_options())
                except RuntimeError as error:
                    seen.callback(str(error))
                self.abort()

        client, handlers = await self.serve("native tcp", Starting)
        await in_thread(client.ask)
        assert "AsyncChat.start_tls(), which waits for it" in await seen
        await self.gone(handlers)


class Wrong(Line):
    """Calls inherited methods that only the transport should call."""

    name = "pauseProducing"

    def message_received(self, message):
        getattr(self, self.name)()


class ProducingTests(KindsCase):
    async def test_calling_a_method_of_the_transports_raises_with_an_explanation(self):
        """LineReceiver's ``pauseProducing`` pauses input; here it would pause output, so it raises."""
        for name, remedy in (("pauseProducing", "pause()"), ("stopProducing", "abort()")):
            for wrap in WRAPS:
                for way in NATIVE:
                    client, handlers = await self.serve(way, lambda name=name: named(name), wrap)
                    await in_thread(client.ask)
                    await in_thread(read_all, client)
                    client.close()
                    await self.gone(handlers)
                    (error,) = self.flushLoggedErrors(RuntimeError)
                    assert f"Wrong.{name}()" in str(error.value), way
                    assert remedy in str(error.value)


def named(name):
    handler = Wrong()
    handler.name = name
    return handler
