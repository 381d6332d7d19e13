"""docs/troubleshooting.md quotes what mtpforge says: messages of its rows are in the code, with their exit codes."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from mtpforge import errors

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs" / "troubleshooting.md"
OURS = ("SGLang", "mtpforge itself", "Grafts, deltas and merges", "What `fidelity` and `accept` say")
VALUES = re.compile(
    r"\.\.\.|\b\d[\d,]*\b|\bglm4_moe\b|\bQ4_K\b|Qwen3\.5|\bgguf\b|\bGLM\b"
)  # what a message says of one case
EXIT = re.compile(r"^exit (\d)")


def words(node):
    """Text of a string, expressions of it as a mark that no row has; "" for what is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) or "\0" for part in node.values)
    return ""


def code_of(call):
    """Exit code of an MtpforgeError's call."""
    named = next((key.value for key in call.keywords if key.arg == "code"), None)
    return getattr(errors, getattr(named, "attr", "") or getattr(named, "id", ""), None) if named else errors.INPUT


@cache
def said():
    """Every string of the code, with the exit code where it is what an error says."""
    found = []
    for path in (TOP / "mtpforge").rglob("*.py"):
        tree = ast.parse(path.read_text())
        codes = {
            id(call.args[0]): code_of(call)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and call.args and getattr(call.func, "id", "") == "MtpforgeError"
        }
        found += [(words(node), codes.get(id(node))) for node in ast.walk(tree) if words(node)]
    return found


def rows():
    """First cells of the tables of our sections."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    ours = [section for section in sections if section.startswith(OURS)]
    assert len(ours) == len(OURS)
    cells = [line.split(" | ")[0].removeprefix("| ") for text in ours for line in text.splitlines() if line[:2] == "| "]
    return [cell for cell in cells if "`" in cell and cell != "you see"]


def quoted(cell):
    return [text for text in re.findall(r"`([^`]+)`", cell) if " " in text and not text.startswith(("mtpforge", "--"))]


@pytest.mark.parametrize("cell", [cell for cell in rows() if quoted(cell)])
def test_message_of_a_row_is_said_with_its_exit_code(cell):
    stated = EXIT.match(cell)
    for message in quoted(cell):
        pieces = [piece.strip() for piece in VALUES.split(message) if piece.strip()]
        codes = [code for text, code in said() if all(piece in text for piece in pieces)]
        assert codes, f"nothing says {message!r}"
        if stated and (known := [code for code in codes if code is not None]):
            assert int(stated[1]) in known
