"""
Queues of channels that speak TLS: filled by other channels' handlers, and by threads.
"""

import socket
import sys
import threading

import pytest

from helpers.channels import LIMIT, VERSIONS, Lines, client_context, server_context
from txasynchat.compat import asyncore, start_tls

THREADS = b"abc"
MESSAGES = 500


class Sending(asyncore.dispatcher_with_send):
    """Knows nothing of TLS."""

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.events = []

    def handle_read(self):
        self.recv(8192)

    def handle_close(self):
        self.close()

    def handle_error(self):
        self.events.append(sys.exc_info()[1])
        self.close()


class Quiet(Lines):
    """Sends no answers."""

    def line_received(self, line):
        pass


class Trigger(asyncore.dispatcher):
    """Calls *act* in its handler."""

    def __init__(self, channels, act):
        self.near, far = socket.socketpair()
        super().__init__(far, channels)
        self.act = act

    def writable(self):
        return False

    def handle_read(self):
        if self.recv(1):
            self.act()

    def handle_close(self):
        self.close()


class Served:
    """A channel of *kind* that speaks TLS in a loop() of another thread, and its client."""

    def __init__(self, kind, version, **options):
        self.channels = {}
        ours, theirs = socket.socketpair()
        for name, value in options.items():
            ours.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        self.channel = kind(ours, self.channels)
        self.trigger = Trigger(self.channels, self.run_act)
        start_tls(self.channel, server_context(version))
        self.loop = threading.Thread(target=asyncore.loop, args=(None, False, self.channels))
        self.loop.start()
        theirs.settimeout(LIMIT / 2)
        self.client = client_context().wrap_socket(theirs, server_hostname="localhost")

    def run_act(self):
        self.act()

    def from_a_handler(self, act):
        self.act = act
        self.trigger.near.send(b"x")

    def from_a_thread(self, act):
        act()

    def read(self, size):
        data = b""
        while len(data) < size:
            more = self.client.recv(size)
            assert more, self.channel.events
            data += more
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.trigger.near.close()
        self.loop.join(LIMIT)
        assert not self.loop.is_alive()
        assert self.channels == {}


def append(channel, data):
    channel.producer_fifo.append(data)


def add(channel, data):
    channel.out_buffer += data


from_elsewhere = pytest.mark.parametrize("where", ["from_a_handler", "from_a_thread"])


@pytest.mark.usefixtures("only_first_passes_are_full")
@pytest.mark.parametrize(("kind", "fill"), [(Quiet, append), (Sending, add)])
@from_elsewhere
@pytest.mark.parametrize("version", VERSIONS)
def test_queue_filled_from_outside_is_sent_at_once(version, where, kind, fill):
    with Served(kind, version) as served:
        for number in range(20):
            getattr(served, where)(lambda: fill(served.channel, b"x" * 1_000))
            assert served.read(1_000) == b"x" * 1_000, number


@pytest.mark.usefixtures("only_first_passes_are_full")
@pytest.mark.parametrize(
    ("kind", "send"), [(Quiet, lambda c, d: c.push(d)), (Sending, lambda c, d: c.send(d))]
)
@from_elsewhere
@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_the_system_did_not_take_follow_at_once(version, where, kind, send):
    """TLS has taken everything: the channel's queue is empty."""
    with Served(kind, version, SO_SNDBUF=4_096) as served:
        for _ in range(5):
            getattr(served, where)(lambda: send(served.channel, b"x" * 60_000))
            assert served.read(60_000) == b"x" * 60_000


@pytest.mark.parametrize("answered", [False, True], ids=["one way", "answered"])
@pytest.mark.parametrize(
    ("kind", "send"),
    [
        (Quiet, lambda c, d: c.push(d)),
        (Quiet, append),
        (Sending, lambda c, d: c.send(d)),
        (Sending, add),
    ],
    ids=["push", "producer_fifo", "send", "out_buffer"],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_data_of_several_threads_is_not_lost_repeated_or_mixed(version, kind, send, answered):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def message(name, number):
        return b"%c%06d:%s" % (name, number, b"%c" % name * (number % 300))

    def talk(name):
        for number in range(MESSAGES):
            send(served.channel, message(name, number) + b"\n")

    try:
        with Served(kind, version) as served:
            threads = [threading.Thread(target=talk, args=(name,)) for name in THREADS]
            for thread in threads:
                thread.start()
            got = []
            rest = b""
            while len(got) < len(THREADS) * MESSAGES:
                data = served.client.recv(65536)
                assert data, served.channel.events
                *lines, rest = (rest + data).split(b"\n")
                got += lines
                if answered:
                    served.client.sendall(b"ok\n")
            for thread in threads:
                thread.join(LIMIT)
    finally:
        sys.setswitchinterval(before)
    for name in THREADS:
        own = [line for line in got if line.startswith(b"%c" % name)]
        assert own == [message(name, number) for number in range(MESSAGES)]


@pytest.mark.parametrize("version", VERSIONS)
def test_threads_that_push_while_tls_begins_have_their_data_encrypted(version):
    """The switch to TLS is an item of the queue, and data pushed after it waits for it."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(LIMIT)
    channels = {}
    chat = Quiet(ours, channels)
    chat.push(b"220 go ahead\n")
    assert theirs.recv(100) == b"220 go ahead\n"
    start_tls(chat, server_context(version))
    threads = [
        threading.Thread(target=lambda: [chat.push(b"secret\n") for _ in range(100)])
        for _ in range(3)
    ]
    loop = threading.Thread(target=asyncore.loop, args=(None, False, channels))
    for thread in (*threads, loop):
        thread.start()
    with client_context().wrap_socket(theirs, server_hostname="localhost") as client:
        data = b""
        while len(data) < 2_100:
            data += client.recv(65536)
    for thread in (*threads, loop):
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert data == b"secret\n" * 300


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_channel_may_be_closed_by_another_thread_while_it_sends_and_receives(version):
    """TLS still ends in order: the peer gets whole records, and then close_notify."""
    for _ in range(20):
        with Served(Quiet, version) as served:
            closing = threading.Event()

            def talk(served=served, closing=closing):
                while not closing.is_set():
                    served.channel.push(b"x" * 1_000)

            thread = threading.Thread(target=talk)
            thread.start()
            for _ in range(5):
                served.client.sendall(b"a line\n")
                assert served.client.recv(1_000).strip(b"x") == b""
            served.channel.close()
            closing.set()
            while data := served.client.recv(65_536):  # an end without close_notify would raise
                assert data.strip(b"x") == b""
            thread.join(LIMIT)
        assert set(served.channel.events) <= {("close",)}  # a push that came too late
