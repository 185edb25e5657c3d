"""
Keeps peers from flooding or forging a server's log.

An exception that quotes what a peer sent brings the peer's bytes into the log: line ends that begin a
forged entry, escape sequences that a terminal obeys.

Importing this module imports nothing of Twisted, which legacy programs that never log do without.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from traceback import TracebackException

    from twisted.logger import Logger

__all__ = ["Throttle", "escape", "failure", "unlogged"]

#: Kinds that one `Throttle` counts at most, because peers may be able to choose them.
_MOST_KINDS = 1024


def escape(text: str) -> str:
    r"""
    Write characters that do not print (control characters, line ends, marks that change the direction
    of text) as ``\n``, ``\x1b`` or ``\u202e``.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def failure(log: Logger, message: str, **details: Any) -> None:
    """
    Log the exception being handled, with its traceback, escaped so that it cannot forge a log line.

    *message* is the format of the event, and *details* are further keys of it.
    """
    from twisted.python.failure import Failure  # noqa: PLC0415 - see the module's docstring

    class Escaped(Failure):
        """A failure whose traceback has its messages escaped."""

        def getTraceback(self, *_arguments: Any, **_named: Any) -> str:  # noqa: N802 - Twisted's name
            from traceback import TracebackException  # noqa: PLC0415 - see the module's docstring

            if self.value is None:
                return ""
            whole = TracebackException.from_exception(self.value)
            _escape_messages(whole, set())
            return "".join(whole.format())

    log.failure(message, failure=Escaped(), **details)  # type: ignore[no-untyped-call] # Twisted's


def _escape_messages(error: TracebackException | None, seen: set[int]) -> None:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    format_message = error.format_exception_only

    def escaped(**options: Any) -> Any:
        for line in format_message(**options):
            yield f"{escape(line.removesuffix(chr(10)))}\n"

    error.format_exception_only = escaped  # type: ignore[method-assign]
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        error.__notes__ = [escape(str(note)) for note in notes]
    for other in (error.__cause__, error.__context__, *(getattr(error, "exceptions", None) or ())):
        _escape_messages(other, seen)


def unlogged(suppressed: int) -> str:
    """Return what an event's text ends with: how many before it a `Throttle` suppressed."""
    return f" ({suppressed} of these before it were not logged)" if suppressed else ""


class Throttle:
    """
    Limits how often events of a kind are logged, and counts those that are not.

    Args:
        interval: seconds in which no second event of the same kind is logged.
        now: the clock that *interval* is measured by.
    """

    def __init__(self, interval: float, now: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._now = now
        self._logged: dict[Hashable, tuple[float, int]] = {}

    def forget(self) -> None:
        """Let the next event of each kind be logged."""
        self._logged.clear()

    def count(self, kind: Hashable) -> int:
        """Return how many of this kind were suppressed since the last one that was logged."""
        return self._logged.get(kind, (0.0, 0))[1]

    def suppressed(self, kind: Hashable) -> int | None:
        """
        Count an event of this kind; return the number suppressed before it, None to suppress it too.
        """
        now = self._now()
        since, count = self._logged.get(kind, (now - self._interval, 0))
        if now - since < self._interval:
            self._logged[kind] = (since, count + 1)
            return None
        if kind not in self._logged and len(self._logged) >= _MOST_KINDS:
            self._logged.clear()
        self._logged[kind] = (now, 0)
        return count
