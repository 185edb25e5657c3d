"""
Hooks of `AsyncChat` that wait, over real sockets, with TLS, and under Twisted's asyncio reactor.
"""

import os
import socket
import struct
import subprocess
import sys

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import TestCase
from typing_extensions import override

from helpers.kinds import on_the_hub_too
from helpers.support import (
    HOST,
    PATIENCE,
    client_context,
    in_thread,
    read_line,
    server_options,
    until,
)
from txasynchat import AsyncChat, ChatFactory, State
from txasynchat import Server as ChatServer
from txasynchat.endpoints import SecureServerEndpoint


def read_to_the_end(client):
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


def read_until(client, end):
    data = b""
    while not data.endswith(end):
        data += client.recv(1 << 20) or pytest.fail(f"ended after {data!r}")
    return data


class Answering(AsyncChat):
    """Answers each line from a thread; notes how its hooks ended."""

    terminator = b"\n"

    def __init__(self):
        self.notes = []
        self.gone = Deferred()
        self.never = Deferred()

    async def message_received(self, message):
        self.notes.append(message)
        try:
            if message == b"never":
                await self.never
            answer = await deferToThread(message.upper)
        finally:
            self.notes.append("done")
        self.push(answer + b"\n")

    def handle_end(self, reason):
        self.notes.append("end")

    @override
    def connectionLost(self, *arguments):
        super().connectionLost(*arguments)
        self.gone.callback(self)


class Case(TestCase):
    reactor = reactor

    async def serve(self, handler=Answering, tls=False):
        self.handlers = []

        def build():
            self.handlers.append(handler())
            return self.handlers[-1]

        endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        if tls:
            endpoint = SecureServerEndpoint(self.reactor, endpoint, server_options())
        self.server = ChatServer(reactor, ChatFactory(build), [endpoint], stop_timeout=PATIENCE)
        self.server.startService()
        await until(lambda: self.server.ports)
        self.addCleanup(self.server.stopService)
        return self.server.ports[0].getHost().port

    def client(self, port):
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.addCleanup(client.close)
        return client


@on_the_hub_too
class SocketTests(Case):
    async def test_answers_from_threads_leave_in_order_also_after_the_peers_half_close(self):
        port = await self.serve()

        def run():
            client = self.client(port)
            client.sendall(b"a\nb\nc\nunfinished")
            client.shutdown(socket.SHUT_WR)
            return read_to_the_end(client)

        assert await in_thread(run) == b"A\nB\nC\n"
        await self.handlers[0].gone

    async def test_a_reset_cancels_the_hook_silently(self):
        port = await self.serve()
        client = self.client(port)
        client.sendall(b"never\n")
        await until(lambda: self.handlers and self.handlers[0].notes)
        [handler] = self.handlers
        with capturedLogs() as logs:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            await handler.gone
        assert handler.notes == [b"never", "done", "end"]
        assert [event for event in logs if event["log_level"] >= LogLevel.error] == []

    async def test_a_peer_that_floods_is_not_read_while_a_hook_waits(self):
        port = await self.serve()
        client = self.client(port)
        client.sendall(b"never\n")
        await until(lambda: self.handlers and self.handlers[0].notes)
        [handler] = self.handlers
        client.setblocking(False)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += client.send(b"x\n" * 32_768)
                await deferLater(reactor, 0)
        except BlockingIOError:
            pass
        assert sent < 64 << 20
        assert len(handler._inbox.undelivered) <= 1 << 18
        handler.abort()
        await handler.gone

    async def test_a_server_that_stops_waits_for_the_answer(self):
        port = await self.serve()
        client = self.client(port)
        client.sendall(b"never\nb\n")
        await until(lambda: self.handlers and self.handlers[0].notes)
        stopped = self.server.stopService()
        reactor.callLater(0, self.handlers[0].never.callback, None)
        assert await in_thread(read_to_the_end, client) == b"NEVER\nB\n"
        await stopped

    async def test_a_server_that_stops_waits_for_an_async_handle_shutdown(self):
        class Polite(Answering):
            async def handle_shutdown(self):
                self.push(b"wait\n")
                await self.never
                self.push(b"bye\n")
                self.close()

            async def message_received(self, message):
                if message == b"commit":
                    self.never.callback(None)

        port = await self.serve(Polite)
        client = self.client(port)
        await until(lambda: self.handlers and self.handlers[0].state is State.OPEN)
        stopped = self.server.stopService()
        assert await in_thread(read_line, client) == b"wait\n"
        client.sendall(b"commit\n")
        assert await in_thread(read_to_the_end, client) == b"bye\n"
        await stopped

    async def test_over_tls(self):
        port = await self.serve(tls=True)

        def run():
            with client_context().wrap_socket(self.client(port), server_hostname=HOST) as client:
                client.sendall(b"a\nb\nc\n")
                answers = read_until(client, b"C\n")
                client.unwrap().close()
                return answers

        assert await in_thread(run) == b"A\nB\nC\n"
        await self.handlers[0].gone

    async def test_handle_connect_and_messages_wait_for_handle_secure(self):
        class Checking(Answering):
            async def handle_secure(self, info):
                self.notes.append(info.version)
                await deferToThread(int)
                self.notes.append("checked")

            async def handle_connect(self):
                self.notes.append("connect")
                self.push(b"hello " + await deferToThread(bytes) + b"\n")

        port = await self.serve(Checking, tls=True)

        def run():
            with client_context().wrap_socket(self.client(port), server_hostname=HOST) as client:
                client.sendall(b"a\n")
                answers = read_until(client, b"A\n")
                client.unwrap().close()
                return answers

        assert await in_thread(run) == b"hello \nA\n"
        [handler] = self.handlers
        await handler.gone
        assert handler.notes == ["TLSv1.3", "checked", "connect", b"a", "done", "end"]

    async def test_handle_connect_is_not_called_when_handle_secure_failed(self):
        class Refusing(Answering):
            async def handle_secure(self, info):
                raise ZeroDivisionError

            async def handle_error(self):
                await deferToThread(int)
                self.push(b"refused\n")

            def handle_connect(self):
                raise AssertionError("it is not")

        port = await self.serve(Refusing, tls=True)

        def run():
            with client_context().wrap_socket(self.client(port), server_hostname=HOST) as client:
                return read_to_the_end(client)

        assert await in_thread(run) == b"refused\n"
        await self.handlers[0].gone
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    async def test_a_hook_may_start_tls_and_wait_for_it(self):
        options = server_options()

        class Upgrading(Answering):
            async def message_received(self, message):
                if message != b"STARTTLS":
                    await super().message_received(message)
                    return
                self.secure = Deferred()
                await deferToThread(int)
                self.push(b"go\n")
                self.start_tls(options)
                self.push(b"secret\n")
                await self.secure
                await deferToThread(int)
                self.push(b"secure\n")

            def handle_secure(self, info):
                self.secure.callback(info)

        port = await self.serve(Upgrading)

        def run():
            client = self.client(port)
            client.sendall(b"a\nSTARTTLS\n")
            clear = read_until(client, b"go\n")
            with client_context().wrap_socket(client, server_hostname=HOST) as tls:
                tls.sendall(b"b\n")
                secret = read_until(tls, b"B\n")
                tls.unwrap().close()
            return clear, secret

        clear, secret = await in_thread(run)
        assert clear == b"A\ngo\n"
        assert secret == b"secret\nsecure\nB\n"
        await self.handlers[0].gone

    async def test_plaintext_behind_a_hook_that_starts_tls_is_refused(self):
        options = server_options()

        class Upgrading(Answering):
            async def message_received(self, message):
                self.notes.append(message)
                await self.never
                self.start_tls(options)

        port = await self.serve(Upgrading)
        client = self.client(port)
        client.sendall(b"STARTTLS\nEVIL\n")
        await until(lambda: self.handlers and self.handlers[0].notes)
        [handler] = self.handlers
        handler.never.callback(None)
        await handler.gone
        assert handler.notes == [b"STARTTLS", "end"]
        assert type(handler.close_reason).__name__ == "PlaintextAfterStartTLS"


# -- under Twisted's asyncio reactor

ASYNCIO = r"""
import asyncio, contextvars, socket, struct, sys, threading, types
from twisted.internet import asyncioreactor
asyncioreactor.install()
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from txasynchat import AsyncChat

VARIABLE = contextvars.ContextVar("VARIABLE", default=b"unset")

@types.coroutine
def yields(deferred):
    return (yield deferred)

class Server(AsyncChat):
    terminator = b"\n"
    waits = None

    def message_received(self, message):
        hook = getattr(self, message.decode())()
        if isinstance(hook, Deferred):
            return hook.addCallback(self.answer)
        return hook if isinstance(hook, asyncio.Future) else self.answers(hook)

    def answer(self, result):
        self.push(result + b"\n")

    async def answers(self, hook):
        self.answer(await hook)

    async def at_once(self):
        return type(asyncio.current_task()).__name__.encode()

    async def slept(self):
        await asyncio.sleep(0.01)
        return b"slept"

    async def timed_out(self):
        waited = Deferred()
        try:
            async with asyncio.timeout(0.01):
                await waited
        except TimeoutError:
            return b"timed out, and cancelled" if waited.called else b"timed out"

    async def group(self):
        async with asyncio.TaskGroup() as group:
            first = group.create_task(asyncio.to_thread(lambda: b"one"))
            second = group.create_task(asyncio.sleep(0, b"two"))
        return first.result() + b", " + second.result()

    async def deferred(self):
        return await deferLater(reactor, 0, lambda: b"fired")

    async def yielded(self):
        return await yields(deferLater(reactor, 0, lambda: b"sent"))

    async def failure(self):
        try:
            await deferLater(reactor, 0, lambda: 1 / 0)
        except ZeroDivisionError:
            return b"raised"

    async def in_thread(self):
        return await deferToThread(lambda: b"from a thread")

    async def variable(self):
        seen = VARIABLE.get()
        token = VARIABLE.set(b"set")
        await asyncio.sleep(0)
        assert VARIABLE.get() == b"set"
        VARIABLE.reset(token)
        return seen

    def returned_deferred(self):
        return deferLater(reactor, 0, lambda: b"from callbacks")

    def returned_task(self):
        return asyncio.ensure_future(self.answers(self.slept()))

    async def fails(self):
        await asyncio.sleep(0)
        raise KeyError("of the hook")

    async def never(self):
        self.push(b"waiting\n")
        try:
            await (Deferred() if self.waits is None else self.waits())
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def handle_error(self):
        print("handle_error", sys.exc_info()[1])

    async def handle_end(self, reason):
        await asyncio.sleep(0)
        ended.set()

cancelled, ended = threading.Event(), threading.Event()

def connect():
    client = socket.create_connection(("127.0.0.1", port.getHost().port), 15)
    client.settimeout(15)
    return client

def read(client):
    return b"".join(iter(lambda: client.recv(1 << 20), b"")).decode()

def answers():
    names = ["at_once", "slept", "timed_out", "group", "deferred", "yielded", "failure", "in_thread"]
    names += ["variable", "returned_deferred", "returned_task", "at_once"]
    with connect() as client:
        client.sendall("\n".join([*names, ""]).encode())
        client.shutdown(socket.SHUT_WR)
        print(read(client), end="")
    assert ended.wait(15)

def failure():
    with connect() as client:
        client.sendall(b"at_once\nfails\nat_once\n")
        print(read(client), end="")
    assert ended.wait(15)

def reset():
    with connect() as client:
        client.sendall(b"never\n")
        assert client.recv(100) == b"waiting\n"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert cancelled.wait(15) and ended.wait(15)
    print("cancelled")

def reset_in_asyncio():
    Server.waits = lambda self: asyncio.Event().wait()
    reset()

def stop():
    global client
    client = connect()
    client.sendall(b"never\n")
    assert client.recv(100) == b"waiting\n"

def flood():
    with connect() as client:
        thread = threading.Thread(target=client.sendall, args=[b"at_once\n" * 50_000])
        thread.start()
        got = 0
        while got < 50_000 * 5:
            got += len(client.recv(1 << 20))
        thread.join()
        print(got)

def run():
    try:
        globals()[sys.argv[1]]()
    finally:
        reactor.callFromThread(reactor.stop)

port = reactor.listenTCP(0, Factory.forProtocol(Server), interface="127.0.0.1")
thread = threading.Thread(target=run, daemon=True)
reactor.callWhenRunning(thread.start)
reactor.run()
thread.join(5)
if "client" in globals():
    client.close()
"""


def under_asyncio(root, scene):
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", ASYNCIO, scene],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_under_asyncio_hooks_may_await_what_asyncio_awaits_and_deferreds(root):
    said, errors = under_asyncio(root, "answers")
    assert said.splitlines() == [
        *("Task", "slept", "timed out, and cancelled", "one, two", "fired", "sent", "raised"),
        *("from a thread", "unset", "from callbacks", "slept", "Task"),
    ]
    assert errors == ""


def test_under_asyncio_an_exception_is_that_connections_and_is_logged_once(root):
    said, errors = under_asyncio(root, "failure")
    assert sorted(said.splitlines()) == ["Task", "handle_error 'of the hook'"]
    assert errors.count("Traceback") == 1
    assert "Server raised" in errors
    assert "in fails" in errors


@pytest.mark.parametrize("scene", ["reset", "reset_in_asyncio"])
def test_under_asyncio_a_hook_is_cancelled_when_the_connection_is_lost(root, scene):
    said, errors = under_asyncio(root, scene)
    assert said == "cancelled\n"
    assert errors == ""


def test_under_asyncio_a_reactor_that_stops_is_silent_about_hooks_that_wait(root):
    _, errors = under_asyncio(root, "stop")
    assert errors == ""


def test_under_asyncio_a_flood_is_answered_in_full(root):
    said, errors = under_asyncio(root, "flood")
    assert said == f"{5 * 50_000}\n"
    assert errors == ""
