"""
`SecureClientEndpoint.connect`: its Deferred fires exactly once, and before any end is reported.
"""

import contextlib
import os
import socket
import sys
import threading

from twisted.application.internet import ClientService
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.endpoints import (
    ProcessEndpoint,
    StandardErrorBehavior,
    TCP4ClientEndpoint,
    clientFromString,
    connectProtocol,
)
from twisted.internet.error import ConnectingCancelledError, ConnectionAborted, NoProtocol
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLClientConnectionCreator
from twisted.internet.process import reapProcessHandlers
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import TestCase
from typing_extensions import override
from zope.interface import implementer

from helpers import support
from helpers.support import HOST, Notes, Server, in_thread, server_options, trust
from txasynchat import errors
from txasynchat.endpoints import SecureClientEndpoint
from txasynchat.tls import ClientOptions, Credentials

PATIENCE = 20.0


def options(**arguments):
    return ClientOptions(HOST, trust(), **arguments)


@implementer(IHandshakeListener)
class Plain(Protocol):
    """A Twisted protocol that notes its calls, and raises where it is told to."""

    def __init__(self, raises=""):
        self.raises = raises
        self.heard = []
        self.lost = Deferred()

    def hears(self, what):
        self.heard.append(what)
        if what == self.raises:
            raise ValueError(what)

    @override
    def makeConnection(self, transport):
        self.hears("makeConnection")
        super().makeConnection(transport)

    @override
    def connectionMade(self):
        self.hears("connectionMade")

    @override
    def handshakeCompleted(self):
        self.hears("handshakeCompleted")

    @override
    def connectionLost(self, reason):
        self.reason = reason
        try:
            self.hears("connectionLost")
        finally:
            self.lost.callback(self)


class Port:
    """A port that treats every client the same, until it is closed."""

    def __init__(self, case, fate):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.number = self.socket.getsockname()[1]
        self.fate = fate
        self.closing = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        case.addCleanup(self.close)

    def run(self):
        while True:
            accepted, _ = self.socket.accept()
            with accepted:
                if self.closing:
                    return
                accepted.settimeout(PATIENCE)
                with contextlib.suppress(OSError):
                    self.fate(accepted)

    def close(self):
        if not self.closing:
            self.closing = True
            socket.create_connection(("127.0.0.1", self.number)).close()
            self.thread.join()
            self.socket.close()


def closes(_):
    """As a server does during a restart, or a load balancer without a backend."""


def speaks_plain_text(accepted):
    accepted.sendall(b"220 ready\r\n")
    accepted.recv(65_536)


def says_nothing(accepted):
    while accepted.recv(65_536):
        pass


def endpoint(port, **arguments):
    inner = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    return SecureClientEndpoint(reactor, inner, options(**arguments))


class Reconnecting(TestCase):
    """Twisted's `ClientService`, which gives up for good if an end is reported out of order."""

    async def comes_back(self, fate, protocol=Notes, wrap=lambda factory: factory):
        port = Port(self, fate)
        tried = Deferred()

        def wait(attempt):
            if attempt == 3:
                tried.callback(None)
            return 0.01

        service = ClientService(
            endpoint(port.number, handshake_timeout=0.2),
            wrap(Factory.forProtocol(protocol)),
            retryPolicy=wait,
        )
        service.startService()
        await tried.addTimeout(PATIENCE, reactor)
        await in_thread(port.close)
        server = await Server(self, server_options(), number=port.number).listen()
        connected = await service.whenConnected().addTimeout(PATIENCE, reactor)
        await deferLater(reactor, 0)  # it cannot be stopped from inside
        await service.stopService().addTimeout(PATIENCE, reactor)
        await server.handlers[-1].closed
        return connected

    async def test_client_reconnects_after_a_port_that_closes_at_once(self):
        await self.comes_back(closes)

    async def test_client_reconnects_after_a_port_without_tls(self):
        await self.comes_back(speaks_plain_text)

    async def test_client_reconnects_after_a_silent_port(self):
        await self.comes_back(says_nothing)

    async def test_client_reconnects_with_any_protocol(self):
        # The first handshake of a process is over, and reported, before the service is stopped.
        await self.comes_back(closes)
        protocol = await self.comes_back(closes, Plain)
        assert protocol.heard == ["makeConnection", "connectionMade", "connectionLost"]

    async def test_client_reconnects_through_a_policy(self):
        await self.comes_back(closes, Plain, WrappingFactory)

    async def test_each_connected_protocol_learns_of_its_end(self):
        made = []

        class Counted(Plain):
            def __init__(self):
                super().__init__()
                made.append(self)

        await self.comes_back(closes, Counted)
        for protocol in made:
            await protocol.lost
            assert protocol.heard.count("connectionMade") == 1
            assert protocol.heard.count("connectionLost") == 1

    async def test_client_learns_why_a_server_is_not_trusted(self):
        strange = Credentials(support.pem(support.stranger().issue_cert(HOST)))
        server = await Server(self, server_options(credentials=strange)).listen()
        service = ClientService(endpoint(server.port), Factory.forProtocol(Notes))
        service.startService()
        connecting = service.whenConnected(failAfterFailures=1)
        await self.assertFailure(connecting, errors.UnknownAuthority)
        await deferLater(reactor, 0)
        await service.stopService()
        await server.handlers[0].closed

    async def test_service_stops_in_the_middle_of_a_handshake(self):
        port = Port(self, says_nothing)
        made = Deferred()

        class Telling(Notes):
            @override
            def connectionMade(self):
                reactor.callLater(0, made.callback, self)

        service = ClientService(endpoint(port.number), Factory.forProtocol(Telling))
        service.startService()
        protocol = await made
        await service.stopService().addTimeout(PATIENCE, reactor)
        await protocol.closed

    async def test_service_stops_while_its_protocol_is_built(self):
        server = await Server(self, server_options()).listen()
        stopping = []

        def build():
            stopping.append(service.stopService())
            built.callback(None)
            return Plain()

        built = Deferred()
        service = ClientService(endpoint(server.port), Factory.forProtocol(build))
        service.startService()
        await built
        await stopping[0].addTimeout(PATIENCE, reactor)
        await server.handlers[0].closed


class Order(TestCase):
    async def test_deferred_fires_before_the_protocol_learns_of_the_end(self):
        for fate in (closes, speaks_plain_text, says_nothing):
            protocol = Plain()
            connecting = connectProtocol(
                endpoint(Port(self, fate).number, handshake_timeout=0.2), protocol
            )
            connecting.addErrback(lambda failure, plain: plain.heard.append(failure.type), protocol)
            await protocol.lost
            made, *ends = protocol.heard[1:]
            assert made == "connectionMade"
            assert issubclass(ends[0], errors.HandshakeFailed)
            assert ends[1:] == ["connectionLost"]

    async def test_a_protocol_that_raises_when_it_is_lost_hides_no_failure(self):
        protocol = Plain(raises="connectionLost")
        connecting = connectProtocol(endpoint(Port(self, closes).number), protocol)
        await self.assertFailure(connecting, errors.HandshakeFailed)
        await protocol.lost
        await deferLater(reactor, 0)
        assert len(self.flushLoggedErrors(ValueError)) == 1


class Raising(TestCase):
    """Any exception of the application is logged, and the Deferred fires."""

    async def given_up(self, protocol, cause=ValueError):
        server = await Server(self, server_options()).listen()
        failing = connectProtocol(endpoint(server.port), protocol)
        error = await self.assertFailure(failing, errors.HandshakeFailed)
        assert type(error.__cause__) is cause
        assert "ended by this side" in str(error)
        await server.handlers[0].closed

    async def test_exception_in_any_method_of_the_protocol_is_logged(self):
        for method in ("makeConnection", "connectionMade", "handshakeCompleted"):
            protocol = Plain(raises=method)
            await self.given_up(protocol)
            await protocol.lost
            assert protocol.heard[-2:] == [method, "connectionLost"]
            assert protocol.reason.type is ValueError
            assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_exception_in_connection_made_is_logged(self):
        class Failing(Notes):
            @override
            def connectionMade(self):
                self.push(b"sorry\n")
                raise ValueError("no")

        server = await Server(self, server_options()).listen()
        handler = Failing()
        # The pushed bytes need the handshake; then the handler closes, as after any exception.
        assert await connectProtocol(endpoint(server.port), handler) is handler
        await handler.closed
        assert handler.notes == ["close"]
        await server.handlers[0].closed
        assert server.handlers[0].notes[2:] == [b"sorry", "close"]
        assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_handler_that_aborts_before_the_handshake_fails_the_deferred(self):
        class Leaving(Notes):
            @override
            def connectionMade(self):
                self.abort()

        handler = Leaving()
        await self.given_up(handler, cause=ConnectionAborted)
        await handler.closed
        assert handler.notes == []
        assert handler.close_reason is None

    async def test_exception_in_a_hook_after_the_handshake_is_logged(self):
        for hook in ("handle_secure", "handle_connect"):
            server = await Server(self, server_options()).listen()
            handler = Notes()
            setattr(handler, hook, None)  # which raises when it is called
            assert await connectProtocol(endpoint(server.port), handler) is handler
            await handler.closed
            await server.handlers[0].closed
            assert len(self.flushLoggedErrors(TypeError)) == 1

    async def test_exception_in_the_factory_fails_the_deferred(self):
        server = await Server(self, server_options()).listen()
        factory = Factory.forProtocol(Plain)
        factory.buildProtocol = None
        await self.assertFailure(endpoint(server.port).connect(factory), TypeError)
        await server.handlers[0].closed

    async def test_factory_that_refuses_fails_the_deferred(self):
        server = await Server(self, server_options()).listen()
        factory = Factory.forProtocol(Plain)
        factory.buildProtocol = lambda _: None
        await self.assertFailure(endpoint(server.port).connect(factory), NoProtocol)
        await server.handlers[0].closed

    async def test_handler_that_was_connected_before_fails_the_deferred(self):
        server = await Server(self, server_options()).listen()
        handler = Notes()
        await connectProtocol(endpoint(server.port), handler)
        handler.close()
        await handler.closed
        again = connectProtocol(endpoint(server.port), handler)
        error = await self.assertFailure(again, errors.HandshakeFailed)
        assert type(error.__cause__) is RuntimeError
        assert "second connection" in str(error)
        for each in server.handlers:
            await each.closed
        assert len(self.flushLoggedErrors(RuntimeError)) == 1

    async def test_exception_in_the_options_fails_the_deferred(self):
        @implementer(IOpenSSLClientConnectionCreator)
        class Broken:
            def clientConnectionForTLS(self, layer):  # noqa: N802 Twisted's name
                raise ValueError("no")

        server = await Server(self, server_options()).listen()
        inner = TCP4ClientEndpoint(reactor, "127.0.0.1", server.port)
        protocol = Plain()
        failing = connectProtocol(SecureClientEndpoint(reactor, inner, Broken()), protocol)
        error = await self.assertFailure(failing, errors.HandshakeFailed)
        assert type(error.__cause__) is ValueError
        await server.handlers[0].closed
        assert protocol.heard == [], "it has no connection, so it loses none"
        assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_exception_in_the_inner_endpoint_fails_the_deferred(self):
        class Broken:
            def connect(self, factory):
                raise ValueError("no")

        class Refusing:
            def connect(self, factory):
                return fail(ConnectionRefusedError())

        for inner, error in ((Broken(), ValueError), (Refusing(), ConnectionRefusedError)):
            connecting = connectProtocol(SecureClientEndpoint(reactor, inner, options()), Plain())
            await self.assertFailure(connecting, error)


class Cancelling(TestCase):
    async def test_cancelling_while_the_inner_endpoint_connects_ends_it(self):
        class Slow:
            def connect(self, factory):
                self.connecting = Deferred(self.cancel)
                return self.connecting

            def cancel(self, connecting):
                connecting.errback(ConnectingCancelledError("a place"))

        class Stubborn(Slow):
            def cancel(self, connecting):
                raise ValueError("no")

        for inner, error in ((Slow(), ConnectingCancelledError), (Stubborn(), CancelledError)):
            connecting = connectProtocol(SecureClientEndpoint(reactor, inner, options()), Plain())
            connecting.cancel()
            await self.assertFailure(connecting, error)
        assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_inner_endpoint_that_connects_after_a_cancel_gets_no_protocol(self):
        class Late:
            def connect(self, factory):
                self.factory = factory
                return Deferred()

        inner = Late()
        connecting = connectProtocol(SecureClientEndpoint(reactor, inner, options()), Plain())
        connecting.cancel()
        await self.assertFailure(connecting, CancelledError)
        assert inner.factory.buildProtocol(None) is None

    async def test_cancelling_in_the_handshake_fires_first_and_closes_the_connection(self):
        port = Port(self, says_nothing)
        protocol = Plain()
        made = Deferred()
        protocol.connectionMade = lambda: reactor.callLater(0, made.callback, None)
        connecting = connectProtocol(endpoint(port.number), protocol)
        connecting.addErrback(lambda failure: protocol.heard.append(failure.type))
        await made
        connecting.cancel()
        await protocol.lost
        assert protocol.heard == ["makeConnection", CancelledError, "connectionLost"]


class OtherTransports(TestCase):
    def process(self, code, **arguments):
        inner = ProcessEndpoint(
            reactor,
            sys.executable,
            [sys.executable, "-S", "-E", "-c", code],
            env=dict(os.environ),
            errFlag=StandardErrorBehavior.DROP,
        )
        return SecureClientEndpoint(reactor, inner, options(**arguments))

    async def reaped(self):
        while reapProcessHandlers:
            await deferLater(reactor, 0.01)

    async def test_process_without_tls_fails_the_deferred(self):
        protocol = Plain()
        echo = "import os\nwhile data := os.read(0, 65536): os.write(1, data)"
        connecting = connectProtocol(self.process(echo), protocol)
        await self.assertFailure(connecting, errors.HandshakeFailed)
        await protocol.lost
        await self.reaped()

    async def test_silent_process_fails_the_deferred(self):
        protocol = Plain()
        connecting = connectProtocol(
            self.process("import sys; sys.stdin.buffer.read()", handshake_timeout=0.2), protocol
        )
        await self.assertFailure(connecting, errors.HandshakeTimedOut)
        await protocol.lost
        await self.reaped()

    async def test_process_that_exits_fails_the_deferred(self):
        for code in ("", "import os; os.close(0)\nwhile True: os.write(1, bytes(5))"):
            protocol = Plain()
            connecting = connectProtocol(self.process(code), protocol)
            await self.assertFailure(connecting, errors.HandshakeFailed)
            await protocol.lost
            await self.reaped()

    def test_transport_that_never_reports_its_end_fails_the_deferred(self):
        class Inner:
            def connect(self, factory):
                self.layer = factory.buildProtocol(None)
                self.layer.makeConnection(StringTransport())
                return Deferred()

        clock = Clock()
        inner = Inner()
        connecting = connectProtocol(SecureClientEndpoint(clock, inner, options()), Plain())
        clock.advance(10)
        self.failureResultOf(connecting, errors.HandshakeTimedOut)
        connecting = connectProtocol(SecureClientEndpoint(clock, inner, options()), Plain())
        inner.layer.dataReceived(b"220 ready\r\n")
        clock.advance(0)
        self.failureResultOf(connecting, errors.HandshakeFailed)
        connecting = connectProtocol(SecureClientEndpoint(clock, inner, options()), Plain())
        inner.layer.wrappedProtocol.transport.loseConnection()
        self.failureResultOf(connecting, errors.HandshakeFailed)


class Strings(TestCase):
    async def test_client_endpoint_string_reconnects_too(self):
        authorities = self.mktemp()
        support.authority().cert_pem.write_to_path(authorities)
        port = Port(self, closes).number
        where = clientFromString(
            reactor, f"secure:tcp:127.0.0.1:{port}:ca={authorities}:hostname={HOST}"
        )
        protocol = Plain()
        await self.assertFailure(connectProtocol(where, protocol), errors.HandshakeFailed)
        await protocol.lost
