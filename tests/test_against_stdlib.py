"""
The order of calls is that of the standard library: the `asynchat` of an installed Python 3.11.

Each case is drawn from a seed: a stream over a tiny alphabet, so that terminators and their
beginnings are everywhere; its cuts; and what the handler does inside its calls. The same script is
played to ``asynchat.async_chat`` and to ours, and the two logs of calls must be equal.

Deliberate differences, each with a test of its own here:

* a count that its own handler lowers below zero: there is no call with empty data, and what a
  handler does to the buffer at that moment is not compared;
* ``set_terminator`` refuses a wrong terminator at once, not when data comes;
* an `AsyncChat` delivers nothing after `AsyncChat.close`, nor after an exception in a handler.

What the standard library does not have (pause, limits) is tested in `tests/framing`.
"""

import random

import pytest
from twisted.internet.testing import StringTransport

import stdlib_modules
from txasynchat import AsyncChat
from txasynchat.compat._framer import LegacyFramer
from txasynchat.framing import Framer

FOLDER = stdlib_modules.find_stdlib()
if FOLDER is None:
    pytest.skip("no Python 3.11, whose asynchat is the reference, here", allow_module_level=True)
asynchat = stdlib_modules.load_stdlib(FOLDER).asynchat

ALPHABET = b"ab\n"
DELIMITERS = [b"a", b"\n", b"ab", b"aab", b"a\na", b"abab", b"ab\nab", b"aaaaaaab", b"b" * 64]
DEPTH = 3


class Boom(Exception):
    """Raised by a handler."""


class Script:
    """
    The handler's calls, and what it does in them: the same for both sides, for the same seed.
    """

    def __init__(self, seed, actions):
        self.random = random.Random(seed)
        self.actions = actions
        self.chunks = cut(self.random, stream(self.random))
        self.first_terminator = any_terminator(self.random)
        # Most handlers are harmless; some do something in nearly every call.
        self.busy = self.random.choice([0.0, 0.02, 0.1, 0.3, 0.8])
        self.where = self.random.choice(["collect", "found", "both", "both"])
        self.log = []
        self.depth = 0

    def play(self):
        self.set_terminator(self.first_terminator)
        while self.chunks:
            try:
                self.handle_read()
            except (Boom, TypeError, ValueError) as error:
                self.log.append(type(error).__name__)
            self.log.append("--")
        self.log.append((self.ac_in_buffer, self.terminator))
        return self.log

    def recv(self, size):
        return self.chunks.pop(0) if self.chunks else b""

    def collect_incoming_data(self, data):
        if not data:
            return  # see test_count_lowered_below_zero
        self.log.append(data)
        if self.where != "found":
            self.act()

    def found_terminator(self):
        self.log.append("found")
        if self.where != "collect":
            self.act()

    def act(self):
        draw = self.random
        if draw.random() >= self.busy or len(self.log) > 300:
            return
        action = draw.choice(self.actions)
        if action in TOUCHES_BUFFER and type(self.terminator) is int and self.terminator < 0:
            return  # see test_count_lowered_below_zero
        self.log.append(action)
        if action == "set":
            self.set_terminator(any_terminator(draw))
        elif action == "set the same":
            self.set_terminator(self.get_terminator())
        elif action == "assign":
            self.terminator = any_terminator(draw)
        elif action == "count":
            self.set_terminator(draw.randrange(1, 5))
        elif action == "raise":
            raise Boom
        elif action == "look":
            self.log.append((self.ac_in_buffer, self.terminator))
        elif action == "replace":
            self.ac_in_buffer = stream(draw)[:12]
        elif action == "cut":
            self.ac_in_buffer = self.ac_in_buffer[draw.randrange(3) :]
        elif action == "append":
            self.ac_in_buffer += stream(draw)[:5]
        elif action == "drop":
            self.ac_in_buffer = b""
        elif action == "read" and self.depth < DEPTH:
            self.depth += 1
            try:
                self.handle_read()
            finally:
                self.depth -= 1
            self.log.append("read")


class Stdlib(Script, asynchat.async_chat):
    def __init__(self, seed, actions):
        asynchat.async_chat.__init__(self)
        Script.__init__(self, seed, actions)


class OnFramer(Script):
    """
    The framer with the methods of ``async_chat``.
    """

    kind = Framer

    def __init__(self, seed, actions):
        super().__init__(seed, actions)
        self.framer = self.kind()
        self.set_terminator = self.framer.set_terminator

    @property
    def terminator(self):
        return self.framer.terminator

    @terminator.setter
    def terminator(self, terminator):
        self.framer.terminator = terminator

    def get_terminator(self):
        return self.framer.terminator

    @property
    def ac_in_buffer(self):
        return self.framer.buffer

    @ac_in_buffer.setter
    def ac_in_buffer(self, data):
        self.framer.buffer = data

    def handle_read(self):
        self.framer.receive(self, self.recv(65536))


class OnLegacyFramer(OnFramer):
    """
    The facade's framer, whose handlers may change the buffer.
    """

    kind = LegacyFramer


class OnLegacyFramerAsked(OnLegacyFramer):
    """
    As the facade drives it: ``get_terminator`` is asked on each round.
    """

    def handle_read(self):
        self.framer.feed(self.recv(65536))
        self.framer.deliver(self, self.get_terminator)


class OnAsyncChat(Script, AsyncChat):
    """
    The Twisted protocol on a transport in memory.
    """

    max_message_length = None

    def __init__(self, seed, actions):
        super().__init__(seed, actions)
        self.makeConnection(StringTransport())

    @property
    def ac_in_buffer(self):
        return self._inbox.buffer

    def handle_read(self):
        self.dataReceived(self.recv(65536))


def any_terminator(draw):
    kind = draw.random()
    if kind < 0.6:
        return draw.choice(DELIMITERS)
    if kind < 0.7:
        return bytes(draw.choices(ALPHABET, k=draw.randrange(1, 5)))
    if kind < 0.9:
        return draw.choice([1, 1, 2, 3, 4, 5, 8, 40, 1 << 31])
    return draw.choice([None, b"", 0])


def stream(draw):
    weights = draw.choice([(1, 1, 1), (6, 1, 1), (1, 6, 1), (8, 4, 1)])
    length = draw.choice([0, 1, 5, 20, 40, 40, 40, 60, 200])
    return bytes(draw.choices(ALPHABET, weights, k=length))


def cut(draw, data):
    longest = draw.choice([1, 3, 10, 50, 1000])
    chunks = []
    while data:
        size = draw.randrange(1, longest + 1)
        chunks.append(data[:size])
        data = data[size:]
    return chunks


TAME = ["set", "set the same", "assign", "count", "look"]
TOUCHES_BUFFER = ["replace", "cut", "append", "drop", "read"]
WILD = [*TAME, "raise", *TOUCHES_BUFFER]


ERRORS = ["Boom", "TypeError", "ValueError"]


def compare(ours, seeds, actions):
    for seed in seeds:
        expected = Stdlib(seed, actions).play()
        log = ours(seed, actions).play()
        assert log == expected, f"seed {seed}"


def compare_until_error(ours, seeds, actions):
    for seed in seeds:
        expected = Stdlib(seed, actions).play()
        log = ours(seed, actions).play()
        error = next((at for at, call in enumerate(expected) if call in ERRORS), None)
        if error is None:
            assert log == expected, f"seed {seed}"
        else:
            assert log[:error] == expected[:error], f"seed {seed}"
            assert set(log[error:-1]) == {"--"}, f"seed {seed}: calls after an exception"


@pytest.mark.usefixtures("sizes")
@pytest.mark.slow
def test_calls_are_those_of_asynchat_when_handlers_change_the_terminator_or_raise():
    compare(OnFramer, range(4_000), [*TAME, "raise"])


@pytest.mark.usefixtures("sizes")
@pytest.mark.slow
def test_calls_are_those_of_asynchat_when_handlers_change_anything():
    compare(OnLegacyFramer, range(4_000), TAME)
    compare(OnLegacyFramer, range(4_000, 8_000), WILD)


@pytest.mark.usefixtures("sizes")
@pytest.mark.slow
def test_calls_are_those_of_asynchat_when_get_terminator_is_asked():
    compare(OnLegacyFramerAsked, range(8_000, 11_000), WILD)


@pytest.mark.usefixtures("sizes")
@pytest.mark.slow
def test_calls_of_async_chat_are_those_of_asynchat_until_a_handler_raises():
    compare_until_error(OnAsyncChat, range(11_000, 14_000), [*TAME, "raise"])


@pytest.mark.parametrize("ours", [OnFramer, OnLegacyFramer])
def test_count_lowered_below_zero_ends_the_message_without_an_empty_call(ours):
    class Lowering:
        def __init__(self, *args):
            super().__init__(*args)
            self.log = []

        def collect_incoming_data(self, data):
            self.log.append(data)
            if data == b"aaaa":
                self.set_terminator(3)

        def found_terminator(self):
            self.log.append("found")

    class LoweringStdlib(Lowering, Stdlib):
        pass

    class LoweringFramer(Lowering, ours):
        pass

    def log(chat, *chunks):
        chat.chunks = list(chunks)
        chat.set_terminator(10)
        for _ in chunks:
            chat.handle_read()
        return chat.log

    # 3 is counted down by the 4 bytes that had come already: -1.
    for rest in (b"b", b"bc", b"bcde"):
        expected = log(LoweringStdlib(0, []), b"aaaa", rest)
        assert log(LoweringFramer(0, []), b"aaaa", rest) == [call for call in expected if call]
    assert log(LoweringStdlib(0, []), b"aaaa", b"b") == [b"aaaa", b"", "found", b"b"]


@pytest.mark.parametrize("wrong", ["\n", 1.5, True, (), ("\n",), object], ids=repr)
def test_wrong_terminators_are_refused_when_set_and_not_when_data_comes(wrong):
    stdlib = asynchat.async_chat()
    stdlib.set_terminator(wrong)
    with pytest.raises((TypeError, ValueError)):
        Framer().set_terminator(wrong)


def test_asynchat_delivers_after_close_and_async_chat_does_not():
    class Closing:
        def found_terminator(self):
            self.log.append("found")
            self.close()

    class ClosingStdlib(Closing, Stdlib):
        pass

    class ClosingAsyncChat(Closing, OnAsyncChat):
        pass

    def log(chat):
        chat.chunks = [b"a\nb\n", b"c"]
        chat.set_terminator(b"\n")
        chat.handle_read()
        return chat.log

    assert log(ClosingStdlib(0, [])) == [b"a", "found", b"b", "found"]
    assert log(ClosingAsyncChat(0, [])) == [b"a", "found"]
