"""The benchmarks still run, and each competitor answers correctly; how fast is not asked here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = Path(__file__).parent.parent / "benchmarks" / "main.py"

SHAPES = [
    "64-byte lines in 64 KiB chunks",
    "64-byte lines, one a chunk",
    "64-byte lines, one byte a chunk",
    "one 16 MiB message in 4 KiB chunks",
    "1 MiB of 3-byte lines in one chunk",
    "4-byte frames, an integer terminator set for each, in 64 KiB chunks",
]
OURS = [
    "AsyncChat, two calls",
    "AsyncChat, message_received",
    "AsyncChat, async found_terminator",
    "AsyncChat, async message_received",
    "Framer, two calls",
]


@pytest.fixture(scope="module")
def output() -> str:
    """The output of a tiny run of the framing benchmark; wrong answers end it with an error."""
    finished = subprocess.run(
        [sys.executable, str(MAIN), "--only", "framing", "--smoke"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow
def test_each_shape_of_input_has_a_row_for_each_of_our_classes(output: str, shape: str) -> None:
    _, _, table = output.partition(f"Framing: {shape}  [")
    table, _, _ = table.partition("\n\n")
    for name in OURS:
        assert re.search(rf"^  {re.escape(name)} +[\d.,e+]+ ", table, re.MULTILINE), output


def test_peers_that_need_no_extra_package_take_part(output: str) -> None:
    for name in ("LineReceiver", "LineOnlyReceiver", "asyncio StreamReader"):
        assert re.search(rf"^  {name} +\d", output, re.MULTILINE), output


def test_every_target_is_listed_at_the_end(output: str) -> None:
    _, _, targets = output.partition("\nTargets\n")
    assert len(re.findall(r"^  (?:pass|SHORT|not judged) +Framing: ", targets, re.MULTILINE)) == 9
