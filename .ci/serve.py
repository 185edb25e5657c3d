"""
Serve by a shell command of ``twistd``, talk to the server, and interrupt it: it must end in order.

    python .ci/serve.py COMMAND

Runs in the current folder. Where another program has the port, the command gets a free one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HOST, PORT = "127.0.0.1", 8007
LINES = b"hello\r\nsecond line\r\n"
PID = Path("twistd.pid")


def talk(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server listens, and have lines echoed."""
    deadline = time.monotonic() + 180  # the command may install the package first
    while server.poll() is None and time.monotonic() < deadline:
        with (
            suppress(ConnectionRefusedError),
            socket.create_connection((HOST, port), timeout=10) as client,
            client.makefile("rb") as answers,
        ):
            client.sendall(LINES)
            answered = answers.read(len(LINES))
            assert answered == LINES, answered
            return
        time.sleep(0.2)
    raise TimeoutError("nothing listens")


def main(command: str) -> None:
    """Run the command, and print what it said."""
    port = PORT
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            with socket.create_server((HOST, 0)) as free:
                port = free.getsockname()[1]
            command += f" --listen tcp:{port}:interface={HOST}"
    with Path("served").open("w") as output:
        server = subprocess.Popen(["bash", "-c", command], stdout=output, stderr=output)
    try:
        talk(port, server)
        os.kill(int(PID.read_text()), signal.SIGINT)
        server.wait(60)
    finally:
        with suppress(FileNotFoundError):
            os.kill(int(PID.read_text()), signal.SIGKILL)
        server.kill()
        print(said := Path("served").read_text())
    if "Server Shut Down" not in said or PID.exists():
        sys.exit("twistd did not end in order")


if __name__ == "__main__":
    main(sys.argv[1])
