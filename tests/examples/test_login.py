"""``examples/login.py`` and ``login_legacy.py``."""

import ftplib
import runpy
import signal

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from helpers.peers import connect, converse, curl, read_all
from txasynchat import ChatFactory, Limits

LOGIN = b"USER ann\nPASS secret\n"
WELCOME = [b"331 password?", b"230 hello, ann"]


def answers(program, session):
    """Send a whole session, in one packet if it is small, and return the lines of the answers."""
    return converse(program.port, session).splitlines()


def test_session_goes_through_all_states(example):
    """The whole session in one packet, and each line answered with its own end."""
    program = example("login")
    session = b"USER ann\r\nPASS secret\nwhoami\r\nDATA\nhello\nworld\n.\nQUIT\r\nWHOAMI\n"
    assert converse(program.port, session) == (
        b"331 password?\r\n230 hello, ann\n200 ann\r\n354 end with a dot\n"
        b"250 2 lines, 12 bytes\n221 bye\r\n"
    )
    program.stop()


def test_guesses_after_the_third_are_not_looked_at(example):
    """The first three in a packet are answered, then the connection ends; the right one is too late."""
    program = example("login")
    guesses = b"USER ann\nPASS 1\nUSER bob\nPASS 2\nPASS 3\nPASS hunter2\nWHOAMI\n"
    with connect(program.port) as peer:
        peer.sendall(guesses)
        assert read_all(peer).splitlines() == [
            b"331 password?",
            b"530 wrong",
            b"331 password?",
            b"530 wrong",
            b"530 wrong",
        ]
    program.stop()


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (b"PASS secret\n", [b"503 not now"]),
        (b"PASS\nWHOAMI\nDATA\n", [b"503 not now"] * 3),
        (b"USER ann\nWHOAMI\n", [b"331 password?", b"503 not now"]),
        (b"USER eve\nPASS\n", [b"331 password?", b"530 wrong"]),
        (LOGIN + b"USER bob\nPASS secret\n", [*WELCOME, b"503 not now", b"503 not now"]),
        (LOGIN + b"EXPN\n\n", [*WELCOME, b"500 what?", b"500 what?"]),
        (b"QUIT\nUSER ann\n", [b"221 bye"]),
        (b"USER bob\nQUIT\nPASS hunter2\n", [b"331 password?", b"221 bye"]),
    ],
)
def test_command_in_another_state_is_refused(example, session, expected):
    program = example("login")
    assert answers(program, session) == expected
    program.stop()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (b"", b"250 0 lines, 0 bytes"),
        (b"QUIT\nPASS x\n", b"250 2 lines, 12 bytes"),
        (b"..\n...x\n", b"250 2 lines, 6 bytes"),
        (b"x" * 1000 + b"\n", b"250 1 lines, 1001 bytes"),
        (b"x" * 2000 + b"\nmore\n", b"552 too long"),
        ((b"x" * 999 + b"\n") * 100, b"250 100 lines, 100000 bytes"),
        ((b"x" * 999 + b"\n") * 101, b"552 too long"),
        (b"\n" * 100_001, b"552 too long"),
    ],
    ids=["empty", "commands", "dots", "long", "longer", "large", "larger", "empty lines"],
)
def test_text_has_limits_of_its_own(example, text, answer):
    """A line of it may be longer than a command, and afterwards the commands' limit is in force."""
    program = example("login")
    session = LOGIN + b"DATA\n" + text + b".\nWHOAMI\n" + b"x" * 100 + b"\nWHOAMI\n"
    assert answers(program, session) == [
        *WELCOME,
        b"354 end with a dot",
        answer,
        b"200 ann",
        b"500 line too long",
    ]
    program.stop()


def test_endless_command_is_refused_before_it_ends(example):
    program = example("login")
    with connect(program.port) as peer:
        peer.sendall(b"x" * 100)
        assert read_all(peer) == b"500 line too long\r\n"
    program.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_in_order(example, number):
    program = example("login", afresh=number == signal.SIGINT)
    with connect(program.port) as peer:
        peer.sendall(b"USER ann\n")
        assert peer.recv(100) == b"331 password?\n"
        program.stop(number)
        assert read_all(peer) == b""
    assert "Traceback" not in program.logged()


def test_ftplib_logs_in_and_out(example):
    """Its commands for that are FTP's."""
    program = example("login")
    with ftplib.FTP() as client:
        client.sock = connect(program.port)
        client.file = client.sock.makefile("r", encoding="utf-8")
        with pytest.raises(ftplib.error_perm, match="530 wrong"):
            client.login("ann", "guess")
        assert client.login("ann", "secret") == "230 hello, ann"
        assert client.sendcmd("DATA") == "354 end with a dot"
        client.putline("hello")
        assert client.sendcmd(".") == "250 1 lines, 6 bytes"
        assert client.quit() == "221 bye"
    program.stop()


def test_curl_sends_a_text(example):
    program = example("login")
    with curl(program.port, LOGIN + b"DATA\nhello\n.\nQUIT\n") as output:
        expected = [*WELCOME, b"354 end with a dot", b"250 1 lines, 6 bytes", b"221 bye"]
        assert output.read().splitlines() == expected
    program.stop()


def test_strangers_have_a_limited_time_and_writers_a_longer_pause(root):
    """The modes of the native half, by a clock."""
    clock = Clock()
    handler = type("Login", (runpy.run_path(str(root / "examples/login.py"))["Login"],), {})
    handler.clock = clock

    def log_in(lines):
        chat = ChatFactory(handler, limits=Limits(idle=300)).buildProtocol(None)
        transport = StringTransport()
        chat.makeConnection(transport)
        chat.dataReceived(lines)
        transport.clear()
        return chat, transport

    def wait(seconds):
        for _ in range(seconds):
            clock.advance(1)

    _, stranger = log_in(b"USER ann\n")
    member, its = log_in(LOGIN)
    writer, other = log_in(LOGIN + b"DATA\n")
    wait(61)
    assert stranger.value() == b"421 too slow\n"
    wait(350)
    assert its.value() == b"421 too slow\n"
    assert not other.value()
    writer.dataReceived(b"a" * 100 + b"\n.\n")
    assert other.value() == b"250 1 lines, 101 bytes\n"
    assert (writer.max_message_length, member.max_message_length) == (80, 80)
    wait(350)
    assert other.value().endswith(b"421 too slow\n")
