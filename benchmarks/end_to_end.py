"""What does a message cost a server, with real sockets on loopback?

Every server is a process on one core, the load runs on another and checks every answer; the figure
is the CPU time of the server, user and kernel, divided by messages, connections or bytes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from processes import Server, certificate, memory_per_connection, peak_growth, run_load
from report import Table, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from report import Verdict

MIB = 2**20

OURS = "AsyncChat, two calls"
MESSAGES = "AsyncChat, message_received"
ASYNC = "AsyncChat, async message_received"
ON_ASYNCIO = "message_received over asyncio"
ASYNC_ON_ASYNCIO = "async message_received over asyncio"
STREAM = "Stream on the hub"
STREAM_ON_TWISTED = "Stream"
STREAM_ON_ASYNCIO = "Stream on the hub over asyncio"
HUB = "AsyncChat on the hub"
STDLIB = "asynchat" if sys.version_info < (3, 12) else "asynchat (pyasynchat)"


@dataclass(frozen=True)
class Competitor:
    """A server program, the roles it has, and what it needs to run."""

    name: str
    script: str
    arguments: tuple[str, ...]
    roles: tuple[str, ...] = ("echo", "oneshot", "source", "sink")
    module: str = "twisted"
    tls: bool = True
    essential: bool = True  # part of a quick run too
    for_many: tuple[str, ...] = ()  # switches to serve more than 1,000 connections at all

    def available(self) -> bool:
        """Whether this Python can run it; importing is left to the server."""
        top = importlib.util.find_spec(self.module.partition(".")[0])
        return top is not None and importlib.util.find_spec(self.module) is not None

    def serve(
        self, role: str, *, size: int = 0, tls: bool = False, switches: Sequence[str] = ()
    ) -> Server:
        secured = ["--tls", certificate()[0]] if tls else []
        name, *own = self.arguments
        return Server(self.script, name, role, *own, *switches, "--size", str(size), *secured)


COMPETITORS = (
    Competitor(
        OURS,
        "on_twisted.py",
        ("AsyncChat",),
        roles=("echo", "oneshot", "source", "sink", "generator"),
        module="txasynchat.protocol",
    ),
    Competitor(
        HUB,
        "on_twisted.py",
        ("AsyncChat", "--hub"),
        roles=("echo", "oneshot", "source", "sink", "generator"),
        module="txasynchat.protocol",
    ),
    Competitor(
        MESSAGES,
        "on_twisted.py",
        ("message_received",),
        roles=("echo", "oneshot"),
        module="txasynchat.protocol",
    ),
    *(
        Competitor(
            name,
            "on_twisted.py",
            ("stream", *switches),
            roles=("echo", "oneshot"),
            module="txasynchat.protocol",
            essential=name is STREAM,
        )
        for name, switches in (
            (STREAM, ["--hub"]),
            (STREAM_ON_TWISTED, []),
            (STREAM_ON_ASYNCIO, ["--hub", "--asyncio"]),
        )
    ),
    Competitor(ASYNC, "on_twisted.py", ("async",), roles=("echo",), module="txasynchat.protocol"),
    Competitor(
        ON_ASYNCIO,
        "on_twisted.py",
        ("message_received", "--asyncio"),
        roles=("echo",),
        module="txasynchat.protocol",
        essential=False,
    ),
    Competitor(
        ASYNC_ON_ASYNCIO,
        "on_twisted.py",
        ("async", "--asyncio"),
        roles=("echo",),
        module="txasynchat.protocol",
        essential=False,
    ),
    Competitor(
        STDLIB,
        "on_asyncore.py",
        ("installed",),
        module="asynchat",
        tls=False,
        for_many=("--poll",),  # the default, select, ends at descriptor 1,023
    ),
    Competitor("LineReceiver", "on_twisted.py", ("LineReceiver",)),
    Competitor(
        "LineOnlyReceiver",
        "on_twisted.py",
        ("LineOnlyReceiver",),
        roles=("echo", "oneshot", "source"),
    ),
    Competitor("asyncio streams", "on_asyncio.py", ("streams",), module="asyncio"),
    Competitor(
        "asyncio Protocol", "on_asyncio.py", ("protocol",), module="asyncio", essential=False
    ),
    Competitor("uvloop streams", "on_asyncio.py", ("uvloop-streams",), module="uvloop"),
    Competitor(
        "uvloop Protocol", "on_asyncio.py", ("uvloop-protocol",), module="uvloop", essential=False
    ),
    Competitor("raw select.epoll", "on_epoll.py", ("epoll",), module="select", tls=False),
)


@dataclass(frozen=True)
class Sizes:
    """How long and how much."""

    seconds: float  # of each measurement
    transfer: int  # bytes
    slow_transfer: int  # bytes, to the slow reader
    pace: float  # bytes a second that the slow reader takes
    idle: int  # connections
    idle_tls: int
    fresh: int  # processes for a figure of memory, which hardly varies


SIZES = {
    "full": Sizes(0.5, 1024 * MIB, 1024 * MIB, 100e6, 2000, 1000, 3),
    "quick": Sizes(0.06, 64 * MIB, 32 * MIB, 100e6, 1000, 200, 1),
    "smoke": Sizes(0.02, MIB, MIB, 10e6, 20, 20, 1),
}
ANY_NUMBER = 10**9
MOST_ONESHOTS = 2000  # a measurement; each leaves a port in TIME_WAIT


@dataclass(frozen=True)
class Scenario:
    """One shape of traffic; `load` gets the sizes and gives the mode of the load and its numbers."""

    title: str
    role: str
    load: tuple
    targets: Sequence[Target] = ()
    per: str = "message"
    essential: bool = True  # part of a quick run too


extra = partial(Scenario, essential=False)


def scenarios(sizes: Sizes) -> list[Scenario]:
    """Those of plain connections, those of one role together."""
    seconds = sizes.seconds
    return [
        extra("ping-pong, 1 connection", "echo", ("echo", 1, 1, seconds, ANY_NUMBER)),
        Scenario(
            "ping-pong, 50 connections",
            "echo",
            ("echo", 50, 1, seconds, ANY_NUMBER),
            [
                *(Target(who, "LineReceiver", at_least=2.0) for who in (OURS, MESSAGES)),
                Target(ASYNC, MESSAGES, at_most=1.5),
            ],
        ),
        extra("ping-pong, 500 connections", "echo", ("echo", 500, 1, seconds, ANY_NUMBER)),
        Scenario(
            "64 pipelined, 50 connections",
            "echo",
            ("echo", 50, 64, seconds, ANY_NUMBER),
            [
                *(Target(who, "LineReceiver", at_least=3.5) for who in (OURS, MESSAGES)),
                Target(ASYNC, MESSAGES, at_most=1.5),
                Target(STREAM, "asyncio streams", at_most=0.5),
            ],
        ),
        extra("1,000 pipelined, 50 connections", "echo", ("echo", 50, 1000, seconds, ANY_NUMBER)),
        Scenario(
            "connect, one line, close",
            "oneshot",
            ("oneshot", 20, seconds, MOST_ONESHOTS),
            per="connection",
        ),
        *bulk(sizes),
    ]


def bulk(sizes: Sizes) -> list[Scenario]:
    mib = sizes.transfer // MIB
    twisted = [Target(OURS, "LineReceiver", at_least=1.0)]
    return [
        Scenario(
            f"{mib:,} MiB out of a producer",
            "source",
            ("source", sizes.transfer, 0),
            twisted,
            per="GiB",
        ),
        Scenario(f"{mib:,} MiB in", "sink", ("sink", sizes.transfer), twisted, per="GiB"),
    ]


@contextlib.contextmanager
def serving(
    competitors: Sequence[Competitor], role: str, *, size: int = 0, tls: bool = False
) -> Iterator[dict[str, Server]]:
    """All that know the role, running."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for competitor in competitors:
            if role in competitor.roles and (competitor.tls or not tls):
                servers[competitor.name] = competitor.serve(role, size=size, tls=tls)
                stack.callback(servers[competitor.name].stop)
        yield servers


def present(competitors: Sequence[Competitor], size: str) -> list[Competitor]:
    """Those that can run here; a quick run leaves some out."""
    chosen = [c for c in competitors if c.essential or size != "quick"]
    for competitor in chosen:
        if not competitor.available():
            print(f"{competitor.name} is left out: no {competitor.module} in this environment")
    return [c for c in chosen if c.available()]


def shortened(chosen: Sequence[Scenario], size: str) -> list[Scenario]:
    """The scenarios of a run of this size."""
    return [s for s in chosen if s.essential or size != "quick"]


def figure(server: Server, authority: str | None, scenario: Scenario, transfer: int) -> float:
    """CPU microseconds per message or connection, milliseconds per GiB."""
    result = run_load(server, authority, *scenario.load)
    if scenario.per == "GiB":
        return result.cpu * 1000 * 2**30 / transfer
    return result.cpu_per_message


def run_scenarios(
    question: str,
    competitors: Sequence[Competitor],
    chosen: Sequence[Scenario],
    sizes: Sizes,
    repeats: int,
    *,
    tls: bool = False,
) -> list[Verdict]:
    """One table each; servers live as long as their role is asked for."""
    verdicts = []
    authority = certificate()[1] if tls else None
    for role in dict.fromkeys(scenario.role for scenario in chosen):
        with serving(competitors, role, size=sizes.transfer, tls=tls) as servers:
            for scenario in chosen:
                if scenario.role != role:
                    continue
                unit = "ms" if scenario.per == "GiB" else "us"
                table = Table(
                    f"{question}: {scenario.title}",
                    f"server CPU {unit} per {scenario.per}",
                    scenario.targets,
                )
                runs = {
                    name: partial(figure, server, authority, scenario, sizes.transfer)
                    for name, server in servers.items()
                }
                table.measure(runs, repeats)
                verdicts += table.print()
    return verdicts


def memory_tables(
    question: str,
    competitors: Sequence[Competitor],
    sizes: Sizes,
    idle_targets: Sequence[Target],
    *,
    tls: bool = False,
) -> list[Verdict]:
    """Resident memory: idle connections, and a long transfer that the client takes slowly.

    A figure of memory wants a fresh process, and hardly varies: few repeats.
    """
    count = sizes.idle_tls if tls else sizes.idle
    authority = certificate()[1] if tls else None

    def idle(competitor: Competitor) -> float:
        server = competitor.serve("echo", tls=tls, switches=competitor.for_many)
        try:
            return memory_per_connection(server, authority, count)
        finally:
            server.stop()

    def slow(competitor: Competitor, role: str) -> float:
        server = competitor.serve(role, size=sizes.slow_transfer, tls=tls)
        try:
            return peak_growth(server, authority, sizes.slow_transfer, sizes.pace)
        finally:
            server.stop()

    able = [c for c in competitors if c.tls or not tls]
    connections = Table(
        f"{question}: memory of an idle connection, of {count:,}", "KiB", idle_targets
    )
    connections.measure({c.name: partial(idle, c) for c in able}, sizes.fresh)
    verdicts = connections.print()
    from_generator = f"{OURS}, from a generator"
    runs = {c.name: partial(slow, c, "source") for c in able if "source" in c.roles}
    for competitor in able:
        if "generator" in competitor.roles:
            runs[from_generator] = partial(slow, competitor, "generator")
    flat = [*(target.ours for target in idle_targets), from_generator]
    transfer = Table(
        f"{question}: growth by {sizes.slow_transfer // MIB:,} MiB to a reader of "
        f"{sizes.pace / 1e6:.0f} MB/s",
        "MiB",
        [Target(name, at_most=16) for name in flat if name in runs],
    )
    transfer.measure(runs, 1)
    return verdicts + transfer.print()


def main(size: str, repeats: int) -> list[Verdict]:
    """Plain connections; those over TLS are in tls.py."""
    sizes = SIZES[size]
    competitors = present(COMPETITORS, size)
    verdicts = run_scenarios(
        "End to end", competitors, shortened(scenarios(sizes), size), sizes, repeats
    )
    return verdicts + memory_tables("End to end", competitors, sizes, [Target(OURS, at_most=3)])
