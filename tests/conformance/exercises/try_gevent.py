"""gevent: a server's `loop` is one greenlet, and its clients are others."""

import subprocess
import sys

import pytest

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import asynchat, asyncore, socket, sys
import gevent


class Echo(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(b"\\n")

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self):
        self.push(self._get_data() + b"\\n")


class Server(asyncore.dispatcher):
    def __init__(self):
        asyncore.dispatcher.__init__(self)
        self.create_socket()
        self.bind(("127.0.0.1", 0))
        self.listen(50)

    def handle_accepted(self, sock, addr):
        Echo(sock)


def talk(address, number):
    with socket.create_connection(address) as client, client.makefile("rb") as answers:
        for count in range(100):
            line = b"%d %d\\n" % (number, count)
            client.sendall(line)
            assert answers.readline() == line


server = Server()
address = server.socket.getsockname()
clients = [gevent.spawn(talk, address, number) for number in range(20)]
if sys.argv[1] == "passes":
    while not all(client.ready() for client in clients):
        asyncore.loop(timeout=0.05, count=1)
else:
    loop = gevent.spawn(asyncore.loop, 0.1, sys.argv[1] == "poll")
    gevent.joinall(clients, timeout=20)
    loop.kill()
print(sum(client.successful() for client in clients))
"""


@pytest.mark.parametrize("how", ["select", "poll", "passes"])
def test_greenlets_talk_to_a_server_in_another(how):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "20\n", done.stderr
