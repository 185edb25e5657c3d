"""
Channels whose socket the program itself wrapped in TLS, by `ssl` or by pyOpenSSL.
"""

import asyncio
import socket
import ssl
import sys
import tempfile
import time
from contextlib import suppress

import pytest
from OpenSSL import SSL

from helpers.channels import ISSUED, LIMIT, InThread, client_context, server_context
from helpers.wire import Memory
from txasynchat.compat import asynchat, asyncore, attach


def by_ssl(sock):
    return server_context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def by_pyopenssl(sock):
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    with tempfile.NamedTemporaryFile() as file:
        file.write(ISSUED.private_key_and_cert_chain_pem.bytes())
        file.flush()
        context.use_certificate_chain_file(file.name)
        context.use_privatekey_file(file.name)
    connection = SSL.Connection(context, sock)
    connection.set_accept_state()
    return connection


class Counted:
    """Counts its events."""

    handed = 0

    def handle_read_event(self):
        self.handed += 1
        super().handle_read_event()

    def handle_write_event(self):
        self.handed += 1
        super().handle_write_event()


class Chat(Counted, asynchat.async_chat):
    """Answers lines; its greeting is queued before the handshake."""

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.set_terminator(b"\n")
        self.errors = []

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self):
        self.push(self._get_data() * 3 + b"\n")

    def handle_error(self):
        self.errors.append(sys.exc_info()[1])
        super().handle_error()


class Greeter(Chat):
    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.push(b"hello\n")


class Bare(Counted, asyncore.dispatcher):
    """Keeps a buffer of its own, as the documented echo servers do."""

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.errors = []
        self.kept = b"hello\n"

    def writable(self):
        return bool(self.kept)

    def handle_read(self):
        data = self.recv(4096)
        if data.endswith(b"\n"):
            data = data[:-1] * 3 + b"\n"
        self.kept += data

    def handle_write(self):
        self.kept = self.kept[self.send(self.kept) :]

    def handle_error(self):
        self.errors.append(sys.exc_info()[1])
        super().handle_error()


class Shaking(Bare):
    """Performs the handshake in both handlers, by the socket's own method."""

    is_secure = False

    def shake(self):
        self.socket.do_handshake()
        self.is_secure = True

    def handle_read(self):
        if not self.is_secure:
            self.shake()
            return
        super().handle_read()

    def handle_write(self):
        if not self.is_secure:
            self.shake()
        super().handle_write()


class Quiet(Bare):
    """Sends nothing by itself."""

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.kept = b""


class ShakingQuietly(Quiet, Shaking):
    """Performs the handshake by the socket's own method, in the handler of the event."""


def by_loop(channels, done, *, use_poll):
    deadline = time.monotonic() + LIMIT
    while not done() and channels and time.monotonic() < deadline:
        asyncore.loop(timeout=0.05, use_poll=use_poll, map=channels, count=1)


def drive_in_select_mode(channels, done):
    by_loop(channels, done, use_poll=False)


def drive_in_poll_mode(channels, done):
    by_loop(channels, done, use_poll=True)


def drive_attached(channels, done):
    reactor = asyncio.new_event_loop()
    attachment = attach(channels, reactor)
    deadline = time.monotonic() + LIMIT

    def look():
        if done() or not channels or time.monotonic() > deadline:
            reactor.stop()
        else:
            reactor.call_later(0.01, look)

    look()
    reactor.run_forever()
    attachment.detach()
    reactor.close()
    assert attachment.exception is None


each_drive = pytest.mark.parametrize(
    "drive",
    [drive_in_select_mode, drive_in_poll_mode, drive_attached],
    ids=["select", "poll", "attached"],
)
each_wrap = pytest.mark.parametrize("wrap", [by_ssl, by_pyopenssl], ids=["ssl", "pyOpenSSL"])


@pytest.fixture
def ends():
    """A client's socket and a server's, connected."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname(), LIMIT)
        far, _ = server.accept()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def local_ends():
    """The same, where the system accepts no more until the peer reads."""
    near, far = socket.socketpair()
    near.settimeout(LIMIT)
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


def talk(sock, tls, greeting):
    """Shake hands, read the greeting, ask in small pieces of a record, then for a lot."""
    tls.finish(sock)
    greeted = tls.read(sock, len(greeting))
    record = tls.encrypt(b"abc\n")
    for at in range(len(record)):
        sock.sendall(record[at : at + 1])
    answer = tls.read(sock, 10)
    sent = InThread(sock.sendall, tls.encrypt(b"x" * 100_000 + b"\n"))
    large = tls.read(sock, 300_001 if answer == b"abcabcabc\n" else 0)
    sent()
    return greeted, answer, len(large)


@each_wrap
@each_drive
@pytest.mark.parametrize("handler", [Chat, Greeter])
def test_chats_over_a_socket_wrapped_by_the_program_work(channels, ends, drive, wrap, handler):
    """The 3.11 modules close the channel at the first record that has not come whole."""
    near, far = ends
    chat = handler(wrap(far), channels)
    greeting = b"hello\n" if handler is Greeter else b""
    client = InThread(talk, near, memory(), greeting)
    drive(channels, client.done)
    assert client() == (greeting, b"abcabcabc\n", 300_001)
    assert chat.errors == []


@each_wrap
@each_drive
@pytest.mark.parametrize("handler", [Bare, Shaking])
def test_dispatchers_over_a_socket_wrapped_by_the_program_work(
    channels, ends, drive, wrap, handler
):
    """Their own buffers, and their own handshakes, work in either handler."""
    near, far = ends
    bare = handler(wrap(far), channels)
    client = InThread(echo, near, memory())
    drive(channels, client.done)
    assert client() == (b"hello\n", b"abcabcabc\n")
    assert bare.errors == []


def echo(sock, tls):
    tls.finish(sock)
    greeted = tls.read(sock, 6)
    record = tls.encrypt(b"abc\n")
    for at in range(len(record)):
        sock.sendall(record[at : at + 1])
    return greeted, tls.read(sock, 10)


@each_wrap
@each_drive
@pytest.mark.parametrize("handler", [Greeter, Bare, Shaking])
def test_write_that_needs_a_read_waits_without_spinning(channels, ends, drive, wrap, handler):
    """A server's greeting waits for the client's hello, without using the processor."""
    near, far = ends
    greeter = handler(wrap(far), channels)
    passes(drive, channels, lambda: greeter.handed)
    assert 1 <= greeter.handed <= 3
    client = InThread(lambda tls: (tls.finish(near), tls.read(near, 6))[1], memory())
    drive(channels, client.done)
    assert client() == b"hello\n"
    assert greeter.errors == []


@each_wrap
@each_drive
@pytest.mark.parametrize("handler", [Chat, Quiet, ShakingQuietly])
def test_read_that_needs_a_write_waits_without_spinning(channels, local_ends, drive, wrap, handler):
    """A handshake that finds the system's buffer full continues when there is room."""
    near, far = local_ends
    plain = fill(far)
    tls = memory()
    near.sendall(tls.hello())
    server = handler(wrap(far), channels)
    passes(drive, channels, lambda: server.handed)
    assert 1 <= server.handed <= 3

    def read_on():
        left = plain
        while left:
            left -= len(near.recv(min(left, 65536)))
        tls.finish(near)
        near.sendall(tls.encrypt(b"abc\n"))
        return tls.read(near, 10)

    client = InThread(read_on)
    drive(channels, client.done)
    assert client() == b"abcabcabc\n"
    assert server.errors == []


@each_wrap
@pytest.mark.parametrize("use_poll", [False, True], ids=["select", "poll"])
def test_recv_raises_when_there_is_nothing_yet(channels, ends, wrap, use_poll):
    """An empty answer would read as the end of the stream."""
    near, far = ends
    met = []

    class Noting(Quiet):
        def handle_read(self):
            try:
                super().handle_read()
            except (ssl.SSLWantReadError, SSL.WantReadError):
                met.append(True)
                raise

    noting = Noting(wrap(far), channels)
    tls = memory()
    client = InThread(tls.finish, near)
    by_loop(channels, client.done, use_poll=use_poll)
    client()
    record = tls.encrypt(b"abc\n")
    met.clear()
    near.sendall(record[:-1])
    by_loop(channels, lambda: met, use_poll=use_poll)
    near.sendall(record[-1:])
    client = InThread(tls.read, near, 10)
    by_loop(channels, client.done, use_poll=use_poll)
    assert client() == b"abcabcabc\n"
    assert met
    assert noting.errors == []
    assert noting.socket.fileno() in channels


@each_wrap
def test_real_tls_error_still_closes_the_channel(channels, ends, wrap):
    """Only a request to wait is not an error."""
    near, far = ends
    chat = Chat(wrap(far), channels)
    near.sendall(b"GET / HTTP/1.1\r\n\r\n")
    by_loop(channels, lambda: not channels, use_poll=False)
    assert not channels
    assert len(chat.errors) == 1


@pytest.mark.parametrize("use_poll", [False, True], ids=["select", "poll"])
def test_listener_whose_handler_handshakes_too_early_gets_the_error(channels, use_poll):
    """A listener has no TLS to wait for; without the error a connection would vanish silently."""
    errors = []

    class Hasty(asyncore.dispatcher):
        def handle_accepted(self, sock, addr):
            sock.setblocking(False)
            with by_ssl(sock) as wrapped:
                wrapped.do_handshake()

        def handle_error(self):
            errors.append(sys.exc_info()[1])
            self.close()

    listener = Hasty(None, channels)
    listener.create_socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    with socket.create_connection(listener.socket.getsockname(), LIMIT):
        by_loop(channels, lambda: errors, use_poll=use_poll)
    assert [type(error) for error in errors] == [ssl.SSLWantReadError]


def memory():
    return Memory(client_context(), "localhost")


def passes(drive, channels, begun):
    """Drive until something arrives, then long enough that a spin would show."""
    drive(channels, begun)
    end = time.monotonic() + 0.15
    drive(channels, lambda: time.monotonic() > end)


def fill(sock):
    """Fill the system's buffer to the brim; return with how many bytes."""
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(4096))
    return sent
