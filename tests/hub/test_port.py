"""
Ports of the hub: what they accept, and for whom.
"""

from __future__ import annotations

import os
import resource
import socket
import stat

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, UnsupportedAddressFamily
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase
from typing_extensions import override
from zope.interface import implementer

from helpers.support import in_thread
from txasynchat.hub.places import HubReactor
from txasynchat.hub.port import ISocketFactory

exists, is_link = os.path.lexists, os.path.islink

LOCAL = "hub:tcp:0:interface=127.0.0.1"


@implementer(ISocketFactory)
class Sockets(Factory):
    """Takes the sockets themselves."""

    noisy = False

    def __init__(self):
        self.taken = []
        self.first = Deferred()

    def socket_accepted(self, sock, address):
        self.taken.append((sock, address))
        if not self.first.called:
            self.first.callback(None)


class SocketFactoryTests(TestCase):
    async def listen(self, factory, where=LOCAL):
        port = await serverFromString(reactor, where).listen(factory)
        self.addCleanup(port.stopListening)
        return port

    async def test_a_factory_for_sockets_gets_the_socket_and_the_peer(self):
        """A program that drives sockets by itself is given each one as it was accepted."""
        factory = Sockets()
        port = await self.listen(factory)
        client = socket.create_connection(("127.0.0.1", port.getHost().port))
        self.addCleanup(client.close)
        await factory.first
        [(sock, address)] = factory.taken
        self.addCleanup(sock.close)
        self.assertEqual(address, client.getsockname())
        self.assertFalse(sock.getblocking())
        self.assertFalse(sock.get_inheritable())
        sock.send(b"hello")
        self.assertEqual(await in_thread(lambda: client.recv(5)), b"hello")

    async def test_a_socket_that_its_factory_refuses_is_closed(self):
        """An exception of the factory ends that connection, is logged, and the port goes on."""
        factory = Sockets()
        factory.socket_accepted = lambda sock, address: 1 / 0
        port = await self.listen(factory)
        for _ in range(2):
            client = socket.create_connection(("127.0.0.1", port.getHost().port))
            self.addCleanup(client.close)
            self.assertEqual(await in_thread(client.recv, 1), b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class Told(Protocol):
    @override
    def connectionMade(self):
        self.factory.made.append(self)

    @override
    def dataReceived(self, data):
        self.transport.write(data)


class PortCase(TestCase):
    async def listen(self, where=LOCAL, protocol=Told, factory=None):
        if factory is None:
            factory = Factory.forProtocol(protocol)
        factory.noisy = False
        factory.made = []
        self.factory = factory
        port = await serverFromString(reactor, where).listen(factory)
        self.addCleanup(port.stopListening)
        return port

    def connect(self, port):
        host = port.getHost()
        if hasattr(host, "name"):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(20)
            client.connect(host.name)
        else:
            client = socket.create_connection((host.host, host.port), 20)
        self.addCleanup(client.close)
        return client

    def echo(self, client):
        client.sendall(b"hello")
        return client.recv(5)


class PortTests(PortCase):
    async def test_many_connections_are_accepted_at_once(self):
        port = await self.listen("hub:tcp:0:interface=127.0.0.1:backlog=500")
        clients = [self.connect(port) for _ in range(300)]
        answers = [await in_thread(self.echo, client) for client in clients]
        self.assertEqual(answers, [b"hello"] * 300)

    async def test_stopping_keeps_connections(self):
        port = await self.listen()
        client = self.connect(port)
        self.assertEqual(await in_thread(self.echo, client), b"hello")
        address = client.getpeername()
        await port.stopListening()
        self.assertEqual(await in_thread(self.echo, client), b"hello")
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(address, 20)

    async def test_accepting_can_be_paused(self):
        port = await self.listen()
        port.stopReading()
        client = self.connect(port)
        for _ in range(10):
            await deferLater(reactor, 0)
        self.assertEqual(self.factory.made, [])
        port.startReading()
        self.assertEqual(await in_thread(self.echo, client), b"hello")

    async def test_a_factory_may_refuse(self):
        """By None, or by an exception, which is logged; the port goes on."""
        factory = Factory.forProtocol(Told)
        port = await self.listen(factory=factory)
        factory.buildProtocol = lambda address: None
        self.assertEqual(await in_thread(self.connect(port).recv, 1), b"")
        factory.buildProtocol = lambda address: 1 / 0
        self.assertEqual(await in_thread(self.connect(port).recv, 1), b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        del factory.buildProtocol
        self.assertEqual(await in_thread(self.echo, self.connect(port)), b"hello")

    async def test_a_port_that_is_taken_is_an_error(self):
        """The socket that could not be bound is closed at once."""
        port = await self.listen()
        before = len(os.listdir("/dev/fd"))
        with self.assertRaises(CannotListenError) as raised:
            await self.listen(f"hub:tcp:{port.getHost().port}:interface=127.0.0.1")
        self.assertEqual(len(os.listdir("/dev/fd")), before)
        del raised

    async def test_without_descriptors_connections_wait_and_it_is_said_once(self):
        """At the limit on open files nobody is refused, and the log is not flooded."""
        events = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        port = await self.listen()
        clients = [socket.socket() for _ in range(3)]
        for client in clients:
            self.addCleanup(client.close)
            client.settimeout(20)
        await deferLater(reactor, 0)  # the reactor has its own descriptors now
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            for client in clients:
                client.connect(("127.0.0.1", self.number(port)))
            while port.rested < 3:
                await deferLater(reactor, 0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            self.assertEqual(await in_thread(self.echo, client), b"hello")
        said = [event for event in events if "no descriptor" in str(event.get("log_format"))]
        self.assertEqual(len(said), 1)

    def number(self, port):
        return port._realPortNumber


class UNIXPortTests(PortCase):
    async def test_mode_and_lock_are_twisteds(self):
        path = self.mktemp()
        port = await self.listen(f"hub:unix:{path}:mode=600")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertTrue(is_link(f"{path}.lock"))
        self.assertEqual(await in_thread(self.echo, self.connect(port)), b"hello")
        with self.assertRaises(CannotListenError):
            await self.listen(f"hub:unix:{path}")
        await port.stopListening()
        self.assertFalse(exists(path))
        self.assertFalse(exists(f"{path}.lock"))

    async def test_a_file_that_was_left_behind_is_replaced(self):
        path = self.mktemp()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        os.symlink("999999999", f"{path}.lock")  # of a process that is gone
        port = await self.listen(f"hub:unix:{path}")
        self.assertEqual(await in_thread(self.echo, self.connect(port)), b"hello")


class SystemdTests(PortCase):
    async def test_a_socket_of_systemd_is_adopted(self):
        for family, bound in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, self.mktemp())):
            with socket.socket(family) as given:
                given.bind(bound)
                given.listen()
                host = HubReactor(reactor)
                factory = Factory.forProtocol(Told)
                factory.noisy, factory.made = False, []
                port = host.adoptStreamPort(given.fileno(), family, factory)
                self.assertEqual(await in_thread(self.echo, self.connect(port)), b"hello")
                await port.stopListening()
                # It still listens for systemd, and a file stays.
                with socket.socket(family) as client:
                    client.connect(given.getsockname())
                if family == socket.AF_UNIX:
                    self.assertTrue(exists(bound))

    def test_other_families_are_refused(self):
        with self.assertRaises(UnsupportedAddressFamily):
            HubReactor(reactor).adoptStreamPort(0, socket.AF_PACKET, Factory())
