"""A plan for people: at most one screen, grouped by kind of module."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mtpforge.units import count, file_size, memory_size

if TYPE_CHECKING:
    from mtpforge.cli.output import Screen
    from mtpforge.drafting.request import Request
    from mtpforge.engines.engine import Serving
    from mtpforge.planning import Plan


def beside(verb: str, draft: str, target: str, *more: str, offline: bool) -> tuple[str, ...]:
    """`verb` of a draft beside its target; of a graft or merge alone, as it is served; of a source its build."""
    from mtpforge.checkpoint import metadata, open_checkpoint
    from mtpforge.families import family_of
    from mtpforge.traps import is_whole

    held, served = (open_checkpoint(name, offline=offline) for name in (draft, target))
    if held.location == served.location or not is_whole(held, family_of(held.config)):
        return (verb, draft, "--target", target, *more)
    if any(held.small_file(file) is not None for file in (metadata.GRAFT, metadata.MERGE)):
        return (verb, draft, "--target", draft, *more)
    return ("build", "--target", target, "--source", draft)


def show_plan(screen: Screen, plan: Plan, out: Path, request: Request) -> None:
    """The table of modules, sizes, what was renamed or dropped, and every trap."""
    from mtpforge.engines import engine_of
    from mtpforge.planning.steps import COLUMNS

    engine = engine_of(plan.engine)
    use = f" for {engine.name} {engine.versions}" if plan.target else f" as {plan.scheme.name}"
    screen.line(f"draft   {out}   layer {plan.layer}{use}, {plan.n_experts} experts")
    screen.line()
    screen.table(COLUMNS, plan.rows(unfold=screen.verbose))
    screen.line()
    facts = plan.facts
    room = shutil.disk_usage(_existing(out)).free
    fetch = _number(facts, "missing_bytes")
    screen.line(
        f"  read {file_size(_number(facts, 'read_bytes'))}"
        + (f" ({file_size(fetch)} to download)" if fetch else "")
        + f"   write {file_size(_number(facts, 'write_bytes'))}   disk free {file_size(room)}"
        f"   memory {memory_size(_number(facts, 'peak_bytes'))} for the largest step"
    )
    if plan.target is not None:
        per_rank = memory_size(_number(facts, "serving_bytes_per_rank"))
        screen.line(f"  serving memory {per_rank} on each rank {_ranks(request.serving)}")
        _show_savings(screen, facts)
    if plan.unused:
        dropped = sum(u.n_bytes for u in plan.unused)
        reasons = ", ".join(sorted({u.reason for u in plan.unused}))
        screen.line(f"  left out: {len(plan.unused):,} tensors of the source, {file_size(dropped)}: {reasons}")
    for change in plan.changes if screen.verbose else ():
        screen.line(f"  cast {change}")
    screen.traps(plan.traps)


def _show_savings(screen: Screen, facts: Mapping[str, object]) -> None:
    """What the scheme saves against the target's own, in memory and in tokens of KV cache; nothing where it is that."""
    if "saves_bytes_per_rank" not in facts:
        return
    saved, tokens = _number(facts, "saves_bytes_per_rank"), cast("int | None", facts.get("saves_kv_tokens"))
    took = f"{memory_size(saved)} less" if saved >= 0 else f"{memory_size(-saved)} more"
    text = f"  {took} on each rank than the target's own scheme, {facts['saves_against']}"
    if tokens is not None:
        each = f"({count(_number(facts, 'kv_bytes_per_token'))} bytes each, {facts['kv_cache_dtype']})"
        text += f": {count(abs(tokens))} {'more' if saved >= 0 else 'fewer'} tokens of KV cache {each}"
    screen.line(text)


def plan_document(plan: Plan) -> dict[str, object]:
    """The plan without its steps and what it leaves out, tensor by tensor: 3 MB of a full-size layer."""
    whole = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan) if f.name not in ("steps", "unused")}
    left_out: dict[str, int] = {}
    for unused in plan.unused:
        left_out[unused.reason] = left_out.get(unused.reason, 0) + 1
    return {**whole, "n_steps": len(plan.steps), "left_out": left_out}


def _ranks(serving: Serving) -> str:
    ep = " --ep" if serving.expert_parallel else ""
    return f"at `--tp {serving.tensor_parallel}{ep}`"


def _existing(path: Path) -> Path:
    """The nearest folder that exists already."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _number(facts: Mapping[str, object], key: str) -> int:
    return cast("int", facts[key])


def without(argv: Sequence[str], *options: str) -> tuple[str, ...]:
    """A command line without some flags, for the next step."""
    return tuple(word for word in argv if word not in options)
