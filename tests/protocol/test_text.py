"""
Messages as text: `AsyncChat.encoding`.
"""

import codecs
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher

from txasynchat import AsyncChat, MalformedMessage, Netstring, Overflow, State
from txasynchat.testing import check_cuts, run


class Lines(AsyncChat):
    terminator = (b"\n", b"\r\n")
    encoding = "utf-8"

    def __init__(self):
        self.messages = []

    def message_received(self, message):
        self.messages.append(message)
        self.push(f"{message}!\n")


def talk(handler, *chunks):
    chat = handler()
    chat.makeConnection(StringTransport())
    for chunk in chunks:
        chat.dataReceived(chunk)
    return chat


def test_messages_are_text_and_text_can_be_pushed():
    outcome = check_cuts(Lines, "grün\r\n\nmüde\n".encode())
    assert outcome.sent == "grün!\n!\nmüde!\n".encode()
    assert [call[1] for call in outcome.calls if call[0] == "message_received"] == [
        *("grün", "", "müde")
    ]


@pytest.mark.parametrize(
    ("terminator", "stream"),
    [(Netstring(), Netstring().pack("é".encode())), (2, "é".encode()), (b"\n", "é\n".encode())],
)
def test_every_kind_of_terminator_gives_text(terminator, stream):
    handler = type("Handler", (Lines,), {"terminator": terminator})
    assert talk(handler, stream[:-1], stream[-1:]).messages == ["é"]


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8")), max_size=8),
    size=st.integers(1, 20),
)
def test_text_is_the_same_however_its_bytes_are_cut(lines, size):
    class Exact(Lines):
        terminator = b"\n"
        max_message_length = None

    data = "".join(f"{line}\n" for line in lines).encode()
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert talk(Exact, *chunks).messages == lines


@pytest.fixture
def events():
    seen = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


def test_message_that_is_not_text_ends_its_connection(events):
    """What was answered before is sent; it is logged once, without the message."""
    outcome = check_cuts(Lines, b"one\nt\xffwo\nthree\n")
    assert outcome.sent == b"one!\n"
    assert outcome.state is not State.OPEN
    events.clear()
    chat = talk(Lines, b"t\xffwo\nthree\n")
    assert isinstance(chat.close_reason, MalformedMessage)
    assert str(chat.close_reason) == (
        "malformed message: not utf-8 text: invalid start byte at byte 1"
    )
    for event in events:
        assert event["error"] == str(chat.close_reason)
        assert "log_failure" not in event


@pytest.mark.parametrize(
    ("errors", "message"), [("replace", "a�b"), ("ignore", "ab"), ("surrogateescape", "a\udcffb")]
)
def test_encoding_errors_says_what_becomes_of_bytes_that_are_not_text(errors, message):
    handler = type("Handler", (Lines,), {"encoding_errors": errors})
    outcome = run(chat := handler(), [b"a\xffb\n"])
    assert chat.messages == [message]
    assert outcome.sent == f"{message}!\n".encode("utf-8", errors)


def test_over_long_message_is_delivered_in_parts_of_whole_characters():
    class Parts(Lines):
        max_message_length = 3
        overflow = Overflow.DELIVER

    chat = talk(Parts, "ééééé\nok\n".encode())
    assert "".join(chat.messages) == "éééééok"
    assert chat.state is State.OPEN


def test_pieces_are_bytes_and_a_collected_message_is_text():
    class Collecting(Lines):
        pieces = b""

        def collect_incoming_data(self, data):
            self.pieces += data
            super().collect_incoming_data(data)

    chat = talk(Collecting, "grü".encode()[:3], "ün\n".encode()[1:])
    assert chat.pieces == "grün".encode()
    assert chat.messages == ["grün"]


def test_pushing_text_needs_an_encoding():
    class Bytes(Lines):
        encoding = None

    chat = talk(Bytes)
    with pytest.raises(TypeError, match="data must be bytes-like, not str: 'text'"):
        chat.push("text")
    with pytest.raises(UnicodeEncodeError):
        talk(Lines).push("\ud800")


def test_text_that_is_dropped_is_counted_in_bytes():
    chat = talk(Lines)
    chat.close_when_done()
    chat.push("é")
    assert chat.dropped == 2


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"encoding": 8}, TypeError, r"H\.encoding must be a string, not 8"),
        ({"encoding": "utf-9"}, ValueError, "H: unknown encoding: utf-9"),
        ({"encoding": "hex"}, ValueError, "H: 'hex' is not a text encoding"),
        ({"encoding": "utf-8", "encoding_errors": "x"}, ValueError, "H: unknown error handler"),
        ({"encoding": property(lambda self: "utf-8")}, TypeError, r"H\.encoding must be a string"),
    ],
)
def test_wrong_encoding_is_refused_in_the_class_body(values, error, text):
    with pytest.raises(error, match=text):
        type("H", (AsyncChat,), values)


def test_encoding_of_a_connection_cannot_be_changed():
    """It would be too late: say so, instead of ignoring it."""
    chat = talk(Lines)
    assert chat.encoding == Lines.encoding == "utf-8"
    with pytest.raises(TypeError, match=r"write Lines\.encoding = 'ascii'"):
        chat.encoding = "ascii"


def test_encoding_may_be_set_on_the_class_later_or_by_a_dataclass():
    class Later(Lines):
        encoding = None

    assert talk(Later, b"").encoding is None
    Later.encoding = "latin-1"
    assert talk(Later, b"\xe9\n").messages == ["é"]

    @dataclasses.dataclass(eq=False)
    class Field(AsyncChat):
        terminator = b"\n"
        encoding: str = "latin-1"
        messages: list = dataclasses.field(default_factory=list)

        def message_received(self, message):
            self.messages.append(message)

    assert talk(Field, b"\xe9\n").messages == ["é"]


def test_each_message_is_decoded_by_itself():
    class Marked(Lines):
        terminator = b"|"
        encoding = "utf-8-sig"

    assert talk(Marked, (codecs.BOM_UTF8 + b"a|") * 2).messages == ["a", "a"]


def test_coroutines_get_text_and_may_find_that_it_is_none():
    """A message that is not text ends the connection behind hooks that wait, too."""

    class Later(Lines):
        async def message_received(self, message):
            await self.gate
            self.messages.append(message)
            self.push(message)

    chat = Later()
    chat.gate = Deferred()
    chat.makeConnection(StringTransport())
    chat.dataReceived("grün\nmüde\n".encode() + b"\xff\nlost\n")
    assert chat.messages == []
    chat.gate.callback(None)
    assert chat.messages == ["grün", "müde"]
    assert isinstance(chat.close_reason, MalformedMessage)
    assert chat.transport.value() == "grünmüde".encode()
