"""Servers on one core, load on another, and what the kernel says about the servers."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from report import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform != "linux":
    raise SystemExit(
        "pinning processes and reading their clocks is written for Linux: --only framing"
    )

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds for a program to print its next line


@dataclass(frozen=True)
class Result:
    """What the load saw, and the CPU time the server took for it."""

    messages: int
    seconds: float
    cpu: float  # seconds
    p50: float  # microseconds, as are the next two
    p99: float
    longest: float

    @property
    def cpu_per_message(self) -> float:
        """In microseconds."""
        return self.cpu / self.messages * 1e6


def cores() -> tuple[int, int]:
    """The core for servers and the one for load; the same when there is but one."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


class Program:
    """A child process on one core that speaks in lines; it ends with its standard input.

    Whatever it writes to standard error is a failure: a server that logs tracebacks is not doing
    the work that is measured, or more than that.
    """

    def __init__(self, command: list[str], core: int, *, patient: bool = False) -> None:
        def prepare() -> None:
            os.sched_setaffinity(0, {core})
            os.nice(19 if patient else 0)

        self.command = command
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            preexec_fn=prepare,  # noqa: PLW1509  # no threads here
        )

    def line(self) -> list[str]:
        """The next line that it prints, in words."""
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        text = self.process.stdout.readline().decode() if ready else ""
        if not text:
            state = "is silent" if self.process.poll() is None else "ended"
            raise BenchmarkError(f"{' '.join(self.command)} {state}: {self.complaint()}")
        return text.split()

    def complaint(self) -> str:
        """The last line of standard error, and how many there are; empty when there is nothing."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        said = [line for line in lines if line.strip()]
        return f"{len(said)} lines of errors, the last: {said[-1].strip()}" if said else ""

    def go(self) -> None:
        self.process.stdin.write(b"go\n")

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


class Server(Program):
    """One competitor in one role."""

    def __init__(self, script: str, *arguments: str) -> None:
        path = HERE / "servers" / script
        super().__init__([sys.executable, str(path), *arguments], cores()[0])
        self.ports = [int(word) for word in self.line()]

    def cpu(self) -> float:
        """CPU seconds so far, all threads, to the nanosecond: the clock of clock_getcpuclockid."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def resident(self, what: str = "VmRSS") -> int:
        """Bytes of resident memory now, or with "VmHWM" at most since `forget_peak`."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) * 1024
        raise BenchmarkError(f"{self.command}: no {what}")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@cache
def scratch() -> tempfile.TemporaryDirectory:
    """A folder that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="txasynchat-benchmarks-")


@cache
def load_program(*, tls: bool) -> list[str]:
    """The C program when it can be built, else the same in Python."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    kind = "TLS" if tls else "plain TCP"
    if compiler:
        binary = Path(scratch().name) / ("load-tls" if tls else "load")
        build = [compiler, "-O2", "-o", str(binary), str(HERE / "load.c")]
        build += ["-DTLS", "-lssl", "-lcrypto"] if tls else []
        built = subprocess.run(build, check=False, capture_output=True)
        if built.returncode == 0:
            print(f"load over {kind}: load.c, built with {compiler}")
            return [str(binary)]
    wanted = "a C compiler with OpenSSL's headers" if tls else "a C compiler"
    print(f"load over {kind}: load.py, for want of {wanted}; slower, so the figures are rougher")
    return python_load()


def python_load() -> list[str]:
    return [sys.executable, str(HERE / "load.py")]


def start_load(port: int, authority: str | None, mode: str, *numbers: float) -> Program:
    """Start the load and wait until it is connected and warm."""
    program = python_load() if mode == "handshakes" else load_program(tls=authority is not None)
    secured = ["--tls", authority] if authority else []
    command = [*program, *secured, mode, str(port), *map(str, numbers)]
    # Clients that talk meanwhile share the core, and their wait is what is measured.
    load = Program(command, cores()[1], patient=mode == "handshakes")
    if load.line() != ["ready"]:
        raise BenchmarkError(f"{load.command}: did not get ready")
    return load


def run_load(server: Server, authority: str | None, mode: str, *numbers: float) -> Result:
    """One measurement: CPU time of the server while the load runs."""
    load = start_load(server.ports[0], authority, mode, *numbers)
    try:
        before = server.cpu()
        load.go()
        messages, *rest = load.line()
        after = server.cpu()
    finally:
        load.stop()
    if server.complaint():
        raise BenchmarkError(server.complaint())
    seconds, p50, p99, longest = map(float, rest)
    return Result(int(messages), seconds, after - before, p50, p99, longest)


@contextlib.contextmanager
def idle_connections(server: Server, authority: str | None, count: int) -> Iterator[None]:
    """Connections that have had one answer each and say nothing any more."""
    if not count:
        yield
        return
    load = start_load(server.ports[0], authority, "idle", count)
    try:
        yield
    finally:
        load.stop()


def memory_per_connection(server: Server, authority: str | None, count: int) -> float:
    """Growth of resident memory by `count` idle connections, for one of them, in KiB."""
    with idle_connections(server, authority, count // 20):
        pass  # one-time allocations are done now
    before = server.resident()
    with idle_connections(server, authority, count):
        return (server.resident() - before) / count / 1024


def peak_growth(server: Server, authority: str | None, size: int, pace: float) -> float:
    """How far resident memory rises during one transfer to a slow reader, in MiB."""
    before = server.resident()
    server.forget_peak()
    run_load(server, authority, "source", size, pace)
    return (server.resident("VmHWM") - before) / 2**20


@cache
def certificate() -> tuple[str, str]:
    """A certificate for localhost of this run: its PEM file for servers, and its authority."""
    import trustme

    folder = Path(scratch().name)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf = authority.issue_cert("localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return str(folder / "server.pem"), str(folder / "ca.pem")
