"""
Clients made of plain sockets and the standard library's TLS, each in a thread: nothing of the package.

`Connection` speaks the language of `wire`. `Client` is what one slot does from its connection's
beginning to its end. The well-behaved ones are here; those that are not are in `faulty`.
"""

from __future__ import annotations

import fcntl
import itertools
import random
import select
import socket
import ssl
import struct
import termios
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import wire

if TYPE_CHECKING:
    from ledger import Ledger, Windows

#: Seconds after which a client no longer believes in an answer.
PATIENCE = 25.0


class Ended(Exception):
    """The server ended a connection, in order or not; *word* is what it said."""

    def __init__(self, how: str, word: str = "") -> None:
        super().__init__(how)
        self.word = word


@dataclass(frozen=True)
class Place:
    """One of the server's listeners."""

    name: str
    port: int

    @property
    def kind(self) -> str:
        return self.name.split()[0]

    @property
    def secure(self) -> bool:
        return self.name.endswith("TLS")


@dataclass
class World:
    """What all clients know."""

    places: list[Place]
    limits: dict[str, float]
    #: Seconds that a busy server and busy clients may take on top.
    slack: float
    ledger: Ledger
    windows: Windows
    #: For each version of TLS.
    contexts: list[ssl.SSLContext]
    #: Trusts nobody.
    suspicious: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def allowed(self, limit: str) -> float:
        """Return in how many seconds a limit has to end a connection: three eighths are documented."""
        return self.limits[limit] * 1.375 + self.slack


class Connection:
    """A connection to *place*; its receiving buffer may be a small one."""

    def __init__(self, world: World, place: Place, *, buffer: int = 0) -> None:
        self.place = place
        self.received = bytearray()
        self.going = False
        self.written = 0
        self.sock: Any = socket.socket()
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.sock.connect(("127.0.0.1", place.port))
        except OSError:
            self.sock.close()
            raise

    def shake_hands(self, context: ssl.SSLContext) -> None:
        """Begin TLS. An end without close_notify is an error from now on."""
        self.sock = context.wrap_socket(
            self.sock, server_hostname="localhost", suppress_ragged_eofs=False
        )

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.written += len(data)

    def unacknowledged(self) -> int:
        """Return how many bytes the server's system has not acknowledged."""
        answer = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        return struct.unpack("i", answer)[0]

    def receive(self) -> bytes:
        """Return some bytes; none at an end in order."""
        return self.sock.recv(65_536)

    def frame(self) -> tuple[wire.Head, bytes] | None:
        """
        Return the next answer, None at an end in order.

        Raises:
            Ended: the server ended the connection in the middle of one.
        """
        while True:
            line, end, _ = self.received.partition(wire.END)
            if end:
                head = wire.parse(bytes(line))
                start = len(line) + 2
                if len(self.received) >= start + head.length:
                    body = bytes(self.received[start : start + head.length])
                    del self.received[: start + head.length]
                    return head, body
            data = self.receive()
            if not data:
                if self.received:
                    raise Ended(f"in the middle of an answer: {bytes(self.received[:40])!r}")
                return None
            self.received += data

    def answer(self) -> tuple[wire.Head, bytes]:
        """Return the next answer to a request; notes what the server says unasked."""
        while True:
            found = self.frame()
            if found is None:
                raise Ended("in order")
            head, body = found
            if head.number:
                return head, body
            if head.word != b"going":
                raise Ended(f"it said {head.word.decode()}", head.word.decode())
            self.going = True

    def rest(self, seconds: float) -> None:
        """Wait; shorter if the server says that it is going."""
        until = time.monotonic() + seconds
        while not self.going and (left := until - time.monotonic()) > 0:
            pending = bool(self.received) or (self.place.secure and self.sock.pending())
            if pending or select.select([self.sock], [], [], left)[0]:
                found = self.frame()  # TLS may have had something to say for itself: it waits then
                if found is None:
                    raise Ended("in order, while it rested")
                if found[0].word != b"going":
                    word = found[0].word.decode()
                    raise Ended(f"it said {word}", word)
                self.going = True

    def reset(self) -> None:
        """End it by a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


@dataclass
class Request:
    """A request, and what its answer has to be."""

    number: int
    sent: bytes
    wanted: bytes

    @classmethod
    def make(cls, number: int, word: bytes, body: bytes) -> Request:
        wanted = wire.pattern(number, int(body)) if word == b"give" else body
        return cls(number, wire.frame(number, word, body), wanted)


class Client:
    """What a slot does from the beginning of a connection to its end."""

    #: How often it is chosen, against the others.
    weight: ClassVar[int] = 1
    #: Kinds of handlers that it goes to, and whether with TLS; None for either.
    kinds: ClassVar[tuple[str, ...]] = ("native", "legacy", "ordinary")
    secure: ClassVar[bool | None] = None
    buffer: ClassVar[int] = 0

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.ledger = world.ledger
        places = [
            one
            for one in world.places
            if one.kind in self.kinds and self.secure in (None, one.secure)
        ]
        self.place = rng.choice(places)
        self.connection: Connection | None = None
        self.began = time.monotonic()

    @property
    def name(self) -> str:
        return type(self).__name__

    def live(self) -> None:
        """Do everything, and leave nothing behind."""
        self.ledger.count(self.name)
        try:
            self.run()
        finally:
            if self.connection is not None:
                self.connection.close()

    def run(self) -> None:
        raise NotImplementedError

    def open(self) -> Connection:
        """Connect, with TLS where the place has it."""
        self.connection = connection = Connection(self.world, self.place, buffer=self.buffer)
        if self.place.secure:
            connection.shake_hands(self.rng.choice(self.world.contexts))
        return connection

    def number(self) -> int:
        return next(self.world.numbers)

    def request(self, word: bytes, body: bytes) -> Request:
        return Request.make(self.number(), word, body)


class Good(Client):
    """Asks, waits for the answers, and checks every byte of them; ends in one of several ways."""

    weight = 60
    endings: ClassVar[tuple[str, ...]] = ("quit", "fin", "leave", "ask and fin")

    def run(self) -> None:
        self.waiting: list[Request] = []
        self.answered = 0
        self.state = "connecting"
        try:
            self.talk(self.open())
        except (OSError, Ended, ValueError) as error:
            self.lost(error)

    def talk(self, connection: Connection) -> None:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            self.ask(connection, [self.one() for _ in range(rng.choice((1, 1, 1, 3, 15)))])
            self.read(connection)
            self.state = "resting"
            connection.rest(rng.uniform(0, 1.5))
            if connection.going:
                break
        self.end(connection)

    def one(self) -> Request:
        rng = self.rng
        choice = rng.random()
        if choice < 0.06:
            return self.request(b"give", b"%d" % rng.choice((1, 5_000, 100_000)))
        if choice < 0.1:
            return self.request(b"wait", b"%d" % rng.choice((0, 5, 50)))
        size = rng.choice((0, 1, 20, 20, 200, 2_000))
        return self.request(b"echo", rng.randbytes(size))

    def ask(self, connection: Connection, requests: list[Request]) -> None:
        """Send requests, cut anywhere."""
        self.state = "sending"
        self.waiting += requests
        data = b"".join(one.sent for one in requests)
        cuts = sorted(self.rng.choices(range(len(data) + 1), k=self.rng.choice((0, 0, 1, 3))))
        for start, end in itertools.pairwise([0, *cuts, len(data)]):
            if start != end:
                connection.send(data[start:end])
                if self.rng.random() < 0.2:
                    time.sleep(self.rng.uniform(0, 0.05))

    def read(self, connection: Connection) -> None:
        """Read and check the answers."""
        self.state = "waiting for an answer"
        began = time.monotonic()
        while self.waiting:
            head, body = connection.answer()
            request = self.waiting[0]
            if (head.number, head.word, body) != (request.number, b"ok", request.wanted):
                wanted = f"{request.number}, {len(request.wanted)} bytes"
                raise ValueError(f"got {head}, wanted {wanted}")
            del self.waiting[0]
            self.answered += 1
            self.ledger.answered(len(request.sent), len(body), time.monotonic() - began)

    def end(self, connection: Connection) -> None:
        ending = self.rng.choice(self.endings)
        if ending == "ask and fin" and (self.place.secure or self.place.kind != "native"):
            # Others end with the peer's FIN, whatever is still to be said, or have their own in TLS.
            ending = "quit"
        self.state = ending
        if ending == "leave":
            return
        if ending == "quit":
            number = self.number()
            connection.send(wire.frame(number, b"quit"))
            head, _ = connection.answer()
            if (head.number, head.word) != (number, b"bye"):
                raise ValueError(f"got {head} in answer to quit")
        elif ending == "ask and fin":
            self.ask(connection, [self.one() for _ in range(5)])
            self.state = ending
            connection.sock.shutdown(socket.SHUT_WR)
            self.read(connection)
        elif self.place.secure:
            try:
                connection.sock = connection.sock.unwrap()
            except ssl.SSLError as error:
                if error.reason != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                    raise
                # The server says that it is going, which has crossed this; `unwrap` takes no data.
                if not self.world.windows.troubled(self.place.name, self.began):
                    raise
                return
        else:
            connection.sock.shutdown(socket.SHUT_WR)
        self.state = f"the end after {ending}"
        while (found := connection.frame()) is not None:
            if found[0].word != b"going":  # it had begun to stop just then
                raise ValueError(f"{found[0]} after {ending}")
        self.ledger.count("ended in order")

    def lost(self, error: Exception) -> None:
        """The connection ended before it should."""
        connection, place = self.connection, self.place
        sent = sum(len(one.sent) for one in self.waiting)
        began = self.began
        if not self.answered and self.world.windows.troubled(place.name, began):
            self.ledger.count("turned away")
            return
        if isinstance(error, Ended) and error.word == "late" and self.world.windows.held_up(began):
            self.ledger.count("late, but held up")
            return
        acknowledged = sent
        if connection is not None and connection.sock.fileno() != -1 and not place.secure:
            acknowledged = max(0, sent - connection.unacknowledged())
        self.ledger.unanswered(
            acknowledged,
            f"{self.name} to {place.name}, {self.state}, after {self.answered} answers: "
            f"{type(error).__name__}: {error}",
            f"{time.monotonic() - began:.1f} s after its beginning; "
            f"{self.world.windows.describe(began)}",
        )


class SlowReader(Good):
    """Reads slowly, but fast enough, and gets everything."""

    weight = 4
    buffer = 8_192

    def talk(self, connection: Connection) -> None:
        self.rate = self.world.limits["minimum_rate"] * self.rng.uniform(4, 8)
        self.ask(connection, [self.request(b"give", b"60000")])
        receive = connection.receive

        def slowly() -> bytes:
            time.sleep(2_000 / self.rate)
            return connection.sock.recv(2_000)

        connection.receive = slowly  # type: ignore[method-assign]
        self.read(connection)
        connection.receive = receive  # type: ignore[method-assign]
        self.end(connection)


class SlowSender(Good):
    """Sends a long message slowly, but fast enough, and has it answered."""

    weight = 4
    kinds = ("native", "legacy")

    def talk(self, connection: Connection) -> None:
        rate = self.world.limits["minimum_rate"] * self.rng.uniform(4, 8)
        request = self.request(b"echo", self.rng.randbytes(80_000))
        self.waiting.append(request)
        self.state = "sending slowly"
        for start in range(0, len(request.sent), 2_000):
            connection.send(request.sent[start : start + 2_000])
            time.sleep(2_000 / rate)
        self.read(connection)
        self.end(connection)


GOOD: tuple[type[Client], ...] = (Good, SlowReader, SlowSender)
