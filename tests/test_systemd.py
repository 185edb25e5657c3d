"""
What a service manager hears of a server, and what becomes of its clients when it is started anew.

The managers here do what systemd does: they read a socket, pass listening ones, and send signals.
"""

import collections
import contextlib
import os
import random
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent

from helpers.support import HOST, client_context, leaf, write
from txasynchat.systemd import find

SECONDS = 20
TWISTD = str(Path(sys.executable).parent / "twistd")
LOOPBACK = "tcp:0:interface=127.0.0.1"

# Answers a line with what a child of the server sees of the manager; another one blocks it.
HANDLERS = """
import os
import socket
from txasynchat import AsyncChat, serve

class Environment(AsyncChat):
    terminator = b"\\n"

    def message_received(self, message):
        if message == b"block":
            with socket.socket(socket.AF_UNIX) as gate:
                gate.connect("gate")
                gate.recv(1)
        names = [name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG"))]
        self.push(repr(names).encode() + b"\\n")
"""
SCRIPT = f"""{HANDLERS}
from txasynchat import ChatFactory
serve(ChatFactory(Environment), {LOOPBACK!r})
"""


class Part:
    """A part of a program, with so many connections."""

    def __init__(self, *connections):
        self.connections = connections


@contextmanager
def listening_manager(name):
    """The socket of a manager, whose messages are read without waiting."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(name)
        manager.setblocking(False)
        yield manager


def heard(manager):
    """Return the messages that have arrived, each as its lines."""
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return messages


class Reactor(MemoryReactorClock):
    """Runs what waits for it to run, and what waits for its end, when it is told."""

    def end(self):
        for phase in ("before", "during"):
            for function, arguments, _ in self.triggers[phase]["shutdown"]:
                function(*arguments)


@pytest.fixture
def manager(tmp_path):
    with listening_manager(str(tmp_path / "notify")) as manager:
        yield manager


# -- what it hears


def test_manager_hears_when_all_listen_that_the_reactor_runs_and_of_the_end(manager):
    """The environment is left without its variables, so children do not speak for the server."""
    reactor = Reactor()
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "3000000", "PATH": "/bin"}
    environ["WATCHDOG_PID"] = str(os.getpid())
    ours = find(reactor, environ)
    assert environ == {"PATH": "/bin"}
    first, second = Part("one"), Part()
    ours.expect(first)
    ours.expect(second)
    ours.expect(first)
    ours.listens(first)
    reactor.run()
    assert heard(manager) == []
    ours.listens(second)
    assert heard(manager) == [["READY=1", "STATUS=1 connection"], ["WATCHDOG=1"]]
    # Half of the time that the watchdog allows.
    for _ in range(3):
        reactor.advance(1.5)
    assert heard(manager) == [["WATCHDOG=1"]] * 3
    second.connections = ("two", "three")
    reactor.advance(1.5)
    assert heard(manager) == [["WATCHDOG=1", "STATUS=3 connections"]]
    # Twice: a service that is started again in the same process.
    ours.expect(first)
    ours.listens(first)
    assert heard(manager) == []
    reactor.end()
    assert heard(manager) == [["STOPPING=1"]]
    assert reactor.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("name", "watchdog", "process", "told"),
    [
        ("", "1000000", "", ""),
        ("run/notify", "1000000", "", "NOTIFY_SOCKET='run/notify' names no Unix socket"),
        ("vsock:2:1234", "", "", "NOTIFY_SOCKET='vsock:2:1234' names no Unix socket"),
        ("@", "", "", "NOTIFY_SOCKET='@' names no Unix socket"),
        (None, "soon\n", "", "WATCHDOG_USEC='soon\\n' is no number of microseconds"),
        (None, "0", "", "WATCHDOG_USEC='0' is no number of microseconds"),
        (None, "-5", "", "WATCHDOG_USEC='-5' is no number of microseconds"),
        (None, "1000000", "1", ""),  # it is another process that is watched
        (None, "1000000", "me", ""),
    ],
)
def test_values_that_cannot_be_used_are_ignored_and_told(manager, name, watchdog, process, told):
    reactor = Reactor()
    environ = {
        "NOTIFY_SOCKET": manager.getsockname() if name is None else name,
        "WATCHDOG_USEC": watchdog,
        "WATCHDOG_PID": process,
    }
    with capturedLogs() as events:
        ours = find(reactor, environ)
    assert [formatEvent(event) for event in events] == (
        [f"txasynchat: {told}; ignored"] if told else []
    )
    assert (ours is None) is (name is not None)
    if ours is not None:
        ours.expect(part := Part())
        ours.listens(part)
        reactor.run()
        reactor.advance(100)
        reactor.end()
        assert heard(manager) == [["READY=1", "STATUS=0 connections"], ["STOPPING=1"]]


def test_server_serves_on_when_its_manager_is_gone_or_does_not_read(tmp_path):
    """It says so once, and speaks again to a manager that was started anew."""
    reactor, path = Reactor(), str(tmp_path / "notify")
    part = Part()
    with capturedLogs() as events:
        ours = find(reactor, {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"})
        ours.expect(part)
        ours.listens(part)
        reactor.run()
        reactor.advance(1)
    [told] = map(formatEvent, events)
    assert told.startswith(
        "txasynchat: cannot tell the service manager READY=1, STATUS=0 connections:"
    )
    with listening_manager(path) as manager:
        reactor.advance(1)
        assert heard(manager) == [["WATCHDOG=1"]]
        filled = 0
        while not reactor.getDelayedCalls()[1:]:  # until one is to be sent again
            reactor.advance(1)
            filled += 1
            assert filled < 10_000
        assert heard(manager) == [["WATCHDOG=1"]] * (filled - 1)
        reactor.advance(0.1)
        assert heard(manager) == [["WATCHDOG=1"]]
        reactor.end()


@pytest.mark.parametrize("how", ["twistd", "serve"])
def test_program_is_ready_when_clients_may_connect_and_says_when_it_stops(tmp_path, how):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "script.py").write_text(SCRIPT)
    abstract = sys.platform == "linux" and how == "twistd"
    name = f"@{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    twistd = [TWISTD, "-n", "asynchat", "--handler", "handlers:Environment", "--listen", LOOPBACK]
    script = ["script.py"]
    with (
        listening_manager(name.replace("@", "\0")) as manager,
        closing(socket.socket(socket.AF_UNIX)) as gate,
        subprocess.Popen(
            [sys.executable, *(twistd if how == "twistd" else script)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"},
        ) as program,
    ):
        gate.bind(str(tmp_path / "gate"))
        gate.settimeout(SECONDS)
        gate.listen()
        limit = threading.Timer(SECONDS, program.kill)
        limit.start()
        try:
            manager.settimeout(SECONDS)
            assert manager.recv(100) == b"READY=1\nSTATUS=0 connections"
            said = next(line for line in program.stdout if "on 127.0.0.1:" in line)
            port = int(said.partition("on 127.0.0.1:")[2].partition(";")[0])
            assert manager.recv(100) == b"WATCHDOG=1"
            with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
                client.sendall(b"environment?\n")
                assert client.recv(100) == b"[]\n"
                while (message := manager.recv(100)) == b"WATCHDOG=1":
                    pass
                assert message == b"WATCHDOG=1\nSTATUS=1 connection"
                client.sendall(b"block\n")
                with gate.accept()[0]:
                    manager.setblocking(False)
                    heard(manager)
                    assert select.select([manager], [], [], 0.2)[0] == []  # twice what it waits for
                manager.settimeout(SECONDS)
                assert manager.recv(100) == b"WATCHDOG=1"
                program.send_signal(signal.SIGTERM)
                while message != b"STOPPING=1":
                    message = manager.recv(100)
            program.communicate()
        finally:
            program.kill()
            limit.cancel()
            limit.join()
    assert program.returncode == (-signal.SIGTERM if how == "twistd" else 0)


# -- a new start


def activated(listening, manager, command, **environment):
    """Start a server on a socket that stays open here, named ``chat``; wait until it is ready."""
    start = (
        "import os, sys\n"
        f"os.dup2({listening.fileno()}, 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='chat')\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", start, *command],
        pass_fds=[listening.fileno(), 3],
        stdout=subprocess.DEVNULL,
        env=os.environ | environment | {"NOTIFY_SOCKET": manager.getsockname()},
    )
    manager.settimeout(SECONDS)
    try:
        while not manager.recv(100).startswith(b"READY=1"):
            pass
    except BaseException:
        program.kill()
        program.wait(SECONDS)
        raise
    return program


class Clients:
    """Clients that connect again and again, each in its thread; counts what becomes of them."""

    def __init__(self, address, *clients):
        self.address, self.clients = address, clients
        self.seen = collections.Counter()
        self.over = threading.Event()
        self.staying, self.answered = threading.Semaphore(0), threading.Semaphore(0)
        self.threads = [threading.Thread(target=self.repeat, args=(each,)) for each in clients]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def repeat(self, client):
        while not self.over.is_set():
            try:
                with socket.create_connection(self.address, SECONDS) as sock:
                    client(self, sock)
            except OSError as error:  # it was refused or reset
                self.seen[repr(error)] += 1
                return

    def once(self, sock):
        """A client that connects for one line, which it does not send at once."""
        time.sleep(random.uniform(0, 0.05))
        sock.sendall(b"once\n")
        self.seen["once", sock.recv(100)] += 1
        self.answered.release()

    def on_and_on(self, sock):
        """A client that stays, and says the next line when it has the answer."""
        sent = 0
        while not self.over.is_set():
            sent += 1
            line = b"%d\n" % sent
            sock.sendall(line)
            answer = sock.recv(100)
            self.seen["on and on", answer == line] += 1
            if sent == 1:
                self.staying.release()
            if not answer:
                return

    def wait(self):
        """Wait until each has been answered by the server that runs."""
        for client in self.clients:
            kind = self.answered if client is Clients.once else self.staying
            assert kind.acquire(timeout=SECONDS), self.seen


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["hub", "twisted"])
def test_no_client_is_refused_or_reset_while_the_server_is_started_anew(manager, transport):
    """Those that connect meanwhile are answered by the next; those just accepted, by the last."""
    command = [sys.executable, TWISTD, "-n", "--pidfile=", "asynchat", "--transport", transport]
    command += ["--listen", "systemd:domain=INET:name=chat"]
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        program = activated(listening, manager, command)
        clients = [Clients.once] * 8 + [Clients.on_and_on] * 2
        try:
            with Clients(listening.getsockname(), *clients) as clients:
                for _ in range(2):
                    clients.wait()
                    program.terminate()
                    assert program.wait(SECONDS) == -signal.SIGTERM
                    program = activated(listening, manager, command)
                clients.wait()
        finally:
            program.terminate()
            program.wait(SECONDS)
    assert set(clients.seen) == {
        ("once", b"once\n"),
        ("on and on", True),
        ("on and on", False),  # its server stopped between two lines
    }
    assert clients.seen["on and on", False] == 4


# -- the units in examples/


@pytest.fixture
def units(root, tmp_path):
    """The units, with the paths of this machine, by their names."""
    folder = tmp_path / "units"
    folder.mkdir()
    for unit in sorted((root / "examples/systemd").iterdir()):
        text = unit.read_text().replace("/srv/txasynchat/.venv/bin", str(Path(TWISTD).parent))
        text = text.replace("=/srv/txasynchat\n", f"={folder}\n")
        (folder / unit.name).write_text(text)
    return {path.name: path for path in folder.iterdir()}


def test_systemd_finds_nothing_wrong_in_the_units(units):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    assert set(units) == {
        f"txasynchat{tls}.{kind}" for tls in ("", "-tls") for kind in ("service", "socket")
    }
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units.values())],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    "name", ["txasynchat-tls", pytest.param("txasynchat", marks=pytest.mark.slow)]
)
def test_server_of_a_unit_starts_on_its_socket_and_answers(units, manager, tmp_path, name):
    text = units[f"{name}.service"].read_text()
    _, key = write(tmp_path, leaf(HOST), "certificate")
    key.rename(tmp_path / "key.pem")
    for copy, _ in re.findall("^LoadCredential=(.*?):(.*)$", text, re.MULTILINE):
        assert (tmp_path / copy).exists()
    [command] = re.findall("^ExecStart=(.*)$", text, re.MULTILINE)
    command = command.replace("${CREDENTIALS_DIRECTORY}", str(tmp_path)).split()
    with contextlib.ExitStack() as stack:
        try:
            listening = stack.enter_context(
                socket.create_server(("::1", 0), family=socket.AF_INET6)
            )
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        program = activated(listening, manager, command)
        try:
            client = stack.enter_context(
                socket.create_connection(listening.getsockname()[:2], SECONDS)
            )
            if "tls" in name:
                client = stack.enter_context(
                    client_context().wrap_socket(client, server_hostname=HOST)
                )
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
        finally:
            program.terminate()
            assert program.wait(SECONDS) == -signal.SIGTERM
