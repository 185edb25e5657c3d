"""
Three threads, three maps, 2,000 connections that behave at random; nothing may be left over.

    python tests/conformance/soak.py [--seconds 60] [--connections 2000] [--seed N]

A line server of `async_chat` channels runs in three threads of this process, each with a map
and a loop of its own. The load is a second process: plain sockets that open, speak in lines
cut anywhere, half-close, wait to be closed, close without reading, or reset. Some lines make
a channel connect to another thread's server and ask there.

In the end every line sent on a connection that was closed in order must have had its answer,
and the process must be as it was: no descriptor, thread, delayed call, map entry or channel
more than before. The exit status is 1 if anything is missing or left.

With --reference the same server runs on 3.11's own modules, which shows what is the test's
doing and what the facade's.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import heapq
import json
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import ClassVar

import stdlib_modules

THREADS = 3


# -- the load: plain sockets in a process of their own ----------------------------------------


class Caller:
    """One connection after another through one slot, each with a way to end."""

    #: How a connection ends, and how often.
    WAYS: ClassVar = {"half-close": 30, "quit": 25, "orderly": 20, "reset": 15, "vanish": 10}

    def __init__(self, load: Load, rng: random.Random) -> None:
        self.load = load
        self.rng = rng
        self.sock: socket.socket | None = None
        self.life = 0  # timers belong to one connection, or to one pause between two

    def open(self) -> None:
        """Connect and decide what this connection will be like."""
        rng = self.rng
        self.way = rng.choices(list(self.WAYS), list(self.WAYS.values()))[0]
        self.rounds = rng.choice((1, 1, 2, 3, 5))
        self.expected: deque[bytes] = deque()
        self.received = b""
        self.outgoing: deque[bytes] = deque()
        self.eof_sent = False
        self.life += 1
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect_ex(("127.0.0.1", rng.choice(self.load.ports)))
        self.load.watch(self, select.POLLOUT)
        self.load.counts["opened"] += 1
        self.load.counts[self.way] += 1

    def speak(self) -> None:
        """Queue a round of lines, cut into pieces; in the last round say how it ends."""
        rng = self.rng
        self.rounds -= 1
        text = b""
        for _ in range(rng.choice((0, 1, 1, 2, 3, 20))):
            number = self.load.next_number()
            line = b"%d %s" % (number, b"x" * rng.choice((0, 1, 30, 700)))
            if rng.random() < 0.02:
                line = b"ask %d %s" % (rng.choice(self.load.ports), line)
            text += line + b"\r\n"
            self.expected.append(b"%d" % number)
            self.load.counts["lines"] += 1
        if self.rounds <= 0 and self.way == "quit":
            text += b"quit\r\n"
        while text:
            size = rng.choice((1, 7, 100, 5_000))
            self.outgoing.append(text[:size])
            text = text[size:]
        self.write()

    def write(self) -> None:
        """Send one piece; schedule the next for when the socket takes it."""
        if self.outgoing:
            piece = self.outgoing.popleft()
            try:
                sent = self.sock.send(piece)
            except BlockingIOError:
                sent = 0
            if sent < len(piece):
                self.outgoing.appendleft(piece[sent:])
        if self.outgoing:
            self.load.watch(self, select.POLLIN | select.POLLOUT)
            return
        self.load.watch(self, select.POLLIN)
        self.spoken()

    def spoken(self) -> None:
        """Everything is sent: do what this connection's way to end asks for."""
        if self.rounds > 0:
            if not self.expected:
                self.load.after(self.rng.uniform(0, 1.5), self)
            return
        if self.way == "half-close" and not self.eof_sent:
            # The answers must still arrive, although this side sends no more.
            self.eof_sent = True
            self.sock.shutdown(socket.SHUT_WR)
        elif self.way == "orderly" and not self.expected and not self.eof_sent:
            self.eof_sent = True
            self.sock.shutdown(socket.SHUT_WR)
        elif self.way in {"reset", "vanish"}:
            self.load.after(self.rng.uniform(0, 0.05), self)

    def wake(self) -> None:
        """Continue after the delay of this connection, or of the empty slot."""
        try:
            self._next()
        except OSError as error:
            self.lost(type(error).__name__)

    def _next(self) -> None:
        if self.sock is None:
            if not self.load.closing:
                self.open()
        elif self.rounds <= 0 and self.way == "reset":
            linger = struct.pack("ii", 1, 0)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.gone()
        elif self.rounds <= 0 and self.way == "vanish":
            self.gone()
        elif self.rounds > 0 and not self.outgoing and not self.expected:
            self.speak()

    def ready(self, events: int) -> None:
        """Act on a socket that can be read or written."""
        try:
            if events & select.POLLOUT:
                if not self.outgoing and self.rounds > 0 and not self.expected:
                    self.speak()
                else:
                    self.write()
            if self.sock is not None and events & (select.POLLIN | select.POLLHUP):
                self.read()
        except OSError as error:
            self.lost(type(error).__name__)

    def read(self) -> None:
        """Read answers; each must be the next one expected."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        if not data:
            if self.way in {"reset", "vanish"}:
                self.lost("closed by the server")
            elif self.expected or self.outgoing or self.rounds > 0:
                self.lost(f"{len(self.expected)} answers missing at the end of a {self.way}")
            else:
                self.load.counts["orderly ends"] += 1
                self.gone()
            return
        *lines, self.received = (self.received + data).split(b"\r\n")
        for line in lines:
            wanted = self.expected.popleft() if self.expected else b"nothing"
            if line != b"ok " + wanted:
                self.lost(f"got {line[:40]!r}, wanted {wanted!r}")
                return
            self.load.counts["answers"] += 1
        if not self.outgoing and not self.expected:
            if self.rounds > 0:
                self.load.after(self.rng.uniform(0, 1.5), self)
            elif not self.eof_sent:
                self.spoken()

    def lost(self, why: str) -> None:
        """Report what must not happen to a connection that follows the rules."""
        self.load.wrong[f"{self.way}: {why}"] += 1
        self.gone()

    def gone(self) -> None:
        """Close, and reuse the slot a little later."""
        self.load.forget(self)
        self.sock.close()
        self.sock = None
        self.life += 1
        if not self.load.closing:
            self.load.after(self.rng.uniform(0, 0.2), self)


class Load:
    """All slots, in one loop around epoll or poll."""

    def __init__(self, ports: list[int], connections: int, seed: int) -> None:
        self.ports = ports
        self.rng = random.Random(seed)
        has_epoll = hasattr(select, "epoll")
        self.poller = select.epoll() if has_epoll else select.poll()
        self.wait = 0.01 if has_epoll else 10  # seconds, milliseconds
        self.callers: dict[int, Caller] = {}
        self.interest: dict[int, int] = {}
        self.timers: list[tuple[float, int, Caller, int]] = []
        self.counts: Counter = Counter()
        self.wrong: Counter = Counter()
        self.closing = False
        self._number = 0
        for _ in range(connections):
            caller = Caller(self, random.Random(self.rng.random()))
            self.after(self.rng.uniform(0, 3.0), caller)

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def after(self, seconds: float, caller: Caller) -> None:
        when = time.monotonic() + seconds
        heapq.heappush(self.timers, (when, self.next_number(), caller, caller.life))

    def watch(self, caller: Caller, mask: int) -> None:
        number = caller.sock.fileno()
        if self.interest.get(number) == mask and self.callers.get(number) is caller:
            return
        (self.poller.modify if number in self.interest else self.poller.register)(number, mask)
        self.interest[number] = mask
        self.callers[number] = caller

    def forget(self, caller: Caller) -> None:
        number = caller.sock.fileno()
        if self.interest.pop(number, None) is not None:
            self.poller.unregister(number)
        self.callers.pop(number, None)

    def run(self, seconds: float, grace: float) -> dict:
        """Keep the slots busy for so long, then give them time to end; return what happened."""
        stop = time.monotonic() + seconds
        most = 0
        while True:
            now = time.monotonic()
            self.closing = now >= stop
            if self.closing and not self.callers:
                break
            if now > stop + grace:
                for caller in list(self.callers.values()):
                    caller.lost(f"not ended within {grace:.0f} s, {len(caller.expected)} missing")
                break
            while self.timers and self.timers[0][0] <= now:
                _, _, caller, life = heapq.heappop(self.timers)
                if life == caller.life:
                    caller.wake()
            most = max(most, len(self.callers))
            for number, events in self.poller.poll(self.wait):
                caller = self.callers.get(number)
                if caller is not None:
                    caller.ready(events)
        return {"counts": {**self.counts, "open at once": most}, "wrong": dict(self.wrong)}


# -- the server: channels of the modules under test -------------------------------------------


def server_classes(modules: stdlib_modules.Modules):
    """The line server's classes, on the given modules."""
    asyncore, asynchat = modules.asyncore, modules.asynchat

    class Line(asynchat.async_chat):
        """``N text`` is answered by ``ok N``; ``ask PORT N text`` asks there; ``quit`` closes."""

        errors: ClassVar[Counter] = Counter()

        def __init__(self, sock, socket_map):
            asynchat.async_chat.__init__(self, sock, socket_map)
            self.set_terminator(b"\r\n")
            self.waiting = 0
            self.done = False
            self.later: deque[bytes] = deque()

        def collect_incoming_data(self, data):
            self._collect_incoming_data(data)

        def found_terminator(self):
            words = self._get_data().split(b" ")
            if self.waiting:
                # Answers keep their order: lines after a question wait for it.
                self.later.append(b" ".join(words))
            elif words[0] == b"quit":
                self.close_when_done()
            elif words[0] == b"ask":
                self.waiting = 1
                Question(self, int(words[1]), b" ".join(words[2:]))
            else:
                self.push(b"ok " + words[0] + b"\r\n")

        def answered(self, line):
            self.push(line + b"\r\n")
            self.waiting = 0
            while self.later and not self.waiting:
                self.incoming.insert(0, self.later.popleft())
                rest, self.incoming[1:] = self.incoming[1:], []
                self.found_terminator()
                self.incoming.extend(rest)
            if self.done and not self.waiting:
                self.close_when_done()

        def readable(self):
            # After the end of the input only the answer to a question is waited for.
            return not self.done

        def handle_close(self):
            if self.waiting and self.connected and not self.done:
                self.done = True
            elif not self.done or not self.waiting:
                self.close()

        def handle_error(self):
            self.errors[f"{sys.exc_info()[0].__name__}: {sys.exc_info()[1]}"] += 1
            self.close()

    class Question(asynchat.async_chat):
        """A connection out, to the server of any of the threads; one line there and back."""

        def __init__(self, asker, port, line):
            asynchat.async_chat.__init__(self, None, asker._map)
            self.asker = asker
            self.set_terminator(b"\r\n")
            self.create_socket()
            self.push(line + b"\r\n")
            self.connect(("127.0.0.1", port))

        def collect_incoming_data(self, data):
            self._collect_incoming_data(data)

        def found_terminator(self):
            line = self._get_data()
            self.close()
            self.asker.answered(line)

        def handle_error(self):
            Line.errors[f"question: {sys.exc_info()[1]}"] += 1
            self.close()
            self.asker.close()

    class Server(asyncore.dispatcher):
        def __init__(self, socket_map):
            asyncore.dispatcher.__init__(self, map=socket_map)
            self.create_socket()
            self.set_reuse_addr()
            self.bind(("127.0.0.1", 0))
            self.listen(1024)

        def handle_accepted(self, sock, addr):
            Line(sock, self._map)

        def handle_error(self):
            Line.errors[f"server: {sys.exc_info()[1]}"] += 1

    return Server, Line, Question


def _descriptors() -> dict[str, str]:
    """Open descriptors of this process and what they are."""
    found = {}
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[number.name] = str(number.readlink())
    return found


def _delayed_calls() -> list[str]:
    """Delayed calls of every Twisted reactor in this process."""
    base = sys.modules.get("twisted.internet.base")
    if base is None:
        return []
    reactors = [thing for thing in gc.get_objects() if isinstance(thing, base.ReactorBase)]
    return [str(call) for reactor in reactors for call in reactor.getDelayedCalls()]


class Soak:
    """The server's three threads, and the inspection before and after."""

    def __init__(self, modules: stdlib_modules.Modules, *, always_poll: bool) -> None:
        self.modules = modules
        self.always_poll = always_poll
        self.Server, self.Line, self.Question = server_classes(modules)
        self.wrong: list[str] = []
        self.died: list[str] = []

    def _serve(self, number: int, socket_map: dict) -> None:
        try:
            # Every thread calls the loop in its own way.
            use_poll = self.always_poll or number == 1
            if number == 2:
                while socket_map:
                    self.modules.asyncore.loop(0.2, use_poll, socket_map, 1)
            else:
                self.modules.asyncore.loop(timeout=1.0, use_poll=use_poll, map=socket_map)
        except BaseException as error:  # noqa: BLE001 - a loop that ends early is the finding
            self.died.append(f"thread {number}: {type(error).__name__}: {error}")

    def warm_up(self) -> None:
        """Make what a process makes once (imports, a reactor) before anything is counted."""
        socket_map: dict = {}
        server = self.Server(socket_map)
        self.modules.asyncore.loop(0, map=socket_map, count=1)
        server.close()

    def _load(self, ports: list[int], options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--load", json.dumps(ports)]
        for name in "seconds", "connections", "seed", "grace":
            command += [f"--{name}", str(getattr(options, name))]
        limit = options.seconds + options.grace + 30
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                said, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                self.wrong.append(f"the load did not end within {limit:.0f} s")
                return
        report = json.loads(said)
        print("load:", ", ".join(f"{name} {n:,}" for name, n in sorted(report["counts"].items())))
        self.wrong += [f"{count} connections: {why}" for why, count in report["wrong"].items()]
        if not report["counts"].get("answers"):
            self.wrong.append("no line was answered")
        if report["counts"].get("open at once", 0) < options.connections // 2:
            self.wrong.append("too few connections were open at once for the figure to mean much")

    def _empty(self, maps: list[dict], threads: list[threading.Thread], seconds: float) -> None:
        """After the peers are gone, close the listeners from outside; the loops must end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(len(m) > 1 for m in maps):
            threads[0].join(0.05)
        left = [len(m) - 1 for m in maps]
        if any(left):
            self.wrong.append(f"channels left on the maps when all peers had gone: {left}")
        for socket_map in maps:
            self.modules.asyncore.close_all(socket_map, ignore_all=True)
        for thread in threads:
            thread.join(10)
            if thread.is_alive():
                self.wrong.append(f"{thread.name} is still in its loop, its map empty")

    def run(self, options: argparse.Namespace) -> list[str]:
        """Serve, start the load, inspect; return what was wrong."""
        self.warm_up()
        gc.collect()
        descriptors, threads_before = _descriptors(), set(threading.enumerate())
        maps: list[dict] = [{} for _ in range(THREADS)]
        ports = [self.Server(m).socket.getsockname()[1] for m in maps]
        threads = [
            threading.Thread(target=self._serve, args=(number, m), name=f"loop {number}")
            for number, m in enumerate(maps)
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        self._load(ports, options)
        self._empty(maps, threads, min(10, options.grace))
        self.wrong += self.died
        for error, count in self.Line.errors.items():
            print(f"handlers saw {count} times: {error}")
            # Only a peer's reset may be noticed as an error of the channel.
            if "Connection reset" not in error and "Broken pipe" not in error:
                self.wrong.append(f"{count} times in a handler: {error}")
        del thread, threads
        self._inspect(descriptors, threads_before)
        return self.wrong

    def _inspect(self, descriptors: dict[str, str], threads: set[threading.Thread]) -> None:
        for _ in range(3):
            gc.collect()
        left = {n: what for n, what in _descriptors().items() if n not in descriptors}
        # Numbers may have been reused; the count and the kinds matter.
        if len(_descriptors()) > len(descriptors):
            self.wrong.append(f"{len(left)} descriptors left: {sorted(left.values())[:10]}")
        extra = [t.name for t in threading.enumerate() if t not in threads]
        if extra:
            self.wrong.append(f"threads left: {extra}")
        if calls := _delayed_calls():
            self.wrong.append(f"{len(calls)} delayed calls left: {calls[:3]}")
        kinds = (self.Line, self.Question, self.Server)
        alive = Counter(type(t).__name__ for t in gc.get_objects() if isinstance(t, kinds))
        if alive:
            self.wrong.append(f"closed channels still in memory: {dict(alive)}")


def main() -> int:
    """Run the soak, or, in the second process, the load."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--grace", type=float, default=30, help="seconds to end in after that")
    parser.add_argument("--reference", action="store_true", help="on 3.11's own modules")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * options.connections + 200
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    if options.load:
        load = Load(json.loads(options.load), options.connections, options.seed)
        print(json.dumps(load.run(options.seconds, options.grace)))
        return 0
    if options.reference:
        folder = stdlib_modules.find_stdlib()
        if folder is None:
            print("SKIPPED: no Python 3.11 on this machine")
            return 0
        modules = stdlib_modules.load_stdlib(folder)
    else:
        modules = stdlib_modules.load_facade()
    wrong = Soak(modules, always_poll=options.reference).run(options)
    for line in wrong:
        print("WRONG:", line)
    print(f"soak of the {modules.label}, {options.seconds:.0f} s")
    print("0 passed, 1 failed" if wrong else "1 passed, 0 failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
