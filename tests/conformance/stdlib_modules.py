"""
The standard library's own asyncore, asynchat and smtpd, taken from an installed Python 3.11.

The modules left the standard library with 3.12, but their source still runs there, so a
3.11 installation serves every interpreter as the reference. It is read where it is
installed; nothing of it is stored with the project.

This module knows nothing of the facade.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

_WHERE = (
    "import json, sys, sysconfig;"
    "print(json.dumps([sys.version_info[:2], sysconfig.get_path('stdlib')]))"
)


class Modules:
    """
    The trio under test in one place: `asyncore`, `asynchat` and, on request, `smtpd`.

    Attributes:
        label: what to call them in a report.
    """

    def __init__(self, label: str, asyncore: ModuleType, asynchat: ModuleType) -> None:
        self.label = label
        self.asyncore = asyncore
        self.asynchat = asynchat


def _candidates() -> list[str]:
    """Commands that may be a Python 3.11, the likeliest first."""
    found = [os.environ.get("TXASYNCHAT_PYTHON311", ""), shutil.which("python3.11") or ""]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += sorted(map(str, pyenv.glob("3.11*/bin/python3.11")), reverse=True)
    found += ["/usr/local/bin/python3.11", "/usr/bin/python3.11"]
    return [command for command in dict.fromkeys(found) if command and Path(command).exists()]


@functools.cache
def find_stdlib(*, with_tests: bool = False) -> Path | None:
    """
    The library folder of an installed 3.11.

    Args:
        with_tests: only accept one that has CPython's test files too (Debian packages
            them apart).

    Returns:
        The folder, or None where no such installation exists.
    """
    wanted = "test/test_asyncore.py" if with_tests else "asyncore.py"
    folders = []
    if sys.version_info[:2] == (3, 11):
        folders.append(Path(os.__file__).parent)
    for command in _candidates():
        done = subprocess.run(
            [command, "-I", "-c", _WHERE], capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode == 0:
            version, folder = json.loads(done.stdout)
            if version == [3, 11]:
                folders.append(Path(folder))
    return next((folder for folder in folders if (folder / wanted).is_file()), None)


@contextlib.contextmanager
def standing_in(**modules: ModuleType | None):
    """Within a ``with``, let these names import as these modules (None: no module)."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update({name: module for name, module in modules.items() if module is not None})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def load_file(name: str, path: Path) -> ModuleType:
    """
    Run the file as a module of that name, without the deprecation that 3.12 turns into an error.

    The module is not left in `sys.modules`.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    deprecated = getattr(warnings, "_deprecated", None)
    with standing_in(**{name: module}):
        if deprecated is not None:
            warnings._deprecated = lambda *args, **kwargs: None  # type: ignore[attr-defined]
        try:
            spec.loader.exec_module(module)
        finally:
            if deprecated is not None:
                warnings._deprecated = deprecated  # type: ignore[attr-defined]
    return module


def load_stdlib(folder: Path) -> Modules:
    """Fresh copies of 3.11's asyncore and asynchat; `sys.modules` stays as it was."""
    asyncore = load_file("asyncore", folder / "asyncore.py")
    with standing_in(asyncore=asyncore):
        asynchat = load_file("asynchat", folder / "asynchat.py")
    return Modules("stdlib", asyncore, asynchat)


def load_smtpd(folder: Path, modules: Modules) -> ModuleType:
    """3.11's smtpd on top of the given asyncore and asynchat."""
    with standing_in(asyncore=modules.asyncore, asynchat=modules.asynchat):
        return load_file("smtpd", folder / "smtpd.py")


def put_in_place(implementation: str, folder: Path) -> Modules:
    """
    Make ``import asyncore``, ``asynchat`` and ``smtpd`` mean one implementation from here on.

    Args:
        implementation: ``"stdlib"`` or ``"facade"``.
        folder: the 3.11 library, which smtpd comes from in either case.
    """
    if implementation == "stdlib":
        modules = load_stdlib(folder)
        sys.modules.update(asyncore=modules.asyncore, asynchat=modules.asynchat)
    else:
        from txasynchat.compat import install

        install()
        modules = Modules(
            "facade", importlib.import_module("asyncore"), importlib.import_module("asynchat")
        )
    sys.modules["smtpd"] = load_smtpd(folder, modules)
    return modules


def load_facade() -> Modules:
    """The facade's modules; `sys.modules` holds them under their own names only."""
    from txasynchat.compat import asynchat, asyncore

    return Modules("facade", asyncore, asynchat)
