"""
`Greeting`: a server's side of a TLS connection until the ClientHello is complete.

OpenSSL allocates 30 KB for a client that says nothing, so it is not started before it has something to
do. Until then the client's bytes are kept here, and bounded: a client has no reason to send more before
its hello is answered, so after the hello the transport is read no further.

This module knows neither OpenSSL nor how many handshakes there may be: it calls `on_hello`, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txasynchat.errors import NotAClientHello
from txasynchat.tls.clienthello import HelloReader

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Greeting"]


class Greeting:
    """
    The bytes that a client has sent so far.

    Args:
        transport: the transport that they arrive on.
        on_hello: called once, when the ClientHello is complete or the bytes cannot become one. It
            starts OpenSSL, now or later, also in the second case: OpenSSL sends the right alert.
    """

    __slots__ = ("_called", "_on_hello", "_paused", "_reader", "_transport")

    def __init__(self, transport: Any, on_hello: Callable[[], object]) -> None:
        self._transport = transport
        self._on_hello = on_hello
        self._reader = HelloReader()
        self._called = False
        self._paused = False

    def receive(self, data: bytes) -> None:
        """Keep *data*."""
        try:
            if not self._reader.feed(data):
                return
        except NotAClientHello:
            pass
        if not self._called:
            self._called = True
            self._on_hello()
        elif not self._paused:
            pause = getattr(self._transport, "pauseProducing", None)
            if pause is not None:
                self._paused = True
                pause()

    def finish(self) -> bytes:
        """Return everything received so far, and let the transport read again."""
        if self._paused:
            self._paused = False
            self._transport.resumeProducing()
        return self._reader.received
