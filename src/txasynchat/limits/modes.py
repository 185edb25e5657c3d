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

    __slots__ = ("_leave", "ended", "limits", "longest")

    def __init__(self, limits: Limits, longest: int | None, leave: Callable[[], None]) -> None:
        self.limits = limits
        self.longest = longest
        self._leave = leave
        #: Its block has ended, so that it does not come back at the end of another.
        self.ended = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        self.ended = True
        self._leave()
