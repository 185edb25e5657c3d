"""
`AsyncChat.max_message_length` and `AsyncChat.overflow`, changed while the connection is open.
"""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport

from txasynchat import AsyncChat, LengthPrefix, Overflow
from txasynchat.errors import MessageTooLong

# -- a model that takes one byte after the other


class Changes:
    """
    ``(limit, overflow)`` to be set: when so many bytes have come, when so many were collected, and
    when so many messages have ended or were too long. None leaves as it is, "none" is no limit.
    """

    def __init__(self, coming, collected, turns):
        self.coming, self.collected, self.turns = coming, collected, turns


def apply(target, change):
    limit, overflow = change
    if limit is not None:
        target.max_message_length = None if limit == "none" else limit
    if overflow is not None:
        target.overflow = overflow


class Model:
    def __init__(self, limit, overflow, whole, changes):
        self.max_message_length, self.overflow = limit, overflow
        self.whole, self.changes = whole, changes
        self.events = []
        self.collected = self.turn = self.count = 0
        self.part = b""
        self.judged = self.skipping = self.closed = False

    def run(self, data):
        for position in range(len(data)):
            apply(self, self.changes.coming.get(position, (None, None)))
            self.take(data[position : position + 1])
            if self.closed:
                break
        return self.events if self.whole else [*self.events, self.part]

    def take(self, byte):
        ends = byte == b"\n"
        if not self.skipping:
            limit = self.max_message_length
            if limit is not None and self.count + (not ends) > limit and not self.judged:
                self.judge(limit)
                if self.closed:
                    return
        if self.skipping:
            self.skipping = not ends
        elif ends:
            self.emit()
            self.count, self.judged = 0, False
        else:
            limit = self.max_message_length
            if self.whole and self.judged and limit is not None and len(self.part) >= max(1, limit):
                self.emit()
            self.part += byte
            self.count += 1
            if not self.whole:
                self.collected += 1
                apply(self, self.changes.collected.get(self.collected, (None, None)))

    def judge(self, limit):
        self.events.append(("too long", limit, None if self.whole else self.part))
        self.next_turn()
        self.judged = self.overflow is Overflow.DELIVER
        self.skipping = self.overflow is Overflow.SKIP
        self.closed = self.overflow is Overflow.CLOSE
        if not self.judged:
            self.part = b""
            self.count = 0

    def emit(self):
        message, self.part = self.part, b""
        self.events.append(message)
        self.next_turn()

    def next_turn(self):
        self.turn += 1
        apply(self, self.changes.turns.get(self.turn, (None, None)))


# -- the same on a connection


class Recorder(AsyncChat):
    terminator = b"\n"
    turn = 0

    def __init__(self, limit, overflow, changes):
        self.max_message_length, self.overflow = limit, overflow
        self.changes = changes
        self.events = []
        self.part = b""

    def next_turn(self):
        self.turn += 1
        apply(self, self.changes.turns.get(self.turn, (None, None)))

    def message_too_long(self, error):
        whole = isinstance(self, Whole)
        self.events.append(("too long", error.limit, None if whole else self.part))
        self.next_turn()
        if self.overflow is not Overflow.DELIVER:
            self.part = b""

    def feed(self, data, cuts):
        """Cut the data there, and wherever something is changed from outside."""
        edges = sorted({0, len(data), *self.changes.coming, *cuts})
        edges = [edge for edge in edges if edge <= len(data)]
        for start, end in itertools.pairwise(edges):
            apply(self, self.changes.coming.get(start, (None, None)))
            self.dataReceived(data[start:end])


class Whole(Recorder):
    def message_received(self, message):
        self.events.append(message)
        self.next_turn()

    def result(self):
        return self.events


class Pieces(Recorder):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.collected = 0
        #: When each of the changes was made: at the end of a piece.
        self.made = {}
        self.waiting = sorted(self.changes.collected.items())

    def collect_incoming_data(self, data):
        self.part += data
        self.collected += len(data)
        if self.waiting and self.waiting[0][0] <= self.collected:
            _, self.made[self.collected] = self.waiting.pop(0)
            apply(self, self.made[self.collected])

    def found_terminator(self):
        self.events.append(self.part)
        self.part = b""
        self.next_turn()

    def result(self):
        return [*self.events, self.part]


limits = st.sampled_from(["none", 1, 2, 4, 9])
change = st.tuples(st.none() | limits, st.none() | st.sampled_from(Overflow))
changes = st.builds(
    Changes,
    coming=st.dictionaries(st.integers(0, 40), change, max_size=3),
    collected=st.dictionaries(st.integers(1, 30), change, max_size=3),
    turns=st.dictionaries(st.integers(1, 10), change, max_size=5),
)


@pytest.mark.parametrize("kind", [Whole, Pieces])
@given(
    data=st.text("ab\n", max_size=50).map(str.encode),
    limit=limits,
    overflow=st.sampled_from([Overflow.SKIP, Overflow.SKIP, Overflow.DELIVER, Overflow.CLOSE]),
    changes=changes,
    cuts=st.sets(st.integers(1, 50), max_size=50),
)
def test_changed_limit_applies_from_the_next_byte_at_any_split(
    kind, data, limit, overflow, changes, cuts
):
    """A limit raised after the login applies to the next message, however the packets are cut."""
    limit = None if limit == "none" else limit
    chat = kind(limit, overflow, changes)
    chat.makeConnection(StringTransport())
    chat.feed(data, cuts)
    made = getattr(chat, "made", {})
    model = Model(limit, overflow, kind is Whole, Changes(changes.coming, made, changes.turns))
    assert chat.result() == model.run(data)


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (1, 2)])
def test_message_up_to_the_limit_stays_one_part_when_the_hook_lowers_it(cuts):
    """It does not matter that the rest came in the same packet."""
    chat = Whole(2, Overflow.DELIVER, Changes({}, {}, {1: (1, None)}))
    chat.makeConnection(StringTransport())
    chat.feed(b"aaa\n", cuts)
    assert chat.result() == [("too long", 2, None), b"aa", b"a"]


# -- a number above the limit


class Numbers(AsyncChat):
    terminator = b"\n"
    max_message_length = 10

    def __init__(self):
        self.events = []

    def message_received(self, message):
        self.events.append(message)
        self.set_terminator(int(message) if message.isdigit() else b"\n")

    def message_too_long(self, error):
        self.events.append((error.limit, error.count, error.sample))
        self.set_terminator(b"\n")


def connect(chat):
    chat.makeConnection(StringTransport())
    return chat


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize(
    "chunks", [[b"3\nabc\n11\n"], [b"3\nabc\n11", b"\n"], [b"3\nabc\n", b"11\n"]]
)
def test_number_above_the_limit_is_too_long_before_any_byte_arrives(overflow, chunks):
    """A peer that announces too much gets its error at once, not when it sends."""
    chat = connect(Numbers())
    chat.overflow = overflow
    for chunk in chunks:
        chat.dataReceived(chunk)
    assert chat.events == [b"3", b"abc", b"", b"11", (10, 11, b"")]
    assert isinstance(chat.close_reason, MessageTooLong) is (overflow is Overflow.CLOSE)
    chat.dataReceived(b"x" * 11 + b"next\n")
    assert (
        chat.events[5:]
        == {
            Overflow.CLOSE: [],
            Overflow.SKIP: [b"next"],
            Overflow.DELIVER: [b"x" * 10, b"xnext"],  # the hook set another terminator for it
        }[overflow]
    )


@pytest.mark.parametrize("way", ["method", "attribute"])
def test_number_above_the_limit_set_outside_a_handler_is_too_long_at_once(way):
    chat = connect(Numbers())
    chat.overflow = Overflow.SKIP
    if way == "method":
        chat.set_terminator(11)
    else:
        chat.terminator = 11
    assert chat.events == [(10, 11, b"")]
    chat.pause()
    chat.dataReceived(b"x" * 11)
    chat.set_terminator(12)
    assert len(chat.events) == 1
    chat.resume()
    assert chat.events[1:] == [(10, 12, b"")]


def test_number_above_the_limit_set_before_the_connection_is_reported_when_it_opens():
    chat = Numbers()
    chat.set_terminator(11)
    assert chat.events == []
    connect(chat)
    assert chat.events == [(10, 11, b"")]


def test_a_number_above_the_limit_in_a_class_body_is_refused():
    with pytest.raises(ValueError, match="terminator 11 is above max_message_length 10"):
        type("Handler", (Numbers,), {"terminator": 11})
    type("Handler", (Numbers,), {"terminator": 10})
    type("Handler", (Numbers,), {"terminator": 11, "max_message_length": None})
    type("Handler", (Numbers,), {"terminator": LengthPrefix("B", limit=20)})


def test_changed_limit_does_not_affect_a_length_prefix():
    class Frames(Numbers):
        terminator = LengthPrefix("B", limit=5)
        overflow = Overflow.SKIP

        def message_received(self, message):
            self.events.append(message)
            self.max_message_length = 1

        def message_too_long(self, error):
            self.events.append((error.limit, error.count))

    chat = connect(Frames())
    chat.dataReceived(b"\3abc\4abcd\6")
    assert chat.events == [b"abc", b"abcd", (5, 6)]  # no byte of the body has come
    chat.dataReceived(b"123456\1a")
    assert chat.events[3:] == [b"a"]


# -- how they are set


class Lines(AsyncChat):
    terminator = b"\n"
    overflow = Overflow.SKIP

    def __init__(self, *arguments):
        self.events = []

    def message_received(self, message):
        self.events.append(message)

    def message_too_long(self, error):
        self.events.append(error.limit)


def test_overflow_set_in_the_hook_applies_to_that_message():
    class Lenient(Lines):
        overflow = Overflow.CLOSE
        max_message_length = 3

        def message_too_long(self, error):
            super().message_too_long(error)
            self.overflow = Overflow.CLOSE if len(self.events) > 1 else Overflow.SKIP

    chat = connect(Lenient())
    chat.dataReceived(b"long\n")
    assert chat.close_reason is None
    chat.dataReceived(b"longer\nfit\n")
    assert chat.events == [3, 3]
    assert isinstance(chat.close_reason, MessageTooLong)


@pytest.mark.parametrize("wrong", [0, -1, "100", 1.5, True])
def test_invalid_limit_is_refused_where_it_is_set(wrong):
    chat = connect(Lines())
    with pytest.raises(
        (TypeError, ValueError), match=r"Lines.max_message_length must be a whole number"
    ):
        chat.max_message_length = wrong
    assert chat.max_message_length == 16_384


def test_attributes_read_as_the_limits_in_force():
    class Heir(Lines):
        max_message_length = 3

    assert (Lines.max_message_length, Heir.max_message_length) == (16_384, 3)
    chat, other = connect(Heir()), connect(Heir())
    assert (Lines.max_message_length, Heir.max_message_length) == (16_384, 3)
    chat.max_message_length = 5
    chat.overflow = Overflow.DELIVER
    assert (chat.max_message_length, chat.overflow) == (5, Overflow.DELIVER)
    assert (other.max_message_length, other.overflow) == (3, Overflow.SKIP)
    del chat.max_message_length
    assert chat.max_message_length == 3


def test_limits_set_on_a_class_later_apply_to_later_connections(monkeypatch):
    class Parent(Lines):
        max_message_length = 3

    class Child(Parent):
        pass

    before = connect(Child())
    monkeypatch.setattr(Parent, "max_message_length", 2)
    after = connect(Child())
    for chat in before, after:
        chat.dataReceived(b"abc\n")
        chat.max_message_length = 1
        chat.dataReceived(b"ab\n")
    assert (before.events, after.events) == ([b"abc", 1], [2, 1])


def test_limits_may_be_fields_slots_properties_or_from_a_mixin():
    @dataclasses.dataclass
    class Fields(Lines):
        max_message_length: int = 3
        overflow: Overflow = Overflow.SKIP
        events: list = dataclasses.field(default_factory=list)

    @dataclasses.dataclass(slots=True)
    class Slots(Lines):
        max_message_length: int = 3
        overflow: Overflow = Overflow.SKIP
        events: list = dataclasses.field(default_factory=list)

    class Mixin:
        max_message_length = 3

    class Mixed(Mixin, Lines):
        pass

    class Computed(Lines):
        longest = 3

        @property
        def max_message_length(self):
            return self.longest

    for chat in (
        Fields(),
        Slots(),
        Mixed(),
        Computed(),
    ):
        connect(chat).dataReceived(b"abc\nabcd\n")
        assert chat.events == [b"abc", 3]
        if not isinstance(chat, Computed):
            chat.max_message_length = 4
            chat.dataReceived(b"abcd\n")
            assert chat.events == [b"abc", 3, b"abcd"]
