"""
`Broadcast`: who gets what when some read slowly, and that nobody else notices.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import socket
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from helpers.kinds import on_the_hub_too
from helpers.memory import Chat, Memory, connected, lose
from helpers.support import PATIENCE, Server, client_context, server_options, until
from txasynchat import AsyncChat, Broadcast, OutputQueue, Slow, State, UnsentLimitExceeded


class Full(Memory):
    """Takes one write, and no more before `make_room`."""

    def __init__(self):
        super().__init__()
        self.room = 1


def slow_member(room, kind=Chat):
    """Return a member whose transport is full, and what its handler pushes waits."""
    chat = kind()
    connected(chat, Full())
    chat.push(b"!")
    room.add(chat)
    return chat


def sent(chat):
    """Return all that the member gets, once it reads on."""
    chat.transport.make_room()
    return chat.transport.value().removeprefix(b"!")


class TestMembers:
    def test_each_gets_the_same_bytes_without_a_copy(self):
        room = Broadcast()
        chats = [Chat() for _ in range(3)]
        for chat in chats:
            connected(chat)
            room.add(chat)
        room.send(bytearray(b"hello\n"))
        assert [chat.transport.value() for chat in chats] == [b"hello\n"] * 3
        assert len({id(chat.transport.writes[0]) for chat in chats}) == 1
        assert room.sent == 3

    def test_one_may_be_left_out(self):
        room = Broadcast()
        one, other = Chat(), Chat()
        for chat in (one, other):
            connected(chat)
            room.add(chat)
        room.send(b"hello\n", but=one)
        assert (one.transport.value(), other.transport.value()) == (b"", b"hello\n")

    def test_it_is_a_collection_of_those_who_are_members_now(self):
        @dataclasses.dataclass
        class Handler(AsyncChat):
            """A dataclass has no hash, and is equal to others."""

            terminator = b"\n"

        room = Broadcast()
        one, other = Handler(), Handler()
        for chat in (one, other, one):
            room.add(chat)
        assert list(room) == [one, other]
        assert len(room) == 2
        room.discard(one)
        room.discard(one)
        assert one not in room
        assert other in room

    def test_only_handlers_can_be_members(self):
        with pytest.raises(TypeError, match="a member is an AsyncChat, not 5"):
            Broadcast().add(5)

    def test_one_that_is_lost_is_forgotten_with_the_next_message(self):
        room = Broadcast()
        chat = slow_member(room)
        lose(chat)
        room.send(b"hello\n")
        assert len(room) == room.sent == 0

    def test_one_that_closes_gets_nothing_and_is_not_counted(self):
        room = Broadcast()
        chat = slow_member(room)
        chat.close()
        room.send(b"hello\n")
        assert (room.sent, room.skipped, chat.dropped) == (0, 0, 0)

    def test_wrong_arguments_are_told_at_once(self):
        with pytest.raises(TypeError, match="slow must be a Slow, not 'skip'"):
            Broadcast(slow="skip")
        with pytest.raises(ValueError, match="limit must be positive: 0"):
            Broadcast(limit=0)
        with pytest.raises(TypeError):
            Broadcast().send("text")
        with pytest.raises(ValueError, match="a message of 3 bytes exceeds the limit, 2"):
            Broadcast(limit=2).send(b"abc")

    def test_names_that_an_application_uses_itself_do_no_harm(self):
        class Busy(Chat):
            state = "AUTH"
            unsent = None

        room = Broadcast(limit=3)
        chat = slow_member(room, Busy)
        for message in (b"ab", b"cd"):
            room.send(message)
        assert (room.sent, room.skipped) == (1, 1)
        assert sent(chat) == b"ab"


class TestSlowMembers:
    """The limit has room for two of these messages."""

    def room(self, slow):
        room = Broadcast(slow=slow, limit=4)
        return room, slow_member(room)

    def test_skip_leaves_out_what_does_not_fit(self):
        room, chat = self.room(Slow.SKIP)
        for message in (b"a\n", b"b\n", b"c\n", b"d\n"):
            room.send(message)
        assert (room.sent, room.skipped, room.missed(chat)) == (2, 2, 2)
        assert sent(chat) == b"a\nb\n"
        room.send(b"e\n")
        assert chat.transport.value() == b"!a\nb\ne\n"

    def test_drop_oldest_keeps_the_newest_in_order(self):
        room, chat = self.room(Slow.DROP_OLDEST)
        for message in (b"a\n", b"b\n", b"c\n", b"d\n", b"eee\n"):
            room.send(message)
        assert (room.sent, room.dropped, room.skipped, room.missed(chat)) == (5, 4, 0, 4)
        assert sent(chat) == b"eee\n"

    def test_coalesce_sends_the_latest_alone(self):
        room, chat = self.room(Slow.COALESCE)
        for message in (b"a\n", b"b\n", b"c\n"):
            room.send(message)
        assert (room.sent, room.coalesced, room.skipped, room.missed(chat)) == (3, 2, 0, 2)
        assert sent(chat) == b"c\n"

    def test_disconnect_aborts_with_a_reason_and_others_go_on(self):
        room, chat = self.room(Slow.DISCONNECT)
        other = Chat()
        connected(other)
        room.add(other)
        for message in (b"a\n", b"b\n", b"c\n"):
            room.send(message)
        assert chat.transport.aborted
        assert isinstance(chat.close_reason, UnsentLimitExceeded)
        assert (chat.close_reason.limit, chat.close_reason.count) == (4, 6)
        assert (room.disconnected, list(room)) == (1, [other])
        assert other.transport.value() == b"a\nb\nc\n"

    @pytest.mark.parametrize("slow", [Slow.DROP_OLDEST, Slow.COALESCE])
    def test_answers_of_the_member_are_never_dropped(self, slow):
        room, chat = self.room(slow)
        room.send(b"a\n")
        chat.push(b"ok\n")
        for message in (b"b\n", b"c\n"):
            room.send(message)
        assert room.missed(chat) == 3
        assert sent(chat) == b"ok\n"
        room.send(b"d\n")
        assert chat.transport.value() == b"!ok\nd\n"

    def test_max_unsent_of_a_member_is_never_exceeded(self):
        class Limited(Chat):
            max_unsent = 3

        room = Broadcast(slow=Slow.DROP_OLDEST, limit=100)
        chat = slow_member(room, Limited)
        for message in (b"a\n", b"b\n", b"four"):
            room.send(message)
        assert chat.state is State.OPEN
        assert (room.dropped, room.skipped) == (2, 1)
        assert sent(chat) == b""

    def test_a_message_that_is_half_sent_is_not_dropped(self):
        room = Broadcast(slow=Slow.DROP_OLDEST, limit=4)

        class Pieces(Chat):
            ac_out_buffer_size = 3

        chat = slow_member(room, Pieces)
        room.send(b"ab")
        room.send(b"cd")
        chat.transport.make_room(1)  # takes one piece
        room.send(b"efg")
        assert room.dropped == room.skipped == 0
        room.send(b"h")
        assert (room.dropped, room.skipped) == (1, 0)
        assert sent(chat) == b"abcdh"

    def test_what_a_member_says_when_it_is_cut_off_follows_the_message(self):
        """All others get both in the same order."""
        room = Broadcast(slow=Slow.DISCONNECT, limit=4)
        first = Chat()
        connected(first)
        room.add(first)

        class Leaving(Chat):
            def handle_end(self, reason):
                room.send(b"gone")

        class Aborting(Full):
            def abortConnection(self):  # noqa: N802 Twisted's
                lose(chat)

        chat = Leaving()
        connected(chat, Aborting())
        chat.push(b"!")
        chat.push(b"wait")
        room.add(chat)
        last = Chat()
        connected(last)
        room.add(last)
        room.send(b"news")
        assert first.transport.value() == last.transport.value() == b"newsgone"

    def test_a_member_who_leaves_meanwhile_gets_nothing_more(self):
        room = Broadcast(slow=Slow.DISCONNECT, limit=1)
        other = Chat()
        chat = slow_member(room)
        chat.handle_end = lambda _reason: room.discard(other)
        chat.transport.abortConnection = lambda: lose(chat)
        connected(other)
        room.add(other)
        chat.push(b"?")
        room.send(b"x")
        assert other.transport.value() == b""


@given(
    slow=st.sampled_from(Slow),
    limit=st.integers(3, 12),
    steps=st.lists(
        st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from(["answer", "read"])),
        max_size=40,
    ),
)
def test_nothing_is_cut_reordered_or_counted_wrongly(slow, limit, steps):
    room = Broadcast(slow=slow, limit=limit)
    chat = slow_member(room)
    numbers = []
    for number, step in enumerate(steps):
        if chat.transport.aborted:
            break
        if step == "read":
            chat.transport.make_room(1)
        elif step == "answer":
            if chat.unsent + 3 <= limit:
                chat.push(b"<%c>" % (number + 128))
        else:
            room.send(bytes([number]) * len(step))
            numbers.append(number)
        assert chat.unsent <= limit
    given_up = room.dropped + room.coalesced
    if not chat.transport.aborted:
        assert room.sent + room.skipped == len(numbers)
        assert room.missed(chat) == given_up + room.skipped
        received = sent(chat)
        answers = [number for number in received if number >= 128]
        assert answers == [n + 128 for n, step in enumerate(steps) if n + 128 in answers]
        got = []
        for byte in received:
            if byte < 40 and byte in numbers and (not got or got[-1] != byte):
                got.append(byte)
        assert got == sorted(set(got))
        assert len(got) == room.sent - given_up


@given(
    pushes=st.lists(st.binary(min_size=2, max_size=5), max_size=12),
    taken=st.integers(0, 30),
    withdrawn=st.lists(st.integers(0, 11), max_size=12),
)
def test_a_queue_gives_all_that_was_not_withdrawn(pushes, taken, withdrawn):
    """And nothing can be withdrawn of which a part was taken."""
    pushes = [bytes(bytearray(data)) for data in pushes]
    queue = OutputQueue()
    for data in pushes:
        queue.push(data)
    out = queue.take(taken) if taken and pushes else b""
    left = list(pushes)
    gone = 0
    for number in withdrawn:
        if number < len(pushes):
            data = pushes[number]
            begins = sum(map(len, pushes[:number]))
            waits = begins >= len(out) and any(one is data for one in left)
            assert queue.withdraw(data) is waits
            if waits:
                left = [one for one in left if one is not data]
                gone += len(data)
    rest = b""
    while piece := queue.take(4):
        rest += piece
    assert out + rest == b"".join(left)
    assert queue.size == 0
    assert not queue


class Listener(AsyncChat):
    terminator = b"\n"
    room = None
    close_timeout = 1.0

    def handle_connect(self):
        self.room.add(self)


@on_the_hub_too
class OnSockets(TestCase):
    """Clients that read, and clients that never do."""

    timeout = PATIENCE
    reactor = reactor
    message = bytes(range(256)) * 64

    async def broadcast(self, slow, count):
        """Send *count* messages to two who read and one who does not; return the room and that one."""
        room = Broadcast(slow=slow, limit=100_000)
        handler = type("Handler", (Listener,), {"room": room})
        port = await self.listen(handler)
        await self.join(port)
        await until(lambda: len(room) == 1)
        (deaf,) = room
        readers = [await self.join(port) for _ in range(2)]
        await until(lambda: len(room) == 3)
        reading = [deferToThread(self.read, one, count * len(self.message)) for one in readers]
        for _ in range(count):
            room.send(self.message)
            await gatherResults([chat.drained() for chat in room if chat is not deaf])
            assert deaf.unsent <= room.limit
        assert await gatherResults(reading) == [self.message * count] * 2
        return room, deaf

    async def listen(self, handler):
        factory = Factory.forProtocol(handler)
        factory.noisy = False
        port = await TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        return port.getHost().port

    async def join(self, port):
        peer = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.addCleanup(peer.close)
        return peer

    def read(self, peer, size):
        data = bytearray()
        while len(data) < size:
            data += peer.recv(65_536)
        return bytes(data)

    async def end(self, deaf):
        if deaf.state is not State.CLOSED:
            deaf.abort()
        await until(lambda: deaf.state is State.CLOSED)

    async def test_skip(self):
        room, deaf = await self.broadcast(Slow.SKIP, 600)
        assert room.missed(deaf) == room.skipped > 0
        assert room.sent + room.skipped == 1800
        await self.end(deaf)

    async def test_drop_oldest(self):
        room, deaf = await self.broadcast(Slow.DROP_OLDEST, 600)
        assert room.missed(deaf) == room.dropped > 0
        assert room.sent == 1800
        await self.end(deaf)

    async def test_coalesce(self):
        room, deaf = await self.broadcast(Slow.COALESCE, 600)
        assert room.missed(deaf) == room.coalesced > 0
        assert room.sent == 1800
        await self.end(deaf)

    async def test_disconnect(self):
        room, deaf = await self.broadcast(Slow.DISCONNECT, 600)
        assert (room.disconnected, len(room)) == (1, 2)
        await self.end(deaf)
        assert isinstance(deaf.close_reason, UnsentLimitExceeded)


class OverTLS(OnSockets):
    """Each connection encrypts for itself."""

    async def listen(self, handler):
        server = await Server(self, server_options(), handler).listen()
        return server.port

    async def join(self, port):
        plain = await super().join(port)
        # A handshake waits for the server, so it takes place in a thread.
        peer = await deferToThread(client_context().wrap_socket, plain, server_hostname="localhost")
        self.addCleanup(peer.close)
        return peer


@pytest.mark.traces_memory
def test_members_who_never_read_share_the_bytes_that_wait_for_them():
    room = Broadcast(limit=1 << 20)
    slow = [slow_member(room) for _ in range(100)]
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(32):
            room.send(bytes(32_768))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {chat.unsent for chat in slow} == {1 << 20}
    assert grown < 2 << 20


@pytest.mark.slow
@pytest.mark.parametrize("way", [[], ["--tls"]], ids=["plain", "tls"])
@pytest.mark.parametrize("slow", Slow, ids=lambda slow: slow.name)
def test_those_who_read_lose_nothing(root, way, slow):
    """A short run of what is done with a thousand members by hand."""
    numbers = ["--members=60", "--silent=6", "--seconds=4", f"--slow={slow.name}"]
    script = root / "tests/helpers/broadcast.py"
    ran = subprocess.run(
        [sys.executable, script, *numbers, *way], stdout=subprocess.PIPE, timeout=120, check=True
    )
    said = json.loads(ran.stdout)
    assert said["complete"] == said["readers"] == 54
    counts = said["counts"]
    assert counts["sent"] + counts["skipped"] == 60 * 64 or slow is Slow.DISCONNECT
    given_up = {
        Slow.SKIP: "skipped",
        Slow.DROP_OLDEST: "dropped",
        Slow.COALESCE: "coalesced",
        Slow.DISCONNECT: "disconnected",
    }[slow]
    assert counts[given_up] >= 6
    assert said["waiting"] <= 1 << 20
    assert said["grown_kib"] < 6 * 1024 + 20_000
