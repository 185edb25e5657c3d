"""
The facade beside the standard library: the same programs, the same order of calls.

    python tests/conformance/differential.py [--programs N] [--streams N] [--seed FIRST]

Programs (see programs.py) run on real sockets in both modes of the loop; streams (see
streams.py) go through `async_chat.handle_read` alone. A program that differs is printed with
its number, the first call that differs and what went before; ``--show NUMBER`` prints the
two histories side by side.

`REPAIRS` is the whole list of differences that are allowed.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest

import programs
import stdlib_modules
import streams

History = list[tuple]


@dataclass(frozen=True)
class Repair:
    """
    A difference that is meant.

    Attributes:
        what: what the stdlib does, and what happens here instead.
        allows: told both histories, where they part, and where the stdlib first gave a channel
            the event of a descriptor's former owner, says whether this is that repair. A
            program is compared up to there.
    """

    what: str
    allows: Callable[[History, History, int, int | None], bool]


def _stale(expected: History, got: History, at: int, stale_at: int | None) -> bool:
    return stale_at is not None and at >= stale_at


#: Every difference from the stdlib that a random program may show. Others are defects.
REPAIRS: tuple[Repair, ...] = (
    Repair(
        "a descriptor re-used within a pass: the stdlib gives its new owner the event of the old"
        " one; here the new owner waits for its own",
        _stale,
    ),
)


def reference() -> stdlib_modules.Modules | None:
    """3.11's modules, or None where no 3.11 is installed."""
    folder = stdlib_modules.find_stdlib()
    return stdlib_modules.load_stdlib(folder) if folder else None


def parting(expected: History, got: History) -> int | None:
    """Where two histories part; None when they are the same."""
    return next(
        (at for at, (a, b) in enumerate(zip_longest(expected, got)) if a != b),
        None,
    )


@dataclass
class Report:
    """The result of a comparison of many programs."""

    differences: list[str]
    repairs: Counter
    calls: int


def compare_programs(
    right: stdlib_modules.Modules,
    tested: stdlib_modules.Modules,
    seeds: Iterable[int],
    limit: float | None = None,
) -> Report:
    """
    Run each program on both, in both modes of the loop.

    Args:
        right: the reference.
        tested: what is compared with it.
        seeds: the programs.
        limit: seconds for one program, after which this process ends with a traceback.
    """
    report = Report([], Counter(), 0)
    for seed in seeds:
        if limit:
            faulthandler.dump_traceback_later(limit, exit=True)
        for use_poll in (False, True):
            expected, stale_at = programs.history(seed, right, use_poll=use_poll)
            got, _ = programs.history(seed, tested, use_poll=use_poll)
            report.calls += len(expected)
            at = parting(expected, got)
            if at is None:
                continue
            repair = next((r for r in REPAIRS if r.allows(expected, got, at, stale_at)), None)
            if repair:
                report.repairs[repair.what] += 1
                continue
            mode = "poll" if use_poll else "select"
            report.differences.append(
                f"program {seed} ({mode}), call {at}: stdlib {expected[at : at + 2]},"
                f" here {got[at : at + 2]}; before it {expected[max(0, at - 4) : at]}"
            )
    faulthandler.cancel_dump_traceback_later()
    return report


def show(right: stdlib_modules.Modules, tested: stdlib_modules.Modules, seed: int) -> None:
    """Print the histories of one program side by side."""
    for use_poll in (False, True):
        print(f"program {seed}, {'poll' if use_poll else 'select'}")
        pairs = zip_longest(
            programs.history(seed, right, use_poll=use_poll)[0],
            programs.history(seed, tested, use_poll=use_poll)[0],
        )
        for at, (a, b) in enumerate(pairs):
            print(f"{at:4} {'  ' if a == b else '!!'} {a!s:70} {'' if a == b else b}")


def main() -> int:
    """Compare as many as the command line says; the exit status is 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--programs", type=int, default=1_000)
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first")
    parser.add_argument("--show", type=int, help="print one program's histories")
    options = parser.parse_args()
    right = reference()
    if right is None:
        print("SKIPPED: no Python 3.11 on this machine to compare with")
        return 0
    tested = stdlib_modules.load_facade()
    if options.show is not None:
        show(right, tested, options.show)
        return 0
    began = time.monotonic()
    seeds = range(options.seed, options.seed + options.programs)
    report = compare_programs(right, tested, seeds, limit=20)
    differences = report.differences
    differences += streams.differences(
        right.asynchat.async_chat,
        tested.asynchat.async_chat,
        range(options.seed, options.seed + options.streams),
    )
    for line in differences[:50]:
        print(line)
    for what, count in report.repairs.items():
        print(f"allowed {count} times: {what}")
    print(
        f"{options.programs} programs in two modes ({report.calls:,} calls) and"
        f" {options.streams} streams in {time.monotonic() - began:.0f} s:"
        f" {len(differences)} differ"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
