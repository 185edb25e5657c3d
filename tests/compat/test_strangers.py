"""
Channels that answer to any attribute: stubs of remote objects, delegating wrappers, mocks.

The stdlib's loop asks a channel for documented names only, so these work there.

Also covers `compat._attributes`.
"""

import socket
from collections import deque
from unittest import mock

import pytest
from OpenSSL import SSL

from helpers.loops import both_modes
from txasynchat.compat import asynchat, asyncore

LIMIT = 10.0


class Lines(asynchat.async_chat):
    """Notes the lines that it receives."""

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.set_terminator(b"\n")
        self.line = []
        self.lines = []

    def collect_incoming_data(self, data):
        self.line.append(data)

    def found_terminator(self):
        self.lines.append(b"".join(self.line))
        self.line.clear()


class Stub(Lines):
    """Every other name is a method of the other side."""

    def __getattr__(self, name):
        return lambda *args: self.push(f"{name}{args}\n".encode())


class Strict(Lines):
    """Any other name is an error."""

    def __getattr__(self, name):
        raise AssertionError(f"undocumented attribute {name} was read")


@pytest.mark.usefixtures("each_way")
@both_modes
@pytest.mark.parametrize("kind", [Stub, Strict])
def test_a_channel_with_getattr_is_served(channels, pair, kind, use_poll):
    """A remote call goes out, and its answer comes in."""
    near, far = pair()
    channel = kind(far, channels)
    if kind is Stub:
        channel.add(1, 2)
        assert near.recv(100) == b"add(1, 2)\n"
    near.send(b"3\n")
    asyncore.loop(LIMIT, use_poll, channels, 1)
    assert channel.lines == [b"3"]
    asyncore.poll(0, channels)
    asyncore.poll2(0, channels)


@both_modes
def test_channel_may_have_its_own_queue(channels, pair, use_poll):
    """Its queue is sent, and an empty queue does not make the loop spin."""
    near, far = pair()

    class Queueing(Stub):
        producer_fifo = ()

        def __init__(self, sock, channels):
            self.producer_fifo = deque()
            super().__init__(sock, channels)

    class Keeping(asyncore.dispatcher_with_send):
        out_buffer = b""

        def __getattr__(self, name):
            return lambda *_: name

        def handle_read(self):
            self.send(self.recv(100))

    channel = Queueing(far, channels)
    channel.push(b"greeting\n")
    asyncore.loop(0, use_poll, channels, 1)
    assert near.recv(100) == b"greeting\n"
    assert not channel.writable()
    near, far = pair()
    keeping = Keeping(far, channels)
    near.send(b"echo")
    asyncore.loop(LIMIT, use_poll, channels, 1)
    assert near.recv(100) == b"echo"
    assert not keeping.writable()


@both_modes
@pytest.mark.parametrize("make", [mock.Mock, mock.MagicMock])
def test_a_mock_in_the_map_is_served(channels, pair, make, use_poll):
    """It gets its event, and no loop() raises."""
    near, far = pair()
    channel = make(
        **{
            "readable.return_value": True,
            "writable.return_value": False,
            "handle_read_event.side_effect": lambda: far.recv(100),
        }
    )
    channel.accepting = False
    channels[far.fileno()] = channel
    near.send(b"x")
    for _ in range(2):
        asyncore.loop(0.05, use_poll, channels, 2)
    assert channel.handle_read_event.call_count == 1


@both_modes
def test_an_object_with_our_predicates_and_no_socket_is_served(channels, pair, use_poll):
    """A class that borrows `readable` needs nothing else of a dispatcher."""
    near, far = pair()
    got = []

    class Borrower:
        readable = asyncore.dispatcher.readable
        writable = asyncore.file_dispatcher.writable
        accepting = False

        def handle_read_event(self):
            got.append(far.recv(100))

        def handle_write_event(self):
            pass

    channels[far.fileno()] = Borrower()
    for data in (b"one", b"two"):
        near.send(data)
        while got[-1:] != [data]:
            asyncore.loop(LIMIT, use_poll, channels, 1)


@both_modes
def test_mock_socket_has_no_decrypted_bytes(channels, pair, use_poll):
    """No read event comes while there is nothing to read."""
    _, far = pair()
    reads = []

    class Reader(asyncore.dispatcher):
        def handle_read(self):
            reads.append(1)

        def writable(self):
            return False

    sock = mock.Mock(**{"fileno.return_value": far.fileno(), "getsockopt.return_value": 0})
    Reader(sock, channels)
    asyncore.loop(0, use_poll, channels, 10)
    sock.pending.return_value = True
    asyncore.loop(0, use_poll, channels, 10)
    assert reads == []


def test_decrypted_bytes_of_pyopenssl_are_still_read():
    """Its Connection reports their number."""
    from txasynchat.compat._interest import pending_of

    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert pending_of(SSL.Connection(SSL.Context(SSL.TLS_METHOD), ours)) == 0
