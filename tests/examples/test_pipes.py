"""``examples/pipes.py``: both of its programs."""

import subprocess
import sys

import pytest


@pytest.fixture
def run(root):
    """Run it with arguments and standard input; return its standard output."""

    def run_example(*arguments, typed=""):
        command = [sys.executable, "-X", "dev", str(root / "examples/pipes.py"), *arguments]
        done = subprocess.run(
            command, input=typed, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run_example


def test_worker_answers_its_standard_input_on_its_standard_output(run):
    lines = [f"line {number}\n" for number in range(10_000)]
    assert run("--worker", typed="".join(lines)) == "".join(lines).upper()


def test_program_asks_the_worker_that_it_starts(run):
    assert run("hello", "wörld") == "HELLO\nWöRLD\n"  # bytes.upper leaves other letters alone


def test_program_without_questions_ends_the_worker(run):
    assert run() == ""
