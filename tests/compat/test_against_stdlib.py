"""
The facade beside the asyncore and asynchat of an installed Python 3.11.

The same random programs and streams go through both, and the order of handler calls has to
be the same. tests/conformance/differential.py runs as many of them as one likes.
"""

from __future__ import annotations

import pytest

import differential
import stdlib_modules
import streams

PROGRAMS = 250
STREAMS = 5_000


@pytest.fixture(scope="module")
def stdlib() -> stdlib_modules.Modules:
    modules = differential.reference()
    if modules is None:
        pytest.skip("no Python 3.11 on this machine to compare with")
    return modules


@pytest.fixture(scope="module")
def facade() -> stdlib_modules.Modules:
    return stdlib_modules.load_facade()


@pytest.mark.slow
def test_random_programs_call_their_handlers_in_the_same_order(stdlib, facade):
    report = differential.compare_programs(stdlib, facade, range(PROGRAMS))
    assert report.calls > 20 * PROGRAMS
    assert not report.differences, "\n".join(report.differences[:20])


@pytest.mark.slow
def test_random_streams_are_delivered_in_the_same_pieces(stdlib, facade):
    differences = streams.differences(
        stdlib.asynchat.async_chat, facade.asynchat.async_chat, range(STREAMS)
    )
    assert not differences, "\n".join(differences[:20])


def test_premature_close_would_be_noticed(stdlib):
    """The comparison can fail: it notices a close_when_done that does not wait for the queue."""
    broken = stdlib_modules.load_stdlib(stdlib_modules.find_stdlib())
    broken.asynchat.async_chat.close_when_done = lambda self: self.handle_close()
    report = differential.compare_programs(stdlib, broken, range(60))
    assert report.differences


def test_losing_part_of_a_terminator_would_be_noticed(stdlib):
    """The comparison can fail: it notices an asynchat that never waits for a cut terminator."""
    broken = stdlib_modules.load_stdlib(stdlib_modules.find_stdlib())
    broken.asynchat.find_prefix_at_end = lambda haystack, needle: 0
    assert streams.differences(stdlib.asynchat.async_chat, broken.asynchat.async_chat, range(200))


def test_an_exception_that_quotes_the_peer_is_printed_on_one_line(stdlib, facade, capsys):
    """In the standard library a peer could end the line and forge another."""
    shown = {}
    for name, modules in (("stdlib", stdlib), ("facade", facade)):

        class Failing(modules.asyncore.dispatcher):
            def handle_read(self):
                raise ValueError("no such command: x\nerror: forged\x1b[2J")

        channel = Failing(None, {})
        channel.connected = True
        modules.asyncore.read(channel)
        shown[name] = capsys.readouterr().out
    assert "\nerror: forged\x1b[2J" in shown["stdlib"]
    assert r"x\nerror: forged\x1b[2J" in shown["facade"]
    assert len(shown["facade"].splitlines()) == 1
