"""
Length prefixes and netstrings against Twisted's own receivers, and varints against a simple decoder:
the same bytes, cut at random, give the same messages, and the same end of the connection.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.protocols import basic

from txasynchat import AsyncChat, LengthPrefix, MalformedMessage, MessageTooLong, Netstring, State

LIMIT = 40

numbers = st.one_of(st.integers(0, 60), st.integers(0, 2**70))
bodies = st.binary(max_size=50)
noise = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b":", b",", b"0", b"00:", b"0:", b"0:,", b"3:abc", b"3:abcd,", b" 1:a,"]),
    st.sampled_from(
        [b"+1:a,", b"-1:a,", b"1_0:", b"1:a,", b"9" * 30, b"41:", b"40:", b"\x80" * 12]
    ),
)
cuts = st.lists(st.integers(1, 30), min_size=1, max_size=5)


class Native(AsyncChat):
    def __init__(self):
        self.messages = []

    def message_received(self, message):
        self.messages.append(message)


def cut(data, sizes):
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        yield data[:size]
        data = data[size:]
        turn += 1


def native(terminator, chunks):
    chat = type("Handler", (Native,), {"terminator": terminator})()
    chat.makeConnection(StringTransport())
    for chunk in chunks:
        chat.dataReceived(chunk)
    return chat


def twisted_messages(receiver, chunks):
    messages = []
    receiver.stringReceived = messages.append
    transport = StringTransport()
    receiver.makeConnection(transport)
    for chunk in chunks:
        if transport.disconnecting:
            break
        receiver.dataReceived(chunk)
    return messages, transport.disconnecting


@given(parts=st.lists(bodies.map(Netstring().pack) | noise, max_size=8), cuts=cuts)
def test_netstrings_are_those_of_twisted(parts, cuts):
    data = b"".join(parts)
    receiver = basic.NetstringReceiver()
    receiver.MAX_LENGTH = LIMIT
    messages, ended = twisted_messages(receiver, cut(data, cuts))
    chat = native(Netstring(limit=LIMIT), cut(data, cuts))
    assert chat.messages == messages
    if ended and chat.state is State.OPEN:
        chat.dataReceived(
            b":"
        )  # Twisted does not wait for the colon behind a length that is too long
    assert (chat.state is not State.OPEN) is bool(ended)


@pytest.mark.parametrize(
    ("layout", "receiver"),
    [
        ("B", basic.Int8StringReceiver),
        ("!H", basic.Int16StringReceiver),
        ("!I", basic.Int32StringReceiver),
    ],
)
@given(parts=st.lists(bodies, max_size=8), noise=st.binary(max_size=6), cuts=cuts)
def test_prefixed_strings_are_those_of_twisted(layout, receiver, parts, noise, cuts):
    packed = LengthPrefix(layout)
    data = b"".join([*map(packed.pack, parts), noise])
    theirs = receiver()
    theirs.MAX_LENGTH = LIMIT
    messages, ended = twisted_messages(theirs, cut(data, cuts))
    chat = native(LengthPrefix(layout, limit=LIMIT), cut(data, cuts))
    assert chat.messages == messages
    assert (chat.state is not State.OPEN) is bool(ended)


def varint(number):
    """Encode *number* the way that protobuf's documentation describes."""
    groups = []
    while number or not groups:
        groups.append(number & 0x7F)
        number >>= 7
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def decode(data):
    """Return the messages that *data* begins with, and the reason why they end there."""
    messages = []
    while data:
        size = next((at for at, byte in enumerate(data[:10], 1) if byte < 0x80), None)
        if size is None:
            return messages, MalformedMessage if len(data) >= 10 else None
        length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data[:size]))
        if length > LIMIT:
            return messages, MessageTooLong
        if len(data) < size + length:
            break
        messages.append(data[size : size + length])
        data = data[size + length :]
    return messages, None


@given(
    parts=st.lists(
        bodies.map(LengthPrefix("varint").pack) | numbers.map(varint) | noise, max_size=8
    ),
    cuts=cuts,
)
def test_varint_prefixes_are_read_as_protobuf_writes_them(parts, cuts):
    data = b"".join(parts)
    messages, reason = decode(data)
    chat = native(LengthPrefix("varint", limit=LIMIT), cut(data, cuts))
    assert chat.messages == messages
    assert (None if chat.close_reason is None else type(chat.close_reason)) is reason


@given(length=st.integers(0, 300) | st.sampled_from([16_383, 16_384, 2**21 - 1, 2**21]))
def test_varint_prefixes_are_written_as_protobuf_does(length):
    framed = LengthPrefix("varint", limit=None).pack(bytes(length))
    assert framed == varint(length) + bytes(length)


@given(body=bodies)
def test_what_is_packed_is_what_twisted_sends(body):
    transport = StringTransport()
    for receiver, terminator in (
        (basic.NetstringReceiver(), Netstring()),
        (basic.Int8StringReceiver(), LengthPrefix("B")),
        (basic.Int16StringReceiver(), LengthPrefix("!H")),
        (basic.Int32StringReceiver(), LengthPrefix("!I")),
    ):
        receiver.makeConnection(transport)
        receiver.sendString(body)
        assert transport.value() == terminator.pack(body)
        transport.clear()
