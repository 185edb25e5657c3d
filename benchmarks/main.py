"""Answer the questions of this folder: `benchmarks/run`, or `python benchmarks/main.py` by hand."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import time

from report import summary

QUESTIONS = ("framing", "end_to_end", "facade", "tls", "limits")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description=__doc__)
    parser.add_argument(
        "--only", choices=QUESTIONS, action="append", help="this question (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="less input, fewer competitors")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny input, once: does it work, not how fast"
    )
    parser.add_argument("--repeats", type=int, help="of each figure; the median is printed")
    options = parser.parse_args()
    started = time.monotonic()
    print(
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    size = "smoke" if options.smoke else "quick" if options.quick else "full"
    if options.smoke:
        print("a smoke run: the figures mean nothing")
    repeats = options.repeats or (1 if options.smoke else 5)
    verdicts = []
    for question in options.only or QUESTIONS:
        began = time.monotonic()
        verdicts += importlib.import_module(question).main(size, repeats)
        print(f"\n{question}: {time.monotonic() - began:.0f} seconds")
    summary(verdicts)
    print(f"\n{time.monotonic() - started:.0f} seconds, load now {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
