"""
The programs in ``examples/``, started as a reader would start them.

An example is a pair: ``NAME.py``, native, and ``NAME_legacy.py`` for asyncore and asynchat. A test that
takes `example` runs with each half, and the legacy half with each of its two kinds of modules.

Most are started as forks of a process that has imported their modules; those that are told to start
afresh are started by a command, at least one test for each half of each example.
"""

import os
import re
import signal
import sys
import threading
from contextlib import ExitStack
from functools import partial

import pytest

from helpers.forks import start_afresh

#: How each half is started.
HALVES = {
    "native": ["{name}.py"],
    "legacy": ["-m", "txasynchat", "run", "{name}_legacy.py"],
    "standard library": ["{name}_legacy.py"],
}
SECONDS = 60.0


class Program:
    """
    A running example.

    Attributes:
        half: which of `HALVES` it is.
        port: where it listens on 127.0.0.1; None if it listens elsewhere.
        place: what it says that it listens on.
        process: the process itself.
    """

    def __init__(self, half, start, words, folder, env):
        self.half = half
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = start(words, folder, log, env)
        self._limit = threading.Timer(SECONDS, self.process.kill)
        self._limit.start()
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on (.+)\n", line)
        if found is None:
            self.end()
            pytest.fail(f"it said {line!r} first, and\n{self.logged()}")
        self.place = found[1]
        on_loopback = re.fullmatch(r"127\.0\.0\.1:(\d+)", self.place)
        self.port = int(on_loopback[1]) if on_loopback else None

    def logged(self):
        """Return what it wrote to standard error until now."""
        return self.log.read_text("utf-8", "replace")

    def stop(self, number=signal.SIGTERM):
        """
        Send a signal; it must end in order.

        Returns:
            What else it wrote to standard output.
        """
        self.process.send_signal(number)
        output = self.process.stdout.read()
        status = self.process.wait()
        assert status == 0, f"exit status {status}\n{self.logged()}"
        return output

    def end(self):
        """End it, however it is."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self._limit.cancel()
        self._limit.join()


@pytest.fixture
def start_half(root, tmp_path, fork_server):
    """
    Start one half of an example, and wait until it listens: ``start_half("native", "echo")``.

    It gets ``--port 0``, unless it gets ``--port`` or ``--listen``. All are ended after the test.
    """
    with ExitStack() as programs:

        def start(half, name, *arguments, afresh=False, pass_fds=()):
            if half == "standard library" and sys.version_info >= (3, 12):
                pytest.skip("this Python has no asyncore of its own")
            words = [word.format(name=root / "examples" / name) for word in HALVES[half]]
            where = [] if {"--port", "--listen"} & set(arguments) else ["--port", "0"]
            words += [*where, *map(str, arguments)]
            env = dict(os.environ)
            start_process = fork_server.start
            if half == "standard library":
                env["PYTHONWARNINGS"] = "ignore::DeprecationWarning"
            if afresh or pass_fds:
                start_process = partial(start_afresh, pass_fds=pass_fds)
            program = Program(half, start_process, words, tmp_path, env)
            programs.callback(program.end)
            return program

        yield start


@pytest.fixture(params=HALVES)
def example(request, start_half):
    """Start the half of an example that it is the turn of: ``example("echo", "--verbose")``."""
    return partial(start_half, request.param)
