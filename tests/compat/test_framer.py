"""
What legacy handlers may do to the buffer inside a call; the order of calls is ``asynchat``'s.
"""

import pytest

from helpers.framers import Calls
from txasynchat.compat._framer import LegacyFramer


def test_replaced_buffer_is_delivered_next():
    framer = LegacyFramer(b"\n")
    replacements = iter([b"x\ny\n", b""])

    def replace():
        framer.buffer = next(replacements, framer.buffer)

    calls = Calls(framer, found=replace)
    assert calls.receive(b"a\nb\nc\n") == [("collect", b"a"), "found", ("collect", b"x"), "found"]


def test_bytes_fed_after_a_replaced_buffer_keep_their_order():
    framer = LegacyFramer(b"\n")

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


def test_nested_delivery_continues_where_the_outer_one_is():
    framer = LegacyFramer(b"\n")
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


@pytest.mark.parametrize(("terminator", "data"), [(b"|", b"ab|"), (b"|", b"ab|c|"), (2, b"ab")])
def test_message_left_unfinished_by_a_nested_delivery_ends_with_the_outer_one(terminator, data):
    framer = LegacyFramer(terminator)
    depth = []

    def nested(_):
        if not depth:
            depth.append(1)
            framer.buffer = b"xyz"
            framer.set_terminator(b"\n")
            framer.deliver(calls)

    calls = Calls(framer, collect=nested)
    calls.receive(data)
    framer.set_terminator(b"\n")
    assert calls.receive(b"1234\n") == [
        ("collect", b"ab"),
        ("collect", b"xyz"),
        "found",
        ("collect", b"1234"),
        "found",
    ]


def test_return_value_of_a_legacy_handler_is_ignored():
    framer = LegacyFramer(b"\n")
    calls = Calls(framer)
    calls.found_terminator = lambda: calls.log.append("found") or "something"
    assert calls.receive(b"\n", b"\n\n", b"a", b"\n").count("found") == 4
