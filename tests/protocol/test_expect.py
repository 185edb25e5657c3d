r"""
Lines and bodies in one protocol: `AsyncChat.expect`, and bytes given back by `AsyncChat.unread`.

The properties compare a handler with a model that has the whole stream at once, and so cannot know how
it was cut.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from helpers import wire
from helpers.kinds import on_the_hub_too
from helpers.memory import Chat, connected
from helpers.support import in_thread, until
from txasynchat import AsyncChat, LengthPrefix, Overflow, State

# -- the model: what a handler does with each message in turn, and what it is given then

LIMIT = 40


class Expecting(AsyncChat):
    """Whole messages; after each it does the next of its actions."""

    max_message_length = LIMIT
    overflow = Overflow.SKIP

    def __init__(self, terminator, actions):
        self.set_terminator(terminator)
        self.actions = iter(actions)
        self.events = []

    def message_received(self, message):
        self.events.append(message)
        name, *arguments = next(self.actions, ("nothing",))
        if name == "expect":
            self.expect(*arguments)
        elif name == "set":
            self.set_terminator(*arguments)
        elif name == "unread":
            self.unread(message[arguments[0] :])
        elif name == "twice":
            self.unread(b"b\n")
            self.unread(b"a\n")
        elif name == "unread and expect":
            self.unread(message)
            self.expect(*arguments)

    def message_too_long(self, error):
        self.events.append(("too long", error.count))

    def handle_eof(self, rest):
        self.events.append(("eof", rest))


class InPieces(Expecting):
    """The same by the hooks of ``asynchat``."""

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.message_received(self._get_data())


def model(data, terminator, actions):
    """What `Expecting` notes, by definition."""
    events = []
    actions = iter(actions)
    length = most = None
    while True:
        if length is not None:
            count, limit = length, most
            length = None
            if count > limit:
                events.append(("too long", count))
                if len(data) < count:
                    return [*events, ("eof", b"")]
                data = data[count:]
                continue
            if len(data) < count:
                break
            message, data = data[:count], data[count:]
        else:
            message, found, behind = data.partition(terminator)
            if not found:
                break
            data = behind
        events.append(message)
        name, *arguments = next(actions, ("nothing",))
        if name == "unread":
            data = message[arguments[0] :] + data
        elif name == "twice":
            data = b"a\nb\n" + data
        elif name == "set":
            (terminator,) = arguments
        elif "expect" in name:
            length, most = arguments
            most = LIMIT if most is None else most
            if name == "unread and expect":
                data = message + data
    return [*events, ("eof", data)]


streams = st.lists(st.sampled_from([b"a", b"b", b"\n", b"ab\n", b"\n\n", b"ba"]), max_size=12).map(
    b"".join
)
limits = st.sampled_from([None, None, 0, 3, 60])
lengths = st.sampled_from([0, 0, 1, 2, 3, 7, 41, 50])
actions = st.lists(
    st.one_of(
        st.just(("nothing",)),
        st.tuples(st.just("expect"), lengths, limits),
        st.tuples(st.just("unread and expect"), lengths, limits),
        st.tuples(st.just("set"), st.sampled_from([b"\n", b"ab", b"aba"])),
        st.tuples(st.just("unread"), st.integers(0, 3)),
        st.just(("twice",)),
    ),
    max_size=12,
)
cuts = st.lists(st.integers(0, 30), max_size=6)


def cut(data, at):
    at = sorted({0, len(data), *(one for one in at if one < len(data))})
    return [data[begin:end] for begin, end in itertools.pairwise(at)]


@pytest.mark.parametrize("cls", [Expecting, InPieces])
class TestProperties:
    @given(streams, st.sampled_from([b"\n", b"ab"]), actions, cuts)
    def test_a_handler_gets_what_it_expects_however_the_bytes_were_cut(
        self, cls, data, terminator, actions, cuts
    ):
        chat = cls(terminator, actions)
        connected(chat)
        for piece in cut(data, cuts):
            chat.dataReceived(piece)
        chat.readConnectionLost()
        assert chat.events == model(data, terminator, actions)

    @given(streams, streams, streams, st.sampled_from([b"\n", b"ab"]), cuts)
    def test_bytes_given_back_at_any_time_come_before_what_waits(
        self, cls, data, given_back, more, terminator, cuts
    ):
        chat = cls(terminator, ())
        connected(chat)
        for piece in cut(data, cuts):
            chat.dataReceived(piece)
        waits = model(data, terminator, ())[-1][1]
        chat.unread(given_back)
        for piece in cut(more, cuts):
            chat.dataReceived(piece)
        chat.readConnectionLost()
        stream = data[: len(data) - len(waits)]
        if cls is InPieces:  # what waits was given to a hook already, but for a tail
            tail = next(
                size
                for size in range(len(terminator) - 1, -1, -1)
                if waits.endswith(terminator[:size])
            )
            parts = waits[: len(waits) - tail], given_back, waits[len(waits) - tail :]
        else:
            parts = given_back, waits
        expected = model(b"".join((*parts, more)), terminator, ())
        if cls is Expecting or tail == 0:
            assert chat.events == model(stream, terminator, ())[:-1] + expected


class Frames(AsyncChat):
    terminator = LengthPrefix("B")

    def __init__(self):
        self.messages = []

    def message_received(self, message):
        self.messages.append(message)


class TestUnread:
    @given(st.integers(0, 9))
    def test_the_length_before_a_message_is_given_back_with_what_is_kept(self, size):
        chat = Frames()
        connected(chat)
        stream = b"\2ab\5hello"
        chat.dataReceived(stream[:size])
        done = sum(1 + len(message) for message in chat.messages)
        chat.unread(b"\1x")
        chat.dataReceived(stream[size:])
        messages = [b"ab", b"hello"]
        messages.insert({0: 0, 3: 1, 9: 2}[done], b"x")
        assert chat.messages == messages

    def test_a_number_that_counts_down_goes_on_counting(self):
        chat = Chat()
        connected(chat)
        chat.set_terminator(5)
        chat.dataReceived(b"abc")
        chat.unread(b"xy")
        assert chat.messages == [b"xyabc"]
        chat.set_terminator(5)
        chat.dataReceived(b"ab")
        chat.unread(b"x")
        assert chat.messages == [b"xyabc"]
        chat.dataReceived(b"cde")
        assert chat.messages == [b"xyabc", b"xabcd"]

    @given(
        st.lists(st.sampled_from([b"abc\n", b"\n", b"abcdefghij\n", b"a\n"]), max_size=6),
        st.sampled_from([b"\n", 3, LengthPrefix("B"), None]),
        cuts,
    )
    def test_a_piece_given_back_is_counted_once(self, lines, terminator, cuts):
        """Of a piece one byte, all or nothing is taken: the messages, and the limit, are the same."""

        class Pieces(AsyncChat):
            max_message_length = 10

            def __init__(self):
                self.set_terminator(terminator or b"\n")
                self.messages = []
                self.part = b""
                self.calls = 0

            def collect_incoming_data(self, data):
                self.calls += 1
                size = (1, len(data), 0)[self.calls % 3]
                self.unread(data[size:])
                self.part += data[:size]

            def found_terminator(self):
                self.messages.append(self.part)
                self.part = b""
                if terminator == 3:
                    self.set_terminator(3)
                elif terminator is None:
                    self.expect(3 * (len(self.messages) % 2))

        chat = Pieces()
        connected(chat)
        stream = b"".join(lines)
        if isinstance(terminator, LengthPrefix):
            stream = b"".join(map(terminator.pack, lines))
        for piece in cut(stream, cuts):
            chat.dataReceived(piece)
        assert chat.close_reason is None
        messages = chat.messages
        if terminator == b"\n":
            assert [message + b"\n" for message in messages] == lines
        elif terminator == 3:
            assert b"".join(messages) == stream[: len(stream) // 3 * 3]
        elif terminator is not None:
            assert messages == lines

    def test_a_hook_may_take_a_part_and_frame_the_rest_otherwise(self):
        for first in (b"\n", 9):

            class Pieces(AsyncChat):
                def __init__(self, first):
                    self.set_terminator(first)
                    self.events = []

                def collect_incoming_data(self, data):
                    self.events.append(data)
                    if len(self.events) == 1:
                        self.events = [data[:2]]
                        self.set_terminator(b";")
                        self.unread(data[2:])

                def found_terminator(self):
                    self.events.append(None)

            chat = Pieces(first)
            connected(chat)
            chat.dataReceived(b"abcde;fgh\nijk;")
            assert chat.events == [b"ab", b"cde", None, b"fgh\nijk", None]

    def test_paused_delivery_keeps_it(self):
        chat = Chat()
        connected(chat)
        chat.pause()
        chat.dataReceived(b"two\n")
        chat.unread(b"one\n")
        assert chat.messages == []
        chat.resume()
        assert chat.messages == [b"one", b"two"]

    def test_before_the_connection_it_waits(self):
        chat = Chat()
        chat.unread(bytearray(b"one\n"))
        connected(chat)
        assert chat.messages == [b"one"]

    def test_after_the_end_it_is_dropped(self):
        chat = Chat(lambda chat, _: chat.close())
        connected(chat)
        chat.dataReceived(b"one\n")
        chat.unread(b"two\n")
        assert chat.messages == [b"one"]

    def test_text_is_refused(self):
        with pytest.raises(TypeError):
            Chat().unread("text")


class TestExpect:
    def test_lines_and_bodies_with_limits_of_their_own(self):
        """As memcached has them."""

        class Memcached(AsyncChat):
            terminator = b"\r\n"
            max_message_length = 20

            def __init__(self):
                self.stored = []
                self.key = None

            def message_received(self, message):
                if self.key is None:
                    _, self.key, length = message.split()
                    self.expect(int(length) + 2, limit=1_000)
                else:
                    self.stored.append((self.key, message))
                    self.key = None

        stream = b"set a 100\r\n" + b"x" * 100 + b"\r\nset b 0\r\n\r\nset c 3\r\nc\r\n\r\n"
        for size in (1, 7, len(stream)):
            chat = Memcached()
            connected(chat)
            for at in range(0, len(stream), size):
                chat.dataReceived(stream[at : at + size])
            assert chat.stored == [
                (b"a", b"x" * 100 + b"\r\n"),
                (b"b", b"\r\n"),
                (b"c", b"c\r\n\r\n"),
            ]
            assert chat.get_terminator() == b"\r\n"

    def test_nothing_is_an_empty_message_at_once(self):
        for cls in (Expecting, InPieces):
            chat = cls(b"\n", [("expect", 0, None), ("expect", 0, None)])
            connected(chat)
            chat.dataReceived(b"one\n")
            assert chat.events == [b"one", b"", b""]
            chat.expect(0)
            assert chat.events == [b"one", b"", b"", b""]

    def test_a_number_above_the_limit_needs_no_byte(self):
        for limit, length in ((None, LIMIT + 1), (3, 4), (100, 101)):
            for overflow in Overflow:
                chat = Expecting(b"\n", [("expect", length, limit)])
                chat.overflow = overflow
                connected(chat)
                chat.dataReceived(b"one\n")
                assert chat.events == [b"one", ("too long", length)]
                assert (chat.state is State.OPEN) is (overflow is not Overflow.CLOSE)

    def test_a_limit_of_its_own_may_be_higher_or_lower(self):
        chat = Expecting(b"\n", [("expect", 60, 60)])
        connected(chat)
        chat.dataReceived(b"one\n" + b"x" * 60 + b"two\n")
        assert chat.events == [b"one", b"x" * 60, b"two"]

    def test_too_long_and_delivered_all_the_same(self):
        chat = Expecting(b"\n", [("expect", 60, 50)])
        chat.overflow = Overflow.DELIVER
        connected(chat)
        chat.dataReceived(b"one\n" + b"x" * 60 + b"two\n")
        assert chat.events == [b"one", ("too long", 60), b"x" * 50, b"x" * 10, b"two"]

    def test_a_hook_may_set_another_terminator(self):
        chat = Expecting(b"\n", [("expect", 3, None), ("set", b";")])
        connected(chat)
        chat.dataReceived(b"one\nabctwo;three;")
        assert chat.events == [b"one", b"abc", b"two", b"three"]

    def test_what_is_no_number_is_refused(self):
        for error, *arguments in (
            (TypeError, b"5"),
            (TypeError, True),
            (TypeError, None),
            (TypeError, 5, "5"),
            (ValueError, -1),
            (ValueError, 5, -1),
        ):
            with pytest.raises(error):
                Chat().expect(*arguments)

    def test_ten_thousand_empty_messages_do_not_recurse(self):
        chat = Expecting(b"\n", [("expect", 0, None)] * 10_000)
        connected(chat)
        chat.dataReceived(b"one\n")
        assert len(chat.events) == 10_001

    def test_before_the_connection_it_waits(self):
        chat = Chat()
        chat.expect(0)
        connected(chat)
        assert chat.events == ["connect", b""]


class Forever(AsyncChat):
    """Each message makes another, for which nothing has to arrive."""

    terminator = b"\n"
    way = "expect"
    messages = 0

    def message_received(self, message):
        self.messages += 1
        if self.way == "expect":
            self.expect(0)
        else:
            self.unread(b"x\n")


@on_the_hub_too
class TestOthersHaveTheirTurn(TestCase):
    reactor = reactor

    async def test_a_handler_that_never_stops_does_not_stop_others(self):
        """Nor the reading of what is more than it can take; and it can still be ended."""

        class Echo(AsyncChat):
            terminator = b"\n"

            def message_received(self, message):
                self.push(message + b"\n")

        for way in ("expect", "unread"):
            handlers = []

            def build(way=way, handlers=handlers):
                handlers.append(Forever() if not handlers else Echo())
                handlers[0].way = way
                return handlers[-1]

            factory = Factory.forProtocol(build)
            factory.noisy = False
            port = await TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1").listen(factory)
            self.addCleanup(port.stopListening)
            number = port.getHost().port
            busy = wire.raw(number)
            self.addCleanup(busy.close)
            busy.sendall(b"go\n")
            await until(lambda handlers=handlers: handlers and handlers[0].messages > 5_000)

            def talk(number=number):
                with wire.raw(number) as client:
                    client.sendall(b"hello\n")
                    return client.recv(100)

            assert await in_thread(talk) == b"hello\n"
            busy.setblocking(False)
            sent = 0
            try:
                for _ in range(200):
                    sent += busy.send(bytes(65_536))
            except BlockingIOError:
                pass
            assert sent < 200 * 65_536
            gone = Deferred()
            handlers[0].handle_end = gone.callback
            handlers[0].abort()
            assert await gone is None
