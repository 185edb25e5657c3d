"""
A server for any handler: it makes one for each connection, and each knows the others.

    python -m txasynchat run server_legacy.py --port 8007
    nc 127.0.0.1 8007

Up to Python 3.11 ``python server_legacy.py`` runs it on the standard library alone. ``server.py`` is
the same for Twisted's reactor.
"""

import argparse
import asynchat
import asyncore
import signal


class Server(asyncore.dispatcher):
    """Calls *handler* with the socket, the server and the *arguments* for each connection."""

    def __init__(self, address, handler, *arguments):
        asyncore.dispatcher.__init__(self)
        self.handler, self.arguments = handler, arguments
        self.connections = set()  # each handler leaves it when it closes
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)

    def handle_accepted(self, sock, addr):
        self.connections.add(self.handler(sock, self, *self.arguments))

    def stop(self, *_):
        self.close()
        for channel in list(self.connections):
            channel.close_when_done()


class Greeter(asynchat.async_chat):
    def __init__(self, sock, server, greeting):
        asynchat.async_chat.__init__(self, sock)
        self.server, self.greeting = server, greeting
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        line = self._get_data()
        end = b"\n"
        if line.endswith(b"\r"):
            line, end = line[:-1], b"\r\n"
        connected = len(self.server.connections)
        answer = b"%b, %b: %d connected" % (self.greeting, line, connected)
        self.push(answer + end)

    def close(self):  # called for every end
        self.server.connections.discard(self)
        asynchat.async_chat.close(self)


def main():
    parser = argparse.ArgumentParser(description="Greet whoever gives a name.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    options = parser.parse_args()
    server = Server(("127.0.0.1", options.port), Greeter, b"hello")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.stop)
    print("listening on 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
    asyncore.loop(use_poll=True)  # until nothing is open any more


if __name__ == "__main__":
    main()
