"""
`AsyncChat` in memory: messages, closing, failing, back-pressure.
"""

import dataclasses
import io
import random
import sys

import attrs
import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocol,
    IPullProducer,
    IPushProducer,
    ITransport,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport, StringTransportWithDisconnection
from twisted.logger import LogLevel, capturedLogs
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from typing_extensions import override
from zope.interface import implementer
from zope.interface.verify import verifyObject

from txasynchat import AsyncChat, LengthPrefix, Overflow, ProducerError, State, simple_producer


class Chat(AsyncChat):
    """Lines, each of them remembered; what is to be done with one is the test's choice."""

    terminator = b"\n"

    def __init__(self, on_message=None):
        self.on_message = on_message
        self.events = []

    def handle_connect(self):
        self.events.append("connect")

    def message_received(self, message):
        self.events.append(message)
        if self.on_message is not None:
            self.on_message(self, message)

    def handle_error(self):
        self.events.append(("error", sys.exc_info()[0]))

    def handle_close(self):
        self.events.append("close")

    def message_too_long(self, error):
        self.events.append(("too long", error.count))

    @property
    def messages(self):
        return [event for event in self.events if isinstance(event, bytes)]


class Memory(StringTransport):
    """A transport that says how often it was written to, and can be full."""

    def __init__(self):
        super().__init__()
        self.writes = []
        self.aborted = False
        self.room = None

    @override
    def write(self, data):
        self.writes.append(data)
        super().write(data)
        if self.room is not None:
            self.room -= len(data)
            if self.room <= 0 and self.producer is not None:
                self.producer.pauseProducing()

    def make_room(self, room=None):
        self.room = room
        if self.producer is not None:
            self.producer.resumeProducing()

    @override
    def abortConnection(self):
        self.aborted = True
        super().abortConnection()

    @property
    def reads(self):
        return self.producerState == "producing"


def connected(chat, transport=None):
    transport = Memory() if transport is None else transport
    chat.makeConnection(transport)
    return transport


def lose(chat, reason=ConnectionDone):
    chat.connectionLost(Failure(reason()))


class TestInterfaces:
    @pytest.mark.parametrize(
        "interface",
        [IProtocol, IPushProducer, IConsumer, IHalfCloseableProtocol, IHandshakeListener],
    )
    def test_what_is_declared_is_there(self, interface):
        assert verifyObject(interface, AsyncChat())


class TestMessages:
    def test_each_message_is_one_call(self):
        chat = Chat()
        connected(chat)
        chat.dataReceived(b"one\ntw")
        chat.dataReceived(b"o\n\n")
        assert chat.events == ["connect", b"one", b"two", b""]

    def test_two_calls_for_who_wants_the_pieces(self):
        class Pieces(AsyncChat):
            terminator = b"\r\n"

            def collect_incoming_data(self, data):
                events.append(data)

            def found_terminator(self):
                events.append("end")

        events = []
        chat = Pieces()
        connected(chat)
        chat.dataReceived(b"on")
        chat.dataReceived(b"e\r\ntwo\r")
        chat.dataReceived(b"\n\r\n")
        assert events == [b"on", b"e", "end", b"two", "end", "end"]

    def test_found_terminator_alone_with_the_collected_data(self):
        class Collected(AsyncChat):
            terminator = b"\n"

            def found_terminator(self):
                lines.append(self._get_data())

        lines = []
        chat = Collected()
        connected(chat)
        chat.dataReceived(b"one\ntwo\n\n")
        assert lines == [b"one", b"two", b""]
        assert chat.incoming == []

    def test_a_handler_with_neither_is_told_so(self):
        class Neither(AsyncChat):
            terminator = b"\n"

        chat = Neither()
        connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"x\n")
        assert "overrides neither message_received nor found_terminator" in str(
            logs[0]["log_failure"].value
        )

    def test_an_overridden_get_terminator_is_asked_on_each_round(self):
        class Asked(Chat):
            def get_terminator(self):
                return (b"a", b"b")[len(self.messages) % 2]

        chat = Asked()
        connected(chat)
        chat.dataReceived(b"1a2b3")
        chat.dataReceived(b"a")
        assert chat.messages == [b"1", b"2", b"3"]

    def test_a_million_messages_in_one_chunk(self):
        count = 0

        def counting(chat, message):
            nonlocal count
            count += 1

        chat = Chat(counting)
        chat.events = type("Nothing", (), {"append": lambda *_: None})()
        connected(chat)
        chat.dataReceived(b"\n" * 1_000_000)
        assert count == 1_000_000

    def test_bytes_that_come_before_the_handlers_may_run_are_kept(self):
        class Eager(Chat):
            @override
            def connectionMade(self):
                self.dataReceived(b"early\n")

        chat = Eager()
        connected(chat)
        assert chat.events == ["connect", b"early"]

    def test_bytes_that_come_while_a_handler_runs_wait_for_it(self):
        def nested(chat, message):
            if message == b"1":
                chat.dataReceived(b"3\n")
                chat.dataReceived(b"4\n")
                order.append("1 done")

        order = []
        chat = Chat(nested)
        connected(chat)
        chat.dataReceived(b"1\n2\n")
        assert chat.messages == [b"1", b"2", b"3", b"4"]
        assert order == ["1 done"]


class TestTerminators:
    def message_of(self, cls, data=b"one;two;"):
        chat = cls()
        connected(chat)
        chat.dataReceived(data)
        return chat.messages

    def test_as_a_class_attribute_of_a_class_a_subclass_and_its_subclass(self):
        class First(Chat):
            terminator = b";"

        class Second(First):
            pass

        class Third(Second):
            terminator = b"o"

        assert self.message_of(First) == self.message_of(Second) == [b"one", b"two"]
        assert self.message_of(Third) == [b"", b"ne;tw"]

    def test_of_a_class_mixed_in(self):
        class Semicolon:
            terminator = b";"

        class Mixed(Semicolon, Chat):
            pass

        class Below(Mixed):
            pass

        assert self.message_of(Mixed) == self.message_of(Below) == [b"one", b"two"]
        chat = Mixed()
        chat.terminator = b"x"
        assert chat.get_terminator() == b"x"

    def test_assigned_or_set_before_the_connection_or_in_a_handler(self):
        class Assigned(Chat):
            def __init__(self):
                super().__init__()
                self.terminator = b";"

        class Connecting(Chat):
            def handle_connect(self):
                self.set_terminator(b";")

        class Twisted(Chat):
            @override
            def connectionMade(self):
                self.set_terminator(b";")

        for cls in (Assigned, Connecting, Twisted):
            assert self.message_of(cls) == [b"one", b"two"]

    def test_of_one_object_does_not_touch_another(self):
        one, other = Chat(), Chat()
        one.terminator = b";"
        assert other.terminator == b"\n"
        assert Chat().terminator == b"\n"

    def test_wrong_ones_are_refused_where_they_are_written(self):
        with pytest.raises(TypeError, match="'text'"):

            class Wrong(AsyncChat):
                terminator = "text"

        with pytest.raises(ValueError, match="-1"):
            Chat().terminator = -1

    def test_prefixes_and_tuples(self):
        class Prefixed(Chat):
            terminator = LengthPrefix("!B")

        class Either(Chat):
            terminator = (b";", b"!")

        assert self.message_of(Prefixed, b"\x03one\x00\x02no") == [b"one", b"", b"no"]
        chat = Either()
        connected(chat)
        chat.dataReceived(b"one!")
        assert chat.matched_terminator == b"!"

    def test_no_init_need_be_called(self):
        class Bare(AsyncChat):
            terminator = b"\n"

            def __init__(self, seen):
                self.seen = seen

            def message_received(self, message):
                self.seen.append(message)

        seen = []
        chat = Bare(seen)
        connected(chat)
        chat.dataReceived(b"x\n")
        assert seen == [b"x"]

    def test_dataclasses_and_attrs_classes(self):
        @dataclasses.dataclass
        class Data(AsyncChat):
            terminator = b"\n"
            seen: list = dataclasses.field(default_factory=list)

            def message_received(self, message):
                self.seen.append(message)

        @attrs.define(eq=False)
        class Attrs(AsyncChat):
            terminator = b"\n"
            seen: list = attrs.field(factory=list)

            def message_received(self, message):
                self.seen.append(message)

        for cls in (Data, Attrs):
            chat = cls()
            transport = connected(chat)
            chat.dataReceived(b"x\n")
            chat.push(b"y")
            assert chat.seen == [b"x"]
            assert transport.value() == b"y"

    def test_names_that_applications_use_may_be_used(self):
        class Idioms(Chat):
            def __init__(self, addr):
                super().__init__()
                self.addr = addr
                self.state = "AUTH"
                self.paused = "no"

        chat = Idioms(("127.0.0.1", 7))
        transport = connected(chat)
        chat.dataReceived(b"x\n")
        chat.close_when_done()
        chat.push(b"late")
        assert (chat.addr, chat.state, chat.paused) == (("127.0.0.1", 7), "AUTH", "no")
        assert transport.disconnecting
        assert chat.dropped == 4


class TestLimits:
    def test_set_after_the_terminator_they_hold_all_the_same(self):
        class Late(Chat):
            def __init__(self):
                super().__init__()
                self.set_terminator(b"\n")
                self.max_message_length = 3
                self.overflow = Overflow.SKIP

        chat = Late()
        connected(chat)
        chat.dataReceived(b"four\nfit\n")
        assert chat.events == ["connect", ("too long", 4), b"fit"]

    def test_a_last_word_is_sent_before_the_end(self):
        class LastWord(Chat):
            max_message_length = 3

            def message_too_long(self, error):
                super().message_too_long(error)
                self.push(b"too long\n")

        chat = LastWord()
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"fit\nfour\nnot delivered\n")
        assert chat.events == ["connect", b"fit", ("too long", 4)]
        assert transport.value() == b"too long\n"
        assert transport.disconnecting
        (event,) = logs
        assert event["log_level"] is LogLevel.warn
        assert event["kind"] == "MessageTooLong"
        assert "four" not in repr(event)

    def test_an_exception_in_the_hook_is_one_of_a_handler(self):
        class Failing(Chat):
            max_message_length = 3

            def message_too_long(self, error):
                self.push(b"before\n")
                raise RuntimeError("in the hook")

        chat = Failing()
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"four\n")
        assert [event["log_level"] for event in logs] == [LogLevel.warn, LogLevel.critical]
        assert transport.value() == b"before\n"
        assert transport.disconnecting
        assert chat.events == ["connect", ("error", RuntimeError)]

    def test_the_default_limit_and_none(self):
        chat = Chat()
        connected(chat)
        chat.dataReceived(b"x" * 16_384 + b"\n")
        assert len(chat.messages) == 1
        chat.dataReceived(b"x" * 16_385)
        assert chat.events[-1] == ("too long", 16_385)
        chat = Chat()
        chat.max_message_length = None
        connected(chat)
        chat.dataReceived(b"x" * 1_000_000 + b"\n")
        assert len(chat.messages[0]) == 1_000_000


class TestOutput:
    def test_all_that_one_chunk_makes_is_one_write(self):
        chat = Chat(lambda chat, message: (chat.push(message), chat.push(b"!")))
        transport = connected(chat)
        chat.dataReceived(b"a\nb\nc\n")
        assert transport.writes == [b"a!b!c!"]

    def test_what_is_pushed_before_and_on_connecting_is_one_write(self):
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

    def test_what_is_pushed_from_elsewhere_goes_at_once(self):
        chat = Chat()
        transport = connected(chat)
        chat.push(b"a")
        chat.push(b"b")
        assert transport.writes == [b"a", b"b"]

    def test_what_is_pushed_when_the_transport_wrote_at_once_keeps_its_place(self):
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

    def test_a_transport_with_nothing_but_itransport_will_do(self):
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

    def test_the_user_may_write_to_the_transport_too(self):
        chat = Chat(lambda chat, message: chat.transport.write(b"<" + message + b">"))
        transport = connected(chat)
        chat.dataReceived(b"x\n")
        chat.push(b"y")
        assert transport.value() == b"<x>y"

    def test_an_idle_transport_has_no_producer_and_may_get_another(self):
        chat = Chat(lambda chat, message: chat.push(message))
        transport = connected(chat)
        chat.dataReceived(b"x\n")
        assert transport.producer is None
        FileSender().beginFileTransfer(io.BytesIO(b"file"), transport)
        transport.producer.resumeProducing()
        transport.producer.resumeProducing()
        assert transport.value() == b"xfile"
        assert transport.producer is None

    def test_a_transport_closed_by_the_handler_still_gets_what_was_pushed(self):
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
    def test_nothing_is_taken_while_the_transport_is_full(self):
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

    def test_delivery_and_reading_stop_above_high_water_and_go_on_at_low_water(self):
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

    def test_a_small_high_water_holds_within_one_chunk(self):
        """Looked at before ac_out_buffer_size bytes have come together."""
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
        """It is no slow reader's fault: the call raises, and the connection goes on."""

        def too_much(chat, message=b""):
            chat.push(b"1")
            for call in (
                lambda: chat.push(bytes(limit + 1)),
                lambda: chat.push(memoryview(bytes(2 * limit + 2)).cast("H")),
                lambda: chat.push_with_producer(bytes(limit + 1)),
                lambda: chat.write(bytes(limit + 1)),
            ):
                with pytest.raises(ValueError, match=rf"\d+ bytes at once .* max_unsent, {limit};"):
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

    def test_no_limits_for_who_wants_none(self):
        chat = Chat(lambda chat, message: chat.push(bytes(1 << 20)))
        chat.max_unsent = chat.high_water = None
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.dataReceived(b"m\n" * 20)
        assert len(chat.messages) == 20
        assert chat.unsent == 20 << 20
        assert transport.reads

    def test_a_large_piece_that_a_producer_was_asked_for_is_no_excess(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push_with_producer(iter([bytes(20 << 20)]))
        chat.push(b"x")
        assert not transport.aborted
        transport.make_room()
        assert len(transport.value()) == (20 << 20) + 1

    def test_a_pause_holds_from_the_next_message_on(self):
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

    def test_resume_inside_the_handler_that_paused(self):
        def both(chat, message):
            chat.pause()
            chat.resume()

        chat = Chat(both)
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n3\n")
        assert chat.messages == [b"1", b"2", b"3"]
        assert transport.reads

    def test_ten_thousand_pairs_of_pause_and_resume(self):
        chat = Chat(lambda chat, message: chat.pause())
        connected(chat)
        chat.dataReceived(b"x\n" * 10_000)
        while chat.paused:
            chat.resume()
        assert len(chat.messages) == 10_000

    def test_ten_thousand_pairs_inside_one_handler_and_from_each_message(self):
        def pairs(chat, message):
            for _ in range(10 if message else 0):
                chat.pause()
                chat.resume()

        chat = Chat(pairs)
        transport = connected(chat)
        chat.dataReceived(b"x\n" * 10_000)
        assert len(chat.messages) == 10_000
        assert transport.reads

    def test_a_pause_before_the_connection_holds(self):
        chat = Chat()
        chat.pause()
        transport = connected(chat)
        assert not transport.reads
        chat.dataReceived(b"x\n")
        assert chat.events == ["connect"]
        chat.resume()
        assert chat.events == ["connect", b"x"]

    def test_a_pause_that_ends_before_the_connection_holds_nothing(self):
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

    def test_high_water_holds_nothing_once_the_connection_is_closing(self):
        """What is pushed now is dropped; and a peer that is not read may not read either."""
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

    def test_what_waits_for_the_connection_may_be_more_than_high_water(self):
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


class TestTwistedProducers:
    @implementer(IPushProducer)
    class Pushing:
        def __init__(self, chat):
            self.chat = chat
            self.calls = []

        @override
        def pauseProducing(self):
            self.calls.append("pause")

        @override
        def resumeProducing(self):
            self.calls.append("resume")

        @override
        def stopProducing(self):
            self.calls.append("stop")

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
        producer = self.Pushing(chat)
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

    def test_several_and_bytes_between_them_keep_their_order(self):
        chat = Chat()
        transport = connected(chat)
        first, second = self.Pushing(chat), self.Pushing(chat)
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

    def test_file_sender(self):
        chat = Chat()
        transport = connected(chat)
        sent = FileSender().beginFileTransfer(io.BytesIO(b"x" * 100_000), chat)
        chat.push(b"end")
        assert transport.value() == b"x" * 100_000 + b"end"
        assert sent.called

    def test_each_is_stopped_when_the_connection_is_lost(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        push, pull = self.Pushing(chat), self.Pulling(chat)
        chat.push_with_producer(push)
        chat.push_with_producer(pull)
        lost = FileSender().beginFileTransfer(io.BytesIO(b"x"), chat)
        lost.addErrback(lambda failure: failure.type)
        lose(chat, ConnectionLost)
        assert push.calls[-1] == "stop"
        assert pull.calls == ["stop"]
        assert lost.called

    def test_one_that_comes_too_late_is_stopped_at_once(self):
        for end in (Chat.close, Chat.abort, Chat.close_when_done, lose):
            chat = Chat()
            transport = connected(chat)
            transport.room = 1
            chat.push(b"full")
            chat.push(b"unsent")
            end(chat)
            producer = self.Pushing(chat)
            chat.push_with_producer(producer)
            chat.registerProducer(producer, True)
            assert producer.calls == ["stop", "stop"]
            chat.write(b"late")
            chat.unregisterProducer()
            assert chat.dropped == 4

    def test_close_when_done_waits_for_them(self):
        chat = Chat()
        transport = connected(chat)
        chat.push_with_producer(self.Pushing(chat))
        chat.close_when_done()
        assert not transport.disconnecting
        chat.write(b"still")
        assert not transport.disconnecting
        chat.unregisterProducer()
        assert transport.disconnecting
        assert transport.value() == b"still"

    def test_one_that_fails_when_paused_ends_its_connection_only(self):
        class Failing(self.Pushing):
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
    def test_what_was_before_is_sent_and_the_connection_closes(self):
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

    def test_the_log_shows_where_it_failed(self):
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

    def test_those_behind_it_are_told(self):
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

    def test_handle_error_may_push_a_last_word(self):
        class Apologetic(Chat):
            def handle_error(self):
                self.push(b"sorry")

        chat = Apologetic()
        transport = connected(chat)
        with capturedLogs():
            chat.push_with_producer(iter(["text"]))
        assert transport.value() == b"sorry"
        assert transport.disconnecting

    def test_in_the_middle_of_a_chunk(self):
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
    def test_one_may_end_everything_while_it_is_asked(self, ending):
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


class TestHandlersThatRaise:
    @pytest.mark.parametrize(
        "where",
        ["connectionMade", "handle_connect", "collect_incoming_data", "found_terminator"],
    )
    def test_logged_once_asked_once_and_what_was_pushed_is_sent(self, where):
        def fail(chat, *_arguments):
            chat.push(b"before")
            raise ValueError("in the handler")

        failing = type("Failing", (Chat,), {where: fail})
        chat, other = failing(), Chat()
        other_transport = connected(other)
        with capturedLogs() as logs:
            transport = connected(chat)
            chat.dataReceived(b"x\ny\nz\n")
        (event,) = logs
        assert event["log_level"] is LogLevel.critical
        assert event["log_failure"].type is ValueError
        assert "in the handler" in event["log_failure"].getTraceback()
        assert "fail" in event["log_failure"].getTraceback()
        assert event["peer"] == transport.getPeer()
        assert transport.value() == b"before"
        assert transport.disconnecting
        assert chat.events.count(("error", ValueError)) == 1
        assert chat.state is State.CLOSING
        assert not other_transport.disconnecting
        lose(chat)
        assert chat.events[-1] == "close"

    def test_a_failing_handle_error_is_logged_as_well(self):
        class Failing(Chat):
            def handle_error(self):
                raise KeyError("twice")

        chat = Failing(lambda *_: 1 / 0)
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"x\n")
        assert [event["log_failure"].type for event in logs] == [ZeroDivisionError, KeyError]
        assert transport.disconnecting

    def test_a_failing_handle_close_is_logged(self):
        class Failing(Chat):
            def handle_close(self):
                raise KeyError("late")

        chat = Failing()
        connected(chat)
        with capturedLogs() as logs:
            lose(chat)
        assert [event["log_failure"].type for event in logs] == [KeyError]
        assert chat.state is State.CLOSED

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done", "discard_buffers"])
    def test_handle_error_may_end_it_otherwise(self, ending):
        class Ending(Chat):
            def handle_error(self):
                getattr(self, ending)()

        chat = Ending(lambda *_: 1 / 0)
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"x\ny\n")
        assert len(logs) == 1
        assert chat.messages == [b"x"]
        assert transport.disconnecting
        assert transport.aborted is (ending == "abort")

    def test_what_is_no_exception_leaves(self):
        def leave(chat, message):
            raise SystemExit(3)

        chat = Chat(leave)
        connected(chat)
        with pytest.raises(SystemExit):
            chat.dataReceived(b"x\n")
        chat.on_message = None
        chat.dataReceived(b"y\n")
        assert chat.messages[-1] == b"y"


class TestClosing:
    def test_nothing_is_delivered_after_close(self):
        chat = Chat(lambda chat, message: chat.close() if message == b"2" else None)
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n3\n")
        chat.dataReceived(b"4\n")
        assert chat.messages == [b"1", b"2"]
        assert transport.disconnecting

    def test_nothing_is_delivered_after_close_from_collect_incoming_data(self):
        class Pieces(Chat):
            def collect_incoming_data(self, data):
                self.events.append(data)
                self.close()

            def found_terminator(self):
                self.events.append("end")

        chat = Pieces()
        connected(chat)
        chat.dataReceived(b"1\n2\n")
        assert chat.events == ["connect", b"1"]

    def test_messages_go_on_after_close_when_done_as_in_asynchat(self):
        chat = Chat(lambda chat, message: (chat.push(message), chat.close_when_done()))
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n3\n")
        assert chat.messages == [b"1", b"2", b"3"]
        assert transport.value() == b"1"
        assert chat.dropped == 2
        lose(chat)
        assert chat.events[-1] == "close"

    @pytest.mark.parametrize(
        ("ending", "told"), [("close", False), ("abort", False), ("close_when_done", True)]
    )
    def test_handle_close_is_for_who_did_not_close(self, ending, told):
        chat = Chat()
        transport = connected(chat)
        getattr(chat, ending)()
        getattr(chat, ending)()
        assert transport.disconnecting
        lose(chat)
        lose(chat)
        assert chat.events == ["connect", "close"] if told else ["connect"]
        assert chat.state is State.CLOSED

    @pytest.mark.parametrize(
        ("ending", "expected"),
        [
            ("close", [("end", None)]),
            ("abort", [("end", None)]),
            ("close_when_done", ["close", ("end", None)]),
            ("readConnectionLost", ["close", ("end", None)]),
            ("nothing", ["close", ("end", None)]),
        ],
    )
    def test_every_end_is_told_once_and_last(self, ending, expected):
        """A table of members that `handle_end` leaves keeps nobody who is gone."""

        class Member(Chat):
            def nothing(self):
                pass

            def handle_end(self, reason):
                self.events.append(("end", reason))

        chat = Member()
        connected(chat)
        getattr(chat, ending)()
        lose(chat)
        lose(chat)
        assert chat.events == ["connect", *expected]

    @pytest.mark.parametrize("where", ["connectionMade", "handle_connect", "handle_close"])
    def test_the_end_is_told_when_a_hook_raised(self, where):
        """Half a beginning, or a farewell that fails, leaves nobody in the table."""

        def fail(chat, *_):
            raise ValueError(where)

        ends = []
        hooks = {where: fail, "handle_end": lambda chat, reason: ends.append((chat.state, reason))}
        chat = type("Failing", (Chat,), hooks)()
        with capturedLogs() as logs:
            connected(chat)
            lose(chat)
        assert len(logs) == 1
        assert ends == [(State.CLOSED, None)]

    def test_a_failing_handle_end_is_logged_once(self):
        """The traceback is in the log, and the connection is over all the same."""

        class Failing(Chat):
            def handle_end(self, reason):
                raise KeyError("late")

        chat = Failing()
        connected(chat)
        chat.abort()
        with capturedLogs() as logs:
            lose(chat)
            lose(chat)
        assert [event["log_failure"].type for event in logs] == [KeyError]

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done"])
    @pytest.mark.parametrize(
        "where", ["connectionMade", "handle_connect", "message_received", "handle_close"]
    )
    def test_from_every_handler(self, ending, where):
        def end(chat, *_arguments):
            chat.push(b"x")
            getattr(chat, ending)()

        chat = type("Ending", (Chat,), {where: end})()
        with capturedLogs() as logs:
            transport = connected(chat)
            chat.dataReceived(b"m\nn\n")
            if where == "handle_close":
                lose(chat)
            else:
                assert transport.disconnecting
                assert transport.value() == (b"" if ending == "abort" else b"x")
                assert transport.aborted is (ending == "abort")
                lose(chat)
        assert logs == []
        assert chat.state is State.CLOSED

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done"])
    def test_before_the_connection(self, ending):
        chat = Chat()
        chat.push(b"x")
        getattr(chat, ending)()
        transport = connected(chat)
        assert transport.disconnecting
        assert transport.aborted is (ending == "abort")
        assert transport.value() == (b"" if ending == "abort" else b"x")
        assert "connect" not in chat.events

    def test_every_call_after_the_loss_is_harmless(self):
        closed = []

        def produce():
            try:
                yield b"x"
            finally:
                closed.append(True)

        begun = produce()
        next(begun)
        chat = Chat()
        transport = connected(chat)
        lose(chat)
        before = list(transport.writes)
        chat.push(b"late")
        chat.push_with_producer(begun)
        chat.push_with_producer(b"late")
        chat.write(b"late")
        chat.dataReceived(b"late\n")
        for call in (
            chat.close,
            chat.abort,
            chat.close_when_done,
            chat.close_when_idle,
            chat.discard_buffers,
            chat.pause,
            chat.resume,
            chat.unregisterProducer,
            chat.pauseProducing,
            chat.resumeProducing,
            chat.stopProducing,
            chat.readConnectionLost,
            chat.writeConnectionLost,
        ):
            call()
        chat.set_terminator(b"x")
        assert chat.get_terminator() == b"x"
        assert chat.dropped == 12
        assert closed == [True]
        assert transport.writes == before
        assert not transport.disconnecting
        assert chat.events == ["connect", "close"]
        assert chat.unsent == 0
        assert not chat.connected

    @pytest.mark.parametrize("ending", ["close", "abort", "close_when_done"])
    def test_while_paused(self, ending):
        """A transport that was let go is not asked to read."""
        chat = Chat(lambda chat, message: (chat.pause(), chat.push(b"x"), getattr(chat, ending)()))
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n")
        chat.resume()
        assert transport.disconnecting
        assert chat.messages[0] == b"1"

    def test_connected_as_twisted_has_it(self):
        chat = Chat()
        assert not chat.connected
        connected(chat)
        assert chat.connected
        chat.close()
        assert chat.connected
        lose(chat)
        assert not chat.connected

    def test_discard_buffers_drops_both_ways(self):
        chat = Chat(lambda chat, message: chat.discard_buffers() if message == b"2" else None)
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(b"unsent")
        chat.dataReceived(b"1\n2\n3\n4")
        assert chat.unsent == 0
        transport.make_room()
        chat.dataReceived(b"5\n")
        chat.push(b"new")
        assert chat.messages == [b"1", b"2", b"5"]
        assert transport.value() == b"fullnew"

    def test_discard_buffers_while_closing_closes(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(b"unsent")
        chat.close_when_done()
        assert not transport.disconnecting
        chat.discard_buffers()
        transport.make_room()
        assert transport.disconnecting
        assert transport.value() == b"full"

    def test_a_transport_that_is_lost_at_once(self):
        chat = Chat(lambda chat, message: (chat.push(b"x"), chat.abort()))
        transport = StringTransportWithDisconnection()
        transport.protocol = chat
        transport.abortConnection = transport.loseConnection
        connected(chat, transport)
        with capturedLogs() as logs:
            chat.dataReceived(b"1\n2\n")
        assert logs == []
        assert chat.events == ["connect", b"1"]
        assert chat.state is State.CLOSED

    def test_lost_while_a_handler_runs(self):
        def lost(chat, message):
            lose(chat, ConnectionLost)
            chat.push(b"late")

        chat = Chat(lost)
        transport = connected(chat)
        with capturedLogs() as logs:
            chat.dataReceived(b"1\n2\n")
        assert logs == []
        assert chat.events == ["connect", b"1", "close"]
        assert transport.value() == b""

    def test_at_the_end_of_the_peer_the_answers_are_sent_then_it_closes(self):
        chat = Chat(lambda chat, message: chat.push(message))
        transport = connected(chat)
        chat.dataReceived(b"1\n2\nunfinished")
        chat.readConnectionLost()
        assert transport.value() == b"12"
        assert transport.disconnecting

    def test_at_the_end_of_the_peer_a_paused_handler_has_its_time(self):
        chat = Chat(lambda chat, message: chat.pause())
        transport = connected(chat)
        chat.dataReceived(b"1\n2\n")
        chat.readConnectionLost()
        assert not transport.disconnecting
        chat.push(b"answer 1")
        chat.resume()
        assert not transport.disconnecting
        chat.push(b"answer 2")
        chat.resume()
        assert transport.disconnecting
        assert transport.value() == b"answer 1answer 2"

    def test_close_when_idle_ends_after_a_message_that_is_not_answered(self):
        chat = Chat()
        transport = connected(chat)
        chat.dataReceived(b"the last mess")
        chat.close_when_idle()
        assert not transport.disconnecting
        chat.dataReceived(b"age\n")
        assert chat.messages == [b"the last message"]
        assert transport.disconnecting

    def test_at_the_end_of_the_peer_a_producer_goes_on(self):
        chat = Chat()
        transport = connected(chat)
        transport.room = 1
        chat.push_with_producer(iter([b"x" * 100_000] * 3))
        chat.readConnectionLost()
        assert not transport.disconnecting
        transport.make_room()
        assert transport.disconnecting
        assert len(transport.value()) == 300_000


class TestCloseTimeout:
    def closing(self, **settings):
        chat = Chat()
        chat.clock = Clock()
        for name, value in settings.items():
            setattr(chat, name, value)
        transport = connected(chat)
        transport.room = 1
        chat.push(b"full")
        chat.push(b"x" * 300_000)
        return chat, transport

    @pytest.mark.parametrize("ending", ["close", "close_when_done"])
    def test_a_peer_that_takes_nothing_is_cut(self, ending):
        chat, transport = self.closing(close_timeout=5)
        getattr(chat, ending)()
        assert not transport.disconnecting
        with capturedLogs() as logs:
            chat.clock.advance(4.9)
            assert not transport.aborted
            chat.clock.advance(0.2)
        assert transport.aborted
        (event,) = logs
        assert event["kind"] == "CloseTimedOut"
        assert event["error"] == "no progress for 5 s while closing, 300000 bytes dropped"
        assert chat.clock.getDelayedCalls() == []

    def test_a_peer_that_takes_little_but_something_is_not_cut(self):
        chat, transport = self.closing(close_timeout=5)
        chat.close_when_done()
        for _ in range(4):
            chat.clock.advance(4.9)
            transport.make_room(1)
        assert not transport.aborted
        assert not transport.disconnecting
        transport.make_room()
        assert transport.disconnecting
        assert len(transport.value()) == 300_004
        lose(chat)
        assert chat.clock.getDelayedCalls() == []

    def test_a_transport_that_does_not_close_is_cut(self):
        chat = Chat()
        chat.clock = Clock()
        transport = connected(chat)
        chat.close()
        assert transport.disconnecting
        chat.clock.advance(10)
        assert transport.aborted

    def test_none_waits_for_ever(self):
        chat, transport = self.closing(close_timeout=None)
        chat.close()
        assert chat.clock.getDelayedCalls() == []
        assert not transport.aborted

    def test_a_producer_that_is_never_done_does_not_keep_a_closing_connection(self):
        chat = Chat()
        chat.clock = Clock()
        transport = connected(chat)
        chat.push_with_producer(TestTwistedProducers.Pushing(chat))
        chat.close()
        chat.clock.advance(10)
        assert transport.aborted


class Erratic(Chat):
    """Does something random in each handler, and keeps the books."""

    terminator = b"\n"

    def __init__(self, chance):
        super().__init__()
        self.chance = chance
        self.accepted = []
        self.ended = False
        self.depth = 0
        self.high_water = chance.choice([None, 0, 10, 1_000])
        self.low_water = chance.choice([0, 5])
        self.ac_out_buffer_size = chance.choice([1, 7, 100, 65_536])
        self.clock = Clock()

    def do_something(self):
        action = self.chance.randrange(14)
        number = self.chance.randrange(100)
        data = b"<%d>" % number
        if action < 6:
            self.accept(data)
            self.push(data)
        elif action == 6:
            self.accept(data)
            self.push_with_producer(simple_producer(data, 2))
        elif action == 7:
            self.accept(data * 2)
            self.push_with_producer(self.produce(data))
        elif action == 8:
            self.accept(data)
            FileSender().beginFileTransfer(io.BytesIO(data), self).addErrback(lambda _: None)
        elif action == 9:
            self.pause()
        elif action == 10:
            self.resume()
        elif action == 11 and self.depth < 3:
            self.depth += 1
            self.do_something()
            self.do_something()
            self.depth -= 1
        elif action == 12 and number < 10:
            self.ended = True
            self.close_when_done()
        elif action == 13 and number < 10:
            self.ended = True
            self.close()

    def produce(self, data):
        yield data
        if self.chance.random() < 0.5 and self.depth < 3:
            self.depth += 1
            self.do_something()
            self.depth -= 1
        yield data

    def accept(self, data):
        if not self.ended:
            self.accepted.append(data)

    def handle_connect(self):
        super().handle_connect()
        self.do_something()

    def message_received(self, message):
        super().message_received(message)
        self.do_something()


class TestRandomPrograms:
    def run(self, seed):
        chance = random.Random(seed)
        chat = Erratic(chance)
        if chance.random() < 0.3:
            chat.do_something()
        transport = Memory()
        transport.room = chance.choice([None, 1, 20, 200])
        connected(chat, transport)
        lines = b"".join(b"%d\n" % number for number in range(chance.randrange(40)))
        fed = 0
        while fed < len(lines):
            action = chance.randrange(6)
            if action < 3:
                # What a transport that is not to be read holds back, as a socket does.
                if transport.reads:
                    size = chance.randrange(1, 20)
                    chat.dataReceived(lines[fed : fed + size])
                    fed += size
                elif chance.random() < 0.5:
                    chat.resume()
            elif action == 3:
                transport.make_room(chance.choice([None, 1, 20, 200]))
            elif action == 4:
                chat.do_something()
            else:
                chat.resume()
            if transport.disconnecting:
                break
            if not transport.reads:
                transport.make_room(20)
        for _ in range(2_000):
            if transport.disconnecting or not (chat.paused or transport.producer):
                break
            chat.resume()
            transport.make_room()
        return chat, transport, lines

    @pytest.mark.parametrize("block", range(10))
    def test_nothing_is_lost_stuck_or_out_of_order(self, block):
        for seed in range(block * 300, block * 300 + 300):
            with capturedLogs() as logs:
                chat, transport, lines = self.run(seed)
            assert logs == [], seed
            assert transport.value() == b"".join(chat.accepted), seed
            assert transport.disconnecting is chat.ended, seed
            assert not transport.aborted, seed
            assert transport.producer is None, seed
            if not chat.ended:
                assert chat.messages == lines.split(b"\n")[:-1], seed
                assert transport.reads
            lose(chat)
            assert chat.clock.getDelayedCalls() == [], seed


class Chaotic(Erratic):
    """Fails and breaks off as well."""

    def __init__(self, chance):
        super().__init__(chance)
        self.open_producers = 0
        self.closed_by_us = False

    def do_something(self):
        number = self.chance.randrange(60)
        if number == 0:
            raise ValueError("chaos")
        if number == 1:
            self.abort()
        elif number == 2:
            self.close()
        elif number == 3:
            self.discard_buffers()
        elif number == 4:
            lose(self, self.chance.choice([ConnectionDone, ConnectionLost]))
        elif number == 5:
            self.push_with_producer(self.failing())
        elif number == 6:
            self.push_with_producer(iter(["text"]))
        elif number == 7:
            FileSender().beginFileTransfer(FailingFile(), self).addErrback(lambda _: None)
        else:
            super().do_something()

    def close(self):
        self.closed_by_us |= self.state is not State.CLOSED
        super().close()

    def abort(self):
        self.closed_by_us |= self.state is not State.CLOSED
        super().abort()

    def produce(self, data):
        self.open_producers += 1
        try:
            yield data
            if self.chance.random() < 0.5 and self.depth < 3:
                self.depth += 1
                try:
                    self.do_something()
                finally:
                    self.depth -= 1
            yield data
        finally:
            self.open_producers -= 1

    def failing(self):
        yield b"good"
        raise OSError("chaos")

    def handle_close(self):
        super().handle_close()
        if self.chance.random() < 0.2:
            raise ValueError("chaos")

    def handle_error(self):
        super().handle_error()
        self.do_something()


class FailingFile(io.RawIOBase):
    @override
    def read(self, size=-1):
        raise OSError("chaos")


class TestChaos:
    @pytest.mark.parametrize("block", range(10))
    def test_whatever_happens_nothing_escapes_and_everything_ends(self, block):
        for seed in range(block * 300, block * 300 + 300):
            chance = random.Random(seed)
            chat = Chaotic(chance)
            transport = Memory()
            transport.room = chance.choice([None, 1, 20])
            with capturedLogs() as logs:
                connected(chat, transport)
                for _ in range(30):
                    action = chance.randrange(5)
                    if chat.state is State.CLOSED:
                        break
                    if action < 2 and not transport.disconnecting:
                        chat.dataReceived(b"%d\n" % action * chance.randrange(6))
                    elif action == 2:
                        transport.make_room(chance.choice([None, 1, 20]))
                    elif action == 3:
                        chat.readConnectionLost()
                    else:
                        chat.resume()
                lose(chat)
            handled = len(chat.events)
            chat.dataReceived(b"late\n")
            chat.resume()
            transport.make_room()
            assert len(chat.events) == handled, seed
            assert chat.events.count("close") == (not chat.closed_by_us), seed
            assert chat.state is State.CLOSED, seed
            assert chat.unsent == 0, seed
            assert chat.open_producers == 0, seed
            assert chat.clock.getDelayedCalls() == [], seed
            for event in logs:
                failure = event.get("log_failure")
                if failure is not None:
                    assert "chaos" in str(failure.value) or "not str" in str(failure.value), seed
                else:
                    assert "kind" in event or "error" in event, seed
