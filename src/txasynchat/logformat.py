"""
The log as JSON: an event is one line, an object whose fields are for programs to search.

``time`` (UTC), ``level``, ``namespace`` and ``text`` are those of every event, ``exception`` and
``traceback`` those of a failure; beside them stand the event's own, such as ``peer``, ``kind`` and
``error``. What a peer sends stays within its field: JSON escapes line ends and control characters.

Twisted's `jsonFileLogObserver` is made for events that are read back into Twisted: it leaves out what
it cannot restore, such as a peer's address, and has no text.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import FileLogObserver, eventAsText
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["event_as_json", "json_observer"]

# What events of Twisted's older log have, and what its observers add to others, with `isError` always.
_OLDER = frozenset({"message", "time", "system", "isError", "format", "printed", "why", "failure"})
#: Of the whole numbers that stay numbers.
_LARGEST = 1 << 63
#: Of the values within values.
_DEEPEST = 3


def json_observer(file: IO[Any]) -> FileLogObserver:
    """Return an observer that writes each event of `twisted.logger` to *file*, as a line of JSON."""
    return FileLogObserver(file, event_as_json)


def event_as_json(event: Mapping[str, Any]) -> str:
    """
    Return an event as one line of JSON, with its end.

    A field of the event's own that is named like one of every event gets an underscore at its end.
    """
    fields: dict[str, Any] = {}
    if isinstance(seconds := event.get("log_time"), int | float):
        fields["time"] = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    fields["level"] = getattr(event.get("log_level"), "name", None)
    fields["namespace"] = _plain(event.get("log_system") or event.get("log_namespace"))
    fields["text"] = _readable(
        eventAsText(
            dict(event), includeTraceback=False, includeTimestamp=False, includeSystem=False
        )
    )
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        fields["exception"] = failure.type.__name__ if failure.type is not None else None
        try:
            fields["traceback"] = _readable(failure.getTraceback())
        except Exception as error:  # noqa: BLE001 - the exception's own text may raise
            fields["traceback"] = f"(not to be had: {type(error).__name__})"
    taken = frozenset({*fields, "exception", "traceback"})
    older = _OLDER if "isError" in event else frozenset()
    for name, value in event.items():
        if not name.startswith("log_") and name not in older:
            plain = _peer(value) if name == "peer" else _plain(value)
            fields[f"{name}_" if name in taken else name] = plain
    return f"{json.dumps(fields)}\n"


def _plain(value: Any, depth: int = 0) -> Any:
    # In the types that JSON has, so that writing it cannot fail.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _readable(value)
    if isinstance(value, int) and abs(value) < _LARGEST:
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "backslashreplace")
    if depth < _DEEPEST:
        if isinstance(value, dict):
            return {_readable(_text(name)): _plain(each, depth + 1) for name, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(each, depth + 1) for each in value]
    return _readable(_text(value))


def _readable(text: str) -> str:
    # Half of a surrogate pair, as in file names that are not UTF-8, is not JSON for most who read it.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _peer(value: Any) -> Any:
    # In one form, whether it is an address of Twisted's or what a socket calls its peer.
    if isinstance(value, tuple) and len(value) in (2, 4) and isinstance(value[0], str):
        return _place(*value[:2])
    return _plain(value)


def _place(host: str, port: object) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _text(value: Any) -> str:
    try:
        if isinstance(value, IPv4Address | IPv6Address):
            return _place(value.host, value.port)
        if isinstance(value, UNIXAddress):
            return "" if value.name is None else value.name.decode("utf-8", "backslashreplace")
        if isinstance(value, Failure):
            return value.getErrorMessage()
        return str(value)
    except Exception as error:  # noqa: BLE001 - it is the value's own
        return f"({type(value).__name__}, whose text raised {type(error).__name__})"
