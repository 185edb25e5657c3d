"""Whom a framer calls. Types alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from txasynchat.errors import MessageTooLong

__all__ = ["LimitReceiver", "PieceReceiver", "Receiver"]


class PieceReceiver(Protocol):
    """What every framer calls; each call may call methods of the framer."""

    def collect_incoming_data(self, data: bytes, /) -> object:
        """Take a piece of the current message; it is never empty."""

    def found_terminator(self) -> object:
        """The current message is complete."""


class LimitReceiver(Protocol):
    """What a framer calls whose messages are pulled."""

    def overflowed(self, error: MessageTooLong, /) -> object:
        """The current message broke the limit; called once for each such message."""


class Receiver(PieceReceiver, LimitReceiver, Protocol):
    """What a framer calls that has a limit, gives whole messages, or waits for what hooks return."""

    def message_received(self, message: bytes, /) -> object:
        """Take a whole message, which may be empty, in place of the two other calls."""

    def hook_returned(self, result: object, /) -> object:
        """
        One of the methods that take input returned something else than None; it may be a coroutine.

        If that has to be waited for, `StepwiseFramer.stop` is called here.
        """
