"""
How a connection of `AsyncChat` ends, on every transport that Twisted has, bare and under a policy.

A *peer* is the other end of a connection: a bare socket, descriptor or process, which does what it
is told in a thread of the reactor's pool. Each transport has a function that makes a connection and
returns the peer.

Also covers `pipes`.
"""

import contextlib
import importlib.util
import inspect
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import tty
import unittest
from functools import partial
from operator import methodcaller

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    ProcessEndpoint,
    StandardErrorBehavior,
    TCP4ServerEndpoint,
    UNIXServerEndpoint,
    serverFromString,
)
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.process import reapProcessHandlers
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.logger import capturedLogs
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers import support, wire
from txasynchat import (
    AsyncChat,
    ChatFactory,
    CloseTimedOut,
    ConnectionReset,
    State,
    transports,
)
from txasynchat.endpoints import SecureServerEndpoint
from txasynchat.errors import TruncatedConnection
from txasynchat.hub.places import HubReactor

pytestmark = [
    # Twisted's own endpoints pass certificates in a way that pyOpenSSL deprecates.
    pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning"),
    # Twisted forks for a terminal, and a worker process of the tests has a second thread.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

#: Seconds: the limit of every wait.
PATIENCE = 20.0
#: Bytes that take more than one write to send.
MUCH = 1_000_000
#: The number of bytes for a peer that reads to the end.
ALL = 1 << 30
#: More than any transport and the operating system hold for a peer that does not read.
FLOOD = 7_000_000


class Handler(AsyncChat):
    """Answers lines, and notes how it ends."""

    terminator = b"\n"

    def __init__(self, begin, settings):
        vars(self).update(settings)
        self.begin = begin
        self.messages = []
        self.ends = []
        self.errors = 0
        self.there = Deferred()
        self.gone = Deferred()

    def handle_connect(self):
        self.begin(self)
        self.there.callback(self)

    def message_received(self, message):
        self.messages.append(message)
        if message == b"fail":
            raise ValueError("no")
        self.push(message + b"\n")

    def handle_error(self):
        self.errors += 1

    @override
    def connectionLost(self, reason):
        self.ends.append("lost")
        super().connectionLost(reason)
        if not self.gone.called:
            self.gone.callback(self)

    def handle_close(self):
        self.ends.append("close")


# -- peers


class Descriptors:
    """The other ends of two pipes, or a terminal."""

    def __init__(self, reading, writing):
        self.reading, self.writing = reading, writing

    def sendall(self, data):
        while data:
            assert select.select([], [self.writing], [], PATIENCE)[1]
            data = data[os.write(self.writing, data[: select.PIPE_BUF]) :]

    def recv(self, size):
        assert select.select([self.reading], [], [], PATIENCE)[0]
        try:
            return os.read(self.reading, size)
        except OSError:  # a terminal that is hung up
            return b""

    say = sendall

    def read(self, size):
        data = b""
        while len(data) < size and (piece := self.recv(65_536)):
            data += piece
        return data

    def finish(self):
        os.close(self.writing)
        self.writing = None

    def close(self):
        for one in {self.reading, self.writing} - {None}:
            os.close(one)
        self.reading = self.writing = None

    kill = close


class Socket:
    def __init__(self, sock):
        self.socket = sock

    def say(self, data):
        self.socket.sendall(data)

    def read(self, size):
        data = b""
        while len(data) < size and (piece := self.socket.recv(65_536)):
            data += piece
        return data

    def finish(self):
        self.socket.shutdown(socket.SHUT_WR)

    def close(self):
        self.socket.close()

    def kill(self):
        wire.reset(self.socket)


class OverTLS:
    def __init__(self, sock):
        self.socket = sock
        self.tls = wire.Memory(support.client_context(), support.HOST)
        self.tls.finish(sock)

    def say(self, data):
        self.socket.sendall(self.tls.encrypt(data))

    def read(self, size):
        return self.tls.read(self.socket, size)

    def finish(self):
        self.socket.sendall(self.tls.goodbye())

    def close(self):
        with contextlib.suppress(OSError):
            self.finish()
        self.socket.close()

    def kill(self):
        wire.reset(self.socket)


class OverTLSOnPipes(OverTLS):
    def kill(self):
        self.socket.close()


class Puppet:
    """A process that executes the lines it gets over a socket of its own."""

    CODE = """
import os, socket, sys, tty
control = socket.socket(socket.AF_UNIX)
control.connect(sys.argv[1])
control.sendall(b"%d\\n" % os.getpid())
def say(data):
    while data:
        data = data[os.write(1, data):]
def read(size):
    data = b""
    try:
        while len(data) < size and (piece := os.read(0, 65536)):
            data += piece
    except OSError:
        pass
    return data
def say_until_it_fails():
    try:
        while True:
            say(bytes(65536))
    except OSError as error:
        return type(error).__name__
for line in control.makefile("rb"):
    result = repr(eval(line)).encode() + b"\\n"
    control.sendall(result)
"""

    def __init__(self, control):
        self.control = control
        self.lines = control.makefile("rb")
        self.pid = int(self.lines.readline())

    def do(self, expression):
        self.control.sendall(expression.encode() + b"\n")
        return eval(self.lines.readline())

    def say(self, data):
        self.do(f"say({data!r})")

    def read(self, size):
        return self.do(f"read({size})")

    def finish(self):
        self.do("os.close(1)")

    def close(self):
        """The process exits at the end of its instructions."""
        self.lines.close()
        self.control.close()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.close()


class InMemory:
    def __init__(self, protocol, transport):
        self.protocol, self.transport = protocol, transport

    def say(self, data):
        reactor.callFromThread(self.protocol.dataReceived, data)

    def read(self, _):
        return blockingCallFromThread(reactor, self.transport.value)

    def finish(self):
        half = IHalfCloseableProtocol(self.protocol, None)
        reactor.callFromThread(half.readConnectionLost if half else self.close)

    def close(self, reason=ConnectionDone):
        reactor.callFromThread(self.lose, reason)

    def kill(self):
        self.close(ConnectionLost)

    def lose(self, reason):
        if self.transport.connected:
            self.transport.connected = False
            self.protocol.connectionLost(Failure(reason()))


# -- transports: each connects a handler of a factory, and returns the peer


async def over_tcp(case, factory, wrap=lambda endpoint: endpoint, peer=Socket, host=reactor):
    port = await wrap(TCP4ServerEndpoint(host, 0, interface="127.0.0.1")).listen(factory)
    case.addCleanup(port.stopListening)
    address = ("127.0.0.1", port.getHost().port)
    sock = socket.create_connection(address, PATIENCE)
    case.addCleanup(sock.close)
    return await deferToThread(peer, sock)


async def over_unix(case, factory, host=reactor):
    folder = tempfile.TemporaryDirectory()
    case.addCleanup(folder.cleanup)
    port = await UNIXServerEndpoint(host, f"{folder.name}/socket").listen(factory)
    case.addCleanup(port.stopListening)
    sock = socket.socket(socket.AF_UNIX)
    case.addCleanup(sock.close)
    sock.settimeout(PATIENCE)
    sock.connect(f"{folder.name}/socket")
    return Socket(sock)


async def over_secure(case, factory, host=reactor):
    def secure(endpoint):
        return SecureServerEndpoint(reactor, endpoint, support.server_options())

    return await over_tcp(case, factory, secure, OverTLS, host)


async def over_ssl(case, factory):
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(support.pem(support.leaf()))
        file.flush()
        description = f"ssl:0:interface=127.0.0.1:privateKey={file.name}:certKey={file.name}"
        endpoint = serverFromString(reactor, description)
    return await over_tcp(case, factory, lambda _: endpoint, OverTLS)


async def over_pipes(case, factory):
    (their_input, our_output), (our_input, their_output) = os.pipe(), os.pipe()
    for one in (our_input, our_output):
        case.addCleanup(os.close, one)
    peer = Descriptors(their_input, their_output)
    case.addCleanup(peer.close)
    StandardIO(factory.buildProtocol(None), our_input, our_output, reactor)
    return peer


async def over_secure_pipes(case, factory):
    (their_input, our_output), (our_input, their_output) = os.pipe(), os.pipe()
    for one in (our_input, our_output):
        case.addCleanup(os.close, one)
    pipes = Descriptors(their_input, their_output)
    case.addCleanup(pipes.close)

    class Endpoint:
        def listen(self, factory):
            StandardIO(factory.buildProtocol(None), our_input, our_output, reactor)

    SecureServerEndpoint(reactor, Endpoint(), support.server_options()).listen(factory)
    return await deferToThread(OverTLSOnPipes, pipes)


async def over_a_terminal(case, factory):
    master, slave = pty.openpty()
    tty.setraw(slave)
    peer = Descriptors(master, master)
    case.addCleanup(peer.close)
    both = slave, os.dup(slave)
    for one in both:
        case.addCleanup(os.close, one)
    StandardIO(factory.buildProtocol(None), *both, reactor)
    return peer


async def over_a_serial_port(case, factory):
    from twisted.internet.serialport import SerialPort

    master, slave = pty.openpty()
    name = os.ttyname(slave)
    peer = Descriptors(master, master)
    case.addCleanup(peer.close)
    SerialPort(factory.buildProtocol(None), name, reactor)
    os.close(slave)
    return peer


async def over_a_process(case, factory, terminal=False):
    with tempfile.TemporaryDirectory() as folder:
        listener = socket.create_server(f"{folder}/control", family=socket.AF_UNIX)
        with listener:
            listener.settimeout(PATIENCE)
            await ProcessEndpoint(
                reactor,
                sys.executable,
                [sys.executable, "-S", "-E", "-c", Puppet.CODE, f"{folder}/control"],
                env=dict(os.environ),
                errFlag=StandardErrorBehavior.DROP,
                usePTY=terminal,
            ).connect(factory)
            control, _ = await deferToThread(listener.accept)
    control.settimeout(PATIENCE)
    peer = await deferToThread(Puppet, control)
    case.addCleanup(peer.close)
    if terminal:
        await deferToThread(peer.do, "tty.setraw(0)")
    return peer


async def over_a_terminal_of_a_process(case, factory):
    return await over_a_process(case, factory, terminal=True)


async def in_memory(case, factory):
    transport = StringTransportWithDisconnection()
    transport.protocol = factory.buildProtocol(None)
    transport.protocol.makeConnection(transport)
    return InMemory(transport.protocol, transport)


TRANSPORTS = {
    "tcp": over_tcp,
    "unix": over_unix,
    "secure": over_secure,
    "ssl": over_ssl,
    "stdio-pipes": over_pipes,
    "stdio-secure": over_secure_pipes,
    "stdio-terminal": over_a_terminal,
    "serial": over_a_serial_port,
    "process": over_a_process,
    "process-terminal": over_a_terminal_of_a_process,
    "memory": in_memory,
    "hub-tcp": partial(over_tcp, host=HubReactor(reactor)),
    "hub-unix": partial(over_unix, host=HubReactor(reactor)),
    "hub-secure": partial(over_secure, host=HubReactor(reactor)),
}
#: A terminal has one descriptor, which cannot be half-closed; nor does Twisted's transport in
#: memory support that.
HALF_CLOSING = ["tcp", "unix", "secure", "ssl", "stdio-pipes", "stdio-secure", "process"]
HALF_CLOSING += ["hub-tcp", "hub-unix", "hub-secure"]
OVER_TLS = ["secure", "ssl", "stdio-secure", "hub-secure"]
#: They report a killed peer as a loss. The others, over pipes or standard input and output,
#: have one descriptor for each direction, and report their ends.
BREAKING = ["tcp", "unix", "serial", "process-terminal", "memory", "hub-tcp", "hub-unix"]
#: They live in a reactor.
WITH_A_CLOCK = [name for name in TRANSPORTS if name != "memory"]
#: Their peers do not see the end: Twisted leaves standard input and output open until the process
#: exits, and to hang up a terminal destroys what was not read.
LEFT_OPEN = ["stdio-pipes", "stdio-terminal", "process-terminal"]
NEEDS_PYSERIAL = pytest.param(
    "serial",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("serial") is None, reason="Twisted's serial ports need pyserial"
    ),
)
POLICIES = {"bare": lambda factory: factory, "policy": WrappingFactory}


# -- running


class Run(TestCase):
    """One test that has parameters, run by Twisted's runner."""

    __test__ = False

    def __init__(self, test):
        super().__init__("runTest")
        self.test = test

    @override
    async def runTest(self):
        await self.test(self)


def by_twisted(test):
    """Run an ``async def`` function of pytest's in the reactor; it gets the `TestCase` first."""

    def run(**parameters):
        result = unittest.TestResult()
        Run(lambda case: test(case, **parameters)).run(result)
        for _, report in result.errors + result.failures:
            pytest.fail(report, pytrace=False)

    signature = inspect.signature(test)
    _, *parameters = signature.parameters.values()
    run.__signature__ = signature.replace(parameters=parameters)
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.pytestmark = getattr(test, "pytestmark", [])
    return run


def on(*transports):
    """Parametrize by these transports, all of them by default, and by what is between."""

    def parametrize(test):
        names = [NEEDS_PYSERIAL if name == "serial" else name for name in transports or TRANSPORTS]
        test = pytest.mark.parametrize("transport", names)(by_twisted(test))
        return pytest.mark.parametrize("policy", POLICIES)(test)

    return parametrize


async def connect(case, transport, policy, begin=lambda chat: None, **settings):
    """Return a handler whose connection is open, and the peer."""
    built = Deferred()

    def build():
        chat = Handler(begin, settings)
        reactor.callLater(0, built.callback, chat)
        return chat

    factory = ChatFactory(build)
    outermost = POLICIES[policy](factory)
    peer = await TRANSPORTS[transport](case, outermost)
    chat = await built.addTimeout(PATIENCE, reactor)
    await chat.there.addTimeout(PATIENCE, reactor)
    chat.counts = factory.connections, getattr(outermost, "protocols", ())
    return chat, peer


async def ended(chat, *hooks):
    """Wait for the end: each hook was called once, and the connection is no longer counted."""
    await chat.gone.addTimeout(PATIENCE, reactor)
    for _ in range(5):  # what comes too often comes soon
        await deferLater(reactor, 0)
    assert chat.state is State.CLOSED
    assert chat.ends == ["lost", *hooks]
    assert [len(one) for one in chat.counts] == [0, 0]


async def left(peer):
    """Close the peer as well."""
    peer.close()
    await reaped(peer)


async def reaped(peer):
    """Wait until Twisted has noticed that a process is gone."""
    while getattr(peer, "pid", None) in reapProcessHandlers:
        await deferLater(reactor, 0.01)


def in_thread(function, *arguments):
    return deferToThread(function, *arguments).addTimeout(PATIENCE, reactor)


# -- the matrix


@on()
async def test_close_ends_the_connection(case, transport, policy):
    """The peer reads what was sent and the end; `handle_close` is for ends that others make."""
    chat, peer = await connect(case, transport, policy)
    chat.push(b"bye\n")
    chat.close()
    assert await in_thread(peer.read, 4 if transport in LEFT_OPEN else ALL) == b"bye\n"
    await left(peer)
    await ended(chat)


@on()
async def test_close_when_done_sends_the_whole_queue(case, transport, policy):
    """A megabyte is on its way when the connection closes; all of it arrives."""
    chat, peer = await connect(case, transport, policy)
    chat.push(b"x" * MUCH)
    chat.close_when_done()
    data = await in_thread(peer.read, MUCH if transport in LEFT_OPEN else ALL)
    assert data == b"x" * MUCH
    await left(peer)
    await ended(chat, "close")


@on()
async def test_abort_discards_the_queue_and_ends_at_once(case, transport, policy):
    """Megabytes wait for a peer that reads nothing: the connection is gone all the same."""
    chat, peer = await connect(case, transport, policy)
    chat.push(b"x" * FLOOD)
    chat.abort()
    await ended(chat)
    assert chat.close_reason is None
    await left(peer)


@on()
async def test_abort_by_the_server_ends_a_connection_with_output_queued(case, transport, policy):
    """As after `stop_timeout`."""
    chat, peer = await connect(case, transport, policy)
    chat.push(b"x" * FLOOD)
    connections, _ = chat.counts
    connections.abort()
    await ended(chat, "close")
    await left(peer)


@on(*(name for name in TRANSPORTS if name != "process-terminal"))
async def test_handler_may_close_in_handle_connect(case, transport, policy):
    """As a handler does that turns its client away."""
    for method in ("close", "close_when_done", "abort"):
        chat, peer = await connect(case, transport, policy, begin=methodcaller(method))
        await left(peer)
        await ended(chat, *["close"] * (method == "close_when_done"))


@on()
async def test_an_exception_of_a_handler_is_logged_once_and_ends_the_connection(
    case, transport, policy
):
    """What was answered before arrives; `handle_error` and `handle_close` are called."""
    chat, peer = await connect(case, transport, policy)
    await in_thread(peer.say, b"one\nfail\ntwo\n")
    assert await in_thread(peer.read, 4 if transport in LEFT_OPEN else ALL) == b"one\n"
    await left(peer)
    await ended(chat, "close")
    assert chat.errors == 1
    (failure,) = case.flushLoggedErrors(ValueError)
    assert "message_received" in failure.getTraceback()
    assert chat.messages == [b"one", b"fail"]


@on()
async def test_everything_is_delivered_before_the_peers_close(case, transport, policy):
    """What the peer sent before is handled."""
    chat, peer = await connect(case, transport, policy)
    await in_thread(peer.say, b"one\n")
    assert await in_thread(peer.read, 4) == b"one\n"
    await left(peer)
    await ended(chat, "close")
    assert chat.messages == [b"one"]
    assert chat.close_reason is None


@on(*HALF_CLOSING)
async def test_half_closed_peer_gets_every_answer(case, transport, policy):
    """And then the end of the stream."""
    chat, peer = await connect(case, transport, policy)
    await in_thread(peer.say, b"one\ntwo\nunfinished")
    await in_thread(peer.finish)
    assert await in_thread(peer.read, 8 if transport in LEFT_OPEN else ALL) == b"one\ntwo\n"
    await left(peer)
    await ended(chat, "close")
    assert chat.messages == [b"one", b"two"]
    assert chat.close_reason is None


@on()
async def test_peer_killed_with_output_queued_ends_the_connection(case, transport, policy):
    """The peer had not read anything."""
    chat, peer = await connect(case, transport, policy)
    if transport != "memory":
        chat.push(b"x" * FLOOD)
    await in_thread(peer.kill)
    await reaped(peer)
    await ended(chat, "close")
    reasons = dict.fromkeys(OVER_TLS, TruncatedConnection) | dict.fromkeys(
        BREAKING, ConnectionReset
    )
    assert type(chat.close_reason) is reasons.get(transport, type(None))


@on(*WITH_A_CLOCK)
async def test_peer_that_never_reads_is_aborted(case, transport, policy):
    """After `close_timeout` seconds without progress, with that as the reason."""
    chat, peer = await connect(case, transport, policy, close_timeout=0.2)
    chat.push(b"x" * FLOOD)
    chat.close_when_done()
    await ended(chat, "close")
    assert type(chat.close_reason) is CloseTimedOut
    await left(peer)


@on(*WITH_A_CLOCK)
async def test_peer_that_never_reads_is_aborted_although_the_transport_is_empty(
    case, transport, policy
):
    """Everything is in the operating system's buffer: the transport holds nothing."""
    chat, peer = await connect(case, transport, policy, close_timeout=0.2)
    descriptor = transports.writing_end(chat.transport).fileno()
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(512))
    chat.close_when_done()
    await ended(chat, "close")
    await left(peer)


# -- each half by itself


@on("stdio-pipes")
async def test_peer_that_closes_its_input_ends_the_connection(case, transport, policy):
    """Standard output is closed, standard input is not; what had been said is handled first."""
    chat, peer = await connect(case, transport, policy)
    chat.pause()
    await in_thread(peer.say, b"".join(b"%d\n" % number for number in range(9_000)))
    chat.resume()
    os.close(peer.reading)
    peer.reading = None
    await ended(chat, "close")
    assert chat.messages == [b"%d" % number for number in range(9_000)]


@on("process")
async def test_process_that_closes_its_input_is_read_to_its_end(case, transport, policy):
    """As many programs do that need no input."""
    chat, peer = await connect(case, transport, policy)
    heard = Deferred()
    chat.message_received = heard.callback
    await in_thread(peer.do, "os.close(0)")
    await in_thread(peer.say, b"one\n")
    assert await heard.addTimeout(PATIENCE, reactor) == b"one"
    assert chat.state is State.OPEN
    await left(peer)
    await ended(chat, "close")


@on("process")
async def test_sending_to_a_process_that_closed_its_input_ends_the_connection(
    case, transport, policy
):
    """The process lives on, and would never answer."""
    for moment in ("later", "before", "in a handler"):
        chat, peer = await connect(case, transport, policy, close_timeout=0.2)
        if moment == "before":
            chat.push(b"x" * FLOOD)
        await in_thread(peer.do, "os.close(0)")
        if moment == "in a handler":
            await in_thread(peer.say, b"one\n")
        elif moment == "later":
            chat.push(b"two\n")
        await ended(chat, "close")
        await left(peer)


@on("process")
async def test_the_last_words_of_a_process_arrive(case, transport, policy):
    """It answers and exits, with much on its way to it that it never read."""
    chat, peer = await connect(case, transport, policy)
    chat.push(b"x" * FLOOD)
    last = b"l" * 16_000
    await in_thread(peer.control.sendall, b"(say(%r), os._exit(3))\n" % (last + b"\n"))
    await ended(chat, "close")
    await left(peer)
    assert chat.messages == [last]


@on(*HALF_CLOSING)
async def test_half_closing_side_still_receives(case, transport, policy):
    """The peer reads to the end, and answers then."""
    chat, peer = await connect(case, transport, policy)
    chat.push(b"that is all\n")
    chat.end_sending()
    data = await in_thread(peer.read, 12 if transport == "stdio-pipes" else ALL)
    assert data == b"that is all\n"
    await in_thread(peer.say, b"so be it\n")
    await left(peer)
    await ended(chat, "close")
    assert chat.messages == [b"so be it"]
    assert chat.dropped == len(b"so be it\n")
    assert chat.close_reason is None


@on("tcp", "unix", "hub-tcp", "hub-unix", "stdio-pipes", "process")
async def test_half_close_by_the_transports_own_method(case, transport, policy):
    """It is `end_sending`."""
    chat, peer = await connect(case, transport, policy)
    chat.push(b"that is all\n")
    method = "closeStdin" if transport == "process" else "loseWriteConnection"
    getattr(chat.transport, method)()
    data = await in_thread(peer.read, 12 if transport in LEFT_OPEN else ALL)
    assert data == b"that is all\n"
    chat.message_received = chat.messages.append
    await in_thread(peer.say, b"so be it\n")
    await left(peer)
    await ended(chat, "close")
    assert chat.messages == [b"so be it"]


@on(*(name for name in TRANSPORTS if name not in HALF_CLOSING))
async def test_end_of_sending_where_one_direction_cannot_end(case, transport, policy):
    """What is queued arrives, the rest is dropped, and messages are still delivered."""
    chat, peer = await connect(case, transport, policy)
    chat.push(b"that is all\n")
    chat.end_sending()
    assert await in_thread(peer.read, 12) == b"that is all\n"
    heard = Deferred()
    chat.message_received = heard.callback
    await in_thread(peer.say, b"so be it\n")
    assert await heard.addTimeout(PATIENCE, reactor) == b"so be it"
    assert chat.state is State.OPEN
    await left(peer)
    await ended(chat, "close")


@on(*HALF_CLOSING)
async def test_handler_hears_of_the_peers_end_once(case, transport, policy):
    """With the unfinished rest, which it may answer; delivery that is held comes first."""
    for held in (False, True):
        chat, peer = await connect(case, transport, policy)
        rests = []

        def heard(rest, chat=chat, rests=rests):
            rests.append(rest)
            chat.push(b"rest: " + rest)

        chat.handle_eof = heard
        answer = chat.message_received
        if held:
            chat.message_received = lambda _, chat=chat: chat.pause()
        await in_thread(peer.say, b"one\ntwo\nunfinished")
        await in_thread(peer.finish)
        if held:
            while not chat.paused:
                await deferLater(reactor, 0.002)
            assert rests == []
            chat.message_received = answer
            chat.resume()
        answers = (b"two\n" if held else b"one\ntwo\n") + b"rest: unfinished"
        size = len(answers) if transport in LEFT_OPEN else ALL
        assert await in_thread(peer.read, size) == answers
        await left(peer)
        await ended(chat, "close")
        assert rests == [b"unfinished"]
        assert chat.close_reason is None


# -- processes


@on("process", "process-terminal")
async def test_process_is_logged_by_its_number(case, transport, policy):
    """It has no address."""
    with capturedLogs() as logs:
        chat, peer = await connect(case, transport, policy)
        assert chat.addr is None
        chat.push(b"hello\n")
        await in_thread(peer.say, b"fail\n")
        await left(peer)
        await ended(chat, "close")
    case.flushLoggedErrors(ValueError)
    assert [event["peer"] for event in logs if "peer" in event] == [f"process {peer.pid}"]


@on("process")
async def test_a_process_sees_the_end_of_its_input_before_its_output_is_closed(
    case, transport, policy
):
    """Its later output causes it no error, even after an abort."""
    for method in ("close", "close_when_done", "abort"):
        chat, peer = await connect(case, transport, policy)
        getattr(chat, method)()
        assert await in_thread(peer.read, ALL) == b""
        await in_thread(peer.say, b"x" * 200_000)
        await in_thread(peer.do, "os.write(2, b'done')")
        await left(peer)
        await ended(chat, *["close"] * (method == "close_when_done"))


@on("process")
async def test_output_of_a_process_that_ignores_the_end_of_its_input_is_closed(
    case, transport, policy
):
    """The process lives on; its output is closed after `close_timeout`."""
    for method in ("close", "abort"):
        chat, peer = await connect(case, transport, policy, close_timeout=0.2)
        getattr(chat, method)()
        await ended(chat)
        assert chat.close_reason is None
        assert await in_thread(peer.do, "say_until_it_fails()") == "BrokenPipeError"
        await left(peer)


@on("process-terminal")
async def test_terminal_is_closed_only_after_its_output_was_read(case, transport, policy):
    """The operating system discards what waits in a closed terminal."""
    for limit in (0.5, 1.0, 2.0, 4.0):
        chat, peer = await connect(case, transport, policy, close_timeout=limit)
        began = reactor.seconds()
        chat.push(b"quit\n")
        chat.close()
        data = await in_thread(peer.read, 5)
        took = reactor.seconds() - began
        await ended(chat)  # the process did not exit by itself
        await left(peer)
        if took < limit / 2:
            break  # else the machine stopped the reader for longer than it may
    assert data == b"quit\n"


# -- a program on its standard input and output

PROGRAM = """
import os, sys
from twisted.internet import reactor, stdio
from twisted.logger import globalLogBeginner
from twisted.protocols.policies import WrappingFactory
from typing_extensions import override
from txasynchat import AsyncChat, ChatFactory

report = open(sys.argv[1], "w", buffering=1)

def log(event):
    if "log_failure" in event:
        print(event["log_failure"].getTraceback(), file=report)

globalLogBeginner.beginLoggingTo([log], redirectStandardIO=False)

class Program(AsyncChat):
    terminator = b"\\n"
    close_timeout = 0.2

    def message_received(self, message):
        if message == b"fail":
            raise ValueError("no")
        elif message == b"abort":
            self.push(bytes(1_000_000))
            self.abort()
        elif message == b"flood":
            self.push(bytes(1_000_000))
            self.close_when_done()
        else:
            self.push(message + b"\\n")

    def handle_close(self):
        print(f"handle_close {self.close_reason!r}", file=report)

    @override
    def connectionLost(self, reason):
        super().connectionLost(reason)
        print(f"{self.state} {len(self.factory.connections)}", file=report)
        reactor.callLater(0, reactor.stop)

factory = ChatFactory(Program)
outermost = WrappingFactory(factory) if sys.argv[2] == "policy" else factory
stdio.StandardIO(outermost.buildProtocol(None))
reactor.run()
print(f"{len(factory.connections)} left", file=report)
"""


@pytest.fixture(params=POLICIES)
def program(request, tmp_path):
    """The program, and a function that waits until it exits and returns its report."""
    report = tmp_path / "report"
    command = [sys.executable, "-c", PROGRAM, report, request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        limit = threading.Timer(PATIENCE, process.kill)
        limit.start()
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"hello\n"

        def ends():
            assert process.wait() == 0
            return report.read_text()

        try:
            yield process, ends
        finally:
            process.kill()
            limit.cancel()
            limit.join()


ENDED = "handle_close None\nState.CLOSED 1\n0 left\n"


@pytest.mark.parametrize("order", ["input first", "output first"])
def test_a_program_ends_when_both_its_ends_are_closed(program, order):
    """As when its parent exits, or is killed."""
    process, ends = program
    for end in (process.stdin, process.stdout)[:: 1 if order == "input first" else -1]:
        end.close()
    assert ends() == ENDED


def test_a_program_ends_when_nobody_reads_its_output(program):
    """Its input is still open."""
    process, ends = program
    process.stdout.close()
    assert ends() == ENDED


def test_program_answers_all_its_input_before_it_exits(program):
    """It exits when its input ends."""
    process, ends = program
    process.stdin.write(b"one\ntwo\nunfinished")
    process.stdin.close()
    assert process.stdout.read() == b"one\ntwo\n"
    assert ends() == ENDED


def test_program_exits_at_once_when_it_aborts(program):
    """Even with output queued for a parent that does not read."""
    process, ends = program
    process.stdin.write(b"abort\n")
    process.stdin.flush()
    assert ends() == "State.CLOSED 1\n0 left\n"


def test_a_program_does_not_wait_for_a_parent_that_never_reads(program):
    """Not longer than `close_timeout`."""
    process, ends = program
    process.stdin.write(b"flood\n")
    process.stdin.flush()
    assert "handle_close CloseTimedOut" in ends()


def test_an_exception_in_a_program_is_logged_and_ends_it(program):
    """With its traceback, once."""
    process, ends = program
    process.stdin.write(b"one\nfail\ntwo\n")
    process.stdin.flush()
    assert process.stdout.read() == b"one\n"
    report = ends()
    assert report.count("ValueError: no") == 1
    assert report.count("Traceback") == 1
    assert report.endswith(ENDED)
