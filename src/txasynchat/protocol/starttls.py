"""
`AsyncChat.start_tls`: from plaintext to TLS in the middle of a connection, on either side.

Theory of operation
===================

An attacker between two peers can inject plaintext behind the command that starts TLS. A receiver that
keeps it in its buffer, and handles it after the handshake, takes the attacker's words for the
authenticated peer's. That was found in more than a dozen mail servers (CVE-2011-0411 and later). So
what has arrived when TLS starts is either refused or given to TLS, where plaintext is not a valid
record. It is never handled.

The steps: delivery stops; what was queued goes out in the clear, up to a barrier in the output queue;
whatever arrived until then is left over; a `TLSTransport` is put between the transport and the
protocol; delivery goes on after its handshake.

One limit on time holds for the handshake, and for a peer that takes nothing of what must go out before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)

from txasynchat import transports
from txasynchat.delivery import StallWatch
from txasynchat.errors import HandshakeTimedOut, PlaintextAfterStartTLS
from txasynchat.protocol.outbox import Phase
from txasynchat.tls.factory import TLSFactory
from txasynchat.tls.leftovers import Leftovers

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.protocol.inbox import Inbox
    from txasynchat.protocol.outbox import Outbox, Owner

__all__ = ["Upgrade", "is_for_client"]


class Upgrade:
    """
    A `start_tls` whose handshake is not over.

    Args:
        chat: the protocol that TLS is put below.
        inbox, outbox: its two directions.
        options, leftovers: see `AsyncChat.start_tls`.
        is_client: what `is_for_client` returned for *options*.
        abort: aborts the connection because of an error.
        forget_input: drops what was received in the clear.

    Raises:
        RuntimeError, ValueError: see `AsyncChat.start_tls`.
    """

    def __init__(  # noqa: PLR0913 it stands between them
        self,
        chat: Owner,
        inbox: Inbox,
        outbox: Outbox,
        options: Any,
        leftovers: Leftovers,
        *,
        is_client: bool,
        abort: Callable[[HandshakeTimedOut | PlaintextAfterStartTLS], None],
        forget_input: Callable[[], None],
    ) -> None:
        # What is not a member must not pass for one that is not REJECT.
        leftovers = Leftovers(leftovers)
        transport = chat.transport
        if outbox.phase is not Phase.READY:
            raise RuntimeError("the connection is not open yet")
        if transports.tls_layer(transport) is not None:
            raise RuntimeError("the connection already speaks TLS")
        link = transports.link_to(transport, chat)
        if link is None:
            raise RuntimeError(f"TLS cannot be put on {transport!r}")
        clock = chat.clock or transports.reactor_of(transport)
        self._chat = chat
        self._inbox = inbox
        self._outbox = outbox
        self._factory = TLSFactory(options, is_client, None, clock)
        self._leftovers = leftovers
        self._link = link
        self._abort = abort
        self._forget_input = forget_input
        self._switched = False
        self._stall = StallWatch()

    def begin(self) -> bool:
        """
        Deliver nothing more, and put the barrier into the queue.

        Returns:
            False if the connection was aborted instead, because of what has arrived.
        """
        if self._rejects_leftovers():
            return False
        self._inbox.suspend()
        self._outbox.hold_back()
        return True

    def cancel(self) -> None:
        """
        The connection is lost, or TLS begins.
        """
        self._stall.cancel()

    @property
    def waits(self) -> bool:
        """
        What was queued before the barrier is not sent yet.
        """
        return not self._switched

    def _rejects_leftovers(self) -> bool:
        """
        Abort the connection if it must not have received anything; return whether that happened.
        """
        if self._leftovers is Leftovers.REJECT and (received := self._inbox.undelivered):
            self._abort(PlaintextAfterStartTLS(len(received)))
            return True
        return False

    def proceed(self) -> None:
        """
        Put TLS below the protocol, if everything before the barrier was sent.

        Called whenever that may have changed, and no handler is running.
        """
        outbox = self._outbox
        if self._switched or outbox.phase is Phase.DEPARTED:
            return
        if not outbox.held_back:
            if not self._stall.waiting:
                self._watch()
            return
        if self._rejects_leftovers():
            return
        self._switched = True
        self.cancel()
        received = self._inbox.take_undelivered()
        self._forget_input()
        outbox.go_on()
        # Until the handshake is done nothing is sent, and reading is not stopped.
        chat = self._chat
        transport = chat.transport
        outbox.suspend(transport)
        self._inbox.read_on(transport)
        layer = self._factory.protocol(self._factory, chat, False)
        setattr(*self._link, layer)
        chat.transport = layer
        layer.makeConnection(transport)
        outbox.connect(layer)
        if received:
            layer.dataReceived(received)

    def _watch(self) -> None:
        """
        Abort if the peer took nothing since the last look; else look again later.
        """
        outbox = self._outbox
        limit = self._factory.handshake_timeout
        clock = self._factory.clock
        if limit is None or outbox.closing:
            return
        counts = transports.outstanding_bytes(self._chat.transport)
        if self._stall.stalled(clock, limit, self._watch, outbox.taken, *counts):
            self._abort(HandshakeTimedOut(limit))


def is_for_client(options: Any) -> bool:
    """
    Return whether *options* of TLS are for a client, and not for a server.

    Raises:
        TypeError: they are for neither, or for both.
    """
    is_client: bool | None = getattr(options, "is_client", None)
    if is_client is not None:
        return is_client
    client = IOpenSSLClientConnectionCreator.providedBy(options)
    server = IOpenSSLServerConnectionCreator.providedBy(options)
    if client is server:
        raise TypeError(
            "options must be ServerOptions, ClientOptions or one of Twisted's connection creators"
            f" for one side: {options!r:.80}"
        )
    return client
