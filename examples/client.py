"""
A client that stays connected: it sends lines from standard input, and prints what comes.

Run it, and then a server: ``python client.py tcp:127.0.0.1:8007`` and ``twistd -n asynchat``. The
server may be stopped and started again. With a second argument, the file of an authority's
certificate, and a third, the server's name, it speaks TLS.
"""

import sys

from twisted.internet import reactor, stdio
from twisted.logger import globalLogBeginner, textFileLogObserver
from typing_extensions import override

from txasynchat import AsyncChat, ChatError, ClientOptions, reconnecting


class Connection(AsyncChat):
    """The connection to the server, while there is one."""

    terminator = (b"\n", b"\r\n")
    current: "Connection | None" = None

    @override
    def handle_connect(self) -> None:
        Connection.current = self
        print("connected", flush=True)

    @override
    def message_received(self, message: bytes) -> None:
        print(message.decode(errors="replace"), flush=True)

    @override
    def handle_end(self, reason: ChatError | None) -> None:
        if Connection.current is self:
            Connection.current = None


class Keyboard(AsyncChat):
    terminator = b"\n"

    @override
    def message_received(self, message: bytes) -> None:
        if Connection.current is None:
            print("not connected", flush=True)
        else:
            Connection.current.push(message + b"\n")


def main(where: str, authority: str = "", hostname: str = "") -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    tls = ClientOptions(hostname, authorities=authority) if authority else None
    service = reconnecting(where, Connection, tls=tls)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    stdio.StandardIO(Keyboard())  # type: ignore[no-untyped-call] # Twisted's, untyped
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
