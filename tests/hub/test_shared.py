"""
The hub of a reactor: one for each, made when needed and gone when not; and what others get beside it.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import tracemalloc

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers.support import in_thread
from txasynchat import AsyncChat
from txasynchat.hub.places import HubReactor
from txasynchat.hub.pollers import READ
from txasynchat.hub.shared import has_descriptors, served_by, shared_hub


class Echo(Protocol):
    @override
    def dataReceived(self, data):
        self.transport.write(data)


class Line(AsyncChat):
    terminator = b"\n"

    @override
    def message_received(self, message):
        self.push(message + b"\n")


def factory_of(protocol):
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    return factory


class HubCase(TestCase):
    async def listen(self, protocol, host=None):
        host = host or HubReactor(reactor)
        endpoint = TCP4ServerEndpoint(host, 0, interface="127.0.0.1")
        port = await endpoint.listen(factory_of(protocol))
        self.addCleanup(port.stopListening)
        return port, ("127.0.0.1", port.getHost().port)

    def connect(self, address):
        client = socket.create_connection(address, 20)
        self.addCleanup(client.close)
        return client


class Lifetimes(HubCase):
    def descriptors(self):
        """How many descriptors the reactor polls for hubs, ports and connections."""
        names = [reader.logPrefix() for reader in reactor.getReaders()]
        return len([name for name in names if "hub" in name or "Factory" in name])

    async def test_a_hub_lasts_from_the_first_socket_to_the_last(self):
        """A program whose servers have stopped has no descriptor of ours left."""
        self.assertEqual(served_by(reactor), [])
        port, address = await self.listen(Echo)
        other, _ = await self.listen(Echo)
        self.assertIs(shared_hub(reactor), shared_hub(reactor))
        self.assertEqual(self.descriptors(), 1)
        client = self.connect(address)
        client.sendall(b"x")
        self.assertEqual(await in_thread(client.recv, 1), b"x")
        self.assertEqual(self.descriptors(), 1)
        await port.stopListening()
        await other.stopListening()
        # Connections go on.
        client.sendall(b"y")
        self.assertEqual(await in_thread(client.recv, 1), b"y")
        client.close()
        while served_by(reactor):
            await deferLater(reactor, 0)
        self.assertEqual(self.descriptors(), 0)

    async def test_a_socket_that_cannot_be_served_leaves_no_hub(self):
        with socket.socket() as closed:
            number = closed.fileno()
        with self.assertRaises(OSError):
            shared_hub(reactor).add(number, None, READ)
        self.assertEqual(served_by(reactor), [])

    def test_a_reactor_in_memory_has_no_descriptors(self):
        self.assertTrue(has_descriptors(reactor))
        self.assertFalse(has_descriptors(MemoryReactorClock()))
        self.assertEqual(served_by(MemoryReactorClock()), [])

    async def test_a_descriptor_that_is_used_again_at_once_gets_only_its_own_events(self):
        """Many connections are closed by the handler of another, and others come in their place."""
        members = []

        class Closing(Echo):
            @override
            def connectionMade(self):
                members.append(self)

            @override
            def dataReceived(self, data):
                for member in members:
                    if member is not self and member.transport.connected:
                        member.transport.connectionLost(member.reason)
                self.transport.write(data)

            @override
            def connectionLost(self, reason):
                members.remove(self)

        Closing.reason = Failure(ConnectionDone())
        _, address = await self.listen(Closing)
        for _ in range(20):
            clients = [self.connect(address) for _ in range(10)]
            for client in clients:
                client.sendall(b"x")
            answers = await in_thread(self.answers, clients)
            self.assertIn(b"x", answers)
            for client in clients:
                client.close()

    def answers(self, clients):
        found = []
        for client in clients:
            try:
                found.append(client.recv(1))
            except ConnectionResetError:
                found.append(b"")
        return found

    async def test_a_socket_that_somebody_closed_does_not_silence_the_next(self):
        """Its connection is lost as soon as the number is another's, which is served."""
        made, lost = [], Deferred()

        class Noting(Echo):
            @override
            def connectionMade(self):
                made.append(self)

            @override
            def connectionLost(self, reason):
                if self is made[0]:
                    lost.callback(reason.type)

        _, address = await self.listen(Noting)
        first = self.connect(address)
        while not made:
            await deferLater(reactor, 0)
        number = made[0].transport.fileno()
        made[0].transport.getHandle().close()
        first.close()
        while len(made) < 2 or made[-1].transport.fileno() != number:
            client = self.connect(address)
            client.sendall(b"x")
            self.assertEqual(await in_thread(client.recv, 1), b"x")
        self.assertIs(await lost, ConnectionLost)


class Shares(HubCase):
    """Other users of the reactor beside a full load."""

    LOAD = 24
    TIMES = 40

    async def lateness(self, host):
        """Return how late a timer every 10 ms is beside a full load: the median, in seconds."""
        _, address = await self.listen(Line, host)
        stop = threading.Event()
        socks = [self.connect(address) for _ in range(self.LOAD)]

        def load():
            while not stop.is_set():
                for sock in socks:
                    sock.sendall(b"x" * 63 + b"\n")
                for sock in socks:
                    sock.recv(64)

        loading = in_thread(load)
        late = []
        done = Deferred()

        def tick(due):
            late.append(reactor.seconds() - due)
            if len(late) == self.TIMES:
                done.callback(None)
            else:
                reactor.callLater(0.01, tick, reactor.seconds() + 0.01)

        reactor.callLater(0.01, tick, reactor.seconds() + 0.01)
        await done
        stop.set()
        await loading
        for sock in socks:
            sock.close()
        return sorted(late)[self.TIMES // 2]

    async def test_a_timer_is_late_by_at_most_twice_as_much_as_beside_twisteds(self):
        for _ in range(5):
            twisted = await self.lateness(reactor)
            hub = await self.lateness(HubReactor(reactor))
            if hub <= 2 * twisted + 0.001:
                return
        self.fail(f"{hub * 1000:.1f} ms late beside the hub, {twisted * 1000:.1f} beside Twisted's")

    async def test_a_busy_sender_leaves_the_others_their_turn(self):
        """A peer that sends as fast as it can does not keep a line of another from its answer."""
        _, address = await self.listen(Echo)
        busy, quiet = self.connect(address), self.connect(address)
        stop = threading.Event()

        def flood():
            busy.setblocking(False)
            data = bytes(1 << 20)
            while not stop.is_set():
                for action in (lambda: busy.send(data), lambda: busy.recv(1 << 20)):
                    with contextlib.suppress(BlockingIOError):
                        action()

        flooding = in_thread(flood)
        for _ in range(50):
            quiet.sendall(b"x")
            self.assertEqual(await in_thread(quiet.recv, 1), b"x")
        stop.set()
        await flooding


@pytest.mark.traces_memory
class Memory(HubCase):
    COUNT = 300

    async def test_an_idle_connection_takes_little(self):
        """At most 1.5 KiB with its handler, in Python's own count."""
        chats = []

        def build():
            chats.append(Line())
            return chats[-1]

        _, address = await self.listen(build)
        clients = [self.connect(address) for _ in range(20)]
        while len(chats) < 20:
            await deferLater(reactor, 0)
        gc.collect()
        clients += [socket.socket() for _ in range(self.COUNT)]
        for client in clients[20:]:
            self.addCleanup(client.close)
        tracemalloc.start()
        try:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            await in_thread(lambda: [client.connect(address) for client in clients[20:]])
            while len(chats) < 20 + self.COUNT:
                await deferLater(reactor, 0)
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - before) / self.COUNT
        finally:
            tracemalloc.stop()
        self.assertLess(each, 1536)
