r"""
A line server that counts, and serves only so many at a time: the others wait for their turn.

    python -m txasynchat run stats_legacy.py --port 8007 --max-connections 10
    printf 'hello\nSTATS\n' | nc 127.0.0.1 8007

A line comes back as ``ACK: line``. ``STATS`` is answered by what was counted since the start:
*connections* that were served (not those that wait), *messages* received and *bytes_recv* in them, line
ends and this question included, and *bytes_sent* in all answers before this one. Up to Python 3.11
``python stats_legacy.py`` runs it on the standard library alone. ``stats.py`` is the same for Twisted's
reactor.
"""

import argparse
import asynchat
import asyncore
import signal
from collections import deque


class StatsServer(asyncore.dispatcher):
    """What all connections share: what was counted, who is served, and who waits."""

    connections = messages = bytes_recv = bytes_sent = 0

    def __init__(self, address, limit):
        asyncore.dispatcher.__init__(self)
        self.limit = limit
        self.served = set()
        self.waiting = deque()  # sockets, which nobody reads until they are served
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)

    def handle_accepted(self, sock, addr):
        self.waiting.append(sock)
        self.serve_next()

    def serve_next(self):
        while self.waiting and len(self.served) < self.limit:
            sock = self.waiting.popleft()
            self.served.add(Session(sock, self))
            self.connections += 1

    def report(self):
        return b"connections=%d messages=%d bytes_recv=%d bytes_sent=%d" % (
            self.connections,
            self.messages,
            self.bytes_recv,
            self.bytes_sent,
        )

    def stop(self, *_):
        self.close()
        while self.waiting:
            self.waiting.popleft().close()
        for session in list(self.served):
            session.close_when_done()


class Session(asynchat.async_chat):
    def __init__(self, sock, stats):
        asynchat.async_chat.__init__(self, sock)
        self.stats = stats
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        message, end = self._get_data(), b"\n"
        if message.endswith(b"\r"):
            message, end = message[:-1], b"\r\n"
        self.stats.messages += 1
        self.stats.bytes_recv += len(message + end)
        answer = self.stats.report() if message == b"STATS" else b"ACK: " + message
        self.push(answer + end)
        self.stats.bytes_sent += len(answer + end)

    def close(self):  # called for every end
        asynchat.async_chat.close(self)
        self.stats.served.discard(self)
        self.stats.serve_next()


def main():
    parser = argparse.ArgumentParser(description="Acknowledge lines, and count them.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--max-connections", type=int, default=100, metavar="N", help="at a time")
    options = parser.parse_args()
    if options.max_connections < 1:
        parser.error("--max-connections must be at least 1")
    server = StatsServer(("127.0.0.1", options.port), options.max_connections)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.stop)
    print("listening on 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
    asyncore.loop(use_poll=True)  # until nothing is open any more


if __name__ == "__main__":
    main()
