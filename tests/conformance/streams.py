"""
Random byte streams read by an async_chat, without a network.

A stream is cut at random, and the handler that reads it changes its mind at random: other
terminators, its input buffer rewritten, errors, close. What it was called with, in which
order, and what it saw in its public attributes is the trace that two implementations are
compared by.

This module imports no asynchat: the class to drive is given to it.
"""

from __future__ import annotations

import itertools
import random

#: Small alphabet, so that terminators and false starts of them are common.
ALPHABET = b"ab\r\n"
TERMINATORS = (b"\n", b"\r\n", b"a", b"aba", b"aab", b"\r\n\r\n", b"bbbbb", b"ab\r\nab\r\n")

_numbers = itertools.count(1_000_000)


class Wire:
    """As much of a socket as a channel needs to read chunks; it has a number, but no descriptor."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks
        self.sent: list[bytes] = []
        self.number = next(_numbers)
        self.at_end = False

    def fileno(self) -> int:
        return self.number

    def setblocking(self, flag: bool) -> None:
        pass

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 7)

    def getsockopt(self, *args: int) -> int:
        return 0

    def close(self) -> None:
        pass

    def send(self, data: bytes) -> int:
        self.sent.append(bytes(data))
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self.chunks:
            if self.at_end:
                return b""
            raise BlockingIOError
        chunk = self.chunks.pop(0)
        if len(chunk) > size:
            self.chunks.insert(0, chunk[size:])
        return chunk[:size]


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """The same bytes in pieces: whole, single bytes, or anything between."""
    longest = rng.choice((1, 2, 5, 17, 64, len(data) or 1))
    pieces = []
    start = 0
    while start < len(data):
        size = rng.randint(1, longest)
        pieces.append(data[start : start + size])
        start += size
    return pieces


def any_terminator(rng: random.Random):
    """One that the stdlib accepts, of each kind."""
    kind = rng.random()
    if kind < 0.65:
        return rng.choice(TERMINATORS)
    if kind < 0.93:
        return rng.choice((1, 2, 3, 7, 20, 64))
    return rng.choice((None, b"", 0))


def handler_class(async_chat: type) -> type:
    """A subclass of the given async_chat that records its calls and acts at random."""

    class Reader(async_chat):
        def __init__(self, wire: Wire, rng: random.Random, restless: float) -> None:
            async_chat.__init__(self, wire, {})
            self.rng = rng
            self.restless = restless
            self.trace: list[object] = []
            self.allowed = 60  # so that a handler that feeds itself comes to an end

        def collect_incoming_data(self, data: bytes) -> None:
            self.trace.append(("collect", bytes(data)))
            term = self.terminator
            self.act(counting=isinstance(term, int) and len(data) < term, in_collect=True)

        def found_terminator(self) -> None:
            self.trace.append(("found", self.terminator, bytes(self.ac_in_buffer)))
            self.act()

        def handle_close(self) -> None:
            self.trace.append("close")
            self.close()

        def handle_error(self) -> None:
            self.trace.append("error")

        def act(self, *, counting: bool = False, in_collect: bool = False) -> None:
            rng = self.rng
            if rng.random() > self.restless or not self.allowed:
                return
            self.allowed -= 1
            act = rng.random()
            if act < 0.55 and counting:
                # The stdlib then subtracts from whatever was set: a TypeError, or a
                # count that is too small or negative. Not compared.
                return
            if act < 0.5:
                self.set_terminator(any_terminator(rng))
            elif act < 0.55:
                self.terminator = any_terminator(rng)
            elif act < 0.62:
                self.trace.append(("saw", bytes(self.ac_in_buffer), self.get_terminator()))
            elif act < 0.68:
                self.ac_in_buffer = b""
            elif act < 0.74:
                self.ac_in_buffer = bytes(rng.choices(ALPHABET, k=rng.randint(1, 12)))
            elif act < 0.80:
                self.ac_in_buffer = self.ac_in_buffer + b"ab\r\n"
            elif act < 0.84:
                self.ac_in_buffer = self.ac_in_buffer[rng.randint(0, 5) :]
            elif act < 0.88:
                self.push(b"x")
            elif act < 0.92:
                self.close()
            elif act < 0.95:
                self.discard_buffers()
            elif act < 0.97 and not in_collect:
                # Inside collect_incoming_data the stdlib holds a position into the buffer
                # that a nested read shifts: it then drops or repeats bytes. Not compared.
                self.handle_read()
            else:
                raise ValueError("made to fail")

    return Reader


def trace(reader: type, seed: int) -> list[object]:
    """All calls of one handler for one stream."""
    rng = random.Random(seed)
    data = bytes(rng.choices(ALPHABET, weights=(5, 3, 2, 2), k=rng.randint(0, 160)))
    chunks = cut(data, rng)
    handler = reader(Wire(chunks), rng, rng.choice((0.0, 0.05, 0.3)))
    handler.ac_in_buffer_size = rng.choice((1, 3, 16, 65536))
    handler.set_terminator(any_terminator(rng))
    if rng.random() < 0.05:
        handler.ac_in_buffer = b"left over\r\n"
    for at_end in (False, True):
        handler.socket.at_end = at_end
        while chunks or at_end:
            try:
                handler.handle_read()
            except ValueError:  # only what act() raises
                handler.trace.append("raised")
            if at_end:
                break
    handler.trace.append(
        (bytes(handler.ac_in_buffer), handler.terminator, b"".join(handler.socket.sent))
    )
    return handler.trace


def differences(reference: type, candidate: type, seeds: range) -> list[str]:
    """
    Find where two async_chat classes call their handlers differently.

    Args:
        reference: the class that is right by definition.
        candidate: the class under test.
        seeds: one stream each.

    Returns:
        For each stream that differs, its seed and the first calls that do.
    """
    right, tested = handler_class(reference), handler_class(candidate)
    found = []
    for seed in seeds:
        expected, got = trace(right, seed), trace(tested, seed)
        if expected != got:
            at = next(
                (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
                min(len(expected), len(got)),
            )
            found.append(
                f"stream {seed}, call {at}: stdlib {expected[at : at + 3]}, here {got[at : at + 3]}"
                f" after {expected[max(0, at - 3) : at]}"
            )
    return found
