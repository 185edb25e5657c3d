"""
Whole programs as users write them: accepted by ``mypy --strict`` with no plugin for zope.interface.

Checked by mypy, never run; `tests/test_typing.py` has it checked without the plugin.
"""

from twisted.internet import reactor
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Factory
from typing_extensions import override

from txasynchat import (
    AsyncChat,
    ChatFactory,
    ClientOptions,
    Credentials,
    Program,
    Server,
    ServerOptions,
    serve,
)
from txasynchat.endpoints import SecureClientEndpoint, SecureServerEndpoint
from txasynchat.testing import MemoryLink, check_cuts


class Shout(AsyncChat):
    terminator = b"\n"

    @override
    def message_received(self, message: bytes) -> None:
        self.push(message.upper() + b"\n")


def one_server(endpoint: IStreamServerEndpoint) -> Server:
    server = Server(reactor, ChatFactory(Shout), ["tcp:8007:interface=127.0.0.1", endpoint])
    server.startService()
    return server


def other_factories() -> list[Server]:
    factory = Factory.forProtocol(Shout)
    return [Server(reactor, factory, ["tcp:8007"]), Program(reactor, factory, ("unix:chat.sock",))]


def over_tls(endpoint: IStreamServerEndpoint) -> None:
    options = ServerOptions(Credentials("cert.pem", "key.pem"))
    secure = SecureServerEndpoint(reactor, endpoint, options)
    secure.listen(ChatFactory(Shout))
    Server(reactor, ChatFactory(Shout), [secure])
    client = SecureClientEndpoint(reactor, endpoint, ClientOptions("chat.example"))
    client.connect(Factory.forProtocol(Shout))


def in_memory() -> None:
    check_cuts(Shout, b"hello\n")
    MemoryLink(Shout(), Shout()).flush()


def main() -> None:
    serve(ChatFactory(Shout), "tcp:8007:interface=127.0.0.1")


# Neither a protocol class nor a factory.
ChatFactory(int)  # type: ignore[arg-type]
Server(reactor, Shout, ["tcp:8007"])  # type: ignore[arg-type]
Server(reactor, ChatFactory(Shout), [8007])  # type: ignore[list-item]
