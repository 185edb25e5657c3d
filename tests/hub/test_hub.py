"""
The hub and its pollers on real descriptors, alone and inside every kind of reactor.

Also covers `hub.hosts` and `hub.pollers`.
"""

import asyncio
import gc
import importlib.util
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor
from zope.interface.verify import verifyObject

from txasynchat import hub as hubs
from txasynchat.hub import HANGUP, READ, URGENT, WRITE, Hub
from txasynchat.hub.hosts import HostedDescriptor
from txasynchat.hub.pollers import PollPoller, SelectPoller, new_poller

LIMIT = 20.0


@pytest.fixture(params=[new_poller, PollPoller, SelectPoller], ids=["nested", "flat", "select"])
def hub(request):
    one = Hub(request.param)
    yield one
    one.close()


@pytest.fixture
def ends():
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    yield a, b
    a.close()
    b.close()


def test_only_watched_events_are_reported(hub, ends):
    a, b = ends
    hub.watch(a.fileno(), READ)
    assert hub.wait(0) == []
    b.send(b"x")
    assert hub.wait(LIMIT) == [(a.fileno(), READ)]
    assert hub.wait(0) == [(a.fileno(), READ)]  # level-triggered
    hub.watch(a.fileno(), WRITE)
    assert hub.wait(0) == [(a.fileno(), WRITE)]
    hub.watch(a.fileno(), 0)
    assert hub.wait(0) == []
    assert hub.masks == {}


class NumbersPoller(PollPoller):
    """
    Its times are numbers, as those of PyPy's `select.epoll`, which takes no None.
    """

    def poll(self, timeout, maxevents):
        return super().poll(float(timeout), maxevents)


@pytest.mark.parametrize("hub", [new_poller, PollPoller, NumbersPoller], indirect=True)
def test_unlimited_wait_ends_with_an_event_or_a_wake_up(hub, ends):
    a, b = ends
    hub.watch(a.fileno(), READ)
    b.send(b"x")
    assert hub.wait(None) == [(a.fileno(), READ)]
    a.recv(1)
    hub.wake()
    assert hub.wait(None) == []


def test_limit_bounds_the_batch(hub):
    pairs = [socket.socketpair() for _ in range(5)]
    for a, _ in pairs:
        hub.watch(a.fileno(), WRITE)
    assert len(hub.wait(0, 2)) == 2
    assert len(hub.wait(0)) == 5
    for a, b in pairs:
        hub.forget(a.fileno())
        a.close()
        b.close()


def test_urgent_data_is_reported(hub):
    with socket.create_server(("127.0.0.1", 0)) as server:
        a = socket.create_connection(server.getsockname())
        b, _ = server.accept()
    with a, b:
        hub.watch(b.fileno(), URGENT)
        a.send(b"!", socket.MSG_OOB)
        assert hub.wait(LIMIT) == [(b.fileno(), URGENT)]


def test_number_reused_unnoticed_is_registered_again(hub):
    a, b = socket.socketpair()
    c, d = socket.socketpair()
    number = a.detach()
    hub.watch(number, READ)
    os.dup2(c.fileno(), number)  # closes what it was
    try:
        assert hub.verify(number)
        d.send(b"x")
        assert (number, READ) in hub.wait(LIMIT)
        hub.watch(number, READ | WRITE)
        assert (number, READ | WRITE) in hub.wait(LIMIT)
    finally:
        hub.forget(number)
        os.close(number)
        for sock in (b, c, d):
            sock.close()


def test_a_closed_descriptor_is_found_out(hub, ends):
    a, _ = ends
    number = a.fileno()
    hub.watch(number, READ)
    a.close()
    assert not hub.verify(number)
    assert hub.masks == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        hub.watch(number, READ)
    hub.forget(number)
    assert hub.wait(0) == []


def test_a_negative_descriptor_is_refused(hub):
    with pytest.raises((ValueError, OSError)):
        hub.watch(-1, READ)


def test_regular_files_are_always_ready(hub, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        hub.watch(file.fileno(), READ)
        assert hub.wait(LIMIT) == [(file.fileno(), READ)]
        assert hub.busy == (type(hub._poller) not in (PollPoller, SelectPoller))
        hub.watch(file.fileno(), READ | WRITE)
        assert hub.wait(LIMIT) == [(file.fileno(), READ | WRITE)]
        hub.watch(file.fileno(), 0)
        assert hub.wait(0) == []
        assert not hub.busy


@pytest.mark.parametrize("hub", [new_poller, PollPoller], indirect=True)  # select(2) takes none
def test_descriptors_above_1023(hub, ends):
    a, b = ends
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > 3000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    high = os.dup2(a.fileno(), 2500)
    try:
        hub.watch(high, READ)
        b.send(b"x")
        assert hub.wait(LIMIT) == [(high, READ)]
    finally:
        hub.forget(high)
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("hub", [new_poller], indirect=True)  # poll(2) cannot report it once
def test_unwanted_hang_up_is_silenced_until_something_happens(hub):
    read, write = os.pipe()
    os.set_blocking(read, False)
    try:
        hub.watch(read, URGENT)
        os.close(write)
        assert hub.wait(LIMIT) == [(read, HANGUP)]
        hub.quiet(read)
        for _ in range(3):
            hub.quiet(read)
            hub.wait(0)
        assert hub.wait(0) == []
        hub.watch(read, READ | URGENT)
        assert hub.wait(0) == [(read, HANGUP)]
    finally:
        hub.forget(read)
        os.close(read)


def test_registration_that_another_process_keeps_alive_is_removed(hub):
    """A dup'ed descriptor keeps a closed one in epoll, where it can no longer be named."""
    a, b = socket.socketpair()
    copy = os.dup(a.fileno())
    number = a.fileno()
    try:
        hub.watch(number, READ)
        hub.masks.pop(number)  # the effect of a close without forget()
        a.close()
        b.send(b"x")
        for fd, _ in hub.wait(LIMIT):
            hub.quiet(fd)
        assert hub.wait(0) == []
    finally:
        os.close(copy)
        b.close()


def test_another_thread_ends_a_wait(hub):
    began = threading.Event()

    def wake():
        began.wait(LIMIT)
        hub.wake()

    thread = threading.Thread(target=wake)
    thread.start()
    began.set()
    start = time.monotonic()
    assert hub.wait(LIMIT) == []
    assert time.monotonic() - start < LIMIT / 2
    thread.join()
    hub.wake()
    hub.wake()
    assert hub.wait(LIMIT) == []
    assert hub.wait(0.01) == []


def test_a_wake_up_does_not_hide_events(hub, ends):
    a, b = ends
    hub.watch(a.fileno(), READ)
    b.send(b"x")
    hub.wake()
    assert hub.wait(LIMIT) == [(a.fileno(), READ)]


def test_forked_child_has_its_own_poller(ends):
    a, b = ends
    hub = Hub()
    hub.watch(a.fileno(), READ)
    pid = os.fork()
    if pid == 0:
        # All this happens in the child, and must not touch the parent's registrations.
        status = 1
        try:
            hub.watch(a.fileno(), WRITE)
            own = hub.wait(LIMIT)
            hub.forget(a.fileno())
            gone = hub.wait(0)
            hub.close()
            status = 0 if own == [(a.fileno(), WRITE)] and gone == [] else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    b.send(b"x")
    assert hub.wait(LIMIT) == [(a.fileno(), READ)]
    hub.close()


def test_close_releases_everything():
    before = len(os.listdir("/dev/fd"))
    hub = Hub()
    assert len(os.listdir("/dev/fd")) > before
    hub.close()
    hub.close()
    hub.wake()
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.counts_references
def test_unreferenced_hub_releases_everything():
    before = len(os.listdir("/dev/fd"))
    forgotten = Hub()
    del forgotten
    assert len(os.listdir("/dev/fd")) == before


# -- in a reactor


def reactors():
    kinds = [SelectReactor, PollReactor, lambda: AsyncioSelectorReactor(asyncio.new_event_loop())]
    if hasattr(select, "epoll"):
        from twisted.internet.epollreactor import EPollReactor

        kinds.append(EPollReactor)
    return kinds


@pytest.fixture(params=reactors(), ids=["select", "poll", "asyncio", "epoll"][: len(reactors())])
def reactor(request):
    one = request.param()
    yield one
    for reader in one.removeAll():
        reader.connectionLost(None)
    for reader in list(one._internalReaders):
        one.removeReader(reader)
        reader.connectionLost(None)
    loop = getattr(one, "_asyncioEventloop", None)
    if loop is not None:
        loop.close()
    poller = getattr(one, "_poller", None)
    if hasattr(poller, "close"):
        poller.close()


def turn_until(reactor, done):
    deadline = time.monotonic() + LIMIT
    while not done() and time.monotonic() < deadline:
        reactor.iterate(0.01)
    assert done()


def test_a_reactor_is_told_when_something_is_ready(reactor, hub, ends):
    a, b = ends
    seen = []

    def ready():
        for fd, bits in hub.wait(0):
            seen.append((fd, bits))
            if fd == a.fileno():
                a.recv(100)

    hub.watch(a.fileno(), READ)
    hub.attach(reactor, ready)
    assert hub.attached
    b.send(b"x")
    turn_until(reactor, lambda: seen)
    assert seen == [(a.fileno(), READ)]
    # Descriptors watched while it is attached count as well.
    c, d = socket.socketpair()
    with c, d:
        hub.watch(c.fileno(), WRITE)
        turn_until(reactor, lambda: (c.fileno(), WRITE) in seen)
        hub.forget(c.fileno())
    hub.detach()
    seen.clear()
    b.send(b"y")
    reactor.iterate(0.01)
    assert seen == []
    assert hub.wait(LIMIT) == [(a.fileno(), READ)]


def test_an_asyncio_event_loop_is_told_when_something_is_ready(hub, ends):
    a, b = ends

    async def main():
        told = asyncio.Event()

        def ready():
            if hub.wait(0):
                a.recv(100)
                told.set()

        hub.watch(a.fileno(), READ)
        hub.attach(asyncio.get_running_loop(), ready)
        with pytest.raises(RuntimeError, match="already"):
            hub.attach(asyncio.get_running_loop(), ready)
        b.send(b"x")
        await asyncio.wait_for(told.wait(), LIMIT)
        hub.detach()
        hub.detach()

    asyncio.run(main())


def test_host_must_be_a_reactor_or_an_event_loop(hub):
    with pytest.raises(TypeError, match="neither"):
        hub.attach(object(), lambda: None)


def test_reader_added_to_a_reactor_is_a_descriptor():
    assert verifyObject(IReadWriteDescriptor, HostedDescriptor(1, lambda: None))


def test_events_have_the_names_of_poll():
    for ours, theirs in (("READ", "POLLIN"), ("WRITE", "POLLOUT"), ("URGENT", "POLLPRI")):
        assert getattr(hubs, ours) == getattr(select, theirs)


EVENTLET = """
import eventlet
eventlet.monkey_patch()
import select, socket, sys
assert not hasattr(select, "poll"), "eventlet takes it away"
import txasynchat
txasynchat.install()
import asynchat, asyncore

class Echo(asynchat.async_chat):
    def __init__(self, sock, channels):
        asynchat.async_chat.__init__(self, sock, channels)
        self.set_terminator(b"\\n")
        self.line = []
    def collect_incoming_data(self, data):
        self.line.append(data)
    def found_terminator(self):
        self.push(b"".join(self.line) + b"\\n")
        self.close_when_done()

near, far = socket.socketpair()
near.settimeout(10)
for use_poll in (False, True):
    near, far = socket.socketpair()
    channels = {}
    Echo(far, channels)
    near.sendall(b"hello\\n")
    asyncore.loop(timeout=1, use_poll=use_poll, map=channels)
    print(near.recv(100))
"""


def test_select_is_used_where_epoll_and_poll_are_missing():
    """As eventlet's monkey_patch() leaves the select module."""
    program = EVENTLET
    if importlib.util.find_spec("eventlet") is None:
        program = program.replace(
            "import eventlet\neventlet.monkey_patch()\nimport select,",
            "import select\nfor name in ('epoll', 'poll', 'kqueue'):\n"
            "    vars(select).pop(name, None)\nimport",
        )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("b'hello\\n'\n" * 2, "")


# -- where the program closed the hub's own descriptors


@pytest.fixture(params=[new_poller, PollPoller], ids=["nested", "flat"])
def opened(request):
    """A hub, and the descriptors that it opened."""
    hub = Hub(request.param)
    numbers = {hub.fileno(), hub.waker, pipe_end(hub)} - {-1}
    yield SimpleNamespace(hub=hub, numbers=numbers)
    hub.close()


def pipe_end(hub):
    """The descriptor that a wake-up writes to, if there is one."""
    return hub._waker._write.number if hub.fileno() < 0 else -1


class Strangers:
    """What the program opens on the numbers that it freed, and whether the hub touches it."""

    KINDS = ("nothing", "files", "sockets", "readable sockets")

    def __init__(self, kind, numbers):
        self.inodes = {}
        self.ends = []
        for number in sorted(numbers):
            if kind == "nothing":
                os.close(number)
                continue
            where = getattr(self, kind.replace(" ", "_"))()
            os.dup2(where, number)  # closes what it was
            os.close(where)
            self.inodes[number] = os.fstat(number).st_ino

    def files(self):
        return os.open(os.devnull, os.O_WRONLY)

    def sockets(self):
        near, far = socket.socketpair()
        far.setblocking(False)
        self.ends.append(far)
        return near.detach()

    def readable_sockets(self):
        number = self.sockets()
        self.ends[-1].send(b"not for a hub")
        return number

    def pollers(self):
        with new_poller() as poller:
            return os.dup(poller.fileno())

    def are_untouched(self):
        for far in self.ends:
            with pytest.raises(BlockingIOError):
                far.recv(100)
        return all(os.fstat(number).st_ino == inode for number, inode in self.inodes.items())

    def close(self):
        for number in self.inodes:
            os.close(number)
        for far in self.ends:
            far.close()


@pytest.fixture(params=[*Strangers.KINDS, pytest.param("pollers", marks=pytest.mark.nests_pollers)])
def reuse_numbers(request):
    """Close the descriptors with these numbers, and open others on them."""
    made = []

    def put(numbers):
        made.append(Strangers(request.param, numbers))
        return made[-1]

    yield put
    for strangers in made:
        strangers.close()


def first_event(hub):
    """Wait as an owner does: an event that has no owner is silenced."""
    for _ in range(5):
        for fd, bits in hub.wait(LIMIT):
            if fd in hub.masks:
                return fd, bits
            hub.quiet(fd)
    return None


def test_hub_continues_with_new_descriptors(opened, ends, reuse_numbers):
    hub = opened.hub
    a, b = ends
    hub.watch(a.fileno(), READ)
    assert hub.check()
    strangers = reuse_numbers(opened.numbers)
    b.send(b"x")
    assert not hub.check()
    assert first_event(hub) == (a.fileno(), READ)
    assert hub.check()
    hub.watch(a.fileno(), WRITE)
    assert first_event(hub) == (a.fileno(), WRITE)
    hub.forget(a.fileno())
    thread = threading.Thread(target=hub.wake)
    thread.start()
    assert hub.wait(LIMIT) == []
    thread.join()
    hub.close()
    assert strangers.are_untouched()


@pytest.mark.parametrize("opened", [new_poller], indirect=True)
@pytest.mark.parametrize("reuse_numbers", Strangers.KINDS, indirect=True)
@pytest.mark.parametrize("call", ["wait", "watch", "verify", "wake"])
def test_any_call_notices_closed_descriptors(opened, ends, reuse_numbers, call):
    """No check is needed first, unless the program has another poller on that number."""
    hub = opened.hub
    a, b = ends
    hub.watch(a.fileno(), READ)
    strangers = reuse_numbers(opened.numbers)
    if call == "watch":
        hub.watch(a.fileno(), READ | WRITE)
    elif call == "verify":
        assert hub.verify(a.fileno())
    elif call == "wake":
        hub.wake()
    b.send(b"x")
    fd, bits = first_event(hub)
    assert fd == a.fileno()
    assert bits & READ
    assert strangers.are_untouched()


def test_close_leaves_reused_numbers_alone(opened, reuse_numbers):
    strangers = reuse_numbers(opened.numbers)
    opened.hub.close()
    del opened.hub._poller
    gc.collect()
    assert strangers.are_untouched()


def test_wake_up_writes_nothing_to_reused_numbers(opened, reuse_numbers):
    strangers = reuse_numbers(opened.numbers)
    thread = threading.Thread(target=opened.hub.wake)
    thread.start()
    thread.join()
    opened.hub.forget(0)
    assert strangers.are_untouched()
    assert opened.hub.wait(LIMIT) == []
    assert strangers.are_untouched()


@pytest.mark.parametrize("make_poller", [new_poller, PollPoller], ids=["nested", "flat"])
def test_wake_up_during_a_restart_writes_nothing_to_reused_numbers(make_poller, monkeypatch):
    """Another thread was about to write; the number is re-used before it does."""
    about_to_write = threading.Event()
    started_again = threading.Event()
    strangers = []

    def make():
        if about_to_write.is_set():
            strangers.extend(socket.socketpair() for _ in range(8))
        return make_poller()

    def write_late(fd, data, write=os.write):
        about_to_write.set()
        started_again.wait(0.3)
        return write(fd, data)

    def wake():
        hub.wake()
        about_to_write.set()

    hub = Hub(make)
    monkeypatch.setattr(os, "write", write_late)
    thread = threading.Thread(target=wake)
    thread.start()
    try:
        assert about_to_write.wait(LIMIT)
        hub.stale = True  # as after a fork
        hub.wait(0)
        started_again.set()
        thread.join()
        for pair in strangers:
            for sock in pair:
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(100)
        hub.wait(0)
        hub.wake()
        assert hub.wait(LIMIT) == []
    finally:
        started_again.set()
        thread.join()
        hub.close()
        for pair in strangers:
            for sock in pair:
                sock.close()


@pytest.mark.nests_pollers
def test_hub_on_the_number_of_another_is_told_apart(ends):
    """All epoll descriptors look alike; the kernel gives a number to one at a time."""
    a, b = ends
    first = Hub()
    first.watch(a.fileno(), READ)
    os.close(first.fileno())
    second = Hub()
    second.watch(b.fileno(), WRITE)
    first.wake()
    b.send(b"x")
    assert first_event(first) == (a.fileno(), READ)
    first.close()
    assert second.check()
    assert second.wait(LIMIT) == [(b.fileno(), WRITE)]
    second.close()


def test_channel_on_the_former_number_of_a_waker_is_served(opened):
    """The program closes what it does not know, and connects again."""
    hub = opened.hub
    number = hub.waker
    former = hub.fileno()
    a, b = socket.socketpair()
    with a, b:
        os.dup2(a.fileno(), number)
        hub.watch(number, READ)
        b.send(b"x")
        assert first_event(hub) == (number, READ)
        thread = threading.Thread(target=hub.wake)
        hub.watch(number, WRITE)
        hub.watch(number, URGENT)
        thread.start()
        assert hub.wait(LIMIT) == []
        thread.join()
        hub.forget(number)
        os.close(number)
    if former >= 0:
        os.close(former)  # nothing showed that it still was a hub's, so the hub left it alone


def test_signal_handler_may_wake_the_hub_at_any_time(opened):
    """The hub must not deadlock on its own lock."""
    hub = opened.hub
    before = signal.signal(signal.SIGALRM, lambda *_: hub.wake())
    end = time.monotonic() + 0.3
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        while time.monotonic() < end:
            hub.wake()
            hub.wait(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        hub.wait(0)
        thread = threading.Thread(target=hub.wake)
        thread.start()
        assert hub.wait(LIMIT) == []
        thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.nests_pollers
def test_each_hub_takes_one_descriptor():
    hubs = [Hub()]
    before = len(os.listdir("/dev/fd"))
    hubs += [Hub() for _ in range(10)]
    assert len(os.listdir("/dev/fd")) - before == 10
    for hub in hubs:
        hub.close()


# -- and in a reactor


@pytest.mark.parametrize("reuse_numbers", ["nothing", "files", "sockets"], indirect=True)
def test_reactor_continues_with_the_new_descriptors(reactor, opened, ends, reuse_numbers):
    hub = opened.hub
    a, b = ends
    seen = []

    def ready():
        for fd, bits in hub.wait(0):
            if fd == a.fileno():
                a.recv(100)
                seen.append(bits)
            else:
                hub.quiet(fd)

    hub.watch(a.fileno(), READ)
    hub.attach(reactor, ready)
    b.send(b"x")
    turn_until(reactor, lambda: seen)
    strangers = reuse_numbers(opened.numbers)
    assert not hub.check()
    ready()
    b.send(b"y")
    turn_until(reactor, lambda: len(seen) == 2)
    hub.detach()
    assert set(reactor.getReaders()) <= reactor._internalReaders
    assert strangers.are_untouched()


@pytest.mark.nests_pollers
def test_reader_of_the_program_on_a_reused_number_stays_in_the_reactor(reactor, ends):
    """A reactor identifies readers by number, and this number is no longer the hub's."""
    if isinstance(reactor, AsyncioSelectorReactor):
        pytest.skip("asyncio does not know whose a number is")
    a, b = ends
    hub = Hub()
    hub.attach(reactor, lambda: hub.wait(0))
    number = hub.fileno()
    os.dup2(a.fileno(), number)
    heard = []
    stranger = HostedDescriptor(number, lambda: heard.append(a.recv(100)))
    host = hub._host
    host._forget(host._descriptors[number])  # a reactor that noticed that it is closed
    reactor.removeReader(host._descriptors[number])
    reactor.addReader(stranger)
    hub.close()
    b.send(b"x")
    turn_until(reactor, lambda: heard)
    reactor.removeReader(stranger)
    os.close(number)


@pytest.mark.parametrize("hub", [PollPoller], indirect=True)
def test_reactor_thread_removes_what_another_thread_forgets(reactor, hub, ends):
    """Reactors are not thread-safe; by then the number belongs to something else."""
    a, _ = ends
    turns = []
    hub.watch(a.fileno(), READ)
    hub.attach(reactor, lambda: turns.append(hub.wait(0)))
    readers = set(reactor.getReaders())
    thread = threading.Thread(target=hub.forget, args=(a.fileno(),))
    thread.start()
    thread.join()
    assert set(reactor.getReaders()) == readers
    hub.wake()
    turn_until(reactor, lambda: turns)
    assert turns == [[]]
    assert a.fileno() not in {reader.fileno() for reader in reactor.getReaders()}
