"""
Hygiene of lines: `LineEnds`, `AsyncChat.push_line`, and peers that speak HTTP or TLS.
"""

from __future__ import annotations

import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from helpers.kinds import on_the_hub_too
from helpers.support import PATIENCE, Server, client_context, server_options, until
from txasynchat import AsyncChat, LengthPrefix, LineEnds, MalformedMessage, Overflow, State
from txasynchat.errors import OtherProtocol
from txasynchat.testing import check_cuts, run

#: What smugglers take for the end of a mail, and the lines of ``text`` + that + ``next\r\n`` with
#: their ends, where they are normalised.
VARIANTS = {
    b"\n.\n": [(b"text", b"\n"), (b".", b"\n"), (b"next", b"\r\n")],
    b"\r.\r": [(b"text . next", b"\r\n")],
    b"\r.\n": [(b"text .", b"\n"), (b"next", b"\r\n")],
    b"\n.\r": [(b"text", b"\n"), (b". next", b"\r\n")],
    b"\n.\r\n": [(b"text", b"\n"), (b".", b"\r\n"), (b"next", b"\r\n")],
    b"\r\n.\n": [(b"text", b"\r\n"), (b".", b"\n"), (b"next", b"\r\n")],
    b"\r.\r\n": [(b"text .", b"\r\n"), (b"next", b"\r\n")],
    b"\r\n.\r": [(b"text", b"\r\n"), (b". next", b"\r\n")],
    b"\r\n\0.\r\n": [(b"text", b"\r\n"), (b" .", b"\r\n"), (b"next", b"\r\n")],
    b"\r\n.\0\r\n": [(b"text", b"\r\n"), (b". ", b"\r\n"), (b"next", b"\r\n")],
    b"\r\r\n.\r\r\n": [(b"text ", b"\r\n"), (b". ", b"\r\n"), (b"next", b"\r\n")],
}


class Lines(AsyncChat):
    terminator = b"\r\n"
    policy = LineEnds.EXACT

    def __init__(self):
        self.lines = []

    def message_received(self, message):
        self.lines.append((message, self.matched_terminator))


class Normalised(Lines):
    line_ends = LineEnds.NORMALISE


class Strict(Lines):
    line_ends = LineEnds.REJECT

    def handle_error(self):
        self.push_line(b"521 no")


class Mail(Normalised):
    """Takes mails, one after the other; a dot ends one where CRLF is on both sides of it."""

    def __init__(self):
        self.mails = []
        self.begin()

    def begin(self):
        self.mail = []
        self.after_crlf = True

    def message_received(self, message):
        crlf = self.matched_terminator == b"\r\n"
        if message == b"." and crlf and self.after_crlf:
            self.mails.append(self.mail)
            self.begin()
        else:
            self.mail.append(message)
            self.after_crlf = crlf


class Pieces(AsyncChat):
    terminator = b"\r\n"

    def __init__(self):
        self.lines = []

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.lines.append((self._get_data(), self.matched_terminator))


def talk(handler, *chunks):
    chat = handler()
    chat.makeConnection(StringTransport())
    for chunk in chunks:
        chat.dataReceived(chunk)
    return chat


def in_cuts(handler, data):
    """Return the lines of *data*, which are the same however it is cut."""
    check_cuts(handler, data)
    return talk(handler, data).lines


def pieces(policy):
    return type("Pieces", (Pieces,), {"line_ends": policy})


class TestExact:
    @pytest.mark.parametrize("variant", VARIANTS, ids=ascii)
    def test_only_the_terminator_ends_a_line(self, variant):
        data = b"text" + variant + b"next\r\n"
        lines = in_cuts(Lines, data)
        assert lines == [(line, b"\r\n") for line in data.split(b"\r\n")[:-1]]
        assert (b".", b"\r\n") not in lines

    def test_it_is_the_default(self):
        assert Lines().line_ends is LineEnds.EXACT


class TestNormalise:
    @pytest.mark.parametrize(("variant", "lines"), VARIANTS.items(), ids=ascii)
    @pytest.mark.parametrize("handler", [Normalised, pieces(LineEnds.NORMALISE)])
    def test_either_end_ends_a_line_and_strays_are_spaces(self, variant, lines, handler):
        assert in_cuts(handler, b"text" + variant + b"next\r\n") == lines

    @pytest.mark.parametrize("variant", VARIANTS, ids=ascii)
    def test_no_variant_ends_a_mail_that_ends_by_crlf_on_both_sides_of_a_dot(self, variant):
        data = b"text" + variant + b"MAIL FROM:<smuggled>\r\n.\r\n"
        check_cuts(Mail, data)
        chat = talk(Mail, data, b"second\r\n.\r\n")
        assert len(chat.mails) == 2
        assert chat.mails[1] == [b"second"]

    @pytest.mark.parametrize("terminator", [b"\r\n", b"\n", (b"\n", b"\r\n"), (b"\r\n", b"\n")])
    def test_it_is_the_same_for_every_terminator_of_lines(self, terminator):
        handler = type("Handler", (Normalised,), {"terminator": terminator})
        assert in_cuts(handler, b"a\nb\r\nc\rd\n") == [
            *((b"a", b"\n"), (b"b", b"\r\n"), (b"c d", b"\n")),
        ]
        assert handler().get_terminator() == handler().terminator == terminator

    def test_messages_of_another_kind_stay_as_they_are(self):
        class Body(Normalised):
            def message_received(self, message):
                super().message_received(message)
                if message == b"body":
                    self.expect(5)
                elif message == b"frame":
                    self.set_terminator(LengthPrefix("B"))
                elif message == b"\r\0\n":
                    self.terminator = b"\0"
                elif message == b"x\ny\r":
                    self.terminator = b"\n"

        data = b"body\n\r\n\0\r\nframe\n\x03\r\0\nx\ny\r\0last\r\n"
        assert [line for line, _ in in_cuts(Body, data)] == [
            *(b"body", b"\r\n\0\r\n", b"frame", b"\r\0\n", b"x\ny\r", b"last"),
        ]

    def test_an_overridden_get_terminator_is_asked(self):
        class Asking(Normalised):
            def get_terminator(self):
                return b"\r\n"

        assert in_cuts(Asking, b"a\nb\r\n") == [(b"a", b"\n"), (b"b", b"\r\n")]

    def test_text_is_normalised_before_it_is_decoded(self):
        handler = type("Text", (Normalised,), {"encoding": "utf-8"})
        assert in_cuts(handler, "grün\rblau\nrot\r\n".encode()) == [
            *(("grün blau", b"\n"), ("rot", b"\r\n")),
        ]

    def test_parts_of_an_overlong_line_are_normalised_too(self):
        settings = {"max_message_length": 4, "overflow": Overflow.DELIVER}
        handler = type("Handler", (Normalised,), settings)
        assert b"".join(line for line, _ in in_cuts(handler, b"ab\rcd\0e\n")) == b"ab cd e"


class TestReject:
    @pytest.mark.parametrize("variant", VARIANTS, ids=ascii)
    @pytest.mark.parametrize("handler", [Strict, pieces(LineEnds.REJECT)])
    def test_a_line_with_a_stray_ends_the_connection(self, variant, handler):
        data = b"text" + variant + b"next\r\n"
        if handler is Strict:  # how much of a line comes in pieces depends on how it is cut
            check_cuts(handler, data)
        bytewise = talk(handler, *(data[at : at + 1] for at in range(len(data))))
        chat = talk(handler, data + b"more\r\n")
        assert chat.lines == bytewise.lines
        assert chat.state is State.CLOSING
        assert isinstance(chat.close_reason, MalformedMessage)
        assert str(chat.close_reason) == "malformed message: a CR, LF or NUL inside a line"
        # Up to there they are those of a client that did nothing wrong.
        assert chat.lines in ([], [(b"text", b"\r\n")])

    def test_a_last_word_can_be_said(self):
        assert run(Strict(), [b"fine\r\nnot\nfine\r\n"]).sent == b"521 no\r\n"

    def test_with_lf_alone_a_cr_is_a_stray(self):
        chat = talk(type("Handler", (Strict,), {"terminator": b"\n"}), b"a\r\n")
        assert isinstance(chat.close_reason, MalformedMessage)

    def test_messages_of_another_kind_may_have_any_byte(self):
        chat = talk(type("Handler", (Strict,), {"terminator": LengthPrefix("B")}), b"\x02\r\n")
        assert chat.lines == [(b"\r\n", b"")]


SPLIT = st.lists(st.sampled_from([b"a", b".", b"\r", b"\n", b"\r\n", b"\0"]), max_size=30)


@given(parts=SPLIT, size=st.integers(1, 12))
def test_normalised_lines_are_the_same_however_their_bytes_are_cut(parts, size):
    """They are the lines of a plain reading of the whole, too."""
    data = b"".join(parts)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    plain = data.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\0", b" ")
    for handler in (Normalised, pieces(LineEnds.NORMALISE)):
        lines = talk(handler, *chunks).lines
        assert [line for line, _ in lines] == plain.split(b"\n")[:-1]
        ended = b"".join(line + end for line, end in lines)
        assert ended == data[: len(ended)].replace(b"\0", b" ").replace(b"\r\n", b"\0").replace(
            b"\r", b" "
        ).replace(b"\0", b"\r\n")


@given(parts=SPLIT, size=st.integers(1, 12))
def test_strict_lines_are_the_same_however_their_bytes_are_cut(parts, size):
    data = b"".join(parts)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    expected = []
    for line in data.split(b"\r\n")[:-1]:
        if {*b"\r\n\0"} & {*line}:
            break
        expected.append((line, b"\r\n"))
    assert talk(Strict, *chunks).lines == expected


class TestSettings:
    def test_what_is_no_line_ends_is_refused(self):
        with pytest.raises(TypeError, match=r"Handler\.line_ends must be a LineEnds, not 'reject'"):
            type("Handler", (AsyncChat,), {"line_ends": "reject"})

    def test_it_belongs_to_the_class(self):
        with pytest.raises(TypeError, match="line_ends belongs to the class"):
            Normalised().line_ends = LineEnds.EXACT
        chat = Normalised()
        chat.line_ends = LineEnds.NORMALISE
        assert chat.line_ends is LineEnds.NORMALISE

    def test_it_may_be_assigned_to_the_class_later(self):
        handler = type("Later", (Lines,), {})
        talk(handler)
        handler.line_ends = LineEnds.NORMALISE
        assert [line for line, _ in talk(handler, b"a\nb\r\n").lines] == [b"a", b"b"]
        assert handler().line_ends is LineEnds.NORMALISE


class TestPushLine:
    def sent(self, line, chunk=b"", **settings):
        chat = type("Handler", (Lines,), settings)()
        transport = StringTransport()
        chat.makeConnection(transport)
        if chunk:
            chat.dataReceived(chunk)
        chat.push_line(line)
        return transport.value()

    @pytest.mark.parametrize("line", [b"a\nb", b"a\rb", b"\r\n", b"a\n", b"\r"])
    @pytest.mark.parametrize("terminator", [b"\r\n", b"\n", (b"\n", b"\r\n")])
    def test_a_line_with_a_line_end_inside_is_refused(self, line, terminator):
        """What somebody said never becomes a line of its own to whoever reads it."""
        chat = talk(type("Handler", (Lines,), {"terminator": terminator}))
        with pytest.raises(ValueError, match="a line must not contain"):
            chat.push_line(line)
        assert chat.transport.value() == b""

    def test_a_line_with_its_delimiter_inside_is_refused(self):
        assert self.sent(b"a\nb", terminator=b"\0") == b"a\nb\0"
        with pytest.raises(ValueError, match=r"must not contain b'\\x00'"):
            self.sent(b"a\0b", terminator=b"\0")

    def test_it_ends_as_the_peer_ends_its_lines(self):
        either = (b"\n", b"\r\n")
        assert self.sent(b"hello", terminator=either) == b"hello\n"
        assert self.sent(b"hello", terminator=either[::-1]) == b"hello\r\n"
        assert self.sent(b"hello", b"hi\r\n", terminator=either) == b"hello\r\n"
        assert self.sent(b"hello", b"hi\n", terminator=either[::-1]) == b"hello\n"

    def test_normalised_it_ends_as_the_terminator_says(self):
        assert self.sent(b"hello", b"hi\n", line_ends=LineEnds.NORMALISE) == b"hello\r\n"

    def test_while_a_body_comes_it_ends_as_the_class_says(self):
        chat = talk(Lines)
        chat.set_terminator(5)
        chat.push_line(bytearray(b"go ahead"))
        assert chat.transport.value() == b"go ahead\r\n"

    def test_text_is_encoded_and_then_checked(self):
        assert self.sent("grün", encoding="utf-8") == "grün\r\n".encode()
        with pytest.raises(ValueError, match="must not contain"):
            self.sent("grün\n", encoding="utf-8")
        with pytest.raises(TypeError):
            self.sent("text")

    @pytest.mark.parametrize("terminator", [None, 5, LengthPrefix("B")])
    def test_without_a_delimiter_there_is_no_line(self, terminator):
        with pytest.raises(ValueError, match="Handler has no delimiter"):
            self.sent(b"hello", terminator=terminator)


class Guarded(Lines):
    terminator = b"\n"
    refuse_other_protocols = True

    def message_received(self, message):
        super().message_received(message)
        self.push_line(message)


HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
ALERT = b"\x15\x03\x01\x00\x02\x02\x0a"


class TestGuard:
    @pytest.mark.parametrize(
        ("data", "name", "answer"),
        [
            (b"GET / HTTP/1.0\n\n", "HTTP", HTTP),
            (b"POST /x HTTP/1.1\nHost: x\n\nQUIT\n", "HTTP", HTTP),
            (b"OPTIONS * HTTP/1.1\n\n", "HTTP", HTTP),
            (b"CONNECT mail:25 HTTP/1.1\n\n", "HTTP", HTTP),
            (b"GET http://x/ HTTP/1.1\n\n", "HTTP", HTTP),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP", HTTP),
            (b"\x16\x03\x01\x02\x00\x01\x00\n", "TLS", ALERT),
        ],
    )
    @pytest.mark.parametrize("encoding", [None, "utf-8"])
    def test_http_and_tls_are_refused_in_their_own_words(self, data, name, answer, encoding):
        handler = type("Handler", (Guarded,), {"encoding": encoding})
        assert check_cuts(handler, data).sent == answer
        chat = talk(handler, data)
        assert chat.lines == []
        assert isinstance(chat.close_reason, OtherProtocol)
        assert chat.close_reason.protocol == name

    @pytest.mark.parametrize(
        "data", [b"GET key\n", b"POST\n", b"G\n", b"\n", b"GETAWAY /\n", b"get / HTTP/1.0\n"]
    )
    def test_other_lines_are_delivered(self, data):
        assert check_cuts(Guarded, data).sent == data

    def test_only_the_beginning_is_looked_at(self):
        assert check_cuts(Guarded, b"hello\nGET / HTTP/1.0\n").sent == b"hello\nGET / HTTP/1.0\n"

    def test_without_it_they_are_lines(self):
        assert in_cuts(type("Handler", (Lines,), {"terminator": b"\n"}), b"GET / HTTP/1.0\n")

    def test_the_log_has_one_line_with_the_reason_and_nothing_of_the_peer(self):
        with capturedLogs() as events:
            talk(Guarded, b"GET /secret HTTP/1.0\nHost: x\n\n")
        (event,) = events
        assert event["error"] == "the peer speaks HTTP, and is refused"
        assert "secret" not in formatEvent(event)


@on_the_hub_too
class OnSockets(TestCase):
    """Browsers and TLS clients at the port of a line protocol."""

    timeout = PATIENCE
    reactor = reactor

    async def listen(self, handler):
        factory = Factory.forProtocol(handler)
        factory.noisy = False
        endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        return port.getHost().port

    async def ask(self, port, data):
        def exchange():
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as peer:
                peer.sendall(data)
                answer = b""
                while piece := peer.recv(65_536):
                    answer += piece
                return answer

        return await deferToThread(exchange)

    async def test_a_browser_gets_its_answer_however_much_it_sends(self):
        port = await self.listen(Guarded)
        answer = await self.ask(port, b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000)
        assert answer == HTTP

    async def test_a_tls_client_is_told_by_an_alert(self):
        port = await self.listen(Guarded)

        def shake_hands():
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as peer:
                client_context().wrap_socket(peer, server_hostname="localhost")

        with pytest.raises(ssl.SSLError, match=r"(?i)unexpected.message"):
            await deferToThread(shake_hands)

    async def test_a_smuggler_gets_the_last_word(self):
        port = await self.listen(Strict)
        assert await self.ask(port, b"text\n.\r\nQUIT\r\n" + b"x\r\n" * 10_000) == b"521 no\r\n"


class OverTLS(TestCase):
    timeout = PATIENCE

    async def test_http_inside_tls_is_refused_too(self):
        """A browser whose TLS connection was diverted here finds no reflected line (ALPACA)."""
        server = await Server(self, server_options(), Guarded).listen()

        def exchange():
            with (
                socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain,
                client_context().wrap_socket(plain, server_hostname="localhost") as peer,
            ):
                peer.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n<script>\n")
                answer = b""
                while piece := peer.recv(65_536):
                    answer += piece
                return answer

        assert await deferToThread(exchange) == HTTP
        await until(lambda: server.handlers[0].state is State.CLOSED)


class TestStreams:
    """The same where a coroutine reads the lines."""

    def read(self, data, count, **settings):
        """Return what a coroutine reads, the connection, and what the coroutine raised."""
        lines, raised = [], []

        class Reader(AsyncChat):
            terminator = b"\r\n"

            async def handle_connect(self):
                stream = self.stream()
                try:
                    while len(lines) < count:
                        lines.append(await stream.read_until())
                except Exception as error:
                    raised.append(error)
                    raise

        chat = type("Handler", (Reader,), settings)()
        chat.makeConnection(StringTransport())
        for at in range(0, len(data), 3):
            chat.dataReceived(data[at : at + 3])
        return lines, chat, raised

    def test_lines_are_normalised(self):
        data = b"a\nb\rc\r\n\0d\n"
        lines, _, raised = self.read(data, 3, line_ends=LineEnds.NORMALISE)
        assert lines == [b"a", b"b c", b" d"]
        assert raised == []

    def test_a_stray_is_raised_by_the_call_that_reads_the_line(self):
        lines, chat, raised = self.read(b"fine\r\nnot\nfine\r\n", 2, line_ends=LineEnds.REJECT)
        assert lines == [b"fine"]
        assert isinstance(raised[0], MalformedMessage)
        assert isinstance(chat.close_reason, MalformedMessage)
        assert chat.state is State.CLOSING

    def test_http_is_refused(self):
        lines, chat, _ = self.read(b"GET / HTTP/1.0\r\n", 1, refuse_other_protocols=True)
        assert lines == []
        assert chat.transport.value() == HTTP
        assert isinstance(chat.close_reason, OtherProtocol)
