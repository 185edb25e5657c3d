"""
An HTTP/1.1 server: ``GET /`` is a page, and ``POST /echo`` answers with the body it was sent.

    python -m txasynchat run web_legacy.py --port 8080
    curl --data hello http://127.0.0.1:8080/echo

What two programs could read in two ways (two lengths, a bare line feed, a folded line) is answered
with an error, and ends the connection. Up to Python 3.11 ``python web_legacy.py`` runs it on the
standard library alone. ``web.py`` is the same for Twisted's reactor.
"""

import argparse
import asynchat
import asyncore
import contextlib
import re
import signal
import socket
from email.utils import formatdate
from http import HTTPStatus

PAGE = b"<!DOCTYPE html>\n<title>web</title>\n<p>What you POST to /echo comes back.</p>\n"
METHODS = {b"/": (b"GET", b"HEAD"), b"/echo": (b"POST",)}
MAX_HEAD, MAX_LINE, MAX_BODY = 16_384, 1_024, 1 << 20

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
TEXT = rb"[\t -~\x80-\xff]*"
REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/([0-9])\.([0-9])" % TOKEN)
FIELD = re.compile(rb"(%b):(%b)" % (TOKEN, TEXT))
LENGTH = re.compile(rb"[0-9]{1,15}")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})(?:[ \t]*;%b)?" % TEXT)
HOST = re.compile(rb"[-0-9A-Za-z._~%!$&'()*+,;=:\[\]]*")

# asynchat never cuts a line end in two: it may be the beginning of the terminator.
LONE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class Refused(Exception):
    def __init__(self, status):
        self.status = status


class Request:
    """The head of a request, if it can be read in one way only; otherwise `Refused` is raised."""

    def __init__(self, head):
        line, *lines = head.removeprefix(b"\r\n").split(b"\r\n")
        match = REQUEST_LINE.fullmatch(line)
        if match is None:
            raise Refused(400)
        self.method, target, major, minor = match.groups()
        if major != b"1":
            raise Refused(505)
        self.path = re.sub(rb"^https?://[^/?]*|\?.*", b"", target) or b"/"
        self.fields = {}
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

    def words(self, name):
        listed = b",".join(self.fields.get(name, [])).lower().split(b",")
        return [word.strip(b" \t") for word in listed if word.strip(b" \t")]

    def find_length(self):
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


class Server(asyncore.dispatcher):
    def __init__(self, address):
        asyncore.dispatcher.__init__(self)
        self.connections = set()  # each handler leaves it when it closes
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)

    def handle_accepted(self, sock, addr):
        self.connections.add(Web(sock, self))

    def stop(self, *_):
        self.close()
        for channel in list(self.connections):
            channel.close_when_done()


class End:
    """A producer that ends the sending behind what was pushed. What still comes is dropped."""

    def __init__(self, sock):
        self.sock = sock

    def more(self):
        with contextlib.suppress(OSError):  # the client may be gone
            self.sock.shutdown(socket.SHUT_WR)
        return b""


class Web(asynchat.async_chat):
    method = b""
    keep_alive = True
    answered = False  # for the last time
    ended = False  # by the client

    def __init__(self, sock, server):
        asynchat.async_chat.__init__(self, sock)
        self.server = server
        self.await_head()

    def await_message(self, end, limit, received):
        self.size, self.limit, self.received = 0, limit, received
        self.set_terminator(end)

    def collect_incoming_data(self, data):
        if self.answered:
            return
        self.size += len(data)
        if self.size > self.limit:
            self.refuse(400 if self.received == self.size_received else 431)
        elif isinstance(self.get_terminator(), bytes) and LONE.search(data):
            self.refuse(400)
        else:
            self._collect_incoming_data(data)

    def found_terminator(self):
        message = self._get_data()
        if self.answered:
            return
        try:
            self.received(message)
        except Refused as refused:
            self.refuse(refused.status)

    def readable(self):
        return not self.ended and len(self.producer_fifo) < 10  # or the client must read first

    def handle_close(self):
        if self.ended or not self.producer_fifo:
            self.close()
        else:
            self.ended = True
            self.close_when_done()

    def close(self):  # called for every end
        self.server.connections.discard(self)
        asynchat.async_chat.close(self)

    # -- a request: its head, and a body of a length or in chunks

    def await_head(self):
        self.await_message(b"\r\n\r\n", MAX_HEAD, self.head_received)

    def head_received(self, head):
        self.method = b""
        self.request = request = Request(head)
        self.method, self.keep_alive = request.method, request.keep_alive
        if request.waits:
            self.push(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.length is None:
            self.body, self.trailers = bytearray(), 0
            self.await_message(b"\r\n", MAX_LINE, self.size_received)
        elif request.length:
            self.await_message(request.length, MAX_BODY, self.body_received)
        else:
            self.body_received(b"")

    def size_received(self, line):
        match = CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise Refused(400)
        size = int(match[1], 16)
        if len(self.body) + size > MAX_BODY:
            raise Refused(413)
        if size:
            self.await_message(size + 2, MAX_BODY + 2, self.chunk_received)
        else:
            self.await_message(b"\r\n", MAX_HEAD, self.trailer_received)

    def chunk_received(self, chunk):
        if not chunk.endswith(b"\r\n"):
            raise Refused(400)
        self.body += chunk[:-2]
        self.await_message(b"\r\n", MAX_LINE, self.size_received)

    def trailer_received(self, line):
        self.trailers += len(line)
        if self.trailers > MAX_HEAD:
            raise Refused(431)
        if not line:
            self.body_received(bytes(self.body))
        elif not FIELD.fullmatch(line):
            raise Refused(400)

    # -- its answer

    def body_received(self, body):
        methods = METHODS.get(self.request.path)
        if methods is None:
            self.answer(404)
        elif self.method not in methods:
            self.answer(405, b"", b"Allow: " + b", ".join(methods))
        elif self.request.path == b"/":
            self.answer(200, PAGE, b"Content-Type: text/html")
        else:
            self.answer(200, body, b"Content-Type: application/octet-stream")

    def refuse(self, status):
        """Where the next request begins is not known any more."""
        self.keep_alive = False
        self.answer(status)

    def answer(self, status, body=b"", *fields):
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
            self.answered = True  # nothing that follows is looked at
            self.set_terminator(None)
            self.push_with_producer(End(self.socket))


def main():
    parser = argparse.ArgumentParser(description="Serve a page, and echo what is posted.")
    parser.add_argument("--port", type=int, default=8080, help="of 127.0.0.1; 0: a free one")
    options = parser.parse_args()
    server = Server(("127.0.0.1", options.port))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.stop)
    print("listening on 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
    asyncore.loop(use_poll=True)  # until nothing is open any more


if __name__ == "__main__":
    main()
