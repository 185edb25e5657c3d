"""
`AsyncChat` in memory: messages, and where they end.

Also covers `protocol.hooks`, `protocol.settings` and `protocol.state`.
"""

import dataclasses

import attrs
import pytest
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocol,
    IPushProducer,
)
from twisted.logger import LogLevel, capturedLogs
from typing_extensions import override
from zope.interface.verify import verifyObject

from helpers.memory import Chat, connected
from txasynchat import AsyncChat, LengthPrefix, Overflow


class TestInterfaces:
    @pytest.mark.parametrize(
        "interface",
        [IProtocol, IPushProducer, IConsumer, IHalfCloseableProtocol, IHandshakeListener],
    )
    def test_implements_the_declared_interfaces(self, interface):
        assert verifyObject(interface, AsyncChat())


class TestMessages:
    def test_each_message_is_one_call(self):
        chat = Chat()
        connected(chat)
        chat.dataReceived(b"one\ntw")
        chat.dataReceived(b"o\n\n")
        assert chat.events == ["connect", b"one", b"two", b""]

    def test_collect_incoming_data_and_found_terminator_get_the_pieces(self):
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

    def test_collected_data_is_available_without_collect_incoming_data(self):
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

    def test_handler_with_neither_hook_gets_an_error(self):
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

    def test_bytes_received_before_handlers_may_run_are_kept(self):
        class Eager(Chat):
            @override
            def connectionMade(self):
                self.dataReceived(b"early\n")

        chat = Eager()
        connected(chat)
        assert chat.events == ["connect", b"early"]

    def test_bytes_received_while_a_handler_runs_wait_for_it(self):
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

    def test_terminator_as_a_class_attribute_is_inherited(self):
        class First(Chat):
            terminator = b";"

        class Second(First):
            pass

        class Third(Second):
            terminator = b"o"

        assert self.message_of(First) == self.message_of(Second) == [b"one", b"two"]
        assert self.message_of(Third) == [b"", b"ne;tw"]

    def test_terminator_of_a_mixin_applies(self):
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

    def test_terminator_may_be_set_before_the_connection_or_in_a_handler(self):
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

    def test_terminator_of_one_object_does_not_affect_another(self):
        one, other = Chat(), Chat()
        one.terminator = b";"
        assert other.terminator == b"\n"
        assert Chat().terminator == b"\n"

    def test_wrong_terminators_are_refused_where_they_are_set(self):
        with pytest.raises(TypeError, match="'text'"):

            class Wrong(AsyncChat):
                terminator = "text"

        with pytest.raises(ValueError, match="-1"):
            Chat().terminator = -1

    def test_terminator_may_be_a_length_prefix_or_a_tuple(self):
        class Prefixed(Chat):
            terminator = LengthPrefix("!B")

        class Either(Chat):
            terminator = (b";", b"!")

        assert self.message_of(Prefixed, b"\x03one\x00\x02no") == [b"one", b"", b"no"]
        chat = Either()
        connected(chat)
        chat.dataReceived(b"one!")
        assert chat.matched_terminator == b"!"
        chat.set_terminator(2)
        chat.dataReceived(b"on")
        assert chat.matched_terminator == b""

    def test_init_need_not_be_called(self):
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

    def test_handlers_may_be_dataclasses_or_attrs_classes(self):
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

    def test_attributes_may_have_names_that_are_common_in_applications(self):
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
    def test_limits_set_after_the_terminator_apply(self):
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

    def test_bytes_pushed_in_message_too_long_are_sent_before_the_close(self):
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

    def test_exception_in_message_too_long_counts_as_a_handlers(self):
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

    def test_default_limit_is_16_kib_and_none_removes_it(self):
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
