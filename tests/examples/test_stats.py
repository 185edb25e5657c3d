"""``examples/stats.py`` and ``stats_legacy.py``."""

import signal
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from helpers.peers import connect, converse, curl, read_all


def ask(peer, line):
    peer.sendall(line)
    with peer.makefile("rb") as answers:
        return answers.readline()


def test_lines_are_acknowledged_with_their_own_end(example):
    program = example("stats")
    with connect(program.port) as peer, peer.makefile("rb") as answers:
        peer.sendall(b"one\ntw")
        assert answers.readline() == b"ACK: one\n"
        peer.sendall(b"o\r\n\nstats\n")
        assert answers.readline() == b"ACK: two\r\n"
        assert answers.readline() == b"ACK: \n"
        assert answers.readline() == b"ACK: stats\n"
    program.stop()


SESSION = [b"STATS\n", b"hello\r\n", b"STATS\r\n", b"STATS x\n", b"STATS\n"]
ANSWERS = [
    b"connections=1 messages=1 bytes_recv=6 bytes_sent=0\n",
    b"ACK: hello\r\n",
    b"connections=1 messages=3 bytes_recv=20 bytes_sent=63\r\n",
    b"ACK: STATS x\n",
    b"connections=1 messages=5 bytes_recv=34 bytes_sent=130\n",
]


@pytest.mark.parametrize("at_once", [True, False], ids=["in one packet", "one by one"])
def test_statistics_count_this_question_and_the_answers_before_it(example, at_once):
    """Line ends count, and it does not matter how the lines arrive."""
    program = example("stats")
    with connect(program.port) as peer:
        if at_once:
            peer.sendall(b"".join(SESSION))
            with peer.makefile("rb") as answers:
                assert [answers.readline() for _ in SESSION] == ANSWERS
        else:
            assert [ask(peer, line) for line in SESSION] == ANSWERS
    program.stop()


def test_both_halves_count_alike(start_half):
    """The same clients, one of whom sends half a line, get the same answers."""
    said = []
    for half in ("native", "legacy"):
        program = start_half(half, "stats")
        with connect(program.port) as first, connect(program.port) as second:
            said.append(
                [
                    ask(first, b"one\r\n"),
                    ask(second, b"STATS\n"),
                    converse(program.port, b"two\nhalf"),
                    ask(first, b"STATS\r\n"),
                    ask(second, b"STATS\n"),
                ]
            )
        program.stop()
    assert said[0] == said[1]
    assert said[0][-1] == b"connections=3 messages=5 bytes_recv=28 bytes_sent=126\n"


def test_who_comes_when_all_places_are_taken_waits_and_is_served_in_order(example):
    """What they send meanwhile is answered when somebody leaves."""
    program = example("stats", "--max-connections", 2)
    with ExitStack() as clients:
        peers = [clients.enter_context(connect(program.port)) for _ in range(5)]
        answers = [clients.enter_context(peer.makefile("rb")) for peer in peers]
        for number, peer in enumerate(peers):
            peer.sendall(b"from %d\nSTATS\n" % number)
        for number in (0, 1):
            assert answers[number].readline() == b"ACK: from %d\n" % number
            assert answers[number].readline().startswith(b"connections=2 ")
        for number in (2, 3, 4):
            answers[number - 2].close()
            peers[number - 2].close()
            assert answers[number].readline() == b"ACK: from %d\n" % number
            # Whoever waits has not been counted, nor a line of it.
            expected = b"connections=%d messages=%d " % (number + 1, 2 * number + 2)
            assert answers[number].readline().startswith(expected)
    program.stop()


def test_who_leaves_while_waiting_holds_nobody_up(example):
    program = example("stats", "--max-connections", 1)
    with connect(program.port) as served:
        assert ask(served, b"one\n") == b"ACK: one\n"
        with connect(program.port):
            pass
        with connect(program.port) as last:
            served.close()
            assert ask(last, b"two\n") == b"ACK: two\n"
    program.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_those_that_are_served_and_those_that_wait(example, number):
    program = example("stats", "--max-connections", 1, afresh=number == signal.SIGINT)
    with connect(program.port) as served, connect(program.port) as waits:
        waits.sendall(b"two\n")
        assert ask(served, b"one\n") == b"ACK: one\n"
        program.stop(number)
        assert read_all(served) == b""
        with suppress(ConnectionResetError):  # its line was not read
            assert read_all(waits) == b""
    assert "Traceback" not in program.logged()


def test_limit_below_one_is_refused(root):
    """Nobody would ever be served."""
    example = str(root / "examples/stats.py")
    command = [sys.executable, example, "--max-connections", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "--max-connections must be at least 1" in done.stderr


def test_curl_gets_its_lines_acknowledged(example):
    program = example("stats")
    with curl(program.port, b"hello\nSTATS\n") as output:
        assert output.readline() == b"ACK: hello\n"
        assert output.readline() == b"connections=1 messages=2 bytes_recv=12 bytes_sent=11\n"
    program.stop()
