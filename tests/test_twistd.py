"""
``twistd asynchat``, ``twist asynchat`` and what they serve: real processes, real clients.
"""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trustme
import twisted.internet.reactor  # noqa: F401 - now, so that its descriptors are there before

from helpers.forks import start_afresh
from txasynchat.compat import uninstall
from txasynchat.program import CannotStart
from txasynchat.twistd import Options, load_factory, makeService

BIN = Path(sys.executable).parent
TWISTD = [str(BIN / "twistd")]
TWIST = [str(BIN / "twist"), "--log-format=text"]
MODULE = ["-m", "twisted", "--log-format=text"]
RUNNERS = {"twistd -n": [*TWISTD, "-n"], "twist": TWIST, "python -m twisted": MODULE}
LOOPBACK = "tcp:0:interface=127.0.0.1"
SECONDS = 20


class Program:
    """A server in its own process; `said` waits for a line of its log."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        # A program that is silent, or does not end, ends here.
        self.limit = threading.Timer(SECONDS, self.process.kill)
        self.limit.start()

    def said(self, pattern):
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        return pytest.fail(f"did not say {pattern!r}:\n{''.join(self.lines)}")

    def port(self):
        return int(self.said(r"on 127\.0\.0\.1:(\d+)")[1])

    def ended(self):
        self.lines += self.process.stdout.readlines()
        return self.process.wait(SECONDS)

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.ended()
        self.limit.cancel()
        self.limit.join()
        self.process.stdout.close()


@pytest.fixture
def run(tmp_path, fork_server):
    """
    Start a server in its own folder; it is stopped at the end.

    Those that are told to start afresh are started by the command, at least one for each runner,
    reactor and kind of end; the others are forks.
    """
    with ExitStack() as programs:

        def run_program(*words, afresh=False):
            start = start_afresh if afresh else fork_server.start
            environment = os.environ | {"PYTHONUNBUFFERED": "1"}
            program = Program(start(words, tmp_path, subprocess.STDOUT, environment))
            programs.callback(program.close)
            return program

        yield run_program


@contextmanager
def connect(address):
    """Connect a client: a socket, and a file to read answers from."""
    if isinstance(address, int):
        client = socket.create_connection(("127.0.0.1", address), SECONDS)
    else:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SECONDS)
        client.connect(address)
    with client, client.makefile("rb") as answers:
        yield client, answers


def check_echo(address, line=b"hello\n"):
    with connect(address) as (client, answers):
        client.sendall(line)
        assert answers.readline() == line


def make_pem(folder):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")


def check_secure_echo(folder, port):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    with (
        socket.create_connection(("127.0.0.1", port), SECONDS) as client,
        context.wrap_socket(client, server_hostname="127.0.0.1") as encrypted,
    ):
        encrypted.sendall(b"secret\n")
        assert encrypted.recv(100) == b"secret\n"


# -- serving


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
def test_server_logs_its_addresses_and_echoes_lines(run, runner, tmp_path):
    program = run(*runner, "asynchat", "--listen", LOOPBACK, afresh=True)
    said = program.said(r"txasynchat: echo on 127\.0\.0\.1:(\d+); try: (.*)")
    assert said[1] in said[2]
    with connect(int(said[1])) as (client, answers):
        client.sendall(b"one\r\ntwo\n\nthree")
        assert [answers.readline() for _ in range(3)] == [b"one\r\n", b"two\n", b"\n"]
        client.sendall(b"\r")
        client.sendall(b"\n")
        assert answers.readline() == b"three\r\n"
        client.shutdown(socket.SHUT_WR)
        assert answers.read() == b""


@pytest.mark.parametrize("name", ["asyncio", "poll", "select"])
def test_server_runs_on_other_reactors(run, name):
    program = run(*TWISTD, "-n", f"--reactor={name}", "asynchat", "--listen", LOOPBACK, afresh=True)
    with connect(program.port()) as (client, answers):
        client.sendall(b"hello\n")
        assert answers.readline() == b"hello\n"
        program.process.send_signal(signal.SIGTERM)
        assert answers.read() == b""
    assert program.ended() == -signal.SIGTERM


def test_server_may_use_standard_input_and_output(tmp_path):
    with subprocess.Popen(
        [*TWISTD, "-n", "--logfile=log", "asynchat", "--listen", "stdio:"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        limit = threading.Timer(SECONDS, program.kill)
        limit.start()
        program.stdin.write(b"hello\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"hello\n"
        program.terminate()
        assert program.stdout.read() == b""
        assert program.wait() == -signal.SIGTERM
        limit.cancel()
        limit.join()


def test_mebibyte_is_echoed(run):
    port = run(*TWISTD, "-n", "asynchat", "--listen", LOOPBACK).port()
    sent = b"".join(b"%063d\n" % number for number in range(16_384))
    assert len(sent) == 1 << 20
    with connect(port) as (client, answers):
        writer = threading.Thread(target=client.sendall, args=(sent,))
        writer.start()
        try:
            assert answers.read(len(sent)) == sent
        finally:
            writer.join()


@pytest.mark.parametrize(
    ("options", "answered", "too_long"),
    [
        ([], [16_384], [16_385]),
        (["--max-message-length=5"], [0, 5], [6, 1000]),
        (["--max-message-length=0"], [1 << 20], []),
    ],
)
def test_a_line_over_the_limit_closes_its_connection(run, options, answered, too_long):
    port = run(*TWISTD, "-n", "asynchat", "--listen", LOOPBACK, *options).port()
    for length in too_long + answered:
        line = b"x" * length + b"\n"
        with connect(port) as (client, answers):
            client.sendall(line)
            assert answers.readline() == (b"" if length in too_long else line)


def test_server_listens_on_several_endpoints(run, tmp_path):
    make_pem(tmp_path)
    program = run(
        *TWISTD, "-n", "asynchat",
        "--listen", LOOPBACK,
        "--listen", "unix:echo.sock",
        "--listen", "secure:tcp:0:interface=127.0.0.1:certificate=cert.pem:key=key.pem",
        "--listen", "secure:unix:safe.sock:certificate=cert.pem:key=key.pem",
    )  # fmt: skip
    plain = program.port()
    assert program.said(r"echo on (.*); try: nc -U .*echo\.sock")[1].endswith("echo.sock")
    secure = int(program.said(r"try: openssl s_client -quiet -connect 127\.0\.0\.1:(\d+)")[1])
    program.said(r"try: openssl s_client -quiet -unix .*safe\.sock")
    check_echo(plain)
    check_echo(str(tmp_path / "echo.sock"))
    check_secure_echo(tmp_path, secure)


def test_a_client_that_says_nothing_is_closed_as_file_and_command_line_say(run, tmp_path):
    (tmp_path / "server.toml").write_text("[limits]\nfirst_message = 1000\nidle = 0.5\n")
    program = run(
        *TWISTD, "-n", "asynchat", "--listen", LOOPBACK,
        "--config", "server.toml", "--limit", "first_message=0.5",
    )  # fmt: skip
    port = program.port()
    with connect(port) as (_client, answers):
        assert answers.read() == b""
    program.said("first_message: nothing came for 0.5 s|idle: nothing went either way for 0.5 s")


def test_who_comes_when_all_places_are_taken_is_told_what_the_command_line_says(run):
    program = run(
        *TWISTD, "-n", "asynchat", "--listen", LOOPBACK,
        "--limit", "connections=1", "--limit", r"refusal=421 busy\r\n",
    )  # fmt: skip
    port = program.port()
    with connect(port) as (client, answers):
        client.sendall(b"hello\n")
        assert answers.readline() == b"hello\n"
        with connect(port) as (_refused, said):
            assert said.read() == b"421 busy\r\n"
    program.said(r"127\.0\.0\.1.* is refused: 1 are open already \(connections\)")


@pytest.mark.parametrize("client", ["nc", "curl", "openssl"])
def test_common_clients_get_answers(run, tmp_path, client):
    if shutil.which(client) is None:
        pytest.skip(f"{client} is not installed")
    make_pem(tmp_path)
    secure = client == "openssl"
    listen = "ssl:0:interface=127.0.0.1:privateKey=key.pem:certKey=cert.pem"
    port = run(
        *TWISTD, "-n", "asynchat", "--listen", listen if secure else LOOPBACK
    ).port()  # fmt: skip
    command = {
        "nc": ["nc", "127.0.0.1", str(port)],
        "curl": ["curl", "-sN", f"telnet://127.0.0.1:{port}"],
        "openssl": [
            "openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", "ca.pem",
            "-connect", f"127.0.0.1:{port}",
        ],
    }[client]  # fmt: skip
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as talking:
        limit = threading.Timer(SECONDS, talking.kill)
        limit.start()
        talking.stdin.write(b"hello\n")
        talking.stdin.flush()
        assert talking.stdout.readline() == b"hello\n"
        talking.kill()
        limit.cancel()
        limit.join()


def socket_activated(folder, listening, *command):
    """Start the command with a listening socket, as systemd does."""
    start = (
        "import os, sys\n"
        f"os.dup2({listening.fileno()}, 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='chat')\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    path = folder / "activate.py"
    path.write_text(start)
    return subprocess.Popen(
        [sys.executable, str(path), sys.executable, *command],
        cwd=folder,
        pass_fds=[listening.fileno(), 3],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("family", ["INET", "UNIX"])
def test_socket_opened_by_systemd_is_served(tmp_path, family):
    path = str(tmp_path / "activated.sock")
    with socket.socket(getattr(socket, f"AF_{family}")) as listening:
        listening.bind(("127.0.0.1", 0) if family == "INET" else path)
        listening.listen()
        address = listening.getsockname()[1] if family == "INET" else path
        # This client connects before the server starts, and waits in the socket's queue.
        with connect(address) as (client, answers):
            client.sendall(b"early\n")
            with socket_activated(
                tmp_path, listening, *TWISTD, "-n", "asynchat",
                "--listen", f"systemd:domain={family}:index=0",
            ) as program:  # fmt: skip
                limit = threading.Timer(SECONDS, program.kill)
                limit.start()
                assert answers.readline() == b"early\n"
                program.terminate()
                assert answers.read() == b""
                program.communicate()
                limit.cancel()
                limit.join()


@pytest.mark.parametrize("around", ["", "haproxy:", "secure:"])
@pytest.mark.slow
def test_file_of_a_socket_opened_by_systemd_is_left_alone(tmp_path, around):
    """The next start gets the same socket; its file and mode belong to systemd."""
    make_pem(tmp_path)
    path = tmp_path / "activated.sock"
    words = ":certificate=cert.pem:key=key.pem" if around == "secure:" else ""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        for _ in range(2):
            with socket_activated(
                tmp_path, listening, *TWISTD, "-n", "asynchat",
                "--listen", f"{around}systemd:domain=UNIX:index=0{words}",
            ) as program:  # fmt: skip
                limit = threading.Timer(SECONDS, program.kill)
                limit.start()
                for line in program.stdout:
                    # Behind "haproxy:" no client is recommended.
                    if found := re.search("txasynchat: echo on ([^;\n]*)", line):
                        assert found[1] == str(path)
                        break
                if not around:
                    check_echo(str(path))
                program.terminate()
                said, _ = program.communicate()
                limit.cancel()
                limit.join()
            assert program.returncode == -signal.SIGTERM, said
            assert path.is_socket()
            assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("family", "domain", "kind", "told"),
    [
        ("INET", "UNIX", "STREAM", "a socket of family AF_INET; write domain=INET"),
        ("UNIX", "INET", "STREAM", "a socket of family AF_UNIX; write domain=UNIX"),
        (
            "INET",
            "INET",
            "DGRAM",
            "a socket of type SOCK_DGRAM; write ListenStream= in its .socket",
        ),
        ("UNIX", "UNIX", "connected", "a connection, not a socket that listens; write Accept=no"),
        ("INET", "FOO", "STREAM", "domain=FOO is not known; write INET, INET6 or UNIX"),
    ],
)
@pytest.mark.slow
def test_wrong_systemd_socket_is_reported(tmp_path, family, domain, kind, told):
    """The error names the sockets that systemd passed, and what to change."""
    ours = socket.socket(getattr(socket, f"AF_{family}"), getattr(socket, f"SOCK_{kind}", 1))
    other = None
    if kind == "connected":
        ours.close()
        ours, other = socket.socketpair()
    else:
        ours.bind(("127.0.0.1", 0) if family == "INET" else str(tmp_path / "activated.sock"))
    if kind == "STREAM":
        ours.listen()
    with ours, socket_activated(
        tmp_path, ours, *TWISTD, "-n", "asynchat", "--listen", f"systemd:domain={domain}:index=0"
    ) as program:  # fmt: skip
        limit = threading.Timer(SECONDS, program.kill)
        limit.start()
        said, _ = program.communicate()
        limit.cancel()
        limit.join()
    if other is not None:
        other.close()
    assert program.returncode == 1
    [line] = [line for line in said.splitlines() if line.startswith("txasynchat: cannot listen")]
    assert told in line
    assert "Traceback" not in said


# -- what is served

HANDLERS = """
import asynchat
import asyncore

from twisted.internet.protocol import Factory, Protocol
from txasynchat import AsyncChat, ChatFactory


class Native(AsyncChat):
    terminator = b"\\n"

    def message_received(self, message):
        self.push(b"native " + message + b"\\n")


class Twisted(Protocol):
    def dataReceived(self, data):
        self.transport.write(b"twisted " + data)


class Legacy(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(b"\\n")
        self.data = []

    def collect_incoming_data(self, data):
        self.data.append(data)

    def found_terminator(self):
        self.push(b"legacy " + b"".join(self.data) + b"\\n")
        self.data = []


factory = ChatFactory(Native)


async def function(stream):
    async for line in stream:
        stream.write(b"function " + line + b"\\n")
        await stream.drain()


async def in_room(stream, room):
    pass


def make_factory():
    return Factory.forProtocol(Twisted)


class Outer:
    Inner = Native


answer = 42


def make_nothing():
    return None


def fail():
    raise ValueError("not today")


class NoHandler:
    pass


class InRoom(Native):
    def __init__(self, room):
        pass


class Smtp(Legacy):
    def __init__(self, server, conn, addr):
        pass


class Nothing(Legacy):
    def __init__(self):
        pass


class Listener(asyncore.dispatcher):
    def __init__(self, address):
        pass

    def handle_accepted(self, sock, addr):
        pass


class Deaf(AsyncChat):
    terminator = b"\\n"

    def line_received(self, line):
        self.push(line)


class Mute(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(b"\\n")


class Greets(Deaf):
    def handle_connect(self):
        self.push(b"hello\\n")


class Daytime(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.push(b"now\\n")
        self.close_when_done()


class Varied(Legacy):
    def __init__(self, *args, **kwargs):
        Legacy.__init__(self, args[0])


class Elsewhere(Legacy):
    others = {}

    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock, self.others)
        self.set_terminator(b"\\n")
        self.data = []


def make_legacy(sock, addr):
    return Legacy(sock)


instance = Native()
"""


@pytest.fixture
def handlers(tmp_path):
    (tmp_path / "handlers.py").write_text(HANDLERS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change the current folder, as for a program that is started in it."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    (tmp_path / "broken.py").write_text("nonsense\n")
    (tmp_path / "garbled.py").write_text("def (:\n")
    (tmp_path / "noted.py").write_text(
        "error = ValueError('what it is')\nerror.add_note('one\\nmore')\nraise error\n"
    )
    # As on a Python that lacks it.
    (tmp_path / "departed.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'smtpd'\", name='smtpd')\n"
    )
    yield tmp_path
    uninstall()
    for name in {"handlers", "broken", "garbled", "departed", "noted"} - known:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("Native", b"native hello\n"),
        ("function", b"function hello\n"),
        ("Legacy", b"legacy hello\n"),
        ("Varied", b"legacy hello\n"),
        ("Daytime", b"now\n"),
        ("make_factory", b"twisted hello\n"),
    ],
)
def test_handler_may_be_a_class_or_a_factory_in_the_current_folder(run, handlers, name, answer):
    program = run(*TWISTD, "-n", "asynchat", "--handler", f"handlers:{name}", "--listen", LOOPBACK)
    port = int(program.said(rf"txasynchat: handlers:{name} on 127\.0\.0\.1:(\d+)")[1])
    with connect(port) as (client, answers):
        client.sendall(b"hello\n")
        assert answers.readline() == answer


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("Twisted", "Twisted"),
        ("Outer.Inner", "Native"),
        ("factory", "Native"),
        ("make_factory", "Twisted"),
        ("function", "function"),
    ],
)
def test_handler_name_may_mean_a_class_factory_or_function(handlers, here, name, built):
    factory = load_factory(f"handlers:{name}")
    assert type(factory.buildProtocol(None)).__name__ == built


@pytest.mark.parametrize("reactor", ["epoll", "asyncio"])
def test_a_handler_function_has_the_limit_that_is_given(run, handlers, reactor):
    where = ("--listen", LOOPBACK, "--max-message-length", "5")
    port = run(
        *TWISTD, "-n", "--reactor", reactor, "asynchat", "--handler", "handlers:function", *where
    ).port()
    for line, answer in [(b"hello\n", b"function hello\n"), (b"hello!\n", b"")]:
        with connect(port) as (client, answers):
            client.sendall(line)
            assert answers.readline() == answer


def test_twist_serves_a_legacy_handler_too(run, handlers):
    port = run(*TWIST, "asynchat", "--handler", "handlers:Legacy", "--listen", LOOPBACK).port()
    with connect(port) as (client, answers):
        client.sendall(b"hello\n")
        assert answers.readline() == b"legacy hello\n"


# -- what cannot be served


def test_handler_that_only_sends_is_served_and_a_forgotten_hook_is_warned_of(run, handlers):
    """What cannot be decided at the start is served, with a warning."""
    program = run(*TWISTD, "-n", "asynchat", "--handler", "handlers:Greets", "--listen", LOOPBACK)
    program.said(
        "txasynchat: handlers:Greets overrides neither message_received nor found_terminator, "
        "so it ignores what it is sent"
    )
    with connect(program.port()) as (_, answers):
        assert answers.readline() == b"hello\n"


@pytest.mark.parametrize("transport", ["hub", "twisted"])
def test_handler_that_registers_in_another_map_is_served(run, handlers, transport):
    where = ("--transport", transport, "--listen", LOOPBACK)
    program = run(*TWISTD, "-n", "asynchat", "--handler", "handlers:Elsewhere", *where)
    with connect(program.port()) as (client, answers):
        client.sendall(b"hello\n")
        assert answers.readline() == b"legacy hello\n"


MISTAKES = {
    "no such module": (
        ["--handler", "nowhere:Handler"],
        "cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'",
    ),
    "no such class": (["--handler", "handlers:Nobody"], "module handlers has no 'Nobody'"),
    "no class": (["--handler", "handlers"], "--handler 'handlers': write it as package.module:Class"),
    "no handler": (["--handler", "handlers:NoHandler"], "neither a handler class"),
    "a number": (["--handler", "handlers:answer"], "handlers:answer is 42, neither"),
    "makes nothing": (["--handler", "handlers:make_nothing"], "neither a handler class"),
    "fails": (["--handler", "handlers:fail"], "handlers:fail() raised ValueError: not today ("),
    "broken module": (
        ["--handler", "broken:Handler"],
        re.compile(r"cannot import broken: NameError: name 'nonsense' .*broken\.py, line 1"),
    ),
    "a module that left Python": (
        ["--handler", "departed:Handler"],
        re.compile(
            r"No module named 'smtpd' \(.*departed\.py, line 1\); smtpd was removed in Python 3\.12; "
            r"pip install standard-smtpd brings it back, and runs on txasynchat if "
        ),
    ),
    "an exception with a note": (
        ["--handler", "noted:Handler"],
        re.compile(r"cannot import noted: ValueError: what it is \(.*noted\.py, line 3\)$"),
    ),
    "no syntax": (["--handler", "garbled:Handler"], "cannot import garbled: SyntaxError: "),
    "no endpoint": (["--listen", "pigeon:1"], "cannot listen on 'pigeon:1': Unknown endpoint"),
    "no argument": (["--listen", "tcp:1:colour=red"], "unexpected keyword argument 'colour'"),
    "no certificate": (["--listen", "ssl:1:privateKey=none.pem"], "No such file or directory"),
    "a taken port": (["--listen", "tcp:{taken}:interface=127.0.0.1"], "Address already in use"),
    "no socket": (["--listen", "systemd:domain=INET:index=7"], "systemd passed no such socket"),
    "no option": (["--lisen", "tcp:1"], "option --lisen not recognized (--help lists"),
    "no folder": (["--listen", "unix:none/echo.sock"], "cannot listen on 'unix:none/echo.sock': "),
    "no number": (
        ["--max-message-length", "many"],
        "--max-message-length must be a whole number from 0 up, not 'many'",
    ),
    "negative": (
        ["--stop-timeout=-1"],
        "--stop-timeout must be a number from 0 to 1,000,000, not '-1'",
    ),
    "no transport": (
        ["--transport=tcp"], "--transport must be hub or twisted, not 'tcp'"
    ),
    "no kind of endpoint": (
        ["--listen", "4000"],
        ("cannot listen on '4000': Unknown endpoint type: '4000'; "
        "write tcp:4000:interface=127.0.0.1 for this machine only"),
    ),
    "a constructor that wants more": (
        ["--handler", "handlers:InRoom"],
        ("handlers:InRoom: InRoom wants (room); write --handler handlers:factory, and in that module "
        "factory = ChatFactory(InRoom, room)"),
    ),
    "a function that wants more": (
        ["--handler", "handlers:in_room"],
        ("handlers:in_room: in_room wants (stream, room), the stream first; write --handler "
        "handlers:factory, and in that module factory = ChatFactory(in_room, room)"),
    ),
    "the same, with a limit": (
        ["--handler", "handlers:InRoom", "--max-message-length=9"], "InRoom wants (room); write "
    ),
    "a legacy constructor that wants more": (
        ["--handler", "handlers:Smtp"],
        ("handlers:Smtp: Smtp wants (server, conn, addr), and would be called with (sock); write "
        "--handler handlers:factory, and in that module factory = "
        "LegacyFactory(build=lambda sock, addr: Smtp(server, sock, addr))"),
    ),
    "a legacy constructor that wants nothing": (
        ["--handler", "handlers:Nothing"],
        ("write --handler handlers:factory, and in that module factory = LegacyFactory(build=make), "
        "where make(sock, addr) makes one for a socket"),
    ),
    "a listener": (
        ["--handler", "handlers:Listener"],
        ("handlers:Listener: Listener listens by itself, as it overrides handle_accept or "
        "handle_accepted: serve the class that it makes for each connection; write --handler "
        "handlers:factory, and in that module factory = LegacyFactory(build=make)"),
    ),
    "no hook": (
        ["--handler", "handlers:Deaf"],
        "handlers:Deaf overrides neither message_received nor found_terminator, and does nothing",
    ),
    "no legacy hook": (
        ["--handler", "handlers:Mute"],
        "handlers:Mute overrides neither collect_incoming_data nor found_terminator, and does",
    ),
    "an instance": (["--handler", "handlers:instance"], "handlers:instance is <handlers.Native "),
    "a function that builds handlers": (
        ["--handler", "handlers:make_legacy"],
        ("handlers:make_legacy wants (sock, addr), but --handler calls a function without arguments, "
        "to get a factory; if it makes legacy handlers, "
        "write factory = LegacyFactory(build=make_legacy)"),
    ),
    "a limit for others": (
        ["--handler", "handlers:Twisted", "--max-message-length", "5"],
        "max_message_length is for AsyncChat handlers, which handlers:Twisted is not",
    ),
}  # fmt: skip


@pytest.fixture
def run_mistake(tmp_path, fork_server):
    def run_program(*words):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = str(taken.getsockname()[1])
            words = [word.replace("{taken}", number) for word in words]
            return fork_server.run(words, tmp_path, SECONDS)

    return run_program


def check_report(mistake, line):
    expected = MISTAKES[mistake][1]
    assert line.startswith("txasynchat: ")
    assert re.search(expected if isinstance(expected, re.Pattern) else re.escape(expected), line)
    assert "\n" not in line


# Older versions of Twisted leave a socket that could not be bound to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_the_program_with_one_line(handlers, here, mistake):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        with pytest.raises(CannotStart) as ending:
            options = Options()
            options.parseOptions(
                [option.replace("{taken}", number) for option in MISTAKES[mistake][0]]
            )
            makeService(options).startService()
    check_report(mistake, ending.value.code)


@pytest.mark.parametrize("mistake", ["no handler", "a taken port"])
@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
def test_a_mistake_is_one_line_on_standard_error_and_status_1(
    run_mistake, handlers, tmp_path, runner, mistake
):
    done = run_mistake(*runner, "asynchat", *MISTAKES[mistake][0])
    assert done.returncode == 1
    check_report(mistake, done.stderr.removesuffix("\n"))
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "twistd.pid").exists()


def test_ports_opened_before_the_one_in_use_are_closed(run_mistake, tmp_path):
    options = ["--listen", "unix:first.sock", *MISTAKES["a taken port"][0]]
    done = run_mistake(*TWISTD, "-n", "asynchat", *options)
    assert done.returncode == 1
    assert not (tmp_path / "first.sock").exists()


def test_help_shows_the_usage():
    done = subprocess.run(
        [*TWISTD, "asynchat", "--help"],
        capture_output=True, text=True, timeout=SECONDS, check=True,
    )  # fmt: skip
    for option in (
        "--handler", "--listen", "--transport", "--max-message-length", "--stop-timeout",
        "--limit", "--config",
    ):  # fmt: skip
        assert option in done.stdout
    assert "twistd -n asynchat --handler chat:User --listen tcp:4000" in done.stdout


# -- the end

WORKING = """
from txasynchat import AsyncChat

working = []


class Handler(AsyncChat):
    terminator = b"\\n"

    def message_received(self, message):
        if message == b"work":
            self.push(b"working\\n")
            self.pause()
            working.append(self)
        elif message == b"release":
            for handler in working:
                handler.push(b"done\\n")
                handler.resume()
            self.push(b"released\\n")
        else:
            self.push(message + b"\\n")
"""


@pytest.fixture
def working(tmp_path):
    (tmp_path / "working.py").write_text(WORKING)
    return ["asynchat", "--handler", "working:Handler", "--listen", LOOPBACK]


@pytest.mark.parametrize(
    ("runner", "number"),
    [("twistd -n", signal.SIGTERM), ("twistd -n", signal.SIGINT), ("twist", signal.SIGTERM)],
)
def test_a_signal_lets_connections_finish(run, working, tmp_path, runner, number):
    program = run(*RUNNERS[runner], *working, afresh=True)
    port = program.port()
    with (
        connect(port) as (idle, idle_answers),
        connect(port) as (busy, busy_answers),
        connect(port) as (in_mid_message, mid_answers),
    ):
        idle.sendall(b"hello\n")
        assert idle_answers.readline() == b"hello\n"
        busy.sendall(b"work\nand more\n")
        assert busy_answers.readline() == b"working\n"
        in_mid_message.sendall(b"hello\nrele")
        assert mid_answers.readline() == b"hello\n"

        program.process.send_signal(number)

        assert idle_answers.read() == b""
        with pytest.raises(ConnectionRefusedError), connect(port):
            pass
        in_mid_message.sendall(b"ase\n")
        assert busy_answers.read() == b"done\nand more\n"
        assert mid_answers.read() == b"released\n"
    assert program.ended() == -number
    assert "Traceback" not in "".join(program.lines)
    assert not (tmp_path / "twistd.pid").exists()


@pytest.mark.parametrize(
    ("runner", "second"),
    [("twistd -n", signal.SIGTERM), ("twistd -n", signal.SIGINT), ("twist", signal.SIGTERM)],
)
def test_second_signal_ends_the_server_at_once(run, working, runner, second):
    program = run(*RUNNERS[runner], *working, "--stop-timeout=1000")
    port = program.port()
    with connect(port) as (idle, idle_answers), connect(port) as (busy, busy_answers):
        idle.sendall(b"hello\n")
        assert idle_answers.readline() == b"hello\n"
        busy.sendall(b"work\n")
        assert busy_answers.readline() == b"working\n"
        program.process.send_signal(signal.SIGTERM)
        assert idle_answers.read() == b""
        program.process.send_signal(second)
        with pytest.raises(ConnectionResetError):
            busy_answers.read()
    assert program.ended() == -signal.SIGTERM
    assert "aborting 1 connections" in "".join(program.lines)
    assert "Traceback" not in "".join(program.lines)


def test_connection_that_does_not_finish_in_time_is_aborted(run, working):
    program = run(*RUNNERS["twistd -n"], *working, "--stop-timeout=0.1")
    with connect(program.port()) as (busy, answers):
        busy.sendall(b"work\n")
        assert answers.readline() == b"working\n"
        program.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            answers.read()
    assert program.ended() == -signal.SIGTERM


MEDDLING = """
import os

import asynchat
from txasynchat import AsyncChat


class Native(AsyncChat):
    terminator = b"\\n"

    def message_received(self, message):
        if message == b"descriptor":
            os.close(self.transport.fileno())
        elif message == b"socket":
            self.transport.socket.close()
        else:
            self.push(message + b"\\n")


class Legacy(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(b"\\n")

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self):
        line = self._get_data()
        if line == b"descriptor":
            os.close(self.socket.fileno())
        elif line == b"socket":
            self.socket.close()
        else:
            self.push(line + b"\\n")
"""


@pytest.mark.parametrize("closed", [b"descriptor", b"socket"])
@pytest.mark.parametrize("handler", ["Native", "Legacy"])
def test_handler_that_closes_its_descriptor_does_not_block_the_exit(run, tmp_path, handler, closed):
    (tmp_path / "meddling.py").write_text(MEDDLING)
    program = run(
        *RUNNERS["twistd -n"], "asynchat", "--handler", f"meddling:{handler}",
        "--listen", LOOPBACK, "--stop-timeout=1",
    )  # fmt: skip
    port = program.port()
    with connect(port) as (meddler, end), connect(port) as (bystander, answers):
        meddler.sendall(closed + b"\n")
        assert end.read() == b""
        bystander.sendall(b"hello\n")
        assert answers.readline() == b"hello\n"
        program.process.send_signal(signal.SIGINT)
        assert answers.read() == b""
    assert program.ended() == -signal.SIGINT


# -- in the background


@contextmanager
def daemon(folder, *arguments):
    """
    Run a server in the background; stop it at the end, and wait until it has exited.
    """
    # The background process inherits one end of a pipe, which closes when it ends.
    ends, inherited = os.pipe()
    with os.fdopen(ends, "rb") as ended:
        try:
            done = subprocess.run(
                [*TWISTD, *arguments],
                cwd=folder, pass_fds=[inherited],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                timeout=SECONDS, check=False,
            )  # fmt: skip
        finally:
            os.close(inherited)
        try:
            yield done
        finally:
            pid_file = folder / "twistd.pid"
            if done.returncode == 0:
                os.kill(int(pid_file.read_text()), signal.SIGTERM)
            assert ended.read() == b""
    assert not pid_file.exists()


def test_relative_paths_of_a_daemon_mean_the_folder_of_its_start(tmp_path):
    make_pem(tmp_path)
    with daemon(
        tmp_path, "asynchat",
        "--listen", "unix:echo.sock",
        "--listen", "ssl:0:interface=127.0.0.1:privateKey=key.pem:certKey=cert.pem",
    ) as started:  # fmt: skip
        assert started.returncode == 0, started.stderr
        check_echo(str(tmp_path / "echo.sock"))
        log = (tmp_path / "twistd.log").read_text()
        port = int(re.search(r"echo on 127\.0\.0\.1:(\d+)", log)[1])
        check_secure_echo(tmp_path, port)
    assert not (tmp_path / "echo.sock").exists()


def test_rundir_applies_to_the_socket_and_not_to_the_certificate(tmp_path):
    make_pem(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with daemon(
        tmp_path, "--rundir", "elsewhere", "asynchat",
        "--listen", "unix:echo.sock",
        "--listen", "ssl:0:interface=127.0.0.1:privateKey=key.pem:certKey=cert.pem",
        "--listen", "secure:tcp:0:interface=127.0.0.1:certificate=cert.pem:key=key.pem",
    ) as started:  # fmt: skip
        assert started.returncode == 0, started.stderr
        check_echo(str(tmp_path / "elsewhere" / "echo.sock"))
        log = (tmp_path / "twistd.log").read_text()
        ports = re.findall(r"echo on 127\.0\.0\.1:(\d+)", log)
        assert len(ports) == 2
        for port in ports:
            check_secure_echo(tmp_path, int(port))
        assert "cert.pem" not in (tmp_path / "twistd.log").read_text()


def test_daemon_reports_a_port_in_use_on_the_command_line_and_in_the_log(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        description = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        with daemon(tmp_path, "asynchat", "--listen", description) as started:
            assert started.returncode == 1
            assert b"cannot listen on" in started.stderr
            assert b"Traceback" not in started.stderr
    log = (tmp_path / "twistd.log").read_text()
    assert f"txasynchat: cannot listen on '{description}': Address already in use" in log
    assert "Traceback" not in log


def test_daemon_stops_while_a_connection_is_idle(tmp_path):
    with daemon(tmp_path, "asynchat", "--listen", "unix:echo.sock") as started:
        assert started.returncode == 0, started.stderr
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SECONDS)
        client.connect(str(tmp_path / "echo.sock"))
        # Until its reactor runs, a signal ends the process at once.
        client.sendall(b"hello\n")
        assert client.recv(10) == b"hello\n"
    with client:
        assert client.recv(10) == b""
