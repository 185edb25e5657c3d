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

from typing import TYPE_CHECKING

from txasynchat import endings, transports
from txasynchat.delivery import Progress
from txasynchat.errors import CloseTimedOut

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from txasynchat.protocol import AsyncChat

__all__ = ["Closing"]


class Closing:
    """
    The end of one connection, from the call that asked for it until ``connectionLost``.
    """

    __slots__ = ("_chat", "_lingers", "_progress", "_timer", "_watched")

    def __init__(self, chat: AsyncChat) -> None:
        self._chat = chat
        # Only the sending was ended so far.
        self._lingers = False
        self._watched = False
        self._progress = Progress()
        self._timer: IDelayedCall | None = None

    def proceed(self) -> None:
        """
        Let the transport go if all is written, and see to it that this ends.

        Called whenever something was written.
        """
        chat = self._chat
        if chat._left:
            return
        if chat._opened and chat._output.finished:
            transport = chat.transport
            chat._before_leaving()
            if self._must_linger():
                self._lingers = True
                transport.loseWriteConnection()
            else:
                closes_by_itself = transports.closes_by_itself(transport)
                transports.lose(transport, sent=chat._taken > 0)
                if closes_by_itself:
                    return
        if not self._watched and chat._closing is self:
            self._watched = True
            self._watch()

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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _must_linger(self) -> bool:
        """
        Tell whether to close now, or when all is sent, may be to reset the connection.
        """
        chat = self._chat
        transport = chat.transport
        return (
            not chat._peer_finished
            and transports.can_half_close(transport)
            and (
                chat._discarded
                or bool(transports.unsent_bytes(transport))
                or transports.has_unread_bytes(transport)
            )
        )

    def _watch(self) -> None:
        """
        Give up if the peer took nothing since this was called last; else call it again later.
        """
        chat = self._chat
        self._timer = None
        if chat.close_timeout is None:
            return
        unsent, unacknowledged = transports.outstanding_bytes(chat.transport)
        if self._progress.made(chat._taken, unsent, unacknowledged):
            clock = chat.clock or transports.reactor_of(chat.transport)
            if clock is not None:
                self._timer = clock.callLater(chat.close_timeout, self._watch)
        elif chat._left and not unsent and transports.waits_for_exit(chat.transport):
            # A process had all the time it needs to read what was said, and may go on without us.
            chat._abort()
        elif chat._left and unsent == 0:
            endings.end(chat.transport)
        else:
            chat._report(CloseTimedOut(chat.close_timeout, chat._output.size + (unsent or 0)))
            chat._abort()
