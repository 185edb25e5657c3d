"""
Which numbers users may give: in class bodies, as arguments, in ``secure:`` strings, as options. And
the few values of `Limits` that are no numbers.

A number that makes no sense is an error where it is given, not in a connection later: one line with its
name, its value and its range. Defaults, and what a number is for, are documented where the setting is.
"""

from __future__ import annotations

import enum
import inspect
import ipaddress
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "HANDLER",
    "LIMITS",
    "PROXY",
    "STOPPING",
    "TLS",
    "UNSET",
    "Networks",
    "OneOf",
    "Range",
    "Text",
    "Unset",
    "check_all",
    "check_class",
    "check_owner",
]


class Unset(enum.Enum):
    """The type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


#: Not given, where None says that there is no limit: what others say holds.
UNSET: Final = Unset.UNSET

#: Eleven days: anything longer may as well be for ever, and `select` cannot wait longer.
LONGEST_SECONDS = 1_000_000


@dataclass(frozen=True)
class Range:
    """
    The numbers that something may be.

    Args:
        lowest, highest: the smallest, and the largest; None for no limit.
        whole: only whole numbers, as for bytes.
        above: *lowest* itself is excluded.
        optional: None is allowed too.
    """

    lowest: int
    highest: int | None = None
    whole: bool = False
    above: bool = False
    optional: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        lowest = f"{'above' if self.above else 'from'} {self.lowest:,}"
        highest = " up" if self.highest is None else f" to {self.highest:,}"
        return f"{kind} {lowest}{highest}"

    def check(self, name: str, value: Any) -> None:
        """
        Raise if *value* is not in this range.

        Raises:
            TypeError: it is not a number.
            ValueError: it is out of range, or not whole.
        """
        if value is None and self.optional:
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and self._has(value) and (isinstance(value, int) or not self.whole):
            return
        text = f"{name} must be {self}{', or None' if self.optional else ''}, not {value!r:.80}"
        raise ValueError(text) if is_number else TypeError(text)

    def parse(self, name: str, text: str) -> Any:
        """
        Return the number that *text* stands for.

        Raises:
            ValueError: it is not a number, or is out of range.
        """
        try:
            number = int(text) if self.whole else float(text)
            if self._has(number):
                return number
        except ValueError:
            pass
        raise ValueError(f"{name} must be {self}, not {text!r:.80}")

    @staticmethod
    def plain(value: Any) -> Any:
        """Return what `check` takes, for what stands in a file."""
        return value

    def _has(self, number: float) -> bool:
        # NaN is in no range, because no comparison with it is true.
        begins = number > self.lowest if self.above else number >= self.lowest
        return begins and (self.highest is None or number <= self.highest)


@dataclass(frozen=True)
class OneOf:
    """A word among a few. The methods are those of `Range`."""

    words: tuple[str, ...]
    optional = False

    def __str__(self) -> str:
        return " or ".join(self.words)

    def check(self, name: str, value: Any) -> None:
        """Raise a ValueError if *value* is none of them."""
        if value not in self.words:
            raise ValueError(f"{name} must be {self}, not {value!r:.80}")

    def parse(self, name: str, text: str) -> str:
        """Return *text*, if it is one of them."""
        self.check(name, text)
        return text

    @staticmethod
    def plain(value: Any) -> Any:
        """Return *value*."""
        return value


class Text:
    """Bytes, which are written as text. The methods are those of `Range`."""

    optional = True

    def __str__(self) -> str:
        return "bytes"

    def check(self, name: str, value: Any) -> None:
        """Raise a TypeError if *value* is something else."""
        if value is not None and not isinstance(value, bytes):
            raise TypeError(f"{name} must be bytes, or None, not {value!r:.80}")

    def parse(self, _name: str, text: str) -> bytes:
        r"""Return the bytes of *text*, in which ``\r``, ``\n``, ``\t`` and ``\x1b`` may stand."""
        known = {b"r": b"\r", b"n": b"\n", b"t": b"\t"}
        return re.sub(
            rb"\\(x[0-9a-fA-F]{2}|.)",
            lambda found: (
                bytes.fromhex(found[1][1:].decode())
                if len(found[1]) > 1
                else known.get(found[1], found[1])
            ),
            text.encode(),
        )

    @staticmethod
    def plain(value: Any) -> Any:
        """Return the bytes of a string."""
        return value.encode() if isinstance(value, str) else value


class Networks:
    """
    Networks, such as ``10.0.0.0/8`` or an address, and words for others. The methods are those of
    `Range`.
    """

    optional = True
    #: Peers on this machine, of Unix sockets, and proxies that are trusted.
    WORDS = ("loopback", "unix", "proxies")

    def __str__(self) -> str:
        return "a list of networks, loopback, unix and proxies"

    def check(self, name: str, value: Any) -> None:
        """Raise a TypeError or a ValueError if *value* is no list of them."""
        if value is None:
            return
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise TypeError(f"{name} must be {self}, not {value!r:.80}")
        for one in value:
            if one in self.WORDS:
                continue
            try:
                ipaddress.ip_network(one if isinstance(one, str) else repr(one))
            except ValueError as error:
                raise ValueError(f"{name} must be {self}: {error}") from None

    def parse(self, name: str, text: str) -> tuple[str, ...]:
        """Return what *text* names, separated by commas."""
        found = tuple(one.strip() for one in text.split(",") if one.strip())
        self.check(name, found)
        return found

    @staticmethod
    def plain(value: Any) -> Any:
        """Return a tuple for a list."""
        return tuple(value) if isinstance(value, list) else value


class _Clock:
    # Takes the place of a `Range` for a clock, or None.

    def check(self, name: str, value: Any) -> None:
        if value is not None and not callable(getattr(value, "callLater", None)):
            raise TypeError(f"{name} must be a reactor or a Clock, or None, not {value!r:.80}")


_seconds = partial(Range, 0, LONGEST_SECONDS, above=True)
_count = partial(Range, whole=True)

#: The settings of an `AsyncChat`.
HANDLER: Mapping[str, Range | _Clock] = {
    "max_message_length": _count(1, optional=True),
    "high_water": _count(0, optional=True),
    "low_water": _count(0),
    "max_unsent": _count(1, optional=True),
    "ac_out_buffer_size": _count(1),
    "close_timeout": _seconds(optional=True),
    "clock": _Clock(),
}
#: Those of `ServerOptions` and `ClientOptions`, and of ``secure:`` strings.
TLS: Mapping[str, Range] = {
    "reload_interval": _seconds(optional=True),
    "handshake_timeout": _seconds(optional=True),
    "close_timeout": _seconds(),
    "flush_timeout": _seconds(),
    "handshakes": _count(1, optional=True),
    "max_pending": _count(1, optional=True),
}
#: Those of `ProxyOptions`, and of ``proxy:`` strings.
PROXY: Mapping[str, Range] = {
    "timeout": _seconds(optional=True),
    "longest": _count(536, 65_551),
}
#: The ``stop_timeout`` of a `Server`.
STOPPING = Range(0, LONGEST_SECONDS, optional=True)
_A_SECOND = Range(0, 10**9, optional=True, above=True)
#: What `Limits` has.
LIMITS: Mapping[str, Range | OneOf | Text | Networks] = {
    "first_message": _seconds(optional=True),
    "idle": _seconds(optional=True),
    "message": _seconds(optional=True),
    "minimum_rate": _A_SECOND,
    "write_stall": _seconds(optional=True),
    "session": _seconds(optional=True),
    "handshakes": _count(1, optional=True),
    "max_message_length": _count(1, optional=True),
    "stop_timeout": Range(0, LONGEST_SECONDS, optional=True),
    "connections": _count(1, optional=True),
    "per_address": _count(1, optional=True),
    "exempt": Networks(),
    "rate": _A_SECOND,
    "per_address_rate": _A_SECOND,
    "refusal": Text(),
    "when_full": OneOf(("refuse", "queue")),
    "queue": _count(1),
    "queue_timeout": _seconds(optional=True),
    "accepts": _count(1, optional=True),
}


def check_all(owner: Any, ranges: Mapping[str, Range]) -> None:
    """Check the attributes that *owner* has; see `Range.check`."""
    for name, its in ranges.items():
        if getattr(owner, name, UNSET) is not UNSET:
            its.check(name, getattr(owner, name))


def check_class(cls: type, ranges: Mapping[str, Range | _Clock]) -> None:
    """Check what a class body sets, except properties and fields of dataclasses; see `Range.check`."""
    for name, its in ranges.items():
        value = inspect.getattr_static(cls, name)
        if type(value).__module__ == "builtins" and not hasattr(type(value), "__get__"):
            its.check(f"{cls.__qualname__}.{name}", value)


def check_owner(owner: Any, ranges: Mapping[str, Range | _Clock], default: type) -> None:
    """
    Check the attributes of *owner*, replace wrong ones by those of *default*, and raise for the first.
    """
    first: Exception | None = None
    for name, its in ranges.items():
        value = getattr(owner, name)
        if value is not getattr(default, name):
            try:
                its.check(f"{type(owner).__qualname__}.{name}", value)
            except (TypeError, ValueError) as error:
                first = first or error
                setattr(owner, name, getattr(default, name))
    if first is not None:
        raise first
