"""What does it cost to cut a stream into messages, in memory, with no socket?

Every competitor gets the same chunks of bytes and reports how many messages, and how many bytes in
them, its handler was given; both are checked after each run. Handlers do nothing else, so the
figures are the cost of framing and of the calls. Time is CPU time of this process.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from report import Table, Target
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import LineOnlyReceiver, LineReceiver
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from report import Verdict

KIB = 1024
MIB = 1024 * KIB

TWO_CALLS = "AsyncChat, two calls"
ONE_CALL = "AsyncChat, message_received"
ASYNC_TWO_CALLS = "AsyncChat, async found_terminator"
ASYNC_ONE_CALL = "AsyncChat, async message_received"
FRAMER = "Framer, two calls"
FRAMER_WHOLE = "Framer, message_received"
FACADE = "compat.asynchat"
STDLIB = "asynchat" if sys.version_info < (3, 12) else "asynchat (pyasynchat)"
FLOOR = "floor: bytes.split or slices"


@dataclass(frozen=True)
class Case:
    """One shape of input."""

    name: str
    message: bytes
    messages: int
    chunk: int
    terminator: bytes | int = b"\n"
    targets: tuple[Target, ...] = ()

    def chunks(self) -> list[bytes]:
        """The stream, cut."""
        end = self.terminator if isinstance(self.terminator, bytes) else b""
        stream = (self.message + end) * self.messages
        return [stream[at : at + self.chunk] for at in range(0, len(stream), self.chunk)]

    @property
    def expected(self) -> tuple[int, int]:
        """Messages, and bytes in them, terminators left out."""
        return self.messages, self.messages * len(self.message)

    def smaller(self, divisor: int, *, message: bool) -> Case:
        """The same shape at a size that a quadratic competitor finishes."""
        if message:
            size = max(1, len(self.message) // divisor)
            return Case(self.name, self.message[:size], self.messages, self.chunk, self.terminator)
        messages = max(1, self.messages // divisor)
        chunk = max(1, self.chunk // divisor)
        return Case(self.name, self.message, messages, chunk, self.terminator)


def cases(scale: int) -> list[Case]:
    """All shapes; `scale` divides the amount of input."""
    asynchat_target = (Target(TWO_CALLS, STDLIB, at_most=1.1),)
    line = b"x" * 63
    return [
        Case(
            "64-byte lines in 64 KiB chunks",
            line,
            65536 // scale,
            64 * KIB,
            targets=(
                Target(TWO_CALLS, STDLIB, at_least=4.0),
                Target(ONE_CALL, "LineOnlyReceiver", at_least=1.0),
                Target(ASYNC_TWO_CALLS, TWO_CALLS, at_most=1.5),
                Target(ASYNC_ONE_CALL, ONE_CALL, at_most=1.5),
            ),
        ),
        Case("64-byte lines, one a chunk", line, 32768 // scale, 64, targets=asynchat_target),
        Case("64-byte lines, one byte a chunk", line, 2048 // scale, 1, targets=asynchat_target),
        Case(
            "one 16 MiB message in 4 KiB chunks",
            b"x" * (16 * MIB // (scale if scale > 100 else 1)),
            1,
            4 * KIB,
            targets=asynchat_target,
        ),
        Case(
            "1 MiB of 3-byte lines in one chunk",
            b"xy",
            MIB // 3 // (scale if scale > 100 else 1),
            MIB,
            targets=(Target(TWO_CALLS, at_most=858),),  # the whole in 0.3 s
        ),
        Case(
            "4-byte frames, an integer terminator set for each, in 64 KiB chunks",
            b"wxyz",
            131072 // scale,
            64 * KIB,
            terminator=4,
            targets=(Target(TWO_CALLS, STDLIB, at_least=3.0),),
        ),
    ]


# Each competitor is a function from a case and its chunks to (messages, bytes); what it builds
# before the first byte is counted too, and is small beside the rest.


def with_asynchat(asynchat, case: Case, chunks: list[bytes]) -> tuple[int, int]:
    class Handler(asynchat.async_chat):
        messages = size = 0

        def recv(self, _size: int) -> bytes:
            return next(incoming)

        def collect_incoming_data(self, data: bytes) -> None:
            self.size += len(data)

        def found_terminator(self) -> None:
            self.messages += 1

    class FrameHandler(Handler):
        def found_terminator(self) -> None:
            self.messages += 1
            self.set_terminator(case.terminator)

    handler = (FrameHandler if isinstance(case.terminator, int) else Handler)(map={})
    # The standard library reads 64 KiB at most, and so the largest chunk here is one read.
    handler.ac_in_buffer_size = case.chunk
    handler.set_terminator(case.terminator)
    incoming = iter(chunks)
    for _ in chunks:
        handler.handle_read()
    return handler.messages, handler.size


def with_two_calls(case: Case, chunks: list[bytes]) -> tuple[int, int]:
    from txasynchat import AsyncChat

    class Handler(AsyncChat):
        max_message_length = None
        messages = size = 0

        def collect_incoming_data(self, data: bytes) -> None:
            self.size += len(data)

        def found_terminator(self) -> None:
            self.messages += 1

    class FrameHandler(Handler):
        def found_terminator(self) -> None:
            self.messages += 1
            self.set_terminator(case.terminator)

    return _drive_ours(FrameHandler if isinstance(case.terminator, int) else Handler, case, chunks)


def with_message_received(case: Case, chunks: list[bytes]) -> tuple[int, int]:
    from txasynchat import AsyncChat

    class Handler(AsyncChat):
        max_message_length = None
        messages = size = 0

        def message_received(self, message: bytes) -> None:
            self.messages += 1
            self.size += len(message)

    class FrameHandler(Handler):
        def message_received(self, message: bytes) -> None:
            self.messages += 1
            self.size += len(message)
            self.set_terminator(case.terminator)

    return _drive_ours(FrameHandler if isinstance(case.terminator, int) else Handler, case, chunks)


def with_async_hooks(whole: bool, case: Case, chunks: list[bytes]) -> tuple[int, int]:
    """Hooks that are coroutines, and have nothing to wait for."""
    from txasynchat import AsyncChat

    class Counting(AsyncChat):
        max_message_length = None
        messages = size = 0

    class Whole(Counting):
        async def message_received(self, message: bytes) -> None:
            self.messages += 1
            self.size += len(message)

    class WholeFrames(Counting):
        async def message_received(self, message: bytes) -> None:
            self.messages += 1
            self.size += len(message)
            self.set_terminator(case.terminator)

    class Pieces(Counting):
        def collect_incoming_data(self, data: bytes) -> None:
            self.size += len(data)

        async def found_terminator(self) -> None:
            self.messages += 1

    class FramesInPieces(Pieces):
        async def found_terminator(self) -> None:
            self.messages += 1
            self.set_terminator(case.terminator)

    handlers = (Whole, WholeFrames) if whole else (Pieces, FramesInPieces)
    return _drive_ours(handlers[isinstance(case.terminator, int)], case, chunks)


def _drive_ours(handler_class, case: Case, chunks: list[bytes]) -> tuple[int, int]:
    handler = handler_class()
    handler.set_terminator(case.terminator)
    return _drive_protocol(handler, chunks)


def _drive_protocol(protocol, chunks: list[bytes]) -> tuple[int, int]:
    protocol.makeConnection(StringTransport())
    for chunk in chunks:
        protocol.dataReceived(chunk)
    return protocol.messages, protocol.size


def with_line_receiver(base, case: Case, chunks: list[bytes]) -> tuple[int, int]:
    class Handler(base):
        delimiter = case.terminator
        MAX_LENGTH = 32 * MIB
        messages = size = 0

        @override
        def lineReceived(self, line: bytes) -> None:
            self.messages += 1
            self.size += len(line)

    return _drive_protocol(Handler(), chunks)


def with_stream_reader(case: Case, chunks: list[bytes]) -> tuple[int, int]:
    """Resume the reading coroutine by hand: an event loop's own turns are not framing."""
    loop = asyncio.new_event_loop()
    reader = asyncio.StreamReader(limit=32 * MIB, loop=loop)
    consumer = _consume(case, reader.readuntil, reader.readexactly)
    try:
        consumer.send(None)
        for chunk in chunks:
            reader.feed_data(chunk)
            consumer.send(None)
    except StopIteration as finished:
        return finished.value
    finally:
        loop.close()
    raise AssertionError("StreamReader wanted more")


def with_tornado(case: Case, chunks: list[bytes]) -> tuple[int, int]:
    from tornado.iostream import BaseIOStream

    class MemoryStream(BaseIOStream):
        def read_from_fd(self, buffer: bytearray) -> int | None:
            chunk = next(incoming, None)
            if chunk is None:  # it reads ahead, until the "socket" would block
                return None
            buffer[: len(chunk)] = chunk
            return len(chunk)

        def close_fd(self) -> None:
            pass

    async def consume() -> tuple[int, int]:
        stream = MemoryStream(read_chunk_size=max(64 * KIB, case.chunk))
        return await _consume(case, stream.read_until, stream.read_bytes)

    incoming = iter(chunks)
    return asyncio.run(consume())


async def _consume(case: Case, read_until, read_exactly) -> tuple[int, int]:
    """Await exactly the messages of the case; both readers keep the terminator."""
    size = 0
    terminator = case.terminator
    if isinstance(terminator, int):
        for _ in range(case.messages):
            size += len(await read_exactly(terminator))
        return case.messages, size
    for _ in range(case.messages):
        size += len(await read_until(terminator))
    return case.messages, size - case.messages * len(terminator)


class _Counter:
    """A receiver for a bare framer; set the terminator again for frames."""

    messages = size = 0

    def __init__(self, framer, again: int | None) -> None:
        self.framer = framer
        self.again = again

    def collect_incoming_data(self, data: bytes) -> None:
        self.size += len(data)

    def found_terminator(self) -> None:
        self.messages += 1
        if self.again:
            self.framer.set_terminator(self.again)

    def message_received(self, message: bytes) -> None:
        self.size += len(message)
        self.found_terminator()


class _LineCounter(_Counter):
    def found_terminator(self) -> None:
        self.messages += 1

    def message_received(self, message: bytes) -> None:
        self.messages += 1
        self.size += len(message)


def with_framer(whole: bool, case: Case, chunks: list[bytes]) -> tuple[int, int]:
    """The engine without protocol or transport."""
    from txasynchat.framing import Framer

    framer = Framer(case.terminator, whole=whole)
    frames = isinstance(case.terminator, int)
    receiver = _Counter(framer, case.terminator) if frames else _LineCounter(framer, None)
    for chunk in chunks:
        framer.receive(receiver, chunk)
    return receiver.messages, receiver.size


def with_split(case: Case, chunks: list[bytes]) -> tuple[int, int]:
    """As little as Python can do, with no call for a message."""
    messages = size = 0
    terminator = case.terminator
    if isinstance(terminator, int):
        rest = b""
        for chunk in chunks:
            data = rest + chunk if rest else chunk
            end = len(data) - len(data) % terminator
            for at in range(0, end, terminator):
                messages += 1
                size += len(data[at : at + terminator])
            rest = data[end:]
        return messages, size
    parts: list[bytes] = []
    for chunk in chunks:
        lines = chunk.split(terminator)
        parts.append(lines[0])
        if len(lines) > 1:
            lines[0] = b"".join(parts)
            parts = [lines.pop()]
            for line in lines:
                messages += 1
                size += len(line)
    return messages, size


Competitor = "Callable[[Case, list[bytes]], tuple[int, int]]"


def competitors() -> Iterator[tuple[str, Competitor]]:
    """Everything that can be imported here, ours first."""
    if importable("txasynchat.protocol"):
        yield TWO_CALLS, with_two_calls
        yield ONE_CALL, with_message_received
        yield ASYNC_TWO_CALLS, partial(with_async_hooks, False)
        yield ASYNC_ONE_CALL, partial(with_async_hooks, True)
    if importable("txasynchat.framing"):
        yield FRAMER, partial(with_framer, False)
        yield FRAMER_WHOLE, partial(with_framer, True)
    if importable("txasynchat.compat.asynchat"):
        from txasynchat.compat import asynchat as ours

        yield FACADE, partial(with_asynchat, ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if importable("asynchat"):
            import asynchat

            yield STDLIB, partial(with_asynchat, asynchat)
    yield "LineReceiver", partial(with_line_receiver, LineReceiver)
    yield "LineOnlyReceiver", partial(with_line_receiver, LineOnlyReceiver)
    yield "asyncio StreamReader", with_stream_reader
    if importable("tornado.iostream"):
        yield "Tornado", with_tornado
    yield FLOOR, with_split


def importable(module: str) -> bool:
    """Import it, or say that what is in it is left out."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(f"left out: {error}")
        return False
    return True


def reduced(name: str, case: Case) -> tuple[Case, str]:
    """A smaller case for those whose time grows with the square of it."""
    if len(case.message) > MIB and name in {"LineReceiver", "LineOnlyReceiver"}:
        return case.smaller(16, message=True), "on 1/16 of the message; grows with its square"
    if case.chunk == MIB and name in {STDLIB, "LineReceiver"}:
        return case.smaller(16, message=False), "on 1/16 of the chunk; grows with its square"
    return case, ""


def takes_part(name: str, case: Case) -> bool:
    """The receivers of Twisted know delimiters only."""
    return isinstance(case.terminator, bytes) or not name.startswith("Line")


def run_once(competitor: Competitor, case: Case, chunks: list[bytes]) -> float:
    """CPU nanoseconds per message, after checking what arrived."""
    started = time.process_time_ns()
    answer = competitor(case, chunks)
    elapsed = time.process_time_ns() - started
    if answer != case.expected:
        raise AssertionError(f"{case.name}: got {answer}, expected {case.expected}")
    return elapsed / case.messages


SCALES = {"full": 1, "quick": 4, "smoke": 1024}


def main(size: str, repeats: int) -> list[Verdict]:
    """Print one table a case."""
    verdicts = []
    contestants = list(competitors())
    for case in cases(SCALES[size]):
        table = Table(f"Framing: {case.name}", "CPU ns per message", case.targets)
        runs = {}
        for name, competitor in contestants:
            if takes_part(name, case):
                actual, table.remarks[name] = reduced(name, case)
                runs[name] = partial(run_once, competitor, actual, actual.chunks())
        if case.messages == 1:
            # Sizes differ between the rows, so count bytes.
            table.unit = "CPU ns per KiB"
            runs = {n: partial(_per_kib, r, reduced(n, case)[0]) for n, r in runs.items()}
        table.measure(runs, repeats)
        table.notes = [f"{case.messages:,} messages checked in every run"]
        verdicts += table.print()
    return verdicts


def _per_kib(run: Callable[[], float], case: Case) -> float:
    return run() / (len(case.message) / KIB)
