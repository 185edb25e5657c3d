"""
The reference has every public name and a text on each page; the architecture lists each module.

The tree of the tests mirrors that of the modules.
"""

import ast
import importlib
import re

import pytest

import txasynchat
from txasynchat import hub, tls

#: What `txasynchat.hub` defines beside `Hub`: values that the page explains in one sentence.
FIGURES = {"ENDED", "ERROR", "HANGUP", "INVALID", "READ", "URGENT", "WRITE", "Events"}


@pytest.fixture
def pages(root):
    return {path.stem: path.read_text() for path in (root / "docs/reference").glob("*.md")}


def resolve(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def documented(text):
    """Return what the directives of a page document."""
    found = []
    for kind, path, members in re.findall(
        r"^\.\. auto(\w+):: (\S+)\n(?:   :members:(.*))?", text, re.MULTILINE
    ):
        if kind == "module":
            module = importlib.import_module(path)
            names = members.replace(",", " ").split() or getattr(module, "__all__", ())
            found += [getattr(module, name) for name in names]
        else:
            found.append(resolve(path))
    return found


@pytest.mark.parametrize("package", [txasynchat, tls, hub], ids=lambda package: package.__name__)
def test_every_public_name_is_in_the_reference(pages, package):
    there = [one for text in pages.values() for one in documented(text)]
    names = set(package.__all__) - FIGURES
    missing = [
        name for name in sorted(names) if not any(getattr(package, name) is x for x in there)
    ]
    assert missing == []


def test_no_name_is_documented_twice(pages):
    there = [id(one) for text in pages.values() for one in documented(text)]
    assert len(there) == len(set(there))


def test_every_page_says_what_its_names_are_for(pages):
    bare = []
    for name, text in pages.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL).split("\n", 1)[1]
        if len(prose.split()) < 10:
            bare.append(name)
    assert bare == []


def test_the_architecture_has_a_line_for_each_module(root):
    text = (root / "docs/explanation/architecture.md").read_text()
    tree = text.split("```text\nsrc/txasynchat/\n")[1].split("```")[0]
    drawn, package = set(), ""
    for indent, name in re.findall(r"^( +)(\w+(?:/|\.py)) +\S", tree, re.MULTILINE):
        if len(indent) == 4:
            package = name if name.endswith("/") else ""
        if name.endswith(".py"):
            drawn.add(package + name)
    top = root / "src/txasynchat"
    modules = {str(path.relative_to(top)) for path in top.rglob("*.py")}
    inner = {one for one in modules if one.endswith("/__init__.py")}
    assert drawn == modules - inner


def test_each_module_has_a_test_file_of_its_name_or_one_that_names_it(root):
    named = set()
    for path in (root / "tests").rglob("test_*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        named |= set(re.findall(r"`([\w.]+)`", docstring.partition("Also covers")[2]))
    top = root / "src/txasynchat"
    modules = {path.relative_to(top).with_suffix("") for path in top.rglob("*.py")}
    missing = [
        dotted
        for module in sorted(modules)
        if module.name != "__init__"
        and not (root / "tests" / module.parent / f"test_{module.name.lstrip('_')}.py").exists()
        and (dotted := ".".join(module.parts)) not in named
    ]
    assert missing == [], "write a test file, or name the module behind `Also covers` in one"
    assert not {name for name in named if not (top / f"{name.replace('.', '/')}.py").exists()}
