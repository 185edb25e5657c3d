"""
Received bytes that wait to be passed on. Nothing here knows messages.

Nothing re-slices the rest of the buffer for a message, so the cost is linear in the number of bytes
for every size of message and of chunk.
"""

from __future__ import annotations

__all__ = ["ReceivedBytes"]


class ReceivedBytes:
    """
    One `bytes` object and a position in it, and what came behind; delivery stops and goes.
    """

    __slots__ = ("_backlog", "_buffer", "_position", "_searched", "closed", "paused")

    def __init__(self) -> None:
        self.paused = self.closed = False
        # What is left: _buffer from _position on, then _backlog.
        self._buffer = b""
        self._position = 0
        self._backlog: list[bytes] | None = None
        # No delimiter begins in the buffer before this position.
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """
        Append received bytes; nothing is delivered. May be called from inside any handler.
        """
        if self.closed or not data:
            return
        if self._buffer:
            self._disturb()
        if self._position < len(self._buffer) or self._backlog:
            if self._backlog is None:
                self._backlog = [data]
            else:
                self._backlog.append(data)
        else:
            self._buffer = data
            self._position = self._searched = 0

    @property
    def buffer(self) -> bytes:
        """
        The bytes that are not yet passed on, as ``async_chat.ac_in_buffer`` would hold them now.

        Inside ``collect_incoming_data`` the piece itself is still among them; inside
        ``found_terminator`` the message and its terminator are gone.
        """
        self._disturb()
        self._join()
        return self._buffer

    def _join(self) -> None:
        """
        Make what is left one `bytes` object that begins at position 0.
        """
        position = self._position
        if self._backlog:
            self._buffer = b"".join((memoryview(self._buffer)[position:], *self._backlog))
            self._backlog = None
        elif position:
            self._buffer = self._buffer[position:]
        self._searched = max(0, self._searched - position)
        self._position = 0

    def pause(self) -> None:
        """
        Deliver nothing from the next message or piece on; a message just ending is still ended.
        """
        self.paused = True
        self._disturb()

    def resume(self) -> None:
        """
        Allow delivery again; it goes on with the next `deliver`, or at once inside a running one.
        """
        self.paused = self.closed

    def _disturb(self) -> None:
        """
        Something happens that a short way does not expect: make the position exact.
        """
