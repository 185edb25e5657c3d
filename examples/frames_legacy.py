r"""
Frames of a fixed length: four bytes are a number, big-endian; twice that comes back, and then the end.

    python -m txasynchat run frames_legacy.py --port 8007
    printf '\0\0\0\25' | nc 127.0.0.1 8007 | od -An -tu1

A number whose double needs more than four bytes is an error of its connection, which is logged. Up to
Python 3.11 ``python frames_legacy.py`` runs it on the standard library alone. ``frames.py`` is the same
for Twisted's reactor.
"""

import argparse
import asynchat
import asyncore
import signal
import struct


class Doubler(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(4)

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        (number,) = struct.unpack("!I", self._get_data())
        if number > 0x7FFFFFFF:
            raise OverflowError("%d doubled is more than four bytes can hold" % number)
        self.push(struct.pack("!I", 2 * number))
        self.close_when_done()  # and the terminator is 0 by now: nothing else is a frame


class DoublerServer(asyncore.dispatcher):
    def __init__(self, address):
        asyncore.dispatcher.__init__(self)
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)

    def handle_accepted(self, sock, addr):
        Doubler(sock)

    def stop(self, *_):
        self.close()
        for channel in list(asyncore.socket_map.values()):
            channel.close_when_done()


def main():
    parser = argparse.ArgumentParser(description="Double a number of four bytes.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    options = parser.parse_args()
    server = DoublerServer(("127.0.0.1", options.port))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.stop)
    print("listening on 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
    asyncore.loop(use_poll=True)  # until nothing is open any more


if __name__ == "__main__":
    main()
