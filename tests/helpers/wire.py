"""
TLS by hand: clients as bytes on the wire, and bytes that no library's client sends.

Nothing here needs Twisted: both the native side and the facade are tried with it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

PATIENCE = 20.0

#: Bytes that are not a handshake: each must end its own connection, and only that one.
HOSTILE = {
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: chat.example.org\r\n\r\n",
    "plain SMTP": b"EHLO chat.example.org\r\n",
    "a hello in the style of SSLv2": bytes.fromhex(
        "802e0100020015000000100100800300800700c0060040020080040080"
        "0000000102030405060708090a0b0c0d0e0f10"
    ),
    "an SSLv3 hello": bytes.fromhex("160300002f0100002b0300") + bytes(32) + b"\0\0\4\0\5\0\x0a\1\0",
    "a record that is too long": b"\x16\x03\x01\x48\x01" + b"\1\0\x48\xfd" + bytes(18_429),
    "16 KiB and one byte": b"\x16\x03\x01\x40\x01" + b"\1\0\x3f\xfd" + bytes(16_381),
    "a record of an unknown type": b"\x63\x03\x01\x00\x05hello",
    "data before the handshake": b"\x17\x03\x03\x00\x05hello",
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "empty records": b"\x16\x03\x01\x00\x00" * 100,
    "empty data records": b"\x17\x03\x03\x00\x00" * 100,
    "zeros": bytes(65_536),
    "a hello that promises 16 MiB": b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
}


def _more(sock, most=65536):
    data = sock.recv(most)
    if not data:
        raise ConnectionError("the peer ended too early")
    return data


class Memory:
    """A client of the standard library on memory buffers: what it would send, as bytes."""

    def __init__(self, context, hostname):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=hostname)
        self.ended = False  # by close_notify
        self._last_flight_is_ours = context.maximum_version == ssl.TLSVersion.TLSv1_2

    def hello(self):
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return self.outgoing.read()
        raise AssertionError("a client waits after its hello")

    def shake(self, sock):
        """Perform the handshake up to our last flight, which is returned instead of sent."""
        sock.sendall(self.hello())
        while True:
            self.incoming.write(_more(sock))
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                flight = self.outgoing.read()
                if flight:
                    if self._last_flight_is_ours:
                        return flight
                    sock.sendall(flight)
            else:
                return self.outgoing.read()

    def finish(self, sock):
        """Perform the handshake, or the rest of it."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(self.outgoing.read())
                self.incoming.write(_more(sock))
            else:
                sock.sendall(self.outgoing.read())
                return

    def encrypt(self, data):
        self.tls.write(data)
        return self.outgoing.read()

    def goodbye(self):
        """Our close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    def read(self, sock, size):
        """Read so many bytes of plain text, or all before the end."""
        data = bytearray()
        while len(data) < size and not self.ended:
            try:
                piece = self.tls.read(min(65_536, size - len(data)))
                data += piece
                self.ended = not piece
            except ssl.SSLZeroReturnError:  # after our own close_notify
                self.ended = True
            except ssl.SSLWantReadError:
                piece = sock.recv(65536)
                if not piece:
                    break
                self.incoming.write(piece)
        return bytes(data)


def one_byte_records(hello):
    """Cut a hello into as many records as it has bytes."""
    body = hello[5:]
    return b"".join(b"\x16\x03\x01\0\1" + body[at : at + 1] for at in range(len(body)))


def raw(address):
    """Open a plain connection to a port of this host, or to an address."""
    if isinstance(address, int):
        address = ("127.0.0.1", address)
    sock = socket.create_connection(address, PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def raw_from(host, port):
    """Open a plain connection to a port of this host, from another of its addresses."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(host, 0))


def reset(sock):
    """End a connection by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def drain(sock):
    """Read until the other side ends the connection, orderly or not."""
    data = bytearray()
    with sock, contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return bytes(data)


def after_a_slow_read(sock, sizes, limit, then):
    """
    Read pieces of so many bytes, with pauses of a tenth of *limit*, and return what *then* returns.

    Returns:
        None if that failed, and the machine held up the reader for so long that *limit*, the other
        side's for one piece, may have passed.
    """
    longest = 0.0
    began = time.monotonic()

    def done():
        nonlocal longest, began
        longest, began = max(longest, time.monotonic() - began), time.monotonic()

    try:
        for size in sizes:
            left = size
            while left:
                left -= len(_more(sock, min(left, 65536)))
            time.sleep(limit / 10)
            done()
        return then(sock)
    except OSError:
        done()
        if longest < limit / 2:
            raise
        return None


class TrafficKeys:
    """The sending side of TLS 1.3 by hand (RFC 8446, section 7), to send what no library sends."""

    def __init__(self, secret, suite):
        self.hash = SHA384() if "384" in suite else SHA256()
        self.cipher = ChaCha20Poly1305 if "CHACHA" in suite else AESGCM
        self.key_size = 16 if "128" in suite else 32
        self.start(secret)

    @classmethod
    def shake(cls, sock, context, hostname):
        """Perform a TLS 1.3 handshake, then take over the sending side."""
        with tempfile.NamedTemporaryFile() as log:
            context.keylog_filename = log.name
            memory = Memory(context, hostname)
            sock.sendall(memory.shake(sock))
            secret = re.search(rb"CLIENT_TRAFFIC_SECRET_0 \S+ (\S+)", Path(log.name).read_bytes())
        return cls(bytes.fromhex(secret[1].decode()), memory.tls.cipher()[0])

    def start(self, secret):
        self.secret = secret
        self.aead = self.cipher(self.expand(b"key", self.key_size))
        self.iv = int.from_bytes(self.expand(b"iv", 12))
        self.sequence = 0

    def expand(self, label, size):
        label = b"tls13 " + label
        info = struct.pack(">HB", size, len(label)) + label + b"\0"
        return HKDFExpand(self.hash, size, info).derive(self.secret)

    def update(self):
        self.start(self.expand(b"traffic upd", self.hash.digest_size))

    def key_updates(self, count):
        """Return so many key updates, each of which asks for one in return."""
        records = []
        for _ in range(count):
            records.append(self.record(22, b"\x18\0\0\1\1"))
            self.update()
        return b"".join(records)

    def record(self, kind, data):
        header = b"\x17\3\3" + struct.pack(">H", len(data) + 17)
        nonce = (self.iv ^ self.sequence).to_bytes(12)
        self.sequence += 1
        return header + self.aead.encrypt(nonce, data + bytes((kind,)), header)


def ask_for_renegotiation(port):
    """Return what ``openssl s_client`` prints after an echoed line and a request to renegotiate 1.2."""
    with subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as client:
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        said = b""
        while not said.endswith(b"\nhello\n"):
            said += client.stdout.readline()
        client.stdin.write(b"R\n")
        client.stdin.flush()
        return client.stdout.read().lower()
