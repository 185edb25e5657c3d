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
whatever arrived until then is left over; a `TLSLayer` is put between the transport and the protocol;
delivery goes on after its handshake.

One limit on time holds for the handshake, and for a peer that takes nothing of what must go out before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)

from txasynchat import transports
from txasynchat.delivery import StallWatch
from txasynchat.errors import HandshakeTimedOut, PlaintextAfterStartTLS
from txasynchat.protocol.outbox import Phase
from txasynchat.tls.layer import TLSFactory
from txasynchat.tls.leftovers import Leftovers

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.protocol.inbox import Inbox
    from txasynchat.protocol.outbox import Outbox, Owner

__all__ = ["Upgrade"]


@dataclass(slots=True, eq=False)
class Upgrade:
    """
    A `AsyncChat.start_tls` whose handshake is not over; its arguments are checked here.

    Args:
        chat: the protocol that TLS is put below.
        inbox, outbox: its two directions.
        abort: aborts the connection because of an error.
        forget_input: drops what was received in the clear.
    """

    chat: Owner
    options: Any
    leftovers: Leftovers
    inbox: Inbox
    outbox: Outbox
    abort: Callable[[HandshakeTimedOut | PlaintextAfterStartTLS], None]
    forget_input: Callable[[], None]
    #: What was queued before the barrier is not sent yet.
    waits: bool = field(default=True, init=False)
    _is_client: bool = field(init=False)
    _factory: TLSFactory = field(init=False)
    _link: tuple[Any, str] = field(init=False)
    #: Cancelled when the connection is lost.
    stall: StallWatch = field(default_factory=StallWatch, init=False)

    def __post_init__(self) -> None:
        self._is_client = IOpenSSLClientConnectionCreator.providedBy(self.options)
        if self._is_client is IOpenSSLServerConnectionCreator.providedBy(self.options):
            raise TypeError(
                "options must be ServerOptions, ClientOptions or one of Twisted's connection creators"
                f" for one side: {self.options!r:.80}"
            )
        self.leftovers = Leftovers(self.leftovers)  # no other object may pass for "not REJECT"

    def begin(self) -> bool:
        """
        Deliver nothing more, and put the barrier into the queue.

        Returns:
            False if the connection was aborted instead, because of what has arrived.

        Raises:
            RuntimeError: see `AsyncChat.start_tls`.
        """
        chat = self.chat
        transport = chat.transport
        if self.outbox.phase is not Phase.READY:
            raise RuntimeError("the connection is not open yet")
        if transports.tls_layer(transport) is not None:
            raise RuntimeError("the connection already speaks TLS")
        link = transports.link_to(transport, chat)
        if link is None:
            raise RuntimeError(f"TLS cannot be put on {transport!r}")
        self._link = link
        clock = chat.clock or transports.reactor_of(transport)
        self._factory = TLSFactory(self.options, self._is_client, None, clock)
        if self._rejects_leftovers():
            return False
        self.inbox.suspend()
        self.outbox.hold_back()
        return True

    def proceed(self) -> None:
        """
        Put TLS below the protocol, if everything before the barrier was sent.

        Called whenever that may have changed, and no handler is running.
        """
        outbox = self.outbox
        if not self.waits or outbox.phase is Phase.DEPARTED:
            return
        if not outbox.held_back:
            if not self.stall.waiting:
                self._watch()
            return
        if self._rejects_leftovers():
            return
        self.waits = False
        self.stall.cancel()
        received = self.inbox.take_undelivered()
        self.forget_input()
        outbox.go_on()
        # Until the handshake is done nothing is sent, and reading is not stopped.
        chat = self.chat
        transport = chat.transport
        outbox.suspend(transport)
        self.inbox.read_on(transport)
        layer = self._factory.protocol(self._factory, chat, False)
        setattr(*self._link, layer)
        chat.transport = layer
        layer.makeConnection(transport)
        outbox.connect(layer)
        if received:
            layer.dataReceived(received)

    def _rejects_leftovers(self) -> bool:
        """Abort the connection if it must not have received anything; return whether that happened."""
        if self.leftovers is Leftovers.REJECT and (received := self.inbox.undelivered):
            self.abort(PlaintextAfterStartTLS(len(received)))
            return True
        return False

    def _watch(self) -> None:
        """Abort if the peer took nothing since the last look; else look again later."""
        limit = self._factory.handshake_timeout
        if limit is None or self.outbox.closing:
            return
        counts = self.outbox.taken, *transports.outstanding_bytes(self.chat.transport)
        if self.stall.stalled(self._factory.clock, limit, self._watch, *counts):
            self.abort(HandshakeTimedOut(limit))
