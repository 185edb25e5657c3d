"""
`Mode`: limits of one connection for a part of its conversation, such as the text of a mail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.limits.options import Limits

__all__ = ["Mode"]


class Mode:
    """
    What `AsyncChat.set_limits` returns: a ``with`` block of it ends with what held before.

    Args:
        limits: what holds; the rest is as outside.
        longest: the `max_message_length` outside of all modes.
        leave: called at the end of the block.
    """

    __slots__ = ("_leave", "ended", "entered", "limits", "longest")

    def __init__(self, limits: Limits, longest: int | None, leave: Callable[[], None]) -> None:
        self.limits = limits
        self.longest = longest
        self._leave: Callable[[], None] | None = leave
        self.entered = False
        #: Its block has ended, so that it does not come back at the end of another.
        self.ended = False

    def __enter__(self) -> None:
        self.entered = True

    def replaced(self) -> None:
        """Another holds now. Without a block nobody returns to what held before: forget it."""
        if not self.entered:
            self._leave = None

    def __exit__(self, *_error: object) -> None:
        self.ended = True
        if self._leave is not None:
            self._leave()
