"""
What may end a message: accepted values, refused values, and where delimiters are found.
"""

import enum
import re
from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txasynchat.framing import Framer
from txasynchat.terminators import (
    LengthPrefix,
    Netstring,
    check_terminator,
    compile_delimiters,
    prefix_length_at_end,
)

# -- which values


@pytest.mark.parametrize("terminator", [b"\n", b"", b"x" * 64, None, 0, 1, 1 << 40, (b"\n", b"ab")])
def test_valid_terminators_are_kept_as_they_are(terminator):
    framer = Framer()
    framer.set_terminator(terminator)
    assert framer.terminator == terminator
    assert type(framer.terminator) is type(terminator)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("\r\n", TypeError),
        (1.0, TypeError),
        (True, TypeError),
        (False, TypeError),
        ([b"\n"], TypeError),
        ({b"\n"}, TypeError),
        (LengthPrefix, TypeError),
        (-1, ValueError),
        ((), ValueError),
        (("\n",), TypeError),
        ((b"\n", "x"), TypeError),
        ((b"\n", 3), TypeError),
        ((b"\n", b""), ValueError),
        ((bytearray(b"\n"),), TypeError),
    ],
    ids=repr,
)
def test_invalid_terminators_are_refused_at_once_and_named(wrong, error):
    framer = Framer(b"\n")
    with pytest.raises(error, match="terminator") as caught:
        framer.set_terminator(wrong)
    named = wrong
    if isinstance(wrong, tuple) and error is TypeError:
        [named] = [one for one in wrong if type(one) is not bytes]
    assert repr(named) in str(caught.value)
    assert framer.terminator == b"\n"
    with pytest.raises(error):
        Framer(wrong)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_byte_objects_are_copied(kind):
    original = bytearray(b"\r\n")
    framer = Framer(kind(original))
    original[:] = b"xx"
    assert framer.terminator == b"\r\n"
    assert type(framer.terminator) is bytes


def test_subclasses_of_bytes_int_and_tuple_are_accepted():
    class Name(bytes):
        __slots__ = ()

    class Size(enum.IntEnum):
        HEADER = 4

    ends = namedtuple("ends", "unix dos")  # noqa: PYI024 this is not about types
    assert type(check_terminator(Name(b"\n"))) is bytes
    assert check_terminator(Size.HEADER) == 4
    assert type(check_terminator(ends(b"\n", b"\r\n"))) is tuple


def test_the_terminator_in_force_is_not_checked_again():
    """A handler that sets its tuple for each message pays for the check once."""
    checked = []

    class Counted(bytes):
        __slots__ = ()

        def __getitem__(self, key):
            checked.append(key)
            return bytes(self)[key]

    ends = (Counted(b"\r\n\r\n"), b"\n\n")
    framer = Framer()
    framer.set_terminator(ends)
    assert checked
    checked.clear()
    framer.set_terminator(ends)
    assert not checked
    assert framer.terminator == ends


# -- length prefixes


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [
        ("B", b"\3"),
        ("varint", b"\3"),
        ("!H", b"\0\3"),
        ("<H", b"\3\0"),
        ("!I", b"\0\0\0\3"),
        ("<Q", b"\3" + bytes(7)),
    ],
)
def test_a_prefix_is_packed_and_read_in_its_format(layout, prefix):
    terminator = LengthPrefix(layout)
    assert terminator.pack(b"abc") == prefix + b"abc"
    assert terminator.read(b"--" + prefix, 2) == (3, 2 + len(prefix))
    assert terminator.read(b"--" + prefix[:-1], 2) is None


@pytest.mark.parametrize(
    "wrong", ["", "x", "varints", "!i", "b", "!HH", "!P", "zz", "!f", "4s", "?", "c", "I", "P"]
)
def test_format_other_than_one_unsigned_integer_is_refused_and_named(wrong):
    with pytest.raises(ValueError, match=re.escape(repr(wrong))):
        LengthPrefix(wrong)


def test_a_negative_limit_is_refused_and_named():
    with pytest.raises(ValueError, match="-1"):
        LengthPrefix("!I", limit=-1)


def test_limit_is_at_most_what_the_format_can_express():
    assert LengthPrefix("B").limit == 255
    assert LengthPrefix("!H", limit=None).limit == 65_535
    assert LengthPrefix("!I").limit == 1 << 20
    assert LengthPrefix("!I", limit=10).limit == 10
    assert LengthPrefix("varint", limit=None).limit == 2**64 - 1


def test_a_body_above_the_limit_is_not_packed():
    terminator = LengthPrefix("!H", limit=3)
    assert terminator.pack(b"abc") == b"\0\3abc"
    with pytest.raises(ValueError, match="body of 4 bytes exceeds the limit, 3"):
        terminator.pack(b"abcd")
    with pytest.raises(ValueError, match="body of 256 bytes exceeds the limit, 255"):
        LengthPrefix("B", limit=None).pack(bytes(256))


def test_length_prefix_has_a_helpful_repr():
    assert repr(LengthPrefix("!H", limit=9)) == "LengthPrefix('!H', limit=9)"
    assert repr(LengthPrefix("varint", limit=9)) == "LengthPrefix('varint', limit=9)"


# -- netstrings


def test_netstring_is_packed_and_its_length_read():
    terminator = Netstring(limit=12)
    assert terminator.pack(b"") == b"0:,"
    assert terminator.pack(b"hello world!") == b"12:hello world!,"
    assert terminator.read(b"--12:hello", 2) == (12, 5)
    assert terminator.read(b"--12", 2) is None
    assert terminator.read(b"--", 2) is None
    with pytest.raises(ValueError, match="body of 13 bytes exceeds the limit, 12"):
        terminator.pack(bytes(13))


def test_netstring_limit_is_checked_and_shown():
    assert repr(Netstring()) == "Netstring(limit=1048576)"
    assert Netstring(limit=None).limit == 10**20 - 1
    with pytest.raises(ValueError, match="-1"):
        Netstring(limit=-1)


# -- looking for delimiters


@pytest.mark.parametrize(
    ("several", "loser", "winner"),
    [
        ((b"\r\n", b"\r"), r"b'\\r\\n'", r"b'\\r'"),
        ((b"\r", b"\r\n"), r"b'\\r\\n'", r"b'\\r'"),
        ((b"end", b"<end", b"<end>"), "b'<end>'", "b'end'"),
    ],
)
def test_a_delimiter_that_can_never_match_is_refused(several, loser, winner):
    with pytest.raises(
        ValueError, match=f"{loser} can never match, because {winner} ends before it"
    ):
        check_terminator(several)


def test_delimiters_that_end_together_or_apart_are_accepted():
    for several in ((b"\n", b"\r\n"), (b"\r\n", b"\n"), (b"a", b"b"), (b"\n", b"\n")):
        assert check_terminator(several) == several


delimiters = st.text("ab", min_size=1, max_size=8).map(str.encode)
data = st.text("ab", max_size=60).map(str.encode)


def that_can_match(several):
    """Filter out those that `check_terminator` refuses."""
    return tuple(one for one in several if not any(other in one[:-1] for other in several))


tuples = st.lists(delimiters, min_size=1, max_size=5).map(that_can_match)


@given(
    data=data, terminator=st.one_of(delimiters, st.just(b"a" * 63 + b"b")), start=st.integers(0, 9)
)
def test_longest_tail_that_may_begin_the_terminator_is_counted(data, terminator, start):
    tails = [
        size
        for size in range(len(terminator))
        if data.endswith(terminator[:size]) and size <= max(0, len(data) - start)
    ]
    if terminator not in data[start:]:
        assert prefix_length_at_end(data, terminator, start) == max(tails)


@given(data=data, several=tuples)
def test_match_that_ends_first_wins_and_of_those_the_longest(data, several):
    ends = (
        (end, -len(one), one)
        for end in range(1, len(data) + 1)
        for one in several
        if data[:end].endswith(one)
    )
    first = min(ends, default=None)
    found = compile_delimiters(several).find(data)
    if first is None:
        assert found is None
    else:
        assert (found.end(), found[0]) == (first[0], first[2])


@given(data=data, several=tuples)
def test_bytes_are_held_exactly_while_they_may_begin_the_winning_match(data, several):
    compiled = compile_delimiters(several)
    if compiled.find(data):
        return
    held = compiled.prefix_length_at_end(data, 0)
    # More bytes can make the held ones a delimiter, and no bytes before them.
    beginnings = {one[:size] for one in several for size in range(len(one))}
    tails = {data[len(data) - size :] for size in range(len(data) + 1)}
    assert held == max(len(tail) for tail in beginnings & tails)


def test_delimiters_are_not_patterns():
    assert compile_delimiters((b".", b"a+")).find(b"xaaa") is None
    assert compile_delimiters((b".*", b"[")).find(b"x[")[0] == b"["
