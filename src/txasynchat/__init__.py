"""
asynchat's semantics on Twisted's reactor.

* `AsyncChat`: a Twisted protocol that speaks in messages, with the terminators and the producer queue
  of ``asynchat``.
* `txasynchat.compat`: the ``asyncore`` and ``asynchat`` modules themselves, for programs that stay as
  they are.

Importing this package installs no reactor, and loads only what is used of it and of Twisted: a legacy
program on `txasynchat.compat` alone starts without Twisted, and one on `AsyncChat` without the facade.
"""

from typing import TYPE_CHECKING

from txasynchat._lazy import on_first_use

if TYPE_CHECKING:  # ``X as X``: for type checkers, X is public
    from txasynchat.broadcast import Broadcast as Broadcast, Slow as Slow  # noqa: I001 - joined
    from txasynchat.clients import connect as connect, reconnecting as reconnecting
    from txasynchat.compat import install as install, uninstall as uninstall
    from txasynchat.connections import Connections as Connections
    from txasynchat.errors import (
        CertificateRejected as CertificateRejected,
        ChatError as ChatError,
        CloseTimedOut as CloseTimedOut,
        ConfigurationError as ConfigurationError,
        ConnectionReset as ConnectionReset,
        ConnectTimedOut as ConnectTimedOut,
        CredentialsError as CredentialsError,
        HandshakeFailed as HandshakeFailed,
        IncompleteMessage as IncompleteMessage,
        ListenError as ListenError,
        MalformedMessage as MalformedMessage,
        MessageTooLong as MessageTooLong,
        OtherProtocol as OtherProtocol,
        PeerError as PeerError,
        ProducerError as ProducerError,
        ProgramStopped as ProgramStopped,
        StoppedByServer as StoppedByServer,
        TimedOut as TimedOut,
        TLSError as TLSError,
        UnsentLimitExceeded as UnsentLimitExceeded,
    )
    from txasynchat.framing import Framer as Framer, Overflow as Overflow
    from txasynchat.limits import Limits as Limits
    from txasynchat.outputqueue import OutputQueue as OutputQueue
    from txasynchat.producers import (
        FileProducer as FileProducer,
        simple_producer as simple_producer,
    )
    from txasynchat.program import CannotStart as CannotStart, Program as Program, serve as serve
    from txasynchat.protocol import AsyncChat as AsyncChat, State as State, Stream as Stream
    from txasynchat.proxy import (
        Proxied as Proxied,
        ProxyClientEndpoint as ProxyClientEndpoint,
        ProxyOptions as ProxyOptions,
        ProxyServerEndpoint as ProxyServerEndpoint,
    )
    from txasynchat.server import ChatFactory as ChatFactory, Server as Server
    from txasynchat.terminators import (
        LengthPrefix as LengthPrefix,
        LineEnds as LineEnds,
        Netstring as Netstring,
        Terminator as Terminator,
    )
    from txasynchat.tls import (
        ClientOptions as ClientOptions,
        Credentials as Credentials,
        Leftovers as Leftovers,
        ServerOptions as ServerOptions,
        TLSInfo as TLSInfo,
    )

__version__ = "0.1.0"

# What each module is loaded for.
_NAMES = {
    "broadcast": "Broadcast Slow",
    "clients": "connect reconnecting",
    "compat": "install uninstall",
    "connections": "Connections",
    "errors": "CertificateRejected ChatError CloseTimedOut ConfigurationError ConnectTimedOut"
    " ConnectionReset CredentialsError HandshakeFailed IncompleteMessage ListenError MalformedMessage"
    " MessageTooLong OtherProtocol PeerError ProducerError ProgramStopped StoppedByServer TimedOut"
    " TLSError UnsentLimitExceeded",
    "framing": "Framer Overflow",
    "limits": "Limits",
    "outputqueue": "OutputQueue",
    "producers": "FileProducer simple_producer",
    "program": "CannotStart Program serve",
    "protocol": "AsyncChat State Stream",
    "proxy": "Proxied ProxyClientEndpoint ProxyOptions ProxyServerEndpoint",
    "server": "ChatFactory Server",
    "terminators": "LengthPrefix LineEnds Netstring Terminator",
    "tls": "ClientOptions Credentials Leftovers ServerOptions TLSInfo",
}
__all__ = [name for names in _NAMES.values() for name in names.split()]
__getattr__, __dir__ = on_first_use(__name__, _NAMES)
