"""What in a target, or in a draft's config beside it, would make vLLM refuse, or draft badly without a word."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import fields
from mtpforge.engines.rope import rope_seen
from mtpforge.engines.vllm.demands import scheme_under
from mtpforge.engines.vllm.draft_classes import DraftClass, draft_class
from mtpforge.engines.vllm.draft_head import quantized_head
from mtpforge.engines.vllm.expert_counts import cure, stale_counts
from mtpforge.engines.vllm.quantization_methods import KNOWN
from mtpforge.engines.vllm.serving import NEXTN, overrides_of
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.families.counting import stored_experts
from mtpforge.formats import label
from mtpforge.report import Trap
from mtpforge.scheme import Scheme

_TARGET: Final = "target's config.json"
_DRAFT: Final = "draft's config.json"
_MAPPING: Final = "packed_modules_mapping"
_MAPPED: Final = frozenset({"compressed-tensors"})  # methods whose forks resolve fused names by the mapping
_REBUILD: Final = "{anew}"  # whoever knows the command puts it in


def target_traps(target: Checkpoint, family: Family) -> tuple[Trap, ...]:
    """What is wrong or missing in the target itself. Files and strays are judged elsewhere."""
    text = family.text(target.config)
    found = [*_nextn_of_target(target.config, text), *_stale_count(target, text, family)]
    if any(name.startswith(family.prefix(family.layer(target.config))) for name in target.names):
        found += _not_fixed(target, text, draft_class(family))
    if text.get("mtp_quantization_config") is not None:
        found.append(
            Trap(
                "mtp-quantization-config",
                "warning",
                "`mtp_quantization_config` is read by patched builds only: vLLM quantizes the layer as the rest of the"
                " config says, and the target's own layer ends in a KeyError",
                f"serve with a draft: `mtpforge build --target {shlex.quote(target.label)}`",
                where=f"{_TARGET}, mtp_quantization_config",
                draft_cures=True,
            )
        )
    return (*found, *_quantized_head(target, family))


def draft_traps(
    target_config: Mapping[str, object], draft_config: Mapping[str, object], family: Family, scheme: Scheme
) -> tuple[Trap, ...]:
    """What in a draft's config is missing, or differs from its target's. vLLM compares none of it."""
    target, draft, known = family.text(target_config), family.text(draft_config), draft_class(family)
    fixed = ((field, fixed.value) for field, fixed in known.fixed.items() if draft.get(field) != fixed.value)
    return (
        *_identity(draft_config, draft, family),
        *_differing(target, draft, known),
        *(_wrong(field, draft.get(field), value, silent=True) for field, value in fixed),
        *_of_another_class(draft, draft_config.get("quantization_config"), family, known),
        *_experts(target, draft, family.expert_keys[0], known),
        *_nextn_of_draft(draft),
        *_stated(draft_config, family, scheme),
    )


def block_traps(block: Mapping[str, object], is_quantized: bool) -> tuple[Trap, ...]:
    """What forks would make of a draft's own block, and vLLM's completeness check of its presence."""
    if not is_quantized and block:
        said = "the draft is dense and has a quantization block, which turns the engine's own completeness check off"
    elif is_quantized and not block:
        said = "the draft is quantized and its config has no quantization block; forks would build it dense"
    elif is_quantized and block.get("quant_method") in _MAPPED and not isinstance(block.get(_MAPPING), Mapping):
        said = f"no `{_MAPPING}` in the quantization block; forks that read it fail on fused projections"
    else:
        return ()
    return (Trap("draft-block-beside-tensors", "warning", said, where=f"{_DRAFT}, quantization_config"),)


def _nextn_of_target(config: Mapping[str, object], text: Mapping[str, object]) -> Iterator[Trap]:
    needed = overrides_of(config)
    if needed:
        zero = NEXTN in text
        yield Trap(
            "nextn-field",
            "warning",
            f"the target's config says `{NEXTN}` {shown(text.get(NEXTN))}: vLLM builds no MTP layer and drops every"
            " draft tensor"
            if zero
            else f"the target's config has no `{NEXTN}`: vLLM stops with an AttributeError",
            f"--hf-overrides '{json.dumps(needed)}'",
            where=f"{_TARGET}, {NEXTN}",
            silent=zero,
        )
    elif text.get(NEXTN) != 1:
        yield Trap(
            "nextn-layers",
            "warning",
            f"the target's config counts {shown(text.get(NEXTN))} MTP layers, a draft holds the first",
            f"--hf-overrides '{json.dumps({NEXTN: 1})}'",
            where=f"{_TARGET}, {NEXTN}",
        )


def _stale_count(target: Checkpoint, text: Mapping[str, object], family: Family) -> Iterator[Trap]:
    stale, first = stale_counts(target, family), family.expert_keys[0]
    if not stale:
        return
    stored = stored_experts(family, target)
    said = " and ".join(f"`{key}` {shown(value)}" for key, value in stale.items())
    beside = "" if first in stale else f"`{first}` {shown(text[first])} but "
    yield Trap(
        "stale-num-experts",
        "warning",
        f"the target's config says {beside}{said}, and vLLM takes the latter"
        + (f"; its headers hold {stored}" if stored else ""),
        cure(target, family),
        where=f"{_TARGET}, {', '.join(stale)}",
    )


def _not_fixed(target: Checkpoint, text: Mapping[str, object], known: DraftClass) -> Iterator[Trap]:
    for field, fixed in known.fixed.items():
        if text.get(field) != fixed.value:
            yield Trap(
                fixed.trap,
                "warning",
                f"the target carries an MTP layer, but its config has no `{field}`: {fixed.why}",
                f"serve with a draft of the same bytes: `mtpforge build --target {shlex.quote(target.label)}`",
                where=f"{_TARGET}, {field}",
                silent=True,
                draft_cures=True,
            )


def _quantized_head(target: Checkpoint, family: Family) -> Iterator[Trap]:
    if name := quantized_head(target.quantization, target.config, family):
        yield Trap(
            "quantized-head",
            "warning",
            f"no entry excludes `{name}`: vLLM builds it in NVFP4 before the target's head takes its place, and stops"
            " with `NVFP4 weight_scale for layer 'parallel_lm_head' was never loaded`",
            "start vLLM by the command that `mtpforge serve` prints, which excludes it by --hf-overrides; or add"
            f' "{name}" to the target\'s exclusion list',
            where=f"{_TARGET}, quantization_config",
        )


def _identity(whole: Mapping[str, object], draft: Mapping[str, object], family: Family) -> Iterator[Trap]:
    known = draft_class(family)
    if draft.get("model_type") not in family.model_types:
        yield _wrong("model_type", draft.get("model_type"), family.model_types[0], silent=False)
    elif known.wrapper and whole.get("model_type") != known.wrapper:
        yield _wrong("model_type", whole.get("model_type"), known.wrapper, silent=False)
    named = whole.get("architectures")
    if not isinstance(named, list) or not named:
        yield _wrong("architectures", named, [family.architecture], silent=False)


def _differing(target: Mapping[str, object], draft: Mapping[str, object], known: DraftClass) -> Iterator[Trap]:
    for field in known.compared:
        ours, theirs = known.seen(draft, field), known.seen(target, field)
        if _is_null(draft, field) and not _is_null(target, field):
            ours = None  # null is what the engine is given; only an absent key gets its default
        if ours != theirs:
            yield _wrong(field, draft.get(field), theirs, silent=field in known.defaults or ours is not None)
        elif ours is None and field in known.required:
            yield _wrong(field, None, "the published base model's value", silent=False)
    if rope_seen(draft, known.rope) != rope_seen(target, known.rope):
        yield _wrong("rope_parameters", rope_seen(draft, known.rope), rope_seen(target, known.rope), silent=True)
    ours, theirs = draft.get("max_position_embeddings"), target.get("max_position_embeddings")
    if ours != theirs:
        yield Trap(
            "config-max_position_embeddings",
            "note",
            f"`max_position_embeddings` is {shown(ours)}, the target's {shown(theirs)}; vLLM raises a smaller one",
            where=f"{_DRAFT}, max_position_embeddings",
        )


def _of_another_class(draft: Mapping[str, object], block: object, family: Family, known: DraftClass) -> Iterator[Trap]:
    """What is not true of the class that vLLM runs the draft with: taken over from another model's draft."""
    for field, value in known.computed.items():
        if draft.get(field) not in (None, value):
            yield _wrong(field, draft[field], value, silent=True)
    stated = block.get(_MAPPING) if isinstance(block, Mapping) else None
    held = {row.template.rpartition(".")[2] for row in family.module_rows}
    for name, parts in stated.items() if isinstance(stated, Mapping) else ():
        if parts != known.packed.get(name) and (
            name in known.packed or not isinstance(parts, list) or {*map(str, parts)} - held
        ):
            must = f"it must be {json.dumps(known.packed[name])}" if name in known.packed else "the layer has no such"
            yield Trap(
                "foreign-mapping",
                "error",
                f"the draft's `{_MAPPING}` says `{shown(name)}` is {shown(json.dumps(parts, default=str))}, {must};"
                " vLLM would not notice, forks and SGLang read it",
                f"delete `{_MAPPING}` from the draft's config.json, or {_REBUILD}",
                where=f"{_DRAFT}, quantization_config.{_MAPPING}",
                silent=True,
            )


def _is_null(config: Mapping[str, object], field: str) -> bool:
    return field in config and config[field] is None


def _experts(
    target: Mapping[str, object], draft: Mapping[str, object], first: str, known: DraftClass
) -> Iterator[Trap]:
    counts = {key: draft[key] for key in (first, *known.expert_count_twins) if draft.get(key) is not None}
    if not counts:
        yield _wrong(first, None, target.get(first), silent=False)
        return
    if len(set(map(str, counts.values()))) > 1:
        said = " and ".join(f"`{key}` {shown(value)}" for key, value in counts.items())
        yield Trap(
            "stale-num-experts",
            "error",
            f"the draft's config says {said}, and vLLM takes the latter",
            f"delete all but `{first}`, or {_REBUILD}",
            where=f"{_DRAFT}, {', '.join(counts)}",
            silent=True,
        )
    ours, theirs = known.experts_seen(draft), target.get(first, known.experts_seen(target))
    if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
        loads = ours < theirs and known.sized_by == "draft"
        stops = f"stops at expert {theirs}" if ours > theirs else "stops at the router, sized by the target's config"
        yield Trap(
            "expert-count",
            "note" if loads else "error",
            f"the draft has {ours} experts, the target {theirs}: vLLM {'loads it' if loads else stops}",
            "" if loads else _REBUILD,
            where=f"{_DRAFT}, {first}",
        )


def _nextn_of_draft(draft: Mapping[str, object]) -> Iterator[Trap]:
    if draft.get(NEXTN) != 1:
        yield _wrong(NEXTN, draft.get(NEXTN), 1, silent=False)


def _stated(config: Mapping[str, object], family: Family, scheme: Scheme) -> Iterator[Trap]:
    block = config.get("quantization_config")
    if not isinstance(block, Mapping):
        return
    where = f"{_DRAFT}, quantization_config"
    method = block.get("quant_method")
    if not isinstance(method, str) or method.lower() not in KNOWN:
        yield Trap(
            "draft-method",
            "error",
            f"the draft's quant_method is {shown(repr(method))}, which vLLM does not know: it would not start",
            _REBUILD,
            where=f"{where}.quant_method",
        )
        return
    try:
        stated = scheme_under(config, dict(block), family)
    except MtpforgeError as error:
        yield Trap(
            "draft-block", "warning", f"the draft's own block cannot be read: {error.what}", _REBUILD, where=where
        )
        return
    other = [r.pattern for r in stated.rules if r.quantization != scheme.of(r.pattern).quantization]
    if other:
        first = stated.of(other[0]).quantization
        yield Trap(
            "draft-block",
            "warning",
            f"the draft's own block says {label(first)} for `{other[0]}`, the target asks for"
            f" {label(scheme.of(other[0]).quantization)}: vLLM follows the target, forks may not",
            _REBUILD,
            where=where,
        )


def _wrong(field: str, ours: object, theirs: object, *, silent: bool) -> Trap:
    return fields.wrong("vLLM", field, ours, theirs, silent=silent, remedy=_REBUILD)
