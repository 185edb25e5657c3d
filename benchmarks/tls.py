"""What do messages, bytes, idle connections and handshakes cost a server over TLS?

The same figures as end_to_end.py, with TLS 1.3 and one certificate for all, the facade with the
TLS of its own beside the others; and one question more: how long do clients on plain connections
wait while the same server shakes 2,000 hands?
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from end_to_end import (
    ANY_NUMBER,
    COMPETITORS,
    HUB,
    OURS,
    SIZES,
    Competitor,
    Scenario,
    bulk,
    extra,
    memory_tables,
    present,
    run_scenarios,
    shortened,
)
from processes import certificate, start_load
from report import BenchmarkError, Table, Target

if TYPE_CHECKING:
    from end_to_end import Sizes
    from report import Verdict

FACADE = "facade, its own TLS"
STOCK = "AsyncChat, Twisted's own endpoint"
STOCK_SERVER = Competitor(
    STOCK,
    "on_twisted.py",
    ("AsyncChat", "--stock-tls"),
    module="txasynchat.protocol",
    essential=False,
)
FACADE_SERVER = Competitor(
    FACADE,
    "on_asyncore.py",
    ("facade",),
    roles=("echo", "source", "sink"),
    module="txasynchat.compat.asynchat",
)
JOINING_SERVER = Competitor(
    f"{FACADE}, writes joined",
    "on_asyncore.py",
    ("facade", "--join"),
    roles=("echo",),
    module="txasynchat.compat.asynchat",
    essential=False,
)
RAW = "raw select.epoll and ssl"
RAW_SERVER = Competitor(RAW, "on_epoll.py", ("epoll",), roles=("echo", "oneshot"), module="ssl")
HANDSHAKES = {"full": 2000, "quick": 200, "smoke": 10}


def scenarios(sizes: Sizes) -> list[Scenario]:
    ping_pong = [
        Target(OURS, "LineReceiver", at_least=1.4),
        Target(FACADE, "LineReceiver", at_least=3.0),
        Target(FACADE, "uvloop streams", at_least=1.5),
    ]
    out, into = bulk(sizes)
    both = [Target(who, "LineReceiver", at_least=1.0) for who in (OURS, FACADE)]
    seconds = sizes.seconds
    return [
        extra("ping-pong, 1 connection", "echo", ("echo", 1, 1, seconds, ANY_NUMBER)),
        Scenario(
            "ping-pong, 50 connections",
            "echo",
            ("echo", 50, 1, seconds, ANY_NUMBER),
            [
                *ping_pong,
                Target(HUB, "LineReceiver", at_least=2.7),
                Target(HUB, RAW, at_least=0.75),
            ],
        ),
        extra("ping-pong, 500 connections", "echo", ("echo", 500, 1, seconds, ANY_NUMBER)),
        Scenario(
            "64 pipelined, 50 connections",
            "echo",
            ("echo", 50, 64, seconds, ANY_NUMBER),
            [Target(OURS, "LineReceiver", at_least=1.6)],
        ),
        extra("1,000 pipelined, 50 connections", "echo", ("echo", 50, 1000, seconds, ANY_NUMBER)),
        Scenario(
            "connect, one line, close",
            "oneshot",
            ("oneshot", 20, seconds, 500),
            per="connection",
        ),
        Scenario(out.title, out.role, out.load, both, out.per),
        Scenario(into.title, into.role, into.load, both, into.per),
    ]


def wait_beside_handshakes(competitor: Competitor, count: int) -> float:
    """99th percentile of a round trip on 50 plain connections meanwhile, in milliseconds."""
    _, authority = certificate()
    server = competitor.serve("echo", tls=True, switches=("--and-plain",))
    secured, plain = server.ports
    talk = storm = None
    try:
        # A handshake takes a core about a millisecond: the talk ends with the last one, or earlier.
        storm = start_load(secured, authority, "handshakes", count)
        talk = start_load(plain, None, "talk", 50, 1, max(0.2, count / 1000), ANY_NUMBER)
        storm.go()
        talk.go()
        handshaken = storm.line()
        messages, _, _, p99, _ = talk.line()
        if int(handshaken[0]) != count or not int(messages):
            raise BenchmarkError("handshakes or answers are missing")
        return float(p99) / 1000
    finally:
        for program in (talk, storm, server):
            if program:
                program.stop()


def handshake_table(competitors: list[Competitor], size: str, repeats: int) -> list[Verdict]:
    count = HANDSHAKES[size]
    able = [c for c in competitors if c.script == "on_twisted.py" and "sink" in c.roles]
    table = Table(
        f"TLS: 50 plain clients beside {count:,} handshakes at once, 99th percentile",
        "ms a round trip",
        [Target(OURS, at_most=100)],
        notes=["wall time, with all clients on one core: rougher than the figures of CPU time"],
    )
    table.measure({c.name: partial(wait_beside_handshakes, c, count) for c in able}, repeats)
    return table.print()


def main(size: str, repeats: int) -> list[Verdict]:
    sizes = SIZES[size]
    everybody = present(
        [
            *COMPETITORS[:2],
            STOCK_SERVER,
            FACADE_SERVER,
            JOINING_SERVER,
            *COMPETITORS[2:],
            RAW_SERVER,
        ],
        size,
    )
    competitors = [c for c in everybody if c.tls]
    chosen = shortened(scenarios(sizes), size)
    verdicts = run_scenarios("TLS", competitors, chosen, sizes, repeats, tls=True)
    verdicts += memory_tables(
        "TLS",
        competitors,
        sizes,
        [Target(OURS, at_most=32), Target(FACADE, at_most=32)],
        tls=True,
    )
    return verdicts + handshake_table(competitors, size, repeats)
