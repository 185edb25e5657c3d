"""
What a `Framer` does, one behaviour a test; `test_properties` covers any bytes and cuts.

Also covers `framing.overlong` and `framing.receivers`.
"""

import pytest

from helpers.framers import Calls
from txasynchat.framing import Framer, Overflow
from txasynchat.terminators import LengthPrefix, Netstring


class Boom(Exception):
    """Raised by a handler."""


def messages_of(log):
    messages, pieces = [], []
    for call in log:
        if call == "found":
            messages.append(b"".join(pieces))
            pieces.clear()
        else:
            (pieces if call[0] == "collect" else messages).append(call[1])
    return messages


def raise_boom(*args):
    raise Boom


def test_data_is_delivered_as_it_arrives_except_a_possible_terminator_start():
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
def test_without_terminator_the_limit_does_not_apply_to_delivered_data(nothing):
    calls = Calls(Framer(nothing, limit=3))
    assert calls.receive(b"", b"abcdef", b"", b"g") == [("collect", b"abcdef"), ("collect", b"g")]


def test_number_counts_down_to_zero_at_the_end_of_the_message():
    framer = Framer(5)
    seen = []
    calls = Calls(framer, found=lambda: seen.append(framer.terminator))
    assert calls.receive(b"abc") == [("collect", b"abc")]
    assert framer.terminator == 2
    assert calls.receive(b"defg")[1:] == [("collect", b"de"), "found", ("collect", b"fg")]
    assert seen == [0]


def test_framer_knows_what_ended_the_message():
    framer = Framer((b"\n", b"\r\n"))
    seen = []
    calls = Calls(framer, found=lambda: seen.append(framer.matched))
    calls.receive(b"a\r\nb\nc\r", b"\n")
    framer.set_terminator(1)
    calls.receive(b"d")
    assert seen == [b"\r\n", b"\n", b"\r\n", None]


def test_terminator_set_in_a_handler_applies_to_what_follows():
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


def test_message_paused_in_its_last_piece_still_ends():
    framer = Framer(b"\n")
    calls = Calls(framer, collect=lambda _: framer.pause())
    assert calls.receive(b"a\nb\n") == [("collect", b"a"), "found"]


ENDS = pytest.mark.parametrize(
    ("terminator", "first", "second"),
    [
        (b"\n", b"ab\n", b"c\n"),
        ((b"\n", b"\r\n"), b"ab\r\n", b"c\n"),
        (2, b"ab", b"c"),
        (LengthPrefix("B"), b"\x02ab", b"\x01c"),
        (Netstring(), b"2:ab,", b"1:c,"),
    ],
)


@ENDS
@pytest.mark.parametrize("split", [False, True])
def test_a_message_stopped_in_its_last_piece_ends_when_delivery_goes_on(
    terminator, first, second, split
):
    framer = Framer(terminator)
    data = first + second
    calls = Calls(framer, collect=lambda _: framer.stop(), found=lambda: framer.set_terminator(1))
    if not isinstance(terminator, int):
        del calls.actions["found"]
    for chunk in [data[at : at + 1] for at in range(len(data))] if split else [data]:
        framer.feed(chunk)
        framer.deliver(calls)
    assert "found" not in calls.log
    assert b"".join(piece for _, piece in calls.log) == (b"a" if split else b"ab")
    for _ in range(4):
        framer.resume()
        framer.deliver(calls)
    assert messages_of(calls.log) == [b"ab", b"c"]
    assert not framer.waiting


@ENDS
def test_what_waits_behind_a_stopped_message_is_what_follows_it(terminator, first, second):
    framer = Framer(terminator)
    calls = Calls(framer, collect=lambda _: framer.stop())
    calls.receive(first + second)
    assert framer.buffer == second
    framer.clear()
    framer.resume()
    framer.deliver(calls)
    assert calls.log == [("collect", b"ab")]


def test_pause_undone_in_the_same_handler_changes_nothing():
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


@pytest.mark.parametrize(
    ("terminator", "data"),
    [
        (b"\n", b"a\n"),
        (b"\n", b"a\nb\n"),
        (b"\n", b"a"),
        (b"\r\n", b"a\r"),
        ((b"\n", b"\r\n"), b"a\nb\n"),
        (1, b"ab"),
        (5, b"a"),
        (LengthPrefix("B"), b"\1a\1b"),
        (None, b"a"),
    ],
)
def test_nothing_follows_a_close_in_the_middle_of_a_message(terminator, data):
    framer = Framer(terminator)
    calls = Calls(framer, collect=lambda _: framer.close())
    assert len(calls.receive(data)) == 1
    assert framer.buffer == b""


def test_buffer_holds_what_is_not_yet_delivered():
    framer = Framer(b"\n")
    seen = []
    look = lambda *_: seen.append(framer.buffer)  # noqa: E731 it is one
    Calls(framer, collect=look, found=look).receive(b"a\nbc\nd")
    assert seen == [b"a\nbc\nd", b"bc\nd", b"bc\nd", b"d", b"d"]
    assert framer.buffer == b""


def test_clear_drops_every_waiting_chunk():
    framer = Framer(b"\n", whole=True)
    calls = Calls(framer)
    framer.pause()
    calls.receive(b"a\n", b"b\n", b"c\n")
    framer.clear()
    framer.feed(b"x\n")
    framer.resume()
    framer.deliver(calls)
    assert calls.log == [("message", b"x")]


def test_bytes_fed_in_a_handler_follow_those_already_buffered():
    for whole in (False, True):
        framer = Framer(b"\n", whole=whole)
        more = iter([b"c\n"])
        feed = lambda *_: framer.feed(next(more, b""))  # noqa: B023, E731 used at once
        calls = Calls(framer, found=feed, message=feed)
        log = calls.receive(b"a\n", b"b\n")
        messages = [call[1] for call in log if call != "found"]
        assert messages == [b"a", b"c", b"b"]


def test_exception_keeps_a_piece_and_drops_an_ended_message():
    framer = Framer(b"\n")
    with pytest.raises(Boom):
        Calls(framer, collect=raise_boom).receive(b"a\nb\n")
    assert framer.buffer == b"a\nb\n"
    with pytest.raises(Boom):
        Calls(framer, found=raise_boom).receive(b"c\n")
    assert framer.buffer == b"b\nc\n"


def test_clear_drops_waiting_bytes_and_the_unfinished_message():
    framer = Framer(b"\n", whole=True, limit=4)
    calls = Calls(framer)
    calls.receive(b"abc")
    framer.pause()
    calls.receive(b"d\ne\nf")
    framer.clear()
    framer.resume()
    assert calls.receive(b"ghij\n") == [("message", b"ghij")]


@pytest.mark.parametrize("name", ["collect", "found"])
def test_clear_in_a_handler_drops_what_follows_the_message(name):
    framer = Framer(b"\n", limit=3)
    calls = Calls(framer, **{name: lambda *_: framer.clear()})
    log = calls.receive(b"abc\nb\nc", b"\n", b"def\n")
    assert messages_of(log) == [b"abc", b"", b"def"]


def test_after_clear_inside_a_prefixed_message_a_prefix_is_next():
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
def test_message_as_long_as_the_limit_is_delivered_at_any_split(whole, terminator, end):
    for chunks in every_cut(b"abcd" + end):
        framer = Framer(terminator, limit=4, whole=whole)
        log = Calls(framer).receive(*chunks)
        assert not framer.closed
        assert b"".join(call[1] for call in log if call != "found") == b"abcd"
        assert framer.matched == end


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
@pytest.mark.parametrize(("terminator", "end"), LINE_ENDS)
def test_message_one_byte_over_the_limit_is_too_long_at_any_split(whole, terminator, end):
    for chunks in every_cut(b"abcde" + end + b"f"):
        framer = Framer(terminator, limit=4, whole=whole)
        log = Calls(framer).receive(*chunks)
        assert framer.closed
        assert error_of(log) == (4, 5, b"abcde")
        assert log[-1][0] == "overflowed"
        assert b"".join(call[1] for call in log[:-1]) == (b"" if whole else b"abcd")


def test_error_holds_at_most_128_bytes_and_its_text_none():
    log = Calls(Framer(b"\n", limit=1000)).receive(b"x" * 100, b"y" * 100, b"z" * 1000)
    assert error_of(log) == (1000, 1001, b"x" * 100 + b"y" * 28)
    assert str(log[-1][1]) == "message of at least 1001 bytes, limit 1000"


@pytest.mark.parametrize(
    ("terminator", "data"), [(1 << 31, b"a"), (LengthPrefix("!I", limit=100), b"\x80\0\0\0")]
)
def test_announced_length_above_the_limit_is_refused_at_once(terminator, data):
    framer = Framer(terminator, limit=100)
    assert error_of(Calls(framer).receive(data)) == (100, 1 << 31, b"")
    assert framer.closed


def test_a_length_prefix_has_its_own_limit():
    framer = Framer(LengthPrefix("B", limit=6), limit=2)
    log = Calls(framer).receive(b"\6abcdef\7abcdefg")
    assert log[:2] == [("collect", b"abcdef"), "found"]
    assert error_of(log) == (6, 7, b"")


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
def test_skipped_message_ends_at_the_terminator_then_in_force(whole):
    framer = Framer(b"\n", limit=3, overflow=Overflow.SKIP, whole=whole)
    calls = Calls(framer, overflowed=lambda _: framer.set_terminator(b"|"))
    log = calls.receive(b"too long|and more", b"|\nab", b"c|")
    messages = b"".join(call[1] for call in log[1 + (not whole) :] if call != "found")
    assert error_of(log) == (3, 4, b"too ")
    assert messages == b"abc"


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
def test_after_a_skipped_number_of_bytes_the_hooks_terminator_applies(whole):
    framer = Framer(6, limit=3, overflow=Overflow.SKIP, whole=whole)
    seen = []

    def set_next(_):
        seen.append(framer.terminator)
        framer.set_terminator(2)

    log = Calls(framer, overflowed=set_next).receive(b"123", b"456", b"ab")
    assert seen == [0]
    assert error_of(log) == (3, 6, b"")
    assert log[1:] == ([("message", b"ab")] if whole else [("collect", b"ab"), "found"])


def test_without_terminator_bytes_over_the_limit_are_dropped_until_one_is_set():
    for chunks in every_cut(b"abcdefgh"):
        framer = Framer(None, limit=3, overflow=Overflow.SKIP, whole=True)
        calls = Calls(framer)
        assert error_of(calls.receive(*chunks)) == (3, 4, b"abcd")
        framer.set_terminator(b"\n")
        assert calls.receive(b"i\n")[1:] == [("message", b"i")]


def test_terminator_set_after_an_overflow_without_one_applies_to_the_rest():
    for chunks in every_cut(b"abcdef\ngh\n"):
        framer = Framer(None, limit=3, overflow=Overflow.SKIP, whole=True)
        calls = Calls(framer, overflowed=lambda _: framer.set_terminator(b"\n"))  # noqa: B023
        assert calls.receive(*chunks)[1:] == [("message", b"ef"), ("message", b"gh")]


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


def test_over_long_message_is_delivered_in_parts_as_long_as_the_limit():
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


def test_limit_lowered_in_mid_message_is_exceeded_by_the_next_byte():
    framer = Framer(b"\n", limit=10)
    calls = Calls(framer)
    calls.receive(b"12345")
    framer.limit = 3
    assert error_of(calls.receive(b"6"))[:2] == (3, 4)
    assert calls.log[0] == ("collect", b"12345")
    assert len(calls.log) == 2


def test_prefix_with_a_smaller_limit_set_in_mid_message_delivers_nothing_twice():
    framer = Framer(b"\n", limit=6, overflow=Overflow.DELIVER, whole=True)
    prefix = LengthPrefix("B", limit=2)
    calls = Calls(framer, overflowed=lambda _: framer.set_terminator(prefix))
    log = calls.receive(b"123456", b"\3abc")
    assert b"".join(call[1] for call in log if call[0] == "message") == b"123456abc"


# -- length prefixes and several delimiters


@pytest.mark.parametrize("whole", [False, True], ids=["pieces", "whole"])
def test_prefixed_frames_follow_each_other_at_any_split(whole):
    for chunks in every_cut(b"\0\3abc\0\0\0\1d"):
        framer = Framer(LengthPrefix("!H"), whole=whole)
        log = Calls(framer).receive(*chunks)
        assert messages_of(log) == [b"abc", b"", b"d"]


def test_a_terminator_set_between_prefix_and_body_takes_the_body():
    framer = Framer(LengthPrefix("!H"))
    calls = Calls(framer)
    calls.receive(b"\0", b"\5")
    framer.set_terminator(b"\n")
    assert calls.receive(b"ab\ncd") == [("collect", b"ab"), "found", ("collect", b"cd")]


def test_subclass_of_length_prefix_works():
    class Netlike(LengthPrefix):
        pass

    log = Calls(Framer(Netlike("B"), whole=True)).receive(b"\2ab\1c\1", b"d")
    assert log == [("message", b"ab"), ("message", b"c"), ("message", b"d")]


def test_delimiter_that_ends_first_wins_and_then_the_longest():
    framer = Framer((b"end", b"<end", b"\n", b"\r\n"), whole=True)
    seen = []
    calls = Calls(framer, message=lambda message: seen.append((message, framer.matched)))
    calls.receive(b"a<end>b\r\nc\ndend")
    assert seen == [(b"a", b"<end"), (b">b", b"\r\n"), (b"c", b"\n"), (b"d", b"end")]


def test_a_delimiter_that_could_never_match_is_refused_when_it_is_set():
    framer = Framer()
    with pytest.raises(ValueError, match="can never match"):
        framer.set_terminator((b"\r", b"\r\n"))
    assert framer.terminator is None


def test_get_terminator_is_asked_on_each_round():
    framer = Framer()
    answers = iter([b"\n", 2, b"|", None])
    calls = Calls(framer)
    framer.feed(b"a\nbcd|e")
    framer.deliver(calls, lambda: next(answers))
    collected = [call[1] for call in calls.log if call != "found"]
    assert collected == [b"a", b"bc", b"d", b"e"]
    assert calls.log.count("found") == 3


def test_in_message_is_true_while_a_message_is_unfinished():
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
    framer.set_terminator(2)
    assert not framer.in_message
    calls.receive(b"a")
    assert framer.in_message
    framer.set_terminator(None)
    assert not framer.in_message
