"""``examples/frames.py`` and ``frames_legacy.py``."""

import struct

import pytest

from helpers.peers import connect, converse, curl, read_all


@pytest.mark.parametrize("number", [0, 21, 2**31 - 1])
def test_number_is_doubled_and_the_connection_ends(example, number):
    program = example("frames")
    with connect(program.port) as peer:
        frame = struct.pack("!I", number)
        peer.sendall(frame[:1])
        peer.sendall(frame[1:])
        assert read_all(peer) == struct.pack("!I", 2 * number)
    program.stop()


def test_nothing_behind_the_first_frame_is_answered(example):
    """A second number in the same packet is not doubled."""
    program = example("frames")
    with connect(program.port) as peer:
        peer.sendall(struct.pack("!II", 1, 2))
        assert peer.recv(100) == struct.pack("!I", 2)
        assert read_all(peer) == b""
    program.stop()


def test_number_that_overflows_is_an_error_of_its_connection(example):
    """It gets no answer, the log says why, and others are served."""
    program = example("frames")
    assert converse(program.port, struct.pack("!I", 2**31)) == b""
    assert converse(program.port, struct.pack("!I", 1)) == struct.pack("!I", 2)
    said = program.stop() + program.logged()
    assert said.count("2147483648 doubled is more than four bytes can hold") == 1


def test_curl_gets_its_number_doubled(example):
    program = example("frames", afresh=True)
    with curl(program.port, struct.pack("!I", 5)) as output:
        assert output.read() == struct.pack("!I", 10)
    program.stop()
