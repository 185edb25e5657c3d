"""
What a type checker says to users who have no plugin for zope.interface.
"""

import subprocess
import sys

import pytest

pytest.importorskip("mypy", reason="mypy is one of the lint tools")


def test_a_program_is_accepted_without_a_plugin(root):
    """``mypy --strict`` has nothing to say to programs that are right, and finds those that are not."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "tests/typing/users.ini"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
