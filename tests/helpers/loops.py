"""
What the tests of the facade's loop share: channels that note what they get, and waiting for them.
"""

import threading
import time
from contextlib import contextmanager

import pytest

from txasynchat.compat import _backoff as backoff
from txasynchat.compat import _loop, asynchat, asyncore

LIMIT = 20.0


class Recorder(asyncore.dispatcher):
    """Reads and notes; writes nothing."""

    def __init__(self, sock=None, channels=None):
        super().__init__(sock, channels)
        self.got = []

    def writable(self):
        return False

    def handle_read(self):
        self.got.append(self.recv(1000))


class Chat(asynchat.async_chat):
    def __init__(self, sock=None, channels=None):
        super().__init__(sock, channels)
        self.got = []
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.got.append(self._get_data())


@contextmanager
def in_thread(target, *args, **kwargs):
    thread = threading.Thread(target=target, args=args, kwargs=kwargs)
    thread.start()
    yield thread
    thread.join(LIMIT)
    assert not thread.is_alive()


def until(condition, what="what was waited for"):
    """Poll for a condition that another thread brings about without an event."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.001)


def check_that_it_rests(count, run_once, patience=backoff.PATIENCE):
    """
    Check that a channel that is told the same again and again is left alone in the end.

    Args:
        count: returns how often it was told.
        run_once: runs the loop once, for at most half a second.
        patience: so often it is told without delay.
    """
    deadline = time.monotonic() + LIMIT
    while count() < backoff.PATIENCE:
        assert time.monotonic() < deadline, f"it was told {count()} times"
        run_once()
    began, used = time.monotonic(), time.process_time()
    while (elapsed := time.monotonic() - began) < 0.5:
        run_once()
    # The machine may have stopped for a while, which changes nothing of this.
    assert count() <= patience + elapsed / backoff.PAUSE + 5
    assert time.process_time() - used < 0.6 * elapsed


def waits(channels):
    """Return whether a loop() is waiting."""
    driver = _loop.driver_of(channels)
    return driver is not None and driver.waiting.is_going_on


def reactor_thread(reactor, call, *args):
    """Call it in a thread of the reactor's pool."""
    from twisted.internet.threads import deferToThreadPool

    return deferToThreadPool(reactor, reactor.getThreadPool(), call, *args)


both_modes = pytest.mark.parametrize("use_poll", [False, True], ids=["select", "poll"])
