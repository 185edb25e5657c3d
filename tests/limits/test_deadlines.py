"""
Who takes too long is told so, and ends: in memory, where a clock says what is early and what is late.

Also covers `limits.modes` and `protocol.limited`.
"""

import weakref

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from typing_extensions import override

from helpers.memory import Chat, Memory
from txasynchat import ChatFactory, Limits, State
from txasynchat.connections import Connections, WatchedFactory
from txasynchat.errors import TimedOut
from txasynchat.functions import class_of
from txasynchat.limits.deadlines import begin, throttle
from txasynchat.transports import TLSBase

KINDS = ("first_message", "idle", "message", "write_stall", "session")


class Timed(Chat):
    """Notes the deadlines that pass, when, and says a last word."""

    clock = None

    @override
    def handle_timeout(self, kind):
        self.events.append((kind, self.clock.seconds()))
        self.push(b"bye\n")

    @override
    def handle_end(self, reason):
        self.events.append(("end", reason))


class Start:
    """A connection in memory, and its clock."""

    def __init__(self, handler=Timed, transport=None, **limits):
        self.clock = Clock()
        self.clock.advance(1000)
        handler.clock = self.clock
        self.factory = ChatFactory(handler, limits=Limits(**limits))
        self.chat = self.factory.buildProtocol(None)
        self.transport = transport or Memory()
        self.transport.protocol = self.chat
        self.chat.makeConnection(self.transport)

    def wait(self, seconds, step=0.25):
        """Let time pass; in small steps, as a reactor does."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(step, end - self.clock.seconds()))

    def passed(self):
        """When which deadline passed, in seconds from the start."""
        return [
            (event[0], event[1] - 1000)
            for event in self.chat.events
            if isinstance(event, tuple) and event[0] in KINDS
        ]


def in_time(passed, kind, seconds):
    ((found, moment),) = passed
    assert found == kind
    assert seconds <= moment <= seconds * 1.5 + 0.25


class TestTheFirstMessage:
    def test_a_client_that_says_nothing_hears_a_last_word_and_is_closed(self):
        start = Start(first_message=8)
        start.wait(7.9)
        assert start.passed() == []
        start.wait(4)
        in_time(start.passed(), "first_message", 8)
        assert start.transport.value() == b"bye\n"
        assert start.transport.disconnecting
        assert isinstance(start.chat.close_reason, TimedOut)
        assert start.chat.close_reason.kind == "first_message"

    def test_half_a_message_is_not_one(self):
        start = Start(first_message=8)
        for _ in range(9):
            start.chat.dataReceived(b"x")
            start.wait(1)
        start.wait(3)
        in_time(start.passed(), "first_message", 8)

    @pytest.mark.parametrize("message", [b"hello\n", b"\n"])
    def test_it_is_over_with_the_first_message(self, message):
        start = Start(first_message=8)
        start.wait(7)
        start.chat.dataReceived(message)
        start.wait(1000)
        assert start.passed() == []
        assert start.chat.messages == [message[:-1]]

    def test_it_is_over_when_the_handler_has_said_something(self):
        start = Start(first_message=8)
        start.wait(5)
        start.chat.push(b"news\n")
        start.wait(1000)
        assert start.passed() == []

    def test_a_handler_without_a_terminator_waits_for_no_message(self):
        handler = type("Bare", (Timed,), {"terminator": None, "message_received": None})
        start = Start(handler, first_message=8)
        start.wait(1000)
        assert start.passed() == []

    def test_it_is_over_when_the_handler_takes_its_terminator_away(self):
        start = Start(first_message=8)
        start.wait(5)
        start.chat.set_terminator(None)
        start.wait(1000)
        assert start.passed() == []

    def test_a_frame_of_known_length_is_a_message_too(self):
        handler = type("Frames", (Timed,), {"terminator": 3})
        start = Start(handler, first_message=8)
        start.chat.dataReceived(b"abc")
        start.wait(100)
        assert start.passed() == []


class TestIdle:
    def test_a_connection_without_a_byte_either_way_is_closed(self):
        start = Start(idle=100)
        start.wait(99)
        assert start.passed() == []
        start.wait(52)
        in_time(start.passed(), "idle", 100)

    def test_each_byte_counts_in_either_direction(self):
        start = Start(idle=100)
        for _ in range(10):
            start.wait(90)
            start.chat.dataReceived(b"x")
            start.wait(90)
            start.chat.push(b"y")
        assert start.passed() == []
        start.wait(150)
        assert len(start.passed()) == 1

    def test_a_handler_that_is_at_work_is_not_idle(self):
        start = Start(idle=10)
        start.chat.pause()
        start.wait(100)
        assert start.passed() == []
        start.chat.resume()
        start.wait(20)
        assert len(start.passed()) == 1


class TestAMessage:
    def test_one_that_dribbles_in_is_not_waited_for(self):
        start = Start(message=60, minimum_rate=500)
        for _ in range(70):
            start.chat.dataReceived(b"x")
            start.wait(1)
        start.wait(20)
        in_time(start.passed(), "message", 60)

    def test_a_long_one_that_comes_fast_enough_is(self):
        handler = type("Long", (Timed,), {"max_message_length": None})
        start = Start(handler, message=60, minimum_rate=500)
        for _ in range(200):
            start.chat.dataReceived(b"x" * 600)
            start.wait(1)
        assert start.passed() == []
        start.chat.dataReceived(b"\n")
        assert len(start.chat.messages[0]) == 120_000
        start.wait(1000)
        assert start.passed() == []

    def test_a_long_one_that_comes_too_slowly_is_not(self):
        handler = type("Long", (Timed,), {"max_message_length": None})
        start = Start(handler, message=60, minimum_rate=500)
        for _ in range(90):
            start.chat.dataReceived(b"x" * 400)
            start.wait(1)
        in_time(start.passed(), "message", 60)

    def test_without_a_rate_none_lasts_longer(self):
        handler = type("Long", (Timed,), {"max_message_length": None})
        start = Start(handler, message=60, minimum_rate=None)
        for _ in range(90):
            start.chat.dataReceived(b"x" * 100_000)
            start.wait(1)
        in_time(start.passed(), "message", 60)

    def test_many_that_come_one_after_the_other_are_not_one(self):
        """At each look some message has begun, but never the same."""
        start = Start(message=60, minimum_rate=500)
        for number in range(300):
            start.chat.dataReceived(b"\n" + b"x" * (number % 50 + 1))
            start.wait(1)
        assert start.passed() == []

    def test_time_that_the_handler_takes_does_not_count(self):
        start = Start(message=60)
        start.chat.dataReceived(b"x")
        start.chat.pause()
        start.wait(100)
        start.chat.resume()
        start.wait(50)
        assert start.passed() == []


class TestAPeerThatDoesNotRead:
    def full(self, **limits):
        transport = Memory()
        transport.room = 0
        start = Start(transport=transport, **limits)
        start.chat.push(b"x" * 10_000)
        start.chat.push(b"x" * 90_000)
        return start

    def test_it_is_aborted_whatever_is_queued(self):
        start = self.full(write_stall=30, minimum_rate=500)
        start.wait(29)
        assert not start.transport.aborted
        start.wait(20)
        in_time(start.passed(), "write_stall", 30)
        assert start.transport.aborted
        assert start.chat.close_reason.kind == "write_stall"

    def test_one_that_reads_a_little_is_aborted_too(self):
        handler = type("Small", (Timed,), {"ac_out_buffer_size": 100})
        start = Start(handler, transport=Memory(), write_stall=30, minimum_rate=500)
        start.transport.room = 0
        start.chat.push(b"x" * 50_000)
        for _ in range(50):
            start.transport.make_room(100)
            start.wait(1)
        in_time(start.passed(), "write_stall", 30)

    def test_one_that_reads_fast_enough_gets_everything(self):
        handler = type("Small", (Timed,), {"ac_out_buffer_size": 1000})
        start = Start(handler, transport=Memory(), write_stall=30, minimum_rate=500)
        start.transport.room = 0
        start.chat.push(b"x" * 200_000)
        start.chat.close()
        for _ in range(200):
            start.transport.make_room(1000)
            start.wait(1)
        assert start.passed() == []
        assert len(start.transport.value()) == 200_000
        assert not start.transport.aborted

    def test_one_that_is_to_be_closed_politely_is_aborted_in_the_end(self):
        start = self.full(session=100)
        start.wait(99)
        assert not start.transport.aborted
        start.wait(80)
        in_time(start.passed(), "session", 100)
        assert start.transport.aborted


class TestAStream:
    """The function waits for the peer, or is at work; the peer is only to blame for the first."""

    class Reading(Timed):
        message_received = None

        async def handle_connect(self):
            stream = self.stream()
            while line := await self.read(stream):
                self.events.append(line)
                if line == b"work":
                    self.work = Deferred()
                    await self.work

        async def read(self, stream):
            return await stream.read_until()

    class Pieces(Reading):
        async def read(self, stream):
            return await stream.read()

    def test_one_that_reads_is_idle(self):
        start = Start(self.Reading, idle=10)
        start.wait(16)
        in_time(start.passed(), "idle", 10)
        assert start.transport.value() == b"bye\n"

    def test_one_that_works_is_not(self):
        start = Start(self.Reading, idle=10)
        start.chat.dataReceived(b"work\n")
        start.wait(100)
        assert start.passed() == []
        start.chat.work.callback(None)
        start.wait(16)
        assert len(start.passed()) == 1

    def test_a_silent_one_is_waited_for_until_the_first_message(self):
        start = Start(self.Reading, first_message=8)
        start.chat.dataReceived(b"hel")
        start.wait(13)
        in_time(start.passed(), "first_message", 8)
        start = Start(self.Reading, first_message=8)
        start.chat.dataReceived(b"hello\n")
        start.wait(100)
        assert start.passed() == []

    def test_bytes_as_they_come_are_something_too(self):
        start = Start(self.Pieces, first_message=8)
        start.chat.dataReceived(b"hel")
        start.wait(100)
        assert start.passed() == []

    def test_a_message_that_dribbles_in_is_not_waited_for(self):
        start = Start(self.Reading, message=60)
        for _ in range(90):
            start.chat.dataReceived(b"x")
            start.wait(1)
        in_time(start.passed(), "message", 60)

    @pytest.mark.parametrize("kind", ["hook", "function"])
    def test_it_is_not_the_coroutine_s_error_that_the_peer_was_too_late(self, kind):
        """Logged once, in one line; no traceback, and no `handle_error`."""

        async def function(stream):
            async for line in stream:
                stream.write(line)

        with capturedLogs() as logs:
            start = Start(self.Reading if kind == "hook" else class_of(function), session=2)
            start.wait(4)
        assert [(event.get("kind"), event.get("limit")) for event in logs] == [
            ("TimedOut", "session")
        ]
        assert start.transport.disconnecting
        assert ("error", TimedOut) not in getattr(start.chat, "events", ())

    def test_many_messages_are_not_one(self):
        start = Start(self.Reading, message=60)
        for number in range(300):
            start.chat.dataReceived(b"x\n" + b"x" * (number % 50 + 1))
            start.wait(1)
        assert start.passed() == []


class TestASession:
    def test_a_busy_one_ends_as_well(self):
        start = Start(session=100, idle=10)
        for _ in range(130):
            start.chat.dataReceived(b"x\n")
            start.wait(1)
        in_time(start.passed(), "session", 100)
        assert start.transport.disconnecting

    def test_a_last_word_that_raises_ends_it_all_the_same(self):
        handler = type("Raises", (Timed,), {"handle_timeout": lambda *_: 1 / 0})
        start = Start(handler, session=10)
        with capturedLogs() as logs:
            start.wait(20)
        assert [e["log_failure"].type for e in logs if "log_failure" in e] == [ZeroDivisionError]
        assert start.chat.state is State.CLOSING

    def test_a_last_word_that_is_never_said_ends_it_all_the_same(self):
        async def never(self, kind):
            from twisted.internet.defer import Deferred

            await Deferred()

        start = Start(type("Never", (Timed,), {"handle_timeout": never}), session=10)
        start.wait(40)
        assert start.transport.aborted


@pytest.mark.parametrize("kind", KINDS)
def test_no_timer_is_left_when_the_connection_is_gone(kind):
    start = Start(**{kind: 10})
    assert len(start.clock.getDelayedCalls()) == 1
    start.transport.loseConnection()
    start.chat.connectionLost()
    assert start.clock.getDelayedCalls() == []
    assert len(start.factory.connections) == 0


def test_nothing_is_done_where_nothing_is_limited():
    assert Start().clock.getDelayedCalls() == []
    assert Start(idle=None, session=None).clock.getDelayedCalls() == []


def test_a_peer_on_this_machine_has_no_deadlines():
    transport = StringTransport(peerAddress=UNIXAddress(b"/x"))
    start = Start(transport=transport, idle=10, session=10)
    assert start.clock.getDelayedCalls() == []


class Other(Protocol):
    """Any protocol of Twisted's."""

    clock = None
    received = b""

    @override
    def dataReceived(self, data):
        self.received += data


class Handshaking(StringTransport, TLSBase):
    """TLS whose handshake takes its time."""

    is_secure = False


class TestAnyOtherProtocol:
    def test_the_first_byte_is_waited_for(self):
        start = Start(Other, transport=StringTransport(), first_message=8)
        start.wait(7.5)
        assert not start.transport.disconnecting
        start.wait(4)
        assert start.transport.disconnecting

    def test_it_may_be_any_byte(self):
        start = Start(Other, transport=StringTransport(), first_message=8)
        start.wait(7)
        start.chat.dataReceived(b"x")
        start.wait(100)
        assert not start.transport.disconnecting
        assert start.chat.received == b"x"

    def test_the_time_for_it_begins_after_the_handshake_of_tls(self):
        start = Start(Other, transport=Handshaking(), first_message=8)
        start.wait(100)
        assert not start.transport.disconnecting
        start.transport.is_secure = True
        start.wait(7)
        assert not start.transport.disconnecting
        start.wait(5)
        assert start.transport.disconnecting

    def test_an_idle_one_hears_of_it_if_it_can(self):
        kinds = []
        hook = {"handle_timeout": lambda _, kind: kinds.append(kind)}
        start = Start(type("Hears", (Other,), hook), transport=StringTransport(), idle=100)
        for _ in range(5):
            start.wait(90)
            start.chat.dataReceived(b"x")
        assert not start.transport.disconnecting
        throttle.forget()
        with capturedLogs() as logs:
            start.wait(150)
        assert kinds == ["idle"]
        assert [(event["kind"], event["limit"]) for event in logs] == [("TimedOut", "idle")]
        assert start.transport.disconnecting

    def test_one_that_does_not_end_is_aborted(self):
        start = Start(Other, transport=Memory(), session=10)
        start.wait(14)
        assert start.transport.disconnecting
        assert not start.transport.aborted
        start.wait(20)
        assert start.transport.aborted

    def test_one_whose_bytes_nobody_can_notice_is_not_taken_for_idle(self):
        class Fixed:
            __slots__ = ()

        clock = Clock()
        transport = StringTransport()
        deadlines = begin(Fixed(), transport, Limits(idle=10), clock=clock)
        for _ in range(100):
            clock.advance(1)
        assert not transport.disconnecting
        deadlines.end()
        assert clock.getDelayedCalls() == []

    def test_nothing_is_left_of_it_in_the_protocol(self):
        start = Start(Other, transport=StringTransport(), first_message=8, idle=10)
        start.chat.connectionLost()
        assert not {"dataReceived", "connectionLost", "makeConnection"} & set(vars(start.chat))
        assert start.clock.getDelayedCalls() == []


class TestModes:
    """One part of a conversation may have other limits than the rest."""

    def test_a_call_holds_until_the_next_one(self):
        start = Start(idle=100, message=10)
        start.chat.set_limits(message=60, max_message_length=1 << 20)
        assert start.chat.max_message_length == 1 << 20
        start.chat.dataReceived(b"x" * 100_000)
        start.wait(55)
        assert start.passed() == []
        start.chat.dataReceived(b"\n")
        start.chat.set_limits()
        assert start.chat.max_message_length == 16_384
        start.chat.dataReceived(b"x")
        start.wait(20)
        assert [kind for kind, _ in start.passed()] == ["message"]

    def test_a_block_ends_with_what_held_before(self):
        start = Start(idle=100)
        start.chat.set_limits(idle=50, max_message_length=5)
        with start.chat.set_limits(idle=None, max_message_length=None):
            assert start.chat.max_message_length is None
            start.wait(1000)
        assert start.chat.max_message_length == 5
        start.wait(80)
        assert [kind for kind, _ in start.passed()] == ["idle"]

    def test_blocks_that_end_out_of_order_leave_nothing(self):
        """Two coroutines of one connection may each have theirs."""
        chat = Start(idle=100).chat
        first = chat.set_limits(max_message_length=5)
        second = chat.set_limits(max_message_length=6)
        for one in (first, second):
            with one:
                pass
        assert chat.max_message_length == 16_384

    def test_those_of_earlier_calls_are_not_kept(self):
        """A peer that asks for it would take ever more memory."""
        chat = Start(idle=100).chat
        kept = []
        for _ in range(3):
            chat.set_limits(idle=50)
            kept.append(weakref.ref(chat._mode.limits))
        assert [one() is None for one in kept] == [True, False, False]

    def test_shorter_ones_hold_at_once(self):
        start = Start(idle=1000)
        start.wait(20)
        start.chat.set_limits(idle=10)
        start.wait(1)
        assert start.passed() == [("idle", pytest.approx(20, abs=1))]

    def test_they_may_be_the_only_ones(self):
        start = Start()
        start.chat.set_limits(idle=10)
        start.wait(16)
        assert [kind for kind, _ in start.passed()] == ["idle"]
        start.chat.connectionLost()
        assert start.clock.getDelayedCalls() == []

    def test_they_may_be_set_before_the_connection_is_there(self):
        class Early(Timed):
            def handle_connect(self):
                self.set_limits(idle=10)

        for limits in ({}, {"idle": 1000}):
            start = Start(Early, **limits)
            start.wait(16)
            assert [kind for kind, _ in start.passed()] == ["idle"]
            start.chat.connectionLost()
            assert start.clock.getDelayedCalls() == []

    def test_a_wrong_one_changes_nothing(self):
        start = Start(idle=10)
        with pytest.raises(ValueError, match="idle must be a number above 0"):
            start.chat.set_limits(idle=-1)
        with pytest.raises(TypeError):
            start.chat.set_limits(idel=1)
        assert start.chat.max_message_length == 16_384


def test_limits_of_a_factory_within_another_s_policy_give_way_to_those_outside():
    clock = Clock()
    Timed.clock = clock
    inner = ChatFactory(Timed, limits=Limits(idle=100, session=50))
    factory = WatchedFactory(WrappingFactory(inner), Connections(), Limits(idle=10), None)
    protocol = factory.buildProtocol(None)
    transport = Memory()
    transport.protocol = protocol
    protocol.makeConnection(transport)
    assert len(clock.getDelayedCalls()) == 1
    for _ in range(16):
        clock.advance(1)
    chat = protocol.wrappedProtocol
    assert [event[0] for event in chat.events if event[0] in KINDS] == ["idle"]
    protocol.connectionLost(Failure(ConnectionDone()))
    assert clock.getDelayedCalls() == []
