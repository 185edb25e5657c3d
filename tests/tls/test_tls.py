"""
Handshakes, certificates and ends of TLS: real sockets, real OpenSSL, other libraries' clients.

Also covers `tls.options` and `tls.info`.
"""

import contextlib
import socket
import ssl
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate, load_pem_x509_certificates
from service_identity import VerificationError
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, clientFromString, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.logger import globalLogPublisher
from twisted.protocols.policies import WrappingFactory
from twisted.trial import unittest
from typing_extensions import override

from helpers import support
from helpers.support import (
    HOST,
    Notes,
    Server,
    client_context,
    connect,
    credentials,
    in_thread,
    leaf,
    pem,
    server_options,
    trust,
)
from txasynchat import errors
from txasynchat.tls import (
    ClientCertificate,
    ClientOptions,
    Credentials,
    ServerOptions,
    Version,
    contexts,
)
from txasynchat.tls.certificates import Loaded


class Talk(unittest.TestCase):
    async def test_handle_secure_precedes_handle_connect_and_data_in_both_versions(self):
        for version in support.VERSIONS:
            server = await Server(self, server_options()).listen()
            handler = server.next()
            answer = await in_thread(support.talk, server.port, client_context(version))
            notes = (await handler).notes
            self.assertEqual(answer, b"hello\n")
            (kind, info), *rest = notes
            await server.handlers[0].closed
            self.assertEqual((kind, rest[:2]), ("secure", ["connect", b"hello"]))
            self.assertEqual(info.version, f"TLSv{version}")
            self.assertEqual(info.server_name, HOST)
            self.assertIsNone(info.peer_certificate)
            self.assertIsNone(server.handlers[0].close_reason)

    async def test_our_client_talks_to_our_server(self):
        server = await Server(self, server_options()).listen()
        client = await connect(server.port, ClientOptions(HOST, trust()), Notes())
        client.push(b"hello\n")
        got = Deferred()
        client.message_received = got.callback
        self.assertEqual(await got, b"hello")
        client.close()
        await gatherResults([client.closed, server.handlers[0].closed])
        self.assertIsNone(client.close_reason)
        self.assertIsNone(server.handlers[0].close_reason)
        self.assertEqual(client.notes[0][1].peer_certificate, _x509(leaf()))

    async def test_protocol_that_raises_before_the_handshake_is_disconnected(self):
        """Its client is disconnected at once."""
        lost = Deferred()

        class Failing(Protocol):
            @override
            def connectionMade(self):
                raise ValueError("no")

            @override
            def connectionLost(self, reason):
                lost.callback(reason.type)

        server = await Server(self, server_options(), handler=Failing).listen()
        handler = Notes()
        connecting = connect(server.port, ClientOptions(HOST, trust()), handler)
        await self.assertFailure(connecting, errors.HandshakeFailed)
        self.assertIs(await lost, ValueError)
        await handler.closed
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_handle_secure_is_called_through_policy_wrappers(self):
        server = await Server(
            self, server_options(), wrap=lambda f: WrappingFactory(WrappingFactory(f))
        ).listen()
        answer = await in_thread(support.talk, server.port, client_context())
        self.assertEqual(answer, b"hello\n")
        (handler,) = server.handlers
        await handler.closed
        self.assertEqual(
            [n if isinstance(n, (str, bytes)) else n[0] for n in handler.notes][:3],
            ["secure", "connect", b"hello"],
        )


def _x509(certificate):
    return load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes())


class Eager(Notes):
    """Sends a secret as soon as it can: at once, or after STARTTLS."""

    options = None
    reason = None

    @override
    def connectionMade(self):
        if self.options is None:
            self.push(b"secret\n")

    def handle_connect(self):
        super().handle_connect()
        if self.options is not None:
            self.push(b"STARTTLS\n")

    def message_received(self, message):
        self.start_tls(self.options)
        self.push(b"secret\n")

    def handle_secure(self, info):
        self.notes.append("secure")

    @override
    def connectionLost(self, reason):
        self.reason = reason
        super().connectionLost(reason)


class Upgrading(Notes):
    """Starts TLS on request."""

    def message_received(self, message):
        self.notes.append(message)
        if message == b"STARTTLS":
            self.push(b"go\n")
            self.start_tls(server_options())


class Verification(unittest.TestCase):
    """Each failure is its own error; no handler is connected, and nothing is delivered."""

    async def refused(self, kind, server, client, server_kind=errors.HandshakeFailed):
        server = await Server(self, server).listen()
        handler = Notes()
        error = await self.assertFailure(connect(server.port, client, handler), kind)
        self.assertIs(type(error), kind)
        self.assertEqual(handler.notes, [], "the one who connects is told first")
        await handler.closed
        self.assertIs(handler.close_reason, error)
        self.assertEqual(handler.notes, ["close"])
        (other,) = server.handlers
        await other.closed
        self.assertIsInstance(other.close_reason, server_kind)
        self.assertEqual(other.notes, ["close"])
        return error, other.close_reason

    async def test_certificate_for_another_name_is_refused(self):
        error, _ = await self.refused(
            errors.WrongName,
            server_options(credentials=credentials("other.example.org")),
            ClientOptions(HOST, trust()),
        )
        self.assertIn(HOST, str(error))

    async def test_certificate_for_another_address_is_refused(self):
        await self.refused(
            errors.WrongName,
            server_options(credentials=credentials("127.0.0.2")),
            ClientOptions("127.0.0.1", trust()),
        )

    async def test_ip_address_is_verified_too(self):
        server = await Server(self, server_options()).listen()
        client = await connect(server.port, ClientOptions("127.0.0.1", trust()), Notes())
        self.assertIsNone(client.tls.server_name)
        client.close()
        await gatherResults([client.closed, server.handlers[0].closed])

    def authorities_file(self):
        file = Path(self.mktemp())
        file.write_bytes(trust())
        return file

    async def test_no_client_sends_data_to_a_server_with_another_name(self):
        roots = trustRootFromCertificates([Certificate.loadPEM(trust())])
        file = self.authorities_file()
        server = await Server(self, server_options()).listen()
        plain = await Server(self, server_options(), handler=Upgrading, plain=True).listen()
        string = f"secure:tcp:127.0.0.1:{server.port}:ca={file}:hostname="

        async def endpoint(options, handler):
            await connect(server.port, options, handler)

        async def of_string(name, handler):
            await connectProtocol(clientFromString(reactor, string + name), handler)

        async def after_starttls(options, handler):
            handler.options = options
            client = TCP4ClientEndpoint(reactor, "127.0.0.1", plain.port)
            await connectProtocol(client, handler)
            await handler.closed
            handler.reason.raiseException()

        twisted = partial(optionsForClientTLS, trustRoot=roots)
        for name in ("wrong.example.org", "127.0.0.2"):
            for how, who, refusal in (
                (endpoint, ClientOptions(name, trust()), errors.WrongName),
                # Every failure to connect is an error of this package.
                (endpoint, twisted(name), errors.HandshakeFailed),
                (of_string, name, errors.WrongName),
                (after_starttls, ClientOptions(name, trust()), errors.WrongName),
                (after_starttls, twisted(name), VerificationError),
            ):
                handler = Eager()
                with self.assertRaises(refusal) as caught:
                    await how(who, handler)
                self.assertIs(type(caught.exception), refusal)
                if refusal is errors.HandshakeFailed:
                    self.assertIs(type(caught.exception.__cause__), VerificationError)
                self.assertNotIn(
                    "connect" if how is not after_starttls else "secure", handler.notes
                )
        for handler in (*server.handlers, *plain.handlers):
            await handler.closed
            self.assertNotIn(b"secret", handler.notes)

    async def test_self_signed_certificate_is_refused(self):
        await self.refused(
            errors.SelfSigned,
            server_options(credentials=Credentials(support.self_signed())),
            ClientOptions(HOST, trust()),
        )

    async def test_certificate_of_an_unknown_authority_is_refused(self):
        foreign = support.stranger().issue_cert(HOST)
        _, told = await self.refused(
            errors.UnknownAuthority,
            server_options(credentials=Credentials(pem(foreign))),
            ClientOptions(HOST, trust()),
        )
        self.assertIn("unknown ca", str(told))

    async def test_the_systems_authorities_are_the_default(self):
        await self.refused(errors.UnknownAuthority, server_options(), ClientOptions(HOST))

    async def test_expired_certificate_is_refused(self):
        server = server_options()
        expired = support.authority().issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC))
        # No server of ours would start with it, so it replaces the good one later.
        loaded = Loaded(
            load_pem_x509_certificates(expired.cert_chain_pems[0].bytes()),
            load_pem_private_key(expired.private_key_pem.bytes(), None),
            frozenset(),
        )
        made = server._contexts
        made._made[0] = contexts._Pair(lambda: made._make(loaded), single=False)
        server._contexts._by_name.clear()
        _, told = await self.refused(
            errors.CertificateExpired, server, ClientOptions(HOST, trust())
        )
        self.assertIn("expired", str(told))

    async def test_client_without_the_required_certificate_is_refused(self):
        for version in Version:
            options = server_options(
                client_certificate=ClientCertificate.REQUIRED, client_authorities=trust()
            )
            server = await Server(self, options).listen()
            client = Notes()
            connecting = connect(server.port, ClientOptions(HOST, trust(), maximum=version), client)
            if version is Version.TLS_1_2:
                await self.assertFailure(connecting, errors.HandshakeFailed)
            else:
                # The client learns of it when it reads.
                await connecting
            await client.closed
            (handler,) = server.handlers
            await handler.closed
            self.assertIs(type(handler.close_reason), errors.MissingClientCertificate)
            self.assertEqual(handler.notes, ["close"])
            if version is Version.TLS_1_3:
                self.assertIs(type(client.close_reason), errors.MissingClientCertificate)

    async def test_client_certificate_of_an_unknown_authority_is_refused(self):
        options = server_options(
            client_certificate=ClientCertificate.OPTIONAL, client_authorities=trust()
        )
        server = await Server(self, options).listen()
        client = Notes()
        foreign = Credentials(pem(support.stranger().issue_cert("someone@example.org")))
        await connect(server.port, ClientOptions(HOST, trust(), credentials=foreign), client)
        await client.closed
        (handler,) = server.handlers
        await handler.closed
        self.assertIs(type(handler.close_reason), errors.UnknownAuthority)
        self.assertEqual(handler.notes, ["close"])

    async def test_client_certificate_reaches_handle_secure(self):
        certificate = support.authority().issue_cert("someone@example.org")
        for mode in (ClientCertificate.OPTIONAL, ClientCertificate.REQUIRED):
            options = server_options(client_certificate=mode, client_authorities=trust())
            server = await Server(self, options).listen()
            ours = Credentials(pem(certificate))
            client = await connect(
                server.port, ClientOptions(HOST, trust(), credentials=ours), Notes()
            )
            (handler,) = server.handlers
            await handler.connected_
            self.assertEqual(handler.notes[0][1].peer_certificate, _x509(certificate))
            client.close()
            await gatherResults([client.closed, handler.closed])

    async def test_an_optional_certificate_may_be_missing(self):
        options = server_options(
            client_certificate=ClientCertificate.OPTIONAL, client_authorities=trust()
        )
        server = await Server(self, options).listen()
        answer = await in_thread(support.talk, server.port, client_context())
        self.assertEqual(answer, b"hello\n")
        await server.handlers[0].closed


class Names(unittest.TestCase):
    """Several certificates on one port."""

    def options(self, **arguments):
        return server_options(
            credentials=[
                credentials("first.example.org"),
                credentials("second.example.org", "*.wild.example.org"),
            ],
            **arguments,
        )

    async def names(self, server, asked):
        def ask():
            context = client_context()
            context.check_hostname = False
            with support.stdlib_client(server.port, context, asked) as client:
                names = client.getpeercert()["subjectAltName"]
                client.unwrap().close()
                return {name for _, name in names}

        names = await in_thread(ask)
        await gatherResults([handler.closed for handler in server.handlers])
        return names

    async def test_a_client_gets_the_certificate_for_the_name_it_asks_for(self):
        server = await Server(self, self.options()).listen()
        second = {"second.example.org", "*.wild.example.org"}
        first = {"first.example.org"}
        self.assertEqual(await self.names(server, "second.example.org"), second)
        self.assertEqual(await self.names(server, "SECOND.example.org"), second)
        self.assertEqual(await self.names(server, "any.wild.example.org"), second)
        self.assertEqual(await self.names(server, "first.example.org"), first)
        self.assertEqual(await self.names(server, "deep.any.wild.example.org"), first)
        self.assertEqual(await self.names(server, "unknown.example.org"), first)
        self.assertEqual(await self.names(server, None), first)

    async def test_an_unknown_name_is_refused_when_strict(self):
        for version in support.VERSIONS:
            server = await Server(self, self.options(strict_names=True)).listen()
            with self.assertRaises(ssl.SSLError) as refused:
                await in_thread(
                    support.stdlib_client,
                    server.port,
                    client_context(version),
                    "unknown.example.org",
                )
            self.assertIn("UNRECOGNIZED_NAME", str(refused.exception))
            (handler,) = server.handlers
            await handler.closed
            self.assertIs(type(handler.close_reason), errors.UnknownServerName)
            self.assertEqual(handler.notes, ["close"])

    async def test_client_that_sends_no_name_is_accepted_when_strict(self):
        server = await Server(self, self.options(strict_names=True)).listen()
        self.assertEqual(await self.names(server, None), {"first.example.org"})


class Protocols(unittest.TestCase):
    """ALPN."""

    async def agree(self, offered, **arguments):
        server = await Server(
            self, server_options(alpn=(b"chat/2", b"chat/1"), **arguments)
        ).listen()
        context = client_context()
        if offered:
            context.set_alpn_protocols(offered)

        def ask():
            with support.stdlib_client(server.port, context) as client:
                client.sendall(b"hello\n")
                answered = support.read_line(client)
                chosen = client.selected_alpn_protocol()
                client.unwrap().close()
                return chosen, answered

        try:
            return await in_thread(ask)
        finally:
            (self.handler,) = server.handlers
            await self.handler.closed

    async def test_server_preference_decides(self):
        self.assertEqual(await self.agree(["chat/1", "chat/2"]), ("chat/2", b"hello\n"))
        self.assertEqual(self.handler.notes[0][1].alpn, b"chat/2")

    async def test_lack_of_a_common_protocol_is_refused(self):
        with self.assertRaises(ssl.SSLError) as refused:
            await self.agree(["http/1.1"])
        self.assertIn("no application protocol", str(refused.exception).lower().replace("_", " "))
        self.assertIs(type(self.handler.close_reason), errors.NoCommonProtocol)

    async def test_lack_of_a_common_protocol_is_accepted_if_not_strict(self):
        self.assertEqual(await self.agree(["http/1.1"], strict_alpn=False), (None, b"hello\n"))

    async def test_client_that_offers_no_protocol_is_accepted_by_default(self):
        self.assertEqual(await self.agree([]), (None, b"hello\n"))
        self.assertIsNone(self.handler.notes[0][1].alpn)

    async def test_client_that_offers_no_protocol_is_refused_if_one_is_required(self):
        # It learns of it after its own handshake.
        with contextlib.suppress(OSError):
            _, answered = await self.agree([], require_alpn=True)
            self.assertEqual(answered, b"")
        self.assertIs(type(self.handler.close_reason), errors.NoCommonProtocol)
        self.assertEqual(self.handler.notes, ["close"])

    async def test_client_refuses_a_server_that_selects_no_protocol(self):
        server = await Server(self, server_options()).listen()
        handler = Notes()
        options = ClientOptions(HOST, trust(), alpn=(b"chat/1",))
        await self.assertFailure(connect(server.port, options, handler), errors.NoCommonProtocol)
        await handler.closed
        self.assertEqual(handler.notes, ["close"])
        await server.handlers[0].closed


class Sessions(unittest.TestCase):
    async def reused(self, version, **arguments):
        server = await Server(self, server_options(**arguments)).listen()
        context = client_context(version)

        def twice():
            session = None
            for _ in range(2):
                plain = socket.create_connection(("127.0.0.1", server.port), support.PATIENCE)
                with context.wrap_socket(plain, server_hostname=HOST, session=session) as client:
                    client.sendall(b"hello\n")
                    support.read_line(client)
                    session, reused = client.session, client.session_reused
                    client.unwrap().close()
            return reused

        try:
            return await in_thread(twice)
        finally:
            await gatherResults([handler.closed for handler in server.handlers])

    async def test_returning_client_makes_a_full_handshake(self):
        for version in support.VERSIONS:
            self.assertFalse(await self.reused(version))

    async def test_sessions_shorten_the_handshake(self):
        for version in support.VERSIONS:
            self.assertTrue(await self.reused(version, sessions=True))
            self.assertTrue(
                await self.reused(
                    version,
                    sessions=True,
                    client_certificate=ClientCertificate.OPTIONAL,
                    client_authorities=trust(),
                )
            )


class Start(unittest.TestCase):
    """Faults of our own files raise when the options are made."""

    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.certificate, self.key = support.write(self.folder, leaf())

    def complaint(self, *arguments, **more):
        with self.assertRaises(errors.CredentialsError) as raised:
            ServerOptions(Credentials(*arguments), **more)
        self.assertIsInstance(raised.exception, ValueError)
        return str(raised.exception)

    def test_missing_certificate_is_named(self):
        self.assertEqual(
            self.complaint(self.folder / "none.pem", self.key),
            f"{self.folder.absolute()}/none.pem: No such file or directory",
        )

    def test_missing_key_is_named(self):
        self.assertEqual(
            self.complaint(self.certificate, self.folder / "none.key"),
            f"{self.folder.absolute()}/none.key: No such file or directory",
        )

    def test_folder_in_place_of_a_file_is_named(self):
        self.assertIn("Is a directory", self.complaint(self.folder, self.key))

    def test_file_without_a_certificate_is_named(self):
        self.assertEqual(
            self.complaint(self.key, self.key),
            f"{self.key.absolute()}: has no certificate in PEM",
        )

    def test_file_without_a_key_is_named(self):
        self.assertEqual(
            self.complaint(self.certificate),
            f"{self.certificate.absolute()}: has no private key in PEM",
        )

    def test_key_of_another_certificate_is_refused(self):
        _, other = support.write(self.folder, support.authority().issue_cert(HOST), "other")
        self.assertEqual(
            self.complaint(self.certificate, other),
            f"{other.absolute()}: is not the key of the certificate in"
            f" {self.certificate.absolute()}",
        )

    def test_key_with_a_pass_phrase_is_refused(self):
        key = load_pem_private_key(self.key.read_bytes(), None)
        self.key.write_bytes(
            key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass phrase")
            )
        )
        self.assertIn("remove its pass phrase", self.complaint(self.certificate, self.key))

    def test_own_expired_certificate_is_refused(self):
        expired = support.authority().issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC))
        files = support.write(self.folder, expired, "expired")
        self.assertEqual(
            self.complaint(*files), f"{files[0].absolute()}: expired at 2020-01-01 00:00 UTC"
        )

    def test_invalid_trust_roots_are_refused(self):
        complaint = self.complaint(
            self.certificate,
            self.key,
            client_certificate=ClientCertificate.REQUIRED,
            client_authorities=self.folder / "ca.pem",
        )
        self.assertIn("ca.pem: No such file", complaint)

    def test_contradictory_arguments_are_refused(self):
        for wrong in (
            {"client_certificate": ClientCertificate.REQUIRED},
            {"client_authorities": trust()},
            {"minimum": Version.TLS_1_3, "maximum": Version.TLS_1_2},
            {"alpn": ["text"]},
            {"ciphers": "NONSENSE"},
            {"credentials": []},
        ):
            with self.assertRaises(ValueError):
                server_options(**wrong)

    def test_invalid_host_name_is_refused(self):
        for wrong in ("\N{SNOWMAN WITHOUT SNOW} .. ", " ", "*", "*.example.org", "a:443"):
            with self.assertRaisesRegex(ValueError, "not a host name"):
                ClientOptions(wrong, trust())
        for wrong in ("", ".", ".example.org", None, b"chat.example.org", b"chat", 5):
            with self.assertRaisesRegex(ValueError, "hostname must be a str"):
                ClientOptions(wrong, trust())

    def test_international_host_name_is_accepted(self):
        self.assertEqual(
            ClientOptions("b\xfccher.example", trust()).engine().server_name,
            "xn--bcher-kva.example",
        )


class Renewal(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.old = support.authority().issue_cert(HOST)
        self.new = support.authority().issue_cert(HOST)
        self.files = support.write(self.folder, self.old)
        self.now = 0.0

    async def serve(self):
        server = await Server(self, server_options(credentials=Credentials(*self.files))).listen()
        for watched in server.options._contexts._watched:
            watched.now = lambda: self.now
            watched._looked = 0.0
        return server

    def serial(self, port):
        with support.stdlib_client(port, client_context()) as client:
            serial = int(client.getpeercert()["serialNumber"], 16)
            client.unwrap().close()
            return serial

    async def test_new_handshakes_see_the_new_pair_and_old_connections_live_on(self):
        server = await self.serve()
        context = client_context()
        client = await in_thread(support.stdlib_client, server.port, context)
        self.addCleanup(client.close)
        support.write(self.folder, self.new)
        self.assertEqual(
            await in_thread(self.serial, server.port),
            _x509(self.old).serial_number,
            "looked at within the second",
        )
        self.now = 1.0
        self.assertEqual(await in_thread(self.serial, server.port), _x509(self.new).serial_number)

        def still():
            client.sendall(b"hello\n")
            answer = support.read_line(client)
            client.unwrap().close()
            return answer

        self.assertEqual(await in_thread(still), b"hello\n")
        await gatherResults([handler.closed for handler in server.handlers])

    async def test_half_written_pair_is_logged_once_and_the_old_one_stays_in_use(self):
        logged = []

        def note(event):
            if "kept the certificate in use" in str(event.get("log_format")):
                logged.append(event["error"])

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        server = await self.serve()
        certificate, key = self.files
        # The certificate first, then half the key, then nothing, then all of it.
        pieces = self.new.private_key_pem.bytes()
        chain = b"".join(one.bytes() for one in self.new.cert_chain_pems)
        for write in (
            lambda: certificate.write_bytes(chain),
            lambda: key.write_bytes(pieces[:100]),
            key.unlink,
        ):
            write()
            logged.clear()
            for _ in range(3):
                self.now += 1.0
                self.assertEqual(
                    await in_thread(self.serial, server.port), _x509(self.old).serial_number
                )
            self.assertEqual(len(logged), 1)
        key.write_bytes(pieces)
        self.now += 1.0
        self.assertEqual(await in_thread(self.serial, server.port), _x509(self.new).serial_number)
        await gatherResults([handler.closed for handler in server.handlers])

    async def test_certificate_for_a_name_is_renewed_too(self):
        second = support.authority().issue_cert("second.example.org")
        files = support.write(self.folder, second, "second")
        options = server_options(
            credentials=[Credentials(*self.files), Credentials(*files)], reload_interval=1e-9
        )
        server = await Server(self, options).listen()
        third = support.authority().issue_cert("third.example.org")
        support.write(self.folder, third, "second")
        await in_thread(
            support.stdlib_client, server.port, client_context(), "third.example.org"
        ).addCallback(lambda client: client.close())
        await gatherResults([handler.closed for handler in server.handlers])
