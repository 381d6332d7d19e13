"""Results as data: checks, traps, reports, progress. Their JSON form and exit code; no printing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final, Literal, TypeAlias

from mtpforge import errors, tables

SCHEMA: Final = 1  # of the JSON document: keys are only added within a number
Verdict: TypeAlias = Literal["passed", "failed", "warning", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer: name, verdict, what was found, and what to type if it is not right."""

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Trap:
    """A known failure found in a source, target or draft.

    severity: "error" stops a build or fails a verify; "warning" is printed; "note" appears with `-v`.
    silent: nothing would fail in the engine, drafts would only be rejected. draft_cures: it ends with a draft beside
    the target, so nothing is to be done where one is being made.
    """

    id: str
    severity: Literal["error", "warning", "note"]
    message: str
    fix: str = ""
    where: str = ""
    silent: bool = False
    draft_cures: bool = False


def advice(traps: Iterable[Trap]) -> list[str]:
    """Errors and warnings as lines; notes are left out."""
    told = dict.fromkeys(trap for trap in traps if trap.severity != "note")
    return [f"{trap.severity}: {trap.message}" + (f"; {trap.fix}" if trap.fix else "") for trap in told]


@dataclass(frozen=True, slots=True)
class Report:
    """The checks of one command, the traps it found, facts worth keeping, and in one line what they come to."""

    command: str
    checks: tuple[Check, ...]
    traps: tuple[Trap, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)
    summary: str = ""

    @property
    def ok(self) -> bool:
        """Whether no check failed and no trap of severity error was found."""
        return all(c.verdict != "failed" for c in self.checks) and all(t.severity != "error" for t in self.traps)

    @property
    def exit_code(self) -> int:
        """0 when ok, else 1."""
        return errors.DONE if self.ok else errors.ANSWER_NO

    def document(self) -> dict[str, object]:
        """What `--json` holds of it."""
        return {"report": self}

    def __str__(self) -> str:
        """What it comes to, the checks as a table, and what to do."""
        return tables.text(*self._shown())

    def _repr_html_(self) -> str:
        return tables.html(*self._shown())

    def _shown(self) -> tuple[str, tuple[str, ...], list[tuple[str, ...]], list[str]]:
        failed = ", ".join(check.name for check in self.checks if check.verdict == "failed")
        verdict = "passed" if self.ok else f"failed: {failed}" if failed else "failed"
        rows: list[tuple[str, ...]] = [(check.name, check.verdict, check.detail) for check in self.checks]
        fixes = [f"hint: {c.fix}" for c in self.checks if c.fix and c.verdict in ("failed", "warning")]
        remarks = [*advice(self.traps), *dict.fromkeys(fixes)]
        line = f"{self.command} {verdict}" + (f": {self.summary}" if self.summary else "")
        return line, ("", "", ""), rows, remarks


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is: `headers`, `fetch`, `build`, `check`, `verify`; unit "bytes" or "items"."""

    phase: str
    done: int
    total: int
    unit: Literal["bytes", "items"] = "bytes"


OnProgress: TypeAlias = Callable[[Progress], None]


def document(command: str, exit_code: int, keys: Mapping[str, object]) -> dict[str, object]:
    """What `--json` prints of a command that ended so: the head of every document, then the command's own keys."""
    from mtpforge import __version__

    head = {
        "mtpforge": __version__,
        "schema": SCHEMA,
        "command": command,
        "ok": exit_code == errors.DONE,
        "exit_code": exit_code,
    }
    return {**head, **{key: plain(value) for key, value in keys.items()}}


def plain(value: object) -> object:
    """Data as JSON knows it: records as objects, sets sorted, paths and numbers that JSON lacks as text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case set() | frozenset():
            return sorted(str(item) for item in value)
        case list() | tuple():
            return [plain(item) for item in value]
        case PurePath():
            return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")
