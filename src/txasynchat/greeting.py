"""
`Greeting`: a server's TLS connection until the client's hello is whole, and it is answered.

OpenSSL takes 30 KB for a client that says nothing, so it is not started before there is something for
it to do. Until then what arrives is kept here, and bounded: a client that goes on behind its hello, for
which TLS has no use, is not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from txasynchat.clienthello import HelloReader
from txasynchat.errors import NotAClientHello

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Greeting"]


class Greeting:
    """
    What a client sent so far.

    Args:
        transport: what it arrives from.
        on_hello: called once: the hello is whole, or what arrived cannot become one. OpenSSL is to be
            started, now or later; it knows which alert is the answer to the latter.
    """

    __slots__ = ("_is_over", "_on_hello", "_paused", "_reader", "_transport")

    def __init__(self, transport: Any, on_hello: Callable[[], object]) -> None:
        self._transport = transport
        self._on_hello = on_hello
        self._reader = HelloReader()
        self._is_over = False
        self._paused = False

    def receive(self, data: bytes) -> None:
        """
        Keep *data*.
        """
        try:
            is_over = self._reader.feed(data)
        except NotAClientHello:
            is_over = True
        if not is_over:
            return
        if not self._is_over:
            self._is_over = True
            self._on_hello()
        elif not self._paused:
            pause = getattr(self._transport, "pauseProducing", None)
            if pause is not None:
                self._paused = True
                pause()

    def finish(self) -> bytes:
        """
        Return everything that was received, and let the transport read again.
        """
        if self._paused:
            self._paused = False
            self._transport.resumeProducing()
        return self._reader.received
