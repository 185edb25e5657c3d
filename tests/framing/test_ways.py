"""
The short ways of a `Framer` deliver what the reference, `StepwiseFramer`, delivers.

Both get the same random script: bytes and cuts, a limit and its policy, and handlers that change
terminators, feed, pause, raise and close, at random; on the facade's framer they also replace the
buffer and deliver, nested. The logs of their calls, and the states they end in, must be equal.

Also covers `framing.stepwise`.
"""

import random

import pytest

from txasynchat.compat._framer import LegacyFramer
from txasynchat.errors import MalformedMessage
from txasynchat.framing import Framer, Overflow
from txasynchat.framing.stepwise import StepwiseFramer
from txasynchat.terminators import LengthPrefix, Netstring

pytestmark = pytest.mark.usefixtures("sizes")

CASES = 3_000
DEPTH = 3
ENOUGH_CALLS = 150

DELIMITERS = [b"a", b"\n", b"ab", b"aab", b"a\na", b"abab", b"ab\nab", b"a" * 15 + b"b"]
ORDERLY = [
    *("set", "count", "prefix", "pause", "pause and resume", "stop", "terminator"),
    *("limit", "overflow"),
]
DISORDERLY = [*ORDERLY, *ORDERLY, "feed", "clear", "assign", "raise", "buffer", "close"]
TOUCHES_BUFFER = ["replace", "append", "drop", "feed", "deliver", "feed and deliver"]
LEGACY = ["set", "count", "terminator", "assign", "raise", "buffer", *TOUCHES_BUFFER]


class StepwiseLegacyFramer(LegacyFramer):
    """
    The facade's framer by its reference way alone.
    """

    __slots__ = ()

    def receive(self, receiver, data):
        self.feed(data)
        self.deliver(receiver)

    def _deliver_many(self, receiver, terminator):
        return False


class Boom(Exception):
    """Raised by a handler."""


class Script:
    """
    Random calls of a framer: the same for the same seed.
    """

    def __init__(self, kind, seed, actions):
        draw = self.random = random.Random(seed)
        self.actions = actions
        data = b"".join(stream(draw, 80) for _ in range(draw.randrange(1, 4)))
        self.chunks = cut(data, draw, draw.choice([1, 3, 10, 50, 1000]))
        self.framer = kind(
            any_terminator(draw),
            **{} if issubclass(kind, LegacyFramer) else any_policy(draw),
        )
        # Most handlers are harmless; some do something in nearly every call.
        self.busy = draw.choice([0.0, 0.05, 0.2, 0.8])
        self.log = []
        self.depth = 0

    def play(self):
        framer = self.framer
        for chunk in self.chunks:
            way = self.random.randrange(5)
            if way < 3:
                self.attempt(framer.receive, self, chunk)
            else:
                framer.feed(chunk)
                if way == 3:
                    self.attempt(framer.deliver, self)
            if framer.paused and self.random.random() < 0.5:
                framer.resume()
        for _ in range(20):
            framer.resume()
            self.attempt(framer.deliver, self)
        return [*self.log, self.state()]

    def attempt(self, call, *args):
        try:
            call(*args)
        except (Boom, TypeError, ValueError, MalformedMessage) as error:
            self.log.append(f"{type(error).__name__}: {error}")
        self.log.append("--")

    def state(self):
        framer = self.framer
        # A prefix that was read means nothing to another terminator.
        body = framer._body if framer._seen is framer.terminator else None
        kept = bytes(framer._kept or b"")
        return (
            *(framer.buffer, repr(framer.terminator), framer.paused, framer.closed),
            *(framer._count, kept, body, framer._over_long),
        )

    def collect_incoming_data(self, data):
        assert data
        self.log.append(data)
        self.act()

    def found_terminator(self):
        self.log.append(("found", self.framer.matched))
        self.act()

    def message_received(self, message):
        self.log.append(("message", message, self.framer.matched))
        self.act()

    def overflowed(self, error):
        self.log.append(("overflowed", error.limit, error.count, error.sample))
        self.act()

    def act(self):
        draw, framer = self.random, self.framer
        if draw.random() >= self.busy or len(self.log) > ENOUGH_CALLS:
            return
        action = draw.choice(self.actions)
        self.log.append(action)
        match action:
            case "set":
                framer.set_terminator(any_terminator(draw))
            case "count":
                framer.set_terminator(draw.randrange(1, 5))
            case "prefix":
                framer.set_terminator(any_prefix(draw))
            case "limit":
                framer.limit = draw.choice([None, 0, 1, 2, 4, 7, 20])
            case "overflow":
                framer.overflow = draw.choice(list(Overflow))
            case "assign":
                framer.terminator = any_terminator(draw)
            case "terminator":
                self.log.append(repr(framer.terminator))
            case "buffer":
                self.log.append(framer.buffer)
            case "replace":
                framer.buffer = stream(draw, 12)
            case "append":
                framer.buffer += stream(draw, 5)
            case "drop":
                framer.buffer = b""
            case "pause":
                framer.pause()
            case "stop":
                framer.stop()
            case "pause and resume":
                framer.pause()
                framer.resume()
            case "feed":
                framer.feed(stream(draw, 12))
            case "deliver" | "feed and deliver" if self.depth < DEPTH:
                self.depth += 1
                try:
                    if action == "feed and deliver":
                        framer.feed(stream(draw, 12))
                    framer.deliver(self)
                finally:
                    self.depth -= 1
            case "clear":
                framer.clear()
            case "close":
                framer.close()
            case "raise":
                raise Boom


def any_policy(draw):
    return {
        "limit": draw.choice([None, None, 0, 1, 2, 4, 7, 20]),
        "overflow": draw.choice(list(Overflow)),
        "whole": draw.random() < 0.5,
    }


def any_terminator(draw):
    kind = draw.random()
    if kind < 0.45:
        return draw.choice(DELIMITERS)
    if kind < 0.6:
        sizes = draw.choices([1, 1, 2, 3], k=draw.randrange(1, 4))
        several = [bytes(draw.choices(b"ab\n", k=size)) for size in sizes]
        # Without those that could never match, which are refused.
        return tuple(one for one in several if not any(two in one[:-1] for two in several))
    if kind < 0.7:
        return draw.choice([None, b"", 0])
    if kind < 0.85:
        return draw.choice([1, 1, 2, 3, 4, 5, 8, 40])
    return any_prefix(draw)


def any_prefix(draw):
    limit = draw.choice([0, 2, 6, 100])
    if draw.random() < 0.3:
        return Netstring(limit=limit)
    return LengthPrefix(draw.choice(["B", "!H", "varint"]), limit=limit)


def stream(draw, longest):
    parts = []
    for _ in range(draw.randrange(6)):
        kind = draw.random()
        if kind < 0.2:
            parts.append(bytes([0, draw.randrange(6)]))
        elif kind < 0.3:
            bodies = [bytes(draw.choices(b"ab\n", k=draw.randrange(5))) for _ in range(3)]
            ends = draw.choices([b",", b"x", b""], (8, 1, 1), k=3)
            parts += [
                b"%d:%b%b" % (len(body), body, end) for body, end in zip(bodies, ends, strict=True)
            ]
        elif kind < 0.4:
            parts.append(draw.choice(DELIMITERS) * draw.randrange(1, 9))
        else:
            weights = draw.choice([(1, 1, 1), (6, 1, 1), (8, 4, 1)])
            parts.append(bytes(draw.choices(b"ab\n", weights, k=draw.randrange(1, 20))))
    return b"".join(parts)[:longest]


def cut(data, draw, longest):
    chunks = []
    while data:
        size = draw.randrange(1, longest + 1)
        chunks.append(data[:size])
        data = data[size:]
    return chunks


@pytest.mark.parametrize("actions", [ORDERLY, DISORDERLY], ids=["orderly", "disorderly"])
@pytest.mark.slow
def test_both_ways_make_the_same_calls(actions):
    for seed in range(CASES):
        expected = Script(StepwiseFramer, seed, actions).play()
        assert Script(Framer, seed, actions).play() == expected, f"seed {seed}"


@pytest.mark.slow
def test_both_ways_of_the_facade_make_the_same_calls():
    for seed in range(CASES):
        expected = Script(StepwiseLegacyFramer, seed, LEGACY).play()
        assert Script(LegacyFramer, seed, LEGACY).play() == expected, f"seed {seed}"
