"""
Behind a proxy (``haproxy:``) the handler gets the client's address, not the proxy's.
"""

import socket
import ssl
import struct
from contextlib import ExitStack

import pytest
import trustme
from twisted.internet import reactor, threads
from twisted.internet.endpoints import quoteStringArgument
from twisted.trial.unittest import TestCase

from helpers.support import until
from txasynchat import AsyncChat, ChatFactory, Server, State
from txasynchat.compat.asynchat import async_chat
from txasynchat.compat.served import LegacyFactory

# Twisted passes pyOpenSSL's own certificates to pyOpenSSL, which deprecates them.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

CLIENT = ("192.0.2.7", 4711)
VERSION_1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n"
VERSION_2 = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
    + socket.inet_aton("192.0.2.7")
    + socket.inet_aton("198.51.100.1")
    + struct.pack("!HH", 4711, 80)
)
SECONDS = 20


class Native(AsyncChat):
    """Greets with its peer's address, and repeats it when asked."""

    terminator = b"\n"

    def handle_connect(self):
        self.push(b"%s %d\n" % (self.addr[0].encode(), self.addr[1]))

    def message_received(self, message):
        self.push(b"%s from %d\n" % (message, self.addr[1]))


class Legacy(async_chat):
    """The same, written for asynchat."""

    def __init__(self, sock, addr):
        async_chat.__init__(self, sock)
        assert self.addr == addr
        self.set_terminator(b"\n")
        self.push(b"%s %d\n" % (addr[0].encode(), addr[1]))

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.push(b"%s from %d\n" % (self._get_data(), self.addr[1]))


ENDPOINTS = {
    "tcp": "haproxy:tcp:0:interface=127.0.0.1",
    "header in the clear, then secure:": "secure:haproxy:tcp:0:interface=127.0.0.1:{words}",
    "header within secure:": "haproxy:secure:tcp:0:interface=127.0.0.1:{words}",
    "header within ssl:": "haproxy:ssl:0:interface=127.0.0.1:privateKey={pem}",
}


class Behind(TestCase):
    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path):
        authority = trustme.CA()
        path = tmp_path / "server.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
        self.pem = quoteStringArgument(str(path))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(self.context)

    def serve(self, factory, kind):
        description = ENDPOINTS[kind].format(words=f"certificate={self.pem}", pem=self.pem)
        server = Server(reactor, factory, [description], stop_timeout=1)
        server.startService()
        self.addCleanup(server.stopService)
        return server.ports[0].getHost().port

    def talk(self, port, kind, header, message):
        """Return the answers to the header alone, or to the header and a message after it."""
        with ExitStack() as opened:
            client = opened.enter_context(socket.create_connection(("127.0.0.1", port), SECONDS))
            if "clear" in kind:
                client.sendall(header)
                header = b""
            if kind != "tcp":
                client = self.context.wrap_socket(client, server_hostname="127.0.0.1")
                opened.enter_context(client)
            answers = opened.enter_context(client.makefile("rb"))
            client.sendall(header + message)
            return [answers.readline() for _ in range(2 if message else 1)]

    async def check(self, make_factory):
        for kind in ENDPOINTS:
            port = self.serve(make_factory(), kind)
            for header in (VERSION_1, VERSION_2):
                for message, answers in ((b"", []), (b"hello\n", [b"hello from 4711\n"])):
                    said = await threads.deferToThread(self.talk, port, kind, header, message)
                    assert said == [b"192.0.2.7 4711\n", *answers], (kind, header, said)

    async def test_handler_connects_once_its_client_is_known(self):
        """``addr`` in handle_connect is the client's; the greeting is sent at once."""
        await self.check(lambda: ChatFactory(Native))

    async def test_legacy_handler_is_built_with_the_address_of_its_client(self):
        """The constructor's argument and ``self.addr`` are the client's."""
        await self.check(lambda: LegacyFactory(Legacy))

    async def test_connection_without_a_header_is_closed(self):
        """A peer that sends something else is disconnected, and no hook is called."""
        for factory in (ChatFactory(Native), LegacyFactory(Legacy)):
            port = self.serve(factory, "tcp")
            said = await threads.deferToThread(self.talk, port, "tcp", b"hello, server\n", b"")
            assert said == [b""]

    async def test_header_may_come_in_pieces(self):
        """The header may be cut anywhere but in its first word."""
        port = self.serve(ChatFactory(Native), "tcp")

        def talk():
            with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in (VERSION_1[:20], VERSION_1[20:-1], VERSION_1[-1:] + b"hel", b"lo\n"):
                    client.sendall(piece)
                with client.makefile("rb") as answers:
                    return [answers.readline() for _ in range(2)]

        said = await threads.deferToThread(talk)
        assert said == [b"192.0.2.7 4711\n", b"hello from 4711\n"]

    async def test_stop_does_not_wait_for_a_header(self):
        """A connection whose client is still unknown has nothing to finish."""
        factory = ChatFactory(Native)
        server = Server(reactor, factory, [ENDPOINTS["tcp"]], stop_timeout=None)
        server.startService()
        port = server.ports[0].getHost().port
        with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
            await until(lambda: factory.connections)
            [handler] = factory.connections
            assert handler.state is State.CONNECTING
            await server.stopService()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
