"""
Descriptors of ours that a program closed, and whose numbers it may use since.
"""

import os
import select
import socket
import subprocess
import sys

import pytest

from txasynchat.hub.descriptors import Owned, Pollers


@pytest.fixture
def stranger(tmp_path):
    """Open a file on a free number; return whether the number still is that file's."""
    opened = {}

    def put_on(number):
        assert number not in opened
        where = os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY)
        if where != number:
            os.dup2(where, number)
            os.close(where)
        opened[number] = os.fstat(number).st_ino
        return lambda: os.fstat(number).st_ino == opened[number]

    yield put_on
    for number in opened:
        os.close(number)


def test_descriptor_is_ours_until_its_number_is_reused(stranger):
    ours = Owned(socket.socket().detach())
    assert ours.is_ours()
    os.close(ours.number)
    assert not ours.is_ours()
    is_untouched = stranger(ours.number)
    assert not ours.is_ours()
    ours.close()
    assert is_untouched()


def test_a_descriptor_is_closed_once():
    ours = Owned(socket.socket().detach())
    number = ours.number
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        Owned(number)


def test_the_ends_of_a_pipe_are_known_by_each_other():
    a, b = map(Owned, os.pipe())
    c, d = map(Owned, os.pipe())
    assert a.is_same(b)
    assert not a.is_same(c)
    for end in (a, b, c, d):
        end.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll(7) is Linux's")
def test_reused_number_is_lost_to_its_former_poller():
    ours = Pollers()
    first = select.epoll()
    ours.hold(first)
    assert ours.holds(first)
    os.close(first.fileno())
    second = select.epoll()
    assert second.fileno() == first.fileno()
    ours.hold(second)
    assert not ours.holds(first)
    ours.close(first)
    ours.lose(first)
    del first
    assert second.poll(0) == []
    ours.close(second)
    assert second.closed


LAST_WORDS = """
import os, pathlib, socket, sys
from txasynchat.compat import asyncore, current_reactor

class Channel(asyncore.dispatcher):
    def writable(self):
        return False

here, there = socket.socketpair()
channel = Channel(here)
if sys.argv[2] == "reactor":
    current_reactor()
asyncore.loop(timeout=0, count=3)
os.closerange(3, 200)
here.detach()
there.detach()
logs = [pathlib.Path(sys.argv[1], str(number)).open("w") for number in range(12)]
for log in logs:
    log.write("the last words")
"""


@pytest.mark.parametrize("beside", ["nothing", "reactor"])
def test_files_on_numbers_that_were_ours_are_complete_at_exit(tmp_path, beside):
    """A deallocated poller would close its number before the file that has it now is flushed."""
    done = subprocess.run(
        [sys.executable, "-c", LAST_WORDS, str(tmp_path), beside],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {file.read_text() for file in tmp_path.iterdir()} == {"the last words"}
