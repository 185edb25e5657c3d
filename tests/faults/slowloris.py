"""
A thousand clients that want to keep ``twistd asynchat`` busy for nothing, and one that wants an answer.

    python tests/faults/slowloris.py [--clients 1000] [--seconds 510]

The server runs with no option, but for the place where it listens. Each client holds its connection in
one of the ways below for as long as it is let, and connects again when it is not, as attackers do. In
the last `LAST` seconds nobody connects again. Printed is, for each way, how long the server kept such a
connection; and how long the honest client waited for its answers, the server's memory, and what it
logged. The exit status is 1 if a connection outlasted its limit, or the honest client was not served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Seconds at the end in which what is open has to end: longer than all limits but the longest, with
#: what is documented on top of them.
LAST = 90.0
#: Seconds that a connection may be idle, with three eighths on top; the other limits are shorter.
IDLE = 300.0
LINE = b"x" * 99 + b"\n"

Peer = socket.socket


async def _quiet(peer: Peer) -> None:
    """Read until the server ends it."""
    while await _loop().sock_recv(peer, 65_536):
        pass


async def says_nothing(peer: Peer) -> None:
    """Connects, and is silent."""
    await _quiet(peer)


async def dribbles(peer: Peer) -> None:
    """Sends a byte a second, which never become a line."""
    async with asyncio.TaskGroup() as group:
        dribbling = group.create_task(_dribble(peer))
        await _quiet(peer)
        dribbling.cancel()


async def _dribble(peer: Peer) -> None:
    while True:
        await _loop().sock_sendall(peer, b"x")
        await asyncio.sleep(1)


async def dribbles_later(peer: Peer) -> None:
    """Does so after one whole line."""
    await _loop().sock_sendall(peer, LINE)
    await dribbles(peer)


async def falls_silent(peer: Peer) -> None:
    """Sends one line, and no more."""
    await _loop().sock_sendall(peer, LINE)
    await _quiet(peer)


async def reads_nothing(peer: Peer) -> None:
    """Asks for answers that it does not read."""
    await _loop().sock_sendall(peer, LINE * 1000)
    await _hung_up(peer)


async def reads_a_byte(peer: Peer) -> None:
    """Asks for answers of which it reads a byte a second."""
    await _loop().sock_sendall(peer, LINE * 1000)
    await _hung_up(peer, reading=1)


async def half_a_hello(peer: Peer) -> None:
    """Begins a TLS handshake, and does not go on."""
    await _loop().sock_sendall(peer, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20))
    await _quiet(peer)


async def _hung_up(peer: Peer, reading: int = 0) -> None:
    """Wait until the server has aborted it, which what is read does not tell before all is read."""
    # Linux: the connection's state, of which 7 is that it is closed.
    while peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 7:
        if reading:
            with contextlib.suppress(BlockingIOError):
                peer.recv(reading)
        await asyncio.sleep(1)


#: Ways, the port's number among those that are listened on, and the limit that ends them.
WAYS: list[tuple[Callable[[Peer], Awaitable[None]], int, float]] = [
    (says_nothing, 0, 30.0),
    (dribbles, 0, 30.0),
    (dribbles_later, 0, 60.0),
    (falls_silent, 0, IDLE),
    (reads_nothing, 0, 30.0),
    (reads_a_byte, 0, 30.0),
    (half_a_hello, 1, 10.0),
    (says_nothing, 1, 10.0),
]


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


class Attack:
    """What the clients found."""

    def __init__(self, ports: list[int], seconds: float) -> None:
        self.ports = ports
        self.end = time.monotonic() + seconds
        self.kept: dict[str, list[float]] = {}
        self.held: dict[str, int] = {}
        self.waits: list[float] = []
        self.refused = 0

    async def hold(self, way: Callable[[Peer], Awaitable[None]], port: int, delay: float) -> None:
        """Be one client, again and again."""
        name = f"{way.__name__}{' over TLS' if port else ''}"
        await asyncio.sleep(delay)
        while time.monotonic() < self.end - LAST:
            peer = socket.socket()
            peer.setblocking(False)
            # As slow readers do, who want to cost much and to pay little.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            with peer:
                try:
                    await _loop().sock_connect(peer, ("127.0.0.1", self.ports[port]))
                except OSError:
                    self.refused += 1
                    await asyncio.sleep(0.5)
                    continue
                began = time.monotonic()
                self.held[name] = self.held.get(name, 0) + 1
                with contextlib.suppress(OSError, ExceptionGroup):
                    await way(peer)
                self.held[name] -= 1
                self.kept.setdefault(name, []).append(time.monotonic() - began)

    async def ask(self) -> None:
        """Be the honest client: connect, ask, and be answered, four times a second."""
        while time.monotonic() < self.end:
            began = time.monotonic()
            try:
                async with asyncio.timeout(10):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[0])
                    writer.write(LINE)
                    right = await reader.readline() == LINE
                    writer.close()
            except (OSError, TimeoutError):
                right = False
            self.waits.append(time.monotonic() - began if right else float("inf"))
            await asyncio.sleep(0.25)


def _memory(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index] # it is there


async def attack(arguments: argparse.Namespace, server: Any, ports: list[int]) -> bool:
    """Run it; return whether all is as it should be."""
    it = Attack(ports, arguments.seconds)
    before = _memory(server.pid)
    asking = asyncio.create_task(it.ask())
    clients = [
        asyncio.create_task(it.hold(*WAYS[number % len(WAYS)][:2], number * 5 / arguments.clients))
        for number in range(arguments.clients)
    ]
    await asyncio.sleep(20)
    most = _memory(server.pid)
    print(f"{sum(it.held.values())} connections are held after 20 s")
    await asking
    # Whoever was idle for less than its limit may be left.
    fine = it.held.get("falls_silent", 0) == sum(it.held.values())
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    print(f"{'':26}limit   connections   kept at least   at most, seconds")
    for way, port, limit in WAYS:
        name = f"{way.__name__}{' over TLS' if port else ''}"
        kept = it.kept.get(name, [])
        if kept:
            late = max(kept) > limit * 1.375 + 2
            fine &= not late
            print(
                f"{name:26}{limit:5.0f}   {len(kept):11}   {min(kept):13.1f}   {max(kept):7.1f}"
                f"{'   TOO LONG' if late else ''}"
            )
    waits = sorted(it.waits)
    print(
        f"honest client: {len(waits)} times, waited {statistics.median(waits) * 1000:.1f} ms"
        f" (median), {waits[-max(1, len(waits) // 100)] * 1000:.0f} ms (1 of 100), "
        f"{waits[-1] * 1000:.0f} ms (most); connections refused: {it.refused}"
    )
    print(
        f"server's memory: {before:.1f} MiB, {most:.1f} after 20 s, "
        f"{_memory(server.pid):.1f} at the end"
    )
    return fine and waits[-1] < float("inf")


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=510.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        key = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
        subprocess.run(
            [*key, "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        log = Path(folder, "log")
        with log.open("wb") as writing, subprocess.Popen(
            [
                Path(sys.executable).with_name("twistd"), "-n", "asynchat",
                "--listen", "tcp:0:interface=127.0.0.1",
                "--listen", "secure:tcp:0:interface=127.0.0.1:certificate=cert.pem:key=key.pem",
            ],
            cwd=folder, stdout=writing, stderr=subprocess.STDOUT,
        ) as server:  # fmt: skip
            ports: list[int] = []
            while len(ports) < 2:
                if server.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.1)
                ports = [
                    int(one)
                    for one in re.findall(r"try: .*?[ :](\d+)$", log.read_text(), re.MULTILINE)
                ]
            fine = asyncio.run(attack(arguments, server, ports))
            server.terminate()
            server.wait(30)
        said = log.read_text().splitlines()
        print(f"log: {len(said)} lines; the last ones:", *said[-6:], sep="\n    ")
    return not fine


if __name__ == "__main__":
    sys.exit(main())
