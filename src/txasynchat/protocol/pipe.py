"""
`AsyncChat.pipe_to`: what one connection receives goes to another, as it came.

Nothing is cut into messages, and each chunk stays the object that the transport read. The source's
inbox holds delivery as ever: because the application paused it, because it is not open, or because too
much waits, which is now what waits in the queue of the target. So at most `high_water` bytes and one
chunk wait for the target, and one more chunk for the source.

Knows neither connection's protocol. Who tells them of an end is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txasynchat.delivery import StallWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.protocol.inbox import Inbox

__all__ = ["HIGH_WATER", "QUIET", "Pipe"]

#: The level at which the source is held where `high_water` of the target is None, for never.
HIGH_WATER = 65_536
#: Seconds without a byte after which a pair that is to finish ends.
QUIET = 1.0


class Pipe:
    """
    What a source receives, on its way to its target.

    Args:
        inbox: the source's. Its terminator is forgotten.
        target: whose connection it goes to.
        push: queues bytes there.
        collected: what goes before all that the inbox has; see `take_back`.

    Attributes:
        finishing: the application wants the source to end as soon as both directions are quiet.
        quiet: looks whether they are; cancelled when the two are not coupled any more.
    """

    __slots__ = ("_front", "_inbox", "_push", "finishing", "quiet", "target")

    def __init__(
        self, inbox: Inbox, target: Any, push: Callable[[bytes], None], collected: bytes
    ) -> None:
        self._inbox = inbox
        self._push = push
        self.target = target
        self.finishing = False
        self.quiet = StallWatch()
        # Not back into the inbox: a delivery that is going on would cut it into messages.
        self._front = inbox.take_back(collected)
        inbox.set_terminator(None)

    def pass_on(self, *, last: bool = False) -> None:
        """Queue what has arrived, unless delivery is held; the *last* is not held."""
        inbox = self._inbox
        if inbox.paused and not last:
            return
        data, self._front = self._front + inbox.take_back(), b""
        if data:
            self._push(data)
