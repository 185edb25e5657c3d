"""
How a connection of `AsyncChat` ends: everything is sent, the peer can read it, in limited time.

Closing
=======

What is queued is written first, then the transport is closed. Transports differ in what they do with
late writes, so there are none. If the peer takes nothing for `close_timeout` seconds the connection is
aborted; a peer that takes a little now and then is not cut off. Once the operating system has
everything, the connection is closed and never aborted: a peer that reads on still gets the rest.

Lingering
=========

A socket that is closed with bytes unread is reset, and a reset may destroy the last reply before the
peer has read it (RFC 2525, section 2.17). A peer that is still sending an over-long message would never
learn why it was cut off. So where that can happen, only the sending is ended at first. What still comes
is read and dropped, until the peer has closed as well or `close_timeout` has passed since it had
everything. While the server stops it is `LINGERS_AT_STOP` seconds, because the others wait for that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionAborted, ConnectionLost

from txasynchat import endings, transports
from txasynchat.delivery import StallWatch
from txasynchat.errors import CloseTimedOut, ConnectionReset, PeerError, ProgramStopped
from txasynchat.protocol.outbox import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.errors import ChatError
    from txasynchat.protocol.inbox import Inbox
    from txasynchat.protocol.outbox import Outbox, Owner

__all__ = ["Closing", "at_once", "why_lost"]

#: Seconds that a peer which has everything may take to close, at most, when the server stops.
LINGERS_AT_STOP = 1.0


@dataclass(slots=True, eq=False)
class Closing:
    """
    The end of one connection, from the call that asked for it until ``connectionLost``.

    Args:
        chat: whose connection it is.
        inbox, outbox: its two directions.
        abort: aborts the connection, because of an error where there is one.
    """

    chat: Owner
    inbox: Inbox
    outbox: Outbox
    abort: Callable[[CloseTimedOut | None], None]
    #: Only the sending was ended so far.
    _lingers: bool = field(default=False, init=False)
    server_is_stopping: bool = field(default=False, init=False)
    #: Cancelled when the connection is lost.
    stall: StallWatch = field(default_factory=StallWatch, init=False)

    def proceed(self) -> None:
        """
        Close the transport if everything is written, and limit the time that this takes.

        Called whenever something was written.
        """
        outbox = self.outbox
        if outbox.phase is Phase.DEPARTED:
            return
        if outbox.finished and outbox.phase is Phase.READY and self._let_go(self.chat.transport):
            return
        if not self.stall.waiting:
            self._watch()

    def _let_go(self, transport: Any) -> bool:
        """End the connection, or at first the sending alone; return whether nothing is left to do."""
        # From here on what arrives is read, and dropped.
        self.inbox.close()
        self.inbox.set_reading(transport)
        self.outbox.depart(transport)
        if self._must_linger(transport):
            self._lingers = True
            transport.loseWriteConnection()
            return False
        closes_by_itself = transports.closes_by_itself(transport)
        transports.lose(transport, sent=self.outbox.taken > 0)
        return closes_by_itself

    def peer_finished(self) -> None:
        """The peer will send no more, so nothing is left to wait for."""
        if self._lingers:
            self.chat.transport.loseConnection()

    def server_stops(self) -> None:
        """The server stops: a peer that has everything is not waited for as long any more."""
        self.server_is_stopping = True
        self._watch()

    def _must_linger(self, transport: Any) -> bool:
        """Return whether closing now, or once everything is sent, might reset the connection."""
        inbox = self.inbox
        if inbox.peer_finished or not transports.can_half_close(transport):
            return False
        if inbox.discarded or inbox.overran:
            return True
        return bool(transports.unsent_bytes(transport)) or transports.has_unread_bytes(transport)

    def _watch(self) -> None:
        """End the connection if the peer took nothing since the last look; else look again later."""
        chat = self.chat
        outbox = self.outbox
        transport = chat.transport
        limit = chat.close_timeout
        clock = chat.clock or transports.reactor_of(transport)
        unsent, unacknowledged = transports.outstanding_bytes(transport)
        departed = outbox.phase is Phase.DEPARTED
        over = departed and not (unsent or unacknowledged)
        counts = outbox.taken, unsent, unacknowledged
        stopping = self.server_is_stopping
        if over and stopping:
            limit = LINGERS_AT_STOP if limit is None else min(limit, LINGERS_AT_STOP)
        if limit is None or not self.stall.stalled(
            clock, limit, self._watch, *counts, over=over, soon=stopping
        ):
            return
        if departed and not unsent and transports.waits_for_exit(transport):
            # The process had time to read everything, and may live on without a connection.
            self.abort(None)
        elif departed and unsent == 0:
            endings.end(transport)
        else:
            self.abort(CloseTimedOut(limit, outbox.size + (unsent or 0)))


def at_once(transport: Any, inbox: Inbox, outbox: Outbox) -> bool:
    """
    End a connection of the hub that has nothing to wait for, once its last bytes are sent.

    Of a connection that comes, says one line and goes, this is a third of what its end would cost.

    Returns:
        False if it has to end in the usual way, which may have begun: last bytes were sent.
    """
    close = getattr(type(transport), "close_at_once", None)
    if (
        close is None
        or outbox.phase is not Phase.READY
        or inbox.kept is not None
        or inbox.discarded
        or inbox.overran
        or not (outbox.finished or outbox.send_last(transport))
        or not close(transport, unread=not inbox.peer_finished)
    ):
        return False
    inbox.close()
    outbox.depart(transport)
    return True


def why_lost(error: BaseException | None, transport: Any, outbox: Outbox) -> ChatError | None:
    """
    Return why something is missing of a connection whose *transport* was lost with *error*; else None.
    """
    if not isinstance(error, ConnectionLost | PeerError) or isinstance(error, ConnectionAborted):
        return None
    stopped = transports.reactor_stopped(transport)
    if isinstance(error, PeerError) and not stopped:
        return error
    # The reactor also reports a loss if the peer closes just after this side has; and TLS reports its
    # own losses by an error of its own.
    departed = outbox.phase is Phase.DEPARTED
    over = departed or (transports.tls_layer(transport) is not None and not stopped)
    if over and not transports.unsent_bytes(transport):
        return None
    return ProgramStopped() if stopped else ConnectionReset()
