"""Clients of servers under test: sockets with a time limit, and a program that others wrote."""

import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager

import pytest

SECONDS = 20.0


def connect(port):
    """Connect to *port* of 127.0.0.1."""
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


def converse(port, data):
    """Send *data* and end the sending; return all that comes back until the end."""
    with connect(port) as peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        return read_all(peer)


def read_all(peer):
    """Return all that comes until the end."""
    received = bytearray()
    while data := peer.recv(65_536):
        received += data
    return bytes(received)


@contextmanager
def curl(port, data):
    """Run curl as a telnet client that sends *data*; its output ends when the connection does."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("no curl here")
    with subprocess.Popen(
        [program, "-sN", f"telnet://127.0.0.1:{port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        limit = threading.Timer(SECONDS, client.kill)
        limit.start()
        try:
            # It reads nothing from the server while it waits for its own input.
            client.stdin.write(data)
            client.stdin.close()
            yield client.stdout
        finally:
            client.kill()
            limit.cancel()
            limit.join()
