"""
Many clients of the facade's own TLS that connect and do not go on: they keep nobody else out, and
their number is bounded.
"""

import gc
import itertools
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tls_matrix"))

from channels import (
    LIMIT,
    InThread,
    Lines,
    Listener,
    client_context,
    drive,
    server_context,
    talk_over,
)
from wire import Memory, drain, raw_from

from txasynchat.compat import TLSSocket, asyncore, start_tls, tls
from txasynchat.errors import HandshakeFailed

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the loopback has one address elsewhere"
)

#: Where the clients connect from that do not go on, and the one that does.
THEIRS, OURS = "127.0.0.2", "127.0.0.3"
#: Seconds.
PROMPTLY = 5.0


def hello():
    return Memory(client_context(), "localhost").hello()


#: What those send that do not go on.
ATTACKS = {"nothing": lambda: b"", "half a hello": lambda: hello()[:100], "no answer": hello}
ORIGINS = {
    "one address": lambda: itertools.repeat(THEIRS),
    "many addresses": lambda: (f"127.0.1.{last}" for last in range(1, 250)),
}


@pytest.fixture
def channels():
    mapping = {}
    yield mapping
    asyncore.close_all(mapping, ignore_all=True)


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
def few(monkeypatch):
    """Bound the number to this."""
    monkeypatch.setattr(tls, "default_limit", lambda: 20)
    return 20


def pending(listener):
    return tls._Held._all[listener._tls_context]


@pytest.mark.parametrize("use_poll", [False, True])
@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("what", ATTACKS)
def test_others_are_served_at_once(channels, attack, what, origin, use_poll):
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
def test_too_many_of_one_address_give_way_and_a_slow_client_from_elsewhere_does_not(
    channels, attack, few, what, use_poll
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
    assert len(pending(listener)) == few
    drive(channels, lambda: len(channels) == few + 1, use_poll=use_poll)
    told = [handler.events for handler in listener.handlers if handler.events]
    assert [type(error) for ((_, error),) in told] == [HandshakeFailed] * 41
    running = InThread(talk_over, slow, client_context(), b"quit\n")
    drive(channels, running.done, use_poll=use_poll)
    assert running() == b"bye\n"
    asyncore.close_all(channels)
    assert len(pending(listener)) == 0


@pytest.mark.parametrize("poll", [asyncore.poll, asyncore.poll2])
def test_passes_by_hand_tell_who_gives_way_too(channels, attack, few, poll):
    listener = Listener(channels, server_context())
    attack(listener, few + 1)
    end = time.monotonic() + LIMIT
    while not any(handler.events for handler in listener.handlers):
        assert time.monotonic() < end
        poll(0.05, channels)
    ((_, error),) = listener.handlers[0].events
    assert "too many handshakes are not over" in str(error)


def test_clients_that_are_silent_after_starttls_are_counted_too(channels, attack, few):
    context = server_context()

    class Chat(Lines):
        def line_received(self, line):
            self.push(b"go\n")
            start_tls(self, context, server_side=True)

    listener = Listener(channels, None, Chat)
    socks = attack(listener, few + 5, b"STARTTLS\n")
    ended = InThread(list, map(drain, socks[:5]))
    drive(channels, ended.done)
    assert len(tls._Held._all[context]) == few
    asyncore.close_all(channels)
    assert len(tls._Held._all[context]) == 0


def test_a_connection_that_the_program_drops_is_not_counted(channels, attack):
    class Forgetful(Listener):
        def handle_accepted(self, sock, addr):
            assert type(sock) is TLSSocket
            assert len(pending(self)) == 1
            self.handlers.append(addr)

    listener = Forgetful(channels, server_context())
    with pytest.warns(ResourceWarning):
        attack(listener, 1)
        drive(channels, lambda: listener.handlers)
        gc.collect()
    assert len(pending(listener)) == 0
