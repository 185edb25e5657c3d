"""
``python -m txasynchat run`` beside plain ``python``, in processes of their own.
"""

import os
import re
import subprocess
import sys
import zipfile

import pytest

PROGRAM = """\
import sys

print(__name__, __file__, __package__, type(__loader__).__name__, sys.argv, sys.path[0])
print(sorted(globals()), sys.modules["__main__"].__dict__ is globals())


def end(how):
    if how == "raise":
        raise ValueError("by the program")
    if how == "chain":
        try:
            end("raise")
        except ValueError as error:
            raise KeyError("and again") from error
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "hook":
        sys.excepthook = lambda kind, error, trace: print(
            kind.__name__, error, trace.tb_frame.f_code.co_name, trace.tb_lineno, sys.excepthook
            is not sys.__excepthook__
        )
        raise ValueError("for the hook")
    if how == "status":
        sys.exit(7)
    if how == "text":
        sys.exit("last words")
    assert sys.excepthook is sys.__excepthook__


end(sys.argv[1])
"""


def run(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, re.sub(r"0x[0-9a-f]+", "0x", done.stdout), done.stderr


ENDS = ["plain", "raise", "chain", "interrupt", "hook", "status", "text"]


@pytest.mark.parametrize("how", ENDS)
def test_a_program_ends_as_without_it(tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    plain = run("program.py", how, "more", cwd=tmp_path)
    assert run("-m", "txasynchat", "run", "program.py", how, "more", cwd=tmp_path) == plain
    assert plain[1]


@pytest.mark.parametrize("how", ["plain", "raise"])
def test_a_module_ends_as_without_it(tmp_path, how):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PROGRAM)
    (package / "module.py").write_text(PROGRAM)
    for name in {"plain": ["package"], "raise": ["package.module"]}[how]:
        plain = run("-m", name, how, cwd=tmp_path)
        assert run("-m", "txasynchat", "run", "-m", name, how, cwd=tmp_path) == plain
        assert plain[1]


def test_a_program_elsewhere_a_folder_and_a_zip_file(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "__main__.py").write_text(PROGRAM)
    (folder / "program.py").write_text(PROGRAM)
    (tmp_path / "link.py").symlink_to(folder / "program.py")
    with zipfile.ZipFile(tmp_path / "zipped", "w") as zipped:
        zipped.write(folder / "__main__.py", "__main__.py")
    for path in ("link.py", "folder", "zipped"):
        plain = run(path, "raise", cwd=tmp_path)
        assert run("-m", "txasynchat", "run", path, "raise", cwd=tmp_path) == plain
        assert plain[0] == 1


@pytest.mark.parametrize("path", ["absent.py", "broken.py", "latin.py"])
def test_a_program_that_cannot_be_run(tmp_path, path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nprint('\xe9')\n")
    plain = run(path, cwd=tmp_path, PYTHONIOENCODING="utf-8")
    ours = run("-m", "txasynchat", "run", path, cwd=tmp_path, PYTHONIOENCODING="utf-8")
    if sys.implementation.name == "pypy" and path == "absent.py":  # its message has no quotes
        ours = (*ours[:2], ours[2].replace(f"'{tmp_path}/{path}'", f"{tmp_path}/{path}"))
    assert ours == plain


def test_a_module_that_is_not_there(tmp_path):
    plain = run("-m", "no.such", cwd=tmp_path)
    assert run("-m", "txasynchat", "run", "-m", "no.such", cwd=tmp_path) == plain


def test_the_two_names_are_in_place_and_the_program_works(tmp_path):
    (tmp_path / "server.py").write_text("""
import asynchat, asyncore, socket, threading

class Echo(asynchat.async_chat):
    def __init__(self, sock):
        asynchat.async_chat.__init__(self, sock)
        self.set_terminator(b"\\n")
    collect_incoming_data = asynchat.async_chat._collect_incoming_data
    def found_terminator(self):
        self.push(self._get_data() + b"\\n")
        self.close_when_done()

class Server(asyncore.dispatcher):
    def __init__(self):
        asyncore.dispatcher.__init__(self)
        self.create_socket()
        self.bind(("127.0.0.1", 0))
        self.listen(1)
    def handle_accepted(self, sock, address):
        Echo(sock)
        self.close()

def client(address):
    with socket.create_connection(address, timeout=10) as sock:
        sock.send(b"hello\\n")
        print(sock.recv(100), flush=True)

server = Server()
thread = threading.Thread(target=client, args=(server.socket.getsockname(),))
thread.start()
asyncore.loop()
thread.join()
print(asyncore.__file__)
""")
    status, out, error = run("-m", "txasynchat", "run", "server.py", cwd=tmp_path)
    assert (status, error) == (0, "")
    answer, file = out.splitlines()
    assert answer == "b'hello\\n'"
    assert "txasynchat" in file


@pytest.mark.parametrize("arguments", [["run", "-m"], ["walk", "program.py"]])
def test_wrong_use_is_explained(tmp_path, arguments):
    status, out, error = run("-m", "txasynchat", *arguments, cwd=tmp_path)
    assert (status, out) == (2, "")
    assert error.startswith("usage: python -m txasynchat run PROGRAM")


def test_help(tmp_path):
    status, out, error = run("-m", "txasynchat", "--help", cwd=tmp_path)
    assert (status, error) == (0, "")
    assert out.startswith("usage: python -m txasynchat run PROGRAM")
