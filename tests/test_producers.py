"""
The output queue alone: what comes out, in which order, and when producers are asked.

Also covers `outputqueue`.
"""

import io
import os
import random
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from helpers.memory import Pushing
from txasynchat import FileProducer, OutputQueue, ProducerError, simple_producer
from txasynchat.outputqueue import EMPTY_PIECES


def drain(queue, limit=65_536):
    """Take everything that the queue has now."""
    return b"".join(iter(lambda: queue.take(limit), b""))


class More:
    """An asynchat producer that counts its calls."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.asked = 0

    def more(self):
        self.asked += 1
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece


class Pulling(Pushing):
    """A pull producer that writes one piece per call."""

    def __init__(self, consumer, *pieces):
        super().__init__(consumer)
        self.pieces = list(pieces)

    @override
    def resumeProducing(self):
        self.calls.append("resume")
        if self.pieces:
            self.consumer.write(self.pieces.pop(0))
        else:
            self.consumer.unregister()


class TestOrder:
    def test_every_kind_of_item_keeps_its_place(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"<path>")
        queue = OutputQueue()
        queue.push(b"<bytes>")
        queue.push_producer(More(b"<mo", b"re>"))
        queue.push(bytearray(b"<bytearray>"))
        queue.push_producer(piece for piece in (b"<gener", b"", b"ator>"))
        queue.push_producer([b"<list>"])
        queue.push(memoryview(b"<view>"))
        queue.push_producer(io.BytesIO(b"<file>"))
        queue.push_producer(FileProducer(path))
        queue.register(Pulling(queue, b"<pu", b"ll>"), False)
        queue.push_producer(simple_producer(b"<simple>", 3))
        queue.push_producer(b"<bytes again>")
        queue.close_when_done()
        queue.push(b"<late>")
        assert drain(queue) == (
            b"<bytes><more><bytearray><generator><list><view><file><path><pull><simple><bytes again>"
        )
        assert queue.finished
        assert queue.size == 0

    @settings(deadline=None)  # the machine may be busy
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=20),
                st.lists(st.binary(min_size=1, max_size=20), max_size=5),
            ),
            max_size=30,
        ),
        st.integers(min_value=1, max_value=40),
        st.randoms(use_true_random=False),
    )
    def test_output_is_the_same_however_it_is_taken(self, items, limit, chance):
        queue = OutputQueue()
        expected = b""
        got = b""
        for item in items:
            if isinstance(item, bytes):
                queue.push(item)
                expected += item
            else:
                queue.push_producer(More(*item) if chance.random() < 0.5 else iter(item))
                expected += b"".join(item)
            if chance.random() < 0.3:
                got += queue.take(limit)
        queue.close_when_done()
        while piece := queue.take(limit):
            assert len(piece) <= limit
            got += piece
        assert got == expected
        assert queue.finished
        assert not queue

    def test_bytes_and_the_producer_after_them_are_taken_together(self):
        queue = OutputQueue()
        queue.push(b"header ")
        queue.push_producer(iter([b"small ", b"pieces"]))
        queue.close_when_done()
        assert queue.take(65_536) == b"header small pieces"
        assert queue.finished

    def test_no_more_is_taken_than_was_asked_for(self):
        queue = OutputQueue()
        queue.push(b"a" * 10)
        queue.push_producer(More(b"b" * 10))
        assert [queue.take(7), queue.take(7), queue.take(7)] == [b"a" * 7, b"aaabbbb", b"b" * 6]

    def test_a_mutable_buffer_may_be_used_again_at_once(self):
        queue = OutputQueue()
        buffer = bytearray(b"before")
        queue.push(buffer)
        buffer[:] = b"after."
        assert drain(queue) == b"before"

    def test_cost_per_item_does_not_depend_on_their_number(self):
        def seconds(count):
            queue = OutputQueue()
            queue.push_producer(More(b"x"))
            for _ in range(count):
                queue.push(b"x")
            began = time.process_time()
            while queue.take(3):
                pass
            return time.process_time() - began

        assert seconds(160_000) < 60 * max(seconds(10_000), 0.001)

    @pytest.mark.counts_references
    def test_bytes_taken_are_released(self):
        queue = OutputQueue()
        big = bytes(100)
        before = sys.getrefcount(big)
        queue.push(big)
        queue.push_producer(More(b"y"))
        queue.take(60)
        assert sys.getrefcount(big) == before + 1
        queue.take(40)
        assert sys.getrefcount(big) == before


class TestAsking:
    def test_producer_is_asked_after_everything_before_it_was_taken(self):
        queue = OutputQueue()
        producer = More(b"b" * 10)
        queue.push(b"a" * 20)
        queue.push_producer(producer)
        assert queue.take(20) == b"a" * 20
        assert producer.asked == 0
        assert queue.take(5) == b"bbbbb"
        assert producer.asked == 1
        assert queue.take(5) == b"bbbbb"
        assert producer.asked == 1

    def test_a_producer_is_not_asked_again_after_its_end(self):
        queue = OutputQueue()
        producer = More(b"x")
        queue.push_producer(producer)
        assert drain(queue) == b"x"
        queue.push(b"y")
        assert drain(queue) == b"y"
        assert producer.asked == 2

    def test_more_producer_may_end_with_none_as_in_asynchat(self):
        queue = OutputQueue()
        queue.push_producer(More(b"x", None))
        queue.push(b"y")
        assert drain(queue) == b"xy"

    def test_a_producer_may_push_while_it_is_asked(self):
        queue = OutputQueue()

        def produce():
            queue.push(b"3")
            yield b"1"
            queue.push_producer(iter([b"4"]))
            yield b"2"

        queue.push_producer(produce())
        assert drain(queue) == b"1234"

    def test_a_producer_may_close_while_it_is_asked(self):
        queue = OutputQueue()

        def produce():
            yield b"1"
            queue.close_when_done()
            queue.push(b"late")
            yield b"2"

        queue.push_producer(produce())
        assert drain(queue) == b"12"
        assert queue.finished

    def test_a_producer_may_have_the_queue_dropped_while_it_is_asked(self):
        queue = OutputQueue()
        ended = []

        def produce():
            try:
                yield b"1"
                assert queue.stop() == []
                yield b"2"
                yield b"3"
            finally:
                ended.append(True)

        queue.push_producer(produce())
        assert queue.take(1) == b"1"
        assert queue.take(1) == b""
        assert ended == [True]
        queue.push(b"4")
        assert drain(queue) == b"4"
        assert queue.size == 0

    def test_cost_of_asking_a_generator_does_not_depend_on_the_queue(self):
        def seconds(behind):
            queue = OutputQueue()
            queue.push_producer(iter([b"x"] * 5_000))
            for _ in range(behind):
                queue.push(b"y")
            began = time.process_time()
            for _ in range(5_000):
                queue.take(1)
            return time.process_time() - began

        assert seconds(200_000) < 10 * max(seconds(1), 0.002)


class TestFailures:
    def failing(self, *items):
        queue = OutputQueue()
        queue.push(b"before ")
        queue.push_producer(*items)
        queue.push(b" behind")
        return queue

    @pytest.mark.parametrize(
        ("producer", "text"),
        [
            (More(OSError("disk")), "raised OSError('disk')"),
            (More("text"), "not str"),
            (iter(["text"]), "not str"),
            (iter([None]), "not NoneType"),
            (iter([3]), "not int"),
            (io.StringIO("text"), "not str"),
        ],
    )
    def test_failing_producer_is_named_and_bytes_before_it_are_sent(self, producer, text):
        queue = self.failing(producer)
        assert queue.take(100) == b"before "
        with pytest.raises(ProducerError) as caught:
            queue.take(100)
        assert text in str(caught.value)
        if not isinstance(producer, io.StringIO):
            assert repr(producer) in str(caught.value)
        assert caught.value.__cause__ is not None
        assert drain(queue) == b" behind"

    def test_bytes_of_a_failing_producer_are_sent_first(self):
        def produce():
            yield b"good "
            raise ValueError("bad")

        queue = self.failing(produce())
        assert queue.take(100) == b"before good "
        with pytest.raises(ProducerError, match="bad"):
            queue.take(100)
        assert drain(queue) == b" behind"
        assert queue.size == 0

    def test_iterator_of_empty_pieces_is_reported_as_stuck(self):
        def produce():
            while True:
                asked.append(1)
                yield b""

        asked = []
        queue = OutputQueue()
        queue.push_producer(produce())
        with pytest.raises(ProducerError, match="gave an empty piece 1000 times in a row"):
            queue.take(100)
        assert len(asked) == EMPTY_PIECES == 1_000

    def test_failing_file_is_closed_if_the_queue_opened_it(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"x")
        producer = FileProducer(path)
        os.close(producer._file.fileno())
        queue = OutputQueue()
        queue.push_producer(producer)
        with pytest.raises(ProducerError, match="Bad file descriptor"):
            queue.take(100)

    @pytest.mark.parametrize("wrong", ["text", 3, None, object()])
    def test_value_that_is_not_a_producer_is_refused_at_once(self, wrong):
        queue = OutputQueue()
        with pytest.raises(TypeError, match="a producer has more"):
            queue.push_producer(wrong)
        assert not queue

    @pytest.mark.parametrize("wrong", ["text", 3, None, [b"x"]])
    def test_piece_that_is_not_bytes_like_is_refused_with_its_value(self, wrong):
        queue = OutputQueue()
        with pytest.raises(TypeError, match="data must be bytes-like, not ") as caught:
            queue.push(wrong)
        assert repr(wrong) in str(caught.value)
        assert not queue


class TestFiles:
    def test_path_is_opened_at_once_and_closed_at_its_end(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"abcdefgh")
        producer = FileProducer(str(path), 3)
        queue = OutputQueue()
        queue.push_producer(producer)
        assert drain(queue) == b"abcdefgh"
        assert producer._file.closed

    def test_missing_path_raises_at_once(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            FileProducer(tmp_path / "nothing")

    def test_open_file_stays_open_and_is_read_from_its_position(self):
        file = io.BytesIO(b"0123456789")
        file.seek(5)
        queue = OutputQueue()
        queue.push_producer(FileProducer(file))
        assert drain(queue) == b"56789"
        assert not file.closed

    def test_a_dropped_path_is_closed_and_a_dropped_open_file_is_not(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"x")
        owned = FileProducer(path)
        file = io.BytesIO(b"y")
        queue = OutputQueue()
        queue.push_producer(owned)
        queue.push_producer(file)
        assert queue.stop() == []
        assert owned._file.closed
        assert not file.closed

    def test_file_producer_names_its_file(self, tmp_path):
        path = tmp_path / "named"
        path.touch()
        producer = FileProducer(path)
        assert "named" in repr(producer)
        producer.close()


class TestSimpleProducer:
    """Facts of the 3.11 library reference."""

    def test_simple_producer_gives_512_bytes_at_a_time_then_nothing(self):
        producer = simple_producer(b"x" * 1_000)
        assert [producer.more(), producer.more(), producer.more()] == [b"x" * 512, b"x" * 488, b""]

    def test_length_of_a_piece_can_be_chosen(self):
        producer = simple_producer(b"abcde", buffer_size=2)
        assert [producer.more() for _ in range(4)] == [b"ab", b"cd", b"e", b""]


class TestTwistedProducers:
    def test_push_producer_is_paused_until_its_turn(self):
        queue = OutputQueue()
        queue.push(b"first ")
        producer = Pushing(queue)
        queue.register(producer, True)
        assert producer.calls == ["pause"]
        assert queue.take(100) == b"first "
        assert producer.calls == ["pause", "resume"]
        queue.write(b"second")
        assert queue.take(100) == b"second"
        queue.unregister()
        queue.push(b" third")
        assert drain(queue) == b" third"
        assert producer.calls == ["pause", "resume"]

    def test_push_producer_at_the_head_of_the_queue_is_not_paused(self):
        queue = OutputQueue()
        producer = Pushing(queue)
        queue.register(producer, True)
        queue.write(b"x")
        assert queue.take(100) == b"x"
        assert producer.calls == []

    def test_push_producer_is_paused_without_room_and_resumed_with_room(self):
        queue = OutputQueue()
        producer = Pushing(queue)
        queue.register(producer, True)
        queue.pause()
        queue.pause()
        assert producer.calls == ["pause"]
        assert queue.take(100) == b""
        assert producer.calls == ["pause", "resume"]

    def test_push_producer_is_paused_when_it_runs_too_far_ahead(self):
        queue = OutputQueue()
        producer = Pushing(queue)
        queue.register(producer, True)
        queue.write(b"x" * 40_000)
        assert producer.calls == []
        queue.write(b"x" * 40_000)
        assert producer.calls == ["pause"]
        assert queue.size == 80_000
        while queue.take(10_000):
            pass
        assert producer.calls == ["pause", "resume"]
        assert queue.size == 0

    def test_several_push_producers_run_in_turn(self):
        queue = OutputQueue()
        first, second = Pushing(queue), Pushing(queue)
        queue.register(first, True)
        queue.register(second, True)
        queue.push(b"end")
        assert second.calls == ["pause"]
        queue.write(b"1")
        assert queue.take(100) == b"1"
        assert second.calls == ["pause"]
        queue.unregister()
        assert queue.take(100) == b""
        assert second.calls == ["pause", "resume"]
        queue.write(b"2")
        queue.unregister()
        assert drain(queue) == b"2end"

    def test_pull_producer_is_asked_again_only_after_its_answer(self):
        queue = OutputQueue()
        producer = Pulling(queue, b"x" * 10, b"y" * 10)
        queue.register(producer, False)
        assert producer.calls == []
        assert queue.take(10) == b"x" * 10
        assert producer.calls == ["resume"]

    def test_a_pull_producer_may_answer_later(self):
        queue = OutputQueue()
        producer = Pushing(queue)
        queue.register(producer, False)
        assert queue.take(100) == b""
        assert queue.take(100) == b""
        assert producer.calls == ["resume"]
        queue.write(b"x")
        assert queue.take(1) == b"x"
        assert queue.take(1) == b""
        assert producer.calls == ["resume", "resume"]

    def test_bytes_written_before_the_producer_ended_are_not_lost(self):
        queue = OutputQueue()
        queue.register(Pushing(queue), True)
        queue.write(b"x" * 10)
        queue.unregister()
        queue.close_when_done()
        assert drain(queue, 3) == b"x" * 10
        assert queue.finished

    def test_write_without_a_producer_is_ignored(self):
        queue = OutputQueue()
        assert queue.write(b"x") is False
        queue.push(b"y")
        assert queue.write(b"x") is False
        assert drain(queue) == b"y"

    def test_writing_text_raises_at_the_call(self):
        queue = OutputQueue()
        queue.register(Pushing(queue), True)
        with pytest.raises(TypeError, match="not str: 'text'"):
            queue.write("text")

    @pytest.mark.parametrize("streaming", [True, False])
    def test_pull_producer_that_fails_is_stopped(self, streaming):
        class Failing(Pushing):
            @override
            def resumeProducing(self):
                raise OSError("gone")

        queue = OutputQueue()
        queue.push(b"x")
        producer = Failing(queue)
        queue.register(producer, streaming)
        assert queue.take(100) == b"x"
        with pytest.raises(ProducerError, match="gone"):
            queue.take(100)
        assert producer.calls[-1] == "stop"
        assert not queue

    def test_push_producer_that_fails_when_paused_is_named(self):
        class Failing(Pushing):
            @override
            def pauseProducing(self):
                raise OSError("cannot stop")

        queue = OutputQueue()
        queue.register(Failing(queue), True)
        with pytest.raises(ProducerError, match="cannot stop"):
            queue.pause()
        assert not queue


class TestStop:
    def test_every_waiting_producer_is_stopped_once(self):
        queue = OutputQueue()
        ended = []

        def produce(name):
            try:
                yield b"x"
                yield b"y"
            finally:
                ended.append(name)

        begun, waiting = produce("begun"), produce("waiting")
        next(waiting)
        push, pull = Pushing(queue), Pulling(queue)
        queue.push_producer(begun)
        queue.take(1)
        queue.push_producer(waiting)
        queue.register(push, True)
        queue.register(pull, False)
        queue.push(b"lost")
        assert queue.stop() == []
        assert ended == ["begun", "waiting"]
        assert push.calls == ["pause", "stop"]
        assert pull.calls == ["stop"]
        assert queue.stop() == []
        assert push.calls == ["pause", "stop"]
        assert not queue
        assert queue.size == 0
        assert drain(queue) == b""

    def test_failure_to_stop_does_not_keep_the_others_from_it(self):
        class Failing(Pushing):
            @override
            def stopProducing(self):
                raise OSError("no")

        queue = OutputQueue()
        last = Pushing(queue)
        queue.register(Failing(queue), True)
        queue.register(last, True)
        assert [str(error) for error in queue.stop()] == ["no"]
        assert last.calls == ["pause", "stop"]

    def test_ended_producer_is_not_stopped(self):
        queue = OutputQueue()
        producer = Pushing(queue)
        queue.register(producer, True)
        queue.write(b"not taken")
        queue.unregister()
        queue.stop()
        assert producer.calls == []

    def test_stopped_queue_can_be_used_again(self):
        queue = OutputQueue()
        queue.push(b"old")
        queue.close_when_done()
        queue.stop()
        queue.push(b"new")
        assert drain(queue) == b"new"
        assert not queue.finished


def test_random_programs_agree_with_a_plain_list_of_bytes():
    """Pushes, producers that push, and takes of random length, against the simplest model."""
    chance = random.Random(7)
    for _ in range(300):
        queue = OutputQueue()
        expected = bytearray()
        got = bytearray()
        for number in range(chance.randrange(40)):
            piece = bytes([number]) * chance.randrange(1, 3_000)
            kind = chance.randrange(5)
            if kind < 3:
                queue.push(piece)
                expected += piece
            elif kind == 3:
                queue.push_producer(simple_producer(piece, chance.randrange(1, 500)))
                expected += piece
            else:
                got += queue.take(chance.randrange(1, 5_000))
        got += drain(queue, chance.randrange(1, 5_000))
        assert got == expected
        assert queue.size == 0


@given(st.lists(st.binary(max_size=4), max_size=6), st.integers(0, 30))
def test_the_last_bytes_are_taken_and_put_back_as_if_nothing_had_been_done(pushed, sent):
    """A system that takes only a part of the last answer loses nothing of it."""
    queue = OutputQueue()
    for data in pushed:
        queue.push(data)
    assert queue.take_last() is None  # no end was asked for
    queue.close_when_done()
    last = queue.take_last()
    assert last == b"".join(pushed)
    assert queue.finished
    assert not queue
    assert not queue.size
    left = last[sent:]
    if left:
        queue.put_back_last(left)
        assert (queue.size, queue.finished) == (len(left), False)
        queue.push(b"late")  # dropped, as behind every request to close
        assert queue.take(100) == left
        assert queue.take(100) == b""
        assert queue.finished


def test_the_last_bytes_are_not_taken_before_a_producer_or_from_a_part():
    queue = OutputQueue()
    queue.push(b"first")
    queue.push_producer(iter([b"second"]))
    queue.close_when_done()
    assert queue.take_last() is None
    assert queue.take(100) == b"firstsecond"
    queue = OutputQueue()
    queue.push(b"in parts")
    queue.close_when_done()
    assert queue.take(3) == b"in "
    assert queue.take_last() is None
    assert queue.take(100) == b"parts"
