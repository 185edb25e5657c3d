"""``examples/proxy.py`` and ``proxy_legacy.py``, between sockets, and between curl and a web server."""

import http.server
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from helpers.peers import SECONDS, connect, read_all

PIECE = bytes(range(256)) * 256


@pytest.fixture
def upstream():
    """A destination that accepts nothing by itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        yield server


@pytest.fixture
def web():
    """A web server of the standard library; its port."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def to(server):
    return "--to", f"127.0.0.1:{server.getsockname()[1]}"


def accept(server):
    peer = server.accept()[0]
    peer.settimeout(SECONDS)
    return peer


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def ends(peer):
    """Wait for the end of a connection, of either kind."""
    try:
        return read_all(peer)
    except ConnectionResetError:
        return b""


def highest_memory(program):
    """Return the most KiB that a program ever used."""
    status = Path(f"/proc/{program.process.pid}/status")
    if not status.exists():
        pytest.skip("this system does not tell how much memory a process has used")
    return int(status.read_text().partition("VmHWM:")[2].split()[0])


@contextmanager
def meanwhile(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    yield
    thread.join()


def test_each_direction_ends_by_itself(example, upstream):
    """A client that has sent everything gets its answer, and so does a destination."""
    program = example("proxy", *to(upstream))
    with connect(program.port) as client, accept(upstream) as server:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == b"question"
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"
        server.sendall(b" and more")
        server.close()
        assert read_all(client) == b" and more"
    with connect(program.port) as client, accept(upstream) as server:
        server.sendall(b"welcome")
        server.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"welcome"
        client.sendall(b"thanks")
        client.close()
        assert read_all(server) == b"thanks"
    assert program.stop() == ""


def test_client_may_speak_and_end_before_the_destination_is_there(example):
    """A full backlog makes the destination late."""
    with socket.socket() as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.listen(0)
        upstream.settimeout(SECONDS)
        program = example("proxy", *to(upstream))
        port = upstream.getsockname()[1]
        with connect(port) as _, connect(program.port) as client:
            client.sendall(PIECE)
            client.shutdown(socket.SHUT_WR)
            accept(upstream).close()
            with accept(upstream) as server:
                assert read_all(server) == PIECE
                server.sendall(b"late")
                server.close()
                assert read_all(client) == b"late"


def test_client_may_leave_before_the_destination_is_there(example):
    """Nobody is told of a connection that nobody waits for any more, and the end is not delayed."""
    with socket.socket() as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.listen(0)
        program = example("proxy", *to(upstream))
        with connect(upstream.getsockname()[1]):
            client, other = connect(program.port), connect(program.port)
            client.sendall(PIECE)
            reset(client)
            assert program.stop() == ""
            ends(other)
            other.close()
    assert "Traceback" not in program.logged()


def test_client_is_closed_if_the_destination_cannot_be_reached(example):
    program = example("proxy", "--to", f"127.0.0.1:{closed_port()}")
    with connect(program.port) as client:
        assert ends(client) == b""
    assert "Traceback" not in program.logged()


def test_large_amounts_pass_both_ways_in_flat_memory(example, upstream):
    """40 MB each way at once."""
    program = example("proxy", *to(upstream), afresh=True)

    def send(peer):
        for _ in range(640):
            peer.sendall(PIECE)
        peer.shutdown(socket.SHUT_WR)

    def count(peer):
        total = 0
        while data := peer.recv(1 << 20):
            total += len(data)
        return total

    with connect(program.port) as client, accept(upstream) as server:
        before = highest_memory(program)
        totals = []
        with (
            meanwhile(send, client),
            meanwhile(send, server),
            meanwhile(lambda: totals.append(count(server))),
        ):
            totals.append(count(client))
        assert totals == [640 * len(PIECE)] * 2
        assert highest_memory(program) - before < 4_096


@pytest.mark.parametrize("reader", ["client", "server"])
def test_slow_reader_holds_the_sender(example, upstream, reader):
    """And gets everything in the end, though the sender is gone."""
    program = example("proxy", *to(upstream), afresh=True)
    with connect(program.port) as client, accept(upstream) as server:
        slow, sender = (client, server) if reader == "client" else (server, client)
        before = highest_memory(program)
        sender.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 100_000_000:
                sent += sender.send(PIECE)
        assert highest_memory(program) - before < 4_096
        sender.close()
        assert len(read_all(slow)) == sent


@pytest.mark.parametrize("lost", ["client", "server"])
def test_reset_of_one_side_ends_the_other(example, upstream, lost):
    program = example("proxy", *to(upstream))
    with connect(program.port) as client, accept(upstream) as server:
        client.sendall(b"hello")
        assert server.recv(100) == b"hello"
        first, other = (client, server) if lost == "client" else (server, client)
        reset(first)
        assert ends(other) == b""
    assert program.stop() == ""
    assert "Traceback" not in program.logged()


def test_signal_sends_what_is_queued(example, upstream):
    """To a destination that reads later."""
    program = example("proxy", *to(upstream), afresh=True)
    with connect(program.port) as client, accept(upstream) as server:
        client.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 100_000_000:
                sent += client.send(PIECE)
        with meanwhile(program.stop):
            # What the proxy had not read yet is lost.
            assert len(ends(server)) >= 65_536
            ends(client)
            client.close()
    assert "Traceback" not in program.logged()


# -- TLS


@pytest.fixture
def authority(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


@pytest.mark.parametrize("half", ["native", "legacy"])
def test_tls_ends_at_the_proxy(start_half, upstream, authority, half):
    """The destination gets and sends plain text, a megabyte too, and its end is the client's."""
    program = start_half(half, "proxy", "--certificate", "server.pem", *to(upstream))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        connect(program.port) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
        accept(upstream) as server,
    ):
        client.sendall(b"hello")
        assert server.recv(100) == b"hello"
        with meanwhile(client.sendall, PIECE * 16):
            received = b""
            while len(received) < 16 * len(PIECE):
                received += server.recv(1 << 20)
        assert received == PIECE * 16
        with meanwhile(server.sendall, PIECE * 16):
            received = b""
            while len(received) < 16 * len(PIECE):
                received += client.recv(1 << 20)
        assert received == PIECE * 16
        server.close()
        assert client.recv(100) == b""  # an SSLError, were it not for close_notify
    program.stop()


def test_curl_speaks_tls_with_the_proxy(start_half, web, authority, tmp_path):
    for half in ("native", "legacy"):
        program = start_half(
            half, "proxy", "--certificate", "server.pem", "--to", f"127.0.0.1:{web}"
        )
        url = f"https://localhost:{program.port}/"
        assert curl(tmp_path, "--cacert", "ca.pem", url) == b"hello"


def test_tls_is_refused_on_the_standard_library(root):
    """A program that ran without would be read by everybody."""
    if sys.version_info >= (3, 12):
        pytest.skip("this Python has no asyncore of its own")
    program = str(root / "examples/proxy_legacy.py")
    command = [sys.executable, program, "--to", "a:1", "--port", "0", "--certificate", "server.pem"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "--certificate needs txasynchat" in done.stderr


# -- CONNECT


def curl(folder, *arguments):
    program = shutil.which("curl")
    if program is None:
        pytest.skip("no curl here")
    command = [program, "-sS", "--max-time", "20", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.stderr == b""
    return done.stdout


def test_curl_chooses_its_destination(example, web, tmp_path):
    program = example("proxy", "--connect")
    proxy = f"http://127.0.0.1:{program.port}"
    assert curl(tmp_path, "-p", "-x", proxy, f"http://127.0.0.1:{web}/") == b"hello"


def test_curl_chooses_its_destination_over_tls(start_half, web, authority, tmp_path):
    """The way to the proxy is encrypted."""
    for half in ("native", "legacy"):
        program = start_half(half, "proxy", "--connect", "--certificate", "server.pem")
        proxy = ["-p", "-x", f"https://localhost:{program.port}", "--proxy-cacert", "ca.pem"]
        assert curl(tmp_path, *proxy, f"http://127.0.0.1:{web}/") == b"hello"


def test_what_comes_behind_connect_reaches_the_destination(example, upstream):
    """However it is split; and the answer to CONNECT comes first."""
    program = example("proxy", "--connect")
    request = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\nhello" % upstream.getsockname()[1]
    for pieces in ([request], [request[i : i + 1] for i in range(len(request))]):
        with connect(program.port) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            with accept(upstream) as server:
                server.sendall(b"welcome")
                assert read_all(server) == b"hello"
            answer = read_all(client)
        assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nwelcome"


def test_client_is_told_why_there_is_no_connection(example):
    program = example("proxy", "--connect")
    for request, status in (
        (b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % closed_port(), b"502 Bad Gateway"),
        (b"CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"CONNECT a:70000 HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"CONNECT \xff:1 HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"400 Bad Request"),
        (b"CONNECT " + b"a" * 16_500, b"431 Request Header Fields Too Large"),
    ):
        with connect(program.port) as client:
            client.sendall(request)
            assert read_all(client).startswith(b"HTTP/1.1 " + status + b"\r\n")
    with connect(program.port) as client:
        client.sendall(b"CONNECT 127.0.0.1:1 HT")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    program.stop()
    assert "Traceback" not in program.logged()
