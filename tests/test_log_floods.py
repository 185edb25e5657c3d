"""
An event that a peer can repeat is logged once a second, with the number suppressed.
"""

import contextlib
import re
import socket
import sys

import pytest
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher

from txasynchat import AsyncChat, Overflow


def logged_by(call):
    """Return the events that *call* logs."""
    events = []
    globalLogPublisher.addObserver(events.append)
    try:
        call()
    finally:
        globalLogPublisher.removeObserver(events.append)
    return events


@pytest.mark.parametrize("mode", [Overflow.SKIP, Overflow.DELIVER])
def test_long_lines_that_do_not_end_the_connection_do_not_fill_the_log(mode):
    class Handler(AsyncChat):
        terminator = b"\n"
        max_message_length = 10
        overflow = mode

        def message_received(self, message):
            pass

    chat = Handler()
    chat.makeConnection(StringTransport())
    events = logged_by(lambda: [chat.dataReceived(b"x" * 20 + b"\n") for _ in range(5000)])
    assert 0 < len([one for one in events if one.get("kind") == "MessageTooLong"]) < 10


# A server whose process can open no more descriptors once it listens.
AT_THE_LIMIT = """
import os, resource, sys
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
from txasynchat import AsyncChat, ChatFactory, Server

globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
server = Server(
    reactor, ChatFactory(AsyncChat), ["tcp:0:interface=127.0.0.1"], transport=sys.argv[1]
)
server.startService()
reactor.addSystemEventTrigger("before", "shutdown", server.stopService)

def at_the_limit():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))), hard))
    print("port", server.ports[0].getHost().port, flush=True)

reactor.callWhenRunning(at_the_limit)
reactor.run()
"""


@pytest.mark.parametrize("transport", ["twisted", "hub"])
def test_connections_at_the_descriptor_limit_do_not_fill_the_log(start, transport):
    port = int(start([sys.executable, "-c", AT_THE_LIMIT, transport], r"port (\d+)")[1])
    output = start.programs[-1].stdout
    refused = 0
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            with contextlib.suppress(ConnectionError):
                assert client.recv(1) == b""
            refused += 1
    start.programs[-1].terminate()
    text = output.read()
    lines = [line for line in text.splitlines() if "descriptor" in line]
    assert len(lines) == 2, text[:3000]
    assert "EMFILE" not in text
    assert "no descriptor is left for new connections, which are refused" in lines[0]
    assert re.search(r"and 300 connections were refused$", lines[1])
    assert refused == 300
