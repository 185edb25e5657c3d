"""
STARTTLS: what comes in the clear is never taken for what comes through TLS, wherever it is cut.

Also covers `tls.leftovers`.
"""

import contextlib
import socket
import ssl

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    connectProtocol,
)
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IPushProducer
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.test.iosim import connectedServerAndClient
from twisted.trial import unittest
from typing_extensions import override
from zope.interface import implementer

from helpers import support
from helpers.support import (
    HOST,
    Notes,
    Server,
    client_context,
    in_thread,
    read_line,
    server_options,
    trust,
)
from helpers.wire import after_a_slow_read, drain, raw
from txasynchat import AsyncChat, Leftovers, errors
from txasynchat.tls import ClientOptions


class Chat(Notes):
    """A protocol with a command STARTTLS, which answers ``go`` in the clear."""

    leftovers = Leftovers.REJECT
    options = None
    before = b""

    def message_received(self, message):
        self.notes.append(message)
        if message == b"STARTTLS":
            self.push(self.before + b"go\n")
            self.begin()
        else:
            self.push(b"%s %s\n" % (b"secret" if self.tls else b"clear", message))

    def begin(self):
        self.start_tls(self.options or server_options(), leftovers=self.leftovers)

    def heard(self):
        return [note for note in self.notes if isinstance(note, bytes)]


class Feeding(Chat):
    leftovers = Leftovers.FEED


class Asking(Notes):
    """The client's side."""

    leftovers = Leftovers.REJECT

    def __init__(self):
        super().__init__()
        self.secure = Deferred()

    def handle_connect(self):
        super().handle_connect()
        self.push(b"STARTTLS\n")

    def message_received(self, message):
        self.notes.append(message)
        if message == b"go":
            self.start_tls(ClientOptions(HOST, trust()), leftovers=self.leftovers)

    def handle_secure(self, info):
        super().handle_secure(info)
        self.secure.callback(info)


def upgrade(sock, version=None):
    """Ask for TLS, wait, and shake hands."""
    sock.sendall(b"STARTTLS\n")
    assert read_line(sock) == b"go\n"
    return client_context(version).wrap_socket(sock, server_hostname=HOST)


def hello(tls):
    """One line there and back, and an orderly end."""
    tls.sendall(b"hello\n")
    answer = read_line(tls)
    tls.unwrap().close()
    return answer


def upgrade_and_talk(port):
    with raw(port) as sock, upgrade(sock) as tls:
        return hello(tls)


class Servers(unittest.TestCase):
    async def serve(self, handler=Chat, **arguments):
        return await Server(self, None, handler=handler, plain=True, **arguments).listen()

    async def finished(self, server):
        await gatherResults([handler.closed for handler in server.handlers])
        return server.handlers[-1]

    async def test_invalid_leftovers_is_refused(self):
        """Otherwise a misspelt "reject" would feed them to TLS."""

        class Misspelt(Chat):
            leftovers = "refuse"

            def begin(self):
                try:
                    super().begin()
                except ValueError as error:
                    self.push(str(error).encode())
                    self.close_when_done()

        server = await self.serve(Misspelt)

        def run():
            with raw(server.port) as sock:
                sock.sendall(b"STARTTLS\n")
                return drain(sock)

        self.assertEqual(await in_thread(run), b"go\n'refuse' is not a valid Leftovers")
        await self.finished(server)

    async def test_messages_are_in_the_clear_before_and_encrypted_after(self):
        for version in support.VERSIONS:
            server = await self.serve()

            def run(version=version, server=server):
                with raw(server.port) as sock:
                    sock.sendall(b"hello\n")
                    before = read_line(sock)
                    with upgrade(sock, version) as tls:
                        after = hello(tls)
                return before, after

            self.assertEqual(await in_thread(run), (b"clear hello\n", b"secret hello\n"))
            handler = await self.finished(server)
            kinds = [n if isinstance(n, (str, bytes)) else n[0] for n in handler.notes]
            self.assertEqual(kinds, ["connect", b"hello", b"STARTTLS", "secure", b"hello", "close"])
            self.assertIsNone(handler.close_reason)

    async def test_bytes_that_follow_the_command_are_rejected_at_any_split(self):
        attack = b"STARTTLS\nEVIL\n"
        for cut in range(1, len(attack) + 1):
            server = await self.serve()

            def run(cut=cut, server=server):
                with raw(server.port) as sock:
                    sock.sendall(attack[:cut])
                    if cut > 8:
                        # Whatever follows in the same segment.
                        return drain(sock) if cut > 9 else None
                    sock.sendall(attack[cut:])
                    return drain(sock)

            said = await in_thread(run)
            handler = await self.finished(server)
            self.assertNotIn(b"EVIL", handler.heard())
            if said is not None:
                self.assertEqual(said, b"")
                self.assertIs(type(handler.close_reason), errors.PlaintextAfterStartTLS)
                self.assertGreater(handler.close_reason.count, 0)
            self.assertEqual(handler.notes[-1], "close")

    async def test_plaintext_after_the_answer_fails_the_handshake(self):
        for kind in (Chat, Feeding):
            server = await self.serve(kind)

            def run(server=server):
                with raw(server.port) as sock:
                    sock.sendall(b"STARTTLS\n")
                    assert read_line(sock) == b"go\n"
                    sock.sendall(b"EVIL\nEVIL\n")
                    return drain(sock)

            answer = await in_thread(run)
            self.assertIn(answer[:1], (b"", b"\x15"), "an alert at most")
            handler = await self.finished(server)
            self.assertEqual(handler.heard(), [b"STARTTLS"])
            self.assertIs(type(handler.close_reason), errors.HandshakeFailed)

    async def test_fed_plaintext_fails_the_handshake_at_any_split(self):
        attack = b"STARTTLS\nEVIL\n" + b"EVIL\n" * 4
        for cut in range(1, len(attack)):
            server = await self.serve(Feeding)

            def run(cut=cut, server=server):
                with raw(server.port) as sock:
                    sock.sendall(attack[:cut])
                    sock.sendall(attack[cut:])
                    return drain(sock)

            answer = await in_thread(run)
            self.assertIn(answer[:4], (b"", b"go\n", b"go\n\x15"))
            handler = await self.finished(server)
            self.assertEqual(handler.heard(), [b"STARTTLS"])
            self.assertIs(type(handler.close_reason), errors.HandshakeFailed)

    async def test_hello_that_follows_the_command_is_fed_at_any_split(self):
        """A client that does not wait: with `FEED` that works, and a command in TLS is heard once."""
        whole = len(self.hello_of()[1])
        cuts = [*range(1, 20), *range(20, whole, whole // 25), whole + 8]
        for cut in cuts:
            server = await self.serve(Feeding)

            def run(cut=cut, server=server):
                tls, hello, incoming, outgoing = self.hello_of()
                sent = b"STARTTLS\n" + hello
                with raw(server.port) as sock:
                    sock.sendall(sent[:cut])
                    sock.sendall(sent[cut:])
                    assert read_line_exactly(sock) == b"go\n"
                    while True:
                        try:
                            tls.do_handshake()
                            break
                        except ssl.SSLWantReadError:
                            sock.sendall(outgoing.read())
                            incoming.write(sock.recv(65536))
                    tls.write(b"hello\n")
                    sock.sendall(outgoing.read())
                    while True:
                        try:
                            return tls.read()
                        except ssl.SSLWantReadError:
                            incoming.write(sock.recv(65536))

            self.assertEqual(await in_thread(run), b"secret hello\n")
            handler = await self.finished(server)
            self.assertEqual(handler.heard(), [b"STARTTLS", b"hello"])

    def hello_of(self):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        return tls, outgoing.read(), incoming, outgoing

    async def test_data_collected_in_the_clear_is_discarded(self):
        class Collecting(Chat):
            def found_terminator(self):
                data = self._get_data()
                self.notes.append(data)
                if data == b"STARTTLS":
                    self._collect_incoming_data(b"EVIL ")  # as a half-read body would be
                    self.push(b"go\n")
                    self.begin()
                else:
                    self.push(data + b"\n")

        server = await self.serve(Collecting)
        self.assertEqual(await in_thread(upgrade_and_talk, server.port), b"hello\n")
        await self.finished(server)

    async def test_output_queued_before_is_in_the_clear_and_the_rest_encrypted(self):
        size = 1 << 20

        class Queueing(Chat):
            high_water = None

            def begin(self):
                self.push_with_producer(b"p" * 1_000 for _ in range(100))
                self.push(b"end\n")
                super().begin()
                self.push(b"first through tls\n")

        Queueing.before = b"q" * size
        server = await self.serve(Queueing)

        def run():
            with raw(server.port) as sock:
                sock.sendall(b"STARTTLS\n")
                clear = b""
                while not clear.endswith(b"end\n"):
                    clear += sock.recv(65536)
                with client_context().wrap_socket(sock, server_hostname=HOST) as tls:
                    secret = read_line(tls) + hello(tls)
            return clear, secret

        clear, secret = await in_thread(run)
        self.assertEqual(clear, b"q" * size + b"go\n" + b"p" * 100_000 + b"end\n")
        self.assertEqual(secret, b"first through tls\nsecret hello\n")
        await self.finished(server)

    async def test_a_twisted_producer_that_is_active_ends_in_the_clear(self):
        @implementer(IPushProducer)
        class Later:
            def __init__(self, chat):
                self.chat = chat
                self.left = 3
                reactor.callLater(0, self.more)

            def more(self):
                self.chat.write(b"part %d\n" % self.left)
                self.left -= 1
                if self.left:
                    reactor.callLater(0.01, self.more)
                else:
                    self.chat.unregisterProducer()
                    self.chat.push(b"secret\n")

            @override
            def pauseProducing(self):
                pass

            @override
            def resumeProducing(self):
                pass

            @override
            def stopProducing(self):
                pass

        class Producing(Chat):
            def begin(self):
                self.push_with_producer(Later(self))
                super().begin()

        server = await self.serve(Producing)

        def run():
            with raw(server.port) as sock:
                sock.sendall(b"STARTTLS\n")
                clear = b""
                while not clear.endswith(b"part 1\n"):
                    clear += sock.recv(1)
                with client_context().wrap_socket(sock, server_hostname=HOST) as tls:
                    secret = read_line(tls)
                    tls.unwrap().close()
                return clear, secret

        self.assertEqual(await in_thread(run), (b"go\npart 3\npart 2\npart 1\n", b"secret\n"))
        await self.finished(server)

    async def test_handshake_continues_while_delivery_is_paused(self):
        class Paused(Chat):
            def begin(self):
                self.pause()
                super().begin()

        server = await self.serve(Paused)
        shaken = Deferred()

        def run():
            with raw(server.port) as sock, upgrade(sock) as tls:
                tls.sendall(b"hello\n")
                reactor.callFromThread(shaken.callback, None)
                answer = read_line(tls)
                tls.unwrap().close()
                return answer

        running = in_thread(run)
        await shaken
        (handler,) = server.handlers
        while handler.tls is None:
            await task.deferLater(reactor, 0.001)
        for _ in range(20):  # iterations in which it might be delivered
            await task.deferLater(reactor, 0.001)
        self.assertEqual(handler.heard(), [b"STARTTLS"])
        self.assertTrue(handler.paused)
        handler.resume()
        self.assertEqual(await running, b"secret hello\n")
        await self.finished(server)

    async def test_a_second_start_tls_is_an_error_at_the_call(self):
        raised = []

        class Twice(Chat):
            def begin(self):
                super().begin()
                try:
                    super().begin()
                except RuntimeError as error:
                    raised.append(str(error))

        server = await self.serve(Twice)

        def run():
            with raw(server.port) as sock, upgrade(sock) as tls:
                tls.sendall(b"hello\n")
                assert read_line(tls) == b"secret hello\n"
                tls.sendall(b"STARTTLS\n")
                answer = read_line(tls)
                rest = tls.recv(1)
                return answer, rest

        # Through TLS the call raises, and nothing catches it: the connection ends.
        answer = await in_thread(run)
        self.assertEqual(answer, (b"go\n", b""))
        self.assertEqual(raised, ["TLS was already started"])
        handler = await self.finished(server)
        self.assertIsNone(handler.close_reason)
        (logged,) = self.flushLoggedErrors(RuntimeError)
        self.assertIn("already speaks TLS", str(logged.value))

    async def test_start_tls_on_a_tls_connection_is_an_error(self):
        server = await Server(self, server_options()).listen()
        client = await in_thread(support.stdlib_client, server.port, client_context())
        (handler,) = server.handlers
        await handler.connected_
        with self.assertRaises(RuntimeError):
            handler.start_tls(server_options())
        with client:
            client.sendall(b"hello\n")
            self.assertEqual(await in_thread(read_line, client), b"hello\n")
            await in_thread(lambda: client.unwrap().close())
        await handler.closed

    async def test_start_tls_on_a_closing_connection_does_nothing(self):
        server = await self.serve()
        with await in_thread(raw, server.port) as sock:
            await in_thread(lambda: (sock.sendall(b"x\n"), read_line(sock)))
            (handler,) = server.handlers
            handler.close_when_done()
            handler.start_tls(server_options())
            self.assertEqual(await in_thread(drain, sock), b"")
        await handler.closed

    async def test_peer_that_does_not_begin_is_disconnected_after_the_limit(self):
        class Hasty(Chat):
            options = server_options(handshake_timeout=0.2)

        server = await self.serve(Hasty)

        def run():
            with raw(server.port) as sock:
                sock.sendall(b"STARTTLS\n")
                return drain(sock)

        self.assertEqual(await in_thread(run), b"go\n")
        handler = await self.finished(server)
        self.assertIs(type(handler.close_reason), errors.HandshakeTimedOut)

    async def test_peer_that_never_reads_the_plaintext_is_disconnected_after_the_limit(self):
        class Deaf(Chat):
            options = server_options(handshake_timeout=0.2)
            before = b"x" * 20_000_000
            max_unsent = None

        server = await self.serve(Deaf)
        made = server.next()
        with await in_thread(raw, server.port) as sock:
            sock.sendall(b"STARTTLS\n")
            handler = await made
            await handler.closed
        self.assertIs(type(handler.close_reason), errors.HandshakeTimedOut)

    async def test_peer_that_reads_the_plaintext_slowly_completes_the_handshake(self):
        def shake(sock):
            clear = read_line(sock)
            return clear, hello(client_context().wrap_socket(sock, server_hostname=HOST))

        # The whole takes longer than the limit, no piece does. The last ones wait in the system,
        # where the handshake's own time has begun.
        sizes = (*[1_000_000] * 15, 25_000_000)
        for limit in (0.5, 1.0, 2.0, 4.0):

            class Large(Chat):
                options = server_options(handshake_timeout=limit)
                before = b"x" * sum(sizes)
                max_unsent = None

            server = await self.serve(Large)
            with await in_thread(raw, server.port) as sock:
                sock.sendall(b"STARTTLS\n")
                begun = reactor.seconds()
                answer = await in_thread(after_a_slow_read, sock, sizes, limit, shake)
                took = reactor.seconds() - begun
            await self.finished(server)
            if answer is not None:
                break
        self.assertEqual(answer, (b"go\n", b"secret hello\n"))
        self.assertGreater(took, limit)

    async def test_options_that_raise_end_the_connection(self):
        @implementer(IOpenSSLServerConnectionCreator)
        class Broken:
            def serverConnectionForTLS(self, layer):  # noqa: N802 Twisted's name
                raise ValueError("no")

        class Failing(Chat):
            options = Broken()

        server = await self.serve(Failing)

        def run():
            with raw(server.port) as sock:
                sock.sendall(b"STARTTLS\n")
                answer = read_line(sock)
                # The options are asked when the ClientHello is there.
                with self.assertRaises(OSError):
                    client_context().wrap_socket(sock, server_hostname=HOST)
                return answer

        self.assertEqual(await in_thread(run), b"go\n")
        handler = await self.finished(server)
        self.assertEqual(handler.notes, ["connect", b"STARTTLS", "close"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_start_tls_works_below_a_policy_wrapper(self):
        server = await self.serve(wrap=WrappingFactory)
        self.assertEqual(await in_thread(upgrade_and_talk, server.port), b"secret hello\n")
        await self.finished(server)

    async def test_the_connection_may_close_during_the_handshake(self):
        server = await self.serve()
        with await in_thread(raw, server.port) as sock:
            await in_thread(lambda: (sock.sendall(b"STARTTLS\n"), read_line(sock)))
            (handler,) = server.handlers
            handler.abort()
            self.assertEqual(await in_thread(drain, sock), b"")
        await handler.closed
        self.assertIsNone(handler.close_reason)


def read_line_exactly(sock):
    line = b""
    while not line.endswith(b"\n"):
        line += sock.recv(1)
    return line


class Clients(unittest.TestCase):
    async def connect(self, port, handler):
        return await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), handler)

    async def test_client_upgrades_on_our_server(self):
        server = await Server(self, None, handler=Chat, plain=True).listen()
        client = Asking()
        await self.connect(server.port, client)
        info = await client.secure
        self.assertEqual(info.version, "TLSv1.3")
        heard = Deferred()
        client.message_received = heard.callback
        client.push(b"hello\n")
        self.assertEqual(await heard, b"secret hello")
        client.close()
        await gatherResults([client.closed, server.handlers[0].closed])
        self.assertIsNone(client.close_reason)
        self.assertIsNone(server.handlers[0].close_reason)

    async def test_client_upgrades_on_a_unix_socket(self):
        path = self.mktemp()
        factory = Factory.forProtocol(Chat)
        factory.noisy = False
        port = await UNIXServerEndpoint(reactor, path).listen(factory)
        self.addCleanup(port.stopListening)
        client = Asking()
        await connectProtocol(UNIXClientEndpoint(reactor, path), client)
        await client.secure
        client.close()
        await client.closed
        self.assertIsNone(client.close_reason)

    async def test_bytes_that_follow_the_servers_answer_are_rejected_at_any_split(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        attack = b"go\nEVIL\n"
        for cut in range(len(attack) + 1):
            client = Asking()
            await self.connect(listener.getsockname()[1], client)
            accepted, _ = await in_thread(listener.accept)

            def run(cut=cut, accepted=accepted):
                with accepted:
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    assert read_line(accepted) == b"STARTTLS\n"
                    accepted.sendall(attack[:cut])
                    with contextlib.suppress(ConnectionError):
                        accepted.sendall(attack[cut:])
                    return drain(accepted)

            said = await in_thread(run)
            await client.closed
            self.assertEqual([n for n in client.notes if isinstance(n, bytes)], [b"go"])
            self.assertIsInstance(client.close_reason, errors.TLSError)
            if cut != 3:  # there the rest may come when TLS has begun
                self.assertEqual(said, b"")
                self.assertIs(type(client.close_reason), errors.PlaintextAfterStartTLS)

    async def test_the_servers_certificate_is_verified(self):
        server = await Server(self, None, handler=Chat, plain=True).listen()

        class Wary(Asking):
            def message_received(self, message):
                self.start_tls(ClientOptions("another.example.org", trust()))

        client = Wary()
        await self.connect(server.port, client)
        await client.closed
        self.assertIs(type(client.close_reason), errors.WrongName)
        self.assertFalse(client.secure.called)
        await server.handlers[0].closed


class InMemory(unittest.TestCase):
    """Both sides without a reactor; and what cannot be upgraded."""

    def test_both_sides_upgrade_in_memory(self):
        class Answering(Chat):
            options = server_options()

        client, server, pump = connectedServerAndClient(Answering, Asking)
        pump.flush()
        self.assertEqual(server.notes[1], b"STARTTLS")
        self.assertEqual(client.tls.version, "TLSv1.3")
        client.push(b"hello\n")
        pump.flush()
        self.assertEqual(client.notes[-1], b"secret hello")
        client.close()
        pump.flush()
        self.assertIsNone(client.close_reason)
        self.assertIsNone(server.close_reason)
        self.assertTrue(server.closed.called)

    def test_nothing_is_delivered_in_the_clear_while_the_queue_drains(self):
        """Delivery was held for the queue above its mark; below that it stays held for TLS."""

        class Full(StringTransport):
            @override
            def registerProducer(self, producer, streaming):
                super().registerProducer(producer, streaming)
                producer.pauseProducing()

        class Queueing(Chat):
            ac_out_buffer_size = low_water = 5
            high_water = 10
            before = b"q" * 20
            options = server_options()

        for leftovers in Leftovers:
            chat = Queueing()
            chat.leftovers = leftovers
            transport = Full()
            transport.protocol = chat
            chat.makeConnection(transport)
            chat.dataReceived(b"STARTTLS\n")
            self.assertGreater(chat.unsent, chat.high_water)
            chat.dataReceived(b"injected\n")
            while chat.unsent > 0 and transport.connected and chat.transport is transport:
                transport.producer.resumeProducing()
            self.assertEqual(chat.heard(), [b"STARTTLS"])

    def test_wrong_options_are_a_type_error(self):
        client, _, pump = connectedServerAndClient(Chat, Asking)
        for wrong in (None, "server.pem", ssl.create_default_context()):
            with self.assertRaises(TypeError):
                client.start_tls(wrong)
        pump.flush()

    def test_start_tls_before_the_connection_is_an_error(self):
        with self.assertRaises(RuntimeError):
            AsyncChat().start_tls(server_options())

    def test_start_tls_on_a_transport_whose_protocol_cannot_change_is_an_error(self):
        chat = AsyncChat()
        chat.makeConnection(StringTransport())
        with self.assertRaises(RuntimeError):
            chat.start_tls(server_options())
