"""
Behind ``proxy:`` the handler gets the client's address before its first hook, on every transport.

Also covers `proxy.factory`, `proxy.refusals`, `proxy.sockets`, `proxy.transport` and `proxy.trust`.
"""

import contextlib
import itertools
import socket
import ssl
import struct
from contextlib import ExitStack

import pytest
import trustme
from twisted.internet import reactor, threads
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    clientFromString,
    quoteStringArgument,
    serverFromString,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from helpers.support import until
from txasynchat import (
    AsyncChat,
    CannotStart,
    ChatFactory,
    Program,
    Proxied,
    ProxyClientEndpoint,
    ProxyOptions,
    ProxyServerEndpoint,
    Server,
)
from txasynchat.compat.asynchat import async_chat
from txasynchat.compat.served import LegacyFactory
from txasynchat.endpoints import SecureClientEndpoint
from txasynchat.hub.shared import served_by
from txasynchat.networks import network_of
from txasynchat.proxy import refusals
from txasynchat.proxy.endpoints import behind_proxies
from txasynchat.tls import ClientOptions
from txasynchat.tls.pending import Pending
from txasynchat.twistd import Options, makeService

# Twisted passes pyOpenSSL's own certificates to pyOpenSSL, which deprecates them.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

SECONDS = 20
PROXIED = Proxied(source=("192.0.2.7", 4711), destination=("198.51.100.1", 80))
WITH_TLV = Proxied(
    source=PROXIED.source, destination=PROXIED.destination, tlvs=((2, b"chat.example.org"),)
)
HEADERS = [Proxied(version=1, source=PROXIED.source, destination=PROXIED.destination), PROXIED]


class Native(AsyncChat):
    """Greets with its peer's address, and repeats it when asked."""

    terminator = b"\n"

    def handle_connect(self):
        assert self.transport.getPeer().port == self.addr[1]
        name = self.proxied.authority or "-"
        self.push(f"{self.addr[0]} {self.addr[1]} {name}\n".encode())

    def message_received(self, message):
        self.push(b"%s from %d\n" % (message, self.addr[1]))


class Legacy(async_chat):
    """The same, written for asynchat."""

    def __init__(self, sock, addr):
        assert sock.getpeername() == addr
        async_chat.__init__(self, sock)
        assert self.addr == addr
        self.set_terminator(b"\n")
        name = sock.proxied.authority or "-"
        self.push(f"{addr[0]} {addr[1]} {name}\n".encode())

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.push(b"%s from %d\n" % (self._get_data(), self.addr[1]))


class Plain(Protocol):
    """The same, for Twisted alone."""

    def connectionMade(self):  # noqa: N802 Twisted's name
        peer = self.transport.getPeer()
        name = self.transport.proxied.authority or "-"
        self.transport.write(f"{peer.host} {peer.port} {name}\n".encode())

    def dataReceived(self, data):  # noqa: N802 Twisted's name
        self.transport.write(b"%s from %d\n" % (data.strip(), self.transport.getPeer().port))


FACTORIES = {
    "native": lambda: ChatFactory(Native),
    "legacy": lambda: LegacyFactory(Legacy),
    "other": lambda: Factory.forProtocol(Plain),
}
ENDPOINTS = {
    "tcp": "proxy:tcp:0:interface=127.0.0.1:from=127.0.0.0/8",
    "unix": "proxy:unix:{path}:from=unix",
    "header in the clear, then secure:": "secure:proxy:tcp:0:interface=127.0.0.1"
    ":from=10.0.0.0/8,127.0.0.1:certificate={pem}",
    "header within secure, by ssl:": "proxy:ssl:0:interface=127.0.0.1:privateKey={pem}:from=127.0.0.1",
    "header within secure:": "proxy:secure:tcp:0:interface=127.0.0.1"
    ":certificate={pem}:from=127.0.0.1",
}


class ProxyCase(TestCase):
    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path):
        authority = trustme.CA()
        path = tmp_path / "server.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        self.ca = str(tmp_path / "ca.pem")
        self.path = str(tmp_path / "chat.sock")
        self.words = {"pem": quoteStringArgument(str(path)), "path": quoteStringArgument(self.path)}
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(self.context)

    def setUp(self):
        refusals._refused.forget()
        self.logged = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event):
        if event.get("log_namespace") == "txasynchat.proxy.refusals":
            self.logged.append(str(event["error"]))

    def serve(self, factory, endpoint, transport="hub"):
        """Serve; return where to connect to."""
        if isinstance(endpoint, str):
            endpoint = endpoint.format(**self.words)
        server = Server(reactor, factory, [endpoint], stop_timeout=1, transport=transport)
        server.startService()
        self.addCleanup(server.stopService)
        self.server = server
        host = server.ports[0].getHost()
        return ("127.0.0.1", host.port) if hasattr(host, "port") else self.path

    def connect(self, where):
        client = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        client.settimeout(SECONDS)
        client.connect(where)
        return client

    def talk(self, where, kind, header, message, cuts=()):
        """Return the answers to the header alone, or to the header and a message after it."""
        with ExitStack() as opened:
            client = opened.enter_context(self.connect(where))
            if "clear" in kind:
                client.sendall(header)
                header = b""
            if "secure" in kind:
                client = self.context.wrap_socket(client, server_hostname="127.0.0.1")
                opened.enter_context(client)
            elif kind == "tcp":
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = opened.enter_context(client.makefile("rb"))
            data = header + message
            for start, end in itertools.pairwise((0, *cuts, len(data))):
                client.sendall(data[start:end])
            return [answers.readline() for _ in range(2 if message else 1)]

    def refused(self, where, data=b""):
        """Return whether the connection ends without a word."""
        try:  # it may be reset before connect() returns
            with self.connect(where) as client:
                client.sendall(data)
                return client.recv(1) == b""
        except ConnectionError:
            return True


class Introduced(ProxyCase):
    async def check(self, name, transport):
        for kind, endpoint in ENDPOINTS.items():
            where = self.serve(FACTORIES[name](), endpoint, transport)
            for header in HEADERS:
                for message, answers in ((b"", []), (b"hello\n", [b"hello from 4711\n"])):
                    said = await threads.deferToThread(
                        self.talk, where, kind, header.encode(), message
                    )
                    assert said == [b"192.0.2.7 4711 -\n", *answers], (kind, header, said)
            said = await threads.deferToThread(self.talk, where, kind, WITH_TLV.encode(), b"")
            assert said == [b"192.0.2.7 4711 chat.example.org\n"]
            await self.server.stopService()
        assert self.logged == []

    async def test_native_handler_on_the_hub(self):
        """``addr`` in handle_connect is the client's, and ``proxied`` has the rest."""
        await self.check("native", "hub")

    async def test_native_handler_on_twisteds_transports(self):
        """The same, where Twisted accepts."""
        await self.check("native", "twisted")

    async def test_legacy_handler_on_its_own_socket(self):
        """``getpeername()`` is right before ``__init__``, and so is ``self.addr``."""
        await self.check("legacy", "hub")

    async def test_legacy_handler_on_a_worn_transport(self):
        """The same, where Twisted accepts."""
        await self.check("legacy", "twisted")

    async def test_any_other_protocol_on_the_hub(self):
        """``getPeer()`` in connectionMade is the client's."""
        await self.check("other", "hub")

    async def test_any_other_protocol_on_twisteds_transports(self):
        """The same, where Twisted accepts."""
        await self.check("other", "twisted")

    async def check_cuts(self, transport):
        for name in ("native", "legacy"):
            where = self.serve(FACTORIES[name](), ENDPOINTS["tcp"], transport)
            for header in HEADERS:
                data = header.encode()
                for cut in range(1, len(data)):
                    said = await threads.deferToThread(
                        self.talk, where, "tcp", data, b"hello\n", (cut,)
                    )
                    assert said == [b"192.0.2.7 4711 -\n", b"hello from 4711\n"], (header, cut)

    async def test_header_may_be_cut_anywhere_on_the_hub(self):
        """In two pieces, in every way, with a message right behind."""
        await self.check_cuts("hub")

    async def test_header_may_be_cut_anywhere_on_twisteds_transports(self):
        """In two pieces, in every way, with a message right behind."""
        await self.check_cuts("twisted")

    async def test_connection_of_the_proxy_itself_keeps_its_addresses(self):
        """LOCAL and UNKNOWN are served with the proxy's own address."""
        for transport in ("hub", "twisted"):
            for name, make in FACTORIES.items():
                where = self.serve(make(), ENDPOINTS["tcp"], transport)
                for header in (Proxied(local=True), Proxied(version=1), Proxied()):
                    said = await threads.deferToThread(
                        self.talk, where, "tcp", header.encode(), b""
                    )
                    assert said[0].startswith(b"127.0.0.1 "), (transport, name, header, said)

    async def test_client_with_another_family_than_the_port(self):
        """A client over IPv6, or on a Unix socket, may come by a port over IPv4."""
        for transport in ("hub", "twisted"):
            where = self.serve(ChatFactory(Any6), ENDPOINTS["tcp"], transport)
            for source, answer in (
                (("2001:db8::7", 4711, 0, 0), b"2001:db8::7"),
                ("/run/client", b"/run/client"),
            ):
                header = Proxied(source=source, destination=source).encode()
                said = await threads.deferToThread(self.talk, where, "tcp", header, b"")
                assert said == [answer + b"\n"]


class Any6(AsyncChat):
    """Greets with its peer's address, whatever that is."""

    terminator = b"\n"

    def handle_connect(self):
        self.transport.getPeer()
        self.transport.getHost()
        addr = self.addr
        self.push((addr if isinstance(addr, str) else addr[0]).encode() + b"\n")


class Limited(ProxyCase):
    async def test_handshakes_are_counted_by_the_clients_address(self):
        """One client cannot use up the handshakes of all who come by the same proxy."""
        for transport, name in itertools.product(("hub", "twisted"), ("native", "legacy")):
            added = []
            add = Pending.add

            def note(self, member, network, added=added, add=add):
                added.append(network)
                return add(self, member, network)

            self.patch(Pending, "add", note)
            kind = "header in the clear, then secure:"
            where = self.serve(FACTORIES[name](), ENDPOINTS[kind], transport)
            await threads.deferToThread(self.talk, where, kind, PROXIED.encode(), b"")
            assert added == [network_of(PROXIED.source)]


class Refused(ProxyCase):
    async def check(self, endpoint, data, error):
        for transport, name in itertools.product(("hub", "twisted"), FACTORIES):
            refusals._refused.forget()
            self.logged.clear()
            where = self.serve(FACTORIES[name](), endpoint, transport)
            assert await threads.deferToThread(self.refused, where, data)
            await until(lambda: self.logged)
            assert self.logged == [error]
            assert len(self.server.connections) == 0
            await self.server.stopService()

    async def test_stranger_is_refused(self):
        """A peer outside the trusted networks is not served, even with a right header."""
        await self.check(
            "proxy:tcp:0:interface=127.0.0.1:from=10.0.0.0/8",
            PROXIED.encode(),
            "not one of the proxies that are trusted here; see from= or --proxy-from",
        )

    async def test_peer_of_a_unix_socket_is_refused_unless_it_is_named(self):
        """Networks say nothing of Unix sockets."""
        await self.check(
            "proxy:unix:{path}:from=0.0.0.0/0",
            PROXIED.encode(),
            "not one of the proxies that are trusted here; see from= or --proxy-from",
        )

    async def test_connection_without_a_header_is_refused(self):
        """What is wrong is logged once, and no hook is called."""
        await self.check(
            ENDPOINTS["tcp"],
            b"hello, server\n",
            "not a PROXY header: the connection does not begin with one",
        )

    async def test_header_that_is_too_long_is_refused(self):
        """The limit holds before the header is complete."""
        await self.check(
            ENDPOINTS["tcp"] + ":longest=600",
            PROXIED.encode()[:14] + struct.pack("!H", 585),
            "not a PROXY header: 601 bytes, limit 600",
        )

    async def test_silent_proxy_is_not_waited_for(self):
        """A header has to be complete in time, and the port goes on."""
        for data in (b"", b"PROXY TC"):
            await self.check(
                ENDPOINTS["tcp"] + ":timeout=0.05",
                data,
                "PROXY header not complete after 0.05 s",
            )

    async def test_look_whether_somebody_listens_is_not_logged(self):
        """A check that connects and goes is nobody's mistake; one that breaks off says so."""
        for transport in ("hub", "twisted"):
            for data, logged in (
                (b"", []),
                (b"PROXY", ["the connection ended within its PROXY header"]),
            ):
                self.logged.clear()
                refusals._refused.forget()
                where = self.serve(FACTORIES["native"](), ENDPOINTS["tcp"], transport)

                def talk(where=where, data=data):
                    with self.connect(where) as client:
                        client.sendall(data)
                        client.shutdown(socket.SHUT_WR)
                        return client.recv(1)

                assert await threads.deferToThread(talk) == b""
                await until(lambda logged=logged: len(self.logged) == len(logged))
                assert self.logged == logged

    async def test_stopping_ends_connections_without_a_header(self):
        """A server that stops does not wait for proxies, and leaves nothing behind."""
        for transport in ("hub", "twisted"):
            where = self.serve(FACTORIES["native"](), ENDPOINTS["tcp"], transport)
            with self.connect(where) as client:
                client.sendall(b"PROXY")
                done = threads.deferToThread(client.recv, 1)
                factory = self.server.ports[0].factory
                await until(lambda factory=factory: factory.protocols or factory._introductions)
                await self.server.stopService()
                with contextlib.suppress(OSError):
                    assert await done == b""
                await until(
                    lambda factory=factory: not (factory.protocols or factory._introductions)
                )
        assert not served_by(reactor)


class Strings(ProxyCase):
    def test_string_without_networks_is_an_error(self):
        """Nobody is trusted by default."""
        with pytest.raises(ValueError, match="needs from="):
            serverFromString(reactor, "proxy:tcp:0")

    def test_wrong_words_are_errors(self):
        """A word with a value that it cannot have is refused when the endpoint is made."""
        for words, text in {
            "from=10.0.0.1/8": "not a network",
            "from=example.org": "not a network",
            "from=10.0.0.0/8:timeout=never": "timeout must be",
            "from=10.0.0.0/8:longest=1": "longest must be",
        }.items():
            with pytest.raises(ValueError, match=text):
                serverFromString(reactor, f"proxy:tcp:0:{words}")

    async def test_mapped_addresses_are_those_of_ipv4(self):
        """A proxy over IPv4 on a port over IPv6 is in its own network."""
        options = ProxyOptions(trusted=["10.0.0.0/8", "2001:db8::/32"])
        assert options.trusts(("::ffff:10.1.2.3", 1, 0, 0))
        assert options.trusts(("2001:db8::1", 1, 0, 0))
        assert not options.trusts(("::ffff:11.1.2.3", 1, 0, 0))
        assert not options.trusts("")
        assert ProxyOptions(trusted=["unix"]).trusts("")

    async def test_whole_program_listens_for_proxies(self):
        """``proxy_from`` puts ``proxy:`` where the header comes, and leaves what is there already."""
        for description, behind in {
            "tcp:4000": r"proxy:tcp:4000:from=10.0.0.0/8,2001\:db8\:\:/32",
            "secure:tcp:1:certificate=c": r"secure:proxy:tcp:1:certificate=c"
            r":from=10.0.0.0/8,2001\:db8\:\:/32",
            "proxy:tcp:4000:from=unix": "proxy:tcp:4000:from=unix",
        }.items():
            assert behind_proxies(description, ["10.0.0.0/8", "2001:db8::/32"]) == behind
        program = Program(
            reactor,
            FACTORIES["native"](),
            ["tcp:0:interface=127.0.0.1"],
            proxy_from=["127.0.0.1"],
            transport="hub",
        )
        program.startService()
        self.addCleanup(program.stopService)
        where = ("127.0.0.1", program.ports[0].getHost().port)
        said = await threads.deferToThread(self.talk, where, "tcp", PROXIED.encode(), b"")
        assert said == [b"192.0.2.7 4711 -\n"]

    def test_program_cannot_start_where_a_header_cannot_come_first(self):
        """One line says what to write instead."""
        for endpoint, networks, text in (
            ("ssl:0", ["127.0.0.1"], "write secure:"),
            ("tcp:0", ["example.org"], "not a network"),
            (TCP4ServerEndpoint(reactor, 0), ["127.0.0.1"], "put ProxyServerEndpoint around"),
        ):
            with pytest.raises(CannotStart, match=text):
                Program(reactor, FACTORIES["native"](), [endpoint], proxy_from=networks)

    def test_option_of_twistd_is_repeatable(self):
        """``--proxy-from`` is for everything that is listened on."""
        options = Options()
        options.parseOptions(["--proxy-from", "127.0.0.1", "--proxy-from", "unix"])
        program = makeService(options)
        assert [one for one, _ in program._endpoints] == [
            "proxy:tcp:8007:interface=127.0.0.1:from=127.0.0.1,unix"
        ]


class Sent(ProxyCase):
    async def check(self, kind, client_endpoint):
        for transport in ("hub", "twisted"):
            _, port = self.serve(FACTORIES["native"](), ENDPOINTS[kind], transport)
            heard = Deferred()

            class Client(AsyncChat):
                terminator = b"\n"

                def message_received(self, message, heard=heard):
                    self.close()
                    heard.callback(message)

            await client_endpoint(port).connect(ChatFactory(Client))
            assert await heard == b"192.0.2.7 4711 chat.example.org"

    async def test_client_endpoint_sends_a_header(self):
        """The header goes first, over Twisted's endpoints and the hub's."""
        await self.check(
            "tcp",
            lambda port: ProxyClientEndpoint(
                TCP4ClientEndpoint(reactor, "127.0.0.1", port), WITH_TLV
            ),
        )
        await self.check(
            "tcp",
            lambda port: ProxyClientEndpoint(
                clientFromString(reactor, f"hub:tcp:127.0.0.1:{port}"), lambda: WITH_TLV
            ),
        )

    async def test_client_endpoint_sends_a_header_below_tls(self):
        """The ClientHello comes right behind it."""
        await self.check(
            "header in the clear, then secure:",
            lambda port: SecureClientEndpoint(
                reactor,
                ProxyClientEndpoint(TCP4ClientEndpoint(reactor, "127.0.0.1", port), WITH_TLV),
                ClientOptions("127.0.0.1", authorities=self.ca),
            ),
        )

    def test_what_cannot_be_sent_is_an_error(self):
        """A wrong header is refused where the endpoint is made."""
        with pytest.raises(TypeError):
            ProxyClientEndpoint(None, b"PROXY UNKNOWN\r\n")
        with pytest.raises(ValueError):
            ProxyClientEndpoint(None, Proxied(source=("192.0.2.7", 1)))

    async def test_endpoint_object_takes_options(self):
        """What a string says can be said in code."""
        inner = serverFromString(reactor, "hub:tcp:0:interface=127.0.0.1")
        options = ProxyOptions(trusted=["127.0.0.1"])
        where = self.serve(FACTORIES["native"](), ProxyServerEndpoint(reactor, inner, options))
        said = await threads.deferToThread(self.talk, where, "tcp", PROXIED.encode(), b"")
        assert said == [b"192.0.2.7 4711 -\n"]
        with pytest.raises(TypeError):
            ProxyServerEndpoint(reactor, inner, ["127.0.0.1"])
