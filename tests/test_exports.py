"""
The package exports what its modules declare, and tools that only read see the same names.

Also covers `errors` and `_lazy`.
"""

import ast
import importlib
import pkgutil
from importlib.metadata import version
from pathlib import Path

import pytest

import txasynchat
import txasynchat.compat
import txasynchat.tls
from txasynchat import errors

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(txasynchat.__path__, "txasynchat.")
    # The first exists to be run; star imports read the other, as they read the stdlib's.
    if name not in {"txasynchat.__main__", "txasynchat.compat.asyncore"}
)
CORE = ["errors", "framing", "producers", "protocol", "server", "terminators"]
#: Import these from their modules: they are for authors of a driver, not of a handler.
FOR_DRIVERS = {
    "Expected",
    "MoreProducer",
    "Producer",
    "check_terminator",
    "compile_delimiters",
    "prefix_length_at_end",
}
#: Errors in a handshake, or after it: `txasynchat.errors` has the details, the package the
#: classes that a handler distinguishes.
DETAILS_OF_TLS = {
    "CertificateExpired",
    "HandshakeTimedOut",
    "MissingClientCertificate",
    "NoCommonProtocol",
    "NotAClientHello",
    "PlaintextAfterStartTLS",
    "SelfSigned",
    "TruncatedConnection",
    "UnknownAuthority",
    "UnknownServerName",
    "WrongName",
}


def parse(module):
    return ast.parse(Path(module.__file__).read_text())


@pytest.mark.parametrize("name", MODULES)
def test_every_module_declares_its_public_names(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [exported for exported in module.__all__ if not hasattr(module, exported)]
    assert missing == []


def test_package_exports_what_its_core_modules_declare():
    declared = {
        exported
        for module in CORE
        for exported in importlib.import_module(f"txasynchat.{module}").__all__
    }
    assert declared - set(txasynchat.__all__) == FOR_DRIVERS | DETAILS_OF_TLS


def test_only_leaves_of_the_tls_errors_are_not_exported():
    """A handler that catches what the package exports misses none."""
    tls = [getattr(errors, name) for name in errors.__all__]
    tls = [error for error in tls if issubclass(error, errors.TLSError)]
    assert {error.__name__ for error in tls if not error.__subclasses__()} == DETAILS_OF_TLS


def test_every_export_is_declared_by_the_module_it_comes_from():
    declaring = {
        exported: module
        for module in map(importlib.import_module, MODULES)
        for exported in module.__all__
    }
    for exported in txasynchat.__all__:
        assert getattr(txasynchat, exported) is getattr(declaring[exported], exported)


@pytest.mark.parametrize("package", [txasynchat, txasynchat.compat, txasynchat.tls])
def test_static_tools_see_the_names_that_dir_sees(package):
    tree = parse(package)
    bound = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(package.__all__) <= bound
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def test_no_module_uses_star_imports():
    for name in MODULES:
        tree = parse(importlib.import_module(name))
        stars = [
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        ]
        assert stars == [], name


def test_version_is_that_of_the_distribution():
    assert txasynchat.__version__ == version("txasynchat")
