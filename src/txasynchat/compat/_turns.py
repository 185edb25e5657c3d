"""
Threads take turns to send on a channel.

Any thread may push, and whoever pushes sends at once.  Two that send the same piece, or cut what the
other one has just sent, would repeat data, lose it, or mix it up.  So one thread sends at a time; the
others leave what they have in the queue, and the one that sends goes on with it.  Nobody waits.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, TypeVar

from txasynchat.compat._attributes import own

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Turn", "turn_of"]

# Guards the making of a turn.
_making = Lock()

_T = TypeVar("_T", bound="Turn")


class Turn:
    """
    Whose turn it is to send on one channel.

    Attributes:
        free: a list with one item; the thread that has popped it sends.  (Any lock costs four times as
            much.)
        owner: the ident of that thread; 0 when nobody sends, or somebody who calls no handler.
        wanted: an item for each time that another thread wanted to send meanwhile.
    """

    __slots__ = ("free", "owner", "wanted")

    def __init__(self) -> None:
        self.free = [None]
        self.owner = 0
        self.wanted: list[None] = []

    def send(self, send_chunk: Callable[[], None]) -> None:
        """
        Call *send_chunk*, unless another thread is sending: that one then calls its own once more.

        What is to be sent must be in the queue already.  From inside *send_chunk*, where a producer or
        a handler pushes, it is called at once.
        """
        me = get_ident()
        noted = False
        while True:
            try:
                self.free.pop()
            except IndexError:
                if self.owner == me:
                    send_chunk()
                    return
                if noted:
                    return
                self.wanted.append(None)  # it looks for this after its turn, or we get the next one
                noted = True
                continue
            self.owner = me
            if noted:
                with suppress(IndexError):
                    self.wanted.pop()
                noted = False
            try:
                send_chunk()
            finally:
                self.owner = 0
                self.free.append(None)
            if not self.wanted:
                return
            noted = True

    def lend(self, call: Callable[[], None]) -> None:
        """
        Call a handler from within a turn whose owner was not noted, to save time: it may send.

        If nobody's turn is that, *call* is called all the same.
        """
        if self.free or self.owner:
            call()
            return
        self.owner = get_ident()
        try:
            call()
        finally:
            self.owner = 0


def turn_of(channel: Any, make: Callable[[], _T]) -> _T:
    """
    Return the turn of a channel; *make* makes it when it is first needed, so that an idle one has none.
    """
    try:
        turn: _T | None = channel._dispatcher__turn
    except AttributeError:  # __init__ was not called
        turn = None
    if not isinstance(turn, Turn):  # its __getattr__ may have answered
        with _making:
            turn = own(channel, "_dispatcher__turn")
            if turn is None:
                turn = channel._dispatcher__turn = make()
    return turn
