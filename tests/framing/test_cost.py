"""
What a `Framer` costs: time that grows linearly, and memory only for bytes that wait.
"""

import sys
import time

import pytest

from txasynchat.framing import Framer, Overflow
from txasynchat.terminators import LengthPrefix

# 16 times the input takes 16 times the time; searching all bytes again for each message would
# take 256 times. CPU time of this thread alone, the least of several runs.
GROWTH = 16
ALLOWED = 60
RUNS = 3

LONG = b"a" * 63 + b"b"
NEAR_MISS = LONG[1:]


class Counter:
    """
    Counts messages and bytes; keeps nothing.
    """

    def __init__(self, framer, then=None):
        self.framer = framer
        self.then = then
        self.messages = self.bytes = self.errors = 0

    def collect_incoming_data(self, data):
        self.bytes += len(data)

    def found_terminator(self):
        self.messages += 1
        if self.then is not None:
            self.then(self)

    def message_received(self, message):
        self.bytes += len(message)
        self.messages += 1
        if self.then is not None:
            self.then(self)

    def overflowed(self, error):
        self.errors += 1


def receive(chunks, *args, then=None, **options):
    counter = Counter(Framer(*args, **options), then)
    for chunk in chunks:
        counter.framer.receive(counter, chunk)
    return counter


def pieces(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


def alternate(counter):
    counter.framer.set_terminator(
        (b"\n", 2, LengthPrefix("B"), (b"\n", b"a"))[counter.messages % 4]
    )


def disturb_every_ninth(counter):
    if counter.messages % 9 == 0:
        counter.framer.pause()
        counter.framer.resume()


def count_two(counter):
    counter.framer.set_terminator(2)


# Each makes its input of size n, and returns what to run on it and the expected result.


def tiny_frames_in_one_chunk(n):
    return lambda: receive([b"ab\n" * n], b"\n").messages == n


def tiny_whole_frames_in_one_chunk(n):
    return lambda: receive([b"ab\n" * n], b"\n", whole=True, limit=5).messages == n


def counted_frames_in_one_chunk(n):
    return lambda: receive([b"ab" * n], 2, then=count_two).messages == n


def tuple_frames_in_one_chunk(n):
    return lambda: receive([b"ab\r\n" * n], (b"\n", b"\r\n")).bytes == 2 * n


def prefixed_frames_in_one_chunk(n):
    return lambda: receive([b"\0\2ab" * n], LengthPrefix("!H")).bytes == 2 * n


def terminators_in_turn(n):
    data = [(b"a\nab\1aba") * n]
    return lambda: receive(data, b"\n", then=alternate).messages == 4 * n


def frames_with_disturbed_handlers(n):
    return lambda: receive([b"ab\n" * n], b"\n", then=disturb_every_ninth).messages == n


def a_message_in_single_bytes(n):
    chunks = [b"a"] * n + [b"\r", b"\n"]
    return lambda: receive(chunks, b"\r\n").bytes == n


def a_whole_message_in_single_bytes(n):
    chunks = [b"a"] * n + [b"\r", b"\n"]
    return lambda: receive(chunks, b"\r\n", whole=True, limit=n).bytes == n


def a_message_without_end_in_single_bytes(n):
    chunks = [b"a"] * n
    return lambda: receive(chunks, None, limit=10).bytes == n


def a_counted_message_in_single_bytes(n):
    chunks = [b"a"] * n
    return lambda: receive(chunks, n, whole=True).messages == 1


def many_chunks_while_paused(n):
    def run():
        framer = Framer(b"\n")
        counter = Counter(framer)
        framer.pause()
        for _ in range(n):
            framer.receive(counter, b"a\na")
        framer.resume()
        framer.deliver(counter)
        return counter.messages == n

    return run


def over_long_messages_dropped(n):
    data = pieces((b"a" * 50 + b"\n" + b"b\n") * n, 1000)
    return lambda: receive(data, b"\n", limit=10, overflow=Overflow.SKIP, whole=True).bytes == n


def one_over_long_message_dropped(n):
    data = [b"aaa\r"] * n + [b"\nb\r\n"]
    return lambda: receive(data, b"\r\n", limit=10, overflow=Overflow.SKIP, whole=True).bytes == 1


def an_over_long_message_in_parts(n):
    data = [b"a" * (5 * n) + b"\n"]
    return lambda: (
        receive(data, b"\n", limit=5, overflow=Overflow.DELIVER, whole=True).bytes == 5 * n
    )


def an_over_long_message_of_several_delimiters_in_parts(n):
    data = [b"a" * (5 * n) + b"\n"]
    return lambda: (
        receive(data, (b"\n", b"|"), limit=5, overflow=Overflow.DELIVER, whole=True).bytes == 5 * n
    )


def near_misses_of_a_long_terminator(n):
    data = pieces(NEAR_MISS * (n // 64) + LONG, 7)
    return lambda: receive(data, LONG).messages == 1


def near_misses_of_a_long_terminator_in_one_chunk(n):
    data = [NEAR_MISS * (n // 8) + LONG]
    return lambda: receive(data, LONG).messages == 1


def near_misses_of_long_terminators(n):
    data = pieces(NEAR_MISS * (n // 64) + LONG, 7)
    return lambda: receive(data, (LONG, b"\n")).messages == 1


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (tiny_frames_in_one_chunk, 20_000),
        (tiny_whole_frames_in_one_chunk, 20_000),
        (counted_frames_in_one_chunk, 5_000),
        (tuple_frames_in_one_chunk, 3_000),
        (prefixed_frames_in_one_chunk, 5_000),
        (terminators_in_turn, 2_000),
        (frames_with_disturbed_handlers, 5_000),
        (a_message_in_single_bytes, 2_000),
        (a_whole_message_in_single_bytes, 2_000),
        (a_message_without_end_in_single_bytes, 5_000),
        (a_counted_message_in_single_bytes, 2_000),
        (many_chunks_while_paused, 5_000),
        (over_long_messages_dropped, 1_000),
        (one_over_long_message_dropped, 2_000),
        (an_over_long_message_in_parts, 4_000),
        (an_over_long_message_of_several_delimiters_in_parts, 2_000),
        (near_misses_of_a_long_terminator, 2_000),
        # Large enough that the interpreter searches both sizes in the same way.
        (near_misses_of_a_long_terminator_in_one_chunk, 32_000),
        (near_misses_of_long_terminators, 2_000),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.slow
def test_time_grows_linearly_with_the_bytes(shape, size):
    small = least_seconds(shape(size))
    large = least_seconds(shape(GROWTH * size))
    assert large < ALLOWED * small, f"{small * 1000:.1f} ms, then {large * 1000:.1f} ms"


def least_seconds(run):
    least = float("inf")
    for _ in range(RUNS):
        begin = time.thread_time()
        came_out = run()
        least = min(least, time.thread_time() - begin)
        assert came_out
    return least


@pytest.mark.parametrize(
    ("terminator", "data", "then"),
    [(b"\n", b"\n", None), (1, b"a", lambda counter: counter.framer.set_terminator(1))],
)
def test_million_frames_in_one_chunk_do_not_recurse(terminator, data, then):
    counter = receive([data * 1_000_000], terminator, then=then)
    assert counter.messages == 1_000_000


# -- memory


def chunk_of(data):
    """A new object, to which nothing else refers."""
    return bytes(bytearray(data))


@pytest.mark.counts_references
@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
@pytest.mark.parametrize(
    ("terminator", "end"),
    [
        (b"\n", b"a\n"),
        (b"\n", b"\na"),
        (b"\r\n", b"\r\n\r"),
        ((b"\n", b"\r\n"), b"\r\n\r"),
        (None, b"a"),
        (LengthPrefix("!H"), b"\0"),
        (LengthPrefix("!H"), b"\0\5a"),
        (7, b""),
    ],
    ids=repr,
)
def test_waiting_framer_keeps_no_chunk_alive(terminator, end, whole):
    framer = Framer(terminator, whole=whole)
    counter = Counter(framer)
    begin = b"\0\1a" * 20_000 if isinstance(terminator, LengthPrefix) else b"aa\r\n" * 20_000
    chunk = chunk_of(begin + end)
    before = sys.getrefcount(chunk)
    framer.receive(counter, chunk)
    assert sys.getrefcount(chunk) == before


@pytest.mark.counts_references
def test_skipping_framer_keeps_no_chunk_alive():
    framer = Framer(b"\r\n", limit=10, overflow=Overflow.SKIP)
    counter = Counter(framer)
    chunk = chunk_of(b"a" * 1000 + b"\r")
    before = sys.getrefcount(chunk)
    framer.receive(counter, chunk)
    assert sys.getrefcount(chunk) == before
    framer.receive(counter, b"\nb\r\n")
    assert (counter.messages, counter.bytes) == (1, 10 + 1)


@pytest.mark.counts_references
def test_closed_framer_keeps_no_chunk_alive():
    framer = Framer(b"\n", limit=10, whole=True)
    chunk = chunk_of(b"a\n" * 1000 + b"a" * 1000)
    before = sys.getrefcount(chunk)
    framer.receive(Counter(framer), chunk)
    assert framer.closed
    assert sys.getrefcount(chunk) == before


@pytest.mark.parametrize("limit", [None, 100])
@pytest.mark.traces_memory
def test_stream_without_terminators_is_not_kept(limit):
    import tracemalloc

    framer = Framer(None, limit=limit)
    counter = Counter(framer)
    tracemalloc.start()
    try:
        for _ in range(10_000):
            framer.receive(counter, chunk_of(b"a" * 200))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert counter.bytes == 2_000_000
    assert held < 50_000


@pytest.mark.traces_memory
def test_over_long_body_with_a_length_prefix_is_not_kept_whole():
    import tracemalloc

    framer = Framer(LengthPrefix("!I", limit=1000), overflow=Overflow.DELIVER, whole=True)
    counter = Counter(framer)
    tracemalloc.start()
    try:
        framer.receive(counter, (2_000_000).to_bytes(4, "big"))
        for _ in range(10_000):
            framer.receive(counter, chunk_of(b"a" * 200))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (counter.messages, counter.bytes, counter.errors) == (2_000, 2_000_000, 1)
    assert most < 50_000
