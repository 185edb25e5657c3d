"""The names of a package that are loaded from its modules on first use."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["on_first_use"]


def on_first_use(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    Return the ``__getattr__`` and ``__dir__`` of the *package* of that ``__name__``.

    *names* has the names of each module, with spaces between them. The modules are found, too.
    """
    module_of = {name: module for module, its in names.items() for name in its.split()}
    inside = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name in module_of:
            found = inside[name] = getattr(get(module_of[name]), name)
            return found
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*inside, *module_of})
