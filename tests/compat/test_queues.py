"""
Data put into a channel's queue from outside is sent in the next pass, as in the stdlib.

A full pass would find it too, some time later; so most tests here let none come after the first.
"""

import collections
import copy
import gc
import pickle
import socket
import threading
import time
import weakref

import pytest
from twisted.internet import task
from twisted.trial.unittest import TestCase

from helpers.loops import both_modes
from txasynchat.compat import _attach as attaching
from txasynchat.compat import asynchat, asyncore, attach
from txasynchat.compat._queues import Fifo, OutBuffer

LIMIT = 10.0


class Counting(asyncore.dispatcher):
    """Counts the passes, since it is asked on each; calls *act* once, in the first."""

    def __init__(self, pair, channels, act):
        near, far = pair()
        super().__init__(far, channels)
        self.passes = 0
        self.act = act
        self.near = near
        near.send(b"x")

    def readable(self):
        self.passes += 1
        return True

    def writable(self):
        return False

    def handle_read(self):
        if self.recv(1):
            self.act()

    def handle_close(self):
        self.close()


class Noting:
    """Notes the passes in which it may write."""

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.written_in = []
        self.read_in = []

    def handle_read(self):
        self.read_in.append(self.counting.passes)
        self.recv(100)

    def handle_write(self):
        self.written_in.append(self.counting.passes)
        super().handle_write()


class Chat(Noting, asynchat.async_chat):
    pass


class Sending(Noting, asyncore.dispatcher_with_send):
    def handle_close(self):
        self.close()


def replace(channel, fifo):
    channel.producer_fifo = fifo


def add(channel, data):
    channel.out_buffer += data


def assign(channel, data):
    channel.out_buffer = data


FILLINGS = {
    "append": (Chat, lambda c: c.producer_fifo.append(b"xyz")),
    "appendleft": (Chat, lambda c: c.producer_fifo.appendleft(b"xyz")),
    "extend": (Chat, lambda c: c.producer_fifo.extend([b"x", b"yz"])),
    "extendleft": (Chat, lambda c: c.producer_fifo.extendleft([b"yz", b"x"])),
    "insert": (Chat, lambda c: c.producer_fifo.insert(0, b"xyz")),
    "+=": (Chat, lambda c: c.producer_fifo.__iadd__([b"xyz"])),
    "another deque": (Chat, lambda c: replace(c, collections.deque([b"xyz"]))),
    "another list": (Chat, lambda c: replace(c, [b"xyz"])),
    "a copy": (Chat, lambda c: replace(c, c.producer_fifo + collections.deque([b"xyz"]))),
    "out_buffer +=": (Sending, lambda c: add(c, b"xyz")),
    "out_buffer =": (Sending, lambda c: assign(c, b"xyz")),
    "out_buffer = bytearray": (Sending, lambda c: assign(c, bytearray(b"xyz"))),
}


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@both_modes
@pytest.mark.parametrize("filling", FILLINGS)
def test_data_put_into_another_channels_queue_is_sent_in_the_next_pass(
    channels, pair, use_poll, filling
):
    kind, fill = FILLINGS[filling]
    near, far = pair()
    other = kind(far, channels)
    other.counting = Counting(pair, channels, lambda: fill(other))
    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=2)
    assert other.written_in == [2]
    asyncore.loop(timeout=0, use_poll=use_poll, map=channels, count=2)
    assert near.recv(3, socket.MSG_WAITALL) == b"xyz"


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@both_modes
def test_push_that_only_queues_is_sent_in_the_next_pass(channels, pair, use_poll):
    """As older code has it: push() appends, and the loop does the sending."""

    class Queueing(Chat):
        def push(self, data):
            self.producer_fifo.append(data)

        def handle_read(self):
            super().handle_read()
            self.push(b"answer")

    near, far = pair()
    chat = Queueing(far, channels)
    chat.counting = Counting(pair, channels, lambda: near.send(b"question"))
    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=3)
    assert (chat.read_in, chat.written_in) == ([2], [3])
    assert near.recv(100) == b"answer"


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
def test_replaced_queue_is_still_checked(channels, pair):
    near, far = pair()
    chat = Chat(far, channels)
    mine = chat.producer_fifo = collections.deque()
    chat.counting = Counting(pair, channels, lambda: mine.append(b"x"))  # without a report
    asyncore.loop(timeout=LIMIT, map=channels, count=2)
    assert chat.written_in == [2]
    assert chat.producer_fifo is mine
    assert not mine
    assert near.recv(100) == b"x"


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
def test_buffer_changed_in_place_is_checked_on_each_pass(channels, pair):
    near, far = pair()
    other = Sending(far, channels)
    mine = other.out_buffer = bytearray()
    other.counting = Counting(pair, channels, lambda: mine.extend(b"xyz"))
    asyncore.loop(timeout=LIMIT, map=channels, count=2)
    assert other.written_in == [2]
    assert near.recv(100) == b"xyz"


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@both_modes
def test_a_queue_that_another_handler_empties_is_not_written(channels, pair, use_poll):
    near, far = pair()
    other = Chat(far, channels)
    other.connected = False  # so that the push only queues
    other.push(b"never sent")
    other.connected = True
    written = []
    other.counting = Counting(pair, channels, lambda: written.extend(other.written_in))
    other.initiate_send = lambda: None  # it is not sent, and so stays writable
    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
    del other.initiate_send
    other.producer_fifo.clear()
    del other.written_in[:]
    asyncore.loop(timeout=0, use_poll=use_poll, map=channels, count=3)
    assert other.written_in == []
    near.settimeout(0)
    with pytest.raises(BlockingIOError):
        near.recv(100)


# -- predicates on the instance


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@both_modes
def test_predicate_that_a_handler_sets_on_its_channel_is_asked_in_the_next_pass(
    channels, pair, use_poll
):
    near, far = pair()

    class Pausing(Chat):
        def handle_read(self):
            super().handle_read()
            self.readable = lambda: False
            self.writable = lambda: True

        def handle_write(self):
            super().handle_write()
            if len(self.written_in) == 3:
                del self.writable
                self.readable = lambda: True

    chat = Pausing(far, channels)
    chat.counting = Counting(pair, channels, lambda: near.send(b"x" * 101))
    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=6)
    assert chat.read_in == [2, 6]
    assert chat.written_in == [3, 4, 5]


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@both_modes
def test_predicate_on_the_instance_is_asked_on_each_pass(channels, pair, use_poll):
    near, far = pair()
    chat = Chat(far, channels)
    state = {"open": True}

    class Opening(Chat):
        def handle_read(self):
            super().handle_read()
            self.readable = lambda: state["open"]

    chat = Opening(far, channels)
    chat.counting = counting = Counting(pair, channels, lambda: near.send(b"x" * 101))
    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=3)
    assert chat.read_in == [2, 3]
    state["open"] = False
    near.send(b"x")
    asyncore.loop(timeout=0, use_poll=use_poll, map=channels, count=2)
    assert chat.read_in == [2, 3]
    state["open"] = True
    asyncore.loop(timeout=0, use_poll=use_poll, map=channels, count=1)
    assert chat.read_in == [2, 3, counting.passes]


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@both_modes
def test_first_predicate_set_from_outside_applies_from_the_next_event(channels, pair, use_poll):
    """In the stdlib this channel does not read even once more."""
    near, far = pair()
    other = Chat(far, channels)

    def pause():
        other.readable = lambda: False
        near.send(b"x" * 1_000)

    other.counting = Counting(pair, channels, pause)
    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=2)
    asyncore.loop(timeout=0, use_poll=use_poll, map=channels, count=3)
    assert other.read_in == [2]


@pytest.mark.usefixtures("each_way")
def test_first_predicate_set_from_outside_applies_within_a_tenth_of_a_second(channels, pair):
    """In the stdlib it applies in the next pass, even to a channel without events."""
    other = Chat(pair()[1], channels)
    at = []

    def want():
        at.append(time.monotonic())
        other.writable = lambda: True

    def write():
        at.append(time.monotonic())
        raise asyncore.ExitNow

    other.handle_write = write
    other.counting = Counting(pair, channels, want)
    with pytest.raises(asyncore.ExitNow):
        asyncore.loop(timeout=LIMIT, map=channels)
    assert at[1] - at[0] < LIMIT / 2  # even on a busy machine


# -- from elsewhere than a handler


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@pytest.mark.parametrize("filling", FILLINGS)
def test_data_queued_by_another_thread_wakes_the_loop(channels, pair, filling):
    kind, fill = FILLINGS[filling]
    near, far = pair()
    chat = kind(far, channels)
    asked = threading.Event()
    chat.counting = Counting(pair, channels, asked.set)

    def run():
        asked.wait(LIMIT)  # the loop is in its second pass now, or soon
        fill(chat)

    loop = threading.Thread(target=asyncore.loop, args=(None, False, channels))
    loop.start()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert near.recv(1) == b"x"
    finally:
        near.close()
        chat.counting.near.close()
        thread.join(LIMIT)
        loop.join(LIMIT)
    assert not loop.is_alive()


class TestAttached(TestCase):
    """In a running reactor, from its timers."""

    async def test_data_queued_by_a_timer_is_sent_at_once(self):
        from twisted.internet import reactor

        self.patch(attaching, "TICK", 1000.0)  # no full pass in a while
        own = {}
        self.addCleanup(asyncore.close_all, own)
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        near.setblocking(False)
        attachment = attach(own)
        self.addCleanup(attachment.detach)
        chat = asynchat.async_chat(far, own)
        await task.deferLater(reactor, 0)
        chat.producer_fifo.append(b"now")
        for _ in range(10):  # iterations of the reactor
            await task.deferLater(reactor, 0)
        self.assertEqual(near.recv(10), b"now")


# -- what a queue is


def test_queue_is_a_deque():
    chat = asynchat.async_chat(map={})
    fifo = chat.producer_fifo
    assert isinstance(fifo, collections.deque)
    assert type(fifo) is not collections.deque  # as it is in the stdlib
    assert fifo == collections.deque()
    fifo += [b"b", None]
    assert chat.producer_fifo is fifo
    fifo.appendleft(b"a")
    assert (len(fifo), fifo[0], fifo[-1], list(fifo)) == (3, b"a", None, [b"a", b"b", None])
    assert repr(fifo) == "deque([b'a', b'b', None])"
    assert pickle.loads(pickle.dumps(fifo)) == fifo
    assert type(pickle.loads(pickle.dumps(fifo))) is collections.deque
    for other in (copy.copy(fifo), fifo.copy(), copy.deepcopy(fifo), fifo + collections.deque()):
        assert other == fifo
        other.append(1)  # reports no channel
        assert len(fifo) == 3
    assert fifo.pop() is None
    assert fifo.popleft() == b"a"
    fifo.remove(b"b")
    assert not fifo


def test_queue_does_not_keep_its_channel_alive(pair):
    """An unreferenced channel is closed at once, without the garbage collector."""
    channels = {}
    chat = asynchat.async_chat(pair()[1].dup(), channels)
    chat.push(b"x")
    chat.producer_fifo.append(b"y")
    fifo = chat.producer_fifo
    gone = weakref.ref(chat)
    gc.disable()
    try:
        chat.socket.close()
        channels.clear()
        del chat
        assert gone() is None
    finally:
        gc.enable()
    fifo.append(b"z")
    assert list(fifo) == [b"y", b"z"]


def test_replaced_out_buffer_reads_as_assigned():
    channel = asyncore.dispatcher_with_send(map={})
    assert channel.out_buffer == b""
    mine = bytearray(b"abc")
    channel.out_buffer = mine
    assert channel.out_buffer is mine
    channel.out_buffer = b""
    channel.out_buffer += b"x"
    channel.out_buffer = b"y" + channel.out_buffer
    assert channel.out_buffer == b"yx"
    kept = channel.out_buffer
    channel.out_buffer = b"z"
    channel.out_buffer = kept + b"!"  # it undoes what this thread did
    assert channel.out_buffer == b"yx!"


@pytest.mark.parametrize("kind", [asynchat.async_chat, asyncore.dispatcher_with_send])
def test_channel_whose_init_was_not_called_has_no_queue(kind):
    """As in the stdlib; such programs make their own."""
    channel = kind.__new__(kind)
    name = "producer_fifo" if kind is asynchat.async_chat else "out_buffer"
    assert not hasattr(channel, name)
    with pytest.raises(AttributeError, match=f"object has no attribute '{name}'"):
        getattr(channel, name)
    assert not hasattr(kind, "no such thing")


class Slotted(asynchat.async_chat):
    __slots__ = ("producer_fifo",)


class OfTheClass(asynchat.async_chat):
    producer_fifo = None


class Property(asynchat.async_chat):
    @property
    def producer_fifo(self):
        return self.mine

    @producer_fifo.setter
    def producer_fifo(self, fifo):
        self.mine = fifo


class Uninitialized(asynchat.async_chat):
    def __init__(self, sock, channels):
        asyncore.dispatcher.__init__(self, sock, channels)
        self.producer_fifo = collections.deque()
        self.ac_in_buffer = b""
        self.incoming = []


class SlottedBuffer(asyncore.dispatcher_with_send):
    __slots__ = ("out_buffer",)


class BufferOfTheClass(asyncore.dispatcher_with_send):
    out_buffer = b""


class PropertyBuffer(asyncore.dispatcher_with_send):
    @property
    def out_buffer(self):
        return self.mine

    @out_buffer.setter
    def out_buffer(self, data):
        self.mine = data


class UninitializedBuffer(asyncore.dispatcher_with_send):
    def __init__(self, sock, channels):
        asyncore.dispatcher.__init__(self, sock, channels)
        self.out_buffer = b""


def finish(channel, near, channels, use_poll):
    """Let the loop send what the channel has; return that."""
    got = []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: near.recv(65536), b"")))
    reader.start()
    while channel.connected and channel.writable():
        asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
    channel.close()
    reader.join(LIMIT)
    return b"".join(got)


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@both_modes
@pytest.mark.parametrize("kind", [Slotted, OfTheClass, Property, Uninitialized])
def test_class_may_have_its_own_queue(channels, pair, kind, use_poll):
    class Answering(kind):
        def collect_incoming_data(self, data):
            self.push(b"<" + data)

        def found_terminator(self):
            self.push(b">")

    near, far = pair()
    chat = Answering(far, channels)
    chat.set_terminator(b"\n")
    near.send(b"question\n")
    Counting(pair, channels, lambda: chat.producer_fifo.append(b" from outside"))
    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=2)
    assert near.recv(100) == b"<question> from outside"
    chat.push_with_producer(asynchat.simple_producer(b"produced", 3))
    chat.push(b"x" * 5_000_000)
    chat.close_when_done()
    assert finish(chat, near, channels, use_poll) == b"produced" + b"x" * 5_000_000
    chat.push(b"late")
    chat.discard_buffers()
    assert not chat.producer_fifo


@pytest.mark.usefixtures("each_way", "only_first_passes_are_full")
@both_modes
@pytest.mark.parametrize(
    "kind", [SlottedBuffer, BufferOfTheClass, PropertyBuffer, UninitializedBuffer]
)
def test_class_may_have_its_own_buffer(channels, pair, kind, use_poll):
    class Answering(kind):
        def handle_read(self):
            self.send(b"<" + self.recv(100))
            self.send(b">")

    near, far = pair()
    channel = Answering(far, channels)
    near.send(b"question")
    Counting(pair, channels, lambda: add(channel, b" from outside"))
    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=2)
    assert near.recv(100) == b"<question> from outside"
    channel.send(b"x" * 5_000_000)
    assert finish(channel, near, channels, use_poll) == b"x" * 5_000_000
    assert channel.out_buffer == b""


# -- several threads at one out_buffer


def elsewhere(call, *args):
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()


@pytest.mark.parametrize("before", [b"", b"abcdef"])
def test_addition_keeps_what_another_thread_left(before):
    """``+=`` reads and then assigns, and another thread may run between the two."""
    kept = OutBuffer(before)
    value = kept.get()
    value += b"mine"
    elsewhere(kept.append, b"theirs")
    elsewhere(kept.cut, (before + b"theirs")[:4], 4)
    kept.set(value)
    assert kept.data == (before + b"theirs")[4:] + b"mine"


def test_data_sent_by_another_thread_is_not_sent_again():
    kept = OutBuffer(b"abc")
    value = kept.get() + b"d"
    elsewhere(kept.cut, b"abc", 3)
    kept.set(value)
    assert kept.data == b"d"


@pytest.mark.parametrize("value", [b"", b"abX", b"other"])
def test_assignment_replaces_the_buffer_whatever_other_threads_do(value):
    kept = OutBuffer(b"abc")
    kept.get()
    elsewhere(kept.append, b"theirs")
    kept.set(value)
    assert kept.data == value


def test_nothing_is_cut_from_what_another_thread_added():
    kept = OutBuffer(b"abc")
    kept.set(b"xyz")  # while "abc" is being sent
    kept.cut(b"abc", 3)
    assert kept.data == b"xyz"


def test_queue_reports_only_its_own_channel():
    one, two = asynchat.async_chat(map={}), asynchat.async_chat(map={})
    fifo = Fifo([b"x"])
    one.producer_fifo = fifo
    two.producer_fifo = fifo
    assert fifo.is_of(one)
    assert not fifo.is_of(two)
