"""
Floods of clients that start a TLS connection and do not continue: others are served, and the number of
unfinished handshakes is bounded.

Also covers `tls.handshakes`, `tls.pending` and `networks`.
"""

import contextlib
import gc
import itertools
import resource
import ssl
import sys
import time

import pytest
from twisted.internet import reactor, task
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial import unittest

from helpers import support, wire
from helpers.support import (
    HOST,
    Notes,
    Server,
    client_context,
    in_thread,
    leaf,
    server_options,
    twisted_options,
    until,
)
from helpers.wire import drain, raw_from
from txasynchat import errors
from txasynchat.compat import LegacyFactory, _tls_socket, asynchat, tls
from txasynchat.endpoints import SecureServerEndpoint
from txasynchat.networks import network_of
from txasynchat.tls.factory import TLSFactory
from txasynchat.tls.handshakes import HandshakeLimit
from txasynchat.tls.pending import PENDING, Pending, default_limit

#: The addresses of the attackers and of the honest client.
THEIRS, OURS = "127.0.0.2", "127.0.0.3"
#: Seconds. While silent clients took places among the handshakes it was ten or more.
PROMPTLY = 5.0


def hello():
    return wire.Memory(client_context(), HOST).hello()


#: What attackers send.
ATTACKS = {"nothing": lambda: b"", "half a hello": lambda: hello()[:100], "no answer": hello}


def many_addresses():
    return (f"127.0.{third}.{fourth}" for third in range(1, 5) for fourth in range(1, 250))


class LegacyEcho(asynchat.async_chat):
    def __init__(self, sock):
        super().__init__(sock)
        self.set_terminator(b"\n")

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self):
        self.push(self._get_data() + b"\n")


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback has one address elsewhere")
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
class Floods(unittest.TestCase):
    def attack(self, port, count, data=b"", addresses=None):
        """Open so many connections, from one address or from *addresses*, and send only *data*."""
        socks = []
        for address in itertools.islice(addresses or itertools.repeat(THEIRS), count):
            sock = raw_from(address, port)
            self.addCleanup(sock.close)
            if data:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(data)
            socks.append(sock)
        return socks

    async def serve(self, way, **arguments):
        """Listen; return the port, and the object that limits its handshakes."""
        options = server_options(**arguments)
        limit = options.limit
        factory = Factory.forProtocol(Notes)
        factory.noisy = False
        inner = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1", backlog=1000)
        if way == "secure":
            port = await SecureServerEndpoint(reactor, inner, options).listen(factory)
        elif way == "served":
            legacy = LegacyFactory(LegacyEcho)
            port = await SecureServerEndpoint(reactor, inner, options).listen(legacy)
        elif way == "behind a proxy":
            inner = serverFromString(reactor, "haproxy:tcp:0:interface=127.0.0.1:backlog=1000")
            port = await SecureServerEndpoint(reactor, inner, options).listen(factory)
        else:
            if way == "served, ssl":
                factory = LegacyFactory(LegacyEcho)
            endpoint = SSL4ServerEndpoint(reactor, 0, twisted_options(), 1000, "127.0.0.1")
            port = await endpoint.listen(factory)
            limit = HandshakeLimit.of(port.factory)
            limit.count, limit.pending.limit = options.limit.count, options.max_pending
        self.addCleanup(port.stopListening)
        self.addCleanup(self.ended, limit)
        return port.getHost().port, limit

    async def ended(self, limit):
        """Wait until no connection is counted."""
        await until(lambda: not len(limit.pending))
        self.assertEqual((limit.in_flight, limit.waiting), (0, 0))
        self.assertEqual(limit.pending._counts, {})

    async def talk(self, port):
        answer = await in_thread(support.talk, raw_from(OURS, port), client_context())
        self.assertEqual(answer, b"hello\n")

    async def test_honest_client_is_served_during_any_flood(self):
        """On every kind of server, from one address or from many."""
        for way in ("secure", "served", "ssl", "served, ssl"):
            for what, data in ATTACKS.items():
                for addresses in (None, many_addresses()):
                    port, limit = await self.serve(way, max_handshakes=2)
                    socks = self.attack(port, 60, data(), addresses)
                    await until(lambda limit=limit: len(limit.pending) == 60)
                    began = time.monotonic()
                    await self.talk(port)
                    self.assertLess(time.monotonic() - began, PROMPTLY, (way, what, addresses))
                    # No attacker had to be evicted for it.
                    self.assertEqual(len(limit.pending), 60, (way, what, addresses))
                    for sock in socks:
                        sock.close()

    async def test_flood_from_one_address_does_not_evict_a_slow_client_from_another(self):
        for way in ("secure", "served", "ssl", "served, ssl"):
            for what, data in ATTACKS.items():
                port, limit = await self.serve(way, max_pending=20)
                slow = raw_from(OURS, port)
                await until(lambda limit=limit: len(limit.pending) == 1)
                socks = self.attack(port, 60, data())
                # The server ends each of these.
                await gatherResults([in_thread(drain, sock) for sock in socks[:41]])
                self.assertEqual(len(limit.pending), 20, (way, what))
                answer = await in_thread(support.talk, slow, client_context())
                self.assertEqual(answer, b"hello\n", (way, what))
                for sock in socks:
                    sock.close()

    async def test_flood_from_many_addresses_evicts_the_longest_waiting_client(self):
        port, limit = await self.serve("secure", max_pending=20)
        first = self.attack(port, 20, addresses=many_addresses())
        await until(lambda: len(limit.pending) == 20)
        # The oldest one continues, which makes it the newest.
        first[0].sendall(hello())
        self.assertNotEqual(await in_thread(first[0].recv, 1), b"")
        others = self.attack(port, 19, addresses=(f"127.1.0.{last}" for last in range(1, 20)))
        await gatherResults([in_thread(drain, sock) for sock in first[1:]])
        self.assertEqual(len(limit.pending), 20)
        for sock in others:
            self.assertEqual(await in_thread(support.talk, sock, client_context()), b"hello\n")
        first[0].close()

    async def test_clients_behind_a_proxy_count_for_their_own_addresses(self):
        port, limit = await self.serve("behind a proxy", max_pending=20)
        one, other = (b"PROXY TCP4 192.0.2.%d 198.51.100.1 4711 443\r\n" % last for last in (1, 2))
        (slow,) = self.attack(port, 1, other + hello())
        self.assertNotEqual(await in_thread(slow.recv, 1), b"")
        socks = self.attack(port, 60, one + hello())
        await gatherResults([in_thread(drain, sock) for sock in socks[:40]])
        await until(lambda: limit.pending._counts == {"192.0.2.1": 19, "192.0.2.2": 1})
        for sock in (slow, *socks):
            sock.close()

    async def test_evicted_handler_learns_the_reason(self):
        server = await Server(self, server_options(max_pending=2)).listen()
        self.attack(server.port, 3)
        await until(lambda: len(server.handlers) == 3)
        await server.handlers[0].closed
        reason = server.handlers[0].close_reason
        self.assertIs(type(reason), errors.HandshakeFailed)
        self.assertIn("too many handshakes are unfinished", str(reason))
        self.assertEqual(server.handlers[0].notes, ["close"])

    async def test_openssl_is_not_started_before_the_hello_is_complete(self):
        """OpenSSL would take 30 KB for each silent client."""

        def engines():
            return sum(isinstance(one, ssl.SSLObject) for one in gc.get_objects())

        for data in (b"", hello()[:-1]):
            port, limit = await self.serve("secure")
            before = engines()
            socks = self.attack(port, 50, data)
            await until(lambda limit=limit: len(limit.pending) == 50)
            await self.talk(port)
            gc.collect()
            self.assertLessEqual(engines(), before + 1)
            for sock in socks:
                sock.close()

    async def test_clients_silent_after_starttls_count_as_pending(self):
        class Chat(Notes):
            def message_received(self, message):
                if message == b"STARTTLS":
                    self.push(b"go\n")
                    self.start_tls(options)
                else:
                    super().message_received(message)

        options = server_options(max_pending=5)
        server = await Server(self, options, handler=Chat, plain=True).listen()
        socks = self.attack(server.port, 20, b"STARTTLS\n")
        await gatherResults([in_thread(drain, sock) for sock in socks[:15]])
        self.assertEqual(len(options.limit.pending), 5)
        for sock in socks:
            sock.close()
        await gatherResults([handler.closed for handler in server.handlers])
        self.assertEqual(len(options.limit.pending), 0)

    async def test_clients_silent_after_starttls_of_a_served_handler_count_as_pending(self):
        self.patch(_tls_socket, "default_limit", lambda: 5)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        leaf().configure_cert(context)

        class Chat(LegacyEcho):
            def found_terminator(self):
                if self._get_data() == b"STARTTLS":
                    self.push(b"go\n")
                    tls.start_tls(self, context)

            def handle_error(self):
                ended.append(sys.exc_info()[1])
                self.close()

        ended = []
        factory = LegacyFactory(Chat)
        inner = TCP4ServerEndpoint(reactor, 0, 1000, "127.0.0.1")
        port = await inner.listen(factory)
        self.addCleanup(port.stopListening)
        socks = self.attack(port.getHost().port, 20, b"STARTTLS\n")
        await gatherResults([in_thread(drain, sock) for sock in socks[:15]])
        self.assertEqual(len(_tls_socket._Place._all[context]), 5)
        self.assertEqual({type(error) for error in ended}, {errors.HandshakeFailed})
        for sock in socks:
            sock.close()
        await until(lambda: not factory.connections)
        self.assertEqual(len(_tls_socket._Place._all[context]), 0)


class Named:
    """A pending connection with a name."""

    def __init__(self, name, evicted):
        self.name = name
        self.evicted = evicted

    def evict(self):
        self.evicted.append(self.name)


class Parts(unittest.SynchronousTestCase):
    """The parts alone, with their own clock."""

    def members(self, names, evicted=()):
        return {name: Named(name, evicted) for name in names}

    def test_longest_waiting_member_of_the_largest_network_is_evicted_first(self):
        evicted = []
        pending = Pending(4)
        one = self.members("abcdefg", evicted)
        for name, network in zip("abcd", "xyyy", strict=True):
            pending.add(one[name], network)
        pending.progressed(one["b"])
        pending.add(one["e"], "z")
        self.assertEqual(evicted, ["c"])
        pending.add(one["f"], "y")
        self.assertEqual(evicted, ["c", "d"])
        pending.discard(one["f"])
        pending.discard(one["f"])
        pending.add(one["g"], "w")
        self.assertEqual((len(pending), evicted), (4, ["c", "d"]))
        for member in one.values():
            pending.discard(member)
        self.assertEqual((len(pending), pending._counts), (0, {}))

    def test_member_can_be_discarded_while_the_lock_is_held(self):
        """The garbage collector may do so at any moment."""
        pending = Pending(2)
        one = self.members("abc")
        pending.add(one["a"], None)
        with pending._lock:
            pending.discard(one["a"])
        pending.add(one["b"], None)
        self.assertEqual((len(pending), pending._counts), (1, {None: 1}))

    def test_without_a_limit_nothing_is_evicted(self):
        pending = Pending(None)
        for number in range(2 * PENDING):
            pending.add(Named(number, []), None)
        self.assertEqual(len(pending), 2 * PENDING)

    def test_network_is_an_ipv4_address_or_64_bits_of_an_ipv6_address(self):
        same = [
            [("192.0.2.1", 1), ("192.0.2.1", 2), ("::ffff:192.0.2.1", 3, 0, 0)],
            [("192.0.2.2", 1)],
            [("2001:db8:0:1::1", 1, 0, 0), ("2001:db8:0:1:ffff::", 2, 0, 0)],
            [("2001:db8:0:2::1", 1, 0, 0)],
            [("fe80::1%lo", 1, 0, 1), ("fe80::2", 1, 0, 1)],
            [("", 1)],
            [None, "", "/a/path", b"", (), object()],
        ]
        networks = [{network_of(address) for address in addresses} for addresses in same]
        self.assertEqual([len(one) for one in networks], [1] * len(same))
        self.assertEqual(len(set().union(*networks)), len(same))

    def test_default_limit_leaves_half_of_the_descriptors_for_finished_handshakes(self):
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        self.assertEqual(default_limit(), 300)
        self.assertEqual(server_options().max_pending, 300)

    def limit(self, count):
        self.clock = task.Clock()
        self.admitted = []
        return HandshakeLimit(count, None)

    def enter(self, limit, member, host):
        limit.connected(member, ("proxy", 1))
        if limit.enter(member, (host, 1), self.clock, lambda: self.admitted.append(member.name)):
            self.admitted.append(member.name)

    def test_queue_alternates_between_addresses(self):
        limit = self.limit(1)
        one = self.members("abcdef")
        for name, host in zip("abcdef", ["1", "1", "1", "1", "2", "3"], strict=True):
            self.enter(limit, one[name], host)
        self.assertEqual(self.admitted, ["a"])
        for name in "abefcd":
            limit.leave(one[name], self.clock)
        self.assertEqual(self.admitted, ["a", "b", "e", "f", "c", "d"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_handshake_that_waits_for_its_client_makes_room_and_continues(self):
        limit = self.limit(1)
        one = self.members("abc")
        self.enter(limit, one["a"], "1")
        self.enter(limit, one["b"], "1")
        self.clock.advance(1.0)
        self.assertEqual(self.admitted, ["a"], "the server owes the answer")
        limit.answered(one["a"], self.clock)
        self.clock.advance(0.0)
        self.assertEqual(self.admitted, ["a", "b"], "b has waited long enough")
        limit.answered(one["b"], self.clock)
        self.enter(limit, one["c"], "1")
        self.clock.advance(0.05)
        self.assertEqual(self.admitted, ["a", "b"])
        self.clock.advance(0.06)
        self.assertEqual(self.admitted, ["a", "b", "c"])
        self.assertEqual((limit.in_flight, limit.waiting, len(limit.pending)), (1, 0, 3))
        for member in one.values():
            limit.leave(member, self.clock)
        self.assertEqual((limit.in_flight, limit.waiting, len(limit.pending)), (0, 0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reading_stops_after_the_hello_until_it_is_answered(self):
        clock = task.Clock()
        ours = Factory.forProtocol(Protocol)
        factory = TLSFactory(server_options(max_handshakes=1), False, ours, clock)

        def connect():
            tls, transport = factory.buildProtocol(None), StringTransport()
            tls.makeConnection(transport)
            return tls, transport

        first, _ = connect()
        first.dataReceived(hello())
        second, transport = connect()
        whole = hello()
        second.dataReceived(whole[:50])
        second.dataReceived(whole[50:])
        self.assertEqual(transport.producerState, "producing")
        second.dataReceived(b"more")
        self.assertEqual((transport.producerState, transport.value()), ("paused", b""))
        first.connectionLost(Failure(ConnectionDone()))
        clock.advance(0)
        self.assertEqual(transport.producerState, "producing")
        self.assertNotEqual(transport.value(), b"")
        second.connectionLost(Failure(ConnectionDone()))
