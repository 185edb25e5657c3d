"""
asynchat's semantics on Twisted's reactor.

* `AsyncChat`: a Twisted protocol that speaks in messages, with the terminators and the producer queue
  of ``asynchat``.
* `txasynchat.compat`: the ``asyncore`` and ``asynchat`` modules themselves, for programs that stay as
  they are.

Importing this package installs no reactor, and loads only what is used of it and of Twisted: a legacy
program on `txasynchat.compat` alone starts without Twisted, and one on `AsyncChat` without the facade.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from txasynchat.compat import install, uninstall
    from txasynchat.connections import Connections
    from txasynchat.errors import (
        CertificateRejected,
        ChatError,
        CloseTimedOut,
        ConnectionReset,
        CredentialsError,
        HandshakeFailed,
        ListenError,
        MessageTooLong,
        PeerError,
        ProducerError,
        StoppedByServer,
        TLSError,
        UnsentLimitExceeded,
    )
    from txasynchat.framing import Framer, Overflow
    from txasynchat.outputqueue import OutputQueue
    from txasynchat.producers import FileProducer, simple_producer
    from txasynchat.program import CannotStart, Program, serve
    from txasynchat.protocol import AsyncChat, State
    from txasynchat.server import ChatFactory, Server
    from txasynchat.terminators import LengthPrefix, Terminator
    from txasynchat.tls import ClientOptions, Credentials, Leftovers, ServerOptions, TLSInfo

__version__ = "0.1.0"

__all__ = [
    "AsyncChat",
    "CannotStart",
    "CertificateRejected",
    "ChatError",
    "ChatFactory",
    "ClientOptions",
    "CloseTimedOut",
    "ConnectionReset",
    "Connections",
    "Credentials",
    "CredentialsError",
    "FileProducer",
    "Framer",
    "HandshakeFailed",
    "Leftovers",
    "LengthPrefix",
    "ListenError",
    "MessageTooLong",
    "OutputQueue",
    "Overflow",
    "PeerError",
    "ProducerError",
    "Program",
    "Server",
    "ServerOptions",
    "State",
    "StoppedByServer",
    "TLSError",
    "TLSInfo",
    "Terminator",
    "UnsentLimitExceeded",
    "install",
    "serve",
    "simple_producer",
    "uninstall",
]

# The module that each name is loaded from when it is asked for.
_MODULES = {
    name: module
    for module, names in {
        "compat": "install uninstall",
        "connections": "Connections",
        "errors": "CertificateRejected ChatError CloseTimedOut ConnectionReset CredentialsError"
        " HandshakeFailed ListenError MessageTooLong PeerError ProducerError StoppedByServer TLSError"
        " UnsentLimitExceeded",
        "framing": "Framer Overflow",
        "outputqueue": "OutputQueue",
        "producers": "FileProducer simple_producer",
        "program": "CannotStart Program serve",
        "protocol": "AsyncChat State",
        "server": "ChatFactory Server",
        "terminators": "LengthPrefix Terminator",
        "tls": "ClientOptions Credentials Leftovers ServerOptions TLSInfo",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is not None:
        found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
        return found
    if name in _MODULES.values():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
