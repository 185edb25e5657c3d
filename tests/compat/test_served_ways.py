"""
Served handlers and their sockets, on each kind of endpoint: plain, ``secure:``, ``ssl:``, the hub's.

Also covers `compat._accepted`.

What a handler does to its socket may work where it has a real one, so each test takes that, too.
"""

import contextlib
import io
import os
import select
import socket
import ssl
import sys
from collections import deque
from pathlib import Path

import pytest
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.protocols.policies import TimeoutFactory
from twisted.trial.unittest import TestCase

from helpers.support import HOST, client_context, in_thread, leaf, pem, read_line, until
from helpers.wire import Memory, after_a_slow_read, raw, reset
from txasynchat import Server
from txasynchat.compat import LegacyFactory, _attach, _worn, asynchat, asyncore, start_tls
from txasynchat.errors import HandshakeTimedOut
from txasynchat.tls.transport import TLSTransport

# Twisted passes pyOpenSSL's own certificates to pyOpenSSL, which deprecates them.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class Lines(asynchat.async_chat):
    """Echoes each line."""

    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(b"\n")

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self):
        self.line_received(self._get_data())

    def line_received(self, line):
        self.push(line + b"\n")


class Client:
    """A client in the calling thread, plain or over TLS by hand."""

    def __init__(self, port, *, secure):
        self.sock = raw(port)
        self.tls = None
        if secure:
            self.tls = Memory(client_context(), HOST)
            self.tls.finish(self.sock)

    def send(self, data):
        self.sock.sendall(self.tls.encrypt(data) if self.tls else data)

    def end(self):
        """End the sending; over TLS by close_notify."""
        if self.tls:
            self.sock.sendall(self.tls.goodbye())
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def read(self, size):
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

    def drain(self):
        with self.sock:
            return self.read(1 << 30)


class WaysTestCase(TestCase):
    def setUp(self):
        self.pem = self.mktemp()
        Path(self.pem).write_bytes(pem(leaf()))

    async def serve(self, handler, *, around=lambda factory: factory):
        """Start a server of *handler* on this class's kind of endpoint."""
        description = self.description.format(pem=quoteStringArgument(self.pem))
        self.factory = LegacyFactory(handler)
        server = Server(reactor, around(self.factory), [description], stop_timeout=10)
        server.startService()
        self.addCleanup(server.stopService)
        self.port = server.ports[0].getHost().port
        return server

    async def client(self):
        client = await in_thread(lambda: Client(self.port, secure=self.secure))
        self.addCleanup(client.sock.close)
        return client

    async def all_gone(self):
        await until(lambda: not (self.factory.connections or asyncore.socket_map))

    @contextlib.contextmanager
    def listening_in(self):
        """Collect what is printed and logged meanwhile, as a list of texts."""
        said = []
        printed = io.StringIO()

        def observe(event):
            if "log_failure" in event:
                said.append(event["log_failure"].getTraceback())

        globalLogPublisher.addObserver(observe)
        try:
            with contextlib.redirect_stdout(printed):
                yield said
        finally:
            globalLogPublisher.removeObserver(observe)
            said.extend(printed.getvalue().splitlines())


# -- what handlers that own their socket do to it


def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf().configure_cert(context)
    return context


def wrap(sock):
    return server_context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


# The far ends of sockets that replace those of handlers.
far_ends = []


def other():
    near, far = socket.socketpair()
    near.setblocking(False)
    far_ends.append(far)
    return near


def put(make):
    return lambda handler: setattr(handler, "socket", make(handler.socket))


NEEDS_A_DESCRIPTOR = {
    b"wrap and set": lambda handler: handler.set_socket(wrap(handler.socket)),
    b"wrap and assign": put(wrap),
    b"wrap and drop": lambda handler: wrap(handler.socket),
    b"pyOpenSSL": put(lambda sock: SSL.Connection(SSL.Context(SSL.TLS_METHOD), sock)),
    b"close the descriptor": lambda handler: os.close(handler.socket.fileno()),
    b"close a socket of the descriptor": lambda handler: socket.socket(
        fileno=handler.socket.fileno()
    ).close(),
    b"drop a socket of the descriptor": lambda handler: socket.socket(
        fileno=handler.socket.fileno()
    ),
    b"copy the descriptor": lambda handler: socket.fromfd(
        handler.socket.fileno(), socket.AF_INET, socket.SOCK_STREAM
    ).close(),
    b"detach": lambda handler: os.close(handler.socket.detach()),
    b"dup": lambda handler: handler.socket.dup().close(),
    b"makefile": lambda handler: handler.socket.makefile("rb").close(),
    b"select": lambda handler: select.select([handler.socket], [], [], 0),
    b"assign another": put(lambda _: other()),
    b"set another": lambda handler: handler.set_socket(other()),
    b"keep it and assign another": lambda handler: (
        setattr(handler, "kept", handler.socket),
        setattr(handler, "socket", other()),
    ),
}
ENDS = {
    b"close": lambda handler: handler.socket.close(),
    b"close twice": lambda handler: (handler.socket.close(), handler.socket.close()),
    b"shut down": lambda handler: handler.socket.shutdown(socket.SHUT_RDWR),
    b"shut down to read": lambda handler: handler.socket.shutdown(socket.SHUT_RD),
    b"shut down to write": lambda handler: handler.socket.shutdown(socket.SHUT_WR),
    b"lose it": put(lambda _: None),
    b"leave the map": lambda handler: handler.del_channel(),
    b"clear the map": lambda handler: handler._map.pop(handler._fileno),
}


class Meddler(Lines):
    """On some lines it does something to its socket, between a ``go`` and a ``done``."""

    def line_received(self, line):
        act = NEEDS_A_DESCRIPTOR.get(line) or ENDS.get(line)
        if act is None:
            self.push(line + b"\n")
        else:
            self.push(b"go\n")
            act(self)
            self.push(b"done\n")


def meddle(client, what):
    """Ask a `Meddler` to do it; return whether the connection still works, and close it."""
    with client.sock:
        client.send(what + b"\n")
        if client.read(3) != b"go\n":
            return False
        try:
            if what.startswith(b"wrap") and not client.tls:
                client.tls = Memory(client_context(), HOST)
                client.tls.finish(client.sock)
            if client.read(5) != b"done\n":
                return False
            return client.ask(b"still here") == b"still here\n"
        except OSError:
            return False


class Sockets:
    async def check(self, kinds, *, needs_help):
        server = await self.serve(Meddler)
        early = await self.client()
        assert await in_thread(early.ask, b"hello") == b"hello\n"
        for what in kinds:
            client = await self.client()
            with self.listening_in() as said:
                works = await in_thread(meddle, client, what)
                await until(lambda: len(self.factory.connections) == 1)
            while far_ends:
                far_ends.pop().close()
            helped = [text for text in said if "start_tls" in text]
            assert len(helped) == (needs_help and not works), (what, said)
            assert not any("Traceback" in text for text in said), (what, said)
            # The others, and new clients, whose sockets get descriptors that were free.
            late = await self.client()
            for one in (early, late):
                assert await in_thread(one.ask, b"hello") == b"hello\n", what
            late.sock.close()
            await until(lambda: len(self.factory.connections) == 1)
        await server.stopService()
        early.sock.close()
        await self.all_gone()

    @pytest.mark.slow
    async def test_use_of_a_descriptor_ends_only_its_connection_with_one_line(self):
        await self.check(NEEDS_A_DESCRIPTOR, needs_help=True)

    @pytest.mark.slow
    async def test_ending_the_socket_ends_only_its_connection(self):
        await self.check(ENDS, needs_help=False)

    async def test_socket_closed_directly_reaches_handle_close_once(self):
        calls = []

        class Telling(Meddler):
            def handle_close(self):
                calls.append("handle_close")
                self.close()

        await self.serve(Telling)
        client = await self.client()
        await in_thread(meddle, client, b"close")
        await self.all_gone()
        assert calls == ["handle_close"]

    async def test_handlers_are_in_the_map_under_unique_numbers(self):
        handlers = []

        class Kept(Lines):
            def __init__(self, sock):
                super().__init__(sock)
                handlers.append(self)

        await self.serve(Kept)
        clients = [await self.client() for _ in range(3)]
        for client in clients:
            await in_thread(client.ask, b"hello")
        assert len({handler._fileno for handler in handlers}) == 3
        for handler in handlers:
            assert handler._map[handler._fileno] is handler
            handler.close()
            assert handler.socket.fileno() == -1
        for client in clients:
            client.sock.close()
        await self.all_gone()

    async def test_bytes_sent_before_shutdown_arrive_and_then_the_end(self):
        class Burst(Lines):
            def line_received(self, _line):
                sock = self.socket
                self.kept = b"x" * 6_000_000
                self.flush_and_end(sock)

            def flush_and_end(self, sock):
                while self.kept:
                    try:
                        self.kept = self.kept[sock.send(self.kept) :]
                    except BlockingIOError:
                        return
                self.kept = None
                sock.shutdown(socket.SHUT_WR)

            kept = None

            def writable(self):
                return self.kept is not None

            def handle_write(self):
                self.flush_and_end(self.socket)

        await self.serve(Burst)
        client = await self.client()
        client.send(b"go\n")
        assert len(await in_thread(client.drain)) == 6_000_000
        assert not client.tls or client.tls.ended
        await self.all_gone()


# -- the end of a connection, seen from both sides


class Noting(Lines):
    """Answers at length; after the peer's end, closes once everything is sent."""

    ended = False
    size = 12_000_000

    def line_received(self, _line):
        for _ in range(self.size // 10_000):
            self.push(b"x" * 10_000)

    def readable(self):
        return not self.ended

    def writable(self):
        if self.ended and not self.producer_fifo:
            self.close()
            return False
        return super().writable()

    def handle_close(self):
        self.ended = True


class Late(Lines):
    """Answers when the peer has ended, by a producer."""

    pieces = 60
    ended = False

    def line_received(self, line):
        pass

    def readable(self):
        return not self.ended

    def handle_close(self):
        if self.ended:
            self.close()
            return
        self.ended = True
        self.push_with_producer(self)
        self.close_when_done()

    def more(self):
        self.pieces -= 1
        return b"x" * 1000 if self.pieces >= 0 else b""


class Ends:
    async def ask_and_end(self):
        client = await self.client()
        client.send(b"go\n")
        client.end()
        return await in_thread(client.drain)

    async def test_output_queued_at_the_peers_end_is_sent_if_the_handler_continues(self):
        await self.serve(Noting)
        assert len(await self.ask_and_end()) == Noting.size
        await self.all_gone()

    async def test_answer_begun_in_handle_close_is_sent_completely(self):
        await self.serve(Late)
        assert len(await self.ask_and_end()) == 60_000
        await self.all_gone()

    async def test_answer_begun_in_handle_close_is_sent_below_a_policy(self):
        await self.serve(Late, around=lambda factory: TimeoutFactory(factory, 30))
        assert len(await self.ask_and_end()) == 60_000
        await self.all_gone()

    async def test_handler_that_only_writes_learns_of_a_lost_connection(self):
        class Endless(Noting):
            closed = Deferred()
            size = 20_000_000

            def handle_close(self):
                if self.ended:
                    self.close()
                    self.closed.callback(None)
                self.ended = True

        await self.serve(Endless)
        client = await self.client()
        client.send(b"go\n")
        client.end()
        await in_thread(client.read, 100_000)
        reset(client.sock)
        await Endless.closed
        await self.all_gone()

    async def test_handler_that_raises_at_the_end_is_not_called_again(self):
        calls = []

        class Raising(Lines):
            def handle_close(self):
                calls.append("handle_close")
                raise ValueError("at the end")

        for leave in (Client.end, lambda client: reset(client.sock)):
            await self.serve(Raising)
            calls.clear()
            client = await self.client()
            await in_thread(client.ask, b"hello")
            with self.listening_in() as said:
                leave(client)
                await self.all_gone()
                # A repeated event would arrive within this time.
                await deferLater(reactor, 2 * _attach.TICK)
            client.sock.close()
            # By recv(), then by asyncore's handle_error().
            assert calls == ["handle_close"] * 2
            assert len(said) == 2, said
            assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_handler_that_forgets_to_close_is_released_with_its_connection(self):
        calls = []

        class Forgetful(Lines):
            def handle_close(self):
                calls.append("handle_close")

        await self.serve(Forgetful)
        client = await self.client()
        await in_thread(client.ask, b"hello")
        reset(client.sock)
        await self.all_gone()
        assert calls == ["handle_close"]

    async def test_predicate_that_raises_ends_only_its_connection_and_is_logged_once(self):
        calls = []

        class Raising(Lines):
            raises = False

            def line_received(self, line):
                super().line_received(line)
                self.raises = line == b"raise"

            def writable(self):
                if self.raises:
                    raise ValueError("no answer")
                return super().writable()

            def handle_close(self):
                calls.append("handle_close")
                self.close()

        await self.serve(Raising)
        client, bystander = await self.client(), await self.client()
        await in_thread(client.ask, b"raise")
        assert await in_thread(client.drain) == b""
        assert await in_thread(bystander.ask, b"hello") == b"hello\n"
        bystander.sock.close()
        await self.all_gone()
        assert calls == ["handle_close"] * 2
        assert len(self.flushLoggedErrors(ValueError)) == 1

    async def test_a_policy_ends_an_idle_connection(self):
        await self.serve(Lines, around=lambda factory: TimeoutFactory(factory, 0.2))
        client = await self.client()
        assert await in_thread(client.drain) == b""
        await self.all_gone()

    async def test_policy_ends_a_connection_that_has_sent_much(self):
        class Talkative(Lines):
            def line_received(self, _line):
                self.push(b"x" * 3_000_000)

        await self.serve(Talkative, around=lambda factory: TimeoutFactory(factory, 0.5))
        client = await self.client()
        client.send(b"go\n")
        assert len(await in_thread(client.drain)) == 3_000_000
        await self.all_gone()

    async def test_a_stopping_server_ends_idle_dispatchers_at_once(self):
        class Old(asyncore.dispatcher_with_send):
            def handle_read(self):
                self.send(self.recv(100))

            def handle_close(self):
                self.close()

        server = await self.serve(Old)
        client = await self.client()
        await in_thread(client.ask, b"hello")
        ended = in_thread(client.drain)
        server.stop_timeout = None
        await server.stopService()
        assert await ended == b""


# -- what one handler changes in another


class Room:
    """A line of one is put into the queues of all others."""

    members = ()

    def enter(self):
        type(self).members += (self,)

    def say(self, data):
        for member in self.members:
            if member is not self:
                member.put(data)

    def handle_close(self):
        type(self).members = ()
        self.close()


class OwnQueueRoom(Room, asyncore.dispatcher):
    """A private queue, and predicates that look at it."""

    def __init__(self, sock):
        asyncore.dispatcher.__init__(self, sock)
        self.queue = b""
        self.enter()

    def put(self, data):
        self.queue += data

    def handle_read(self):
        self.say(self.recv(1000))

    def writable(self):
        return bool(self.queue)

    def handle_write(self):
        self.queue = self.queue[self.send(self.queue) :]


class BufferRoom(Room, asyncore.dispatcher_with_send):
    def __init__(self, sock):
        asyncore.dispatcher_with_send.__init__(self, sock)
        self.enter()

    def put(self, data):
        self.out_buffer += data

    def handle_read(self):
        self.say(self.recv(1000))


class AppendingRoom(Room, Lines):
    """As in older code: ``push`` only queues, the loop sends."""

    def __init__(self, sock):
        Lines.__init__(self, sock)
        self.enter()

    def push(self, data):
        self.producer_fifo.append(data)

    def put(self, data):
        self.push(data)

    def line_received(self, line):
        self.say(line + b"\n")


class OwnDequeRoom(AppendingRoom):
    """It replaces the queue that the class made."""

    def __init__(self, sock):
        super().__init__(sock)
        self.producer_fifo = deque()


class Paused(Lines):
    """Does not read until another handler allows it, by a predicate on the instance."""

    waiting = None

    def __init__(self, sock):
        super().__init__(sock)
        if Paused.waiting is None:
            Paused.waiting = self
            self.readable = lambda: False

    def line_received(self, line):
        super().line_received(line)
        if Paused.waiting is not self:
            Paused.waiting.readable = lambda: True


class Neighbours:
    def setUp(self):
        super().setUp()
        # A handler that is asked only sometimes is asked too late.
        self.patch(_attach, "TICK", 3600.0)

    async def check_room(self, room):
        room.members = ()
        await self.serve(room)
        speaker, listener = await self.client(), await self.client()
        await until(lambda: len(room.members) == 2)
        for _ in range(20):
            speaker.send(b"hello\n")
            assert await in_thread(listener.read, 6) == b"hello\n"
        # Outside every handler: a timer, another protocol.
        room.members[1].put(b"from outside\n")
        assert await in_thread(listener.read, 13) == b"from outside\n"
        for client in (speaker, listener):
            client.sock.close()
        await self.all_gone()

    async def test_data_put_into_the_queue_of_another_chat_is_sent(self):
        await self.check_room(AppendingRoom)

    async def test_data_put_into_the_buffer_of_another_channel_is_sent(self):
        await self.check_room(BufferRoom)

    async def test_data_that_only_a_predicate_knows_of_is_sent(self):
        # A change outside handlers is noticed at the next check.
        self.patch(_attach, "TICK", 0.1)
        for room in (OwnQueueRoom, OwnDequeRoom):
            await self.check_room(room)

    async def test_predicate_set_by_another_handler_applies_at_once(self):
        OwnQueueRoom.members = ()
        await self.serve(OwnQueueRoom)
        speaker, listener = await self.client(), await self.client()
        await until(lambda: len(OwnQueueRoom.members) == 2)
        for _ in range(20):
            speaker.send(b"hello\n")
            assert await in_thread(listener.read, 6) == b"hello\n"
        for client in (speaker, listener):
            client.sock.close()
        await self.all_gone()

    async def test_handler_reads_once_another_handler_allows_it(self):
        Paused.waiting = None
        await self.serve(Paused)
        paused, other_one = await self.client(), await self.client()
        await until(lambda: len(self.factory.connections) == 2)
        paused.send(b"first\n")
        assert await in_thread(other_one.ask, b"go on") == b"go on\n"
        assert await in_thread(paused.read, 6) == b"first\n"
        for client in (paused, other_one):
            client.sock.close()
        await self.all_gone()


# -- one class for each way, and what some ways have alone


class Upstream(asyncore.dispatcher_with_send):
    """A proxy's upstream side: its input is sent to the client."""

    def __init__(self, client, address):
        asyncore.dispatcher_with_send.__init__(self)
        self.client = client
        self.create_socket()
        self.connect(address)

    def handle_connect(self):
        """Nothing is sent first."""

    def handle_read(self):
        self.client.push(self.recv(4096))

    def handle_close(self):
        self.close()


class Proxies:
    """Opens a channel of its own."""

    async def test_channel_opened_by_a_handler_is_driven_with_it(self):
        """A proxy's connection to its upstream works as it does in a loop()."""
        upstream = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(upstream.close)
        made = []

        class Proxy(Lines):
            def __init__(self, sock):
                Lines.__init__(self, sock)
                made.append(Upstream(self, upstream.getsockname()))

            def line_received(self, line):
                made[0].send(line + b"\n")

        await self.serve(Proxy)
        client = await self.client()
        client.sock.settimeout(2)
        client.send(b"one\n")
        connection, _ = await in_thread(upstream.accept)
        self.addCleanup(connection.close)
        self.addCleanup(made[0].close)
        assert await in_thread(connection.recv, 4, socket.MSG_WAITALL) == b"one\n"
        connection.sendall(b"two\n")
        assert await in_thread(client.read, 4) == b"two\n"
        client.sock.close()
        made[0].close()
        await self.all_gone()


class Plain:
    description = "tcp:0:interface=127.0.0.1"
    secure = False


class Secure:
    description = "secure:tcp:0:interface=127.0.0.1:certificate={pem}"
    secure = True


class Ssl:
    description = "ssl:0:interface=127.0.0.1:privateKey={pem}"
    secure = True


class Hub:
    description = "hub:tcp:0:interface=127.0.0.1"
    secure = False


class SecureHub:
    description = "secure:hub:tcp:0:interface=127.0.0.1:certificate={pem}"
    secure = True


class PlainSocketTests(Plain, Sockets, WaysTestCase):
    pass


class SecureSocketTests(Secure, Sockets, WaysTestCase):
    pass


class SslSocketTests(Ssl, Sockets, WaysTestCase):
    pass


class HubSocketTests(Hub, Sockets, WaysTestCase):
    async def test_use_of_a_descriptor_ends_only_its_connection_with_one_line(self):
        """It ends nothing: the socket is the handler's."""
        harmless = [
            b"wrap and set",
            b"wrap and assign",
            b"copy the descriptor",
            b"dup",
            b"makefile",
            b"select",
        ]
        await self.check(harmless, needs_help=False)

    async def test_ending_the_socket_ends_only_its_connection(self):
        await self.check([b"close", b"close twice", b"shut down"], needs_help=False)


class PlainEndTests(Plain, Ends, WaysTestCase):
    pass


class SecureEndTests(Secure, Ends, WaysTestCase):
    pass


class HubEndTests(Hub, Ends, WaysTestCase):
    # On its own socket a handler is told of the end again and again, as in loop().
    test_handler_that_forgets_to_close_is_released_with_its_connection = None


class SecureHubEndTests(SecureHub, Ends, WaysTestCase):
    # On its own socket a handler is told of the end again and again, as in loop().
    test_handler_that_forgets_to_close_is_released_with_its_connection = None


class SslEndTests(Ssl, Ends, WaysTestCase):
    async def test_handshake_that_never_begins_times_out(self):
        self.patch(TLSTransport, "handshake_timeout", 0.2)
        server = await self.serve(Lines)
        client = await in_thread(lambda: Client(self.port, secure=False))
        assert await in_thread(client.drain) == b""
        await until(lambda: not server.connections)


class PlainNeighbourTests(Plain, Neighbours, WaysTestCase):
    pass


class SecureNeighbourTests(Secure, Neighbours, WaysTestCase):
    pass


class SslNeighbourTests(Ssl, Neighbours, WaysTestCase):
    pass


class HubNeighbourTests(Hub, Neighbours, WaysTestCase):
    pass


class SecureHubNeighbourTests(SecureHub, Neighbours, WaysTestCase):
    pass


class PlainProxyTests(Plain, Proxies, WaysTestCase):
    """Over TCP."""


class SecureProxyTests(Secure, Proxies, WaysTestCase):
    """Over our own TLS."""


class SslProxyTests(Ssl, Proxies, WaysTestCase):
    """Over Twisted's TLS."""


class HubProxyTests(Hub, Proxies, WaysTestCase):
    """On sockets."""


class SecureHubProxyTests(SecureHub, Proxies, WaysTestCase):
    """On sockets, over our own TLS."""


class Upgrading(Lines):
    """``STARTTLS`` has its meaning; a number before it is how much is queued in plain first."""

    limit = 0.3

    def __init__(self, sock, errors):
        super().__init__(sock)
        self.errors = errors

    def line_received(self, line):
        if line.endswith(b"STARTTLS"):
            self.push(b"x" * int(b"0" + line.partition(b"STARTTLS")[0]))
            self.push(b"go\n")
            start_tls(self, server_context(), handshake_timeout=self.limit)
        else:
            self.push(line + b"\n")

    def handle_error(self):
        self.errors.append(sys.exception())
        self.close()


class StartTLS:
    async def serve_upgrading(self, handler=Upgrading):
        self.errors = []
        await self.serve(lambda sock: handler(sock, self.errors))
        return await self.client()

    def timed_out(self):
        return [type(error) for error in self.errors] == [HandshakeTimedOut]

    async def test_peer_silent_after_starttls_is_disconnected_after_the_limit(self):
        client = await self.serve_upgrading()
        client.send(b"STARTTLS\n")
        assert await in_thread(client.drain) == b"go\n"
        await self.all_gone()
        assert self.timed_out()

    async def test_peer_that_stops_in_its_hello_is_disconnected_after_the_limit(self):
        client = await self.serve_upgrading()
        client.send(b"STARTTLS\n")
        assert await in_thread(client.read, 3) == b"go\n"
        with contextlib.suppress(ConnectionError):  # the limit may have passed
            client.send(Memory(client_context(), HOST).hello()[:50])
        assert await in_thread(client.drain) == b""
        await self.all_gone()
        assert self.timed_out()

    async def test_peer_that_never_answers_the_servers_hello_is_disconnected_after_the_limit(self):
        client = await self.serve_upgrading()
        client.send(b"STARTTLS\n")
        assert await in_thread(client.read, 3) == b"go\n"
        with contextlib.suppress(ConnectionError):  # the limit may have passed
            client.send(Memory(client_context(), HOST).hello())
        await in_thread(client.drain)
        await self.all_gone()
        assert self.timed_out()

    async def test_peer_that_never_reads_is_disconnected_after_the_limits(self):
        self.patch(_worn, "CLOSE_TIMEOUT", 0.2)
        client = await self.serve_upgrading()
        client.send(b"20000000STARTTLS\n")
        await self.all_gone()
        assert self.timed_out()
        client.sock.close()

    async def test_peer_that_reads_slowly_before_tls_completes_the_handshake(self):
        def shake(sock):
            clear = read_line(sock)
            with client_context().wrap_socket(sock, server_hostname=HOST) as secure:
                secure.sendall(b"hello\n")
                return clear, read_line(secure)

        # The whole takes longer than the limit, no piece does. The last ones wait in the system, where
        # the handshake's own time has begun.
        sizes = (*[1_000_000] * 15, 25_000_000)
        for seconds in (1.0, 2.0, 4.0):

            class Impatient(Upgrading):
                limit = seconds

            client = await self.serve_upgrading(Impatient)
            client.send(b"%dSTARTTLS\n" % sum(sizes))
            begun = reactor.seconds()
            answer = await in_thread(after_a_slow_read, client.sock, sizes, seconds, shake)
            took = reactor.seconds() - begun
            client.sock.close()
            await self.all_gone()
            if answer is not None:
                break
        assert answer == (b"go\n", b"hello\n")
        assert took > seconds

    async def test_failed_handler_that_does_not_close_learns_of_the_end(self):
        calls = []

        class Staying(Upgrading):
            def handle_error(self):
                self.errors.append(sys.exception())

            def handle_close(self):
                calls.append("handle_close")
                self.close()

        client = await self.serve_upgrading(Staying)
        client.send(b"STARTTLS\n")
        assert await in_thread(client.drain) == b"go\n"
        await self.all_gone()
        assert self.timed_out()
        assert calls == ["handle_close"]

    async def test_last_bytes_before_close_reach_a_slow_reader(self):
        class Closing(Upgrading):
            limit = 10.0

            def line_received(self, line):
                super().line_received(line)
                if line == b"big":
                    self.push(b"x" * 8_000_000)
                    self.close_when_done()

        client = await self.serve_upgrading(Closing)
        client.send(b"STARTTLS\n")
        assert await in_thread(client.read, 3) == b"go\n"
        client.tls = Memory(client_context(), HOST)
        await in_thread(client.tls.finish, client.sock)
        client.send(b"big\n")
        assert len(await in_thread(client.drain)) == 4 + 8_000_000
        assert client.tls.ended
        await self.all_gone()


class PlainStartTLSTests(Plain, StartTLS, WaysTestCase):
    pass


class HubStartTLSTests(Hub, StartTLS, WaysTestCase):
    pass


class StoppedTests(SecureHub, WaysTestCase):
    async def test_unfinished_handshakes_end_with_the_server(self):
        server = await self.serve(Lines)
        silent = raw(self.port)
        self.addCleanup(silent.close)
        await until(lambda: asyncore.socket_map)
        await server.stopService()
        assert await in_thread(silent.recv, 100) == b""
        await self.all_gone()
