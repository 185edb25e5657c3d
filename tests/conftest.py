"""
Every test must give back the descriptors and threads that it took.
"""

import functools
import gc
import importlib.metadata
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest
from twisted.trial.unittest import SynchronousTestCase

from helpers.forks import ForkServer

# The same examples in every run; `pytest --hypothesis-profile=long` looks for new ones.
hypothesis.settings.register_profile(
    "quick", max_examples=200, derandomize=True, database=None, deadline=None
)
hypothesis.settings.register_profile("long", max_examples=20_000, deadline=None)
hypothesis.settings.load_profile("quick")

# Under nohup, or in a script's background, programs that tests start would ignore these.
for _number, _handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

ROOT = Path(__file__).resolve().parent.parent
SETTLE_SECONDS = 10.0
START_SECONDS = 30.0
DESCRIPTORS = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"

# pytest asks for Twisted's before each test, and to parse its file takes as long as many a test.
importlib.metadata.version = functools.cache(importlib.metadata.version)

# What some tests need and not every interpreter has: marker, whether it is here, and why not.
NEEDED = [
    (
        "counts_references",
        sys.implementation.name == "cpython",
        "no references are counted here: what is forgotten goes at the next collection",
    ),
    (
        "nests_pollers",
        hasattr(select, "epoll") or hasattr(select, "kqueue"),
        "no poller here has a descriptor of its own",
    ),
    ("traces_memory", find_spec("_tracemalloc") is not None, "no tracemalloc here"),
]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return three times the number of processors, because many tests mostly wait."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist uses the number given
    if all("::" in argument for argument in config.args):
        return 0  # single tests: to start a worker would take longer
    return min(3 * (os.cpu_count() or 1), 8)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Let the first of several workers compile the tests, and the others load what it compiled."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or sys.dont_write_bytecode:
        return (yield)
    compiled = Path(session.config.getoption("basetemp")).with_name("compiled")
    if worker == "gw0":
        try:
            return (yield)
        finally:
            compiled.touch()
    deadline = time.monotonic() + START_SECONDS
    while not compiled.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return (yield)


def pytest_collection_finish() -> None:
    """Let no collection of garbage look at what stays: the collected tests, and all modules."""
    gc.collect()
    if hasattr(gc, "freeze"):  # not on PyPy
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Spread the slow tests over the first half where several run at a time.

    They mostly wait, so others can compute beside them, and none runs alone at the end.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    others = [item for item in items if not item.get_closest_marker("slow")]
    slow = [item for item in items if item.get_closest_marker("slow")]
    distance = len(others) // (2 * len(slow)) if slow else 0
    for place, item in enumerate(slow):
        others.insert(place * (distance + 1), item)
    items[:] = others


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, is_here, reason in NEEDED:
        if not is_here and item.get_closest_marker(marker):
            pytest.skip(reason)


@pytest.fixture
def root() -> Path:
    """The root of the source tree that these tests belong to."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def trial_keeps_its_files_out_of_the_tree(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """``TestCase.mktemp`` would make them in the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SynchronousTestCase,
            "mktemp",
            lambda _: str(tmp_path_factory.mktemp("trial") / "temp"),
        )
        yield


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts programs that have imported Twisted and txasynchat already."""
    server = ForkServer()
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., re.Match[str]]]:
    """
    Start a program and wait until a line of its output matches a pattern; return the match.

    All programs are stopped at the end of the test. They are listed in ``start.programs``.
    """
    with ExitStack() as programs:

        def start_program(command: list[str], pattern: str) -> re.Match[str]:
            program = programs.enter_context(
                subprocess.Popen(
                    command,
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"},
                )
            )
            programs.callback(program.terminate)
            start_program.programs.append(program)
            # A silent program ends here, and with it the reading below.
            limit = threading.Timer(START_SECONDS, program.kill)
            limit.start()
            programs.callback(limit.join)
            programs.callback(limit.cancel)
            lines = []
            for line in program.stdout:
                if found := re.search(pattern, line):
                    return found
                lines.append(line)
            return pytest.fail(f"{command} did not say {pattern!r}:\n{''.join(lines)}")

        start_program.programs = []
        yield start_program


@pytest.fixture(autouse=True)
def logs_as_if_nothing_had_been_logged() -> None:
    """Reset the throttles: an event of an earlier test would hide the same event for a second."""
    reports = sys.modules.get("txasynchat.protocol.reports")
    if reports is not None:
        reports.peer_errors.forget()


@pytest.fixture(autouse=True)
def gives_back_descriptors_and_threads() -> Iterator[None]:
    descriptors = _open_descriptors()
    threads = set(threading.enumerate())
    yield
    # Threads end and sockets close a little after the test that stopped them, so a first
    # difference is not yet a leak.
    deadline = time.monotonic() + SETTLE_SECONDS
    while leaked := _leaked(descriptors, threads):
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {', '.join(leaked)}")
        gc.collect()
        time.sleep(0.01)


def _leaked(descriptors: dict[int, str], threads: set[threading.Thread]) -> list[str]:
    return [
        f"descriptor {number} ({what})"
        for number, what in _open_descriptors().items()
        if descriptors.get(number) != what
    ] + [
        f"thread {thread.name}"
        for thread in threading.enumerate()
        # The reactor keeps its pool until the end of the run.
        if thread not in threads and not thread.name.startswith("PoolThread-twisted.internet")
    ]


def _open_descriptors() -> dict[int, str]:
    """Return the open descriptors, except those of the global reactor."""
    opened = {}
    for number in os.listdir(DESCRIPTORS):  # not by pathlib, which takes ten times as long
        try:
            opened[int(number)] = os.readlink(f"{DESCRIPTORS}/{number}")
        except FileNotFoundError:
            pass  # the descriptor that listed the folder
        except OSError:
            opened[int(number)] = "open"  # no links in /dev/fd
    # Not imported here, because code under test checks whether there is a reactor.
    reactor = sys.modules.get("twisted.internet.reactor")
    for waker in getattr(reactor, "_internalReaders", ()):
        opened.pop(waker.i, None)
        opened.pop(waker.o, None)
    poller = getattr(reactor, "_poller", None)
    if hasattr(poller, "fileno"):  # poll has no descriptor
        opened.pop(poller.fileno(), None)
    # The first TCP port that listens reserves a descriptor for accepting at the limit.
    tcp = sys.modules.get("twisted.internet.tcp")
    reserved = getattr(getattr(tcp, "_reservedFD", None), "_fileDescriptor", None)
    if reserved is not None:
        opened.pop(reserved.fileno(), None)
    return opened


@pytest.fixture(params=[(16_384, 8), (5, 1)], ids=["usual sizes", "tiny sizes"])
def sizes(request, monkeypatch):
    """A batch's window and pause: as they are, and so small that short streams exceed them."""
    from helpers.framers import set_sizes

    set_sizes(monkeypatch, *request.param)
