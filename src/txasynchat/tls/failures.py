"""
What the errors of the standard library's `ssl` mean, as errors of this package.

The words are OpenSSL's own, without the standard library's brackets around them.
"""

from __future__ import annotations

import re
import ssl

from txasynchat.errors import (
    CertificateExpired,
    CertificateRejected,
    HandshakeFailed,
    MissingClientCertificate,
    SelfSigned,
    TLSError,
    UnknownAuthority,
    WrongName,
)

__all__ = ["explain", "words"]

#: ``[SSL: CODE] words (_ssl.c:123)``
_MESSAGE = re.compile(r"(?:\[[^]]*\] )?(.*?)(?: \(_ssl\.c:[0-9]+\))?", re.DOTALL)

# The standard library does not say which certificate of the chain it is.
_ANY_OF_CHAIN = "the peer's certificate, or one above it,"
# The numbers are OpenSSL's (X509_STORE_CTX_get_error(3)).
_OTHER_NAME = (62, 64)
_REASONS: dict[int, tuple[type[CertificateRejected], str]] = {
    2: (UnknownAuthority, f"{_ANY_OF_CHAIN} has an unknown issuer"),
    9: (CertificateExpired, f"{_ANY_OF_CHAIN} is not valid yet"),
    10: (CertificateExpired, f"{_ANY_OF_CHAIN} has expired"),
    18: (SelfSigned, "the peer's certificate is self-signed"),
    19: (UnknownAuthority, f"{_ANY_OF_CHAIN} ends at an unknown authority"),
    20: (UnknownAuthority, f"{_ANY_OF_CHAIN} comes from an unknown authority"),
    21: (UnknownAuthority, "the peer's certificate comes from an unknown authority"),
}


def explain(error: OSError, *, is_secure: bool, name: str) -> TLSError:
    """
    Return the error of this package for one of OpenSSL's.

    Args:
        error: a `ssl.SSLError`, but not one that only asks for more bytes.
        is_secure: the handshake was done.
        name: what the server's certificate should be for.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_verification(error.verify_code, name)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLSyscallError) and not is_secure:
        return HandshakeFailed("the peer left during the handshake")
    text = words(error)
    if "certificate required" in text or "did not return a certificate" in text:
        return MissingClientCertificate(text)
    return TLSError(text) if is_secure else HandshakeFailed(text)


def _explain_verification(code: int, name: str) -> CertificateRejected:
    if code in _OTHER_NAME:
        return WrongName(f"the server's certificate is not for {name}")
    kind, text = _REASONS.get(
        code, (CertificateRejected, f"{_ANY_OF_CHAIN} fails OpenSSL's check {code}")
    )
    return kind(text)


def words(error: OSError) -> str:
    """Return OpenSSL's own words for an error."""
    found = _MESSAGE.fullmatch(str(error.args[-1]) if error.args else "")
    return (found[1] if found is not None else "") or type(error).__name__
