"""Results as plain text and as HTML: a line, a table, remarks. What Python prints and notebooks show; no library.

Names come out of checkpoints: control characters are escaped, HTML is quoted.
"""

from __future__ import annotations

import html as escaping
import shlex
from collections.abc import Sequence

from mtpforge.units import count

Rows = Sequence[Sequence[object]]


def text(line: str, columns: Sequence[str], rows: Rows, remarks: Sequence[str] = ()) -> str:
    """A line, then columns below their headings (none where all are ""), numbers to the right, then remarks."""
    cells = [[_cell(value) for value in row] for row in rows]
    table = [list(columns), *cells] if any(columns) else cells
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [bool(rows) and all(isinstance(row[n], int) for row in rows) for n in range(len(columns))]
    lines = [printable(line)]
    for row in table:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append(f"  {'   '.join(padded)}".rstrip())
    return "\n".join([*lines, *map(printable, remarks)])


def html(line: str, columns: Sequence[str], rows: Rows, remarks: Sequence[str] = ()) -> str:
    """The same for a notebook."""
    head = "".join(f"<th>{_quoted(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_quoted(_cell(v))}</td>" for v in row) + "</tr>" for row in rows)
    table = f"<table>{f'<thead><tr>{head}</tr></thead>' if any(columns) else ''}<tbody>{body}</tbody></table>"
    return f"<p><b>{_quoted(line)}</b></p>{table}" + "".join(f"<p>{_quoted(remark)}</p>" for remark in remarks)


def folded(argv: Sequence[str]) -> str:
    """A command over several lines, one option a line, quoted for a shell."""
    # an option starts a line; its value, and what comes before the first option, stays beside it
    lines = (("\\\n  " if word.startswith("-") else "") + shlex.quote(word) for word in argv)
    return " ".join(lines)


def _cell(value: object) -> str:
    return count(value) if isinstance(value, int) else printable(str(value))


def printable(words: str) -> str:
    """The words with every character escaped that does not print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in words)


def _quoted(words: str) -> str:
    return escaping.escape(printable(words))
