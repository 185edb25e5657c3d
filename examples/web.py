"""
An HTTP/1.1 server: ``GET /`` is a page, and ``POST /echo`` answers with the body it was sent.

    python web.py --port 8080
    curl --data hello http://127.0.0.1:8080/echo

What two programs could read in two ways (two lengths, a bare line feed, a folded line) is answered
with an error, and ends the connection. ``web_legacy.py`` is the same for asyncore and asynchat.
"""

import argparse
import re
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, MessageTooLong, serve

PAGE = b"<!DOCTYPE html>\n<title>web</title>\n<p>What you POST to /echo comes back.</p>\n"
METHODS = {b"/": (b"GET", b"HEAD"), b"/echo": (b"POST",)}
MAX_HEAD, MAX_LINE, MAX_BODY = 16_384, 1_024, 1 << 20

# The first of each is right. The others end what is wrong, so that nobody waits for the right one.
HEAD_END = (b"\r\n\r\n", b"\n\n", b"\n\r\n")
LINE_END = (b"\r\n", b"\n")

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
TEXT = rb"[\t -~\x80-\xff]*"
REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/([0-9])\.([0-9])" % TOKEN)
FIELD = re.compile(rb"(%b):(%b)" % (TOKEN, TEXT))
LENGTH = re.compile(rb"[0-9]{1,15}")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})(?:[ \t]*;%b)?" % TEXT)
HOST = re.compile(rb"[-0-9A-Za-z._~%!$&'()*+,;=:\[\]]*")


class Refused(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class Request:
    """The head of a request, if it can be read in one way only; otherwise `Refused` is raised."""

    def __init__(self, head: bytes) -> None:
        line, *lines = head.removeprefix(b"\r\n").split(b"\r\n")
        match = REQUEST_LINE.fullmatch(line)
        if match is None:
            raise Refused(400)
        self.method, target, major, minor = match.groups()
        if major != b"1":
            raise Refused(505)
        self.path = re.sub(rb"^https?://[^/?]*|\?.*", b"", target) or b"/"
        self.fields: dict[bytes, list[bytes]] = {}
        for line in lines:
            match = FIELD.fullmatch(line)
            if match is None:
                raise Refused(400)
            self.fields.setdefault(match[1].lower(), []).append(match[2].strip(b" \t"))
        self.is_1_0 = minor == b"0"
        hosts = self.fields.get(b"host", [b""] if self.is_1_0 else [])
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            raise Refused(400)
        self.length = self.find_length()
        wish = self.words(b"connection")
        self.keep_alive = b"keep-alive" in wish if self.is_1_0 else b"close" not in wish
        expected = [] if self.is_1_0 else self.words(b"expect")
        if expected not in ([], [b"100-continue"]):
            raise Refused(417)
        self.waits = bool(expected) and self.length != 0

    def words(self, name: bytes) -> list[bytes]:
        listed = b",".join(self.fields.get(name, [])).lower().split(b",")
        return [word.strip(b" \t") for word in listed if word.strip(b" \t")]

    def find_length(self) -> int | None:
        """Return the length of the body; None for chunks."""
        lengths = self.fields.get(b"content-length", [])
        if b"transfer-encoding" in self.fields:
            if lengths or self.is_1_0:
                raise Refused(400)
            if self.words(b"transfer-encoding") != [b"chunked"]:
                raise Refused(501)
            return None
        if not lengths:
            return 0
        if len(lengths) > 1 or not LENGTH.fullmatch(lengths[0]):
            raise Refused(400)
        if int(lengths[0]) > MAX_BODY:
            raise Refused(413)
        return int(lengths[0])


class Web(AsyncChat):
    received: Callable[[bytes], None]  # what the next message is given to
    method = b""
    keep_alive = True

    @override
    def handle_connect(self) -> None:
        self.await_head()

    def await_line(
        self, end: tuple[bytes, ...], limit: int, received: Callable[[bytes], None]
    ) -> None:
        self.max_message_length, self.terminator, self.received = limit, end, received

    def await_bytes(self, count: int, received: Callable[[bytes], None]) -> None:
        self.received = received
        self.expect(count, limit=count)

    @override
    def message_received(self, message: bytes) -> None:
        try:
            if self.matched_terminator not in (b"", HEAD_END[0], LINE_END[0]):
                raise Refused(400)
            self.received(message)
        except Refused as refused:
            self.refuse(refused.status)

    @override
    def message_too_long(self, error: MessageTooLong) -> None:
        self.refuse(400 if self.received == self.size_received else 431)

    # -- a request: its head, and a body of a length or in chunks

    def await_head(self) -> None:
        self.await_line(HEAD_END, MAX_HEAD, self.head_received)

    def head_received(self, head: bytes) -> None:
        self.method = b""
        self.request = request = Request(head)
        self.method, self.keep_alive = request.method, request.keep_alive
        if request.waits:
            self.push(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.length is None:
            self.body, self.trailers = bytearray(), 0
            self.await_line(LINE_END, MAX_LINE, self.size_received)
        elif request.length:
            self.await_bytes(request.length, self.body_received)
        else:
            self.body_received(b"")

    def size_received(self, line: bytes) -> None:
        match = CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise Refused(400)
        size = int(match[1], 16)
        if len(self.body) + size > MAX_BODY:
            raise Refused(413)
        if size:
            self.await_bytes(size + 2, self.chunk_received)
        else:
            self.await_line(LINE_END, MAX_HEAD, self.trailer_received)

    def chunk_received(self, chunk: bytes) -> None:
        if not chunk.endswith(b"\r\n"):
            raise Refused(400)
        self.body += chunk[:-2]
        self.await_line(LINE_END, MAX_LINE, self.size_received)

    def trailer_received(self, line: bytes) -> None:
        self.trailers += len(line)
        if self.trailers > MAX_HEAD:
            raise Refused(431)
        if not line:
            self.body_received(bytes(self.body))
        elif not FIELD.fullmatch(line):
            raise Refused(400)

    # -- its answer

    def body_received(self, body: bytes) -> None:
        methods = METHODS.get(self.request.path)
        if methods is None:
            self.answer(404)
        elif self.method not in methods:
            self.answer(405, b"", b"Allow: " + b", ".join(methods))
        elif self.request.path == b"/":
            self.answer(200, PAGE, b"Content-Type: text/html")
        else:
            self.answer(200, body, b"Content-Type: application/octet-stream")

    def refuse(self, status: int) -> None:
        """Where the next request begins is not known any more."""
        self.keep_alive = False
        self.answer(status)

    def answer(self, status: int, body: bytes = b"", *fields: bytes) -> None:
        lines = [
            b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode()),
            b"Date: " + formatdate(usegmt=True).encode(),
            b"Content-Length: %d" % len(body),
            b"Connection: " + (b"keep-alive" if self.keep_alive else b"close"),
            *fields,
        ]
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        self.push(head if self.method == b"HEAD" else head + body)
        if self.keep_alive:
            self.await_head()
        else:
            self.close()  # nothing that follows is looked at


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a page, and echo what is posted.")
    parser.add_argument("--port", type=int, default=8080, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    options = parser.parse_args()
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    serve(ChatFactory(Web), endpoint, announce=True)


if __name__ == "__main__":
    main()
