"""
What is installed, listed and imported; the built archives themselves are tested by ``.ci/run``.
"""

import ast
import subprocess
import sys

import pytest


def run_python(program: str) -> str:
    """Run *program* in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_plugin_file_imports_nothing_of_ours(root):
    source = (root / "twisted/plugins/txasynchat_plugin.py").read_text()
    imported = [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    ]
    assert imported == ["twisted.application.service", "ServiceMaker"]


def test_no_init_file_shadows_twisted(root):
    assert not list((root / "twisted").rglob("__init__.py"))


@pytest.mark.parametrize(
    "statement",
    [
        "import txasynchat",
        "import txasynchat.compat.asyncore, txasynchat.compat.asynchat",
        "import txasynchat.twistd, txasynchat.server, txasynchat.tls",
        "from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))",
    ],
)
def test_no_reactor_is_installed_by(statement):
    program = f"{statement}; import sys; print('twisted.internet.reactor' in sys.modules)"
    assert run_python(program) == "False"


def test_listing_plugins_finds_ours_and_imports_none_of_the_package():
    program = """
import sys
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
[ours] = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "asynchat"]
print(ours.module, "txasynchat" in sys.modules)
"""
    assert run_python(program) == "txasynchat.twistd False"
