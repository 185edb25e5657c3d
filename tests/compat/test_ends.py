"""
The end of a stream that is never read by recv(), on each kind of poller.
"""

import os
import select
import socket
import time

import pytest

from helpers.loops import both_modes, check_that_it_rests
from txasynchat.compat import _backoff as backoff
from txasynchat.compat import asyncore
from txasynchat.hub import HANGUP, Hub

LIMIT = 10.0


@pytest.fixture(params=["best", "poll", "select"])
def poller(request, monkeypatch):
    """The pollers that the system has, and those that a program may have left in `select`."""
    if request.param != "best":
        monkeypatch.delattr(select, "epoll", raising=False)
        monkeypatch.delattr(select, "kqueue", raising=False)
    if request.param == "select":
        monkeypatch.delattr(select, "poll")
    return request.param


class BySocket(asyncore.dispatcher):
    """Reads from `socket`, past `recv`, and forgets to close."""

    size = 4096

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.calls = 0
        self.got = []

    def writable(self):
        return False

    def handle_read(self):
        self.calls += 1
        self.got.append(self.socket.recv(self.size))

    def handle_close(self):
        pass


class NotReading(BySocket):
    def handle_read(self):
        self.calls += 1


class ByFile(asyncore.file_dispatcher):
    """A child's output, read with the file that Popen gave."""

    def __init__(self, file, channels):
        super().__init__(file, channels)
        self.file = file
        self.calls = 0

    def writable(self):
        return False

    def handle_read(self):
        self.calls += 1
        self.file.readline()


@both_modes
@pytest.mark.parametrize("kind", [BySocket, NotReading])
def test_channel_that_reads_past_recv_does_not_spin_at_the_end(
    channels, pair, poller, kind, use_poll
):
    """It gets the event ten times a second, which costs almost no processor time."""
    near, far = pair()
    channel = kind(far, channels)
    near.send(b"line\n")
    near.shutdown(socket.SHUT_WR)
    if kind is NotReading and poller == "select":
        return  # what is never read hides the end from select(2)
    check_that_it_rests(
        lambda: channel.calls,
        lambda: asyncore.loop(0.5, use_poll, channels, 1),
        patience=2 * backoff.PATIENCE,
    )


@both_modes
def test_file_read_directly_does_not_spin_at_the_end(channels, use_poll):
    read, write = os.pipe()
    os.write(write, b"line\n")
    os.close(write)
    with open(read, "rb", buffering=0) as file:
        channel = ByFile(file, channels)
        asyncore.loop(0.5, use_poll, channels, 1)
        if channels:  # poll mode may have closed it, because the pipe hung up
            check_that_it_rests(
                lambda: channel.calls, lambda: asyncore.loop(0.5, use_poll, channels, 1)
            )


def pauses_until(done, channels, use_poll):
    """Run passes until *done* returns true, and count those that took as long as a pause."""
    pauses = 0
    while not done():
        began = time.monotonic()
        asyncore.loop(LIMIT, use_poll, channels, 1)
        pauses += time.monotonic() - began >= backoff.PAUSE
    return pauses


@pytest.mark.usefixtures("poller")
@both_modes
def test_data_before_the_end_is_read_without_delay(channels, pair, use_poll):
    """However small the pieces are, although the peer closed long ago."""
    near, far = pair()
    channel = BySocket(far, channels)
    channel.size = 10
    near.sendall(b"0123456789" * 2000)
    near.shutdown(socket.SHUT_WR)
    pauses = pauses_until(lambda: b"" in channel.got, channels, use_poll)
    assert len(channel.got) == 2001
    assert pauses < 20


@both_modes
def test_channel_at_the_end_of_its_input_sends_at_full_speed(channels, pair, use_poll):
    """A peer that half-closed may still read."""
    near, far = pair()

    class Sending(BySocket):
        left = 1000

        def writable(self):
            return self.left > 0

        def handle_write(self):
            self.left -= 1
            self.send(b"x")

    channel = Sending(far, channels)
    near.shutdown(socket.SHUT_WR)
    assert pauses_until(lambda: not channel.left, channels, use_poll) < 20


def test_flags_of_a_channel_are_those_of_poll(channels, pair, monkeypatch):
    seen = []
    monkeypatch.setattr(asyncore, "readwrite", lambda _, flags: seen.append(flags))
    near, far = pair()
    BySocket(far, channels)
    near.shutdown(socket.SHUT_WR)
    asyncore.loop(LIMIT, True, channels, 1)
    assert seen == [select.POLLIN]


def test_epolls_own_features_are_used_only_with_epoll(poller):
    """A program may take it out of the `select` module at any time; a silenced end stays silent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hub = Hub()
        try:
            hub.watch(ours.fileno(), 2)
            theirs.close()
            if poller != "select":  # it learns of an end only by reading
                assert hub.wait(LIMIT) == [(ours.fileno(), HANGUP)]
            hub.quiet(ours.fileno())
            hub.wait(0)  # epoll reports it once more
            assert hub.wait(0) == []
        finally:
            hub.close()
