"""
``asyncore`` and ``asynchat`` for programs that stay as they are.

``from txasynchat.compat import asyncore, asynchat`` in a changed import line, `install` for none,
``python -m txasynchat run program.py`` for a program that nobody touches; `LegacyFactory` for a
handler that is served from a Twisted endpoint.
"""

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


def __getattr__(name: str) -> object:
    # The two modules, and what needs more of Twisted, are loaded by those who use them.
    if name in ("TLSSocket", "start_tls"):
        from txasynchat.compat import tls  # noqa: PLC0415 - see above

        return getattr(tls, name)
    if name == "LegacyFactory":
        from txasynchat.compat.served import LegacyFactory  # noqa: PLC0415 - see above

        return LegacyFactory
    if name in ("asyncore", "asynchat"):
        import importlib  # noqa: PLC0415 - see above

        return importlib.import_module(f"txasynchat.compat.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
