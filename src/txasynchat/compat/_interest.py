"""
How the channels of a map have to be asked what they wait for, and what their sockets are.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ALWAYS", "CHAT", "STEADY", "chat", "has_pending", "is_open", "kind_of", "steady"]

# How a channel is asked: on every pass; when it may have changed; and so that the answer of
# async_chat's own predicates can be read off its attributes.
ALWAYS, STEADY, CHAT = range(3)

_F = TypeVar("_F", bound="Callable[..., Any]")
_kinds: dict[Any, int] = {}


class NoSocket:
    """
    The type of no object.
    """


#: The type of sockets that know TLS; `txasynchat.compat.tls` puts it here when it is loaded.
tls_socket: Any = NoSocket


def steady(predicate: _F) -> _F:
    """
    Mark a predicate whose answer changes only by events and by methods that call `touch`.
    """
    _kinds[predicate] = STEADY
    return predicate


def chat(predicate: _F) -> _F:
    """
    Mark a `steady` predicate of ``async_chat``: always readable; writable while `producer_fifo`
    has something or `connected` is false.
    """
    _kinds[predicate] = CHAT
    return predicate


def kind_of(channel: Any) -> int:
    """
    How *channel* is to be asked, by the functions that it has as predicates.

    Not by its ``__dict__``: a look at that makes every later use of its attributes slower.
    """
    try:
        readable = channel.readable.__func__
        writable = channel.writable.__func__
    except AttributeError:
        return ALWAYS
    return min(_kinds.get(readable, ALWAYS), _kinds.get(writable, ALWAYS))


def has_pending(sock: Any) -> bool:
    """
    Whether OpenSSL holds decrypted bytes of *sock*, which no poller can know of.
    """
    if sock is None or type(sock) is socket.socket:
        return False
    try:
        return bool(sock.pending())
    except Exception:  # noqa: BLE001 - no TLS, or not in a state to say: whatever the object is
        return False


def is_open(channel: Any, fd: Any) -> bool:
    """
    Whether *channel* has an ordinary socket that is open; of others only the system knows.
    """
    sock: Any = getattr(channel, "socket", None)
    return type(sock) in (socket.socket, tls_socket) and sock.fileno() == fd
