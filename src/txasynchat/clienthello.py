"""
The ClientHello: what a client says first in TLS, read before any TLS engine sees it.

A server that knows whether a whole hello has arrived need not spend an engine, or a place among those
in their handshake, on a client that says nothing; and it can choose by what the hello asks for.

`HelloReader` takes the client's bytes as they come, and puts the hello together out of TLS records
(RFC 8446, section 5.1); `parse_client_hello` takes the message apart (section 4.1.2). Any split of the
same bytes gives the same hello, or the same error. Both are strict where the RFC is, and never raise
anything but `NotAClientHello`; no message of theirs contains what the client sent, only numbers.

No I/O here, no OpenSSL, and no policy: values that nobody knows (GREASE, RFC 8701) are values like any
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from txasynchat.errors import NotAClientHello

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LARGEST_HELLO", "ClientHello", "HelloReader", "parse_client_hello"]

#: Bytes of the longest hello that is read. Browsers send half a KiB, 2 with a post-quantum key share;
#: a session ticket that contains a certificate adds a few.
LARGEST_HELLO = 16_384

_RECORD_HEADER = 5
_LARGEST_RECORD = 16_384
_HANDSHAKE = 22
_MAJOR_VERSION = 3
_MESSAGE_HEADER = 4
_CLIENT_HELLO = 1

# Extensions (RFC 6066, section 3; RFC 7301, section 3.1; RFC 8446, section 4.2.1).
_SERVER_NAME = 0
_ALPN = 16
_SUPPORTED_VERSIONS = 43
_HOST_NAME = 0


@dataclass(frozen=True, slots=True)
class ClientHello:
    """
    What a ClientHello says. Numbers are those of the IANA registries.

    Attributes:
        legacy_version: the field that was the highest version before TLS 1.3; 0x0303 since.
        random: 32 bytes.
        session_id: up to 32 bytes; a client that offers TLS 1.3 may send some without a session.
        cipher_suites: in the client's order of preference.
        compression_methods: one byte each.
        extensions: the content of each extension, by its type, in the order sent.
        server_name: the host name that the client wants to talk to (SNI), as sent: ASCII if the client
            is as it should be. None if it names none.
        protocols: the protocols that the client offers by ALPN, the preferred first; empty if it offers
            none.
        versions: the versions offered, the preferred first: 0x0304 is TLS 1.3, 0x0303 is TLS 1.2.
    """

    legacy_version: int
    random: bytes
    session_id: bytes
    cipher_suites: tuple[int, ...]
    compression_methods: bytes
    extensions: Mapping[int, bytes]
    server_name: bytes | None
    protocols: tuple[bytes, ...]
    versions: tuple[int, ...]


class HelloReader:
    """
    Finds out of what arrives whether a whole ClientHello is there.

    Args:
        limit: bytes of the longest hello that is accepted, at most 16,777,215. Until the hello is
            whole, no more than twice that, one record and one piece are kept.

    Attributes:
        whole: the whole hello has arrived.
    """

    __slots__ = (
        "_begin",
        "_count",
        "_header",
        "_left",
        "_limit",
        "_problem",
        "_received",
        "_records",
        "whole",
    )

    def __init__(self, limit: int = LARGEST_HELLO) -> None:
        self.whole = False
        self._limit = limit
        self._received = bytearray()
        # What has arrived of a record's header, and the bytes missing of a record's content.
        self._header = b""
        self._left = 0
        # Bytes of the records that have begun.
        self._records = 0
        # The first bytes of the message, which tell its length, and how many bytes have arrived.
        self._begin = b""
        self._count = 0
        self._problem = ""

    @property
    def received(self) -> bytes:
        """
        Everything that was fed, for the engine that takes over; it may go on behind the hello.
        """
        return bytes(self._received)

    def feed(self, data: bytes) -> bool:
        """
        Take the next bytes; return whether the hello is whole. What comes after it is only kept.

        Raises:
            NotAClientHello: what has arrived cannot be the beginning of one; and so again each time.
        """
        self._received += data
        if self._problem:
            raise NotAClientHello(self._problem)
        at = 0
        while at < len(data) and not self.whole:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                self._take_content(piece)
            else:
                piece = data[at : at + _RECORD_HEADER - len(self._header)]
                self._take_header(piece)
            at += len(piece)
        return self.whole

    def hello(self) -> ClientHello:
        """
        Take the hello apart.

        Raises:
            NotAClientHello: it breaks the rules.
            RuntimeError: it is not whole.
        """
        if not self.whole:
            raise RuntimeError("the ClientHello is not whole")
        message = bytearray()
        size = _MESSAGE_HEADER + int.from_bytes(self._begin[1:])
        at = 0
        while len(message) < size:
            begin = at + _RECORD_HEADER
            at = begin + int.from_bytes(self._received[at + 3 : begin])
            message += self._received[begin:at]
        return parse_client_hello(bytes(message[_MESSAGE_HEADER:size]))

    def _take_header(self, piece: bytes) -> None:
        """
        Check what has arrived of a record's header, in order, so that no split matters.
        """
        header = self._header = self._header + piece
        if header[0] != _HANDSHAKE:
            if self._count:
                self._fail(f"a record of type {header[0]} in the middle of the ClientHello")
            self._fail(f"not TLS: it begins with byte 0x{header[0]:02x}")
        if len(header) > 1 and header[1] != _MAJOR_VERSION:
            self._fail(f"not TLS: the version of a record begins with {header[1]}")
        if len(header) < _RECORD_HEADER:
            return
        length = int.from_bytes(header[3:])
        if not 0 < length <= _LARGEST_RECORD:
            self._fail(f"a record of {length} bytes, expected 1 to {_LARGEST_RECORD}")
        if self._records > 2 * self._limit:
            self._fail(f"{self._records} bytes of records before the ClientHello is whole")
        self._records += _RECORD_HEADER + length
        self._left = length
        self._header = b""

    def _take_content(self, piece: bytes) -> None:
        self._count += len(piece)
        if len(self._begin) < _MESSAGE_HEADER:
            self._begin += piece[: _MESSAGE_HEADER - len(self._begin)]
            if self._begin[0] != _CLIENT_HELLO:
                self._fail(f"a handshake message of type {self._begin[0]}, expected a ClientHello")
            if len(self._begin) < _MESSAGE_HEADER:
                return
            length = int.from_bytes(self._begin[1:])
            if length > self._limit:
                self._fail(f"a ClientHello of {length} bytes, limit {self._limit}")
        self.whole = self._count >= _MESSAGE_HEADER + int.from_bytes(self._begin[1:])

    def _fail(self, problem: str) -> NoReturn:
        self._problem = problem
        raise NotAClientHello(problem)


def parse_client_hello(message: bytes) -> ClientHello:
    """
    Take a ClientHello apart.

    Args:
        message: the handshake message, without the four bytes of its type and length.

    Raises:
        NotAClientHello: the message breaks the rules: a field that is cut off or has a length that it
            cannot have, bytes left over, an extension or a name of the same type twice.
    """
    rest = _Bytes(message, "the ClientHello")
    legacy_version = rest.number(2)
    random = rest.take(32)
    session_id = rest.vector(1, most=32)
    cipher_suites = rest.numbers(2)
    compression_methods = rest.vector(1, least=1)
    # Before TLS 1.2 there were hellos without extensions.
    extensions = _parse_extensions(rest.vector(2)) if rest else {}
    rest.end()
    versions: tuple[int, ...] = (legacy_version,)
    if (content := extensions.get(_SUPPORTED_VERSIONS)) is not None:
        offered = _Bytes(content, "the extension supported_versions")
        versions = offered.numbers(1)
        offered.end()
    return ClientHello(
        legacy_version=legacy_version,
        random=random,
        session_id=session_id,
        cipher_suites=cipher_suites,
        compression_methods=compression_methods,
        extensions=extensions,
        server_name=_parse_server_name(extensions.get(_SERVER_NAME)),
        protocols=_parse_protocols(extensions.get(_ALPN)),
        versions=versions,
    )


def _parse_extensions(block: bytes) -> dict[int, bytes]:
    rest = _Bytes(block, "the extensions")
    extensions: dict[int, bytes] = {}
    while rest:
        kind = rest.number(2)
        if kind in extensions:
            raise NotAClientHello(f"extension {kind} twice")
        extensions[kind] = rest.vector(2)
    return extensions


def _parse_server_name(content: bytes | None) -> bytes | None:
    if content is None:
        return None
    rest = _Bytes(content, "the extension server_name")
    names = _Bytes(rest.vector(2, least=1), "the list of server names")
    rest.end()
    found: dict[int, bytes] = {}
    while names:
        kind = names.number(1)
        # Whatever types there will be, they begin with a length (RFC 6066, section 3).
        name = names.vector(2, least=1)
        if kind in found:
            raise NotAClientHello(f"two server names of type {kind}")
        found[kind] = name
    return found.get(_HOST_NAME)


def _parse_protocols(content: bytes | None) -> tuple[bytes, ...]:
    if content is None:
        return ()
    rest = _Bytes(content, "the extension ALPN")
    names = _Bytes(rest.vector(2, least=1), "the list of ALPN protocols")
    rest.end()
    protocols = []
    while names:
        protocols.append(names.vector(1, least=1))
    return tuple(protocols)


class _Bytes:
    """
    A piece of a message, read from its beginning. True while something is left.

    Args:
        data: the bytes.
        what: what they are, for error messages.
    """

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """
        Return the next *count* bytes.
        """
        begin = self._at
        end = begin + count
        if end > len(self._data):
            raise NotAClientHello(f"{self._what}: ends in the middle of a field")
        self._at = end
        return self._data[begin:end]

    def number(self, size: int) -> int:
        """
        Return a number of *size* bytes.
        """
        return int.from_bytes(self.take(size))

    def vector(self, size: int, *, least: int = 0, most: int = 0xFFFF) -> bytes:
        """
        Return the bytes behind a length of *size* bytes that is *least* to *most*.
        """
        length = self.number(size)
        if not least <= length <= most:
            raise NotAClientHello(f"{self._what}: a field of {length} bytes")
        return self.take(length)

    def numbers(self, size: int) -> tuple[int, ...]:
        """
        Return numbers of two bytes each, at least one, behind a length of *size* bytes.
        """
        data = self.vector(size, least=2)
        if len(data) % 2:
            raise NotAClientHello(f"{self._what}: half a number at the end of a list")
        return tuple(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))

    def end(self) -> None:
        """
        Check that nothing is left.
        """
        if self:
            raise NotAClientHello(f"{self._what}: {len(self._data) - self._at} bytes left over")
