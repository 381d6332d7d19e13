"""Where what a scheme file says stands: lines for messages, found by reading its statements one at a time."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

_RULES = "rules"


def of_keys(text: str) -> dict[tuple[int | None, str], int]:
    """(number of the rule, key) -> line of a TOML text that parses, from 1; the rule is None before the first one.

    A rule's own line is that of its key "".
    """
    lines: dict[tuple[int | None, str], int] = {}
    rule: int | None = None
    header = ""  # the key of a table: the statements that follow are its own
    for line, said, is_header in _statements(text):
        key = next(iter(said))
        if not is_header:
            if not header:
                lines.setdefault((rule, key), line)
        elif said == {_RULES: [{}]}:
            rule, header = 0 if rule is None else rule + 1, ""
            lines[rule, ""] = line
        else:
            # a table beside the rules, or in the last one: what follows is the table's
            inner = said[key]
            header = str(next(iter(inner))) if key == _RULES and isinstance(inner, dict) and inner else key
            lines.setdefault((rule if header != key else None, header), line)
            lines.setdefault((None, key), line)
    return lines


def of_error(text: str, message: str) -> int:
    """Line at which a text is no TOML: what the parser's message says, else where the statement begins that fails."""
    if named := re.search(r"at line (\d+)", message):
        return int(named[1])
    if "end of document" in message:
        return max(text.count("\n") + (not text.endswith("\n")), 1)
    last = 1
    for line, _, _ in _statements(text):
        last = line
    return last


def _statements(text: str) -> Iterator[tuple[int, dict[str, object], bool]]:
    """The line that a statement begins at, what it says by itself, and whether it is the header of a table.

    A line break within a value leaves it open: it goes on until the parser takes it. A statement that it never takes
    comes last, as {"": None}.
    """
    chunk, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        first, chunk = (first, chunk + line + "\n") if chunk else (number, line + "\n")
        try:
            said = tomllib.loads(chunk)
        except (ValueError, RecursionError):
            continue
        if said:
            yield first, said, chunk.lstrip().startswith("[")
        chunk = ""
    if chunk:
        yield first, {"": None}, False
