"""What all servers share: roles, the known bytes, and the talk with the program that measures.

Roles: `echo` sends each line back; `oneshot` does so once and closes; `source` answers a line with
`--size` bytes through whatever producer the competitor has; `sink` counts `--size` bytes in and
answers "done"; `generator` is `source` out of a generator, where there is such a thing.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import threading

END = b"\n"
DONE = b"done\n"
BLOCK = bytes(i & 255 for i in range(65536))
ROLES = ("echo", "oneshot", "source", "sink", "generator")


def arguments(competitors, **switches) -> argparse.Namespace:
    """Parse the command line; `switches` are further flags with their help."""
    parser = argparse.ArgumentParser()
    parser.add_argument("competitor", choices=competitors)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--size", type=int, default=0, help="bytes of a transfer")
    parser.add_argument("--tls", help="PEM file with key and certificate chain")
    for name, text in switches.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    options = parser.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    return options


def listening(*ports: int) -> None:
    """Tell where, and end with the program that started us, however it ends."""
    print(*ports, flush=True)
    threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def blocks(size: int):
    """The known bytes, a block at a time."""
    for left in range(size, 0, -len(BLOCK)):
        yield BLOCK if left >= len(BLOCK) else BLOCK[:left]


class Blocks:
    """The known bytes for those that call `more()`."""

    def __init__(self, size: int) -> None:
        self.left = size

    def more(self) -> bytes:
        taken = min(self.left, len(BLOCK))
        self.left -= taken
        return BLOCK if taken == len(BLOCK) else BLOCK[:taken]
