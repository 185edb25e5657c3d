"""
The settings of TLS: one object for a server, one for a client.

Both are connection creators in Twisted's sense (`IOpenSSLServerConnectionCreator`,
`IOpenSSLClientConnectionCreator`), so they can be given wherever Twisted takes one. The limits on time
and number apply to the transports of this package (`txasynchat.endpoints`, `AsyncChat.start_tls`).

Contexts are built here because Twisted's ``CertificateOptions`` cannot forbid renegotiation, refuse an
unknown name, or say which verification failed.
"""

from __future__ import annotations

import enum
import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import idna
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from zope.interface import implementer

from txasynchat import transports
from txasynchat.errors import (
    CertificateExpired,
    CertificateRejected,
    CredentialsError,
    NoCommonProtocol,
    SelfSigned,
    UnknownAuthority,
    UnknownServerName,
    WrongName,
)
from txasynchat.ranges import TLS, check_all
from txasynchat.tls.certificates import Credentials, Loaded, Watched, load_authorities
from txasynchat.tls.handshakes import HANDSHAKES, HandshakeLimit
from txasynchat.tls.pending import default_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography import x509

    from txasynchat.errors import TLSError

__all__ = ["ClientCertificate", "ClientOptions", "ServerOptions", "Version"]

#: Forward secrecy and authenticated encryption only, in TLS 1.2; those of TLS 1.3 all have both.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Version(enum.Enum):
    """A version of TLS; those below 1.2 are not offered."""

    TLS_1_2 = SSL.TLS1_2_VERSION
    TLS_1_3 = SSL.TLS1_3_VERSION


class ClientCertificate(enum.Enum):
    """Whether a server asks its clients for a certificate."""

    #: It does not.
    OFF = SSL.VERIFY_NONE
    #: It does; it accepts a client without one, and refuses one whose certificate is not trusted.
    OPTIONAL = SSL.VERIFY_PEER
    #: It does, and refuses clients that have none.
    REQUIRED = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT


@implementer(IOpenSSLServerConnectionCreator)
@dataclass(frozen=True)
class ServerOptions:
    """
    How a server speaks TLS.

    Args:
        credentials: the server's certificate and key. Of several, a client gets the one that has the
            name that it asks for, or else the first.
        strict_names: refuse a client that asks for a name that no certificate has.
        client_certificate: whether clients are asked for their certificate.
        client_authorities: who vouches for clients: a file in PEM, its content, or certificates.
        alpn: the protocols spoken, the preferred first.
        strict_alpn: refuse a client that offers protocols, but none in *alpn*; if False, no protocol is
            negotiated with it.
        require_alpn: refuse also a client that offers none.
        minimum: the lowest version.
        maximum: the highest version.
        ciphers: for TLS 1.2, as OpenSSL writes them.
        sessions: let clients resume with a shorter handshake. Whoever learns the key that protects the
            tickets can then decrypt past traffic; the key changes with each start and each renewal.
        reload_interval: seconds for which the files are not checked again; they are checked during
            handshakes. None: never again.
        handshake_timeout: seconds for the handshake; None for no limit.
        close_timeout: seconds for the peer to answer when the connection is closed, once it has
            everything.
        flush_timeout: seconds in which the peer must take something of what remains then.
        max_handshakes: how many handshakes go on at once, over all connections that share this object.
            One counts from its complete ClientHello to its end; silent connections do not count. The
            others queue, and networks (an IPv4 address, or the first 64 bits of an IPv6 address) take
            turns. A handshake that waits for its client makes room after 0.1 seconds, and continues.
            None for no limit.
        max_pending: how many connections may have an unfinished handshake, silent ones included. Above
            that, one is aborted: of the network that has most of them, the one that has kept the server
            waiting longest. None for no limit. The default is 1,024, or half of the descriptors that
            the process may open if that is less.

    Raises:
        CredentialsError: a file is missing, unreadable or not what it should be; key and certificate
            do not match; or the certificate is not valid now.
        ValueError: arguments contradict each other, or a number is out of its range.
        TypeError: an argument that must be a number is not one.
    """

    credentials: Credentials | Sequence[Credentials]
    strict_names: bool = False
    client_certificate: ClientCertificate = ClientCertificate.OFF
    client_authorities: Any = None
    alpn: Sequence[bytes] = ()
    strict_alpn: bool = True
    require_alpn: bool = False
    minimum: Version = Version.TLS_1_2
    maximum: Version = Version.TLS_1_3
    ciphers: str = CIPHERS
    sessions: bool = False
    reload_interval: float | None = 1.0
    handshake_timeout: float | None = 10.0
    close_timeout: float = 3.0
    flush_timeout: float = 10.0
    max_handshakes: int | None = HANDSHAKES
    max_pending: int | None = field(default_factory=default_limit)
    #: The handshakes that go on now.
    limit: HandshakeLimit = field(init=False, repr=False, compare=False)
    _contexts: _Contexts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_all(self, TLS)
        if (self.client_certificate is ClientCertificate.OFF) != (self.client_authorities is None):
            raise ValueError(
                "client_certificate and client_authorities need each other:"
                f" {self.client_certificate}, {self.client_authorities!r}"
            )
        _check_alpn(self.alpn)
        if self.require_alpn and not self.alpn:
            raise ValueError(
                "require_alpn without alpn would refuse every client; give alpn, the protocols spoken"
            )
        object.__setattr__(self, "limit", HandshakeLimit(self.max_handshakes, self.max_pending))
        object.__setattr__(self, "_contexts", _Contexts(self))

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:  # noqa: N802 Twisted's name
        """Make the OpenSSL connection for a new handshake; this may check the files."""
        connection = SSL.Connection(self._contexts.default(), None)
        connection.set_app_data(protocol)  # the callbacks leave their reasons there
        return connection

    def check(self, connection: SSL.Connection) -> TLSError | None:
        """Say what is wrong after a handshake that OpenSSL accepts."""
        if self.require_alpn and not connection.get_alpn_proto_negotiated():
            return NoCommonProtocol("the client offers no protocol")
        return None


class _Contexts:
    """A server's OpenSSL contexts, one for each certificate; replaced when it is renewed."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        credentials = options.credentials
        several = [credentials] if isinstance(credentials, Credentials) else list(credentials)
        if not several:
            raise ValueError("credentials is empty; a server needs at least one Credentials")
        interval = float("inf") if options.reload_interval is None else options.reload_interval
        authorities = options.client_authorities
        files: tuple[str, ...] = ()
        if isinstance(authorities, str | os.PathLike):
            authorities = str(Path(authorities).absolute())
            files = (authorities,)
        watched = partial(Watched, interval=interval, now=time.monotonic)
        self._authorities = watched(
            "the authorities of clients", files, partial(_load_authorities, authorities)
        )
        self._watched = [
            watched("the certificate", one.files, partial(self._load, one), describe=_validity)
            for one in several
        ]
        # A ticket from one of these contexts is valid for all.
        self._made = [watched.loaded[1] for watched in self._watched]
        self._by_name = self._index()

    def default(self) -> SSL.Context:
        """Return the context to begin with, after checking the files if it is time."""
        other_authorities = self._authorities.renewed()
        for position, watched in enumerate(self._watched):
            if watched.renewed():
                self._made[position] = watched.loaded[1]
            elif other_authorities:
                self._made[position] = self._make(watched.loaded[0])
            else:
                continue
            self._by_name = self._index()
        return self._made[0]

    def _index(self) -> dict[str, SSL.Context]:
        names: dict[str, SSL.Context] = {}
        for watched, context in zip(self._watched, self._made, strict=True):
            for name in watched.loaded[0].names:
                names.setdefault(name, context)
        return names

    def _load(self, credentials: Credentials) -> tuple[Loaded, SSL.Context]:
        loaded = credentials.load()
        return loaded, self._make(loaded)

    def _make(self, loaded: Loaded) -> SSL.Context:
        options = self._options
        context = _basic_context(SSL.TLS_SERVER_METHOD, options)
        _use(context, loaded)
        context.set_session_id(b"txasynchat")
        if not options.sessions:
            context.set_options(SSL.OP_NO_TICKET)
        context.set_verify(options.client_certificate.value, _verify_chain)
        for authority in self._authorities.loaded:
            _store(context).add_cert(crypto.X509.from_cryptography(authority))
            context.add_client_ca(authority)
        context.set_tlsext_servername_callback(self._choose_by_name)
        if options.alpn:
            context.set_alpn_select_callback(self._choose_protocol)
        return _finished(context, options)

    def _choose_by_name(self, connection: SSL.Connection) -> None:
        """Called by OpenSSL when the client's hello was read."""
        name = connection.get_servername()
        if name is None:
            return
        # Names on the wire are ASCII; any other matches nothing.
        text = name.decode("ascii", "replace").lower().rstrip(".")
        names = self._by_name
        context = names.get(text) or names.get("*." + text.partition(".")[2])
        if context is not None:
            connection.set_context(context)
        elif self._options.strict_names:
            layer = connection.get_app_data()
            if _is_ours(layer):
                layer.refusal = UnknownServerName(
                    "the client asks for a name that no certificate has"
                )
            else:
                transports.abort(layer)

    def _choose_protocol(self, connection: SSL.Connection, offered: list[bytes]) -> Any:
        """Called by OpenSSL when the client offers protocols."""
        for protocol in self._options.alpn:
            if protocol in offered:
                return protocol
        if self._options.strict_alpn:
            if not _is_ours(connection.get_app_data()):
                return b""  # ends the handshake, with a less specific alert
            # do_handshake raises this, after OpenSSL has made the alert.
            raise NoCommonProtocol("the client offers none of our protocols")
        return SSL.NO_OVERLAPPING_PROTOCOLS


@implementer(IOpenSSLClientConnectionCreator)
@dataclass(frozen=True)
class ClientOptions:
    """
    How a client speaks TLS, and with whom. The server's certificate is always verified.

    Args:
        hostname: the name or the IP address that the server's certificate must be for. A name is
            sent to the server, which may choose its certificate by it.
        authorities: who vouches for the server: a file in PEM, its content, or certificates. None:
            those that the operating system trusts.
        credentials: our own certificate, for a server that asks for one.
        alpn: the protocols offered, the preferred first.
        strict_alpn: refuse a server that accepts none of them.
        minimum: the lowest version.
        maximum: the highest version.
        ciphers: for TLS 1.2, as OpenSSL writes them.
        handshake_timeout: seconds for the handshake; None for no limit.
        close_timeout: seconds for the peer to answer when the connection is closed, once it has
            everything.
        flush_timeout: seconds in which the peer must take something of what remains then.

    Raises:
        CredentialsError: a file is missing, unreadable or not what it should be; key and certificate
            do not match; or our certificate is not valid now.
        ValueError: *hostname* is not a name or an address, or a number is out of its range.
        TypeError: an argument that must be a number is not one.
    """

    hostname: str
    authorities: Any = None
    credentials: Credentials | None = None
    alpn: Sequence[bytes] = ()
    strict_alpn: bool = True
    minimum: Version = Version.TLS_1_2
    maximum: Version = Version.TLS_1_3
    ciphers: str = CIPHERS
    handshake_timeout: float | None = 10.0
    close_timeout: float = 3.0
    flush_timeout: float = 10.0
    _context: SSL.Context = field(init=False, repr=False, compare=False)
    _server_name: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_all(self, TLS)
        _check_alpn(self.alpn)
        hostname = self.hostname
        if type(hostname) is not str or hostname[:1] in ("", "."):
            raise ValueError(
                "hostname must be a str, the name or address in the server's certificate:"
                f" {hostname!r}"
            )
        wanted: DNS_ID | IPAddress_ID
        server_name: bytes | None = None
        try:
            wanted = IPAddress_ID(hostname)  # it is not sent (RFC 6066, section 3)
        except ValueError:
            try:
                ascii_name = hostname if hostname.isascii() else idna.encode(hostname).decode()
                wanted, server_name = DNS_ID(ascii_name), ascii_name.encode()
            except ValueError as error:
                raise ValueError(f"hostname is not a host name: {hostname!r}") from error
        context = _basic_context(SSL.TLS_CLIENT_METHOD, self)
        if self.authorities is None:
            context.set_default_verify_paths()
        else:
            for authority in load_authorities(self.authorities):
                _store(context).add_cert(crypto.X509.from_cryptography(authority))
        if self.credentials is not None:
            _use(context, self.credentials.load())
        context.set_verify(SSL.VERIFY_PEER, _verify_server(wanted))
        if self.alpn:
            context.set_alpn_protos(list(self.alpn))
        object.__setattr__(self, "_context", _finished(context, self))
        object.__setattr__(self, "_server_name", server_name)

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:  # noqa: N802 Twisted's name
        """Make the OpenSSL connection for a new handshake."""
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(protocol)  # the callbacks leave their reasons there
        if self._server_name is not None:
            connection.set_tlsext_host_name(self._server_name)
        return connection

    def check(self, connection: SSL.Connection) -> TLSError | None:
        """Say what is wrong after a handshake that OpenSSL accepts."""
        if self.alpn and self.strict_alpn and not connection.get_alpn_proto_negotiated():
            return NoCommonProtocol("the server takes none of our protocols")
        return None


def _validity(loaded: tuple[Loaded, SSL.Context]) -> str:
    return f", valid until {loaded[0].chain[0].not_valid_after_utc.isoformat()}"


def _load_authorities(authorities: Any) -> tuple[x509.Certificate, ...]:
    """Read trust roots (none for None), and check that OpenSSL accepts them."""
    if authorities is None:
        return ()
    certificates = load_authorities(authorities)
    store = crypto.X509Store()
    try:
        for certificate in certificates:
            store.add_cert(crypto.X509.from_cryptography(certificate))
    except crypto.Error as error:
        raise CredentialsError(str(authorities)[:80], f"OpenSSL says: {error}") from error
    return certificates


def _check_alpn(protocols: Sequence[bytes]) -> None:
    for protocol in protocols:
        if type(protocol) is not bytes or not 0 < len(protocol) < 256:
            raise ValueError(f"an ALPN protocol must be bytes, 1 to 255 of them: {protocol!r}")


def _basic_context(method: int, options: ServerOptions | ClientOptions) -> SSL.Context:
    context = SSL.Context(method)
    if options.minimum is Version.TLS_1_3 and options.maximum is Version.TLS_1_2:
        raise ValueError(
            f"maximum, {options.maximum}, must not be below minimum, {options.minimum}"
        )
    context.set_min_proto_version(options.minimum.value)
    context.set_max_proto_version(options.maximum.value)
    context.set_options(
        SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    # It halves the memory of an idle connection.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_app_data(options)
    return context


def _finished(context: SSL.Context, options: ServerOptions | ClientOptions) -> SSL.Context:
    """Set the ciphers, last: pyOpenSSL makes a connection for it, and changes no context after that."""
    try:
        context.set_cipher_list(options.ciphers.encode("ascii"))
    except SSL.Error as error:
        raise ValueError(f"ciphers: OpenSSL knows none of {options.ciphers!r}") from error
    return context


def _is_ours(layer: Any) -> bool:
    """
    Return whether *layer* is a `TLSLayer`, which reads its `refusal`, and not one of Twisted's own.
    """
    return hasattr(layer, "refusal")


def _use(context: SSL.Context, loaded: Loaded) -> None:
    leaf, *rest = loaded.chain
    try:
        context.use_certificate(leaf)
        context.use_privatekey(loaded.key)
        for certificate in rest:
            context.add_extra_chain_cert(certificate)
    except SSL.Error as error:
        raise CredentialsError(leaf.subject.rfc4514_string(), f"OpenSSL says: {error}") from error


def _store(context: SSL.Context) -> crypto.X509Store:
    store = context.get_cert_store()
    if store is None:  # pyOpenSSL allows for it, OpenSSL never does it
        raise MemoryError
    return store


_VERIFICATION = SSL.X509VerificationCodes
_UNKNOWN = (UnknownAuthority, "comes from an unknown authority")
_REASONS: dict[int, tuple[type[CertificateRejected], str]] = {
    _VERIFICATION.ERR_CERT_HAS_EXPIRED: (CertificateExpired, "has expired"),
    _VERIFICATION.ERR_CERT_NOT_YET_VALID: (CertificateExpired, "is not valid yet"),
    _VERIFICATION.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: (SelfSigned, "is self-signed"),
    _VERIFICATION.ERR_SELF_SIGNED_CERT_IN_CHAIN: (UnknownAuthority, "ends at an unknown authority"),
    _VERIFICATION.ERR_UNABLE_TO_GET_ISSUER_CERT: (UnknownAuthority, "has an unknown issuer"),
    _VERIFICATION.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: _UNKNOWN,
    _VERIFICATION.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: _UNKNOWN,
}


def _verify_chain(
    connection: SSL.Connection, _: crypto.X509, error: int, depth: int, accepted: int
) -> bool:
    """Called by OpenSSL for each certificate of a chain: keep the reason why one is refused."""
    if not accepted:
        kind, text = _REASONS.get(error, (CertificateRejected, f"fails OpenSSL's check {error}"))
        which = "the peer's certificate" if depth == 0 else f"certificate {depth} above the peer's"
        connection.get_app_data().refusal = kind(f"{which} {text}")
    return bool(accepted)


def _verify_server(wanted: DNS_ID | IPAddress_ID) -> Callable[..., bool]:
    def verify(
        connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, accepted: int
    ) -> bool:
        if not _verify_chain(connection, certificate, error, depth, accepted):
            return False
        if depth == 0:
            try:
                verify_service_identity(extract_patterns(certificate), [wanted], [])
            except VerificationError:
                name = getattr(wanted, "hostname", None) or getattr(wanted, "ip", wanted)
                text = name.decode() if isinstance(name, bytes) else str(name)
                connection.get_app_data().refusal = WrongName(
                    f"the server's certificate is not for {text}"
                )
                return False
        return True

    return verify
