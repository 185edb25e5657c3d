"""
The settings of TLS: one object for a server, one for a client.

They are for the transports of this package (`txasynchat.endpoints`, `AsyncChat.start_tls`), whose TLS
is `Engine`. Twisted's TLS takes connection creators of pyOpenSSL, and gets a TypeError.
"""

from __future__ import annotations

import enum
import ssl
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import idna
from service_identity.hazmat import DNS_ID, IPAddress_ID
from twisted.internet.interfaces import IOpenSSLContextFactory
from zope.interface import classImplements

from txasynchat.errors import NoCommonProtocol
from txasynchat.ranges import TLS, UNSET, Unset, check_all
from txasynchat.tls.contexts import ServerContexts, client_context
from txasynchat.tls.engine import Engine
from txasynchat.tls.handshakes import HANDSHAKES, HandshakeLimit
from txasynchat.tls.pending import default_limit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Never

    from txasynchat.errors import TLSError
    from txasynchat.tls.certificates import Credentials

__all__ = ["ClientCertificate", "ClientOptions", "ServerOptions", "Version"]

#: Forward secrecy and authenticated encryption only, in TLS 1.2; those of TLS 1.3 all have both.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Version(enum.Enum):
    """A version of TLS; those below 1.2 are not offered."""

    TLS_1_2 = ssl.TLSVersion.TLSv1_2
    TLS_1_3 = ssl.TLSVersion.TLSv1_3


class ClientCertificate(enum.Enum):
    """Whether a server asks its clients for a certificate."""

    #: It does not.
    OFF = ssl.CERT_NONE
    #: It does; it accepts a client without one, and refuses one whose certificate is not trusted.
    OPTIONAL = ssl.CERT_OPTIONAL
    #: It does, and refuses clients that have none.
    REQUIRED = ssl.CERT_REQUIRED


class _NotForTwisteds:
    """Options that Twisted's TLS does not take."""

    is_client: ClassVar[bool]

    @property
    def getContext(self) -> Never:  # noqa: N802 Twisted's name
        """Raise a TypeError: what Twisted would ask for it is not there."""
        raise TypeError(
            f"{type(self).__name__} is not for Twisted's own TLS; use secure: before an endpoint's"
            f" string, Secure{'Client' if self.is_client else 'Server'}Endpoint or AsyncChat.start_tls"
        )


# So that Twisted asks for it at once, without a warning that there is nothing.
classImplements(_NotForTwisteds, IOpenSSLContextFactory)


@dataclass(frozen=True)
class ServerOptions(_NotForTwisteds):
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
        handshakes: how many handshakes go on at once, over all connections that share this object.
            One counts from its complete ClientHello to its end; silent connections do not count. The
            others queue, and networks (an IPv4 address, or the first 64 bits of an IPv6 address) take
            turns. A handshake that waits for its client makes room after 0.1 seconds, and continues.
            None for no limit. By default 128, or what the `Limits` of the server say.
        max_handshakes: the older name of *handshakes*.
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

    is_client: ClassVar[bool] = False

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
    handshakes: int | Unset | None = UNSET
    max_handshakes: InitVar[int | Unset | None] = UNSET
    max_pending: int | None = field(default_factory=default_limit)
    #: The handshakes that go on now.
    limit: HandshakeLimit = field(init=False, repr=False, compare=False)
    _contexts: ServerContexts = field(init=False, repr=False, compare=False)

    def __post_init__(self, max_handshakes: int | Unset | None) -> None:
        if max_handshakes is not UNSET:
            if self.handshakes is not UNSET:
                raise ValueError("handshakes and max_handshakes are the same; give one of them")
            TLS["handshakes"].check("max_handshakes", max_handshakes)
            object.__setattr__(self, "handshakes", max_handshakes)
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
        count = HANDSHAKES if self.handshakes is UNSET else self.handshakes
        object.__setattr__(self, "limit", HandshakeLimit(count, self.max_pending))
        object.__setattr__(self, "_contexts", ServerContexts(self))

    def engine(self) -> Engine:
        """
        Make the engine of a new connection; the files may be looked at when its hello is complete.
        """
        return Engine.server(self._contexts)


@dataclass(frozen=True)
class ClientOptions(_NotForTwisteds):
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

    is_client: ClassVar[bool] = True

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
    _context: ssl.SSLContext = field(init=False, repr=False, compare=False)
    _verified_name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_all(self, TLS)
        _check_alpn(self.alpn)
        hostname = self.hostname
        if type(hostname) is not str or hostname[:1] in ("", "."):
            raise ValueError(
                "hostname must be a str, the name or address in the server's certificate:"
                f" {hostname!r}"
            )
        try:
            # OpenSSL knows by itself that it is not sent (RFC 6066, section 3).
            name = str(IPAddress_ID(hostname).ip)
        except ValueError:
            try:
                name = hostname if hostname.isascii() else idna.encode(hostname).decode()
                DNS_ID(name)
            except ValueError as error:
                raise ValueError(f"hostname is not a host name: {hostname!r}") from error
        context = client_context(self, self.authorities, self.credentials)
        object.__setattr__(self, "_context", context)
        object.__setattr__(self, "_verified_name", name)

    def engine(self) -> Engine:
        """Make the engine of a new connection."""
        return Engine.client(self._context, self._verified_name, self._check_protocol)

    def _check_protocol(self, protocol: bytes | None) -> TLSError | None:
        if self.alpn and self.strict_alpn and not protocol:
            return NoCommonProtocol("the server takes none of our protocols")
        return None


def _check_alpn(protocols: Sequence[bytes]) -> None:
    for protocol in protocols:
        if type(protocol) is not bytes or not 0 < len(protocol) < 256:
            raise ValueError(f"an ALPN protocol must be bytes, 1 to 255 of them: {protocol!r}")
