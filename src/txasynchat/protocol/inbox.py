"""
`Inbox`: what arrived for a handler and is not delivered yet, and why.

Delivery is held for reasons that come and go independently: the application paused it, too much output
waits, TLS is about to begin, or the connection is not open. The first two stop reading from the
transport as well. Reading is switched once, after the handlers have run, and only if it has to change.

What arrives while handlers run is kept here, and the delivery that is going on picks it up.

Knows nothing of output, nor of how a connection ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from txasynchat.framing import Framer

__all__ = ["Inbox"]


class Inbox:
    """
    The input of one connection, on its way from the transport to a `Framer`.

    Attributes:
        framer: cuts the messages; it is paused while any of the next four is true.
        paused: the application called `AsyncChat.pause`.
        choked: too much output waits.
        suspended: TLS is about to begin: nothing more is delivered in the clear.
        shut: the connection is not open yet, or not any more.
        peer_finished: the peer will send no more.
        discarded: something was thrown away.
        overran: there was more behind the message whose handler asked to close.
        kept: what arrived while handlers were running; None for nothing.
        reading: the transport was last told to read.
    """

    __slots__ = (
        *("choked", "discarded", "framer", "kept", "overran", "paused", "peer_finished", "reading"),
        *("shut", "suspended"),
    )

    def __init__(self, framer: Framer) -> None:
        self.framer = framer
        self.paused = self.choked = self.suspended = False
        self.peer_finished = self.discarded = self.overran = False
        self.kept: list[bytes] | None = None
        self.shut = self.reading = framer.paused = True

    @property
    def held(self) -> bool:
        """
        Delivery is held by anything but TLS that is about to begin.
        """
        return self.paused or self.choked or self.shut

    @property
    def idle(self) -> bool:
        """
        Delivery is not held, and no message that can still end has begun.
        """
        return not self.held and (self.peer_finished or not self.framer.in_message)

    # -- bytes

    def keep(self, data: bytes) -> None:
        """
        Take bytes that arrive while handlers run.
        """
        if self.kept is None:
            self.kept = []
        self.kept.append(data)

    def feed_kept(self) -> None:
        """
        Give the framer what was kept.
        """
        if self.kept is not None:
            self.framer.feed(b"".join(self.kept))
            self.kept = None

    @property
    def undelivered(self) -> bytes:
        """
        What arrived and is not delivered.
        """
        return b"".join((self.framer.buffer, *(self.kept or ())))

    def clear(self) -> None:
        """
        Throw away what is `undelivered`; the next bytes begin a message.
        """
        self.framer.clear()
        self.kept = None

    # -- holding delivery

    def open(self) -> None:
        """
        The connection is open.
        """
        self.shut = False
        self.release()

    def suspend(self) -> None:
        """
        TLS is about to begin.
        """
        self.suspended = True
        self.framer.pause()

    def take_undelivered(self) -> bytes:
        """
        TLS begins: return what is `undelivered`, and forget it. What comes next is decrypted.
        """
        data = self.undelivered
        self.clear()
        self.suspended = False
        self.release()
        return data

    def release(self) -> bool:
        """
        Let the framer go on unless delivery is held; return whether it goes on.
        """
        if self.held or self.suspended:
            return False
        self.framer.resume()
        return True

    def close(self) -> None:
        """
        Deliver nothing more.
        """
        self.shut = True
        self.framer.close()

    def discard(self) -> None:
        """
        Deliver nothing more, and remember whether that threw something away.
        """
        if self.framer.in_message or self.undelivered:
            self.discarded = True
        self.close()
        self.kept = None

    # -- the transport

    def set_reading(self, transport: Any) -> None:
        """
        Tell the transport to read or to stop, if that is a change.
        """
        # What arrives after close() is read, and dropped.
        reading = self.shut or not (self.paused or self.choked)
        if reading is self.reading or self.peer_finished:
            return
        self.reading = reading
        change = getattr(transport, "resumeProducing" if reading else "pauseProducing", None)
        if change is not None:
            change()

    def read_on(self, transport: Any) -> None:
        """
        Have *transport* read, whatever holds delivery, because TLS is about to be put on it.
        """
        if not self.reading:
            self.reading = True
            transport.resumeProducing()
