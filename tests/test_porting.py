"""
An asynchat handler becomes an `AsyncChat` by changing its base class and dropping ``sock``.

Three handlers, written as they were for the standard library, are changed by replacing exactly that
text. Then both versions are served and must say the same to the same clients. What serves the old
version is the standard library where it has asynchat (3.11), and the facade where it has not.
"""

import difflib
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

LEGACY = """\
import asynchat


class LineEcho(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.buffer = []
        self.set_terminator(b"\\r\\n")

    def collect_incoming_data(self, data):
        self.buffer.append(data)

    def found_terminator(self):
        line = b"".join(self.buffer)
        self.buffer = []
        self.push(b"%d: " % len(line))
        self.push(line + b"\\r\\n")
        if line == b"quit":
            self.close_when_done()


class Frames(asynchat.async_chat):
    frames = 0

    def __init__(self, sock):
        super().__init__(sock)
        self.set_terminator(4)

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        frame = self._get_data()
        self.frames += 1
        self.push(frame[::-1])
        if self.frames == 3:
            self.push(b"last")
            self.close_when_done()
        else:
            self.set_terminator(4)


class Requests(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock=sock)
        self.ibuffer = []
        self.head = None
        self.set_terminator(b"\\r\\n\\r\\n")

    def collect_incoming_data(self, data):
        self.ibuffer.append(data)

    def found_terminator(self):
        data = b"".join(self.ibuffer)
        self.ibuffer = []
        if self.head is None:
            self.head = data.split(b"\\r\\n")
            length = self.value_of(b"length")
            if length:
                self.set_terminator(int(length))
                return
            data = b""
        self.answer(data)
        self.head = None
        self.set_terminator(b"\\r\\n\\r\\n")

    def value_of(self, name):
        for line in self.head[1:]:
            key, _, value = line.partition(b": ")
            if key == name:
                return value

    def answer(self, body):
        self.push(b"got " + self.head[0] + b"\\r\\nlength: %d\\r\\n\\r\\n" % len(body))
        if body:
            self.push_with_producer(asynchat.simple_producer(body.upper(), buffer_size=7))
        if self.value_of(b"then") == b"close":
            self.close_when_done()

    def handle_close(self):
        self.close()
"""

NAMES = ["LineEcho", "Frames", "Requests"]

SERVE_LEGACY = """\
import asyncore, importlib, socket, sys

class Listener(asyncore.dispatcher):
    def __init__(self, handler):
        asyncore.dispatcher.__init__(self)
        self.handler = handler
        self.create_socket(socket.AF_INET, socket.SOCK_STREAM)
        self.bind(("127.0.0.1", 0))
        self.listen(5)
        print(handler.__name__, self.socket.getsockname()[1], asyncore.__name__, flush=True)

    def handle_accepted(self, sock, address):
        self.handler(sock)

import handlers
for name in sys.argv[1:]:
    Listener(getattr(handlers, name))
asyncore.loop()
"""

ON_THE_FACADE = "import txasynchat; txasynchat.install()\n"

SERVE_PORTED = """\
import sys
from twisted.internet import reactor
from txasynchat import ChatFactory, Server
import handlers
for name in sys.argv[1:]:
    server = Server(
        reactor, ChatFactory(getattr(handlers, name)), ["tcp:0:interface=127.0.0.1"]
    )
    server.startService()
    print(name, server.ports[0].getHost().port, "twisted", flush=True)
reactor.run()
"""

REQUESTS = (
    b"GET /\r\n\r\n"
    b"PUT /one\r\nlength: 12\r\n\r\nhello\r\n\r\nyou"
    b"PUT /two\r\nlength: 3000\r\n\r\n" + b"abc" * 1000 + b"GET /end\r\nthen: close\r\n\r\n"
)
ANSWERS = (
    b"got GET /\r\nlength: 0\r\n\r\n"
    b"got PUT /one\r\nlength: 12\r\n\r\nHELLO\r\n\r\nYOU"
    b"got PUT /two\r\nlength: 3000\r\n\r\n" + b"ABC" * 1000 + b"got GET /end\r\nlength: 0\r\n\r\n"
)
LONG = b"x" * 9999 + b"\r\n"

# What the client sends, what it receives, and which side closes first.
CONVERSATIONS = {
    "LineEcho": {
        "lines": (
            b"one\r\n\r\nthree\nand\r\r\nquit\r\n",
            b"3: one\r\n0: \r\n10: three\nand\r\r\n4: quit\r\n",
            "server",
        ),
        "a long one": (LONG + b"quit\r\n", b"9999: " + LONG + b"4: quit\r\n", "server"),
        "no end": (b"one\r\ntwo", b"3: one\r\n", "client"),
        "nothing": (b"", b"", "client"),
    },
    "Frames": {
        "three": (b"abcdefghijkl", b"dcbahgfelkjilast", "server"),
        "one and a half": (b"abcdef", b"dcba", "client"),
        "nothing": (b"", b"", "client"),
    },
    "Requests": {
        "all kinds": (REQUESTS, ANSWERS, "server"),
        "a body that ends early": (REQUESTS[:40], ANSWERS[:24], "client"),
    },
}


def port_handlers(source):
    """The two changes, and the import that goes with the first."""
    source = source.replace("(asynchat.async_chat)", "(AsyncChat)")
    for arguments in ("self, sock", "self, sock=sock"):
        old = f"asynchat.async_chat.__init__({arguments})"
        source = source.replace(old, "AsyncChat.__init__(self)")
    source = source.replace("super().__init__(sock)", "super().__init__()")
    source = source.replace("def __init__(self, sock)", "def __init__(self)")
    source = source.replace("asynchat.simple_producer", "simple_producer")
    return source.replace("import asynchat", "from txasynchat import AsyncChat, simple_producer")


def test_only_the_base_class_and_sock_are_changed():
    changed = [
        line[2:]
        for line in difflib.ndiff(LEGACY.splitlines(), port_handlers(LEGACY).splitlines())
        if line.startswith("- ")
    ]
    assert changed
    assert [line for line in changed if not re.search(r"\basynchat\b|\bsock\b", line)] == []


@contextmanager
def serving(folder, source, program):
    """Serve all three handlers in one process; yield the port of each."""
    folder.mkdir()
    (folder / "handlers.py").write_text(source)
    (folder / "program.py").write_text(program)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "program.py", *NAMES],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        limit = threading.Timer(60, process.kill)
        limit.start()
        try:
            said = [process.stdout.readline().split() for _ in NAMES]
            yield {name: int(port) for name, port, _ in said}, {module for _, _, module in said}
        finally:
            process.kill()
            limit.cancel()
            limit.join()


def converse(port, sent, size, closes_first):
    """Send in pieces, and return everything received."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), size):
            client.sendall(sent[start : start + size])
        if closes_first == "client":
            client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answers:
            return answers.read()


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    has_stdlib = sys.version_info < (3, 12)
    program = SERVE_LEGACY if has_stdlib else ON_THE_FACADE + SERVE_LEGACY
    with (
        serving(folder / "legacy", LEGACY, program) as (legacy, modules),
        serving(folder / "ported", port_handlers(LEGACY), SERVE_PORTED) as (ported, _),
    ):
        assert modules == ({"asyncore"} if has_stdlib else {"txasynchat.compat.asyncore"})
        yield {"legacy": legacy, "ported": ported}


@pytest.mark.parametrize("size", [1, 7, 1 << 20], ids=["byte by byte", "in sevens", "at once"])
@pytest.mark.parametrize(
    ("handler", "conversation"),
    [(handler, name) for handler, each in CONVERSATIONS.items() for name in each],
)
@pytest.mark.slow
def test_both_versions_answer_the_same(versions, handler, conversation, size):
    sent, expected, closes_first = CONVERSATIONS[handler][conversation]
    said = {
        version: converse(ports[handler], sent, size, closes_first)
        for version, ports in versions.items()
    }
    assert said == {"legacy": expected, "ported": expected}
