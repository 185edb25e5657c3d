"""
The end of one direction: `AsyncChat.handle_eof` and `AsyncChat.end_sending`, in memory and as netcat
ends.

On every transport: `test_closing_transports`.
"""

from __future__ import annotations

import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers import wire
from helpers.kinds import on_the_hub_too
from helpers.memory import Chat, Memory, connected, lose
from helpers.support import PATIENCE
from txasynchat import AsyncChat, LengthPrefix, Overflow, State
from txasynchat.testing import MemoryLink


class Hearing(Chat):
    """Notes the peer's end too."""

    on_eof = None

    def handle_eof(self, rest):
        self.events.append(("eof", rest))
        if self.on_eof is not None:
            self.on_eof(rest)


class Collecting(AsyncChat):
    """The hooks of ``asynchat``, with the pieces collected by the base class."""

    terminator = b"\n"

    def __init__(self):
        self.events = []

    def found_terminator(self):
        self.events.append(self._get_data())

    def handle_eof(self, rest):
        self.events.append(("eof", rest))
        assert self.incoming == []


class Half(Memory):
    """A transport in memory whose sending can be ended by itself."""

    ended = False

    def loseWriteConnection(self):  # noqa: N802 Twisted's
        assert self.producer is None
        self.ended = True


class TestHandleEof:
    def test_the_unfinished_rest_can_be_answered(self):
        chat = Hearing()
        chat.on_eof = lambda rest: chat.push(b"last: " + rest)
        transport = connected(chat)
        chat.dataReceived(b"one\ntwo\nunfin")
        chat.dataReceived(b"ished")
        chat.readConnectionLost()
        assert chat.events == ["connect", b"one", b"two", ("eof", b"unfinished")]
        assert transport.value() == b"last: unfinished"
        assert transport.disconnecting

    def test_it_is_called_once(self):
        chat = Hearing()
        connected(chat)
        chat.readConnectionLost()
        chat.readConnectionLost()
        lose(chat)
        assert chat.events == ["connect", ("eof", b""), "close"]

    def test_it_waits_for_what_pause_holds_back(self):
        chat = Hearing(lambda chat, _: chat.pause())
        transport = connected(chat)
        chat.dataReceived(b"one\ntwo\nrest")
        chat.readConnectionLost()
        assert chat.messages == [b"one"]
        chat.resume()
        assert chat.events[1:] == [b"one", b"two"]
        chat.resume()
        assert chat.events[1:] == [b"one", b"two", ("eof", b"rest")]
        assert transport.disconnecting

    def test_it_waits_for_a_peer_that_does_not_read(self):
        chat = Hearing(lambda chat, _: chat.push(b"x" * 100))
        chat.high_water, chat.low_water = 50, 0
        transport = Memory()
        transport.room = 1
        connected(chat, transport)
        chat.dataReceived(b"one\n")
        chat.dataReceived(b"two\n")
        chat.dataReceived(b"three\nrest")
        chat.readConnectionLost()
        assert ("eof", b"rest") not in chat.events
        transport.make_room()
        assert chat.events[1:] == [b"one", b"two", b"three", ("eof", b"rest")]
        assert transport.value() == b"x" * 300
        assert transport.disconnecting

    def test_pause_keeps_the_connection_until_resume(self):
        chat = Hearing()
        chat.on_eof = lambda _: chat.pause()
        transport = connected(chat)
        chat.readConnectionLost()
        assert chat.state is State.OPEN
        chat.push(b"later")
        chat.resume()
        assert transport.value() == b"later"
        assert transport.disconnecting
        assert chat.events == ["connect", ("eof", b"")]

    def test_its_exception_ends_the_connection_as_any_other(self):
        chat = Hearing()
        chat.on_eof = lambda _: 1 / 0
        transport = connected(chat)
        chat.readConnectionLost()
        assert chat.events == ["connect", ("eof", b""), ("error", ZeroDivisionError)]
        assert transport.disconnecting

    def test_it_is_not_called_once_this_side_has_closed(self):
        for method in ("close", "close_when_done", "abort"):
            chat = Hearing()
            connected(chat)
            getattr(chat, method)()
            chat.readConnectionLost()
            assert chat.events == ["connect"]

    def test_it_is_called_when_the_connection_opens_if_the_end_came_before(self):
        class Early(Hearing):
            @override
            def connectionMade(self):
                self.dataReceived(b"one\nrest")
                self.readConnectionLost()

        chat = Early()
        transport = connected(chat)
        assert chat.events == ["connect", b"one", ("eof", b"rest")]
        assert transport.disconnecting

    def test_without_the_hook_incoming_is_left_alone(self):
        """`handle_close` may look at it."""

        class Plain(AsyncChat):
            terminator = b"\n"

            def found_terminator(self):
                self._get_data()

        chat = Plain()
        connected(chat)
        chat.dataReceived(b"one\nrest")
        chat.readConnectionLost()
        lose(chat)
        assert chat.incoming == [b"rest"]

    def test_what_was_dropped_or_passed_on_is_no_rest(self):
        class Short(Hearing):
            max_message_length = 4
            overflow = Overflow.SKIP

        chat = Short()
        connected(chat)
        chat.dataReceived(b"far too long")
        chat.readConnectionLost()
        assert chat.events[-1] == ("eof", b"")

        class Pieces(Hearing):
            terminator = b"\r\n"
            found_terminator = None

            def collect_incoming_data(self, data):
                self.events.append(data)

        chat = Pieces()
        connected(chat)
        chat.dataReceived(b"rest\r")
        chat.readConnectionLost()
        assert chat.events == ["connect", b"rest", ("eof", b"\r")]

    @pytest.mark.parametrize("cls", [Hearing, Collecting])
    @given(
        data=st.binary(max_size=12).map(
            lambda data: data.translate(bytes(b"ab\n\0\1\2\3"[x % 7] for x in range(256)))
        ),
        terminator=st.sampled_from([b"\n", b"ab", (b"a", b"\n"), 3, LengthPrefix("B")]),
        cuts=st.lists(st.integers(0, 12), max_size=4),
    )
    def test_the_rest_is_the_same_for_every_cut(self, cls, data, terminator, cuts):
        def run(pieces):
            class Cut(cls):
                pass

            chat = Cut()
            chat.set_terminator(terminator)
            if terminator == 3:
                one = chat.found_terminator

                def again():
                    one()
                    chat.set_terminator(3)

                chat.found_terminator = again
            connected(chat)
            for piece in pieces:
                chat.dataReceived(piece)
            chat.readConnectionLost()
            return [event for event in chat.events if event != "connect"]

        at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        pieces = [data[begin:end] for begin, end in itertools.pairwise(at)]
        events = run(pieces)
        assert events == run([data])
        messages, (name, rest) = events[:-1], events[-1]
        assert name == "eof"
        if isinstance(terminator, bytes):
            assert terminator.join([*messages, rest]) == data
        elif terminator == 3:
            assert b"".join([*messages, rest]) == data
        else:
            assert data.endswith(rest)


class TestEndSending:
    def connected(self, **settings):
        chat = Hearing()
        vars(chat).update(settings)
        return chat, connected(chat, Half())

    def test_messages_are_still_delivered(self):
        chat, transport = self.connected()
        chat.push(b"that is all")
        chat.end_sending()
        assert transport.value() == b"that is all"
        assert transport.ended
        assert chat.state is State.OPEN
        chat.dataReceived(b"so be it\n")
        assert chat.messages == [b"so be it"]
        assert not transport.disconnecting

    def test_what_is_pushed_afterwards_is_dropped_and_counted(self):
        chat, transport = self.connected()
        chat.end_sending()
        chat.push(b"too late")
        chat.push_with_producer(iter([b"too late"]))
        assert transport.value() == b""
        assert chat.dropped == 8

    def test_the_end_waits_for_the_queue(self):
        chat = Hearing()
        transport = Half()
        transport.room = 1
        connected(chat, transport)
        chat.push(b"x" * 100_000)
        chat.push_with_producer(iter([b"y"] * 10))
        chat.end_sending()
        assert not transport.ended
        transport.make_room()
        assert transport.value() == b"x" * 100_000 + b"y" * 10
        assert transport.ended

    def test_the_connection_closes_when_the_peer_ends_too(self):
        for first in ("ours", "theirs"):
            chat, transport = self.connected()
            if first == "ours":
                chat.end_sending()
                chat.end_sending()
                chat.dataReceived(b"one\nrest")
                chat.readConnectionLost()
            else:
                chat.dataReceived(b"one\nrest")
                chat.on_eof = lambda _, chat=chat: (chat.push(b"bye"), chat.end_sending())
                chat.readConnectionLost()
                assert transport.value() == b"bye"
            assert chat.events == ["connect", b"one", ("eof", b"rest")]
            assert transport.disconnecting

    def test_a_full_queue_does_not_hold_delivery_any_more(self):
        chat = Hearing(lambda chat, _: chat.push(b"x" * 100))
        chat.high_water, chat.low_water = 50, 0
        transport = Half()
        transport.room = 1
        connected(chat, transport)
        for _ in range(3):
            chat.dataReceived(b"one\n")
        assert len(chat.messages) < 3
        chat.end_sending()
        assert len(chat.messages) == 3

    def test_it_may_be_called_before_there_is_a_connection(self):
        chat = Hearing()
        chat.push(b"hello")
        chat.end_sending()
        transport = connected(chat, Half())
        assert transport.value() == b"hello"
        assert transport.ended
        assert chat.events == ["connect"]

    def test_after_the_end_nothing_happens(self):
        for end in (AsyncChat.close, AsyncChat.abort, lose):
            chat, transport = self.connected()
            end(chat)
            chat.end_sending()
            assert not transport.ended

    def test_a_transport_that_cannot_end_one_direction_ends_with_the_peer(self):
        chat = Hearing()
        transport = connected(chat, Memory())
        chat.push(b"that is all")
        chat.end_sending()
        chat.push(b"too late")
        chat.dataReceived(b"one\n")
        assert not transport.disconnecting
        chat.readConnectionLost()
        assert transport.disconnecting
        assert transport.value() == b"that is all"
        assert chat.messages == [b"one"]

    def test_both_ends_of_a_link_end_their_sending(self):
        """Each hears of the other's end, and then both connections are closed."""
        one, other = Hearing(), Hearing()
        link = MemoryLink(one, other)
        one.push(b"a\nb")
        one.end_sending()
        link.flush()
        assert other.events[1:] == [b"a", ("eof", b"b"), "close"]
        assert one.events[1:] == [("eof", b""), "close"]


class TestCloseWhenIdle:
    def test_a_hook_may_ask_for_it(self):
        """Nothing more has to arrive for that."""
        chat = Chat(lambda chat, _: chat.close_when_idle())
        transport = connected(chat)
        chat.dataReceived(b"quit\n")
        assert transport.disconnecting


def netcat(port, text):
    """Do what ``nc -N`` does: send everything, end the sending, and read to the end."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        return wire.drain(client)


@on_the_hub_too
class TestNetcat(TestCase):
    """A client that half-closes at the end of its input."""

    reactor = reactor

    async def talk(self, handler, text):
        factory = Factory.forProtocol(handler)
        factory.noisy = False
        port = await TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        return await deferToThread(netcat, port.getHost().port, text)

    async def test_a_last_line_without_its_end_is_answered(self):
        class Echo(AsyncChat):
            terminator = b"\n"

            def message_received(self, message):
                self.push(message + b"\n")

            def handle_eof(self, rest):
                self.push(b"and " + rest + b"\n")

        assert await self.talk(Echo, b"one\ntwo") == b"one\nand two\n"

    async def test_a_server_that_ends_first_hears_the_rest(self):
        heard = []

        class Ending(AsyncChat):
            terminator = b"\n"

            def handle_connect(self):
                self.push(b"hello\n")
                self.end_sending()

            def message_received(self, message):
                heard.append(message)

            def handle_eof(self, rest):
                heard.append(rest)

            def handle_end(self, reason):
                gone.callback(reason)

        gone = Deferred()
        assert await self.talk(Ending, b"one\n" * 50_000 + b"two") == b"hello\n"
        assert await gone is None
        assert heard == [b"one"] * 50_000 + [b"two"]
