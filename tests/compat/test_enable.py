"""
``python -m txasynchat enable`` and ``disable``, in virtual environments of their own.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import typing_extensions

import txasynchat

OURS = Path(txasynchat.__file__).parent
WHERE = "import asyncore, asynchat; print(asyncore.__file__); print(asynchat.__file__)"
FACADE = [str(OURS / "compat/asyncore.py"), str(OURS / "compat/asynchat.py")]
# Where the modules are without us.
STDLIB = [f"{sysconfig.get_path('stdlib')}/{name}.py" for name in ("asyncore", "asynchat")]
SECONDS = 60
# No variable of the caller leads to other modules.
_CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

# The ways in which programs start others, or restart; each prints where the modules are.
STARTS = {
    "itself": WHERE,
    "subprocess": f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WHERE!r}])",
    "execv": f"""
import os, sys
if len(sys.argv) == 1:
    os.execv(sys.executable, [sys.executable, *sys.argv, "again"])
{WHERE}
""",
    "spawn": f"""
import multiprocessing

def child():
    {WHERE}

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
""",
    "forkserver": f"""
import multiprocessing

def child():
    {WHERE}

if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=child)
    process.start()
    process.join()
""",
    "by package": "import asynchat; print(asynchat.asyncore.__file__); print(asynchat.__file__)",
}


class Environment:
    """A virtual environment that has txasynchat."""

    def __init__(self, folder):
        venv.create(folder, symlinks=True)
        self.folder = folder
        self.python = str(folder / "bin" / "python")
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.packages = folder / "lib" / version / "site-packages"
        self.file = self.packages / "txasynchat-enable.pth"
        self.paths = self.packages / "paths.pth"
        self.paths.write_text(f"{OURS.parent}\n{Path(typing_extensions.__file__).parent}\n")

    def run(self, *arguments, status=0, program=None, **environment):
        done = subprocess.run(
            [program or self.python, *arguments],
            cwd=self.folder,
            env={**_CLEAN, "PYTHONWARNINGS": "ignore", **environment},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done

    def where(self):
        """Where a program that starts now finds the two modules; nothing if it does not."""
        done = subprocess.run(
            [self.python, "-W", "ignore", "-c", WHERE],
            cwd=self.folder, env=_CLEAN, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            assert "No module named 'asyncore'" in done.stderr
        return done.stdout.split()

    def enable(self, *options):
        return self.run("-m", "txasynchat", "enable", *options).stdout

    def disable(self, *options):
        return self.run("-m", "txasynchat", "disable", *options).stdout


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


def plain():
    return STDLIB if sys.version_info < (3, 12) else []


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.slow
def test_every_program_and_its_child_processes_find_the_modules(environment, start):
    """`run` and `install` serve one process, `enable` all of the environment."""
    environment.enable()
    (environment.folder / "program.py").write_text(STARTS[start])
    assert environment.run("program.py").stdout.split() == FACADE


def test_console_script_finds_the_modules(environment):
    """As an installer writes it: a file that the environment's Python runs."""
    environment.enable()
    script = environment.folder / "bin" / "legacy"
    script.write_text(f"#!{environment.python}\n{WHERE}\n")
    script.chmod(0o755)
    assert environment.run(program=str(script)).stdout.split() == FACADE


def test_disable_undoes_enable(environment):
    """Everything is as before, and saying either twice changes nothing."""
    assert environment.where() == plain()
    said = environment.enable()
    assert said.startswith(f"txasynchat: enabled for {environment.python}, by {environment.file}\n")
    assert "disable" in said
    text = environment.file.read_text()
    assert text.count("\n") == 1
    assert "already enabled" in environment.enable()
    assert environment.file.read_text() == text
    assert environment.where() == FACADE
    assert f"removed {environment.file}" in environment.disable()
    assert environment.where() == plain()
    assert "was not enabled" in environment.disable()
    assert not environment.file.exists()


def test_line_of_an_older_release_is_replaced(environment):
    """After an upgrade, enabling again is enough."""
    environment.file.write_text("import sys\n")
    assert "enabled for" in environment.enable()
    assert environment.where() == FACADE


def test_other_modules_of_these_names_are_overridden_and_named(environment):
    """An installed backport does not win in a child process, and returns after `disable`."""
    theirs = []
    for name in ("asyncore", "asynchat"):
        (environment.packages / name).mkdir()
        path = environment.packages / name / "__init__.py"
        path.write_text("import asyncore\n" if name == "asynchat" else "")
        theirs.append(str(path))
    before = STDLIB if sys.version_info < (3, 12) else theirs
    assert environment.where() == before
    assert f"used instead of {', '.join(before)}\n" in environment.enable()
    assert environment.where() == FACADE
    (environment.folder / "program.py").write_text(STARTS["spawn"])
    assert environment.run("program.py").stdout.split() == FACADE
    environment.disable()
    assert environment.where() == before


def test_startup_imports_nothing_of_ours(environment):
    """Programs that want neither module do not notice."""

    def imported():
        said = environment.run("-X", "importtime", "-c", "pass").stderr
        return [line.rpartition("|")[2].strip() for line in said.splitlines()]

    before = imported()
    environment.enable()
    assert imported() == before
    assert not [name for name in before if "txasynchat" in name]


def test_programs_start_without_error_after_the_package_is_uninstalled(environment):
    """Even if ``disable`` was forgotten."""
    environment.enable()
    environment.paths.unlink()
    assert environment.run("-c", "pass").stderr == ""
    assert environment.where() == plain()
    # An installer leaves this where a module was compiled.
    (environment.packages / "txasynchat" / "__pycache__").mkdir(parents=True)
    assert environment.run("-c", "pass").stderr == ""
    assert environment.where() == plain()


def test_broken_package_is_reported(environment):
    """An installed package that fails to import is not silently replaced by another module."""
    environment.enable()
    broken = environment.packages / "txasynchat"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('broken')\n")
    done = environment.run("-c", "import asyncore", status=1)
    assert "broken" in done.stderr


def test_install_and_uninstall_work_in_an_enabled_environment(environment):
    """``install`` is harmless, and ``uninstall`` leaves what the environment has."""
    environment.enable()
    program = f"""
import asyncore as first, txasynchat
txasynchat.install()
import asyncore as second
txasynchat.uninstall()
import asyncore as third, asynchat
print(first is second is third is asynchat.asyncore)
{WHERE}
"""
    assert environment.run("-c", program).stdout.split() == ["True", *FACADE]


def test_find_spec_finds_the_modules(environment):
    """``importlib.util.find_spec`` names the files, and loads nothing."""
    environment.enable()
    program = """
import importlib.util, sys
print(importlib.util.find_spec("asyncore").origin, importlib.util.find_spec("asynchat").origin)
assert "asyncore" not in sys.modules and "txasynchat.compat.asyncore" not in sys.modules
"""
    assert environment.run("-c", program).stdout.split() == FACADE


def test_unwritable_folder_is_reported_in_one_line(environment):
    """The line names the file, the reason and what to do instead."""
    environment.file.mkdir()
    for command, what in {"enable": "write", "disable": "remove"}.items():
        done = environment.run("-m", "txasynchat", command, status=1)
        assert done.stdout == ""
        assert done.stderr.startswith(
            f"txasynchat: cannot {what} {environment.file}: Is a directory; "
        )
        assert "virtual environment" in done.stderr
        assert done.stderr.count("\n") == 1


def test_enable_for_the_user_is_refused_in_a_virtual_environment(environment):
    """Python does not look there, so the file would do nothing."""
    for command in ("enable", "disable"):
        done = environment.run("-m", "txasynchat", command, "--user", status=1)
        assert done.stderr == (
            f"txasynchat: --user: {environment.python} does not use per-user folders; "
            "leave --user out\n"
        )


def test_user_can_enable_it_alone(environment, tmp_path):
    """Where others use the same Python, and only root may write into it."""
    python = sys._base_executable
    home = {
        "PYTHONUSERBASE": str(tmp_path / "home"),
        "PYTHONPATH": environment.paths.read_text().strip().replace("\n", os.pathsep),
    }

    def run(*arguments):
        return environment.run(*arguments, program=python, **home).stdout

    assert f"by {tmp_path / 'home'}" in run("-m", "txasynchat", "enable", "--user")
    assert run("-c", WHERE).split() == FACADE
    assert "It is still enabled elsewhere; try --user." in run("-m", "txasynchat", "disable")
    assert "removed" in run("-m", "txasynchat", "disable", "--user")
    assert list((tmp_path / "home").rglob("*.pth")) == []


def test_python_that_does_not_read_the_file_is_reported(environment):
    """Nothing is left where it would do nothing."""
    # An installation scheme of this Python whose folder it does not read.
    (environment.folder / "elsewhere").mkdir()
    program = """
import sysconfig
from txasynchat.compat import _enable
sysconfig.get_path = {"purelib": "elsewhere"}.get
try:
    _enable.enable()
except _enable.CannotEnable as problem:
    print(problem)
"""
    assert "does not read elsewhere/txasynchat-enable.pth" in environment.run("-c", program).stdout
    assert list((environment.folder / "elsewhere").iterdir()) == []
