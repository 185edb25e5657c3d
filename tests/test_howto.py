"""
The programs in the how-tos, run as a reader would run a copy of them.
"""

import re
import shlex
import socket
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("page", ["answer"])
def test_the_server_of_a_page_answers_as_the_page_says(root, start, tmp_path, page):
    text = (root / f"docs/howto/{page}.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (_, module), (_, serving), (_, talking) = blocks[:3]
    (tmp_path / re.match(r"# (\w+\.py)\n", module)[1]).write_text(module)

    program, *arguments = shlex.split(serving.removeprefix("$ ").replace(":8007:", ":0:"))
    twistd = str(Path(sys.executable).with_name(program))
    port = start([twistd, *arguments], r"on 127\.0\.0\.1:(\d+)")[1]

    command, answers = talking.split("\n", 1)
    question = re.search(r"printf '(.*)' \| nc -N ", command)[1]
    with socket.create_connection(("127.0.0.1", int(port)), timeout=20) as peer:
        peer.sendall(question.replace("\\n", "\n").encode())
        peer.shutdown(socket.SHUT_WR)
        answered = b"".join(iter(lambda: peer.recv(65_536), b""))
    assert answered.decode() == answers
