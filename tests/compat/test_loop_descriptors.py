"""
Channels of other kinds in loop(), and channels after a fork.
"""

import os
import subprocess
import sys

import pytest

from helpers.loops import LIMIT, Chat, Recorder, both_modes
from txasynchat.compat import asyncore


@pytest.mark.usefixtures("each_way")
@both_modes
def test_a_regular_file_is_always_readable(tmp_path, channels, use_poll):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 10)

    class Reader(asyncore.file_dispatcher):
        got = b""

        def writable(self):
            return False

        def handle_read(self):
            data = self.recv(30)
            if not data:
                self.close()
            self.got += data

        def handle_close(self):
            self.close()

    with path.open("rb") as file:
        reader = Reader(file, channels)
        asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels)
    assert reader.got == path.read_bytes()


@pytest.mark.usefixtures("each_way")
def test_map_keys_need_not_be_numbers(channels, pair):
    near, far = pair()
    recorder = Recorder(far, {})
    channels[far] = recorder
    near.send(b"x")
    asyncore.loop(timeout=LIMIT, map=channels, count=1)
    assert recorder.got == [b"x"]
    channels.clear()
    recorder.close()


@pytest.mark.usefixtures("each_way")
def test_any_object_with_the_handlers_is_a_channel(channels, pair):
    near, far = pair()

    class Plain:
        __slots__ = ("got",)
        accepting = False

        def readable(self):
            return True

        def writable(self):
            return None

        def handle_read_event(self):
            self.got = far.recv(10)
            channels.clear()

    plain = channels[far.fileno()] = Plain()
    near.send(b"x")
    asyncore.loop(timeout=LIMIT, map=channels)
    assert plain.got == b"x"


def test_child_of_a_fork_serves_channels_made_before(channels, pair):
    near, far = pair()
    chat = Chat(far, channels)
    asyncore.loop(timeout=0, map=channels, count=1)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            near.send(b"to the child\n")
            while not chat.got:
                asyncore.loop(timeout=LIMIT, map=channels, count=1)
            chat.close()
            status = 0 if chat.got == [b"to the child"] and not channels else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    near.send(b"to the parent\n")
    while not chat.got:
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
    assert chat.got == [b"to the parent"]


def test_loop_continues_in_both_processes_after_a_fork_in_a_handler(channels, pair):
    """The child serves one channel from there on, the parent the other."""
    near, far = pair()
    second_near, second_far = pair()

    class Forking(Chat):
        child = None

        def found_terminator(self):
            super().found_terminator()
            if self.got == [b"fork"]:
                self.child = os.fork()
                (self if self.child == 0 else second).close()

    chat = Forking(far, channels)
    second = Chat(second_far, channels)
    near.send(b"fork\n")
    try:
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        if chat.child == 0:
            while second.got != [b"end"]:
                asyncore.loop(timeout=LIMIT, map=channels, count=1)
    finally:
        if chat.child == 0:
            os._exit(0)
    near.send(b"go on\n")
    while chat.got != [b"fork", b"go on"]:
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
    second_near.send(b"end\n")
    os.waitpid(chat.child, 0)
    assert chat.got == [b"fork", b"go on"]


BESIDE_A_FORK = """
import os, socket, sys, threading
from txasynchat.compat import asyncore, current_reactor

class Heard(asyncore.dispatcher):
    def handle_read(self):
        print(self.recv(10), flush=True)
        heard.set()

    def writable(self):
        return False

def run():
    Heard(far, channels)
    reactors.append(current_reactor())
    reactors[0].callLater(0, heard.set)
    asyncore.loop(timeout=30, map=channels)

near, far = socket.socketpair()
channels, reactors, heard = {}, [], threading.Event()
thread = threading.Thread(target=run)
thread.start()
assert heard.wait(10)
if os.fork() == 0:
    sys.exit(0)
os.wait()
heard.clear()
near.send(b"go on")
assert heard.wait(10)
called = threading.Event()
reactors[0].callFromThread(called.set)
assert called.wait(10)
asyncore.close_all(channels)
thread.join(10)
near.close()
"""


def test_fork_does_not_disturb_the_reactor_of_another_thread():
    """The child inherits that thread's epoll, shared with the parent, but not the thread."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BESIDE_A_FORK],
        capture_output=True,
        timeout=60,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'go on'\n", "")
