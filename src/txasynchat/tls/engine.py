"""
`Engine`: one TLS connection without I/O. Ciphertext goes in, plaintext and ciphertext come out.

Theory of operation
===================

OpenSSL, by the standard library's `ssl.SSLObject`, works between two buffers (`ssl.MemoryBIO`). Whoever
owns the connection puts into one what arrives, and sends what is found in the other. This class knows
no socket, no transport, no clock and no options: it says what happened, and its owner decides.

*Errors are state, not exceptions.* After each call the owner looks at `Engine.ended`, and then at
`Engine.failure`. What was decrypted before a failure is returned before it is told of, and no traceback
keeps the connection's memory.

*Handshake.* A server reads the ClientHello itself and starts OpenSSL only when it is complete, because
the standard library cannot refuse a client that speaks none of our protocols, prints a traceback for a
server name that is not ASCII, and OpenSSL takes 30 KB for a client that says nothing. So `Contexts`
chooses by the hello, or refuses; the alert for that is one record, in the clear. What is not a
ClientHello goes to OpenSSL all the same, which says best what is wrong with it, and goes no further
even if OpenSSL would. `Engine.shake_hands` does one step each time, so its owner decides when.

*Sessions.* The standard library cannot switch off the session ids of TLS 1.2. If OpenSSL takes one up
and the options forbid it, nothing was sent yet: the hello is given to another context, which does not
know that session.

*Reading.* OpenSSL reports "nothing more" by an exception, which costs more than decrypting a short
message. So the buffer is asked how much is left in it, and the exception comes only when the last
record is cut, or had no data in it (a ticket, a key update).

*What OpenSSL owes.* Key updates, and requests for a renegotiation, make OpenSSL answer on its own. A
peer that asks without reading the answers would fill our memory: `Engine.take` counts what it gives
while something is unsent, and `Engine.receive` fails the connection above `LARGEST_DEBT`.

*Ending.* The two directions end by themselves, each by its close_notify. A stream that ends without
one was truncated.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from txasynchat.errors import (
    HandshakeFailed,
    NoCommonProtocol,
    NotAClientHello,
    TLSError,
    TruncatedConnection,
    UnknownServerName,
)
from txasynchat.tls.clienthello import HelloReader
from txasynchat.tls.failures import explain

if TYPE_CHECKING:
    from collections.abc import Callable

    from txasynchat.tls.clienthello import ClientHello

__all__ = [
    "LARGEST_DEBT",
    "LARGEST_READ",
    "LARGEST_WRITE",
    "RECORD",
    "Contexts",
    "Engine",
    "OneContext",
]

#: The largest plaintext of one record (RFC 8446, section 5.1).
RECORD: Final = 16_384
#: Bytes of plaintext that one `Engine.encrypt` takes.
LARGEST_WRITE: Final = 65_536
#: Bytes of plaintext above which one `Engine.receive` leaves the rest for the next. Whoever passes on
#: no more than 64 KiB at once meets it only when more than that came behind the peer's handshake.
LARGEST_READ: Final = 131_072
#: Bytes that OpenSSL is given at once. It costs a tenth of a long transfer, and saves 100 KiB for each
#: connection that ever had one.
_SLICE: Final = 16_384 + 256
#: Bytes that OpenSSL may have to say on its own (answers to key updates) to a peer that does not read:
#: enough for ten thousand of them.
LARGEST_DEBT: Final = 262_144

#: What a record of data begins with.
_HEADER: Final = b"\x17\3\3"
# Alerts (RFC 8446, section 6).
_DECODE_ERROR: Final = 50
_UNRECOGNIZED_NAME: Final = 112
_NO_APPLICATION_PROTOCOL: Final = 120


class Contexts(Protocol):
    """What a server's engine asks when it has read a ClientHello."""

    def choose(self, hello: ClientHello | None) -> ssl.SSLContext:
        """
        Return the context for this client.

        Args:
            hello: what the client said; None if that is not a ClientHello. Then the context serves
                only to find out what is wrong with it.

        Raises:
            UnknownServerName: to refuse the name that the client asks for.
            NoCommonProtocol: to refuse the protocols that it offers.
        """

    def instead(self, hello: ClientHello) -> ssl.SSLContext | None:
        """
        Return a context that does not know the sessions of the one that was chosen.

        Returns:
            None if clients may resume their sessions.
        """

    def check(self, hello: ClientHello, alpn: bytes | None) -> TLSError | None:
        """Return what is wrong after a handshake that OpenSSL accepts; None if nothing is."""


class OneContext:
    """The same context for every client: `Contexts` of whoever has only a `ssl.SSLContext`."""

    __slots__ = ("_context",)

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def choose(self, hello: ClientHello | None) -> ssl.SSLContext:  # noqa: ARG002 see Contexts
        """Return the context."""
        return self._context

    def instead(self, hello: ClientHello) -> None:
        """Return None: what the context does about sessions stands."""

    def check(self, hello: ClientHello, alpn: bytes | None) -> None:
        """Return None: what the context accepts stands."""


class Engine:
    """
    One TLS connection, made by `server` or `client`. Not for two threads at once.

    The owner's part: until `is_secure`, give what arrives to `feed`, call `shake_hands` when that
    returns True (a client also at the beginning), and send what `take` returns. From then on give it to
    `receive`, which returns plaintext, and write by `encrypt`; send what `take` returns whenever `owes`
    is set. Look at `ended` after each of these. When the stream is over, call `end_of_stream`.

    Attributes:
        is_server: this side waits for the ClientHello.
        is_secure: the handshake is done, and nothing was wrong with it.
        can_write: `encrypt` takes plaintext.
        ended: no more plaintext will come: the peer sent close_notify, or *failure* happened.
        failure: what went wrong. Where OpenSSL said so, the `ssl.SSLError` is its ``__cause__``.
        peer_closed: the peer sent close_notify.
        write_closed: we did.
        owes: `take` has something.
        more: `receive` stopped at `LARGEST_READ`; call it again, with no bytes, for the rest.
        server_name: the name that the client asks for; None if it asks for none, or not yet.
        tls: the `ssl.SSLObject`; None before a server's ClientHello is complete.
    """

    __slots__ = (
        "__weakref__",
        "_can_read",
        "_check",
        "_contexts",
        "_debt",
        "_doubt",
        "_fed",
        "_feed",
        "_head",
        "_hello",
        "_incoming",
        "_missing",
        "_outgoing",
        "_read",
        "_reader",
        "_take",
        "_verified_name",
        "_write",
        "can_write",
        "ended",
        "failure",
        "is_secure",
        "is_server",
        "more",
        "owes",
        "peer_closed",
        "server_name",
        "tls",
        "write_closed",
    )

    _read: Callable[[int], bytes]
    _write: Callable[[Any], int]

    def __init__(self) -> None:
        self.is_server = False
        self.is_secure = False
        self.can_write = False
        self.ended = False
        self.failure: TLSError | None = None
        self.peer_closed = False
        self.write_closed = False
        self.owes = False
        self.more = False
        self.server_name: str | None = None
        self.tls: ssl.SSLObject | None = None
        # The handshake is done, and the peer's direction is open.
        self._can_read = False
        # A server's, until OpenSSL is started; what it found wrong with the client's bytes; how many
        # it got.
        self._reader: HelloReader | None = None
        self._doubt: NotAClientHello | None = None
        self._fed = 0
        # A server's, until the handshake is done.
        self._contexts: Contexts | None = None
        self._hello: ClientHello | None = None
        # A client's: the name in the server's certificate, and what is asked after the handshake.
        self._verified_name = ""
        self._check: Callable[[bytes | None], TLSError | None] | None = None
        # Of the record that a large piece of ciphertext ended in: the bytes missing, or its header.
        self._missing = 0
        self._head = b""
        # What OpenSSL had to say on its own since the peer last read everything.
        self._debt = 0
        self._set_buffers()

    def __repr__(self) -> str:
        state = "ended" if self.ended else "secure" if self.is_secure else "in handshake"
        return f"<Engine of a {'server' if self.is_server else 'client'}, {state}>"

    @classmethod
    def server(cls, contexts: Contexts) -> Engine:
        """
        Make a server's engine.

        Args:
            contexts: asked when the ClientHello is complete.
        """
        engine = cls()
        engine.is_server = True
        engine._contexts = contexts
        engine._reader = HelloReader()
        return engine

    @classmethod
    def client(
        cls,
        context: ssl.SSLContext,
        hostname: str | None,
        check: Callable[[bytes | None], TLSError | None] | None = None,
    ) -> Engine:
        """
        Make a client's engine.

        Args:
            context: verifies *hostname* if it has ``check_hostname``.
            hostname: a name, which the server is told, or an IP address, which it is not.
            check: called after the handshake with the ALPN protocol, or None; returns what is wrong.

        Raises:
            ValueError: *context* verifies names, and *hostname* is missing; or it is not one.
        """
        if context.check_hostname and not hostname:
            # Some patch releases of Python accept any name then.
            raise ValueError(f"hostname is {hostname!r}, and the context verifies it")
        engine = cls()
        engine._check = check
        engine._start(context, hostname)
        engine._verified_name = getattr(engine.tls, "server_hostname", None) or ""
        if engine._verified_name and not _ADDRESS.fullmatch(engine._verified_name):
            engine.server_name = engine._verified_name
        return engine

    # -- the handshake

    def feed(self, data: bytes) -> bool:
        """
        Take ciphertext while the handshake goes on; return whether `shake_hands` has a step to do.
        """
        if self.ended:
            return False
        if self._reader is None:
            self._feed(data)
            return True
        self._fed += len(data)
        try:
            return self._reader.feed(data)
        except NotAClientHello as error:
            self._doubt = error.with_traceback(None)
            return True

    def shake_hands(self) -> bool:
        """
        Do the next step of the handshake, as far as what was fed allows; return whether it is done.

        Then `receive` may have plaintext already, without more bytes. Before a server's ClientHello
        is complete this does nothing.
        """
        if self.is_secure or self.ended:
            return self.is_secure
        if self._reader is not None:
            self._answer_hello(self._reader)
        else:
            self._step()
        self.owes = self._outgoing.pending > 0
        return self.is_secure

    @property
    def backlog(self) -> int:
        """
        The bytes that were fed and that `shake_hands` has not seen. Owners bound it: no peer has a
        reason to send more before it is answered.
        """
        return self._incoming.pending if self._reader is None else self._fed

    def _set_buffers(self) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._feed = self._incoming.write
        self._take = self._outgoing.read

    def _start(self, context: ssl.SSLContext, hostname: str | None) -> None:
        """Start OpenSSL."""
        tls = self.tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=self.is_server,
            # Text would go through Python's codec for IDNA, which is of 2003, and strict about lengths.
            server_hostname=hostname.encode() if hostname and hostname.isascii() else hostname,
        )
        # What each message needs: bound once, and without the layer of Python that SSLObject is.
        inner = getattr(tls, "_sslobj", tls)
        self._read = inner.read
        self._write = inner.write

    def _answer_hello(self, reader: HelloReader) -> None:
        contexts = self._contexts
        if contexts is None or not (reader.complete or self._doubt):
            return
        hello = None
        if self._doubt is None:
            try:
                hello = reader.hello()
            except NotAClientHello as error:
                self._doubt = error.with_traceback(None)
        if hello is not None and hello.server_name is not None:
            self.server_name = hello.server_name.decode("ascii", "replace")
        try:
            context = contexts.choose(hello)
        except HandshakeFailed as error:
            self._refuse(error)
            return
        self._reader = None
        self._hello = hello
        received = reader.received
        self._start(context, None)
        self._feed(received)
        self._step()
        tls: Any = self.tls
        if hello is None or not hello.session_id or self.ended or not tls.session_reused:
            return
        other = contexts.instead(hello)
        if other is not None:
            self._set_buffers()
            self._start(other, None)
            self._feed(received)
            self._step()

    def _step(self) -> None:
        tls: Any = self.tls
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            if self._doubt is not None and self._outgoing.pending:
                # OpenSSL would go on with it, past what decides by the hello.
                self._refuse(self._doubt)
            return
        except OSError as error:
            self._fail_because(error)
            return
        refusal = self._doubt or self._find_fault()
        self._contexts = self._hello = self._check = None
        if refusal is not None:
            self._say_goodbye()
            self._fail(refusal)
            return
        self.is_secure = self.can_write = self._can_read = True

    def _find_fault(self) -> TLSError | None:
        if self._hello is not None and self._contexts is not None:
            return self._contexts.check(self._hello, self.alpn)
        return None if self._check is None else self._check(self.alpn)

    def _refuse(self, reason: HandshakeFailed) -> None:
        """End a handshake in its beginning, by an alert instead of what OpenSSL would say."""
        alert = _DECODE_ERROR
        if isinstance(reason, UnknownServerName):
            alert = _UNRECOGNIZED_NAME
        elif isinstance(reason, NoCommonProtocol):
            alert = _NO_APPLICATION_PROTOCOL
        self._outgoing.read()
        # A fatal one, in the clear: nothing is encrypted yet.
        self._outgoing.write(bytes((21, 3, 3, 0, 2, 2, alert)))
        self._fail(reason)

    # -- data

    def receive(self, data: bytes) -> bytes:
        """
        Take ciphertext, and return the plaintext in it: nothing if no record is complete.

        Args:
            data: what arrived; none to see what is there already.

        Raises:
            RuntimeError: the handshake is not done.
        """
        if not self._can_read or len(data) > _SLICE:
            return self._receive_slices(data)
        # Into names first, here and below: a call of an instance's attribute is not a method's.
        feed, read = self._feed, self._read
        feed(data)
        try:
            text = read(RECORD)
        except OSError as error:
            self._stop(error)
            return b""
        if self._incoming.pending or not text:
            text = self._read_on(text, LARGEST_READ)
            self.more = not self.ended and self._incoming.pending > 0
        if self._outgoing.pending:
            self._note_debt()
        return text

    def _receive_slices(self, data: bytes) -> bytes:
        """
        Do as `receive` does, by and by: OpenSSL's buffers never shrink.

        Slices end where records do, if that is known: a record that is cut costs an exception.
        """
        if not self._can_read:
            if self.ended:
                return b""  # nothing is expected of the peer any more
            raise RuntimeError("the handshake is not done")
        pieces = []
        room = LARGEST_READ
        view = memoryview(data)
        size, at, end = len(data), 0, self._missing
        if self._head:
            end = _end_of_record(self._head + data[:5], 0) - len(self._head)
        if data[end : end + 3] != _HEADER:  # something else came meanwhile
            end = 0 if data.startswith(_HEADER) else size
        while at < size:
            begin, last = at, at + _SLICE
            while end <= last and end + 5 <= size:
                at, end = end, _end_of_record(data, end)
            if not begin < at:
                at = end if begin < end <= last else last
            self._feed(view[begin:at])
            if room > 0:
                pieces.append(self._read_on(None, room))
                room -= len(pieces[-1])
            if self.ended:
                break
        self._missing, self._head = max(0, end - size), data[end:]
        self.more = not self.ended and self._incoming.pending > 0
        if self._outgoing.pending:
            self._note_debt()
        return b"".join(pieces)

    def _read_on(self, text: bytes | None, room: int) -> bytes:
        """
        Read until no record is left, none that is complete, or there is no more room.

        Args:
            text: what was read already, if anything was.
            room: bytes, which the last record may exceed.
        """
        pieces = [] if text is None else [text]
        incoming, read = self._incoming, self._read
        while text != b"" and incoming.pending and room > 0:
            try:
                text = read(RECORD)
            except OSError as error:
                self._stop(error)
                break
            pieces.append(text)
            room -= len(text)
        if text == b"":
            self._end_of_peer()
        return b"".join(pieces)

    def encrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        """
        Return the ciphertext of *data*, behind whatever OpenSSL has to say on its own.

        Args:
            data: plaintext; of more than `LARGEST_WRITE` bytes only that many are taken, and the rest
                is for the next call.

        Returns:
            nothing if nothing was taken: *data* is empty, `can_write` is not set, or a peer that may
            renegotiate TLS 1.2 does so at this moment.
        """
        if not self.can_write:
            return b""
        size = len(data)
        try:
            if 0 < size <= RECORD:
                write, take = self._write, self._take
                write(data)
                return take()
            return self._encrypt_records(memoryview(data)[:LARGEST_WRITE])
        except ssl.SSLWantReadError:
            return b""
        except OSError as error:
            self._fail_because(error)
            return b""

    def _encrypt_records(self, data: memoryview) -> bytes:
        records = []
        write, take = self._write, self._take
        at = 0
        while at < len(data):
            at += write(data[at : at + RECORD])
            records.append(take())  # so that the buffer, which never shrinks, stays small
        return b"".join(records)

    def take(self, unsent: int = 0) -> bytes:
        """
        Return what has to be sent besides data: the handshake, alerts, close_notify, answers.

        Args:
            unsent: bytes that the owner could not send yet. While there are any, what OpenSSL says on
                its own is counted, and `receive` fails the connection above `LARGEST_DEBT`.
        """
        data = self._outgoing.read()
        self.owes = False
        if self._can_read:
            self._debt = self._debt + len(data) if unsent else 0
        return data

    def _note_debt(self) -> None:
        self.owes = True
        if self._debt + self._outgoing.pending > LARGEST_DEBT and self._can_read:
            self._fail(TLSError("the peer reads no answers to its key updates"))

    # -- the end

    def close(self) -> None:
        """
        Make close_notify, for `take`; nothing can be written after it, and reading goes on.

        Does nothing before the handshake is done, after a failure, or when repeated.
        """
        if self.can_write:
            self._say_goodbye()
            self.write_closed = True

    def end_of_stream(self, what: str = "the peer stopped sending") -> None:
        """
        Note that no more ciphertext will come: a failure, unless the peer sent close_notify.

        Does not look at bytes that were fed and not seen: `shake_hands` or `receive` comes first.

        Args:
            what: how that came, for the message.
        """
        if self.ended:
            return
        if self.is_secure:
            self._fail(TruncatedConnection(f"no end of TLS before this: {what}"))
        else:
            self._fail(HandshakeFailed("the peer left during the handshake"))

    def _say_goodbye(self) -> None:
        tls: Any = self.tls
        self.can_write = False
        # What is left to read is put aside: OpenSSL would look for the peer's close_notify in it, and
        # give up the connection if it finds data first.
        rest = self._incoming.read()
        with suppress(OSError):  # SSLWantReadError: close_notify is made, the peer's is not there
            tls.unwrap()
        if rest:
            self._incoming.write(rest)
        self.owes = True

    def _end_of_peer(self) -> None:
        self.ended = self.peer_closed = True
        self._can_read = self.more = False

    def _stop(self, error: OSError) -> None:
        """Deal with OpenSSL's answer when it has no plaintext."""
        if self._outgoing.pending:
            self._note_debt()
        self.more = False
        if isinstance(error, ssl.SSLWantReadError):
            return
        if isinstance(error, ssl.SSLZeroReturnError):  # instead of no bytes, after our close_notify
            self._end_of_peer()
            return
        self._fail_because(error)

    def _fail_because(self, error: OSError) -> None:
        self._fail(explain(error, is_secure=self.is_secure, name=self._verified_name), error)

    def _fail(self, failure: TLSError, cause: OSError | None = None) -> None:
        if self.ended:
            return
        # Tracebacks have frames of this class: they would keep each other, and OpenSSL's memory.
        failure.__cause__ = None if cause is None else cause.with_traceback(None)
        self.failure = failure.with_traceback(None)
        self.ended = True
        self._can_read = self.can_write = self.more = False
        self._reader = self._contexts = self._hello = self._check = None
        self.owes = self._outgoing.pending > 0

    # -- what the two ends agreed on

    @property
    def version(self) -> str | None:
        """``"TLSv1.2"`` or ``"TLSv1.3"``; None before it is agreed on."""
        return None if self.tls is None else self.tls.version()

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the cipher suite."""
        cipher = None if self.tls is None else self.tls.cipher()
        return None if cipher is None else cipher[0]

    @property
    def alpn(self) -> bytes | None:
        """The protocol that was negotiated; None for none."""
        if self.tls is None:
            return None
        try:
            protocol = self.tls.selected_alpn_protocol()
        except UnicodeDecodeError as error:  # protocols are bytes, to which `ssl` does not stick
            return error.object
        return None if protocol is None else protocol.encode()

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The peer's certificate, which was verified if the context says so; None if it sent none."""
        if self.tls is None or not self.is_secure:
            return None
        return self.tls.getpeercert(binary_form=True)


def _end_of_record(data: bytes, at: int) -> int:
    """Return where the record that begins at *at* ends; somewhere behind, if none does."""
    return at + 5 + (data[at + 3] << 8 | data[at + 4])


#: What looks like an IP address to OpenSSL, of which servers are not told (RFC 6066, section 3).
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
