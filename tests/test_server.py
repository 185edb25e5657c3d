"""
The factory and the service: counting connections, starting and stopping, on real sockets.

Also covers `connections`.
"""

import socket
from random import Random

import pytest
import trustme
from twisted.application.service import Application, IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    clientFromString,
    connectProtocol,
    quoteStringArgument,
    wrapClientTLS,
)
from twisted.internet.interfaces import IProtocolFactory, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import TimeoutFactory
from twisted.trial.unittest import TestCase
from typing_extensions import override
from zope.interface import implementer
from zope.interface.verify import verifyObject

from helpers.support import until
from txasynchat import AsyncChat, ChatFactory, LengthPrefix, ListenError, Server
from txasynchat import server as server_module
from txasynchat.compat.asynchat import async_chat
from txasynchat.compat.asyncore import dispatcher
from txasynchat.compat.served import LegacyFactory

# Twisted passes pyOpenSSL's own certificates to pyOpenSSL, which deprecates them.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

# Older versions of Twisted leave a socket that could not be bound to the garbage collector.
unbound_sockets_close_late = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

LOOPBACK = "tcp:0:interface=127.0.0.1"


class Echo(AsyncChat):
    """Echoes lines; the answer to "hold" is delayed until the test releases it."""

    terminator = b"\n"
    max_message_length = None

    def __init__(self, prefix=b""):
        self.prefix = prefix
        self.calls = []

    def message_received(self, message):
        self.calls.append(message)
        if message == b"hold":
            self.pause()
        elif message in {b"close", b"abort"}:
            getattr(self, message.decode())()
        else:
            self.push(self.prefix + message + b"\n")

    def release(self):
        self.push(b"released\n")
        self.resume()

    def handle_close(self):
        self.calls.append("closed")


class Client(Protocol):
    """Records its input; has Deferreds for more and for the end."""

    def __init__(self):
        self.received = b""
        self.lost = Deferred()
        self._wanted = None

    @override
    def dataReceived(self, data):
        self.received += data
        if self._wanted is not None and self._wanted[0] in self.received:
            waiting, self._wanted = self._wanted[1], None
            waiting.callback(None)

    @override
    def connectionLost(self, reason):
        if self._wanted is not None:
            self._wanted[1].errback(reason)
        self.lost.callback(self.received)

    def until(self, wanted):
        if wanted in self.received:
            return succeed(None)
        self._wanted = (wanted, Deferred())
        return self._wanted[1]


async def connect(port):
    address = port.getHost()
    return await connectProtocol(
        clientFromString(reactor, f"tcp:127.0.0.1:{address.port}"), Client()
    )


async def ask(client, line, answer=None):
    client.transport.write(line)
    await client.until(line if answer is None else answer)


class ServerTestCase(TestCase):
    transport = "twisted"

    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path):
        self.folder = tmp_path

    def pem(self, name="127.0.0.1"):
        """A key and its certificate, in a file; and the authority."""
        authority = trustme.CA()
        path = self.folder / "server.pem"
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(path)
        return quoteStringArgument(str(path)), authority

    def serve(self, factory, *endpoints, **options):
        options = {"transport": self.transport, **options}
        server = Server(reactor, factory, endpoints or [LOOPBACK], **options)
        server.startService()
        self.addCleanup(self.ended, server)
        return server

    def ended(self, server):
        server.stopService()
        return server.stopService()  # the second time aborts what is left


class FactoryTests(ServerTestCase):
    async def test_handlers_get_the_arguments_and_the_factory(self):
        factory = ChatFactory(Echo, prefix=b"> ")
        verifyObject(IProtocolFactory, factory)
        server = self.serve(factory)
        client = await connect(server.ports[0])
        await ask(client, b"one\n", b"> one\n")
        [handler] = factory.connections
        assert handler.factory is factory
        assert handler.calls == [b"one"]

    async def test_connection_is_counted_until_it_is_lost_in_any_way(self):
        factory = ChatFactory(Echo)
        server = self.serve(factory)
        ends = {
            "closed": lambda client: client.transport.loseConnection(),
            "reset": lambda client: client.transport.abortConnection(),
            "by the handler": lambda client: next(iter(factory.connections)).close(),
            "aborted by the handler": lambda client: next(iter(factory.connections)).abort(),
        }
        for name, end in ends.items():
            client = await connect(server.ports[0])
            await ask(client, b"hello\n")
            assert len(factory.connections) == 1, name
            end(client)
            await until(lambda: not factory.connections)
            await client.lost

    async def test_count_is_zero_after_many_random_ends(self):
        server = self.serve(ChatFactory(Echo))
        random = Random(26)
        ends = [
            lambda client: client.transport.loseConnection(),
            lambda client: client.transport.abortConnection(),
            lambda client: client.transport.loseWriteConnection(),
            lambda client: client.transport.write(b"close\n"),
            lambda client: client.transport.write(b"abort\n"),
            lambda client: (client.transport.write(b"half"), client.transport.abortConnection()),
        ]
        for _ in range(20):
            clients = [await connect(server.ports[0]) for _ in range(25)]
            for client in clients:
                random.choice(ends)(client)
            for client in clients:
                await client.lost
        await until(lambda: not server.connections)

    async def test_handler_that_does_not_call_super_is_counted(self):
        class Forgetful(Echo):
            @override
            def connectionLost(self, reason):
                pass

        server = self.serve(ChatFactory(Forgetful))
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        client.transport.abortConnection()
        await until(lambda: not server.connections)

    async def test_a_handler_is_not_used_for_a_second_connection(self):
        """The mistake is logged; the second client is disconnected, the first is still served."""
        shared = Echo()
        server = self.serve(ChatFactory(lambda: shared))
        first = await connect(server.ports[0])
        await ask(first, b"hello\n")
        second = await connect(server.ports[0])
        assert await second.lost == b""
        [logged] = self.flushLoggedErrors(RuntimeError)
        assert "is used for a second connection; a factory makes a new protocol for each" in str(
            logged.value
        )
        await ask(first, b"still here\n")
        assert list(server.connections) == [shared]
        first.transport.loseConnection()
        await first.lost
        await until(lambda: not server.connections)
        # Not even when the first connection is over.
        third = await connect(server.ports[0])
        assert await third.lost == b""
        assert len(self.flushLoggedErrors(RuntimeError)) == 1
        assert not server.connections

    async def test_client_that_reuses_a_handler_gets_an_error(self):
        """The endpoint's Deferred fails and names the mistake, instead of never firing."""
        server = self.serve(ChatFactory(Echo))
        port = server.ports[0].getHost().port
        endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{port}")
        chat = await connectProtocol(endpoint, Echo())
        chat.close()
        await until(lambda: not server.connections)
        with self.assertRaises(RuntimeError) as caught:
            await connectProtocol(endpoint, chat)
        assert "is used for a second connection" in str(caught.exception)
        await deferLater(reactor, 0)
        assert len(self.flushLoggedErrors(RuntimeError)) == 1
        await until(lambda: not server.connections)

    async def test_handler_that_cannot_be_built_is_not_counted(self):
        def refuse():
            raise ValueError("no handler today")

        server = self.serve(ChatFactory(refuse))
        client = await connect(server.ports[0])
        assert await client.lost == b""
        assert len(server.connections) == 0
        assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_handler_that_fails_while_connecting_is_no_longer_counted(self):
        class Failing(Echo):
            @override
            def connectionMade(self):
                raise ValueError("not like this")

        server = self.serve(ChatFactory(Failing))
        client = await connect(server.ports[0])
        assert await client.lost == b""
        await until(lambda: not server.connections)
        assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_connection_is_no_longer_counted_after_a_failed_handshake(self):
        pem, _ = self.pem()
        server = self.serve(ChatFactory(Echo), f"ssl:0:interface=127.0.0.1:privateKey={pem}")
        client = await connect(server.ports[0])
        await until(lambda: server.connections)
        client.transport.write(b"no handshake\n")
        await client.lost
        await until(lambda: not server.connections)

    async def test_handlers_may_define_equality(self):
        class Alike(Echo):
            __hash__ = None

            def __eq__(self, other):
                return True

        server = self.serve(ChatFactory(Alike))
        clients = [await connect(server.ports[0]) for _ in range(3)]
        for client in clients:
            await ask(client, b"hello\n")
        assert len(server.connections) == 3
        clients[0].transport.loseConnection()
        await until(lambda: len(server.connections) == 2)


class OtherFactoryTests(ServerTestCase):
    async def test_connections_of_any_factory_are_counted_and_closed(self):
        class Plain(Protocol):
            @override
            def dataReceived(self, data):
                self.transport.write(data)

        server = self.serve(Factory.forProtocol(Plain))
        client = await connect(server.ports[0])
        await ask(client, b"hello")
        assert [type(protocol) for protocol in server.connections] == [Plain]
        await server.stopService()
        assert await client.lost == b"hello"

    async def test_connection_that_its_factory_refuses_is_not_counted(self):
        class Refusing(Factory):
            @override
            def buildProtocol(self, addr):
                return None

        server = self.serve(Refusing())
        client = await connect(server.ports[0])
        await client.lost
        assert len(server.connections) == 0

    async def test_factory_is_told_when_listening_begins_and_ends(self):
        class Told(Factory):
            calls = ()

            @override
            def startFactory(self):
                self.calls += ("start",)

            @override
            def stopFactory(self):
                self.calls += ("stop",)

        factory = Told()
        server = self.serve(factory)
        await server.stopService()
        assert factory.calls == ("start", "stop")

    async def test_a_handler_inside_a_policy_is_asked_to_finish(self):
        server = self.serve(TimeoutFactory(ChatFactory(Echo), 60))
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        client.transport.write(b"half")
        [wrapper] = server.connections
        await until(lambda: wrapper.wrappedProtocol._inbox.in_message)
        stopped = server.stopService()
        client.transport.write(b" and half\n")
        assert await client.lost == b"hello\nhalf and half\n"
        await stopped

    async def test_a_legacy_handler_is_served_counted_and_stopped(self):
        class Legacy(async_chat):
            def __init__(self, sock):
                async_chat.__init__(self, sock)
                self.set_terminator(b"\n")

            collect_incoming_data = async_chat._collect_incoming_data

            def found_terminator(self):
                self.push(self._get_data() + b"\n")

        server = self.serve(LegacyFactory(Legacy))
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        assert len(server.connections) == 1
        await server.stopService()
        assert await client.lost == b"hello\n"

    async def test_a_legacy_handler_sends_what_it_has_queued_before_it_ends(self):
        class Source(async_chat):
            def __init__(self, sock):
                async_chat.__init__(self, sock)
                self.set_terminator(b"\n")

            collect_incoming_data = async_chat._collect_incoming_data

            def found_terminator(self):
                self.push(b"x" * 5_000_000)

        server = self.serve(LegacyFactory(Source))
        client = await connect(server.ports[0])
        await ask(client, b"go\n", b"x")
        client.transport.pauseProducing()
        stopped = server.stopService()
        await deferLater(reactor, 0)
        assert not stopped.called
        client.transport.resumeProducing()
        assert len(await client.lost) == 5_000_000
        await stopped

    async def test_legacy_dispatcher_learns_of_the_end_of_its_connection(self):
        calls = []

        class Old(dispatcher):
            def handle_read(self):
                if data := self.recv(100):
                    self.send(data)

            def handle_close(self):
                calls.append("handle_close")
                self.close()

            def writable(self):
                return False

        factory = LegacyFactory(Old)
        server = self.serve(factory)
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        await server.stopService()
        assert await client.lost == b"hello\n"
        assert calls == ["handle_close"]


class StartTests(ServerTestCase):
    def test_a_handler_class_in_place_of_a_factory_is_refused_at_once(self):
        with self.assertRaisesRegex(
            TypeError, r"Echo'> is not a protocol factory; write ChatFactory"
        ):
            Server(reactor, Echo, [LOOPBACK])

    def test_a_single_string_in_place_of_a_list_is_refused_at_once(self):
        with self.assertRaisesRegex(TypeError, f"the single string '{LOOPBACK}'"):
            Server(reactor, ChatFactory(Echo), LOOPBACK)

    def test_server_is_a_service(self):
        verifyObject(IService, Server(reactor, ChatFactory(Echo), [LOOPBACK]))

    async def test_server_starts_and_stops_with_its_application(self):
        application = Application("echo")
        server = Server(reactor, ChatFactory(Echo), [LOOPBACK])
        server.setServiceParent(application)
        service = IService(application)
        service.privilegedStartService()
        service.startService()
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        await service.stopService()
        await client.lost
        assert server.ports == []

    async def test_several_endpoints_share_a_factory(self):
        path = str(self.folder / "socket")
        server = self.serve(ChatFactory(Echo), LOOPBACK, LOOPBACK, f"unix:{path}")
        clients = [await connect(port) for port in server.ports[:2]]
        clients.append(await connectProtocol(clientFromString(reactor, f"unix:{path}"), Client()))
        for number, client in enumerate(clients):
            await ask(client, b"to endpoint %d\n" % number)
        assert len(server.connections) == 3
        await server.stopService()
        for client in clients:
            await client.lost

    @unbound_sockets_close_late
    async def test_port_in_use_is_reported_and_the_others_are_closed(self):
        path = str(self.folder / "socket")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            description = f"tcp:{number}:interface=127.0.0.1"
            server = Server(reactor, ChatFactory(Echo), [f"unix:{path}", description])
            with self.assertRaises(ListenError) as caught:
                server.startService()
        assert str(caught.exception) == (
            f"cannot listen on '{description}': Address already in use"
        )
        assert not server.running
        with socket.socket(socket.AF_UNIX) as client:
            # Closing takes one iteration of the reactor.
            await deferLater(reactor, 0)
            with self.assertRaises(FileNotFoundError):
                client.connect(path)
        await server.stopService()

    @unbound_sockets_close_late
    async def test_server_can_start_once_the_port_is_free(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            server = Server(reactor, ChatFactory(Echo), [f"tcp:{number}:interface=127.0.0.1"])
            self.assertRaises(ListenError, server.startService)
        for _ in range(3):
            server.startService()
            client = await connect(server.ports[0])
            await ask(client, b"hello\n")
            client.transport.loseConnection()
            await server.stopService()

    def test_value_that_is_not_an_endpoint_is_refused_at_once(self):
        for description, reason in {
            "carrier-pigeon:1": "Unknown endpoint type: 'carrier-pigeon'",
            "tcp": "missing 1 required positional argument: 'port'",
            "tcp:http-or-so": "",
            "tcp:1:colour=red": "got an unexpected keyword argument 'colour'",
            "ssl:1:privateKey=nowhere.pem": "No such file or directory: ",
        }.items():
            with self.assertRaises(ListenError) as caught:
                Server(reactor, ChatFactory(Echo), [description])
            assert str(caught.exception).startswith(
                f"cannot listen on '{description}': {reason}"
            ), str(caught.exception)
            assert caught.exception.endpoint == description

    async def test_an_endpoint_that_fails_later_is_reported_and_the_others_are_closed(self):
        failures = []

        class Watching(Server):
            def listening_failed(self, error):
                failures.append(str(error))

        slow = Slow()
        server = Watching(reactor, ChatFactory(Echo), [slow])
        server.startService()
        assert failures == []
        slow.listening.errback(OSError(5, "the tunnel is flooded"))
        assert failures == ["cannot listen on 'the slow one': the tunnel is flooded"]
        await server.stopService()

    async def test_stop_cancels_an_attempt_to_listen(self):
        slow = Slow()
        server = self.serve(ChatFactory(Echo), slow)
        await server.stopService()
        assert slow.cancelled

    async def test_hook_that_raises_is_logged_and_serving_continues(self):
        class Raising(Server):
            def listening(self):
                raise ValueError("no")

        server = Raising(reactor, ChatFactory(Echo), [LOOPBACK])
        self.addCleanup(server.stopService)
        server.startService()
        assert len(self.flushLoggedErrors(ValueError)) == 1
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")

    async def test_server_cannot_start_again_before_it_has_stopped(self):
        server = self.serve(ChatFactory(Echo))
        server.startService()  # harmless, as is a second one
        stopped = server.stopService()
        self.assertRaisesRegex(RuntimeError, "still stopping", server.startService)
        await stopped
        server.startService()
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")

    async def test_stop_before_start_is_harmless(self):
        server = Server(reactor, ChatFactory(Echo), [LOOPBACK])
        await server.stopService()
        server.startService()
        await server.stopService()
        await server.stopService()


@implementer(IStreamServerEndpoint)
class Slow:
    """An endpoint that takes long to listen, as a tunnel's would."""

    cancelled = False

    def listen(self, factory):
        self.listening = Deferred(lambda _: setattr(self, "cancelled", True))
        return self.listening

    def __str__(self):
        return "the slow one"


class Stuck(StringTransport):
    """Never finishes, or raises when it is told to."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    @override
    def loseConnection(self):
        if self.error is not None:
            raise self.error

    @override
    def abortConnection(self):
        self.loseConnection()


@implementer(IStreamServerEndpoint)
class Stubborn:
    """An endpoint whose port does not close, or whose attempt cannot be cancelled."""

    def __init__(self, *, listens):
        self.listens = listens

    def listen(self, factory):
        return succeed(self) if self.listens else Deferred(lambda _: self.stopListening())

    def stopListening(self):  # noqa: N802 - IListeningPort
        raise OSError(5, "stays open")


class StopTests(ServerTestCase):
    async def test_stop_closes_an_idle_connection_at_once(self):
        server = self.serve(ChatFactory(Echo))
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        [handler] = server.connections
        await server.stopService()
        assert await client.lost == b"hello\n"
        assert handler.calls == [b"hello", "closed"]

    async def test_no_connection_is_accepted_while_others_finish(self):
        server = self.serve(ChatFactory(Echo))
        number = server.ports[0].getHost().port
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        client.transport.write(b"hold\n")
        [handler] = server.connections
        await until(lambda: handler.paused)
        stopped = server.stopService()
        await deferLater(reactor, 0)
        with self.assertRaises(ConnectionRefusedError), socket.socket() as late:
            late.connect(("127.0.0.1", number))
        handler.release()
        await stopped

    async def test_stop_waits_until_a_message_that_has_begun_is_answered(self):
        server = self.serve(ChatFactory(Echo))
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        client.transport.write(b"half")
        [handler] = server.connections
        await until(lambda: handler._inbox.in_message)
        stopped = server.stopService()
        assert not stopped.called
        client.transport.write(b" and half\n")
        assert await client.lost == b"hello\nhalf and half\n"
        await stopped

    async def test_stop_waits_for_a_busy_handler(self):
        server = self.serve(ChatFactory(Echo))
        client = await connect(server.ports[0])
        client.transport.write(b"hold\nafterwards\n")
        await until(lambda: server.connections and next(iter(server.connections)).paused)
        [handler] = server.connections
        stopped = server.stopService()
        assert not stopped.called
        handler.release()
        assert await client.lost == b"released\nafterwards\n"
        await stopped

    async def test_stop_waits_until_queued_output_reaches_a_slow_reader(self):
        server = self.serve(ChatFactory(Echo))
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        [handler] = server.connections
        client.transport.pauseProducing()
        handler.push(b"x" * 5_000_000)
        stopped = server.stopService()
        await deferLater(reactor, 0)
        assert not stopped.called
        client.transport.resumeProducing()
        assert len(await client.lost) == len(b"hello\n") + 5_000_000
        await stopped

    async def test_stop_does_not_wait_for_a_handshake(self):
        pem, _ = self.pem()
        server = self.serve(ChatFactory(Echo), f"ssl:0:interface=127.0.0.1:privateKey={pem}")
        client = await connect(server.ports[0])
        await until(lambda: server.connections)
        await server.stopService()
        assert await client.lost == b""

    async def test_connection_that_does_not_finish_in_time_is_aborted(self):
        server = self.serve(ChatFactory(Echo), stop_timeout=0.05)
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        client.transport.write(b"never ended")
        [handler] = server.connections
        await until(lambda: handler._inbox.in_message)
        await server.stopService()
        await client.lost
        assert len(server.connections) == 0

    async def test_second_stop_ends_at_once(self):
        server = self.serve(ChatFactory(Echo), stop_timeout=None)
        client = await connect(server.ports[0])
        client.transport.write(b"hold\n")
        await until(lambda: server.connections and next(iter(server.connections)).paused)
        first = server.stopService()
        assert not first.called
        await server.stopService()
        await first
        await client.lost

    async def test_handler_may_override_handle_shutdown(self):
        class Polite(Echo):
            def handle_shutdown(self):
                self.push(b"bye\n")
                self.close_when_done()

        server = self.serve(ChatFactory(Polite))
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        await server.stopService()
        assert await client.lost == b"hello\nbye\n"

    async def test_handler_whose_handle_shutdown_raises_is_aborted_and_others_continue(self):
        class Failing(Echo):
            def handle_shutdown(self):
                if self.calls == [b"fail"]:
                    raise ValueError("cannot")
                super().handle_shutdown()

        server = self.serve(ChatFactory(Failing))
        failing, good = [await connect(server.ports[0]) for _ in range(2)]
        await ask(failing, b"fail\n")
        await ask(good, b"good\n")
        await server.stopService()
        await failing.lost
        assert await good.lost == b"good\n"
        assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_handler_that_raises_system_exit_does_not_keep_the_others(self):
        class Exiting(Echo):
            def handle_shutdown(self):
                if self.calls == [b"exit"]:
                    raise SystemExit(1)
                super().handle_shutdown()

        server = self.serve(ChatFactory(Exiting))
        exiting, good = [await connect(server.ports[0]) for _ in range(2)]
        await ask(exiting, b"exit\n")
        await ask(good, b"good\n")
        await server.stopService()
        await exiting.lost
        assert await good.lost == b"good\n"
        assert len(self.flushLoggedErrors(SystemExit)) == 1

    async def test_transport_that_cannot_be_aborted_does_not_keep_the_others(self):
        server = self.serve(Factory.forProtocol(Protocol))
        server.connections.watch(Protocol()).makeConnection(Stuck(error=OSError(9, "stuck")))
        client = await connect(server.ports[0])
        await until(lambda: len(server.connections) == 2)
        await server.stopService()
        await client.lost
        assert len(server.connections) == 0
        # Neither in order nor by an abort.
        assert len(self.flushLoggedErrors(OSError)) == 2

    async def test_second_stop_ends_whatever_can_be_ended(self):
        server = self.serve(ChatFactory(Echo), stop_timeout=None)
        stuck = Protocol()
        server.connections.watch(stuck).makeConnection(Stuck())
        client = await connect(server.ports[0])
        client.transport.write(b"hold\n")
        await until(lambda: any(getattr(each, "paused", False) for each in server.connections))
        first = server.stopService()
        assert not first.called
        stuck.transport.error = OSError(9, "stuck")
        await server.stopService()
        await first
        await client.lost
        assert len(self.flushLoggedErrors(OSError)) == 1

    async def test_a_transport_that_does_not_report_its_end_is_not_waited_for(self):
        self.patch(server_module, "ABORT_TIMEOUT", 0.1)
        server = self.serve(ChatFactory(Echo), stop_timeout=0.1)
        server.connections.watch(Protocol()).makeConnection(Stuck())
        await server.stopService()
        # And the service can be started again.
        server.startService()
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")

    async def test_port_that_cannot_be_closed_does_not_keep_the_connections(self):
        server = self.serve(ChatFactory(Echo), LOOPBACK, Stubborn(listens=True))
        client = await connect(server.ports[0])
        await ask(client, b"hello\n")
        await server.stopService()
        assert await client.lost == b"hello\n"
        assert len(self.flushLoggedErrors(OSError)) == 1

    async def test_attempt_to_listen_that_cannot_be_cancelled_does_not_delay_the_stop(self):
        server = self.serve(ChatFactory(Echo), Stubborn(listens=False))
        await server.stopService()
        assert len(self.flushLoggedErrors(OSError)) == 1

    async def test_stop_ends_tls_connections_with_close_notify(self):
        pem, authority = self.pem("localhost")
        server = self.serve(ChatFactory(Echo), f"ssl:0:interface=127.0.0.1:privateKey={pem}")
        root = Certificate.loadPEM(authority.cert_pem.bytes())
        options = optionsForClientTLS("localhost", trustRootFromCertificates([root]))
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", server.ports[0].getHost().port)
        client = await connectProtocol(wrapClientTLS(options, endpoint), Client())
        await ask(client, b"hello\n")
        await server.stopService()
        assert await client.lost == b"hello\n"

    async def test_thousand_start_stop_cycles_leave_nothing_behind(self):
        await deferLater(reactor, 0)  # the test case has its timeout set up by then
        before = len(reactor.getDelayedCalls())
        readers = len(reactor.getReaders())
        server = Server(reactor, ChatFactory(Echo), [LOOPBACK])
        for _ in range(1000):
            server.startService()
            await server.stopService()
        assert len(reactor.getDelayedCalls()) == before
        assert len(reactor.getReaders()) == readers


# -- what "finish" means for one handler, in memory


@pytest.mark.parametrize(
    ("terminator", "begun", "rest"),
    [
        (b"\r\n", b"half", b" and half\r\n"),
        (b"\r\n", b"one\r\ntwo\r", b"\n"),
        ((b"\n", b"\r\n"), b"half", b"\r\n"),
        (4, b"ab", b"cd"),
        (LengthPrefix("!H"), b"\x00", b"\x01x"),
        (LengthPrefix("!H"), b"\x00\x02x", b"y"),
    ],
)
def test_finish_waits_for_a_message_that_has_begun(terminator, begun, rest):
    chat, transport = open_chat(terminator)
    chat.dataReceived(begun)
    chat.handle_shutdown()
    assert not transport.disconnecting
    chat.dataReceived(rest)
    assert transport.disconnecting


@pytest.mark.parametrize(
    ("terminator", "received"),
    [
        (b"\n", b""),
        (b"\n", b"whole\n"),
        (4, b"abcd"),
        (None, b"no end to wait for"),
        (0, b"nor here"),
    ],
)
def test_finish_closes_an_idle_handler_at_once(terminator, received):
    chat, transport = open_chat(terminator)
    chat.dataReceived(received)
    chat.handle_shutdown()
    assert transport.disconnecting


def test_finish_waits_for_a_paused_handler_and_its_messages():
    chat, transport = open_chat(b"\n")
    chat.pause()
    chat.dataReceived(b"one\ntwo\n")
    chat.handle_shutdown()
    assert not transport.disconnecting
    chat.resume()
    assert transport.value() == b"<one><two>"
    assert transport.disconnecting


def test_finish_inside_a_handler_closes_when_the_handlers_return():
    class Last(Answering):
        def message_received(self, message):
            self.handle_shutdown()
            super().message_received(message)

    chat, transport = open_chat(b"\n", Last)
    chat.dataReceived(b"one\ntwo\n")
    assert transport.value() == b"<one><two>"
    assert transport.disconnecting


class Answering(AsyncChat):
    def message_received(self, message):
        self.push(b"<" + message + b">")


def open_chat(terminator, handler=Answering):
    chat = handler()
    chat.set_terminator(terminator)
    transport = StringTransport()
    chat.makeConnection(transport)
    return chat, transport


class FactoryTestsOnTheHub(FactoryTests):
    transport = "hub"


class OtherFactoryTestsOnTheHub(OtherFactoryTests):
    transport = "hub"


class StopTestsOnTheHub(StopTests):
    transport = "hub"
