"""
What a type checker reports to users without a plugin for zope.interface.
"""

import subprocess
import sys

import pytest

pytest.importorskip("mypy", reason="mypy is one of the lint tools")


def test_correct_programs_are_accepted_without_a_plugin(root):
    """``mypy --strict`` accepts correct programs, and rejects wrong ones."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "tests/typing/users.ini"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
