"""
Many connections that share one bound: `AsyncChat.resume` in a loop calls no hook before it returns.
"""

from __future__ import annotations

import socket

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from helpers.kinds import NATIVE, Client, KindsCase
from helpers.memory import Chat, connected
from helpers.support import in_thread, until
from txasynchat import AsyncChat

# Twisted's own endpoints pass certificates in a way that pyOpenSSL deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

LIMIT = 300
CLIENTS = 12
LINES = 1_000


class Shared:
    """A queue that all connections fill; when it is full they are all paused."""

    def __init__(self):
        self.queue = []
        self.connections = []
        self.full = True
        self.most = 0
        self.total = 0
        self.gone = 0

    def put(self, message):
        self.queue.append(message)
        self.total += 1
        self.most = max(self.most, len(self.queue))
        if len(self.queue) >= LIMIT and not self.full:
            self.full = True
            for connection in self.connections:
                connection.pause()

    def work(self):
        """Take what is in the queue, and have it filled again."""
        self.queue.clear()
        if self.full:
            for connection in self.connections:
                connection.resume()
            self.full = False


class Worker(AsyncChat):
    terminator = b"\n"

    def __init__(self, shared):
        self.shared = shared

    def handle_connect(self):
        self.shared.connections.append(self)
        if self.shared.full:
            self.pause()

    def message_received(self, message):
        self.shared.put(message)

    def handle_end(self, reason):
        self.shared.connections.remove(self)
        self.shared.gone += 1


class TestLoops(KindsCase, TestCase):
    async def test_resuming_in_a_loop_keeps_the_bound(self):
        """Over TLS data comes with the end of the handshake, so each connection has some waiting."""
        for way in NATIVE:
            shared = Shared()

            first, _ = await self.serve(way, lambda shared=shared: Worker(shared))

            def talk(client):
                client.connect()
                client.socket.sendall(b"%d\n" * LINES % tuple(range(LINES)))

            clients = [first]
            for _ in range(CLIENTS - 1):
                clients.append(Client(first.address, first.kind, 1 << 18))
                self.addCleanup(clients[-1].close)
            for client in clients:
                await in_thread(talk, client)
            await until(lambda shared=shared: len(shared.connections) == CLIENTS)
            for _ in range(10):
                await deferLater(reactor, 0.002)
            assert shared.total == 0, way
            while shared.total < CLIENTS * LINES:
                shared.work()
                await deferLater(reactor, 0)
            assert shared.most <= LIMIT, way
            for connection in list(shared.connections):
                connection.abort()
            await until(lambda shared=shared: shared.gone == CLIENTS)


class TestInMemory:
    def test_ten_thousand_pauses_do_not_recurse(self):
        chat = Chat(lambda chat, _: (chat.pause(), chat.resume()))
        connected(chat)
        chat.dataReceived(b"x\n" * 10_000)
        assert len(chat.messages) == 10_000

    def test_delivery_goes_on_at_once(self):
        chat = Chat(lambda chat, _: chat.pause())
        connected(chat)
        chat.dataReceived(b"1\n2\n3\n")
        chat.resume()
        assert chat.messages == [b"1", b"2"]


class TestTurns(KindsCase, TestCase):
    async def paused(self, way):
        class Held(Chat):
            def handle_connect(self):
                super().handle_connect()
                self.on_message = lambda chat, _: chat.pause()

        client, handlers = await self.serve(way, Held)
        await in_thread(client.connect)
        await in_thread(client.socket.sendall, b"1\n2\n3\n")
        chat = await self.made(handlers)
        await until(lambda: chat.paused)
        chat.on_message = None
        return client, chat

    async def test_no_hook_is_called_before_it_returns(self):
        for way in NATIVE:
            _, chat = await self.paused(way)
            chat.resume()
            assert chat.messages == [b"1"], way
            await until(lambda chat=chat: len(chat.messages) == 3)
            chat.abort()

    async def test_what_happens_before_its_turn_counts(self):
        """A pause, an end, or the loss of the connection: nothing is delivered then."""
        for way in NATIVE:
            for act in (Chat.pause, Chat.close, Chat.abort):
                _, chat = await self.paused(way)
                chat.resume()
                act(chat)
                await deferLater(reactor, 0)
                await deferLater(reactor, 0)
                assert chat.messages == [b"1"], (way, act)
                chat.abort()

    async def test_the_peers_end_waits_too(self):
        """It comes after what was held, and then the connection closes."""
        for way in ("native tcp", "native hub-tcp", "native unix"):
            client, chat = await self.paused(way)
            ends = []
            chat.handle_eof = ends.append
            client.socket.sendall(b"rest")
            client.socket.shutdown(socket.SHUT_WR)
            chat.resume()
            await self.gone([chat])
            assert chat.messages == [b"1", b"2", b"3"], way
            assert ends == [b"rest"], way
