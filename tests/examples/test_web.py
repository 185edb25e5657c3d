"""``examples/web.py`` and ``web_legacy.py``; h11 and curl judge what they answer."""

import re
import shutil
import socket
import subprocess
import threading

import h11
import pytest

from helpers.peers import connect, converse, read_all

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Judge:
    """A client whose requests and answers h11 writes and reads."""

    def __init__(self, peer):
        self.peer = peer
        self.http = h11.Connection(h11.CLIENT)

    def send(self, *events):
        self.peer.sendall(b"".join(self.http.send(event) or b"" for event in events))

    def event(self):
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(self.peer.recv(65_536))
        return event

    def answer(self):
        """Return the status and the body of the next answer."""
        response = self.event()
        assert isinstance(response, h11.Response)
        body = b""
        while isinstance(event := self.event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        return response.status_code, body

    def ask(self, method, target, body=b"", *fields):
        """Send a request; return the status and the body of its answer."""
        head = h11.Request(method=method, target=target, headers=[("Host", "a"), *fields])
        data = [h11.Data(body)] if body else []
        self.send(head, *data, h11.EndOfMessage())
        answer = self.answer()
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
        return answer


def statuses(received):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]


def test_h11_understands_every_answer(example):
    """On one connection: pages, bodies of a length and in chunks, HEAD, and what there is not."""
    program = example("web")
    large = bytes(range(256)) * 4_096
    chunked = ("Transfer-Encoding", "chunked")
    with connect(program.port) as peer:
        judge = Judge(peer)
        status, page = judge.ask("GET", "/")
        assert status == 200
        assert page.startswith(b"<!DOCTYPE html>")
        assert judge.ask("HEAD", "/?a=b") == (200, b"")
        for body in (b"hello", large):
            assert judge.ask("POST", "/echo", body, ("Content-Length", str(len(body)))) == (
                200,
                body,
            )
            assert judge.ask("POST", "http://a/echo", body, chunked) == (200, body)
        assert judge.ask("POST", "/echo", b"") == (200, b"")
        assert judge.ask("GET", "/nothing")[0] == 404
        assert judge.ask("DELETE", "/echo", b"why", ("Content-Length", "3"))[0] == 405
        assert judge.ask("GET", "/", b"", ("Connection", "close")) == (200, page)
        assert judge.event() == h11.ConnectionClosed()
    program.stop()


def test_client_that_expects_100_is_told_to_go_on(example):
    """And is not, if it will be refused."""
    program = example("web")
    expect = [("Host", "a"), ("Expect", "100-continue")]
    with connect(program.port) as peer:
        judge = Judge(peer)
        fields = [*expect, ("Content-Length", "5")]
        judge.send(h11.Request(method="POST", target="/echo", headers=fields))
        assert judge.event().status_code == 100
        judge.send(h11.Data(b"hello"), h11.EndOfMessage())
        assert judge.answer() == (200, b"hello")
    with connect(program.port) as peer:
        judge = Judge(peer)
        fields = [*expect, ("Content-Length", "9000000")]
        judge.send(h11.Request(method="POST", target="/echo", headers=fields))
        assert judge.answer()[0] == 413


def test_pipelined_requests_are_answered_in_order(example):
    """However they are split."""
    program = example("web")
    requests = GET + CHUNKED + b"3;x=y\r\none\r\n0\r\nX: y\r\n\r\n" + POST
    requests += b"Content-Length: 3\r\n\r\ntwo" + b"\r\n" + LAST + GET
    whole = converse(program.port, requests)
    assert statuses(whole) == [200] * 4
    assert re.findall(rb"\r\n\r\n(one|two)", whole) == [b"one", b"two"]
    with connect(program.port) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(requests) - len(GET)):
            peer.sendall(requests[position : position + 1])
        answers = read_all(peer)
    assert statuses(answers) == [200] * 4
    assert len(answers) == len(whole)


def test_http_1_0_closes_unless_asked_not_to(example):
    program = example("web")
    assert statuses(converse(program.port, b"GET / HTTP/1.0\r\n\r\n" + GET)) == [200]
    kept = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    assert statuses(converse(program.port, kept + b"GET / HTTP/1.0\r\n\r\n" + GET)) == [200, 200]


REFUSED = {
    "two lengths": (400, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\none"),
    "a length twice": (400, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\none"),
    "length and chunks": (
        400,
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "length +3": (400, POST + b"Content-Length: +3\r\n\r\none"),
    "length -3": (400, POST + b"Content-Length: -3\r\n\r\none"),
    "length 3, 3": (400, POST + b"Content-Length: 3, 3\r\n\r\none"),
    "length 0x3": (400, POST + b"Content-Length: 0x3\r\n\r\none"),
    "length 1_0": (400, POST + b"Content-Length: 1_0\r\n\r\none"),
    "empty length": (400, POST + b"Content-Length:\r\n\r\n"),
    "endless length": (400, POST + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n"),
    "large length": (413, POST + b"Content-Length: 1048577\r\n\r\n"),
    "space before the colon": (400, POST + b"Content-Length : 3\r\n\r\none"),
    "space before the name": (400, POST + b" Content-Length: 3\r\n\r\none"),
    "folded line": (400, POST + b"X: a\r\n Content-Length: 3\r\n\r\none"),
    "no colon": (400, POST + b"nothing\r\n\r\n"),
    "no name": (400, POST + b": a\r\n\r\n"),
    "NUL": (400, POST + b"X: a\0b\r\n\r\n"),
    "bare LF in the head": (400, POST + b"X: a\nContent-Length: 3\r\n\r\none"),
    "bare LF everywhere": (400, POST.replace(b"\r", b"") + b"\n"),
    "bare LF at the end": (400, POST + b"\n"),
    "bare LF before the end": (400, POST + b"X: a\n\r\n"),
    "bare CR": (400, POST + b"X: a\rContent-Length: 3\r\n\r\none"),
    "CR CR LF": (400, POST + b"X: a\r\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "host with a slash": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "gzip": (501, POST + b"Transfer-Encoding: gzip\r\n\r\n"),
    "chunked twice": (501, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked and identity": (501, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n"),
    "two codings": (501, POST + b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "chunked with a parameter": (501, POST + b"Transfer-Encoding: chunked;a=b\r\n\r\n"),
    "chunked behind a control": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n"),
    "chunked in 1.0": (
        400,
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "negative chunk": (400, CHUNKED + b"-3\r\none\r\n0\r\n\r\n"),
    "chunk +3": (400, CHUNKED + b"+3\r\none\r\n0\r\n\r\n"),
    "chunk 0x3": (400, CHUNKED + b"0x3\r\none\r\n0\r\n\r\n"),
    "chunk 3_0": (400, CHUNKED + b"3_0\r\none\r\n0\r\n\r\n"),
    "chunk without a size": (400, CHUNKED + b"\r\none\r\n0\r\n\r\n"),
    "chunk with a space": (400, CHUNKED + b"3 \r\none\r\n0\r\n\r\n"),
    "endless chunk": (400, CHUNKED + b"f" * 17 + b"\r\n"),
    "large chunk": (413, CHUNKED + b"100001\r\n"),
    "many chunks": (413, CHUNKED + (b"80000\r\n" + b"x" * 0x80000 + b"\r\n") * 2 + b"1\r\nx\r\n"),
    "chunk that is longer than it says": (400, CHUNKED + b"3\r\nones\r\n0\r\n\r\n"),
    "chunk that ends in LF": (400, CHUNKED + b"3\r\none\n0\r\n\r\n"),
    "chunk size that ends in LF": (400, CHUNKED + b"3\none\r\n0\r\n\r\n"),
    "long chunk extension": (400, CHUNKED + b"3;" + b"x" * 2_000),
    "CR in a chunk extension": (400, CHUNKED + b"3;a\rb\r\none\r\n0\r\n\r\n"),
    "trailer that is no field": (400, CHUNKED + b"0\r\nX : y\r\n\r\n"),
    "trailer that ends in LF": (400, CHUNKED + b"0\r\nX: y\n\r\n"),
    "many trailers": (431, CHUNKED + b"0\r\n" + b"X: 45678\r\n" * 2_100),
    "long trailer": (431, CHUNKED + b"0\r\nX: " + b"y" * 17_000),
    "long head": (431, POST + b"X: " + b"y" * 17_000),
    "long target": (431, b"GET /" + b"y" * 17_000),
    "HTTP/2": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\n\n\r\n\r\n"),
    "unknown expectation": (417, POST + b"Expect: miracles\r\n\r\n"),
}


def test_what_can_be_read_in_two_ways_ends_the_connection(example):
    """One error is the last answer, whatever follows, and the client reads it though it still sends."""
    program = example("web")
    wrong = {}
    for name, (status, request) in REFUSED.items():
        with connect(program.port) as peer:
            # The server must end by itself.
            peer.sendall(GET + request)
            first = read_all(peer)
        followed = converse(program.port, GET + request + LAST * 3)
        for received in (first, followed):
            if statuses(received) != [200, status] or b"Connection: close" not in received:
                wrong[name] = received
    assert wrong == {}
    assert "Traceback" not in program.logged()
    assert "uncaptured" not in program.logged()
    program.stop()


def test_curl_uses_it(example, tmp_path):
    """With each kind of body, and on one connection."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    program = example("web")
    content = bytes(range(256)) * 2_000
    (tmp_path / "body").write_bytes(content)
    url = f"http://127.0.0.1:{program.port}/echo"
    posted = ["--data-binary", "@body", url]
    for options in (
        posted,
        ["-H", "Transfer-Encoding: chunked", *posted],
        ["-H", "Expect: 100-continue", *posted],
        ["--http1.0", *posted],
    ):
        command = [curl, "-sS", "--fail", "--max-time", "20", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert (done.stderr, done.stdout == content) == (b"", True)
    command = [curl, "-sS", "-d", "hello", "-w", "%{num_connects}.", url, url]
    done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    assert done.stdout == b"hello1.hello0."
    done = subprocess.run([curl, "-sSI", url], capture_output=True, check=True, timeout=20)
    assert done.stdout.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")


def test_load_of_pipelined_requests_is_answered(example):
    """Fifty connections at once, 400 requests on each."""
    program = example("web")
    count = []

    def load():
        with connect(program.port) as peer:
            sender = threading.Thread(target=peer.sendall, args=(GET * 399 + LAST,))
            sender.start()
            count.append(len(statuses(read_all(peer))))
            sender.join()

    clients = [threading.Thread(target=load) for _ in range(50)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert count == [400] * 50


def test_signal_ends_idle_connections_and_sends_what_is_queued(example):
    program = example("web", afresh=True)
    with connect(program.port) as peer, connect(program.port) as idle:
        idle.sendall(GET)
        assert idle.recv(20).startswith(b"HTTP/1.1 200")
        peer.sendall(POST + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
        received = peer.recv(20)
        stopping = threading.Thread(target=program.stop)
        stopping.start()
        received += read_all(peer)
        assert received.endswith(b"x" * 1_000_000)
        read_all(idle)
        stopping.join()
