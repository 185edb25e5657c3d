"""
Calls from a thread that is not the reactor's: an error under ``-X dev``, and no cost otherwise.
"""

import subprocess
import sys

PROGRAM = """
import socket, sys
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from txasynchat import AsyncChat

def call(chat, name, *arguments):
    try:
        getattr(chat, name)(*arguments)
    except RuntimeError as error:
        print(error)

class Line(AsyncChat):
    terminator = b"\\n"

    def push(self, data):  # as subclasses do
        super().push(data + b"\\n")

    def __init__(self):
        self.push(b"before the connection")

    def message_received(self, message):
        self.push(b"here")
        reactor.callInThread(self.work)

    def work(self):
        call(self, "push", b"lost")
        call(self, "push_with_producer", [b"lost"])
        call(self, "close")
        reactor.callFromThread(self.push, b"there")
        reactor.callFromThread(self.close)

    def handle_end(self, reason):
        reactor.stop()

def ask(port):
    with socket.create_connection(("127.0.0.1", port), 20) as client, client.makefile("rb") as heard:
        client.sendall(b"x\\n")
        print(heard.read())

async def listen():
    where = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    port = await where.listen(Factory.forProtocol(Line))
    reactor.callInThread(ask, port.getHost().port)

from twisted.internet.defer import Deferred
reactor.callWhenRunning(lambda: Deferred.fromCoroutine(listen()))
reactor.callLater(20, reactor.stop)
reactor.run()
"""


def run(*options):
    done = subprocess.run(
        [sys.executable, *options], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


def test_a_call_from_another_thread_raises_in_development_mode():
    """What would sometimes lose an answer is an error at the call, which names the remedy."""
    *errors, answer = run("-X", "dev", "-W", "ignore", "-c", PROGRAM)
    assert answer == repr(b"before the connection\nhere\nthere\n")
    assert len(errors) == 3
    for error, name in zip(errors, ["push", "push_with_producer", "close"], strict=True):
        assert f"Line.{name}() was called in " in error
        assert f"reactor.callFromThread(chat.{name}, ...)" in error


def test_calls_are_not_checked_outside_development_mode():
    """The methods are the plain ones, so no call costs more."""
    program = "from txasynchat import AsyncChat as A; print(hasattr(A.push, '__wrapped__'))"
    assert run("-c", program) == ["False"]
    assert run("-X", "dev", "-W", "ignore", "-c", program) == ["True"]
