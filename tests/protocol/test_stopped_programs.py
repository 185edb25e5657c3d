"""
Connections that are open when their program's reactor stops.
"""

import pytest

from helpers.support import leaf, pem, trust

SECONDS = 30

CLIENT = """
import ssl, sys, threading
from pathlib import Path
from socket import create_server

kind, loop, case = sys.argv[1:]
if loop == "asyncio":
    from twisted.internet import asyncioreactor
    asyncioreactor.install()

from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, connectProtocol
from txasynchat import AsyncChat

listener = create_server(("127.0.0.1", 0))
context = None
if kind.startswith("secure:"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("server.pem")

def accept():
    peer, _ = listener.accept()
    if context is not None:
        peer = context.wrap_socket(peer, server_side=True)
    while peer.recv(100):
        pass
    peer.close()

threading.Thread(target=accept, daemon=True).start()

class Client(AsyncChat):
    terminator = b"\\n"

    def handle_connect(self):
        if case == "closed":
            self.push(b"bye\\n")
            self.close()
        reactor.stop()

    def handle_close(self):
        print("close", self.close_reason)

    def handle_end(self, reason):
        print("end", type(reason).__name__)

where = f"{kind}127.0.0.1:{listener.getsockname()[1]}"
if kind.startswith("secure:"):
    where += ":ca=ca.pem"
connectProtocol(clientFromString(reactor, where), Client())
reactor.run()
"""


@pytest.mark.parametrize("loop", ["default", "asyncio"])
@pytest.mark.parametrize("kind", ["tcp:", "hub:tcp:", "secure:tcp:", "secure:hub:tcp:"])
@pytest.mark.slow
def test_a_client_hears_that_its_program_stopped(fork_server, tmp_path, kind, loop):
    """It is not told that the peer reset the connection."""
    assert client(fork_server, tmp_path, kind, loop, "open") == [
        "close the reactor of this program stopped before the connection had finished",
        "end ProgramStopped",
    ]


@pytest.mark.parametrize("kind", ["tcp:", "hub:tcp:"])
def test_a_client_that_had_closed_has_no_reason(fork_server, tmp_path, kind):
    assert client(fork_server, tmp_path, kind, "default", "closed") == ["end NoneType"]


def client(fork_server, folder, *arguments):
    """Run a client that stops its reactor when it is connected; return what it is told then."""
    (folder / "program.py").write_text(CLIENT)
    (folder / "server.pem").write_bytes(pem(leaf()))
    (folder / "ca.pem").write_bytes(trust())
    done = fork_server.run(["program.py", *arguments], folder, SECONDS)
    assert done.stderr == ""
    return done.stdout.splitlines()
