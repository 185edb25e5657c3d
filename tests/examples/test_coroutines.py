"""``examples/coroutines.py``, which has no legacy half."""

import asyncio
import signal

import pytest

from helpers.peers import connect, converse, curl, read_all


def test_session_in_one_packet_is_answered_in_order(start_half):
    """Each line with its own end; a value may be empty, and hold whatever it likes."""
    program = start_half("native", "coroutines")
    session = b"put a 4\nbl\neget a\r\nput b 0\nget b\nget c\nwhat\nquit\nget a\n"
    assert converse(program.port, session) == (
        b"ok\n4\r\nbl\neok\n0\nerror: no such name\nerror: put NAME LENGTH, get NAME or quit\nbye\n"
    )
    program.stop()


def test_value_that_is_too_long_is_refused_before_it_comes(start_half):
    program = start_half("native", "coroutines")
    with connect(program.port) as peer:
        peer.sendall(b"put a 1000001\n")
        assert read_all(peer) == b"error: at most 1000000 bytes\n"
    assert converse(program.port, b"put a -1\n").startswith(b"error: put NAME LENGTH")
    assert converse(program.port, b"put a " + b"9" * 5000 + b"\n").startswith(b"error: put")
    program.stop()
    assert "Traceback" not in program.logged()


def test_client_that_leaves_in_the_middle_of_a_value_leaves_none(start_half):
    program = start_half("native", "coroutines")
    assert converse(program.port, b"put a 10\nhalf") == b""
    assert converse(program.port, b"get a\n") == b"error: no such name\n"
    program.stop()
    assert "Traceback" not in program.logged()


def test_asyncios_streams_talk_to_it(start_half):
    """Many clients at once, with values larger than what is read at a time."""
    program = start_half("native", "coroutines")

    async def client(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", program.port)
        value = bytes([number]) * 300_000
        writer.write(b"put %d %d\r\n" % (number, len(value)) + value)
        assert await reader.readline() == b"ok\r\n"
        writer.write(b"get %d\r\nquit\r\n" % number)
        assert await reader.readline() == b"300000\r\n"
        assert await reader.readexactly(len(value)) == value
        assert await reader.read() == b"bye\r\n"
        writer.close()
        await writer.wait_closed()

    async def clients():
        async with asyncio.timeout(60):
            await asyncio.gather(*map(client, range(10)))

    asyncio.run(clients())
    program.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_in_order(start_half, number):
    program = start_half("native", "coroutines", afresh=number == signal.SIGINT)
    with connect(program.port) as peer:
        peer.sendall(b"get a\n")
        assert peer.recv(100) == b"error: no such name\n"
        program.stop(number)
        assert read_all(peer) == b""
    assert "Traceback" not in program.logged()


def test_curl_puts_and_gets(start_half):
    program = start_half("native", "coroutines")
    with curl(program.port, b"put a 4\nblueget a\nquit\n") as output:
        assert output.read() == b"ok\n4\nbluebye\n"
    program.stop()
