"""
What comes and is not a message: when it is noticed, and what becomes of its connection.
"""

import sys

import pytest
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher

from txasynchat import AsyncChat, LengthPrefix, MalformedMessage, MessageTooLong, Netstring, State
from txasynchat.framing import Framer, Overflow
from txasynchat.testing import check_cuts, run


class Strings(AsyncChat):
    terminator = Netstring(limit=1000)

    def message_received(self, message):
        self.push(b"got %d\n" % len(message))

    def handle_error(self):
        self.push(b"error\n")

    def handle_end(self, reason):
        self.reason = reason


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"x", "a netstring does not begin with its length"),
        (b":,", "a netstring does not begin with its length"),
        (b"01:a,", "a netstring does not begin with its length"),
        (b"00:,", "a netstring does not begin with its length"),
        (b"-1:a,", "a netstring does not begin with its length"),
        (b"1 :a,", "a netstring does not begin with its length"),
        (b"1" * 100_000, "the length of a netstring has more than 20 digits"),
        (b"3:abcd", "no ',' behind a message"),
        (b"0:x", "no ',' behind a message"),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_netstring_that_is_none_ends_the_connection_and_says_why(data, problem):
    """What was answered before is sent, and so is what `handle_error` pushes."""
    chat = Strings()
    transport = StringTransport()
    chat.makeConnection(transport)
    chat.dataReceived(b"2:ab,")
    for byte in data[:30]:
        chat.dataReceived(bytes([byte]))
    chat.dataReceived(data[30:] + b"2:ab,")
    assert transport.value() == b"got 2\nerror\n"
    assert str(chat.close_reason) == f"malformed message: {problem}"
    assert chat.state is not State.OPEN


@pytest.mark.parametrize("data", [b"2:ab,3:abcd,2:ab,", b"2:ab,0x:,2:ab,"])
def test_malformed_message_is_the_same_however_it_is_cut(data):
    outcome = check_cuts(Strings, data)
    assert [call for call in outcome.calls if call[0] == "message_received"] == [
        ("message_received", b"ab")
    ]


def test_length_is_refused_before_a_byte_of_its_message_comes():
    outcome = run(Strings(), [b"1001:"])
    [error] = [call[1] for call in outcome.calls if call[0] == "message_too_long"]
    assert isinstance(error, MessageTooLong)
    assert (error.limit, error.count) == (1000, 1001)
    assert outcome.state is not State.OPEN


def test_netstring_that_is_too_long_is_skipped_with_its_comma():
    class Skipping(Strings):
        overflow = Overflow.SKIP

    outcome = check_cuts(Skipping, b"1:a,1001:" + b"," * 1001 + b",2:ab,")
    assert outcome.sent == b"got 1\ngot 2\n"


def test_pieces_come_before_the_comma_does():
    class Pieces(AsyncChat):
        terminator = Netstring()

        def collect_incoming_data(self, data):
            self.push(data)

        def found_terminator(self):
            self.push(b"!")

    transport = StringTransport()
    chat = Pieces()
    chat.makeConnection(transport)
    for sent, answer in [(b"4:ab", b"ab"), (b"cd", b"cd"), (b",", b"!"), (b"0:,1:e,", b"!e!")]:
        chat.dataReceived(sent)
        assert transport.value() == answer
        transport.clear()


def test_framer_is_closed_by_what_is_malformed():
    framer = Framer(LengthPrefix("varint"), whole=True)
    framer.feed(b"\xff" * 9)
    framer.deliver(None)
    assert not framer.closed
    framer.feed(b"\xff")
    with pytest.raises(MalformedMessage, match="a varint has more than 10 bytes"):
        framer.deliver(None)
    assert framer.closed
    assert framer.buffer == b""


@pytest.fixture
def events():
    seen = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


def test_malformed_message_is_logged_in_one_line_without_its_data(events):
    run(Strings(), [b"secret"])
    [event] = events
    assert event["log_level"].name == "warn"
    assert event["error"] == "malformed message: a netstring does not begin with its length"
    assert "secret" not in repr(event)
    assert "log_failure" not in event


def test_handler_may_call_a_message_malformed(events):
    """It is logged as what the peer did, without a traceback, and `handle_error` has the exception."""

    class Numbers(AsyncChat):
        terminator = b"\n"
        seen = None

        def message_received(self, message):
            if not message.isdigit():
                raise MalformedMessage("not a number")

        def handle_error(self):
            self.seen = sys.exc_info()[1]

    chat = Numbers()
    outcome = run(chat, [b"1\nx\n2\n"])
    assert [call[1] for call in outcome.calls if call[0] == "message_received"] == [b"1", b"x"]
    assert chat.close_reason is chat.seen
    [event] = events
    assert event["error"] == "malformed message: not a number"
