"""
`AsyncChat` in memory: producers of Twisted's, and producers that fail.
"""

import io

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IPullProducer,
    IPushProducer,
)
from twisted.logger import LogLevel, capturedLogs
from twisted.protocols.basic import FileSender
from typing_extensions import override
from zope.interface import implementer
from zope.interface.verify import verifyObject

from helpers.memory import Chat, Pushing, connected, lose
from txasynchat import ProducerError


class TestTwistedProducers:
    @implementer(IPullProducer)
    class Pulling:
        pieces = 3

        def __init__(self, chat):
            self.chat = chat
            self.calls = []

        @override
        def resumeProducing(self):
            self.calls.append("resume")
            self.pieces -= 1
            self.chat.write(b"p")
            if not self.pieces:
                self.chat.unregisterProducer()

        @override
        def stopProducing(self):
            self.calls.append("stop")

    def test_a_push_producer_is_paused_when_the_transport_is_full(self):
        chat = Chat()
        transport = connected(chat)
        producer = Pushing(chat)
        assert verifyObject(IPushProducer, producer)
        chat.push_with_producer(producer)
        chat.write(b"1")
        assert producer.calls == []
        transport.room = 1
        chat.write(b"2")
        assert producer.calls == ["pause"]
        transport.make_room()
        assert producer.calls == ["pause", "resume"]
        chat.write(b"3")
        chat.unregisterProducer()
        chat.push(b"4")
        assert transport.value() == b"1234"
        assert transport.producer is None

    def test_producers_and_bytes_between_them_keep_their_order(self):
        chat = Chat()
        transport = connected(chat)
        first, second = Pushing(chat), Pushing(chat)
        chat.registerProducer(first, True)
        chat.push(b"<")
        chat.registerProducer(second, True)
        chat.push(b">")
        chat.push_with_producer(self.Pulling(chat))
        assert second.calls == ["pause"]
        chat.write(b"1")
        chat.unregisterProducer()
        assert second.calls == ["pause", "resume"]
        chat.write(b"2")
        chat.unregisterProducer()
        assert transport.value() == b"1<2>ppp"

    def test_file_sender_may_be_pushed(self):
        chat = Chat()
        transport = connected(chat)
        sent = FileSender().beginFileTransfer(io.BytesIO(b"x" * 100_000), chat)
        chat.push(b"end")
        assert transport.value() == b"x" * 100_000 + b"end"
        assert sent.called

    def test_every_producer_is_stopped_when_the_connection_is_lost(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        push, pull = Pushing(chat), self.Pulling(chat)
        chat.push_with_producer(push)
        chat.push_with_producer(pull)
        lost = FileSender().beginFileTransfer(io.BytesIO(b"x"), chat)
        lost.addErrback(lambda failure: failure.type)
        lose(chat, ConnectionLost)
        assert push.calls[-1] == "stop"
        assert pull.calls == ["stop"]
        assert lost.called

    def test_producer_pushed_after_the_end_is_stopped_at_once(self):
        for end in (Chat.close, Chat.abort, Chat.close_when_done, lose):
            chat = Chat()
            transport = connected(chat)
            transport.room = 1
            chat.push(b"full")
            chat.push(b"unsent")
            end(chat)
            producer = Pushing(chat)
            chat.push_with_producer(producer)
            chat.registerProducer(producer, True)
            assert producer.calls == ["stop", "stop"]
            chat.write(b"late")
            chat.unregisterProducer()
            assert chat.dropped == 4

    def test_close_when_done_waits_for_producers(self):
        chat = Chat()
        transport = connected(chat)
        chat.push_with_producer(Pushing(chat))
        chat.close_when_done()
        assert not transport.disconnecting
        chat.write(b"still")
        assert not transport.disconnecting
        chat.unregisterProducer()
        assert transport.disconnecting
        assert transport.value() == b"still"

    def test_producer_that_fails_when_paused_ends_only_its_connection(self):
        class Failing(Pushing):
            @override
            def pauseProducing(self):
                raise OSError("cannot stop")

        chat = Chat()
        transport = connected(chat)
        chat.push_with_producer(Failing(chat))
        transport.room = 1
        with capturedLogs() as logs:
            chat.write(b"1")
        assert len(logs) == 1
        assert chat.events == ["connect", ("error", ProducerError)]
        transport.make_room()
        assert transport.value() == b"1"
        assert transport.disconnecting


class TestFailingProducers:
    def test_bytes_before_a_failing_producer_are_sent_and_the_connection_closes(self):
        def produce():
            yield b"good "
            raise ValueError("bad row")

        chat = Chat()
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.push(b"before ")
            chat.push_with_producer(produce())
            chat.push(b"behind")
        assert transport.value() == b"before good "
        assert transport.disconnecting
        (event,) = logs
        assert event["log_level"] is LogLevel.critical
        assert "bad row" in str(event["log_failure"].value)
        assert event["peer"] == transport.getPeer()
        assert event["handler"] == "Chat"
        assert chat.events == ["connect", ("error", ProducerError)]
        assert chat.dropped == len(b"behind")

    def test_log_shows_where_the_producer_failed(self):
        """Of a generator, of one with ``more()``, and of one that fails when it is stopped."""

        class Failing:
            def more(self):
                return self.deeper()

            def deeper(self):
                raise KeyError("in more")

        def rows():
            yield b"x"
            raise ValueError("bad row")

        def unstoppable():
            try:
                while True:
                    yield bytes(chat.ac_out_buffer_size)
            finally:
                raise OSError("in finally")

        for producer, where in ((Failing(), "in deeper"), (rows(), "in rows")):
            chat = Chat()
            connected(chat)
            with capturedLogs() as logs:
                chat.push_with_producer(producer)
            (event,) = logs
            assert where in event["log_failure"].getTraceback()
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push_with_producer(unstoppable())
        with capturedLogs() as logs:
            chat.abort()
        (event,) = logs
        assert "in unstoppable" in event["log_failure"].getTraceback()

    def test_producers_behind_a_failing_one_are_stopped(self):
        closed = []

        def waiting():
            try:
                yield b"x"
            finally:
                closed.append(True)

        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        behind = waiting()
        chat.push_with_producer(iter([3]))
        chat.push_with_producer(behind)
        with capturedLogs():
            transport.make_room()
        assert transport.value() == b"full"
        assert transport.disconnecting
        with pytest.raises(StopIteration):
            next(behind)

    def test_handle_error_may_push_a_final_message(self):
        class Apologetic(Chat):
            def handle_error(self):
                self.push(b"sorry")

        chat = Apologetic()
        transport = connected(chat)
        with capturedLogs():
            chat.push_with_producer(iter(["text"]))
        assert transport.value() == b"sorry"
        assert transport.disconnecting

    def test_producer_may_fail_in_the_middle_of_a_chunk(self):
        def produce(chat, message):
            chat.push_with_producer(iter([message, 3]))

        chat = Chat(produce)
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"a\nb\nc\n")
        assert transport.value() == b"a"
        assert transport.disconnecting
        assert len(logs) == 1
        assert chat.messages == [b"a", b"b", b"c"]

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done", "discard_buffers"])
    def test_producer_may_close_the_connection_while_it_is_asked(self, ending):
        ended = []

        def produce():
            try:
                getattr(chat, ending)()
                chat.push(b"pushed")
                yield b"x"
            finally:
                ended.append(True)

        chat = Chat()
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.push_with_producer(produce())
        assert logs == []
        assert ended == [True]
        expected = {
            "close": b"x",
            "close_when_done": b"x",
            "abort": b"",
            "discard_buffers": b"pushed",
        }
        assert transport.value() == expected[ending]
        assert transport.disconnecting is (ending != "discard_buffers")
