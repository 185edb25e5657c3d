"""
CPython's own tests of asyncore, asynchat and smtpd, and of what is built on them, on the facade.

    python tests/conformance/cpython_suites.py [PYTHON ...]

The test files for asyncore, asynchat and smtpd come from an installed Python 3.11, at run
time. Those of ftplib, poplib, smtplib, ssl and logging that serve themselves with asyncore
come from each interpreter's own installation, and are skipped where it has none. Every suite
runs twice in each interpreter, in processes of its own: on 3.11's modules, then on the facade.
The outcomes must be the same test by test, and none may fail.

Two things keep the verdict honest. Each run reports from which file the loop and the
classes that its test module saw were compiled, and for the facade that must be the package
under test. And copies of the package that were broken on purpose must be caught.

PYTHON is an interpreter that can import Twisted; by default the one that runs this file.
The exit status is 1 when anything failed. What could not run is named, with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from typing_extensions import override

import stdlib_modules

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "src"

#: Longest run of one suite, seconds; the slowest takes eight on an idle machine.
LIMIT = 150

#: suite: (taken from the 3.11 installation, what of it uses asyncore; None: all of it)
SUITES: dict[str, tuple[bool, str | None]] = {
    "test_asyncore": (True, None),
    "test_asynchat": (True, None),
    "test_smtpd": (True, None),
    "test_ftplib": (False, None),
    "test_poplib": (False, None),
    "test_smtplib": (False, None),
    "test_ssl": (False, "asyncore"),
    "test_logging": (False, "SMTPHandler"),
}

#: What is broken: (file, code appended to it, a suite that has to notice).
MUTANTS = {
    "found_terminator is never called": (
        "asynchat.py",
        """
_sound_handle_read = async_chat.handle_read

def _deaf_handle_read(self):
    self.found_terminator = lambda: None
    try:
        _sound_handle_read(self)
    finally:
        del self.found_terminator

async_chat.handle_read = _deaf_handle_read
""",
        "test_smtpd",
    ),
    "recv drops handle_close": (
        "asyncore.py",
        """
_sound_recv = dispatcher.recv

def _blind_recv(self, buffer_size):
    self.handle_close = lambda: None
    try:
        return _sound_recv(self, buffer_size)
    finally:
        del self.handle_close

dispatcher.recv = _blind_recv
""",
        "test_asyncore",
    ),
    "read swallows ExitNow": (
        "asyncore.py",
        """
_sound_read = read

def read(obj):
    try:
        _sound_read(obj)
    except ExitNow:
        pass
""",
        "test_asyncore",
    ),
    "an integer terminator is off by one": (
        "asynchat.py",
        """
_sound_set_terminator = async_chat.set_terminator

def _long_set_terminator(self, term):
    _sound_set_terminator(self, term + 1 if type(term) is int and term else term)

async_chat.set_terminator = _long_set_terminator
""",
        "test_asynchat",
    ),
}


# -- the child: one suite on one implementation ----------------------------------------------


class _Outcomes(unittest.TestResult):
    """Records the outcome of each test, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.outcome: dict[str, str] = {}
        self.why: dict[str, str] = {}

    def _note(self, test, outcome, why="") -> None:
        # The class of a skipped class or a failed setUpClass is an id like any other.
        self.outcome[test.id()] = outcome
        if why:
            self.why[test.id()] = why

    @override
    def addSuccess(self, test) -> None:
        self.outcome.setdefault(test.id(), "ok")

    @override
    def addExpectedFailure(self, test, err) -> None:
        self._note(test, "expected failure")

    @override
    def addUnexpectedSuccess(self, test) -> None:
        self._note(test, "unexpected success")

    @override
    def addSkip(self, test, reason) -> None:
        self._note(test, "skipped", reason)

    @override
    def addFailure(self, test, err) -> None:
        self._note(test, "failed", self._exc_info_to_string(err, test))

    @override
    def addError(self, test, err) -> None:
        self._note(test, "error", self._exc_info_to_string(err, test))

    @override
    def addSubTest(self, test, subtest, err) -> None:
        if err is not None:
            self._note(test, "failed", self._exc_info_to_string(err, test))


def _put_in_place(implementation: str, folder: Path) -> None:
    """Make `asyncore`, `asynchat`, `smtpd` and test.support's copies the ones to be tested."""
    import test.support

    stdlib_modules.put_in_place(implementation, folder)
    if sys.version_info >= (3, 12):
        for name in "asyncore", "asynchat":
            sys.modules[f"test.support.{name}"] = sys.modules[name]
            setattr(test.support, name, sys.modules[name])
        # smtpd's copy there (its place differs between releases) is built on those two.


def _compiled_from(module: ModuleType) -> list[str]:
    """The files behind the asyncore, asynchat and smtpd that a test module sees."""
    files = set()
    for name, entry in ("asyncore", "loop"), ("asynchat", "async_chat"), ("smtpd", "SMTPChannel"):
        used = getattr(module, name, None)
        if used is None:
            continue
        target = getattr(used, entry)
        if inspect.isclass(target):
            bases = [
                base for base in target.__mro__ if base.__name__ in {"async_chat", "dispatcher"}
            ]
            files.update(base.__init__.__code__.co_filename for base in bases)
        else:
            files.add(target.__code__.co_filename)
    return sorted(files)


def _wanted(suite: unittest.TestSuite, only: str | None) -> Iterator[unittest.TestCase]:
    """The tests of a suite; of those, if asked, the ones whose class or name has a word in it."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _wanted(test, only)
        elif only is None or only in test.id():
            yield test


def run_suite(job: dict) -> dict:
    """Run one suite in this process, and report the outcome of each test."""
    folder = Path(job["stdlib"])
    from_311, only = SUITES[job["suite"]]
    _put_in_place(job["implementation"], folder)
    name = f"test.{job['suite']}"
    if from_311:
        if job["suite"] == "test_smtpd":  # imports a helper beside it
            sys.modules["test.mock_socket"] = stdlib_modules.load_file(
                "test.mock_socket", folder / "test" / "mock_socket.py"
            )
        module = stdlib_modules.load_file(name, folder / "test" / f"{job['suite']}.py")
        sys.modules[name] = module
    else:
        module = importlib.import_module(name)
    suite = unittest.TestSuite(
        _wanted(unittest.defaultTestLoader.loadTestsFromModule(module), only)
    )
    outcomes = _Outcomes()
    suite.run(outcomes)
    return {"outcome": outcomes.outcome, "why": outcomes.why, "files": _compiled_from(module)}


def child(job: dict, report: str) -> None:
    """The main function of a child process; its report is a file, because the tests print to stdout."""
    sys.path.insert(0, job["package"])
    Path(report).write_text(json.dumps(run_suite(job)), encoding="utf-8")
    # Threads that a broken copy left behind must not hold the process.
    os._exit(0)


# -- the parent ------------------------------------------------------------------------------


@dataclass
class Run:
    """One suite on one implementation in one interpreter."""

    python: str
    suite: str
    implementation: str
    package: Path = SOURCE
    outcome: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    trouble: str = ""
    seconds: float = 0.0

    def counts(self) -> str:
        """Like ``153 ok`` or ``93 ok, 8 skipped``."""
        if self.trouble:
            return self.trouble
        kinds = list(self.outcome.values())
        return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))

    def skips(self) -> list[str]:
        """Why tests were skipped by their own suite, each reason once."""
        return sorted(
            {self.why.get(name, "") for name, kind in self.outcome.items() if kind == "skipped"}
        )

    def failures(self) -> list[str]:
        """Ids of the tests that did not pass."""
        return [name for name, kind in self.outcome.items() if kind in {"failed", "error"}]

    def carry_out(self, folder: Path, limit: float = LIMIT) -> Run:
        """Run it in a child process, in its own empty directory."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="cpython-suite-") as scratch:
            report = Path(scratch, "report.json")
            job = {
                "suite": self.suite,
                "implementation": self.implementation,
                "stdlib": str(folder),
                "package": str(self.package),
            }
            command = [self.python, "-W", "ignore", __file__, "--child", json.dumps(job)]
            command.append(str(report))
            log = Path(scratch, "log")
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=scratch
                )
                try:
                    status = process.wait(limit)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    self.trouble = f"still running after {limit:.0f} s"
                else:
                    if not report.exists():
                        tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                        self.trouble = f"exit status {status}: {' '.join(tail)}"
            if report.exists() and not self.trouble:
                said = json.loads(report.read_text(encoding="utf-8"))
                self.outcome, self.why, self.files = said["outcome"], said["why"], said["files"]
        self.seconds = time.monotonic() - began
        return self


def _compare(reference: Run, facade: Run) -> list[str]:
    """What is wrong with a facade's run, in lines to print; nothing when all is well."""
    wrong = []
    where = f"{facade.python}: {facade.suite}"
    if reference.trouble or facade.trouble:
        return [
            f"{where}: on the {run.implementation}: {run.trouble}"
            for run in (reference, facade)
            if run.trouble
        ]
    if not facade.outcome:
        wrong.append(f"{where}: no test ran")
    ours = str(facade.package.resolve())
    if not facade.files or not all(file.startswith(ours) for file in facade.files):
        wrong.append(f"{where}: did not run on the package under test but on {facade.files}")
    if any(file.startswith(ours) for file in reference.files):
        wrong.append(f"{where}: the reference run was not the standard library's")
    for name in sorted(set(reference.outcome) | set(facade.outcome)):
        had, has = reference.outcome.get(name, "absent"), facade.outcome.get(name, "absent")
        if had != has or has in {"failed", "error"}:
            wrong.append(f"{where}: {name}: {has} (stdlib: {had})")
            wrong += ["    " + line for line in facade.why.get(name, "").splitlines()]
    return wrong


def _usable(python: str, suites: list[str]) -> tuple[list[str], str]:
    """Which of the suites an interpreter can run, and why not the others."""
    code = (
        "import importlib.util, sys, test.support, twisted, typing_extensions\n"
        "for suite in sys.argv[1:]:\n"
        "    if importlib.util.find_spec('test.' + suite) is None: print(suite)"
    )
    own = [suite for suite in suites if not SUITES[suite][0]]
    done = subprocess.run([python, "-c", code, *own], capture_output=True, text=True, check=False)
    if done.returncode:
        return [], (done.stderr.strip().splitlines() or ["it does not start"])[-1]
    absent = done.stdout.split()
    return [suite for suite in suites if suite not in absent], "not installed with it"


def _broken_copy(scratch: Path, name: str) -> Path:
    """Make a folder with a copy of the package, broken as the mutant of that name says."""
    file, code, _ = MUTANTS[name]
    folder = Path(tempfile.mkdtemp(dir=scratch))
    shutil.copytree(
        SOURCE / "txasynchat", folder / "txasynchat", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (folder / "txasynchat" / "compat" / file).open("a", encoding="utf-8") as module:
        module.write(code)
    return folder


def run_mutants(
    python: str, folder: Path, scratch: Path, pool: ThreadPoolExecutor
) -> dict[str, Future[Run]]:
    """Begin to run, on each broken copy, the suite that has to notice."""
    return {
        name: pool.submit(
            Run(python, suite, "facade", _broken_copy(scratch, name)).carry_out, folder, 60
        )
        for name, (_, _, suite) in MUTANTS.items()
    }


def check_mutants(runs: dict[str, Future[Run]]) -> list[str]:
    """Wait until each broken copy is noticed by its suite; return those that were not."""
    missed = []
    for name, future in runs.items():
        run = future.result()
        ran = run.files and all(str(run.package.resolve()) in file for file in run.files)
        hung = run.trouble.startswith("still running")
        if hung or (ran and run.failures()):
            how = run.trouble or f"{len(run.failures())} of {len(run.outcome)} tests fail"
            print(f"  caught: {name} ({run.suite}: {how})", flush=True)
        else:
            missed.append(f"not caught: {name} ({run.suite}: {run.counts()})")
    return missed


def main() -> int:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("python", nargs="*", default=[sys.executable])
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this one")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child[0]), options.child[1])
    suites = options.suite or list(SUITES)
    folder = stdlib_modules.find_stdlib(with_tests=True)
    if folder is None:
        print("SKIPPED all: no Python 3.11 with CPython's test files on this machine")
        print(f"0 passed, 0 failed, {len(suites) * len(options.python)} skipped")
        return 0
    print(f"tests and reference: {folder}")
    wrong: list[str] = []
    bad = skipped = 0
    chosen: dict[str, list[str]] = {}
    for python in options.python:
        usable, reason = _usable(python, suites)
        if usable:
            chosen[python] = usable
        if absent := [suite for suite in suites if suite not in usable]:
            skipped += len(absent)
            print(f"SKIPPED {', '.join(absent)} in {python}: {reason}")
    if not chosen:
        print(f"0 passed, 0 failed, {skipped} skipped")
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="broken-facade-") as scratch,
        ThreadPoolExecutor(10) as pool,  # they mostly wait
    ):
        # They wait longest, because tests that fail wait.
        mutants = run_mutants(next(iter(chosen)), folder, Path(scratch), pool)
        planned = [
            tuple(
                pool.submit(Run(python, suite, implementation).carry_out, folder)
                for implementation in ("stdlib", "facade")
            )
            for python, usable in chosen.items()
            for suite in usable
        ]
        for python, usable in chosen.items():
            print(python)
            for suite in usable:
                reference, facade = (future.result() for future in planned.pop(0))
                mistakes = _compare(reference, facade)
                wrong += mistakes
                bad += bool(mistakes)
                verdict = "FAILED" if mistakes else "same"
                print(
                    f"  {suite:14} stdlib {reference.counts():30} facade {facade.counts():30}"
                    f" {facade.seconds:5.1f} s  {verdict}",
                    flush=True,
                )
                for reason in facade.skips():
                    print(f"  {'':14} its own skips: {reason}")
        print("broken copies of the facade:")
        missed = check_mutants(mutants)
        wrong += missed
    for line in wrong:
        print(line)
    runs = sum(map(len, chosen.values())) + len(MUTANTS)
    bad += len(missed)
    print(f"{runs - bad} passed, {bad} failed, {skipped} skipped")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
