"""
Many clients that connect and do not go on: they keep nobody else out, and their number is bounded.
"""

import contextlib
import gc
import itertools
import resource
import sys
import time
from pathlib import Path

import pytest
from OpenSSL.SSL import Connection
from twisted.internet import reactor, task
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.testing import StringTransport
from twisted.trial import unittest

sys.path.insert(0, str(Path(__file__).parent / "tls_matrix"))

import support
import wire
from support import HOST, Notes, Server, client_context, in_thread, leaf, pem, server_options
from wire import drain, raw_from

from txasynchat import errors
from txasynchat.compat import LegacyFactory, asynchat
from txasynchat.endpoints import SecureServerEndpoint
from txasynchat.greeting import Greeting
from txasynchat.handshakes import HandshakeLimit
from txasynchat.pending import PENDING, Pending, default_limit, network_of

#: Where the clients connect from that do not go on, and the one that does.
THEIRS, OURS = "127.0.0.2", "127.0.0.3"
#: Seconds; without what is tested here it is ten or more.
PROMPTLY = 5.0


def hello():
    return wire.Memory(client_context(), HOST).hello()


#: What those send that do not go on.
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


async def until(condition):
    while not condition():
        await task.deferLater(reactor, 0.002)


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback has one address elsewhere")
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
class Floods(unittest.TestCase):
    timeout = 120

    def attack(self, port, count, data=b"", addresses=None):
        """Connect as often from one address, or from those given, and say no more than *data*."""
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
        """Listen; return the port, and what limits its handshakes."""
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
            if way == "ssl, Twisted's options":
                options = PrivateCertificate.loadPEM(pem(leaf())).options()
            if way == "served, ssl":
                factory = LegacyFactory(LegacyEcho)
            endpoint = SSL4ServerEndpoint(reactor, 0, options, 1000, "127.0.0.1")
            port = await endpoint.listen(factory)
            if way == "ssl, Twisted's options":
                limit = HandshakeLimit.of(port.factory)
        self.addCleanup(port.stopListening)
        self.addCleanup(self.ended, limit)
        return port.getHost().port, limit

    async def ended(self, limit):
        """Nothing is counted any more when the clients have gone."""
        await until(lambda: not len(limit.pending))
        self.assertEqual((limit.in_flight, limit.waiting), (0, 0))
        self.assertEqual(limit.pending._counts, {})

    async def talk(self, port):
        answer = await in_thread(support.talk, raw_from(OURS, port), client_context())
        self.assertEqual(answer, b"hello\n")

    async def test_others_are_served_at_once(self):
        """Whatever the server is, and those do that flood it, from one address or from many."""
        for way in ("secure", "served", "ssl", "ssl, Twisted's options", "served, ssl"):
            for what, data in ATTACKS.items():
                for addresses in (None, many_addresses()):
                    port, limit = await self.serve(way, max_handshakes=2)
                    socks = self.attack(port, 60, data(), addresses)
                    await until(lambda limit=limit: len(limit.pending) == 60)
                    began = time.monotonic()
                    await self.talk(port)
                    self.assertLess(time.monotonic() - began, PROMPTLY, (way, what, addresses))
                    # Nobody was driven away for it.
                    self.assertEqual(len(limit.pending), 60, (way, what, addresses))
                    for sock in socks:
                        sock.close()

    async def test_too_many_of_one_address_give_way_and_a_slow_client_from_elsewhere_does_not(self):
        for way in ("secure", "served", "ssl", "served, ssl"):
            for what, data in ATTACKS.items():
                port, limit = await self.serve(way, max_pending=20)
                slow = raw_from(OURS, port)
                await until(lambda limit=limit: len(limit.pending) == 1)
                socks = self.attack(port, 60, data())
                # Each of these is ended by the server.
                await gatherResults([in_thread(drain, sock) for sock in socks[:41]])
                self.assertEqual(len(limit.pending), 20, (way, what))
                answer = await in_thread(support.talk, slow, client_context())
                self.assertEqual(answer, b"hello\n", (way, what))
                for sock in socks:
                    sock.close()

    async def test_of_many_addresses_those_give_way_that_let_the_server_wait_longest(self):
        port, limit = await self.serve("secure", max_pending=20)
        first = self.attack(port, 20, addresses=many_addresses())
        await until(lambda: len(limit.pending) == 20)
        # The oldest of all goes on, which makes it the newest.
        first[0].sendall(hello())
        self.assertNotEqual(await in_thread(first[0].recv, 1), b"")
        others = self.attack(port, 19, addresses=(f"127.1.0.{last}" for last in range(1, 20)))
        await gatherResults([in_thread(drain, sock) for sock in first[1:]])
        self.assertEqual(len(limit.pending), 20)
        for sock in others:
            self.assertEqual(await in_thread(support.talk, sock, client_context()), b"hello\n")
        first[0].close()

    async def test_clients_behind_a_proxy_count_by_their_own_addresses(self):
        port, limit = await self.serve("behind a proxy", max_pending=20)
        one, other = (b"PROXY TCP4 192.0.2.%d 198.51.100.1 4711 443\r\n" % last for last in (1, 2))
        (slow,) = self.attack(port, 1, other + hello())
        self.assertNotEqual(await in_thread(slow.recv, 1), b"")
        socks = self.attack(port, 60, one + hello())
        await gatherResults([in_thread(drain, sock) for sock in socks[:40]])
        await until(lambda: limit.pending._counts == {"192.0.2.1": 19, "192.0.2.2": 1})
        for sock in (slow, *socks):
            sock.close()

    async def test_who_gives_way_is_told_why(self):
        server = await Server(self, server_options(max_pending=2)).listen()
        self.attack(server.port, 3)
        await until(lambda: len(server.handlers) == 3)
        await server.handlers[0].closed
        reason = server.handlers[0].close_reason
        self.assertIs(type(reason), errors.HandshakeFailed)
        self.assertIn("too many handshakes are not over", str(reason))
        self.assertEqual(server.handlers[0].notes, ["close"])

    async def test_a_client_that_says_nothing_starts_no_engine(self):
        """OpenSSL would take 30 KB for each of them."""

        def engines():
            return sum(isinstance(one, Connection) for one in gc.get_objects())

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

    async def test_clients_that_are_silent_after_starttls_are_counted_too(self):
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


class Named:
    """A connection, as far as these parts know one."""

    def __init__(self, name, gone):
        self.name = name
        self.gone = gone

    def give_way(self):
        self.gone.append(self.name)


class Parts(unittest.SynchronousTestCase):
    """The parts, with a clock of their own."""

    def members(self, names, gone=()):
        return {name: Named(name, gone) for name in names}

    def test_the_network_with_most_gives_way_and_of_it_who_made_us_wait_longest(self):
        gone = []
        pending = Pending(4)
        one = self.members("abcdefg", gone)
        for name, network in zip("abcd", "xyyy", strict=True):
            pending.add(one[name], network)
        pending.progressed(one["b"])
        pending.add(one["e"], "z")
        self.assertEqual(gone, ["c"])
        pending.add(one["f"], "y")
        self.assertEqual(gone, ["c", "d"])
        pending.discard(one["f"])
        pending.discard(one["f"])
        pending.add(one["g"], "w")
        self.assertEqual((len(pending), gone), (4, ["c", "d"]))
        for member in one.values():
            pending.discard(member)
        self.assertEqual((len(pending), pending._counts), (0, {}))

    def test_without_a_limit_nobody_gives_way(self):
        pending = Pending(None)
        for number in range(2 * PENDING):
            pending.add(Named(number, []), None)
        self.assertEqual(len(pending), 2 * PENDING)

    def test_an_origin_is_an_ipv4_address_or_half_of_an_ipv6_address(self):
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

    def test_half_of_the_descriptors_are_left_for_other_things(self):
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

    def test_each_address_has_its_turn_among_those_that_wait(self):
        limit = self.limit(1)
        one = self.members("abcdef")
        for name, host in zip("abcdef", ["1", "1", "1", "1", "2", "3"], strict=True):
            self.enter(limit, one[name], host)
        self.assertEqual(self.admitted, ["a"])
        for name in "abefcd":
            limit.leave(one[name], self.clock)
        self.assertEqual(self.admitted, ["a", "b", "e", "f", "c", "d"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_does_not_answer_makes_room_and_goes_on(self):
        limit = self.limit(1)
        one = self.members("abc")
        self.enter(limit, one["a"], "1")
        self.enter(limit, one["b"], "1")
        self.clock.advance(1.0)
        self.assertEqual(self.admitted, ["a"], "it is we who are late")
        limit.answered(one["a"], self.clock)
        self.clock.advance(0.0)
        self.assertEqual(self.admitted, ["a", "b"], "that one has waited long enough")
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

    def test_little_is_read_before_the_hello_is_answered(self):
        told = []
        transport = StringTransport()
        greeting = Greeting(transport, lambda: told.append(True))
        whole = hello()
        greeting.receive(whole[:50])
        self.assertEqual(told, [])
        greeting.receive(whole[50:])
        self.assertEqual((told, transport.producerState), ([True], "producing"))
        greeting.receive(b"more")
        self.assertEqual((told, transport.producerState), ([True], "paused"))
        self.assertEqual(greeting.finish(), whole + b"more")
        self.assertEqual(transport.producerState, "producing")

    def test_limits_of_nobody_are_refused(self):
        for name in ("max_handshakes", "max_pending"):
            for value in (0, -1):
                with self.assertRaisesRegex(ValueError, f"{name} is 1 or more"):
                    server_options(**{name: value})
