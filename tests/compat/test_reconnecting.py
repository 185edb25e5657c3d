"""
Channels that connect again in the handler that is told of the old connection's end.
"""

import os
import socket
import struct

import pytest

from txasynchat.compat import asyncore

LIMIT = 10.0


class Reconnecting(asyncore.dispatcher_with_send):
    """A client that connects again at once, as clients of chat networks do."""

    def __init__(self, sock, channels, address):
        super().__init__(sock, channels)
        self.channels = channels
        self.address = address
        self.connects = self.closes = 0

    def readable(self):
        return True

    def writable(self):
        return True

    def handle_connect(self):
        self.connects += 1
        self.send(b"hello")

    def handle_read(self):
        self.recv(4096)

    def handle_close(self):
        self.closes += 1
        self.close()
        self.create_socket()
        self.connect(self.address)


@pytest.mark.parametrize("use_poll", [False, True], ids=["select", "poll"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["loop", "by hand"])
@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
def test_reconnecting_channel_gets_no_event_of_its_old_socket(
    request, pair, use_poll, by_hand, reset
):
    """In that pass it learns of the end only; a leftover event would mean a false connect."""
    channels = {}

    def run_pass():
        if by_hand:
            (asyncore.poll2 if use_poll else asyncore.poll)(LIMIT, channels)
        else:
            asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)

    near, far = pair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT)
        client = Reconnecting(far, channels, server.getsockname())
        if reset:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        near.close()
        filler = os.open(
            os.devnull, os.O_RDONLY
        )  # so that the new socket gets the old one's number
        request.addfinalizer(lambda: os.close(filler))
        while not client.closes:
            run_pass()
        assert (client.connects, client.closes) == (0, 1)
        while not client.connects:
            run_pass()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b"hello"
            assert (client.connects, client.closes) == (1, 1)
        client.close()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
