"""
A line echo: each line comes back as ``ECHO: line``, ended as the client ended it.

    python -m txasynchat run echo_legacy.py --port 8007
    nc 127.0.0.1 8007

Up to Python 3.11 ``python echo_legacy.py`` runs it on the standard library alone. ``echo.py`` is the
same for Twisted's reactor.
"""

import argparse
import asynchat
import asyncore
import signal
import threading


class Echo(asynchat.async_chat):
    def __init__(self, sock, on_line=None):
        asynchat.async_chat.__init__(self, sock)
        self.on_line = on_line
        self.set_terminator(b"\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        line = self._get_data()
        end = b"\n"
        if line.endswith(b"\r"):
            line, end = line[:-1], b"\r\n"
        if self.on_line is not None:
            self.on_line(line)
        self.push(b"ECHO: " + line + end)


class EchoServer(asyncore.dispatcher):
    def __init__(self, address, on_line=None):
        asyncore.dispatcher.__init__(self)
        self.on_line = on_line
        self.create_socket()
        self.set_reuse_addr()
        self.bind(address)
        self.listen(100)
        self.thread = threading.Thread(target=self.run)

    def handle_accepted(self, sock, addr):
        Echo(sock, self.on_line)

    def run(self):
        while self.accepting:  # until the server is closed
            asyncore.loop(timeout=0.1, use_poll=True, count=10)
        for channel in list(asyncore.socket_map.values()):
            channel.close_when_done()
        asyncore.loop(use_poll=True)


def main():
    parser = argparse.ArgumentParser(description="Send each line back.")
    parser.add_argument("--port", type=int, default=8007, help="of 127.0.0.1; 0: a free one")
    parser.add_argument("--verbose", action="store_true", help="print each line")
    options = parser.parse_args()
    on_line = (lambda line: print("received", line, flush=True)) if options.verbose else None
    server = EchoServer(("127.0.0.1", options.port), on_line)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.close())
    server.thread.start()
    print("listening on 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
    server.thread.join()


if __name__ == "__main__":
    main()
