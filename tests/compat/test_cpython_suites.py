"""
tests/conformance/cpython_suites.py, on interpreters that lack some of CPython's tests.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import stdlib_modules

SCRIPT = Path(stdlib_modules.__file__).with_name("cpython_suites.py")


@pytest.mark.skipif(
    stdlib_modules.find_stdlib(with_tests=True) is None,
    reason="no Python 3.11 with CPython's test files on this machine",
)
def test_suites_missing_from_an_interpreter_are_skipped(tmp_path):
    """As on Debian, where test.support is there, and the suites are a separate package."""
    support = tmp_path / "test" / "support"
    support.mkdir(parents=True)
    (support.parent / "__init__.py").touch()
    (support / "__init__.py").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        [sys.executable, SCRIPT, "--suite", "test_ftplib", python],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"SKIPPED test_ftplib in {python}: not installed with it\n" in done.stdout
    assert done.stdout.endswith("0 passed, 0 failed, 1 skipped\n")
