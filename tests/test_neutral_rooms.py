"""What is said outside of `engines` names none of them, so that it holds for the next one too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import mtpforge
from mtpforge.engines import ENGINES

ROOM = Path(mtpforge.__file__).parent
NAMES = re.compile("|".join({*ENGINES, *(engine.name for engine in ENGINES.values())}))
# Their subject is one engine's: its benchmark, its format, a file that it alone reads; `--engine` says which there are.
OF_ONE_ENGINE = {
    "benching/vllm_bench.py",
    "cli/bench.py",
    "cli/options.py",
    "formats/pack_quantized.py",
    "formats/w4afp8.py",
}


# Words of an engine's options: `Counters.drafts_by` has them.
OPTIONS = re.compile(
    "|".join(e.counters.drafts_by.strip("-").replace("-", "[-_ ]") for e in ENGINES.values() if e.counters)
)


def texts(path):
    """Strings of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, holders) and ast.get_docstring(node)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in strings if id(node) not in docs]


def test_no_text_of_a_neutral_room_names_an_engine():
    named = {
        str(path.relative_to(ROOM))
        for path in ROOM.rglob("*.py")
        if path.relative_to(ROOM).parts[0] != "engines" and any(NAMES.search(text) for text in texts(path))
    }
    assert named == OF_ONE_ENGINE


def test_no_text_of_a_neutral_room_names_an_option_of_an_engine():
    assert OPTIONS.search("`--speculative-config`")
    assert OPTIONS.search("its speculative config")
    named = [
        str(path.relative_to(ROOM))
        for path in ROOM.rglob("*.py")
        if path.relative_to(ROOM).parts[0] != "engines" and any(OPTIONS.search(text) for text in texts(path))
    ]
    assert named == []
