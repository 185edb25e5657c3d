"""
asynchat's semantics on Twisted's reactor.

* `AsyncChat`: a Twisted protocol that speaks in messages, with the terminators and the producer queue
  of ``asynchat``.
* `txasynchat.compat`: the ``asyncore`` and ``asynchat`` modules themselves, for programs that stay as
  they are.

Importing this package installs no reactor, and loads no more of Twisted than what is asked for needs:
a legacy program that runs on `txasynchat.compat` alone starts without any.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from txasynchat.compat import install, uninstall
    from txasynchat.errors import (
        CertificateExpired,
        CertificateRejected,
        ChatError,
        CloseTimedOut,
        ConnectionReset,
        CredentialsError,
        HandshakeFailed,
        HandshakeTimedOut,
        ListenError,
        MessageTooLong,
        MissingClientCertificate,
        NoCommonProtocol,
        NotAClientHello,
        PeerError,
        PlaintextAfterStartTLS,
        ProducerError,
        SelfSigned,
        StoppedByServer,
        TLSError,
        TruncatedConnection,
        UnknownAuthority,
        UnknownServerName,
        UnsentLimitExceeded,
        WrongName,
    )
    from txasynchat.framing import Framer, Overflow
    from txasynchat.leftovers import Leftovers
    from txasynchat.producers import FileProducer, OutputQueue, simple_producer
    from txasynchat.program import CannotStart, Program, serve
    from txasynchat.protocol import AsyncChat, State
    from txasynchat.server import ChatFactory, Connections, Server
    from txasynchat.terminators import LengthPrefix, Terminator
    from txasynchat.tlsinfo import TLSInfo

__all__ = [
    "AsyncChat",
    "CannotStart",
    "CertificateExpired",
    "CertificateRejected",
    "ChatError",
    "ChatFactory",
    "CloseTimedOut",
    "ConnectionReset",
    "Connections",
    "CredentialsError",
    "FileProducer",
    "Framer",
    "HandshakeFailed",
    "HandshakeTimedOut",
    "Leftovers",
    "LengthPrefix",
    "ListenError",
    "MessageTooLong",
    "MissingClientCertificate",
    "NoCommonProtocol",
    "NotAClientHello",
    "OutputQueue",
    "Overflow",
    "PeerError",
    "PlaintextAfterStartTLS",
    "ProducerError",
    "Program",
    "SelfSigned",
    "Server",
    "State",
    "StoppedByServer",
    "TLSError",
    "TLSInfo",
    "Terminator",
    "TruncatedConnection",
    "UnknownAuthority",
    "UnknownServerName",
    "UnsentLimitExceeded",
    "WrongName",
    "install",
    "serve",
    "simple_producer",
    "uninstall",
]

# Where the names are: what is loaded fastest comes first.
_HOMES = (
    "compat",
    "errors",
    "terminators",
    "framing",
    "producers",
    "tlsinfo",
    "leftovers",
    "protocol",
    "server",
    "program",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if name in module.__all__:
                found = globals()[name] = getattr(module, name)
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
