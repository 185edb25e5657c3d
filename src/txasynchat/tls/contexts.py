"""
Contexts of the standard library's `ssl`, made of what the options say, and the choice among them.

Nothing here is done for each message; a connection is given its context once.

What the standard library cannot do is done around it. It loads keys from files only, so what is in
memory goes through a file that nobody else sees. It has no way to switch off the session ids of TLS
1.2, which let clients resume where the options forbid it: so each certificate has two contexts, and who
would resume in one gets the other; and as each keeps its sessions, it is made anew after a thousand of
them. It cannot send the names of the authorities that clients' certificates may come from: clients
that have several certificates have to know which one is meant.
"""

from __future__ import annotations

import os
import ssl
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from txasynchat.errors import CredentialsError, NoCommonProtocol, UnknownServerName
from txasynchat.tls.certificates import Credentials, Loaded, Watched, load_authorities
from txasynchat.tls.failures import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cryptography import x509

    from txasynchat.errors import TLSError
    from txasynchat.tls.clienthello import ClientHello

__all__ = ["ServerContexts", "client_context"]

#: Handshakes that leave a session in a context, after which it is made anew: a session takes a KiB,
#: or a few with a client's certificate, and OpenSSL would keep 20,480 of them.
_SESSIONS = 1_000

_TLS_1_3 = 0x0304


class ServerContexts:
    """
    A server's contexts, for each certificate; made anew when one is renewed. The engine's `Contexts`.

    Args:
        options: a `ServerOptions`.
        now: the clock for renewals.

    Raises:
        CredentialsError: a file is missing, unreadable or not what it should be.
        ValueError: there are no credentials, or OpenSSL knows no such ciphers.
    """

    def __init__(self, options: Any, now: Callable[[], float] = time.monotonic) -> None:
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
        watched = partial(Watched, interval=interval, now=now)
        self._authorities = watched(
            "the authorities of clients", files, partial(_load_authorities, authorities)
        )
        self._watched = [
            watched("the certificate", one.files, partial(self._load, one), describe=_validity)
            for one in several
        ]
        self._made: list[_Pair] = [watched.loaded[1] for watched in self._watched]
        # Positions of those that trust authorities of before.
        self._outdated: set[int] = set()
        self._by_name = self._index()

    def choose(self, hello: ClientHello | None) -> ssl.SSLContext:
        """
        Return the context for this client, after a look at the files if it is time for one.

        Raises:
            UnknownServerName: no certificate has the name that the client asks for.
            NoCommonProtocol: ALPN finds no protocol, and the options demand one.
        """
        self._renew()
        if hello is None:
            return self._made[0].context
        options = self._options
        pair = self._find(hello)
        if pair is None:
            if options.strict_names:
                raise UnknownServerName("the client asks for a name that no certificate has")
            pair = self._made[0]
        if not any(protocol in hello.protocols for protocol in options.alpn):
            refusal = self._refuse_protocols(hello)
            if refusal is not None:
                raise refusal
        if not options.sessions and not self._speaks_1_3(hello):
            pair.count_session()
        return pair.context

    def instead(self, hello: ClientHello) -> ssl.SSLContext | None:
        """
        Return a context that does not know the sessions of the one that was chosen.

        Returns:
            None if clients may resume their sessions.
        """
        return None if self._options.sessions else (self._find(hello) or self._made[0]).other

    def check(self, hello: ClientHello, alpn: bytes | None) -> TLSError | None:
        """
        Return what is wrong after the handshake: a client may have taken back its protocols in a
        second ClientHello.
        """
        return None if alpn else self._refuse_protocols(hello)

    def _refuse_protocols(self, hello: ClientHello) -> TLSError | None:
        options = self._options
        if not options.alpn:
            return None
        if hello.protocols and options.strict_alpn:
            return NoCommonProtocol("the client offers none of our protocols")
        if options.require_alpn:
            return NoCommonProtocol("the client offers no protocol")
        return None

    def _speaks_1_3(self, hello: ClientHello) -> bool:
        return _TLS_1_3 in hello.versions and self._options.maximum.value >= _TLS_1_3

    def _find(self, hello: ClientHello) -> _Pair | None:
        name = hello.server_name
        if name is None:
            return self._made[0]
        # Names on the wire are in ASCII; what is not finds nothing.
        text = name.decode("ascii", "replace").lower().rstrip(".")
        names = self._by_name
        return names.get(text) or names.get("*." + text.partition(".")[2])

    def _renew(self) -> None:
        if self._authorities.renewed():
            self._outdated.update(range(len(self._made)))
        for position, watched in enumerate(self._watched):
            if watched.renewed():
                self._made[position] = watched.loaded[1]
            elif position in self._outdated:
                try:
                    self._made[position] = self._pair(watched.loaded[0])
                except CredentialsError:
                    continue  # no descriptor is free, say: the next handshake tries again
            else:
                continue
            self._outdated.discard(position)
            self._by_name = self._index()

    def _index(self) -> dict[str, _Pair]:
        names: dict[str, _Pair] = {}
        for watched, pair in zip(self._watched, self._made, strict=True):
            for name in watched.loaded[0].names:
                names.setdefault(name, pair)
        return names

    def _load(self, credentials: Credentials) -> tuple[Loaded, _Pair]:
        loaded = credentials.load()
        return loaded, self._pair(loaded)

    def _pair(self, loaded: Loaded) -> _Pair:
        return _Pair(partial(self._make, loaded), single=self._options.sessions)

    def _make(self, loaded: Loaded) -> ssl.SSLContext:
        options = self._options
        context = _basic_context(ssl.PROTOCOL_TLS_SERVER, options)
        _use(context, loaded)
        if not options.sessions:
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0  # those of TLS 1.3 that refer to what the server keeps
        if self._authorities.loaded:
            _trust(context, self._authorities.loaded)
        context.verify_mode = options.client_certificate.value
        return context


class _Pair:
    """
    Two contexts of the same settings, that do not know each other's sessions.

    Args:
        make: makes one.
        single: clients may resume their sessions: there is no other one, and it stays.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext], *, single: bool) -> None:
        self._make = make
        self._count = 0
        self.context = make()
        self.other = self.context if single else make()

    def count_session(self) -> None:
        """Note that a handshake leaves a session behind, in either."""
        self._count += 1
        if self._count > _SESSIONS:
            try:
                self.context, self.other = self._make(), self._make()
            except CredentialsError:
                return  # no descriptor is free, say: the next handshake tries again
            self._count = 0


def client_context(
    options: Any, authorities: Any, credentials: Credentials | None
) -> ssl.SSLContext:
    """
    Make a client's context, which verifies the server's certificate and the name in it.

    OpenSSL matches names (X509_check_host(3)) as the service-identity package does: the common name
    does not count, and ``*`` stands for one whole label, the leftmost, before at least two others. They
    differ in three points:

    - ``*.example.org`` is for ``xn--….example.org`` too, which RFC 9525, section 6.3, allows;
    - it is not for ``a_b.example.org``, because there is no underscore in host names;
    - a malformed name in a certificate (``*.*``) matches nothing, and the others in it count.

    Of several faults OpenSSL reports an unknown authority first, then the name, then the dates.

    Raises:
        CredentialsError: a file is missing, unreadable or not what it should be.
        ValueError: OpenSSL knows no such ciphers.
    """
    context = _basic_context(ssl.PROTOCOL_TLS_CLIENT, options)
    context.hostname_checks_common_name = False
    if authorities is None:
        context.set_default_verify_paths()
    else:
        _trust(context, _load_authorities(authorities))
    if credentials is not None:
        _use(context, credentials.load())
    return context


def _validity(loaded: tuple[Loaded, _Pair]) -> str:
    return f", valid until {loaded[0].chain[0].not_valid_after_utc.isoformat()}"


def _load_authorities(authorities: Any) -> tuple[x509.Certificate, ...]:
    """Read trust roots (none for None), and check that OpenSSL accepts them."""
    if authorities is None:
        return ()
    certificates = load_authorities(authorities)
    try:
        _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificates)
    except ssl.SSLError as error:
        raise CredentialsError(str(authorities)[:80], f"OpenSSL says: {words(error)}") from error
    return certificates


def _trust(context: ssl.SSLContext, authorities: Sequence[x509.Certificate]) -> None:
    context.load_verify_locations(
        cadata=b"".join(one.public_bytes(Encoding.DER) for one in authorities)
    )


def _basic_context(protocol: int, options: Any) -> ssl.SSLContext:
    if options.maximum.value < options.minimum.value:
        raise ValueError(
            f"maximum, {options.maximum}, must not be below minimum, {options.minimum}"
        )
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion(options.minimum.value)
    context.maximum_version = ssl.TLSVersion(options.maximum.value)
    context.options |= (
        ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    try:
        context.set_ciphers(options.ciphers)
    except ssl.SSLError as error:
        raise ValueError(f"ciphers: OpenSSL knows none of {options.ciphers!r}") from error
    if options.alpn:
        # The public method takes text in ASCII only; protocols are bytes (RFC 7301, section 3.1).
        encoded = b"".join(bytes((len(protocol),)) + protocol for protocol in options.alpn)
        context._set_alpn_protocols(encoded)  # type: ignore[attr-defined]
    return context


def _use(context: ssl.SSLContext, loaded: Loaded) -> None:
    chain = b"".join(one.public_bytes(Encoding.PEM) for one in loaded.chain)
    key = loaded.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with _as_file(chain + key) as path:
            context.load_cert_chain(path)
    except ssl.SSLError as error:
        problem = f"OpenSSL says: {words(error)}"
    except OSError as error:
        problem = f"cannot be lent to OpenSSL in a file: {error.strerror}"
    else:
        return
    raise CredentialsError(loaded.chain[0].subject.rfc4514_string(), problem)


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Lend *content* a file's name: one in memory where the system has that, or one of our own."""
    with _file_in_memory() or tempfile.NamedTemporaryFile() as file:  # only we may read either
        file.write(content)
        file.flush()
        yield _path_of(file.fileno()) if isinstance(file.name, int) else file.name


def _file_in_memory() -> IO[bytes] | None:
    try:
        descriptor = os.memfd_create("txasynchat")
    except (AttributeError, OSError):
        return None
    if Path(_path_of(descriptor)).exists():
        return open(descriptor, "wb")  # noqa: PTH123 it has no name; our caller closes it
    os.close(descriptor)
    return None


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
