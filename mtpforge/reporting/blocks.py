"""What a page is made of: headings, tables, pictures, commands. The template decides how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mtpforge.reporting.values import Number

Tone = Literal["passed", "failed", "warning", "neutral"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A word that is said of something, and how it is meant."""

    word: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Named:
    """A name out of a checkpoint or a command line, as it is typed."""

    name: str


_SENTENCE: Final = 30  # characters

Cell = str | Number | Verdict | Named


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; the first cell of a row is what the row is about."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: Literal["table"] = "table"

    def is_numeric(self, column: int) -> bool:
        """Whether it holds numbers, which stand to the right; what a row is about stands to the left."""
        return column > 0 and any(isinstance(row[column], Number) for row in self.rows)

    @property
    def is_prose(self) -> bool:
        """Whether it holds sentences: these stand one below the other where a screen is narrow."""
        return any(isinstance(cell, str) and len(cell) > _SENTENCE for row in self.rows for cell in row[1:])


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, the same in words, and the numbers that it shows.

    name: what the ids in it begin with. view: its viewBox. inside: what stands between `<svg>` and `</svg>`, made here.
    is_open: whether the numbers are shown at once.
    """

    name: str
    title: str
    says: str
    view: str
    inside: str
    table: Table
    is_open: bool = False
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one a line."""

    pairs: Sequence[tuple[str, Cell]]
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True, slots=True)
class Command:
    """A command to copy, over several lines where it is long."""

    text: str
    kind: Literal["command"] = "command"


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph; what stands between backticks is typed."""

    text: str
    kind: Literal["words"] = "words"


Block = Table | Picture | Facts | Command | Words


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """What a command has to say: what it is about, the answer, a sentence, sections, what it did not look at."""

    title: str
    verdict: Verdict
    lead: str
    sections: Sequence[Section] = ()
    limits: Sequence[str] = ()
