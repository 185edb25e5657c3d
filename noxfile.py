"""
Everything that must hold before a change lands, as sessions of nox.

    nox                          all of it, a few sessions at a time, with a table at the end
    nox -s tests-3.13            one session (`nox -l` lists them); with `-- tests/hub`, on a part
    nox -s everything -- docs    those whose names begin so

The sessions use the interpreters that this machine has, on PATH or under pyenv. Those that type what
the README tells users to type, and those that test the built archives, do so in a copy of the tree.
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
import tarfile
import tempfile
import time
import zipfile
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
#: Sessions that run side by side: some mostly wait.
LANES = int(os.environ.get("LANES", "2"))
#: A session that takes longer has hung, and is stopped.
SESSION_SECONDS = int(os.environ.get("SESSION_SECONDS", "1200"))

# These would lead programs that a session starts to packages of the caller's; the last would have
# hundreds of started programs compile everything again.
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
# In the background of a script it is ignored, in all that is started from there too.
signal.signal(signal.SIGINT, signal.default_int_handler)


# -- the interpreters of this machine


_DESCRIBE = """
import ensurepip, json, os, sys, sysconfig, venv
kind = "" if sys.implementation.name == "cpython" else sys.implementation.name
free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
print(json.dumps([kind, sys.version_info[:3], free, os.path.realpath(sys._base_executable)]))
"""


def _candidates() -> Iterator[Path]:
    folders = [Path(folder) for folder in os.get_exec_path()]
    for pyenv in (os.environ.get("PYENV_ROOT", ""), Path.home() / ".pyenv"):
        folders += Path(pyenv).glob("versions/*/bin") if pyenv else ()
    for folder in folders:
        yield from folder.glob("python3*")
        yield from folder.glob("pypy3*")


def _find_interpreters() -> dict[str, list[str]]:
    """
    Find each minor version from 3.11 up that has ``venv``: its name, paths from old to new releases.

    A name is what nox knows a version by: ``3.13``, ``3.14t`` without the GIL, ``pypy3.11``.
    """
    found = set()
    for path in _candidates():
        if not re.fullmatch(r"(python|pypy)3(\.[1-9]\dt?)?", path.name):
            continue
        try:
            asked = subprocess.run(
                [path, "-c", _DESCRIBE], capture_output=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue  # a launcher of a version that is not there, or one without venv
        kind, version, free, real = json.loads(asked.stdout)
        if version >= [3, 11]:
            found.add((kind, tuple(version), free, real))
    interpreters: dict[str, list[str]] = {}
    for kind, version, free, real in sorted(found):
        interpreters.setdefault(f"{kind}{version[0]}.{version[1]}{free}", []).append(real)
    return interpreters


INTERPRETERS = _find_interpreters()
STANDARD = [name for name in INTERPRETERS if re.fullmatch(r"3\.\d+", name)]
if not STANDARD:
    sys.exit("no CPython 3.11 or newer with venv on this machine")
#: PyPy, and CPython without the GIL.
OTHERS = [name for name in INTERPRETERS if name not in STANDARD]
CPYTHONS = [name for name in INTERPRETERS if not name.startswith("pypy")]
OLDEST, NEWEST = STANDARD[0], STANDARD[-1]
# Where nox looks for them. The newest release of each: what changes between releases is not ours.
os.environ["PATH"] = os.pathsep.join(
    [*(str(Path(paths[-1]).parent) for paths in INTERPRETERS.values()), os.environ["PATH"]]
)


# -- what the sessions are made of


@contextmanager
def a_copy_of_the_tree(session: nox.Session) -> Iterator[Path]:
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
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return next(line for block in blocks for line in block.splitlines() if word in line)


def install_for_tests(session: nox.Session) -> None:
    """Install the package and what its tests need; skip where an uncommon Python lacks that."""
    if session.python in STANDARD:
        session.install("-e", ".[test]")
        return
    try:  # both are written in Rust, and not every interpreter has wheels
        session.install("-e", ".[test]", env={"PIP_ONLY_BINARY": "cryptography,hypothesis"})
    except nox.command.CommandFailed:
        print(f"SKIPPED {session.name}: what the tests need cannot be installed there")
        session.skip()
    if str(session.python).endswith("t"):
        session.env["PYTHON_GIL"] = "0"  # else an extension that does not know of it turns it on


# -- the sessions


@nox.session(python=[*STANDARD, *OTHERS])
def tests(session: nox.Session) -> None:
    """The README's test command."""
    with a_copy_of_the_tree(session):
        if session.python in OTHERS:
            install_for_tests(session)
            session.env["PIP_ONLY_BINARY"] = "cryptography,hypothesis"
        type_test_command(session)


@nox.session(python=INTERPRETERS[OLDEST][0])
def tests_oldest(session: nox.Session) -> None:
    """The same on the oldest Python found, with the oldest Twisted that pyproject.toml declares."""
    with a_copy_of_the_tree(session) as folder:
        declared = re.search(r'"twisted\[tls\]>=([\d.]+)"', (folder / "pyproject.toml").read_text())
        assert declared, "pyproject.toml declares no oldest Twisted"
        (folder / "constraints").write_text(f"twisted=={declared[1]}\n")
        session.env["PIP_CONSTRAINT"] = str(folder / "constraints")
        type_test_command(session)
        session.run(".venv/bin/pip", "list", external=True)


def type_test_command(session: nox.Session) -> None:
    """Do as the README says where ``python3`` is the session's."""
    command = " ".join([readme_command("pytest"), *session.posargs])
    session.run("bash", "-c", command, external=True)


@nox.session(python=NEWEST)
def tests_poll(session: nox.Session) -> None:
    """The tests as on a system that has neither epoll nor kqueue."""
    install_for_tests(session)
    session.run("pytest", *session.posargs, env={"PYTHONPATH": str(ROOT / "tests/poll_only")})


@nox.session(python=NEWEST)
def checks(session: nox.Session) -> None:
    """Format, lint, types and import rules; the changelog's fragments can be put together."""
    session.install("-e", ".[test]", "--group", "lint", "--group", "release")
    commands = (
        "towncrier build --draft --version next",
        "ruff format --check .", "ruff check .", "mypy", "lint-imports",
    )  # fmt: skip
    failed = []  # all of them, so that one run tells everything
    for command in commands:
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
        session.run(
            "sphinx-build", "--fail-on-warning", "--keep-going", "-q", "-b", builder,
            "docs", f"docs/_build/{builder}",
        )  # fmt: skip
    print((ROOT / "docs/_build/doctest/output.txt").read_text()[-300:])


@nox.session(python=NEWEST)
def serve(session: nox.Session) -> None:
    """The README's first command: a client talks to it, and an interrupt stops it."""
    with a_copy_of_the_tree(session) as folder, Path("served").open("w") as output:
        command, port = readme_command("twistd"), 8007
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
                command += f" --listen tcp:{port}:interface=127.0.0.1"
        server = subprocess.Popen(
            ["bash", "-c", command],  # noqa: S607
            env={**os.environ, "PATH": os.pathsep.join([session.bin, os.environ["PATH"]])},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _talk(port, server)
            os.kill(int(Path("twistd.pid").read_text()), signal.SIGINT)
            server.wait(60)
        finally:
            with suppress(FileNotFoundError):
                os.kill(int(Path("twistd.pid").read_text()), signal.SIGKILL)
            server.kill()
            print(said := (folder / "served").read_text())
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
    assert answered == [b"hello\r\n", b"second line\r\n"], answered


# Where the code was installed from is the concern of what looks for programs, plugins and files.
INSTALLED = [
    *(f"tests/test_{name}.py" for name in ("packaging", "exports", "twistd", "endpoints")),
    "tests/compat/test_install.py",
]


@nox.session(python=OLDEST)
def archives_sdist(session: nox.Session) -> None:
    """The source distribution, installed alone, holds everything that its tests need."""
    _try_archive(session, "*.tar.gz", ["--collect-only", "-qq", "-n", "0"], INSTALLED)


@nox.session(python=NEWEST)
def archives_wheel(session: nox.Session) -> None:
    """The wheel, installed alone, far from the source."""
    _try_archive(session, "*.whl", INSTALLED)


def _try_archive(session: nox.Session, pattern: str, *runs: list[str]) -> None:
    """Install an archive beside plugin caches in every state they are found in; run tests."""
    session.install("--group", "release")
    with a_copy_of_the_tree(session) as folder:
        # The sdist, and the wheel out of the sdist.
        session.run("python", "-m", "build", "--outdir", "dist", silent=True)
        [archive] = folder.glob(f"dist/{pattern}")
        if archive.suffix == ".whl":
            names = zipfile.ZipFile(archive).namelist()
        else:
            with tarfile.open(archive) as opened:
                names = opened.getnames()
                opened.extractall(filter="data")
            os.chdir(archive.name.removesuffix(".tar.gz"))
        shutil.rmtree("src")
        wanted = ("plugins/txasynchat_plugin.py", "plugins/txasynchat_endpoints.py", "/py.typed")
        assert all(any(name.endswith(end) for name in names) for end in wanted), names
        assert not any(re.search("twisted/.*__init__", name) for name in names), names
        # In an environment of its own: the session's has tools in it.
        session.run("python", "-m", "venv", "venv")
        session.run("venv/bin/pip", "install", "twisted[tls]", external=True)
        # A cache that does not know our plugins yet, as on a machine that used twistd before.
        assert "asynchat" not in _twistd_help(session)
        [cache] = Path("venv").resolve().glob("lib/*/site-packages/twisted/plugins/dropin.cache")
        session.run("venv/bin/pip", "install", f"{archive}[test]", external=True)
        _finds_plugin(session)
        cache.unlink()
        cache.mkdir()  # nobody can write it, root neither
        _finds_plugin(session)
        cache.rmdir()
        cache.write_text("garbage")
        _finds_plugin(session)
        for arguments in runs:
            session.run("venv/bin/pytest", *arguments, external=True)


def _finds_plugin(session: nox.Session) -> None:
    assert re.search(r"^ *asynchat +Serve ", _twistd_help(session), re.MULTILINE)
    assert "--listen" in _twistd_help(session, "asynchat")


def _twistd_help(session: nox.Session, *arguments: str) -> str:
    twistd = Path("venv/bin/twistd").absolute()
    with session.chdir("/"):
        return str(session.run(str(twistd), *arguments, "--help", external=True, silent=True))


@nox.session(python=CPYTHONS)
def conformance_cpython(session: nox.Session) -> None:
    """CPython's own tests, on the facade."""
    _conformance(session, "cpython_suites.py")


@nox.session(python=NEWEST)
def conformance_programs(session: nox.Session) -> None:
    """Programs from the package index, on the facade."""
    _conformance(session, "real_programs.py", "--quick")


@nox.session(python=NEWEST)
def conformance_random(session: nox.Session) -> None:
    """Random programs, on the facade and on the standard library."""
    _conformance(session, "differential.py")


@nox.session(python=NEWEST)
def conformance_soak(session: nox.Session) -> None:
    """A minute of random connections."""
    _conformance(session, "soak.py", "--seconds", "60", "--grace", "90")


def _conformance(session: nox.Session, script: str, *arguments: str) -> None:
    install_for_tests(session)
    # 3: nothing that it needs is on this machine, and it has said what.
    session.run(
        "python", f"tests/conformance/{script}", *(session.posargs or arguments),
        success_codes=[0, 3],
    )  # fmt: skip


# -- all of them


class Result(NamedTuple):
    """How a session ended."""

    session: str
    passed: bool
    seconds: float
    output: list[str]

    @property
    def closing_line(self) -> str:
        """The line in which pytest closes, or else the last one that is not nox's."""
        lines = [line for line in self.output if line and not line.startswith("nox >")]
        closing = [line for line in lines if re.match(r"=+ .*(passed|failed|error)", line)]
        return ([*lines[-1:], *closing] or [""])[-1].strip("= ")

    def __str__(self) -> str:
        word = "passed" if self.passed else "failed"
        return f"{word}  {self.seconds:4.0f} s  {self.session}  {self.closing_line}"


def _run(session: str, folder: str, running: list[subprocess.Popen[bytes]]) -> Result:
    """Run a session in a process group of its own, with its temporary files in *folder*."""
    began = time.monotonic()
    log = Path(folder, f"{session}.log")
    command = [sys.executable, "-m", "nox", "-f", __file__, "--envdir", f"{folder}/venvs"]
    with log.open("w") as output, subprocess.Popen(
        [*command, "-s", session], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        env=os.environ | {"TMPDIR": folder}, start_new_session=True,
    ) as child:  # fmt: skip
        running.append(child)
        try:
            passed = child.wait(SESSION_SECONDS) == 0
        except subprocess.TimeoutExpired:
            output.write(f"\nnot done in {SESSION_SECONDS} s\n")
            passed = False
        _end(child)
    output_lines = log.read_text(errors="replace").splitlines()
    result = Result(session, passed, time.monotonic() - began, output_lines)
    print(result, flush=True)
    return result


def _end(child: subprocess.Popen[bytes]) -> None:
    """End all that a session has started and left."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


@nox.session(venv_backend="none")
def everything(session: nox.Session) -> None:
    """All other sessions, a few at a time; the whole output of those that failed, and a table."""
    in_order = (  # long ones first, and those that mostly wait beside those that compute
        "tests_oldest",
        "conformance_soak",
        *(f"tests-{name}" for name in (*(STANDARD[1:] or STANDARD), *OTHERS)),
        "archives_sdist",
        *(f"conformance_cpython-{name}" for name in CPYTHONS),
        "conformance_programs", "archives_wheel", "conformance_random", "docs", "checks", "serve",
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
        Path(folder).chmod(0o1777)  # as /tmp is: some tests are nobody for a while
        try:
            results = list(lanes.map(lambda name: _run(name, folder, running), wanted))
        except BaseException:  # an interrupt, mostly
            lanes.shutdown(wait=False, cancel_futures=True)
            for child in running:
                _end(child)
            raise
    failed = [result.session for result in results if not result.passed]
    for result in results:
        if not result.passed:
            print(f"\n---- {result.session} ----", *result.output, sep="\n")
    lines = [line for result in results for line in result.output]
    if skipped := Counter(line for line in lines if line.startswith(("SKIPPED", "skipped"))):
        print("\nWhat was skipped:")
        print(*(f"{count} x {line}" for line, count in sorted(skipped.items())), sep="\n")
    print("\nSessions:", *results, f"in {time.monotonic() - began:.0f} s", sep="\n")
    closing = " ".join(result.closing_line for result in results)
    for word in ("passed", "failed", "skipped"):
        count = sum(int(number) for number in re.findall(rf"(\d+) {word}", closing))
        print(f"tests: {count} {word}")
    print(f"sessions: {len(results) - len(failed)} passed, {len(failed)} failed")
    if failed or not results:
        session.error(f"failed: {', '.join(failed) or 'no session has such a name'}")
