r"""
A line server that counts, and serves only so many at a time: the others wait for their turn.

    python stats.py --port 8007 --max-connections 10
    printf 'hello\nSTATS\n' | nc 127.0.0.1 8007

A line comes back as ``ACK: line``. ``STATS`` is answered by what was counted since the start:
*connections* that were served (not those that wait), *messages* received and *bytes_recv* in them, line
ends and this question included, and *bytes_sent* in all answers before this one.
``stats_legacy.py`` is the same for asyncore and asynchat.
"""

import argparse

from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, Limits, serve


class Stats:
    """What was counted, of all connections."""

    connections = messages = bytes_recv = bytes_sent = 0

    def report(self) -> bytes:
        return b"connections=%d messages=%d bytes_recv=%d bytes_sent=%d" % (
            self.connections,
            self.messages,
            self.bytes_recv,
            self.bytes_sent,
        )


class Session(AsyncChat):
    terminator = (b"\n", b"\r\n")

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    @override
    def handle_connect(self) -> None:
        self.stats.connections += 1

    @override
    def message_received(self, message: bytes) -> None:
        end = self.matched_terminator
        self.stats.messages += 1
        self.stats.bytes_recv += len(message + end)
        answer = self.stats.report() if message == b"STATS" else b"ACK: " + message
        self.push(answer + end)
        self.stats.bytes_sent += len(answer + end)


def main() -> None:
    parser = argparse.ArgumentParser(description="Acknowledge lines, and count them.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--listen", metavar="ENDPOINT", help="listen there instead")
    parser.add_argument("--max-connections", type=int, default=100, metavar="N", help="at a time")
    options = parser.parse_args()
    if options.max_connections < 1:
        parser.error("--max-connections must be at least 1")
    endpoint = options.listen or f"tcp:{options.port}:interface=127.0.0.1"
    limits = Limits(connections=options.max_connections, when_full="queue", queue_timeout=None)
    serve(ChatFactory(Session, Stats()), endpoint, announce=True, limits=limits)


if __name__ == "__main__":
    main()
