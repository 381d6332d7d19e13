"""docs/reliability.md names tests; a promise whose test is gone is no promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TOP = Path(__file__).parents[1]
PAGE = (TOP / "docs" / "reliability.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def names_in(path):
    """Functions that pytest would run."""
    body = ast.parse(path.read_text()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def missing(page):
    found = []
    for file, name in NAMED.findall(page):
        path = TOP / file
        if not path.is_file() or (name and name not in names_in(path)):
            found.append(f"{file}::{name}")
    return found


def rows(page):
    """Table rows that say who holds a promise."""
    tables = re.findall(r"^\| promise \| held by \|\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [line for table in tables for line in table.splitlines()]


def test_every_test_named_on_the_page_exists():
    assert len(NAMED.findall(PAGE)) > 30
    assert missing(PAGE) == []


def test_every_promise_names_its_test():
    assert len(rows(PAGE)) > 20
    assert [row for row in rows(PAGE) if "::test_" not in row] == []


def test_a_test_that_is_gone_is_noticed():
    here = "tests/test_reliability_page.py"
    assert missing(f"`{here}::{test_a_test_that_is_gone_is_noticed.__name__}`") == []
    assert missing(f"`{here}::test_gone`, `tests/gone.py`") == [f"{here}::test_gone", "tests/gone.py::"]
