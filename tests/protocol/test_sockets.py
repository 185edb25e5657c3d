"""
`AsyncChat` over real sockets: what an in-memory transport cannot show.

The clients are blocking sockets in threads of the reactor's pool: nothing of Twisted's is on that
side, and what the operating system does to them is what it does to any client.
"""

import contextlib
import gc
import io
import os
import random
import resource
import socket
import ssl
import struct
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXServerEndpoint,
    serverFromString,
)
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, capturedLogs
from twisted.protocols.basic import FileSender
from twisted.protocols.policies import ThrottlingFactory, TimeoutFactory, WrappingFactory
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers.kinds import on_the_hub_too
from helpers.wire import after_a_slow_read
from txasynchat import AsyncChat, HandshakeFailed, State
from txasynchat.protocol import reports

# Twisted's own endpoints pass certificates in a way that pyOpenSSL deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
#: Seconds: the limit of every client's wait.
PATIENCE = 20.0


class Line(AsyncChat):
    """Echoes each line; tells the test when its connection is lost."""

    terminator = b"\n"

    def __init__(self):
        self.events = []
        self.gone = Deferred()
        self.there = Deferred()

    def handle_connect(self):
        self.there.callback(self)

    def message_received(self, message):
        self.events.append(message)
        self.push(message + b"\n")

    def handle_close(self):
        self.events.append("close")

    @override
    def connectionLost(self, reason):
        super().connectionLost(reason)
        self.reason = reason
        self.gone.callback(self)


class Client:
    """
    A blocking socket; each method is run in a thread, and ends.

    With a *receive_buffer* below one segment of loopback (64 KiB) the kernel may wait 40 ms for each.
    """

    def __init__(self, address, family=socket.AF_INET, receive_buffer=None):
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.address = address

    def connect(self):
        self.socket.connect(self.address)

    def read_to_the_end(self):
        return b"".join(iter(lambda: self.socket.recv(MIB), b""))

    def read(self, size):
        data = b""
        while len(data) < size:
            data += self.socket.recv(size - len(data)) or pytest.fail(f"ended after {data[-99:]!r}")
        return data

    def converse(self, data):
        """Send it all, end the sending, read to the end: ``printf … | nc``."""
        self.connect()
        self.socket.sendall(data)
        self.socket.shutdown(socket.SHUT_WR)
        return self.read_to_the_end()

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class SocketCase(TestCase):
    reactor = reactor

    async def serve(self, handler, wrap=lambda factory: factory, endpoint=None):
        """Listen; return the address, and the list of handlers that will be built."""
        chats = []

        def build():
            chats.append(handler())
            return chats[-1]

        factory = Factory.forProtocol(build)
        endpoint = endpoint or TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(wrap(factory))

        async def clean():
            await port.stopListening()
            for chat in chats:
                if chat.state not in (State.CLOSED, State.CONNECTING):
                    chat.abort()
                    await chat.gone

        self.addCleanup(lambda: Deferred.fromCoroutine(clean()))
        host = port.getHost()
        return (host.name if hasattr(host, "name") else (host.host, host.port)), chats

    def client(self, address, **options):
        family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        client = Client(address, family, **options)
        self.addCleanup(client.socket.close)
        return client

    async def converse(self, address, data):
        return await deferToThread(self.client(address).converse, data)


def tls_endpoint(case):
    """An endpoint with a certificate, and the context of a client that trusts it."""
    authority = trustme.CA()
    path = case.mktemp()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    description = f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}"
    return serverFromString(reactor, description), context


@on_the_hub_too
class HalfCloseTests(SocketCase):
    async def test_answers_arrive_before_the_end(self):
        address, chats = await self.serve(Line)
        assert await self.converse(address, b"a\nb\nunfinished") == b"a\nb\n"
        await chats[0].gone
        assert chats[0].events == [b"a", b"b", "close"]

    async def test_late_reader_gets_many_answers(self):
        class Large(Line):
            def message_received(self, message):
                self.push(message * 1_000 + b"\n")

        address, _ = await self.serve(Large)
        answer = await self.converse(address, b"0123456789\n" * 1_000)
        assert answer == (b"0123456789" * 1_000 + b"\n") * 1_000

    async def test_producer_runs_to_its_end(self):
        class Producing(Line):
            def message_received(self, message):
                self.push_with_producer(bytes(65_536) for _ in range(100))

        address, _ = await self.serve(Producing)
        assert await self.converse(address, b"go\n") == bytes(6_553_600)

    async def test_half_close_works_under_a_policy(self):
        for wrap in (
            WrappingFactory,
            lambda factory: TimeoutFactory(factory, PATIENCE),
            lambda factory: ThrottlingFactory(factory, writeLimit=MIB),
            lambda factory: WrappingFactory(WrappingFactory(factory)),
        ):
            address, chats = await self.serve(Line, wrap)
            assert await self.converse(address, b"a\nb\nunfinished") == b"a\nb\n"
            await chats[0].gone
            assert chats[0].events == [b"a", b"b", "close"]

    async def test_half_close_works_over_a_unix_socket(self):
        path = self.mktemp()
        address, chats = await self.serve(Line, endpoint=UNIXServerEndpoint(self.reactor, path))
        assert await self.converse(address, b"a\nb\n") == b"a\nb\n"
        await chats[0].gone
        assert chats[0].addr == ""


@on_the_hub_too
class LastWordTests(SocketCase):
    """The last bytes arrive, even at a peer that is still sending."""

    def talk_on(self, client, size):
        """Send one endless line before looking at any answer, as simple clients do."""
        client.connect()
        sent = 0
        block = b"x" * 65_536
        while sent < size:
            client.socket.sendall(block)
            sent += len(block)
        return client.read_to_the_end()

    async def check(self, handler, expected, *wrap):
        address, chats = await self.serve(handler, *wrap)
        for _ in range(10):
            client = self.client(address)
            assert await deferToThread(self.talk_on, client, 8 * MIB) == expected
            client.socket.close()
        for chat in chats:
            await chat.gone

    async def test_reply_of_message_too_long_arrives(self):
        class Limited(Line):
            def message_too_long(self, error):
                self.push(b"too long\n")

        with capturedLogs() as logs:
            await self.check(Limited, b"too long\n")
        # One a second, with the number suppressed before it.
        told = [event for event in logs if event.get("kind") == "MessageTooLong"]
        assert 1 <= len(told) < 10
        not_yet_told = reports.peer_errors.count("MessageTooLong")
        assert sum(1 + event["suppressed"] for event in told) + not_yet_told == 10

    async def test_reply_of_a_handler_that_closes_arrives(self):
        class Closing(Line):
            terminator = 1_000

            def message_received(self, message):
                self.push(b"bye\n")
                self.close()

        await self.check(Closing, b"bye\n")

    async def test_reply_of_a_handler_that_closes_when_done_arrives(self):
        class Closing(Line):
            terminator = 1_000

            def message_received(self, message):
                self.push(b"bye\n")
                self.close_when_done()
                self.terminator = 0
                self.max_message_length = None

        await self.check(Closing, b"bye\n")

    async def test_reply_of_a_handler_that_raises_arrives(self):
        class Failing(Line):
            terminator = 1_000

            def message_received(self, message):
                self.push(b"before\n")
                raise ValueError("no")

            def handle_error(self):
                self.push(b"sorry\n")

        await self.check(Failing, b"before\nsorry\n")
        assert len(self.flushLoggedErrors(ValueError)) == 10

    async def test_reply_of_a_paused_handler_that_closes_arrives(self):
        class Pausing(Line):
            terminator = 1_000

            def message_received(self, message):
                self.pause()
                self.push(b"bye\n")
                reactor.callLater(0.05, self.close)

        await self.check(Pausing, b"bye\n")

    async def test_reply_arrives_after_a_long_answer_that_the_peer_reads_late(self):
        """Input is read until the end, or neither side would make progress."""

        class Answering(Line):
            close_timeout = 3.0

            def message_received(self, message):
                if self.state is State.OPEN:
                    self.push(bytes(6 * MIB))
                    self.close_when_done()

        def say_all(client):
            client.connect()
            client.socket.sendall((b"x" * 1_000 + b"\n") * 8_000)
            return len(client.read_to_the_end())

        address, chats = await self.serve(Answering)
        client = self.client(address, receive_buffer=65_536)
        assert await deferToThread(say_all, client) == 6 * MIB
        client.socket.close()
        await chats[0].gone

    async def talk_and_read(self, size):
        class Answering(Line):
            @override
            def connectionMade(self):
                self.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)

            def message_received(self, message):
                self.push(bytes(size))
                self.close()

        def talk_and_read(client):
            client.connect()
            client.socket.sendall(b"go\n")
            total = 0
            while data := client.socket.recv(4_096):
                total += len(data)
                client.socket.sendall(b"and another thing\n" * 10)
            return total

        address, chats = await self.serve(Answering)
        for _ in range(20):
            client = self.client(address, receive_buffer=4_096)
            assert await deferToThread(talk_and_read, client) == size
            client.socket.close()
        for chat in chats:
            await chat.gone

    async def test_reply_reaches_a_peer_that_sends_while_it_reads_a_long_answer(self):
        await self.talk_and_read(MIB)

    async def test_reply_reaches_a_peer_that_sends_while_the_transport_holds_the_rest(self):
        await self.talk_and_read(60_000)

    async def test_reply_arrives_under_a_policy(self):
        class Limited(Line):
            def message_too_long(self, error):
                self.push(b"too long\n")

        await self.check(Limited, b"too long\n", WrappingFactory)

    async def test_reply_arrives_over_tls(self):
        class Limited(Line):
            def message_too_long(self, error):
                self.push(b"too long\n")

        endpoint, context = tls_endpoint(self)

        def talk_on(client):
            client.connect()
            with context.wrap_socket(client.socket, server_hostname="127.0.0.1") as secure:
                for _ in range(128):
                    secure.sendall(b"x" * 65_536)
                return b"".join(iter(lambda: secure.recv(MIB), b""))

        address, chats = await self.serve(Limited, endpoint=endpoint)
        for _ in range(5):
            assert await deferToThread(talk_on, self.client(address)) == b"too long\n"
        for chat in chats:
            await chat.gone

    async def test_peer_that_never_stops_sending_is_cut_off_after_the_limit(self):
        class Limited(Line):
            close_timeout = 0.3

            def message_too_long(self, error):
                self.push(b"too long\n")

        def talk_for_ever(client):
            client.connect()
            with pytest.raises(OSError, match=r"reset|pipe|abort"):
                while True:
                    client.socket.sendall(b"x" * 65_536)

        address, chats = await self.serve(Limited)
        await deferToThread(talk_for_ever, self.client(address))
        await chats[0].gone
        assert chats[0].events == ["close"]

    async def test_peer_that_falls_silent_is_cut_off_after_the_limit(self):
        class Limited(Line):
            close_timeout = 0.3
            max_message_length = 10

            def message_too_long(self, error):
                self.push(b"too long\n")

        def fall_silent(client):
            client.connect()
            client.socket.sendall(b"x" * 100)
            return client.read_to_the_end()

        address, chats = await self.serve(Limited)
        client = self.client(address)
        with capturedLogs() as logs:
            assert await deferToThread(fall_silent, client) == b"too long\n"
            await chats[0].gone
        assert [event["kind"] for event in logs if "kind" in event] == ["MessageTooLong"]

    async def test_close_is_immediate_when_nothing_is_unread(self):
        class Once(Line):
            close_timeout = None

            def message_received(self, message):
                super().message_received(message)
                self.close()

        def ask(client):
            client.connect()
            client.socket.sendall(b"x\n")
            return client.read_to_the_end()

        address, chats = await self.serve(Once)
        client = self.client(address)
        assert await deferToThread(ask, client) == b"x\n"
        await chats[0].gone  # though the client is still there
        assert chats[0].events == [b"x"]


@on_the_hub_too
class SlowReaderTests(SocketCase):
    size = 96 * MIB

    @pytest.mark.traces_memory
    async def test_a_producer_is_asked_only_for_what_the_peer_takes(self):
        """96 MiB to a reader that reads 1 MiB, waits, and then reads the rest."""
        import tracemalloc

        asked = [0]

        def rows():
            for _ in range(self.size // 65_536):
                asked[0] += 65_536
                yield bytes(65_536)

        class Producing(Line):
            def handle_connect(self):
                super().handle_connect()
                self.push_with_producer(rows())
                self.close_when_done()

        address, chats = await self.serve(Producing)
        client = self.client(address, receive_buffer=262_144)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        await deferToThread(client.connect)
        first = await deferToThread(client.read, MIB)
        assert first == bytes(MIB)
        (chat,) = chats
        # The kernel's buffers of both ends are not ours, and limited by it.
        kernel = chat.transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) + 8 * MIB
        assert asked[0] < MIB + kernel
        left = self.size - MIB

        def count():
            total = 0
            while data := client.socket.recv(MIB):
                total += len(data)
            return total

        assert await deferToThread(count) == left
        assert asked[0] == self.size
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 8 * MIB
        client.socket.close()  # or the server may wait for it
        await chat.gone

    async def test_a_push_producer_is_paused_and_resumed(self):
        """FileSender is a pull producer; this one writes on its own until it is paused."""

        class Source:
            def __init__(self, chat):
                self.chat = chat
                self.left = 32 * MIB
                self.pauses = 0
                self.most_unsent = 0
                self.call = reactor.callLater(0, self.produce)

            def produce(self):
                self.chat.write(bytes(65_536))
                self.left -= 65_536
                self.most_unsent = max(self.most_unsent, self.chat.unsent)
                if self.left:
                    if self.call is not None:
                        self.call = reactor.callLater(0, self.produce)
                else:
                    self.call = None
                    self.chat.unregisterProducer()

            @override
            def pauseProducing(self):
                self.pauses += 1
                if self.call is not None and self.call.active():
                    self.call.cancel()
                self.call = None

            @override
            def resumeProducing(self):
                self.call = reactor.callLater(0, self.produce)

            @override
            def stopProducing(self):
                self.pauseProducing()

        class Producing(Line):
            def handle_connect(self):
                super().handle_connect()
                self.source = Source(self)
                self.registerProducer(self.source, True)
                FileSender().beginFileTransfer(io.BytesIO(b"the end"), self)
                self.close_when_done()

        address, chats = await self.serve(Producing)
        client = self.client(address, receive_buffer=262_144)
        await deferToThread(client.connect)
        received = await deferToThread(client.read_to_the_end)
        assert len(received) == 32 * MIB + 7
        assert received.endswith(b"the end")
        source = chats[0].source
        assert source.pauses > 0
        assert source.most_unsent <= 131_072
        await chats[0].gone

    async def test_requests_of_a_peer_that_does_not_read_wait_and_none_is_lost(self):
        """Each line of two bytes gets an answer of 10,000."""

        class Amplifying(Line):
            most_unsent = 0

            def message_received(self, message):
                self.push(message * 10_000)
                self.most_unsent = max(self.most_unsent, self.unsent)

        count = 5_000

        def talk_then_read(client):
            client.connect()
            client.socket.settimeout(0.5)
            sent = 0
            data = b"".join(b"%c\n" % (65 + number % 26) for number in range(count))
            try:
                while sent < len(data):
                    sent += client.socket.send(data[sent : sent + 4096])
            except TimeoutError:
                pass  # it does not read us either
            client.socket.settimeout(PATIENCE)
            total = 0
            done = False
            while not done or total < count * 10_000:
                if sent < len(data):
                    sent += client.socket.send(data[sent : sent + 100])
                elif not done:
                    client.socket.shutdown(socket.SHUT_WR)
                    done = True
                got = len(client.socket.recv(MIB))
                if not got:
                    break
                total += got
            return total

        address, chats = await self.serve(Amplifying)
        client = self.client(address, receive_buffer=65_536)
        assert await deferToThread(talk_then_read, client) == count * 10_000
        await chats[0].gone
        assert len(chats[0].events) == 1
        assert chats[0].most_unsent <= 65_536 + 65_536 + 10_000

    async def test_connection_above_max_unsent_is_aborted_and_others_continue(self):
        class Broadcast(Line):
            max_unsent = MIB

        address, chats = await self.serve(Broadcast)
        slow = self.client(address, receive_buffer=65_536)
        quick = self.client(address)
        await deferToThread(slow.connect)
        while not chats:
            await deferToThread(lambda: None)
        await chats[0].there
        reading = deferToThread(quick.converse, b"hello\n")
        with capturedLogs() as logs:
            for _ in range(40):
                for chat in chats:
                    if chat.addr == slow.socket.getsockname():
                        chat.push(bytes(MIB))
            await chats[0].gone
        assert await reading == b"hello\n"
        kinds = [event["kind"] for event in logs if "kind" in event]
        assert kinds == ["UnsentLimitExceeded"]
        assert chats[0].events == ["close"]

    async def test_stalled_peer_is_aborted_while_closing_and_a_slow_one_is_not(self):
        def read_to_the_end(sock):
            return sum(map(len, iter(lambda: sock.recv(MIB), b"")))

        # The whole takes longer than the limit, each piece does not.
        sizes = [MIB] * 20
        for limit in (1.0, 2.0, 4.0):

            class Closing(Line):
                close_timeout = limit

                def handle_connect(self):
                    super().handle_connect()
                    self.push_with_producer(bytes(65_536) for _ in range(400))
                    self.close_when_done()

            address, chats = await self.serve(Closing)
            slow = self.client(address, receive_buffer=65_536)
            stuck = self.client(address, receive_buffer=65_536)
            with capturedLogs() as logs:
                await deferToThread(slow.connect)
                reading = deferToThread(
                    after_a_slow_read, slow.socket, sizes, limit, read_to_the_end
                )
                await deferToThread(stuck.connect)
                rest = await reading
                for chat in chats:
                    await chat.gone
            if rest is not None:
                break
        assert rest == 400 * 65_536 - sum(sizes)
        (kind,) = [event["kind"] for event in logs if "kind" in event]
        assert kind == "CloseTimedOut"


@on_the_hub_too
class WriteTests(SocketCase):
    async def test_answers_to_one_chunk_are_one_system_call_in_the_same_iteration(self):
        class Counting:
            def __init__(self, real):
                self.real = real
                self.sent = []

            def send(self, data):
                self.sent.append(len(data))
                return self.real.send(data)

            def __getattr__(self, name):
                return getattr(self.real, name)

        class Counted(Line):
            @override
            def connectionMade(self):
                self.transport.socket = Counting(self.transport.socket)
                self.transport.startWriting = lambda: pytest.fail("asked the reactor")

        address, chats = await self.serve(Counted)

        def ask(client):
            client.connect()
            answers = []
            for _ in range(3):
                client.socket.sendall(b"x\n" * 100)
                answers.append(client.read(200))
            return answers

        assert await deferToThread(ask, self.client(address)) == [b"x\n" * 100] * 3
        sent = chats[0].transport.socket.sent
        assert sum(sent) == 600
        assert len(sent) == len([message for message in sent if message]) <= 6

    async def test_bytes_the_system_does_not_take_follow_in_order(self):
        class Large(Line):
            def message_received(self, message):
                for number in range(50):
                    self.push(b"%c" % (65 + number) * 100_000)
                self.transport.write(b"by hand")
                self.push(b"end")

        address, _ = await self.serve(Large)
        expected = b"".join(b"%c" % (65 + number) * 100_000 for number in range(50))
        answer = await self.converse(address, b"go\n")
        assert answer.replace(b"by hand", b"") == expected + b"end"

    async def test_reset_in_the_middle_is_not_logged_as_an_error(self):
        class Sending(Line):
            def message_received(self, message):
                self.events.append(message)
                self.push(bytes(MIB))

        def leave(client):
            client.connect()
            client.socket.sendall(b"x\n" * 3)
            client.read(1_000)
            client.reset()

        address, chats = await self.serve(Sending)
        with capturedLogs() as logs:
            await deferToThread(leave, self.client(address))
            await chats[0].gone
        assert chats[0].events[-1] == "close"
        assert [event for event in logs if event["log_level"] > LogLevel.info] == []
        chats[0].push(b"late")
        assert chats[0].dropped == 4


@on_the_hub_too
class ManyClientsTests(SocketCase):
    async def test_clients_that_behave_at_random_get_their_answers_and_leave_nothing(self):
        class Busy(Line):
            """Answers each line by a push or a producer, some of them later."""

            close_timeout = 5.0
            high_water, low_water = 10_000, 1_000

            def message_received(self, message):
                number = int(message)
                answer = b"%d\n" % number
                if number % 3 == 0:
                    self.push(answer * 100)
                elif number % 3 == 1:
                    self.push_with_producer(iter([answer] * 100))
                else:
                    self.pause()
                    reactor.callLater(0, self.answer_later, answer * 100)

            def answer_later(self, answer):
                self.push(answer)
                self.resume()

            def message_too_long(self, error):
                self.push(b"too long\n")

        def one(address, chance):
            numbers = [chance.randrange(1_000) for _ in range(chance.randrange(1, 100))]
            lines = b"".join(b"%d\n" % number for number in numbers)
            answers = b"".join(b"%d\n" % number * 100 for number in numbers)
            client = Client(address, receive_buffer=chance.choice([4_096, 65_536]))
            with client.socket:
                kind = chance.choice(["whole", "whole", "reset", "too long", "vanish"])
                if kind == "whole":
                    assert client.converse(lines) == answers
                elif kind == "too long":
                    client.connect()
                    client.socket.sendall(b"1" * 100_000)
                    assert client.read_to_the_end() == b"too long\n"
                else:
                    client.connect()
                    client.socket.sendall(lines)
                    client.read(chance.randrange(1, len(answers)))
                    if kind == "reset":
                        client.reset()

        def many(address, seed):
            chance = random.Random(seed)
            for _ in range(50):
                one(address, chance)

        address, chats = await self.serve(Busy)
        with capturedLogs() as logs:
            await gatherResults([deferToThread(many, address, seed) for seed in range(4)])
            for chat in chats:
                await chat.gone
        assert len(chats) == 200
        assert {event.get("kind") for event in logs if event["log_level"] > LogLevel.info} <= {
            "MessageTooLong"
        }


@on_the_hub_too
class GarbageTests(SocketCase):
    async def freed(self, wrap):
        """Not by the garbage collector, whose runs are pauses in a server with many connections."""
        references = []

        class Quick(AsyncChat):
            terminator = b"\n"

            @override
            def connectionMade(self):
                references.append(weakref.ref(self))

            def message_received(self, message):
                self.push_with_producer(iter([message, b"\n"]))

        factory = wrap(Factory.forProtocol(Quick))
        port = await TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1").listen(factory)
        gc.disable()
        try:
            address = ("127.0.0.1", port.getHost().port)
            assert await self.converse(address, b"a\n") == b"a\n"
            await deferLater(reactor, 0)
            assert [reference() for reference in references] == [None]
        finally:
            gc.enable()
            await port.stopListening()

    @pytest.mark.counts_references
    async def test_a_lost_connection_is_freed_at_once(self):
        await self.freed(lambda factory: factory)

    @pytest.mark.counts_references
    async def test_a_lost_connection_under_a_policy_is_freed_at_once(self):
        await self.freed(WrappingFactory)


@on_the_hub_too
class PolicyTests(SocketCase):
    async def test_timeout_closes_an_idle_tls_connection(self):
        """A transport that has a producer would wait for that without end."""
        endpoint, context = tls_endpoint(self)
        address, chats = await self.serve(
            Line, lambda factory: TimeoutFactory(factory, 2), endpoint
        )

        def ask(client):
            client.connect()
            with context.wrap_socket(client.socket, server_hostname="127.0.0.1") as secure:
                secure.sendall(b"x\n")
                answer = secure.recv(100)
                return answer, secure.recv(100)

        assert await deferToThread(ask, self.client(address)) == (b"x\n", b"")
        await chats[0].gone

    async def test_closing_does_not_wait_for_a_handshake_that_never_ends(self):
        endpoint, _ = tls_endpoint(self)

        class Hasty(Line):
            close_timeout = 0.3

            @override
            def connectionMade(self):
                self.push(b"never sent\n")
                self.close_when_done()

        address, chats = await self.serve(Hasty, endpoint=endpoint)
        silent = self.client(address)
        await deferToThread(silent.connect)
        with contextlib.suppress(ConnectionResetError):
            assert await deferToThread(silent.read_to_the_end) == b""
        await chats[0].gone
        assert chats[0].events == ["close"]

    async def test_client_connected_by_an_endpoint_learns_of_a_half_close(self):
        """Twisted puts a protocol of its own in between, which claims one interface at a time."""
        for wrap in (lambda factory: factory, WrappingFactory):
            listener = socket.create_server(("127.0.0.1", 0))
            self.addCleanup(listener.close)

            def half_close(listener=listener):
                server, _ = listener.accept()
                with server:
                    server.sendall(b"send me all\n")
                    server.shutdown(socket.SHUT_WR)
                    return sum(map(len, iter(lambda: server.recv(MIB), b"")))

            class Sending(Line):
                def message_received(self, message):
                    self.push_with_producer(bytes(65_536) for _ in range(200))

            clients = [Sending()]
            client = clients[0]
            received = deferToThread(half_close)
            endpoint = TCP4ClientEndpoint(reactor, *listener.getsockname())
            await endpoint.connect(wrap(Factory.forProtocol(clients.pop)))
            assert await received == 200 * 65_536
            await client.gone
            assert client.events == ["close"]

    async def test_async_chat_may_be_a_client(self):
        address, chats = await self.serve(Line)

        class Asking(Line):
            def handle_connect(self):
                super().handle_connect()
                self.push(b"1\n2\n")

            def message_received(self, message):
                self.events.append(message)
                if message == b"2":
                    self.close_when_done()

        client = await TCP4ClientEndpoint(reactor, *address).connect(Factory.forProtocol(Asking))
        await client.gone
        assert client.events == [b"1", b"2", "close"]
        assert client.addr == address
        await chats[0].gone


SCENE = r"""
import socket, sys, threading
from twisted.internet.protocol import Factory
KIND = sys.argv[1]
if KIND == "asyncio":
    from twisted.internet import asyncioreactor
    asyncioreactor.install()
else:
    __import__(f"twisted.internet.{KIND}reactor", fromlist=["install"]).install()
from twisted.internet import reactor
from txasynchat import AsyncChat
from txasynchat.hub.places import HubReactor

class Server(AsyncChat):
    terminator = b"\n"
    def message_received(self, message):
        if message == b"rows":
            self.push_with_producer(bytes(65536) for _ in range(200))
        elif message == b"stuck":
            self.close_timeout = 0.5
            self.push_with_producer(bytes(65536) for _ in range(2000))
            self.close_when_done()
        else:
            self.push(message + b"\n")
    def message_too_long(self, error):
        self.push(b"too long\n")
    def handle_close(self):
        closed.append(self)

closed = []

def connect():
    client = socket.create_connection(("127.0.0.1", port.getHost().port), 15)
    client.settimeout(15)
    return client

def read(client):
    return b"".join(iter(lambda: client.recv(1 << 20), b""))

def half_close():
    with connect() as client:
        client.sendall(b"a\nb\nunfinished")
        client.shutdown(socket.SHUT_WR)
        assert read(client) == b"a\nb\n"

def last_word():
    with connect() as client:
        for _ in range(64):
            client.sendall(b"x" * 65536)
        assert read(client) == b"too long\n"

def slow_reader():
    with connect() as client:
        client.sendall(b"rows\nend\n")
        client.shutdown(socket.SHUT_WR)
        first = client.recv(1)
        assert first + read(client) == bytes(65536 * 200) + b"end\n"

def stuck_reader():
    with connect() as client:
        client.sendall(b"stuck\n")
        assert client.recv(1) == b"\0"
        while len(closed) < 4:
            threading.Event().wait(0.01)

def run():
    try:
        for step in (half_close, last_word, slow_reader, stuck_reader):
            step()
        print("good", type(reactor).__name__)
    finally:
        reactor.callFromThread(reactor.stop)

host = HubReactor(reactor) if sys.argv[2] == "hub" else reactor
port = host.listenTCP(0, Factory.forProtocol(Server), interface="127.0.0.1")
thread = threading.Thread(target=run, daemon=True)
reactor.callWhenRunning(thread.start)
reactor.run()
thread.join(5)
"""


@pytest.mark.parametrize(
    "kind",
    [
        "select",
        pytest.param("poll", marks=pytest.mark.skipif(sys.platform == "darwin", reason="no poll")),
        pytest.param(
            "epoll", marks=pytest.mark.skipif(sys.platform != "linux", reason="no epoll here")
        ),
        "asyncio",
    ],
)
@pytest.mark.parametrize("transport", ["twisted", "hub"])
@pytest.mark.slow
def test_on_every_reactor(fork_server, kind, transport):
    """Half-close, last word, slow reader and stuck reader, in a process with that reactor."""
    done = fork_server.run(["-c", SCENE, kind, transport], ROOT, 60)
    assert done.stdout.lower().startswith(f"good {kind}"), done.stdout + done.stderr


IDLE = r"""
import gc, resource, socket, sys, tracemalloc
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from txasynchat import AsyncChat

COUNT = int(sys.argv[1])

class Ours(AsyncChat):
    terminator = b"\n"
    def message_received(self, message):
        self.push(message + b"\n")

class Bare(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)

    def connectionLost(self, reason):
        self.connected = False

def measure(handler, count):
    accepted = []
    def build():
        accepted.append(handler())
        return accepted[-1]
    port = reactor.listenTCP(
        0, Factory.forProtocol(build), interface="127.0.0.1", backlog=count
    )
    address = ("127.0.0.1", port.getHost().port)
    clients = [socket.socket() for _ in range(count)]
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for client in clients:
        client.connect(address)
        reactor.iterate(0)
    while len(accepted) < count:
        reactor.iterate(0.01)
    # Each has spoken once, and is idle since.
    for client in clients:
        client.sendall(b"hello\n")
    for client in clients:
        client.setblocking(False)
        got = b""
        while len(got) < 6:
            reactor.iterate(0)
            try:
                got += client.recv(100)
            except BlockingIOError:
                pass
    gc.collect()
    each = (tracemalloc.get_traced_memory()[0] - before) / count
    for client in clients:
        client.close()
    while any(chat.connected for chat in accepted):
        reactor.iterate(0.01)
    port.stopListening()
    accepted.clear()
    return each

measure(Ours, 50), measure(Bare, 50)
tracemalloc.start()
bare = measure(Bare, COUNT)
ours = measure(Ours, COUNT)
print(round(ours), round(bare))
"""


@pytest.mark.traces_memory
@pytest.mark.slow
def test_an_idle_connection_takes_less_than_one_kib_more_than_a_bare_protocol():
    """2,000 connections, or as many as there are descriptors for."""
    count = 2_000
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        count = min(count, (soft - 100) // 2)
    done = subprocess.run(
        [sys.executable, "-c", IDLE, str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, bare = map(int, done.stdout.split())
    assert ours - bare < 1_024, (ours, bare)


@on_the_hub_too
class EndTests(SocketCase):
    """`handle_end` comes for each connection that was made, whatever ended it."""

    async def serve_members(self, endpoint=None, handler=Line):
        members = []
        ended = []

        class Member(handler):
            @override
            def connectionMade(self):
                members.append(self)

            def handle_end(self, reason):
                members.remove(self)
                ended.append(reason)

        address, chats = await self.serve(Member, endpoint=endpoint)
        return address, chats, members, ended

    async def test_handle_end_is_called_for_aborted_and_closed_connections(self):
        """Eight connect, three are aborted and one is closed: four remain in the table."""
        address, chats, members, ended = await self.serve_members()
        for count in range(1, 9):
            client = self.client(address)
            await deferToThread(client.connect)
            await deferToThread(client.socket.sendall, b"hello\n")
            await deferToThread(client.read, 6)
            assert len(members) == count
        for chat, put_out in zip(chats, ["abort", "abort", "abort", "close"], strict=False):
            getattr(chat, put_out)()
            await chat.gone
        assert members == chats[4:]
        assert ended == [None] * 4

    async def test_handle_end_is_called_after_a_failed_handshake(self):
        """A scanner that does not speak TLS leaves nothing behind."""
        endpoint, _ = tls_endpoint(self)
        address, chats, members, ended = await self.serve_members(endpoint)
        await self.converse(address, b"GET / HTTP/1.0\r\n\r\n")
        await chats[0].gone
        assert members == []
        assert [type(reason) for reason in ended] == [HandshakeFailed]
        assert not chats[0].there.called
