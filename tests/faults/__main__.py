"""
A server with 500 real clients, of which half break the rules; nothing is lost, and nothing left over.

    python tests/faults [--seconds 100] [--clients 500] [--seed N] [--transport hub|twisted]

The server is a process of its own (`serving`): `AsyncChat`, a legacy ``async_chat`` and an ordinary
Twisted protocol, each with and without TLS, with short `Limits`. The clients (`clients`, `faulty`) are
threads of this process, made of plain sockets. Meanwhile descriptors run out and come back, handlers
cannot be built, certificates are renewed, and listeners stop and come back (`conductor`).

In the end it must be true that

- every byte of a well-behaved client that the server acknowledged was answered, and every answer was
  right;
- no client outlasted the limit that should have ended it;
- no handler raised, and nothing was logged as an error, but for what clients asked for;
- memory, descriptors and objects are as after the first round.

The exit status is 1 if something is not. A new connection may be turned away while no descriptor is
left, its handler cannot be built, or its listener is away; one that has had an answer may not.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

from conductor import Broken, Conductor

#: MiB that the server may have grown by since the end of the first round.
GROWTH = 8.0


def compare(conductor: Conductor) -> None:
    """Compare the last account with the first."""
    ledger = conductor.ledger
    first, last = conductor.accounts[0], conductor.accounts[-1]
    if left := {name: count for name, count in last["connections"].items() if count}:
        ledger.mistake(f"connections left: {left}")
    if last["live"]:
        ledger.mistake(f"objects of connections left: {last['live']}", f"{last['left']}")
    for what in ("descriptors", "threads", "channels"):
        if last[what] > first[what]:
            ledger.mistake(f"{what}: {first[what]} after the first round, {last[what]} at the end")
    if last["objects"] > first["objects"] * 1.01 + 500:
        ledger.mistake(
            f"objects: {first['objects']} after the first round, {last['objects']} at the end"
        )
    if last["KiB"] > first["KiB"] + GROWTH * 1024:
        ledger.mistake(
            f"memory: {first['KiB']} KiB after the first round, {last['KiB']} at the end"
        )
    counts = last["counts"]
    for kind in ("native", "legacy", "ordinary"):
        connected, ended = counts.get(f"{kind} connected", 0), counts.get(f"{kind} ended", 0)
        if connected > ended:
            ledger.mistake(f"{connected} {kind} handlers connected, and {ended} ended")
    for what, count in last["wrong"].items():
        ledger.wrong[f"server: {what}"] += count
    if not ledger.requests:
        ledger.mistake("nothing was answered")


def report(conductor: Conductor) -> None:
    """Print the tables."""
    ledger = conductor.ledger
    last = conductor.accounts[-1]
    print("\nkept by the server            limit            times  longest     margin")
    for (limit, what), (count, longest, margin) in sorted(ledger.faults.items()):
        print(f"{what:<32}{limit:<14}{count:>7}{longest:>7.1f} s{margin:>9.1f} s")
    for title, counts in (("clients", ledger.counts), ("server", last["counts"])):
        print(
            f"\n{title}:", ", ".join(f"{what} {count:,}" for what, count in sorted(counts.items()))
        )
    print(
        f"\nanswers: {ledger.requests:,}, to {ledger.bytes_sent - ledger.bytes_unanswered:,} bytes "
        f"of {ledger.bytes_sent:,} acknowledged, by {ledger.bytes_received:,}; half in "
        f"{ledger.wait_of(0.5):.2f} s, 99 % in {ledger.wait_of(0.99):.2f} s, "
        f"all in {ledger.wait_of(1):.2f} s"
    )
    print(
        f"descriptors taken: {conductor.eaten}; renewed certificates in use after "
        f"{', '.join(f'{one:.1f}' for one in conductor.renewals[:8])} s; listeners drained in "
        f"{', '.join(f'{one:.1f}' for one in conductor.drains[:8])} s"
    )
    first = conductor.accounts[0]
    for what in ("KiB", "descriptors", "objects", "threads", "calls"):
        print(f"{what}: {first[what]:,} after the first round, {last[what]:,} at the end")


def main() -> int:
    """Run, and say what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--seconds", type=float, default=100, help="of the whole run; default 100")
    parser.add_argument("--clients", type=int, default=500, help="at a time; default 500")
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--transport", choices=("hub", "twisted"), default="hub")
    parser.add_argument(
        "--slack", type=float, default=2.5, help="seconds on top of each limit; default 2.5"
    )
    parser.add_argument("--log", help="where the server's log is copied to")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = int(time.time())
    if sys.platform != "linux":
        print("SKIPPED: the server's memory and descriptors are counted in /proc")
        return 3
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    shown = f"{options.clients} clients, {options.seconds:.0f} s, {options.transport}"
    print(f"{shown}, --seed {options.seed}", flush=True)
    threading.stack_size(256 * 1024)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        conductor = Conductor(options, folder)
        try:
            conductor.run()
        except Broken as error:
            conductor.ledger.mistake(str(error))
        if options.log:
            with contextlib.suppress(OSError):
                Path(options.log).write_bytes(Path(folder, "server.log").read_bytes())
    if conductor.accounts:
        compare(conductor)
        report(conductor)
    wrong = conductor.ledger.wrong
    print(f"\n{sum(wrong.values())} things are wrong" if wrong else "\nnothing is wrong")
    for what, count in wrong.most_common(40):
        print(
            f"{count} x {what}", *filter(None, [conductor.ledger.details.get(what)]), sep="\n    "
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
