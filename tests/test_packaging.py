"""
What is installed, listed and imported; the built archives themselves are tested by ``.ci/run``.
"""

import ast
import subprocess
import sys
import tomllib

import pytest


def run_python(program: str) -> str:
    """Run *program* in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("plugin", ["txasynchat_plugin.py", "txasynchat_endpoints.py"])
def test_a_plugin_file_imports_nothing_of_ours(root, plugin):
    tree = ast.parse((root / "twisted/plugins" / plugin).read_text())
    imported = {
        module
        for node in tree.body
        for module in [getattr(node, "module", None), *_names(node)]
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported
    assert [module for module in imported if module and module.startswith("txasynchat")] == []


def _names(node):
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_every_plugin_file_is_in_the_wheel(root):
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    plugins = {str(path.relative_to(root)) for path in (root / "twisted/plugins").glob("*.py")}
    assert set(included) == set(included.values()) == plugins


def test_no_init_file_shadows_twisted(root):
    assert not list((root / "twisted").rglob("__init__.py"))


@pytest.mark.parametrize(
    "statement",
    [
        "from txasynchat import *",
        "import txasynchat.compat.asyncore, txasynchat.compat.asynchat",
        "import txasynchat.twistd, txasynchat.server, txasynchat.tls",
        "import txasynchat.endpoints, txasynchat.testing, txasynchat.program",
        "from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))",
    ],
)
def test_importing_installs_no_reactor(statement):
    program = f"{statement}; import sys; print('twisted.internet.reactor' in sys.modules)"
    assert run_python(program) == "False"


def test_each_public_name_is_imported_on_demand():
    program = """
import sys, txasynchat
assert not any(name.startswith("twisted") for name in sys.modules)
assert set(dir(txasynchat)) > set(txasynchat.__all__)
print(all(hasattr(txasynchat, name) for name in (*txasynchat.__all__, "compat")))
print(hasattr(txasynchat, "nothing"), hasattr(txasynchat, "attach"))
"""
    assert run_python(program) == "True\nFalse False"


@pytest.mark.parametrize(
    "statement",
    [
        "from txasynchat import AsyncChat, ChatFactory, Server, ServerOptions, serve",
        "import txasynchat.endpoints, txasynchat.testing",
    ],
)
def test_native_modules_load_no_part_of_the_facade(statement):
    program = f"""
{statement}
import sys
print([name for name in sys.modules if name.startswith(("txasynchat.compat", "txasynchat.hub"))])
"""
    assert run_python(program) == "[]"


@pytest.mark.parametrize("module", ["hub", "tls", "tls.clienthello", "tls.pending", "log"])
def test_modules_the_facade_shares_load_no_twisted(module):
    program = f"""
import sys, txasynchat.{module}
print([name for name in sys.modules if name.startswith(("twisted", "OpenSSL", "zope"))])
"""
    assert run_python(program) == "[]"


def test_listing_plugins_finds_ours_without_importing_the_package():
    program = """
import sys
from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins
[maker] = [one for one in getPlugins(IServiceMaker) if one.tapname == "asynchat"]
prefixes = [one.prefix for one in getPlugins(IStreamServerEndpointStringParser)]
print(maker.module, "secure" in prefixes, "txasynchat" in sys.modules)
"""
    assert run_python(program) == "txasynchat.twistd True False"
