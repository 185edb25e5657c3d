"""
A handler on every kind of transport, native or legacy, and clients that read at any speed.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

from twisted.internet import reactor
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from helpers.support import (
    HOST,
    PATIENCE,
    client_context,
    server_options,
    twisted_options,
    until,
)
from txasynchat import AsyncChat, State, transports
from txasynchat.compat import LegacyFactory, _worn
from txasynchat.endpoints import SecureServerEndpoint
from txasynchat.hub.places import HubReactor
from txasynchat.tls.transport import TLSTransport

#: The transport below a handler.
KINDS = ("tcp", "unix", "secure", "ssl")
#: The same on sockets of our own: a connection of the hub, or the legacy handler's own socket.
ON_THE_HUB = ("hub-tcp", "hub-unix", "hub-secure")
NATIVE = tuple(f"native {kind}" for kind in KINDS + ON_THE_HUB)
WORN = tuple(f"served {kind}" for kind in KINDS)
SERVED = (*WORN, *(f"served {kind}" for kind in ON_THE_HUB))


def on_the_hub_too(cls):
    """Add the tests of *cls*, which listen on its `reactor`, on connections of the hub as well."""
    name = f"{cls.__name__}OnTheHub"
    members = {"reactor": HubReactor(reactor), "__module__": cls.__module__, "__doc__": cls.__doc__}
    setattr(sys.modules[cls.__module__], name, type(name, (cls,), members))
    return cls


class Client:
    """
    A blocking socket; each method is run in a thread, and has a time limit.

    Attributes:
        longest_wait: seconds between two reads of `read_to_the_end`.
    """

    longest_wait = 0.0

    def __init__(self, address, kind, receive_buffer=4_096):
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        self.socket = socket.socket(family)
        if kind != "unix":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.address = address
        self.kind = kind

    def connect(self):
        """Connect, and perform the handshake where there is TLS."""
        self.socket.connect(self.address)
        if self.kind in {"secure", "ssl"}:
            context = client_context()
            self.socket = context.wrap_socket(
                self.socket, server_hostname=HOST, suppress_ragged_eofs=False
            )

    def ask(self):
        """Connect, and send one line."""
        self.connect()
        self.socket.sendall(b"go\n")

    def close(self):
        self.socket.close()

    def read_to_the_end(self, rate=None):
        """Read so many bytes a second; return their number, and how the stream ended."""
        count = 0
        began = last = time.monotonic()
        pace = threading.Event()
        try:
            while data := self.socket.recv(8_192):
                count += len(data)
                now = time.monotonic()
                self.longest_wait, last = max(self.longest_wait, now - last), now
                if rate:
                    pace.wait(max(0.0, began + count / rate - time.monotonic()))
        except OSError as error:
            return count, type(error).__name__
        return count, "end"


class KindsCase(TestCase):
    #: Seconds that the end of a connection may take; see `limits`.
    seconds = 5.0

    def limits(self, seconds):
        """Set every limit on the end of a connection to so many seconds."""
        self.patch(AsyncChat, "close_timeout", seconds)
        self.patch(TLSTransport, "close_timeout", seconds / 2)
        self.patch(TLSTransport, "flush_timeout", seconds)
        self.patch(_worn, "CLOSE_TIMEOUT", seconds)
        self.seconds = seconds

    def endpoint(self, kind):
        hub, _, kind = kind.rpartition("-")
        host = HubReactor(reactor) if hub else reactor
        tcp = TCP4ServerEndpoint(host, 0, interface="127.0.0.1")
        if kind == "tcp":
            return tcp
        if kind == "unix":
            return UNIXServerEndpoint(host, self.mktemp())
        if kind == "ssl":
            return SSL4ServerEndpoint(reactor, 0, twisted_options(), interface="127.0.0.1")
        limits = {"close_timeout": self.seconds / 2, "flush_timeout": self.seconds}
        return SecureServerEndpoint(reactor, tcp, server_options(**limits))

    async def serve(self, way, build, wrap=lambda factory: factory):
        """
        Serve what *build* makes: an `AsyncChat`, or, of a socket, a legacy handler.

        Returns:
            A client of the server, and the list of the handlers that it makes.
        """
        style, kind = way.split()
        handlers = []

        def noted(*sock):
            handlers.append(build(*sock))
            return handlers[-1]

        if style == "native":
            factory = Factory.forProtocol(noted)
        else:
            factory = LegacyFactory(build=lambda sock, _: noted(sock))
        factory.noisy = False
        port = await self.endpoint(kind).listen(wrap(factory))
        self.addCleanup(port.stopListening)
        host = port.getHost()
        kind = kind.rpartition("-")[2]
        client = Client(host.name if kind == "unix" else (host.host, host.port), kind)
        self.addCleanup(client.close)
        return client, handlers

    async def made(self, handlers):
        """Wait until there is a handler, and return it."""
        await until(lambda: handlers)
        return handlers[0]

    async def gone(self, handlers):
        """Wait until the handler's connection is gone, and return the handler."""
        handler = await self.made(handlers)
        await until(lambda: self.is_gone(handler))
        return handler

    def is_gone(self, handler):
        if isinstance(handler, AsyncChat):
            return handler.state is State.CLOSED
        sock = handler.socket
        if isinstance(sock, _worn.TransportSocket):
            return transports.real_socket(sock.transport) is None
        return sock.fileno() == -1
