"""
What the tests of the facade's TLS share: a line handler that knows nothing of TLS, a listener, and
the passes that drive them.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time

import trustme

from txasynchat.compat import asynchat, asyncore

AUTHORITY = trustme.CA()
ISSUED = AUTHORITY.issue_cert("localhost", "127.0.0.1")
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
LIMIT = 20  # seconds until a test has failed


def server_context(version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ISSUED.configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def client_context(version=None, *, trusting=True):
    # Not create_default_context(), which reads all of the system's authorities: 50 ms each time.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trusting:
        AUTHORITY.configure_trust(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class Lines(asynchat.async_chat):
    """
    A line handler that knows nothing of TLS.
    """

    def __init__(self, sock=None, map=None):  # noqa: A002 the stdlib's name
        asynchat.async_chat.__init__(self, sock, map)
        self.set_terminator(b"\n")
        self.lines = []
        self.events = []

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self):
        line = self._get_data()
        self.lines.append(line)
        self.line_received(line)

    def line_received(self, line):
        if line == b"big":
            self.push(b"z" * 2_000_000 + b"\n")
        elif line == b"quit":
            self.push(b"bye\n")
            self.close_when_done()
        else:
            self.push(line + b"\n")

    def handle_connect(self):
        self.events.append(("connect", getattr(self.socket, "secure", None)))

    def handle_close(self):
        self.events.append(("close",))
        self.close()

    def handle_error(self):

        self.events.append(("error", sys.exc_info()[1]))
        self.close()


class Listener(asyncore.dispatcher):
    def __init__(self, map, tls, handler=Lines):  # noqa: A002 the stdlib's name
        asyncore.dispatcher.__init__(self, map=map)
        self.create_socket(socket.AF_INET, socket.SOCK_STREAM)
        self.bind(("127.0.0.1", 0))
        self.listen(400, tls=tls)
        self.address = self.socket.getsockname()
        self.handler = handler
        self.handlers = []

    def handle_accepted(self, sock, addr):
        self.handlers.append(self.handler(sock, self._map))


def drive(channels, done, *, use_poll=False):
    """
    Run passes until *done* returns true.
    """
    end = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < end, "it took too long"
        asyncore.loop(timeout=0.02, use_poll=use_poll, map=channels, count=1)


class InThread(threading.Thread):
    """
    A blocking client in a thread; its return value, or exception, is the result.
    """

    def __init__(self, client, *arguments):
        super().__init__(daemon=True)  # a failed test must not wait for it at the end
        self.call = client, arguments
        self.result = None
        self.start()

    def run(self):
        client, arguments = self.call
        try:
            self.result = client(*arguments)
        except Exception as error:  # noqa: BLE001 raised again in the test
            self.result = error

    def done(self):
        return not self.is_alive()

    def __call__(self):
        self.join(LIMIT)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def talk(address, context, sent):
    return talk_over(socket.create_connection(address, LIMIT), context, sent)


def talk_over(plain, context, sent):
    with plain, context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(sent)
        received = bytearray()
        while data := client.recv(65536):
            received += data
        return bytes(received)


def pair(channels, handler):
    ours, theirs = socket.socketpair()
    theirs.settimeout(LIMIT)
    return handler(ours, channels), theirs
