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
    ChatError,
    CloseTimedOut,
    ListenError,
    MessageTooLong,
    PeerError,
    ProducerError,
    UnsentLimitExceeded,
)
from txasynchat.framing import Framer, Overflow
from txasynchat.producers import FileProducer, OutputQueue, simple_producer
from txasynchat.program import serve
from txasynchat.protocol import AsyncChat, State
from txasynchat.server import ChatFactory, Connections, Server
from txasynchat.terminators import LengthPrefix, Terminator

__all__ = [
    "AsyncChat",
    "ChatError",
    "ChatFactory",
    "CloseTimedOut",
    "Connections",
    "FileProducer",
    "Framer",
    "LengthPrefix",
    "ListenError",
    "MessageTooLong",
    "OutputQueue",
    "Overflow",
    "PeerError",
    "ProducerError",
    "Server",
    "State",
    "Terminator",
    "UnsentLimitExceeded",
    "install",
    "serve",
    "simple_producer",
    "uninstall",
]
