"""
What the tests of TLS share: certificates made for this run, handlers that take notes, and clients
of other makes.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from typing_extensions import override

from txasynchat import AsyncChat
from txasynchat.endpoints import SecureClientEndpoint, SecureServerEndpoint
from txasynchat.tls import Credentials, ServerOptions

HOST = "chat.example.org"
PATIENCE = 20.0
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@cache
def authority() -> trustme.CA:
    """The authority that the tests trust."""
    return trustme.CA()


@cache
def stranger() -> trustme.CA:
    """An authority that the tests do not trust."""
    return trustme.CA()


@cache
def leaf(*names: str) -> trustme.LeafCert:
    return authority().issue_cert(*(names or (HOST, "127.0.0.1", "localhost")))


def pem(certificate: trustme.LeafCert) -> bytes:
    """Certificate, chain and key in one."""
    chain = b"".join(one.bytes() for one in certificate.cert_chain_pems)
    return chain + certificate.private_key_pem.bytes()


def credentials(*names: str) -> Credentials:
    return Credentials(pem(leaf(*names)))


def trust() -> bytes:
    return authority().cert_pem.bytes()


def write(folder: Path, certificate: trustme.LeafCert, name: str = "server") -> tuple[Path, Path]:
    """Write the files of a certificate and its key."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return chain, key


def self_signed(name: str = HOST) -> bytes:
    """A self-signed certificate, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


class Notes(AsyncChat):
    """Echoes lines, and notes its calls in order."""

    terminator = b"\n"

    def __init__(self) -> None:
        self.notes: list[object] = []
        self.closed: Deferred[Notes] = Deferred()
        self.connected_: Deferred[Notes] = Deferred()

    def handle_secure(self, info):
        self.notes.append(("secure", info))

    def handle_connect(self):
        self.notes.append("connect")
        self.connected_.callback(self)

    def message_received(self, message):
        self.notes.append(message)
        self.push(message + b"\n")

    @override
    def connectionLost(self, reason):
        super().connectionLost(reason)
        self.closed.callback(self)

    def handle_close(self):
        self.notes.append("close")


def client_context(version: str | None = None, **files) -> ssl.SSLContext:
    """A context of the standard library that trusts `authority`."""
    context = ssl.create_default_context(cadata=trust().decode())
    if version is not None:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


def stdlib_client(
    port: int | str | socket.socket, context: ssl.SSLContext, name: str | None = HOST
) -> ssl.SSLSocket:
    """Connect, unless there is a connection already, and perform the handshake."""
    if isinstance(port, str):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(PATIENCE)
        plain.connect(port)
    elif isinstance(port, int):
        plain = socket.create_connection(("127.0.0.1", port), PATIENCE)
    else:
        plain = port
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def read_line(client: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = client.recv(65536)
        if not data:
            break
        line += data
    return line


def talk(
    port: int | str | socket.socket, context: ssl.SSLContext, line: bytes = b"hello\n"
) -> bytes:
    """Send one line, read its echo, and end in order; blocking."""
    with stdlib_client(port, context) as client:
        client.sendall(line)
        answer = read_line(client)
        client.unwrap().close()
        return answer


def in_thread(function, *arguments) -> Deferred:
    return deferToThread(function, *arguments)


async def until(condition) -> None:
    """Run the reactor until *condition* holds, or the test case times out."""
    while not condition():
        await deferLater(reactor, 0.002)


def openssl(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """Run the openssl program."""
    return subprocess.run(
        ["openssl", *arguments], input=stdin, capture_output=True, timeout=PATIENCE, check=False
    )


def use_certificate(context) -> None:
    """Give a context of pyOpenSSL the certificate of `leaf`."""
    loaded = credentials().load()
    context.use_certificate(loaded.chain[0])
    context.use_privatekey(loaded.key)


def in_memory_handshake(context: ssl.SSLContext, options: ServerOptions) -> ssl.SSLSession | None:
    """Perform a handshake without a network; return the session that the client can resume."""
    server = options.engine()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    # The server's tickets come after its handshake, before its data.
    for _ in range(3):
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        if (sent := outgoing.read()) and server.feed(sent):
            server.shake_hands()
        incoming.write(server.take())
    with suppress(ssl.SSLWantReadError):
        client.read()
    return client.session


class Server:
    """A listening `SecureServerEndpoint`, and the handlers it has made."""

    def __init__(self, case, options, handler=Notes, wrap=None, plain=False, number=0):
        self.options = options
        self.number = number
        self.handlers = []
        self.made = []
        factory = Factory()
        factory.buildProtocol = self._build
        factory.noisy = False
        self._handler = handler
        self._expected: list[Deferred] = []
        self.factory = wrap(factory) if wrap else factory
        self.case = case
        self.plain = plain

    def _build(self, _):
        handler = self._handler()
        self.handlers.append(handler)
        if self._expected:
            self._expected.pop(0).callback(handler)
        return handler

    async def listen(self):
        # A client that finds the backlog full tries again after a second.
        endpoint = TCP4ServerEndpoint(reactor, self.number, backlog=1000, interface="127.0.0.1")
        if not self.plain:
            endpoint = SecureServerEndpoint(reactor, endpoint, self.options)
        port = await endpoint.listen(self.factory)
        self.case.addCleanup(port.stopListening)
        self.port = port.getHost().port
        return self

    def next(self):
        """Fires with the next handler that is made."""
        expected = Deferred()
        self._expected.append(expected)
        return expected


def twisted_options(*names):
    """What a Twisted application brings."""
    return PrivateCertificate.loadPEM(pem(leaf(*names))).options()


def server_options(**arguments):
    arguments.setdefault("credentials", credentials())
    return ServerOptions(**arguments)


def connect(port, options, handler):
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    return connectProtocol(SecureClientEndpoint(reactor, endpoint, options), handler)
