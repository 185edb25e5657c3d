"""
Listeners of a process that has no descriptor left.
"""

import json
import subprocess
import sys

import pytest

pytest.importorskip("resource")

LIMIT = 60.0

#: listener.py WAY SHAPE: five clients wait while there are no descriptors, and are served after that.
LISTENER = """
import asyncio, json, os, resource, signal, socket, sys, threading, time

way, shape = sys.argv[1:]
signal.alarm(30)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

from txasynchat.compat import asyncore, attach

tries = 0
served = 0
wanted = 1


class Echo(asyncore.dispatcher):
    def writable(self):
        return False

    def handle_read(self):
        global served
        data = self.recv(100)
        if data:
            self.send(data)
            served += 1
            if served == wanted and way != "attached":
                raise asyncore.ExitNow


class Accepted(asyncore.dispatcher):
    def __init__(self):
        super().__init__()
        self.create_socket()
        self.bind(("127.0.0.1", 0))
        self.listen(50)

    def accept(self):
        global tries
        tries += 1
        return super().accept()

    def handle_accepted(self, sock, addr):
        Echo(sock)


class Paired(Accepted):
    def handle_accept(self):
        pair = self.accept()
        if pair is not None:
            sock, addr = pair
            Echo(sock)


def client():
    made = socket.create_connection(listener.socket.getsockname(), 10)
    made.sendall(b"hello")
    return made


async def attached():
    attachment = attach()
    while served < wanted:
        await asyncio.sleep(0.01)
    attachment.detach()


def drive():
    try:
        if way == "select":
            asyncore.loop()
        elif way == "poll":
            asyncore.loop(use_poll=True)
        elif way == "attached":
            runner.run(attached())
        else:
            while True:
                asyncore.poll2(None) if way == "poll2 by hand" else asyncore.poll(30)
    except asyncore.ExitNow:
        pass


listener = {"accepted": Accepted, "paired": Paired}[shape]()
kept = [client()]
runner = asyncio.Runner()  # one event loop for both times: there is nothing to make the second of
drive()
clients = [client() for _ in range(5)]
filler = []
try:
    while True:
        filler.append(os.dup(0))
except OSError:
    pass
told = {}


def release():
    while tries < 2 and time.monotonic() - since < 30:  # the machine may be busy
        time.sleep(0.01)
    took = time.monotonic() - since
    told.update(tries=tries, served=served, took=took, cpu=time.process_time() - begun)
    for number in filler:
        os.close(number)


tries = served = 0
wanted = 5
begun = time.process_time()
since = time.monotonic()
threading.Timer(0.55, release).start()
drive()
told["answers"] = [each.recv(100).decode() for each in clients]
told["listens"] = listener in asyncore.socket_map.values()
print(json.dumps(told))
"""


@pytest.mark.parametrize("shape", ["accepted", "paired"])
@pytest.mark.parametrize("way", ["select", "poll", "attached", "poll by hand", "poll2 by hand"])
@pytest.mark.slow
def test_listener_without_descriptors_backs_off_and_then_serves(way, shape):
    """The 3.11 modules close it for good; a temporary shortage must not end the service."""
    result = subprocess.run(
        [sys.executable, "-c", LISTENER, way, shape],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert result.stderr == ""
    *lines, told = result.stdout.splitlines()
    told = json.loads(told)
    assert len(lines) == 1
    assert lines[0].startswith("error: __main__.")
    assert "cannot accept, and tries again: " in lines[0]
    assert told["served"] == 0
    assert 2 <= told["tries"] <= 10 * told["took"] + 2  # ten times a second
    assert told["cpu"] < 0.5 * told["took"]
    assert told["answers"] == ["hello"] * 5
    assert told["listens"]
