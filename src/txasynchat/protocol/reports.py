"""
What an `AsyncChat` writes to the log, and how often.

A peer's mistakes are logged without the peer's data, each kind at most once a second, because a peer
can repeat them, and scanners do. A mistake in a handler class is logged once for the class.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from txasynchat import transports
from txasynchat.errors import ProducerError, TimedOut, TLSError
from txasynchat.handlers import unheard
from txasynchat.log import Throttle, escape, failure, unlogged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.logger import Logger

    from txasynchat.errors import PeerError

__all__ = [
    "handler_raised",
    "no_terminator",
    "peer_erred",
    "peer_errors",
    "stopped_producers_raised",
    "unheard_hooks",
]

#: Throttles peers' mistakes.
peer_errors = Throttle(1.0)

# Classes that this warning was logged for.
_without_terminator: WeakSet[type] = WeakSet()

# Hooks that may be overridden.
_HOOKS = (
    *("handle_connect", "handle_secure", "handle_shutdown"),
    *("message_received", "collect_incoming_data", "found_terminator", "message_too_long"),
    *("handle_timeout", "handle_eof", "handle_drained"),
    *("handle_error", "handle_close", "handle_end"),
)


def _about(chat: Any) -> dict[str, Any]:
    peer = None if chat.transport is None else transports.peer_name(chat.transport)
    return {"peer": peer, "handler": type(chat).__qualname__}


def peer_erred(events: Logger, chat: Any, error: PeerError) -> None:
    """Log a peer's mistake with its numbers, but none of its data."""
    kind = type(error).__name__
    suppressed = peer_errors.suppressed(kind)
    if suppressed is None:
        return
    # Scanners, and peers that just leave, need nobody's attention.
    report = events.info if isinstance(error, TLSError) else events.warn
    limit = {"limit": error.kind} if isinstance(error, TimedOut) else {}
    report(
        "{peer}: {error}{before}",
        error=escape(str(error)),
        kind=kind,
        suppressed=suppressed,
        before=unlogged(suppressed),
        **limit,
        **_about(chat),
    )


def handler_raised(events: Logger, chat: Any, what: str = "{peer}: {handler} raised") -> None:
    """Log the exception that is being handled, with its traceback."""
    if isinstance(sys.exc_info()[1], ProducerError):
        # With the traceback of the producer's own exception, which is the cause.
        what = "{peer}: a producer of {handler} failed"
    failure(events, what, **_about(chat))


def stopped_producers_raised(events: Logger, chat: Any, errors: Iterable[Exception]) -> None:
    """Log what producers raised when they were stopped."""
    for error in errors:
        try:
            raise error
        except Exception:  # noqa: BLE001 only to be logged with its traceback
            handler_raised(
                events, chat, "{peer}: a producer of {handler} raised when it was stopped"
            )


def no_terminator(events: Logger, chat: Any) -> None:
    """Warn, once for each class, that without a terminator ``message_received`` is never called."""
    cls = type(chat)
    if cls not in _without_terminator:
        _without_terminator.add(cls)
        events.warn(
            "{handler} has message_received and no terminator, so that no message ever ends: set "
            "terminator in the class, or by set_terminator in handle_connect{hint}",
            handler=cls.__qualname__,
            hint=" (delimiter is LineReceiver's name for it)" if hasattr(chat, "delimiter") else "",
        )


def unheard_hooks(events: Logger, cls: type) -> None:
    """Warn of hooks of *cls* that nobody runs, or whose results nobody waits for."""
    for hook, why in unheard(cls, _HOOKS, "connectionMade"):
        events.warn("{handler}.{hook} {why}", handler=cls.__qualname__, hook=hook, why=why)
