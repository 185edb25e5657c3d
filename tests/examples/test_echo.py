"""``examples/echo.py``, ``echo_legacy.py`` and ``echo.tac``."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.peers import connect, converse, curl, read_all


def test_each_line_comes_back_with_its_own_end(example):
    """However the lines are split, and whatever follows the last of them."""
    program = example("echo")
    with connect(program.port) as peer, peer.makefile("rb") as answers:
        peer.sendall(b"one\ntw")
        assert answers.readline() == b"ECHO: one\n"
        peer.sendall(b"o\r\n\n")
        assert answers.readline() == b"ECHO: two\r\n"
        assert answers.readline() == b"ECHO: \n"
    assert program.stop() == ""


def test_lines_are_reported_if_asked_for(example):
    """`on_line` gets each line without its end."""
    program = example("echo", "--verbose")
    assert converse(program.port, b"one\ntwo\r\n").startswith(b"ECHO: one\n")
    assert program.stop().splitlines() == ["received b'one'", "received b'two'"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_in_order(example, number):
    """Clients that are connected have their answers, then the end, and new ones are refused."""
    program = example("echo", afresh=number == signal.SIGINT)
    with connect(program.port) as peer:
        peer.sendall(b"one\n")
        assert peer.recv(100) == b"ECHO: one\n"
        program.stop(number)
        assert read_all(peer) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(program.port)
    assert "Traceback" not in program.logged()


def test_curl_gets_its_lines_back(example):
    program = example("echo")
    with curl(program.port, b"hello\nworld\n") as output:
        assert [output.readline(), output.readline()] == [b"ECHO: hello\n", b"ECHO: world\n"]
        program.stop()
        assert output.read() == b""


def test_native_half_listens_wherever_it_is_told(start_half, tmp_path):
    """``--listen`` takes any endpoint."""
    program = start_half("native", "echo", "--listen", "unix:echo.sock")
    assert program.place == "echo.sock"
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(str(tmp_path / "echo.sock"))
        peer.sendall(b"one\r\n")
        assert peer.recv(100) == b"ECHO: one\r\n"
    program.stop()
    assert not (tmp_path / "echo.sock").exists()


# -- the application file


def twistd():
    return str(Path(sys.executable).with_name("twistd"))


def test_application_file_serves_echo(root, start, tmp_path):
    source = (root / "examples/echo.tac").read_text()
    assert '"tcp:8007:' in source
    (tmp_path / "echo.tac").write_text(source.replace('"tcp:8007:', '"tcp:0:'))
    port = start([twistd(), "-ny", "echo.tac"], r"txasynchat: Echo on 127\.0\.0\.1:(\d+)")[1]
    assert converse(int(port), b"hello\r\n") == b"ECHO: hello\r\n"


@pytest.mark.parametrize("name", ["echo.py", "echo.tac"])
def test_port_in_use_is_reported_in_one_line(root, tmp_path, name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        source = (root / "examples" / name).read_text()
        (tmp_path / name).write_text(source.replace(":8007:", f":{port}:"))
        done = subprocess.run(
            [twistd(), "-ny", name]
            if name == "echo.tac"
            else [sys.executable, name, "--port", port],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"txasynchat: cannot listen on 'tcp:{port}:interface=127.0.0.1': Address already in use\n"
    )
