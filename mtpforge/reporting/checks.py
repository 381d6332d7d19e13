"""What the pages of build and verify say, and of every other report of checks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Final

from mtpforge import errors
from mtpforge.reporting import charts
from mtpforge.reporting.blocks import Block, Cell, Command, Facts, Named, Page, Section, Table, Verdict, Words
from mtpforge.reporting.drawing import pictured
from mtpforge.reporting.values import At, counted, measured, sized
from mtpforge.tables import folded

_NUMBERED: Final = re.compile(r"\.\d+\.")
_TONES: Final = {"passed": "passed", "failed": "failed", "warning": "warning"}
_FACTS: Final = {
    "engine": ("engine", None),
    "scheme": ("scheme", None),
    "n_experts": ("experts", counted),
    "n_tensors": ("tensors", counted),
    "n_bytes": ("weights", sized),
}


def any_report(document: At) -> Page:
    """Of a command that ends with checks and has no page of its own."""
    return Page(
        " ".join(filter(None, (document["command"].text or "report", _subject(document)))),
        answer(document),
        document["report"]["summary"].text,
        (*checks(document["report"]), *traps(document["report"]["traps"])),
    )


def verified(document: At) -> Page:
    """Of verify."""
    report = document["report"]
    return Page(
        about("Verification", document),
        answer(document),
        report["summary"].text,
        (*checks(report), *module_errors(report), *traps(report["traps"]), *facts(report)),
        ("Files are read as a stranger would read them; no engine was asked. `mtpforge validate` asks one.",),
    )


def built(document: At) -> Page:
    """Of build: the draft, its plan, or that none is needed."""
    if document["plan"]:
        return _planned(document)
    if not document["draft"]:
        why = document["reason"].text
        return Page("Nothing to build", Verdict("nothing to do", "neutral"), why, _serve(document["serve"]))
    report = document["report"]
    verdict = answer(document)
    word = "built and verified" if verdict.tone != "failed" else "built, and not what it should be"
    return Page(
        about("Build", document),
        Verdict(word, verdict.tone),
        report["summary"].text,
        (
            *_serve(document["serve"]),
            *checks(report),
            *module_errors(report),
            *traps(document["traps"]),
            *facts(report, *_sides(document["manifest"])),
        ),
        ("Nothing was drafted: whether tokens are accepted is what `fidelity`, `accept` and `bench` ask.",),
    )


def _planned(document: At) -> Page:
    plan = document["plan"]
    rows: list[Sequence[Cell]] = [
        (row["kind"].text, counted(row["n"]), row["stored"].text, row["wanted"].text, row["reason"].text)
        for row in plan["facts"]["stored"]
    ]
    table = Table("Modules, by kind", ("modules", "n", "stored in source", "in draft", "decided by"), rows)
    found = plan["facts"]
    pairs: list[tuple[str, Cell]] = [
        ("scheme", plan["scheme"]["name"].text),
        ("experts", counted(plan["n_experts"])),
        ("to read", sized(found["read_bytes"])),
        ("to write", sized(found["write_bytes"])),
        ("still to fetch", sized(found["missing_bytes"])),
        ("plan", Named(document["digest"].text)),
    ]
    return Page(
        f"Plan of {_subject(document)}",
        Verdict("planned, nothing written", "neutral"),
        "",
        (
            Section("What would be made", [table]),
            *traps(plan["traps"]),
            Section("Facts", [Facts([*_sides(plan), *pairs])]),
        ),
        ("Configs and headers were read, no weight.",),
    )


def answer(document: At) -> Verdict:
    """Yes, no, or how far it came, by the exit code; warnings are told."""
    if document["exit_code"].value == errors.ANSWER_NO:
        return Verdict("failed", "failed")
    if document["exit_code"].value != errors.DONE:
        return Verdict("not finished", "warning")
    report = document["report"]
    warned = [*(c["verdict"] for c in report["checks"]), *(t["severity"] for t in report["traps"])]
    return Verdict("passed, with warnings", "warning") if "warning" in (w.value for w in warned) else Verdict(
        "passed", "passed"
    )  # fmt: skip


def checks(report: At, heading: str = "What was checked") -> list[Section]:
    """The checks that were made as a table; those that failed first, else in their order. None where there are none."""
    made = [check for check in report["checks"] if check["verdict"].value != "not checked"]
    made.sort(key=lambda check: check["verdict"].value != "failed")
    if not made:
        return []
    rows: list[Sequence[Cell]] = [
        (check["name"].text, _worded(check["verdict"].text), _with_fix(check, of=("failed", "warning")))
        for check in made
    ]
    return [Section(heading, [Table(f"{heading}, failed ones first", ("check", "answer", "what was found"), rows)])]


def unchecked(document: At) -> list[tuple[str, str]]:
    """Checks that were not made, and why; also what ended the command before it could make them."""
    listed = [check for key in ("report", "engine", "predictions") for check in document[key]["checks"]]
    found = [(c["name"].text, _with_fix(c)) for c in listed if c["verdict"].value == "not checked"]
    error = document["error"]
    if error:
        hint = f"; {error['hint'].text}" if error["hint"] else ""
        found.append((error["what"].text, (error["cause"].text or error["where"].text) + hint))
    return found


def traps(found: At) -> list[Section]:
    """Known failures that were met; notes last."""
    order = ("error", "warning", "note")
    listed = sorted(found, key=lambda trap: order.index(trap["severity"].text))
    if not listed:
        return []
    rows: list[Sequence[Cell]] = [
        (trap["id"].text, _worded(trap["severity"].text), trap["message"].text + _hint(trap), Named(trap["where"].text))
        for trap in listed
    ]
    return [
        Section("Known failures met", [Table("Errors first, notes last", ("name", "weight", "what", "where"), rows)])
    ]


def module_errors(report: At) -> list[Section]:
    """How far decoded weights lie from the source's, by kind; nothing where none was compared.

    What is no number, or endless, is worse than any number.
    """
    errors_of = [(name, at) for name, at in report["facts"]["relative_error"].items() if not at.number <= 0 and at]
    if not errors_of:
        return []
    kinds: dict[str, list[tuple[str, At]]] = {}
    for name, at in errors_of:
        kinds.setdefault(_NUMBERED.sub(".*.", name), []).append((name, at))
    worst: list[Sequence[Cell]] = []
    for named in kinds.values():
        name, at = max(named, key=lambda each: each[1].number if math.isfinite(each[1].number) else math.inf)
        worst.append((Named(name), measured(at)))
    dots = {kind: [at.number for _, at in named] for kind, named in kinds.items()}
    says = (
        "Each dot is a weight, by how far it lies from the source's once it is decoded, as a share of its own size"
        " (Frobenius norm). Weights that are the source's own are left out."
    )
    table = Table("The worst weight of each kind", ("weight", "relative error"), worst)
    title = "How far weights lie from the source's"
    if not any(math.isfinite(value) for values in dots.values() for value in values):
        return [Section("Weights beside the source", [table])]
    picture = pictured("weights", title, says, lambda: charts.spread(dots, "relative error"), table)
    return [Section("Weights beside the source", [picture])]


def facts(report: At, *more: tuple[str, Cell]) -> list[Section]:
    """What the report keeps of the draft."""
    pairs: list[tuple[str, Cell]] = list(more)
    for key, (label, shape) in _FACTS.items():
        at = report["facts"][key]
        if at.value is not None:
            pairs.append((label, shape(at) if shape else at.text))
    return [Section("Facts", [Facts(pairs)])] if pairs else []


def _sides(of: At) -> Iterable[tuple[str, Cell]]:
    for side in ("source", "target"):
        named = of[side]["identity"].text or of[side]["id"].text
        if named:
            revision = of[side]["revision"].text
            yield side, Named(f"{named}@{revision}" if revision and "@" not in named else named)
    if digest := of["plan"].text:
        yield "plan", Named(digest)


def _serve(argv: At) -> list[Section]:
    if not argv:
        return []
    blocks: list[Block] = [Words("What to type on the server:"), Command(folded([word.text for word in argv]))]
    return [Section("Serve it", blocks)]


def _subject(document: At) -> str:
    """The draft by the last part of its name."""
    named = document["draft"].text
    return PurePath(named).name or named


def about(what: str, document: At) -> str:
    """A report that Python was given does not say of which draft it is."""
    subject = _subject(document)
    return f"{what} of {subject}" if subject else what


def _worded(word: str) -> Verdict:
    tone = {"error": "failed"}.get(word) or _TONES.get(word, "neutral")
    return Verdict(word, tone)  # type: ignore[arg-type]  # the table's values are tones


def _with_fix(check: At, of: Sequence[str] = ("not checked",)) -> str:
    hint = _hint(check) if check["verdict"].value in of else ""
    return check["detail"].text + hint


def _hint(of: At) -> str:
    return f"; {of['fix'].text}" if of["fix"] else ""
