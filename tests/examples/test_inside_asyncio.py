"""``examples/inside_asyncio.py``, which has no legacy half."""

import re
import signal

import pytest

from helpers.peers import connect, curl, read_all


def test_lines_are_answered_when_a_task_of_the_program_has_ticked(start_half):
    """In the order of the lines, however long each takes."""
    program = start_half("native", "inside_asyncio")
    with connect(program.port) as peer, peer.makefile("rb") as answers:
        peer.sendall(b"5\n1\r\nx\n")
        first = re.fullmatch(rb"tick (\d+)\n", answers.readline())
        second = re.fullmatch(rb"tick (\d+)\r\n", answers.readline())
        assert int(second[1]) > int(first[1]) >= 5
        assert answers.readline() == b"a number, please\n"
    assert program.stop() == ""


def test_one_that_waits_holds_up_nobody(start_half):
    program = start_half("native", "inside_asyncio")
    with connect(program.port) as slow, connect(program.port) as fast:
        slow.sendall(b"1000000\n")
        fast.sendall(b"1\n")
        assert fast.recv(100).startswith(b"tick ")
        assert slow.recv(100) == b"that is too long\n"
    program.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_lets_a_line_be_answered_and_ends_it_in_order(start_half, number):
    program = start_half("native", "inside_asyncio", afresh=number == signal.SIGINT)
    with connect(program.port) as peer, connect(program.port) as idle:
        peer.sendall(b"1\n20\n")
        assert peer.recv(100).startswith(b"tick ")
        program.stop(number)
        assert read_all(idle) == b""
        assert re.fullmatch(rb"(tick \d+\n)?", read_all(peer))
    assert program.logged() == ""


def test_curl_gets_its_ticks(start_half):
    program = start_half("native", "inside_asyncio")
    with curl(program.port, b"1\n") as output:
        assert output.readline().startswith(b"tick ")
        program.stop()
        assert output.read() == b""
