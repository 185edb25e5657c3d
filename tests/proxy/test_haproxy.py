"""
With a real HAProxy in between, handlers get the client's address; its checks count as its own.
"""

import shutil
import socket
import subprocess

import pytest
from twisted.internet import reactor, threads
from twisted.trial.unittest import TestCase

from helpers.support import until
from txasynchat import AsyncChat, ChatFactory, Server
from txasynchat.compat.asynchat import async_chat
from txasynchat.compat.served import LegacyFactory

HAPROXY = shutil.which("haproxy")
SECONDS = 20
CONFIGURATION = """
global
    log stderr local0 emerg
defaults
    mode tcp
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend front
    bind fd@{front}
    unique-id-format id-%pid
    default_backend back
backend back
    server one 127.0.0.1:{port} {options}
"""

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")


class Native(AsyncChat):
    """Greets with its peer's address, and notes connections of the proxy itself."""

    terminator = b"\n"

    def handle_connect(self):
        if self.proxied.local:
            self.factory.checks += 1
        else:
            self.push(b"%s %d\n" % (self.addr[0].encode(), self.addr[1]))


class Legacy(async_chat):
    """The same, written for asynchat."""

    def __init__(self, sock, addr):
        async_chat.__init__(self, sock)
        self.set_terminator(b"\n")
        if not sock.proxied.local:
            self.push(b"%s %d\n" % (addr[0].encode(), addr[1]))

    def collect_incoming_data(self, data):
        pass

    def found_terminator(self):
        pass


class BehindHAProxy(TestCase):
    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path):
        self.folder = tmp_path

    def start(self, factory, options, transport):
        """Serve, and put HAProxy before it; return its port."""
        endpoint = "proxy:tcp:0:interface=127.0.0.1:from=127.0.0.1"
        server = Server(reactor, factory, [endpoint], stop_timeout=1, transport=transport)
        server.startService()
        self.addCleanup(server.stopService)
        # HAProxy inherits the socket that listens, so there is no port to wait for.
        front = socket.create_server(("127.0.0.1", 0))
        path = self.folder / "haproxy.cfg"
        path.write_text(
            CONFIGURATION.format(
                front=front.fileno(), port=server.ports[0].getHost().port, options=options
            )
        )
        with front:
            program = subprocess.Popen([HAPROXY, "-db", "-f", str(path)], pass_fds=[front.fileno()])
            port = front.getsockname()[1]
        self.addCleanup(program.wait, SECONDS)
        self.addCleanup(program.terminate)
        return port

    def talk(self, port):
        with (
            socket.create_connection(("127.0.0.1", port), SECONDS) as client,
            client.makefile("rb") as answers,
        ):
            return answers.readline(), b"%s %d\n" % (b"127.0.0.1", client.getsockname()[1])

    async def check(self, options):
        for transport in ("hub", "twisted"):
            for make in (lambda: ChatFactory(Native), lambda: LegacyFactory(Legacy)):
                port = self.start(make(), options, transport)
                said, expected = await threads.deferToThread(self.talk, port)
                assert said == expected

    async def test_first_version(self):
        """``send-proxy``."""
        await self.check("send-proxy")

    async def test_second_version(self):
        """``send-proxy-v2``, with a checksum and the id of the connection."""
        await self.check("send-proxy-v2 proxy-v2-options crc32c,unique-id")

    async def test_checks_are_connections_of_the_proxy(self):
        """``check-send-proxy`` is LOCAL, and the server is up."""
        factory = ChatFactory(Native)
        factory.checks = 0
        port = self.start(factory, "send-proxy-v2 check check-send-proxy inter 200ms", "hub")
        await until(lambda: factory.checks > 1)
        said, expected = await threads.deferToThread(self.talk, port)
        assert said == expected
