"""``examples/server.py`` and ``server_legacy.py``."""

import signal

import pytest

from helpers.peers import connect, read_all


def ask(peer, line):
    peer.sendall(line)
    with peer.makefile("rb") as answers:
        return answers.readline()


def test_each_connection_has_a_handler_that_knows_the_others(example):
    program = example("server")
    with connect(program.port) as ann, connect(program.port) as bob:
        assert ask(bob, b"Bob\r\n") == b"hello, Bob: 2 connected\r\n"
        assert ask(ann, b"Ann\n") == b"hello, Ann: 2 connected\n"
    with connect(program.port) as eve:
        answer = b""
        while answer != b"hello, Eve: 1 connected\n":  # until the server has noticed the ends
            answer = ask(eve, b"Eve\n")
            assert answer.startswith(b"hello, Eve: ")
    program.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_that_stops_ends_its_connections(example, number):
    program = example("server", afresh=number == signal.SIGINT)
    with connect(program.port) as first, connect(program.port) as second:
        assert ask(second, b"x\n") == b"hello, x: 2 connected\n"
        program.stop(number)
        assert read_all(first) == read_all(second) == b""
    assert "Traceback" not in program.logged()
