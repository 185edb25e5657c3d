"""
What the README shows works: its server, its client session, its links.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# For machines without netcat: send standard input, print the answers until the peer closes.
NETCAT = """\
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as peer:
    peer.sendall(sys.stdin.buffer.read())
    while data := peer.recv(65536):
        sys.stdout.buffer.write(data)
"""


@pytest.fixture
def readme(root):
    return (root / "README.md").read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_readme_server_answers_the_readme_client(readme, start, tmp_path):
    [module] = blocks(readme, "python")
    file_name = re.match(r"# (\w+\.py)\n", module)[1]
    (tmp_path / file_name).write_text(module)

    serving, talking = blocks(readme, "console")
    program, *arguments = shlex.split(serving.removeprefix("$ ").replace(":8007:", ":0:"))
    twistd = str(Path(sys.executable).with_name(program))
    port = start([twistd, *arguments], r"on 127\.0\.0\.1:(\d+)")[1]

    typed, printed = talking.removeprefix("$ ").split("\n", 1)
    if shutil.which("nc") is None:
        (tmp_path / "nc").write_text(f"#!{sys.executable}\n{NETCAT}")
        (tmp_path / "nc").chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", typed.replace("8007", port)],
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
        env=os.environ | {"PATH": f"{os.environ['PATH']}:{tmp_path}"},
    )
    assert done.stdout == printed
    assert printed


def test_readme_links_resolve(readme, root):
    links = re.findall(r"\]\(([^)#:]+)\)", readme)
    assert len(links) > 3
    assert [link for link in links if not (root / link).exists()] == []
