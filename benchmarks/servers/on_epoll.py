"""A server with nothing between it and the kernel: what is left for a Python program to save."""

from __future__ import annotations

import select
import socket

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


HANDLERS = {"echo": Echo, "oneshot": OneShot, "source": Source, "sink": Sink}


def main() -> None:
    options = arguments(["epoll"])
    handler_class = HANDLERS[options.role]
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
