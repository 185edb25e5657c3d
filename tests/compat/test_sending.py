"""
Several threads that send on one channel.
"""

import socket
import sys
import threading

import pytest

from txasynchat.compat import asynchat, asyncore
from txasynchat.compat._sending import Sender

LIMIT = 30.0
THREADS = b"abc"
MESSAGES = 1_000


pytestmark = pytest.mark.usefixtures("threads_switch_often")


class Chat(asynchat.async_chat):
    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        pass

    def found_terminator(self):
        pass


class Joining(Chat):
    ac_join_writes = True


class Answering(Chat):
    """Pushes in its handlers too."""

    def found_terminator(self):
        self.push(b"-\n")


class JoiningAnswering(Answering):
    ac_join_writes = True


class Sending(asyncore.dispatcher_with_send):
    def handle_read(self):
        self.recv(8192)

    def handle_close(self):
        self.close()


class SendingAnswering(Sending):
    def handle_read(self):
        if self.recv(8192):
            self.send(b"-\n")


def add(channel, data):
    channel.out_buffer += data


def produce(channel, data):
    channel.push_with_producer(asynchat.simple_producer(data, 100))


WAYS = {
    "push": (Chat, lambda c, data: c.push(data)),
    "push, joined": (Joining, lambda c, data: c.push(data)),
    "push, also by handlers": (Answering, lambda c, data: c.push(data)),
    "push, also by handlers, joined": (JoiningAnswering, lambda c, data: c.push(data)),
    "producers": (Chat, produce),
    "the queue": (Chat, lambda c, data: c.producer_fifo.append(data)),
    "send": (Sending, lambda c, data: c.send(data)),
    "send, also by handlers": (SendingAnswering, lambda c, data: c.send(data)),
    "out_buffer": (SendingAnswering, add),
}


def message(name, number):
    return b"%c%06d:%s\n" % (name, number, b"%c" % name * (number % 300))


@pytest.mark.parametrize("answered", [False, True], ids=["one way", "answered"])
@pytest.mark.parametrize("way", WAYS)
def test_data_of_several_threads_is_not_lost_repeated_or_mixed(way, answered):
    kind, send = WAYS[way]
    here, there = socket.socketpair()
    there.settimeout(LIMIT)
    channels = {}
    channel = kind(here, channels)
    got = []

    def read():
        rest = b""
        left = len(THREADS) * MESSAGES
        while left:
            data = there.recv(65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            got.extend(lines)
            left -= sum(line != b"-" for line in lines)
            if answered:
                there.send(b"ok\n")

    def talk(name):
        for number in range(MESSAGES):
            send(channel, message(name, number))

    loop = threading.Thread(target=asyncore.loop, args=(None, False, channels))
    threads = [threading.Thread(target=talk, args=(name,)) for name in THREADS]
    reader = threading.Thread(target=read)
    for thread in (loop, reader, *threads):
        thread.start()
    for thread in (*threads, reader):
        thread.join(LIMIT)
    there.close()
    loop.join(LIMIT)
    assert not loop.is_alive()
    assert len([line for line in got if line != b"-"]) == len(THREADS) * MESSAGES
    for name in THREADS:
        own = [line + b"\n" for line in got if line.startswith(b"%c" % name)]
        assert own == [message(name, number) for number in range(MESSAGES)]


def read(sock, size):
    data = b""
    while len(data) < size:
        data += sock.recv(size)
    return data


@pytest.mark.parametrize("kind", [Chat, Sending])
def test_threads_take_turns_without_a_running_loop(kind):
    here, there = socket.socketpair()
    there.settimeout(LIMIT)
    channel = kind(here, {})
    send = getattr(channel, "push", channel.send)

    def talk(name):
        for number in range(80):
            send(message(name, number))

    threads = [threading.Thread(target=talk, args=(name,)) for name in THREADS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    wanted = sum(len(message(name, number)) for name in THREADS for number in range(80))
    lines = read(there, wanted).splitlines(keepends=True)
    for name in THREADS:
        own = [line for line in lines if line.startswith(b"%c" % name)]
        assert own == [message(name, number) for number in range(80)]
    there.close()
    channel.close()


def test_long_data_of_one_thread_stays_in_one_piece():
    """It is queued in pieces; data of another thread goes before or after all of them."""
    here, there = socket.socketpair()
    there.settimeout(LIMIT)
    channels = {}
    chat = Chat(here, channels)
    chat.ac_out_buffer_size = 10

    def talk(name):
        for _ in range(100):
            chat.push(b"%c" % name * 1_000)

    threads = [threading.Thread(target=talk, args=(name,)) for name in THREADS]
    loop = threading.Thread(target=asyncore.loop, args=(None, False, channels))
    for thread in (*threads, loop):
        thread.start()
    data = read(there, 300_000)
    for thread in threads:
        thread.join(LIMIT)
    there.close()
    loop.join(LIMIT)
    assert not loop.is_alive()
    assert {len(set(data[at : at + 1_000])) for at in range(0, 300_000, 1_000)} == {1}


def test_queue_emptied_while_its_head_is_sent_raises_nothing():
    here, there = socket.socketpair()
    there.settimeout(LIMIT)
    chat = Chat(here, {})
    failed = []
    chat.handle_error = lambda: failed.append(sys.exc_info())
    done = threading.Event()

    def talk():
        for _ in range(3_000):
            chat.push(b"x" * 50)
            chat.push_with_producer(asynchat.simple_producer(b"y" * 50, 10))
        done.set()

    def discard():
        while not done.is_set():
            chat.discard_buffers()

    def read():
        while there.recv(65536):
            pass

    threads = [threading.Thread(target=target) for target in (talk, discard, read)]
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join(LIMIT)
    chat.close()
    threads[2].join(LIMIT)
    there.close()
    assert done.is_set()
    assert failed == []


def test_data_pushed_meanwhile_is_sent_by_the_sending_thread():
    sender = Sender()
    sent = []
    began, went_on = threading.Event(), threading.Event()

    def first():
        sent.append("first")
        if len(sent) == 1:
            began.set()
            went_on.wait(LIMIT)

    thread = threading.Thread(target=sender.send, args=(first,))
    thread.start()
    began.wait(LIMIT)
    sender.send(lambda: sent.append("second"))  # returns at once, and is not called
    assert sent == ["first"]
    went_on.set()
    thread.join(LIMIT)
    assert sent == ["first", "first"]


def test_sending_thread_may_send_recursively():
    sender = Sender()
    sent = []

    def chunk():
        sent.append(len(sent))
        if len(sent) < 3:
            sender.send(chunk)

    sender.send(chunk)
    assert sent == [0, 1, 2]


def test_other_threads_may_send_after_an_exception():
    sender = Sender()

    def chunk():
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            sender.send(chunk)


class Goodbye(asynchat.async_chat):
    """Says goodbye when it closes, whatever the cause."""

    def handle_close(self):
        self.push(b"goodbye")
        self.close()


def test_data_pushed_in_a_handler_while_its_channel_sends_is_sent_first():
    here, there = socket.socketpair()
    there.settimeout(LIMIT)
    channels = {}
    chat = Goodbye(here, channels)
    chat.push(b"hello ")
    chat.close_when_done()
    asyncore.loop(timeout=LIMIT, map=channels)
    assert read(there, 13) == b"hello goodbye"
    there.close()
