"""
Headers on sockets that a port of the hub accepted: `Introduction`, and the `ProxiedSocket` after it.

Exactly the header's bytes are read from the socket. What is behind them is for whoever gets it next.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from txasynchat.errors import PeerError, ProxyHeaderTimedOut, TruncatedProxyHeader
from txasynchat.hub.pollers import READ
from txasynchat.hub.shared import shared_hub
from txasynchat.proxy.header import HeaderReader
from txasynchat.proxy.refusals import log_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.proxy.header import Proxied
    from txasynchat.proxy.trust import ProxyOptions

__all__ = ["Introduction", "ProxiedSocket"]


class ProxiedSocket(socket.socket):
    """
    A socket whose addresses are those in a header, if it has some.

    Attributes:
        proxied: what the header says.
        header_length: its bytes, which were received before all others.
    """

    __slots__ = ("header_length", "proxied")

    proxied: Proxied
    header_length: int

    @classmethod
    def replacing(cls, sock: socket.socket, proxied: Proxied, header_length: int) -> ProxiedSocket:
        """Return a socket in the place of *sock*, which has no descriptor any more."""
        blocks = sock.gettimeout()
        made = cls(sock.family, sock.type, sock.proto, sock.detach())
        made.settimeout(blocks)
        made.proxied = proxied
        made.header_length = header_length
        return made

    @override
    def getpeername(self) -> Any:
        real = super().getpeername()  # which raises once the connection is gone
        source = self.proxied.source
        return real if source is None else source

    @override
    def getsockname(self) -> Any:
        real = super().getsockname()
        destination = self.proxied.destination
        return real if destination is None else destination


class Introduction:
    """
    The header of one accepted socket, until it is complete; served by the hub.

    Args:
        reactor: has the hub, and measures time.
        sock: non-blocking.
        address: the proxy's.
        options: how the header is read.
        serve: called with a `ProxiedSocket` and the peer's address when the header is complete.
        ended: called with this when it is over, either way.
    """

    __slots__ = ("_address", "_ended", "_hub", "_number", "_reader", "_serve", "_sock", "_timer")

    def __init__(  # noqa: PLR0913, PLR0917 - it is made in one place
        self,
        reactor: Any,
        sock: socket.socket,
        address: Any,
        options: ProxyOptions,
        serve: Callable[[socket.socket, Any], object],
        ended: Callable[[Introduction], object],
    ) -> None:
        self._sock = sock
        self._number = sock.fileno()
        self._address = address
        self._serve = serve
        self._ended = ended
        self._reader = HeaderReader(options.longest)
        self._hub = shared_hub(reactor)
        self._hub.add(self._number, self, READ)
        self._timer: Any = None
        if options.timeout is not None:
            error = ProxyHeaderTimedOut(options.timeout)
            self._timer = reactor.callLater(options.timeout, self._refuse, error)

    def __repr__(self) -> str:
        return f"<Introduction by {self._address!r}>"

    # -- Served

    def ready(self, _events: int) -> None:
        """Read what came of the header."""
        reader, sock = self._reader, self._sock
        try:
            while reader.proxied is None:
                data = sock.recv(reader.most, socket.MSG_PEEK)
                if not data:
                    # One that sends nothing only looks whether somebody listens.
                    self._refuse(TruncatedProxyHeader() if reader.begun else None)
                    return
                sock.recv(reader.feed(data))
        except BlockingIOError:
            return
        except OSError:
            self._refuse(None)
            return
        except PeerError as error:
            self._refuse(error)
            return
        self._leave()
        proxied = reader.proxied
        made = ProxiedSocket.replacing(sock, proxied, reader.taken)
        self._serve(made, self._address if proxied.source is None else proxied.source)

    def proceed(self) -> None:
        """Do nothing: this never asks for it."""

    def failed(self) -> None:
        """Be lost by the exception that is being handled."""
        self.abandon()

    def connectionLost(self, _reason: Any) -> None:  # noqa: N802 as of a transport
        """The reactor stops."""
        self.abandon()

    def abandon(self) -> None:
        """End without a word; harmless when it is over."""
        if self._sock.fileno() == self._number:
            self._refuse(None)

    # -- internals

    def _leave(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self._hub.remove(self._number, self)
        self._ended(self)

    def _refuse(self, error: PeerError | None) -> None:
        self._leave()
        self._sock.close()
        if error is not None:
            log_refusal(self._address, error)
