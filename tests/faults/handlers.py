"""
The three kinds of handlers that the server has: `AsyncChat`, a legacy ``async_chat``, and an ordinary
Twisted protocol. They say the same.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from zlib import crc32

from twisted.internet import reactor
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from typing_extensions import override

import wire
from txasynchat import AsyncChat
from txasynchat.compat import asynchat

#: What happened, of which the server gives an account.
counts: Counter[str] = Counter()
#: What nobody wanted.
wrong: Counter[str] = Counter()


#: Kinds of handlers that cannot be built at present.
unbuildable: set[str] = set()


class Deliberate(Exception):
    """What a handler raises when a client asks for it."""


def check(kind):
    """Raise where a handler of this kind is made, if it is not to be had."""
    if kind in unbuildable:
        counts["not built"] += 1
        raise Deliberate("a constructor")


class Pattern:
    """A producer of the bytes of a ``give``; *fails* has it raise instead of giving the second half."""

    def __init__(self, number: int, length: int, *, fails: bool = False) -> None:
        self.rest = wire.frame(number, b"ok", wire.pattern(number, length))
        self.least = len(self.rest) // 2 if fails else 0

    def more(self) -> bytes:
        if self.least and len(self.rest) <= self.least:
            raise Deliberate("a producer")
        piece, self.rest = self.rest[:10_000], self.rest[10_000:]
        return piece


def checked(head: wire.Head, body: bytes) -> bool:
    """Return whether a request has come as it was sent."""
    return len(body) == head.length and crc32(body) == head.checksum


# -- native


class Native(AsyncChat):
    terminator = wire.END
    max_message_length = 500
    close_timeout = 3.0
    head: wire.Head | None = None

    def __init__(self):
        check("native")

    @override
    def handle_connect(self):
        counts["native connected"] += 1

    @override
    def message_received(self, message):
        head = self.head
        if head is None:
            try:
                head = wire.parse(message)
                if head.length > wire.LONGEST:
                    raise ValueError(message)
            except ValueError:
                counts["garbage refused"] += 1
                self.push(wire.frame(0, b"garbage"))
                self.close()
                return None
            if head.length:
                self.head = head
                self.expect(head.length, wire.LONGEST)
                return None
            message = b""
        else:
            self.head = None
            self.set_terminator(wire.END)
        return self.act(head, message)

    def act(self, head, body):
        word = head.word
        if not checked(head, body):
            wrong["a request came otherwise than it was sent"] += 1
        elif word == b"echo":
            self.push(wire.frame(head.number, b"ok", body))
        elif word == b"give":
            self.push_with_producer(Pattern(head.number, int(body)))
        elif word == b"wait":
            return self.later(head, body)
        elif word == b"raise":
            return self.fail(head, body)
        elif word == b"quit":
            self.push(wire.frame(head.number, b"bye"))
            self.close()
        return None

    async def later(self, head, body):
        await deferLater(reactor, int(body) / 1000)
        self.push(wire.frame(head.number, b"ok", body))

    def fail(self, head, body):
        counts["raised"] += 1
        if body == b"producer":
            self.push_with_producer(Pattern(head.number, 100_000, fails=True))
            return None
        if body == b"later":
            return self.fail_later()
        if body == b"end":
            self.raises_at_end = True
            self.close()
            return None
        self.push(wire.frame(head.number, b"ok", body))
        raise Deliberate("a hook")

    async def fail_later(self):
        await deferLater(reactor, 0.01)
        raise Deliberate("a coroutine")

    raises_at_end = False

    @override
    def handle_timeout(self, kind):
        counts[f"timeout {kind}"] += 1
        self.push(wire.frame(0, b"late"))

    @override
    def handle_shutdown(self):
        # Whoever is served is not cut off: it hears of it, and says when it is done.
        self.push(wire.frame(0, b"going"))

    @override
    def handle_end(self, reason):
        counts["native ended"] += 1
        if reason is not None:
            counts[f"ended by {type(reason).__name__}"] += 1
        if self.raises_at_end:
            raise Deliberate("handle_end")


# -- legacy


class Legacy(asynchat.async_chat):
    ended = False
    late = False

    def __init__(self, sock):
        check("legacy")
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(wire.END)
        self.head = None
        counts["legacy connected"] += 1

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        body = self._get_data()
        head = self.head
        if head is None:
            try:
                head = wire.parse(body)
                if head.length > wire.LONGEST:
                    raise ValueError(body)
            except ValueError:
                counts["garbage refused"] += 1
                self.push(wire.frame(0, b"garbage"))
                asynchat.async_chat.close_when_done(self)
                return
            if head.length:
                self.head = head
                self.set_terminator(head.length)
                return
            body = b""
        else:
            self.head = None
            self.set_terminator(wire.END)
        word = head.word
        if not checked(head, body):
            wrong["a request came otherwise than it was sent"] += 1
        elif word in (b"echo", b"wait"):
            self.push(wire.frame(head.number, b"ok", body))
        elif word == b"give":
            self.push_with_producer(Pattern(head.number, int(body)))
        elif word == b"raise":
            counts["raised"] += 1
            if body == b"producer":
                self.push_with_producer(Pattern(head.number, 100_000, fails=True))
                return
            raise Deliberate("a legacy handler")
        elif word == b"quit":
            self.push(wire.frame(head.number, b"bye"))
            asynchat.async_chat.close_when_done(self)

    def close_when_done(self):
        if self.late:
            asynchat.async_chat.close_when_done(self)
        else:  # called by a server that stops
            self.push(wire.frame(0, b"going"))

    def handle_error(self):
        error = sys.exc_info()[1]
        if not isinstance(error, Deliberate | OSError):
            wrong["in a legacy handler: " + traceback.format_exc()] += 1
        self.close()

    def close(self):
        if not self.ended:
            self.ended = True
            counts["legacy ended"] += 1
        asynchat.async_chat.close(self)


def legacy_timeout(channel, kind):
    counts[f"timeout {kind}"] += 1
    channel.late = True
    channel.push(wire.frame(0, b"late"))


# -- ordinary


class Ordinary(Protocol):
    def __init__(self):
        check("ordinary")
        self.buffer = b""
        self.going = False

    @override
    def connectionMade(self):
        counts["ordinary connected"] += 1

    @override
    def dataReceived(self, data):
        self.buffer += data
        while not self.going:
            line, end, rest = self.buffer.partition(wire.END)
            try:
                if not end:
                    if len(line) > 500:
                        raise ValueError
                    return
                head = wire.parse(line)
                if head.length > wire.LONGEST:
                    raise ValueError
            except ValueError:
                counts["garbage refused"] += 1
                self.write(0, b"garbage")
                self.end()
                return
            if len(rest) < head.length:
                return
            body, self.buffer = rest[: head.length], rest[head.length :]
            self.act(head, body)

    def write(self, number, word, body=b""):
        self.transport.write(wire.frame(number, word, body))

    def end(self):
        self.going = True
        self.transport.loseConnection()

    def act(self, head, body):
        word = head.word
        if not checked(head, body):
            wrong["a request came otherwise than it was sent"] += 1
        elif word in (b"echo", b"wait"):
            self.write(head.number, b"ok", body)
        elif word == b"give":
            self.write(head.number, b"ok", wire.pattern(head.number, int(body)))
        elif word == b"raise":
            counts["raised"] += 1
            raise Deliberate("dataReceived")
        elif word == b"quit":
            self.write(head.number, b"bye")
            self.end()

    def handle_timeout(self, kind):
        counts[f"timeout {kind}"] += 1
        self.write(0, b"late")

    def handle_shutdown(self):
        self.write(0, b"going")

    @override
    def connectionLost(self, reason=None):
        counts["ordinary ended"] += 1
