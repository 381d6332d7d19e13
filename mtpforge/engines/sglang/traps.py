"""What in a target, or in a draft's config beside it, would make SGLang refuse, or draft badly without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines import fields
from mtpforge.engines.rope import rope_seen
from mtpforge.engines.sglang.draft_classes import draft_class
from mtpforge.engines.sglang.matrices import questions
from mtpforge.engines.sglang.quantization_methods import decide
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.report import Trap
from mtpforge.scheme import Scheme

_TARGET: Final = "target's config.json"
_DRAFT: Final = "draft's config.json"
_NEXTN: Final = "num_nextn_predict_layers"
_DTYPE: Final = "bfloat16"


def target_traps(target: Checkpoint, family: Family) -> tuple[Trap, ...]:
    """What is wrong in the target itself: experts with zero points in a format that it loads without them alone.

    AWQ's load; those of compressed-tensors do not (0.5.14 to 0.5.23): rows `symmetric` of its classes.
    """
    last = family.prefix(family.layer(target.config) - 1)
    try:
        block = parse(_of_its_files(target))
        experts = [
            (decide(block, asked)[0], asked) for asked in questions(family, target.config, last) if asked.experts
        ]
    except MtpforgeError:
        return ()
    known = draft_class(family)
    if not any(known.refusal(t, q) for q, asked in experts if not q.symmetric for t in asked.templates):
        return ()
    message = (
        "the target's experts have zero points: SGLang 0.5.14 to 0.5.23 reads them untransposed and in another order"
    )
    fix = "serve this target with another engine, or name one with symmetric experts in its place"
    return (Trap("asymmetric-experts", "warning", message, fix, where=f"{_TARGET}, quantization_config", silent=True),)


def _of_its_files(target: Checkpoint) -> Mapping[str, object]:
    """The block that SGLang reads: a target is restated to vLLM alone, also where one draft is for both."""
    raw = target.small_file(metadata.CONFIG) if target.is_restated else None
    return target.quantization if raw is None else metadata.quantization(metadata.config(raw), target.small_file)


def draft_traps(
    target_config: Mapping[str, object], draft_config: Mapping[str, object], family: Family, _scheme: Scheme
) -> tuple[Trap, ...]:
    """What in a draft's config is missing, or differs from its target's. SGLang compares none of it."""
    target, draft = family.text(target_config), family.text(draft_config)
    return (
        *_identity(draft_config, draft, family),
        *_differing(target, draft, family),
        *_experts(target, draft, family),
    )


def block_traps(block: Mapping[str, object], is_quantized: bool) -> tuple[Trap, ...]:
    """A quantized draft without a block is built dense, whatever the target is."""
    if not is_quantized or block:
        return ()
    said = "the draft is quantized and its config has no quantization block: SGLang would build it dense"
    return (Trap("no-draft-block", "error", said, where=f"{_DRAFT}, quantization_config"),)


def _identity(whole: Mapping[str, object], draft: Mapping[str, object], family: Family) -> Iterator[Trap]:
    if draft.get("model_type") not in family.model_types:
        yield _wrong("model_type", draft.get("model_type"), family.model_types[0], silent=False)
    if whole.get("architectures") != [family.architecture]:
        yield _wrong("architectures", whole.get("architectures"), [family.architecture], silent=False)
    if draft.get(_NEXTN) != 1:
        yield _wrong(_NEXTN, draft.get(_NEXTN), 1, silent=False)
    dtype = draft.get("dtype") or draft.get("torch_dtype")
    if dtype != _DTYPE:  # without one SGLang takes float16, without a word
        yield _wrong("dtype", dtype, _DTYPE, silent=True)


def _differing(target: Mapping[str, object], draft: Mapping[str, object], family: Family) -> Iterator[Trap]:
    known = draft_class(family)
    for field in (*known.required, *known.optional, *known.defaults):
        default = known.defaults.get(field)
        ours, theirs = (config.get(field, default) for config in (draft, target))
        if ours != theirs or (ours is None and field not in known.optional):
            yield _wrong(field, draft.get(field), theirs, silent=ours is not None)
    if known.turns and rope_seen(draft, {}) != rope_seen(target, {}):
        yield _wrong("rope_parameters", rope_seen(draft, {}), rope_seen(target, {}), silent=True)


def _experts(target: Mapping[str, object], draft: Mapping[str, object], family: Family) -> Iterator[Trap]:
    first, twins = family.expert_keys[0], draft_class(family).expert_count_twins
    stale = {key: draft[key] for key in twins if draft.get(key) not in (None, draft.get(first))}
    if stale:
        said = " and ".join(f"`{key}` {shown(value)}" for key, value in stale.items())
        yield Trap(
            "stale-num-experts",
            "error",
            f"the draft's config says `{first}` {shown(draft.get(first))} and {said}, and SGLang takes the latter",
            f"delete all but `{first}`, or {{anew}}",
            where=f"{_DRAFT}, {', '.join(stale)}",
            silent=True,
        )
    ours, theirs = draft.get(first), target.get(first)
    if isinstance(ours, int) and isinstance(theirs, int) and ours < theirs:
        said = f"the draft has {ours} experts, the target {theirs}: SGLang loads it"
        yield Trap("expert-count", "note", said, where=f"{_DRAFT}, {first}")


def _wrong(field: str, ours: object, theirs: object, *, silent: bool) -> Trap:
    return fields.wrong("SGLang", field, ours, theirs, silent=silent, remedy="{anew}")
