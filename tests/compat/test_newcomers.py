"""
Channels that one thread makes while another one waits in loop().
"""

import socket
import threading
import time
from contextlib import contextmanager

from helpers.loops import both_modes
from txasynchat.compat import _entries, asyncore
from txasynchat.compat import _waiting as waiting

LIMIT = 10.0


class Passes(asyncore.dispatcher):
    """Reports each pass."""

    def __init__(self, sock, channels):
        self.seen = threading.Semaphore(0)
        super().__init__(sock, channels)

    def readable(self):
        self.seen.release()
        return True

    def writable(self):
        return False

    def handle_read(self):
        self.recv(100)


class Client(asyncore.dispatcher):
    """Sets its buffer after it was registered, as the library reference's example does."""

    def __init__(self, sock, channels, meanwhile):
        super().__init__(sock, channels)
        meanwhile()
        self.out = b"ping"

    def writable(self):
        return bool(self.out)

    def handle_connect(self):
        pass

    def handle_write(self):
        self.out = self.out[self.send(self.out) :]


@contextmanager
def a_loop(channels, pair, use_poll):
    """Run loop() in a thread; yield a channel that reports passes, its peer, errors and the thread."""
    near, far = pair()
    passes = Passes(far, channels)
    errors = []

    def run():
        try:
            asyncore.loop(LIMIT, use_poll, channels)
        except (AttributeError, OSError) as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert passes.seen.acquire(timeout=LIMIT)
    try:
        yield passes, near, errors, thread
    finally:
        asyncore.close_all(channels, ignore_all=True)
        thread.join(LIMIT)
        assert not thread.is_alive()


@both_modes
def test_channel_made_by_another_thread_is_not_asked_in_its_constructor(channels, pair, use_poll):
    """The loop continues meanwhile, and serves the channel once it is made."""
    near, far = pair()
    with a_loop(channels, pair, use_poll) as (passes, peer, errors, _):

        def a_pass():
            for _ in range(3):
                while passes.seen.acquire(blocking=False):
                    pass
                peer.send(b"x")
                assert passes.seen.acquire(timeout=LIMIT)

        Client(far, channels, a_pass)
        assert near.recv(100) == b"ping"
    assert errors == []


@both_modes
def test_error_in_the_predicate_of_a_new_channel_leaves_the_loop_a_little_later(
    channels, pair, use_poll
):
    """As in the stdlib, if the error persists."""
    _, far = pair()
    with a_loop(channels, pair, use_poll) as (_, _, errors, thread):
        client = Client(far, channels, lambda: None)
        del client.out
        thread.join(LIMIT)
    assert isinstance(errors[0], AttributeError)


@both_modes
def test_new_channel_is_asked_sooner_once_connected(channels, pair, use_poll, monkeypatch):
    monkeypatch.setattr(_entries, "ALONE", 1000.0)
    with a_loop(channels, pair, use_poll), socket.create_server(("127.0.0.1", 0)) as server:
        client = Client(None, channels, lambda: None)
        client.create_socket()
        client.connect(server.getsockname())
        server.settimeout(LIMIT)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(LIMIT)
            assert accepted.recv(100) == b"ping"


@both_modes
def test_it_is_asked_in_time_where_the_pass_was_held_up(channels, pair, use_poll, monkeypatch):
    """A machine under load, or a slow predicate, delays it once, not for as long again."""
    late = [1000.0]
    monkeypatch.setattr(waiting, "_monotonic", lambda: time.monotonic() - late[0])
    near, far = pair()
    made = []

    class Slow(Passes):
        def readable(self):
            if late[0]:
                maker = threading.Thread(
                    target=lambda: made.append(Client(far, channels, lambda: None))
                )
                maker.start()
                maker.join(LIMIT)
                late[0] = 0.0  # so long did this take
            return super().readable()

    Slow(pair()[1], channels)
    loop = threading.Thread(target=asyncore.loop, args=(None, use_poll, channels))
    loop.start()
    near.settimeout(LIMIT)
    assert near.recv(100) == b"ping"
    asyncore.close_all(channels)
    loop.join(LIMIT)
    assert not loop.is_alive()
    assert made


def test_one_that_leaves_at_once_costs_no_processor(channels, pair):
    """The loop goes on to wait."""
    _, far = pair()
    with a_loop(channels, pair, use_poll=False) as (passes, *_):
        client = Client(far, channels, lambda: None)
        client.del_channel()
        before = time.process_time()
        threading.Event().wait(0.3)
        assert time.process_time() - before < 0.15
        client.close()
        assert passes.seen is not None
