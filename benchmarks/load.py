"""The load in Python: what load.c does, for machines without a C compiler, and for TLS.

    python load.py [--tls CA] echo PORT CONNECTIONS DEPTH SECONDS MESSAGES

and so on: the modes, their arguments and the output are those of load.c. One more, over TLS:

    python load.py --tls CA handshakes PORT COUNT

starts COUNT connections at once, shakes hands on all, and closes each after one line came back.
"""

from __future__ import annotations

import argparse
import resource
import select
import socket
import ssl
import sys
import time

LINE = 64
BLOCK = 65536
GIVE_UP = 20.0  # seconds without any answer
PATTERN = bytes(i & 255 for i in range(BLOCK))

tls_context: ssl.SSLContext | None = None
serial = 0


class Connection:
    """A non-blocking client that sends batches of lines and checks that they come back."""

    def __init__(self, port: int, depth: int) -> None:
        self.socket = dial(port)
        self.socket.setblocking(False)
        self.depth = depth
        self.unsent = memoryview(b"")
        self.expected = b""
        self.got = 0
        self.since = 0.0

    def send_batch(self) -> None:
        """New lines, none like another, so that an answer to another one is noticed."""
        global serial  # noqa: PLW0603  # one counter for the process
        lines = [b"%063x\n" % n for n in range(serial, serial + self.depth)]
        serial += self.depth
        self.expected = b"".join(lines)
        self.unsent = memoryview(self.expected)
        self.got = 0
        self.since = time.monotonic()
        self.push_on()

    def push_on(self) -> None:
        """Write what fits; the rest goes when the server has read."""
        while self.unsent:
            try:
                sent = self.socket.send(self.unsent)
            except (BlockingIOError, ssl.SSLWantWriteError):
                return
            self.unsent = self.unsent[sent:]

    def answered(self) -> bool:
        """Take what came; whether the batch is complete now."""
        for data in arrivals(self.socket):
            if not data:
                raise SystemExit("closed by the server")
            end = self.got + len(data)
            if data != self.expected[self.got : end]:
                raise SystemExit("a wrong answer")
            self.got = end
        self.push_on()
        return self.got == len(self.expected)


def dial(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=GIVE_UP)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls_context:
        connection = tls_context.wrap_socket(connection, server_hostname="localhost")
    return connection


def arrivals(connection):
    """What one readiness brought; on TLS also what OpenSSL has decrypted and still holds."""
    try:
        yield connection.recv(1 << 20)
        while tls_context and connection.pending():
            yield connection.recv(1 << 20)
    except (BlockingIOError, ssl.SSLWantReadError):
        return


def wait_for_go() -> None:
    print("ready", flush=True)
    if not sys.stdin.readline():
        raise SystemExit


def report(messages: int, seconds: float, samples: list[float]) -> None:
    ordered = sorted(samples) or [0.0]
    points = (ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1])
    print(messages, f"{seconds:.6f}", *(f"{point * 1e6:.1f}" for point in points))


def watch(poller: select.epoll) -> list[tuple[int, int]]:
    events = poller.poll(GIVE_UP)
    if not events:
        raise SystemExit(f"no answer in {GIVE_UP} s")
    return events


def converse(poller, connections, seconds: float, limit: int) -> tuple[int, list[float]]:
    samples: list[float] = []
    answered = 0
    busy = len(connections)
    for connection in connections.values():
        connection.send_batch()
    end = time.monotonic() + seconds
    while busy:
        for descriptor, _ in watch(poller):
            connection = connections[descriptor]
            if not connection.answered():
                continue
            answered += connection.depth
            stamp = time.monotonic()
            samples.append(stamp - connection.since)
            if stamp >= end or answered >= limit:
                busy -= 1
            else:
                connection.send_batch()
    return answered, samples


def dial_all(count: int, port: int, depth: int):
    poller = select.epoll()
    connections = {}
    for _ in range(count):
        connection = Connection(port, depth)
        connections[connection.socket.fileno()] = connection
        poller.register(connection.socket, select.EPOLLIN)
    return poller, connections


def echo(port: int, count: int, depth: int, seconds: float, limit: int) -> None:
    poller, connections = dial_all(count, port, depth)
    converse(poller, connections, 0.05, limit)
    wait_for_go()
    started = time.monotonic()
    answered, samples = converse(poller, connections, seconds, limit)
    report(answered, time.monotonic() - started, samples)


def idle(port: int, count: int) -> None:
    poller, connections = dial_all(count, port, 1)
    converse(poller, connections, 0, 1)
    wait_for_go()


def oneshot(port: int, parallel: int, seconds: float, limit: int) -> None:
    samples: list[float] = []
    wait_for_go()
    started = time.monotonic()
    poller, connections = dial_all(parallel, port, 1)
    for connection in connections.values():
        connection.send_batch()
    while connections:
        for descriptor, _ in watch(poller):
            connection = connections[descriptor]
            for data in arrivals(connection.socket):
                if data:
                    if data != connection.expected[connection.got : connection.got + len(data)]:
                        raise SystemExit("a wrong answer")
                    connection.got += len(data)
                    continue
                if connection.got != len(connection.expected):
                    raise SystemExit("closed before the answer")
                stamp = time.monotonic()
                samples.append(stamp - connection.since)
                poller.unregister(descriptor)
                del connections[descriptor]
                connection.socket.close()
                if stamp < started + seconds and len(samples) < limit:
                    new = Connection(port, 1)
                    connections[new.socket.fileno()] = new
                    poller.register(new.socket, select.EPOLLIN)
                    new.send_batch()
                break
    report(len(samples), time.monotonic() - started, samples)


def source(port: int, size: int, pace: float) -> None:
    connection = dial(port)
    pattern = PATTERN * 17
    wait_for_go()
    started = time.monotonic()
    connection.sendall(b"go\n")
    if pace:
        time.sleep(0.5)
    reading = time.monotonic()
    got = 0
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    while got < size:
        taken = connection.recv_into(view, BLOCK if pace else len(buffer))
        if not taken:
            raise SystemExit(f"closed after {got} of {size} bytes")
        if view[:taken] != memoryview(pattern)[got % BLOCK : got % BLOCK + taken]:
            raise SystemExit(f"wrong bytes near {got}")
        got += taken
        if pace:
            time.sleep(max(0.0, reading + got / pace - time.monotonic()))
    report(1, time.monotonic() - started, [])


def sink(port: int, size: int) -> None:
    connection = dial(port)
    wait_for_go()
    started = time.monotonic()
    for left in range(size, 0, -BLOCK):
        connection.sendall(PATTERN[:left])
    with connection.makefile("rb") as replies:
        if replies.readline() != b"done\n":
            raise SystemExit("a wrong answer")
    report(1, time.monotonic() - started, [])


def handshakes(port: int, count: int) -> None:
    """All at once: connect without waiting, then serve whichever can go on."""
    wait_for_go()
    started = time.monotonic()
    poller = select.epoll()
    waiting = {}
    for _ in range(count):
        plain = socket.socket()
        plain.setblocking(False)
        plain.connect_ex(("127.0.0.1", port))
        secured = tls_context.wrap_socket(
            plain, server_hostname="localhost", do_handshake_on_connect=False
        )
        waiting[secured.fileno()] = secured
        poller.register(secured, select.EPOLLOUT)
    greeted = set()
    samples = []
    line = b"x" * (LINE - 1) + b"\n"
    while waiting:
        for descriptor, _ in watch(poller):
            secured = waiting[descriptor]
            try:
                if descriptor not in greeted:
                    secured.do_handshake()
                    greeted.add(descriptor)
                    secured.send(line)
                    poller.modify(descriptor, select.EPOLLIN)
                if secured.recv(LINE) != line:
                    raise SystemExit("a wrong answer")
            except ssl.SSLWantReadError:
                poller.modify(descriptor, select.EPOLLIN)
                continue
            except ssl.SSLWantWriteError:
                continue
            samples.append(time.monotonic() - started)
            poller.unregister(descriptor)
            waiting.pop(descriptor).close()
    report(count, time.monotonic() - started, samples)


def main() -> None:
    global tls_context  # noqa: PLW0603  # decided once, at the start
    parser = argparse.ArgumentParser()
    parser.add_argument("--tls")
    parser.add_argument("mode")
    parser.add_argument("arguments", type=float, nargs="+")
    options = parser.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    if options.tls:
        tls_context = ssl.create_default_context(cafile=options.tls)
    numbers = [int(n) if n == int(n) else n for n in options.arguments]
    modes = {f.__name__: f for f in (echo, oneshot, source, sink, idle, handshakes)}
    modes["talk"] = echo  # it sleeps here anyway
    modes[options.mode](*numbers)


if __name__ == "__main__":
    main()
