"""
TLS for channels that own their socket: `start_tls`, and listeners that call it for their handlers.
"""

import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import suppress

import pytest

from helpers.channels import (
    AUTHORITY,
    LIMIT,
    VERSIONS,
    InThread,
    Lines,
    Listener,
    client_context,
    drive,
    pair,
    server_context,
    talk,
)
from txasynchat import Leftovers
from txasynchat.compat import TLSSocket, asyncore, start_tls
from txasynchat.errors import HandshakeTimedOut, PlaintextAfterStartTLS


@pytest.mark.parametrize("use_poll", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_listener_starts_tls_for_its_handlers(channels, version, use_poll):
    listener = Listener(channels, server_context(version))
    client = InThread(talk, listener.address, client_context(), b"one\nbig\nquit\n")
    drive(channels, client.done, use_poll=use_poll)
    answer = client()
    assert answer == b"one\n" + b"z" * 2_000_000 + b"\nbye\n"
    (handler,) = listener.handlers
    assert handler.lines == [b"one", b"big", b"quit"]
    assert handler.events == [("close",)]
    assert isinstance(handler.socket, TLSSocket)


@pytest.mark.parametrize("poll", [asyncore.poll, asyncore.poll2])
def test_passes_by_hand_drive_tls_too(channels, poll):
    listener = Listener(channels, server_context())
    client = InThread(talk, listener.address, client_context(), b"one\nbig\nquit\n")
    end = time.monotonic() + LIMIT
    while not client.done() and time.monotonic() < end:
        poll(0.05, channels)
    assert client().endswith(b"z\nbye\n")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")
@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client_talks_to_it(channels, flag, tmp_path):
    trust = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(trust)
    listener = Listener(channels, server_context())
    command = ["openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", str(trust)]
    command += [
        flag,
        "-verify_hostname",
        "localhost",
        "-connect",
        f"127.0.0.1:{listener.address[1]}",
    ]

    def client():
        return subprocess.run(
            command, input=b"one\nquit\n", capture_output=True, timeout=LIMIT, check=False
        )

    running = InThread(client)
    drive(channels, running.done)
    assert running().stdout == b"one\nbye\n", running().stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_client_is_connected_when_the_handshake_is_done(channels, version):
    listener = Listener(channels, server_context(version))

    class Client(Lines):
        def line_received(self, line):
            if line == b"bye":
                return
            self.push(b"quit\n")

    client = Client(map=channels)
    client.create_socket(socket.AF_INET, socket.SOCK_STREAM)
    client.push(b"queued before\n")
    client.connect(listener.address)
    start_tls(client, client_context(), server_hostname="localhost")
    drive(channels, lambda: ("close",) in client.events)
    assert client.events == [("connect", True), ("close",)]
    assert client.lines == [b"queued before", b"bye"]
    assert client.socket.tls.version() == version.name.replace("v1_", "v1.")
    assert not client.socket.truncated


@pytest.mark.parametrize(
    ("name", "trusting", "text"),
    [
        ("wrong.example", True, "Hostname mismatch"),
        ("localhost", False, "unable to get local issuer|self-signed"),
    ],
)
def test_server_with_a_wrong_certificate_reaches_handle_error(channels, name, trusting, text):
    listener = Listener(channels, server_context())
    client = Lines(map=channels)
    client.create_socket(socket.AF_INET, socket.SOCK_STREAM)
    client.connect(listener.address)
    start_tls(client, client_context(trusting=trusting), server_hostname=name)
    drive(channels, lambda: client.events)
    (event,) = client.events
    assert isinstance(event[1], ssl.SSLCertVerificationError)
    with pytest.raises(ssl.SSLError, match=text):
        raise event[1]
    drive(channels, lambda: listener.handlers and listener.handlers[0].events)
    assert listener.handlers[0].lines == []
    assert listener in channels.values()


@pytest.mark.parametrize("name", [None, ""])
def test_client_without_server_hostname_is_refused_at_the_call(channels, name):
    """Some releases of Python would accept any server."""
    listener = Listener(channels, server_context())
    client = Lines(map=channels)
    client.create_socket(socket.AF_INET, socket.SOCK_STREAM)
    client.connect(listener.address)
    client.ac_in_buffer = b"early"
    plain = client.socket
    for begin in (
        lambda: start_tls(client, client_context(), server_hostname=name),
        lambda: start_tls(client, client_context(), server_hostname=name, server_side=False),
        lambda: TLSSocket(plain, client_context(), server_side=False, server_hostname=name),
    ):
        with pytest.raises(ValueError, match=r"pass server_hostname=.*check_hostname = False"):
            begin()
    # Nothing has changed.
    assert client.socket is plain
    assert client.ac_in_buffer == b"early"


def test_context_that_verifies_names_accepts_a_client(channels):
    with pytest.warns(DeprecationWarning):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS)
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    client, theirs = pair(channels, Lines)
    with theirs, pytest.raises(ValueError, match="pass server_hostname="):
        start_tls(client, context)


def test_context_without_check_hostname_needs_no_server_hostname(channels):
    listener = Listener(channels, server_context())
    context = client_context()
    context.check_hostname = False
    client = Lines(map=channels)
    client.create_socket(socket.AF_INET, socket.SOCK_STREAM)
    client.push(b"quit\n")
    client.connect(listener.address)
    start_tls(client, context)
    drive(channels, lambda: ("close",) in client.events)
    assert client.events == [("connect", True), ("close",)]


@pytest.mark.parametrize("name", ["127.0.0.1", "127.0.0.2"])
def test_ip_address_is_verified_like_a_name(channels, name):
    listener = Listener(channels, server_context())
    client = Lines(map=channels)
    client.create_socket(socket.AF_INET, socket.SOCK_STREAM)
    client.push(b"quit\n")
    client.connect(listener.address)
    start_tls(client, client_context(), server_hostname=name)
    drive(channels, lambda: len(client.events) == 1 and listener.handlers[0].events)
    (event,) = client.events
    if name == "127.0.0.1":
        assert event == ("connect", True)
        assert listener.handlers[0].lines == [b"quit"]
    else:
        assert "IP address mismatch" in str(event[1])
        assert listener.handlers[0].lines == []


class Upgrading(Lines):
    leftovers = Leftovers.REJECT
    started = None

    def line_received(self, line):
        if line == b"STARTTLS":
            self.push(b"go ahead\n")
            self.started = start_tls(
                self, server_context(), server_side=True, leftovers=self.leftovers
            )
        else:
            Lines.line_received(self, line)


def test_start_tls_works_in_mid_stream(channels):
    handler, theirs = pair(channels, Upgrading)

    def client():
        with theirs:
            theirs.sendall(b"hello\nSTARTTLS\n")
            greeting = b""
            while not greeting.endswith(b"go ahead\n"):
                greeting += theirs.recv(100)
            with client_context().wrap_socket(theirs, server_hostname="localhost") as secure:
                secure.sendall(b"secret\nquit\n")
                answer = b""
                while data := secure.recv(100):
                    answer += data
                return greeting, answer

    running = InThread(client)
    drive(channels, running.done)
    assert running() == (b"hello\ngo ahead\n", b"secret\nbye\n")
    assert handler.lines == [b"hello", b"STARTTLS", b"secret", b"quit"]


def test_starttls_begins_at_once_when_the_plaintext_queue_is_discarded(channels):
    discarded = threading.Event()

    class Impatient(Lines):
        def line_received(self, line):
            if line != b"STARTTLS":
                Lines.line_received(self, line)
                return
            self.push(b"p" * 3_000_000)
            start_tls(self, server_context(), server_side=True)
            self.sent = 3_000_000 - sum(map(len, list(self.producer_fifo)[:-1]))
            self.discard_buffers()
            discarded.set()

    handler, theirs = pair(channels, Impatient)

    def client():
        with theirs:
            theirs.sendall(b"STARTTLS\n")
            assert discarded.wait(10)
            left = handler.sent
            while left:
                left -= len(theirs.recv(left))
            with client_context().wrap_socket(theirs, server_hostname="localhost") as secure:
                secure.sendall(b"quit\n")
                return secure.recv(100)

    running = InThread(client)
    drive(channels, running.done)
    assert running() == b"bye\n"


def test_starttls_waits_for_the_plaintext_queue(channels):
    class Busy(Upgrading):
        def line_received(self, line):
            if line == b"STARTTLS":
                self.push(b"p" * 3_000_000 + b"\n")
            Upgrading.line_received(self, line)

    _handler, theirs = pair(channels, Busy)

    def client():
        with theirs:
            theirs.sendall(b"STARTTLS\n")
            plain = bytearray()
            while not plain.endswith(b"go ahead\n"):
                plain += theirs.recv(65536)
            with client_context().wrap_socket(theirs, server_hostname="localhost") as secure:
                secure.sendall(b"quit\n")
                return bytes(plain), secure.recv(100)

    running = InThread(client)
    drive(channels, running.done)
    plain, answer = running()
    assert plain == b"p" * 3_000_000 + b"\ngo ahead\n"
    assert answer == b"bye\n"


@pytest.mark.parametrize("cut", [9, 10, 15, 23])
def test_plaintext_after_starttls_is_never_handled(channels, cut):
    handler, theirs = pair(channels, Upgrading)
    with theirs:
        sent = b"STARTTLS\nRCPT injected\n"
        theirs.sendall(sent[:cut])
        drive(channels, lambda: handler.lines)
        if cut == 9:  # it comes when TLS has begun: then it is no ClientHello
            theirs.sendall(sent[cut:])
            drive(channels, lambda: handler.events)
            assert isinstance(handler.events[0][1], ssl.SSLError)
        else:
            assert isinstance(handler.events[0][1], PlaintextAfterStartTLS)
            assert handler.events[0][1].count == cut - 9
        assert handler.lines == [b"STARTTLS"]
        assert handler.ac_in_buffer == b""


def test_invalid_leftovers_is_refused(channels):
    """Otherwise a misspelt "reject" would feed them to TLS."""
    handler, theirs = pair(channels, Lines)
    with theirs:
        for wrong in ("refuse", None):
            with pytest.raises(ValueError, match="not a valid Leftovers"):
                start_tls(handler, server_context(), server_side=True, leftovers=wrong)
        assert type(handler.socket) is socket.socket
        handler.close()


def test_plaintext_after_starttls_may_be_fed_to_tls(channels):
    class Feeding(Upgrading):
        leftovers = Leftovers.FEED

    handler, theirs = pair(channels, Feeding)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with theirs:
        theirs.sendall(b"STARTTLS\n" + outgoing.read())
        drive(channels, lambda: handler.started)
        data = theirs.recv(9)
        assert data == b"go ahead\n"
        theirs.settimeout(0.01)
        end = time.monotonic() + LIMIT
        while not handler.started.secure and time.monotonic() < end:
            asyncore.loop(timeout=0.01, map=channels, count=1)
            try:
                incoming.write(theirs.recv(65536))
                tls.do_handshake()
            except (TimeoutError, ssl.SSLWantReadError):
                pass
            theirs.sendall(outgoing.read())
        assert handler.started.secure


def test_stalled_handshake_costs_nothing_and_times_out(channels):
    class Greeting(Lines):
        def __init__(self, sock, map):  # noqa: A002 the stdlib's name
            Lines.__init__(self, sock, map)
            self.asked = 0
            self.push(b"welcome\n")  # there is always something to write

        def readable(self):
            self.asked += 1
            return True

    ours, theirs = socket.socketpair()
    handler = Greeting(ours, channels)
    handler.producer_fifo.clear()
    with theirs:
        start_tls(handler, server_context(), server_side=True, handshake_timeout=0.5)
        handler.push(b"x")
        begin = time.monotonic()
        asyncore.loop(timeout=30, map=channels)
        took = time.monotonic() - begin
    assert 0.4 < took < 15
    assert isinstance(handler.events[0][1], HandshakeTimedOut)
    assert handler.asked < 30  # not once for each time that the descriptor is writable


@pytest.mark.parametrize("ending", ["close_notify", "end", "reset"])
def test_end_without_close_notify_is_distinguished(channels, ending):
    listener = Listener(channels, server_context())

    def client():
        with (
            socket.create_connection(listener.address, LIMIT) as plain,
            client_context().wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"one\n")
            assert secure.recv(100) == b"one\n"
            if ending == "close_notify":
                secure.unwrap()
            elif ending == "end":
                socket.socket.shutdown(secure, socket.SHUT_WR)  # TCP's; SSLSocket's own ends TLS
                with suppress(OSError):  # an alert, or the end
                    secure.recv(100)
            elif ending == "reset":
                secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    running = InThread(client)
    drive(channels, lambda: listener.handlers and listener.handlers[0].events)
    drive(channels, running.done)
    running()
    (handler,) = listener.handlers
    assert handler.lines == [b"one"]
    assert handler.events == [("close",)]
    assert handler.socket.truncated is (ending != "close_notify")


def test_last_bytes_are_sent_after_close_or_dropped_after_the_limit(channels, monkeypatch):
    class Leaving(Lines):
        def line_received(self, line):
            self.send(b"z" * 60_000)
            for _ in range(100):
                if not self.send(b"z" * 60_000):
                    break
            self.close()

    for reads in (True, False):
        monkeypatch.setattr("txasynchat.compat._tls_socket.CLOSE_TIMEOUT", LIMIT if reads else 0.3)
        listener = Listener(channels, server_context(), Leaving)
        go_on = threading.Event()

        def client(address=listener.address, reads=reads, go_on=go_on):
            with socket.create_connection(address, LIMIT) as plain:
                secure = client_context().wrap_socket(plain, server_hostname="localhost")
                secure.sendall(b"one\n")
                go_on.wait(LIMIT)
                count = 0
                if reads:
                    while data := secure.recv(65536):
                        count += len(data)
                secure.close()
                return count

        running = InThread(client)
        drive(channels, lambda: listener.handlers and listener.handlers[0].lines)  # noqa: B023
        listener.close()
        if reads:
            go_on.set()
        asyncore.loop(timeout=30, map=channels)  # ends when the last bytes have gone
        go_on.set()
        count = running()
        assert channels == {}
        if reads:
            assert count > 60_000
            assert count % 60_000 == 0  # all that send() took, to the last byte


def test_channel_that_half_closes_continues_to_read(channels):
    """Its output arrives, then the end of the stream; lines still arrive."""

    class Ending(Lines):
        sent = 0

        def line_received(self, line):
            if not self.sent:
                while taken := self.send(b"z" * 60_000):
                    self.sent += taken
                self.socket.shutdown(socket.SHUT_WR)

    listener = Listener(channels, server_context(), Ending)

    def client():
        with socket.create_connection(listener.address, LIMIT) as plain:
            secure = client_context().wrap_socket(
                plain, server_hostname="localhost", suppress_ragged_eofs=False
            )
            secure.sendall(b"one\n")
            count = sum(map(len, iter(lambda: secure.recv(65_536), b"")))
            secure.sendall(b"two\nthree\n")
            while len(listener.handlers[0].lines) < 3:
                go_on.wait(0.01)
            secure.close()
            return count

    go_on = threading.Event()
    running = InThread(client)
    drive(channels, running.done)
    (handler,) = listener.handlers
    assert running() == handler.sent > 60_000
    assert handler.lines == [b"one", b"two", b"three"]


def test_wrong_arguments_raise_at_the_call(channels):
    listener = Listener(channels, None)
    with pytest.raises(ValueError, match=r"cannot start TLS: .* has no connection"):
        start_tls(listener, server_context())
    handler, theirs = pair(channels, Lines)
    with theirs:
        start_tls(handler, server_context())
        with pytest.raises(ValueError, match=r"cannot start TLS: .* has it already"):
            start_tls(handler, server_context())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"EHLO localhost\r\n",
        bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0")
        + bytes(16),
        b"\x16\x03\x01\x40\x01" + b"\0" * 0x4001,
        b"\0" * 100,
    ],
    ids=["http", "smtp", "sslv2", "record too long", "zeros"],
)
def test_bytes_that_are_not_tls_end_only_their_connection(channels, sent):
    listener = Listener(channels, server_context())
    with socket.create_connection(listener.address, LIMIT) as client:
        client.sendall(sent)
        drive(channels, lambda: listener.handlers and listener.handlers[0].events)
        assert isinstance(listener.handlers[0].events[0][1], ssl.SSLError)
        assert listener.handlers[0].lines == []
    running = InThread(talk, listener.address, client_context(), b"quit\n")
    drive(channels, running.done)
    assert running() == b"bye\n"
