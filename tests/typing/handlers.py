"""
Handlers as applications write them. Checked by mypy, never run.
"""

from collections.abc import Iterator
from io import BytesIO
from typing import assert_type

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory
from typing_extensions import override

from txasynchat import (
    AsyncChat,
    ChatError,
    FileProducer,
    LengthPrefix,
    MessageTooLong,
    Netstring,
    Overflow,
    State,
    simple_producer,
)


class Echo(AsyncChat):
    terminator = b"\r\n"
    max_message_length = None
    overflow = Overflow.SKIP

    @override
    def message_received(self, message: bytes) -> None:
        self.push(message + b"\r\n")

    @override
    def message_too_long(self, error: MessageTooLong) -> None:
        assert_type(error.limit, int)
        assert_type(error.sample, bytes)


class Later(AsyncChat):
    """Hooks that wait."""

    terminator = b"\n"

    @override
    async def handle_connect(self) -> None:
        await self.look_up(b"")

    @override
    def message_received(self, message: bytes) -> Deferred[None]:
        return self.look_up(message).addCallback(self.push)

    @override
    async def message_too_long(self, error: MessageTooLong) -> None:
        self.push(await self.look_up(error.sample))

    @override
    async def handle_shutdown(self) -> None:
        await self.look_up(b"")
        self.close()

    @override
    async def handle_end(self, reason: ChatError | None) -> None:
        await self.look_up(b"")

    def look_up(self, key: bytes) -> Deferred[bytes]:
        return succeed(key)


class LaterInPieces(AsyncChat):
    @override
    def collect_incoming_data(self, data: bytes) -> Deferred[str] | None:
        return succeed("") if data else None

    @override
    async def found_terminator(self) -> None:
        pass


class Changing(AsyncChat):
    terminator = (b"\n", b"\r\n")

    def __init__(self, name: str) -> None:
        self.name = name
        self.pieces: list[bytes] = []

    @override
    def handle_connect(self) -> None:
        for term in (b"\n", 3, None, (b"\n", b"\r\n"), LengthPrefix("!I", limit=None)):
            self.set_terminator(term)

    @override
    def collect_incoming_data(self, data: bytes) -> None:
        self.pieces.append(data)

    @override
    def found_terminator(self) -> None:
        assert_type(self.encoding, str | None)
        assert_type(self.matched_terminator, bytes)
        assert_type(self.unsent, int)
        assert_type(self.state, State)
        self.pause()
        self.resume()


class Text(AsyncChat):
    encoding = "utf-8"
    terminator = Netstring()

    @override
    def message_received(self, message: str) -> None:
        self.push(message)


def rows() -> Iterator[bytes]:
    yield b"row"


def send_everything(chat: AsyncChat) -> None:
    chat.push(b"bytes")
    chat.push(bytearray(b"bytes"))
    chat.push(memoryview(b"bytes"))
    chat.push("text")  # for handlers with an encoding
    chat.push(3)  # type: ignore[arg-type] # no bytes
    chat.push_with_producer(simple_producer(b"data", 512))
    chat.push_with_producer(FileProducer("name"))
    chat.push_with_producer(BytesIO(b"data"))
    chat.push_with_producer(rows())
    chat.push_with_producer([b"a", b"b"])
    chat.push_with_producer(3)  # type: ignore[arg-type] # no producer
    chat.set_terminator("text")  # type: ignore[arg-type] # text is refused
    chat.close_when_done()
    chat.close()
    chat.abort()


def twisted_takes_it() -> Factory:
    return Factory.forProtocol(Echo)
