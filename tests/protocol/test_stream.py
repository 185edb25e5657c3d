"""
`Stream`: messages awaited one by one, over real sockets, with TLS, and on Twisted's and our transports.

Also covers `functions`, `waits`.
"""

import socket
import struct
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from helpers.framers import set_sizes
from helpers.kinds import on_the_hub_too
from helpers.support import HOST, PATIENCE, client_context, in_thread, server_options, until
from txasynchat import (
    AsyncChat,
    ChatFactory,
    LengthPrefix,
    Netstring,
    Overflow,
    Server,
    State,
    errors,
)
from txasynchat.endpoints import SecureServerEndpoint


def read_to_the_end(client):
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# -- in memory


class Pulled(AsyncChat):
    """Its stream is read by a coroutine that the test gives."""

    terminator = b"\n"


def pulled(cls=Pulled, **settings):
    chat = type("Pulled", (cls,), settings)()
    chat.makeConnection(StringTransport())
    return chat, chat.stream()


def begin(coroutine):
    """Run a coroutine until it waits; return the list of what it returns or raises."""
    results = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    return results


def outcome(results):
    assert len(results) == 1, results
    return getattr(results[0], "value", results[0])


def test_a_message_that_is_there_is_returned_without_waiting():
    chat, stream = pulled()
    chat.dataReceived(b"one\ntwo\nthr")
    assert outcome(begin(stream.read_until(b"\n"))) == b"one"
    assert outcome(begin(stream.read_until())) == b"two"
    waiting = begin(stream.read_until(b"\n"))
    assert waiting == []
    chat.dataReceived(b"ee\n")
    assert outcome(waiting) == b"three"
    assert stream.matched == b"\n"


def test_each_read_says_what_ends_its_message():
    chat, stream = pulled()
    chat.dataReceived(b"a\r\nb\nc;12345rest\x00\x00\x00\x02okmore")
    assert outcome(begin(stream.read_until((b"\n", b"\r\n")))) == b"a"
    assert stream.matched == b"\r\n"
    assert outcome(begin(stream.read_until((b"\n", b"\r\n")))) == b"b"
    assert outcome(begin(stream.read_until(b";"))) == b"c"
    assert outcome(begin(stream.read_exactly(5))) == b"12345"
    assert stream.matched == b""
    assert outcome(begin(stream.read(4))) == b"rest"
    assert outcome(begin(stream.read_until(LengthPrefix("!I")))) == b"ok"
    assert outcome(begin(stream.read_exactly(0))) == b""
    assert outcome(begin(stream.read())) == b"more"


def test_read_returns_what_has_come():
    chat, stream = pulled()
    waiting = begin(stream.read(3))
    assert waiting == []
    chat.dataReceived(b"ab")
    assert outcome(waiting) == b"ab"
    chat.readConnectionLost()
    assert outcome(begin(stream.read(3))) == b""


@pytest.mark.parametrize("delimiter", [None, 0, 5, b"", (), "text", (b"",)])
def test_what_is_no_delimiter_is_refused(delimiter):
    _, stream = pulled()
    if delimiter is None:
        stream = pulled(terminator=b"")[1]
    error = outcome(begin(stream.read_until(delimiter)))
    assert isinstance(error, TypeError | ValueError)


@pytest.mark.parametrize("count", [-1, 1.5, None, True, "1"])
def test_what_is_no_number_of_bytes_is_refused(count):
    _, stream = pulled()
    assert isinstance(outcome(begin(stream.read_exactly(count))), TypeError | ValueError)
    assert isinstance(outcome(begin(stream.read(count))), TypeError | ValueError)


def test_a_second_reader_is_refused():
    chat, stream = pulled()
    first = begin(stream.read_until(b"\n"))
    for second in (stream.read_until(b"\n"), stream.read_exactly(3), stream.read(), anext(stream)):
        error = outcome(begin(second))
        assert isinstance(error, RuntimeError)
        assert str(error) == "another coroutine is reading from this stream"
    chat.dataReceived(b"one\n")
    assert outcome(first) == b"one"


def test_a_read_that_was_cancelled_loses_nothing():
    chat, stream = pulled()
    for delimiter in (b"\n", (b"\n", b"\r\n"), LengthPrefix("!H")):
        read = Deferred.fromCoroutine(stream.read_until(delimiter))
        chat.dataReceived(b"\x00\x09ab")
        read.cancel()
        read.addErrback(lambda failure: failure.trap(CancelledError))
        assert outcome(begin(stream.read_exactly(2))) == b"\x00\x09"
        assert outcome(begin(stream.read(9))) == b"ab"
    read = Deferred.fromCoroutine(stream.read_until(LengthPrefix("varint")))
    chat.dataReceived(b"\x84\x01ab")
    read.cancel()
    read.addErrback(lambda failure: failure.trap(CancelledError))
    assert outcome(begin(stream.read())) == b"\x84\x01ab"
    read = Deferred.fromCoroutine(stream.read_exactly(4))
    chat.dataReceived(b"ab")
    read.cancel()
    read.addErrback(lambda failure: failure.trap(CancelledError))
    chat.dataReceived(b"c\nd\n")
    assert outcome(begin(stream.read_until(b"\n"))) == b"abc"


def test_the_peers_end_in_mid_message_is_an_error_with_what_came():
    chat, stream = pulled()
    waiting = begin(stream.read_until(b"\r\n"))
    chat.dataReceived(b"one\r\nunfin")
    assert outcome(waiting) == b"one"
    waiting = begin(stream.read_exactly(10))
    chat.dataReceived(b"ished")
    assert outcome(waiting) == b"unfinished"
    chat.dataReceived(b"again\r")
    waiting = begin(stream.read_until(b"\r\n"))
    chat.readConnectionLost()
    error = outcome(waiting)
    assert isinstance(error, errors.IncompleteMessage)
    assert isinstance(error, EOFError)
    assert (error.partial, error.count) == (b"again\r", 6)
    assert str(error) == "the peer ended after 6 bytes of a message"
    assert outcome(begin(stream.read_until(b"\r\n"))).partial == b""
    assert chat.state is State.OPEN
    stream.write(b"answer")
    assert chat.transport.value() == b"answer"


def test_iteration_ends_with_the_peer():
    chat, stream = pulled(terminator=b";")
    lines = []

    async def read():
        async for line in stream:
            lines.extend([line])
        return "ended"

    reading = begin(read())
    chat.dataReceived(b"one;two;thr")
    chat.dataReceived(b"ee;")
    chat.readConnectionLost()
    assert (lines, outcome(reading)) == ([b"one", b"two", b"three"], "ended")


def test_iteration_raises_at_an_unfinished_last_message():
    chat, stream = pulled()
    chat.dataReceived(b"one\ntw")
    chat.readConnectionLost()

    async def read():
        return [line async for line in stream]

    assert outcome(begin(read())).partial == b"tw"


def test_what_ends_a_message_for_iteration_can_be_changed():
    chat, stream = pulled()
    chat.dataReceived(b"1;2;3\n4\n")
    stream.terminator = b";"
    assert outcome(begin(anext(stream))) == b"1"
    assert outcome(begin(stream.read_exactly(2))) == b"2;"
    stream.terminator = b"\n"
    assert outcome(begin(anext(stream))) == b"3"
    with pytest.raises(ValueError, match="read_exactly"):
        stream.terminator = 4


def test_an_over_long_message_raises_what_a_handler_is_told():
    told = []
    chat, stream = pulled(
        max_message_length=5, message_too_long=lambda self, error: told.append(error)
    )
    chat.clock = clock = Clock()
    chat.dataReceived(b"short\nmuch too long\nnext\n")
    assert outcome(begin(stream.read_until(b"\n"))) == b"short"
    error = outcome(begin(stream.read_until(b"\n")))
    assert str(error) == "message of at least 6 bytes, limit 5"
    assert error.sample == b"much t"
    assert told == [error]
    stream.write(b"too long\n")
    assert chat.state is State.OPEN
    clock.advance(0)
    assert chat.state is State.CLOSING
    assert chat.transport.value() == b"too long\n"
    assert outcome(begin(stream.read_until(b"\n"))) is error
    assert chat.close_reason is error


def test_an_announced_length_above_the_limit_is_refused_before_a_byte():
    chat, stream = pulled(max_message_length=100)
    chat.clock = Clock()
    error = outcome(begin(stream.read_exactly(101)))
    assert str(error) == "message of at least 101 bytes, limit 100"
    chat.connectionLost()


def test_a_read_may_have_a_limit_of_its_own():
    chat, stream = pulled(max_message_length=5)
    chat.clock = Clock()
    chat.dataReceived(b"x" * 20 + b"\n" + b"y" * 20 + b"123456\n")
    assert outcome(begin(stream.read_until(b"\n", limit=20))) == b"x" * 20
    assert outcome(begin(stream.read_exactly(20, limit=20))) == b"y" * 20
    assert chat.max_message_length == 20
    error = outcome(begin(stream.read_until(b"\n")))
    assert error.limit == 5
    chat.connectionLost()


def test_where_over_long_messages_are_skipped_the_next_is_returned():
    chat, stream = pulled(max_message_length=5, overflow=Overflow.SKIP)
    waiting = begin(stream.read_until(b"\n"))
    chat.dataReceived(b"much too ")
    chat.dataReceived(b"long\nnext\n")
    assert outcome(waiting) == b"next"
    assert chat.close_reason is None


def test_what_is_not_a_message_is_raised_and_ends_the_connection():
    chat, stream = pulled()
    chat.clock = clock = Clock()
    chat.dataReceived(b"3:abc,2:defg,")
    assert outcome(begin(stream.read_until(Netstring()))) == b"abc"
    error = outcome(begin(stream.read_until(Netstring())))
    assert isinstance(error, errors.MalformedMessage)
    stream.write(b"3:bye,")
    clock.advance(0)
    assert (chat.state, chat.close_reason) == (State.CLOSING, error)
    assert chat.transport.value() == b"3:bye,"
    assert outcome(begin(stream.read_until(Netstring()))) is error


def test_a_lost_connection_raises_its_reason_after_what_had_come():
    chat, stream = pulled()
    chat.dataReceived(b"one\ntwo\nth")
    chat.connectionLost(Failure(ConnectionLost()))
    assert outcome(begin(stream.read_until(b"\n"))) == b"one"
    assert outcome(begin(stream.read_until(b"\n"))) == b"two"
    assert outcome(begin(stream.read_until(b"\n"))) is chat.close_reason
    assert isinstance(chat.close_reason, errors.ConnectionReset)


def test_close_ends_a_read_that_waits():
    chat, stream = pulled()
    waiting = begin(stream.read_until(b"\n"))
    stream.write(b"bye\n")
    stream.close()
    assert outcome(waiting).partial == b""
    assert chat.transport.value() == b"bye\n"
    assert outcome(begin(stream.read())) == b""
    assert chat.transport.disconnecting


def test_a_stream_belongs_to_an_open_connection():
    chat = Pulled()
    with pytest.raises(RuntimeError, match="the connection is connecting; it has no stream"):
        chat.stream()
    chat.makeConnection(StringTransport())
    assert chat.stream() is chat.stream()
    chat.connectionLost()
    assert chat.stream() is not None
    other = Pulled()
    other.makeConnection(StringTransport())
    other.connectionLost()
    with pytest.raises(RuntimeError, match="is closed"):
        other.stream()


def test_a_handler_may_go_on_as_a_stream():
    class Begins(AsyncChat):
        terminator = b"\n"

        def message_received(self, message):
            self.read = begin(self.go_on(self.stream()))

        async def go_on(self, stream):
            return [await stream.read_exactly(3), await stream.read_until(b"\n")]

    chat = Begins()
    chat.makeConnection(StringTransport())
    chat.dataReceived(b"data\n123four\nmore")
    assert outcome(chat.read) == [b"123", b"four"]
    assert outcome(begin(chat.stream().read())) == b"more"


def test_reading_stops_when_much_is_unread():
    chat, stream = pulled()
    transport = chat.transport
    assert outcome(begin(stream.drain())) is None
    chat.dataReceived(b"x" * 9 + b"\n")
    assert transport.producerState == "producing"
    for _ in range(8):
        chat.dataReceived((b"x" * 99 + b"\n") * 100)
    assert transport.producerState == "paused"
    for _ in range(400):
        outcome(begin(stream.read_until(b"\n")))
    assert transport.producerState == "paused"
    for _ in range(400):
        outcome(begin(stream.read_until(b"\n")))
    assert transport.producerState == "producing"
    chat.dataReceived(b"x" * 70_000)
    assert transport.producerState == "paused"
    assert len(outcome(begin(stream.read(100_000)))) == 70_100
    assert transport.producerState == "producing"


def test_messages_are_bytes_whatever_the_encoding_of_the_class():
    chat, stream = pulled(encoding="utf-8")
    waiting = begin(stream.read_until(b"\n"))
    chat.dataReceived(b"\xc3")
    chat.dataReceived(b"\xa4\nb\r\n")
    assert outcome(waiting) == "ä".encode()
    assert outcome(begin(stream.read_until((b"\n", b"\r\n")))) == b"b"
    stream.write("ö")
    assert chat.transport.value() == "ö".encode()


def test_a_paused_connection_gives_a_stream_nothing():
    chat, stream = pulled()
    chat.dataReceived(b"one\n")
    chat.pause()
    waiting = begin(stream.read_until(b"\n"))
    reading = chat.transport.producerState
    chat.readConnectionLost()
    assert (waiting, reading) == ([], "paused")
    chat.resume()
    assert outcome(waiting) == b"one"
    assert outcome(begin(stream.read())) == b""


def test_a_read_that_waits_for_a_long_message_has_the_transport_read():
    chat, stream = pulled(max_message_length=None)
    waiting = begin(stream.read_until(b"\n"))
    for _ in range(10):
        chat.dataReceived(b"x" * 50_000)
        assert chat.transport.producerState == "producing"
    chat.dataReceived(b"\n")
    assert len(outcome(waiting)) == 500_000


# -- the same messages as by callbacks


READS = st.one_of(
    st.sampled_from([b"\n", b"\r\n", b"ab", (b"\n", b"\r\n"), (b"a", b"bb"), LengthPrefix("B")]),
    st.integers(1, 6),
)


class Called(AsyncChat):
    """Sets the next terminator for each message, and notes the messages."""

    max_message_length = 8

    def __init__(self, reads):
        self.reads = reads
        self.messages = []
        self.set_terminator(reads[0])

    def message_received(self, message):
        self.messages.append((message, self.matched_terminator))
        self.set_terminator(self.reads[len(self.messages) % len(self.reads)])

    def message_too_long(self, error):
        self.messages.append(str(error))


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


async def read_all(stream, reads, messages):
    turn = 0
    try:
        while True:
            read = reads[turn % len(reads)]
            turn += 1
            if isinstance(read, int):
                message = await stream.read_exactly(read)
            else:
                message = await stream.read_until(read)
            messages.append((message, stream.matched))
    except errors.MessageTooLong as error:
        messages.append(str(error))
    except errors.IncompleteMessage:
        pass


@pytest.mark.parametrize("sizes", [(16_384, 8), (5, 1)])
@given(
    data=st.lists(st.sampled_from([b"\n", b"\r", b"a", b"b", b"\x02", b"\x09", b"xyz"])).map(
        b"".join
    ),
    reads=st.lists(READS, min_size=1, max_size=3),
    places=st.lists(st.integers(0, 100), max_size=5),
    ahead=st.booleans(),
)
def test_any_split_gives_the_messages_that_callbacks_are_given(sizes, data, reads, places, ahead):
    with pytest.MonkeyPatch.context() as patch:
        set_sizes(patch, *sizes)
        called = Called(reads)
        called.makeConnection(StringTransport())
        called.dataReceived(data)
        chat, stream = pulled(max_message_length=8)
        chat.clock = Clock()
        messages = []
        chunks = cut(data, places)
        if ahead:  # everything is there before the first read
            for chunk in chunks:
                chat.dataReceived(chunk)
            done = begin(read_all(stream, reads, messages))
        else:
            done = begin(read_all(stream, reads, messages))
            for chunk in chunks:
                chat.dataReceived(chunk)
        chat.readConnectionLost()
        assert outcome(done) is None
        assert messages == called.messages
        chat.connectionLost()


# -- handler functions, on real connections


async def echo(stream):
    async for line in stream:
        stream.write(line + b"\n")
        await stream.drain()


@on_the_hub_too
class FunctionCase(TestCase):
    timeout = 30
    reactor = reactor

    async def serve(self, function, tls=None):
        endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        if tls:
            endpoint = SecureServerEndpoint(reactor, endpoint, tls)
        self.factory = ChatFactory(function)
        self.port = await endpoint.listen(self.factory)
        self.addCleanup(self.port.stopListening)
        self.tls = bool(tls)

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.port.getHost().port), PATIENCE)
        if self.tls:
            client = client_context().wrap_socket(client, server_hostname=HOST)
        self.addCleanup(client.close)
        return client

    async def talk(self, data):
        """Send all, end the sending, and return what comes."""

        def run():
            client = self.connect()
            if self.tls:  # which is for one thread
                client.sendall(data)
                return read_to_the_end(client)
            thread = threading.Thread(target=send, args=[client])
            thread.start()
            answer = read_to_the_end(client)
            thread.join()
            client.close()
            return answer

        def send(client):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        return await in_thread(run)

    async def gone(self):
        await until(lambda: not self.factory.connections)

    async def test_a_function_answers_and_its_end_closes_the_connection(self):
        """What it wrote last is sent."""

        async def handle(stream):
            stream.write(b"name?\n")
            name = await stream.read_until(b"\n")
            stream.write(b"hello " + name + b"\n" + bytes(300_000))

        await self.serve(handle)
        self.assertEqual(await self.talk(b"Eve\n"), b"name?\nhello Eve\n" + bytes(300_000))
        await self.gone()

    async def test_a_half_closed_peer_is_answered(self):
        await self.serve(echo)
        lines = b"".join(b"%d\n" % number for number in range(20_000))
        self.assertEqual(await self.talk(lines), lines)
        await self.gone()

    async def test_deferreds_can_be_awaited(self):
        """Lines that come meanwhile wait their turn."""

        async def handle(stream):
            async for line in stream:
                await deferLater(reactor, 0.001)
                stream.write(line + await in_thread(lambda: b"!\n"))

        await self.serve(handle)
        self.assertEqual(await self.talk(b"1\n2\n3\n"), b"1!\n2!\n3!\n")
        await self.gone()

    async def test_over_tls(self):
        async def handle(stream):
            async for line in stream:
                if line == b"quit":
                    stream.write(str(stream.tls.version).encode())
                    return
                stream.write(line + b"\n")

        await self.serve(handle, server_options())
        lines = b"".join(b"%d\n" % number for number in range(5_000))
        answer = await self.talk(lines + b"quit\n")
        self.assertTrue(answer.startswith(lines), answer[:100])
        await self.gone()

    async def test_start_tls(self):
        """The greeting is in the clear, the rest is not."""

        async def handle(stream):
            stream.write(b"hello\n")
            if await stream.read_until(b"\n") == b"STARTTLS":
                stream.write(b"go\n")
                info = await stream.start_tls(server_options())
                assert info is stream.tls or info == stream.tls
            async for line in stream:
                stream.write(line.upper() + b"\n")

        await self.serve(handle)

        def run():
            client = self.connect()
            file = client.makefile("rb")
            hello = file.readline()
            client.sendall(b"STARTTLS\n")
            go = file.readline()
            file.close()
            with client_context().wrap_socket(client, server_hostname=HOST) as secure:
                secure.sendall(b"secret\n")
                answer = secure.recv(100)
            return hello, go, answer

        self.assertEqual(await in_thread(run), (b"hello\n", b"go\n", b"SECRET\n"))
        await self.gone()

    async def test_plaintext_behind_start_tls_is_raised(self):
        raised = []

        async def handle(stream):
            await stream.read_until(b"\n")
            try:
                await stream.start_tls(server_options())
            except errors.TLSError as error:
                raised.append(error)

        await self.serve(handle)
        client = await in_thread(self.connect)
        client.sendall(b"STARTTLS\ninjected\n")
        await until(lambda: raised)
        self.assertIsInstance(raised[0], errors.PlaintextAfterStartTLS)
        await self.gone()

    async def test_an_exception_closes_that_connection_and_is_logged(self):
        async def handle(stream):
            await stream.read_until(b"\n")
            stream.write(b"last words\n")
            raise KeyError("mistake")

        await self.serve(handle)
        with capturedLogs() as events:
            self.assertEqual(await self.talk(b"\n"), b"last words\n")
            await self.gone()
        failures = [event["log_failure"] for event in events if event.get("log_failure")]
        self.assertEqual([failure.type for failure in failures], [KeyError])
        self.assertIn("handle", str([event["handler"] for event in events if event.get("handler")]))
        self.flushLoggedErrors(KeyError)

    async def test_peers_that_just_leave_are_not_logged(self):
        """A read that is not guarded is enough for a small server."""

        async def handle(stream):
            while True:
                stream.write(await stream.read_until(b"\n") + b"\n")

        await self.serve(handle)
        with capturedLogs() as events:
            self.assertEqual(await self.talk(b"one\n"), b"one\n")
            await self.gone()
            client = await in_thread(self.connect)
            client.sendall(b"two\n")
            self.assertEqual(await in_thread(client.recv, 10), b"two\n")
            reset(client)
            await self.gone()
        levels = [e for e in events if e["log_level"] in (LogLevel.warn, LogLevel.critical)]
        self.assertEqual(levels, [])

    async def test_what_a_peer_did_wrong_is_logged_without_a_traceback(self):
        await self.serve(echo)
        with capturedLogs() as events:
            self.assertEqual(await self.talk(b"one\nunfin"), b"one\n")
            await self.gone()
            self.assertEqual(await self.talk(b"x" * 20_000), b"")
            await self.gone()
        said = [str(e["error"]) for e in events if e.get("kind")]
        self.assertEqual(
            said,
            [
                "the peer ended after 5 bytes of a message",
                "message of at least 16385 bytes, limit 16384",
            ],
        )
        self.assertEqual([e for e in events if e.get("log_failure")], [])

    async def test_an_over_long_message_can_be_answered(self):
        async def handle(stream):
            try:
                await stream.read_until(b"\n", limit=10)
            except errors.MessageTooLong as error:
                stream.write(b"500 " + str(error).encode() + b"\n")

        await self.serve(handle)
        answer = await self.talk(b"x" * 300_000)
        self.assertEqual(answer, b"500 message of at least 11 bytes, limit 10\n")
        await self.gone()

    async def test_a_reset_reaches_the_read_that_waits(self):
        ended = []

        async def handle(stream):
            try:
                await stream.read_until(b"\n")
                stream.write(b"read\n")
                await stream.read_until(b"\n")
            except errors.ConnectionReset as error:
                ended.append(error)
                await deferLater(reactor, 0)
                ended.append("cleaned up")

        await self.serve(handle)
        client = await in_thread(self.connect)
        client.sendall(b"one\n")
        self.assertEqual(await in_thread(client.recv, 10), b"read\n")
        reset(client)
        await until(lambda: len(ended) == 2)
        await self.gone()

    async def test_a_function_that_waits_for_something_else_is_cancelled(self):
        ended = []

        async def handle(stream):
            stream.write(b"waiting\n")
            try:
                await Deferred()
            except CancelledError as error:
                ended.append(error)
                raise

        await self.serve(handle)
        with capturedLogs() as events:
            client = await in_thread(self.connect)
            self.assertEqual(await in_thread(client.recv, 10), b"waiting\n")
            reset(client)
            await until(lambda: ended)
            await self.gone()
        self.assertEqual([e for e in events if e.get("log_failure")], [])

    async def test_a_function_that_has_closed_may_finish_its_work(self):
        done = []

        async def handle(stream):
            stream.close()
            await stream.wait_closed()
            await deferLater(reactor, 0.01)
            done.append(True)

        await self.serve(handle)
        self.assertEqual(await self.talk(b""), b"")
        await until(lambda: done)

    async def test_drain_waits_for_the_peer(self):
        """40 MB are written to a slow reader, and little of it waits in memory."""
        most = []

        async def handle(stream):
            await stream.read_until(b"\n")
            for _ in range(640):
                stream.write(bytes(65_536))
                most.append(stream.chat.unsent)
                await stream.drain()

        await self.serve(handle)
        self.assertEqual(len(await self.talk(b"go\n")), 640 * 65_536)
        self.assertLess(max(most), 300_000)
        await self.gone()

    async def test_drain_raises_when_the_peer_is_gone(self):
        ended = []

        async def handle(stream):
            stream.write(b"begin\n")
            try:
                while True:
                    stream.write(bytes(65_536))
                    await stream.drain()
            except errors.ConnectionReset as error:
                ended.append(error)

        await self.serve(handle)
        client = await in_thread(self.connect)
        await in_thread(client.recv, 6)
        reset(client)
        await until(lambda: ended)
        await self.gone()

    async def test_unread_input_is_not_taken_from_the_peer(self):
        """A function that does not read has at most about 64 KiB and one read of the transport."""
        go, chats = Deferred(), []

        async def handle(stream):
            chats.append(stream.chat)
            await go
            total = 0
            while data := await stream.read():
                total += len(data)
            stream.write(b"%d" % total)

        await self.serve(handle)
        answer = self.talk(b"x" * 20_000_000)
        answer = Deferred.fromCoroutine(answer)
        await until(lambda: chats and not chats[0]._inbox.reading)
        self.assertLess(len(chats[0]._inbox.undelivered), 400_000)
        go.callback(None)
        self.assertEqual(await answer, b"20000000")
        await self.gone()

    async def test_both_ways_at_once(self):
        """A task may write while another reads; neither waits for the other."""
        from txasynchat.clients import connect

        await self.serve(echo)
        place = f"tcp:127.0.0.1:{self.port.getHost().port}"
        stream = await connect(place, reactor=reactor)
        line = b"x" * 1_000 + b"\n"

        async def write():
            for _ in range(10_000):
                stream.write(line)
                await stream.drain()

        writing = Deferred.fromCoroutine(write())
        for _ in range(10_000):
            self.assertEqual(await stream.read_until(b"\n"), line[:-1])
        await writing
        stream.close()
        await stream.wait_closed()
        await self.gone()

    async def stopping(self, function):
        self.factory = ChatFactory(function)
        endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        server = Server(reactor, self.factory, [endpoint], stop_timeout=10)
        server.startService()
        self.port, self.tls = server.ports[0], False
        self.addCleanup(lambda: server.stopService() if server.running else None)
        client = await in_thread(self.connect)
        client.sendall(b"one\n")
        self.assertEqual(await in_thread(client.recv, 10), b"one\n")
        return server, client

    async def test_a_stopping_server_ends_a_stream_that_waits(self):
        server, client = await self.stopping(echo)
        await server.stopService()
        self.assertEqual(await in_thread(read_to_the_end, client), b"")

    async def test_a_stopping_server_waits_for_a_message_that_has_begun(self):
        server, client = await self.stopping(echo)
        chat = next(iter(self.factory.connections))
        client.sendall(b"tw")
        await until(lambda: chat._inbox.in_message)
        stopped = server.stopService()
        client.sendall(b"o\n")
        self.assertEqual(await in_thread(read_to_the_end, client), b"two\n")
        await stopped

    async def test_a_stopping_server_waits_for_a_busy_stream(self):
        async def handle(stream):
            async for line in stream:
                stream.write(line + b"\n")
                stream.busy = line == b"DATA"

        server, client = await self.stopping(handle)
        client.sendall(b"DATA\n")
        self.assertEqual(await in_thread(client.recv, 10), b"DATA\n")
        stopped = server.stopService()
        await deferLater(reactor, 0)
        client.sendall(b"done\n")
        self.assertEqual(await in_thread(read_to_the_end, client), b"done\n")
        await stopped


# -- what takes a function


async def greet(stream, name, *, end=b"\n"):
    stream.write(name + end)


def test_a_factory_gives_a_function_its_arguments():
    factory = ChatFactory(greet, b"Eve", end=b"!")
    chat = factory.buildProtocol(None)
    chat.makeConnection(StringTransport())
    assert chat.transport.value() == b"Eve!"
    assert type(chat).__name__ == "greet"
    assert chat.transport.disconnecting


def test_a_factory_says_what_a_function_wants():
    with pytest.raises(
        TypeError,
        match=r"greet wants \(stream, name, .*, the stream first; write ChatFactory\(greet, name\)",
    ):
        ChatFactory(greet)
    with pytest.raises(TypeError, match=r"echo wants \(stream\), the stream first"):
        ChatFactory(echo, 1)

    async def nothing():
        pass

    with pytest.raises(TypeError, match=r"wants \(\); write async def .*nothing\(stream\)"):
        ChatFactory(nothing)


def test_an_object_with_an_async_call_is_a_function():
    class Greeter:
        async def __call__(self, stream):
            stream.write(b"hello")

    chat = ChatFactory(Greeter()).buildProtocol(None)
    chat.makeConnection(StringTransport())
    assert chat.transport.value() == b"hello"


def test_a_server_takes_a_function():
    server = Server(reactor, echo, ["tcp:0:interface=127.0.0.1"])
    server.startService()
    client = socket.create_connection(("127.0.0.1", server.ports[0].getHost().port))
    client.close()
    server.stopService()
    for _ in range(10):
        reactor.iterate()
