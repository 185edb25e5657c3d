"""
The programs in ``examples/``, run as a reader would run them.
"""

import doctest
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest


def connect(port):
    return socket.create_connection(("127.0.0.1", int(port)), timeout=10)


def test_the_ported_chat_passes_lines_on_to_the_others(root, start):
    example = str(root / "examples/ported_asynchat.py")
    port = start([sys.executable, example, "0"], r"port (\d+)")[1]
    with connect(port) as first, connect(port) as second, second.makefile("rb") as heard:
        # Whoever is answered has been accepted; the second came after the first.
        second.sendall(b"is anybody here?\n")
        with first.makefile("rb") as answers:
            assert answers.readline() == b"is anybody here?\r\n"
        first.sendall(b"yes\nindeed\n")
        assert [heard.readline(), heard.readline()] == [b"yes\r\n", b"indeed\r\n"]


def test_echo_sends_each_line_back(root, start):
    example = str(root / "examples/echo.py")
    port = start([sys.executable, example, "tcp:0:interface=127.0.0.1"], r"on 127\.0\.0\.1:(\d+)")[
        1
    ]
    with connect(port) as peer, peer.makefile("rb") as answers:
        peer.sendall(b"one\ntw")
        assert answers.readline() == b"one\r\n"
        peer.sendall(b"o\r\n")
        assert answers.readline() == b"two\r\n"


@pytest.fixture
def serve(root, start, tmp_path):
    """Serve a handler of an example by ``twistd``, and return the port."""

    def serve_handler(handler):
        shutil.copy(root / "examples" / f"{handler.partition(':')[0]}.py", tmp_path)
        twistd = str(Path(sys.executable).with_name("twistd"))
        options = ["--handler", handler, "--listen", "tcp:0:interface=127.0.0.1"]
        return start([twistd, "-n", "asynchat", *options], r"on 127\.0\.0\.1:(\d+)")[1]

    return serve_handler


def test_the_session_in_the_tutorial_is_true(root, serve):
    tutorial = (root / "docs/tutorial/first-server.md").read_text()
    [session] = re.findall(r"^```pycon\n(.*?)^```$", tutorial, re.MULTILINE | re.DOTALL)
    typed = session.replace("8007", serve("counter:Counter"))
    example = doctest.DocTestParser().get_doctest(typed, {}, "tutorial", None, 0)
    report = []
    result = doctest.DocTestRunner().run(example, out=report.append, clear_globs=False)
    for opened in "lines", "peer":
        example.globs[opened].close()
    assert result.attempted > 3
    assert result.failed == 0, "".join(report)


def test_counter_keeps_one_number_for_everybody(serve):
    port = serve("counter:TalkingCounter")
    with connect(port) as first, first.makefile("rb") as answers:
        first.sendall(b"add 3\nadd x\nnothing\n")
        assert answers.readline() == b"ok\n"
        assert answers.readline() == b"error: add what?\n"
        assert answers.readline() == b"error: add NUMBER, total or quit\n"
        with connect(port) as second:
            second.sendall(b"add 4\ntotal\nquit\n")
            with second.makefile("rb") as others_answers:
                assert others_answers.read() == b"ok\n7\nbye\n"
        assert answers.readline() == b"somebody added 4\n"
