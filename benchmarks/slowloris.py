"""A thousand clients that waste a server's time, against `twistd -n asynchat` as it is: who stays?

It is given where to listen, and nothing else. Prints when each kind of client was ended, what the
server holds at the end, what it logged, and how long a well-behaved client waited meanwhile.

    python benchmarks/slowloris.py [--clients 1000] [--seconds 400] [--limit NAME=VALUE]...
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from processes import certificate

ESTABLISHED = 1
HOST = "127.0.0.1"


class Client:
    """One that wastes time in one way; `act` is called once a second."""

    secure = False
    receives = 65_536

    def __init__(self, ports):
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receives)
        self.socket.connect((HOST, ports[self.secure]))
        self.began = time.monotonic()
        self.ended = None
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self.begin()

    def begin(self):
        pass

    def act(self):
        pass

    def look(self):
        """Act, unless the server has ended the connection; return whether it just has."""
        if self.ended is not None:
            return False
        try:
            with contextlib.suppress(BlockingIOError):
                self.act()
            over = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
        except OSError:
            over = True
        if over:
            self.ended = time.monotonic() - self.began
        return over


class Silent(Client):
    """says nothing"""


class Dribbling(Client):
    """sends a byte a second"""

    def act(self):
        self.socket.send(b"x")


class SilentLater(Client):
    """sends a line, then nothing"""

    def begin(self):
        self.socket.send(b"hello\n")


class DribblingLater(Dribbling):
    """sends a line, then a byte a second"""

    begin = SilentLater.begin


class Deaf(Client):
    """sends lines and never reads"""

    receives = 4_096

    def begin(self):
        for _ in range(8):
            self.socket.send((b"x" * 1_023 + b"\n") * 64)

    act = begin


class NearlyDeaf(Deaf):
    """sends lines, reads a byte a second"""

    def act(self):
        self.socket.recv(1)


class SecureSilent(Silent):
    """TLS: says nothing"""

    secure = True


class HalfHello(Client):
    """TLS: sends its hello, a byte a second"""

    secure = True

    def begin(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        out = ssl.MemoryBIO()
        tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        self.hello = out.read()

    def act(self):
        self.socket.send(self.hello[:1])
        self.hello = self.hello[1:]


class HalfHandshake(HalfHello):
    """TLS: sends its hello, then nothing"""

    def begin(self):
        super().begin()
        self.socket.send(self.hello)

    def act(self):
        pass


class SecureLater(Client):
    """TLS: shakes hands, then says nothing"""

    secure = True

    def begin(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.socket.settimeout(20)
        self.socket = context.wrap_socket(self.socket)
        self.socket.setblocking(False)


#: Of twenty clients.
KINDS = {
    Silent: 4,
    Dribbling: 4,
    SilentLater: 2,
    DribblingLater: 2,
    Deaf: 2,
    NearlyDeaf: 2,
    SecureSilent: 1,
    HalfHello: 1,
    HalfHandshake: 1,
    SecureLater: 1,
}


class Served:
    """The server, as it is started by hand."""

    def __init__(self, limits):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop
        listen = [f"tcp:0:interface={HOST}"]
        listen.append(f"secure:tcp:0:interface={HOST}:certificate={certificate()[0]}")
        twistd = Path(sys.executable).with_name("twistd")
        command = [str(twistd), "-n", "--pidfile=", "asynchat"]
        for endpoint in listen:
            command += ["--listen", endpoint]
        for limit in limits:
            command += ["--limit", limit]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.ports = []
        end = time.monotonic() + 20
        while len(self.ports) < 2:
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit("".join(self.lines()))
            time.sleep(0.1)
            found = (re.search(rf"txasynchat: .* {HOST}:(\d+)", line) for line in self.lines())
            self.ports = [int(match[1]) for match in found if match]
        self.quiet = len(self.lines())

    def lines(self):
        self.log.seek(0)
        return self.log.readlines()

    def sockets(self):
        links = Path(f"/proc/{self.process.pid}/fd").iterdir()
        count = 0
        for link in links:
            with contextlib.suppress(OSError):
                count += str(link.readlink()).startswith("socket:")
        return count

    def memory(self):
        """Resident memory in MiB, now and at most."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return [int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024 for name in ("VmRSS", "VmHWM")]

    def cpu(self):
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


class Honest(threading.Thread):
    """A client that says a line ten times a second, and notes how long each answer took."""

    def __init__(self, port):
        super().__init__()
        self.socket = socket.create_connection((HOST, port), 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.waits = []
        self.error = None
        self.over = threading.Event()

    def run(self):
        try:
            while not self.over.wait(0.1):
                began = time.perf_counter()
                self.socket.sendall(b"hello\n")
                answer = b""
                while len(answer) < 6:
                    piece = self.socket.recv(6)
                    if not piece:
                        raise ConnectionError("ended by the server")
                    answer += piece
                self.waits.append((time.perf_counter() - began) * 1e3)
        except OSError as error:
            self.error = error
        self.socket.close()


def attack(server, count, seconds):
    """Connect, waste time, and look who is ended; return the clients by kind."""
    unit = sum(KINDS.values())
    clients = [
        kind(server.ports)
        for kind, share in KINDS.items()
        for _ in range(max(1, count * share // unit))
    ]
    print(f"{len(clients)} clients are connected; the server has {server.sockets()} sockets")
    # So that the honest client does not wait for this program.
    turns = 50
    end = time.monotonic() + seconds
    pace = threading.Event()
    while time.monotonic() < end and any(client.ended is None for client in clients):
        for turn in range(turns):
            for client in clients[turn::turns]:
                client.look()
            pace.wait(1 / turns)
    return clients


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=400, help="at most")
    parser.add_argument("--limit", action="append", default=[], help="another than the default")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server = Served(options.limit)
    honest = Honest(server.ports[0])
    try:
        time.sleep(0.5)
        sockets, (before, _), used = server.sockets(), server.memory(), server.cpu()
        honest.start()
        began = time.monotonic()
        clients = attack(server, options.clients, options.seconds)
        took = time.monotonic() - began
        for kind in KINDS:
            ends = [one.ended for one in clients if type(one) is kind]
            known = sorted(end for end in ends if end is not None)
            first, last = (known[0], known[-1]) if known else (float("nan"),) * 2
            print(
                f"  {kind.__doc__:42}{len(ends):5}, ended {len(known):5},"
                f" after {first:6.1f} to {last:6.1f} s"
            )
        end = time.monotonic() + 30
        while server.sockets() > sockets and time.monotonic() < end:
            time.sleep(0.1)
        left = server.sockets() - sockets
        (now, peak), cpu = server.memory(), server.cpu() - used
        print(f"after {took:.0f} s: {left} connections left in the server")
        print(f"memory: {before:.1f} MiB before, {peak:.1f} at most, {now:.1f} after")
        print(f"CPU: {cpu:.1f} s, {cpu / took:.1%} of a core")
        lines = server.lines()[server.quiet :]
        print(f"log: {len(lines)} lines, {sum('Traceback' in line for line in lines)} tracebacks")
        for line in lines[:3]:
            print(f"  {line.rstrip()[:110]}")
    finally:
        honest.over.set()
        if honest.ident:
            honest.join()
        server.stop()
    waits = sorted(honest.waits)
    what = f"was failed: {honest.error}" if honest.error else f"had {len(waits)} answers"
    print(
        f"an honest client {what}; waited {statistics.median(waits):.2f} ms in the median,"
        f" {waits[len(waits) * 99 // 100]:.2f} in 99 of 100, {waits[-1]:.1f} at most"
    )
    open_still = [client for client in clients if client.ended is None]
    raise SystemExit(bool(open_still or left or honest.error))


if __name__ == "__main__":
    main()
