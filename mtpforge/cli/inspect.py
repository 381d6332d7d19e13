"""`mtpforge inspect`: what a checkpoint holds, and what a draft for it must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mtpforge import errors
from mtpforge.cli import demo, options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.units import count, file_size

if TYPE_CHECKING:
    from mtpforge.engines.engine import KvCache

Facts = Mapping[str, object]


@click.command(
    "inspect",
    cls=Command,
    help="What a checkpoint holds and what a draft for it must be, from its config and headers alone.",
    examples=("mtpforge inspect zai-org/GLM-5.2-FP8", "mtpforge inspect ./GLM-5.2-AWQ-INT4 --tp 8 --json"),
    quiet="Only the name of the scheme that a draft for it needs.",
    then="mtpforge build --target CKPT",
)
@click.argument("checkpoint", type=options.CheckpointName(), metavar="CKPT")
@options.scheme(help="Preset or TOML file instead of the scheme that the engine would demand.")
@options.engine()
@options.tp()
@options.ep()
@options.kv_cache_dtype()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen, *, checkpoint: str, scheme: str | None, engine: str, tp: int, ep: bool, kv_cache_dtype: str
) -> Ending:
    from mtpforge import scheme as schemes
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.drafting.remarks import title
    from mtpforge.engines.engine import Serving
    from mtpforge.families import family_of
    from mtpforge.inspecting import inspect
    from mtpforge.source_choice import has_candidate
    from mtpforge.traps import only_layer

    opened = open_checkpoint(checkpoint, offline=screen.offline)
    asked = schemes.load(scheme) if scheme else None
    serving = Serving(tp, ep, kv_cache_dtype=kv_cache_dtype)
    report = inspect(opened, engine=engine, scheme=asked, serving=serving)
    screen.line(f"{title(opened)}   {_model(report.facts)}")
    screen.line(f"version {_version(report.facts)}")
    _tables(screen, report.facts)
    screen.line()
    screen.report(report)
    screen.answer(str(report.facts["scheme"] or ""))
    failed = any(check.verdict == "failed" for check in report.checks)
    kept = options.kept("engine", "tp", "ep", "kv_cache_dtype")
    if report.facts["drafts_for_itself"]:
        screen.next("mtpforge", "serve", checkpoint, "--target", checkpoint, *kept)
    elif report.facts["scheme"] and not failed and not only_layer(opened, family_of(opened.config)):
        source = demo.source_beside(Path(opened.location))
        if not source and not has_candidate(opened, family_of(opened.config)):
            source = ("--source", "ORG/NAME")
        screen.next("mtpforge", "build", "--target", checkpoint, *source, *kept)
    return Ending({"report": report}, errors.ANSWER_NO if failed else errors.DONE)


def _model(facts: Facts) -> str:
    """`glm_moe_dsa, 78 layers, 256 experts, compressed-tensors`."""
    experts = cast("Mapping[str, int]", facts["experts"])
    counts = ", ".join(f"{n} in {layers}" for layers, n in experts.items()) if len(set(experts.values())) > 1 else ""
    n_experts = f"{counts or facts['config_experts']} experts"
    return f"{facts['family']}, {facts['n_layers']} layers, {n_experts}, quantization: {facts['quant_method']}"


def _version(facts: Facts) -> str:
    """`5.2 by its name (GLM-5.2-AWQ-INT4)`, each thing that states one."""
    stated = cast("Sequence[Mapping[str, str]]", facts["stated"])
    said = ", ".join(f"{s['version']} by {s['by']}" + (f" ({s['said']})" if s["said"] else "") for s in stated)
    return said or "unknown: no name, card or config states it; a head of another one drafts badly"


def _telling(facts: Facts, head: Facts) -> str:
    """How the engine comes to build a head."""
    return f"{facts['engine']} is told by the serve command" if head["told"] else "the draft's own config says it"


def _tables(screen: Screen, facts: Facts) -> None:
    """How the layer is stored, and what an engine would demand of a draft."""
    mtp = cast("Facts", facts["mtp"])
    if stored := cast("Sequence[Facts]", mtp.get("stored", ())):
        screen.line()
        rows = [(r["kind"], r["n"], r["stored"], file_size(cast("int", r["n_bytes"]))) for r in stored]
        screen.table((f"layer {mtp['layer']} holds", "n", "stored as", "size"), rows)
    if demanded := cast("Sequence[Facts] | None", facts["demanded"]):
        screen.line()
        needs = [(r["kind"], r["wanted"], r["reason"]) for r in demanded]
        screen.table(("a draft for it needs", "stored as", "decided by"), needs)
    if cache := cast("KvCache | None", facts["kv_cache"]):
        screen.line()
        each = f"{count(cache.token_bytes)} bytes of KV cache a token on each rank"
        screen.line(f"  {each}, {cache.dtype}, the MTP layer included")
    if possible := cast("Sequence[Facts]", facts["heads"])[1:]:
        screen.line()
        own = cast("Sequence[Facts]", facts["heads"])[0]
        rows = [(own["scheme"], file_size(cast("int", own["n_bytes"])), "as it stands", "")]
        rows += [
            (h["scheme"], file_size(cast("int", h["n_bytes"])), _telling(facts, h), f"--scheme {h['scheme']}")
            for h in possible
        ]
        screen.table(("heads for it", "size", "", "build with"), rows)
