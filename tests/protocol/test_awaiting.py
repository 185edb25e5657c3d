"""
Hooks of `AsyncChat` that wait: coroutines, and hooks that return Deferreds.

Also covers `protocol.calling`.
"""

import asyncio
import contextvars
import itertools
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, inlineCallbacks, succeed
from twisted.internet.error import ConnectionLost
from twisted.logger import LogLevel, capturedLogs, eventAsText
from typing_extensions import override

from helpers.memory import Memory, connected, lose
from txasynchat import AsyncChat, LengthPrefix, Netstring, Overflow, State


class Waiting(AsyncChat):
    """Notes what happens; each line that begins with ``wait`` is answered when the test fires it."""

    terminator = b"\n"

    def __init__(self):
        self.events = []
        self.waits = []

    def wait(self):
        self.waits.append(Deferred())
        return self.waits[-1]

    def fire(self, result=None):
        self.waits.pop(0).callback(result)

    def handle_error(self):
        self.events.append(("error", sys.exc_info()[0]))

    def handle_close(self):
        self.events.append("close")

    def handle_end(self, reason):
        self.events.append("end")


class Coroutine(Waiting):
    async def message_received(self, message):
        self.events.append(message)
        if message.startswith(b"wait"):
            result = await self.wait()
            self.events.append((message, result))
        self.push(message + b"!")


class FromCallbacks(Waiting):
    def message_received(self, message):
        self.events.append(message)
        if not message.startswith(b"wait"):
            self.push(message + b"!")
            return None
        done = self.wait()

        def fired(result):
            self.events.append((message, result))
            self.push(message + b"!")

        return done.addCallback(fired)


class Inline(Waiting):
    @inlineCallbacks
    def message_received(self, message):
        self.events.append(message)
        if message.startswith(b"wait"):
            result = yield self.wait()
            self.events.append((message, result))
        self.push(message + b"!")


class Awaitable:
    def __init__(self, chat, message):
        self.hook = Coroutine.message_received(chat, message)

    def __await__(self):
        return self.hook.__await__()


class OfAnyKind(Waiting):
    def message_received(self, message):
        return Awaitable(self, message)


class TwoCalls(Coroutine):
    """Only `found_terminator` waits."""

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    async def found_terminator(self):
        await self.message_received(self._get_data())


EVERY_KIND = pytest.mark.parametrize(
    "kind", [Coroutine, FromCallbacks, Inline, OfAnyKind, TwoCalls]
)


def logged_failures(logs):
    return [event for event in logs if event.get("log_failure") is not None]


def nothing_is_logged(logs):
    return [eventAsText(event) for event in logs if event["log_level"] >= LogLevel.warn] == []


# -- delivery


@EVERY_KIND
def test_delivery_waits_for_a_hook_that_waits(kind):
    chat = kind()
    transport = connected(chat)
    chat.dataReceived(b"a\nwait 1\nb\nwait 2\nc\n")
    assert chat.events == [b"a", b"wait 1"]
    chat.dataReceived(b"d\n")
    assert transport.value() == b"a!"
    chat.fire("one")
    assert chat.events[2:] == [(b"wait 1", "one"), b"b", b"wait 2"]
    assert transport.value() == b"a!wait 1!b!"
    chat.fire("two")
    assert transport.value() == b"a!wait 1!b!wait 2!c!d!"


@EVERY_KIND
def test_the_last_message_of_a_packet_may_wait_too(kind):
    chat = kind()
    transport = connected(chat)
    chat.dataReceived(b"wait\n")
    chat.fire()
    chat.dataReceived(b"a\n")
    assert transport.value() == b"wait!a!"


@EVERY_KIND
def test_reading_stops_only_when_something_waits_behind_the_hook(kind):
    """Until then the loss of the connection is noticed, and nothing has to be switched."""
    chat = kind()
    transport = connected(chat)
    chat.dataReceived(b"wait\n")
    assert transport.reads
    chat.dataReceived(b"a")
    assert not transport.reads
    chat.fire()
    assert transport.reads
    chat.dataReceived(b"\nwait\nb\n")
    assert not transport.reads
    chat.fire()
    assert transport.reads
    assert transport.value() == b"wait!a!wait!b!"


@EVERY_KIND
def test_what_a_hook_pushes_while_it_waits_is_sent_at_once(kind):
    chat = kind()
    transport = connected(chat)
    chat.dataReceived(b"wait\nb\n")
    chat.push(b"progress")
    assert transport.value() == b"progress"
    chat.fire()
    assert transport.value() == b"progresswait!b!"


def test_a_coroutine_that_waits_several_times_is_one_hook():
    class Twice(Waiting):
        async def message_received(self, message):
            first, second = await self.wait(), await self.wait()
            self.push(message + first + second)

    chat = Twice()
    transport = connected(chat)
    chat.dataReceived(b"x\ny\n")
    chat.fire(b"1")
    chat.fire(b"2")
    assert transport.value() == b"x12"
    chat.fire(b"3")
    chat.fire(b"4")
    assert transport.value() == b"x12y34"


@pytest.mark.parametrize("kind", [Coroutine, TwoCalls])
@pytest.mark.parametrize("packet", [1, 1 << 16])
def test_a_flood_of_hooks_that_need_not_wait_is_delivered_without_recursion(kind, packet):
    class Flooded(kind):
        def wait(self):
            return succeed(None)

    chat = Flooded()
    connected(chat)
    lines = b"wait\n" * (200 if packet == 1 else 100_000)
    for at in range(0, len(lines), packet):
        chat.dataReceived(lines[at : at + packet])
    assert len(chat.events) == 2 * lines.count(b"\n")


def test_a_flood_of_fired_deferreds_is_delivered_without_recursion():
    class Flooded(Waiting):
        count = 0

        def message_received(self, message):
            self.count += 1
            return succeed(None)

    chat = Flooded()
    connected(chat)
    chat.dataReceived(b"x\n" * 50_000)
    assert chat.count == 50_000


def test_deferreds_that_fire_one_after_the_other_do_not_recurse():
    chat = Coroutine()
    transport = connected(chat)
    chat.dataReceived(b"wait\n" * 5_000)
    depth = len(chat.events)
    while chat.waits:
        chat.fire()
    assert depth == 1
    assert transport.value() == b"wait!" * 5_000


def test_a_deferred_may_fire_inside_a_handler_of_another_connection():
    slow = Coroutine()
    slow_transport = connected(slow)

    class Firing(Waiting):
        def message_received(self, message):
            slow.fire(message)
            self.push(b"fired")

    firing = Firing()
    transport = connected(firing)
    slow.dataReceived(b"wait 1\nwait 2\nc\n")
    firing.dataReceived(b"x\ny\n")
    assert slow_transport.value() == b"wait 1!wait 2!c!"
    assert transport.value() == b"firedfired"


def test_a_hook_may_be_replaced_in_the_middle_of_a_packet():
    """A handler that is a state machine assigns another method: async, plain, or with a Deferred."""

    class Login(Waiting):
        async def message_received(self, message):
            self.push(b"1" + message)
            self.message_received = self.plain

        def plain(self, message):
            self.push(b"2" + message)
            self.message_received = self.deferred

        def deferred(self, message):
            self.message_received = self.last
            return self.wait().addCallback(lambda _: self.push(b"3" + message))

        async def last(self, message):
            self.push(b"4" + message)

    chat = Login()
    transport = connected(chat)
    chat.dataReceived(b"a\nb\nc\nd\ne\n")
    assert transport.value() == b"1a2b"
    chat.fire()
    assert transport.value() == b"1a2b3c4d4e"


def test_hooks_may_return_other_things():
    class Odd(Waiting):
        def message_received(self, message):
            self.push(message)
            return {b"a": True, b"b": 3}.get(message, [message])

    chat = Odd()
    transport = connected(chat)
    with capturedLogs() as logs:
        chat.dataReceived(b"a\nb\nc\n")
    assert transport.value() == b"abc"
    assert nothing_is_logged(logs)


# -- any split, any interleaving


class Collector(Waiting):
    """Each hook that takes input waits or not, as *pattern* says; checks that none overlap."""

    def __init__(self, pattern, terminator, begin=None):
        super().__init__()
        self.pattern = list(pattern)
        self.begin = begin
        self.running = None
        self.set_terminator(terminator)

    async def hook(self, name, *arguments):
        assert self.running is None, f"{name} in {self.running}"
        self.running = name
        if name != "collect" or not self.events or self.events[-1][0] != name:
            self.events.append((name, *arguments))
        else:
            self.events[-1] = (name, self.events[-1][1] + arguments[0])
        for _ in range(self.pattern.pop() if self.pattern else 0):
            await self.wait()
        self.running = None

    def again(self):
        if self.begin is not None:
            self.set_terminator(self.begin)


class Pieces(Collector):
    async def collect_incoming_data(self, data):
        await self.hook("collect", data)

    async def found_terminator(self):
        await self.hook("found")
        self.again()


class PiecesOnly(Pieces):
    """Only `collect_incoming_data` waits."""

    def found_terminator(self):
        assert self.running is None
        self.events.append(("found",))
        self.again()


class Whole(Collector):
    async def message_received(self, message):
        await self.hook("message", message)
        self.again()


class Deferreds(Collector):
    def message_received(self, message):
        return Deferred.fromCoroutine(self.hook("message", message)).addCallback(
            lambda _: self.again()
        )


FRAMINGS = {
    "delimiter": (b"\r\n", None, b"a\r\n\r\nbcd\r\n\r\r\nrest"),
    "one of several": ((b"\n", b"\r\n"), None, b"a\n\r\nbcd\r\n\nrest"),
    "numbers": (3, 3, b"abcdefghij"),
    "prefix": (LengthPrefix("B"), None, b"\x00\x03abc\x01d\x05rest"),
    "netstrings": (Netstring(), None, b"0:,3:abc,1:d,10:rest"),
}


def played(kind, framing, pattern, cuts, firings):
    terminator, begin, data = FRAMINGS[framing]
    chat = kind(pattern, terminator, begin)
    connected(chat)
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    chunks = [data[a:b] for a, b in itertools.pairwise(places)]
    for fires in firings:
        if fires and chat.waits:
            chat.fire()
        elif chunks:
            chat.dataReceived(chunks.pop(0))
    for chunk in chunks:
        chat.dataReceived(chunk)
    while chat.waits:
        chat.fire()
    assert chat.state is State.OPEN
    return chat.events


@pytest.mark.parametrize("kind", [Pieces, PiecesOnly, Whole, Deferreds])
@pytest.mark.parametrize("framing", FRAMINGS)
@given(
    pattern=st.lists(st.sampled_from([0, 0, 1, 2]), max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=20),
    firings=st.lists(st.booleans(), max_size=30),
)
def test_each_message_comes_once_and_in_order_however_it_is_cut(
    kind, framing, pattern, cuts, firings
):
    whole = played(kind, framing, [], [], [])
    assert played(kind, framing, pattern, cuts, firings) == whole


class Erratic(Waiting):
    """Its hooks do anything, at any moment; delivery never overtakes one that waits."""

    max_message_length = 6
    overflow = Overflow.SKIP

    def __init__(self, chance, pieces):
        super().__init__()
        self.chance = chance
        self.count = 0
        self.running = None
        self.high_water = chance.choice([None, 5])
        self.low_water = 2
        self._inbox.whole = not pieces

    def do_something(self):
        action = self.chance.randrange(40)
        if action < 10:
            self.push(b"123")
        elif action < 13:
            self.pause()
        elif action < 17:
            self.resume()
        elif action == 17:
            self.discard_buffers()
        elif action < 22 and self.running:
            self.set_terminator(self.chance.choice([b"\n", b"\r\n", 3, (b"\n", b";"), b"\n"]))
        elif action < 26 and self.waits:
            self.waits.pop(self.chance.randrange(len(self.waits))).callback(None)
        elif action == 26:
            self.close_when_idle()
        elif action == 27:
            self.shutdown_returned(self.works())
        elif action == 28 and self.count > 20:
            self.chance.choice([self.close, self.close_when_done, self.abort])()
        elif action == 29 and self.count > 20:
            raise ZeroDivisionError

    async def works(self):
        for _ in range(self.chance.randrange(3)):
            await self.wait()
            self.do_something()

    async def hook(self):
        assert self.running is None
        self.running = mine = object()
        self.count += 1
        try:
            for _ in range(self.chance.randrange(3)):
                self.do_something()
                if self.chance.randrange(2):
                    await self.wait()
            self.do_something()
        finally:
            assert self.running is mine
            self.running = None

    def hooked(self):
        way = self.chance.randrange(3)
        if way == 0:
            return None
        return self.hook() if way == 1 else Deferred.fromCoroutine(self.hook())

    def message_received(self, message):
        return self.hooked()

    def collect_incoming_data(self, data):
        return self.hooked()

    def found_terminator(self):
        return self.hooked()

    def message_too_long(self, error):
        return self.hooked()

    def handle_end(self, reason):
        self.events.append("end")
        return self.works()


def whole_message_waits(chat):
    waiting, terminator = chat._inbox.undelivered, chat.terminator
    if isinstance(terminator, int):
        return 0 < terminator <= len(waiting)
    delimiters = (terminator,) if isinstance(terminator, bytes) else terminator
    return any(delimiter in waiting for delimiter in delimiters)


CHUNKS = [b"a\n", b"b", b"\n", b"cd\ne\r\nf\n;", b"\r"]


@pytest.mark.parametrize("pieces", [False, True])
@given(seed=st.integers(0, 1 << 32))
def test_delivery_neither_overtakes_a_hook_nor_stops_for_ever(pieces, seed):
    """Hooks that do anything while they wait: no message comes beside another, or stays behind."""
    chance = random.Random(seed)
    chat = Erratic(chance, pieces)
    transport = connected(chat)
    chat.set_terminator(b"\n")
    inbox = chat._inbox
    with capturedLogs() as logs:
        for _ in range(60):
            if chat.waits and not chance.randrange(3):
                chat.waits.pop(chance.randrange(len(chat.waits))).callback(None)
            elif transport.reads:
                chat.dataReceived(chance.choice(CHUNKS))
            if chat.state is State.OPEN and not (inbox.held or inbox.choked or inbox.awaited):
                assert chat.running is None
                assert not inbox.paused
                assert transport.reads
                assert not whole_message_waits(chat)
        lose(chat)
        while chat.waits:
            if not (wait := chat.waits.pop()).called:
                wait.callback(None)
    assert chat._awaiting is None or not chat._awaiting.busy
    assert chat.events.count("end") == 1
    errors = {event["log_failure"].type for event in logged_failures(logs)}
    assert errors <= {ZeroDivisionError, TypeError}  # a delimiter in place of a running count


# -- exceptions


class Failing(Waiting):
    """Raises in the way that the line names."""

    def message_received(self, message):
        self.events.append(message)
        return getattr(self, message.decode())()

    async def at_once(self):
        raise ZeroDivisionError("\nforged")

    async def later(self):
        await self.wait()
        raise ZeroDivisionError("\nforged")

    def failed(self):
        return fail(ZeroDivisionError("\nforged"))

    def fails(self):
        return self.wait().addCallback(lambda _: 1 / 0)

    async def awaits_a_failure(self):
        await self.wait().addCallback(lambda _: 1 / 0)


@pytest.mark.parametrize("way", ["at_once", "later", "failed", "fails", "awaits_a_failure"])
def test_an_exception_is_that_connections(way):
    chat = Failing()
    transport = connected(chat)
    with capturedLogs() as logs:
        chat.push(b"before")
        chat.dataReceived(way.encode() + b"\nlater\n")
        if chat.waits:
            chat.fire()
    assert chat.events == [way.encode(), ("error", ZeroDivisionError)]
    assert chat.state is State.CLOSING
    assert transport.value() == b"before"
    assert transport.disconnecting
    [event] = logged_failures(logs)
    text = eventAsText(event, includeTimestamp=False)
    assert "port=54321): Failing raised" in text
    if way != "failed":
        assert "test_awaiting.py" in text
    assert "\nforged" not in text
    lose(chat)
    assert chat.events[2:] == ["close", "end"]


def test_an_exception_after_the_connection_closed_is_still_logged():
    class Late(Waiting):
        async def message_received(self, message):
            try:
                await self.wait()
            finally:
                raise ZeroDivisionError

    chat = Late()
    connected(chat)
    chat.dataReceived(b"x\n")
    with capturedLogs() as logs:
        lose(chat)
    assert len(logged_failures(logs)) == 1


def test_handle_error_may_wait_and_then_the_connection_closes():
    class Apologizing(Failing):
        async def handle_error(self):
            self.events.append(("error", sys.exc_info()[0]))
            await self.wait()
            self.push(b"sorry")

    chat = Apologizing()
    transport = connected(chat)
    with capturedLogs() as logs:
        chat.dataReceived(b"at_once\nat_once\n")
        assert chat.state is State.OPEN
        chat.dataReceived(b"more\n")
        chat.fire()
    assert chat.events == [b"at_once", ("error", ZeroDivisionError)]
    assert transport.value() == b"sorry"
    assert transport.disconnecting
    assert len(logged_failures(logs)) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_an_async_handle_error_that_raises_is_logged_once_and_the_connection_closes(waits):
    class Worse(Failing):
        async def handle_error(self):
            if waits:
                await self.wait()
            raise KeyError

    chat = Worse()
    transport = connected(chat)
    with capturedLogs() as logs:
        chat.dataReceived(b"at_once\n")
        if waits:
            chat.fire()
    assert len(logged_failures(logs)) == 2
    assert transport.disconnecting


# -- the connection is lost


@EVERY_KIND
def test_a_hook_is_cancelled_silently_when_the_connection_is_lost(kind):
    chat = kind()
    connected(chat)
    chat.dataReceived(b"wait\na\n")
    [waited] = chat.waits
    with capturedLogs() as logs:
        lose(chat, ConnectionLost)
    assert waited.called
    assert chat.events == [b"wait", "close", "end"]
    assert nothing_is_logged(logs)


def test_a_cancelled_hook_cleans_up_before_handle_end_and_may_wait_for_that():
    class Careful(Waiting):
        async def message_received(self, message):
            try:
                await self.wait()
            except CancelledError:
                self.events.append("cancelled")
                await self.wait()
                self.events.append("clean")
                raise

    chat = Careful()
    connected(chat)
    chat.dataReceived(b"x\n")
    with capturedLogs() as logs:
        lose(chat)
        assert chat.events == ["cancelled", "close", "end"]
        chat.waits[-1].callback(None)
    assert chat.events[-1] == "clean"
    assert nothing_is_logged(logs)


@pytest.mark.parametrize("waits", [0, 1])
def test_a_hook_that_aborts_is_cancelled_where_it_waits_next(waits):
    class Aborting(Waiting):
        async def message_received(self, message):
            for _ in range(waits):
                await self.wait()
            self.abort()
            self.events.append("aborted")
            try:
                await Deferred()
            finally:
                self.events.append("cancelled")

    class Sudden(Memory):
        @override
        def abortConnection(self):
            lose(chat, ConnectionLost)

    chat = Aborting()
    connected(chat, Sudden())
    with capturedLogs() as logs:
        chat.dataReceived(b"x\ny\n")
        for _ in range(waits):
            chat.fire()
    assert chat.events == ["end", "aborted", "cancelled"]
    assert nothing_is_logged(logs)


END_OF_PROGRAM = """
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from txasynchat import AsyncChat

class Forgotten(AsyncChat):
    terminator = b"\\n"
    async def message_received(self, message):
        try:
            await self.inner()
        finally:
            print("cleaned up")
    async def inner(self):
        self.waits_for = Deferred()
        await self.waits_for

chat = Forgotten()
chat.makeConnection(StringTransport())
chat.dataReceived(b"x\\n")
if FORGET:
    del chat
"""


@pytest.mark.parametrize("forget", [False, True])
def test_a_hook_that_waits_when_the_program_ends_is_closed_silently(root, forget):
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", END_OF_PROGRAM.replace("FORGET", str(forget))],
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not forget or done.stdout == "cleaned up\n"
    assert done.stderr == ""


def test_handle_close_and_handle_end_may_wait_and_are_not_cancelled():
    class Last(Waiting):
        async def handle_close(self):
            await self.wait()
            self.events.append("close")
            raise ZeroDivisionError

        async def handle_end(self, reason):
            self.events.append(("end", reason))
            await self.wait()
            self.events.append("end")
            raise KeyError

    chat = Last()
    connected(chat)
    with capturedLogs() as logs:
        lose(chat)
        assert chat.events == [("end", None)]
        chat.fire()
        chat.fire()
    assert [event for event in chat.events if isinstance(event, str)] == ["close", "end"]
    assert len(logged_failures(logs)) == 2


def test_a_shared_deferred_keeps_its_result():
    shared = Deferred()

    class Sharing(Waiting):
        def message_received(self, message):
            return shared

    chat = Sharing()
    connected(chat)
    chat.dataReceived(b"x\n")
    results = []
    shared.addCallback(results.append)
    shared.callback("result")
    assert results == ["result"]


# -- ends that the application asks for


def test_close_delivers_nothing_more_but_the_hook_runs_on():
    class Closing(Waiting):
        async def message_received(self, message):
            self.events.append(message)
            self.push(b"bye")
            self.close()
            await self.wait()
            self.events.append("ran on")
            self.push(b"too late")

    chat = Closing()
    transport = connected(chat)
    chat.dataReceived(b"x\ny\n")
    chat.fire()
    assert chat.events == [b"x", "ran on"]
    assert transport.value() == b"bye"
    assert chat.dropped == len(b"too late")
    assert transport.disconnecting


@EVERY_KIND
@pytest.mark.parametrize("end", ["close_when_idle", "handle_shutdown", "readConnectionLost"])
def test_a_connection_whose_hook_waits_is_busy(kind, end):
    """A pending answer is sent, though the peer has finished or the server stops."""
    chat = kind()
    transport = connected(chat)
    chat.dataReceived(b"wait\nb\n")
    getattr(chat, end)()
    assert chat.state is State.OPEN
    chat.fire()
    assert transport.value() == b"wait!b!"
    assert transport.disconnecting


def test_messages_are_delivered_while_handle_shutdown_waits():
    class Transaction(Coroutine):
        async def handle_shutdown(self):
            await self.wait()
            self.push(b"bye")
            self.close()

    chat = Transaction()
    transport = connected(chat)
    chat.shutdown_returned(chat.handle_shutdown())
    chat.dataReceived(b"commit\n")
    chat.readConnectionLost()
    assert chat.state is State.OPEN
    chat.fire()
    assert transport.value() == b"commit!bye"
    assert transport.disconnecting


def test_pause_and_resume_inside_a_hook_that_waits():
    class Pausing(Coroutine):
        async def message_received(self, message):
            await super().message_received(message)
            self.pause()

    chat = Pausing()
    transport = connected(chat)
    chat.dataReceived(b"wait\nb\nc\n")
    chat.pause()
    chat.resume()
    assert transport.value() == b""
    chat.fire()
    assert transport.value() == b"wait!"
    assert not transport.reads
    chat.resume()
    assert transport.value() == b"wait!b!"
    chat.resume()
    assert transport.value() == b"wait!b!c!"


# -- hooks outside of delivery


def test_messages_wait_for_handle_connect():
    class Greeting(Coroutine):
        async def handle_connect(self):
            await self.wait()
            self.push(b"hello")

    chat = Greeting()
    transport = connected(chat)
    chat.dataReceived(b"a\n")
    assert transport.value() == b""
    chat.fire()
    assert transport.value() == b"helloa!"


def test_message_too_long_may_wait_before_the_connection_closes():
    class Short(Coroutine):
        max_message_length = 3

        async def message_too_long(self, error):
            await self.wait()
            self.push(b"too long")

    chat = Short()
    transport = connected(chat)
    chat.dataReceived(b"abcdef\nb\n")
    assert chat.state is State.OPEN
    chat.dataReceived(b"c\n")
    chat.fire()
    assert chat.events == []
    assert transport.value() == b"too long"
    assert transport.disconnecting
    assert chat.close_reason is not None


def test_delivery_goes_on_after_a_message_that_was_skipped_when_the_hook_is_done():
    class Short(Coroutine):
        max_message_length = 3
        overflow = Overflow.SKIP

        async def message_too_long(self, error):
            await self.wait()
            self.push(b"too long")

    chat = Short()
    transport = connected(chat)
    chat.dataReceived(b"abcdef\nb\n")
    assert transport.value() == b""
    chat.fire()
    assert transport.value() == b"too longb!"
    assert chat.close_reason is None


# -- context variables

VARIABLE = contextvars.ContextVar("VARIABLE", default="of the program")


@pytest.mark.parametrize("cuts", [True, False])
def test_the_hooks_of_a_connection_share_a_context_of_their_own(cuts):
    class Noting(Waiting):
        async def message_received(self, message):
            self.events.append(VARIABLE.get())
            token = VARIABLE.set(message)
            if message == b"wait":
                await self.wait()
            self.events.append(VARIABLE.get())
            if message != b"keep":
                VARIABLE.reset(token)

    chat, other = Noting(), Noting()
    connected(chat)
    connected(other)
    lines = [b"wait\n", b"b\n", b"keep\n", b"c\n"]
    for chunk in lines if cuts else [b"".join(lines)]:
        chat.dataReceived(chunk)
    other.dataReceived(b"other\n")
    assert VARIABLE.get() == "of the program"
    chat.fire()
    program = "of the program"
    assert chat.events == [program, b"wait", program, b"b", program, b"keep", b"keep", b"c"]
    assert other.events == [program, b"other"]


# -- asyncio's awaitables need its reactor


def test_asyncios_awaitables_fail_on_other_reactors_and_the_log_says_what_to_do():
    loop = asyncio.new_event_loop()

    class Sleeping(Waiting):
        async def message_received(self, message):
            if message == b"sleep":
                await asyncio.sleep(1)
            elif message == b"late":
                await self.wait()
            await loop.create_future()

    try:
        for line in (b"sleep\n", b"future\n", b"late\n"):
            chat = Sleeping()
            transport = connected(chat)
            with capturedLogs() as logs:
                chat.dataReceived(line)
                if chat.waits:
                    chat.fire()
            [event] = logged_failures(logs)
            assert "Twisted's asyncio reactor" in eventAsText(event)
            assert chat.events == [("error", RuntimeError)]
            assert transport.disconnecting
    finally:
        loop.close()
