"""
`AsyncChat` in memory: what is sent, and back-pressure both ways.

Also covers `protocol.settling`.
"""

import io

import pytest
from twisted.internet.interfaces import (
    ITransport,
)
from twisted.logger import capturedLogs
from twisted.protocols.basic import FileSender
from typing_extensions import override
from zope.interface import implementer
from zope.interface.verify import verifyObject

from helpers.memory import Chat, Memory, connected, lose
from txasynchat import State, simple_producer


class TestOutput:
    def test_answers_to_one_chunk_are_one_write(self):
        chat = Chat(lambda chat, message: (chat.push(message), chat.push(b"!")))
        transport = connected(chat)
        chat.dataReceived(b"a\nb\nc\n")
        assert transport.writes == [b"a!b!c!"]

    def test_bytes_pushed_before_and_in_handle_connect_are_one_write(self):
        class Greeting(Chat):
            @override
            def connectionMade(self):
                self.push(b"2")

            def handle_connect(self):
                self.push(b"3")
                self.push(b"4")

        chat = Greeting()
        chat.push(b"1")
        assert connected(chat).writes == [b"1234"]

    def test_bytes_pushed_outside_a_handler_are_written_at_once(self):
        chat = Chat()
        transport = connected(chat)
        chat.push(b"a")
        chat.push(b"b")
        assert transport.writes == [b"a", b"b"]

    def test_transport_may_deliver_inside_a_write(self):
        class Loop(Memory):
            @override
            def write(self, data):
                super().write(data)
                if len(self.writes) < 1_000:
                    chat.dataReceived(b"again\n")

        chat = Chat(lambda chat, _message: chat.push(b"x"))
        transport = connected(chat, Loop())
        chat.dataReceived(b"begin\n")
        assert len(transport.writes) == 1_000

    def test_wrong_types_raise_at_the_call(self):
        chat = Chat()
        connected(chat)
        for wrong in ("text", None, 3, [b"x"]):
            with pytest.raises(TypeError):
                chat.push(wrong)
        with pytest.raises(TypeError):
            chat.push_with_producer(3)
        chat.close()
        with pytest.raises(TypeError):
            chat.push("text")

    def test_producers_keep_their_place(self):
        chat = Chat()
        transport = connected(chat)
        chat.dataReceived(b"")
        chat.push(b"1")
        chat.push_with_producer(simple_producer(b"2" * 1_000))
        chat.push_with_producer(io.BytesIO(b"3"))
        chat.push_with_producer(iter([b"4", b"5"]))
        chat.push(b"6")
        assert transport.value() == b"1" + b"2" * 1_000 + b"3456"

    def test_transport_needs_only_itransport(self):
        @implementer(ITransport)
        class Minimal:
            disconnected = False

            def __init__(self):
                self.sent = b""

            def write(self, data):
                self.sent += data

            @override
            def writeSequence(self, data):
                self.write(b"".join(data))

            @override
            def loseConnection(self):
                self.disconnected = True

            @override
            def getPeer(self):
                return "the peer"

            @override
            def getHost(self):
                return "the host"

        assert verifyObject(ITransport, Minimal())
        chat = Chat(lambda chat, message: chat.push(message))
        transport = connected(chat, Minimal())
        chat.dataReceived(b"x\n")
        chat.pause()
        chat.dataReceived(b"y\n")
        chat.resume()
        chat.push_with_producer(iter([b"z"]))
        assert transport.sent == b"xyz"
        assert chat.addr == "the peer"
        chat.close_when_done()
        assert transport.disconnected
        chat = Chat()
        transport = connected(chat, Minimal())
        chat.abort()
        assert transport.disconnected

    def test_application_may_write_to_the_transport_too(self):
        chat = Chat(lambda chat, message: chat.transport.write(b"<" + message + b">"))
        transport = connected(chat)
        chat.dataReceived(b"x\n")
        chat.push(b"y")
        assert transport.value() == b"<x>y"

    def test_idle_transport_has_no_producer_and_accepts_another(self):
        chat = Chat(lambda chat, message: chat.push(message))
        transport = connected(chat)
        chat.dataReceived(b"x\n")
        assert transport.producer is None
        FileSender().beginFileTransfer(io.BytesIO(b"file"), transport)
        transport.producer.resumeProducing()
        transport.producer.resumeProducing()
        assert transport.value() == b"xfile"
        assert transport.producer is None

    def test_bytes_pushed_before_the_handler_closes_the_transport_are_sent(self):
        def last(chat, message):
            chat.push(b"bye")
            chat.transport.loseConnection()
            assert chat.transport.producer is chat  # so it waits

        chat = Chat(last)
        transport = connected(chat)
        chat.dataReceived(b"x\n")
        assert transport.value() == b"bye"
        assert transport.producer is None


class TestBackPressure:
    def test_nothing_is_taken_from_the_queue_while_the_transport_is_full(self):
        asked = []

        def produce():
            for number in range(10):
                asked.append(number)
                yield b"x" * 65_536

        chat = Chat()
        transport = connected(chat)
        transport.room = 65_536
        chat.push_with_producer(produce())
        assert len(asked) == 1
        for number in range(2, 11):
            transport.make_room(65_536)
            assert len(asked) == number
        transport.make_room()
        assert transport.value() == b"x" * 655_360
        assert transport.producer is None

    def test_delivery_and_reading_stop_above_high_water_and_resume_at_low_water(self):
        chat = Chat(lambda chat, message: chat.push(message * 100))
        chat.high_water, chat.low_water = 1_000, 200
        transport = connected(chat)
        transport.room = 0
        transport.make_room(1)
        chat.dataReceived(b"a\n")  # taken, and the transport is full now
        chat.dataReceived(b"b\n" * 10)
        assert transport.reads
        chat.dataReceived(b"c\n")
        assert not transport.reads
        chat.dataReceived(b"d\n")
        assert len(chat.messages) == 12
        assert chat.unsent == 1_100
        transport.make_room()
        assert transport.reads
        assert chat.messages[-1] == b"d"
        assert transport.value() == b"a" * 100 + b"b" * 1_000 + b"c" * 100 + b"d" * 100

    @pytest.mark.parametrize(
        ("size", "reads", "aborted"),
        [(20, True, False), (21, False, False), (40, False, False), (41, False, True)],
    )
    def test_the_limits_on_what_waits_may_be_reached_but_not_exceeded(self, size, reads, aborted):
        chat = Chat()
        chat.high_water, chat.low_water, chat.max_unsent = 20, 5, 40
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(bytes(size - 1))
        chat.push(b"x")
        assert transport.aborted is aborted
        if not aborted:
            assert transport.reads is reads

    @pytest.mark.parametrize(("taken", "reads"), [(15, False), (16, True)])
    def test_reading_goes_on_at_low_water_and_not_above(self, taken, reads):
        chat = Chat()
        chat.high_water, chat.low_water, chat.ac_out_buffer_size = 20, 5, taken
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(bytes(21))
        assert not transport.reads
        transport.make_room(1)
        assert chat.unsent == 21 - taken
        assert transport.reads is reads

    def test_a_small_high_water_holds_within_one_chunk(self):
        """It is checked before `ac_out_buffer_size` bytes have accumulated."""
        chat = Chat(lambda chat, message: chat.push(b"x" * 10_000))
        chat.high_water = 50_000
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.dataReceived(b"m\n" * 100)
        assert len(chat.messages) < 10
        assert not transport.reads
        transport.make_room()
        assert len(chat.messages) == 100
        assert transport.value() == b"full" + b"x" * 1_000_000

    def test_too_much_unsent_aborts_and_is_logged_once(self):
        chat = Chat()
        chat.max_unsent = 10_000
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        with capturedLogs() as logs:
            for _ in range(20):
                chat.push(b"x" * 1_000)
        assert transport.aborted
        (event,) = logs
        assert event["kind"] == "UnsentLimitExceeded"
        assert "11000 bytes wait to be sent, limit 10000" in event["error"]
        assert chat.dropped == 9_000
        assert chat.unsent == 0
        lose(chat)
        assert chat.events == ["connect", "close"]

    def test_too_much_unsent_by_one_chunk_aborts_too(self):
        chat = Chat(lambda chat, message: chat.push(b"x" * 100))
        chat.max_unsent = 1_000
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.dataReceived(b"m\n" * 11)
        assert transport.aborted

    @pytest.mark.parametrize("limit", [100, 1_000, 100_000])
    @pytest.mark.parametrize("when", ["before", "in a handler", "later"])
    def test_one_push_above_the_limit_is_an_error_at_the_call(self, limit, when):
        """The slow reader is not at fault: the call raises, and the connection stays open."""

        def too_much(chat, message=b""):
            chat.push(b"1")
            for call in (
                lambda: chat.push(bytes(limit + 1)),
                lambda: chat.push(memoryview(bytes(2 * limit + 2)).cast("H")),
                lambda: chat.push_with_producer(bytes(limit + 1)),
                lambda: chat.write(bytes(limit + 1)),
            ):
                with pytest.raises(
                    ValueError, match=rf"\d+ bytes in one push exceed max_unsent, {limit};"
                ):
                    call()
            assert chat.unsent <= 1
            chat.push(b"2" * (limit - 1))

        chat = Chat(too_much if when == "in a handler" else None)
        chat.max_unsent = limit
        if when == "before":
            too_much(chat)
        transport = connected(chat)
        if when == "later":
            too_much(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"x\n")
        assert logs == []
        assert transport.value() == b"1" + b"2" * (limit - 1)
        assert chat.state is State.OPEN

    def test_limits_of_none_are_unlimited(self):
        chat = Chat(lambda chat, message: chat.push(bytes(1 << 20)))
        chat.max_unsent = chat.high_water = None
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.dataReceived(b"m\n" * 20)
        assert len(chat.messages) == 20
        assert chat.unsent == 20 << 20
        assert transport.reads

    def test_large_piece_from_a_producer_does_not_count_as_unsent(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push_with_producer(iter([bytes(20 << 20)]))
        chat.push(b"x")
        assert not transport.aborted
        transport.make_room()
        assert len(transport.value()) == (20 << 20) + 1

    def test_pause_applies_from_the_next_message(self):
        chat = Chat(lambda chat, message: chat.pause() if message == b"2" else None)
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n3\n4")
        assert chat.messages == [b"1", b"2"]
        assert chat.paused
        assert not transport.reads
        chat.dataReceived(b"\n")  # decrypted before
        assert chat.messages == [b"1", b"2"]
        chat.resume()
        assert chat.messages == [b"1", b"2", b"3", b"4"]
        assert transport.reads
        assert not chat.paused

    def test_handler_may_resume_after_it_paused(self):
        def both(chat, message):
            chat.pause()
            chat.resume()

        chat = Chat(both)
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n3\n")
        assert chat.messages == [b"1", b"2", b"3"]
        assert transport.reads

    def test_ten_thousand_pairs_of_pause_and_resume_lose_nothing(self):
        chat = Chat(lambda chat, message: chat.pause())
        connected(chat)
        chat.dataReceived(b"x\n" * 10_000)
        while chat.paused:
            chat.resume()
        assert len(chat.messages) == 10_000

    def test_ten_thousand_pairs_inside_handlers_lose_nothing(self):
        def pairs(chat, message):
            for _ in range(10 if message else 0):
                chat.pause()
                chat.resume()

        chat = Chat(pairs)
        transport = connected(chat)
        chat.dataReceived(b"x\n" * 10_000)
        assert len(chat.messages) == 10_000
        assert transport.reads

    def test_pause_before_the_connection_applies(self):
        chat = Chat()
        chat.pause()
        transport = connected(chat)
        assert not transport.reads
        chat.dataReceived(b"x\n")
        assert chat.events == ["connect"]
        chat.resume()
        assert chat.events == ["connect", b"x"]

    def test_pause_that_ends_before_the_connection_has_no_effect(self):
        chat = Chat()
        chat.pause()
        chat.resume()
        transport = connected(chat)
        assert transport.reads
        chat.dataReceived(b"x\n")
        assert chat.events == ["connect", b"x"]

    def test_a_transport_may_deliver_while_it_is_resumed(self):
        class Holding(Memory):
            @override
            def resumeProducing(self):
                super().resumeProducing()
                chat.dataReceived(b"held\n")

        chat = Chat(lambda chat, message: chat.push(message))
        chat.pause()
        transport = connected(chat, Holding())
        chat.resume()
        assert chat.messages == [b"held"]
        assert transport.value() == b"held"

    def test_high_water_does_not_hold_delivery_while_closing(self):
        """What is pushed now is dropped, and a peer whose input is not read may stop reading."""
        chat = Chat(lambda chat, message: chat.push(message))
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(bytes(100_000))
        assert not transport.reads
        chat.close_when_done()
        assert transport.reads
        chat.dataReceived(b"x\n")
        assert chat.messages == [b"x"]
        assert transport.reads
        transport.make_room()
        assert transport.value() == b"full" + bytes(100_000)
        assert transport.disconnecting

    def test_bytes_queued_before_the_connection_may_exceed_high_water(self):
        chat = Chat()
        chat.push(bytes(1_000_000))
        transport = connected(chat)
        chat.dataReceived(b"x\n")
        assert len(transport.value()) == 1_000_000
        assert chat.messages == [b"x"]
        assert transport.reads

    def test_a_pause_while_closing_stops_reading(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(b"unsent")
        chat.close_when_done()
        chat.pause()
        assert not transport.reads
        chat.resume()
        assert transport.reads
