"""
Messages as text: an `Inbox` that decodes them on their way to the handler, and an `Outbox` that encodes
what is pushed.

A handler without an encoding has neither, so they cost it nothing.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from txasynchat.errors import MalformedMessage
from txasynchat.protocol.inbox import Inbox
from txasynchat.protocol.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.errors import MessageTooLong

__all__ = ["TextInbox", "TextOutbox", "check_encoding"]


class TextInbox(Inbox):
    """
    An `Inbox` that decodes whole messages; pieces stay bytes, because one may end inside a character.

    Attributes:
        encoding, errors: see `bytes.decode`; to be set at once.
    """

    __slots__ = ("_decoder", "encoding", "errors")

    encoding: str
    errors: str

    @override
    def _prepare(self) -> None:
        super()._prepare()
        # While an over-long message comes in parts, which may end inside a character.
        self._decoder: codecs.IncrementalDecoder | None = None

    @override
    def receive(self, receiver: Any, data: bytes) -> None:
        through: Any = _Decoding(receiver, self) if self.whole else receiver
        super().receive(through, data)

    @override
    def deliver(self, receiver: Any, get_terminator: Callable[[], Any] | None = None) -> None:
        through: Any = _Decoding(receiver, self) if self.whole else receiver
        super().deliver(through, get_terminator)

    def decode(self, message: bytes) -> str:
        """
        Return *message* as text.

        Raises:
            MalformedMessage: it is not text in this encoding.
        """
        is_part = self._over_long is not None
        try:
            if not is_part and self._decoder is None:
                return message.decode(self.encoding, self.errors)
            if self._decoder is None:
                self._decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
            text = self._decoder.decode(message, not is_part)
        except UnicodeDecodeError as error:
            raise MalformedMessage(
                f"not {self.encoding} text: {error.reason} at byte {error.start}"
            ) from None
        if not is_part:
            self._decoder = None
        return text


class _Decoding:
    # Takes the receiver's place for one delivery; kept longer, it would be part of a cycle.

    __slots__ = ("_inbox", "_receiver")

    def __init__(self, receiver: Any, inbox: TextInbox) -> None:
        self._receiver = receiver
        self._inbox = inbox

    def message_received(self, message: bytes) -> object:
        result: object = self._receiver.message_received(self._inbox.decode(message))
        return result

    def overflowed(self, error: MessageTooLong) -> object:
        result: object = self._receiver.overflowed(error)
        return result

    def hook_returned(self, result: object) -> None:
        self._receiver.hook_returned(result)


class TextOutbox(Outbox):
    """An `Outbox` that takes text, too."""

    __slots__ = ("_encoding", "_errors")

    def __init__(self, encoding: str, errors: str) -> None:
        super().__init__()
        self._encoding, self._errors = encoding, errors

    @override
    def push(self, data: Any) -> None:
        super().push(self._encoded(data))

    @override
    def length(self, data: Any) -> int:
        return super().length(self._encoded(data))

    def _encoded(self, data: Any) -> Any:
        return data.encode(self._encoding, self._errors) if isinstance(data, str) else data


def check_encoding(owner: str, encoding: Any, errors: Any) -> None:
    """
    Check the ``encoding`` and ``encoding_errors`` of the class named *owner*.

    Raises:
        TypeError: one of them is not a string.
        ValueError: one of them is not known.
    """
    if encoding is None:
        return
    for name, value in (("encoding", encoding), ("encoding_errors", errors)):
        if not isinstance(value, str):
            raise TypeError(f"{owner}.{name} must be a string, not {value!r:.80}")
    try:
        "".encode(encoding)
        codecs.lookup_error(errors)
    except LookupError as error:
        raise ValueError(f"{owner}: {error}") from None
