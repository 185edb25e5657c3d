"""
Ports of the hub: what they accept, and for whom.
"""

from __future__ import annotations

import socket

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from helpers.support import in_thread
from txasynchat.hub.port import ISocketFactory

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
    timeout = 30

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
