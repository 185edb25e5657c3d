"""
The header of the PROXY protocol, versions 1 and 2: read and written, without I/O.

`HeaderReader` takes exactly the header's bytes, in any pieces. What it refuses is refused as early as
the bytes show it, with the same error however they are cut.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

from txasynchat.errors import MalformedProxyHeader

__all__ = ["LONGEST", "HeaderReader", "Proxied", "ProxiedTLS"]

#: Bytes of the longest header of version 2 that is read, unless another limit is given.
LONGEST = 8192

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16
_LONGEST_LINE = 107
_PREFIX = b"PROXY "
_LONGEST_PATH = 108
_HIGHEST_PORT = 65_535

_ALPN, _AUTHORITY, _CRC32C, _NOOP, _UNIQUE_ID, _TLS, _NAMESPACE = 1, 2, 3, 4, 5, 0x20, 0x30
_TLS_VERSION, _TLS_NAME, _TLS_CIPHER = 0x21, 0x22, 0x23
_HAS_CERTIFICATE = 0x02 | 0x04
_LONGEST_ID = 128

# Family and kind of socket of version 2, and how long its addresses are.
_TCP4, _TCP6, _UNIX = 0x11, 0x21, 0x31
_LENGTHS = {0: 0, _TCP4: 12, _TCP6: 36, _UNIX: 2 * _LONGEST_PATH}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxiedTLS:
    """
    The TLS that a client speaks with the proxy, as the proxy says.

    Attributes:
        version: such as ``TLSv1.3``; empty if the proxy did not say.
        cipher: the cipher's name; empty as above.
        name: the common name of the client's certificate; empty if there is none.
        has_certificate: the client presented a certificate, on this connection or in this session.
        verified: it did, and the proxy accepted it.
    """

    version: str = ""
    cipher: str = ""
    name: str = ""
    has_certificate: bool = False
    verified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxied:
    """
    What a header says.

    Attributes:
        version: 1 or 2.
        local: the connection is the proxy's own (``LOCAL``), for example to see whether we live.
        source: the client's address, as the `socket` module would give it; None if the proxy does not
            know it, and for its own connections. Then the addresses are those of the real connection.
        destination: where the client connected to; None as above.
        tlvs: types and values of what version 2 adds, in order, as they came.
    """

    version: int = 2
    local: bool = False
    source: Any = None
    destination: Any = None
    tlvs: tuple[tuple[int, bytes], ...] = ()

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, not {self.version!r}")

    def tlv(self, kind: int) -> bytes | None:
        """Return the value of the first one of that type; None if there is none."""
        return next((value for one, value in self.tlvs if one == kind), None)

    @property
    def authority(self) -> str | None:
        """The host that the client asked for (SNI); None if the proxy did not say."""
        return _text(self.tlv(_AUTHORITY))

    @property
    def alpn(self) -> bytes | None:
        """The protocol that the client and the proxy agreed on; None as above."""
        return self.tlv(_ALPN)

    @property
    def unique_id(self) -> bytes | None:
        """What the proxy calls this connection in its own log; None as above."""
        return self.tlv(_UNIQUE_ID)

    @property
    def tls(self) -> ProxiedTLS | None:
        """The client's TLS; None if it has none, or the proxy did not say."""
        value = self.tlv(_TLS)
        if value is None:
            return None
        flags, verify = struct.unpack_from("!BI", value)
        if not flags & 0x01:
            return None
        inner = dict(reversed(_tlvs(value[5:])))
        has_certificate = bool(flags & _HAS_CERTIFICATE)
        return ProxiedTLS(
            version=_text(inner.get(_TLS_VERSION)) or "",
            cipher=_text(inner.get(_TLS_CIPHER)) or "",
            name=_text(inner.get(_TLS_NAME)) or "",
            has_certificate=has_certificate,
            verified=has_certificate and not verify,
        )

    def encode(self) -> bytes:
        """
        Return the header's bytes.

        Raises:
            ValueError: an address cannot be expressed, both are not of one family, only one is given,
                version 1 is to carry what it cannot, or the whole is too long.
        """
        return _encode_line(self) if self.version == 1 else _encode_binary(self)


class HeaderReader:
    """
    Reads one header, in any pieces.

    Args:
        longest: bytes that a header of version 2 may have; one of version 1 has at most 107.

    Attributes:
        proxied: what the header says; None until it is complete.
    """

    __slots__ = ("_bytes", "_longest", "proxied")

    def __init__(self, longest: int = LONGEST) -> None:
        self._bytes = bytearray()
        self._longest = longest
        self.proxied: Proxied | None = None

    @property
    def begun(self) -> bool:
        """Something of it came."""
        return bool(self._bytes)

    @property
    def taken(self) -> int:
        """How many bytes of it came."""
        return len(self._bytes)

    @property
    def most(self) -> int:
        """Bytes of the header that may still come."""
        if self.proxied is not None:
            return 0
        return max(self._longest, _LONGEST_LINE) - len(self._bytes)

    def feed(self, data: bytes) -> int:
        """
        Take what belongs to the header from the beginning of *data*.

        Returns:
            how many bytes did. The others are the application's; there are none unless the header is
            complete.

        Raises:
            MalformedProxyHeader: this is not a header, or not one of those that are read.
        """
        if self.proxied is not None:
            return 0
        whole = self._bytes
        before = len(whole)
        whole += data[: self.most]
        end = self._end_of_line(whole) if whole[:1] == b"P" else self._end_of_binary(whole)
        if end is None:
            return len(data)
        header = bytes(whole[:end])
        self.proxied = _decode_line(header) if header[:1] == b"P" else _decode_binary(header)
        del whole[end:]
        return end - before

    @staticmethod
    def _end_of_line(whole: bytearray) -> int | None:
        if not _PREFIX.startswith(whole[: len(_PREFIX)]):
            raise MalformedProxyHeader("it begins like version 1, but not with PROXY")
        end = whole.find(b"\n", 0, _LONGEST_LINE)
        if end >= 0:
            return end + 1
        if len(whole) >= _LONGEST_LINE:
            raise MalformedProxyHeader(f"no end of line in {_LONGEST_LINE} bytes")
        return None

    def _end_of_binary(self, whole: bytearray) -> int | None:
        if not _SIGNATURE.startswith(whole[: len(_SIGNATURE)]):
            raise MalformedProxyHeader("the connection does not begin with one")
        if len(whole) > 12:
            if whole[12] >> 4 != 2:
                raise MalformedProxyHeader(f"unknown version {whole[12] >> 4}")
            if whole[12] & 15 > 1:
                raise MalformedProxyHeader(f"unknown command {whole[12] & 15}")
        if len(whole) > 13 and whole[12] & 15 and whole[13] not in _LENGTHS:
            raise MalformedProxyHeader(f"unknown family and protocol 0x{whole[13]:02x}")
        if len(whole) < _FIXED:
            return None
        end = _FIXED + int.from_bytes(whole[14:16], "big")
        if end > self._longest:
            raise MalformedProxyHeader(f"{end} bytes, limit {self._longest}")
        if whole[12] & 15 and end < _FIXED + _LENGTHS[whole[13]]:
            raise MalformedProxyHeader("it is too short for its addresses")
        return end if len(whole) >= end else None


# -- version 1


def _decode_line(header: bytes) -> Proxied:
    if header[-2:] != b"\r\n":
        raise MalformedProxyHeader("its line does not end with CR LF")
    if not header.isascii():
        raise MalformedProxyHeader("its line is not ASCII")
    kind, *fields = header[len(_PREFIX) : -2].decode("ascii").split(" ")
    if kind == "UNKNOWN":
        return Proxied(version=1)
    if kind not in ("TCP4", "TCP6"):
        raise MalformedProxyHeader("its family is not TCP4, TCP6 or UNKNOWN")
    if len(fields) != 4:
        raise MalformedProxyHeader("its line has not two addresses and two ports")
    source, destination, source_port, destination_port = fields
    return Proxied(
        version=1,
        source=_address(kind, source, source_port),
        destination=_address(kind, destination, destination_port),
    )


def _address(kind: str, host: str, port: str) -> tuple[Any, ...]:
    if not port.isdecimal() or str(int(port)) != port or int(port) > _HIGHEST_PORT:
        raise MalformedProxyHeader("a port is not a number from 0 to 65535")
    try:
        if kind == "TCP4":
            return str(ipaddress.IPv4Address(host)), int(port)
        if "%" in host:
            raise ValueError
        return str(ipaddress.IPv6Address(host)), int(port), 0, 0
    except ValueError:
        raise MalformedProxyHeader(f"an address is not one of {kind}") from None


def _encode_line(header: Proxied) -> bytes:
    if header.local or header.tlvs:
        raise ValueError("version 1 has no LOCAL and no TLVs; write version=2")
    kind, source, destination = _family(header)
    if kind == 0:
        return b"PROXY UNKNOWN\r\n"
    if kind == _UNIX:
        raise ValueError("version 1 has no paths; write version=2")
    name = "TCP4" if kind == _TCP4 else "TCP6"
    hosts = [ipaddress.ip_address(one[0]) for one in (source, destination)]
    return f"PROXY {name} {hosts[0]} {hosts[1]} {source[1]} {destination[1]}\r\n".encode("ascii")


# -- version 2


def _decode_binary(header: bytes) -> Proxied:
    if not header[12] & 15:
        return Proxied(local=True)
    kind = header[13]
    start = _FIXED + _LENGTHS[kind]
    tlvs = _tlvs(header[start:])
    _check(header, start, tlvs)
    source, destination = _addresses(kind, header[_FIXED:start])
    return Proxied(source=source, destination=destination, tlvs=tlvs)


def _addresses(kind: int, data: bytes) -> tuple[Any, Any]:
    if kind == _TCP4:
        source, destination, *ports = struct.unpack("!4s4sHH", data)
        return (
            (str(ipaddress.IPv4Address(source)), ports[0]),
            (str(ipaddress.IPv4Address(destination)), ports[1]),
        )
    if kind == _TCP6:
        source, destination, *ports = struct.unpack("!16s16sHH", data)
        return (
            (str(ipaddress.IPv6Address(source)), ports[0], 0, 0),
            (str(ipaddress.IPv6Address(destination)), ports[1], 0, 0),
        )
    if kind == _UNIX:
        return _path(data[:_LONGEST_PATH]), _path(data[_LONGEST_PATH:])
    return None, None


def _path(data: bytes) -> str | bytes:
    if data[:1] == b"\0":  # a name without a file, or none
        name = data.rstrip(b"\0")
        return name or ""
    return os.fsdecode(data.partition(b"\0")[0])


def _tlvs(data: bytes) -> tuple[tuple[int, bytes], ...]:
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if at + 3 > len(data):
            raise MalformedProxyHeader("a TLV is cut off")
        end = at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")
        if end > len(data):
            raise MalformedProxyHeader("a TLV is longer than the header")
        found.append((data[at], data[at + 3 : end]))
        at = end
    return tuple(found)


def _check(header: bytes, start: int, tlvs: tuple[tuple[int, bytes], ...]) -> None:
    at = start
    for kind, value in tlvs:
        at += 3
        if kind == _CRC32C:
            zeroed = header[:at] + bytes(len(value)) + header[at + len(value) :]
            if value != crc32c(zeroed).to_bytes(4, "big"):
                raise MalformedProxyHeader("its checksum is wrong")
        elif kind == _UNIQUE_ID and len(value) > _LONGEST_ID:
            raise MalformedProxyHeader(f"a unique id of more than {_LONGEST_ID} bytes")
        elif kind == _TLS:
            if len(value) < 5:
                raise MalformedProxyHeader("a TLV about TLS is cut off")
            _tlvs(value[5:])
        at += len(value)


def _encode_binary(header: Proxied) -> bytes:
    kind, source, destination = _family(header)
    body = b""
    if kind in (_TCP4, _TCP6):
        hosts = [ipaddress.ip_address(one[0]).packed for one in (source, destination)]
        body = b"".join(hosts) + struct.pack("!HH", source[1], destination[1])
    elif kind == _UNIX:
        body = b"".join(_pack_path(one) for one in (source, destination))
    for type_, value in header.tlvs:
        body += struct.pack("!BH", type_, len(value)) + value
    if len(body) > 0xFFFF:
        raise ValueError(f"a header of {len(body)} bytes is too long")
    command = 0x20 if header.local else 0x21
    return _SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


def _pack_path(path: str | bytes) -> bytes:
    data = os.fsencode(path)
    if len(data) > _LONGEST_PATH:
        raise ValueError(f"a path of {len(data)} bytes is too long")
    return data.ljust(_LONGEST_PATH, b"\0")


# -- both


def _family(header: Proxied) -> tuple[int, Any, Any]:
    """Return the family of version 2 that the addresses have, and the addresses."""
    both = (header.source, header.destination)
    if both == (None, None) or header.local:
        return 0, None, None
    kinds = {_kind(one) for one in both}
    if len(kinds) != 1:
        raise ValueError(f"addresses of one family are needed, not {both[0]!r} and {both[1]!r}")
    return kinds.pop(), *both


def _kind(address: Any) -> int:
    if isinstance(address, str | bytes):
        return _UNIX
    try:
        host, port = ipaddress.ip_address(address[0]), address[1]
        if 0 <= port <= _HIGHEST_PORT and not getattr(host, "scope_id", None):
            return _TCP4 if host.version == 4 else _TCP6
    except (TypeError, ValueError, IndexError):
        pass
    raise ValueError(f"an address must be (host, port), the host a number: {address!r:.80}")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def crc32c(data: bytes) -> int:
    """Return the checksum of RFC 9260, which is not the one of `zlib`."""
    table = _table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(map(entry, range(256)))
