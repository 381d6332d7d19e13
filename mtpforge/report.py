"""Results as data: checks, traps, reports, progress. Their JSON form and exit code; no printing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mtpforge import errors, tables

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
