"""What does an unmodified asynchat program cost on the facade, beside the module it was written for?

The peer is the standard library's asynchat where Python has it, else the package pyasynchat. The
figures are those of end_to_end.py: CPU time of the server.
"""

from __future__ import annotations

import contextlib
import importlib
import resource
import socket
import threading
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING

from end_to_end import (
    ANY_NUMBER,
    MOST_ONESHOTS,
    SIZES,
    STDLIB,
    Competitor,
    Scenario,
    bulk,
    extra,
    memory_tables,
    present,
    run_scenarios,
    shortened,
)
from processes import idle_connections, run_load
from report import BenchmarkError, Table, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from end_to_end import Sizes
    from processes import Server
    from report import Verdict

FACADE = "facade"
JOINING = "facade, writes joined"
ASKED = "facade, predicates overridden"
SERVED = "facade, served by the hub"
WORN = "facade, served on a Twisted transport"
STDLIB_POLL = f"{STDLIB}, poll"
STDLIB_ASKED = f"{STDLIB}, predicates overridden"
IDLE = {"full": (1000, 10000), "quick": (1000, 10000), "smoke": (10, 20)}
ACTIVE = 10
LOOPS = 50  # a figure


def competitor(name: str, which: str, *switches: str, essential: bool = True) -> Competitor:
    package = "txasynchat.compat.asynchat" if which == "facade" else "asynchat"
    return Competitor(
        name, "on_asyncore.py", (which, *switches), module=package, essential=essential
    )


COMPETITORS = (
    competitor(FACADE, "facade"),
    competitor(JOINING, "facade", "--join"),
    competitor(ASKED, "facade", "--predicates"),
    competitor(SERVED, "facade", "--hub"),
    competitor(WORN, "facade", "--worn", essential=False),
    competitor(STDLIB, "installed"),
    competitor(STDLIB_POLL, "installed", "--poll", essential=False),
    competitor(STDLIB_ASKED, "installed", "--predicates"),
)


def scenarios(sizes: Sizes) -> list[Scenario]:
    seconds = sizes.seconds
    return [
        extra("ping-pong, 1 connection", "echo", ("echo", 1, 1, seconds, ANY_NUMBER)),
        Scenario(
            "ping-pong, 50 connections",
            "echo",
            ("echo", 50, 1, seconds, ANY_NUMBER),
            [
                Target(FACADE, STDLIB, at_least=1.0),
                Target(ASKED, STDLIB_ASKED, at_least=1.0),
                Target(SERVED, FACADE, at_least=0.95),
            ],
        ),
        extra("ping-pong, 500 connections", "echo", ("echo", 500, 1, seconds, ANY_NUMBER)),
        Scenario(
            "64 pipelined, 50 connections",
            "echo",
            ("echo", 50, 64, seconds, ANY_NUMBER),
            [
                Target(FACADE, STDLIB, at_least=1.2),
                Target(JOINING, STDLIB, at_least=3.5),
            ],
        ),
        Scenario(
            "connect, one line, close",
            "oneshot",
            ("oneshot", 20, seconds, MOST_ONESHOTS),
            per="connection",
        ),
        *[Scenario(s.title, s.role, s.load, per=s.per) for s in bulk(sizes)],
    ]


def beside_idle(
    competitors: Sequence[Competitor], sizes: Sizes, counts: Sequence[int], repeats: int
) -> list[Verdict]:
    """Ten that talk beside many that do not; poll for the peer, as select ends at 1,024."""

    def label(name: str, count: int) -> str:
        return f"{name}, {count:,} idle"

    few, many = counts
    chosen = [c for c in competitors if c.name in {FACADE, ASKED}]
    chosen += [
        competitor(STDLIB_POLL, "installed", "--poll"),
        competitor(STDLIB_ASKED, "installed", "--poll", "--predicates"),
    ]
    table = Table(
        f"Facade: ping-pong, {ACTIVE} connections beside idle ones",
        "server CPU us per message",
        [
            Target(label(FACADE, few), label(FACADE, 0), at_most=1.3),
            Target(label(FACADE, many), label(FACADE, 0), at_most=1.5),
            Target(label(ASKED, few), label(STDLIB_ASKED, few), at_least=1.0),
        ],
        notes=[
            f"no {many:,} for those that ask every channel on every pass: accepting takes minutes"
        ],
    )
    with contextlib.ExitStack() as stack:
        runs: dict[str, Callable[[], float]] = {}
        for one in chosen:
            if not one.available():
                continue
            for count in (0, *counts):
                if count == many and (one.name != FACADE or not allowed(count)):
                    continue
                name = label(one.name, count)
                server = one.serve("echo")
                stack.callback(server.stop)
                try:
                    stack.enter_context(idle_connections(server, None, count))
                except BenchmarkError as error:
                    table.failures[name] = str(error)
                    continue
                runs[name] = partial(ten_active, server, sizes.seconds)
        table.measure(runs, repeats)
    return table.print()


def allowed(descriptors: int) -> bool:
    """Whether a process may have so many, and some; the servers and the load raise their limits."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < descriptors + 100:
        print(f"{descriptors:,} idle connections are left out: at most {limit:,} open files")
        return False
    return True


def ten_active(server: Server, seconds: float) -> float:
    load = ("echo", ACTIVE, 1, seconds, ANY_NUMBER)
    return run_load(server, None, *load).cpu_per_message


def loop_table(repeats: int) -> list[Verdict]:
    """How long `loop()` takes that has one channel and one pass to do nothing in."""
    ours, ours_in_thread = "facade", "facade, in a new thread"
    table = Table(
        "Facade: loop() with one idle channel and one pass, start to end",
        "wall ms",
        [Target(ours, at_most=1), Target(ours_in_thread, at_most=1)],
    )
    runs = {}
    for names, module in (
        ((ours, ours_in_thread), "txasynchat.compat.asyncore"),
        ((STDLIB, f"{STDLIB}, in a new thread"), "asyncore"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                asyncore = importlib.import_module(module)
            except ImportError:
                continue
        runs[names[0]] = partial(time_loops, asyncore)
        runs[names[1]] = partial(time_loops_in_threads, asyncore)
    table.measure(runs, repeats)
    return table.print()


def time_loops(asyncore) -> float:
    """Milliseconds for one of many in a row."""
    here, there = socket.socketpair()
    own_map: dict[int, object] = {}
    channel = asyncore.dispatcher(here, own_map)
    channel.writable = lambda: False
    asyncore.loop(timeout=0, map=own_map, count=1)
    started = time.perf_counter()
    for _ in range(LOOPS):
        asyncore.loop(timeout=0, map=own_map, count=1)
    elapsed = time.perf_counter() - started
    channel.close()
    there.close()
    if own_map:
        raise AssertionError("close() left the channel in its map")
    return elapsed / LOOPS * 1000


def time_loops_in_threads(asyncore) -> float:
    """Milliseconds for the first and only one in a new thread, which has no reactor yet."""
    times = []

    def run() -> None:
        here, there = socket.socketpair()
        own_map: dict[int, object] = {}
        channel = asyncore.dispatcher(here, own_map)
        channel.writable = lambda: False
        started = time.perf_counter()
        asyncore.loop(timeout=0, map=own_map, count=1)
        times.append(time.perf_counter() - started)
        channel.close()
        there.close()

    for _ in range(LOOPS):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    return sum(times) / LOOPS * 1000


def main(size: str, repeats: int) -> list[Verdict]:
    sizes = SIZES[size]
    competitors = present(COMPETITORS, size)
    verdicts = run_scenarios(
        "Facade", competitors, shortened(scenarios(sizes), size), sizes, repeats
    )
    verdicts += beside_idle(competitors, sizes, IDLE[size], repeats)
    idle_target = Target(FACADE, STDLIB_POLL, at_most=1.2)
    chosen = [c for c in COMPETITORS if c.name in {FACADE, STDLIB_POLL} and c.available()]
    verdicts += memory_tables("Facade", chosen, sizes, [idle_target])
    return verdicts + loop_table(repeats)
