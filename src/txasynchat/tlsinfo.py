"""
What a handshake led to, for handlers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from txasynchat import transports

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["TLSInfo"]


@dataclass(frozen=True)
class TLSInfo:
    """
    What the two ends agreed on.

    Attributes:
        version: ``"TLSv1.2"`` or ``"TLSv1.3"``.
        cipher: OpenSSL's name of the cipher suite.
        alpn: the protocol that was negotiated; None for none.
        server_name: the name that the client asked for; None for none.
        peer_certificate: the peer's, already verified; None if it sent none.
    """

    version: str
    cipher: str
    alpn: bytes | None
    server_name: str | None
    peer_certificate: x509.Certificate | None

    @classmethod
    def of(cls, transport: Any) -> TLSInfo | None:
        """
        Ask the TLS that *transport* is or is wrapped around; None: there is none, or not yet.
        """
        layer = None if transport is None else transports.tls_layer(transport)
        if layer is None or not layer._handshakeDone:
            return None
        connection: Any = layer._tlsConnection
        if connection is None:
            return None
        name = connection.get_servername()
        certificate = connection.get_peer_certificate()
        return cls(
            version=connection.get_protocol_version_name(),
            cipher=connection.get_cipher_name(),
            alpn=connection.get_alpn_proto_negotiated() or None,
            server_name=None if name is None else name.decode("ascii", "replace"),
            peer_certificate=None if certificate is None else certificate.to_cryptography(),
        )
