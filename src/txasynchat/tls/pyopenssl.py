"""
`PyOpenSSLEngine`: the engine of connections whose options are Twisted's, on pyOpenSSL.

To its owner it is an `Engine`, with the same errors. It is not as fast, because pyOpenSSL reports
"nothing more" by an exception each time, and it lets the application's own callbacks decide about
certificates, names and protocols.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL, crypto
from typing_extensions import override

from txasynchat.errors import HandshakeFailed, MissingClientCertificate, TLSError
from txasynchat.tls.clienthello import HelloReader
from txasynchat.tls.engine import LARGEST_DEBT, LARGEST_READ, RECORD, Engine

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PyOpenSSLEngine"]

#: A record with its header and expansion (RFC 8446, section 5.2).
_WHOLE_RECORD = RECORD + 512


class PyOpenSSLEngine(Engine):
    """
    One TLS connection; see `Engine`.

    Args:
        make: makes pyOpenSSL's connection. For a server it is called when the ClientHello is complete.
        is_server: this side waits for the ClientHello.

    Attributes:
        tls: pyOpenSSL's connection; None before it is made.
    """

    __slots__ = ("_make",)

    tls: Any

    def __init__(self, make: Callable[[], SSL.Connection], *, is_server: bool) -> None:
        super().__init__()
        self.is_server = is_server
        self._make = make
        if is_server:
            self._reader = HelloReader()
        else:
            self._connect()

    def _connect(self) -> None:
        if self.tls is None:
            self.tls = self._make()
        self._feed = self.tls.bio_write

    @override
    def shake_hands(self) -> bool:
        """
        Do the next step of the handshake; return whether it is done.

        Raises:
            Exception: what the application's options raised.
        """
        reader, self._reader = self._reader, None
        if reader is not None:
            self._connect()
            self._feed(reader.received)
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self._explain(error)
        else:
            name = self.tls.get_servername()
            self.server_name = None if name is None else name.decode("ascii", "replace")
            self.is_secure = self.can_write = True
        self.owes = True
        return self.is_secure

    @override
    def receive(self, data: bytes) -> bytes:
        if self.ended:
            return b""
        if data:
            self._feed(data)
        pieces = []
        room = LARGEST_READ
        self.more = False
        try:
            while room > 0:
                pieces.append(self.tls.recv(RECORD))
                room -= len(pieces[-1])
            self.more = True
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.ended = self.peer_closed = True
        except SSL.Error as error:
            self._explain(error)
        self.owes = True
        return b"".join(pieces)

    @override
    def encrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        """
        Return the ciphertext of *data*, of which no more than `RECORD` bytes are taken.

        Returns:
            nothing if nothing was taken.
        """
        if not self.can_write or not data:
            return b""
        try:
            self.tls.send(data[:RECORD])
        except SSL.WantReadError:  # the peer renegotiates TLS 1.2, and the options allow it
            self.owes = True
            return b""
        except SSL.Error as error:
            self._explain(error)
            return b""
        return self._read_all()

    @override
    def take(self, unsent: int = 0) -> bytes:
        data = self._read_all()
        self.owes = False
        self._debt = self._debt + len(data) if unsent and self.is_secure else 0
        if self._debt > LARGEST_DEBT:
            self._fail(TLSError("the peer reads no answers to its key updates"))
        return data

    def _read_all(self) -> bytes:
        records = []
        if self.tls is not None:
            with suppress(SSL.Error):  # which says that there is no more
                while True:
                    records.append(self.tls.bio_read(_WHOLE_RECORD))
        return b"".join(records)

    @override
    def _say_goodbye(self) -> None:
        self.can_write = False
        self.owes = True
        with suppress(SSL.Error):
            self.tls.shutdown()

    def _explain(self, error: SSL.Error) -> None:
        """Fail because of *error*."""
        queue = error.args[0] if error.args else ()
        # An empty queue is what OpenSSL 4 leaves at an unexpected end.
        text = str(queue[-1][2]) if queue and not isinstance(error, SSL.SysCallError) else ""
        if "certificate required" in text or "did not return a certificate" in text:
            self._fail(MissingClientCertificate(text))
        elif self.is_secure:
            self._fail(TLSError(text or type(error).__name__))
        elif not text or text.casefold().startswith("unexpected eof"):
            self._fail(HandshakeFailed("the peer left during the handshake"))
        else:
            self._fail(HandshakeFailed(text))
        self.owes = True  # an alert

    @property
    @override
    def version(self) -> str:
        version: str = self.tls.get_protocol_version_name()
        return version

    @property
    @override
    def cipher(self) -> str | None:
        name: str | None = self.tls.get_cipher_name()
        return name

    @property
    @override
    def alpn(self) -> bytes | None:
        return None if self.tls is None else self.tls.get_alpn_proto_negotiated() or None

    @property
    @override
    def peer_certificate_der(self) -> bytes | None:
        found = None if self.tls is None else self.tls.get_peer_certificate()
        return None if found is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, found)
