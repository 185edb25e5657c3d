"""
Everything that must hold before a change lands, as sessions of nox.

    nox                          all sessions, a few at a time, with a table at the end
    nox -s tests-3.13            one session (`nox -l` lists them); `-- tests/hub` for a part of it
    nox -s everything -- docs    the sessions whose names begin so

The sessions use the interpreters on PATH and under pyenv. Those that run a command of the README, and
those that test the built archives, work in a copy of the tree.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nox
import nox.command

if TYPE_CHECKING:
    from collections.abc import Iterator

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["everything"]
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).resolve().parent
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
#: How many sessions run side by side; some mostly wait.
LANES = int(os.environ.get("LANES", "3"))
#: How many tests each of them runs side by side: fewer than one that has the machine for itself.
WORKERS = str(min(2 * (os.cpu_count() or 1), 8))
#: A session that takes longer hangs, and is stopped.
SESSION_SECONDS = int(os.environ.get("SESSION_SECONDS", "1200"))

# These would lead started programs to the caller's packages; the last would make hundreds of them
# compile everything again.
for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)
os.environ |= {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_QUIET": "2",
    "PIP_NO_COMPILE": "0",  # means yes: most of what is installed is never imported
    "PYTHONUNBUFFERED": "1",
}
# A script's background jobs ignore it, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# -- the interpreters of this machine

#: What nox calls them: CPython, the same without the GIL, and PyPy.
_NAMES = [f"3.{minor}{free}" for free in ("", "t") for minor in range(11, 20)]
_NAMES += [f"pypy3.{minor}" for minor in range(11, 20)]
_FOLDERS = [*os.get_exec_path(), *map(str, PYENV.glob("versions/*/bin"))]
_DESCRIBE = """
import ensurepip, os, sys, venv
print(*sys.version_info[:3], os.path.realpath(sys._base_executable))
"""


def _find(name: str) -> list[str]:
    """Return the paths of a version's interpreters that have ``venv``, from old to new releases."""
    file = name if name.startswith("pypy") else f"python{name}"
    found = set()
    for path in filter(None, (shutil.which(file, path=folder) for folder in _FOLDERS)):
        # A launcher without its version fails, and so does a Python without venv.
        with suppress(OSError, subprocess.SubprocessError):
            command = [path, "-c", _DESCRIBE]
            asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
            *version, real = asked.stdout.rstrip("\n").split(" ", 3)
            found.add((*map(int, version), real))
    return [str(each[-1]) for each in sorted(found)]


INTERPRETERS = {name: paths for name in _NAMES if (paths := _find(name))}
STANDARD = [name for name in INTERPRETERS if re.fullmatch(r"3\.\d+", name)]
if not STANDARD:
    sys.exit("no CPython 3.11 or newer with venv on this machine")
#: PyPy, and CPython without the GIL.
OTHERS = [name for name in INTERPRETERS if name not in STANDARD]
CPYTHONS = [name for name in INTERPRETERS if not name.startswith("pypy")]
OLDEST, NEWEST = STANDARD[0], STANDARD[-1]
# Where nox looks for them: the newest release of each comes first.
_newest = [str(Path(paths[-1]).parent) for paths in INTERPRETERS.values()]
os.environ["PATH"] = os.pathsep.join([*_newest, os.environ["PATH"]])


# -- what the sessions share


@contextmanager
def copy_of_the_tree(session: nox.Session) -> Iterator[Path]:
    """Work in a temporary folder that holds what git would take of this tree."""
    listing = ("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(listing, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="copy-") as name:
        folder = Path(name).resolve()
        for file in map(os.fsdecode, filter(None, listed.split(b"\0"))):
            if (ROOT / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, folder / file)
        with session.chdir(folder):
            yield folder


def readme_command(word: str) -> str:
    """Return the README's shell command that mentions *word*."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    return next(line for block in blocks for line in block.splitlines() if word in line)


def run_test_command(session: nox.Session) -> None:
    """Run the README's test command, whose ``python3`` is the session's."""
    command = " ".join([readme_command("pytest"), *session.posargs])
    session.run("bash", "-c", command, external=True)


def leave_out(session: nox.Session, marks: str) -> None:
    """Run only the tests that *marks* select, unless the command says what to run."""
    if not session.posargs:
        session.posargs.extend(["-m", f"'{marks}'"])


def install_for_tests(session: nox.Session) -> None:
    """Install the package and what its tests need; skip if an uncommon Python lacks that."""
    if session.python in STANDARD:
        session.install("-e", ".[test]")
        return
    # Both are written in Rust, and not every interpreter has wheels.
    session.env["PIP_ONLY_BINARY"] = "cryptography,hypothesis"
    try:
        session.install("-e", ".[test]")
    except nox.command.CommandFailed:
        print(f"SKIPPED {session.name}: what the tests need cannot be installed there")
        session.skip()
    if str(session.python).endswith("t"):
        session.env["PYTHON_GIL"] = "0"  # an extension that does not know of it would turn it on


# -- the sessions


@nox.session(python=[*STANDARD, *OTHERS])
def tests(session: nox.Session) -> None:
    """
    The README's test command.

    Between the oldest and the newest of the common interpreters without the slow tests, which find the
    same on either side of them. The random ones, whose examples are always the same, run on the newest.
    """
    if session.python in STANDARD[1:-1]:
        leave_out(session, "not slow and not hypothesis")
    with copy_of_the_tree(session):
        if session.python in OTHERS:
            install_for_tests(session)
        run_test_command(session)


@nox.session(python=INTERPRETERS[OLDEST][0])
def tests_oldest(session: nox.Session) -> None:
    """The same on the oldest Python found, with the oldest Twisted that pyproject.toml declares."""
    with copy_of_the_tree(session) as folder:
        declared = re.search(r'"twisted\[tls\]>=([\d.]+)"', (folder / "pyproject.toml").read_text())
        assert declared, "pyproject.toml declares no oldest Twisted"
        (folder / "constraints").write_text(f"twisted=={declared[1]}\n")
        session.env["PIP_CONSTRAINT"] = str(folder / "constraints")
        if OLDEST != NEWEST:
            leave_out(session, "not hypothesis")
        run_test_command(session)
        session.run(".venv/bin/pip", "list", external=True)


@nox.session(python=NEWEST)
def tests_poll(session: nox.Session) -> None:
    """The tests as on a system that has neither epoll nor kqueue."""
    install_for_tests(session)
    session.run("pytest", *session.posargs, env={"PYTHONPATH": str(ROOT / "tests/poll_only")})


@nox.session(python=NEWEST)
def checks(session: nox.Session) -> None:
    """Format, lint, types, import rules, and whether the changelog can be built."""
    session.install("-e", ".[test]", "--group", "lint", "--group", "release")
    failed = []  # all commands run, so that one run shows everything
    for command in (
        "towncrier build --draft --version next",
        "ruff format --check .", "ruff check .", "mypy", "lint-imports",
    ):  # fmt: skip
        try:
            session.run(*command.split())
        except nox.command.CommandFailed:
            failed.append(command)
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@nox.session(python=NEWEST)
def docs(session: nox.Session) -> None:
    """Sphinx with warnings as errors, then the samples in the pages as doctests."""
    session.install("-e", ".", "--group", "docs")
    for builder in ("html", "doctest"):
        options = ("--fail-on-warning", "--keep-going", "-q", "-d", "docs/_build/doctrees")
        session.run("sphinx-build", *options, "-b", builder, "docs", f"docs/_build/{builder}")
    print((ROOT / "docs/_build/doctest/output.txt").read_text()[-300:])


@nox.session(python=NEWEST)
def serve(session: nox.Session) -> None:
    """The README's command for the echo server: a client talks to it, and an interrupt stops it."""
    with copy_of_the_tree(session):
        session.run("python", ".ci/serve.py", readme_command("twistd"))


# Tests of finding programs, plugins and files depend on where the package was installed from.
FILES = "tests/test_packaging.py tests/test_exports.py tests/compat/test_install.py"
PROGRAMS = "tests/test_twistd.py tests/test_endpoints.py"


@nox.session(python=OLDEST)
def archives_sdist(session: nox.Session) -> None:
    """
    The source distribution, installed alone, holds everything that its tests need.

    To install it, pip makes the wheel that the other session tests with programs.
    """
    session.install("--group", "release")
    with copy_of_the_tree(session):
        session.run("python", ".ci/archive.py", "sdist", "--collect-only -qq -n 0", FILES)


@nox.session(python=NEWEST)
def archives_wheel(session: nox.Session) -> None:
    """The wheel, installed alone, away from the source."""
    session.install("--group", "release")
    with copy_of_the_tree(session):
        session.run("python", ".ci/archive.py", "wheel", f"{FILES} {PROGRAMS}")


def conformance(name: str, python: str | list[str], command: str, text: str) -> None:
    """Define a session that runs a script of tests/conformance/."""
    script, *arguments = command.split()

    def run(session: nox.Session) -> None:
        install_for_tests(session)
        given = session.posargs or arguments
        # 3: the script said what it needs and this machine lacks.
        session.run("python", f"tests/conformance/{script}", *given, success_codes=[0, 3])

    run.__doc__ = text
    nox.session(run, python=python, name=f"conformance_{name}")


for definition in (
    ("cpython", CPYTHONS, "cpython_suites.py", "CPython's own tests, on the facade."),
    ("programs", NEWEST, "real_programs.py --quick", "Programs that use asyncore, on the facade."),
    ("random", NEWEST, "differential.py", "Random programs, on the facade and the original."),
    ("soak", NEWEST, "soak.py --seconds 60 --grace 90", "A minute of random connections."),
):
    conformance(*definition)


@nox.session(python=NEWEST)
def faults(session: nox.Session) -> None:
    """Two minutes of a server with 500 clients, of which half break the rules."""
    install_for_tests(session)
    for transport in ("hub", "twisted"):
        command = f"python tests/faults --seconds 60 --slack 5 --transport {transport}".split()
        # 3: the machine lacks what it needs.
        session.run(*command, *session.posargs, success_codes=[0, 3])


# -- all of them


class Result(NamedTuple):
    """How a session ended."""

    session: str
    passed: bool
    seconds: float
    output: list[str]

    def __str__(self) -> str:
        """With the line in which pytest closes, or else the last one that is not nox's."""
        lines = [line for line in self.output if line and not line.startswith("nox >")]
        closing = [line for line in lines if re.match(r"=+ .*(passed|failed|error)", line)]
        line = ([*lines[-1:], *closing] or [""])[-1].strip("= ")
        word = "passed" if self.passed else "failed"
        return f"{word}  {self.seconds:4.0f} s  {self.session}  {line}"


def _run(session: str, folder: str, running: list[subprocess.Popen[bytes]]) -> Result:
    """Run a session in its own process group, with its temporary files in *folder*."""
    began = time.monotonic()
    log = Path(folder, f"{session}.log")
    command = [sys.executable, "-m", "nox", "-f", __file__, "--envdir", f"{folder}/venvs"]
    with log.open("w") as output, subprocess.Popen(
        [*command, "-s", session], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        env={"PYTEST_XDIST_AUTO_NUM_WORKERS": WORKERS} | os.environ | {"TMPDIR": folder},
        start_new_session=True,
    ) as child:  # fmt: skip
        running.append(child)
        try:
            passed = child.wait(SESSION_SECONDS) == 0
        except subprocess.TimeoutExpired:
            output.write(f"\nnot done in {SESSION_SECONDS} s\n")
            passed = False
        _end(child)
    lines = log.read_text(errors="replace").splitlines()
    result = Result(session, passed, time.monotonic() - began, lines)
    print(result, flush=True)
    return result


def _end(child: subprocess.Popen[bytes]) -> None:
    """End every process that a session has left."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


@nox.session(venv_backend="none")
def everything(session: nox.Session) -> None:
    """All other sessions, a few at a time; the whole output of those that failed, and a table."""
    in_order = (  # long ones first, and those that mostly wait beside those that compute
        "tests_oldest", f"tests-{NEWEST}",
        "conformance_soak", "faults", *(f"conformance_cpython-{name}" for name in CPYTHONS),
        "conformance_programs",
        *(f"tests-{name}" for name in (*STANDARD[1:-1], *OTHERS)),
        "archives_sdist", "archives_wheel", "conformance_random", "docs", "checks", "serve",
    )  # fmt: skip
    began = time.monotonic()
    for interpreter, paths in INTERPRETERS.items():
        print(interpreter, *paths)
    wanted = [name for name in in_order if name.startswith(tuple(session.posargs or [""]))]
    running: list[subprocess.Popen[bytes]] = []
    with (
        tempfile.TemporaryDirectory(prefix="nox-", ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(LANES) as lanes,
    ):
        Path(folder).chmod(0o1777)  # as /tmp is: some tests run as another user
        try:
            results = list(lanes.map(lambda name: _run(name, folder, running), wanted))
        except BaseException:  # mostly an interrupt
            lanes.shutdown(wait=False, cancel_futures=True)
            for child in running:
                _end(child)
            raise
    failed = [result for result in results if not result.passed]
    for result in failed:
        print(f"\n---- {result.session} ----", *result.output, sep="\n")
    lines = [line for result in results for line in result.output]
    if skipped := Counter(line for line in lines if line.startswith(("SKIPPED", "skipped"))):
        print("\nWhat was skipped:")
        print(*(f"{count} x {line}" for line, count in sorted(skipped.items())), sep="\n")
    print("\nSessions:", *results, f"in {time.monotonic() - began:.0f} s", sep="\n")
    for word in ("passed", "failed", "skipped"):
        counts = map(int, re.findall(rf"(\d+) {word}", "\n".join(map(str, results))))
        print(f"tests: {sum(counts)} {word}")
    print(f"sessions: {len(results) - len(failed)} passed, {len(failed)} failed")
    if failed or not results:
        names = ", ".join(result.session for result in failed)
        session.error(f"failed: {names or 'no session has such a name'}")
