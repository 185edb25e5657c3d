"""
How the channels of a map have to be asked what they wait for, and what their sockets are.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from txasynchat.compat._attributes import own, socket_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ALWAYS", "STEADY", "is_open", "kind_of", "pending_of", "steady", "tls_wants"]

# How a channel is asked: on every pass, or when it may have changed.
ALWAYS, STEADY = range(2)

_F = TypeVar("_F", bound="Callable[..., Any]")
# Predicates of our own; and whether the queue tells that one looks at, if it looks at one.
_steady: dict[Any, Callable[[Any], bool] | None] = {}


class NoSocket:
    """
    The type of no object.
    """


#: The type of sockets that know TLS; `txasynchat.compat.tls` puts it here when it is loaded.
tls_socket: Any = NoSocket


def steady(tells: Callable[[Any], bool] | None = None) -> Callable[[_F], _F]:
    """
    Mark a predicate whose answer changes only by events, and by what calls `touch`.

    Args:
        tells: where it looks at a queue: given the channel, returns whether that queue calls `touch`.
    """

    def mark(predicate: _F) -> _F:
        _steady[predicate] = tells
        return predicate

    return mark


def kind_of(channel: Any) -> int:
    """
    How *channel* is to be asked, by the functions that it has as predicates, and by its queue.

    Not by its ``__dict__``: a look at that makes every later use of its attributes slower.
    """
    try:
        for predicate in (channel.readable.__func__, channel.writable.__func__):
            tells = _steady[predicate]
            if tells is not None and not tells(channel):
                return ALWAYS
    except Exception:  # noqa: BLE001 - one of the program's own, whatever that is and does
        return ALWAYS
    return STEADY


def pending_of(sock: Any) -> int:
    """
    How many decrypted bytes of *sock* OpenSSL holds, which no poller can know of.

    Every socket of the `ssl` module or pyOpenSSL counts, also behind a wrapper that delegates.
    """
    if sock is None or type(sock) is socket.socket:
        return 0
    try:
        count = sock.pending()
    except Exception:  # noqa: BLE001 - no TLS, or not in a state to say: whatever the object is
        return 0
    return count if type(count) is int else 0  # a mock's answer is no number


def tls_wants(channel: Any) -> str | None:
    """
    Return the direction, "read" or "write", that TLS of *channel* waits for, if the exception being
    handled says no more than that; else None.

    A listener has no TLS that could wait: it is that of a connection, which is lost if nobody is told.
    """
    error = sys.exc_info()[1]
    for module, prefix in (("ssl", "SSL"), ("OpenSSL.SSL", "")):
        names = sys.modules.get(module)
        for direction in ("read", "write"):
            kind = getattr(names, f"{prefix}Want{direction.title()}Error", None)
            # Its module need not be imported here: a program that meets such an error has done so.
            if isinstance(kind, type) and isinstance(error, kind):
                return None if own(channel, "accepting") else direction
    return None


def is_open(channel: Any, fd: Any) -> bool:
    """
    Whether *channel* has an ordinary socket that is open; of others only the system knows.
    """
    sock = socket_of(channel)
    return type(sock) in (socket.socket, tls_socket) and sock.fileno() == fd
