"""A server with nothing between it and the kernel: what is left for a Python program to save."""

from __future__ import annotations

import select
import socket
import ssl
from contextlib import suppress

from common import BLOCK, DONE, END, arguments, listening


class Echo:
    def __init__(self, connection: socket.socket, poller, options) -> None:
        self.socket = connection
        self.poller = poller
        self.size = options.size
        self.rest = b""
        self.unsent = b""

    def readable(self) -> bool:
        """Read once; False when the connection is over."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        return bool(data) and self.received(data)

    def received(self, data: bytes) -> bool:
        """Handle bytes; False when the connection is over."""
        lines = (self.rest + data).split(END)
        self.rest = lines.pop()
        if lines:
            self.send(b"".join([line + END for line in lines]))
        return True

    def send(self, data: bytes) -> None:
        if self.unsent:
            self.unsent += data
            return
        sent = self.try_send(data)
        if sent < len(data):
            self.unsent = data[sent:]
            self.poller.modify(self.socket, select.EPOLLIN | select.EPOLLOUT)

    def writable(self) -> None:
        self.unsent = self.unsent[self.try_send(self.unsent) :]
        if not self.unsent:
            self.poller.modify(self.socket, select.EPOLLIN)

    def try_send(self, data: bytes) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0


class OneShot(Echo):
    def received(self, data: bytes) -> bool:
        super().received(data)
        return bool(self.rest)


class Source(Echo):
    left = 0

    def received(self, data: bytes) -> bool:
        self.left = self.size
        self.poller.modify(self.socket, select.EPOLLIN | select.EPOLLOUT)
        return True

    def writable(self) -> None:
        at = (self.size - self.left) % len(BLOCK)
        self.left -= self.try_send(BLOCK[at : at + self.left])
        if not self.left:
            self.poller.modify(self.socket, select.EPOLLIN)


class Sink(Echo):
    left = 0

    def received(self, data: bytes) -> bool:
        self.left = (self.left or self.size) - len(data)
        if not self.left:
            self.send(DONE)
        return True


class Secure:
    """TLS in memory, between a handler and its socket."""

    def __init__(self, connection: socket.socket, poller, options) -> None:
        super().__init__(connection, poller, options)
        self.arrived, self.encrypted = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = options.context.wrap_bio(self.arrived, self.encrypted, server_side=True)
        self.shaken = False

    def readable(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        if not data:
            return False
        self.arrived.write(data)
        with suppress(ssl.SSLWantReadError):
            if not self.shaken:
                self.tls.do_handshake()
                self.shaken = True
            while text := self.tls.read(65536):
                if not self.received(text):
                    self.say_goodbye()
                    return False
                if not self.arrived.pending and not self.tls.pending():
                    return True
            return False
        if self.encrypted.pending:
            super().send(self.encrypted.read())
        return True

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        super().send(self.encrypted.read())

    def say_goodbye(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        super().send(self.encrypted.read())


class SecureEcho(Secure, Echo):
    pass


class SecureOneShot(Secure, OneShot):
    pass


SECURE_HANDLERS = {"echo": SecureEcho, "oneshot": SecureOneShot}
HANDLERS = {"echo": Echo, "oneshot": OneShot, "source": Source, "sink": Sink}


def main() -> None:
    options = arguments(["epoll"])
    handler_class = (SECURE_HANDLERS if options.tls else HANDLERS)[options.role]
    if options.tls:
        options.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        options.context.load_cert_chain(options.tls)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    handlers: dict[int, Echo] = {}
    listening(listener.getsockname()[1])
    while True:
        for descriptor, event in poller.poll():
            handler = handlers.get(descriptor)
            if handler is None:
                connection, _ = listener.accept()
                connection.setblocking(False)
                handlers[connection.fileno()] = handler_class(connection, poller, options)
                poller.register(connection, select.EPOLLIN)
                continue
            if event & select.EPOLLOUT:
                handler.writable()
            if event & ~select.EPOLLOUT and not handler.readable():
                del handlers[descriptor]
                poller.unregister(handler.socket)
                handler.socket.close()


if __name__ == "__main__":
    main()
