"""
A TCP proxy: what clients send goes to one destination, and what that answers goes back.

    python -m txasynchat run proxy_legacy.py --port 8008 --to 127.0.0.1:8080
    curl http://127.0.0.1:8008/

``--certificate FILE`` speaks TLS with the clients, which asyncore never had: only where txasynchat
runs the program. ``--connect`` instead of ``--to`` lets each client choose its destination, by HTTP's
CONNECT (``curl -px http://127.0.0.1:8008 URL``). Names are looked up while everybody waits.

Up to Python 3.11 ``python proxy_legacy.py`` runs it on the standard library alone. ``proxy.py`` is the
same for Twisted's reactor.
"""

import argparse
import asyncore
import re
import signal
import socket
import ssl
import sys
from http import HTTPStatus

try:
    from txasynchat.compat import asyncore as with_tls
    from txasynchat.compat import start_tls
except ImportError:
    with_tls = None

HIGH_WATER = 65_536
ADDRESS = re.compile(r"\[?([^\[\]]+)\]?:([0-9]{1,5})")
CONNECT = re.compile(rb"CONNECT ([!-~]+) HTTP/1\.[01](?:\r\n.*)?", re.DOTALL)


def parse_address(text):
    match = ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65_536:
        raise ValueError("not HOST:PORT: %r" % text)
    return match[1], int(match[2])


class Side(asyncore.dispatcher):
    """One of two coupled connections: what either receives is sent on the other."""

    def __init__(self, sock=None):
        asyncore.dispatcher.__init__(self, sock)
        self.queue = bytearray()
        self.ended = False  # nothing more is received
        self.finished = False  # nothing more is sent

    def readable(self):
        return not self.ended and len(self.other.queue) < HIGH_WATER

    def writable(self):
        return bool(self.queue) or not self.connected or (self.other.ended and not self.finished)

    def handle_connect(self):
        pass

    def handle_read(self):
        # Not self.recv(), which calls handle_close() for the end of one direction too.
        try:
            data = self.socket.recv(65_536)
        except BlockingIOError:
            return
        self.other.queue += data
        self.ended = not data

    def handle_write(self):
        if self.queue:
            del self.queue[: self.send(self.queue[:HIGH_WATER])]
        if self.other.ended and not (self.queue or self.finished):
            self.finished = True
            self.socket.shutdown(socket.SHUT_WR)
            if self.other.finished:
                self.close()
                self.other.close()

    def handle_close(self):
        """The connection is lost: the other one sends what it still has, and ends."""
        self.ended = self.finished = True
        self.queue.clear()
        self.close()
        self.other.ended = True
        if not self.other.connected:
            self.other.close()

    def stop(self):
        """Receive nothing more, and send what is queued; called for both."""
        self.ended = True
        if not (self.connected and self.other.connected):
            self.handle_close()

    def handle_error(self):
        if isinstance(sys.exc_info()[1], OSError):
            self.handle_close()
        else:
            asyncore.dispatcher.handle_error(self)


class Back(Side):
    """The connection to the destination; what *front* says before there is one waits in its queue."""

    greeting = b""

    def __init__(self, front):
        Side.__init__(self)
        self.other = front

    def reach(self, address, greeting=b""):
        self.greeting = greeting
        try:
            family, kind, _, _, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
            self.create_socket(family, kind)
            self.connect(place)
        except OSError:
            self.handle_error()

    def handle_connect(self):
        self.other.queue += self.greeting
        self.greeting = b""

    def handle_close(self):
        if self.greeting:  # still: it was not reached
            self.other.queue += answer(502)
        Side.handle_close(self)


class Front(Side):
    """A client's connection; without a destination it has to name one first."""

    def __init__(self, sock, destination, context):
        Side.__init__(self, sock)
        self.other = Back(self)
        self.named = destination is not None
        if context is not None:
            start_tls(self, context)
        if self.named:
            self.other.reach(destination)

    def handle_read(self):
        Side.handle_read(self)
        if not self.named:
            self.find_name()

    def find_name(self):
        head, end, rest = bytes(self.other.queue).partition(b"\r\n\r\n")
        if len(head) > 16_384:
            self.refuse(431)
        elif end:
            self.named = True
            match = CONNECT.fullmatch(head)
            try:
                address = parse_address(match[1].decode() if match else "")
            except ValueError:
                self.refuse(400)
            else:
                self.other.queue[:] = rest
                self.other.reach(address, b"HTTP/1.1 200 Connection established\r\n\r\n")
        elif self.ended:
            self.handle_close()

    def refuse(self, status):
        self.queue += answer(status)
        self.other.handle_close()


class Proxy(asyncore.dispatcher):
    def __init__(self, address, destination, context):
        asyncore.dispatcher.__init__(self)
        self.destination, self.context = destination, context
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)

    def handle_accepted(self, sock, addr):
        Front(sock, self.destination, self.context)


def answer(status):
    lines = b"HTTP/1.1 %d %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return lines % (status, HTTPStatus(status).phrase.encode())


def main():
    parser = argparse.ArgumentParser(description="Pass connections on.")
    parser.add_argument("--port", type=int, default=8008, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--certificate", metavar="FILE", help="speak TLS: certificate and key")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=parse_address, metavar="HOST:PORT", help="the destination")
    where.add_argument("--connect", action="store_true", help="clients name it, by CONNECT")
    options = parser.parse_args()
    context = None
    if options.certificate:
        if asyncore is not with_tls:
            parser.error("--certificate needs txasynchat: python -m txasynchat run proxy_legacy.py")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate)
    proxy = Proxy(("127.0.0.1", options.port), options.to, context)
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    print("listening on 127.0.0.1:%d" % proxy.socket.getsockname()[1], flush=True)
    # By select: poll() reports that both directions have ended before everything is read.
    while not signals:
        asyncore.loop(timeout=0.1, count=10)
    proxy.close()
    for side in list(asyncore.socket_map.values()):
        side.stop()
    asyncore.loop()


if __name__ == "__main__":
    main()
