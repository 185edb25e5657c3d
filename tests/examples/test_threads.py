"""``examples/threads.py``, which has no legacy half."""

import hashlib
import re
import signal
import urllib.request
from contextlib import ExitStack
from functools import partial

import pytest

from helpers.peers import connect, converse, curl, read_all


def hashed(password):
    return hashlib.pbkdf2_hmac("sha256", password, b"salt", 100_000).hex().encode()


@pytest.fixture
def start_program(start_half):
    return partial(start_half, "native", "threads", "--web-port", 0)


@pytest.fixture
def program(start_program):
    return start_program()


def post(program, data):
    """Post to its web application; return the status."""
    port = re.search(r"Site starting on (\d+)", program.logged())[1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data, timeout=20) as response:
        return response.status


def test_lines_are_hashed_in_order(program):
    """Each with its own end, and what was sent before the peer's end is still answered."""
    expected = hashed(b"one") + b"\r\n" + hashed(b"two") + b"\n"
    assert converse(program.port, b"one\r\ntwo\n") == expected
    program.stop()


def test_what_is_posted_goes_to_all_who_are_connected(program):
    with ExitStack() as clients:
        peers = [clients.enter_context(connect(program.port)) for _ in range(3)]
        heard = [clients.enter_context(peer.makefile("rb")) for peer in peers]
        for peer, answers in zip(peers, heard, strict=True):
            peer.sendall(b"x\n")
            assert answers.readline() == hashed(b"x") + b"\n"
        assert post(program, b"hello\neverybody") == 202
        for answers in heard:
            assert [answers.readline() for _ in range(2)] == [b"* hello\n", b"* everybody\n"]
    program.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_in_order(start_program, number):
    """Threads that compute are waited for, and what they answer is sent."""
    program = start_program(afresh=number == signal.SIGINT)
    with connect(program.port) as peer, peer.makefile("rb") as answers:
        peer.sendall(b"one\ntwo\n")
        assert answers.readline() == hashed(b"one") + b"\n"
        program.stop(number)
        assert answers.read() == hashed(b"two") + b"\n"
    assert "Traceback" not in program.logged()


def test_who_leaves_while_a_thread_computes_is_forgotten(program):
    """The answer is dropped, without an error."""
    with connect(program.port) as peer:
        peer.sendall(b"x\n" * 3)
    assert converse(program.port, b"y\n") == hashed(b"y") + b"\n"
    program.stop()
    assert "Traceback" not in program.logged()


def test_curl_gets_its_line_hashed(program):
    with curl(program.port, b"one\n") as output:
        assert output.readline() == hashed(b"one") + b"\n"
    program.stop()


def test_silent_clients_hear_what_is_posted_and_then_the_end(program):
    with connect(program.port) as peer:
        assert post(program, b"goodbye") == 202
        assert peer.recv(100) == b"* goodbye\n"
        program.stop()
        assert read_all(peer) == b""
