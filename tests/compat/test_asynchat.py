"""
async_chat: the stdlib's behaviour where programs rely on it, and what was repaired.

test_against_stdlib.py checks that handlers get input in the stdlib's pieces.
"""

import gc
import os
import threading

import pytest

from txasynchat.compat import asynchat, asyncore

LIMIT = 10.0


class Chat(asynchat.async_chat):
    def __init__(self, sock=None, channels=None):
        super().__init__(sock, {} if channels is None else channels)
        self.set_terminator(b"\n")
        self.lines = []

    def collect_incoming_data(self, data):
        assert data
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.lines.append(self._get_data())


@pytest.fixture
def ends(pair):
    """Make a chat of a class, and the other end of its connection."""
    made = []

    def make(cls=Chat):
        near, far = pair()
        made.append(cls(far))
        return near, made[-1]

    yield make
    for chat in made:
        chat.close()


def read_pass(chat):
    asyncore.loop(timeout=LIMIT, map=chat._map, count=1)


# -- attributes


def test_attributes_are_those_of_the_stdlib():
    chat = asynchat.async_chat(map={})
    assert chat.ac_in_buffer == b""
    assert chat.incoming == []
    assert len(chat.producer_fifo) == 0
    with pytest.raises(AttributeError, match="terminator"):
        chat.get_terminator()
    assert not hasattr(chat, "terminator")
    chat.terminator = "anything"
    assert chat.get_terminator() == "anything"
    with pytest.raises(NotImplementedError):
        chat.collect_incoming_data(b"x")
    with pytest.raises(NotImplementedError):
        chat.found_terminator()


def test_terminator_is_checked_as_in_the_stdlib():
    chat = asynchat.async_chat(map={})
    with pytest.raises(ValueError, match="positive"):
        chat.set_terminator(-1)
    chat.set_terminator("text")
    assert chat.terminator == "text"
    chat.use_encoding = True
    chat.set_terminator("text")
    assert chat.terminator == b"text"


def test_buffer_can_be_read_and_dropped_in_a_handler(ends):
    """As a program does that starts TLS: plaintext that was pipelined must be discarded."""

    class Dropping(Chat):
        def found_terminator(self):
            super().found_terminator()
            if self.lines[-1] == b"starttls":
                self.seen = self.ac_in_buffer
                self.ac_in_buffer = b""

    near, chat = ends(Dropping)
    near.send(b"one\nstarttls\nquit\n")
    read_pass(chat)
    assert chat.lines == [b"one", b"starttls"]
    assert chat.seen == b"quit\n"
    assert chat.ac_in_buffer == b""
    chat.ac_in_buffer = b"put back "
    near.send(b"and more\n")
    read_pass(chat)
    assert chat.lines[-1] == b"put back and more"


def test_a_number_counts_down_in_the_attribute_and_is_zero_before_the_call(ends):
    class Counting(Chat):
        def found_terminator(self):
            super().found_terminator()
            self.at_the_end = self.terminator

    near, chat = ends(Counting)
    chat.set_terminator(10)
    near.send(b"1234")
    read_pass(chat)
    assert chat.terminator == 6
    near.send(b"567890rest")
    read_pass(chat)
    assert chat.lines == [b"1234567890"]
    assert chat.at_the_end == 0
    assert chat.incoming == [b"rest"]


def test_a_class_may_set_its_terminator_as_an_attribute(ends):
    class Mixin:
        terminator = b"|"

    class Mixed(Mixin, Chat):
        def __init__(self, sock=None):
            asynchat.async_chat.__init__(self, sock, {})
            self.lines = []

    near, chat = ends(Mixed)
    assert (chat.terminator, Mixed.terminator) == (b"|", b"|")
    near.send(b"a|b|c")
    read_pass(chat)
    assert chat.lines == [b"a", b"b"]
    chat.set_terminator(2)
    near.send(b"de")
    read_pass(chat)
    assert chat.lines == [b"a", b"b", b"cde"]  # "c" was delivered before the two that are counted


def test_an_overridden_get_terminator_is_asked_on_every_round(ends):
    class Alternating(Chat):
        asked = 0

        def get_terminator(self):
            self.asked += 1
            return (b"\n", b";")[self.asked % 2]

    near, chat = ends(Alternating)
    near.send(b"a;b\nc;")
    read_pass(chat)
    assert chat.lines == [b"a", b"b", b"c"]
    assert chat.asked == 3


def test_a_chat_that_never_set_a_terminator_fails_as_in_the_stdlib(pair, capsys):
    near, far = pair()
    chat = asynchat.async_chat(far, {})
    near.send(b"x")
    asyncore.loop(timeout=LIMIT, map=chat._map)
    assert "has no attribute 'terminator'" in capsys.readouterr().out


def test_messages_go_on_after_close_in_a_handler(ends):
    class Closing(Chat):
        def found_terminator(self):
            super().found_terminator()
            self.close()

    near, chat = ends(Closing)
    near.send(b"a\nb\nc\n")
    asyncore.loop(timeout=LIMIT, map=chat._map)
    assert chat.lines == [b"a", b"b", b"c"]


def test_overridden_recv_may_return_text(ends):
    class Text(Chat):
        use_encoding = True

        def recv(self, size):
            return super().recv(size).decode("latin-1")

    near, chat = ends(Text)
    near.send(b"line\n")
    read_pass(chat)
    assert chat.lines == [b"line"]


def test_an_error_while_reading_goes_to_handle_error(ends):
    class Failing(Chat):
        errors = 0

        def recv(self, size):
            super().recv(size)
            raise OSError("made to fail")

        def handle_error(self):
            self.errors += 1

    near, chat = ends(Failing)
    near.send(b"x")
    read_pass(chat)
    assert chat.errors == 1
    asynchat.async_chat.handle_read(chat)  # nothing to read is no error
    assert chat.errors == 1


# -- output


def test_push_sends_before_it_returns(ends):
    near, chat = ends()
    chat.push(b"reply")
    assert near.recv(100) == b"reply"
    chat.push(bytearray(b"array"))
    chat.push(memoryview(b"view"))
    assert near.recv(5) + near.recv(4) == b"arrayview"
    chat.push(b"")
    assert len(chat.producer_fifo) == 0


def test_push_only_queues_before_and_after_the_connection(ends):
    near, chat = ends()
    chat.connected = False
    chat.push(b"early")
    assert list(chat.producer_fifo) == [b"early"]
    chat.connected = True
    chat.initiate_send()
    assert near.recv(100) == b"early"
    chat.close()
    chat.push(b"late")
    assert list(chat.producer_fifo) == [b"late"]


@pytest.mark.parametrize("data", ["text", 3, None, [b"x"]])
def test_push_accepts_only_bytes(data):
    chat = asynchat.async_chat(map={})
    chat.use_encoding = True
    with pytest.raises(TypeError, match="byte-ish"):
        chat.push(data)


def test_long_data_is_sent_one_item_at_a_time(ends):
    near, chat = ends()
    chat.ac_out_buffer_size = 4
    chat.push(b"0123456789")
    assert list(chat.producer_fifo) == [b"4567", b"89"]
    assert near.recv(100) == b"0123"
    chat.handle_write()
    assert list(chat.producer_fifo) == [b"89"]


def test_producers_and_bytes_keep_their_order(ends):
    near, chat = ends()

    class Twice:
        left = 2

        def more(self):
            self.left -= 1
            return b"more" if self.left >= 0 else b""

    chat.push(b"first ")
    chat.push_with_producer(Twice())
    chat.push_with_producer(asynchat.simple_producer(b" simple", buffer_size=3))
    chat.push(b" last")
    chat.close_when_done()
    asyncore.loop(timeout=LIMIT, map=chat._map)
    assert b"".join(iter(lambda: near.recv(100), b"")) == b"first moremore simple last"


def test_close_when_done_closes_only_on_the_next_pass(ends):
    near, chat = ends()
    chat.push(b"bye")
    chat.close_when_done()
    assert chat.connected
    assert list(chat.producer_fifo) == [None]
    read_pass(chat)
    assert not chat.connected
    assert near.recv(100) == b"bye"


def test_discard_buffers_drops_everything(ends):
    _, chat = ends()
    chat.ac_in_buffer = b"in"
    chat.incoming.append(b"coming")
    chat.connected = False
    chat.push(b"out")
    chat.discard_buffers()
    assert (chat.ac_in_buffer, chat.incoming, len(chat.producer_fifo)) == (b"", [], 0)


def test_an_overridden_send_or_initiate_send_is_used(ends):
    sent = []

    class Sending(Chat):
        def send(self, data):
            sent.append((bytes(data), len(self.producer_fifo)))
            return 2

    near, chat = ends(Sending)
    near.send(b"x\n")
    read_pass(chat)
    chat.push(b"abc")
    assert sent == [(b"abc", 1)]
    assert list(chat.producer_fifo) == [b"c"]

    class Initiating(Chat):
        def initiate_send(self):
            sent.append("initiate")

    near, chat = ends(Initiating)
    near.send(b"x\n")
    read_pass(chat)
    chat.push(b"abc")
    assert sent[-1] == "initiate"
    assert list(chat.producer_fifo) == [b"abc"]


def test_an_error_while_sending_goes_to_handle_error(ends):
    class Failing(Chat):
        errors = 0

        def send(self, data):
            raise OSError("made to fail")

        def handle_error(self):
            self.errors += 1

    near, chat = ends(Failing)
    chat.push(b"x")
    assert chat.errors == 1
    chat.producer_fifo.clear()
    near.send(b"x\n")
    read_pass(chat)
    chat.push(b"y")
    assert chat.errors == 2
    assert list(chat.producer_fifo) == [b"y"]


@pytest.mark.parametrize("received", [False, True])
def test_pushes_of_two_threads_are_neither_lost_nor_mixed(ends, received):
    near, chat = ends()
    if received:
        near.send(b"x\n")
        read_pass(chat)
    count = 2_000

    def push(name):
        for number in range(count):
            chat.push(b"%s%06d:%s\n" % (name, number, name * (number % 300)))

    threads = [threading.Thread(target=push, args=(name,)) for name in (b"a", b"b", b"c")]
    received_bytes = []

    def read():
        while data := near.recv(65536):
            received_bytes.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    loop = threading.Thread(target=asyncore.loop, args=(0.01, False, chat._map))
    loop.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    chat.close_when_done()
    loop.join(30)
    reader.join(LIMIT)
    assert not loop.is_alive()
    lines = b"".join(received_bytes).splitlines()
    assert len(lines) == 3 * count
    for name in (b"a", b"b", b"c"):
        own = [line for line in lines if line.startswith(name)]
        assert own == [b"%s%06d:%s" % (name, n, name * (n % 300)) for n in range(count)]


# -- joining


def test_joined_writes_are_sent_as_one_piece_after_the_input(ends):
    sent = []

    class Joining(Chat):
        ac_join_writes = True

        def found_terminator(self):
            super().found_terminator()
            self.push(self.lines[-1] + b"!")

        def send(self, data):
            sent.append(bytes(data))
            return super().send(data)

    near, chat = ends(Joining)
    near.send(b"a\nb\nc\n")
    read_pass(chat)
    assert sent == [b"a!b!c!"]
    assert near.recv(100) == b"a!b!c!"
    chat.push(b"at once")
    assert sent[-1] == b"at once"


def test_joined_writes_keep_their_order_with_producers_and_the_end(ends):
    class Joining(Chat):
        ac_join_writes = True

        def found_terminator(self):
            self.push(b"1")
            self.push(b"2")
            self.push_with_producer(asynchat.simple_producer(b"3" * 600))
            self.push(memoryview(b"4"))
            self.push(b"x" * 200_000)
            self.push(b"5")
            self.close_when_done()

    near, chat = ends(Joining)
    near.send(b"go\n")
    got = []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: near.recv(65536), b"")))
    reader.start()
    asyncore.loop(timeout=LIMIT, map=chat._map)
    reader.join(LIMIT)
    assert b"".join(got) == b"12" + b"3" * 600 + b"4" + b"x" * 200_000 + b"5"


# -- cost


def test_find_prefix_at_end_counts_the_started_terminator():
    assert asynchat.find_prefix_at_end("qwerty\r", "\r\n") == 1
    assert asynchat.find_prefix_at_end(b"qwerty", b"\r\n") == 0
    assert asynchat.find_prefix_at_end(b"ab--", b"--end") == 2


@pytest.mark.traces_memory
def test_idle_channel_takes_less_than_2500_bytes(pair):
    import tracemalloc

    sockets = [pair()[1] for _ in range(50)]
    gc.collect()
    tracemalloc.start()
    try:
        chats = [Chat(sock) for sock in sockets]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # deque, list, map, attributes: about as much as the stdlib's, each with its own map.
    assert used / len(chats) < 2_500
    for chat in chats:
        chat.close()


def test_chat_in_a_forked_child_sends(ends):
    near, chat = ends()
    pid = os.fork()
    if pid == 0:
        try:
            chat.push(b"from the child")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert near.recv(100) == b"from the child"
    chat.push(b"from the parent")
    assert near.recv(100) == b"from the parent"
