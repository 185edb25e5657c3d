"""
asynchat's semantics on Twisted's reactor.

* `AsyncChat`: a Twisted protocol that speaks in messages, with the terminators and the producer queue
  of ``asynchat``.
* `txasynchat.compat`: the ``asyncore`` and ``asynchat`` modules themselves, for programs that stay as
  they are.

Importing this package installs no reactor.
"""

from txasynchat.compat import install, uninstall
from txasynchat.errors import (
    CertificateExpired,
    CertificateRejected,
    ChatError,
    CloseTimedOut,
    CredentialsError,
    HandshakeFailed,
    HandshakeTimedOut,
    ListenError,
    MessageTooLong,
    MissingClientCertificate,
    NoCommonProtocol,
    PeerError,
    PlaintextAfterStartTLS,
    ProducerError,
    SelfSigned,
    TLSError,
    TruncatedConnection,
    UnknownAuthority,
    UnknownServerName,
    UnsentLimitExceeded,
    WrongName,
)
from txasynchat.framing import Framer, Overflow
from txasynchat.producers import FileProducer, OutputQueue, simple_producer
from txasynchat.program import CannotStart, Program, serve
from txasynchat.protocol import AsyncChat, State
from txasynchat.server import ChatFactory, Connections, Server
from txasynchat.starttls import Leftovers
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
    "OutputQueue",
    "Overflow",
    "PeerError",
    "PlaintextAfterStartTLS",
    "ProducerError",
    "Program",
    "SelfSigned",
    "Server",
    "State",
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
