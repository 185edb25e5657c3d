"""Put the facade where ``import asyncore`` and ``import asynchat`` find it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["install", "uninstall", "what_brings_back"]

NAMES = ("asyncore", "asynchat")

# What else old programs import and is gone: what removed it, and which package brings it back.
_DEPARTED = {
    "distutils": ("Python 3.12", "setuptools"),
    "imp": ("Python 3.12", "zombie-imp"),
    "pkg_resources": ("setuptools 82", "'setuptools<82'"),
    "smtpd": ("Python 3.12", "standard-smtpd"),
    "telnetlib": ("Python 3.13", "standard-telnetlib"),
}

# What was in sys.modules before; None for nothing. Empty if not installed.
_before: dict[str, ModuleType | None] = {}


def install() -> None:
    """
    Make ``import asyncore`` and ``import asynchat`` give this package's modules, in this process.

    Call it before the program's own modules are imported, and before smtpd (which a package brings
    back), because names that those took from the stdlib's modules (Python 3.11) or a backport stay what
    they were. May be repeated.

    Raises:
        RuntimeError: another ``asyncore`` was imported before, and channels live in its map.
    """
    from txasynchat.compat import asynchat, asyncore  # noqa: PLC0415 - loaded only where it is used

    ours = {"asyncore": asyncore, "asynchat": asynchat}
    if all(sys.modules.get(name) is module for name, module in ours.items()):
        return
    other = sys.modules.get("asyncore")
    if other is not asyncore and (live := len(getattr(other, "socket_map", ()))):
        name, file = (getattr(other, one, None) for one in ("__name__", "__file__"))
        raise RuntimeError(
            f"{name!r} from {file!r} was imported before and drives {live} channels: "
            "call txasynchat.install() earlier"
        )
    for name, module in ours.items():
        _before.setdefault(name, sys.modules.get(name))
        sys.modules[name] = module


def uninstall() -> None:
    """Undo `install`: put back what was there before. Harmless without an `install`."""
    for name, module in _before.items():
        if module is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = module
    _before.clear()


def what_brings_back(error: BaseException) -> str | None:
    """
    Say which package has the module that *error* misses, if it was removed from Python or setuptools.
    """
    if not isinstance(error, ModuleNotFoundError) or error.name not in _DEPARTED:
        return None
    home, package = _DEPARTED[error.name]
    text = f"{error.name} was removed in {home}; pip install {package} brings it back"
    if error.name == "smtpd":
        text += ", and runs on txasynchat if txasynchat.install() comes before its import"
    return text
