"""
Bytes on their way to a peer, as the operating system counts them.
"""

import socket
import sys

import pytest
from twisted.internet.task import Clock

from txasynchat.delivery import Progress, StallWatch, carried, unacknowledged


def test_first_reading_and_every_change_are_progress():
    progress = Progress()
    looks = [(5, 3), (5, 3), (5, 2), (5, 2), (0, 2), (0, None), (0, None)]
    assert [progress.made(*look) for look in looks] == [True, False, True, False, True, True, False]


def test_watch_repeats_until_there_is_no_progress():
    clock = Clock()
    watch = StallWatch()
    counts = iter([5, 4, 4])
    ended = []

    def look():
        if watch.stalled(clock, 10, look, next(counts)):
            ended.append(clock.seconds())

    look()
    clock.advance(10)
    assert watch.waiting
    clock.advance(10)
    assert ended == [20]
    assert not watch.waiting
    watch.cancel()
    assert not clock.getDelayedCalls()


def ends(*looks):
    """Return when a watch of 8 seconds ends that looks once a second, and goes on seeing the last."""
    clock = Clock()
    watch = StallWatch()
    ended = []

    def look():
        count, over = looks[min(int(clock.seconds()), len(looks) - 1)]
        if watch.stalled(clock, 8, look, count, over=over):
            ended.append(clock.seconds())

    look()
    clock.pump([1] * 40)
    assert not clock.getDelayedCalls()
    return ended


def test_time_counts_from_the_last_progress():
    """Nobody who takes something in time is cut off, and nobody else is waited for twice as long."""
    assert ends((5, False)) == [8]
    assert ends((5, False), (4, False)) == [9]
    assert ends(*[(5, False)] * 7, (4, False)) == [15]


def test_watch_without_time_looks_twice():
    clock = Clock()
    watch = StallWatch()
    assert not watch.stalled(clock, 0, lambda: None, 5)
    assert watch.stalled(clock, 0, lambda: None, 5)


def test_time_counts_from_when_everything_was_taken():
    assert ends((0, True)) == [8]
    assert ends((5, False), (0, True)) == [8]
    assert ends((5, False), (5, False), (0, True)) == [9]


def test_delayed_looks_do_not_shorten_the_time():
    """A process that was stopped meanwhile gives its peers the time that they have."""
    clock = Clock()
    watch = StallWatch()
    ended = []

    def look():
        if watch.stalled(clock, 8, look, min(int(clock.seconds()), 1), over=clock.seconds() > 0):
            ended.append(clock.seconds())

    look()
    clock.advance(100)
    clock.pump([1] * 20)
    assert ended == [107]


def test_cancelled_watch_does_not_repeat():
    clock = Clock()
    watch = StallWatch()
    assert not watch.stalled(clock, 10, lambda: pytest.fail("looked"), 5)
    watch.cancel()
    watch.cancel()
    clock.advance(100)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system is asked")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_bytes_the_peer_has_not_taken_are_counted(family, tmp_path):
    with socket.socket(family) as listener, socket.socket(family) as client:
        address = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket")
        listener.bind(address)
        listener.listen()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.settimeout(20)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            assert unacknowledged(server) == 0
            server.setblocking(False)
            sent = 0
            with pytest.raises(BlockingIOError):
                while True:
                    sent += server.send(bytes(65_536))
            waiting = unacknowledged(server)
            assert waiting > 0
            taken = 0
            while taken < sent:
                taken += len(client.recv(65_536))
            server.setblocking(True)
            server.sendall(b"x")  # the peer's system has acknowledged everything before this
            client.recv(1)
            assert unacknowledged(server) < waiting


def test_closed_socket_has_no_count():
    sock = socket.socket()
    sock.close()
    assert unacknowledged(sock) is None


@pytest.mark.skipif(sys.platform != "linux", reason="no other system is asked")
def test_bytes_that_came_and_were_acknowledged_are_counted():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), 20) as client,
    ):
        server, _ = listener.accept()
        with server:
            received, acknowledged = carried(server)
            client.sendall(b"x" * 1000)
            server.recv(1000, socket.MSG_WAITALL)
            server.sendall(b"y" * 300)
            client.recv(300, socket.MSG_WAITALL)
            while unacknowledged(server):
                pass
            assert carried(server) == (received + 1000, acknowledged + 300)
        assert carried(server) is None


def test_a_unix_socket_has_no_such_counts():
    one, other = socket.socketpair()
    with one, other:
        assert carried(one) is None
