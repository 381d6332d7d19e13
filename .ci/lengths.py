"""Lengths of files and functions: fails on a file over 400 lines or a function over 60, prints medians and maxima.

    python .ci/lengths.py FOLDER...

A function counts from its `def` to its last line, docstring included. The limits are what two screens and one screen
hold; CONTRIBUTING.md says what to do about them.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from statistics import median

FILE_LINES = 400
FUNCTION_LINES = 60


def functions(path: Path, text: str) -> list[tuple[int, str]]:
    """Length and place of every function in a file."""
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [((n.end_lineno or n.lineno) - n.lineno + 1, f"{path}:{n.lineno} {n.name}") for n in nodes]


def main(folders: list[str]) -> int:
    """Print the table; 1 if anything is too long."""
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    texts = {path: path.read_text() for path in paths}
    of_files = [(text.count("\n"), str(path)) for path, text in texts.items()]
    of_functions = [found for path, text in texts.items() for found in functions(path, text)]
    too_long = False
    for kind, found, limit in (("file", of_files, FILE_LINES), ("function", of_functions, FUNCTION_LINES)):
        lengths = [n for n, _ in found] or [0]
        print(f"{len(found)} {kind}s: median {median(lengths):.0f} lines, longest {max(lengths)} of {limit}")
        for n, place in sorted(found, reverse=True):
            if n > limit:
                print(f"  too long: {place}: {n} lines")
                too_long = True
    return int(too_long)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
