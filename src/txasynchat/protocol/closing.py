"""
How a connection of `AsyncChat` ends: all is sent, the peer can read it, and neither takes for ever.

Leaving
=======

What is queued is written first, then the transport is let go. What a transport does with late writes
differs from one to the next, so none is ever made. If the peer takes nothing for `close_timeout`
seconds the connection is aborted; a peer that takes little, but something, is not. Once the operating
system has everything the connection is never aborted, but closed: then the peer gets the rest, if it
reads on, and we have waited long enough.

Lingering
=========

A socket that is closed with bytes unread is reset, and a reset may destroy the last reply before the
peer has read it (RFC 2525, section 2.17); just the peer that is still sending an over-long message
would not learn why it was cut off. So where that can happen only the sending is ended at first. What
still comes is read and dropped, until the peer has closed as well or `close_timeout` is over.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.error import ConnectionAborted, ConnectionLost

from txasynchat import endings, transports
from txasynchat.delivery import StallWatch
from txasynchat.errors import CloseTimedOut
from txasynchat.protocol.outbox import HalfClose, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

    from txasynchat.protocol.inbox import Inbox
    from txasynchat.protocol.outbox import Outbox

__all__ = ["Closable", "Closing", "broke_off", "sending_was_ended"]


class Closable(Protocol):
    """
    Whose connection ends. `AsyncChat` says what the settings mean.
    """

    transport: Any
    clock: IReactorTime | None
    close_timeout: float | None


class Closing:
    """
    The end of one connection, from the call that asked for it until ``connectionLost``.

    Args:
        chat: whose connection it is.
        inbox, outbox: its two directions.
        give_up: aborts the connection, because of an error where there is one.
    """

    __slots__ = ("_chat", "_give_up", "_inbox", "_lingers", "_outbox", "_over", "_stall")

    def __init__(
        self,
        chat: Closable,
        inbox: Inbox,
        outbox: Outbox,
        give_up: Callable[[CloseTimedOut | None], None],
    ) -> None:
        self._chat = chat
        self._inbox = inbox
        self._outbox = outbox
        self._give_up = give_up
        # Only the sending was ended so far.
        self._lingers = False
        # The connection is lost.
        self._over = False
        self._stall: StallWatch | None = None

    def proceed(self) -> None:
        """
        Let the transport go if all is written, and see to it that this ends.

        Called whenever something was written.
        """
        outbox = self._outbox
        if outbox.phase is Phase.DEPARTED:
            return
        if outbox.finished and outbox.phase is Phase.READY and self._let_go(self._chat.transport):
            return
        if self._stall is None and not self._over:
            self._stall = StallWatch()
            self._watch(self._stall)

    def _let_go(self, transport: Any) -> bool:
        """
        End the connection, or at first the sending alone; return whether nothing is left to be done.
        """
        # From here on what comes is read, and dropped.
        self._inbox.close()
        self._inbox.set_reading(transport)
        self._outbox.depart(transport)
        if self._must_linger():
            self._lingers = True
            transport.loseWriteConnection()
            return False
        closes_by_itself = transports.closes_by_itself(transport)
        transports.lose(transport, sent=self._outbox.taken > 0)
        return closes_by_itself

    def peer_finished(self) -> None:
        """
        Nothing more comes: nothing is left to wait for.
        """
        if self._lingers:
            self._chat.transport.loseConnection()

    def cancel(self) -> None:
        """
        The connection is lost.
        """
        self._over = True
        if self._stall is not None:
            self._stall.cancel()

    def _must_linger(self) -> bool:
        """
        Return whether to close now, or when all is sent, may be to reset the connection.
        """
        inbox = self._inbox
        transport = self._chat.transport
        return (
            not inbox.peer_finished
            and transports.can_half_close(transport)
            and (
                inbox.discarded
                or bool(transports.unsent_bytes(transport))
                or transports.has_unread_bytes(transport)
            )
        )

    def _watch(self, stall: StallWatch) -> None:
        """
        Give up if the peer took nothing since this was called last; else call it again later.
        """
        chat = self._chat
        outbox = self._outbox
        transport = chat.transport
        if chat.close_timeout is None:
            return
        clock = chat.clock or transports.reactor_of(transport)
        unsent, unacknowledged = transports.outstanding_bytes(transport)
        counts = outbox.taken, unsent, unacknowledged
        if not stall.stalled(clock, chat.close_timeout, partial(self._watch, stall), *counts):
            return
        if outbox.phase is Phase.DEPARTED and not unsent and transports.waits_for_exit(transport):
            # A process had all the time it needs to read what was said, and may go on without us.
            self._give_up(None)
        elif outbox.phase is Phase.DEPARTED and unsent == 0:
            endings.end(transport)
        else:
            self._give_up(CloseTimedOut(chat.close_timeout, outbox.size + (unsent or 0)))


def broke_off(error: BaseException | None, transport: Any, outbox: Outbox) -> bool:
    """
    Return whether *error*, with which *transport* was lost, means that something is missing.
    """
    if not isinstance(error, ConnectionLost) or isinstance(error, ConnectionAborted):
        return False
    # The reactor calls it a loss, too, if the peer closes when we have just let the transport go;
    # and TLS has an error of its own for what it calls one.
    over = outbox.phase is Phase.DEPARTED or transports.tls_layer(transport) is not None
    return not over or bool(transports.unsent_bytes(transport))


def sending_was_ended(transport: Any, outbox: Outbox) -> bool:
    """
    Return whether it is this side that ended the sending, now that nothing can be sent any more.
    """
    # TLS ends its own direction, and leaves the descriptor beneath it open.
    return outbox.half_close is HalfClose.DONE or transports.writing_was_ended(
        transport, outbox.writing_end or transports.writing_end(transport)
    )
