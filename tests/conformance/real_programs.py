"""
Programs from the package index, with their own tests, on the facade.

    python tests/conformance/real_programs.py [--quick] [--only NAME ...] [--keep FOLDER]

Each program is installed into a folder of its own, under this interpreter, and its tests run
twice: on 3.11's own asyncore, asynchat and smtpd, then on the facade, in every Python process
that the tests start. No line of a program is changed. The counts are printed side by side; a
test that passes on the standard library and fails on the facade, also when it is run again by
itself, fails the script.

Where a package has no tests of its use of asyncore, `exercises/` has a small program that
uses it as its documentation says.

--quick leaves out what takes more than half a minute. What cannot be installed (no network, no
pip) is skipped, and said so. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import stdlib_modules

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "src"

#: Longest run of one program's tests, seconds.
LIMIT = 400


@dataclass(frozen=True)
class Program:
    """
    One package and where its tests are.

    Attributes:
        what: what kind of program it is.
        requirements: for pip; the first is the package itself.
        tests: what to hand to pytest, relative to the unpacked source distribution if `sdist`,
            to the installed packages if `installed`, else to `exercises/`.
        where: ``"sdist"``, ``"installed"`` or ``"exercises"``.
        slow: too long for --quick.
    """

    what: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    where: str = "exercises"
    slow: bool = False


PROGRAMS = {
    "pyftpdlib": Program(
        "an FTP server: asynchat, a poll loop and timers of its own, file producers",
        ("pyftpdlib==2.2.0", "psutil"),
        ("tests", "--ignore", "tests/test_functional_ssl.py"),
        "sdist",
    ),
    "pyftpdlib-tls": Program(
        "the same over TLS: pyOpenSSL put in place of the channel's socket in mid-stream",
        ("pyftpdlib==2.2.0", "psutil"),
        ("tests/test_functional_ssl.py",),
        "sdist",
        slow=True,
    ),
    "zope.server": Program(
        "an HTTP and FTP server: worker threads that wake the loop through a pipe",
        ("zope.server==5.0", "zope.publisher", "zope.i18n", "zope.testing", "paste"),
        ("zope/server",),
        "installed",
        slow=True,
    ),
    "waitress": Program(
        "an HTTP server: worker threads, a trigger, the loop in a child process",
        ("waitress==1.1.0",),
        # Left out: a test that gives two Python processes one second to start.
        ("waitress/tests", "-k", "not SleepyThread"),
        "sdist",
        slow=True,
    ),
    "pytest-localserver": Program(
        "an SMTP server for tests: smtpd, its loop in a thread",
        ("pytest-localserver==0.5.0",),
        ("tests/test_smtp.py",),
        "sdist",
    ),
    "pyinotify": Program(
        "file system events: file_dispatcher, private maps in threads",
        ("pyinotify==0.9.6",),
        ("try_pyinotify.py",),
    ),
    "pysnmp": Program(
        "SNMP agents and managers: UDP, private maps in threads",
        ("pysnmp==4.4.12", "pyasn1<0.5"),
        ("try_pysnmp.py",),
    ),
    "bacpypes": Program(
        "BACnet over UDP and TCP: scheduled tasks between passes of count=1, wakes through a pipe",
        ("bacpypes==0.19.0",),
        ("try_bacpypes.py",),
    ),
    "PodSixNet": Program(
        "a library for network games: poll called directly, pushes between channels",
        ("PodSixNet==0.11.0",),
        ("try_podsixnet.py",),
    ),
    "tlslite-ng": Program(
        "TLS in pure Python mixed into a dispatcher: every hook and predicate overridden",
        ("tlslite-ng==0.8.2",),
        ("try_tlslite.py",),
    ),
    "gevent": Program(
        "greenlets: sockets and select put in other places before asyncore is imported",
        ("gevent",),
        ("try_gevent.py",),
    ),
}

#: Runs first in every process: the names mean what the environment says, and it reports which
#: code they refer to.
_SITE = """
import atexit, os, sys
sys.path.insert(0, {here!r})
import stdlib_modules, pathlib
sys.path.insert(0, {source!r})
stdlib_modules.put_in_place(os.environ["CONFORMANCE_MODULES"], pathlib.Path({stdlib!r}))

def _tell():
    with open(os.environ["CONFORMANCE_RAN"], "a") as file:
        print(sys.modules["asyncore"].loop.__code__.co_filename, file=file)

atexit.register(_tell)
"""


class Unavailable(Exception):
    """A package is not available; the text says why."""


@dataclass
class Run:
    """The result of one run of one program's tests."""

    outcome: dict[str, str]
    files: set[str]
    seconds: float
    tail: str
    status: int

    def counts(self) -> str:
        found = Counter(self.outcome.values())
        return ", ".join(f"{found[kind]} {kind}" for kind in sorted(found)) or "nothing ran"

    def failed(self) -> set[str]:
        return {name for name, kind in self.outcome.items() if kind == "failed"}


class Installation:
    """One program, installed; its tests can be run on either implementation."""

    def __init__(self, name: str, program: Program, folder: Path, stdlib: Path) -> None:
        self.program = program
        self.folder = folder / name
        self.packages = self.folder / "packages"
        self.sdist = self.folder / "sdist"
        if not self.packages.exists():
            self._install()
        (self.folder / "site").mkdir(exist_ok=True)
        site = _SITE.format(here=str(HERE), source=str(SOURCE), stdlib=str(stdlib))
        (self.folder / "site" / "sitecustomize.py").write_text(site, encoding="utf-8")

    def _pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env=os.environ
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise Unavailable(lines[-1] if lines else "pip failed")

    def _install(self) -> None:
        if self.program.where == "sdist":
            self._pip(
                "download", "-q", "--no-deps", "--no-binary", ":all:",
                "-d", str(self.sdist), self.program.requirements[0],
            )  # fmt: skip
            archive = next(self.sdist.glob("*.tar.gz"))
            subprocess.run(["tar", "xzf", archive.name], cwd=self.sdist, check=True)
        # Last, because the folder means that all went well.
        self._pip("install", "-q", "--target", str(self.packages), *self.program.requirements)

    def _tests(self) -> tuple[Path, list[str]]:
        if self.program.where == "sdist":
            root = next(path for path in self.sdist.iterdir() if path.is_dir())
        elif self.program.where == "installed":
            root = self.packages
        else:
            root = HERE / "exercises"
        return root, list(self.program.tests)

    def run_until_it_ends(self, implementation: str) -> Run:
        """
        Run the tests, again if the process was killed by a signal.

        pyftpdlib's TLS tests use one pyOpenSSL context in two threads, and crash inside OpenSSL
        now and then, whatever the server runs on.
        """
        for _ in range(3):
            result = self.run(implementation)
            if result.status >= 0:
                break
            print(f"  the {implementation} run died of signal {-result.status}")
        return result

    def run(self, implementation: str, only: list[str] | None = None) -> Run:
        """Run the tests; with `only`, those whose names hold one of the words."""
        root, tests = self._tests()
        with tempfile.TemporaryDirectory(prefix="real-program-") as scratch:
            report, ran = Path(scratch, "report.xml"), Path(scratch, "ran")
            path = [str(self.folder / "site"), str(self.packages)]
            env = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path),
                "PYTHONDONTWRITEBYTECODE": "1",
                "CONFORMANCE_MODULES": implementation,
                "CONFORMANCE_RAN": str(ran),
            }
            command = [
                sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-c", os.devnull,
                "--rootdir", str(root), "-p", "no:cacheprovider", "--junitxml", str(report),
            ]  # fmt: skip
            if self.program.where == "exercises":
                command.append("--noconftest")
            if only:
                command += ["-k", " or ".join(only)]
            began = time.monotonic()
            try:
                done = subprocess.run(
                    [*command, *tests], cwd=root, env=env, capture_output=True, text=True,
                    timeout=LIMIT, check=False, stdin=subprocess.DEVNULL,
                )  # fmt: skip
                tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            except subprocess.TimeoutExpired:
                tail, status = f"still running after {LIMIT} s", 1
            else:
                status = done.returncode
            seconds = time.monotonic() - began
            files = set(ran.read_text().split()) if ran.exists() else set()
            return Run(_outcomes(report) if report.exists() else {}, files, seconds, tail, status)


def _outcomes(report: Path) -> dict[str, str]:
    found = {}
    for case in ET.parse(report).iter("testcase"):
        kind = "passed"
        for child in case:
            if child.tag in {"failure", "error"}:
                kind = "failed"
            elif child.tag == "skipped" and kind == "passed":
                kind = "skipped"
        name = f"{case.get('classname')}.{case.get('name')}"
        found[name] = "failed" if "failed" in {found.get(name), kind} else kind
    return found


def examine(name: str, program: Program, folder: Path, stdlib: Path) -> list[str] | None:
    """Install, run on both, print; returns what is wrong, or None if it could not be tried."""
    try:
        installation = Installation(name, program, folder, stdlib)
    except (Unavailable, subprocess.SubprocessError, OSError, StopIteration) as reason:
        print(f"SKIPPED {name}: cannot be installed: {reason}", flush=True)
        return None
    print(f"{name}: {program.what}", flush=True)
    right = installation.run_until_it_ends("stdlib")
    tested = installation.run_until_it_ends("facade")
    print(f"  stdlib  {right.counts()} ({right.seconds:.0f} s)")
    print(f"  facade  {tested.counts()} ({tested.seconds:.0f} s)", flush=True)
    wrong = []
    if not tested.outcome:
        return [f"{name}: no result from the facade: {tested.tail}"]
    if not tested.files or not all(file.startswith(str(SOURCE)) for file in tested.files):
        wrong.append(f"{name}: some process did not run on the facade: {tested.files}")
    if any(file.startswith(str(SOURCE)) for file in right.files):
        wrong.append(f"{name}: the reference run was not the standard library's")
    missing = sorted(set(right.outcome) - set(tested.outcome))
    wrong += [f"{name}: {test} did not run on the facade" for test in missing]
    suspects = sorted(tested.failed() - right.failed())
    if suspects:
        again = installation.run("facade", [test.rpartition(".")[2] for test in suspects])
        for test in suspects:
            if again.outcome.get(test) == "passed":
                print(f"  unsteady: {test} failed on the facade, and passed when run again")
            else:
                wrong.append(f"{name}: {test} fails on the facade only\n{again.tail}")
    both = tested.failed() & right.failed()
    if both:
        print(f"  fail on both: {', '.join(sorted(both)[:10])}")
    return wrong


def main() -> int:
    """Examine the programs the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the slow ones")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--keep", type=Path, help="install there, and use what is there already")
    options = parser.parse_args()
    stdlib = stdlib_modules.find_stdlib()
    if stdlib is None:
        print("SKIPPED all: no Python 3.11 on this machine to compare with")
        print(f"0 passed, 0 failed, {len(options.only)} skipped")
        return 0
    verdicts: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="real-programs-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            program = PROGRAMS[name]
            if options.quick and program.slow:
                print(f"SKIPPED {name}: slow, and --quick was asked for")
                wrong = None
            else:
                wrong = examine(name, program, folder, stdlib)
            for line in wrong or ():
                print("WRONG:", line)
            verdicts["skipped" if wrong is None else "failed" if wrong else "passed"] += 1
    print(", ".join(f"{verdicts[kind]} {kind}" for kind in ("passed", "failed", "skipped")))
    return 1 if verdicts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
