"""
What a `Framer` delivers, by definition: every test of the first part compares it with a model that
looks at all bytes at once, and so cannot know how they were cut on their way.
"""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.framers import set_sizes
from txasynchat.errors import MalformedMessage
from txasynchat.framing import Framer, Overflow
from txasynchat.terminators import LengthPrefix, Netstring


class Boom(Exception):
    """Raised by a handler."""


class Malformed(Exception):
    """Raised by the model."""


# -- the model


def expected(data, terminators, limit, overflow, whole):
    """
    The messages in *data*, and the errors, where each message has the next of *terminators*.

    ``("message", its bytes, what ended it)``, ``("too long", limit, count, sample, bytes passed on)``,
    ``("malformed", bytes passed on)`` and last, unless whole messages are asked for, ``("unfinished",
    bytes passed on)``.
    """
    events = []
    position = turn = 0
    matched = None
    while True:
        terminator = terminators[turn % len(terminators)]
        rest = data[position:]
        try:
            begin, content, behind, ended_by, announced, most = look(rest, terminator, limit, whole)
        except Malformed:
            return finish([*events, ("malformed", b"")], b"", whole)
        length = announced if announced is not None else len(content)
        body = rest[begin : begin + length]
        ended = behind is not None
        # A number that a handler sets is known before there is a byte.
        is_known = len(rest) > begin - (begin > 0) or (turn > 0 and announced is not None)
        if most is not None and length > most and is_known:
            if announced is None:
                count, sample, passed = most + 1, content[: min(128, most + 1)], content[:most]
            else:
                count, sample, passed = announced, b"", b""
            events.append(("too long", most, count, sample, b"" if whole else passed))
            if overflow is Overflow.CLOSE:
                return finish(events, b"", whole)
            if overflow is Overflow.SKIP:
                turn += 1
                if terminator or announced is not None:
                    if not ended:
                        return finish(events, b"", whole)
                    position += begin + length + behind
                else:
                    # Collecting without end: what follows belongs to the terminator set now.
                    following = terminators[turn % len(terminators)]
                    if following == terminator:
                        return finish(events, b"", whole)
                    position += most + 1
                continue
            if whole:
                part = max(1, most)
                while len(body) > part:
                    events.append(("message", body[:part], matched))
                    body = body[part:]
        if not ended:
            return finish(events, body, whole)
        if behind and announced is not None and rest[begin + length :][:1] != b",":
            return finish([*events, ("malformed", b"" if whole else body)], b"", whole)
        matched = ended_by
        events.append(("message", body, matched))
        position += begin + length + behind
        turn += 1


def look(rest, terminator, limit, whole):
    """
    Where the message that *rest* begins with begins; its content as far as it is known; the length
    of what ends it (None: the end has not come) and what that is; its announced length; its limit.
    """
    if not terminator:
        return 0, rest, None, None, None, limit if whole else None
    if isinstance(terminator, int):
        behind = 0 if len(rest) >= terminator else None
        return 0, rest[:terminator], behind, None, terminator, limit
    if isinstance(terminator, LengthPrefix):
        size, length, end = look_at_prefix(rest, terminator)
        if size is None:
            return 0, b"", None, None, None, None
        behind = end if len(rest) >= size + length + end else None
        return size, rest[size : size + length], behind, None, length, terminator.limit
    delimiters = terminator if isinstance(terminator, tuple) else (terminator,)
    end, ended_by = first_end(rest, delimiters)
    if ended_by:
        return 0, rest[: end - len(ended_by)], len(ended_by), ended_by, None, limit
    held = max(
        size
        for one in delimiters
        if first_end(one, delimiters) == (len(one), one)  # or it never ends a message
        for size in range(len(one))
        if rest.endswith(one[:size]) and size <= len(rest)
    )
    return 0, rest[: len(rest) - held], None, None, None, limit


def look_at_prefix(rest, terminator):
    """The size of the prefix, None if it is not complete; the length that it gives; what is behind."""
    if isinstance(terminator, Netstring):
        complete = re.match(rb"(0|[1-9][0-9]{0,19}):", rest)
        if complete:
            return complete.end(), int(complete[1]), 1
        if not re.fullmatch(rb"(0|[1-9][0-9]{0,19})?", rest):
            raise Malformed
        return None, None, None
    if "varint" in repr(terminator):
        complete = re.match(rb"[\x80-\xff]{0,9}[\0-\x7f]", rest)
        if complete:
            digits = (byte & 0x7F for byte in complete[0])
            return complete.end(), sum(one << 7 * place for place, one in enumerate(digits)), 0
        if len(rest) >= 10:
            raise Malformed
        return None, None, None
    size = 2 if "!H" in repr(terminator) else 1
    if len(rest) < size:
        return None, None, None
    return size, int.from_bytes(rest[:size], "big"), 0


def first_end(data, delimiters):
    for end in range(1, len(data) + 1):
        ending = [one for one in delimiters if data[:end].endswith(one)]
        if ending:
            return end, max(ending, key=len)
    return None, None


def finish(events, passed, whole):
    return events if whole else [*events, ("unfinished", passed)]


# -- the handler


class Recorder:
    """
    Takes the terminators in turn; pauses, raises and closes at the turns it is told.
    """

    def __init__(self, framer, terminators, pauses=(), raises=(), closes=()):
        self.framer = framer
        self.terminators = terminators
        self.pauses, self.raises, self.closes = pauses, raises, closes
        self.turn = 0
        self.calls = 0
        self.events = []
        self.parts = []

    def collect_incoming_data(self, data):
        assert data
        assert not self.framer.whole
        self.called()
        self.parts.append(data)

    def found_terminator(self):
        assert not self.framer.whole
        self.message(b"".join(self.parts))

    def message_received(self, message):
        assert self.framer.whole
        self.message(message)

    def overflowed(self, error):
        self.called()
        passed = b"".join(self.parts)
        self.events.append(("too long", error.limit, error.count, error.sample, passed))
        if self.framer.overflow is not Overflow.DELIVER:
            self.parts.clear()
            self.take_turn()

    def message(self, message):
        self.called()
        self.events.append(("message", message, self.framer.matched))
        self.parts.clear()
        self.take_turn()

    def called(self):
        assert not self.framer.closed or self.framer.overflow is Overflow.CLOSE
        self.calls += 1

    def take_turn(self):
        turn = self.turn = self.turn + 1
        # Where over-long messages arrive in parts, their ends cannot be told.
        if not (self.framer.whole and self.framer.overflow is Overflow.DELIVER):
            self.framer.set_terminator(self.terminators[turn % len(self.terminators)])
        if turn in self.pauses:
            self.framer.pause()
        if turn in self.closes:
            self.framer.close()
        if turn in self.raises:
            raise Boom

    def play(self, chunks):
        framer = self.framer
        for chunk in chunks:
            was_paused, calls = framer.paused, self.calls
            self.insist(lambda chunk=chunk: framer.receive(self, chunk))
            if was_paused:
                assert self.calls == calls, "delivered while paused"
                framer.resume()
                self.insist(lambda: framer.deliver(self))
        while framer.paused and not framer.closed:
            framer.resume()
            self.insist(lambda: framer.deliver(self))
        if framer.whole:
            return self.events
        return [*self.events, ("unfinished", b"".join(self.parts))]

    def insist(self, deliver):
        """Continue after each exception of the handler."""
        while True:
            try:
                return deliver()
            except Boom:
                deliver = lambda: self.framer.deliver(self)  # noqa: E731 it is one
            except MalformedMessage:
                assert self.framer.closed
                self.events.append(("malformed", b"".join(self.parts)))
                self.parts.clear()
                return None


def cut(data, sizes):
    chunks = []
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        turn += 1
        chunks.append(data[:size])
        data = data[size:]
    return chunks


# -- any split of the same bytes

LONG = b"a" * 63 + b"\n"  # 64 bytes, and every run of a's may begin it
DELIMITERS = [b"\n", b"\r\n", b"\r\n\r\n", b"a", b"aab", b"abab", b"--a--b", LONG]

tuples = st.lists(
    st.text("ab\n", min_size=1, max_size=3).map(str.encode), min_size=1, max_size=4
).map(
    # Without those that could never match, which are refused.
    lambda several: tuple(one for one in several if not any(two in one[:-1] for two in several))
)
prefixes = st.builds(
    LengthPrefix, st.sampled_from(["B", "!H", "varint"]), limit=st.sampled_from([0, 3, 12, 200])
) | st.builds(Netstring, limit=st.sampled_from([0, 3, 12, 200]))
terminators = st.one_of(
    st.sampled_from(DELIMITERS),
    st.sampled_from(DELIMITERS),
    tuples,
    prefixes,
    st.sampled_from([1, 2, 3, 7, 40]),
    st.sampled_from([None, b"", 0]),
)
streams = st.lists(
    st.one_of(
        st.text("ab\r\n-", max_size=20).map(str.encode),
        st.sampled_from([*DELIMITERS, LONG[1:], LONG[:-1], b"a" * 100, b"b" * 20]),
        st.binary(max_size=8).map(lambda body: bytes([len(body)]) + body),
        st.binary(max_size=8).map(lambda body: len(body).to_bytes(2, "big") + body),
        st.binary(max_size=15).map(Netstring().pack),
        st.binary(min_size=125, max_size=131).map(LengthPrefix("varint").pack),
        st.sampled_from([b"3:abc", b"03:abc,", b"1" * 25, b"\x80" * 12, b"0:,", b":,", b"2:ab:"]),
    ),
    max_size=12,
).map(b"".join)
cuts = st.lists(st.integers(1, 30), min_size=1, max_size=6)
some_turns = st.sets(st.integers(1, 12), max_size=4)
limits = st.sampled_from([None, None, 0, 1, 2, 5, 12, 60, 130])


# The fast way's window and pause: as they are, and so small that short streams exceed them.
sizes = st.sampled_from([(16_384, 8), (11, 1)])


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
@pytest.mark.parametrize("overflow", Overflow)
@given(
    data=streams,
    terminators=st.lists(terminators, min_size=1, max_size=4),
    limit=limits,
    cuts=cuts,
    pauses=some_turns,
    raises=some_turns,
    sizes=sizes,
)
def test_any_split_of_the_same_bytes_gives_the_same_messages_and_the_same_error(
    whole, overflow, data, terminators, limit, cuts, pauses, raises, sizes
):
    if whole and overflow is Overflow.DELIVER:
        terminators = terminators[:1]
        assume(not isinstance(terminators[0], int))  # it ends at 0 and is not set again
    framer = Framer(terminators[0], limit=limit, overflow=overflow, whole=whole)
    recorder = Recorder(framer, terminators, pauses, raises)
    with pytest.MonkeyPatch.context() as patch:
        set_sizes(patch, *sizes)
        events = recorder.play(cut(data, cuts))
    assert events == expected(data, terminators, limit, overflow, whole)


@given(
    data=streams,
    delimiter=st.sampled_from([one for one in DELIMITERS if one != LONG]),
    cuts=cuts,
    whole=st.booleans(),
)
def test_messages_are_those_of_bytes_split(data, delimiter, cuts, whole):
    recorder = Recorder(Framer(delimiter, whole=whole), [delimiter])
    events = recorder.play(cut(data, cuts))
    messages = [event[1] for event in events if event[0] == "message"]
    assert messages == data.split(delimiter)[:-1]


@given(
    data=streams,
    terminators=st.lists(terminators, min_size=1, max_size=4),
    cuts=cuts,
    whole=st.booleans(),
    last=st.integers(1, 6),
    sizes=sizes,
)
def test_nothing_is_delivered_after_close(data, terminators, cuts, whole, last, sizes):
    framer = Framer(terminators[0], limit=20, overflow=Overflow.SKIP, whole=whole)
    recorder = Recorder(framer, terminators, closes={last})
    with pytest.MonkeyPatch.context() as patch:
        set_sizes(patch, *sizes)
        events = recorder.play(cut(data, cuts))
    every = expected(data, terminators, 20, Overflow.SKIP, whole)
    if framer.closed and not any(event[0] == "malformed" for event in events):
        assert events[:last] == every[:last]
        assert events[last:] == ([] if whole else [("unfinished", b"")])
        assert framer.buffer == b""
    else:
        assert events == every
