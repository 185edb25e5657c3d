"""
asynchat's semantics on Twisted's reactor.

* `AsyncChat`: a Twisted protocol that speaks in messages, with the terminators and the producer queue
  of ``asynchat``.
* `txasynchat.compat`: the ``asyncore`` and ``asynchat`` modules themselves, for programs that stay as
  they are.

Importing this package installs no reactor, and loads no more of it and of Twisted than what is asked
for needs: a legacy program that runs on `txasynchat.compat` alone starts without any of Twisted, and
one that is built on `AsyncChat` without any of the facade.
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
    from txasynchat.producers import FileProducer, OutputQueue, simple_producer
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
    "AsyncChat": "protocol",
    "CannotStart": "program",
    "CertificateRejected": "errors",
    "ChatError": "errors",
    "ChatFactory": "server",
    "ClientOptions": "tls",
    "CloseTimedOut": "errors",
    "ConnectionReset": "errors",
    "Connections": "connections",
    "Credentials": "tls",
    "CredentialsError": "errors",
    "FileProducer": "producers",
    "Framer": "framing",
    "HandshakeFailed": "errors",
    "Leftovers": "tls",
    "LengthPrefix": "terminators",
    "ListenError": "errors",
    "MessageTooLong": "errors",
    "OutputQueue": "producers",
    "Overflow": "framing",
    "PeerError": "errors",
    "ProducerError": "errors",
    "Program": "program",
    "Server": "server",
    "ServerOptions": "tls",
    "State": "protocol",
    "StoppedByServer": "errors",
    "TLSError": "errors",
    "TLSInfo": "tls",
    "Terminator": "terminators",
    "UnsentLimitExceeded": "errors",
    "install": "compat",
    "serve": "program",
    "simple_producer": "producers",
    "uninstall": "compat",
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
