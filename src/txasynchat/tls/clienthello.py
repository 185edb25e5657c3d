"""
The ClientHello, the first message of a TLS client, read before any TLS engine sees it.

A server that knows when a ClientHello is complete need not spend an engine, or a place in its queue of
handshakes, on a client that says nothing. It can also choose a certificate by the hello.

`HelloReader` takes the client's bytes as they arrive and finds the message in the TLS records
(RFC 8446, section 5.1). `parse_client_hello` parses the message (section 4.1.2). Any split of the same
bytes gives the same hello or the same error. Both are as strict as the RFC, and raise nothing but
`NotAClientHello`, whose text contains numbers and none of the client's bytes.

No I/O, no OpenSSL and no policy: unknown values, such as GREASE (RFC 8701), are reported like others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from txasynchat.errors import NotAClientHello

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LARGEST_HELLO", "ClientHello", "HelloReader", "parse_client_hello"]

#: The longest ClientHello that is accepted, in bytes. Browsers send half a KiB, or 2 KiB with a
#: post-quantum key share; a session ticket that contains a certificate adds a few more.
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
    The content of a ClientHello. Numbers are those of the IANA registries.

    Attributes:
        legacy_version: the highest version offered, before TLS 1.3; always 0x0303 since.
        random: 32 bytes.
        session_id: 0 to 32 bytes; a client that offers TLS 1.3 may send one without having a session.
        cipher_suites: most preferred first.
        compression_methods: one byte each.
        extensions: the content of each extension by its type, in the order they were sent.
        server_name: the host name that the client asks for (SNI), not decoded: it may not be ASCII.
            None if the client names no host.
        protocols: the protocols offered by ALPN, most preferred first; empty if there are none.
        versions: the versions offered, most preferred first: 0x0304 is TLS 1.3, 0x0303 is TLS 1.2.
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
    Collects a client's first bytes, and finds out when a ClientHello is complete.

    Args:
        limit: the longest ClientHello accepted, in bytes, up to 16,777,215. Before it is complete, at
            most twice as many bytes are kept, plus one record and one piece.

    Attributes:
        complete: True once the ClientHello is complete.
    """

    __slots__ = (
        *("_begin", "_count", "_header", "_left", "_limit", "_problem", "_received", "_records"),
        "complete",
    )

    def __init__(self, limit: int = LARGEST_HELLO) -> None:
        self.complete = False
        self._limit = limit
        self._received = bytearray()
        self._header = b""  # the part of a record's header that has arrived
        self._left = 0  # bytes missing from its content
        self._records = 0  # the size of the records that have begun, with their headers
        self._begin = b""  # the part of the message's header that has arrived
        self._count = 0  # bytes of the message that have arrived
        self._problem = ""

    @property
    def received(self) -> bytes:
        """Every byte fed so far, for the engine that takes over; some may follow the hello."""
        return bytes(self._received)

    def feed(self, data: bytes) -> bool:
        """
        Take the next bytes; return whether the hello is complete. Bytes after it are merely kept.

        Raises:
            NotAClientHello: the bytes cannot be the beginning of one. Every later call raises it again.
        """
        self._received += data
        if self._problem:
            raise NotAClientHello(self._problem)
        at = 0
        while at < len(data) and not self.complete:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                self._take_content(piece)
            else:
                piece = data[at : at + _RECORD_HEADER - len(self._header)]
                self._take_header(piece)
            at += len(piece)
        return self.complete

    def hello(self) -> ClientHello:
        """
        Parse the hello.

        Raises:
            NotAClientHello: it is malformed.
            RuntimeError: it is not complete.
        """
        if not self.complete:
            raise RuntimeError("the ClientHello is not complete")
        message = bytearray()
        size = _MESSAGE_HEADER + int.from_bytes(self._begin[1:])
        at = 0
        while len(message) < size:
            begin = at + _RECORD_HEADER
            at = begin + int.from_bytes(self._received[at + 3 : begin])
            message += self._received[begin:at]
        return parse_client_hello(bytes(message[_MESSAGE_HEADER:size]))

    def _take_header(self, piece: bytes) -> None:
        # Checked byte by byte, so that the result does not depend on the split.
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
            self._fail(f"{self._records} bytes of records, and the ClientHello is not complete")
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
        self.complete = self._count >= _MESSAGE_HEADER + int.from_bytes(self._begin[1:])

    def _fail(self, problem: str) -> NoReturn:
        self._problem = problem
        raise NotAClientHello(problem)


def parse_client_hello(message: bytes) -> ClientHello:
    """
    Parse a ClientHello.

    Args:
        message: the handshake message without its header, the four bytes of type and length.

    Raises:
        NotAClientHello: the message is malformed: a field is cut off or has an impossible length, bytes
            are left over, or an extension or a name type appears twice.
    """
    rest = _Bytes(message, "the ClientHello")
    legacy_version, random, session_id = rest.number(2), rest.take(32), rest.vector(1, most=32)
    suites, compression = rest.numbers(2), rest.vector(1, least=1)
    # Clients older than TLS 1.2 may send no extensions.
    extensions = _parse_extensions(rest.vector(2)) if rest else {}
    rest.end()
    versions: tuple[int, ...] = (legacy_version,)
    if (content := extensions.get(_SUPPORTED_VERSIONS)) is not None:
        offered = _Bytes(content, "the extension supported_versions")
        versions = offered.numbers(1)
        offered.end()
    name = _parse_server_name(extensions.get(_SERVER_NAME))
    protocols = _parse_protocols(extensions.get(_ALPN))
    begin = legacy_version, random, session_id, suites, compression
    return ClientHello(*begin, extensions, name, protocols, versions)


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
    names = _parse_list(content, "the extension server_name", "the list of server names")
    found: dict[int, bytes] = {}
    while names:
        kind = names.number(1)
        # Every type of name begins with its length (RFC 6066, section 3).
        name = names.vector(2, least=1)
        if kind in found:
            raise NotAClientHello(f"two server names of type {kind}")
        found[kind] = name
    return found.get(_HOST_NAME)


def _parse_protocols(content: bytes | None) -> tuple[bytes, ...]:
    names = _parse_list(content, "the extension ALPN", "the list of ALPN protocols")
    protocols = []
    while names:
        protocols.append(names.vector(1, least=1))
    return tuple(protocols)


def _parse_list(content: bytes | None, extension: str, what: str) -> _Bytes:
    if content is None:
        return _Bytes(b"", what)
    rest = _Bytes(content, extension)
    items = _Bytes(rest.vector(2, least=1), what)
    rest.end()
    return items


class _Bytes:
    """
    A part of a message, named *what* in errors, and read from its beginning. True while bytes are left.
    """

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        begin, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise NotAClientHello(f"{self._what}: ends in the middle of a field")
        return self._data[begin : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int, *, least: int = 0, most: int = 0xFFFF) -> bytes:
        # The bytes that follow a length, which is itself *size* bytes long.
        length = self.number(size)
        if not least <= length <= most:
            raise NotAClientHello(f"{self._what}: a field of {length} bytes")
        return self.take(length)

    def numbers(self, size: int) -> tuple[int, ...]:
        # A vector of at least one number of two bytes.
        data = self.vector(size, least=2)
        if len(data) % 2:
            raise NotAClientHello(f"{self._what}: half a number at the end of a list")
        return tuple(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))

    def end(self) -> None:
        if self:
            raise NotAClientHello(f"{self._what}: {len(self._data) - self._at} bytes left over")
