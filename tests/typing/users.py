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
    Stream,
    connect,
    reconnecting,
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


async def echo(stream: Stream) -> None:
    async for line in stream:
        stream.write(line + b"\n")
        await stream.drain()


async def connected() -> None:
    async with await connect("tcp:127.0.0.1:8007") as stream:
        line: bytes = await stream.read_until((b"\n", b"\r\n"), limit=100)
        stream.write(line)
    shout: Shout = await connect("unix:chat.sock", Shout, tls=ClientOptions("chat.example"))
    shout.close()
    await connect("tcp:127.0.0.1:8007", ChatFactory(Shout), timeout=None)
    reconnecting("tcp:127.0.0.1:8007", Shout).startService()


def functions() -> None:
    Server(reactor, echo, ["tcp:8007"])
    Program(reactor, ChatFactory(echo), ["tcp:8007"])
    serve(echo, "tcp:8007")


def main() -> None:
    serve(ChatFactory(Shout), "tcp:8007:interface=127.0.0.1")


# Neither a protocol class nor a factory.
ChatFactory(int)  # type: ignore[arg-type]
Server(reactor, Shout, ["tcp:8007"])  # type: ignore[arg-type]
Server(reactor, ChatFactory(Shout), [8007])  # type: ignore[list-item]
