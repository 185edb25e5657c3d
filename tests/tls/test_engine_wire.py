"""
The TLS engine on sockets of the loopback: the openssl program at the other end, Twisted's TLS, and
what both of our engines cost.
"""

import contextlib
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from OpenSSL import SSL
from twisted.internet.ssl import Certificate, PrivateCertificate, TLSVersion, optionsForClientTLS
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol

from helpers import support, wire
from helpers.engines import OnSocket, listen
from helpers.support import HOST, client_context, server_options, trust
from txasynchat import errors
from txasynchat.tls import ClientCertificate, ClientOptions, Credentials, Version

EACH_VERSION = pytest.mark.parametrize("version", Version, ids=["1.2", "1.3"])
FLAGS = {Version.TLS_1_2: "-tls1_2", Version.TLS_1_3: "-tls1_3"}
TWISTEDS = {Version.TLS_1_2: TLSVersion.TLSv1_2, Version.TLS_1_3: TLSVersion.TLSv1_3}
NAMES = {Version.TLS_1_2: "1.2", Version.TLS_1_3: "1.3"}


class Echo:
    """A server that echoes lines to one client after the other, until it is told to stop."""

    def __init__(self, options):
        self.options = options
        self.sock = listen()
        self.port = self.sock.getsockname()[1]
        self.ends = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while True:
            plain, _ = self.sock.accept()
            with plain:
                end = OnSocket(self.options.engine(), plain)
                with contextlib.suppress(OSError):
                    end.shake()
                    while (line := end.read_line()) not in (b"", b"stop\n"):
                        end.write(line)
                    end.close()
                self.ends.append(end.engine)
                if line == b"stop\n":
                    return

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.sock:
            if self.thread.is_alive():
                with support.stdlib_client(self.port, client_context()) as client:
                    client.sendall(b"stop\n")
                    client.recv(1)
            self.thread.join(support.PATIENCE)
            assert not self.thread.is_alive()


@contextlib.contextmanager
def program(*arguments):
    with subprocess.Popen(
        ["openssl", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@EACH_VERSION
def test_openssls_client_talks_to_our_server(version, tmp_path):
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes(trust())
    with (
        Echo(server_options(alpn=(b"chat",))) as server,
        program(
            *("s_client", "-quiet", "-no_ign_eof", "-connect", f"127.0.0.1:{server.port}"),
            *(FLAGS[version], "-servername", HOST, "-verify_hostname", HOST, "-alpn", "chat"),
            *("-CAfile", str(authorities), "-verify_return_error"),
        ) as client,
    ):
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        said = client.stdout.readline()
        while said and not said.endswith(b"hello\n"):
            said = client.stdout.readline()
        assert said == b"hello\n"
        client.stdin.close()
        assert client.wait(support.PATIENCE) == 0
    (engine, _) = server.ends
    assert engine.failure is None
    assert engine.peer_closed
    assert engine.server_name == HOST
    assert engine.alpn == b"chat"
    assert engine.version == f"TLSv{NAMES[version]}"


@EACH_VERSION
def test_openssls_client_shows_its_certificate(version, tmp_path):
    certificate = support.authority().issue_cert("someone@example.org")
    file = tmp_path / "client.pem"
    file.write_bytes(support.pem(certificate))
    options = server_options(
        client_certificate=ClientCertificate.OPTIONAL, client_authorities=trust()
    )
    with (
        Echo(options) as server,
        program(
            *("s_client", "-quiet", "-connect", f"127.0.0.1:{server.port}", FLAGS[version]),
            *("-cert", str(file), "-key", str(file)),
        ) as client,
    ):
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        while client.stdout.readline() not in (b"hello\n", b""):
            pass
    assert server.ends[0].peer_certificate_der is not None


def test_openssls_client_may_ask_for_keys_again():
    """Its command K updates the keys of TLS 1.3 and asks for ours."""
    with (
        Echo(server_options()) as server,
        program("s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_3") as client,
    ):
        for command, answer in ((b"hello\n", b"hello\n"), (b"K\n", b"KEYUPDATE\n")) * 2:
            client.stdin.write(command)
            client.stdin.flush()
            while (line := client.stdout.readline()) != answer:
                assert line
        client.stdin.close()
        client.wait(support.PATIENCE)
    assert server.ends[0].failure is None


def test_a_client_that_renegotiates_is_refused():
    with Echo(server_options()) as server:
        said = wire.ask_for_renegotiation(server.port)
    assert b"no renegotiation" in said


@EACH_VERSION
def test_our_client_talks_to_openssls_server(version, tmp_path):
    file = tmp_path / "server.pem"
    file.write_bytes(support.pem(support.leaf()))
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    with program(
        *("s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(file), "-key", str(file)),
        *("-rev", FLAGS[version], "-alpn", "chat"),
    ) as server:
        while b"ACCEPT" not in (line := server.stdout.readline()):
            assert line
        with socket.create_connection(("127.0.0.1", port)) as sock:
            end = OnSocket(ClientOptions(HOST, trust(), alpn=(b"chat",)).engine(), sock).shake()
            assert end.engine.failure is None
            assert end.engine.alpn == b"chat"
            assert end.engine.version == f"TLSv{NAMES[version]}"
            end.write(b"hello\n")
            assert end.read_line() == b"olleh\n"
            end.write(b"CLOSE\n")
            assert end.read_all() == b""
            assert (end.engine.peer_closed, end.engine.failure) == (True, None)


def test_a_client_meets_a_server_that_does_not_speak_tls():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"220 mail.example.org ESMTP\r\n")
        end = OnSocket(ClientOptions(HOST, trust()).engine(), ours).shake()
        assert type(end.engine.failure) is errors.HandshakeFailed
        assert str(end.engine.failure) == "wrong version number"


@EACH_VERSION
def test_megabytes_go_both_ways_at_once(version):
    data = bytes(range(256)) * 16_384
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(4) as pool:
        server = pool.submit(lambda: OnSocket(server_options().engine(), theirs).shake())
        client = OnSocket(ClientOptions(HOST, trust(), maximum=version).engine(), ours).shake()
        server = server.result()

        def say(end):
            end.write(data)
            end.close()

        def hear(end):
            return end.read_all()

        # One engine, one thread: first this way, then that way.
        for one, other in ((client, server), (server, client)):
            saying = pool.submit(say, one)
            assert hear(other) == data
            saying.result()
        for end in (client, server):
            assert (end.engine.failure, end.engine.peer_closed) == (None, True)


IDLE = """
import gc
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.engines import Link
from helpers.support import *
from txasynchat.tls import ClientOptions, Version
def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
server = server_options()
kept = []
for version in Version:
    client = ClientOptions(HOST, trust(), maximum=version)
    for size in (64, 70_000):
        def more(count):
            for _ in range(count):
                made = Link(client.engine(), server.engine()).run()
                made.say(b"x" * size)
                made.answer(b"x" * size)
                kept.append(made.server)
        more(50)
        before = resident()
        more(150)
        print((resident() - before) / 150)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory")
@pytest.mark.slow
def test_idle_connections_take_less_than_20_kib_and_busy_ones_less_than_three_times_that(tmp_path):
    """A server's, with all that OpenSSL has for them; the others have once had 70 KB each way."""
    script = tmp_path / "idle.py"
    script.write_text(IDLE)
    found = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parents[1])],
        capture_output=True,
        timeout=120,
        check=True,
    )
    figures = [float(line) for line in found.stdout.split()]
    assert max(figures[::2]) < 20, figures
    assert max(figures[1::2]) < 60, figures


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@EACH_VERSION
def test_what_was_agreed_on_is_what_twisteds_tls_says_of_it(version):
    """Every field of `TLSInfo`, of the same certificates and options."""
    certificate = support.authority().issue_cert("someone@example.org")
    server = server_options(
        alpn=(b"chat",), client_certificate=ClientCertificate.OPTIONAL, client_authorities=trust()
    )
    client = optionsForClientTLS(
        HOST,
        trustRoot=Certificate.loadPEM(trust()),
        clientCertificate=PrivateCertificate.loadPEM(support.pem(certificate)),
        acceptableProtocols=[b"chat"],
        extraCertificateOptions={"lowerMaximumSecurityTo": TWISTEDS[version]},
    )
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        theirs.settimeout(support.PATIENCE)
        shaking = pool.submit(shake_by_hand, client, theirs)
        end = OnSocket(server.engine(), ours).shake()
        reference = shaking.result()
        chain = Credentials(support.pem(certificate)).load().chain
        reference["peer_certificate_der"] = chain[0].public_bytes(
            support.serialization.Encoding.DER
        )
        for name, value in reference.items():
            assert getattr(end.engine, name) == value, name


def shake_by_hand(options, sock):
    """The client's side by pyOpenSSL; return what it knows."""
    connection = options.clientConnectionForTLS(TLSMemoryBIOProtocol(WrappingFactory(None), None))
    connection.set_connect_state()
    while True:
        try:
            connection.do_handshake()
            break
        except SSL.WantReadError:
            send_made(connection, sock)
            connection.bio_write(sock.recv(65_536))
    send_made(connection, sock)
    return {
        "version": connection.get_protocol_version_name(),
        "cipher": connection.get_cipher_name(),
        "alpn": connection.get_alpn_proto_negotiated(),
        "server_name": connection.get_servername().decode(),
    }


def send_made(connection, sock):
    with contextlib.suppress(SSL.WantReadError):
        while True:
            sock.sendall(connection.bio_read(65_536))
