"""
TLS: its settings (`ServerOptions`, `ClientOptions`, `Credentials`), what a connection agreed on
(`TLSInfo`), and what becomes of bytes that come too early (`Leftovers`).

Nothing here knows `AsyncChat`. A module is loaded when one of its names is asked for, because the
facade uses some of them in programs that never load Twisted or pyOpenSSL.
"""

from typing import TYPE_CHECKING

from txasynchat._lazy import on_first_use

if TYPE_CHECKING:  # ``X as X``: for type checkers, X is public
    from txasynchat.tls.certificates import Credentials as Credentials
    from txasynchat.tls.info import TLSInfo as TLSInfo
    from txasynchat.tls.leftovers import Leftovers as Leftovers
    from txasynchat.tls.options import ClientCertificate as ClientCertificate
    from txasynchat.tls.options import ClientOptions as ClientOptions
    from txasynchat.tls.options import ServerOptions as ServerOptions
    from txasynchat.tls.options import Version as Version

_NAMES = {
    "certificates": "Credentials",
    "info": "TLSInfo",
    "leftovers": "Leftovers",
    "options": "ClientCertificate ClientOptions ServerOptions Version",
}
__all__ = [name for names in _NAMES.values() for name in names.split()]
__getattr__, __dir__ = on_first_use(__name__, _NAMES)
