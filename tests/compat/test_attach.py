"""
attach(): channels inside another loop, of a reactor or of asyncio.
"""

import asyncio
import socket
import subprocess
import sys
import time
import warnings

import pytest
from twisted.internet import defer, task
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import TestCase

from helpers.loops import LIMIT, Chat, Recorder, reactor_thread
from txasynchat.compat import asyncore, attach, current_reactor


def test_loop_refuses_to_block_an_asyncio_loop(channels, pair):
    _, far = pair()
    Recorder(far, channels)

    async def main():
        asyncore.loop(timeout=0.1, map=channels, count=1)

    with pytest.raises(RuntimeError, match=r"asyncio event loop.*attach"):
        asyncio.run(main())


def test_attach_serves_in_an_asyncio_loop(channels, pair):
    near, far = pair()

    async def main():
        heard = asyncio.Event()

        class Heard(Chat):
            def found_terminator(self):
                super().found_terminator()
                self.push(b"yes\n")
                heard.set()

        chat = Heard(far, channels)
        attachment = attach(channels)
        assert attachment.reactor is asyncio.get_running_loop()
        near.send(b"x\n")
        await asyncio.wait_for(heard.wait(), LIMIT)
        assert chat.got == [b"x"]
        attachment.detach()
        attachment.detach()

    asyncio.run(main())
    assert near.recv(100) == b"yes\n"


class TestAttach(TestCase):
    """In the running reactor."""

    def setUp(self):
        self.map = {}
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.near = socket.create_connection(server.getsockname(), timeout=LIMIT)
            self.far, _ = server.accept()
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)
        self.addCleanup(asyncore.close_all, self.map)

    def attach(self):
        attachment = attach(self.map)
        self.addCleanup(attachment.detach)
        return attachment

    def heard(self, kind=Chat, **attributes):
        """A channel, and a Deferred that fires with its first line."""
        fired = defer.Deferred()

        class Heard(kind):
            def found_terminator(self):
                super().found_terminator()
                if not fired.called:
                    fired.callback(self.got[-1])

        vars(Heard)  # a class of its own for each call
        return Heard(self.far, self.map), fired

    async def test_loop_refuses_to_block_the_reactor(self):
        from twisted.internet import reactor

        Chat(self.far, self.map)
        await task.deferLater(reactor, 0)  # it runs from here on
        with self.assertRaisesRegex(RuntimeError, "Twisted reactor.*attach"):
            asyncore.loop(timeout=0.1, map=self.map, count=1)

    async def test_channels_are_served_beside_twisted(self):
        from twisted.internet import reactor

        attachment = self.attach()
        self.assertIs(attachment.reactor, reactor)
        self.assertIs(current_reactor(), reactor)
        chat, line = self.heard()
        self.near.send(b"one\n")
        self.assertEqual(await line, b"one")
        chat.push(b"two\n")  # not from one of its handlers
        self.assertEqual(self.near.recv(100), b"two\n")

    async def test_bytes_pushed_by_twisted_code_are_sent_soon(self):
        self.attach()
        chat, _ = self.heard()
        from twisted.internet import reactor

        size = 5_000_000
        chat.push(b"x" * size)
        chat.close_when_done()
        got = await reactor_thread(reactor, self.read_all)
        self.assertEqual(got, size)
        self.assertEqual(self.map, {})

    def read_all(self):
        total = 0
        while data := self.near.recv(65536):
            total += len(data)
        return total

    async def test_channels_added_later_and_by_plain_assignment_are_served(self):
        self.attach()
        fired = defer.Deferred()

        class Heard(Recorder):
            def handle_read(self):
                super().handle_read()
                fired.callback(self.got)

        channel = Heard(self.far, {})
        self.map[self.far.fileno()] = channel
        self.near.send(b"x")
        self.assertEqual(await fired, [b"x"])

    async def test_overridden_predicate_is_asked_without_events(self):
        self.attach()
        fired = defer.Deferred()

        class Late(Recorder):
            wanted = False

            def readable(self):
                return self.wanted

            def handle_read(self):
                super().handle_read()
                fired.callback(self.got)

        channel = Late(self.far, self.map)
        self.near.send(b"x")
        from twisted.internet import reactor

        reactor.callLater(0.01, setattr, channel, "wanted", True)
        self.assertEqual(await fired, [b"x"])

    async def test_deferreds_work_in_handlers(self):
        from twisted.internet import reactor

        self.attach()

        class Slow(Chat):
            def found_terminator(self):
                super().found_terminator()
                task.deferLater(reactor, 0.01).addCallback(lambda _: self.push(b"later\n"))

        Slow(self.far, self.map)
        self.near.send(b"x\n")
        got = await reactor_thread(reactor, self.near.recv, 100)
        self.assertEqual(got, b"later\n")

    async def test_exit_now_detaches_and_is_logged(self):
        class Leaving(Chat):
            def found_terminator(self):
                raise asyncore.ExitNow("enough")

        attachment = self.attach()
        Leaving(self.far, self.map)
        self.near.send(b"x\n")
        from twisted.internet import reactor

        while attachment.exception is None:
            await task.deferLater(reactor, 0.005)
        self.assertIsInstance(attachment.exception, asyncore.ExitNow)
        (failure,) = self.flushLoggedErrors(asyncore.ExitNow)
        self.assertEqual(failure.getErrorMessage(), "enough")
        self.assertEqual(list(self.map), [self.far.fileno()])

    async def test_a_detached_map_is_left_alone_and_can_be_attached_again(self):
        from twisted.internet import reactor

        attachment = self.attach()
        chat, line = self.heard()
        attachment.detach()
        self.near.send(b"x\n")
        await task.deferLater(reactor, 0.02)
        self.assertEqual(chat.got, [])
        self.attach()
        self.assertEqual(await line, b"x")

    def test_map_can_be_attached_only_once(self):
        self.attach()
        with self.assertRaisesRegex(RuntimeError, "already driven"):
            attach(self.map)

    async def test_a_loop_in_another_thread_is_refused_for_an_attached_map(self):
        from twisted.internet import reactor

        self.attach()
        Chat(self.far, self.map)
        with self.assertRaisesRegex(RuntimeError, "attached"):
            await reactor_thread(reactor, asyncore.loop, 0, False, self.map, 1)

    async def test_loop_in_another_thread_may_serve_a_map_that_is_not_attached(self):
        from twisted.internet import reactor

        Chat(self.far, self.map)
        await reactor_thread(reactor, asyncore.loop, 0, False, self.map, 1)

    async def test_push_from_another_thread_is_sent(self):
        from twisted.internet import reactor

        self.attach()
        chat, _ = self.heard()

        def push():
            chat.push(b"x" * 3_000_000)
            chat.close_when_done()

        reading = reactor_thread(reactor, self.read_all)
        await reactor_thread(reactor, push)
        self.assertEqual(await reading, 3_000_000)

    async def test_regular_file_is_served_beside_other_channels(self):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"x" * 100)
        fired = defer.Deferred()

        class Reader(asyncore.file_dispatcher):
            got = b""

            def writable(self):
                return False

            def handle_read(self):
                data = self.recv(10)
                self.got += data
                if not data:
                    fired.callback(self.got)

            def handle_close(self):
                self.close()

        self.attach()
        with open(path, "rb") as file:
            Reader(file, self.map)
            self.assertEqual(await fired, b"x" * 100)


def test_attach_serves_in_a_reactor_that_is_not_installed(channels, pair):
    near, far = pair()
    chat = Chat(far, channels)
    reactor = SelectReactor()
    attachment = attach(channels, reactor)
    try:
        near.send(b"x\n")
        deadline = time.monotonic() + LIMIT
        while not chat.got and time.monotonic() < deadline:
            reactor.iterate(0.01)
        assert chat.got == [b"x"]
    finally:
        attachment.detach()
        for reader in list(reactor._internalReaders):
            reactor.removeReader(reader)
            reader.connectionLost(None)
    assert reactor.getDelayedCalls() == []
    assert reactor.removeAll() == []


def test_importing_the_facade_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subprocess.run(
            [sys.executable, "-W", "error", "-c", "from txasynchat.compat import asynchat"],
            timeout=30,
            check=True,
        )
