"""
``loop(timeout=0, count=1)`` from inside another loop, a well-known way to mix the two.
"""

import asyncio

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from txasynchat.compat import asynchat, asyncore


class Echo(asynchat.async_chat):
    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.push(self._get_data() + b"\n")


def test_nonblocking_pass_serves_inside_an_asyncio_loop(pair):
    near, far = pair()
    channels = {}
    Echo(far, channels)

    async def main():
        near.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(near, b"hello\n")
        answer = asyncio.ensure_future(loop.sock_recv(near, 100))
        while not answer.done():
            asyncore.loop(timeout=0, map=channels, count=1)
            await asyncio.sleep(0)
        return answer.result()

    assert asyncio.run(asyncio.wait_for(main(), 10)) == b"hello\n"
    asyncore.close_all(channels)


@pytest.mark.parametrize(
    "arguments", [{"timeout": 0.1, "count": 1}, {"timeout": 0}, {"timeout": None, "count": 1}]
)
def test_pass_that_would_block_an_asyncio_loop_is_refused(pair, arguments):
    channels = {}
    Echo(pair()[1], channels)

    async def main():
        with pytest.raises(RuntimeError, match=r"loop\(timeout=0, count=1\)"):
            asyncore.loop(map=channels, **arguments)

    asyncio.run(main())
    asyncore.close_all(channels)


class InsideTwisted(TestCase):
    @pytest.fixture(autouse=True)
    def sockets(self, pair):
        self.near, self.far = pair()

    def test_nonblocking_pass_serves_from_a_timer_of_the_reactor(self):
        channels = {}
        Echo(self.far, channels)
        self.near.setblocking(False)
        self.near.send(b"hello\n")
        done = Deferred()

        def look():
            asyncore.loop(timeout=0, map=channels, count=1)
            try:
                data = self.near.recv(100)
            except BlockingIOError:
                return
            calls.stop()
            done.callback(data)

        calls = LoopingCall(look)
        calls.clock = reactor
        calls.start(0.001)
        done.addCallback(self.assertEqual, b"hello\n")
        done.addCallback(lambda _: asyncore.close_all(channels))
        return done
