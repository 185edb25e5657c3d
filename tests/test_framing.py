"""
What a `Framer` delivers, by definition: every test of the first part compares it with a model that
looks at all bytes at once, and so cannot know how they were cut on their way.
"""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from txasynchat import framing
from txasynchat.framing import Framer, Overflow
from txasynchat.terminators import LengthPrefix


class Boom(Exception):
    """Raised by a handler."""


# -- the model


def expected(data, terminators, limit, overflow, whole):
    """
    The messages in *data*, and the errors, where each message has the next of *terminators*.

    ``("message", its bytes, what ended it)``, ``("too long", limit, count, sample, bytes passed on)``
    and last, unless whole messages are asked for, ``("unfinished", bytes passed on)``.
    """
    events = []
    position = turn = 0
    matched = None
    while True:
        terminator = terminators[turn % len(terminators)]
        rest = data[position:]
        begin, content, behind, ended_by, announced, most = look(rest, terminator, limit, whole)
        length = announced if announced is not None else len(content)
        body = rest[begin : begin + length]
        ended = behind is not None
        if most is not None and length > most and len(rest) > begin - (begin > 0):
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
        return 0, rest[:terminator], behind, None, terminator if rest else None, limit
    if isinstance(terminator, LengthPrefix):
        size = terminator.size
        if len(rest) < size:
            return 0, b"", None, None, None, None
        length = int.from_bytes(rest[:size], "big")
        behind = 0 if len(rest) >= size + length else None
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
        # Where over-long messages come in parts, nobody can tell their ends.
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
        """Go on after each exception of the handler."""
        while True:
            try:
                return deliver()
            except Boom:
                deliver = lambda: self.framer.deliver(self)  # noqa: E731 it is one


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

tuples = st.lists(st.text("ab\n", min_size=1, max_size=3), min_size=1, max_size=4).map(
    lambda texts: tuple(text.encode() for text in texts)
)
prefixes = st.builds(
    LengthPrefix, st.sampled_from(["B", "!H"]), limit=st.sampled_from([0, 3, 12, 200])
)
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
    ),
    max_size=12,
).map(b"".join)
cuts = st.lists(st.integers(1, 30), min_size=1, max_size=6)
some_turns = st.sets(st.integers(1, 12), max_size=4)
limits = st.sampled_from([None, None, 0, 1, 2, 5, 12, 60, 130])


# The fast way's window and pause: as they are, and so small that short streams cross them.
sizes = st.sampled_from([(16_384, 8), (11, 1)])


def set_sizes(patch, window, settle):
    patch.setattr(framing, "WINDOW", window)
    patch.setattr(framing, "SETTLE", settle)


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
def test_the_messages_are_those_of_split(data, delimiter, cuts, whole):
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
    if framer.closed:
        assert events[:last] == every[:last]
        assert events[last:] == ([] if whole else [("unfinished", b"")])
        assert framer.buffer == b""
    else:
        assert events == every


# -- one behaviour each


class Calls:
    """
    Writes down the calls, and does in each what the test put there.
    """

    def __init__(self, framer, **actions):
        self.framer = framer
        self.actions = actions
        self.log = []

    def collect_incoming_data(self, data):
        self._call("collect", data)

    def found_terminator(self):
        self._call("found")

    def message_received(self, message):
        self._call("message", message)

    def overflowed(self, error):
        self._call("overflowed", error)

    def _call(self, name, *args):
        self.log.append((name, *args) if args else name)
        action = self.actions.get(name)
        if action is not None:
            action(*args)

    def receive(self, *chunks):
        for chunk in chunks:
            self.framer.receive(self, chunk)
        return self.log


def raise_boom(*args):
    raise Boom


def test_data_is_passed_on_as_it_comes_but_for_what_may_begin_the_terminator():
    calls = Calls(Framer(b"\r\n"))
    assert calls.receive(b"abc", b"de\r", b"\r", b"\n") == [
        ("collect", b"abc"),
        ("collect", b"de"),
        ("collect", b"\r"),
        "found",
    ]


def test_an_empty_message_is_found_without_a_call_with_data():
    assert Calls(Framer(b"\n")).receive(b"\n", b"\n\n") == ["found", "found", "found"]


@pytest.mark.parametrize("nothing", [None, b"", 0])
def test_without_terminator_everything_is_passed_on_and_no_limit_is_broken(nothing):
    calls = Calls(Framer(nothing, limit=3))
    assert calls.receive(b"", b"abcdef", b"", b"g") == [("collect", b"abcdef"), ("collect", b"g")]


def test_a_number_counts_down_and_is_zero_when_the_message_is_found():
    framer = Framer(5)
    seen = []
    calls = Calls(framer, found=lambda: seen.append(framer.terminator))
    assert calls.receive(b"abc") == [("collect", b"abc")]
    assert framer.terminator == 2
    assert calls.receive(b"defg")[1:] == [("collect", b"de"), "found", ("collect", b"fg")]
    assert seen == [0]


def test_what_ended_the_message_can_be_asked():
    framer = Framer((b"\n", b"\r\n"))
    seen = []
    calls = Calls(framer, found=lambda: seen.append(framer.matched))
    calls.receive(b"a\r\nb\nc\r", b"\n")
    framer.set_terminator(1)
    calls.receive(b"d")
    assert seen == [b"\r\n", b"\n", b"\r\n", None]


def test_a_terminator_set_in_a_handler_holds_for_what_follows():
    framer = Framer(b"\n")
    sizes = iter([3, b"|", None])
    calls = Calls(framer, found=lambda: framer.set_terminator(next(sizes)))
    assert calls.receive(b"3\nabcx\n|rest\n|") == [
        ("collect", b"3"),
        "found",
        ("collect", b"abc"),
        "found",
        ("collect", b"x\n"),
        "found",
        ("collect", b"rest\n|"),
    ]


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
def test_a_pause_takes_effect_before_the_next_message(whole):
    framer = Framer(b"\n", whole=whole)
    calls = Calls(framer, found=framer.pause, message=lambda _: framer.pause())
    log = calls.receive(b"a\nb\nc", b"\n")
    first = list(log)
    assert first == ([("message", b"a")] if whole else [("collect", b"a"), "found"])
    framer.resume()
    assert log == first
    framer.deliver(calls)
    assert log[len(first) :] == ([("message", b"b")] if whole else [("collect", b"b"), "found"])
    assert framer.buffer == b"c\n"


def test_a_message_paused_in_its_last_piece_is_still_ended():
    framer = Framer(b"\n")
    calls = Calls(framer, collect=lambda _: framer.pause())
    assert calls.receive(b"a\nb\n") == [("collect", b"a"), "found"]


def test_a_pause_that_is_taken_back_in_the_same_handler_changes_nothing():
    framer = Framer(b"\n")
    calls = Calls(framer, found=lambda: (framer.pause(), framer.resume()))
    assert calls.receive(b"a\nb\n") == [("collect", b"a"), "found", ("collect", b"b"), "found"]


def test_ten_thousand_pauses_lose_nothing():
    framer = Framer(b"\n", whole=True)
    calls = Calls(framer, message=lambda _: framer.pause())
    calls.receive(b"a\n" * 10_000)
    while framer.paused:
        framer.resume()
        framer.deliver(calls)
    assert calls.log == [("message", b"a")] * 10_000


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
@pytest.mark.parametrize("overflow", Overflow)
def test_a_closed_framer_stays_closed(whole, overflow):
    framer = Framer(b"\n", whole=whole, overflow=overflow, limit=2)
    framer.receive(calls := Calls(framer), b"a")
    del calls.log[:]
    framer.close()
    framer.resume()
    assert calls.receive(b"b\n", b"long\n", b"c") == []
    framer.set_terminator(None)
    assert calls.receive(b"b\n") == []
    assert framer.buffer == b""


def test_the_buffer_holds_what_is_not_yet_passed_on():
    framer = Framer(b"\n")
    seen = []
    look = lambda *_: seen.append(framer.buffer)  # noqa: E731 it is one
    Calls(framer, collect=look, found=look).receive(b"a\nbc\nd")
    assert seen == [b"a\nbc\nd", b"bc\nd", b"bc\nd", b"d", b"d"]
    assert framer.buffer == b""


def test_a_replaced_buffer_is_what_comes_next():
    framer = Framer(b"\n")
    replacements = iter([b"x\ny\n", b""])

    def replace():
        framer.buffer = next(replacements, framer.buffer)

    calls = Calls(framer, found=replace)
    assert calls.receive(b"a\nb\nc\n") == [("collect", b"a"), "found", ("collect", b"x"), "found"]


def test_bytes_fed_in_a_handler_follow_what_was_there():
    for whole in (False, True):
        framer = Framer(b"\n", whole=whole)
        more = iter([b"c\n"])
        feed = lambda *_: framer.feed(next(more, b""))  # noqa: B023, E731 used at once
        calls = Calls(framer, found=feed, message=feed)
        log = calls.receive(b"a\n", b"b\n")
        messages = [call[1] for call in log if call != "found"]
        assert messages == [b"a", b"c", b"b"]


def test_bytes_fed_behind_a_cut_replaced_buffer_keep_their_order():
    framer = Framer(b"\n")

    def replace_and_feed(data):
        if data == b"abc":
            framer.buffer = b"x"
            framer.feed(b"12345\n")  # "abc\n" is cut from "x12345\n"

    fed = iter([b"67\n"])
    calls = Calls(framer, collect=replace_and_feed, found=lambda: framer.feed(next(fed, b"")))
    assert calls.receive(b"abc\n") == [
        ("collect", b"abc"),
        "found",
        ("collect", b"45"),
        "found",
        ("collect", b"67"),
        "found",
    ]


def test_a_delivery_inside_a_handler_goes_on_where_the_outer_one_is():
    framer = Framer(b"\n")
    depth = []

    def nested():
        if not depth:
            depth.append(1)
            framer.deliver(calls)
            calls.log.append("back")

    calls = Calls(framer, found=nested)
    assert calls.receive(b"a\nb\nc") == [
        ("collect", b"a"),
        "found",
        ("collect", b"b"),
        "found",
        ("collect", b"c"),
        "back",
    ]


def test_after_an_exception_a_piece_is_still_there_and_an_ended_message_is_gone():
    framer = Framer(b"\n")
    with pytest.raises(Boom):
        Calls(framer, collect=raise_boom).receive(b"a\nb\n")
    assert framer.buffer == b"a\nb\n"
    with pytest.raises(Boom):
        Calls(framer, found=raise_boom).receive(b"c\n")
    assert framer.buffer == b"b\nc\n"


def test_clear_drops_what_waits_and_what_is_kept_of_a_message():
    framer = Framer(b"\n", whole=True, limit=4)
    calls = Calls(framer)
    calls.receive(b"abc")
    framer.pause()
    calls.receive(b"d\ne\nf")
    framer.clear()
    framer.resume()
    assert calls.receive(b"ghij\n") == [("message", b"ghij")]


def test_clear_in_the_middle_of_a_prefixed_message_begins_with_a_prefix():
    framer = Framer(LengthPrefix("B"), whole=True)
    calls = Calls(framer)
    calls.receive(b"\5ab")
    framer.clear()
    assert calls.receive(b"\2cd") == [("message", b"cd")]


# -- limits


def error_of(log):
    [error] = [call[1] for call in log if call[0] == "overflowed"]
    return error.limit, error.count, error.sample


LINE_ENDS = [
    (b"\n", b"\n"),
    (b"\r\n", b"\r\n"),
    ((b"\n", b"\r\n"), b"\n"),
    ((b"\n", b"\r\n"), b"\r\n"),
]


def every_cut(data):
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            yield data[:first], data[first:second], data[second:]


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
@pytest.mark.parametrize(("terminator", "end"), LINE_ENDS)
def test_a_message_as_long_as_the_limit_passes_however_it_is_cut(whole, terminator, end):
    for chunks in every_cut(b"abcd" + end):
        framer = Framer(terminator, limit=4, whole=whole)
        log = Calls(framer).receive(*chunks)
        assert not framer.closed
        assert b"".join(call[1] for call in log if call != "found") == b"abcd"
        assert framer.matched == end


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
@pytest.mark.parametrize(("terminator", "end"), LINE_ENDS)
def test_a_byte_more_is_too_long_however_it_is_cut(whole, terminator, end):
    for chunks in every_cut(b"abcde" + end + b"f"):
        framer = Framer(terminator, limit=4, whole=whole)
        log = Calls(framer).receive(*chunks)
        assert framer.closed
        assert error_of(log) == (4, 5, b"abcde")
        assert log[-1][0] == "overflowed"
        assert b"".join(call[1] for call in log[:-1]) == (b"" if whole else b"abcd")


def test_the_error_shows_128_bytes_at_most_and_its_text_none():
    log = Calls(Framer(b"\n", limit=1000)).receive(b"x" * 100, b"y" * 100, b"z" * 1000)
    assert error_of(log) == (1000, 1001, b"x" * 100 + b"y" * 28)
    assert str(log[-1][1]) == "message of at least 1001 bytes, limit 1000"


@pytest.mark.parametrize(
    ("terminator", "data"), [(1 << 31, b"a"), (LengthPrefix("!I", limit=100), b"\x80\0\0\0")]
)
def test_an_announced_length_above_the_limit_is_refused_at_once(terminator, data):
    framer = Framer(terminator, limit=100)
    assert error_of(Calls(framer).receive(data)) == (100, 1 << 31, b"")
    assert framer.closed


def test_a_length_prefix_has_its_own_limit():
    framer = Framer(LengthPrefix("B", limit=6), limit=2)
    log = Calls(framer).receive(b"\6abcdef\7abcdefg")
    assert log[:2] == [("collect", b"abcdef"), "found"]
    assert error_of(log) == (6, 7, b"")


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
def test_a_skipped_message_ends_at_the_terminator_that_was_in_force(whole):
    framer = Framer(b"\n", limit=3, overflow=Overflow.SKIP, whole=whole)
    calls = Calls(framer, overflowed=lambda _: framer.set_terminator(b"|"))
    log = calls.receive(b"too long|and more", b"|\nab", b"c|")
    messages = b"".join(call[1] for call in log[1 + (not whole) :] if call != "found")
    assert error_of(log) == (3, 4, b"too ")
    assert messages == b"abc"


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
def test_a_skipped_number_of_bytes_is_followed_by_what_the_hook_set(whole):
    framer = Framer(6, limit=3, overflow=Overflow.SKIP, whole=whole)
    seen = []

    def set_next(_):
        seen.append(framer.terminator)
        framer.set_terminator(2)

    log = Calls(framer, overflowed=set_next).receive(b"123", b"456", b"ab")
    assert seen == [0]
    assert error_of(log) == (3, 6, b"")
    assert log[1:] == ([("message", b"ab")] if whole else [("collect", b"ab"), "found"])


def test_a_skipped_prefixed_message_is_followed_by_the_next():
    framer = Framer(LengthPrefix("B", limit=3), overflow=Overflow.SKIP, whole=True)
    log = Calls(framer).receive(b"\5abc", b"de\2f", b"g")
    assert log[1:] == [("message", b"fg")]


def test_an_exception_in_the_hook_leaves_the_policy_in_force():
    for overflow, rest in ((Overflow.SKIP, []), (Overflow.DELIVER, [b"too", b" lo", b"ng"])):
        framer = Framer(b"\n", limit=3, overflow=overflow, whole=True)
        calls = Calls(framer, overflowed=raise_boom)
        with pytest.raises(Boom):
            calls.receive(b"too long\nok\n")
        framer.deliver(calls)
        assert [call[1] for call in calls.log[1:]] == [*rest, b"ok"]


def test_an_over_long_message_delivered_whole_comes_in_parts_as_long_as_the_limit():
    framer = Framer(b"\n", limit=4, overflow=Overflow.DELIVER, whole=True)
    log = Calls(framer).receive(b"123", b"4567", b"89\nab\n12345\n")
    assert [call[1] for call in log if call[0] == "message"] == [
        *(b"1234", b"5678", b"9"),
        b"ab",
        *(b"1234", b"5"),
    ]
    assert [call[0] for call in log].count("overflowed") == 2


def test_a_pause_holds_between_the_parts_of_an_over_long_message():
    framer = Framer(b"\n", limit=2, overflow=Overflow.DELIVER, whole=True)
    calls = Calls(framer, message=lambda _: framer.pause())
    assert calls.receive(b"12345\n")[1:] == [("message", b"12")]
    framer.resume()
    framer.deliver(calls)
    assert calls.log[2:] == [("message", b"34")]
    framer.resume()
    framer.deliver(calls)
    assert calls.log[3:] == [("message", b"5")]


def test_a_part_whose_handler_raised_is_not_delivered_again():
    framer = Framer(LengthPrefix("B", limit=2), overflow=Overflow.DELIVER, whole=True)
    calls = Calls(framer, message=raise_boom)
    for _ in range(4):
        with pytest.raises(Boom):
            calls.receive(b"" if calls.log else b"\5abcde\1f")
    assert calls.log[1:] == [("message", part) for part in (b"ab", b"cd", b"e", b"f")]


def test_a_limit_lowered_in_mid_message_is_broken_by_its_next_byte():
    framer = Framer(b"\n", limit=10)
    calls = Calls(framer)
    calls.receive(b"12345")
    framer.limit = 3
    assert error_of(calls.receive(b"6"))[:2] == (3, 4)
    assert calls.log[0] == ("collect", b"12345")
    assert len(calls.log) == 2


def test_a_smaller_limit_of_a_prefix_set_in_mid_message_delivers_nothing_twice():
    framer = Framer(b"\n", limit=6, overflow=Overflow.DELIVER, whole=True)
    prefix = LengthPrefix("B", limit=2)
    calls = Calls(framer, overflowed=lambda _: framer.set_terminator(prefix))
    log = calls.receive(b"123456", b"\3abc")
    assert b"".join(call[1] for call in log if call[0] == "message") == b"123456abc"


# -- length prefixes and several delimiters


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
def test_prefixed_frames_follow_each_other_however_they_are_cut(whole):
    for chunks in every_cut(b"\0\3abc\0\0\0\1d"):
        framer = Framer(LengthPrefix("!H"), whole=whole)
        recorder = Recorder(framer, [framer.terminator])
        messages = [event[1] for event in recorder.play(chunks) if event[0] == "message"]
        assert messages == [b"abc", b"", b"d"]


def test_a_terminator_set_between_prefix_and_body_takes_the_body():
    framer = Framer(LengthPrefix("!H"))
    calls = Calls(framer)
    calls.receive(b"\0", b"\5")
    framer.set_terminator(b"\n")
    assert calls.receive(b"ab\ncd") == [("collect", b"ab"), "found", ("collect", b"cd")]


def test_a_kind_of_length_prefix_works_as_one():
    class Netlike(LengthPrefix):
        pass

    log = Calls(Framer(Netlike("B"), whole=True)).receive(b"\2ab\1c\1", b"d")
    assert log == [("message", b"ab"), ("message", b"c"), ("message", b"d")]


def test_of_several_delimiters_the_first_to_end_wins_and_then_the_longest():
    framer = Framer((b"end", b"<end", b"<end>", b"\n", b"\r\n"), whole=True)
    seen = []
    calls = Calls(framer, message=lambda message: seen.append((message, framer.matched)))
    calls.receive(b"a<end>b\r\nc\ndend")
    assert seen == [(b"a", b"<end"), (b">b", b"\r\n"), (b"c", b"\n"), (b"d", b"end")]


def test_a_message_is_found_without_waiting_for_a_longer_delimiter():
    framer = Framer((b"\r", b"\r\n"), whole=True)
    assert Calls(framer).receive(b"a\r") == [("message", b"a")]


def test_get_terminator_is_asked_on_each_round():
    framer = Framer()
    answers = iter([b"\n", 2, b"|", None])
    calls = Calls(framer)
    framer.feed(b"a\nbcd|e")
    framer.deliver(calls, lambda: next(answers))
    collected = [call[1] for call in calls.log if call != "found"]
    assert collected == [b"a", b"bc", b"d", b"e"]
    assert calls.log.count("found") == 3


def test_in_message_tells_whether_the_end_of_one_is_awaited():
    framer = Framer(b"\r\n")
    calls = Calls(framer)
    assert not framer.in_message
    for chunk, awaited in ((b"a", True), (b"\r", True), (b"\n", False), (b"\r", True)):
        calls.receive(chunk)
        assert framer.in_message is awaited
    framer.clear()
    framer.set_terminator(LengthPrefix("B"))
    assert not framer.in_message
    calls.receive(b"\3")
    assert framer.in_message
    framer.set_terminator(None)
    assert not framer.in_message
