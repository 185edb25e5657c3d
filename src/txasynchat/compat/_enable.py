"""
``python -m txasynchat enable``: the facade for every program of an environment, until ``disable``.

What `install` does for one process, a line in a ``.pth`` file does for each Python that starts in the
environment: new children, programs that restart themselves, console scripts. The line imports nothing
of ours. It puts a finder in front of the others, which answers for two names only, and finds nothing
when this package is gone.
"""

from __future__ import annotations

import importlib.util
import site
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from txasynchat.compat._install import NAMES, install

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["CannotEnable", "disable", "enable", "spec_of"]

_FILE = "txasynchat-enable.pth"

# Python runs a line that begins with "import" when it starts. If this package is uninstalled and the
# file stays, there must be no error at each start, and other modules of these names must be found.
_FINDER = """
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'asyncore' or name == 'asynchat':
            try:
                from txasynchat.compat._enable import spec_of
            except ModuleNotFoundError as error:
                if not (error.name or '').startswith('txasynchat'):
                    raise
            else:
                return spec_of(name)
sys.meta_path.insert(0, Finder)
"""
_LINE = f"import sys; exec({_FINDER!r})\n"


class CannotEnable(Exception):
    """The file cannot be written or removed, or would not be read."""


def enable(*, user: bool = False) -> list[str]:
    """
    Write the file, for this *user* alone or for the environment; harmless when repeated. Return lines
    that say what was done.

    Raises:
        CannotEnable: nothing was done, for the reason that it gives.
    """
    path = _path(user=user)
    done = "enabled"
    with suppress(OSError):
        if path.read_text() == _LINE:
            done = "already enabled"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_LINE)
    except OSError as error:
        raise CannotEnable(_refused("write", path, error, user=user)) from None
    if not _is_read():
        path.unlink()
        raise CannotEnable(f"{sys.executable} does not read {path}; nothing was changed")
    lines = [f"{done} for {sys.executable}, by {path}"]
    if others := [other for name in NAMES if (other := _other(name)) is not None]:
        lines.append(f"used instead of {', '.join(others)}")
    return [
        *lines,
        "Every program of this Python, and each child that it starts, finds asyncore and asynchat.",
        "Each start takes about 0.4 ms longer. `python -m txasynchat disable` undoes it.",
    ]


def disable(*, user: bool = False) -> list[str]:
    """
    Remove the file that `enable` wrote with the same *user*; harmless when repeated. Return lines that
    say what was done.

    Raises:
        CannotEnable: the file cannot be removed.
    """
    path = _path(user=user)
    try:
        path.unlink()
    except FileNotFoundError:
        lines = [f"was not enabled: {path} does not exist"]
    except OSError as error:
        raise CannotEnable(_refused("remove", path, error, user=user)) from None
    else:
        lines = [f"disabled for {sys.executable}: removed {path}"]
    if _is_read():
        lines.append("It is still enabled elsewhere" + ("." if user else "; try --user."))
    return lines


def spec_of(name: str) -> ModuleSpec:
    """Return the spec of *name* for ``import``; called by the line in the file."""
    return ModuleSpec(name, _Installer(), origin=_origin(name))


class _Installer(Loader):
    def exec_module(self, module: ModuleType) -> None:
        sys.modules.pop(module.__name__, None)  # the empty one that ``import`` has made
        install()


def _origin(name: str) -> str | None:
    found = importlib.util.find_spec(f"txasynchat.compat.{name}")
    return None if found is None else found.origin


def _path(*, user: bool) -> Path:
    if not user:
        return Path(sysconfig.get_path("purelib")) / _FILE
    if not site.ENABLE_USER_SITE:
        raise CannotEnable(
            f"--user: {sys.executable} does not use per-user folders; leave --user out"
        )
    return Path(site.getusersitepackages()) / _FILE


def _is_read() -> bool:
    # By a Python that starts now.
    code = "import importlib.util as u; print(u.find_spec('asyncore').origin)"
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - this Python
    return child.stdout.strip() == _origin("asyncore")


def _other(name: str) -> str | None:
    # What would be found without ours. With -m the current folder is on the path; it does not count.
    path = [one for one in sys.path if one not in ("", str(Path.cwd()))]
    found = PathFinder.find_spec(name, path)
    return None if found is None else found.origin


def _refused(what: str, path: Path, error: OSError, *, user: bool) -> str:
    text = f"cannot {what} {path}: {error.strerror or error}"
    other_ways = "use a virtual environment, the account that owns that folder, or --user"
    return text if user else f"{text}; {other_ways}"
