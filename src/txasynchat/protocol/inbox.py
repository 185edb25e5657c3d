"""
`Inbox`: a `Framer` that knows why it is paused, and keeps what arrives while handlers run.

Delivery is held for reasons that come and go independently: the application paused it, too much output
waits, a hook is not done, TLS is about to begin, or the connection is not open. The first two stop
reading from the transport as well. A hook does so only when bytes wait behind it; until then the loss
of the connection is noticed. Reading is switched once, after the handlers have run, and only if it has
to change.

Knows nothing of output, nor of how a connection ends.
"""

from __future__ import annotations

from typing import Any, Final

from typing_extensions import override

from txasynchat.errors import MalformedMessage
from txasynchat.framing import Framer

__all__ = ["LOW", "Inbox"]


#: Bytes that wait for a stream above which reading stops, and down to which it goes on.
HIGH: Final = 65_536
LOW: Final = 16_384

#: How often in one iteration of the reactor a handler may be called without a byte that came for it.
FOR_NOTHING = 1_000


class Inbox(Framer):
    """
    The input of one connection.

    Attributes:
        held: the application called `AsyncChat.pause`.
        choked: too much output waits.
        awaited: how many hooks are not done that delivery waits for.
        suspended: TLS is about to begin: nothing more is delivered in the clear.
        resting: others have their turn, in the reactor's next iteration, before more is delivered.
        shut: the connection is not open yet, or not any more.
        paused: one of those.
        peer_finished: the peer will send no more.
        told_of_end: the application knows.
        discarded: something was thrown away.
        overran: there was more behind the message whose handler asked to close.
        kept: what arrived while handlers were running; None for nothing.
        reading: the transport was last told to read.
        pulled: a stream takes the messages; nothing is delivered.
        ahead: bytes that have come before a stream asked, without those of a batch that is open.
    """

    __slots__ = (
        *("ahead", "awaited", "choked", "discarded", "held", "kept", "overran"),
        *("peer_finished", "pulled", "reading", "resting", "shut", "suspended"),
        *("told_of_end", "_for_nothing"),
    )

    #: Of its messages; see `txasynchat.protocol.text`.
    encoding: str | None = None

    @override
    def _prepare(self) -> None:
        super()._prepare()
        self.held = self.choked = self.suspended = self.resting = False
        # How often more was to be delivered without a byte that came for it, since the last rest.
        self._for_nothing = 0
        self.peer_finished = self.told_of_end = self.discarded = self.overran = False
        self.awaited = 0
        self.kept: list[bytes] | None = None
        self.shut = self.reading = self.paused = True
        self.pulled = False
        self.ahead = 0

    @property
    def idle(self) -> bool:
        """Delivery is not held, and no message that can still end has begun."""
        held = self.held or self.choked or self.shut or self.awaited or self.resting
        return not held and (self.peer_finished or not self.in_message)

    @property
    def waits(self) -> bool:
        """Something may be to be delivered, without another byte."""
        return bool(self.peer_finished or self.kept or self._announced or self.waiting)

    # -- bytes

    def keep(self, data: bytes) -> None:
        """Take bytes that arrive while handlers run; the delivery that is going on feeds them."""
        if self.kept is None:
            self.kept = []
        self.kept.append(data)

    def feed_kept(self) -> None:
        """`feed` what was kept."""
        if self.kept is not None:
            self.feed(b"".join(self.kept))
            self.kept = None

    @property
    def undelivered(self) -> bytes:
        """What arrived and is not delivered."""
        return b"".join((self._unread, self.buffer, *(self.kept or ())))

    @override
    def clear(self) -> None:
        """Throw away what is `undelivered`; the next bytes begin a message."""
        super().clear()
        self.kept = None
        self.ahead = 0

    # -- messages on demand

    def begin_pulling(self) -> None:
        """From now on messages are pulled, and nothing is delivered."""
        self.pulled = self.whole = True
        self.pause()
        self.ahead = len(self.undelivered)

    @override
    def add(self, data: bytes) -> None:
        self.ahead += len(data)
        super().add(data)

    def end_pulling(self) -> None:
        """The connection is lost: what has come is all, and may be pulled."""
        self.peer_finished = True
        self.held = self.suspended = False
        self.feed_kept()

    @override
    def _pull_more(self, receiver: Any) -> bytes | None:
        if self.held or self.suspended or self.shut:
            return None
        try:
            message = super()._pull_more(receiver)
        except MalformedMessage as error:
            receiver.malformed(error)
            raise
        self.ahead = len(self._buffer) - self._position
        if not self.reading and self.ahead <= LOW:
            receiver.has_room()
        return message

    @override
    def take(self, most: int) -> bytes:
        """As `Framer.take`; nothing where delivery is held."""
        if self.held or self.suspended or self.shut:
            return b""
        data = super().take(most)
        self.ahead = len(self._buffer) - self._position
        return data

    # -- holding delivery

    def open(self) -> None:
        """The connection is open."""
        self.shut = False
        self.release()

    def await_hook(self) -> None:
        """A hook is not done."""
        self.awaited += 1
        self.stop()

    def hook_done(self) -> None:
        """A hook is done that was not; delivery goes on with the next `release`."""
        self.awaited -= 1

    def suspend(self) -> None:
        """TLS is about to begin."""
        self.suspended = True
        self.pause()

    def take_undelivered(self) -> bytes:
        """TLS begins: return what is `undelivered`, and forget it. What comes next is decrypted."""
        data = self.undelivered
        self.clear()
        self.suspended = False
        self.release()
        return data

    def release(self) -> bool:
        """`resume` unless delivery is held; return whether it goes on."""
        held = self.held or self.choked or self.shut or self.suspended
        if held or self.resting or (self.awaited and not self.pulled):
            return False
        if not self.pulled:
            self.resume()
        return True

    @override
    def expect(self, length: int, limit: int | None = None) -> bool:
        announced = super().expect(length, limit)
        if announced:
            self._count_nothing()
        return announced

    @override
    def unread(self, data: bytes) -> None:
        super().unread(data)
        self._count_nothing()

    def _count_nothing(self) -> None:
        # A handler may do this for ever.
        self._for_nothing += 1
        if self._for_nothing >= FOR_NOTHING:
            self.resting = True
            self.pause()

    def go_on(self) -> None:
        """Others had their turn."""
        self._for_nothing = 0
        if self.resting:
            self.resting = False
            self.release()

    @override
    def close(self) -> None:
        """Deliver nothing more."""
        self.shut = True
        if not self.closed:
            super().close()

    def discard(self) -> None:
        """`close`, and remember whether that threw something away."""
        if self.in_message or self.undelivered:
            self.discarded = True
        self.close()

    # -- the transport

    def set_reading(self, transport: Any) -> None:
        """Tell the transport to read or to stop, if that is a change."""
        # What arrives after close() is read, and dropped.
        if self.pulled:
            full = self.choked or self.ahead > (HIGH if self.reading else LOW)
        else:
            full = self.choked or bool(self.awaited and (self.waiting or self.kept))
        reading = self.shut or not (self.held or self.resting or full)
        if reading is self.reading or self.peer_finished:
            return
        self.reading = reading
        change = getattr(transport, "resumeProducing" if reading else "pauseProducing", None)
        if change is not None:
            change()

    def read_on(self, transport: Any) -> None:
        """Have *transport* read, whatever holds delivery, because TLS is about to be put on it."""
        if not self.reading:
            self.reading = True
            transport.resumeProducing()
