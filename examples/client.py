"""
A client that stays connected: it sends lines from standard input, and prints what comes. What is typed
while there is no connection is sent when there is one.

Run it, and then a server: ``python client.py tcp:127.0.0.1:8007`` and ``twistd -n asynchat``. The
server may be stopped and started again. With a second argument, the file of an authority's
certificate, and a third, the server's name, it speaks TLS.
"""

import sys

from twisted.internet import reactor, stdio
from twisted.logger import globalLogBeginner, textFileLogObserver
from typing_extensions import override

from txasynchat import AsyncChat, ChatError, ClientOptions, reconnecting


class Keyboard(AsyncChat):
    """Standard input, which is read while there is a connection; until then its lines wait there."""

    terminator = b"\n"
    server: AsyncChat | None = None

    def talk_to(self, server: AsyncChat | None) -> None:
        self.server = server
        if server is None:
            self.pause()
        else:
            self.resume()

    @override
    def handle_connect(self) -> None:
        self.talk_to(self.server)

    @override
    def message_received(self, message: bytes) -> None:
        if self.server is not None:
            self.server.push(message + b"\n")


class Connection(AsyncChat):
    """The connection to the server, while there is one."""

    terminator = (b"\n", b"\r\n")
    keyboard = Keyboard()

    @override
    def handle_connect(self) -> None:
        print("connected", flush=True)
        self.keyboard.talk_to(self)

    @override
    def message_received(self, message: bytes) -> None:
        print(message.decode(errors="replace"), flush=True)

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        if self.keyboard.server is self:
            self.keyboard.talk_to(None)


def main(where: str, authority: str = "", hostname: str = "") -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    tls = ClientOptions(hostname, authorities=authority) if authority else None
    service = reconnecting(where, Connection, tls=tls)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    stdio.StandardIO(Connection.keyboard)  # type: ignore[no-untyped-call] # Twisted's, untyped
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
