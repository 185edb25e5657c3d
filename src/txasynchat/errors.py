"""
Every exception of this package, under one base.

They are sorted by fault:

* a *caller's* mistake (a terminator of the wrong type, pushing text) raises the builtin `TypeError`
  or `ValueError` at the call, with the value in its message: nothing of those is defined here;
* a *peer's* mistake or misfortune is a `PeerError`: it reaches a hook of the application, is logged
  once and closes that connection only; those of TLS are `TLSError`;
* a *program* that stops without waiting for a connection ends it with `ProgramStopped`, or, if it was
  a server's, with `StoppedByServer`;
* a *producer's* failure is a `ProducerError`: it is handled like an exception in a handler;
* a *file of settings* that cannot be used is a `ConfigurationError`, and a `ValueError`;
* *our own* certificate or key that cannot be used is a `CredentialsError`, and a `ValueError`;
* an *endpoint* that cannot be listened on is a `ListenError`, raised when a server is made or started.
"""

from __future__ import annotations

from typing import ClassVar


class ChatError(Exception):
    """The base of every exception that this package defines."""

    #: Formatted with the attributes; it never has what a peer sent.
    _text = ""

    def __str__(self) -> str:
        return self._text.format_map(vars(self)) if self._text else super().__str__()


class PeerError(ChatError):
    """The other side of one connection broke a limit or a rule; that connection ends."""


class MessageTooLong(PeerError):
    """
    A message is longer than the limit on it. Any split of the same bytes gives the same error.

    Attributes:
        limit: the limit in force, in bytes, terminator not counted.
        count: the length that was announced (a number of bytes, a length prefix); `limit` + 1 if a
            delimiter ends the message, because the rest need not have arrived.
        sample: the first bytes of the message, 128 at most; empty if the length was announced.
    """

    _text = "message of at least {count} bytes, limit {limit}"

    def __init__(self, limit: int, count: int, sample: bytes) -> None:
        super().__init__(limit, count, sample)
        self.limit, self.count, self.sample = limit, count, sample


class MalformedMessage(PeerError):
    """
    What came is not a message: a netstring without its comma, bytes that are not text.

    A hook may raise it, too, about a message that breaks the rules of its protocol: that is the peer's
    mistake, so it is logged in one line and not with a traceback. `AsyncChat.handle_error` is called,
    and the connection closes.

    Attributes:
        problem: what is wrong with it. It is logged, so it should have nothing that the peer sent.
    """

    _text = "malformed message: {problem}"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class IncompleteMessage(PeerError, EOFError):
    """
    The peer ended its sending before the end of a message that a `Stream` was to read.

    Attributes:
        partial: what came of the message; empty if it had not begun.
        count: how many bytes that are.
    """

    _text = "the peer ended after {count} bytes of a message"

    def __init__(self, partial: bytes) -> None:
        super().__init__(partial)
        self.partial, self.count = partial, len(partial)


class OtherProtocol(PeerError):
    """
    The peer speaks another protocol than this one; see `AsyncChat.refuse_other_protocols`.

    Attributes:
        protocol: ``"HTTP"`` or ``"TLS"``.
    """

    _text = "the peer speaks {protocol}, and is refused"

    def __init__(self, protocol: str) -> None:
        super().__init__(protocol)
        self.protocol = protocol


class UnsentLimitExceeded(PeerError):
    """
    The peer reads too slowly: more bytes wait to be sent than `max_unsent` allows.

    Attributes:
        limit: the limit in force, in bytes.
        count: bytes that were waiting when it was exceeded.
    """

    _text = "{count} bytes wait to be sent, limit {limit}"

    def __init__(self, limit: int, count: int) -> None:
        super().__init__(limit, count)
        self.limit, self.count = limit, count


class CloseTimedOut(PeerError):
    """
    The peer took nothing for the whole of `close_timeout` after the connection began to close.

    Attributes:
        limit: the limit in force, in seconds.
        count: bytes known to be lost.
    """

    _text = "no progress for {limit:g} s while closing, {count} bytes dropped"

    def __init__(self, limit: float, count: int) -> None:
        super().__init__(limit, count)
        self.limit, self.count = limit, count


class TimedOut(PeerError):
    """
    The peer let a deadline pass; see `Limits`.

    Attributes:
        kind: which one, ``idle`` for example.
        seconds: the limit in force.
    """

    _text = "{kind}: {what} for {seconds:g} s"

    _what: ClassVar[dict[str, str]] = {
        "first_message": "nothing came",
        "idle": "nothing went either way",
        "message": "a message was not complete",
        "write_stall": "too little was taken of what waits",
        "session": "the connection lasted",
    }

    def __init__(self, kind: str, seconds: float) -> None:
        super().__init__(kind, seconds)
        self.kind, self.seconds = kind, seconds
        self.what = self._what.get(kind, "nothing happened")


class ConnectionReset(PeerError):
    """
    The connection broke off: the peer reset it, or is gone. What was sent last may not have arrived.

    It is not logged, because it is common; not reported, if this side was closing and the operating
    system already had everything; and a `TruncatedConnection` over TLS.
    """

    _text = "the connection was reset, or its peer is gone"


class ConnectTimedOut(ChatError, TimeoutError):
    """
    `connect` was not done in time.

    Attributes:
        limit: the limit in force, in seconds.
    """

    _text = "not connected after {limit:g} s"

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit


class ProgramStopped(ChatError):
    """This program's reactor stopped, which ended a connection that had not finished."""

    _text = "the reactor of this program stopped before the connection had finished"


class StoppedByServer(ProgramStopped):
    """This program's server stopped, and ended a connection that had not finished in time."""

    _text = "the server stopped before the connection had finished"


class ProducerError(ChatError):
    """
    A producer raised, gave something that is not bytes, or gave nothing again and again.

    The producer's own exception, if there was one, is the `__cause__`.
    """


class ListenError(ChatError):
    """
    A server cannot listen: the description is not an endpoint's, the port is taken, a file is missing.

    Attributes:
        endpoint: the endpoint's description.
        reason: what the endpoint raised.
        problem: what went wrong, for a person, and what to do about it.
    """

    _text = "cannot listen on {endpoint!r}: {problem}"

    def __init__(self, endpoint: str, reason: BaseException, problem: str = "") -> None:
        super().__init__(endpoint, reason, problem)
        self.endpoint, self.reason = endpoint, reason
        self.problem = problem or f"{type(reason).__name__}: {reason}"


class ConfigurationError(ChatError, ValueError):
    """
    A file of settings cannot be used.

    Attributes:
        path: the file.
        problem: what is wrong, and what to write instead.
        table, key: where; empty if it is not about one.
        line: the number of the line; None if it is not known.
    """

    def __init__(
        self, path: object, problem: str, *, table: str = "", key: str = "", line: int | None = None
    ) -> None:
        super().__init__(path, problem)
        self.path, self.problem, self.table, self.key, self.line = path, problem, table, key, line

    def __str__(self) -> str:
        where = f"{self.path}" if self.line is None else f"{self.path}, line {self.line}"
        what = f"[{self.table}] {self.key}: " if self.table else ""
        return f"{where}: {what}{self.problem}"


class CredentialsError(ChatError, ValueError):
    """
    Our own certificate, key or trust roots cannot be used; raised where they are first loaded.

    Attributes:
        source: the file, or what stands for one.
        reason: what is wrong with it.
    """

    _text = "{source}: {reason}"

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source, self.reason = source, reason


class ProxyError(PeerError):
    """The base of what is wrong with a connection that a proxy should introduce; nobody serves it."""


class MalformedProxyHeader(ProxyError):
    """
    The connection does not begin with a header of the PROXY protocol, or with one that is wrong.

    Attributes:
        problem: what is wrong with it; it has nothing that the peer sent but numbers.
    """

    _text = "not a PROXY header: {problem}"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class TruncatedProxyHeader(ProxyError):
    """The connection ended within the header."""

    _text = "the connection ended within its PROXY header"


class ProxyHeaderTimedOut(ProxyError):
    """
    The header was not complete in time.

    Attributes:
        limit: the limit in force, in seconds.
    """

    _text = "PROXY header not complete after {limit:g} s"

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit


class UntrustedProxy(ProxyError):
    """Somebody connected who is in none of the networks that proxies connect from."""

    _text = "not one of the proxies that are trusted here; see from= or --proxy-from"


class TLSError(PeerError):
    """The base of what goes wrong between two ends of TLS."""


class HandshakeFailed(TLSError):
    """There is no common ground, or what came was not TLS at all; no data was delivered."""


class HandshakeTimedOut(HandshakeFailed):
    """
    The handshake was not done in time.

    Attributes:
        limit: the limit in force, in seconds.
    """

    _text = "TLS handshake not done after {limit:g} s"

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit


class NotAClientHello(HandshakeFailed):
    """A client's first bytes are not TLS, or are a malformed ClientHello."""


class NoCommonProtocol(HandshakeFailed):
    """ALPN found no protocol that both sides speak, and one is required."""


class UnknownServerName(HandshakeFailed):
    """The client asks for a server name that no certificate here has, and one is required."""


class CertificateRejected(HandshakeFailed):
    """The peer's certificate does not prove who it is; the base of the particular reasons."""


class WrongName(CertificateRejected):
    """The certificate is valid, but for another name or address than the one that was connected to."""


class CertificateExpired(CertificateRejected):
    """The certificate, or one above it, is not valid any more, or not valid yet."""


class SelfSigned(CertificateRejected):
    """The certificate vouches for itself, and is not among those trusted."""


class UnknownAuthority(CertificateRejected):
    """The certificate leads to no authority that is trusted."""


class MissingClientCertificate(CertificateRejected):
    """
    The server requires a certificate of the client, and there is none.

    In TLS 1.3 a client learns of it after its handshake.
    """


class PlaintextAfterStartTLS(TLSError):
    """
    Bytes came in the clear behind the command that starts TLS: somebody may have put them there.

    Attributes:
        count: how many; none of them was delivered.
    """

    _text = "{count} bytes of plaintext behind the start of TLS"

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class TruncatedConnection(TLSError):
    """
    The connection ended without the peer's closing message: what was last received may be cut off.
    """


__all__ = [
    name for name, it in globals().items() if isinstance(it, type) and issubclass(it, ChatError)
]
