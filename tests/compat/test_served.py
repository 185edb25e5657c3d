"""
Legacy handlers, unmodified, on Twisted's transports.

Also covers `compat._worn`.
"""

import selectors
import socket
import ssl
import struct
import threading
from pathlib import Path

import pytest
import trustme
from twisted.internet import defer, endpoints, reactor, threads
from twisted.internet import ssl as tx_ssl
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from txasynchat.compat import LegacyFactory, asynchat, asyncore
from txasynchat.compat._backoff import PATIENCE

# Twisted passes pyOpenSSL's own certificates to pyOpenSSL, which deprecates them.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class LineHandler(asynchat.async_chat):
    """
    Written as such handlers were for twenty years; records its calls.
    """

    def __init__(self, sock, addr, calls):
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(b"\r\n")
        self.buffer = []
        self.calls = calls
        self.calls.append(("init", addr == self.addr, self.connected))

    def collect_incoming_data(self, data):
        self.buffer.append(data)

    def found_terminator(self):
        line = b"".join(self.buffer)
        self.buffer = []
        self.calls.append(("line", line))
        if line == b"raise":
            raise ValueError("on request")
        if line == b"exit":
            raise asyncore.ExitNow("on request")
        if line == b"quit":
            self.push(b"bye\r\n")
            self.close_when_done()
        elif line == b"bye at once":
            self.push(b"bye\r\n")
            self.close()
        elif line == b"big":
            self.push(b"z" * 3_000_000 + b"\r\n")
        elif line == b"later":
            reactor.callLater(0, self.push, b"later\r\n")
        elif line == b"thread":
            threading.Thread(target=self.push, args=(b"from a thread\r\n",)).start()
        else:
            self.push(line + b"\r\n")

    def handle_close(self):
        self.calls.append(("handle_close",))
        self.close()

    def handle_error(self):
        self.calls.append(("handle_error",))
        self.close()


def talk(address, sent, *, shut=False, context=None, until=b""):
    """
    Connect, send, and return everything received until the end (or until *until*).
    """
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as plain:
        plain.settimeout(20)
        plain.connect(address)
        client = plain
        if context is not None:
            client = context.wrap_socket(plain, server_hostname="localhost")
        client.sendall(sent)
        if shut:
            client.shutdown(socket.SHUT_WR)
        received = bytearray()
        while not until or not received.endswith(until):
            data = client.recv(65536)
            if not data:
                break
            received += data
        client.close()
        return bytes(received)


class Served(TestCase):
    def setUp(self):
        self.calls = []

    @defer.inlineCallbacks
    def serve(self, factory=None, description="tcp:0:interface=127.0.0.1"):
        if factory is None:
            factory = LegacyFactory(LineHandler, self.calls)
        self.factory = factory
        endpoint = endpoints.serverFromString(reactor, description)
        port = yield endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        host = port.getHost()
        return ("127.0.0.1", host.port) if hasattr(host, "port") else host.name.decode()

    def talk(self, *arguments, **keywords):
        return threads.deferToThread(talk, *arguments, **keywords)

    @defer.inlineCallbacks
    def all_gone(self):
        """
        Wait until the factory has no connections.
        """
        for _ in range(1000):
            if not self.factory.connections:
                break
            turn = defer.Deferred()
            reactor.callLater(0.01, turn.callback, None)
            yield turn
        self.assertEqual(self.factory.connections, {})
        self.assertEqual(asyncore.socket_map, {})

    @defer.inlineCallbacks
    def test_handler_runs_unchanged_and_is_forgotten(self):
        address = yield self.serve()
        answer = yield self.talk(address, b"one\r\ntwo\r\nquit\r\n")
        self.assertEqual(answer, b"one\r\ntwo\r\nbye\r\n")
        yield self.all_gone()
        self.assertEqual(
            self.calls,
            [
                ("init", True, True),
                ("line", b"one"),
                ("line", b"two"),
                ("line", b"quit"),
                ("handle_close",),
            ],
        )
        self.assertEqual(asyncore.socket_map, {})

    @defer.inlineCallbacks
    def test_pushed_bytes_are_sent_before_close(self):
        address = yield self.serve()
        answer = yield self.talk(address, b"bye at once\r\n")
        self.assertEqual(answer, b"bye\r\n")
        yield self.all_gone()

    @defer.inlineCallbacks
    def test_end_of_input_reaches_handle_close_after_the_data(self):
        address = yield self.serve()
        answer = yield self.talk(address, b"one\r\n", shut=True)
        self.assertEqual(answer, b"one\r\n")
        yield self.all_gone()
        self.assertEqual(self.calls[1:], [("line", b"one"), ("handle_close",)])

    @defer.inlineCallbacks
    def test_reset_reaches_handle_close(self):
        address = yield self.serve()

        def reset():
            client = socket.create_connection(address, 20)
            client.sendall(b"one\r\n")
            assert client.recv(100) == b"one\r\n"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

        yield threads.deferToThread(reset)
        yield self.all_gone()
        self.assertEqual(self.calls[-1], ("handle_close",))

    @defer.inlineCallbacks
    def test_output_beyond_the_transports_buffer_is_sent_in_parts(self):
        address = yield self.serve()
        answer = yield self.talk(address, b"big\r\nquit\r\n")
        self.assertEqual(len(answer), 3_000_000 + 2 + 5)
        self.assertTrue(answer.endswith(b"z\r\nbye\r\n"))
        yield self.all_gone()

    @defer.inlineCallbacks
    def test_push_works_outside_events_and_from_a_thread(self):
        address = yield self.serve()
        answer = yield self.talk(address, b"later\r\n", until=b"later\r\n")
        self.assertEqual(answer, b"later\r\n")
        answer = yield self.talk(address, b"thread\r\n", until=b"thread\r\n")
        self.assertEqual(answer, b"from a thread\r\n")
        yield self.all_gone()

    @defer.inlineCallbacks
    def test_an_exception_goes_to_handle_error_and_ends_one_connection(self):
        address = yield self.serve()
        answer = yield self.talk(address, b"one\r\nraise\r\ntwo\r\n")
        self.assertEqual(answer, b"one\r\n")
        self.assertEqual(self.calls[-1], ("handle_error",))
        answer = yield self.talk(address, b"three\r\nquit\r\n")
        self.assertEqual(answer, b"three\r\nbye\r\n")
        yield self.all_gone()

    @defer.inlineCallbacks
    def test_handler_works_over_tls_unchanged(self):
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        pem = self.mktemp()
        issued.private_key_and_cert_chain_pem.write_to_path(pem)
        factory = LegacyFactory(LineHandler, self.calls)
        self.factory = factory
        certificate = tx_ssl.PrivateCertificate.loadPEM(Path(pem).read_bytes())
        port = reactor.listenSSL(0, factory, certificate.options(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context()
            authority.configure_trust(context)
            context.minimum_version = context.maximum_version = version
            answer = yield self.talk(
                ("127.0.0.1", port.getHost().port), b"one\r\nbig\r\nquit\r\n", context=context
            )
            self.assertEqual(len(answer), 5 + 3_000_002 + 5)
            self.assertTrue(answer.startswith(b"one\r\nz"))
        yield self.all_gone()
        self.assertEqual(self.calls[0], ("init", True, True))

    @defer.inlineCallbacks
    def test_handler_works_on_a_unix_socket(self):
        path = self.mktemp()[-90:]
        address = yield self.serve(description=f"unix:{path}")
        answer = yield self.talk(address, b"one\r\nquit\r\n")
        self.assertEqual(answer, b"one\r\nbye\r\n")
        yield self.all_gone()

    @defer.inlineCallbacks
    def test_handler_that_does_not_close_at_the_end_is_not_called_for_ever(self):
        """It is told as often as in loop(), and then left alone for a while each time."""
        ends = []

        class Forgetful(LineHandler):
            def handle_close(self):
                ends.append(self)

        address = yield self.serve(LegacyFactory(Forgetful, self.calls))
        answer = yield self.talk(address, b"one\r\n", until=b"one\r\n")
        self.assertEqual(answer, b"one\r\n")
        for _ in range(1000):
            turn = defer.Deferred()
            reactor.callLater(0.01, turn.callback, None)
            yield turn
            if len(ends) > PATIENCE:
                break
        for _ in range(30):
            turn = defer.Deferred()
            reactor.callLater(0.01, turn.callback, None)
            yield turn
        self.assertTrue(PATIENCE < len(ends) <= PATIENCE + 5, len(ends))
        for handler in ends[:1]:
            handler.close()

    @defer.inlineCallbacks
    def test_predicates_that_depend_on_outside_state_are_asked_again(self):
        class Gate(LineHandler):
            open = False

            def readable(self):
                return Gate.open

        address = yield self.serve(LegacyFactory(Gate, self.calls))
        answer = self.talk(address, b"one\r\nquit\r\n")
        for _ in range(1000):
            turn = defer.Deferred()
            reactor.callLater(0.01, turn.callback, None)
            yield turn
            if self.calls:
                break
        self.assertEqual(self.calls, [("init", True, True)])
        Gate.open = True
        answer = yield answer
        self.assertEqual(answer, b"one\r\nbye\r\n")
        yield self.all_gone()

    @defer.inlineCallbacks
    def test_dispatcher_with_send_flushes_its_buffer(self):
        class Sender(asyncore.dispatcher_with_send):
            def handle_read(self):
                self.send(self.recv(8192) * 20_000 + b"9#")

            def handle_close(self):
                self.close()

        address = yield self.serve(LegacyFactory(Sender))
        answer = yield self.talk(address, b"0123456789", shut=False, until=b"9#")
        self.assertEqual(answer, b"0123456789" * 20_000 + b"9#")
        yield self.all_gone()

    @defer.inlineCallbacks
    def test_handler_that_cannot_be_built_ends_its_connection_only(self):
        failures = []

        def observe(event):
            if event.get("log_failure") is not None:
                failures.append(event["log_failure"].type)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

        def build(sock, addr):
            if not failures:
                raise RuntimeError("no handler today")
            return LineHandler(sock, addr, self.calls)

        address = yield self.serve(LegacyFactory(build=build))
        answer = yield self.talk(address, b"")
        self.assertEqual(answer, b"")
        self.assertEqual(failures, [RuntimeError])
        self.flushLoggedErrors(RuntimeError)
        answer = yield self.talk(address, b"quit\r\n")
        self.assertEqual(answer, b"bye\r\n")
        yield self.all_gone()


class Transports(TestCase):
    """
    Without a socket underneath.
    """

    def test_socket_answers_like_a_real_one(self):
        seen = []

        class Handler(asyncore.dispatcher):
            def __init__(self, sock):
                asyncore.dispatcher.__init__(self, sock)
                seen.append(sock)

        factory = LegacyFactory(Handler, reactor=reactor)
        protocol = factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        (sock,) = seen
        self.assertEqual(sock.getpeername(), ("192.168.1.1", 54321))
        self.assertRaises(BlockingIOError, sock.recv, 10)
        protocol.dataReceived(b"abcdef")
        self.assertEqual(sock.recv(2, socket.MSG_PEEK), b"ab")
        self.assertEqual(sock.recv(4), b"abcd")
        buffer = bytearray(10)
        self.assertEqual((sock.recv_into(buffer), bytes(buffer[:2])), (2, b"ef"))
        self.assertEqual(sock.send(b"xyz"), 3)
        self.assertEqual(transport.value(), b"xyz")
        protocol.pauseProducing()
        self.assertRaises(BlockingIOError, sock.send, b"more")
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.assertRaises(ValueError, sock.setblocking, True)
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.recv(1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.send(b"x")

    def test_socket_has_no_descriptor_and_the_error_says_what_to_do(self):
        kept = []
        factory = LegacyFactory(build=lambda sock, _addr: kept.append(asyncore.dispatcher(sock)))
        protocol = factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        sock = kept[0].socket
        for use in (sock.fileno, sock.detach, sock.dup, sock.makefile):
            with pytest.raises(OSError, match=r"no descriptor .* txasynchat\.compat\.start_tls"):
                use()
        with pytest.raises(OSError, match="start_tls"):
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(sock, server_side=True)
        with pytest.raises(OSError, match="start_tls"):
            selectors.DefaultSelector().register(sock, selectors.EVENT_READ)
        kept[0].close()
        self.assertEqual((sock.fileno(), sock.detach()), (-1, -1))
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.dup()

    def test_unreferenced_socket_ends_the_connection(self):
        kept = []
        factory = LegacyFactory(
            build=lambda sock, _addr: kept.append(asyncore.dispatcher(sock)), reactor=Clock()
        )
        protocol = factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        kept[0].del_channel()
        factory.reactor.advance(1)
        self.assertTrue(transport.connected)
        kept.clear()
        factory.reactor.advance(1)
        self.assertFalse(transport.connected)
        self.assertEqual(factory.connections, {})

    def test_factory_accepts_a_class_or_a_function(self):
        self.assertRaises(TypeError, LegacyFactory)
        self.assertRaises(TypeError, LegacyFactory, LineHandler, build=LineHandler)

    def test_loop_on_the_map_of_served_handlers_is_refused(self):
        kept = []
        factory = LegacyFactory(build=lambda sock, _addr: kept.append(asyncore.dispatcher(sock)))
        protocol = factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        with pytest.raises(RuntimeError, match="attached"):
            asyncore.loop(timeout=0, count=1)
        kept[0].close()
        self.assertEqual(asyncore.socket_map, {})
