"""
A header is read whole and exactly, however it is cut; anything else is refused.
"""

import itertools
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txasynchat.errors import MalformedProxyHeader
from txasynchat.proxy.header import LONGEST, HeaderReader, Proxied, ProxiedTLS, crc32c

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ADDRESSES = socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + b"\x12\x67\0\x50"


def binary(body=ADDRESSES, command=0x21, family=0x11):
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def tlv(kind, value):
    return struct.pack("!BH", kind, len(value)) + value


def read(pieces, longest=LONGEST):
    """Return what the header says, or what is wrong, and the bytes behind it."""
    reader = HeaderReader(longest)
    rest = b""
    try:
        for piece in pieces:
            rest += piece[reader.feed(piece) :]
    except MalformedProxyHeader as error:
        return error.problem, None
    return reader.proxied, rest


def whole(data):
    return read([data])[0]


def cut(data, places):
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


GOOD = {
    b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n": Proxied(
        version=1, source=("192.0.2.7", 4711), destination=("198.51.100.1", 80)
    ),
    b"PROXY TCP6 2001:db8::7 ::1 0 65535\r\n": Proxied(
        version=1, source=("2001:db8::7", 0, 0, 0), destination=("::1", 65535, 0, 0)
    ),
    b"PROXY UNKNOWN\r\n": Proxied(version=1),
    b"PROXY UNKNOWN ffff::1 anything 1 2\r\n": Proxied(version=1),
    b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n": Proxied(version=1),
    binary(): Proxied(source=("192.0.2.7", 4711), destination=("198.51.100.1", 80)),
    binary(b"", command=0x20, family=0): Proxied(local=True),
    binary(b"\xff" * 99, command=0x20, family=0xFF): Proxied(local=True),
    binary(b"", family=0): Proxied(),
    binary(b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0"), family=0x31): Proxied(
        source="/run/a", destination="/run/b"
    ),
    binary(b"\0a".ljust(108, b"\0") + bytes(108), family=0x31): Proxied(
        source=b"\0a", destination=""
    ),
    binary(ADDRESSES + tlv(2, b"example.org") + tlv(4, b"...")): Proxied(
        source=("192.0.2.7", 4711),
        destination=("198.51.100.1", 80),
        tlvs=((2, b"example.org"), (4, b"...")),
    ),
}
BAD = {
    b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\n": "its line does not end with CR LF",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 080\r\n": "a port is not a number from 0 to 65535",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 65536\r\n": "a port is not a number from 0 to 65535",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 80\r\n": "a port is not a number from 0 to 65535",
    b"PROXY TCP4 192.0.2.07 198.51.100.1 4711 80\r\n": "an address is not one of TCP4",
    b"PROXY TCP4 ::1 ::1 4711 80\r\n": "an address is not one of TCP4",
    b"PROXY TCP6 fe80::1%eth0 ::1 4711 80\r\n": "an address is not one of TCP6",
    b"PROXY TCP4 192.0.2.7  198.51.100.1 4711 80\r\n": "its line has not two addresses and two ports",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80 \r\n": "its line has not two addresses and two ports",
    b"PROXY UDP4 192.0.2.7 198.51.100.1 4711 80\r\n": "its family is not TCP4, TCP6 or UNKNOWN",
    b"PROXY \r\n": "its family is not TCP4, TCP6 or UNKNOWN",
    b"PROXY UNKNOWN \xff\r\n": "its line is not ASCII",
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n": "no end of line in 107 bytes",
    b"POST / HTTP/1.1\r\n": "it begins like version 1, but not with PROXY",
    b"GET / HTTP/1.1\r\n": "the connection does not begin with one",
    b"\x16\x03\x01\x02\0": "the connection does not begin with one",
    binary(command=0x11): "unknown version 1",
    binary(command=0x22): "unknown command 2",
    binary(family=0x12): "unknown family and protocol 0x12",
    binary(ADDRESSES[:-1]): "it is too short for its addresses",
    SIGNATURE + b"\x21\x11\xff\xff": f"65551 bytes, limit {LONGEST}",
    SIGNATURE + b"\x20\0\xff\xff": f"65551 bytes, limit {LONGEST}",
    binary(ADDRESSES + b"\1\0"): "a TLV is cut off",
    binary(ADDRESSES + b"\1\0\2a"): "a TLV is longer than the header",
    binary(ADDRESSES + tlv(5, b"x" * 129)): "a unique id of more than 128 bytes",
    binary(ADDRESSES + tlv(0x20, b"\1\0\0\0")): "a TLV about TLS is cut off",
    binary(ADDRESSES + tlv(3, b"\0\0\0\0")): "its checksum is wrong",
}


@pytest.mark.parametrize("header", GOOD)
def test_header_says_whose_connection_it_is(header):
    """Every form of the specification is understood, and gives addresses as a socket would."""
    assert read([header]) == (GOOD[header], b"")


@pytest.mark.parametrize("header", BAD)
def test_wrong_header_is_refused_with_what_is_wrong(header):
    """The reason names what was wrong, whether the header comes at once or byte by byte."""
    assert whole(header) == BAD[header]
    assert read([bytes([one]) for one in header])[0] == BAD[header]


@given(
    st.sampled_from([*GOOD, *BAD]),
    st.binary(max_size=300),
    st.lists(st.integers(0, 999), max_size=8),
)
def test_cutting_changes_nothing(header, behind, places):
    """Any pieces of the same bytes give the same result, and the same bytes behind the header."""
    data = header + behind
    result = read([data])
    assert read(cut(data, places)) == result
    if header in GOOD:
        assert result == (GOOD[header], behind)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda one: b"PROXY " + one))
def test_garbage_is_no_header(data):
    """Bytes that are no header are refused, or wait for more; nothing else happens."""
    said, rest = read([data])
    if isinstance(said, Proxied):
        header = data[: len(data) - len(rest)]
        assert (header[:6], header[-2:]) == (b"PROXY ", b"\r\n") or header[:12] == SIGNATURE
    elif said is None:
        assert b"\n" not in data or data.startswith(b"\r\n")
        assert rest == b""
    assert read([bytes([one]) for one in data]) == (said, rest)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65_535), st.binary(max_size=400))
def test_any_second_version_agrees_with_a_simple_reader(command, family, length, body):
    """A reader that is written down from the specification says the same of any fixed part."""
    data = SIGNATURE + struct.pack("!BBH", command, family, length) + body
    said, rest = read([data], longest=1000)
    sizes = {0: 0, 0x11: 12, 0x21: 36, 0x31: 216}
    fits = command == 0x20 or (command == 0x21 and length >= sizes.get(family, 1 << 16))
    if not fits or length + 16 > 1000:
        assert isinstance(said, str)
    elif length > len(body):
        assert said is None
    elif command == 0x20:
        assert (said, rest) == (Proxied(local=True), body[length:])
    elif isinstance(said, Proxied):
        assert rest == body[length:]
        again = b"".join(tlv(*one) for one in said.tlvs)
        assert again == body[sizes[family] : length]
    else:
        assert sizes[family] < length


@given(
    st.sampled_from([1, 2]),
    st.ip_addresses(v=4) | st.ip_addresses(v=6),
    st.ip_addresses(v=4) | st.ip_addresses(v=6),
    st.integers(0, 65_535),
)
def test_what_is_written_can_be_read(version, source, destination, port):
    """A header that this package sends says the same when it is read."""
    more = lambda one: (port,) if one.version == 4 else (port, 0, 0)  # noqa: E731 short
    header = Proxied(
        version=version,
        source=(str(source), *more(source)),
        destination=(str(destination), *more(destination)),
    )
    if source.version != destination.version:
        with pytest.raises(ValueError, match="one family"):
            header.encode()
        return
    assert whole(header.encode()) == header


@pytest.mark.parametrize("header", [one for one in GOOD.values() if one.version == 2])
def test_second_version_can_be_written(header):
    """LOCAL, paths and TLVs are sent as they are read."""
    assert whole(header.encode()) == header


def test_proxy_says_what_it_knows_of_its_client():
    """The name asked for, the protocol, the TLS and the proxy's id are attributes."""
    inner = tlv(0x21, b"TLSv1.3") + tlv(0x22, b"alice") + tlv(0x23, b"TLS_AES_128_GCM_SHA256")
    said = whole(
        binary(
            ADDRESSES
            + tlv(1, b"h2")
            + tlv(2, b"chat.example.org")
            + tlv(5, b"id-1")
            + tlv(0x20, b"\x07\0\0\0\0" + inner)
        )
    )
    assert (said.alpn, said.authority, said.unique_id) == (b"h2", "chat.example.org", b"id-1")
    assert said.tls == ProxiedTLS(
        version="TLSv1.3",
        cipher="TLS_AES_128_GCM_SHA256",
        name="alice",
        has_certificate=True,
        verified=True,
    )
    assert whole(binary()).tls is None
    assert whole(binary(ADDRESSES + tlv(0x20, b"\0\0\0\0\1"))).tls is None
    assert not whole(binary(ADDRESSES + tlv(0x20, b"\x03\0\0\0\1"))).tls.verified
    assert not whole(binary(ADDRESSES + tlv(0x20, b"\x01\0\0\0\0"))).tls.verified


def test_right_checksum_is_accepted():
    """A header with the checksum that HAProxy would send is read."""
    assert crc32c(b"123456789") == 0xE3069283
    zeroed = binary(ADDRESSES + tlv(3, bytes(4)))
    header = zeroed[:-4] + crc32c(zeroed).to_bytes(4, "big")
    assert whole(header).tlvs[0][0] == 3


@pytest.mark.parametrize(
    "header",
    [
        Proxied(version=1, local=True),
        Proxied(version=1, tlvs=((2, b"a"),)),
        Proxied(version=1, source="/a", destination="/b"),
        Proxied(source=("192.0.2.1", 1)),
        Proxied(source=("localhost", 1), destination=("192.0.2.1", 1)),
        Proxied(source=("192.0.2.1", 65_536), destination=("192.0.2.1", 1)),
        Proxied(source="/" + "a" * 108, destination="/b"),
        Proxied(tlvs=((2, bytes(65_535)),)),
    ],
)
def test_what_cannot_be_expressed_is_an_error(header):
    """A header that no reader would understand is refused where it is made."""
    with pytest.raises(ValueError):
        header.encode()
