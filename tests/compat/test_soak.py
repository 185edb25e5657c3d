"""
A few seconds of tests/conformance/soak.py, and a check that it notices faults.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[1] / "conformance" / "soak.py"

#: Runs the soak with a facade that the inserted line breaks.
BROKEN = """
import sys
import soak
from txasynchat.compat import asynchat, asyncore
{line}
sys.argv = [soak.__file__, "--seconds", "1", "--connections", "60", "--grace", "2"]
sys.exit(soak.main())
"""


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=SOAK.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _broken(line: str) -> subprocess.CompletedProcess[str]:
    return _run("-c", BROKEN.format(line=line))


@pytest.mark.slow
def test_three_threads_serve_random_connections_and_leave_nothing():
    done = _run(str(SOAK), "--seconds", "3", "--connections", "300")
    assert done.returncode == 0, done.stdout + done.stderr


def test_channel_that_stays_in_memory_is_noticed():
    done = _broken(
        "kept = []; close = asyncore.dispatcher.close;"
        "asyncore.dispatcher.close = lambda self: (kept.append(self), close(self))[1]"
    )
    assert done.returncode == 1
    assert "closed channels still in memory" in done.stdout


@pytest.mark.slow
def test_a_descriptor_that_stays_open_is_noticed():
    done = _broken(
        "import os; close = asyncore.dispatcher.close\n"
        "def leak(self):\n"
        "    if self.socket is not None and self.socket.fileno() >= 0 and self.connected:\n"
        "        os.dup(self.socket.fileno())\n"
        "    close(self)\n"
        "asyncore.dispatcher.close = leak"
    )
    assert done.returncode == 1
    assert "descriptors left" in done.stdout


@pytest.mark.slow
def test_lost_answer_is_noticed():
    done = _broken(
        "push = asynchat.async_chat.push\n"
        "asynchat.async_chat.push = lambda self, data: (\n"
        "    None if data.endswith(b'7' + chr(13).encode() + chr(10).encode())\n"
        "    else push(self, data))"
    )
    assert done.returncode == 1
    assert "answers missing" in done.stdout or "wanted" in done.stdout
