"""
Certificates and keys: read, checked, and read again when their files are renewed.

Nothing here speaks TLS; `tls.options` puts what is loaded here into OpenSSL's contexts.

A renewal changes two files at two moments. In between, certificate and key do not match, or a file is
incomplete. So a changed pair replaces the old one only when all of it is good. Until then the old one
stays in use, the log says why, and the new one is tried again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from twisted.logger import Logger

from txasynchat.errors import CredentialsError
from txasynchat.log import Throttle

__all__ = ["Credentials", "Loaded", "Watched", "load_authorities"]

T = TypeVar("T")

#: Seconds after which the log repeats why changed files are not in use.
_REMINDER = 3600.0

#: A file's name; its content in PEM; or objects of the `cryptography` package.
CertificateSource: TypeAlias = str | os.PathLike[str] | bytes | Sequence[x509.Certificate]


@dataclass(frozen=True)
class Loaded:
    """A certificate that was read and checked."""

    chain: tuple[x509.Certificate, ...]  # itself, then those that lead to its authority
    key: Any
    names: frozenset[str]  # the DNS names it is for, in lower case; the first label may be ``*``


@dataclass(frozen=True)
class Credentials:
    """
    A certificate with its chain, and its private key.

    Args:
        certificate: the file, in PEM, that has the certificate first and then its chain; or such a
            file's content as bytes; or `cryptography.x509.Certificate` objects in this order.
        key: the file of the private key, in PEM and without a pass phrase; or its content; or a key
            object of `cryptography`. None: it is in the certificate's file.

    File names are relative to the directory that is current now, not when they are renewed.
    """

    certificate: CertificateSource
    key: Any = None

    def __post_init__(self) -> None:
        for name in ("certificate", "key"):
            value = getattr(self, name)
            if isinstance(value, str | os.PathLike):
                object.__setattr__(self, name, str(Path(value).absolute()))

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that this is read from."""
        return tuple(one for one in (self.certificate, self.key) if isinstance(one, str))

    def load(self) -> Loaded:
        """
        Read and check.

        Raises:
            CredentialsError: a file cannot be read or is not what it should be; certificate and key
                do not belong together; or the certificate is not valid now.
        """
        source, content = _read(self.certificate, "certificate")
        chain = _parse_certificates(source, content)
        key_source, key_content = (source, content) if self.key is None else _read(self.key, "key")
        key = _parse_key(key_source, key_content)
        leaf = chain[0]
        if key.public_key() != leaf.public_key():
            raise CredentialsError(key_source, f"is not the key of the certificate in {source}")
        now = datetime.now(UTC)
        begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if now > end:
            raise CredentialsError(source, f"expired at {end:%Y-%m-%d %H:%M} UTC")
        if now < begin:
            raise CredentialsError(source, f"is not valid before {begin:%Y-%m-%d %H:%M} UTC")
        return Loaded(chain, key, _names(leaf))


@dataclass(eq=False, repr=False)
class Watched(Generic[T]):
    """
    Something loaded from files, and loaded again when they change.

    After a failure every check tries again, because a file can become readable without a change
    (``chmod``, or descriptors that are free again). The log gives each reason once an hour.

    Raises:
        CredentialsError: it could not be loaded the first time.
    """

    what: str  # a name for it, for the log
    files: Sequence[str]  # if there are none, it is loaded only once
    load: Callable[[], T]  # may raise CredentialsError
    _: KW_ONLY
    interval: float  # seconds between two checks of the files
    now: Callable[[], float]
    describe: Callable[[T], str] = lambda _: ""  # what the log adds about a new one
    loaded: T = field(init=False)  # the newest good one

    _log = Logger()

    def __post_init__(self) -> None:
        self._complaints = Throttle(_REMINDER, self.now)
        self._looked = self.now()
        # Taken before the files are read, so that no change is missed. None after a failure.
        self._state: object = self._state_of_files()
        self.loaded = self.load()

    def renewed(self) -> bool:
        """Check the files if it is time, and load what changed; return whether `loaded` is new."""
        now = self.now()
        if now - self._looked < self.interval or not self.files:
            return False
        self._looked = now
        state = self._state_of_files()
        if state == self._state:
            return False
        try:
            self.loaded = self.load()
        except CredentialsError as error:
            self._state = None
            if self._complaints.suppressed(str(error)) is not None:
                self._log.warn(f"kept {self.what} in use: {{error}}", error=str(error))
            return False
        self._state = state
        self._complaints.forget()
        more = self.describe(self.loaded)
        self._log.info("took up {source}{more}", source=self.files[0], more=more)
        return True

    def _state_of_files(self) -> list[tuple[int, int, int] | None]:
        # It differs when their content does.
        state: list[tuple[int, int, int] | None] = []
        for file in self.files:
            try:
                status = Path(file).stat()
            except OSError:
                state.append(None)
            else:
                state.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return state


def load_authorities(authorities: CertificateSource) -> tuple[x509.Certificate, ...]:
    """
    Read trust roots: a file in PEM, its content, or certificate objects.

    Raises:
        CredentialsError: the file cannot be read, or has no certificate.
    """
    return _parse_certificates(*_read(authorities, "trust roots"))


def _read(value: Any, what: str) -> tuple[str, Any]:
    # The name of *value* for messages, and its content: bytes in PEM, or objects.
    if isinstance(value, str | os.PathLike):
        try:
            return os.fspath(value), Path(value).read_bytes()
        except OSError as error:
            raise CredentialsError(os.fspath(value), error.strerror or str(error)) from error
    return f"the {what} given", value


def _parse_certificates(source: str, content: Any) -> tuple[x509.Certificate, ...]:
    if not isinstance(content, bytes):
        return tuple(content)
    try:
        return tuple(x509.load_pem_x509_certificates(content))
    except ValueError as error:
        raise CredentialsError(source, "has no certificate in PEM") from error


def _parse_key(source: str, content: Any) -> Any:
    if not isinstance(content, bytes):
        if not hasattr(content, "private_bytes"):
            raise CredentialsError(source, "has no private key")
        return content
    try:
        return serialization.load_pem_private_key(content, password=None)
    except TypeError as error:
        problem = "the private key is encrypted; remove its pass phrase"
        raise CredentialsError(source, problem) from error
    except ValueError as error:
        raise CredentialsError(source, "has no private key in PEM") from error


def _names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))
