"""
Peers that stop, vanish, or send what they should not: how long they are kept, and at what cost.

Also covers `tls.opening`.
"""

import contextlib
import gc
import socket
import ssl
import time

import pytest
from twisted.internet import reactor, task
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial import unittest
from typing_extensions import override

from helpers import support, wire
from helpers.support import (
    HOST,
    Notes,
    Server,
    client_context,
    connect,
    in_thread,
    server_options,
    trust,
    twisted_options,
)
from helpers.wire import HOSTILE, ask_for_renegotiation, drain, one_byte_records, raw
from txasynchat import errors, transports
from txasynchat.tls import ClientOptions, engine
from txasynchat.tls.handshakes import HandshakeLimit, Scheduler
from txasynchat.tls.transport import TLSTransport


def memory_client(version=None):
    return wire.Memory(client_context(version), HOST)


def read_answers(client):
    """Read what `Notes` answers to the lines of `Closing.end`."""
    answers = b""
    while answers != b"one\ntwo\n":
        answers += client.recv(100)


class StoppedHandshakes(unittest.TestCase):
    @pytest.mark.slow
    async def test_peer_that_stops_at_any_byte_is_disconnected_and_costs_nothing(self):
        for version in support.VERSIONS:
            # A busier machine needs more time: half a second without work must remain.
            for limit in (1.5, 3.0, 6.0, 12.0):
                if await self.check_stopped(version, limit):
                    break
            else:
                self.fail("this machine is too busy")

    async def check_stopped(self, version, limit):
        """Return whether all peers stopped in time; if they did, assert what follows."""
        options = server_options(handshake_timeout=limit, max_handshakes=None)
        server = await Server(self, options).listen()

        def open_all():
            whole = memory_client(version).hello()
            step = max(1, len(whole) // 120)
            socks = []
            for count in [*range(0, len(whole), step), len(whole) - 1, len(whole)]:
                sock = raw(server.port)
                sock.sendall(whole[:count])
                socks.append(sock)
            # And with the last flight, cut off at each byte of its records' beginning.
            for count in range(0, 64, 4):
                sock = raw(server.port)
                with contextlib.suppress(ConnectionError):  # late, as is checked below
                    flight = memory_client(version).shake(sock)
                    sock.sendall(flight[: min(count, len(flight) - 1)])
                socks.append(sock)
            return socks

        opened = time.monotonic()
        socks = await in_thread(open_all)
        used = time.process_time()
        began = time.monotonic()
        in_time = began - opened < limit - 0.5
        await gatherResults([in_thread(drain, sock) for sock in socks[-1:]])
        idle = time.monotonic() - began
        used = time.process_time() - used
        await in_thread(list, map(drain, socks[:-1]))
        await gatherResults([handler.closed for handler in server.handlers])
        self.assertEqual(len(server.handlers), len(socks))
        for handler in server.handlers:
            self.assertIs(type(handler.close_reason), errors.HandshakeTimedOut)
            self.assertEqual(handler.notes, ["close"])
        if in_time:
            self.assertGreater(idle, 0.5)
            self.assertLess(used, 0.3 * idle)
        return in_time

    async def test_client_times_out_too(self):
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        options = ClientOptions(HOST, trust(), handshake_timeout=0.2)
        handler = Notes()
        await self.assertFailure(
            connect(silent.getsockname()[1], options, handler), errors.HandshakeTimedOut
        )
        await handler.closed
        self.assertEqual(handler.notes, ["close"])

    async def test_cancelled_connection_attempt_is_closed(self):
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        handler = Notes()
        connecting = connect(silent.getsockname()[1], ClientOptions(HOST, trust()), handler)
        accepted, _ = await in_thread(silent.accept)
        connecting.cancel()
        await in_thread(drain, accepted)
        await handler.closed
        await self.assertFailure(connecting, CancelledError)

    def stall(self, port, count):
        """Connect clients that send a whole hello and do not answer the server's."""
        stalled = [raw(port) for _ in range(count)]
        for sock in stalled:
            self.addCleanup(sock.close)
            sock.sendall(memory_client().hello())
        return stalled

    async def test_further_handshakes_wait_for_those_in_progress(self):
        server = await Server(self, server_options(max_handshakes=2)).listen()
        limit = server.options.limit
        limit.patience = 60.0
        stalled = self.stall(server.port, 2)
        while limit.in_flight < 2:
            await task.deferLater(reactor, 0.005)
        talking = in_thread(support.talk, server.port, client_context())
        while not limit.waiting:
            await task.deferLater(reactor, 0.005)
        self.assertFalse(talking.called)
        stalled[0].close()
        self.assertEqual(await talking, b"hello\n")
        stalled[1].close()
        await gatherResults([handler.closed for handler in server.handlers])
        self.assertEqual((limit.in_flight, limit.waiting), (0, 0))

    async def test_stalled_handshakes_do_not_block_others_for_long(self):
        server = await Server(self, server_options(max_handshakes=2)).listen()
        server.options.limit.patience = 0.2
        stalled = self.stall(server.port, 6)
        self.assertEqual(await in_thread(support.talk, server.port, client_context()), b"hello\n")
        for sock in stalled:
            sock.close()
        await gatherResults([handler.closed for handler in server.handlers])
        self.assertEqual((server.options.limit.in_flight, server.options.limit.waiting), (0, 0))

    async def test_client_that_waits_too_long_is_disconnected(self):
        server = await Server(
            self, server_options(max_handshakes=1, handshake_timeout=0.3)
        ).listen()
        server.options.limit.patience = 60.0
        socks = self.stall(server.port, 3)
        await gatherResults([in_thread(drain, sock) for sock in socks])
        await gatherResults([handler.closed for handler in server.handlers])
        for handler in server.handlers:
            self.assertIs(type(handler.close_reason), errors.HandshakeTimedOut)


class Closing(unittest.TestCase):
    async def test_peer_that_never_answers_close_notify_is_disconnected_after_the_limit(self):
        self.patch(TLSTransport, "close_timeout", 3 * support.PATIENCE)
        server = await Server(self, server_options(close_timeout=0.3)).listen()

        def shake():
            client = support.stdlib_client(server.port, client_context())
            client.sendall(b"hello\n")
            support.read_line(client)
            return client

        client = await in_thread(shake)
        (handler,) = server.handlers
        handler.close()
        began = time.monotonic()
        await handler.closed
        took = time.monotonic() - began
        self.assertLess(0.25, took)
        self.assertLess(took, support.PATIENCE)

        def rest():
            with client:
                try:
                    return client.recv(100)
                except ConnectionResetError:
                    return b""

        self.assertEqual(await in_thread(rest), b"")

    async def test_peer_that_reads_nothing_is_disconnected_after_the_flush_limit(self):
        server = await Server(self, server_options(close_timeout=0.2, flush_timeout=0.6)).listen()
        client = await in_thread(support.stdlib_client, server.port, client_context())
        self.addCleanup(client.close)
        (handler,) = server.handlers
        await handler.connected_
        handler.close_timeout = 0.6
        handler.max_unsent = None
        handler.push(b"x" * (32 << 20))
        handler.close_when_done()
        await handler.closed
        self.assertIs(type(handler.close_reason), errors.CloseTimedOut)
        self.assertGreater(handler.close_reason.count, 0)

    async def test_connection_of_any_protocol_is_closed_in_time(self):
        """The limits belong to the transport, not to `AsyncChat`."""

        class Blob(Protocol):
            def __init__(self):
                self.closed = Deferred()

            @override
            def connectionMade(self):
                self.transport.write(b"x" * (32 << 20))
                self.transport.loseConnection()

            @override
            def connectionLost(self, reason):
                self.closed.callback(reason)

        server = await Server(
            self, server_options(close_timeout=0.2, flush_timeout=0.6), handler=Blob
        ).listen()
        client = await in_thread(support.stdlib_client, server.port, client_context())
        self.addCleanup(client.close)
        (handler,) = server.handlers
        await self.assertFailure(handler.closed, errors.CloseTimedOut)

    async def end(self, finish, version=None):
        server = await Server(self, server_options()).listen()

        def run():
            client = support.stdlib_client(server.port, client_context(version))
            client.sendall(b"one\ntwo\nthr")
            finish(client)

        await in_thread(run)
        (handler,) = server.handlers
        await handler.closed
        notes = [note for note in handler.notes if isinstance(note, bytes)]
        self.assertEqual(notes, [b"one", b"two"])
        self.assertEqual(handler.notes[-1], "close")
        return handler.close_reason

    async def test_close_notify_is_an_orderly_end(self):
        def finish(client):
            read_answers(client)
            client.unwrap().close()

        for version in support.VERSIONS:
            reason = await self.end(finish, version)
            self.assertIsNone(reason)

    async def test_fin_without_close_notify_is_a_truncation(self):
        def finish(client):
            read_answers(client)  # unread bytes would make it a reset
            client.close()

        for version in support.VERSIONS:
            reason = await self.end(finish, version)
            self.assertIs(type(reason), errors.TruncatedConnection)

    async def test_reset_is_a_truncation(self):
        def reset(client):
            read_answers(client)
            wire.reset(client)

        reason = await self.end(reset)
        self.assertIs(type(reason), errors.TruncatedConnection)

    async def test_queued_output_is_sent_after_the_peers_close_notify(self):
        """The peer ends its sending and continues to read (RFC 8446, section 6.1)."""

        class Late(Notes):
            def message_received(self, message):
                self.push_with_producer(b"x" * 65_536 for _ in range(64))

        self.assertTrue(IHalfCloseableProtocol.implementedBy(Late))
        server = await Server(self, server_options(), handler=Late).listen()

        def run():
            sock = raw(server.port)
            memory = memory_client("1.3")
            sock.sendall(memory.shake(sock))
            memory.tls.write(b"go\n")
            with contextlib.suppress(ssl.SSLWantReadError):
                memory.tls.unwrap()
            sock.sendall(memory.outgoing.read())
            return drain(sock)

        ciphertext = await in_thread(run)
        self.assertGreater(len(ciphertext), 64 * 65_536)
        (handler,) = server.handlers
        await handler.closed
        self.assertIsNone(handler.close_reason)
        self.assertEqual(handler.notes[-1], "close")


class Telling(LineOnlyReceiver):
    """A protocol that is not an `AsyncChat`."""

    delimiter = b"\n"

    def __init__(self):
        self.closed = Deferred()

    @override
    def lineReceived(self, line):
        self.sendLine(line)

    @override
    def connectionLost(self, reason):
        self.closed.callback(reason)


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
class Stock(unittest.TestCase):
    """An `AsyncChat` has the same limits, and gets the same errors, on Twisted's own TLS endpoints."""

    async def serve(self, **limits):
        handlers = []

        class Noting(Notes):
            @override
            def makeConnection(self, transport):
                handlers.append(self)
                super().makeConnection(transport)
                for name, value in limits.items():
                    setattr(transports.tls_layer(transport), name, value)

        factory = Factory.forProtocol(Noting)
        factory.noisy = False
        endpoint = SSL4ServerEndpoint(reactor, 0, twisted_options(), interface="127.0.0.1")
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        return port.getHost().port, handlers

    async def test_stopped_handshake_times_out(self):
        port, handlers = await self.serve(handshake_timeout=0.2)
        await in_thread(drain, raw(port))
        (handler,) = handlers
        await handler.closed
        self.assertIs(type(handler.close_reason), errors.HandshakeTimedOut)

    async def test_peer_that_never_answers_close_notify_is_disconnected(self):
        self.patch(TLSTransport, "close_timeout", 3 * support.PATIENCE)
        port, handlers = await self.serve(close_timeout=0.2)
        client = await in_thread(support.stdlib_client, port, client_context())
        self.addCleanup(client.close)
        (handler,) = handlers
        await handler.connected_
        handler.close()
        began = time.monotonic()
        await handler.closed
        self.assertLess(time.monotonic() - began, support.PATIENCE)

    async def test_truncation_is_distinguished_from_an_orderly_end(self):
        port, handlers = await self.serve()
        for finish, reason in ((None, errors.TruncatedConnection), (True, type(None))):

            def run(finish=finish):
                client = support.stdlib_client(port, client_context())
                client.sendall(b"hello\n")
                support.read_line(client)
                (client.unwrap() if finish else client).close()

            await in_thread(run)
            handler = handlers[-1]
            await handler.closed
            self.assertEqual(handler.notes[1:], ["connect", b"hello", "close"])
            self.assertIs(type(handler.close_reason), reason)

    async def test_subclass_of_twisteds_transport_is_left_alone(self):
        class Theirs(BufferingTLSTransport):
            pass

        factory = TLSMemoryBIOFactory(
            twisted_options(), False, Factory.forProtocol(Notes), clock=task.Clock()
        )
        factory.protocol = Theirs
        layer = factory.buildProtocol(None)
        layer.makeConnection(StringTransport())
        self.assertIs(type(layer), Theirs)
        layer.connectionLost(Failure(ConnectionDone()))


def openssl_connections():
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, ssl.SSLObject)]


class Hostile(unittest.TestCase):
    async def test_bytes_that_are_not_a_handshake_end_only_their_connection(self):
        before = openssl_connections()
        server = await Server(self, server_options(handshake_timeout=3.0)).listen()
        good = await in_thread(support.stdlib_client, server.port, client_context())
        self.addCleanup(good.close)

        def hostile(data):
            sock = raw(server.port)
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            return drain(sock)

        for what, data in HOSTILE.items():
            answer = await in_thread(hostile, data)
            handler = server.handlers[-1]
            await handler.closed
            self.assertIsInstance(handler.close_reason, errors.HandshakeFailed, what)
            self.assertEqual(handler.notes, ["close"], what)
            # An alert, or nothing.
            self.assertIn(answer[:1], (b"", b"\x15"), what)

        def still():
            good.sendall(b"hello\n")
            answer = support.read_line(good)
            good.unwrap().close()
            return answer

        self.assertEqual(await in_thread(still), b"hello\n")
        await server.handlers[0].closed
        self.assertEqual((server.options.limit.in_flight, server.options.limit.waiting), (0, 0))
        await task.deferLater(reactor, 0)  # we are still inside of a connectionLost
        # The log may keep handlers for a while, and they their layers, but no OpenSSL object.
        self.assertEqual([one for one in openssl_connections() if one not in before], [])

    async def test_records_of_one_byte_are_accepted(self):
        for version in support.VERSIONS:
            server = await Server(self, server_options()).listen()

            def run(version=version, server=server):
                client = support.stdlib_client(server.port, client_context(version))
                for byte in b"hello\n":
                    client.send(bytes((byte,)))
                answer = support.read_line(client)
                client.unwrap().close()
                return answer

            self.assertEqual(await in_thread(run), b"hello\n")
            await server.handlers[0].closed

    async def test_hello_in_records_of_one_byte_is_accepted(self):
        server = await Server(self, server_options()).listen()

        def run():
            sock = raw(server.port)
            memory = memory_client("1.3")
            sock.sendall(one_byte_records(memory.hello()))
            memory.incoming.write(sock.recv(65536))
            memory.tls.do_handshake()
            sock.sendall(memory.outgoing.read())
            memory.tls.write(b"hello\n")
            sock.sendall(memory.outgoing.read())
            answer = b""
            while not answer:
                memory.incoming.write(sock.recv(65536))
                try:
                    answer = memory.tls.read()
                except ssl.SSLWantReadError:
                    continue
            sock.close()
            return answer

        self.assertEqual(await in_thread(run), b"hello\n")
        await server.handlers[0].closed

    async def test_any_split_of_the_wire_gives_the_handler_the_same_calls(self):
        """The layer counts records; wherever the bytes are cut, none may stay unread."""
        for size in (1, 2, 3, 4, 5, 6, 7, 100, 1_000, 16_384, 16_411):
            server = await Server(self, server_options()).listen()

            def run(size=size, server=server):
                sock = raw(server.port)
                memory = memory_client("1.3")
                sock.sendall(memory.shake(sock))
                text = b"".join(b"%d %s\n" % (i, b"x" * (i * 37 % 900)) for i in range(60))
                for line in text.splitlines(keepends=True):
                    memory.tls.write(line)
                wire = memory.outgoing.read()
                for at in range(0, len(wire), size):
                    sock.sendall(wire[at : at + size])
                answer = b""
                while len(answer) < len(text):
                    memory.incoming.write(sock.recv(65536))
                    try:
                        while True:
                            answer += memory.tls.read()
                    except ssl.SSLWantReadError:
                        continue
                sock.close()
                return answer == text

            self.assertTrue(await in_thread(run), size)
            await server.handlers[0].closed

    async def test_renegotiation_of_tls_1_2_is_refused(self):
        server = await Server(self, server_options()).listen()

        said = await in_thread(lambda: ask_for_renegotiation(server.port))
        self.assertIn(b"no renegotiation", said.lower())
        (handler,) = server.handlers
        await handler.closed
        self.assertEqual(handler.notes[2:], [b"hello", "close"])

    async def test_thousand_key_updates_are_followed_or_end_only_their_connection(self):
        server = await Server(self, server_options()).listen()

        def run():
            sock = raw(server.port)
            keys = wire.TrafficKeys.shake(sock, client_context("1.3"), HOST)
            sock.sendall(keys.key_updates(1_000))
            sock.sendall(keys.record(23, b"hello\n"))
            sock.shutdown(socket.SHUT_WR)
            return drain(sock)

        began = time.process_time()
        answer = await in_thread(run)
        self.assertLess(time.process_time() - began, 2.0)
        (handler,) = server.handlers
        await handler.closed
        # OpenSSL follows them all, and answers each.
        self.assertEqual(handler.notes[1:], ["connect", b"hello", "close"])
        self.assertGreater(len(answer), 1_000 * 20)
        self.assertEqual(await in_thread(support.talk, server.port, client_context()), b"hello\n")
        await server.handlers[1].closed

    async def test_peer_that_requests_key_updates_and_reads_none_is_disconnected(self):
        self.patch(engine, "LARGEST_DEBT", 10_000)

        class Small(Notes):
            def handle_connect(self):
                self.transport.transport.socket.setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDBUF, 4096
                )
                super().handle_connect()

        server = await Server(self, server_options(), handler=Small).listen()

        def run():
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.settimeout(support.PATIENCE)
                sock.connect(("127.0.0.1", server.port))
                keys = wire.TrafficKeys.shake(sock, client_context("1.3"), HOST)
                with contextlib.suppress(ConnectionError):
                    for _ in range(30):
                        sock.sendall(keys.key_updates(1_000))

        await in_thread(run)
        (handler,) = server.handlers
        await handler.closed
        self.assertIs(type(handler.close_reason), errors.TLSError)
        self.assertIn("key updates", str(handler.close_reason))


class Parts(unittest.TestCase):
    """The parts alone, with their own clock."""

    def test_handshake_steps_have_a_budget_per_iteration(self):
        clock = task.Clock()
        turns = Scheduler(clock)
        turns.budget.seconds = 0.0  # every step uses it up
        ran = []
        for number in range(3):
            turns.run(lambda number=number: ran.append(number))
        self.assertEqual(ran, [0])
        clock.callLater(0, ran.append, "something else")
        clock.advance(0)
        self.assertEqual(ran, [0, 1, "something else", 2])

    def test_client_that_closes_while_it_waits_is_not_admitted(self):
        clock = task.Clock()
        limit = HandshakeLimit(1, None)
        admitted = []
        self.assertTrue(limit.enter("a", None, clock, lambda: admitted.append("a")))
        self.assertFalse(limit.enter("b", None, clock, lambda: admitted.append("b")))
        self.assertFalse(limit.enter("c", None, clock, lambda: admitted.append("c")))
        limit.leave("b", clock)
        limit.leave("a", clock)
        self.assertEqual(admitted, ["c"])
        limit.leave("c", clock)
        self.assertEqual((limit.in_flight, limit.waiting), (0, 0))
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertTrue(TLSTransport.handshake_timeout)
