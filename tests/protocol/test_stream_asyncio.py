"""
Streams under Twisted's asyncio reactor: handler functions are tasks, and tasks of others may read, too.
"""

import os
import subprocess
import sys

PROGRAM = r"""
import asyncio, socket, sys, threading
from twisted.internet import asyncioreactor
asyncioreactor.install()
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogBeginner, textFileLogObserver, FilteringLogObserver
from twisted.logger import LogLevel, LogLevelFilterPredicate
from txasynchat import ChatFactory, connect, errors

globalLogBeginner.beginLoggingTo(
    [FilteringLogObserver(textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(LogLevel.warn)])],
    redirectStandardIO=False,
)


async def echo(stream):
    async for line in stream:
        stream.write(line + b"\n")
        await stream.drain()


async def clock(stream):
    try:
        async with asyncio.timeout(0.02):
            await stream.read_until(b"\n")
    except TimeoutError:
        stream.write(b"timed out; ")
    part = await stream.read_exactly(2)
    await asyncio.sleep(0)
    stream.write(await deferLater(reactor, 0, lambda: part))
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(stream.read_until(b"\n"))
        group.create_task(asyncio.to_thread(int))
    stream.write(b"; " + reading.result())


async def waits(stream):
    stream.write(b"waiting")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise


async def says_nothing(stream):
    while await stream.read():
        pass


async def reads(stream):
    stream.write(b"waiting")
    try:
        await stream.read()
    except errors.ConnectionReset as error:
        print(type(error).__name__, flush=True)
        await asyncio.sleep(0.001)
        print("cleaned up", flush=True)


factories = []


def listen(function):
    factories.append(ChatFactory(function))
    return reactor.listenTCP(0, factories[-1], interface="127.0.0.1").getHost().port


async def connected(function):
    stream = await connect(f"tcp:127.0.0.1:{listen(function)}")
    return stream


async def timeouts():
    stream = await connected(clock)
    print((await stream.read(11)).decode())
    stream.write(b"abcd\n")
    print((await stream.read_until(b"d")).decode())
    print(await stream.read())
    stream.close()
    await stream.wait_closed()


async def pipelined():
    stream = await connected(echo)
    lines = [b"%d" % n for n in range(50_000)]

    async def write():
        for line in lines:
            stream.write(line + b"\n")
            await stream.drain()

    async with asyncio.TaskGroup() as group, stream:
        group.create_task(write())
        got = [await anext(stream) for _ in lines]
    print(got == lines)


async def cancelled_reads():
    stream = await connected(echo)
    missed = 0
    async with stream:
        for n in range(200):
            reading = asyncio.create_task(stream.read_until(b"\n"))
            await asyncio.sleep(0)
            stream.write(b"%d\n" % n)
            if n % 2:
                await asyncio.sleep(0.0001)
                if reading.cancel():
                    missed += 1
                await asyncio.wait([reading])
                line = await stream.read_until(b"\n") if reading.cancelled() else reading.result()
            else:
                line = await reading
            assert line == b"%d" % n, (line, n)
    print("nothing lost")


async def concurrent():
    stream = await connected(echo)
    first = asyncio.create_task(stream.read_until(b"\n"))
    await asyncio.sleep(0)
    try:
        await stream.read()
    except RuntimeError as error:
        print(error)
    stream.write(b"one\n")
    print(await first)
    stream.abort()


async def lost():
    for function in (waits, reads):
        stream = await connected(function)
        print(await stream.read())
        stream.abort()
        await asyncio.sleep(0.05)


async def attempt():
    silent = listen(says_nothing)
    from txasynchat import ClientOptions
    connecting = asyncio.create_task(connect(f"tcp:127.0.0.1:{silent}", tls=ClientOptions("x")))
    await asyncio.sleep(0.01)
    connecting.cancel()
    try:
        await connecting
    except asyncio.CancelledError:
        print("connecting was cancelled")
    try:
        await connect("tcp:127.0.0.1:1", timeout=5)
    except Exception as error:
        print(type(error).__name__)


async def main():
    try:
        await asyncio.wait_for(globals()[sys.argv[1]](), 30)
        while any(factory.connections for factory in factories):
            await asyncio.sleep(0.001)
    finally:
        reactor.callLater(0, reactor.stop)


def begin():
    global running
    running = asyncio.get_running_loop().create_task(main())


reactor.callLater(0, begin)
reactor.run()
if running.exception():
    raise running.exception()
"""


def run(root, scene):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, scene],
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_function_may_use_what_asyncio_has(root):
    """`asyncio.timeout`, `TaskGroup`, threads and Deferreds, in any order."""
    assert run(root, "timeouts") == ["timed out; ", "ab; c", "b''"]


def test_tasks_read_and_write_side_by_side(root):
    assert run(root, "pipelined") == ["True"]


def test_a_cancelled_read_loses_nothing(root):
    assert run(root, "cancelled_reads") == ["nothing lost"]


def test_a_second_reader_is_refused(root):
    said = run(root, "concurrent")
    assert said == ["another coroutine is reading from this stream", "b'one'"]


def test_a_lost_connection_raises_in_a_read_and_cancels_other_waits(root):
    said = run(root, "lost")
    assert said == ["b'waiting'", "cancelled", "b'waiting'", "ConnectionReset", "cleaned up"]


def test_an_attempt_to_connect_can_be_cancelled_and_may_fail(root):
    said = run(root, "attempt")
    assert said == ["connecting was cancelled", "ConnectionRefusedError"]
