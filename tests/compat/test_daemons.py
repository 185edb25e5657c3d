"""
Programs that close all descriptors they do not know, as daemons do, at any moment.

Select and poll of the standard library have no descriptors of their own, so all of this worked there.

Also covers `compat._renewal`.
"""

import select
import socket
import subprocess
import sys

import pytest

#: Seconds: some of these programs import Twisted.
LIMIT = 30.0

#: daemon.py ORDER WAY: a server that closes unknown descriptors, and reports the result.
DAEMON = """
import importlib, os, signal, sys, threading, traceback

order, way = sys.argv[1:]
signal.alarm(60)
if "flat" in way:  # a system that has neither epoll nor kqueue
    import select
    for name in {"epoll", "kqueue"} & set(vars(select)):
        delattr(select, name)
if "beside" in way:
    importlib.import_module("twisted.internet." + way.split()[-1]).install()
    from twisted.internet import reactor

from txasynchat.compat import asyncore, current_reactor

errors = 0
others = {}


def inode(number):
    try:
        return os.fstat(number).st_ino
    except OSError:
        return None


def close_all_but(*keep):
    for number in set(range(3, 200)) - set(keep):
        try:
            os.close(number)
        except OSError:
            pass


def open_others():
    opened = [os.open(os.devnull, os.O_WRONLY) for _ in range(6)]
    for number in opened + list(os.pipe()):
        others[number] = inode(number)


def daemonize(*keep):
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.alarm(60)
    close_all_but(*keep)


class Chat(asyncore.dispatcher):
    def handle_read(self):
        data = self.recv(1000)
        if data == b"fork":
            daemonize(server.socket.fileno(), self.socket.fileno())
        elif data == b"close":
            close_all_but(server.socket.fileno(), self.socket.fileno())
            open_others()
        elif data == b"end":
            asyncore.close_all()
            return
        if data:
            lost = sum(inode(number) != what for number, what in others.items())
            self.send(b"%d errors out of loop(), %d files lost" % (errors, lost))

    def handle_close(self):
        self.close()

    def writable(self):
        return False


class Server(asyncore.dispatcher):
    def __init__(self):
        super().__init__()
        self.create_socket()
        self.bind(("127.0.0.1", 0))
        self.listen(5)

    def handle_accepted(self, sock, addr):
        Chat(sock)


def run():
    global server, errors
    if way == "in a thread with a reactor":
        current_reactor()
    server = Server()
    if order not in ("fork first", "fork in a handler", "close in a handler"):
        asyncore.loop(0.01, "use_poll" in way, count=3)
    if order in ("fork first", "fork", "fork and open files"):
        daemonize(server.socket.fileno())
    if order in ("close", "close and open files"):
        close_all_but(server.socket.fileno())
    if "open files" in order:
        open_others()
    print("port", server.socket.getsockname()[1], flush=True)
    while asyncore.socket_map and errors < 5:
        try:
            asyncore.loop(30, "use_poll" in way, count=1)
        except OSError:
            traceback.print_exc()
            errors += 1
    if order == "close and open files" and "beside" in way:
        # What belongs to the reactor was closed as well.
        from twisted.internet import threads
        threads.deferToThread(len, "four").addBoth(
            lambda result: (print("reactor", result), reactor.stop())
        )
        reactor.run()


if "thread" in way:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
print("end", sum(inode(number) != what for number, what in others.items()), flush=True)
"""

ORDERS = [
    "fork first",
    "fork",
    "fork in a handler",
    "close in a handler",
    "fork and open files",
    "close",
    "close and open files",
]
WAYS = ["hub alone", "use_poll", "flat"]
REACTORS = [
    "in a thread with a reactor",
    "beside epollreactor",
    "beside pollreactor",
    "flat beside selectreactor",
]
CASES = [(order, way) for way in WAYS for order in ORDERS] + [
    (order, way)
    for way in REACTORS
    for order in ("fork", "close in a handler", "close and open files")
]


def ask(port, text):
    with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
        sock.sendall(text)
        return sock.recv(100).decode()


@pytest.mark.parametrize(("order", "way"), CASES)
@pytest.mark.slow
def test_daemon_continues_to_serve_and_keeps_its_files(tmp_path, order, way):
    """It may close before, between or within its loops, and may fork."""
    if "epoll" in way and not hasattr(select, "epoll"):
        pytest.skip("no epoll here")
    program = tmp_path / "daemon.py"
    program.write_text(DAEMON)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", program, order, way],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        said = daemon.stdout.readline()
        answers = []
        if said.startswith("port "):
            port = int(said.split()[1])
            if order.endswith("in a handler"):
                ask(port, order.split()[0].encode())
            answers = [ask(port, text) for text in (b"hello", b"and again", b"end")]
        rest, errors = daemon.communicate(timeout=LIMIT)  # also of its forked child
    right = "0 errors out of loop(), 0 files lost"
    assert (answers, errors) == ([right, right, ""], "")
    if "thread" in way and "fork" in order:
        return  # the child has only that thread, and runs nothing after it
    assert rest.endswith("end 0\n")
    if order == "close and open files" and "beside" in way:
        assert "reactor 4\n" in rest


#: attached.py REACTOR: only the hub's descriptors are closed, beside a running reactor.
ATTACHED = """
import importlib, os, signal, sys

signal.alarm(60)
importlib.import_module("twisted.internet." + sys.argv[1]).install()
from twisted.internet import reactor

from txasynchat.compat import asyncore, attach


def opened():
    numbers = set()
    for name in os.listdir("/dev/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue
        numbers.add(int(name))
    return numbers


class Chat(asyncore.dispatcher):
    def handle_read(self):
        data = self.recv(1000)
        if data == b"end":
            print(sum(os.fstat(one).st_ino != inode for one, inode in others.items()), flush=True)
            reactor.stop()
        self.send(data)

    def handle_close(self):
        self.close()

    def writable(self):
        return False


class Server(asyncore.dispatcher):
    def handle_accepted(self, sock, addr):
        Chat(sock)


def close():
    for number in ours:
        os.close(number)
    for number in [os.open(os.devnull, os.O_WRONLY) for _ in ours]:
        others[number] = os.fstat(number).st_ino
    print("port", server.socket.getsockname()[1], flush=True)


others = {}
server = Server()
server.create_socket()
server.bind(("127.0.0.1", 0))
server.listen(5)
before = opened()
attach()
ours = opened() - before
reactor.callWhenRunning(reactor.callLater, 0, close)
reactor.run()
asyncore.close_all()
print("end", sum(os.fstat(one).st_ino != inode for one, inode in others.items()), flush=True)
"""


@pytest.mark.parametrize("kind", ["epollreactor", "pollreactor", "selectreactor"])
def test_attached_map_continues_to_be_served(tmp_path, kind):
    """Twisted's own descriptors must stay open, as in every Twisted program."""
    if "epoll" in kind and not hasattr(select, "epoll"):
        pytest.skip("no epoll here")
    program = tmp_path / "attached.py"
    program.write_text(ATTACHED)
    with subprocess.Popen(
        [sys.executable, program, kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as attached:
        said = attached.stdout.readline()
        answers = []
        if said.startswith("port "):
            answers = [ask(int(said.split()[1]), text) for text in (b"one", b"two", b"end")]
        rest, errors = attached.communicate(timeout=LIMIT)
    assert (answers, rest, errors) == (["one", "two", "end"], "0\nend 0\n", "")
