"""``examples/client.py``."""

import socket
import subprocess
import sys
import threading
from pathlib import Path


def test_client_stays_connected(root, start):
    """It says why it is not, and goes on with the server that comes back; nothing typed is lost."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        number = unused.getsockname()[1]
    command = [sys.executable, str(root / "examples/client.py"), f"tcp:127.0.0.1:{number}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        try:
            limit = threading.Timer(30, client.kill)
            limit.start()
            while "ConnectionRefusedError" not in (line := client.stderr.readline()):
                assert line
            client.stdin.write("early\n")
            client.stdin.flush()
            endpoint = f"tcp:{number}:interface=127.0.0.1"
            twistd = str(Path(sys.executable).with_name("twistd"))
            start([twistd, "-n", "asynchat", "--listen", endpoint], r"echo on")
            assert client.stdout.readline() == "connected\n"
            assert client.stdout.readline() == "early\n"
            client.stdin.write("hello\n")
            client.stdin.flush()
            assert client.stdout.readline() == "hello\n"
            client.terminate()
            assert client.wait(10) == 0
        finally:
            limit.cancel()
            client.kill()
