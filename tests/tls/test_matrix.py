"""
Every server of ours against every kind of client, in both versions, on every reactor.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.ssl import Certificate, TLSVersion, optionsForClientTLS
from twisted.protocols.basic import LineOnlyReceiver
from twisted.trial import unittest
from typing_extensions import override

from helpers import support
from helpers.support import HOST, client_context, in_thread, leaf, pem, trust
from txasynchat import AsyncChat
from txasynchat.endpoints import SecureClientEndpoint
from txasynchat.tls import ClientOptions, Version

SERVER = Path(support.__file__).with_name("serve.py")
SOURCE = Path(__file__).parents[2] / "src"
TWISTED = {
    "1.2": {"lowerMaximumSecurityTo": TLSVersion.TLSv1_2},
    "1.3": {"raiseMinimumTo": TLSVersion.TLSv1_3},
}
OURS = {"1.2": Version.TLS_1_2, "1.3": Version.TLS_1_3}


class Program:
    """A running serve.py, and the addresses it listens on."""

    def __init__(self, name, folder):
        certificate = folder / "server.pem"
        certificate.write_bytes(pem(leaf()))
        self.authorities = folder / "authorities.pem"
        self.authorities.write_bytes(trust())
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), name, str(certificate), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": f"{SOURCE}", "PATH": "/usr/bin:/bin"},
        )
        self.places = json.loads(self.process.stdout.readline() or b"{}")

    def stop(self):
        _, said = self.process.communicate(timeout=support.PATIENCE)
        return self.process.returncode, said.decode()


def connected(place):
    if isinstance(place, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(support.PATIENCE)
        sock.connect(place)
        return sock
    return socket.create_connection(("127.0.0.1", place), support.PATIENCE)


def stdlib(program, kind, place, version):
    sock = connected(place)
    if kind.endswith("starttls"):
        assert support.read_line(sock) == b"+OK ready\r\n"
        sock.sendall(b"STLS\r\n")
        assert support.read_line(sock) == b"+OK begin\r\n"
    with client_context(version).wrap_socket(sock, server_hostname=HOST) as tls:
        tls.sendall(b"hello\n")
        answer = support.read_line(tls)
        tls.unwrap().close()
        return answer


def openssl(program, kind, place, version):
    where = ["-unix", place] if isinstance(place, str) else ["-connect", f"127.0.0.1:{place}"]
    starttls = ["-starttls", "pop3"] if kind.endswith("starttls") else []
    with subprocess.Popen(
        [
            *("openssl", "s_client", "-quiet", "-no_ign_eof", *where, *starttls),
            *(f"-tls1_{version[-1]}", "-servername", HOST, "-verify_hostname", HOST),
            *("-CAfile", str(program.authorities), "-verify_return_error"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        answer = client.stdout.readline()
        if answer.startswith(b"+OK"):  # it passes on what the server said before
            answer = client.stdout.readline()
        _, said = client.communicate(timeout=support.PATIENCE)
        assert client.returncode == 0, said
        return answer


def endpoint(place):
    if isinstance(place, str):
        return UNIXClientEndpoint(reactor, place)
    return TCP4ClientEndpoint(reactor, "127.0.0.1", place)


class TwistedClient(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(self, options, starttls):
        self.options, self.starttls = options, starttls
        self.answer, self.lost = Deferred(), Deferred()

    @override
    def connectionMade(self):
        if not self.starttls:
            self.sendLine(b"hello")

    @override
    def lineReceived(self, line):
        if line == b"+OK ready\r":
            self.sendLine(b"STLS")
        elif line == b"+OK begin\r":
            self.transport.startTLS(self.options)
            self.sendLine(b"hello")
        else:
            self.answer.callback(line + b"\n")
            self.transport.loseConnection()

    @override
    def connectionLost(self, reason):
        self.lost.callback(None)


async def twisted(program, kind, place, version):
    options = optionsForClientTLS(
        HOST,
        trustRoot=Certificate.loadPEM(trust()),
        extraCertificateOptions=TWISTED[version],
    )
    starttls = kind.endswith("starttls")
    where = endpoint(place) if starttls else wrapClientTLS(options, endpoint(place))
    client = await connectProtocol(where, TwistedClient(options, starttls))
    answer = await client.answer
    await client.lost
    return answer


class OurClient(AsyncChat):
    terminator = b"\n"

    def __init__(self, options):
        self.options = options
        self.answer, self.lost = Deferred(), Deferred()

    def handle_connect(self):
        if self.tls:
            self.push(b"hello\n")

    def handle_secure(self, info):
        if self.options:
            self.push(b"hello\n")

    def message_received(self, message):
        if message == b"+OK ready\r":
            self.push(b"STLS\n")
        elif message == b"+OK begin\r":
            self.start_tls(self.options)
        else:
            self.answer.callback(message + b"\n")
            self.close()

    @override
    def connectionLost(self, reason):
        super().connectionLost(reason)
        self.lost.callback(self.close_reason)


async def ours(program, kind, place, version):
    options = ClientOptions(HOST, trust(), minimum=OURS[version], maximum=OURS[version])
    starttls = kind.endswith("starttls")
    where = endpoint(place) if starttls else SecureClientEndpoint(reactor, endpoint(place), options)
    client = await connectProtocol(where, OurClient(options if starttls else None))
    answer = await client.answer
    assert await client.lost is None
    return answer


class Matrix(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    async def play(self, name):
        program = await in_thread(Program, name, self.folder)
        self.addCleanup(program.process.kill)
        played = 0
        for kind, place in program.places.items():
            for version in support.VERSIONS:
                for blocking in (stdlib, openssl):
                    answer = await in_thread(blocking, program, kind, place, version)
                    self.assertEqual(answer, b"hello\n", (kind, version, blocking))
                for mine in (twisted, ours):
                    answer = await mine(program, kind, place, version)
                    self.assertEqual(answer, b"hello\n", (kind, version, mine))
                played += 4
        self.assertEqual(await in_thread(program.stop), (0, ""))
        self.assertEqual(played, (7 if name == "private" else 8) * 8)

    def test_every_client_talks_to_every_server_on_epoll(self):
        return Deferred.fromCoroutine(self.play("epoll"))

    def test_every_client_talks_to_every_server_on_poll(self):
        return Deferred.fromCoroutine(self.play("poll"))

    def test_every_client_talks_to_every_server_on_select(self):
        return Deferred.fromCoroutine(self.play("select"))

    def test_every_client_talks_to_every_server_on_asyncio(self):
        return Deferred.fromCoroutine(self.play("asyncio"))

    def test_every_client_talks_to_every_server_on_a_private_reactor(self):
        return Deferred.fromCoroutine(self.play("private"))
