"""
Line echo as a Twisted application: ``twistd -ny echo.tac`` in the foreground, without ``n`` behind it.
"""

from twisted.application.service import Application
from twisted.internet import reactor

from txasynchat import AsyncChat, ChatFactory, Program


class Echo(AsyncChat):
    terminator = (b"\n", b"\r\n")

    def message_received(self, message: bytes) -> None:
        self.push(b"ECHO: " + message + self.matched_terminator)


application = Application("echo")
program = Program(reactor, ChatFactory(Echo), ["tcp:8007:interface=127.0.0.1"])
program.setServiceParent(application)
