"""
`PyOpenSSLEngine`: the engine of connections whose options are Twisted's, on pyOpenSSL.

To its owner it is an `Engine`: the same methods and attributes, the same errors. It is not as fast,
because pyOpenSSL reports "nothing more" by an exception each time, and it lets the application's own
callbacks decide about certificates, names and protocols.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL, crypto

from txasynchat.errors import (
    HandshakeFailed,
    MissingClientCertificate,
    NotAClientHello,
    TLSError,
    TruncatedConnection,
)
from txasynchat.tls.clienthello import HelloReader
from txasynchat.tls.engine import LARGEST_DEBT, LARGEST_READ, RECORD

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PyOpenSSLEngine"]

#: A record with its header and expansion (RFC 8446, section 5.2).
_WHOLE_RECORD = RECORD + 512


class PyOpenSSLEngine:
    """
    One TLS connection; see `Engine` for what is not described here.

    Args:
        make: makes pyOpenSSL's connection. For a server it is called when the ClientHello is complete.
        is_server: this side waits for the ClientHello.

    Attributes:
        tls: pyOpenSSL's connection; None before it is made.
    """

    __slots__ = (
        *("_debt", "_make", "_reader", "can_write", "ended", "failure", "is_secure", "is_server"),
        *("more", "owes", "peer_closed", "tls", "write_closed"),
    )

    def __init__(self, make: Callable[[], SSL.Connection], *, is_server: bool) -> None:
        self.is_server = is_server
        self.is_secure = self.can_write = False
        self.ended = self.peer_closed = self.write_closed = False
        self.owes = self.more = False
        self.failure: TLSError | None = None
        self._make = make
        self._reader = HelloReader() if is_server else None
        self._debt = 0
        self.tls: Any = None if is_server else make()

    # -- the handshake

    def feed(self, data: bytes) -> bool:
        """
        Take ciphertext while the handshake goes on; return whether `shake_hands` has a step to do.
        """
        if self._reader is None:
            self.tls.bio_write(data)
            return True
        try:
            return self._reader.feed(data)
        except NotAClientHello:
            return True  # OpenSSL says best what is wrong with it

    def shake_hands(self) -> bool:
        """
        Do the next step of the handshake; return whether it is done.

        Raises:
            Exception: what the application's options raised.
        """
        reader, self._reader = self._reader, None
        if self.tls is None:
            self.tls = self._make()
        if reader is not None and reader.received:
            self.tls.bio_write(reader.received)
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self._fail_because(error)
        else:
            self.is_secure = self.can_write = True
        self.owes = True
        return self.is_secure

    # -- data

    def receive(self, data: bytes) -> bytes:
        """Take ciphertext, and return the plaintext in it."""
        if self.ended:
            return b""
        if data:
            self.tls.bio_write(data)
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
            self._fail_because(error)
        self.owes = True
        return b"".join(pieces)

    def encrypt(self, data: bytes | memoryview) -> bytes:
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
            self._fail_because(error)
            return b""
        return self._read_all()

    def take(self, unsent: int = 0) -> bytes:
        """Return what has to be sent besides data, and count it while there is something *unsent*."""
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

    # -- the end

    def close(self) -> None:
        """Make close_notify, for `take`; nothing can be written after it, and reading goes on."""
        if self.can_write:
            self.can_write = False
            self.write_closed = self.owes = True
            with suppress(SSL.Error):
                self.tls.shutdown()

    def end_of_stream(self, what: str = "the peer stopped sending") -> None:
        """Note that no more ciphertext will come: a failure, unless the peer sent close_notify."""
        if self.is_secure:
            self._fail(TruncatedConnection(f"no end of TLS before this: {what}"))
        else:
            self._fail(HandshakeFailed("the peer left during the handshake"))

    def _fail_because(self, error: SSL.Error) -> None:
        self._fail(_explain(error, is_secure=self.is_secure))

    def _fail(self, failure: TLSError) -> None:
        if not self.ended:
            self.ended = True
            self.failure = failure
            self.can_write = self.more = False

    # -- what the two ends agreed on

    @property
    def version(self) -> str:
        """``"TLSv1.2"`` or ``"TLSv1.3"``."""
        version: str = self.tls.get_protocol_version_name()
        return version

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the cipher suite."""
        name: str | None = self.tls.get_cipher_name()
        return name

    @property
    def alpn(self) -> bytes | None:
        """The protocol that was negotiated; None for none."""
        return None if self.tls is None else self.tls.get_alpn_proto_negotiated() or None

    @property
    def server_name(self) -> str | None:
        """The name that the client asks for; None if it asks for none."""
        name = self.tls.get_servername()
        return None if name is None else name.decode("ascii", "replace")

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The peer's certificate; None if it sent none."""
        found = None if self.tls is None else self.tls.get_peer_certificate()
        return None if found is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, found)


def _explain(error: SSL.Error, *, is_secure: bool) -> TLSError:
    queue = error.args[0] if error.args else ()
    # An empty queue is what OpenSSL 4 leaves at an unexpected end.
    text = str(queue[-1][2]) if queue and not isinstance(error, SSL.SysCallError) else ""
    if (not text or text.casefold().startswith("unexpected eof")) and not is_secure:
        return HandshakeFailed("the peer left during the handshake")
    if "certificate required" in text or "did not return a certificate" in text:
        return MissingClientCertificate(text)
    text = text or type(error).__name__
    return TLSError(text) if is_secure else HandshakeFailed(text)
