"""
The TLS engine, in memory: two of them back to back, clients of the standard library, and bytes that are
no TLS at all.

Also covers `tls.contexts` and `tls.failures`.
"""

import contextlib
import errno
import gc
import itertools
import os
import re
import socket
import ssl
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificates
from hypothesis import given
from hypothesis import strategies as st

from helpers import support, wire
from helpers.engines import Link, encrypted, give
from helpers.support import HOST, client_context, credentials, leaf, pem, server_options, trust
from txasynchat import errors
from txasynchat.tls import ClientCertificate, ClientOptions, Credentials, Version, contexts
from txasynchat.tls.certificates import Loaded
from txasynchat.tls.clienthello import HelloReader
from txasynchat.tls.engine import LARGEST_DEBT, LARGEST_READ, LARGEST_WRITE, Engine, OneContext

EACH_VERSION = pytest.mark.parametrize("version", Version, ids=["1.2", "1.3"])


def client_options(hostname=HOST, **arguments):
    arguments.setdefault("authorities", trust())
    return ClientOptions(hostname, **arguments)


# Made once: hundreds of examples shake hands with them.
SERVER = server_options()
CLIENTS = {version: client_options(maximum=version) for version in Version}


def link(server=SERVER, client=CLIENTS[Version.TLS_1_3], cut=None):
    return Link(client.engine(), server.engine(), cut)


def secure(*arguments, **more):
    made = link(*arguments, **more).run()
    assert made.client.failure is None
    assert made.server.failure is None
    assert made.client.is_secure
    assert made.server.is_secure
    return made


def refused(server, client):
    """Shake hands in vain; return how the client failed, and how the server did."""
    made = link(server, client).run()
    for engine in (made.client, made.server):
        if not engine.ended:
            engine.end_of_stream()
    return made.client.failure, made.server.failure


def hello(context=None, name=HOST, protocols=()):
    context = context or client_context()
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return wire.Memory(context, name).hello()


def alert(data):
    """The description of a fatal alert in the clear."""
    assert (data[0], len(data), data[5]) == (21, 7, 2)
    return data[6]


# -- data in any pieces


def pieces_of(cuts):
    def cut(data):
        places = sorted({at % (len(data) + 1) for at in cuts} | {0, len(data)})
        return [data[a:b] for a, b in pairwise(places)]

    return cut


@EACH_VERSION
@given(
    cuts=st.lists(st.integers(0, 5_000), max_size=12),
    said=st.lists(st.binary(max_size=200), max_size=4),
    answered=st.lists(st.binary(max_size=200), max_size=4),
)
def test_any_split_of_the_ciphertext_gives_the_same_plaintext_and_the_same_end(
    version, cuts, said, answered
):
    made = secure(client=CLIENTS[version], cut=pieces_of(cuts))
    for data in said:
        made.say(data)
    for data in answered:
        made.answer(data)
    made.client.close()
    made.run()
    made.server.close()
    made.run()
    assert made.to_server == b"".join(said)
    assert made.to_client == b"".join(answered)
    for engine in (made.client, made.server):
        assert (engine.ended, engine.failure, engine.peer_closed) == (True, None, True)


@EACH_VERSION
@given(
    sizes=st.lists(st.integers(1, 70_000), min_size=1, max_size=8),
    chunks=st.lists(st.integers(1, 70_000), min_size=1, max_size=5),
)
def test_large_pieces_may_be_cut_anywhere(version, sizes, chunks):
    """Between them there are small ones, and records are cut in their headers, too."""
    made = secure(client=CLIENTS[version])
    text = b"".join(bytes((number,)) * size for number, size in enumerate(sizes))
    wire = b"".join(encrypted(made.client, bytes((n,)) * size) for n, size in enumerate(sizes))
    at, turn = 0, itertools.cycle(chunks)
    while at < len(wire):
        size = next(turn)
        made.to_server += give(made.server, wire[at : at + size])
        at += size
    assert made.to_server == text


@EACH_VERSION
def test_one_byte_at_a_time_is_enough(version):
    made = secure(client=CLIENTS[version], cut=lambda data: [bytes((one,)) for one in data])
    made.say(b"hello")
    made.answer(b"world" * 5_000)
    assert (made.to_server, made.to_client) == (b"hello", b"world" * 5_000)


@EACH_VERSION
def test_many_records_at_once_are_one_plaintext(version):
    made = secure(client=CLIENTS[version])
    records = b"".join(made.client.encrypt(b"%d," % number) for number in range(100))
    half = made.client.encrypt(b"half")
    assert made.server.receive(records + half[:10]) == b"".join(b"%d," % n for n in range(100))
    assert made.server.receive(half[10:]) == b"half"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_large_writes_are_cut_into_records_and_at_a_limit(kind):
    made = secure()
    data = bytes(range(256)) * 1_000
    ciphertext = made.client.encrypt(kind(data))
    assert made.server.receive(ciphertext) == data[:LARGEST_WRITE]
    lengths = []
    while ciphertext:
        size = int.from_bytes(ciphertext[3:5])
        lengths.append(size)
        ciphertext = ciphertext[5 + size :]
    assert len(lengths) == 4
    assert max(lengths) < 16_384 + 256


def test_plaintext_returned_at_once_has_a_limit_and_the_rest_follows():
    made = secure()
    data = b"0123456789abcdef" * 40_000
    text = made.server.receive(encrypted(made.client, data))
    assert LARGEST_READ <= len(text) < LARGEST_READ + 16_384
    rest = []
    while made.server.more:
        rest.append(made.server.receive(b""))
    assert text + b"".join(rest) == data
    assert made.server.receive(made.client.encrypt(b"next")) == b"next"


def test_closing_with_plaintext_left_to_read_loses_none_of_it():
    made = secure()
    data = b"x" * 500_000
    text = made.server.receive(encrypted(made.client, data))
    made.server.close()
    while made.server.more:
        text += made.server.receive(b"")
    assert text == data
    assert made.server.failure is None
    assert made.server.receive(made.client.encrypt(b"next")) == b"next"


def test_nothing_to_encrypt_makes_no_record():
    made = secure()
    assert made.client.encrypt(b"") == b""
    assert not made.client.owes


def test_plaintext_is_not_taken_before_the_handshake_is_done():
    made = link()
    assert not made.client.can_write
    assert made.client.encrypt(b"early") == b""
    with pytest.raises(RuntimeError, match="handshake is not done"):
        made.client.receive(b"")


@EACH_VERSION
def test_data_behind_the_last_flight_is_there_at_once(version):
    """As of a client that sends without waiting for the server's last message."""
    made = link(client=CLIENTS[version])
    made.send_to_server(made.client.take())
    while not made.client.is_secure:
        made.send_to_client(made.server.take())
        if not made.client.is_secure:
            made.send_to_server(made.client.take())
    made.send_to_server(made.client.take() + made.client.encrypt(b"eager"))
    assert made.to_server == b"eager"


# -- the end of each direction


@EACH_VERSION
def test_each_direction_ends_by_itself(version):
    made = secure(client=CLIENTS[version])
    made.client.close()
    made.run()
    assert (made.server.ended, made.server.peer_closed, made.server.failure) == (True, True, None)
    assert (made.client.write_closed, made.client.can_write) == (True, False)
    assert made.client.encrypt(b"late") == b""
    assert not made.client.ended
    made.answer(b"still" * 10_000)
    assert made.to_client == b"still" * 10_000
    made.server.close()
    made.run()
    assert (made.client.ended, made.client.peer_closed, made.client.failure) == (True, True, None)


@EACH_VERSION
def test_both_may_close_at_the_same_time(version):
    made = secure(client=CLIENTS[version])
    made.client.close()
    made.server.close()
    made.run()
    for engine in (made.client, made.server):
        engine.close()
        engine.end_of_stream()
        assert (engine.ended, engine.failure, engine.owes) == (True, None, False)


@EACH_VERSION
def test_data_before_close_notify_is_returned_with_it(version):
    made = secure(client=CLIENTS[version])
    last = made.client.encrypt(b"last words")
    made.client.close()
    assert made.server.receive(last + made.client.take() + b"junk") == b"last words"
    assert made.server.peer_closed
    assert made.server.receive(b"more junk") == b""


@EACH_VERSION
def test_a_stream_that_ends_without_close_notify_is_truncated(version):
    made = secure(client=CLIENTS[version])
    whole = made.client.encrypt(b"whole")
    half = made.client.encrypt(b"half")[:-1]
    assert made.server.receive(whole + half) == b"whole"
    made.server.end_of_stream()
    assert type(made.server.failure) is errors.TruncatedConnection
    assert str(made.server.failure) == "no end of TLS before this: the peer stopped sending"
    assert made.server.ended


def test_a_stream_that_ends_in_the_handshake_is_a_failed_handshake():
    data = hello()
    for fed in (b"", data[:3], data[:100], data):
        engine = SERVER.engine()
        engine.feed(fed)
        engine.shake_hands()
        engine.end_of_stream()
        assert type(engine.failure) is errors.HandshakeFailed
        assert str(engine.failure) == "the peer left during the handshake"


@EACH_VERSION
def test_a_changed_record_fails_the_connection_after_what_came_before_it(version):
    made = secure(client=CLIENTS[version])
    good, bad = made.client.encrypt(b"good"), bytearray(made.client.encrypt(b"bad"))
    bad[-1] ^= 1
    assert made.server.receive(good + bytes(bad)) == b"good"
    assert type(made.server.failure) is errors.TLSError
    assert str(made.server.failure) == "decryption failed or bad record mac"
    assert isinstance(made.server.failure.__cause__, ssl.SSLError)
    assert made.server.encrypt(b"late") == b""
    made.send_to_client(made.server.take())
    assert type(made.client.failure) is errors.TLSError
    assert "bad record mac" in str(made.client.failure)


@pytest.mark.counts_references
def test_failed_engines_are_freed_when_they_are_forgotten():
    """OpenSSL's memory goes with them, and not at some later collection."""
    gc.collect()
    gc.disable()
    try:
        made = secure()
        made.server.receive(b"\x17\3\3\0\x20" + bytes(32))
        hostile = SERVER.engine()
        hostile.feed(b"GET / HTTP/1.1\r\n\r\n")
        hostile.shake_hands()
        unknown = client_options("other.example.org").engine()
        other = Link(unknown, SERVER.engine()).run()
        assert made.server.failure and hostile.failure and unknown.failure
        left = [weakref.ref(one) for one in (made.server, hostile, unknown)]
        del made, hostile, unknown, other
        assert [one() for one in left] == [None, None, None]
    finally:
        gc.enable()


# -- what is no ClientHello


HOSTILE = wire.HOSTILE


def feed_in(pieces):
    engine = SERVER.engine()
    for piece in pieces:
        if engine.feed(piece):
            engine.shake_hands()
    said = engine.take()
    engine.end_of_stream()
    return type(engine.failure), str(engine.failure), said


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_handshake_fails_in_any_pieces_by_openssls_own_words(what):
    """And by its alert: nobody says better what is wrong."""
    data = HOSTILE[what]
    whole = feed_in([data])
    assert whole[0] is errors.HandshakeFailed
    assert len(whole[2]) in (0, 7)
    for size in (1, 2, 7, 1_000):
        if len(data) // size < 5_000:
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            assert feed_in(pieces) == whole, size
    # And the same as of OpenSSL alone.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = SERVER._contexts.choose(None)
    incoming.write(data)
    try:
        context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    except ssl.SSLWantReadError:
        assert whole[1] == "the peer left during the handshake"
    except ssl.SSLError as error:
        assert f" {whole[1]} (" in str(error)
    assert whole[2] == outgoing.read()


@given(st.binary(max_size=100), st.booleans())
def test_random_bytes_raise_nothing(data, begin_as_tls):
    engine = SERVER.engine()
    if engine.feed(b"\x16\x03\x01" * begin_as_tls + data):
        engine.shake_hands()
    engine.take()
    engine.end_of_stream()
    assert isinstance(engine.failure, errors.HandshakeFailed)


@given(st.integers(5, 300), st.integers(0, 255))
def test_a_hello_with_a_changed_byte_raises_nothing(at, value):
    data = bytearray(hello())
    data[at % len(data)] = value
    engine = SERVER.engine()
    if engine.feed(bytes(data)):
        engine.shake_hands()
    engine.take()
    assert engine.failure is None or isinstance(engine.failure, errors.HandshakeFailed)


@EACH_VERSION
def test_a_hello_in_records_of_one_byte_is_welcome(version):
    client = CLIENTS[version].engine()
    client.shake_hands()
    server = SERVER.engine()
    give(server, wire.one_byte_records(client.take()))
    assert server.failure is None
    give(client, server.take())
    give(server, client.take())
    give(client, server.take())
    assert client.is_secure
    assert server.is_secure


def padded_hello(size):
    """A ClientHello with that many bytes of an extension nobody knows."""
    message = hello()[9:]
    extensions_at = 34 + 1 + message[34]
    extensions_at += 2 + int.from_bytes(message[extensions_at : extensions_at + 2])
    extensions_at += 1 + message[extensions_at]
    extensions = message[extensions_at + 2 :] + b"\xfa\xfa" + size.to_bytes(2) + bytes(size)
    message = message[:extensions_at] + len(extensions).to_bytes(2) + extensions
    message = b"\1" + len(message).to_bytes(3) + message
    records = [message[at : at + 16_384] for at in range(0, len(message), 16_384)]
    return b"".join(b"\x16\3\1" + len(one).to_bytes(2) + one for one in records)


def test_a_hello_that_openssl_would_take_but_we_cannot_read_goes_no_further():
    """Names and protocols could not be refused in it."""
    engine = SERVER.engine()
    engine.feed(padded_hello(10_000))
    engine.shake_hands()
    assert engine.failure is None
    engine = SERVER.engine()
    engine.feed(padded_hello(20_000))
    engine.shake_hands()
    assert type(engine.failure) is errors.NotAClientHello
    assert re.fullmatch("a ClientHello of [0-9]+ bytes, limit 16384", str(engine.failure))
    assert alert(engine.take()) == 50  # decode_error
    assert not engine.is_secure


def test_openssl_is_not_started_before_the_hello_is_complete():
    engine = SERVER.engine()
    data = hello()
    assert not engine.feed(data[:-1])
    assert not engine.shake_hands()
    assert engine.tls is None
    assert engine.backlog == len(data) - 1
    assert engine.feed(data[-1:])
    engine.shake_hands()
    assert engine.tls is not None
    assert engine.backlog == 0


# -- names


def names_of(made):
    certificate = load_der_x509_certificate(made.client.peer_certificate_der)
    return set(
        certificate.extensions.get_extension_for_class(
            support.x509.SubjectAlternativeName
        ).value.get_values_for_type(support.x509.DNSName)
    )


SEVERAL = [
    credentials("first.example.org"),
    credentials("second.example.org", "*.wild.example.org"),
]


@EACH_VERSION
def test_a_client_gets_the_certificate_for_the_name_it_asks_for(version):
    server = server_options(credentials=SEVERAL)
    context = client_context({Version.TLS_1_2: "1.2", Version.TLS_1_3: "1.3"}[version])
    context.check_hostname = False
    second = {"second.example.org", "*.wild.example.org"}
    first = {"first.example.org"}
    for name, names in (
        ("second.example.org", second),
        ("SECOND.example.org", second),
        ("second.example.org.", second),
        ("any.wild.example.org", second),
        ("first.example.org", first),
        ("deep.any.wild.example.org", first),
        ("unknown.example.org", first),
        ("127.0.0.1", first),
        (None, first),
    ):
        made = Link(Engine.client(context, name), server.engine()).run()
        assert names_of(made) == names, name
        assert made.server.server_name == (None if name == "127.0.0.1" else name)


@EACH_VERSION
def test_an_unknown_name_is_refused_when_strict(version):
    server = server_options(credentials=SEVERAL, strict_names=True)
    theirs, ours = refused(server, client_options("unknown.example.org", maximum=version))
    assert type(ours) is errors.UnknownServerName
    assert str(ours) == "the client asks for a name that no certificate has"
    assert type(theirs) is errors.HandshakeFailed
    assert "unrecognized name" in str(theirs)


def test_no_name_at_all_is_no_unknown_name():
    server = server_options(strict_names=True)
    secure(server, client_options("127.0.0.1"))


def named(name):
    """A hello whose server name is replaced by other bytes, as many."""
    data = hello(name="x" * len(name) + ".org")
    return data.replace(b"x" * len(name) + b".org", name + b".org")


@pytest.mark.parametrize("name", [b"b\xfccher", b"\xff\xfe\x80", "bücher".encode(), b"a b"])
def test_a_name_that_is_not_ascii_finds_no_certificate_and_prints_nothing(name, capfd):
    engine = SERVER.engine()
    engine.feed(named(name))
    engine.shake_hands()
    assert engine.failure is None
    assert engine.server_name == (name + b".org").decode("ascii", "replace")
    engine = server_options(strict_names=True).engine()
    engine.feed(named(name))
    engine.shake_hands()
    assert type(engine.failure) is errors.UnknownServerName
    assert alert(engine.take()) == 112
    assert capfd.readouterr() == ("", "")


# -- ALPN


def agree(offered, **arguments):
    server = server_options(alpn=(b"chat/2", b"chat/1"), **arguments)
    context = client_context()
    if offered:
        encoded = b"".join(bytes((len(one),)) + one for one in offered)
        context._set_alpn_protocols(encoded)
    return Link(Engine.client(context, HOST), server.engine()).run()


def test_the_servers_preferred_protocol_is_taken():
    made = agree([b"chat/1", b"chat/2"])
    assert made.client.alpn == made.server.alpn == b"chat/2"


def test_no_common_protocol_is_refused_by_its_own_alert():
    made = agree([b"http/1.1", b"\xff\xfe"])
    assert type(made.server.failure) is errors.NoCommonProtocol
    assert str(made.server.failure) == "the client offers none of our protocols"
    assert alert(made.wire_to_client) == 120
    assert "no application protocol" in str(made.client.failure)
    assert made.server.tls is None


def test_no_common_protocol_is_accepted_if_not_strict():
    made = agree([b"http/1.1"], strict_alpn=False)
    assert made.server.is_secure
    assert made.server.alpn is made.client.alpn is None


def test_a_client_that_offers_no_protocol_is_accepted_unless_one_is_required():
    assert agree([]).server.is_secure
    for offered, strict in (([], True), ([b"http/1.1"], False)):
        made = agree(offered, require_alpn=True, strict_alpn=strict)
        assert type(made.server.failure) is errors.NoCommonProtocol
        assert str(made.server.failure) == "the client offers no protocol"
        assert not made.client.is_secure


@EACH_VERSION
def test_a_client_refuses_a_server_that_takes_none_of_its_protocols(version):
    theirs, ours = refused(SERVER, client_options(alpn=(b"chat/1",), maximum=version))
    assert type(theirs) is errors.NoCommonProtocol
    assert str(theirs) == "the server takes none of our protocols"
    assert ours is None  # it was content, and is told of an orderly end
    secure(SERVER, client_options(alpn=(b"chat/1",), strict_alpn=False))


def test_protocols_that_a_second_hello_takes_back_are_missed_after_the_handshake():
    """The first one decides, and a client may have to send another."""
    for arguments, offered in (
        ({"strict_alpn": True}, [b"chat"]),
        ({"strict_alpn": False, "require_alpn": True}, [b"chat"]),
    ):
        made = server_options(alpn=(b"chat",), **arguments)._contexts
        reader = HelloReader()
        reader.feed(hello(protocols=[one.decode() for one in offered]))
        assert type(made.check(reader.hello(), None)) is errors.NoCommonProtocol
        assert made.check(reader.hello(), b"chat") is None


def test_protocols_may_be_any_bytes():
    made = secure(server_options(alpn=(b"\xff\x00",)), client_options(alpn=(b"\xff\x00",)))
    assert made.client.alpn == made.server.alpn == b"\xff\x00"


# -- certificates


def test_a_certificate_for_another_name_or_address_is_refused():
    for names, hostname in (
        (["other.example.org"], HOST),
        (["127.0.0.2"], "127.0.0.1"),
        (["::2"], "::1"),
        ([HOST], "127.0.0.1"),
        (["*.example.org"], "example.org"),
        (["*.example.org"], "a.b.example.org"),
    ):
        server = server_options(credentials=credentials(*names))
        theirs, ours = refused(server, client_options(hostname))
        assert type(theirs) is errors.WrongName
        assert str(theirs) == f"the server's certificate is not for {hostname}"
        assert type(ours) is errors.HandshakeFailed


def test_names_and_addresses_are_verified():
    for names, hostname in (
        ([HOST], HOST.upper()),
        (["127.0.0.1"], "127.0.0.1"),
        (["::1"], "0:0:0:0:0:0:0:1"),
        (["*.example.org"], "a.example.org"),
        (["xn--bcher-kva.example"], "b\xfccher.example"),
    ):
        made = secure(server_options(credentials=credentials(*names)), client_options(hostname))
        is_address = hostname[0].isdigit()
        name = "xn--bcher-kva.example" if "\xfc" in hostname else hostname
        assert made.client.server_name == (None if is_address else name)
        assert made.server.server_name == made.client.server_name


def common_name_only():
    """A certificate of the authority that has its name only where nobody should look for it."""
    key = support.ec.generate_private_key(support.ec.SECP256R1())
    authority = load_pem_x509_certificates(trust())[0]
    now = datetime.now(UTC)
    certificate = (
        support.x509.CertificateBuilder()
        .subject_name(
            support.x509.Name([support.x509.NameAttribute(support.NameOID.COMMON_NAME, HOST)])
        )
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(support.x509.random_serial_number())
        .not_valid_before(now - support.dt.timedelta(days=1))
        .not_valid_after(now + support.dt.timedelta(days=1))
        .sign(
            load_pem_private_key(support.authority().private_key_pem.bytes(), None),
            support.hashes.SHA256(),
        )
    )
    return Credentials([certificate], key)


def test_a_common_name_does_not_count():
    theirs, _ = refused(server_options(credentials=common_name_only()), client_options())
    assert type(theirs) is errors.WrongName


def test_a_certificate_that_vouches_for_itself_is_refused():
    server = server_options(credentials=Credentials(support.self_signed()))
    theirs, _ = refused(server, client_options())
    assert type(theirs) is errors.SelfSigned
    assert str(theirs) == "the peer's certificate is self-signed"


def test_a_certificate_of_an_unknown_authority_is_refused():
    foreign = support.stranger().issue_cert(HOST)
    server = server_options(credentials=Credentials(pem(foreign)))
    for client in (client_options(), ClientOptions(HOST)):
        theirs, ours = refused(server, client)
        assert type(theirs) is errors.UnknownAuthority
        assert "comes from an unknown authority" in str(theirs)
        assert "unknown ca" in str(ours)


def test_an_expired_certificate_is_refused():
    expired = support.authority().issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC))
    server = server_options()
    # No server of ours would start with it, so it is put in place of the good one.
    loaded = Loaded(
        tuple(load_pem_x509_certificates(expired.cert_chain_pems[0].bytes())),
        load_pem_private_key(expired.private_key_pem.bytes(), None),
        frozenset(),
    )
    made = server._contexts
    made._made[0] = contexts._Pair(lambda: made._make(loaded), single=False)
    made._by_name.clear()
    theirs, ours = refused(server, client_options())
    assert type(theirs) is errors.CertificateExpired
    assert "has expired" in str(theirs)
    assert "expired" in str(ours)


def mutual(mode, **client):
    server = server_options(client_certificate=mode, client_authorities=trust())
    return server, client_options(**client)


@EACH_VERSION
def test_a_client_certificate_is_verified_and_known(version):
    certificate = support.authority().issue_cert("someone@example.org")
    for mode in (ClientCertificate.OPTIONAL, ClientCertificate.REQUIRED):
        ours = Credentials(pem(certificate))
        made = secure(*mutual(mode, credentials=ours, maximum=version))
        loaded = load_pem_x509_certificates(certificate.cert_chain_pems[0].bytes())[0]
        assert made.server.peer_certificate_der == loaded.public_bytes(Encoding.DER)


@EACH_VERSION
def test_an_optional_certificate_may_be_missing(version):
    made = secure(*mutual(ClientCertificate.OPTIONAL, maximum=version))
    assert made.server.peer_certificate_der is None


@EACH_VERSION
def test_a_required_certificate_may_not(version):
    theirs, ours = refused(*mutual(ClientCertificate.REQUIRED, maximum=version))
    assert type(ours) is errors.MissingClientCertificate
    assert str(ours) == "peer did not return a certificate"
    if version is Version.TLS_1_3:
        # The client learns of it after its own handshake.
        assert type(theirs) is errors.MissingClientCertificate
        assert "certificate required" in str(theirs)
    else:
        assert type(theirs) is errors.HandshakeFailed


@EACH_VERSION
def test_a_client_certificate_of_an_unknown_authority_is_refused(version):
    foreign = Credentials(pem(support.stranger().issue_cert("someone@example.org")))
    for mode in (ClientCertificate.OPTIONAL, ClientCertificate.REQUIRED):
        _, ours = refused(*mutual(mode, credentials=foreign, maximum=version))
        assert type(ours) is errors.UnknownAuthority


# -- versions and ciphers


def test_versions_without_overlap_are_refused():
    server = server_options(minimum=Version.TLS_1_3)
    theirs, ours = refused(server, client_options(maximum=Version.TLS_1_2))
    assert (type(theirs), type(ours)) == (errors.HandshakeFailed, errors.HandshakeFailed)
    assert str(ours) == "unsupported protocol"
    assert "protocol version" in str(theirs)
    _, ours = refused(
        server_options(maximum=Version.TLS_1_2), client_options(minimum=Version.TLS_1_3)
    )
    assert str(ours) == "unsupported protocol"


def test_ciphers_without_overlap_are_refused():
    server = server_options(ciphers="ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256")
    _, ours = refused(
        server,
        client_options(
            maximum=Version.TLS_1_2,
            ciphers="ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384",
        ),
    )
    assert str(ours) == "no shared cipher"


def test_arguments_that_contradict_each_other_are_refused_for_engines_too():
    good = server_options()
    for name, wrong in (("ciphers", "NONSENSE"), ("credentials", []), ("minimum", Version.TLS_1_3)):
        options = server_options(maximum=Version.TLS_1_2)
        object.__setattr__(options, name, wrong)
        with pytest.raises(ValueError, match=r"ciphers|needs at least one|must not be below"):
            contexts.ServerContexts(options)
    assert good.engine().failure is None


def test_a_context_that_verifies_names_needs_one():
    with pytest.raises(ValueError, match="hostname is None"):
        Engine.client(client_context(), None)


@EACH_VERSION
def test_what_was_agreed_on_is_known_at_both_ends(version):
    made = secure(server_options(alpn=(b"chat",)), client_options(maximum=version, alpn=(b"chat",)))
    for engine in (made.client, made.server):
        assert engine.version == {Version.TLS_1_2: "TLSv1.2", Version.TLS_1_3: "TLSv1.3"}[version]
        assert engine.alpn == b"chat"
        assert engine.server_name == HOST
    assert made.client.cipher == made.server.cipher
    assert made.client.peer_certificate_der == ssl.PEM_cert_to_DER_cert(
        leaf().cert_chain_pems[0].bytes().decode()
    )


# -- what OpenSSL owes on its own


def key_updates():
    """A server's engine, and the keys of its client, who can say what no library says."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        ours.settimeout(support.PATIENCE)
        theirs.settimeout(support.PATIENCE)
        shaking = pool.submit(wire.TrafficKeys.shake, theirs, client_context("1.3"), HOST)
        engine = SERVER.engine()
        while not engine.is_secure:
            give(engine, ours.recv(65_536))
            ours.sendall(engine.take())
        return engine, shaking.result()


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "left"])
def test_answers_that_nobody_reads_are_bounded(taken):
    engine, keys = key_updates()
    flood = [keys.key_updates(500) for _ in range(30)]
    unsent = 1
    for updates in flood:
        engine.receive(updates)
        assert engine.owes or engine.ended
        if taken:
            unsent += len(engine.take(unsent))
        if engine.ended:
            break
    assert type(engine.failure) is errors.TLSError
    assert str(engine.failure) == "the peer reads no answers to its key updates"
    assert unsent + len(engine.take()) < 2 * LARGEST_DEBT


def test_answers_that_are_read_have_no_bound():
    engine, keys = key_updates()
    for _ in range(30):
        assert engine.receive(keys.key_updates(500) + keys.record(23, b"data")) == b"data"
        assert engine.owes
        assert engine.take(unsent=0)
    assert engine.failure is None


def test_an_answer_that_is_owed_goes_before_the_data_that_is_written_next():
    engine, keys = key_updates()
    engine.receive(keys.key_updates(1))
    sent = engine.encrypt(b"data")
    assert len(sent) == (5 + 5 + 1 + 16) + (5 + 4 + 1 + 16)
    assert engine.take() == b""


# -- sessions


def come_back(version, server, times=2, **context):
    """Connect so often with the session of the time before; return which were resumed."""
    client = client_context({Version.TLS_1_2: "1.2", Version.TLS_1_3: "1.3"}[version])
    for name, value in context.items():
        setattr(client, name, value)
    session = None
    resumed = []
    for _ in range(times):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client.wrap_bio(incoming, outgoing, server_hostname=HOST, session=session)
        engine = server.engine()
        while not (engine.is_secure and tls.version() and not outgoing.pending):
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            give(engine, outgoing.read())
            incoming.write(engine.take())
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        # What came with the handshake, and then a line there and back.
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.read()
        tls.write(b"hello")
        assert give(engine, outgoing.read()) == b"hello"
        incoming.write(engine.encrypt(b"world"))
        assert tls.read() == b"world"
        engine.close()
        incoming.write(engine.take())
        with contextlib.suppress(ssl.SSLError):
            tls.unwrap()
        session = tls.session
        resumed.append(tls.session_reused)
        assert engine.failure is None
        assert engine.tls.session_reused == tls.session_reused
    return resumed


@EACH_VERSION
def test_who_comes_back_shakes_hands_in_full(version):
    assert come_back(version, server_options(), 4) == [False] * 4


def test_who_comes_back_without_tickets_shakes_hands_in_full():
    """The standard library's session ids cannot be switched off."""
    with_none = ssl.create_default_context().options | ssl.OP_NO_TICKET
    assert come_back(Version.TLS_1_2, server_options(), 4, options=with_none) == [False] * 4


@EACH_VERSION
def test_with_sessions_the_handshake_is_shorter(version):
    for arguments in (
        {},
        {"client_certificate": ClientCertificate.OPTIONAL, "client_authorities": trust()},
    ):
        assert come_back(version, server_options(sessions=True, **arguments)) == [False, True]


def test_sessions_that_nobody_may_resume_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(contexts, "_SESSIONS", 3)
    server = server_options()
    kept = set()
    for _ in range(10):
        made = secure(server, CLIENTS[Version.TLS_1_2])
        made.server.close()
        made.client.close()
        made.run()
        kept.add(made.server.tls.context.session_stats()["number"])
    assert max(kept) <= 4


# -- certificates that are renewed


class Renewed:
    """A server whose files change, and a clock."""

    def __init__(self, folder):
        self.folder = folder
        self.now = 0.0
        self.old = support.authority().issue_cert(HOST)
        self.files = support.write(folder, self.old)
        self.options = server_options(credentials=Credentials(*self.files))
        made = self.options._contexts
        for watched in (*made._watched, made._authorities):
            watched.now = lambda: self.now
            watched._looked = 0.0

    def serial(self):
        made = secure(self.options)
        return load_der_x509_certificate(made.client.peer_certificate_der).serial_number


def serial_of(certificate):
    return load_pem_x509_certificates(certificate.cert_chain_pems[0].bytes())[0].serial_number


def test_new_handshakes_see_a_renewed_pair_and_old_connections_live_on(tmp_path):
    server = Renewed(tmp_path)
    old = secure(server.options)
    new = support.authority().issue_cert(HOST)
    support.write(tmp_path, new)
    assert server.serial() == serial_of(server.old)
    server.now = 1.0
    assert server.serial() == serial_of(new)
    old.say(b"still")
    assert old.to_server == b"still"


def test_a_half_written_pair_keeps_the_old_one(tmp_path):
    server = Renewed(tmp_path)
    new = support.authority().issue_cert(HOST)
    certificate, key = server.files
    certificate.write_bytes(b"".join(one.bytes() for one in new.cert_chain_pems))
    for content in (None, b"half", new.private_key_pem.bytes()[:100]):
        if content is not None:
            key.write_bytes(content)
        server.now += 1.0
        assert server.serial() == serial_of(server.old)
    key.write_bytes(new.private_key_pem.bytes())
    server.now += 1.0
    assert server.serial() == serial_of(new)


def test_other_authorities_are_trusted_by_new_handshakes_only_when_they_can_be_loaded(
    tmp_path, monkeypatch
):
    """While no descriptor is free the old ones stay, and every handshake tries again."""
    authorities = tmp_path / "clients.pem"
    authorities.write_bytes(trust())
    server = server_options(
        client_certificate=ClientCertificate.REQUIRED,
        client_authorities=authorities,
        reload_interval=1e-9,
    )
    ours = client_options(credentials=Credentials(pem(leaf("someone.example.org"))))
    foreign = Credentials(pem(support.stranger().issue_cert("someone@example.org")))
    theirs = client_options(credentials=foreign)
    secure(server, ours)
    authorities.write_bytes(support.stranger().cert_pem.bytes())

    def none_free(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as without:
        without.setattr(os, "memfd_create", none_free, raising=False)
        without.setattr(tempfile, "tempdir", str(tmp_path / "none"))
        secure(server, ours)
    secure(server, theirs)
    _, refusal = refused(server, ours)
    assert type(refusal) is errors.UnknownAuthority


def test_keys_in_memory_leave_no_file_behind(monkeypatch, tmp_path):
    """Also where the system has no files in memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    secure(server_options())
    monkeypatch.delattr(os, "memfd_create", raising=False)
    secure(server_options())
    assert list(tmp_path.iterdir()) == []


# -- one context, as the facade has it


@EACH_VERSION
def test_a_context_of_the_application_serves_as_well(version):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf().configure_cert(context)
    asked = []
    context.sni_callback = lambda tls, name, _: asked.append((type(tls), name))
    made = Link(CLIENTS[version].engine(), Engine.server(OneContext(context))).run()
    made.say(b"hello")
    assert made.to_server == b"hello"
    assert asked == [(ssl.SSLObject, HOST)]
    assert made.server.tls.context is context
