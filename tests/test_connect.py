"""
`connect` and `reconnecting` with real servers: what they return, raise, and leave behind.

Also covers `clients`.
"""

import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers import support
from helpers.kinds import on_the_hub_too
from helpers.support import HOST, Server, in_thread, server_options, trust, until
from txasynchat import AsyncChat, ChatFactory, ClientOptions, State, errors
from txasynchat.clients import connect, reconnecting


class Line(AsyncChat):
    """Says hello, and keeps what it is told."""

    terminator = b"\n"

    def __init__(self):
        self.lines = []
        self.calls = []

    def handle_connect(self):
        self.calls.append("connect")
        self.push(b"hello\n")

    def message_received(self, message):
        self.lines.append(message)

    def handle_end(self, reason):
        self.calls.append(("end", reason))


async def echo(stream):
    async for line in stream:
        stream.write(line + b"\n")
        await stream.drain()


@on_the_hub_too
class ConnectCase(TestCase):
    timeout = 30
    reactor = reactor

    @property
    def prefix(self):
        return "tcp:" if self.reactor is reactor else "hub:tcp:"

    async def serve(self, handler=echo, factory=None, number=0):
        endpoint = TCP4ServerEndpoint(self.reactor, number, interface="127.0.0.1")
        self.factory = factory or ChatFactory(handler)
        self.port = await endpoint.listen(self.factory)
        self.addCleanup(self.port.stopListening)
        return f"{self.prefix}127.0.0.1:{self.port.getHost().port}"

    async def secure(self, **options):
        server = await Server(self, server_options(**options)).listen()
        return f"{self.prefix}127.0.0.1:{server.port}", server

    async def no_server(self):
        """A port that nobody listens on."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            return f"{self.prefix}127.0.0.1:{sock.getsockname()[1]}"

    async def silent(self):
        """A port that accepts, and says nothing."""
        return await self.serve(Protocol)

    async def fails(self, kind, coroutine):
        try:
            await coroutine
        except kind as error:
            return error
        return self.fail(f"{kind} was not raised")

    def quiet(self):
        """Wait until no connection and no timer of an attempt is left."""
        return until(lambda: not self.factory.connections and not self.timers())

    def timers(self):
        # Those of this test's own limit, and of until(), do not count.
        return [
            each
            for each in reactor.getDelayedCalls()
            if "_Attempt" in str(each) or "connect" in str(each).lower()
        ]

    async def test_without_a_handler_it_is_a_stream(self):
        """A script needs no class to ask a server something."""
        where = await self.serve()
        async with await connect(where, reactor=reactor) as stream:
            stream.write(b"one\ntwo\n")
            self.assertEqual(await stream.read_until(b"\n"), b"one")
            self.assertEqual(await stream.read_exactly(4), b"two\n")
            self.assertEqual(stream.addr, ("127.0.0.1", self.port.getHost().port))
        self.assertIs(stream.chat.state, State.CLOSED)
        await self.quiet()

    async def test_a_class_is_connected_when_it_is_returned(self):
        """What handle_connect prepares is there."""
        where = await self.serve()
        chat = await connect(where, Line, reactor=reactor)
        self.assertEqual(chat.calls, ["connect"])
        self.assertIs(chat.state, State.OPEN)
        await until(lambda: chat.lines == [b"hello"])
        chat.close()
        await self.quiet()
        await until(lambda: len(chat.calls) == 2)
        self.assertEqual(chat.calls, ["connect", ("end", None)])

    async def test_a_factory_builds_the_handler(self):
        where = await self.serve()
        factory = ChatFactory(Line)
        chat = await connect(where, factory, reactor=reactor)
        self.assertEqual(list(factory.connections), [chat])
        chat.close()
        await until(lambda: not factory.connections)

    async def test_any_protocol_of_twisted_will_do(self):
        where = await self.serve()
        protocol = await connect(where, Factory.forProtocol(Protocol), reactor=reactor)
        protocol.transport.loseConnection()
        await self.quiet()

    async def test_a_refused_connection_is_raised(self):
        error = await self.fails(Refused, connect(await self.no_server(), reactor=reactor))
        self.assertIn("refused", str(error).lower())

    async def test_tls_is_done_when_it_is_returned(self):
        where, server = await self.secure()
        stream = await connect(where, tls=ClientOptions(HOST, trust()), reactor=reactor)
        self.assertIn("1.3", str(stream.tls.version))
        stream.write(b"hello\n")
        self.assertEqual(await stream.read_until(b"\n"), b"hello")
        stream.close()
        await stream.wait_closed()
        await server.handlers[0].closed
        chat = await connect(where, Line, tls=ClientOptions(HOST, trust()), reactor=reactor)
        self.assertEqual(chat.calls, ["connect"])
        self.assertIsNotNone(chat.tls)
        chat.close()
        await server.handlers[1].closed

    async def test_a_refused_certificate_is_raised_by_our_error(self):
        where, server = await self.secure(credentials=support.credentials("other.example.org"))
        made = []

        def build():
            made.append(Line())
            return made[0]

        attempt = connect(where, build, tls=ClientOptions(HOST, trust()), reactor=reactor)
        await self.fails(errors.WrongName, attempt)
        await server.handlers[0].closed
        await until(lambda: made[0].calls)
        self.assertIsInstance(made[0].calls[0][1], errors.WrongName)

    async def test_a_server_that_speaks_no_tls_is_a_failed_handshake(self):
        where = await self.serve(Line)
        attempt = connect(where, tls=ClientOptions(HOST, trust()), reactor=reactor)
        await self.fails(errors.HandshakeFailed, attempt)
        await self.quiet()

    async def test_the_time_limit_holds_for_the_handshake_too(self):
        where = await self.silent()
        options = ClientOptions(HOST, trust())
        attempt = connect(where, tls=options, reactor=reactor, timeout=0.05)
        error = await self.fails(errors.ConnectTimedOut, attempt)
        self.assertEqual(str(error), "not connected after 0.05 s")
        self.assertIsInstance(error, TimeoutError)
        await self.quiet()

    async def test_an_attempt_can_be_cancelled(self):
        where = await self.silent()
        attempt = Deferred.fromCoroutine(
            connect(where, tls=ClientOptions(HOST, trust()), reactor=reactor)
        )
        await until(lambda: self.factory.connections)
        attempt.cancel()
        await self.fails(CancelledError, attempt)
        await self.quiet()

    async def test_an_attempt_can_be_cancelled_before_anything_happened(self):
        where = await self.serve(Line)
        attempt = Deferred.fromCoroutine(connect(where, reactor=reactor))
        attempt.cancel()
        await self.fails(CancelledError, attempt)
        await self.quiet()

    async def test_wrong_arguments_are_named(self):
        for error, arguments, text in [
            (TypeError, {"where": 8007}, "8007 is not an endpoint; write 'tcp:host:port'"),
            (ValueError, {"where": "chat.example.org"}, "Unknown endpoint type"),
            (TypeError, {"where": "tcp:h:1", "handler": Line()}, "write ChatFactory(Line)"),
            (TypeError, {"where": "tcp:h:1", "tls": server_options()}, "must be ClientOptions"),
            (ValueError, {"where": "tcp:h:1", "timeout": -1}, "timeout must be a number"),
        ]:
            raised = await self.fails(error, connect(reactor=reactor, **arguments))
            self.assertIn(text, str(raised))


class EchoOverTLS:
    """A server of the standard library, which serves one client after the other."""

    def __init__(self, context):
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(support.PATIENCE)
        self.port = self.listener.getsockname()[1]
        self.stopped = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while True:
            plain, _ = self.listener.accept()
            with plain, contextlib.suppress(OSError):
                if self.stopped:
                    return
                plain.settimeout(support.PATIENCE)
                with self.context.wrap_socket(plain, server_side=True) as client:
                    while data := client.recv(1024):
                        client.sendall(data)

    def stop(self):
        self.stopped = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.thread.join()
        self.listener.close()


class ReconnectingCase(TestCase):
    timeout = 30

    def begin(self, where, handler=Line, **arguments):
        arguments.setdefault("policy", lambda count: self.delays.append(count) or 0.01)
        self.delays = []
        self.made = []

        def build():
            self.made.append(handler())
            return self.made[-1]

        service = reconnecting(where, build, reactor=reactor, **arguments)
        service.startService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        return service

    async def listen(self, handler, number=0):
        port = await TCP4ServerEndpoint(reactor, number, interface="127.0.0.1").listen(
            ChatFactory(handler)
        )
        self.number = port.getHost().port
        return port

    def told(self, events):
        return [
            event["why"]
            for event in events
            if event.get("why") and event["log_level"] is LogLevel.warn
        ]

    async def test_it_survives_a_restart_and_says_why_once(self):
        """The log has one line for each reason, not one for each attempt."""
        port = await self.listen(echo)
        with capturedLogs() as events:
            self.begin(f"tcp:127.0.0.1:{self.number}")
            await until(lambda: self.made and self.made[0].lines)
            await port.stopListening()
            for each in list(port.factory.connections):
                each.abort()
            await until(lambda: len(self.delays) > 4)
            port = await self.listen(echo, self.number)
            self.addCleanup(port.stopListening)
            await until(lambda: self.made[-1].lines)
        self.assertEqual(self.delays[:5], [1, 2, 3, 4, 5])
        why = self.told(events)
        self.assertEqual(len(why), 2)
        self.assertIn("ConnectionReset", why[0])
        self.assertIn("refused", why[1].lower())

    async def test_a_balancer_that_accepts_and_closes_is_a_failure(self):
        """It is not asked again and again without a pause."""

        class Closes(Protocol):
            @override
            def connectionMade(self):
                self.transport.loseConnection()

        port = await self.listen(Closes)
        self.addCleanup(port.stopListening)
        with capturedLogs() as events:
            self.begin(f"tcp:127.0.0.1:{self.number}")
            await until(lambda: len(self.delays) > 3)
        self.assertEqual(self.delays[:4], [1, 2, 3, 4])
        self.assertEqual(len(self.told(events)), 1, self.told(events))

    async def test_a_connection_that_lived_long_enough_begins_anew(self):
        port = await self.listen(echo)
        self.addCleanup(port.stopListening)
        with capturedLogs() as events:
            self.begin(f"tcp:127.0.0.1:{self.number}", settled=0)
            for count in range(1, 4):
                await until(lambda count=count: self.made[count - 1 :] and self.made[-1].lines)
                self.made[-1].abort()
        await until(lambda: len(self.delays) > 2)
        self.assertEqual(self.delays[:3], [1, 1, 1])
        self.assertGreaterEqual(len(self.told(events)), 2)

    async def test_refused_handshakes_and_a_lapsed_certificate_are_told(self):
        """When the server gets a good certificate, the client is connected."""
        lapsed = support.authority().issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files = support.Path(self.mktemp())
        files.mkdir()
        context.load_cert_chain(*support.write(files, support.leaf("other.example.org")))
        server = await in_thread(EchoOverTLS, context)
        self.addCleanup(in_thread, server.stop)
        with capturedLogs() as events:
            self.begin(f"tcp:127.0.0.1:{server.port}", tls=ClientOptions(HOST, trust()))
            await until(lambda: len(self.delays) > 1)
            context.load_cert_chain(*support.write(files, lapsed))
            await until(lambda: len(self.told(events)) > 1)
            context.load_cert_chain(*support.write(files, support.leaf()))
            await until(lambda: self.made and self.made[-1].lines)
        first, second = self.told(events)
        self.assertIn("WrongName", first)
        self.assertIn("CertificateExpired", second)
        self.assertEqual(self.delays, list(range(1, len(self.delays) + 1)))

    async def test_a_stopped_service_says_nothing(self):
        port = await self.listen(echo)
        self.addCleanup(port.stopListening)
        with capturedLogs() as events:
            service = self.begin(f"tcp:127.0.0.1:{self.number}")
            await until(lambda: self.made and self.made[0].lines)
            await service.stopService()
        self.assertEqual(self.told(events), [])
