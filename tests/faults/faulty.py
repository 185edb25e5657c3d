"""
Clients that break the rules, each in one way; and how long the server keeps them.

A fault that the server has to end says so by `Fault.until_ended`, which compares the time with the
limit that should have ended it.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from contextlib import suppress
from typing import ClassVar

import wire
from clients import PATIENCE, Client, Connection, Ended


class Fault(Client):
    """A client that breaks a rule; `misbehave` has a connection whose TLS is up, where there is TLS."""

    #: Whether it has a first exchange, as others do, before it breaks a rule.
    greets: ClassVar[bool] = False

    def run(self) -> None:
        try:
            connection = self.open()
            if self.greets:
                request = self.request(b"echo", self.rng.randbytes(20))
                connection.send(request.sent)
                _, body = connection.answer()
                if body != request.wanted:
                    self.ledger.mistake(f"{self.name}: a wrong answer to its first request")
            self.misbehave(connection)
        except (OSError, Ended, ValueError):
            # It may be turned away, and it is nobody to complain.
            self.ledger.count(f"{self.name} ended early")

    def misbehave(self, connection: Connection) -> None:
        raise NotImplementedError

    def until_ended(self, limit: str, began: float, *, reads: bool = True) -> None:
        """Wait for the server to end the connection, which *limit* should have it do."""
        windows, connection = self.world.windows, self.connection
        assert connection is not None
        allowed = self.world.allowed(limit)
        deadline = began + allowed + PATIENCE
        gone = _drained if reads else _hung_up
        ended = gone(connection, deadline)
        now = time.monotonic()
        # A listener that is away, or has no descriptors, has not accepted yet whom the system has.
        allowed += windows.overlap(self.place.name, began, now)
        what = f"{self.name} to {self.place.name}"
        self.ledger.kept(what, limit, now - began if ended else float("inf"), allowed)


def _drained(connection: Connection, deadline: float) -> bool:
    """Read until the end; return whether it comes."""
    connection.sock.settimeout(1.0)
    while time.monotonic() < deadline:
        try:
            if not connection.sock.recv(65_536):
                return True
        except (TimeoutError, ssl.SSLWantReadError):
            continue
        except OSError:
            return True
    return False


def _hung_up(connection: Connection, deadline: float) -> bool:
    """Wait for the end without reading; return whether it comes."""
    poll = select.poll()
    poll.register(connection.sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _hello(context: ssl.SSLContext) -> bytes:
    """Return a ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        half.do_handshake()
    return outgoing.read()


# -- those that say nothing, or not enough


class Silent(Fault):
    """Connects, and says nothing."""

    secure = False
    weight = 4

    def misbehave(self, connection: Connection) -> None:
        self.until_ended("first_message", time.monotonic())


class SilentInHandshake(Fault):
    """Connects to a port with TLS, and says nothing, or the half of a ClientHello."""

    secure = True
    weight = 4

    def open(self) -> Connection:
        self.connection = Connection(self.world, self.place)
        return self.connection

    def misbehave(self, connection: Connection) -> None:
        began = time.monotonic()
        if self.rng.random() < 0.5:
            connection.send(
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self.rng.randbytes(50)
            )
        self.until_ended("handshake", began)


class TricklingHello(SilentInHandshake):
    """Sends its ClientHello byte by byte."""

    weight = 2

    def misbehave(self, connection: Connection) -> None:
        began = time.monotonic()
        hello = _hello(self.world.contexts[0])
        allowed = self.world.allowed("handshake")
        with suppress(OSError):
            for at in range(len(hello)):
                connection.send(hello[at : at + 1])
                waits = self.rng.uniform(0.05, 0.3)
                if select.select([connection.sock], [], [], waits)[0]:
                    break
                if time.monotonic() > began + allowed:
                    break
        self.until_ended("handshake", began)


class SilentOverTLS(Fault):
    """Shakes hands, and says nothing."""

    secure = True
    weight = 3

    def misbehave(self, connection: Connection) -> None:
        self.until_ended("first_message", time.monotonic())


class Idle(Fault):
    """Talks once, and no more."""

    greets = True
    weight = 3

    def misbehave(self, connection: Connection) -> None:
        self.until_ended("idle", time.monotonic())


class Staller(Fault):
    """Stops in the middle of a message."""

    greets = True
    kinds = ("native", "legacy")
    weight = 4

    def misbehave(self, connection: Connection) -> None:
        began = time.monotonic()
        request = self.request(b"echo", self.rng.randbytes(1_000)).sent
        connection.send(request[: self.rng.randrange(1, len(request))])
        self.until_ended("message", began)


class Trickler(Fault):
    """Sends a message byte by byte, and never comes to its end."""

    kinds = ("native", "legacy")
    weight = 5

    def misbehave(self, connection: Connection) -> None:
        began = time.monotonic()
        allowed = self.world.allowed("message")
        request = self.request(b"echo", self.rng.randbytes(1_000)).sent
        start = self.rng.choice((0, 30))  # in its line, or in its body
        connection.send(request[:start])
        with suppress(OSError):
            while time.monotonic() < began + allowed:
                connection.send(request[start : start + 1])
                start += 1
                if select.select([connection.sock], [], [], self.rng.uniform(0.05, 0.5))[0]:
                    break
        self.until_ended("message", began)


# -- those that do not read


class NonReader(Fault):
    """Asks for much, and reads nothing of it."""

    greets = True
    buffer = 4_096
    weight = 4

    def misbehave(self, connection: Connection) -> None:
        began = time.monotonic()
        for _ in range(10):
            connection.send(self.request(b"give", b"200000").sent)
        self.until_ended("write_stall", began, reads=False)


class ByteReader(Fault):
    """Asks for much, and reads a few bytes now and then."""

    buffer = 4_096
    weight = 4

    def misbehave(self, connection: Connection) -> None:
        began = time.monotonic()
        for _ in range(10):
            connection.send(self.request(b"give", b"200000").sent)
        poll = select.poll()
        poll.register(connection.sock.fileno(), select.POLLRDHUP)
        until = began + self.world.allowed("write_stall")
        with suppress(OSError):
            while time.monotonic() < until and not poll.poll(300):
                connection.sock.recv(50)
        self.until_ended("write_stall", began, reads=False)


class Flooder(Fault):
    """Sends requests as fast as it can, reads no answer, and waits until it is thrown out."""

    weight = 2
    buffer = 16_384

    def misbehave(self, connection: Connection) -> None:
        request = self.request(b"echo", self.rng.randbytes(2_000)).sent * 10
        sock = connection.sock
        sock.settimeout(0.3)
        began = time.monotonic()
        with suppress(TimeoutError):
            for _ in range(400):  # 8 MB
                sock.sendall(request)
            began = time.monotonic()
        self.until_ended("write_stall", began, reads=False)


class Vanisher(Fault):
    """Asks, and closes without having read."""

    weight = 5

    def misbehave(self, connection: Connection) -> None:
        for _ in range(self.rng.randrange(5)):
            connection.send(self.request(b"give", b"%d" % self.rng.choice((10, 50_000))).sent)
        time.sleep(self.rng.uniform(0, 0.05))
        self.ledger.count("vanished")


class Resetter(Fault):
    """Resets the connection at some moment."""

    weight = 8

    def misbehave(self, connection: Connection) -> None:
        rng = self.rng
        for _ in range(rng.randrange(4)):
            word, body = rng.choice(((b"echo", b"x" * 500), (b"give", b"50000"), (b"wait", b"20")))
            sent = self.request(word, body).sent
            connection.send(sent[: rng.choice((3, len(sent), len(sent)))])
        time.sleep(rng.uniform(0, 0.1))
        connection.reset()
        self.ledger.count("reset")


class ResetInHandshake(Fault):
    """Resets in the middle of a handshake."""

    secure = True
    weight = 3

    def open(self) -> Connection:
        self.connection = Connection(self.world, self.place)
        return self.connection

    def misbehave(self, connection: Connection) -> None:
        hello = _hello(self.rng.choice(self.world.contexts))
        connection.send(hello[: self.rng.choice((10, len(hello), len(hello)))])
        time.sleep(self.rng.uniform(0, 0.02))
        connection.reset()
        self.ledger.count("reset")


# -- ends of one direction


class HalfCloser(Fault):
    """Ends its direction in the middle of a message, and waits."""

    greets = True
    secure = False
    weight = 4

    def misbehave(self, connection: Connection) -> None:
        request = self.request(b"echo", self.rng.randbytes(1_000)).sent
        connection.send(request[: self.rng.randrange(1, len(request))])
        connection.sock.shutdown(socket.SHUT_WR)
        self.until_ended("now", time.monotonic())


class Truncator(Fault):
    """Ends TLS without saying so, and waits."""

    greets = True
    secure = True
    weight = 4

    def misbehave(self, connection: Connection) -> None:
        connection.sock.shutdown(socket.SHUT_WR)  # which forgets TLS first
        self.until_ended("now", time.monotonic())


class Lingerer(Fault):
    """Is told to go, and does not: it sends on."""

    secure = False
    weight = 2

    def misbehave(self, connection: Connection) -> None:
        began = time.monotonic()
        connection.send(b"this is not a request\r\n")
        until = began + self.world.allowed("linger") + PATIENCE
        ended = False
        while not ended and time.monotonic() < until:
            try:
                connection.send(b"x")
            except OSError:
                ended = True
            else:
                time.sleep(0.2)
        if ended:
            self.until_ended("linger", began)
        else:
            self.ledger.kept(self.name, "linger", float("inf"), 0.0)


# -- garbage


class Babbler(Fault):
    """Speaks garbage."""

    weight = 4

    def misbehave(self, connection: Connection) -> None:
        rng = self.rng
        garbage = rng.choice(
            (
                rng.randbytes(300) + b"\r\n",
                b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"1 echo -5 00000000\r\n",
                b"1 echo 99999999999 00000000\r\n",
                b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + rng.randbytes(160) + b"\r\n",
            )
        )
        connection.send(garbage)
        self.until_ended("now", time.monotonic())


class Overlong(Fault):
    """Sends a line without an end."""

    kinds = ("native", "ordinary")
    weight = 2

    def misbehave(self, connection: Connection) -> None:
        began = time.monotonic()
        with suppress(OSError):
            for _ in range(20):
                connection.send(b"x" * 1_000)
        self.until_ended("now", began)


class NoTLS(Fault):
    """Speaks something else on a port with TLS."""

    secure = True
    weight = 3

    def open(self) -> Connection:
        self.connection = Connection(self.world, self.place)
        return self.connection

    def misbehave(self, connection: Connection) -> None:
        rng = self.rng
        connection.send(rng.choice((b"1 echo 0 00000000\r\n", rng.randbytes(500), b"\x80" * 200)))
        self.until_ended("handshake", time.monotonic())


class BrokenRecord(Fault):
    """Sends bytes between TLS's records that no key fits."""

    greets = True
    secure = True
    weight = 3

    def misbehave(self, connection: Connection) -> None:
        record = b"\x17\x03\x03\x00\x40" + self.rng.randbytes(64)
        os.write(connection.sock.fileno(), record)
        self.until_ended("now", time.monotonic())


class Distrustful(Fault):
    """Does not trust the server's certificate."""

    secure = True
    weight = 2

    def open(self) -> Connection:
        self.connection = connection = Connection(self.world, self.place)
        try:
            connection.shake_hands(self.world.suspicious)
        except ssl.SSLCertVerificationError:
            self.ledger.count("server refused")
        return connection

    def misbehave(self, connection: Connection) -> None:
        """It is over."""


# -- handlers that raise


class Provoker(Fault):
    """Has a handler raise; only its own connection may end by that."""

    greets = True
    weight = 5

    def misbehave(self, connection: Connection) -> None:
        ways = {
            "native": (b"hook", b"producer", b"later", b"end"),
            "legacy": (b"hook", b"producer"),
            "ordinary": (b"hook",),
        }
        way = self.rng.choice(ways[self.place.kind])
        connection.send(wire.frame(self.number(), b"raise", way))
        self.until_ended("now", time.monotonic())


class Burst(Client):
    """Opens many connections, and drops them."""

    weight = 1

    def run(self) -> None:
        opened = []
        with suppress(OSError):
            for _ in range(15):
                opened.append(Connection(self.world, self.place))  # noqa: PERF401 it may raise
        time.sleep(self.rng.uniform(0, 0.05))
        for one in opened:
            with suppress(OSError):
                (one.reset if self.rng.random() < 0.5 else one.close)()


FAULTS: tuple[type[Client], ...] = (
    Silent, SilentInHandshake, TricklingHello, SilentOverTLS,
    Idle, Staller, Trickler, NonReader, ByteReader, Flooder,
    Vanisher, Resetter, ResetInHandshake, HalfCloser, Truncator, Lingerer, Babbler, Overlong, NoTLS,
    BrokenRecord, Distrustful, Provoker, Burst,
)  # fmt: skip
