"""
Two connections coupled by `AsyncChat.pipe_to`: in memory, and on every pair of real transports.

Also covers `protocol.coupling`.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from helpers import wire
from helpers.kinds import NATIVE, KindsCase
from helpers.memory import Chat, Memory, connected, lose
from helpers.support import PATIENCE, in_thread, leaf, pem, trust
from txasynchat import AsyncChat, ConnectionReset, LengthPrefix, State
from txasynchat.hub.places import HubReactor
from txasynchat.testing import MemoryLink

# Twisted's own endpoints pass certificates in a way that pyOpenSSL deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class Half(Memory):
    ended = False

    def loseWriteConnection(self):  # noqa: N802 Twisted's
        self.ended = True


def pair(both=False, **settings):
    """Two connections, the first of which is piped to the second."""
    one, other = Chat(), Chat()
    vars(other).update(settings)
    transports = connected(one, Half()), connected(other, Half())
    one.pipe_to(other)
    if both:
        other.pipe_to(one)
    return one, other, *transports


class TestBytes:
    @pytest.mark.parametrize("whole", [True, False])
    @given(
        st.lists(st.sampled_from([b"a", b"b", b"\n", b"ab", b"\2", b"\1x"]), max_size=12).map(
            b"".join
        ),
        st.integers(0, 5),
        st.sampled_from([b"\n", b"ab", 2, LengthPrefix("B"), None]),
        st.lists(st.integers(0, 30), max_size=6),
    )
    def test_all_that_no_hook_was_given_arrives(self, whole, data, count, terminator, cuts):
        """Whatever was delivered before, and however it was cut."""

        class Switching(AsyncChat):
            def __init__(self):
                self.left = count
                self.given = []
                self.set_terminator(terminator)

            def message_received(self, message):
                self.given.append(message)
                self.left -= 1
                if self.left <= 0:
                    self.pipe_to(other)
                elif terminator == 2:
                    self.set_terminator(2)

        class Pieces(Switching):
            def found_terminator(self):
                self.message_received(self._get_data())

        other = Chat()
        transport = connected(other)
        one = Switching() if whole else Pieces()
        connected(one)
        at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        for begin, end in itertools.pairwise(at):
            one.dataReceived(data[begin:end])
        if one._pipe is None:
            one.pipe_to(other)
        one.dataReceived(b"end\n")
        position = 0
        for message in one.given:
            size = 0
            if isinstance(terminator, LengthPrefix):
                size = 1
            position += (
                size + len(message) + (len(terminator) if isinstance(terminator, bytes) else 0)
            )
        assert transport.value() == data[position:] + b"end\n"

    def test_messages_are_no_longer_delivered(self):
        one, other, _, transport = pair()
        for piece in (b"one\ntw", b"o\n", b"three"):
            one.dataReceived(piece)
        assert one.messages == []
        assert transport.value() == b"one\ntwo\nthree"
        other.dataReceived(b"answer\n")
        assert other.messages == [b"answer"]

    def test_chunks_are_passed_on_uncopied(self):
        one, _, _, transport = pair()
        chunk = bytes(65_536)
        one.dataReceived(chunk)
        assert transport.writes[-1] is chunk

    def test_an_expected_empty_message_is_forgotten(self):
        other = Chat()
        transport = connected(other)

        def act(chat, _):
            chat.expect(0)
            chat.pipe_to(other)

        one = Chat(act)
        connected(one)
        one.dataReceived(b"one\nrest")
        assert one.messages == [b"one"]
        assert transport.value() == b"rest"

    def test_what_comes_before_the_other_is_connected_waits(self):
        one, other = Chat(), Chat()
        connected(one)
        one.pipe_to(other)
        other.pipe_to(one)
        one.dataReceived(b"first")
        transport = connected(other)
        assert transport.value() == b"first"

    def test_pause_holds_what_arrives(self):
        one, _, _, transport = pair()
        one.pause()
        one.dataReceived(b"later")
        assert transport.value() == b""
        one.resume()
        assert transport.value() == b"later"

    def test_to_itself_it_is_an_echo(self):
        one = Chat()
        transport = connected(one, Half())
        one.pipe_to(one)
        one.dataReceived(b"hello")
        assert transport.value() == b"hello"
        one.readConnectionLost()
        assert transport.disconnecting
        lose(one)
        assert one.state is State.CLOSED

    def test_wrong_calls_are_refused(self):
        one, other, *_ = pair()
        with pytest.raises(TypeError, match="takes an AsyncChat"):
            one.pipe_to(None)
        with pytest.raises(RuntimeError):
            one.pipe_to(Chat())
        with pytest.raises(RuntimeError):
            Chat().pipe_to(other)


class TestBackPressure:
    def test_the_level_of_the_other_decides(self):
        one, other, source, target = pair(high_water=100, low_water=10)
        target.room = 1
        one.dataReceived(b"x" * 50)
        assert source.reads
        one.dataReceived(b"x" * 150)
        assert not source.reads
        one.dataReceived(b"y" * 5)  # was on its way
        assert other.unsent == 150
        target.make_room()
        assert source.reads
        assert target.value() == b"x" * 200 + b"y" * 5

    def test_a_full_queue_of_its_own_does_not_stop_a_piped_connection(self):
        """Or two peers that send before they read would wait for each other for ever."""
        one, other, source, target = pair(both=True)
        one.high_water = other.high_water = 100
        one.low_water = other.low_water = 10
        source.room = target.room = 1
        other.dataReceived(b"x" * 50)
        other.dataReceived(b"x" * 150)
        assert not target.reads
        assert source.reads
        one.dataReceived(b"y" * 50)
        assert other.unsent < 100
        assert source.reads

    def test_the_limit_of_what_may_wait_does_not_count(self):
        one, other, _, target = pair(high_water=None, max_unsent=1_000)
        target.room = 1
        one.dataReceived(b"x" * 2_000)
        one.dataReceived(b"x" * 2_000)
        target.make_room()
        assert target.value() == b"x" * 4_000
        assert other.state is State.OPEN

    def test_without_a_level_the_usual_one_holds(self):
        one, _, source, target = pair(high_water=None)
        target.room = 1
        for _ in range(3):
            one.dataReceived(bytes(65_536))
        assert not source.reads


class TestEnds:
    def test_the_end_of_one_direction_is_passed_on(self):
        one, other, source, target = pair(both=True)
        one.dataReceived(b"all")
        one.readConnectionLost()
        assert target.value() == b"all"
        assert target.ended
        assert not source.disconnecting
        other.dataReceived(b"answer")
        assert source.value() == b"answer"
        other.readConnectionLost()
        assert source.disconnecting
        assert target.disconnecting

    def test_it_waits_for_what_is_held_back(self):
        one, other, source, target = pair(high_water=100, low_water=10)
        target.room = 1
        one.dataReceived(b"x" * 50)
        one.dataReceived(b"x" * 150)
        one.dataReceived(b"y")
        one.readConnectionLost()
        assert not other._outbox.closing
        target.make_room()
        assert target.value() == b"x" * 200 + b"y"
        assert target.ended
        assert not source.disconnecting

    def test_the_loss_of_one_ends_the_other_in_order(self):
        for first in (0, 1):
            for both in (False, True):
                chats = pair(both)
                chat, transport = chats[1 - first], chats[3 - first]
                transport.room = 1
                chat.push(b"x" * 100_000)
                chat.push(b"y")
                lose(chats[first])
                assert not transport.disconnecting
                transport.make_room()
                assert transport.value() == b"x" * 100_000 + b"y"
                assert transport.disconnecting
                lose(chat)
                assert [one.events[-1] for one in chats[:2]] == ["close", "close"]

    def test_what_arrived_before_the_loss_is_sent(self):
        one, other, _, target = pair(high_water=100, low_water=10)
        target.room = 1
        one.dataReceived(b"x" * 50)
        one.dataReceived(b"x" * 150)
        one.dataReceived(b"y")
        lose(one)
        target.make_room()
        assert target.value() == b"x" * 200 + b"y"
        assert target.disconnecting
        assert other.unsent == 0

    def test_close_of_one_ends_the_other(self):
        one, other, source, target = pair(both=True)
        one.push(b"bye")
        one.close()
        assert source.disconnecting
        lose(one)
        assert target.disconnecting
        assert other.state is State.CLOSING

    def test_a_connection_that_is_gone_ends_the_other_at_once(self):
        for first in (0, 1):
            chats = [Chat(), Chat()]
            ends = [connected(chat) for chat in chats]
            lose(chats[first])
            chats[0].pipe_to(chats[1])
            assert ends[1 - first].disconnecting

    def test_a_pair_ends_when_both_directions_are_quiet(self):
        """As when the server stops: a transfer that goes on is not cut off."""
        for ended in (False, True):  # half of it, by a peer
            one, other, source, target = pair(both=True)
            one.clock = clock = Clock()
            if ended:
                one.readConnectionLost()
            one.handle_shutdown()
            for _ in range(5):
                clock.pump([0.15] * 5)
                other.dataReceived(b"x")
            clock.pump([0.1] * 9)
            assert not source.disconnecting
            clock.pump([0.1] * 4)
            assert source.disconnecting
            lose(one)
            assert target.disconnecting
            lose(other)
            assert not clock.getDelayedCalls()

    def test_a_pair_does_not_end_while_something_waits(self):
        one, other, source, target = pair(both=True)
        one.clock = clock = Clock()
        target.room = 1
        one.dataReceived(b"x" * 50)
        one.dataReceived(b"y")
        one.handle_shutdown()
        clock.pump([1] * 5)
        target.make_room()
        other.pause()
        clock.pump([1] * 5)
        other.resume()
        assert not source.disconnecting
        clock.pump([0.6] * 5)
        assert source.disconnecting
        assert target.value() == b"x" * 50 + b"y"

    def test_a_pair_that_was_to_end_before_it_was_one_ends(self):
        other = Chat()
        one = Chat(lambda chat, _: chat.pipe_to(other))
        source, target = connected(one), connected(other)
        one.dataReceived(b"hal")
        one.close_when_idle()
        assert not source.disconnecting
        one.dataReceived(b"f\n")
        assert source.disconnecting  # at once in memory, where there is no clock
        lose(one)
        assert target.disconnecting

    def test_the_end_of_either_ends_the_looks(self):
        for first in (0, 1):
            chats = pair(both=True)
            clock = Clock()
            for chat in chats[:2]:
                chat.clock = clock
                chat.handle_shutdown()
            assert clock.getDelayedCalls()
            lose(chats[first])
            lose(chats[1 - first])
            assert not clock.getDelayedCalls()

    def test_nobody_is_kept_alive(self):
        one, other, *_ = pair(both=True)
        lose(one)
        lose(other)
        assert one._pipe is one._fed_by is other._pipe is other._fed_by is None

    def test_both_ways_over_a_chain_in_memory(self):
        """Client, proxy and server; each byte, and both ends."""
        client, front, back, server = (Chat() for _ in range(4))
        links = MemoryLink(client, front, size=7), MemoryLink(back, server, size=5)
        front.pipe_to(back)
        back.pipe_to(front)
        client.push(b"question\n" * 100)
        client.end_sending()
        server.push(b"answer\n" * 50)
        for _ in range(4):
            for link in links:
                link.flush()
        assert server.messages == [b"question"] * 100
        assert client.messages == [b"answer"] * 50
        assert {chat.state for chat in (client, front, back, server)} == {State.CLOSED}


# -- real transports


class Front(AsyncChat):
    """Connects to where it is told when the client has said something, and couples the two."""

    terminator = b"\n"

    def __init__(self, connect):
        self.connect_back = connect
        self.ends = Deferred()

    def message_received(self, message):
        self.back = Back()
        self.pipe_to(self.back)
        self.back.pipe_to(self)
        self.connect_back(self.back).addErrback(lambda _: self.close())

    def handle_end(self, reason):
        self.ends.callback(reason)


class Back(AsyncChat):
    def __init__(self):
        self.ends = Deferred()

    def handle_end(self, reason):
        self.ends.callback(reason)


SIZE = 3_000_000


class TestOnTransports(KindsCase, TestCase):
    """A proxy whose client and server send a lot before they read anything."""

    def upstream(self):
        """A server that takes one connection: it sends, and reads to the end."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        listener.settimeout(PATIENCE)

        def serve():
            sock, _ = listener.accept()
            sock.settimeout(PATIENCE)
            with sock:
                return both_ways(sock, b"s", SIZE)

        return listener.getsockname()[1], in_thread(serve)

    async def check(self, kind):
        host = HubReactor(reactor) if kind.startswith("hub-") else reactor
        number, upstream = self.upstream()
        endpoint = TCP4ClientEndpoint(host, "127.0.0.1", number)
        client, handlers = await self.serve(
            f"native {kind}", lambda: Front(lambda back: connectProtocol(endpoint, back))
        )
        if client.kind != "unix":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        await in_thread(client.ask)
        if client.kind in {"secure", "ssl"}:
            # The standard library's socket cannot be used by two threads, nor end one direction.
            def talk():
                client.socket.sendall(b"c" * SIZE)
                data = b""
                while len(data) < SIZE:
                    data += client.socket.recv(65_536)
                client.socket.unwrap().close()
                return data

            data = await in_thread(talk)
        else:
            data = await in_thread(both_ways, client.socket, b"c", SIZE)
        assert data == b"s" * SIZE, kind
        assert await upstream == b"c" * SIZE, kind
        front = await self.gone(handlers)
        assert await front.ends is None, kind
        assert await front.back.ends is None, kind

    async def test_both_ways_and_the_ends(self):
        for kind in NATIVE:
            await self.check(kind.removeprefix("native "))

    async def test_a_client_that_is_gone_ends_the_other_connection(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        number = listener.getsockname()[1]
        for kind in ("tcp", "hub-tcp"):
            endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", number)
            client, handlers = await self.serve(
                f"native {kind}",
                lambda endpoint=endpoint: Front(lambda back: connectProtocol(endpoint, back)),
            )
            await in_thread(client.ask)
            sock, _ = await in_thread(listener.accept)
            with sock:
                client.socket.sendall(b"last words")
                assert await in_thread(sock.recv, 10) == b"last words"
                wire.reset(client.socket)
                assert await in_thread(sock.recv, 10) == b""
            front = await self.gone(handlers)
            assert isinstance(await front.ends, ConnectionReset)
            assert await front.back.ends is None


def both_ways(sock, byte, size):
    """Send so many bytes and end; return what comes until the other end."""

    def send():
        piece = byte * 65_536
        for at in range(0, size, len(piece)):
            sock.sendall(piece[: size - at])
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    data = bytearray()
    while piece := sock.recv(65_536):
        data += piece
    sender.join()
    return bytes(data)


#: Two proxies, of which the first speaks TLS to the second; it prints its port, and at the end by how
#: many bytes its memory has grown while they were busy.
PROXIES = """
import resource, sys
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from txasynchat import AsyncChat
from txasynchat.endpoints import SecureClientEndpoint, SecureServerEndpoint
from txasynchat.hub.places import HubReactor
from txasynchat.tls import ClientOptions, Credentials, ServerOptions

folder, hub, upstream = sys.argv[1:]
host = HubReactor(reactor) if hub == "hub" else reactor

class Back(AsyncChat):
    ends = []

    def handle_end(self, reason):
        self.ends.append(reason)
        if len(self.ends) == 4:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(grown * 1024, *self.ends, flush=True)
            reactor.stop()

class Front(Back):
    def handle_connect(self):
        other = Back()
        self.pipe_to(other)
        other.pipe_to(self)
        connectProtocol(self.factory.back, other)

def listen(endpoint, back):
    factory = Factory.forProtocol(Front)
    factory.noisy = False
    factory.back = back
    ports = []
    endpoint.listen(factory).addCallback(ports.append)
    return ports[0].getHost().port

def read(name):
    with open(f"{folder}/{name}", "rb") as file:
        return file.read()

tcp = TCP4ServerEndpoint(host, 0, interface="127.0.0.1")
second = listen(
    SecureServerEndpoint(reactor, tcp, ServerOptions(Credentials(read("server")))),
    TCP4ClientEndpoint(host, "127.0.0.1", int(upstream)),
)
back_of_first = SecureClientEndpoint(
    reactor,
    TCP4ClientEndpoint(host, "127.0.0.1", second),
    ClientOptions("chat.example.org", read("trust")),
)
print(listen(TCP4ServerEndpoint(host, 0, interface="127.0.0.1"), back_of_first), flush=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reactor.run()
"""


@pytest.mark.parametrize("hub", ["hub", "no hub"])
@pytest.mark.slow
def test_forty_megabytes_both_ways_need_no_memory(tmp_path, hub):
    """Over TLS as the target and as the source; the proxies' memory grows by less than a tenth."""
    size = 40 << 20
    (tmp_path / "server").write_bytes(pem(leaf()))
    (tmp_path / "trust").write_bytes(trust())
    results = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def serve():
            sock, _ = listener.accept()
            sock.settimeout(PATIENCE)
            with sock:
                results.append(both_ways(sock, b"s", size))

        server = threading.Thread(target=serve)
        server.start()
        command = [
            sys.executable,
            "-c",
            PROXIES,
            str(tmp_path),
            hub,
            str(listener.getsockname()[1]),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as proxies:
            try:
                with wire.raw(int(proxies.stdout.readline())) as client:
                    results.append(both_ways(client, b"c", size))
                server.join()
                grown, *reasons = proxies.stdout.readline().split()
            finally:
                proxies.kill()
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)  # or the thread waits for a client
                server.join()
    assert sorted((one[:1], len(one)) for one in results) == [(b"c", size), (b"s", size)]
    assert reasons == [b"None"] * 4
    assert int(grown) < 8 << 20
