"""
TLS: its settings (`ServerOptions`, `ClientOptions`, `Credentials`), what a connection agreed on
(`TLSInfo`), and what becomes of bytes that come too early (`Leftovers`).

Nothing here knows `AsyncChat`. A module is loaded when one of its names is asked for, because the
facade uses some of them in programs that never load Twisted or pyOpenSSL.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from txasynchat.tls.certificates import Credentials
    from txasynchat.tls.info import TLSInfo
    from txasynchat.tls.leftovers import Leftovers
    from txasynchat.tls.options import ClientCertificate, ClientOptions, ServerOptions, Version

__all__ = [
    "ClientCertificate",
    "ClientOptions",
    "Credentials",
    "Leftovers",
    "ServerOptions",
    "TLSInfo",
    "Version",
]

_MODULES = {
    "ClientCertificate": "options",
    "ClientOptions": "options",
    "Credentials": "certificates",
    "Leftovers": "leftovers",
    "ServerOptions": "options",
    "TLSInfo": "info",
    "Version": "options",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
