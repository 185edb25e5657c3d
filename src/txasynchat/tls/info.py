"""`TLSInfo`: what the two ends of a TLS connection agreed on, whichever kind of TLS it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography import x509

from txasynchat import transports
from txasynchat.tls.pyopenssl import PyOpenSSLEngine

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
        """Ask the TLS that *transport* is or is wrapped around; None: there is none, or not yet."""
        tls = None if transport is None else transports.tls_layer(transport)
        if tls is None or not transports.is_secure(tls):
            return None
        engine: Any
        if isinstance(tls, transports.TLSBase):
            engine = tls.engine
        else:
            engine = PyOpenSSLEngine(lambda: tls._tlsConnection, is_server=False)
        if engine is None or engine.tls is None:
            return None
        certificate = engine.peer_certificate_der
        return cls(
            version=engine.version,
            cipher=engine.cipher,
            alpn=engine.alpn,
            server_name=engine.server_name,
            peer_certificate=None
            if certificate is None
            else x509.load_der_x509_certificate(certificate),
        )
