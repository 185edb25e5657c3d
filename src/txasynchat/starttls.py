"""
`AsyncChat.start_tls`: from plaintext to TLS in the middle of a connection, on either side.

Theory of operation
===================

Whoever sits between two peers can put plaintext behind the command that starts TLS. A receiver that
keeps it in its buffer, and handles it when the handshake is done, takes an attacker's words for the
authenticated peer's; that was found in more than a dozen mail servers (CVE-2011-0411 and after). So
what is there when TLS starts is either refused or given to TLS, where plaintext is no valid record.
It is never handled.

The steps: delivery stops; what was queued goes out in the clear, up to a barrier in the output queue;
whatever arrived until then is left over; a `TLSLayer` is put between the transport and the protocol;
delivery goes on after its handshake.

Each step ends: the handshake by its own limit, and a peer that takes nothing of what has to go out
before it by the same one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)

from txasynchat import transports
from txasynchat.delivery import Progress
from txasynchat.errors import HandshakeTimedOut, PlaintextAfterStartTLS
from txasynchat.leftovers import Leftovers
from txasynchat.tlslayer import TLSFactory

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from txasynchat.protocol import AsyncChat

__all__ = ["Upgrade", "start_tls"]


def start_tls(chat: AsyncChat, options: Any, leftovers: Leftovers) -> None:
    """
    Begin what `AsyncChat.start_tls` promises.
    """
    leftovers = Leftovers(leftovers)
    is_client = _is_client(options)
    if chat._ending:
        return
    if chat._upgrade is not None:
        raise RuntimeError("TLS was started already")
    if not chat._opened:
        raise RuntimeError("the connection is not open yet")
    if transports.tls_layer(chat.transport) is not None:
        raise RuntimeError("the connection speaks TLS already")
    link = transports.link_to(chat.transport, chat)
    if link is None:
        raise RuntimeError(f"TLS cannot be put on {chat.transport!r}")
    clock = chat.clock or transports.reactor_of(chat.transport)
    upgrade = Upgrade(chat, TLSFactory(options, is_client, None, clock), leftovers, link)
    if upgrade.rejects_leftovers():
        return
    chat._upgrade = upgrade
    chat._framer.pause()
    chat._output.hold_back()
    chat._go_on()


def _is_client(options: Any) -> bool:
    client = IOpenSSLClientConnectionCreator.providedBy(options)
    server = IOpenSSLServerConnectionCreator.providedBy(options)
    if client is server:
        raise TypeError(
            "options must be ServerOptions or ClientOptions, or a connection creator of Twisted's"
            f" that is for one side: {options!r:.80}"
        )
    return client


class Upgrade:
    """
    A `start_tls` whose handshake is not over.
    """

    def __init__(
        self, chat: AsyncChat, factory: TLSFactory, leftovers: Leftovers, link: tuple[Any, str]
    ) -> None:
        self._chat = chat
        self._factory = factory
        self._leftovers = leftovers
        self._link = link
        self._switched = False
        self._progress = Progress()
        self._timer: IDelayedCall | None = None

    def cancel(self) -> None:
        """
        The connection is lost, or TLS begins.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def discarded(self) -> None:
        """
        The output queue was emptied, the barrier with it.
        """
        if not self._switched:
            self._chat._output.hold_back()

    def _received(self) -> bytes:
        """
        Return what was received and not delivered.
        """
        return b"".join((self._chat._framer.buffer, *(self._chat._received or ())))

    def rejects_leftovers(self) -> bool:
        """
        Abort the connection if there is what must not be there; tell whether that happened.
        """
        if self._leftovers is not Leftovers.REJECT or not (received := self._received()):
            return False
        self._chat._report(PlaintextAfterStartTLS(len(received)))
        self._chat._abort()
        return True

    def proceed(self) -> None:
        """
        Put TLS below the protocol, if everything before the barrier was sent.

        Called whenever that may have changed, and no handler is running.
        """
        chat = self._chat
        if self._switched or chat._left:
            return
        if not chat._output.held_back:
            if self._timer is None:
                self._watch()
            return
        if self.rejects_leftovers():
            return
        received = self._received()
        self._switched = True
        self.cancel()
        chat._framer.clear()
        if not chat._held:
            chat._framer.resume()
        chat._received = chat._incoming = None
        chat._output.go_on()
        self._switch(received)

    def _watch(self) -> None:
        """
        Give up if the peer took nothing since this was called last; else call it again later.
        """
        chat = self._chat
        self._timer = None
        limit = self._factory.handshake_timeout
        if limit is None or self._factory.clock is None or chat._left or chat._ending:
            return
        if self._progress.made(chat._taken, *transports.outstanding_bytes(chat.transport)):
            self._timer = self._factory.clock.callLater(limit, self._watch)
        else:
            chat._report(HandshakeTimedOut(limit))
            chat._abort()

    def _switch(self, received: bytes) -> None:
        chat = self._chat
        transport = chat.transport
        chat._unregister()
        # Until the handshake is done nothing is sent, and reading is not stopped.
        chat._opened = chat._full = False
        if not chat._reading:
            chat._reading = True
            transport.resumeProducing()
        layer = self._factory.protocol(self._factory, chat, False)
        setattr(*self._link, layer)
        chat.transport = layer
        layer.makeConnection(transport)
        chat._send_now = transports.immediate_sender(layer)
        if received:
            layer.dataReceived(received)
