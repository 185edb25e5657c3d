"""
Peers of the facade's own TLS that stop, vanish, or send what they should not: each is told of once,
costs nothing while it does nothing, and leaves nothing behind.

Also covers `compat._tls_socket`.
"""

import gc
import itertools
import shutil
import socket
import ssl
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from helpers.channels import (
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
from helpers.wire import (
    HOSTILE,
    Memory,
    TrafficKeys,
    after_a_slow_read,
    ask_for_renegotiation,
    drain,
    one_byte_records,
    raw,
    reset,
)
from txasynchat import Leftovers
from txasynchat.compat import asyncore, start_tls
from txasynchat.compat._tls_socket import handshake_budget
from txasynchat.errors import HandshakeTimedOut, PlaintextAfterStartTLS

BOTH_WAYS = pytest.mark.parametrize("use_poll", [False, True], ids=["select", "poll"])
EACH_VERSION = pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])


def memory(version=None):
    return Memory(client_context(version), "localhost")


class Logging(Lines):
    """
    As in many programs, an error is logged and the channel left open.
    """

    def handle_error(self):
        self.events.append(("error", sys.exc_info()[1]))


class Starting(Listener):
    """
    Listens in plain; each handler starts TLS as soon as it is made.
    """

    def __init__(self, map, tls, handler=Lines):  # noqa: A002 the stdlib's name
        Listener.__init__(self, map, None, handler)
        self.context = tls

    def handle_accepted(self, sock, addr):
        Listener.handle_accepted(self, sock, addr)
        start_tls(self.handlers[-1], self.context, server_side=True)


def is_over(listener):
    return lambda: listener.handlers and listener.handlers[-1].events


def idle_passes(channels, seconds, *, use_poll=False):
    """
    Run passes for so long, and count them: an event that repeats makes thousands.
    """
    end = time.monotonic() + seconds
    passes = 0
    while (left := end - time.monotonic()) > 0:
        asyncore.loop(timeout=left, use_poll=use_poll, map=channels, count=1)
        passes += 1
    return passes


def limits(monkeypatch, first):
    """
    Handshake limits: one is the peer's, the others allow for a busy machine.
    """
    for limit in (first, 2 * first, 4 * first, 8 * first):
        monkeypatch.setattr("txasynchat.compat.tls.HANDSHAKE_TIMEOUT", limit)
        yield limit
    pytest.fail("this machine is too busy")


def batched(items, size):
    return [items[first : first + size] for first in range(0, len(items), size)]


def still_serves(channels, listener):
    running = InThread(talk, listener.address, client_context(), b"quit\n")
    drive(channels, running.done)
    return running() == b"bye\n"


# -- bytes that are not a handshake


@BOTH_WAYS
@pytest.mark.parametrize("listens", [Listener, Starting])
@pytest.mark.parametrize("what", HOSTILE)
def test_bytes_that_are_not_a_handshake_end_only_their_connection(
    channels, what, listens, use_poll
):
    listener = listens(channels, server_context())

    def send():
        client = raw(listener.address)
        with suppress(ConnectionError):
            client.sendall(HOSTILE[what])
        return drain(client)

    running = InThread(send)
    drive(channels, running.done, use_poll=use_poll)
    answer = running()
    assert answer[:1] in (b"", b"\x15")  # an alert, or nothing
    (handler,) = listener.handlers
    assert [event[0] for event in handler.events] == ["error"]
    assert isinstance(handler.events[0][1], ssl.SSLError)
    assert handler.lines == []
    assert list(channels.values()) == [listener]
    assert still_serves(channels, listener)


@EACH_VERSION
def test_peer_that_stops_at_any_byte_is_disconnected_and_costs_nothing(
    channels, monkeypatch, version
):
    listener = Listener(channels, server_context(version))
    hello = memory(version).hello()
    stops = [*range(len(hello) + 1)]

    def connect(some):
        socks = []
        for count in some:
            sock = raw(listener.address)
            sock.sendall(hello[:count])
            socks.append(sock)
        return socks

    for some in batched(stops, 400):
        for limit in limits(monkeypatch, 1.5):
            listener.handlers.clear()
            began = time.monotonic()
            running = InThread(connect, some)
            drive(channels, lambda: running.done() and len(listener.handlers) == len(some))  # noqa: B023
            asyncore.loop(timeout=0, map=channels, count=1)  # the last ones' bytes
            used = time.process_time()
            passes = idle_passes(channels, 0.5)
            used = time.process_time() - used
            in_time = time.monotonic() - began < limit
            if in_time:
                assert not any(handler.events for handler in listener.handlers)
                assert passes < 5
                assert used < 0.1
            drive(channels, lambda: all(handler.events for handler in listener.handlers))
            for sock in running():
                sock.close()
            for handler in listener.handlers:
                ((_, error),) = handler.events
                assert type(error) is HandshakeTimedOut
            if in_time:
                break
    assert list(channels.values()) == [listener]


@pytest.mark.slow
@EACH_VERSION
def test_peer_that_stops_within_its_last_flight_is_disconnected_too(channels, monkeypatch, version):
    listener = Listener(channels, server_context(version))

    def shake(sock, count):
        sock.sendall(memory(version).shake(sock)[:count])

    for count in (0, 1, 4, 5, 6, 20, -1):
        for limit in limits(monkeypatch, 1.0):
            began = time.monotonic()
            with raw(listener.address) as sock:
                running = InThread(shake, sock, count)
                drive(channels, running.done)
                in_time = time.monotonic() - began < limit
                with nullcontext() if in_time else suppress(ConnectionError):
                    running()
                drive(channels, is_over(listener))
            ((_, error),) = listener.handlers[-1].events
            assert type(error) is HandshakeTimedOut
            if in_time:
                break


@pytest.mark.parametrize("poll", [asyncore.poll, asyncore.poll2])
def test_stalled_handshake_times_out_in_passes_by_hand_too(channels, monkeypatch, poll):
    monkeypatch.setattr("txasynchat.compat.tls.HANDSHAKE_TIMEOUT", 0.2)
    listener = Listener(channels, server_context())
    with raw(listener.address):
        end = time.monotonic() + LIMIT
        while not is_over(listener)() and time.monotonic() < end:
            poll(0.05, channels)
        ((_, error),) = listener.handlers[0].events
    assert type(error) is HandshakeTimedOut
    assert list(channels.values()) == [listener]


@BOTH_WAYS
def test_simultaneous_handshakes_do_not_delay_other_channels(channels, monkeypatch, use_poll):
    monkeypatch.setattr(handshake_budget, "seconds", 0.0)  # one step in each pass
    listener = Listener(channels, server_context())
    hello = memory().hello()
    socks = []

    def connect():
        socks.extend(raw(listener.address) for _ in range(10))

    running = InThread(connect)
    drive(channels, lambda: running.done() and len(listener.handlers) == 10, use_poll=use_poll)
    handler, theirs = pair(channels, Lines)
    for sock in socks:
        sock.sendall(hello)
        sock.setblocking(False)
    answered = []
    theirs.sendall(b"hello\n")
    for turn in range(1, 11):
        asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
        assert handler.lines == [b"hello"]
        for sock in socks:
            with suppress(BlockingIOError):
                if sock not in answered and sock.recv(100):
                    answered.append(sock)
        assert len(answered) == turn
    theirs.close()
    for sock in socks:
        sock.close()


# -- slow, and good


@EACH_VERSION
def test_records_of_one_byte_are_accepted(channels, version):
    listener = Listener(channels, server_context(version))

    def run():
        client = memory()
        with raw(listener.address) as sock:
            client.finish(sock)
            for byte in b"hello\n":
                sock.sendall(client.encrypt(bytes((byte,))))
            return client.read(sock, 6)

    running = InThread(run)
    drive(channels, running.done)
    assert running() == b"hello\n"


def test_hello_in_records_of_one_byte_is_accepted(channels):
    listener = Listener(channels, server_context())

    def run():
        client = memory()
        with raw(listener.address) as sock:
            sock.sendall(one_byte_records(client.hello()))
            client.finish(sock)
            sock.sendall(client.encrypt(b"hello\n"))
            return client.read(sock, 6)

    running = InThread(run)
    drive(channels, running.done)
    assert running() == b"hello\n"


@pytest.mark.parametrize("size", [1, 2, 5, 6, 100, 1_000, 16_384, 16_411, 65_536])
def test_any_split_of_the_wire_gives_the_handler_the_same_calls(channels, size):
    text = b"".join(b"%d %s\n" % (number, b"x" * (number * 37 % 900)) for number in range(60))
    text += b"y" * 20_000 + b"\n"
    listener = Listener(channels, server_context())

    def run():
        client = memory()
        with raw(listener.address) as sock:
            client.finish(sock)
            wire = b"".join(map(client.encrypt, text.splitlines(keepends=True)))
            for at in range(0, len(wire), size):
                sock.sendall(wire[at : at + size])
            return client.read(sock, len(text))

    running = InThread(run)
    drive(channels, running.done)
    assert running() == text


# -- what OpenSSL would do on its own


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")
def test_renegotiation_of_tls_1_2_is_refused(channels):
    listener = Listener(channels, server_context())

    running = InThread(lambda: ask_for_renegotiation(listener.address[1]))
    drive(channels, running.done)
    said = running()
    assert b"no renegotiation" in said or b"no_renegotiation" in said
    drive(channels, is_over(listener))
    (handler,) = listener.handlers
    assert handler.lines == [b"hello"]
    ((what, error),) = handler.events
    assert what == "error"
    assert "alert" in str(error).lower()  # the client's, which would not continue without it


def test_thousand_key_updates_are_followed(channels):
    listener = Listener(channels, server_context())

    def run():
        sock = raw(listener.address)
        keys = TrafficKeys.shake(sock, client_context(VERSIONS[1]), "localhost")
        sock.sendall(keys.key_updates(1_000) + keys.record(23, b"hello\n"))
        sock.shutdown(socket.SHUT_WR)
        return drain(sock)

    running = InThread(run)
    drive(channels, running.done)
    answer = running()
    assert len(answer) > 1_000 * 20  # each is answered
    (handler,) = listener.handlers
    assert handler.lines == [b"hello"]
    assert handler.events == [("close",)]
    assert handler.socket.truncated


def test_peer_that_requests_key_updates_and_reads_none_fills_no_memory(channels, monkeypatch):
    monkeypatch.setattr("txasynchat.compat._tls_socket.MOST_UNSENT", 10_000)

    class Small(Listener):
        def handle_accepted(self, sock, addr):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            Listener.handle_accepted(self, sock, addr)

    listener = Small(channels, server_context())
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(LIMIT)
    sock.connect(listener.address)

    def run():
        keys = TrafficKeys.shake(sock, client_context(VERSIONS[1]), "localhost")
        sock.sendall(keys.key_updates(6_000))

    running = InThread(run)
    end = time.monotonic() + LIMIT
    while not running.done() and time.monotonic() < end:
        asyncore.loop(timeout=0.1, map=channels, count=1)
        handler = listener.handlers[0] if listener.handlers else None
        if handler is not None and len(handler.socket._unsent) > 10_000:
            break
    assert idle_passes(channels, 0.3) < 5
    # One reading after the limit was passed, and no more.
    assert 10_000 < len(handler.socket._unsent) < 10_000 + 65_536 + 1_000
    reset(sock)
    drive(channels, is_over(listener))
    with suppress(OSError):
        running()
    assert handler.events == [("close",)]


# -- the end, at each stage


def before_the_hello(sock):
    pass


def within_the_hello(sock):
    sock.sendall(memory().hello()[:100])


def after_the_hello(sock):
    sock.sendall(memory().hello())


def after_the_answer(sock):
    sock.sendall(memory().hello())
    sock.recv(1)


def within_the_last_flight(sock):
    sock.sendall(memory().shake(sock)[:9])


def after_the_handshake(sock):
    memory().finish(sock)


def within_a_record(sock):
    client = memory()
    client.finish(sock)
    sock.sendall(client.encrypt(b"hello\n")[:-1])


def after_a_message(sock):
    client = memory()
    client.finish(sock)
    sock.sendall(client.encrypt(b"hello\n"))
    client.read(sock, 6)


def after_close_notify(sock):
    client = memory()
    client.finish(sock)
    sock.sendall(client.goodbye())


HANDSHAKE = [
    before_the_hello,
    within_the_hello,
    after_the_hello,
    after_the_answer,
    within_the_last_flight,
]
AFTERWARDS = [after_the_handshake, within_a_record, after_a_message, after_close_notify]


@BOTH_WAYS
@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("stage", [*HANDSHAKE, *AFTERWARDS], ids=lambda stage: stage.__name__)
def test_disconnect_at_any_stage_is_reported_once(channels, stage, end, use_poll):
    listener = Listener(channels, server_context())

    def run():
        sock = raw(listener.address)
        stage(sock)
        end(sock)

    running = InThread(run)
    drive(channels, running.done, use_poll=use_poll)
    running()
    drive(channels, is_over(listener), use_poll=use_poll)
    passes = idle_passes(channels, 0.1, use_poll=use_poll)
    assert passes < 10
    (handler,) = listener.handlers
    (event,) = handler.events
    if stage in AFTERWARDS:
        assert event == ("close",)
        if stage is not after_close_notify:
            assert handler.socket.truncated
    elif event != ("close",):
        assert isinstance(event[1], (ssl.SSLError, ConnectionError))
    else:  # in poll mode a lost connection calls handle_close, as in the stdlib
        assert use_poll
    assert list(channels.values()) == [listener]


@BOTH_WAYS
@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("stage", HANDSHAKE, ids=lambda stage: stage.__name__)
def test_handler_that_leaves_a_failed_channel_open_learns_of_the_end(
    channels, stage, end, use_poll
):
    listener = Listener(channels, server_context(), Logging)

    def run():
        sock = raw(listener.address)
        stage(sock)
        end(sock)

    running = InThread(run)
    drive(channels, running.done, use_poll=use_poll)
    running()
    drive(channels, lambda: len(channels) == 1 and listener.handlers, use_poll=use_poll)
    (handler,) = listener.handlers
    what = [event[0] for event in handler.events]
    assert what in (["error", "close"], ["close"])
    assert use_poll or what == ["error", "close"]


class Deaf(Logging):
    """
    Never closes anything.
    """

    def handle_close(self):
        self.events.append(("close",))


@BOTH_WAYS
def test_a_handler_that_never_closes_costs_next_to_nothing(channels, use_poll):
    listener = Listener(channels, server_context(), Deaf)
    with raw(listener.address) as sock:
        sock.sendall(HOSTILE["plain HTTP"])
        drive(channels, is_over(listener), use_poll=use_poll)
    idle_passes(channels, 0.3, use_poll=use_poll)
    used = time.process_time()
    passes = idle_passes(channels, 0.5, use_poll=use_poll)
    used = time.process_time() - used
    assert passes < 50
    assert used < 0.2
    assert [event[0] for event in listener.handlers[0].events[:2]] == ["error", "close"]


@BOTH_WAYS
def test_client_that_leaves_its_failed_channel_open_learns_of_the_end(channels, use_poll):
    listener = Listener(channels, server_context())
    client = Logging(map=channels)
    client.create_socket()
    client.connect(listener.address)
    start_tls(client, client_context(trusting=False), server_hostname="localhost")
    drive(channels, lambda: len(client.events) > 1, use_poll=use_poll)
    assert isinstance(client.events[0][1], ssl.SSLCertVerificationError)
    assert client.events[1:] == [("close",)]


@BOTH_WAYS
def test_peer_that_closed_before_it_was_accepted_is_reported(channels, use_poll):
    listener = Starting(channels, server_context())
    reset(raw(listener.address))
    drive(channels, is_over(listener), use_poll=use_poll)
    assert len(listener.handlers[0].events) == 1
    assert list(channels.values()) == [listener]


@BOTH_WAYS
@pytest.mark.parametrize("data", [b"", b"x", b"one\ntwo\n"])
def test_end_that_arrives_with_the_last_data_is_reported_at_once(channels, data, use_poll):
    """No other byte will arrive, because the peer waits for our close_notify."""
    listener = Listener(channels, server_context())

    def run():
        client = memory()
        sock = raw(listener.address)
        client.finish(sock)
        sock.sendall((client.encrypt(data) if data else b"") + client.goodbye())
        return drain(sock)

    running = InThread(run)
    drive(channels, running.done, use_poll=use_poll)
    running()
    (handler,) = listener.handlers
    assert handler.lines == data.split()[: data.count(b"\n")]
    assert handler.events == [("close",)]
    assert not handler.socket.truncated


def test_an_end_waits_for_a_handler_that_does_not_read(channels):
    class Pausing(Lines):
        ac_in_buffer_size = 4
        reads = True

        def readable(self):
            return self.reads

        def line_received(self, line):
            self.reads = False

    for poll in (None, asyncore.poll, asyncore.poll2):
        listener = Listener(channels, server_context(), Pausing)

        def run(listener=listener):
            client = memory()
            sock = raw(listener.address)
            client.finish(sock)
            sock.sendall(client.encrypt(b"aaa\nbbb\nccc\n") + client.goodbye())
            return drain(sock)

        running = InThread(run)
        end = time.monotonic() + LIMIT
        while not running.done() and time.monotonic() < end:
            if poll is None:
                asyncore.loop(timeout=0.02, map=channels, count=1)
            else:
                poll(0.02, channels)
            for handler in listener.handlers:
                if not handler.reads:
                    assert not handler.events
                    handler.reads = True
        running()
        (handler,) = listener.handlers
        assert handler.lines == [b"aaa", b"bbb", b"ccc"]
        assert handler.events == [("close",)]
        listener.close()


def test_data_left_by_a_failed_handler_does_not_wait_for_more(channels):
    class Failing(Logging):
        ac_in_buffer_size = 4

        def line_received(self, line):
            raise ValueError(line)

    listener = Listener(channels, server_context(), Failing)
    client = memory()

    def run():
        sock = raw(listener.address)
        client.finish(sock)
        sock.sendall(client.encrypt(b"aaa\nbbb\nccc\n"))
        return sock

    running = InThread(run)
    drive(channels, lambda: listener.handlers and len(listener.handlers[0].events) == 3)
    running().close()
    assert listener.handlers[0].lines == [b"aaa", b"bbb", b"ccc"]


def test_reset_ends_a_channel_that_does_not_read_and_has_output_queued(channels):
    class Sending(Lines):
        def readable(self):
            return not self.lines

    listener = Listener(channels, server_context(), Sending)

    def run():
        client = memory()
        sock = raw(listener.address)
        client.finish(sock)
        sock.sendall(client.encrypt(b"big\n" * 5))
        return sock

    running = InThread(run)
    drive(channels, running.done)
    sock = running()
    drive(channels, lambda: listener.handlers[0].lines)
    reset(sock)
    assert idle_passes(channels, 0.3) < 20
    (handler,) = listener.handlers
    assert handler.socket._unsent == b""


# -- our end


@BOTH_WAYS
def test_peer_that_never_answers_close_notify_keeps_nothing_open(channels, use_poll):
    listener = Listener(channels, server_context())
    client = memory()

    def run():
        sock = raw(listener.address)
        client.finish(sock)
        sock.sendall(client.encrypt(b"quit\n"))
        return sock

    running = InThread(run)
    drive(channels, is_over_or_closed(listener), use_poll=use_poll)
    assert list(channels.values()) == [listener]
    with running() as sock:
        assert client.read(sock, 100) == b"bye\n"
        assert client.ended
        assert sock.recv(1) == b""


@BOTH_WAYS
@pytest.mark.parametrize(
    "send_buffer",
    [
        pytest.param(4096, id="small buffer"),
        pytest.param(
            131_072,
            id="large buffer",
            marks=pytest.mark.skipif(
                sys.platform != "linux", reason="no other system says how much it holds"
            ),
        ),
    ],
)
def test_slow_reader_still_gets_the_last_bytes(channels, monkeypatch, use_poll, send_buffer):
    """A large buffer stays unwritable for longer than the limit while the peer empties it."""

    class Leaving(Lines):
        def line_received(self, line):
            while self.send(b"z" * 60_000):
                pass
            self.close()

    class Small(Listener):
        def handle_accepted(self, sock, addr):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            Listener.handle_accepted(self, sock, addr)

    for limit in (0.5, 1.0, 2.0, 4.0):
        monkeypatch.setattr("txasynchat.compat._tls_socket.CLOSE_TIMEOUT", limit)
        listener = Small(channels, server_context(), Leaving)
        took, longest, received, ended = leave_slowly(channels, listener, limit, use_poll=use_poll)
        if ended or longest < limit / 2:
            break  # else the machine stopped us for longer than the peer may
    assert ended
    assert took > limit
    assert received % 60_000 == 0
    assert received > 0
    assert not channels


def leave_slowly(channels, listener, limit, *, use_poll):
    """
    Read in small pieces what a handler sends when it closes, in the thread that runs the passes.

    Returns:
        How long that took, how long the longest piece, the number of bytes, and whether the stream
        ended in order.
    """
    client = memory()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(LIMIT)
    sock.connect(listener.address)

    def run():
        client.finish(sock)
        sock.sendall(client.encrypt(b"go\n"))

    running = InThread(run)
    drive(channels, is_over_or_closed(listener), use_poll=use_poll)
    running()
    listener.close()
    received = 0
    longest = 0.0
    began = last = time.monotonic()
    with sock:
        sock.setblocking(False)
        while not client.ended and last - began < LIMIT:
            if channels:
                idle_passes(channels, limit / 5, use_poll=use_poll)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            with suppress(BlockingIOError, ConnectionResetError):
                if not (data := sock.recv(8192)):
                    break
                client.incoming.write(data)
            with suppress(ssl.SSLWantReadError):
                received += len(client.tls.read(60_000))
                while client.incoming.pending:
                    received += len(client.tls.read(60_000))
            with suppress(ssl.SSLWantReadError):
                client.ended = client.tls.read(1) == b""
    return last - began, longest, received, client.ended


def is_over_or_closed(listener):
    return lambda: listener.handlers and not listener.handlers[-1].connected


# -- in mid-stream


@pytest.mark.parametrize("cut", range(1, 24))
@BOTH_WAYS
def test_plaintext_after_starttls_is_never_handled_at_any_split(channels, cut, use_poll):
    class Upgrading(Lines):
        def line_received(self, line):
            if line == b"STARTTLS":
                self.push(b"go ahead\n")
                start_tls(self, server_context(), server_side=True)
            else:
                Lines.line_received(self, line)

    handler, theirs = pair(channels, Upgrading)
    sent = b"STARTTLS\nRCPT injected\n"
    with theirs:
        theirs.sendall(sent[:cut])
        asyncore.loop(timeout=0.1, use_poll=use_poll, map=channels, count=1)
        with suppress(BrokenPipeError):
            theirs.sendall(sent[cut:])
        drive(channels, lambda: handler.events, use_poll=use_poll)
    ((_, error),) = handler.events
    assert isinstance(error, ssl.SSLError if cut == 9 else PlaintextAfterStartTLS)
    assert handler.lines == [b"STARTTLS"]
    assert handler.ac_in_buffer == b""
    assert not channels


@pytest.mark.parametrize("early", ["nothing", "a hello"])
def test_tls_begins_by_itself_after_a_full_queue(channels, early):
    """No other event would start the handshake."""
    handler, theirs = pair(channels, Lines)
    handler.push(b"x" * 3_000_000)
    assert handler.producer_fifo
    if early == "a hello":
        client = memory()
        handler.ac_in_buffer = client.hello()
        start_tls(handler, server_context(), server_side=True, leftovers=Leftovers.FEED)
    else:
        start_tls(handler, client_context(), server_hostname="localhost")

    def run():
        received = bytearray()
        while len(received) <= 3_000_005:
            received += theirs.recv(65536)
        return bytes(received)

    running = InThread(run)
    with theirs:
        drive(channels, running.done)
        received = running()
    assert received[:3_000_000] == b"x" * 3_000_000
    assert received[3_000_000] == 22  # a record of the handshake


@BOTH_WAYS
def test_peer_that_never_reads_the_plaintext_is_disconnected_after_the_limit(channels, use_poll):
    handler, theirs = pair(channels, Lines)
    handler.push(b"x" * 3_000_000)
    start_tls(handler, server_context(), handshake_timeout=0.2)
    with theirs:
        drive(channels, lambda: handler.events, use_poll=use_poll)
        ((_, error),) = handler.events
        assert type(error) is HandshakeTimedOut
        assert not channels


@pytest.mark.parametrize("poll", [asyncore.poll, asyncore.poll2])
def test_peer_that_never_reads_the_plaintext_is_disconnected_in_passes_by_hand_too(channels, poll):
    handler, theirs = pair(channels, Lines)
    handler.push(b"x" * 3_000_000)
    start_tls(handler, server_context(), handshake_timeout=0.2)
    end = time.monotonic() + LIMIT
    with theirs:
        while channels and time.monotonic() < end:
            poll(0.05, channels)
    ((_, error),) = handler.events
    assert type(error) is HandshakeTimedOut


@BOTH_WAYS
def test_peer_that_reads_the_plaintext_slowly_completes_the_handshake(channels, use_poll):
    def shake(theirs):
        with client_context().wrap_socket(theirs, server_hostname="localhost") as client:
            client.sendall(b"hello\n")
            return client.recv(100)

    # The whole takes longer than the limit, each piece does not.
    sizes = (*[500_000] * 16, 2_000_000)
    for limit in (0.5, 1.0, 2.0, 4.0):
        handler, theirs = pair(channels, Lines)
        handler.push(b"x" * 10_000_000)
        start_tls(handler, server_context(), handshake_timeout=limit)
        began = time.monotonic()
        running = InThread(after_a_slow_read, theirs, sizes, limit, shake)
        drive(channels, running.done, use_poll=use_poll)
        theirs.close()
        if (answer := running()) is not None:
            break
        asyncore.close_all(channels, ignore_all=True)
    assert answer == b"hello\n"
    assert time.monotonic() - began > limit


@pytest.mark.parametrize("checks_names", [True, False])
def test_client_context_is_refused_when_listening_begins(channels, checks_names):
    """The error names what to write instead, and is the same in each release of Python."""
    context = client_context()
    context.check_hostname = checks_names
    with pytest.raises(ssl.SSLError, match=r"PROTOCOL_TLS_CLIENT.*Purpose\.CLIENT_AUTH"):
        Listener(channels, context)


@pytest.mark.parametrize("checks_names", [True, False])
def test_client_context_is_refused_where_a_server_starts_tls(channels, checks_names):
    """The connection stays in plain."""
    context = client_context()
    context.check_hostname = checks_names
    handler, theirs = pair(channels, Lines)
    with theirs:
        plain = handler.socket
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_TLS_CLIENT.*Purpose\.CLIENT_AUTH"):
            start_tls(handler, context, server_side=True)
        assert handler.socket is plain
        theirs.sendall(b"a line\n")
        drive(channels, lambda: handler.lines)
        assert theirs.recv(100) == b"a line\n"


# -- what they leave behind


class Forgetting(Lines):
    """
    Keeps no exception, so no frame either.
    """

    def handle_error(self):
        self.close()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.counts_references
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_hostile_connections_leave_no_memory_behind(channels):
    listener = Listener(channels, server_context(), Forgetting)
    hello = memory().hello()

    def attack(numbers):
        for number in numbers:
            what = number % (len(HOSTILE) + 3)
            sock = raw(listener.address)
            with suppress(ConnectionError):
                if what < len(HOSTILE):
                    sock.sendall(list(HOSTILE.values())[what])
                elif what == len(HOSTILE):
                    sock.sendall(hello)
                    sock.recv(1)
                elif what == len(HOSTILE) + 1:
                    within_a_record(sock)
                else:
                    after_close_notify(sock)
            (reset if number % 2 else socket.socket.close)(sock)

    def survive(count):
        # Few at once: what allocators keep is as much as the most that there were at one time, and
        # that is the machine's business.
        for first in range(0, count, 10):
            running = InThread(attack, range(first, first + 10))
            drive(channels, lambda running=running: running.done() and len(channels) == 1)
            running()
            drive(channels, lambda: len(listener.handlers) == 10 and len(channels) == 1)
            listener.handlers.clear()

    survive(200)
    gc.collect()
    # What the traceback of a failed test keeps alive does not count here.
    kept = [one for one in gc.get_objects() if isinstance(one, ssl.SSLObject)]
    gc.disable()  # nothing may keep the memory
    try:
        sizes = [resident()]
        for _ in range(3):
            survive(200)
            sizes.append(resident())
        left = [one for one in gc.get_objects() if isinstance(one, ssl.SSLObject)]
    finally:
        gc.enable()
    assert [one for one in left if not any(one is other for other in kept)] == []
    # The allocator may take something once; a leak grows with each round.
    assert min(later - sooner for sooner, later in itertools.pairwise(sizes)) < 1 << 18, sizes
