"""
What happens between two calls of loop(): channels are dropped, maps edited, attributes set.

Programs call ``loop(timeout, count=1)`` in a circle of their own, and expect each call to start with
what is there.
"""

import gc
import os
import socket
import weakref

import pytest

from helpers.loops import both_modes
from txasynchat.compat import _asking as asking
from txasynchat.compat import asynchat, asyncore

LIMIT = 10.0

pytestmark = pytest.mark.usefixtures("each_way")


class Reader(asyncore.dispatcher):
    """Asked on every pass."""

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.got = []

    def writable(self):
        return False

    def handle_read(self):
        self.got.append(self.recv(100))


class Chat(asynchat.async_chat):
    """Asked only after an event of its own."""

    def __init__(self, sock, channels):
        super().__init__(sock, channels)
        self.set_terminator(None)
        self.got = []

    def collect_incoming_data(self, data):
        self.got.append(data)


both_kinds = pytest.mark.parametrize("kind", [Reader, Chat])


def forget_the_driver():
    """The nested poller that this thread keeps for the next call belongs to no channel."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        other = {}
        Reader(ours, other)
        asyncore.loop(0, map=other, count=1)
        asyncore.close_all(other)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # an unclosed socket
class TestDropped:
    """As in the stdlib, an unreferenced channel is collected, and its peer sees the end."""

    @both_kinds
    @both_modes
    @pytest.mark.parametrize("way", ["clear", "del", "weak map", "map"])
    def test_unreferenced_channel_is_collected_without_close(self, kind, use_poll, way):
        channels = weakref.WeakValueDictionary() if way == "weak map" else {}
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.settimeout(LIMIT)
            channel = kind(ours, channels)
            del ours
            theirs.send(b"x")
            asyncore.loop(LIMIT, use_poll, channels, 1)
            asyncore.loop(0, use_poll, channels, 2)
            reference = weakref.ref(channel)
            if way == "clear":
                channels.clear()
            elif way == "del":
                del channels[channel._fileno]
            del channel
            if way == "map":
                del channels
            gc.collect()
            assert reference() is None
            assert theirs.recv(1) == b""
        forget_the_driver()

    def test_channel_without_weak_references_is_collected_too(self):
        class Bare:
            __slots__ = ("sock",)
            accepting = False

            def readable(self):
                return True

            def writable(self):
                return False

        ours, theirs = socket.socketpair()
        with theirs:
            theirs.settimeout(LIMIT)
            bare = Bare()
            bare.sock = ours
            channels = {ours.fileno(): bare}
            asyncore.loop(0, map=channels, count=1)
            del channels, bare, ours
            gc.collect()
            assert theirs.recv(1) == b""

    @both_kinds
    def test_channel_removed_from_the_map_within_a_loop_is_collected(self, channels, pair, kind):
        near, far = pair()
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.settimeout(LIMIT)
            number = ours.fileno()
            kind(ours, channels)
            del ours

            class Removing(Reader):
                def handle_read(self):
                    super().handle_read()
                    if channels.pop(number, None) is None:
                        gc.collect()
                        theirs.settimeout(0)
                        self.got.append(theirs.recv(1))

            Removing(far, channels)
            near.send(b"x")
            asyncore.loop(LIMIT, map=channels, count=1)
            near.send(b"x")
            asyncore.loop(LIMIT, map=channels, count=1)
            assert channels[far.fileno()].got == [b"x", b"x", b""]

    @both_kinds
    @both_modes
    def test_another_file_on_a_channels_number_is_served(self, channels, pair, kind, use_poll):
        """``os.dup2`` onto a channel's descriptor takes effect within a second."""
        _, far = pair()
        near, other = pair()
        channel = kind(far, channels)
        asyncore.loop(0, use_poll, channels, 1)
        os.dup2(other.fileno(), far.fileno())
        near.send(b"x")
        while channel.got == []:
            asyncore.loop(0.05, use_poll, channels, 1)
        assert channel.got == [b"x"]


@pytest.mark.usefixtures("only_first_passes_are_full")
class TestEditedMaps:
    """A map that was changed without a method call takes effect in the next pass."""

    @both_kinds
    @both_modes
    @pytest.mark.parametrize("fresh", [False, True], ids=["one map", "a new map each time"])
    def test_replaced_channel_is_noticed(self, pair, kind, use_poll, fresh):
        ends = [pair() for _ in range(3)]
        last = {far.fileno(): kind(far, {}) for _, far in ends}
        for _ in range(5):
            asyncore.loop(0, use_poll, last, 1)
            number = ends[1][1].fileno()
            current = dict(last) if fresh else last
            current[number] = channel = kind(ends[1][1], {})
            last = current
            ends[1][0].send(b"x")
            asyncore.loop(LIMIT, use_poll, last, 1)
            assert channel.got == [b"x"]
        asyncore.close_all(last, ignore_all=True)

    @both_kinds
    @both_modes
    def test_replaced_channel_is_noticed_when_the_last_key_is_the_same(self, pair, kind, use_poll):
        """The map has the same length and the same last channel as before."""
        (near, far), (_, other), (_, final) = pair(), pair(), pair()
        channels = {other.fileno(): kind(other, {}), final.fileno(): kind(final, {})}
        asyncore.loop(0, use_poll, channels, 1)
        end = channels.pop(final.fileno())
        channels.clear()
        channels[far.fileno()] = channel = kind(far, {})
        channels[final.fileno()] = end
        near.send(b"x")
        asyncore.loop(LIMIT, use_poll, channels, 1)
        assert channel.got == [b"x"]
        asyncore.close_all(channels, ignore_all=True)

    @both_modes
    def test_data_queued_from_outside_is_sent(self, channels, pair, use_poll):
        near, far = pair()
        chat = Chat(far, channels)
        asyncore.loop(0, use_poll, channels, 2)
        chat.producer_fifo.append(b"queued")
        asyncore.loop(LIMIT, use_poll, channels, 1)
        assert near.recv(100) == b"queued"

    @both_modes
    def test_predicates_of_the_instance_are_asked_in_each_pass(self, channels, pair, use_poll):
        near, far = pair()

        class Buffered(Reader):
            buffer = b""

            def writable(self):
                return len(self.buffer) > 0

            def handle_write(self):
                self.buffer = self.buffer[self.send(self.buffer) :]

        channel = Buffered(far, channels)
        for _ in range(5):
            asyncore.loop(0, use_poll, channels, 1)
            channel.buffer += b"x"
            asyncore.loop(LIMIT, use_poll, channels, 1)
            assert near.recv(10) == b"x"

    def test_idle_channels_are_not_checked_by_each_call(self, channels, pair):
        """Beside hundreds of them, repeated loop(count=1) is not slower than in the stdlib."""
        asked = []

        class Watched(Chat):
            @property
            def connected(self):
                asked.append(1)
                return True

            @connected.setter
            def connected(self, value):
                pass

        near, far = pair()
        Watched(pair()[1], channels)
        chat = Chat(far, channels)
        asyncore.loop(0, map=channels, count=1)
        del asked[:]
        for _ in range(20):
            near.send(b"x")
            asyncore.loop(LIMIT, map=channels, count=1)
        assert b"".join(chat.got) == b"x" * 20
        assert asked == []

    def test_pass_that_ends_in_an_error_starts_again(self, channels, pair):
        """Events of the other channels are not lost."""
        chats = [pair() for _ in range(3)]
        made = [Chat(far, channels) for _, far in chats]
        asyncore.loop(0, map=channels, count=1)

        class Failing(Reader):
            fails = True

            def readable(self):
                if self.fails:
                    raise ZeroDivisionError
                return True

        failing = Failing(pair()[1], channels)
        for chat in made:
            chat.producer_fifo.append(b"x")
        with pytest.raises(ZeroDivisionError):
            asyncore.loop(0, map=channels, count=1)
        failing.fails = False
        asyncore.loop(0, map=channels, count=1)
        for near, _ in chats:
            assert near.recv(1) == b"x"


def test_predicate_set_on_an_idle_channel_applies_within_a_tenth_of_a_second(channels, pair):
    """It applies at once if the channel's own handler set it, or its class overrides it."""
    near, far = pair()
    chat = Chat(far, channels)
    asyncore.loop(0, map=channels, count=1)
    chat.readable = lambda: False
    near.send(b"x")
    asyncore.loop(2 * asking.FULL_PASS_LATEST, map=channels, count=2)
    del chat.got[:]
    near.send(b"y")
    asyncore.loop(0, map=channels, count=3)
    assert chat.got == []


@pytest.mark.parametrize("use_poll", [False, True], ids=["select", "poll"])
def test_predicate_set_between_two_calls_applies_in_the_second(channels, pair, use_poll):
    written = []

    class Writing(Chat):
        def handle_write(self):
            written.append(1)

    chat = Writing(pair()[1], channels)
    asyncore.loop(0, use_poll, channels, 1)
    chat.writable = lambda: True
    asyncore.loop(0, use_poll, channels, 1)
    assert written == [1]
