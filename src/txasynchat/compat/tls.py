"""
TLS for the facade's channels: `start_tls` puts it on a connection, ``listen(tls=)`` on accepted ones.

Both put a `TLSSocket` between the descriptor and the handlers; that class explains how.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from txasynchat import ranges
from txasynchat.compat import _loop
from txasynchat.compat._attributes import own
from txasynchat.compat._tls_socket import HANDSHAKE_TIMEOUT, TLSSocket
from txasynchat.errors import PlaintextAfterStartTLS
from txasynchat.tls.leftovers import Leftovers

if TYPE_CHECKING:
    import socket

__all__ = ["TLSSocket", "check_server_context", "start_tls", "wrap_accepted"]


class _Switch:
    # An item of a channel's output queue at which TLS begins: a producer that produces nothing.

    def __init__(self, sock: TLSSocket, channel: Any) -> None:
        self._sock = sock
        self._channel = channel

    def more(self) -> bytes:
        self._sock.begin()
        self._sock.shake_hands()  # a client begins; what has arrived is already fed
        _loop.touch(self._channel)
        return b""


def start_tls(  # noqa: PLR0913 they are settings, by keyword
    channel: Any,
    context: ssl.SSLContext,
    *,
    server_side: bool | None = None,
    server_hostname: str | None = None,
    handshake_timeout: float | None = HANDSHAKE_TIMEOUT,
    leftovers: Leftovers = Leftovers.REJECT,
) -> TLSSocket:
    """
    Put TLS on a channel's connection, now or in mid-stream; its ``recv`` and ``send`` stay.

    For a client, call it after ``connect``: ``handle_connect`` then comes after the handshake. For
    STARTTLS, call it where the command was understood, after the answer was pushed. What is queued then
    goes out in plain text first; what is pushed later is encrypted.

    Plain text that arrived after the command may have been injected by an attacker in between (see
    RFC 3207, section 4.2, and CVE-2011-0411). It is never handled as if it had been encrypted.

    Args:
        channel: a ``dispatcher``, in most cases an ``async_chat``.
        context: from `ssl.create_default_context`, say.
        server_side: whether this side waits for the ClientHello; by default True, unless
            *server_hostname* or a context for clients says otherwise.
        server_hostname: for a client, the name or address to verify.
        handshake_timeout: seconds for the handshake, and before it for the peer to take more of what is
            queued in plain text; then ``handle_error`` is called with `HandshakeTimedOut`. None for no
            limit.
        leftovers: what becomes of plain text that has already arrived: see `Leftovers`.

    Returns:
        the channel's new ``socket``.

    Raises:
        ValueError: the channel listens, has no socket, or has TLS already; *context* verifies names
            (``check_hostname``), and *server_hostname* is missing; or *handshake_timeout* is out of
            its range, or *leftovers* is not a `Leftovers`.
        PlaintextAfterStartTLS: *leftovers* is REJECT and plain text has arrived, which is dropped. If
            it is not caught, the exception goes to ``handle_error``, which closes.
        OSError: a client's connection is lost; or, an `ssl.SSLError`, *context* is for clients and
            this side is the server, or *leftovers* is FEED and there is no handshake.
    """
    ranges.TLS["handshake_timeout"].check("handshake_timeout", handshake_timeout)
    leftovers = Leftovers(leftovers)
    plain = channel.socket
    if plain is None or channel.accepting:
        raise ValueError(f"cannot start TLS: {channel!r} has no connection")
    if isinstance(plain, TLSSocket):
        raise ValueError(f"cannot start TLS: {channel!r} has it already")  # noqa: TRY004 not its type
    if server_side is None:
        is_client = context.protocol == ssl.PROTOCOL_TLS_CLIENT or context.check_hostname
        server_side = not is_client and server_hostname is None
    if server_side:
        check_server_context(context)
    sock = TLSSocket(
        plain,
        context,
        server_side=server_side,
        server_hostname=server_hostname,
        handshake_timeout=handshake_timeout,
    )
    early = own(channel, "ac_in_buffer")
    if early:
        channel.ac_in_buffer = b""
        if leftovers is Leftovers.REJECT:
            raise PlaintextAfterStartTLS(len(early))
        sock.feed(early)
    channel.socket = sock
    sock.belong_to(channel)
    queue = own(channel, "producer_fifo")
    if channel.connecting or not (channel.connected or server_side):
        sock.begin(connecting=True)
    elif not channel.connected:
        sock.begin()  # the peer closed before its connection was accepted; recv() will report that
    elif queue:
        queue.append(_Switch(sock, channel))
        sock.begin_later()
    elif own(channel, "out_buffer"):
        channel.socket = plain
        raise ValueError(
            f"cannot start TLS: out_buffer is not empty, and TLS cannot begin behind it: {channel!r}"
        )
    else:
        sock.begin()
    if sock.has_begun() and (early or not server_side):
        sock.shake_hands()  # no more is read here: what the peer does must not raise in the caller
    _loop.touch(channel)
    return sock


def check_server_context(context: ssl.SSLContext) -> None:
    """Raise an `ssl.SSLError` at once, not with each connection, if *context* cannot serve."""
    # Below, newer patch releases of `ssl` raise a ValueError if the context checks host names; PyPy's
    # only warns.
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ssl.SSLError(
            "a server cannot use a context for clients (PROTOCOL_TLS_CLIENT); make it by"
            " ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
        )
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    except ValueError as why:
        raise ssl.SSLError(f"a server cannot use this context: {why}") from why


def wrap_accepted(plain: socket.socket, context: ssl.SSLContext) -> TLSSocket:
    """Put TLS on a connection that was just accepted; its handshake begins when a channel gets it."""
    plain.setblocking(False)
    sock = TLSSocket(plain, context, server_side=True, handshake_timeout=HANDSHAKE_TIMEOUT)
    sock.begin()
    return sock
