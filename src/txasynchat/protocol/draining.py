"""
Who is told that the output queue has become empty: `AsyncChat.handle_drained`, `AsyncChat.drained`.

There is a `Draining` only while something waits for that, so a queue that is always emptied at once
costs nothing.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

__all__ = ["AT_ONCE", "Draining"]

#: Bytes that may be sent between two iterations of the reactor while `AsyncChat.drained` fires at once.
#: Without it a coroutine that sends to a fast reader would never let others have their turn.
AT_ONCE = 1 << 20


class Draining:
    """
    What is to be told when the queue is empty.

    Attributes:
        heard: the hook is to be called.
    """

    __slots__ = ("_waiting", "heard")

    def __init__(self) -> None:
        self.heard = False
        self._waiting: list[Deferred[None]] = []

    @property
    def awaited(self) -> bool:
        """Somebody waits."""
        return bool(self._waiting)

    def wait(self) -> Deferred[None]:
        """Return what fires when the queue is empty."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def over(self, error: BaseException | None = None) -> None:
        """The queue is empty; or, because of *error*, what was in it will never be sent."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if error is None:
                each.callback(None)
            else:
                each.errback(error)
