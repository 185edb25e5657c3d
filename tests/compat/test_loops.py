"""
Several loops, and Twisted inside them.

Also covers `compat._reactor`.
"""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from twisted.internet import defer, endpoints, protocol, task

from helpers.loops import LIMIT, Chat, Recorder, in_thread, reactor_thread, until
from txasynchat.compat import _loop, asyncore, current_reactor

# -- several loops


def test_several_threads_may_loop_on_a_map_each(pair):
    def echo(results, sockets):
        own = {}

        class Echo(Chat):
            def found_terminator(self):
                line = self._get_data()
                self.push(line + b"\n")
                results.append(line)
                if line == b"quit":
                    self.close_when_done()

        for sock in sockets:
            Echo(sock, own)
        asyncore.loop(timeout=LIMIT, map=own)

    clients, threads, results = [], [], [[] for _ in range(4)]
    for result in results:
        pairs = [pair() for _ in range(5)]
        clients += [near for near, _ in pairs]
        thread = threading.Thread(target=echo, args=(result, [far for _, far in pairs]))
        thread.start()
        threads.append(thread)
    for number in range(50):
        for client in clients:
            client.send(b"%d\n" % number)
        for client in clients:
            assert client.recv(100) == b"%d\n" % number
    for client in clients:
        client.send(b"quit\n")
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert [len(result) for result in results] == [5 * 51] * 4


def test_two_threads_may_loop_on_one_map(channels, pair):
    """As the stdlib more or less allows: the second asks every channel in each pass."""
    near, far = pair()

    class Stopping(Chat):
        def found_terminator(self):
            self.close()

    Stopping(far, channels)
    with in_thread(asyncore.loop, 0.01, False, channels):
        until(lambda: _loop.driver_of(channels) is not None, "the first loop")
        with in_thread(asyncore.loop, 0.01, True, channels):
            near.send(b"stop\n")


@pytest.mark.usefixtures("each_way")
def test_starting_and_stopping_costs_less_than_a_millisecond(channels, pair):
    _, far = pair()
    Recorder(far, channels)
    best = LIMIT
    for _ in range(50):
        started = time.perf_counter()
        asyncore.loop(timeout=0, map=channels, count=1)
        asyncore.loop(timeout=0, map={}, count=1)
        best = min(best, time.perf_counter() - started)
    assert best < 0.001


def test_nothing_stays_open_when_a_map_is_empty(pair):
    before = len(os.listdir("/dev/fd"))
    own = {}
    near, far = pair()
    Chat(far, own)
    near.close()
    asyncore.loop(timeout=LIMIT, map=own)
    assert _loop.driver_of(own) is None
    # Also if the last channel is closed while no loop() runs.
    near, far = pair()
    chat = Chat(far, own)
    asyncore.loop(timeout=0, map=own, count=1)
    assert _loop.driver_of(own) is not None
    chat.close()
    near.close()
    assert _loop.driver_of(own) is None
    asyncore.loop(timeout=0, map=own, count=1)
    assert len(os.listdir("/dev/fd")) <= before


@pytest.mark.counts_references
def test_thread_that_ends_releases_what_it_kept(pair):
    near, far = pair()
    own = {}
    chat = Chat(far, own)
    with in_thread(asyncore.loop, 0, False, own, 1):
        pass
    until(lambda: _loop.driver_of(own) is None, "the end of the driver")
    chat.close()
    near.close()


# -- Twisted inside loop()


def test_twisted_works_inside_loop_in_the_main_thread(channels, pair):
    from twisted.internet import reactor

    _, far = pair()
    chat = Chat(far, channels)
    assert current_reactor() is reactor
    events = []

    class Line(protocol.Protocol):
        def dataReceived(self, data):  # noqa: N802 - Twisted's name
            events.append(data)
            self.transport.write(b"answer")

    async def serve():
        factory = protocol.Factory.forProtocol(Line)
        port = await endpoints.serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(
            factory
        )
        await task.deferLater(reactor, 0.01)
        events.append("timer")
        got = await reactor_thread(reactor, client, port.getHost().port)
        events.append(got)
        await port.stopListening()
        chat.close()

    def client(number):
        with socket.create_connection(("127.0.0.1", number), timeout=LIMIT) as sock:
            sock.send(b"question")
            return sock.recv(100)

    served = defer.Deferred.fromCoroutine(serve())
    asyncore.loop(timeout=LIMIT, map=channels)
    assert events == ["timer", b"question", b"answer"]
    assert served.called
    assert not reactor.running


def test_twisted_works_inside_loop_in_another_thread(pair):
    _, far = pair()
    own = {}
    found = []

    def run():
        chat = Chat(far, own)
        reactor = current_reactor()
        assert current_reactor() is reactor
        found.append(reactor)
        reactor.callLater(0.01, chat.close)
        started = time.monotonic()
        asyncore.loop(timeout=LIMIT, map=own)
        found.append(time.monotonic() - started)

    from twisted.internet import reactor

    with in_thread(run):
        pass
    assert found[0] is not reactor
    assert 0.01 <= found[1] < LIMIT / 2


def test_timer_set_by_a_handler_fires_on_time(channels, pair):
    near, far = pair()

    class Delayed(Chat):
        def found_terminator(self):
            current_reactor().callLater(0.01, self.close)

    Delayed(far, channels)
    near.send(b"x\n")
    started = time.monotonic()
    asyncore.loop(timeout=LIMIT, map=channels)
    assert time.monotonic() - started < LIMIT / 2


def test_reactor_can_be_run_after_loop():
    script = """
import socket
from txasynchat.compat import asyncore
from twisted.internet import reactor, threads
a, b = socket.socketpair()
class One(asyncore.dispatcher):
    def handle_write(self): pass
    def writable(self): return False
one = One(b)
threads.deferToThread(lambda: 7).addCallback(lambda n: (print(n, flush=True), one.close()))
asyncore.loop(timeout=10)
reactor.callLater(0, lambda: threads.deferToThread(lambda: 8).addCallback(
    lambda n: (print(n, flush=True), reactor.stop())))
reactor.run()
a.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=30, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n8\n", "")


def test_plain_program_does_not_import_twisted():
    script = """
import socket, sys
import txasynchat
txasynchat.install()
import asynchat, asyncore
here, there = socket.socketpair()
class Once(asynchat.async_chat):
    def collect_incoming_data(self, data):
        self.push(data)
        self.close_when_done()
channel = Once(here)
channel.set_terminator(None)
there.send(b"hello")
asyncore.loop()
assert there.recv(9) == b"hello"
print([name for name in sys.modules if name.partition(".")[0] in ("twisted", "zope")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=30, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
