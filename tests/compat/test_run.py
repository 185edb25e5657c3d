"""
``python -m txasynchat run`` beside plain ``python``, in processes of their own.

Also covers `__main__`.
"""

import importlib.util
import os
import py_compile
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


def run(*arguments, cwd, given=None, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=cwd,
        input=given,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, re.sub(r"0x[0-9a-f]+", "0x", done.stdout), done.stderr


ENDS = ["plain", "raise", "chain", "interrupt", "hook", "status", "text"]


@pytest.mark.parametrize("how", ENDS)
def test_program_ends_as_under_plain_python(tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    plain = run("program.py", how, "more", cwd=tmp_path)
    assert run("-m", "txasynchat", "run", "program.py", how, "more", cwd=tmp_path) == plain
    assert plain[1]


@pytest.mark.parametrize("how", ["plain", "raise"])
def test_module_ends_as_under_plain_python(tmp_path, how):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PROGRAM)
    (package / "module.py").write_text(PROGRAM)
    for name in {"plain": ["package"], "raise": ["package.module"]}[how]:
        plain = run("-m", name, how, cwd=tmp_path)
        assert run("-m", "txasynchat", "run", "-m", name, how, cwd=tmp_path) == plain
        assert plain[1]


def test_program_may_be_elsewhere_a_folder_or_a_zip_file(tmp_path):
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
def test_program_that_cannot_be_run_fails_as_under_plain_python(tmp_path, path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nprint('\xe9')\n")
    plain = run(path, cwd=tmp_path, PYTHONIOENCODING="utf-8")
    ours = run("-m", "txasynchat", "run", path, cwd=tmp_path, PYTHONIOENCODING="utf-8")
    if sys.implementation.name == "pypy" and path == "absent.py":  # its message has no quotes
        ours = (*ours[:2], ours[2].replace(f"'{tmp_path}/{path}'", f"{tmp_path}/{path}"))
    assert ours == plain


@pytest.mark.parametrize("how", ENDS)
def test_command_and_standard_input_end_as_under_plain_python(tmp_path, how):
    """``-c`` and ``-``, with what follows them."""
    for what, given in (["-c", PROGRAM], None), (["-"], PROGRAM):
        plain = run(*what, how, "more", cwd=tmp_path, given=given)
        ours = run("-m", "txasynchat", "run", *what, how, "more", cwd=tmp_path, given=given)
        if what == ["-c"]:
            assert "__file__" not in plain[1]
        # The only line of either that the program prints.
        assert ours == plain


@pytest.mark.parametrize("how", ["plain", "raise"])
def test_compiled_program_ends_as_under_plain_python(tmp_path, how):
    """Whatever the name of its file."""
    (tmp_path / "program.py").write_text(PROGRAM)
    compiled = py_compile.compile(tmp_path / "program.py", tmp_path / "compiled.pyc")
    (tmp_path / "compiled").write_bytes((tmp_path / compiled).read_bytes())
    for name in ("compiled.pyc", "compiled"):
        plain = run(name, how, "more", cwd=tmp_path)
        assert run("-m", "txasynchat", "run", name, how, "more", cwd=tmp_path) == plain
        assert "SourcelessFileLoader" in plain[1]


def test_compiled_program_of_another_python_is_refused_as_by_python(tmp_path):
    """A ``.pyc`` file with another magic number, and one that holds no code."""
    (tmp_path / "other.pyc").write_bytes(b"\xa7\r\r\n" + bytes(12) + b"N")
    (tmp_path / "empty.pyc").write_bytes(importlib.util.MAGIC_NUMBER + bytes(12) + b"N")
    for name in ("other.pyc", "empty.pyc"):
        plain = run(name, cwd=tmp_path)
        assert run("-m", "txasynchat", "run", name, cwd=tmp_path) == plain
        assert plain[2].startswith("RuntimeError: Bad ")


OPTIONS = """
import sys
print(sys.warnoptions, sys._xoptions, sys.flags, sys.stdout.write_through, sys.argv)
import warnings
warnings.warn("hear", stacklevel=1)
"""


@pytest.mark.parametrize(
    "options",
    [
        ["-W", "error"],
        ["-Werror"],
        ["-W", "error", "-W", "ignore"],
        ["-X", "dev"],
        ["-X", "utf8=0", "-Xfaulthandler"],
        ["-u"],
        ["-uOOB"],
        ["-bbq", "-W", "once"],
        ["--check-hash-based-pycs", "never"],
        ["-P"],
        ["-uWerror"],
        ["-u", "--"],
    ],
)
@pytest.mark.slow
def test_options_of_python_mean_the_same(tmp_path, options):
    """Before a file, a module, a command."""
    (tmp_path / "program.py").write_text(OPTIONS)
    environment = {"PYTHONPATH": str(tmp_path)}
    for what in ["program.py"], ["-m", "program"], ["-c", OPTIONS]:
        if options[-1] == "--" and what != ["program.py"]:
            continue
        plain = run(*options, *what, "-W", "more", cwd=tmp_path, **environment)
        ours = run(
            "-m", "txasynchat", "run", *options, *what, "-W", "more", cwd=tmp_path, **environment
        )
        assert ours == plain
        assert plain[1]


def test_options_may_be_joined_to_c_and_m(tmp_path):
    """``-uc``, ``-um``, as people type them."""
    (tmp_path / "program.py").write_text("import sys; print(sys.argv, sys.stdout.write_through)")
    for what in ["-ucprint(1)", "more"], ["-umprogram", "more"], ["-um", "program", "more"]:
        plain = run(*what, cwd=tmp_path)
        assert run("-m", "txasynchat", "run", *what, cwd=tmp_path) == plain
        assert plain[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-W"], "txasynchat run: -W wants a value\n"),
        (["-uX"], "txasynchat run: -X wants a value\n"),
        (["--check-hash-based-pycs"], "txasynchat run: --check-hash-based-pycs wants a value\n"),
        (["--unknown", "x"], "txasynchat run: Python has no option --unknown\n"),
        (["-Q", "x"], "txasynchat run: a program cannot be run with an option -Q\n"),
        (["-x", "x"], "txasynchat run: a program cannot be run with an option -x\n"),
    ],
)
def test_option_that_cannot_be_followed_is_refused_in_one_line(tmp_path, arguments, told):
    """The program is not run."""
    assert run("-m", "txasynchat", "run", *arguments, cwd=tmp_path) == (2, "", told)


def test_version_is_that_of_python(tmp_path):
    """As ``python -V`` prints it."""
    assert run("-m", "txasynchat", "run", "-V", cwd=tmp_path) == run("-V", cwd=tmp_path)


def test_program_is_not_read_from_a_terminal(tmp_path):
    """An interactive session is not supported; the line says what to do."""
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "txasynchat", "run", "-"],
            stdin=theirs, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert done.stderr.startswith("txasynchat run -: standard input is not a file or pipe")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "smtpd",
            (
                "smtpd was removed in Python 3.12; pip install standard-smtpd brings it back, and runs "
                "on txasynchat if txasynchat.install() comes before its import"
            ),
        ),
        ("imp", "imp was removed in Python 3.12; pip install zombie-imp brings it back"),
        (
            "pkg_resources",
            "pkg_resources was removed in setuptools 82; pip install 'setuptools<82' brings it back",
        ),
    ],
)
def test_removed_module_is_reported_with_the_package_that_has_it(tmp_path, name, told):
    """The traceback at which an old program stops ends with what to do."""
    # As on a Python that lacks it, whether this one does or not.
    program = f"raise ModuleNotFoundError({name!r}, name={name!r})"
    status, _, error = run("-m", "txasynchat", "run", "-c", program, cwd=tmp_path)
    assert status == 1
    assert error.splitlines()[-1] == told


@pytest.mark.skipif(sys.version_info < (3, 12), reason="smtpd is there")
@pytest.mark.skipif(
    importlib.util.find_spec("smtpd") is not None, reason="a package that brings it back is there"
)
def test_program_that_imports_smtpd_learns_which_package_to_install(tmp_path):
    """With the real module."""
    status, _, error = run("-m", "txasynchat", "run", "-c", "import smtpd", cwd=tmp_path)
    assert status == 1
    assert "No module named 'smtpd'\nsmtpd was removed in Python 3.12; " in error


def test_missing_module_fails_as_under_plain_python(tmp_path):
    plain = run("-m", "no.such", cwd=tmp_path)
    assert run("-m", "txasynchat", "run", "-m", "no.such", cwd=tmp_path) == plain


def test_program_imports_both_modules_and_works(tmp_path):
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
def test_wrong_usage_is_explained(tmp_path, arguments):
    status, out, error = run("-m", "txasynchat", *arguments, cwd=tmp_path)
    assert (status, out) == (2, "")
    assert error.startswith("usage: python -m txasynchat run PROGRAM")


def test_help_is_printed(tmp_path):
    status, out, error = run("-m", "txasynchat", "--help", cwd=tmp_path)
    assert (status, error) == (0, "")
    assert out.startswith("usage: python -m txasynchat run PROGRAM")
