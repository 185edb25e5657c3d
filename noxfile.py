"""
Everything that must hold before a change lands.

``nox`` runs all of it, a few sessions at a time, and ends with a table of what passed; ``nox -s
checks docs`` runs two of the sessions, ``nox -l`` lists them. CI does the same through ``.ci/run``.

The sessions that install something work on a copy of the tree in a temporary folder, so that they
disturb neither the checkout nor each other. They make their environments themselves: what is tested
is what a user types.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nox

if TYPE_CHECKING:
    from collections.abc import Iterator

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["everything"]
nox.options.default_venv_backend = "none"
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
#: Sessions that run side by side: some mostly wait.
LANES = int(os.environ.get("LANES", "4"))
#: A session that takes longer has hung.
SESSION_SECONDS = 1200
#: The oldest version that is supported, tested with the oldest Twisted that is.
OLDEST = (3, 11)

QUIET_PIP = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_QUIET": "2",
    # 0 stands for yes: do not compile what is installed, most of it is never imported.
    "PIP_NO_COMPILE": "0",
    "PYTHONUNBUFFERED": "1",
}
# These would lead programs that a session starts to packages of the caller's; the last would have
# hundreds of started programs compile everything again.
for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)
os.environ.update(QUIET_PIP)


# -- the interpreters of this machine


class Interpreter(NamedTuple):
    """A Python of this machine that has ``venv``."""

    version: tuple[int, int, int]
    without_gil: bool
    path: str

    @property
    def name(self) -> str:
        """The minor version, as in ``3.14`` or ``3.14t``."""
        return f"{self.version[0]}.{self.version[1]}{'t' if self.without_gil else ''}"


_DESCRIBE = """
import ensurepip, json, os, sys, sysconfig, venv
print(json.dumps([
    sys.version_info[:3],
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    os.path.realpath(sys._base_executable),
    sys.implementation.name,
]))
"""


def _candidates() -> Iterator[Path]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from sorted(Path(folder or ".").glob("python3*"))
    for pyenv in {os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")} - {""}:
        yield from sorted(Path(pyenv).glob("versions/*/bin/python3"))


def find_interpreters() -> list[Interpreter]:
    """
    Find one CPython of each minor version from `OLDEST` on, and one of each without the GIL.

    What changes between patch releases is not ours: the newest counts; of `OLDEST`, the oldest.
    """
    found: dict[str, Interpreter] = {}
    for path in _candidates():
        if not re.fullmatch(r"python3(\.\d+t?)?", path.name):
            continue
        try:
            asked = subprocess.run(
                [path, "-c", _DESCRIBE], capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue  # a launcher of a version that is not there, or one without venv
        version, without_gil, real, implementation = json.loads(asked.stdout)
        one = Interpreter(tuple(version), without_gil, real)
        if implementation != "cpython" or one.version[:2] < OLDEST:
            continue
        known = found.get(one.name)
        is_better = known is None or (
            one.version < known.version
            if one.version[:2] == OLDEST
            else one.version > known.version
        )
        if is_better:
            found[one.name] = one
    return sorted(found.values())


INTERPRETERS = find_interpreters()
if not INTERPRETERS:
    sys.exit("no Python 3.11 or newer with venv on this machine")
NEWEST = max(one for one in INTERPRETERS if not one.without_gil or len(INTERPRETERS) == 1)

on_each_interpreter = nox.parametrize(
    "interpreter", INTERPRETERS, ids=[one.name for one in INTERPRETERS]
)


# -- what the sessions are made of


@contextmanager
def a_copy_of_the_tree(session: nox.Session) -> Iterator[Path]:
    """
    Work in a temporary folder that holds what git would take of this tree.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    with tempfile.TemporaryDirectory(prefix="txasynchat-") as name:
        folder = Path(name).resolve() / "tree"
        for file in map(os.fsdecode, filter(None, listed.stdout.split(b"\0"))):
            if (ROOT / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, folder / file)
        with session.chdir(folder):
            yield folder


def make_environment(
    session: nox.Session, *requirements: str, interpreter: Interpreter = NEWEST
) -> Path:
    """
    Make an environment in ``venv`` with *requirements*, as pip takes them, and return its programs.
    """
    session.run(interpreter.path, "-m", "venv", "venv", external=True)
    programs = Path("venv/bin").resolve()
    session.run(f"{programs}/pip", "install", "--upgrade", "pip>=25.1", external=True)
    if requirements:
        session.run(f"{programs}/pip", "install", *requirements, external=True)
    return programs


def readme_command(word: str) -> str:
    """
    Find the README's shell command that mentions *word*.
    """
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return next(line for block in blocks for line in block.splitlines() if word in line)


def as_in_readme(interpreter: Interpreter) -> dict[str, str]:
    """
    Return the environment of somebody for whom ``python3`` is *interpreter*.
    """
    Path("bin").mkdir()
    launcher = Path("bin/python3").resolve()
    launcher.write_text(f'#!/bin/sh\nexec "{interpreter.path}" "$@"\n')
    launcher.chmod(0o755)
    return {"PATH": f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"}


# -- the sessions


@nox.session
@on_each_interpreter
def tests(session: nox.Session, interpreter: Interpreter) -> None:
    """
    The README's test command; on the oldest version with the oldest Twisted that is declared.
    """
    with a_copy_of_the_tree(session) as folder:
        environment = as_in_readme(interpreter)
        if interpreter.version[:2] == OLDEST:
            declared = re.search(
                r'"twisted\[tls\]>=([0-9.]+)"', (folder / "pyproject.toml").read_text()
            )
            if declared is None:
                session.error("pyproject.toml declares no oldest Twisted")
            Path("constraints").write_text(f"twisted=={declared[1]}\n")
            environment["PIP_CONSTRAINT"] = str(Path("constraints").resolve())
        command = f"{readme_command('pytest')} {' '.join(session.posargs)}"
        session.run("bash", "-c", command, env=environment, external=True)


@nox.session
def checks(session: nox.Session) -> None:
    """
    Format, lint, types and import rules.
    """
    with a_copy_of_the_tree(session):
        programs = make_environment(session, "-e", ".[test]", "--group", "lint")
        failed = []  # all of them, so that one run tells everything
        for command in ("ruff format --check .", "ruff check .", "mypy", "lint-imports"):
            program, *arguments = command.split()
            try:
                session.run(f"{programs}/{program}", *arguments, external=True)
            except nox.command.CommandFailed:
                failed.append(command)
        if failed:
            session.error(f"failed: {', '.join(failed)}")


@nox.session
def docs(session: nox.Session) -> None:
    """
    Sphinx with warnings as errors, then the samples in the pages as doctests.
    """
    with a_copy_of_the_tree(session):
        programs = make_environment(session, "-e", ".", "--group", "docs")
        for builder in ("html", "doctest"):
            session.run(
                f"{programs}/sphinx-build", "--fail-on-warning", "--keep-going", "-q",
                "-b", builder, "docs", f"docs/_build/{builder}",
                external=True,
            )  # fmt: skip
        session.log(Path("docs/_build/doctest/output.txt").read_text()[-300:])


@nox.session
def serve(session: nox.Session) -> None:
    """
    The README's first command, and a client that talks to it.
    """
    with a_copy_of_the_tree(session):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = f"{readme_command('twistd')} --listen tcp:{port}:interface=127.0.0.1"
        with Path("served").open("w+") as output:
            server = subprocess.Popen(
                ["bash", "-c", command],  # noqa: S607
                env=os.environ | as_in_readme(NEWEST),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                _talk(port, server)
                os.kill(int(Path("twistd.pid").read_text()), signal.SIGINT)
                server.wait(60)
            finally:
                server.kill()
                output.seek(0)
                said = output.read()
                session.log(said)
        if "Server Shut Down" not in said or Path("twistd.pid").exists():
            session.error("twistd did not end in order")


def _talk(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            break
        except ConnectionRefusedError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    with client, client.makefile("rb") as answers:
        client.sendall(b"hello\r\nsecond line\r\n")
        answered = [answers.readline(), answers.readline()]
    if answered != [b"hello\r\n", b"second line\r\n"]:
        raise AssertionError(answered)


@nox.session
def archives(session: nox.Session) -> None:
    """
    Build sdist and wheel; install each alone, and test it away from the source.
    """
    with tempfile.TemporaryDirectory(prefix="txasynchat-") as name:
        built = Path(name)
        with a_copy_of_the_tree(session):
            programs = make_environment(session, "--group", "release")
            # The sdist, and the wheel out of the sdist.
            session.run(f"{programs}/python", "-m", "build", "--outdir", name, external=True)
            session.run(
                f"{programs}/towncrier", "build", "--draft", "--version", "next", external=True
            )
        [sdist] = built.glob("*.tar.gz")
        [wheel] = built.glob("*.whl")
        for archive, command in ((sdist, "tarfile"), (wheel, "zipfile")):
            _check_contents(session, archive, command)
        # What the source distribution holds is complete enough to be tested on its own. Without the
        # minutes of random bytes and hostile peers: where the code was installed from is no
        # concern of theirs.
        with a_copy_of_the_tree(session) as folder:
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            shutil.unpack_archive(sdist, folder, filter="data")
            [top] = folder.iterdir()
            for entry in top.iterdir():
                entry.rename(folder / entry.name)
            _try_archive(
                session, sdist, INTERPRETERS[0],
                "--ignore-glob=*/test_framing*", "--ignore-glob=*/test_against_stdlib.py",
                "--ignore=tests/compat/test_soak.py", "--ignore=tests/compat/test_tls_hostile.py",
            )  # fmt: skip
        # The wheel holds the same code: only what looks for programs, plugins and files.
        with a_copy_of_the_tree(session):
            _try_archive(
                session, wheel, NEWEST,
                "tests/test_packaging.py", "tests/test_exports.py", "tests/test_twistd.py",
                "tests/test_endpoints.py", "tests/compat/test_install.py",
            )  # fmt: skip


def _check_contents(session: nox.Session, archive: Path, module: str) -> None:
    listing = subprocess.run(
        [sys.executable, "-m", module, "-l", archive], capture_output=True, text=True, check=True
    ).stdout
    plugins = [path.name for path in (ROOT / "twisted/plugins").glob("*.py")]
    for wanted in ("txasynchat/py.typed", *(f"twisted/plugins/{plugin}" for plugin in plugins)):
        if wanted not in listing:
            session.error(f"{archive.name} lacks {wanted}")
    if re.search(r"twisted/.*__init__", listing):
        session.error(f"{archive.name} hides Twisted behind an __init__ file")


def _try_archive(
    session: nox.Session, archive: Path, interpreter: Interpreter, *arguments: str
) -> None:
    """
    Install *archive* beside plugin caches in every state they are found in, and run tests.
    """
    shutil.rmtree("src")
    programs = make_environment(session, "twisted[tls]", interpreter=interpreter)
    # A cache that does not know our plugins yet, as on a machine that used twistd before.
    if "asynchat" in _twistd_help(programs):
        session.error("twistd knows the plugin before it is installed")
    find = "import twisted.plugins as p; print(*p.__path__, sep='\\n')"
    listed = subprocess.run(
        [f"{programs}/python", "-c", find], capture_output=True, text=True, check=True
    ).stdout
    [cache] = [file for one in listed.splitlines() if (file := Path(one, "dropin.cache")).exists()]
    session.run(f"{programs}/pip", "install", f"{archive}[test]", external=True)
    _lists_plugin(session, programs, "a stale cache")
    cache.unlink()
    cache.mkdir()  # stops root from writing it, too
    _lists_plugin(session, programs, "a cache that cannot be written")
    cache.rmdir()
    cache.write_text("garbage")
    _lists_plugin(session, programs, "a broken cache")
    session.run(f"{programs}/pytest", *arguments, external=True)


def _twistd_help(programs: Path, *arguments: str) -> str:
    return subprocess.run(
        [f"{programs}/twistd", *arguments, "--help"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _lists_plugin(session: nox.Session, programs: Path, beside: str) -> None:
    if not re.search(r"^ *asynchat +Serve ", _twistd_help(programs), re.MULTILINE):
        session.error(f"twistd does not list the plugin beside {beside}")
    if "--listen" not in _twistd_help(programs, "asynchat"):
        session.error(f"twistd does not find the plugin's options beside {beside}")


# A script ends with 3 where nothing that it needs is on this machine; it has said what.
_DONE_OR_SKIPPED = [0, 3]


@nox.session
@on_each_interpreter
def conformance_cpython(session: nox.Session, interpreter: Interpreter) -> None:
    """
    CPython's own tests, on the facade.
    """
    _conformance(session, interpreter, "cpython_suites.py")


@nox.session
def conformance_programs(session: nox.Session) -> None:
    """
    Programs from the package index, on the facade.
    """
    _conformance(session, NEWEST, "real_programs.py", "--quick")


@nox.session
def conformance_random(session: nox.Session) -> None:
    """
    Random programs on the facade and on the standard library, then a minute of random connections.
    """
    _conformance(session, NEWEST, "differential.py")


@nox.session
def conformance_soak(session: nox.Session) -> None:
    """
    A minute of random connections.
    """
    _conformance(session, NEWEST, "soak.py", "--seconds", "60", "--grace", "90")


def _conformance(session: nox.Session, interpreter: Interpreter, *command: str) -> None:
    with a_copy_of_the_tree(session):
        programs = make_environment(session, "-e", ".[test]", interpreter=interpreter)
        script, *arguments = command
        session.run(
            f"{programs}/python", f"tests/conformance/{script}", *(session.posargs or arguments),
            external=True, success_codes=_DONE_OR_SKIPPED,
        )  # fmt: skip


# -- all of them


def _sessions_in_order() -> list[str]:
    """
    Name the sessions: long ones first, and those that mostly wait beside those that compute.
    """
    versions = [one.name for one in INTERPRETERS]
    return [
        "archives",
        f"tests({versions[0]})",
        "conformance_soak",
        *(f"tests({version})" for version in versions[1:]),
        *(f"conformance_cpython({version})" for version in versions),
        "conformance_programs",
        "conformance_random",
        "docs",
        "checks",
        "serve",
    ]


class Result(NamedTuple):
    """How a session ended."""

    session: str
    passed: bool
    seconds: float
    output: str

    @property
    def closing_line(self) -> str:
        """The line in which pytest closes, or else the last one."""
        lines = [line for line in self.output.splitlines() if not line.startswith("nox >")]
        closing = [line for line in lines if re.match(r"=+ .*(passed|failed|error)", line)]
        return ([*lines, *closing] or [""])[-1].strip("= ")


def _run(session: str) -> Result:
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nox", "-f", __file__, "-s", session],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SESSION_SECONDS,
            check=False,
        )
        output, passed = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as late:
        output = f"{(late.stdout or b'').decode(errors='replace')}\nnot done in {SESSION_SECONDS} s"
        passed = False
    result = Result(session, passed, time.monotonic() - began, output)
    print(_row(result), flush=True)
    return result


def _row(result: Result) -> str:
    word = "passed" if result.passed else "failed"
    return f"{word}  {result.seconds:4.0f} s  {result.session}  {result.closing_line}"


@nox.session
def everything(session: nox.Session) -> None:
    """
    All other sessions, a few at a time; the whole output of those that failed, and a table.
    """
    began = time.monotonic()
    for one in INTERPRETERS:
        print(one.name, ".".join(map(str, one.version)), one.path)
    with ThreadPoolExecutor(LANES) as lanes:
        results = list(lanes.map(_run, session.posargs or _sessions_in_order()))
    for result in results:
        if not result.passed:
            print(f"\n---- {result.session} ----\n{result.output}")
    skipped = Counter(
        line
        for result in results
        for line in result.output.splitlines()
        if line.startswith(("SKIPPED", "skipped"))
    )
    if skipped:
        print("\nWhat was skipped:")
        print(*(f"{count} x {line}" for line, count in sorted(skipped.items())), sep="\n")
    print("\nSessions:", *map(_row, results), f"in {time.monotonic() - began:.0f} s", sep="\n")
    counts = {
        word: sum(int(n) for r in results for n in re.findall(rf"(\d+) {word}", r.closing_line))
        for word in ("passed", "failed", "skipped")
    }
    print("tests: {passed} passed, {failed} failed, {skipped} skipped".format(**counts))
    failed = [result.session for result in results if not result.passed]
    print(f"sessions: {len(results) - len(failed)} passed, {len(failed)} failed")
    if failed:
        session.error(f"failed: {', '.join(failed)}")
