"""
``asyncore`` and ``asynchat`` for programs that stay as they are.

``from txasynchat.compat import asyncore, asynchat`` changes an import line, `install` needs no such
change, ``python -m txasynchat run program.py`` no change at all. `LegacyFactory` serves a handler from
a Twisted endpoint.
"""

from typing import TYPE_CHECKING

from txasynchat._lazy import on_first_use
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
_NAMES = {"asynchat": "", "asyncore": "", "served": "LegacyFactory", "tls": "TLSSocket start_tls"}
__getattr__, __dir__ = on_first_use(__name__, _NAMES)
