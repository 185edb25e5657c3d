"""
Who is taken, by number, address and rate; and that whatever becomes of connections, nothing is left.

Also covers `limits.refusing`, `limits.gate`, `limits.exhaustion` and `hub.accepting`, which
the file for sockets beside this one tests.
"""

import gc
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, Limits, Server
from txasynchat.limits import admission as admission_module
from txasynchat.limits.admission import Admission

DONE = Failure(ConnectionDone())


def ipv4(host):
    return IPv4Address("TCP", host, 1)


def ipv6(host):
    return IPv6Address("TCP", host, 1)


def admission(clock=None, **limits):
    return Admission(clock or Clock(), Limits(**limits))


def test_who_comes_when_all_places_are_taken_is_refused():
    some = admission(connections=2)
    first, second = some.enter(ipv4("192.0.2.1")), some.enter(UNIXAddress(None))
    assert first and second
    assert some.enter(ipv4("127.0.0.1")) is None
    assert (some.connections, some.refused) == (2, {"connections": 1})
    first.leave()
    first.leave()
    assert some.connections == 1
    assert some.enter(("192.0.2.1", 5)) is not None


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (ipv4("192.0.2.1"), ("192.0.2.1", 77), ("192.0.2.2", 77)),
        (ipv6("2001:db8:1:2::1"), ("2001:db8:1:2:ff::", 7, 0, 0), ipv6("2001:db8:1:3::1")),
        (ipv6("::ffff:192.0.2.1"), ipv4("192.0.2.1"), ipv6("::ffff:192.0.2.2")),
    ],
    ids=["IPv4", "IPv6", "IPv4 written as IPv6"],
)
def test_an_address_has_a_limit_of_its_own(one, same, other):
    """Ports do not matter; and of an IPv6 network anybody has all addresses."""
    some = admission(per_address=2)
    places = [some.enter(one), some.enter(same)]
    assert all(places)
    assert some.enter(one) is some.enter(same) is None
    assert some.enter(other)
    places[0].leave()
    assert some.enter(same)
    assert some.refused == {"per_address": 2}


@pytest.mark.parametrize(
    ("exempt", "free", "limited"),
    [
        (
            None,
            ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.1.2.3", UNIXAddress(b"x")],
            ["192.0.2.1", "2001:db8::1"],
        ),
        (["192.0.2.0/24", "2001:db8::1"], ["192.0.2.9", "2001:db8::1"], ["127.0.0.1", ""]),
        ([], [], ["127.0.0.1", "::1", "10.1.2.3", UNIXAddress(b"x")]),
        (["unix"], [""], ["127.0.0.1", "10.1.2.3"]),
    ],
    ids=["by default", "networks", "nobody", "unix"],
)
def test_who_is_exempt_is_not_limited(exempt, free, limited):
    some = admission(per_address=1, **({} if exempt is None else {"exempt": exempt}))
    some.trust(["10.0.0.0/8", "unix"])  # proxies

    places = []

    def enter(host):
        places.append(some.enter((host, 1) if host and isinstance(host, str) else host))
        return places[-1]

    assert all(enter(host) for host in free for _ in range(3))
    assert all(enter(host) for host in limited)
    assert not any(enter(host) for host in limited)


def test_new_connections_come_at_a_rate():
    """As many as come in a second may come at once; whom somebody refuses does not count."""
    clock = Clock()
    some = admission(clock, rate=4)
    assert sum(some.enter(("192.0.2.1", 1)) is not None for _ in range(100)) == 4
    for _ in range(8):
        clock.advance(0.25)
        assert some.enter(("192.0.2.2", 1))
        assert not some.enter(("192.0.2.3", 1))
    clock.advance(100)
    assert sum(some.enter(("192.0.2.1", 1)) is not None for _ in range(100)) == 4
    slow = admission(clock, rate=0.5)
    assert slow.enter(None)
    assert slow.wait() == 2


def test_each_address_has_its_own_rate():
    clock = Clock()
    some = admission(clock, per_address_rate=1)
    places = [some.enter((f"192.0.2.{number}", 1)) for number in range(100)]
    assert all(places)
    assert not any(some.enter((f"192.0.2.{number}", 1)) for number in range(100))
    assert all(some.enter(("127.0.0.1", 1)) for _ in range(10))
    clock.advance(1)
    assert some.enter(("192.0.2.1", 1))


def test_no_more_addresses_are_remembered_than_came_lately(monkeypatch):
    """Whoever has many networks cannot fill the memory with them."""
    monkeypatch.setattr(admission_module, "MOST_ADDRESSES", 1500)
    clock = Clock()
    some = admission(clock, per_address=1, per_address_rate=0.1)
    for number in range(3000):
        some.enter((f"2001:db8:{number:x}::1", 1, 0, 0)).leave()
        assert len(some._networks) == 0
    assert some.addresses == 1500
    clock.advance(10)
    assert some.addresses == 0


def test_refusals_do_not_fill_the_log():
    some = admission(connections=1, refusal=b"busy\n")
    with capturedLogs() as logs:
        place = some.enter(None)
        for _ in range(1000):
            some.enter(("192.0.2.1", 1))
    assert place
    assert len(logs) == 1
    assert logs[0]["limit"] == "connections"
    assert some.refused["connections"] == 1000


class Handler(AsyncChat):
    terminator = b"\n"
    fails = ""

    def __init__(self):
        if Handler.fails == "build":
            raise ValueError

    def handle_connect(self):
        if Handler.fails == "connect":
            raise ValueError


class Other(Protocol):
    @override
    def makeConnection(self, transport):
        super().makeConnection(transport)
        if Handler.fails == "connect":
            raise ValueError


class OthersFactory(Factory):
    protocol = Other
    noisy = False

    @override
    def buildProtocol(self, addr):
        if Handler.fails == "build":
            raise ValueError
        return None if Handler.fails == "refuse" else super().buildProtocol(addr)


class Life(RuleBasedStateMachine):
    """Connections that come and go in every way that there is; what is counted agrees with what is."""

    def __init__(self):
        super().__init__()
        self.clock = MemoryReactorClock()
        limits = Limits(connections=6, per_address=2, rate=50, per_address_rate=20)
        self.servers = [
            Server(self.clock, factory, [], limits=limits)
            for factory in (ChatFactory(Handler), OthersFactory())
        ]
        self.open = [{}, {}]

    @rule(
        which=st.integers(0, 1),
        last=st.integers(1, 5),
        fails=st.sampled_from(["", "", "", "build", "connect", "refuse", "forget"]),
    )
    def comes(self, which, last, fails):
        host = f"192.0.2.{last}"
        before = len(self.open[which])
        of_host = list(self.open[which].values()).count(host)
        Handler.fails = fails
        try:
            protocol = self.servers[which]._factory.buildProtocol(ipv4(host))
        except ValueError:
            protocol = None
        finally:
            Handler.fails = "" if fails != "connect" else fails
        if protocol is not None:
            assert before < 6
            assert of_host < 2
        if protocol is None or fails == "forget":
            return  # nobody connects it
        transport = StringTransport()
        try:
            protocol.makeConnection(transport)
        except ValueError:
            pass
        finally:
            Handler.fails = ""
        self.open[which][protocol] = host

    @precondition(lambda self: any(self.open))
    @rule(data=st.data())
    def goes(self, data):
        which = 0 if self.open[0] else 1
        protocol = data.draw(st.sampled_from(list(self.open[which])))
        del self.open[which][protocol]
        protocol.connectionLost(DONE)

    @rule(seconds=st.sampled_from([0.01, 0.1, 10]))
    def waits(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def counts_agree(self):
        for server, opened in zip(self.servers, self.open, strict=True):
            assert len(opened) <= server.admission.connections <= 6

    def teardown(self):
        for opened in self.open:
            for protocol in opened:
                protocol.connectionLost(DONE)
            opened.clear()
        self.clock.advance(100)
        gc.collect()
        for server in self.servers:
            assert server.admission.connections == server.admission.addresses == 0


Life.TestCase.settings = settings(max_examples=10, stateful_step_count=50, deadline=None)
TestCountsAgreeWhateverBecomesOfConnections = Life.TestCase


@pytest.mark.slow
def test_nothing_is_left_of_ten_thousand_connections():
    life = Life()
    chance = random.Random(1)
    fails = ["", "", "", "build", "connect", "refuse", "forget"]

    class Draw:
        def draw(self, _):
            return chance.choice(list(life.open[0] or life.open[1]))

    with capturedLogs():
        for _ in range(10_000):
            life.comes(chance.randrange(2), chance.randrange(1, 6), chance.choice(fails))
            if any(life.open) and chance.random() < 0.7:
                life.goes(Draw())
            life.waits(0.01)
            if not _ % 500:
                gc.collect()
    life.counts_agree()
    life.teardown()
