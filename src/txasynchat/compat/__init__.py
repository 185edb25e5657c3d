"""
``asyncore`` and ``asynchat`` for programs that stay as they are.

``from txasynchat.compat import asyncore, asynchat`` changes an import line, `install` needs no such
change, ``python -m txasynchat run program.py`` no change at all. `LegacyFactory` serves a handler from
a Twisted endpoint.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from txasynchat.compat._attach import Attachment, attach
from txasynchat.compat._install import install, uninstall
from txasynchat.compat._reactor import current_reactor

if TYPE_CHECKING:
    from txasynchat.compat import asynchat, asyncore
    from txasynchat.compat.served import LegacyFactory
    from txasynchat.compat.tls import TLSSocket, start_tls

__all__ = [
    "Attachment",
    "LegacyFactory",
    "TLSSocket",
    "asynchat",
    "asyncore",
    "attach",
    "current_reactor",
    "install",
    "start_tls",
    "uninstall",
]


# Loaded when they are used: the two modules, and what needs more of Twisted.
_MODULES = {"LegacyFactory": "served", "TLSSocket": "tls", "start_tls": "tls"}


def __getattr__(name: str) -> object:
    if name in ("asyncore", "asynchat"):
        return import_module(f"{__name__}.{name}")
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
