"""
Other threads open and close channels of a map while loop() runs on it.
"""

import random
import select
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from helpers.loops import both_modes
from txasynchat.compat import _asking as asking
from txasynchat.compat import _driver as driving
from txasynchat.compat import _interest, _loop, asyncore
from txasynchat.hub import Hub
from txasynchat.hub.pollers import READ, PollPoller, new_poller

LIMIT = 10.0


class Heard(asyncore.dispatcher):
    """Signals its first line; anything else that happens to it is added to `trouble`."""

    trouble: list

    def __init__(self, sock, channels):
        self.heard = threading.Event()
        super().__init__(sock, channels)

    def writable(self):
        return False

    def handle_read(self):
        try:
            if self.recv(100):
                self.heard.set()
        except BlockingIOError:
            self.trouble.append("an event that was for another")

    def handle_close(self):
        self.close()

    def handle_error(self):
        if self.connected:  # otherwise it was just closed
            self.trouble.append(sys.exc_info()[1])


class Steady(Heard):
    """Asked only when it may have changed."""

    writable = _interest.steady(Heard.writable)


@pytest.fixture(params=[new_poller, PollPoller], ids=["nested", "flat"])
def make_poller(request, monkeypatch):
    """The poller class that the hubs of this test use."""
    monkeypatch.setattr(driving, "Hub", lambda: Hub(request.param))
    return request.param


@contextmanager
def looping(channels, use_poll=False):
    """Run loop() in a thread, which must end by itself; yield what it raised."""
    raised = []

    def run():
        try:
            asyncore.loop(LIMIT, use_poll, channels)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
        asyncore.close_all(channels)
        began = time.monotonic()
        thread.join(LIMIT)
        assert time.monotonic() - began < LIMIT / 2  # it got the event
    finally:
        asyncore.close_all(channels, ignore_all=True)
        thread.join(2 * LIMIT)
    assert not thread.is_alive()
    assert raised == []


def churn(channels, kinds, seconds, is_over):
    """Open and close channels; every second one receives a line first."""
    mine = []
    end = time.monotonic() + seconds
    served = 0
    chance = random.Random(seconds)
    while time.monotonic() < end and not is_over():
        near, far = socket.socketpair()
        channel = chance.choice(kinds)(far, channels)
        mine.append((channel, near))
        near.send(b"x")
        if chance.random() < 0.5:
            assert channel.heard.wait(LIMIT), "it was forgotten"
            served += 1
        if len(mine) > 5:
            close(*mine.pop(chance.randrange(5)))
    for pair in mine:
        close(*pair)
    return served


def close(channel, near):
    channel.close()
    near.close()


def run_churns(channels, kinds, seconds, raised):
    """Four of them at once."""
    results = []

    def one():
        try:
            results.append(churn(channels, kinds, seconds, lambda: raised))
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 2 * LIMIT)
        assert not thread.is_alive()
    assert raised == []
    assert all(isinstance(result, int) and result for result in results), results


def own_kinds(*kinds):
    trouble = []
    return trouble, [type(kind.__name__, (kind,), {"trouble": trouble}) for kind in kinds]


@pytest.mark.usefixtures("threads_switch_often", "make_poller")
@both_modes
@pytest.mark.slow
def test_four_threads_open_and_close_channels_of_a_running_map(channels, use_poll):
    """Each channel is served, none gets what was for another, and loop() goes on."""
    trouble, kinds = own_kinds(Heard, Steady)
    near, far = socket.socketpair()
    kinds[0](far, channels)
    with near, looping(channels, use_poll) as raised:
        run_churns(channels, kinds, 1.0, raised)
    assert trouble == []


@pytest.mark.slow
@pytest.mark.usefixtures("threads_switch_often")
def test_four_threads_open_and_close_channels_of_a_running_map_for_ten_seconds(channels):
    """The same, for what happens once in tens of thousands of times."""
    trouble, kinds = own_kinds(Heard, Steady)
    near, far = socket.socketpair()
    kinds[0](far, channels)
    with near, looping(channels) as raised:
        run_churns(channels, kinds, 10.0, raised)
    assert trouble == []


# -- the same at moments that are chosen


def elsewhere(call, *args):
    """Run it in another thread; wait for its end unless that thread waits for this one."""
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join(0.3)
    return thread


@pytest.fixture
def call_at(monkeypatch):
    """Calls by moment: each is made once, in another thread, in the middle of the hub's work."""
    calls = {}
    threads = []

    def reach(moment):
        call = calls.pop(moment, None)
        if call is not None:
            threads.append(elsewhere(call))

    class Interrupted(Hub):
        __slots__ = ()

        def wait(self, timeout, limit=-1):
            events = super().wait(timeout, limit)
            reach("after the wait" if events else "after an empty wait")
            return events

        def quiet(self, fd):
            super().quiet(fd)
            reach("after something is silenced")

    class Poller:
        def __init__(self):
            self._poller = new_poller()

        def __getattr__(self, name):
            return getattr(self._poller, name)

        def register(self, fd, events):
            reach("before it is registered")
            self._poller.register(fd, events)
            reach("after it is registered")

        def modify(self, fd, events):
            reach("before it is registered anew")
            self._poller.modify(fd, events)

    monkeypatch.setattr(driving, "Hub", lambda: Interrupted(Poller))
    yield calls
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


def replace(channel, near, kind, channels, made):
    """Close *channel*, and open another one on its number, without input so far."""
    number = channel._fileno
    channel.close()
    near.close()
    pairs = []
    while not any(number == sock.fileno() for pair in pairs for sock in pair):
        pairs.append(socket.socketpair())
    far, other = next(
        (one, two) for a, b in pairs for one, two in ((a, b), (b, a)) if one.fileno() == number
    )
    for a, b in pairs[:-1]:
        a.close()
        b.close()
    made.append((kind(far, channels), other))


@pytest.mark.parametrize(
    "moment", ["after the wait", "before it is registered", "after it is registered"]
)
@both_modes
@pytest.mark.parametrize("kind", [Heard, Steady])
def test_channel_may_be_replaced_at_any_moment(channels, call_at, moment, use_poll, kind):
    """The new channel on its number gets no event of the old one, and is served."""
    trouble, (kind,) = own_kinds(kind)
    near, far = socket.socketpair()
    old = kind(far, channels)
    near.send(b"for the old one")
    made = []
    call_at[moment] = lambda: replace(old, near, kind, channels, made)
    end = time.monotonic() + LIMIT
    while not made and time.monotonic() < end:
        asyncore.loop(0.01, use_poll, channels, 1)
    ((new, near),) = made
    assert call_at == {}
    asyncore.loop(0, use_poll, channels, 2)
    assert not new.heard.is_set()
    near.send(b"for the new one")
    while not new.heard.is_set() and time.monotonic() < end:
        asyncore.loop(1, use_poll, channels, 1)
    assert new.heard.is_set()
    assert trouble == []
    near.close()


@both_modes
def test_channel_may_be_closed_while_the_loop_assigns_events(channels, call_at, use_poll):
    """Events without an owner need a check; the others keep the map's former order."""
    trouble, (kind,) = own_kinds(Heard)
    (near, far), (other_near, other_far), (mine, nobodys) = [socket.socketpair() for _ in range(3)]
    first, second = kind(far, channels), kind(other_far, channels)
    asyncore.loop(0, use_poll, channels, 1)
    with near, other_near, mine, nobodys:
        hub = _loop.driver_of(channels).hub
        hub.watch(nobodys.fileno(), READ)
        for sock in (near, other_near, mine):
            sock.send(b"x")
        call_at["after something is silenced"] = second.close
        asyncore.loop(LIMIT, use_poll, channels, 1)
        assert call_at == {}
        assert first.heard.is_set()
        assert not second.heard.is_set()
        hub.forget(nobodys.fileno())
    assert trouble == []


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="only epoll(7) tells once")
@pytest.mark.parametrize("then", ["silenced", "spoken to again"])
def test_channel_without_interest_may_be_closed_while_it_is_checked(channels, call_at, then):
    """Another thread may close its descriptor just as the hub passes it to the system."""
    near, far = socket.socketpair()

    class Deaf(asyncore.dispatcher):
        accepting = True  # so that nothing but urgent data is waited for
        hears = False

        def readable(self):
            return self.hears

        def handle_accept(self):
            self.recv(10)

    with near:
        deaf = Deaf(far, channels)
        asyncore.loop(0, map=channels, count=1)
        if then == "silenced":
            call_at["before it is registered anew"] = deaf.close
            near.close()
        else:
            near.shutdown(socket.SHUT_RDWR)
            asyncore.loop(0, map=channels, count=1)
            call_at["before it is registered anew"] = deaf.close
            deaf.hears = True
        for _ in range(3):
            asyncore.loop(0, map=channels, count=1)
        assert call_at == {}
        elsewhere(lambda: None)
    assert channels == {}


@both_modes
def test_change_by_another_thread_just_before_a_full_pass_is_noticed(channels, call_at, use_poll):
    """It is noticed in that pass, not after the next wait."""
    trouble, (kind,) = own_kinds(Heard)
    done = threading.Event()

    class Waiting(kind):
        wants = False

        def writable(self):
            return self.wants

        def handle_read(self):
            super().handle_read()
            call_at["after an empty wait"] = self.change

        def change(self):
            self.wants = True
            _loop.touch(self)

        def handle_write(self):
            self.wants = False
            done.set()

    near, far = socket.socketpair()
    Waiting(far, channels)
    end = time.monotonic() + LIMIT / 2
    with near, looping(channels, use_poll):
        near.send(b"x")
        # No full pass is due in this wait if one was due just before it: then in another one.
        while not done.wait(3 * asking.FULL_PASS_LATEST):
            assert time.monotonic() < end
            near.send(b"x")
    assert trouble == []


@both_modes
def test_map_may_change_while_its_channels_are_asked(channels, use_poll):
    """In either mode, as in the stdlib, a pass continues with the channels it began with."""
    trouble, (kind,) = own_kinds(Heard)
    peers = []

    class Changing(kind):
        victim = None

        def readable(self):
            if self.victim is not None:
                victim, self.victim = self.victim, None
                elsewhere(self.change, victim)
            return True

        def change(self, victim):
            victim.close()
            for _ in range(2):
                near, far = socket.socketpair()
                peers.append(near)
                kind(far, channels)

    made = []
    for _ in range(8):
        near, far = socket.socketpair()
        peers.append(near)
        made.append(Changing(far, channels))
    for number, channel in enumerate(made):
        channel.victim = made[(number * 3 + 1) % 8]
    asyncore.loop(0.01, use_poll, channels, 10)
    assert all(channel.victim is None or channel._fileno is None for channel in made)
    for near in peers:
        with suppress(BrokenPipeError):  # a victim's
            near.send(b"x")
    end = time.monotonic() + LIMIT
    alive = list(channels.values())
    assert len(alive) > 8
    while not all(channel.heard.is_set() for channel in alive) and time.monotonic() < end:
        asyncore.loop(1, use_poll, channels, 1)
    assert all(channel.heard.is_set() for channel in alive)
    assert trouble == []
    for near in peers:
        near.close()


def test_two_threads_close_one_channel():
    """The loop's own, say, whose peer has gone, and the one that ends the program."""
    near, far = socket.socketpair()

    class Map(dict):
        meanwhile = None

        def __delitem__(self, key):
            if self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                elsewhere(meanwhile)
            super().__delitem__(key)

    class Strict(Heard):
        def handle_error(self):
            self.trouble.append(sys.exc_info()[1])

    channels = Map()
    trouble, (kind,) = own_kinds(Strict)
    channel = kind(far, channels)
    asyncore.loop(0, map=channels, count=1)
    channels.meanwhile = channel.close
    near.close()
    asyncore.loop(LIMIT, map=channels)
    assert channels == {}
    assert trouble == []
    assert far.fileno() == -1
