"""
Build the archives, install one alone, away from the source, and run pytest on what it holds.

    python .ci/archive.py sdist|wheel [ARGUMENTS ...]

Runs in a copy of the tree, which loses its ``src``. Each argument holds those of one run of pytest,
separated by blanks. The plugins must be found beside plugin caches in every state that occurs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

#: Files that both archives must hold.
WANTED = ("plugins/txasynchat_plugin.py", "plugins/txasynchat_endpoints.py", "/py.typed")


def run(*command: str | Path, **options: str) -> str:
    """Run a command, which must succeed; return its output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)
    print("$", *command, done.stdout, sep="\n" if done.returncode else " ", flush=True)
    done.check_returncode()
    return done.stdout


def unpack(kind: str) -> Path:
    """Build both archives, the wheel out of the sdist; return one, checked."""
    run(sys.executable, "-m", "build", "--outdir", "dist")
    [archive] = Path("dist").resolve().glob("*.whl" if kind == "wheel" else "*.tar.gz")
    if kind == "wheel":
        names = zipfile.ZipFile(archive).namelist()
    else:
        with tarfile.open(archive) as opened:
            names = opened.getnames()
            opened.extractall(filter="data")
        os.chdir(archive.name.removesuffix(".tar.gz"))
    assert all(any(name.endswith(end) for name in names) for end in WANTED), names
    assert not any(re.search("twisted/.*__init__", name) for name in names), names
    return archive


def main(kind: str, *runs: str) -> None:
    """Install and test an archive."""
    archive = unpack(kind)
    shutil.rmtree("src")
    run(sys.executable, "-m", "venv", "venv")  # this one has tools in it
    bin_folder = Path("venv/bin").absolute()

    def twistd_help(*arguments: str) -> str:
        return run(bin_folder / "twistd", *arguments, "--help", cwd="/")

    run(bin_folder / "pip", "install", "twisted[tls]")
    # The first cache does not know our plugins, as on a machine that used twistd before.
    assert "asynchat" not in twistd_help()
    [cache] = Path("venv").resolve().glob("lib/*/site-packages/twisted/plugins/dropin.cache")
    run(bin_folder / "pip", "install", f"{archive}[test]")
    for state in ("stale", "unwritable", "broken"):
        if state == "unwritable":  # also for root
            cache.unlink()
            cache.mkdir()
        elif state == "broken":
            cache.rmdir()
            cache.write_text("garbage")
        assert re.search(r"^ *asynchat +Serve ", twistd_help(), re.MULTILINE), state
        assert "--listen" in twistd_help("asynchat"), state
    for arguments in runs:
        subprocess.run([bin_folder / "pytest", *arguments.split()], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
