"""From what the Watch saw to errors and notes, in words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .coverage import Box, Coverage

if TYPE_CHECKING:
    import torch

    from .watch import Watch

_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
_TOP = re.compile(r"(lm_head\.|model\.norm\.|model\.embed_tokens\.)")
_FLOATS = {"float64", "float32", "float16", "bfloat16"}
_INTS = {"int64", "int32", "int16", "int8"}
_EXACT = {("bfloat16", "float32"), ("float16", "float32"), ("float32", "float64")}
# How much of one kind is spelled out, and from how many writers of a part on their names say nothing.
_SHOWN = 8
_MANY_WRITERS = 40


@dataclass(slots=True)
class Findings:
    """What the check has to say: errors (not complete), notes, parameters that keep the engine's default, facts."""

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    defaulted: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Habits:
    """What one engine does with parameters and tensors beside loading them.

    engine: for people. shared: parameters that the target's own replace after loading; a draft need not hold them.
    unread: parameters that the engine has a place for and never reads. once_a_set: parameters that every matrix of a
    fused set writes, by design. passed_over: tensors that are dropped by design. keeps_default: whether a parameter of
    the built model has a defined value where the checkpoint has none.
    """

    engine: str
    shared: re.Pattern[str]
    unread: re.Pattern[str]
    once_a_set: re.Pattern[str]
    passed_over: re.Pattern[str]
    keeps_default: Callable[[torch.nn.Module, str], bool]


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank was seen to load. at: ends every message; first: what holds for all ranks is said once."""

    watch: Watch
    model: torch.nn.Module
    at: str
    habits: Habits
    first: bool


def judge_rank(rank: Rank, findings: Findings) -> None:
    """Judge what one rank loaded."""
    watch, at, first = rank.watch, rank.at, rank.first
    n_loaded = sum(_judge_parameter(rank, name, cover, findings) for name, cover in watch.written.items())
    if first:
        findings.facts["parameters"] = {"total": len(watch.written), "loaded": n_loaded}
    _judge_casts(rank, findings)
    for source, got, name, want in watch.spreads[:_SHOWN]:
        findings.errors.append(f"{source} {list(got)} was spread over {name} block {list(want)}{at}")
    for name, read in watch.reads.items():
        if first and name.endswith("e_score_correction_bias") and read.dtype != "float32":
            findings.notes.append(
                f"{name} is stored as {read.dtype}: published layers keep it in float32, precision is lost"
            )
    # Vocabulary padding is filled with zeros: not from the draft, and nothing to say.
    for text in [text for text in watch.orphans if not rank.habits.shared.search(text)][:_SHOWN]:
        findings.notes.append(f"{text}: written, but not from a tensor of the draft{at}")


def judge_dropped(
    on_disk: Iterable[str], used: Mapping[str, Coverage], habits: Habits, counts: tuple[int, int], findings: Findings
) -> None:
    """Judge what no rank used: tensors dropped or used in part. counts: the target's layers, and those for MTP."""
    by_design = []
    for name in on_disk:
        cover = used.get(name)
        if cover is not None and cover.touched:
            blocks = [] if cover.unknown else cover.missing()
            if blocks:
                part = "; ".join(_ranges(box) for box in blocks[:3])
                findings.errors.append(f"{name} {list(cover.shape)}: only a part was used; unused: {part}")
        elif habits.passed_over.search(name) or _is_main_model(name, *counts):
            by_design.append(name)
        else:
            unread = "its file is not read (not in the index, or without a tensor of the MTP layer)"
            findings.errors.append(f"{name}: {unread if cover is None else 'read and dropped without a word'}")
    if by_design:
        kinds = ", ".join(_summary(by_design))
        findings.notes.append(f"{len(by_design)} tensors outside the MTP layer passed over: {kinds}")


def _judge_parameter(rank: Rank, name: str, cover: Coverage, findings: Findings) -> bool:
    """Whether the parameter is complete."""
    at, habits = rank.at, rank.habits
    blocks = cover.missing()
    if not blocks:
        if cover.repeated() and not habits.once_a_set.search(name):
            findings.errors.append(f"{name}{at}: a part was written more than once{_writers(rank.watch, name)}")
        return True
    if cover.unknown:
        findings.notes.append(f"{name}{at}: written in a way that cannot be followed; not judged")
    elif habits.shared.search(name):
        if rank.first:
            findings.notes.append(f"{name}: not in the draft; {habits.engine} puts the target's in its place")
    elif habits.keeps_default(rank.model, name):
        findings.defaulted.append(name)
    elif habits.unread.search(name):
        findings.notes.append(f"{_not_loaded(name, cover.shape, blocks)} ({habits.engine} does not read it){at}")
    else:
        findings.errors.append(_not_loaded(name, cover.shape, blocks) + at)
    return False


def _judge_casts(rank: Rank, findings: Findings) -> None:
    seen = set()
    for cast in rank.watch.casts:
        got, want = (str(dtype).removeprefix("torch.") for dtype in (cast.got, cast.want))
        kind = re.sub(r"\.\d+\.", ".*.", cast.source), got, want
        if kind in seen or (got, want) in _EXACT or rank.habits.unread.search(cast.source):
            continue
        seen.add(kind)
        alike = {got, want} <= _FLOATS or {got, want} <= _INTS
        converts = f"{rank.habits.engine} converts it without a word{rank.at}"
        text = f"{kind[0]} is {got}, {cast.parameter} is {want}: {converts}"
        (findings.notes if alike else findings.errors).append(text)


def _writers(watch: Watch, parameter: str) -> str:
    writers = sorted(name for name, read in watch.reads.items() if parameter in read.parameters)
    twice = [name for name in writers if watch.reads[name].times > 1]
    return f", by {', '.join((twice or writers)[:4])}" if twice or len(writers) < _MANY_WRITERS else ""


def _is_main_model(name: str, n_main: int, n_nextn: int) -> bool:
    layer = _LAYER.match(name)
    if layer:
        return int(layer.group(1)) < n_main and n_nextn > 0
    return bool(_TOP.match(name)) or "rotary_emb.inv_freq" in name


def _summary(names: Iterable[str]) -> list[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["main layers" if _LAYER.match(name) else name].append(name)
    return [group if members == [group] else f"{group} ({len(members)} tensors)" for group, members in groups.items()]


def _not_loaded(name: str, shape: tuple[int, ...], blocks: list[Box]) -> str:
    start = f"{name} {list(shape)}: "
    if not shape or blocks == [tuple((0, n) for n in shape)]:
        return start + "nothing loaded"
    if ".experts." not in name or len(shape) == 1:
        return f"{start}not loaded: " + "; ".join(_ranges(box) for box in blocks[:4])
    experts: dict[Box, list[int]] = defaultdict(list)
    for box in blocks:
        experts[box[1:]] += range(*box[0])
    parts = []
    for rest, numbers in experts.items():
        whole = rest == tuple((0, n) for n in shape[1:])
        parts.append(f"experts {spans(numbers)}" + ("" if whole else " at " + ", ".join(f"{a}:{b}" for a, b in rest)))
    return f"{start}not loaded: " + "; ".join(parts[:6])


def spans(numbers: Iterable[int]) -> str:
    """`[0, 1, 2, 5]` as `0-2, 5`."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _ranges(box: Box) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"
