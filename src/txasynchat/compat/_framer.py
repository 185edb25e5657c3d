"""
The framer of the facade: what only legacy handlers do to a buffer while it is being delivered.

``async_chat.ac_in_buffer`` may be replaced inside any call, and ``handle_read`` may be called inside
a handler. ``asynchat`` cuts a piece off only after ``collect_incoming_data`` returned, from whatever
is in the buffer then; so does this class, for the same bytes in the same order of calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txasynchat.framing import Framer

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.framing.receivers import PieceReceiver

__all__ = ["LegacyFramer"]


class LegacyFramer(Framer):
    """A `Framer` with the freedoms of ``asynchat``: no limit, no whole messages, no pause."""

    __slots__ = ()

    @property
    def buffer(self) -> bytes:
        """
        The bytes not yet passed on. May be replaced at any moment.

        Inside ``collect_incoming_data`` the piece, with its terminator, is still among them, and is
        cut from the beginning of the new value when that returns.
        """
        return super().buffer

    @buffer.setter
    def buffer(self, data: bytes) -> None:
        self._disturb()
        self._buffer = data
        self._position = self._searched = 0

    def feed(self, data: bytes) -> None:
        """Append received bytes. In ``collect_incoming_data`` they are where the cut will be made."""
        self._disturb()
        self._buffer = self._buffer[self._position :] + data
        self._position = self._searched = 0

    if TYPE_CHECKING:

        def receive(self, receiver: PieceReceiver, data: bytes) -> None:
            """With no limit and no whole messages, the methods of this receiver are all it calls."""

    def deliver(
        self, receiver: PieceReceiver, get_terminator: Callable[[], Any] | None = None
    ) -> None:
        """Pass on what can be passed on. Inside a handler it goes on where the outer delivery is."""
        self._disturb()
        try:
            super().deliver(receiver, get_terminator)  # type: ignore[arg-type] # as in receive
        finally:
            self._disturb()  # or a short way that called the handler would take it for undisturbed

    def _piece_passed(self, piece: bytes, terminator: Any, held: int) -> None:
        if terminator:
            self._count += len(piece)
        self._buffer = self.buffer[-held:] if held else b""
        self._position = self._searched = 0

    def _end_passed(
        self, receiver: PieceReceiver, piece: bytes, matched: bytes | None, total: int
    ) -> bool:
        self._disturb()  # the cut may go beyond a replaced buffer
        return super()._end_passed(receiver, piece, matched, total)  # type: ignore[arg-type] # as in receive

    def _returned(self, receiver: PieceReceiver, result: object) -> None:
        """Ignore what a legacy handler returns."""
