"""
Owners of engines: what a transport does with one, in memory and on a socket.
"""

from __future__ import annotations

import socket

from txasynchat.tls.engine import LARGEST_WRITE

PATIENCE = 20.0


def give(engine, data):
    """Pass on what arrived; return the plaintext that came of it."""
    if engine.is_secure:
        text = engine.receive(data)
    else:
        if not engine.feed(data) or not engine.shake_hands():
            return b""
        text = engine.receive(b"")
    pieces = [text]
    while engine.more:
        pieces.append(engine.receive(b""))
    return b"".join(pieces)


class Link:
    """Two engines, and nothing but memory between them."""

    def __init__(self, client, server, cut=None):
        self.client, self.server = client, server
        self.cut = cut or (lambda data: [data])
        #: What each was told.
        self.to_client, self.to_server = b"", b""
        #: What went over the wire.
        self.wire_to_client, self.wire_to_server = b"", b""
        client.shake_hands()

    def send_to_server(self, data):
        self.wire_to_server += data
        for piece in self.cut(data):
            self.to_server += give(self.server, piece)

    def send_to_client(self, data):
        self.wire_to_client += data
        for piece in self.cut(data):
            self.to_client += give(self.client, piece)

    def run(self):
        """Exchange what the engines owe, until they owe nothing."""
        while self.client.owes or self.server.owes:
            if self.client.owes:
                self.send_to_server(self.client.take())
            if self.server.owes:
                self.send_to_client(self.server.take())
        return self

    def say(self, data):
        """From the client to the server."""
        self.send_to_server(encrypted(self.client, data))
        self.run()

    def answer(self, data):
        """From the server to the client."""
        self.send_to_client(encrypted(self.server, data))
        self.run()


def encrypted(engine, data):
    return b"".join(
        engine.encrypt(data[at : at + LARGEST_WRITE]) for at in range(0, len(data), LARGEST_WRITE)
    )


class OnSocket:
    """An engine on a blocking socket."""

    def __init__(self, engine, sock):
        self.engine, self.sock = engine, sock
        sock.settimeout(PATIENCE)
        self.received = b""
        if not engine.is_server:
            engine.shake_hands()
            self.send_owed()

    def send_owed(self):
        if self.engine.owes:
            self.sock.sendall(self.engine.take())

    def read_once(self):
        """Take what arrives next; return whether there may be more."""
        try:
            data = self.sock.recv(65_536)
        except ConnectionResetError:
            data = b""
        if data:
            self.received += give(self.engine, data)
        else:
            self.engine.end_of_stream()
        self.send_owed()
        return not self.engine.ended

    def shake(self):
        while not self.engine.is_secure and self.read_once():
            pass
        return self

    def read_line(self):
        while b"\n" not in self.received and self.read_once():
            pass
        line, end, self.received = self.received.partition(b"\n")
        return line + end

    def read_all(self):
        while not self.engine.ended and self.read_once():
            pass
        data, self.received = self.received, b""
        return data

    def write(self, data):
        self.sock.sendall(encrypted(self.engine, data))

    def close(self):
        self.engine.close()
        self.send_owed()


def listen():
    sock = socket.create_server(("127.0.0.1", 0))
    sock.settimeout(PATIENCE)
    return sock
