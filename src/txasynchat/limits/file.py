"""
Limits in a file: the table ``[limits]`` of TOML.

Every mistake is told with the file, the table, the key, what may be meant, and the line where a search
for the key finds exactly one.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txasynchat import ranges
from txasynchat.errors import ConfigurationError
from txasynchat.limits.options import NAMES, Limits, nearest

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["read_limits"]

TABLE = "limits"


def read_limits(path: str | PathLike[str]) -> Limits:
    """
    Read the limits of a TOML file, in which ``"none"`` stands for None.

    Raises:
        ConfigurationError: the file cannot be read, is not TOML, or has something else in it.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(path, f"not UTF-8 at byte {error.start}") from None
    try:
        tables = tomllib.loads(text)
    # A number, or a nesting, without end is no TOMLDecodeError.
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(path, f"not TOML: {error}") from None
    for name, value in tables.items():
        if name in NAMES and not isinstance(value, dict):
            problem = f"{name} belongs into a table: write [{TABLE}] above it"
            raise ConfigurationError(path, problem, line=_line(text, name))
        if name != TABLE:
            problem = f"there is no table [{name}]; {nearest(name, [TABLE])}"
            raise ConfigurationError(path, problem, line=_line(text, name))
    table = tables.get(TABLE, {})
    if not isinstance(table, dict):
        problem = f"{TABLE} is not a table: write [{TABLE}], and below it idle = 300"
        raise ConfigurationError(path, problem, line=_line(text, TABLE))
    given: dict[str, Any] = {}
    for key, value in table.items():
        problem = _problem(key, value)
        if problem:
            raise ConfigurationError(path, problem, table=TABLE, key=key, line=_line(text, key))
        given[key] = None if value == "none" else ranges.LIMITS[key].plain(value)
    return Limits(**given)


def _problem(key: str, value: Any) -> str:
    """Return what is wrong with a value; nothing if it is right."""
    if key not in NAMES:
        return f"not a limit; {nearest(key, NAMES)}"
    its = ranges.LIMITS[key]
    if value == "none" and its.optional:
        return ""
    try:
        its.check(key, its.plain(value))
    except (TypeError, ValueError):
        hint = ""
        number = (
            isinstance(its, ranges.Range)
            and isinstance(value, str)
            and re.match(r"\s*([\d_.]+)\s*[a-zA-Z/]*\s*$", value)
        )
        if number:
            hint = f"; write {key} = {number[1]}, without quotes or a unit"
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        none = ', or "none"' if its.optional else ""
        return f"must be {its}{none}, not {shown:.80}{hint}"
    return ""


def _line(text: str, name: str) -> int | None:
    """Return the number of the line that sets, or opens, *name*; None unless there is exactly one."""
    quoted = re.escape(name)
    pattern = re.compile(
        rf"""^\s*(?:\[\s*["']?{quoted}["']?\s*[.\]]|(?:{TABLE}\s*\.\s*)?["']?{quoted}["']?\s*[=.])"""
    )
    found = [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]
    return found[0] if len(found) == 1 else None
