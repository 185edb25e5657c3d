"""
A server whose process has no descriptor left, with a real limit on them: it refuses, or lets wait, says
so, does not spin, and needs no help when there are descriptors again.
"""

import re
import socket
import sys

import pytest

from helpers.peers import SECONDS

pytest.importorskip("resource")

#: server.py TRANSPORT WHEN_FULL
SERVER = r"""
import os, resource, sys, time
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
from txasynchat import AsyncChat, ChatFactory, Limits, Server

transport, when_full = sys.argv[1:]
taken = []

class Handler(AsyncChat):
    terminator = b"\n"

    def message_received(self, message):
        if message == b"cpu":
            message = b"%f" % time.process_time()
        elif message == b"refused":
            message = b"%d" % server.admission.refused["descriptors"]
        elif message == b"steal":
            # As another thread would, at the wrong moment.
            os.close(server._gates.exhaustion._kept)
            server._gates.exhaustion._kept = None
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
        elif message == b"give":
            while taken:
                os.close(taken.pop())
        self.push(message + b"\n")

globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
server = Server(
    reactor, ChatFactory(Handler), ["tcp:0:interface=127.0.0.1"], transport=transport,
    limits=Limits(refusal=b"busy\n", when_full=when_full),
)
server.startService()
reactor.addSystemEventTrigger("before", "shutdown", server.stopService)

def limit():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    opened = max(map(int, os.listdir("/dev/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 3, hard))
    print("port", server.ports[0].getHost().port, flush=True)

reactor.callWhenRunning(limit)
reactor.run()
"""


@pytest.fixture
def serve(start):
    """Start the server; return a function that connects to it."""
    clients = []

    def serve(*words):
        port = int(start([sys.executable, "-c", SERVER, *words], r"port (\d+)")[1])

        def connect():
            clients.append(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))
            return clients[-1]

        return connect

    yield serve
    for client in clients:
        client.close()


def ask(client, line):
    client.sendall(line + b"\n")
    with client.makefile("rb") as answers:
        return answers.readline().rstrip(b"\n")


def fill(connect):
    """Connect until there is no place; return those who have one, and the last, which has none."""
    served = []
    while True:
        client = connect()
        client.sendall(b"hello\n")
        client.settimeout(0.1)
        try:
            answer = client.recv(100)
        except TimeoutError:
            answer = b""
        client.settimeout(SECONDS)
        if answer != b"hello\n":
            return served, client, answer
        served.append(client)


def said(start):
    """End the server; return the lines about descriptors."""
    start.programs[-1].terminate()
    text = start.programs[-1].stdout.read()
    assert "Traceback" not in text
    return [line for line in text.splitlines() if "descriptor" in line]


@pytest.mark.parametrize("transport", ["hub", pytest.param("twisted", marks=pytest.mark.slow)])
def test_who_comes_is_refused_politely_until_there_are_descriptors_again(serve, start, transport):
    connect = serve(transport, "refuse")
    served, refused, answer = fill(connect)
    assert 1 <= len(served) <= 4
    assert answer == b"busy\n"
    assert refused.recv(1) == b""
    for _ in range(20):
        assert connect().recv(100) == b"busy\n"
    assert int(ask(served[0], b"refused")) == 21
    served.pop().close()
    while not (again := fill(connect)[0]):
        pass  # until the server has noticed
    assert len(again) == 1
    # Now somebody else is faster, and it cannot even refuse.
    assert ask(served[0], b"steal") == b"steal"
    waits = connect()
    assert_rests(served[0], waits)
    assert ask(served[0], b"give") == b"give"
    assert waits.recv(100) == b"busy\n"
    lines = said(start)
    assert len(lines) == 2
    assert "which are refused; raise the limit on open files" in lines[0]
    assert re.search(r"missing for \d+\.\d s, and \d\d connections were refused$", lines[1])


def assert_rests(served, waits):
    """Assert that *waits* is not answered, and nothing spins meanwhile."""
    began = float(ask(served, b"cpu"))
    waits.settimeout(0.4)
    with pytest.raises(TimeoutError):
        waits.recv(1)
    waits.settimeout(SECONDS)
    assert float(ask(served, b"cpu")) - began < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["twisted", "hub"])
def test_who_comes_waits_where_there_is_a_queue(serve, start, transport):
    connect = serve(transport, "queue")
    served, waits, answer = fill(connect)
    assert answer == b""
    assert_rests(served[0], waits)
    served.pop().close()
    assert waits.recv(100) == b"hello\n"
    assert len(said(start)) == 2
