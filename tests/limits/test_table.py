"""The table of limits in the docs is complete, and each row names a test that exists."""

import re

from txasynchat.limits.options import NAMES, Limits


def rows(root):
    page = (root / "docs/howto/limits.md").read_text()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"`\w+`", cells[0]):
            yield cells[0].strip("`"), cells[1], cells[3].strip("`")


def test_every_limit_has_a_row(root):
    assert [name for name, _, _ in rows(root)] == list(NAMES)


def test_the_defaults_are_those_in_force(root):
    served = dict(Limits.served().given())
    for name, default, _ in rows(root):
        if name == "connections":
            assert default == "¾ of the descriptors"
        elif name in served:
            value = served[name]
            assert default == ("none" if value is None else f"{value:g}")


def test_each_test_exists(root):
    tests = "".join(path.read_text() for path in (root / "tests").rglob("test_*.py"))
    for name, _, test in rows(root):
        assert f"def {test}(" in tests, name
