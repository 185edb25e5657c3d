"""What do limits on what a peer may take cost: deadlines, above all?

The same servers without limits and with all that `twistd asynchat` has by default.
"""

from __future__ import annotations

import resource
import time
from functools import partial
from typing import TYPE_CHECKING

from processes import Server, idle_connections, memory_per_connection, run_load
from report import Table, Target

if TYPE_CHECKING:
    from report import Verdict

#: Name: without limits, its switches.
SERVERS = {"on Twisted's transports": (), "on the hub": ("--hub",)}
WITHOUT = "{}, without limits"
WITH = "{}, with limits"
#: Size of the run: fresh processes, idle connections for memory and for time, seconds of those.
SIZES = {
    "full": (3, 5_000, 10_000, 20.0),
    "quick": (2, 3_000, 5_000, 10.0),
    "smoke": (1, 200, 200, 0.5),
}


def rows():
    for name, switches in SERVERS.items():
        yield WITHOUT.format(name), switches
        yield WITH.format(name), (*switches, "--limits")


def start(switches) -> Server:
    return Server("on_twisted.py", "AsyncChat", "echo", *switches)


def ping_pong(switches, seconds: float) -> float:
    server = start(switches)
    try:
        return run_load(server, None, "echo", 50, 1, seconds, 10**9).cpu_per_message
    finally:
        server.stop()


def memory(switches, count: int) -> float:
    server = start(switches)
    try:
        return memory_per_connection(server, None, count)
    finally:
        server.stop()


def idle(switches, count: int, seconds: float) -> float:
    """Return the share of a core, in per cent, that idle connections cost."""
    server = start(switches)
    try:
        with idle_connections(server, None, count):
            time.sleep(seconds / 2)  # the first look at each connection, which costs more
            before = server.cpu()
            time.sleep(seconds)
            return (server.cpu() - before) / seconds * 100
    finally:
        server.stop()


def main(size: str, repeats: int) -> list[Verdict]:
    fresh, held, many, seconds = SIZES[size]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = min(many, limit - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    timed = Table(
        "Limits: a line and its answer, 50 connections",
        "us of CPU",
        [Target(WITH.format(name), WITHOUT.format(name), at_most=1.03) for name in SERVERS],
    )
    pace = 0.05 if size == "smoke" else 0.5
    timed.measure({name: partial(ping_pong, own, pace) for name, own in rows()}, repeats)
    held_by = Table(
        f"Limits: memory of an idle connection, of {held:,}",
        "KiB",
        [Target(WITH.format(name), at_most=2) for name in SERVERS],
    )
    held_by.measure({name: partial(memory, own, held) for name, own in rows()}, fresh)
    idling = Table(
        f"Limits: {many:,} idle connections",
        "% of a core",
        [Target(WITH.format(name), at_most=1) for name in SERVERS],
    )
    idling.measure({name: partial(idle, own, many, seconds) for name, own in rows()}, fresh)
    return [verdict for table in (timed, held_by, idling) for verdict in table.print()]
