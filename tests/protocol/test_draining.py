"""
Who hears that everything pushed was taken: `AsyncChat.handle_drained` and `AsyncChat.drained`.
"""

from __future__ import annotations

import socket

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from helpers.kinds import NATIVE, KindsCase
from helpers.memory import Chat, Memory, connected, lose
from helpers.support import in_thread, until
from txasynchat import AsyncChat, UnsentLimitExceeded, errors

# Twisted's own endpoints pass certificates in a way that pyOpenSSL deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class Hearing(Chat):
    on_drained = None

    def handle_drained(self):
        self.events.append(("drained", self.unsent))
        if self.on_drained is not None:
            self.on_drained()

    @property
    def drains(self):
        return self.events.count(("drained", 0))


def full(chat):
    """Connect to a transport that is full after one write."""
    transport = Memory()
    transport.room = 1
    return connected(chat, transport)


class TestHandleDrained:
    def test_it_is_called_once_for_all_replies_to_one_chunk(self):
        chat = Hearing(lambda chat, message: chat.push(message))
        connected(chat)
        chat.dataReceived(b"one\ntwo\n")
        chat.dataReceived(b"thr")
        chat.dataReceived(b"ee\n")
        assert chat.events[1:] == [b"one", b"two", ("drained", 0), b"three", ("drained", 0)]

    def test_it_is_called_when_what_had_to_wait_is_with_the_transport(self):
        chat = Hearing()
        transport = full(chat)
        chat.push(b"x" * 200_000)
        chat.push(b"y")
        assert chat.drains == 0
        transport.make_room(70_000)
        assert chat.drains == 0
        transport.make_room()
        assert chat.drains == 1
        assert transport.value() == b"x" * 200_000 + b"y"
        chat.push(b"z")
        assert chat.drains == 2

    def test_a_producer_is_waited_for(self):
        chat = Hearing()
        transport = full(chat)
        chat.push_with_producer(iter([b"x" * 65_536] * 3))
        assert chat.unsent == 0
        assert chat.drains == 0
        transport.make_room()
        assert chat.drains == 1

    def test_a_hook_that_pushes_the_next_piece_sends_all_of_them(self):
        chat = Hearing()
        transport = full(chat)
        pieces = [b"%d," % number for number in range(5_000)]
        left = iter(pieces)

        def push_more():
            for piece in left:
                chat.push(piece)
                return

        chat.on_drained = push_more
        chat.push(b"x" * 100_000)
        transport.make_room()
        assert transport.value() == b"x" * 100_000 + b"".join(pieces)
        assert chat.drains == 5_001

    def test_it_is_not_called_once_the_connection_is_closing(self):
        for end in (Chat.close, Chat.close_when_done):
            chat = Hearing()
            transport = full(chat)
            chat.push(b"x" * 100_000)
            end(chat)
            transport.make_room()
            assert transport.disconnecting
            assert chat.drains == 0

    def test_it_is_called_after_the_end_of_the_sending(self):
        chat = Hearing()
        transport = full(chat)
        chat.push(b"x" * 100_000)
        chat.end_sending()
        transport.make_room()
        assert chat.drains == 1

    def test_it_may_close(self):
        chat = Hearing()
        chat.on_drained = chat.close
        transport = full(chat)
        chat.push(b"x" * 100_000)
        transport.make_room()
        assert transport.disconnecting

    def test_its_exception_ends_the_connection(self):
        chat = Hearing()
        chat.on_drained = lambda: 1 / 0
        transport = full(chat)
        chat.push(b"x" * 100_000)
        transport.make_room()
        assert ("error", ZeroDivisionError) in chat.events
        assert transport.disconnecting


class TestDrained:
    def results(self, deferred):
        results = []
        deferred.addBoth(results.append)
        return results

    def error(self, results):
        (failure,) = results
        return type(failure.value)

    def test_it_fires_at_once_if_nothing_waits(self):
        chat = Hearing()
        assert self.results(chat.drained()) == [None]
        connected(chat)
        chat.push(b"x")
        assert self.results(chat.drained()) == [None]

    def test_it_fires_when_everything_is_with_the_transport(self):
        chat = Hearing()
        transport = full(chat)
        chat.push(b"x" * 200_000)
        one, other = self.results(chat.drained()), self.results(chat.drained())
        transport.make_room(1)
        assert one == other == []
        transport.make_room()
        assert one == other == [None]

    def test_it_fires_for_what_a_hook_pushed(self):
        results = []

        def hook(chat, _):
            chat.push(b"x")
            chat.drained().addBoth(results.append)
            assert results == []

        chat = Hearing(hook)
        transport = connected(chat)
        chat.dataReceived(b"one\n")
        assert results == [None]
        assert transport.value() == b"x"
        assert chat.drains == 1

    def test_it_fires_for_what_was_pushed_before_there_was_a_connection(self):
        chat = Hearing()
        chat.push(b"x")
        results = self.results(chat.drained())
        assert results == []
        connected(chat)
        assert results == [None]

    def test_it_fails_with_the_end_of_the_connection(self):
        for reason in (ConnectionLost, ConnectionDone):
            chat = Hearing()
            full(chat)
            chat.push(b"x" * 200_000)
            results = self.results(chat.drained())
            lose(chat, reason)
            error = type(chat.close_reason) if chat.close_reason else reason
            assert self.error(results) is error
            assert self.error(self.results(chat.drained())) in {error, ConnectionDone}

    def test_it_fails_when_too_much_waits(self):
        chat = Hearing()
        chat.max_unsent = 300_000
        full(chat)
        chat.push(b"x" * 200_000)
        results = self.results(chat.drained())
        chat.push(b"x" * 200_000)
        lose(chat, ConnectionAborted)
        assert self.error(results) is UnsentLimitExceeded

    def test_it_fires_at_the_end_of_a_connection_that_closed_in_order(self):
        for in_a_hook in (False, True):
            for room in (None, 1):
                results = []

                def act(chat, _, results=results):
                    chat.push(b"x" * 100_000)
                    chat.close()
                    chat.drained().addBoth(results.append)

                chat = Hearing(act if in_a_hook else None)
                transport = Memory()
                transport.room = room
                connected(chat, transport)
                if in_a_hook:
                    chat.dataReceived(b"one\n")
                else:
                    act(chat, b"")
                assert results == []
                transport.make_room()
                assert transport.disconnecting
                lose(chat)
                assert results == [None]

    def test_it_fails_if_something_was_dropped_before_a_close(self):
        def failing():
            yield b"x" * 100_000
            raise ValueError("no")

        chat = Hearing()
        transport = full(chat)
        chat.push_with_producer(failing())
        chat.push(b"behind")
        results = self.results(chat.drained())
        transport.make_room()
        lose(chat)
        assert self.error(results) is ConnectionDone

    def test_a_loop_that_sends_ends_with_the_connection(self):
        chat = Hearing()
        transport = connected(chat)
        sent = []

        async def send():
            while True:
                chat.push(b"x" * 1_000)
                sent.append(None)
                await chat.drained()
                if len(sent) == 10_000:
                    chat.close()

        task = ensureDeferred(send())
        assert len(transport.value()) == 10_000_000
        results = self.results(task)
        lose(chat)
        assert self.error(results) is ConnectionDone

    def test_it_may_be_cancelled(self):
        chat = Hearing()
        transport = full(chat)
        chat.push(b"x" * 200_000)
        waiting = chat.drained()
        results = self.results(waiting)
        waiting.cancel()
        transport.make_room()
        assert len(results) == 1


class Sender(AsyncChat):
    """Sends pieces, one when the one before is gone, and lets others have their turn."""

    terminator = b"\n"
    size = 4_000_000
    piece = b"x" * 40_000

    def __init__(self):
        self.turns = 0
        self.left = self.size
        self.most = 0
        self.done = Deferred()

    def message_received(self, message):
        self.start()
        self.count_turns()

    def count_turns(self):
        if not self.done.called:
            self.turns += 1
            reactor.callLater(0, self.count_turns)

    def handle_end(self, reason):
        self.done.callback(reason)

    def push_piece(self):
        if self.left:
            self.left -= len(self.piece)
            self.push(self.piece)
            self.most = max(self.most, self.unsent)
        else:
            self.close()


class ByHook(Sender):
    def start(self):
        self.push_piece()

    def handle_drained(self):
        self.push_piece()


class ByCoroutine(Sender):
    def start(self):
        ensureDeferred(self.send())

    async def send(self):
        await self.drained()
        while self.left:
            self.push_piece()
            await self.drained()
        self.close()


class TestOnTransports(KindsCase, TestCase):
    async def check(self, way, handler):
        client, handlers = await self.serve(way, handler)
        if client.kind != "unix":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        await in_thread(client.ask)
        count, end = await in_thread(client.read_to_the_end)
        assert (count, end) == (Sender.size, "end"), way
        client.close()  # rather than wait for its close_notify
        chat = await self.gone(handlers)
        assert await chat.done is None
        assert chat.most <= len(Sender.piece), way
        assert chat.turns > 10, way

    async def test_the_hook_sends_piece_by_piece(self):
        for way in NATIVE:
            await self.check(way, ByHook)

    async def test_a_coroutine_sends_piece_by_piece(self):
        for way in NATIVE:
            await self.check(way, ByCoroutine)

    async def test_a_reset_ends_a_coroutine_that_waits(self):
        class Stuck(AsyncChat):
            terminator = b"\n"

            def message_received(self, message):
                self.push(bytes(8_000_000))
                self.task = ensureDeferred(self.wait())

            async def wait(self):
                try:
                    await self.drained()
                except errors.ConnectionReset as error:
                    return error

        for way in ("native tcp", "native hub-tcp"):
            client, handlers = await self.serve(way, Stuck)
            await in_thread(client.ask)
            chat = await self.made(handlers)
            await until(lambda chat=chat: hasattr(chat, "task"))
            await deferLater(reactor, 0)
            client.close()
            assert await chat.task is chat.close_reason
            assert chat.close_reason is not None
