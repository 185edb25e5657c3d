"""How the channels of a map have to be asked what they wait for, and what their sockets are."""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

from txasynchat.compat._attributes import own, socket_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = [
    "ALWAYS", "STEADY", "LayeredSocket", "Pollable", "Quiet", "are_open", "are_steady", "ask_layer",
    "has_descriptor", "is_open", "kind_of", "pending_of", "pollables", "steady", "tls_wants",
]  # fmt: skip

# How a channel is asked: on every pass, or when it may have changed.
ALWAYS, STEADY = range(2)

_socket: Any = socket.socket

# Predicates of our own; and whether the queue tells that one looks at, if it looks at one.
_steady: dict[Any, Callable[[Any], bool] | None] = {}


class Quiet:
    """
    A socket that is none of the system's.

    Attributes:
        is_quiet: nothing follows from a read event but what the channel's predicates say.
    """

    __slots__ = ()

    is_quiet: bool


class LayeredSocket(Quiet):
    """
    A socket with a protocol of its own between the descriptor and the handlers: TLS.  It is quiet when
    what the handler waits for is all that the descriptor has to be watched for.

    This is what the loop and the channels need of one. They know no more, so that ``ssl`` is loaded
    where it is used, and by nobody else.

    Attributes:
        received: what `advance` has for ``recv``, and was not yet asked for.
        end_waits: ``recv`` has not yet told of the end.
        has_more: there is probably more than `advance` took.
        deadline: by `time.monotonic`, when a read event is due all the same; None for never.
    """

    __slots__ = ()

    #: There is one, or there was: until then nobody is asked whether his is one.
    are_used: ClassVar[bool] = False

    received: bytes
    end_waits: bool
    has_more: bool
    deadline: float | None

    def __init__(self) -> None:
        LayeredSocket.are_used = True

    if TYPE_CHECKING:  # what each of them has
        # It is touched when the descriptor has to be watched for more than was said.
        def belong_to(self, channel: Any) -> None: ...
        # Turn what the handler waits for into what the descriptor has to be watched for.
        def interest(self, readable: Any, writable: Any) -> tuple[Any, Any]: ...
        def pending(self) -> int: ...  # what ``recv`` has to say and no poller knows of
        # Take what arrived; return whether ``recv`` has something to say.  May raise, for the channel.
        def advance(self) -> bool: ...
        def ready_to_write(self) -> bool: ...  # whether that is news for the handler
        def is_secure_now(self) -> bool: ...  # the connection stands; may the handler be told so?
        def begin(self) -> None: ...  # wait no longer for what had to leave before the protocol
        # The connection is gone in both directions; return whether this was closed already.
        def hang_up(self) -> bool: ...
        # After ``close``: if there are last bytes, call *see_out* with them.
        def leave(self, see_out: Callable[[Any], object]) -> None: ...


class Pollable:
    """What a channel has in place of a descriptor: it is polled itself, under a number of its own."""

    if TYPE_CHECKING:
        # What of READ, WRITE and ENDED happened.  When that becomes more, `_loop.tell` is called.
        def poll(self) -> int: ...


#: Each by its number, which is below -1.
pollables: WeakValueDictionary[int, Pollable] = WeakValueDictionary()


def has_descriptor(fd: Any) -> bool:
    """Return whether the channel under *fd* has one, and is no `Pollable`'s."""
    return type(fd) is not int or fd >= -1


def steady(tells: Callable[[Any], bool] | None = None) -> Callable[[Any], Any]:
    """
    Mark a predicate whose answer changes only by events, and by what calls `touch`.

    Where it looks at a queue, *tells* returns whether that of a given channel calls `touch`.
    """

    def mark(predicate: Any) -> Any:
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


def are_steady(channels: Iterable[Any]) -> bool:
    """
    Return whether each of *channels*, which were `STEADY`, has such predicates still, and a socket that
    is open.  None of them is asked.
    """
    try:
        for channel in channels:
            if (
                channel.socket._closed
                or channel.readable.__func__ not in _steady
                or channel.writable.__func__ not in _steady
            ):
                return False
    except Exception:  # noqa: BLE001 - see kind_of
        return False
    return True


def are_open(channels: Collection[Any]) -> bool:
    """Return whether none of *channels* has an ordinary socket that was closed."""
    try:  # the flag behind ``fileno()``, which costs ten times as much
        return not [one for one in channels if type(one.socket) is _socket and one.socket._closed]
    except Exception:  # noqa: BLE001 - one has no socket, or its __getattr__ does anything
        return len(channels) < 2 or all(are_open([one]) for one in channels)


def pending_of(sock: Any) -> int:
    """
    How many decrypted bytes of *sock* OpenSSL holds, which no poller can know of.

    Every socket of the `ssl` module or pyOpenSSL counts, also behind a wrapper that delegates.
    """
    if sock is None or type(sock) is _socket:
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


def ask_layer(channel: Any, is_r: Any, is_w: Any) -> tuple[Any, Any, bool]:
    """
    Return what the descriptor of *channel*, which waits for *is_r* and *is_w*, is to be watched for
    where some have layers (`LayeredSocket`), and whether a read event is due that no system knows of:
    something was decrypted, or the time for the handshake or the last bytes is over.
    """
    sock = socket_of(channel)
    until = own(channel, "_leaves_at")
    is_due = False
    if isinstance(sock, LayeredSocket):
        is_due = bool(is_r and sock.pending())
        is_r, is_w = sock.interest(is_r, is_w)
        until = sock.deadline
    return is_r, is_w, is_due or (until is not None and time.monotonic() >= until)


def is_open(channel: Any, fd: Any) -> bool:
    """Whether *channel* has an ordinary socket that is open; of others only the system knows."""
    if not has_descriptor(fd):
        return True
    sock = socket_of(channel)
    is_known = type(sock) is _socket or isinstance(sock, LayeredSocket)
    return is_known and sock.fileno() == fd
