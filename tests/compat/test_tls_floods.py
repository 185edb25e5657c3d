"""
Floods of clients that start a connection of the facade's own TLS and do not continue: others are
served, and the number of unfinished handshakes is bounded.
"""

import gc
import itertools
import sys
import time

import pytest

from helpers.channels import (
    LIMIT,
    InThread,
    Lines,
    Listener,
    client_context,
    drive,
    server_context,
    talk_over,
)
from helpers.wire import Memory, drain, raw_from
from txasynchat.compat import TLSSocket, _tls_socket, asyncore, start_tls
from txasynchat.errors import HandshakeFailed

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the loopback has one address elsewhere"
)

#: The addresses of the attackers and of the honest client.
THEIRS, OURS = "127.0.0.2", "127.0.0.3"
#: Seconds.
PROMPTLY = 5.0


def hello():
    return Memory(client_context(), "localhost").hello()


#: What attackers send.
ATTACKS = {"nothing": lambda: b"", "half a hello": lambda: hello()[:100], "no answer": hello}
ORIGINS = {
    "one address": lambda: itertools.repeat(THEIRS),
    "many addresses": lambda: (f"127.0.1.{last}" for last in range(1, 250)),
}


@pytest.fixture
def attack():
    socks = []

    def connect(listener, count, data=b"", addresses=ORIGINS["one address"]):
        made = []
        for address in itertools.islice(addresses(), count):
            sock = raw_from(address, listener.address[1])
            socks.append(sock)
            made.append(sock)
            if data:
                sock.sendall(data)
        return made

    yield connect
    for sock in socks:
        sock.close()


@pytest.fixture
def small_limit(monkeypatch):
    """Make the limit small."""
    monkeypatch.setattr(_tls_socket, "default_limit", lambda: 20)
    return 20


def pending(listener):
    return _tls_socket._Place._all[listener._tls_context]


@pytest.mark.parametrize("use_poll", [False, True])
@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("what", ATTACKS)
def test_honest_client_is_served_during_any_flood(channels, attack, what, origin, use_poll):
    listener = Listener(channels, server_context())
    socks = attack(listener, 60, ATTACKS[what](), ORIGINS[origin])
    drive(channels, lambda: len(listener.handlers) == 60, use_poll=use_poll)
    assert len(pending(listener)) == 60
    began = time.monotonic()
    running = InThread(talk_over, raw_from(OURS, listener.address[1]), client_context(), b"quit\n")
    drive(channels, running.done, use_poll=use_poll)
    assert running() == b"bye\n"
    assert time.monotonic() - began < PROMPTLY
    assert len(pending(listener)) == 60
    for sock in socks:
        sock.close()
    drive(channels, lambda: len(channels) == 1, use_poll=use_poll)
    assert len(pending(listener)) == 0
    assert pending(listener)._counts == {}


@pytest.mark.parametrize("use_poll", [False, True])
@pytest.mark.parametrize("what", ATTACKS)
def test_flood_from_one_address_does_not_evict_a_slow_client_from_another(
    channels, attack, small_limit, what, use_poll
):
    listener = Listener(channels, server_context())
    slow = raw_from(OURS, listener.address[1])
    drive(channels, lambda: listener.handlers, use_poll=use_poll)
    data = ATTACKS[what]()
    running = InThread(attack, listener, 60, data)
    drive(channels, running.done, use_poll=use_poll)
    socks = running()
    ended = InThread(list, map(drain, socks[:41]))
    drive(channels, ended.done, use_poll=use_poll)
    assert len(pending(listener)) == small_limit
    drive(channels, lambda: len(channels) == small_limit + 1, use_poll=use_poll)
    told = [handler.events for handler in listener.handlers if handler.events]
    assert [type(error) for ((_, error),) in told] == [HandshakeFailed] * 41
    running = InThread(talk_over, slow, client_context(), b"quit\n")
    drive(channels, running.done, use_poll=use_poll)
    assert running() == b"bye\n"
    asyncore.close_all(channels)
    assert len(pending(listener)) == 0


@pytest.mark.parametrize("poll", [asyncore.poll, asyncore.poll2])
def test_eviction_reaches_channels_polled_by_hand(channels, attack, small_limit, poll):
    listener = Listener(channels, server_context())
    attack(listener, small_limit + 1)
    end = time.monotonic() + LIMIT
    while not any(handler.events for handler in listener.handlers):
        assert time.monotonic() < end
        poll(0.05, channels)
    ((_, error),) = listener.handlers[0].events
    assert "too many handshakes are unfinished" in str(error)


def test_clients_silent_after_starttls_count_as_pending(channels, attack, small_limit):
    context = server_context()

    class Chat(Lines):
        def line_received(self, line):
            self.push(b"go\n")
            start_tls(self, context, server_side=True)

    listener = Listener(channels, None, Chat)
    socks = attack(listener, small_limit + 5, b"STARTTLS\n")
    ended = InThread(list, map(drain, socks[:5]))
    drive(channels, ended.done)
    assert len(_tls_socket._Place._all[context]) == small_limit
    asyncore.close_all(channels)
    assert len(_tls_socket._Place._all[context]) == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_socket_dropped_without_closing_is_no_longer_counted(channels, attack):
    class Forgetful(Listener):
        def handle_accepted(self, sock, addr):
            assert type(sock) is TLSSocket
            assert len(pending(self)) == 1
            self.handlers.append(addr)

    listener = Forgetful(channels, server_context())
    attack(listener, 1)
    drive(channels, lambda: listener.handlers)
    gc.collect()
    assert len(pending(listener)) == 0
