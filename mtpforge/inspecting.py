"""inspect(): what a checkpoint holds of an MTP layer, and what an engine would demand of a draft beside it.

Config, index and the headers of the nextn layer only: no tensor is read, torch is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Final

from mtpforge import traps, versions
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines import DEFAULT, engine_of, named
from mtpforge.engines.engine import Engine, Serving, refuse_unknown
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family, family_of
from mtpforge.families.counting import config_experts, expert_numbers
from mtpforge.formats import label
from mtpforge.heads import heads
from mtpforge.report import Check, Report, Trap, Verdict
from mtpforge.scheme import Scheme
from mtpforge.source_choice import drafts_for_itself
from mtpforge.sourcing import StoredLayer, has_layer, mismatches, stored_layer

_LAYER: Final = re.compile(r"(?:.*\.)?layers\.(\d+)\.")
_SHOWN: Final = 3


def inspect(
    checkpoint: Checkpoint,
    *,
    engine: str = DEFAULT,
    scheme: Scheme | None = None,
    serving: Serving | None = None,
    with_heads: bool = True,
) -> Report:
    """What is known of a checkpoint without reading a tensor.

    Facts: identity, model_type, family, version (None where none is stated, or more than one), stated (what states
    versions: version, by, said), n_layers, n_tensors, config_experts, experts (layer ranges -> count, by name),
    quant_method, mtp (layer, present, files, n_experts, stored rows by kind, bits, dropped, strays), scheme (name),
    demanded (rows by kind: what the engine would build a draft with, and why; None where it refuses the target),
    kv_cache (what a token takes on one rank, where the engine's rules say: dtype, token_bytes), heads (scheme, told,
    n_bytes of every head that the target can have: told means that the engine has to be told of it; [] without
    `with_heads`, which takes a second),
    drafts_for_itself (whether the layer needs no draft: it loads as it is, and nothing silent is known to spoil it).
    MtpforgeError for a model that has no known MTP layer, and for a config that lacks what a draft must state.
    """
    with errors_of(checkpoint):
        report = _inspect(checkpoint, engine, scheme, serving)
        if with_heads and scheme is None and report.facts["scheme"]:
            report.facts["heads"] = _heads(checkpoint, engine_of(engine))
        return report


def _inspect(checkpoint: Checkpoint, engine: str, scheme: Scheme | None, serving: Serving | None) -> Report:
    judge = engine_of(engine)
    family = family_of(checkpoint.config)
    refuse_unknown(judge, serving or Serving())
    if not checkpoint.only_source:
        judge.refuse_misstated(checkpoint, checkpoint.config, family)
    demanded, refusal = _demanded(checkpoint, family, judge, scheme)
    layer, layer_check = _layer(checkpoint, family, judge)
    checks, alone = [layer_check, refusal], False
    if layer is not None and demanded is not None:
        checks.append(_as_it_is(checkpoint, family, engine, scheme, layer))
        alone = drafts_for_itself(checkpoint, layer, family, judge, scheme)
    found = () if checkpoint.only_source else _traps(checkpoint, family, judge, demanded, serving)
    cache = None if checkpoint.only_source else judge.kv_cache(checkpoint, family, serving or Serving())
    stated = versions.stated(checkpoint, family)
    facts: dict[str, object] = {
        "identity": checkpoint.identity,
        "model_type": family.text(checkpoint.config).get("model_type"),
        "family": family.name,
        "version": next(iter(versions.versions(stated))) if len(versions.versions(stated)) == 1 else None,
        "stated": [asdict(statement) for statement in stated],
        "engine": judge.name,
        "n_layers": family.layer(checkpoint.config),
        "n_tensors": len(checkpoint.names),
        "config_experts": config_experts(family, checkpoint.config),
        "experts": _experts_by_layer(family, checkpoint.names),
        "quant_method": _method(checkpoint),
        "mtp": _mtp(checkpoint, family, layer),
        "scheme": None if demanded is None else demanded.name,
        "demanded": None if demanded is None else _rows_demanded(family, checkpoint, demanded),
        "kv_cache": cache,
        "heads": [],
        "drafts_for_itself": alone,
    }
    return Report("inspect", tuple(checks), found, facts)


def _heads(checkpoint: Checkpoint, engine: Engine) -> list[dict[str, object]]:
    """One row per head; none of what is no target."""
    if traps.only_layer(checkpoint, family_of(checkpoint.config)):
        return []
    return [{"scheme": h.scheme.name, "told": h.told, "n_bytes": h.n_bytes} for h in heads(checkpoint, engine)]


def _demanded(
    checkpoint: Checkpoint, family: Family, engine: Engine, scheme: Scheme | None
) -> tuple[Scheme | None, Check]:
    """The scheme of a draft beside this checkpoint, None where the engine refuses it, or it can be no target."""
    if checkpoint.only_source:
        return None, Check("scheme", "not checked", f"a source, no target: {checkpoint.only_source}")
    if scheme is not None:
        return scheme, Check("scheme", "passed", f"as given: {scheme.name}")
    try:
        found = engine.demands(checkpoint, None, family)
    except MtpforgeError as error:
        return None, Check("scheme", "warning", f"no draft can be made for it: {error.what}; {error.why}", error.fix)
    return found, Check("scheme", "passed", f"{engine.name} would build a draft as {found.name}")


def _layer(checkpoint: Checkpoint, family: Family, engine: Engine) -> tuple[StoredLayer | None, Check]:
    """The layer as stored; absent is an answer, one that cannot be read a failure."""
    try:
        layer = stored_layer(checkpoint, family)
    except MtpforgeError as error:
        verdict: Verdict = "failed" if has_layer(checkpoint, family) else "not checked"
        is_served = checkpoint.names and not checkpoint.only_source
        said = [f"{error.what}: {error.why}" if error.why else error.what]
        said += [f"without a draft {engine.without_layer(family)}"] if is_served and verdict != "failed" else []
        return None, Check("MTP layer", verdict, "; ".join(said), error.fix)
    tensors = sum(len(m.parts) for m in layer.modules.values()) + len(layer.plain) + len(layer.dropped)
    alone = ", and nothing else: a draft or a source, no target" if traps.only_layer(checkpoint, family) else ""
    detail = f"layer {layer.layer}, {layer.n_experts} experts, {tensors} tensors{alone}"
    return layer, Check("MTP layer", "passed", detail)


def _as_it_is(checkpoint: Checkpoint, family: Family, engine: str, asked: Scheme | None, layer: StoredLayer) -> Check:
    judge = engine_of(engine)
    differing = mismatches(layer, checkpoint, family, judge, asked)
    if not differing:
        return Check("loads as it is", "passed", f"every tensor is what {judge.name} would build it as")
    listed = "; ".join(differing[:_SHOWN]) + (f"; and {len(differing) - _SHOWN} more" if differing[_SHOWN:] else "")
    fix = f"`{' '.join(('mtpforge build --target', shown(checkpoint.label), *named(engine)))}`"
    return Check("loads as it is", "warning", f"{judge.name} would not load it: {listed}", fix)


def _traps(
    checkpoint: Checkpoint, family: Family, engine: Engine, scheme: Scheme | None, serving: Serving | None
) -> tuple[Trap, ...]:
    found = [*engine.target_traps(checkpoint, family), *traps.found(checkpoint, checkpoint, family, engine)]
    found = [trap for trap in found if trap.id != traps.ONLY_LAYER]  # no fault of a source; the check says it
    if scheme is not None and serving is not None:
        found += engine.serving_traps(family, checkpoint.config, scheme, serving)
    return tuple(dict.fromkeys(found))


def _experts_by_layer(family: Family, names: Iterable[str]) -> dict[str, int]:
    """Layer range -> experts, from names alone: `{"3-77": 156, "78": 256}`; dense layers are left out."""
    by_layer: dict[int, list[str]] = {}
    for name in names:
        if match := _LAYER.match(name):
            by_layer.setdefault(int(match[1]), []).append(name)
    counts = {layer: len(expert_numbers(family, held)) for layer, held in sorted(by_layer.items())}
    ranges: list[tuple[int, int, int]] = []
    for layer, count in counts.items():
        if count and ranges and ranges[-1][1:] == (layer - 1, count):
            ranges[-1] = (ranges[-1][0], layer, count)
        elif count:
            ranges.append((layer, layer, count))
    return {str(first) if first == last else f"{first}-{last}": count for first, last, count in ranges}


def _method(checkpoint: Checkpoint) -> str:
    """As the config names it; MLX and older ModelOpt name none, and are told by their keys."""
    block = checkpoint.quantization
    method = block.get("quant_method") or ""
    if not method:
        with suppress(MtpforgeError):  # what is wrong with it is said where it is used
            method = parse(block).method
    algorithm = block.get("quant_algo") or block.get("format") or block.get("mode") or ""
    return shown(f"{method} {algorithm}".strip()) or "none"


def _mtp(checkpoint: Checkpoint, family: Family, layer: StoredLayer | None) -> dict[str, object]:
    number = family.layer(checkpoint.config)
    prefix = family.prefix(number)
    strays = checkpoint.strays(prefix)
    facts: dict[str, object] = {
        "layer": number,
        "present": has_layer(checkpoint, family),
        "strays": [{"name": s.name, "files": s.files, "indexed": s.indexed} for s in strays],
    }
    if layer is None:
        return facts
    refs = [*(r for m in layer.modules.values() for r in m.parts.values()), *layer.plain.values()]
    return facts | {
        "files": sorted({ref.file for ref in refs}),
        "n_experts": layer.n_experts,
        "n_tensors": len(refs) + len(layer.dropped),
        "n_bytes": sum(ref.stop - ref.start for ref in refs),
        "bits": min(m.quantization.bits for m in layer.modules.values()),
        "stored": _rows_stored(layer),
        "dropped": [{"name": name, "n_bytes": n_bytes, "reason": reason} for name, n_bytes, reason in layer.dropped],
    }


def _rows_stored(layer: StoredLayer) -> list[dict[str, object]]:
    """One row per kind and stored form, in the family's order."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for module in layer.modules.values():
        row = rows.setdefault((module.module.kind, label(module.quantization), module.quantization.format), [0, 0])
        row[0] += 1
        row[1] += sum(ref.stop - ref.start for ref in module.parts.values())
    for ref in layer.plain.values():
        row = rows.setdefault(("norms and biases", ref.spec.dtype, "dense"), [0, 0])
        row[0] += 1
        row[1] += ref.stop - ref.start
    return [
        {"kind": kind, "stored": stored, "format": form, "n": n, "n_bytes": n_bytes}
        for (kind, stored, form), (n, n_bytes) in rows.items()
    ]


def _rows_demanded(family: Family, checkpoint: Checkpoint, scheme: Scheme) -> list[dict[str, object]]:
    """One row per kind, form and reason: what a draft's modules would be."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for module in family.modules(checkpoint.config, 1):
        rule = scheme.of(module.template)
        rows.setdefault((module.kind, label(rule.quantization), rule.reason), []).append(module.template)
    return [
        {"kind": kind, "wanted": wanted, "reason": reason, "modules": modules}
        for (kind, wanted, reason), modules in rows.items()
    ]
