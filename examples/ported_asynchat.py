"""
A chat server written for the standard library's asyncore and asynchat. One line was changed.

Run it, and talk to it from several terminals: ``nc 127.0.0.1 8007``.
"""

import sys

from txasynchat.compat import asynchat, asyncore  # was: import asynchat, asyncore


class Server(asyncore.dispatcher):
    def __init__(self, address):
        asyncore.dispatcher.__init__(self)
        self.users = []
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(5)

    def handle_accepted(self, sock, addr):
        self.users.append(User(sock, self))


class User(asynchat.async_chat):
    def __init__(self, sock, server):
        asynchat.async_chat.__init__(self, sock)
        self.server = server
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        line = self._get_data().rstrip(b"\r")
        for user in self.server.users:
            if user is not self:
                user.push(line + b"\r\n")

    def handle_close(self):
        self.server.users.remove(self)
        self.close()


def main(port=8007):
    server = Server(("127.0.0.1", port))
    print("chat on 127.0.0.1 port", server.socket.getsockname()[1], flush=True)
    try:
        asyncore.loop()
    except KeyboardInterrupt:
        asyncore.close_all()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
