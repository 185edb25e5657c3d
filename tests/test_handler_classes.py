"""
Handler classes that are not plain class bodies, and mistakes in handler classes.
"""

import dataclasses

import attr
import pytest
from twisted.internet import defer
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from typing_extensions import override

from txasynchat import AsyncChat, State


def connect(chat):
    chat.makeConnection(StringTransport())
    return chat


@pytest.fixture
def warnings():
    """Collect the warnings that are logged, formatted."""
    seen = []

    def observe(event):
        if event["log_level"].name == "warn":
            seen.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


class Lines(AsyncChat):
    def message_received(self, message):
        self.messages = [*getattr(self, "messages", []), message]


# -- dataclasses and attrs


def make_dataclass():
    @dataclasses.dataclass
    class Handler(Lines):
        terminator: bytes = b"\n"
        messages: list = dataclasses.field(default_factory=list)

    return Handler


def make_dataclass_with_field():
    @dataclasses.dataclass(eq=False)
    class Handler(Lines):
        terminator: bytes = dataclasses.field(default=b"\n")
        messages: list = dataclasses.field(default_factory=list)

    return Handler


def make_dataclass_with_slots():
    @dataclasses.dataclass(slots=True)
    class Handler(Lines):
        terminator: bytes = b"\n"
        messages: list = dataclasses.field(default_factory=list)

    return Handler


def make_attrs():
    @attr.s(auto_attribs=True)
    class Handler(Lines):
        terminator: bytes = b"\n"
        messages: list = attr.ib(factory=list)

    return Handler


def make_attrs_with_slots():
    @attr.define
    class Handler(Lines):
        terminator: bytes = attr.field(default=b"\n")
        messages: list = attr.field(factory=list)

    return Handler


@pytest.mark.parametrize(
    "make",
    [
        make_dataclass,
        make_dataclass_with_field,
        make_dataclass_with_slots,
        make_attrs,
        make_attrs_with_slots,
    ],
)
def test_terminator_may_be_a_field(make):
    handler = make()
    chat = connect(handler())
    chat.dataReceived(b"one\ntwo\n")
    assert chat.messages == [b"one", b"two"]
    other = connect(handler(terminator=b"|"))
    other.dataReceived(b"a\n|b|")
    assert other.messages == [b"a\n", b"b"]
    assert (chat.terminator, other.terminator) == (b"\n", b"|")
    chat.terminator = 2
    chat.dataReceived(b"xy")
    assert chat.messages[2:] == [b"xy"]


def test_class_attribute_reads_as_it_was_set():
    class Handler(Lines):
        terminator = (b"\n", b"\r\n")

    class Heir(Handler):
        pass

    assert AsyncChat.terminator is None
    assert Handler.terminator == Heir.terminator == (b"\n", b"\r\n")
    connect(Heir())  # from here on ours replaces it
    assert Handler.terminator == Heir.terminator == (b"\n", b"\r\n")


def test_terminator_set_on_the_class_later_applies_to_later_connections():
    class Handler(Lines):
        terminator = b"\n"

    Handler.terminator = b"|"
    chat = connect(Handler())
    chat.dataReceived(b"a|")
    assert chat.messages == [b"a"]


def test_invalid_terminator_in_a_class_body_is_refused_at_once():
    with pytest.raises(TypeError, match="terminator must be bytes"):
        type("Handler", (Lines,), {"terminator": "\n"})


@pytest.mark.parametrize("name", ["tls", "matched_terminator", "state", "addr", "paused", "unsent"])
def test_application_may_use_these_names(name):
    class Handler(Lines):
        terminator = b"\n"

        def handle_secure(self, info):
            raise AssertionError("there is no TLS")

        def __init__(self):
            setattr(self, name, "mine")

    chat = connect(Handler())
    chat.dataReceived(b"one\n")
    assert chat.messages == [b"one"]
    assert getattr(chat, name) == "mine"
    assert chat._state is State.OPEN


# -- mistakes that are told once


def test_missing_terminator_for_whole_messages_is_warned_of_once(warnings):
    class Handler(Lines):
        delimiter = b"\r\n"

    for _ in range(3):
        connect(Handler())
    [text] = warnings
    assert "Handler has message_received and no terminator" in text
    assert "set terminator" in text
    assert "delimiter is LineReceiver's name for it" in text


def test_coupled_connections_are_not_warned_of(warnings):
    """Neither one that is coupled at once, nor its partner, which is a plain `AsyncChat`."""

    class Front(AsyncChat):
        def handle_connect(self):
            self.pipe_to(back)
            back.pipe_to(self)

    class Back(AsyncChat):
        pass

    back = Back()
    connect(Front())
    connect(back)
    assert warnings == []


def test_a_terminator_set_in_handle_connect_is_not_warned_of(warnings):
    class Handler(Lines):
        def handle_connect(self):
            self.set_terminator(b"\n")

    connect(Handler())

    class Pieces(AsyncChat):
        def collect_incoming_data(self, data):
            pass

        def found_terminator(self):
            pass

    connect(Pieces())
    assert warnings == []


def test_a_hook_that_is_a_generator_is_warned_of_once(warnings):
    class Handler(AsyncChat):
        terminator = b"\n"

        def handle_connect(self):
            yield

        async def message_received(self, message):
            yield

    for _ in range(2):
        connect(Handler()).dataReceived(b"a\n")
    assert len(warnings) == 2
    assert "Handler.handle_connect is a generator function, which nobody runs" in warnings[0]
    assert "Handler.message_received is a generator function, which nobody runs" in warnings[1]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_connection_made_that_is_async_is_warned_of(warnings):
    """Twisted calls it, and ignores what it returns; `handle_connect` is the hook that may wait."""

    class Handler(AsyncChat):
        terminator = b"\n"

        @override
        async def connectionMade(self):
            raise AssertionError("this is never awaited")

        def message_received(self, message):
            pass

    connect(Handler())
    [text] = warnings
    assert "Handler.connectionMade is async def, which nobody awaits" in text


def test_hooks_that_wait_are_not_warned_of(warnings):
    class Handler(AsyncChat):
        terminator = b"\n"

        async def handle_connect(self):
            pass

        @defer.inlineCallbacks
        def message_received(self, message):
            yield defer.succeed(None)

    connect(Handler()).dataReceived(b"a\n")
    assert warnings == []


def test_other_return_values_of_a_hook_are_ignored(warnings):
    class Handler(AsyncChat):
        terminator = b"\n"

        def message_received(self, message):
            return True

    connect(Handler()).dataReceived(b"a\nb\n" * 100 + b"c\n")
    assert warnings == []
