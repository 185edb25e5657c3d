"""
Reading ClientHellos: those of real clients, in any split, and bytes that are not one.
"""

import shutil
import socket
import ssl
import struct
import subprocess
from contextlib import suppress
from functools import cache, partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from helpers import support
from helpers.support import HOST, client_context, in_memory_handshake, server_options
from helpers.wire import HOSTILE, one_byte_records
from txasynchat.errors import HandshakeFailed, NotAClientHello
from txasynchat.tls.clienthello import LARGEST_HELLO, ClientHello, HelloReader, parse_client_hello

TLS_1_2, TLS_1_3 = 0x0303, 0x0304
SESSION_TICKET, PRE_SHARED_KEY, KEY_SHARE = 35, 41, 51

# -- hellos of real clients


def of_stdlib(version=None, name=HOST, protocols=(), session=None):
    context = client_context(version) if session is None else session[0]
    if version is None and session is None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # some builds of Python still offer 1.0
    context.check_hostname = name is not None
    if protocols:
        context.set_alpn_protocols(protocols)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name, session=session and session[1])
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def of_pyopenssl(version=None, name=HOST, protocols=()):
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if protocols:
        context.set_alpn_protos(list(protocols))
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    if name is not None:
        connection.set_tlsext_host_name(name.encode())
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65_536)


def of_a_client_that_comes_back(version):
    context = client_context(version)
    session = in_memory_handshake(context, server_options(sessions=True))
    return of_stdlib(session=(context, session))


USUAL = {"server_name": HOST.encode(), "protocols": (), "versions": (TLS_1_3, TLS_1_2)}
ONLY_1_2, ONLY_1_3 = {"versions": (TLS_1_2,)}, {"versions": (TLS_1_3,)}
NAMELESS = {"server_name": None}
ALPN = {"protocols": (b"chat/2", b"chat/1")}
MADE_UP = "post-quantum key share"  # the newest releases of OpenSSL send real ones
MANY = [f"chat/{number}" for number in range(500)]

#: How each hello is made, and its fields that differ from the usual ones.
HELLOS = {
    "ssl": (of_stdlib, {}),
    "ssl, 1.2": (partial(of_stdlib, "1.2"), ONLY_1_2),
    "ssl, 1.3": (partial(of_stdlib, "1.3"), ONLY_1_3),
    "ssl, no name": (partial(of_stdlib, name=None), NAMELESS),
    "ssl, 1.2, no name": (partial(of_stdlib, "1.2", None), NAMELESS | ONLY_1_2),
    "ssl, ALPN": (partial(of_stdlib, protocols=["chat/2", "chat/1"]), ALPN),
    "ssl, many protocols": (
        partial(of_stdlib, protocols=MANY),
        {"protocols": tuple(one.encode() for one in MANY)},
    ),
    "ssl, ticket, 1.2": (partial(of_a_client_that_comes_back, "1.2"), ONLY_1_2),
    "ssl, ticket, 1.3": (partial(of_a_client_that_comes_back, "1.3"), ONLY_1_3),
    "pyOpenSSL": (of_pyopenssl, {}),
    "pyOpenSSL, 1.2": (partial(of_pyopenssl, SSL.TLS1_2_VERSION), ONLY_1_2),
    "pyOpenSSL, 1.3": (partial(of_pyopenssl, SSL.TLS1_3_VERSION), ONLY_1_3),
    "pyOpenSSL, no name": (partial(of_pyopenssl, name=None), NAMELESS),
    "pyOpenSSL, ALPN": (partial(of_pyopenssl, protocols=(b"chat/2", b"chat/1")), ALPN),
    MADE_UP: (lambda: with_post_quantum_key_share(of_stdlib("1.3")), ONLY_1_3),
}


@cache
def bytes_of(name):
    make, _ = HELLOS[name]
    return make()


def read(data):
    reader = HelloReader()
    assert reader.feed(data)
    return reader.hello()


# -- to build them by hand


def vector(size, content):
    return len(content).to_bytes(size) + content


def build(hello, *, extensions=True):
    """The message that has this content."""
    message = (
        struct.pack(">H", hello.legacy_version)
        + hello.random
        + vector(1, hello.session_id)
        + vector(2, b"".join(suite.to_bytes(2) for suite in hello.cipher_suites))
        + vector(1, hello.compression_methods)
    )
    if extensions:
        message += vector(
            2, b"".join(struct.pack(">H", k) + vector(2, v) for k, v in hello.extensions.items())
        )
    return message


def in_records(message, *sizes):
    """A message in records of these sizes, the last as long as it takes."""
    rest = b"\1" + vector(3, message)
    records = []
    for size in (*sizes, *[16_384] * (1 + len(rest) // 16_384)):
        if rest:
            records.append(b"\x16\3\1" + vector(2, rest[:size]))
            rest = rest[size:]
    return b"".join(records)


def with_post_quantum_key_share(data):
    """X25519MLKEM768, 1,216 bytes, beside X25519, 32, as browsers send them."""
    shares = (
        struct.pack(">HH", 0x11EC, 1216) + bytes(1216) + struct.pack(">HH", 0x1D, 32) + bytes(32)
    )
    hello = read(data)
    extensions = dict(hello.extensions) | {KEY_SHARE: vector(2, shares)}
    return in_records(build(ClientHello(**(fields(hello) | {"extensions": extensions}))))


def fields(hello):
    return {name: getattr(hello, name) for name in ClientHello.__slots__}


def outcome(pieces):
    """Feed the pieces; return the hello, the text of the error, or None if it is not complete."""
    reader = HelloReader()
    try:
        for piece in pieces:
            if reader.feed(piece):
                return reader.hello()
    except NotAClientHello as error:
        return str(error)
    return None


def cut(data, places):
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


# -- hellos of real clients, parsed


@pytest.mark.parametrize("name", HELLOS)
def test_fields_are_those_that_the_client_sends(name):
    data, expected = bytes_of(name), USUAL | HELLOS[name][1]
    hello = read(data)
    assert {field: getattr(hello, field) for field in expected} == expected
    assert hello.legacy_version == TLS_1_2
    assert len(hello.random) == 32
    # A client that offers 1.3 sends an id for middleboxes (RFC 8446, appendix D.4).
    assert len(hello.session_id) == (
        0 if hello.versions == (TLS_1_2,) and "ticket" not in name else 32
    )
    assert hello.compression_methods == b"\0"
    assert bool(hello.extensions.get(SESSION_TICKET)) is (name == "ssl, ticket, 1.2")
    assert (PRE_SHARED_KEY in hello.extensions) is (name == "ssl, ticket, 1.3")
    assert build(hello, extensions=bool(hello.extensions)) == data[9:]


@pytest.mark.parametrize("name", [name for name in HELLOS if name != MADE_UP])
def test_openssl_parses_the_same_fields_at_the_same_byte(name):
    data = bytes_of(name)
    found = {"server_name": None, "protocols": ()}

    def note_name(connection):
        found["server_name"] = connection.get_servername()

    def note_protocols(_, offered):
        found["protocols"] = tuple(offered)
        return SSL.NO_OVERLAPPING_PROTOCOLS

    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    support.use_certificate(context)
    context.set_tlsext_servername_callback(note_name)
    context.set_alpn_select_callback(note_protocols)
    connection = SSL.Connection(context, None)
    connection.set_accept_state()
    answer = b""
    # Like the reader, it waits for the last byte.
    for piece in (data[:-1], data[-1:]):
        assert answer == b""
        connection.bio_write(piece)
        with suppress(SSL.WantReadError):
            connection.do_handshake()
        with suppress(SSL.WantReadError):
            answer = connection.bio_read(65_536)
    assert answer != b""
    hello = read(data)
    assert found == {"server_name": hello.server_name, "protocols": hello.protocols}
    assert connection.client_random() == hello.random


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")
@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3", "-no_tls1_3"])
def test_hello_of_the_openssl_command_is_parsed(flag):
    reader = HelloReader()
    with socket.create_server(("127.0.0.1", 0)) as port:
        port.settimeout(support.PATIENCE)
        address = f"127.0.0.1:{port.getsockname()[1]}"
        command = ["openssl", "s_client", "-connect", address, flag]
        command += ["-servername", HOST, "-alpn", "chat/2,chat/1"]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:
            accepted, _ = port.accept()
            with accepted:
                accepted.settimeout(support.PATIENCE)
                while not reader.feed(accepted.recv(7)):
                    pass
            client.communicate(timeout=support.PATIENCE)
    hello = reader.hello()
    assert hello.server_name == HOST.encode()
    assert hello.protocols == (b"chat/2", b"chat/1")
    assert (TLS_1_3 in hello.versions) is (flag == "-tls1_3")


def test_hello_without_extensions_is_parsed():
    hello = ClientHello(0x0301, bytes(32), b"", (0x2F,), b"\0", {}, None, (), (0x0301,))
    assert parse_client_hello(build(hello, extensions=False)) == hello


# -- splits


@given(st.sampled_from(list(HELLOS)), st.lists(st.integers(0, 5000), max_size=20))
def test_any_split_gives_the_same_hello(name, places):
    data = bytes_of(name)
    pieces = cut(data, places)
    reader = HelloReader()
    for number, piece in enumerate(pieces, 1):
        assert reader.feed(piece) is (number == len(pieces))
    assert reader.hello() == read(data)
    assert reader.received == data


@pytest.mark.parametrize("name", HELLOS)
def test_fed_byte_by_byte_a_hello_is_complete_at_its_last_byte(name):
    data = bytes_of(name)
    reader = HelloReader()
    told = [reader.feed(data[at : at + 1]) for at in range(len(data))]
    assert told == [False] * (len(data) - 1) + [True]
    assert reader.hello() == read(data)


@given(
    st.sampled_from(list(HELLOS)),
    st.lists(st.integers(1, 3000), max_size=30),
    st.lists(st.integers(0, 5000), max_size=10),
)
def test_any_record_sizes_give_the_same_hello(name, sizes, places):
    data = bytes_of(name)
    assert outcome(cut(in_records(data[9:], *sizes), places)) == read(data)


def test_records_of_one_byte_give_the_same_hello():
    data = bytes_of("ssl")
    assert read(one_byte_records(data)) == read(data)


@given(
    st.sampled_from(list(HELLOS)),
    st.binary(max_size=50),
    st.lists(st.integers(0, 5000), max_size=5),
)
def test_bytes_after_a_hello_are_kept_unparsed(name, more, places):
    data = bytes_of(name)
    reader = HelloReader()
    for piece in cut(data + more, places):
        reader.feed(piece)
    assert reader.complete
    assert reader.hello() == read(data)
    assert reader.received == data + more
    # Also in the same record.
    joined = data[:3] + vector(2, data[5:] + more) + b"more"
    assert read(joined) == read(data)


# -- malformed input


@given(
    st.sampled_from(list(HELLOS)),
    st.lists(
        st.tuples(
            st.sampled_from(["set", "insert", "delete", "cut"]),
            st.integers(0, 5000),
            st.binary(max_size=4),
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(0, 5000), max_size=20),
)
def test_mutated_hello_gives_a_hello_or_the_documented_error_in_any_split(name, changes, places):
    data = bytes_of(name)
    for how, place, content in changes:
        at = place % (len(data) + 1)
        if how == "set":
            data = data[:at] + content + data[at + len(content) :]
        elif how == "insert":
            data = data[:at] + content + data[at:]
        elif how == "delete":
            data = data[:at] + data[at + len(content) :]
        else:
            data = data[:at]
    assert outcome(cut(data, places)) == outcome([data])


@given(st.binary(max_size=400), st.lists(st.integers(0, 500), max_size=20))
def test_random_bytes_give_a_hello_or_the_documented_error_in_any_split(data, places):
    assert outcome(cut(data, places)) == outcome([data])


@given(st.binary(max_size=400))
def test_random_message_gives_a_hello_or_the_documented_error(message):
    try:
        hello = parse_client_hello(message)
    except NotAClientHello as error:
        assert isinstance(error, HandshakeFailed)
    else:
        assert (
            build(hello, extensions=bool(message[len(build(hello, extensions=False)) :])) == message
        )


names = st.binary(min_size=1, max_size=20)


@given(
    random=st.binary(min_size=32, max_size=32),
    session_id=st.binary(max_size=32),
    cipher_suites=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=40).map(tuple),
    compression_methods=names,
    server_name=st.none() | names,
    protocols=st.lists(names, max_size=5).map(tuple),
    versions=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=5).map(tuple),
    others=st.dictionaries(st.integers(44, 0xFFFF), st.binary(max_size=30), max_size=5),
)
def test_every_field_survives_a_round_trip(others, server_name, protocols, versions, **more):
    extensions = dict(others)
    if server_name is not None:
        extensions[0] = vector(2, b"\0" + vector(2, server_name))
    if protocols:
        extensions[16] = vector(2, b"".join(vector(1, one) for one in protocols))
    if len(versions) > 1:
        extensions[43] = vector(1, b"".join(one.to_bytes(2) for one in versions))
    hello = ClientHello(
        legacy_version=versions[0],
        extensions=extensions,
        server_name=server_name,
        protocols=protocols,
        versions=versions,
        **more,
    )
    assert parse_client_hello(build(hello)) == hello


def usual(**changes):
    """The message of an ordinary client, with some fields changed."""
    data = bytes_of("ssl")
    return build(ClientHello(**(fields(read(data)) | changes)))


def spoiled(kind, content):
    return usual(extensions={kind: content})


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"", "the ClientHello: ends in the middle of a field"),
        (usual()[:-1], "the ClientHello: ends in the middle of a field"),
        (usual() + b"\0\0\0", "the ClientHello: 3 bytes left over"),
        (usual(session_id=bytes(33)), "the ClientHello: a field of 33 bytes"),
        (usual(cipher_suites=()), "the ClientHello: a field of 0 bytes"),
        (usual(compression_methods=b""), "the ClientHello: a field of 0 bytes"),
        (spoiled(0, b""), "the extension server_name: ends in the middle of a field"),
        (spoiled(0, b"\0\0"), "the extension server_name: a field of 0 bytes"),
        (spoiled(0, b"\0\3\0\0\0"), "the list of server names: a field of 0 bytes"),
        (spoiled(0, b"\0\4\0\0\1a\0"), "the extension server_name: 1 bytes left over"),
        (spoiled(0, b"\0\10" + b"\0\0\1a" * 2), "two server names of type 0"),
        (spoiled(16, b"\0\0"), "the extension ALPN: a field of 0 bytes"),
        (spoiled(16, b"\0\1\0"), "the list of ALPN protocols: a field of 0 bytes"),
        (spoiled(16, b"\0\2\2a"), "the list of ALPN protocols: ends in the middle of a field"),
        (spoiled(43, b"\3\3\4\3"), "the extension supported_versions: half a number"),
        (spoiled(43, b"\0"), "the extension supported_versions: a field of 0 bytes"),
        (
            usual(extensions={})[:-2] + vector(2, b"\0\x15\0\0" * 2),
            "extension 21 twice",
        ),
    ],
)
def test_malformed_message_is_refused_with_the_reason(message, complaint):
    with pytest.raises(NotAClientHello, match=complaint):
        parse_client_hello(message)


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_hello_is_refused(what):
    found = outcome([HOSTILE[what]])
    # A well-formed hello of an old version: refusing it is up to OpenSSL.
    allowed = {"an SSLv3 hello": 0x0300}
    if what in allowed:
        assert found.legacy_version == allowed[what]
    else:
        assert type(found) is str


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"G", "not TLS: it begins with byte 0x47"),
        (b"\x16\2", "not TLS: the version of a record begins with 2"),
        (b"\x16\3\1\0\0", "a record of 0 bytes, expected 1 to 16384"),
        (b"\x16\3\1\x40\1", "a record of 16385 bytes, expected 1 to 16384"),
        (b"\x16\3\1\0\1\2", "a handshake message of type 2, expected a ClientHello"),
        (b"\x16\3\1\0\4\1\0\x40\1", "a ClientHello of 16385 bytes, limit 16384"),
        (b"\x16\3\1\0\1\1\x17", "a record of type 23 in the middle of the ClientHello"),
    ],
)
def test_stream_is_refused_at_the_first_wrong_byte(data, complaint):
    for pieces in ([data], cut(data, range(len(data)))):
        reader = HelloReader()
        with pytest.raises(NotAClientHello, match=complaint):
            for piece in pieces:
                reader.feed(piece)
        # The error is final, and the bytes are there for the engine that sends the alert.
        with pytest.raises(NotAClientHello, match=complaint):
            reader.feed(b"more")
        assert reader.received == data + b"more"
    assert outcome([data[:-1]]) is None


def test_error_text_contains_none_of_the_clients_bytes():
    for data in (b"secret", in_records(spoiled(16, b"secret"))):
        assert "secret" not in outcome([data])


# -- limits


def test_hello_over_the_limit_is_refused():
    room = LARGEST_HELLO - len(usual(extensions={44: b""}))
    assert outcome([in_records(usual(extensions={44: bytes(room)}))]).extensions == {
        44: bytes(room)
    }
    longer = in_records(usual(extensions={44: bytes(room + 1)}))
    assert outcome([longer]) == f"a ClientHello of {LARGEST_HELLO + 1} bytes, limit {LARGEST_HELLO}"
    reader = HelloReader(LARGEST_HELLO + 1)
    assert reader.feed(longer)


def test_endless_tiny_records_are_refused():
    long = usual(extensions={44: bytes(15_000)})
    data = in_records(long, *[1] * 20_000)
    reader = HelloReader()
    fed = 0
    with pytest.raises(
        NotAClientHello, match="bytes of records, and the ClientHello is not complete"
    ):
        for at in range(0, len(data), 100):
            reader.feed(data[at : at + 100])
            fed += 100
    assert fed <= 2 * LARGEST_HELLO + 100


def test_parsing_an_incomplete_hello_is_a_callers_mistake():
    reader = HelloReader()
    reader.feed(b"\x16")
    with pytest.raises(RuntimeError, match="not complete"):
        reader.hello()
