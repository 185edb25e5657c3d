"""
Every exception of this package, under one base.

Told apart by whose fault they describe:

* a *caller's* mistake (a terminator of the wrong type, pushing text) raises the builtin `TypeError`
  or `ValueError` at the call, with the value in its message: nothing of those is defined here;
* a *peer's* mistake or misfortune is a `PeerError`: it reaches a hook of the application, is logged
  once and closes that connection only; those of TLS are `TLSError`;
* a *server* that stops ends a connection by `StoppedByServer`, where it does not wait for its end;
* a *producer's* failure is a `ProducerError`: it is handled as an exception in a handler is;
* *our own* certificate or key that cannot be used is a `CredentialsError`, and a `ValueError`;
* a *place* that cannot be listened on is a `ListenError`, raised when a server is made or started.
"""

from __future__ import annotations

__all__ = [
    "CertificateExpired",
    "CertificateRejected",
    "ChatError",
    "CloseTimedOut",
    "ConnectionReset",
    "CredentialsError",
    "HandshakeFailed",
    "HandshakeTimedOut",
    "ListenError",
    "MessageTooLong",
    "MissingClientCertificate",
    "NoCommonProtocol",
    "NotAClientHello",
    "PeerError",
    "PlaintextAfterStartTLS",
    "ProducerError",
    "SelfSigned",
    "StoppedByServer",
    "TLSError",
    "TruncatedConnection",
    "UnknownAuthority",
    "UnknownServerName",
    "UnsentLimitExceeded",
    "WrongName",
]


class ChatError(Exception):
    """
    The base of every exception that this package defines.
    """


class PeerError(ChatError):
    """
    The other side of one connection broke a limit or a rule; that connection ends.
    """


class MessageTooLong(PeerError):
    """
    A message is longer than the limit on it.

    The same bytes give the same error, however they were cut on their way.

    Attributes:
        limit: the limit in force, in bytes, terminator not counted.
        count: the length that broke it. Where the length is announced (a number of bytes, a length
            prefix) that is the announced one; where a delimiter ends the message, `limit` + 1, since
            the rest need not have arrived.
        sample: the first bytes of the message, 128 at most; empty where the length was announced.
    """

    def __init__(self, limit: int, count: int, sample: bytes) -> None:
        super().__init__(limit, count, sample)
        self.limit = limit
        self.count = count
        self.sample = sample

    def __str__(self) -> str:
        """Name the limit and the value, never the data."""
        return f"message of at least {self.count} bytes, limit {self.limit}"


class UnsentLimitExceeded(PeerError):
    """
    The peer reads too slowly: more bytes wait to be sent than `max_unsent` allows.

    Attributes:
        limit: the limit in force, in bytes.
        count: bytes that were waiting when it was broken.
    """

    def __init__(self, limit: int, count: int) -> None:
        super().__init__(limit, count)
        self.limit = limit
        self.count = count

    def __str__(self) -> str:
        """Name the limit and the value."""
        return f"{self.count} bytes wait to be sent, limit {self.limit}"


class CloseTimedOut(PeerError):
    """
    The peer took nothing for the whole of `close_timeout` after the connection began to close.

    Attributes:
        limit: the limit in force, in seconds.
        count: bytes known to be lost.
    """

    def __init__(self, limit: float, count: int) -> None:
        super().__init__(limit, count)
        self.limit = limit
        self.count = count

    def __str__(self) -> str:
        """Name the limit and the value."""
        return f"no progress for {self.limit:g} s while closing, {self.count} bytes dropped"


class ConnectionReset(PeerError):
    """
    The connection broke off, without its end: the peer reset it, or is not there any more.

    What was sent last may not have arrived. Not logged, as it is everyday. Not told of a connection
    that this side was closing, once the operating system had everything. Over TLS it is a
    `TruncatedConnection`.
    """

    def __str__(self) -> str:
        """Say so."""
        return "the connection was reset, or its peer is gone"


class StoppedByServer(ChatError):
    """
    The server stopped, and ended a connection that had not come to its end in time.
    """

    def __str__(self) -> str:
        """Say so."""
        return "the server stopped before the connection had come to its end"


class ProducerError(ChatError):
    """
    A producer raised, gave something that is not bytes, or gave nothing again and again.

    The producer's own exception, where there was one, is the `__cause__`.
    """


class ListenError(ChatError):
    """
    A server cannot listen: the description is no endpoint, the port is taken, a file is missing.

    Attributes:
        endpoint: the endpoint's description.
        reason: what the endpoint raised.
        problem: what went wrong, for a person, and what to do about it.
    """

    def __init__(self, endpoint: str, reason: BaseException, problem: str = "") -> None:
        super().__init__(endpoint, reason, problem)
        self.endpoint = endpoint
        self.reason = reason
        self.problem = problem or f"{type(reason).__name__}: {reason}"

    def __str__(self) -> str:
        """Name the endpoint and the problem."""
        return f"cannot listen on {self.endpoint!r}: {self.problem}"


class CredentialsError(ChatError, ValueError):
    """
    Our own certificate, key or trust roots cannot be used; raised where they are first loaded.

    Attributes:
        source: the file, or what stands for one.
        reason: what is wrong with it.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        """Name the file and the reason."""
        return f"{self.source}: {self.reason}"


class TLSError(PeerError):
    """
    The base of what goes wrong between two ends of TLS.
    """


class HandshakeFailed(TLSError):
    """
    There is no common ground, or what came was not TLS at all; no byte of data was passed on.
    """


class HandshakeTimedOut(HandshakeFailed):
    """
    The handshake was not over in time.

    Attributes:
        limit: the limit in force, in seconds.
    """

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        """Name the limit."""
        return f"TLS handshake not done after {self.limit:g} s"


class NotAClientHello(HandshakeFailed):
    """
    A client's first bytes are not TLS, or are a malformed ClientHello.
    """


class NoCommonProtocol(HandshakeFailed):
    """
    ALPN found no protocol that both sides speak, where one is demanded.
    """


class UnknownServerName(HandshakeFailed):
    """
    The client asks for a server by a name that no certificate here has, where one is demanded.
    """


class CertificateRejected(HandshakeFailed):
    """
    The peer's certificate does not prove who it is; the base of the particular reasons.
    """


class WrongName(CertificateRejected):
    """
    The certificate is valid, for another name or address than the one that was connected to.
    """


class CertificateExpired(CertificateRejected):
    """
    The certificate, or one above it, is not valid any more, or not yet.
    """


class SelfSigned(CertificateRejected):
    """
    The certificate vouches for itself, and is not among those trusted.
    """


class UnknownAuthority(CertificateRejected):
    """
    The certificate leads to no authority that is trusted.
    """


class MissingClientCertificate(CertificateRejected):
    """
    The server demands a certificate of the client, and there is none.

    A client learns of it after its handshake, in TLS 1.3.
    """


class PlaintextAfterStartTLS(TLSError):
    """
    Bytes came in the clear behind the command that starts TLS: somebody may have put them there.

    Attributes:
        count: how many; none of them was delivered.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count

    def __str__(self) -> str:
        """Name the count, never the data."""
        return f"{self.count} bytes of plaintext behind the start of TLS"


class TruncatedConnection(TLSError):
    """
    The connection ended without the peer's closing message: what was last received may be cut off.
    """
