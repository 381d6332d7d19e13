"""The command line: `sglang serve`, the shared-expert trap, and what a layer cut over ranks takes.

Source: sglang srt/arg_groups/speculative_hook.py, models/{deepseek_v2,deepseek_nextn}.py (0.5.23).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.command import Command, Flag, keys_of
from mtpforge.engines.engine import Serving
from mtpforge.engines.sglang.draft_classes import DraftClass, draft_class
from mtpforge.families import Family
from mtpforge.formats import label, whole
from mtpforge.report import Trap
from mtpforge.scheme import Scheme
from mtpforge.tensors import Quantization, Spec

_HOOK: Final = "srt/arg_groups/speculative_hook.py (0.5.23)"
_ARGUMENTS: Final = "srt/server_args.py (0.5.23)"
# Fp8Config.get_min_capability with MXFP8 (layers/quantization/fp8.py, 0.5.23).
_ON_BLACKWELL: Final = ("mxfp8",)
_HOPPER, _BLACKWELL = 90, 100
# create_moe_runner of both asks for it; the target's runner is the draft's default.
_BY_MARLIN: Final = ("awq", "gptq", "gptq_v2")
_MARLIN: Final = "layers/quantization/awq/schemes/awq_moe.py (0.5.23)"
_UNFUSED: Final = "--disable-shared-experts-fusion"
_SHARED, _ROUTED = "mlp.shared_experts.", "mlp.experts.*."


def serve(target: Checkpoint, draft_path: str, serving: Serving, scheme: Scheme) -> Command:
    """The command that serves a target with a draft, each flag with its reason; the draft's path is made absolute.

    A draft at the target's own location is the target's own layer: SGLang takes it where no draft is named.
    """
    flags = (
        [Flag("--revision", target.revision, "the commit that was looked at", "`--target`")] if target.revision else []
    )
    flags += _speculative(target, draft_path, serving)
    if _must_stay_apart(scheme):
        reason = "shared experts are stored otherwise than routed ones; made one of them they would match nothing"
        flags.append(Flag(_UNFUSED, None, reason, "models/deepseek_v2.py (0.5.23)"))
    if scheme.of(f"{_ROUTED}up_proj").quantization.format in _BY_MARLIN:
        reason = (
            "experts of AWQ and GPTQ take the runner of their method; else it is the target's, another on Blackwell"
        )
        flags.append(Flag("--speculative-moe-runner-backend", "auto", reason, _MARLIN))
    if serving.overrides:
        keys = keys_of(serving.overrides, "as asked for", "overrides of the call")
        flags.append(Flag("--json-model-override-args", keys, "what the target's config.json does not say", _ARGUMENTS))
    flags += _asked_for(serving)
    return Command(("sglang", "serve", "--model-path", target.location), tuple(flags))


def _speculative(target: Checkpoint, draft_path: str, serving: Serving) -> Iterator[Flag]:
    yield Flag("--speculative-algorithm", "NEXTN", "SGLang drafts only where told to", _HOOK)
    if draft_path != target.location:
        reason = "the draft's folder; without it SGLang takes the layer of the target"
        yield Flag("--speculative-draft-model-path", str(Path(draft_path).absolute()), reason, _HOOK)
    elif target.revision:
        reason = "the target's own layer, at the same commit"
        yield Flag("--speculative-draft-model-revision", target.revision, reason, _HOOK)
    steps = serving.speculative_tokens
    yield Flag("--speculative-num-steps", steps, "tokens that are drafted at a time", "`-k`; 3 unless asked otherwise")
    yield Flag("--speculative-eagle-topk", 1, "one guess for each of them, no tree", _HOOK)
    reason = "as many and one: the first is the target's own"
    yield Flag("--speculative-num-draft-tokens", steps + 1, reason, _HOOK)


def _asked_for(serving: Serving) -> Iterator[Flag]:
    """Flags that say how it is served, where that is not SGLang's default."""
    if serving.tensor_parallel > 1:
        reason = "ranks that target and draft are cut over; the sizes divide"
        yield Flag("--tp-size", serving.tensor_parallel, reason, "`--tp`")
    if serving.expert_parallel:
        yield Flag("--ep-size", serving.tensor_parallel, "whole experts are dealt out over the ranks", "`--ep`")
    if serving.port is not None:
        yield Flag("--port", serving.port, "where the server listens", "`--port`")


def _must_stay_apart(scheme: Scheme) -> bool:
    """Whether shared experts are stored otherwise than the routed ones.

    SGLang makes expert N + 1 of them where the class, the device and the block allow; stored otherwise they match
    nothing, and the server drafts from what memory held.
    """
    return any(
        scheme.of(_SHARED + last).quantization != scheme.of(_ROUTED + last).quantization
        for last in ("gate_proj", "up_proj", "down_proj")
    )


def path_traps(_path: str) -> tuple[Trap, ...]:
    """Nothing in a path means anything to SGLang."""
    return ()


def serving_traps(family: Family, config: Mapping[str, object], scheme: Scheme, serving: Serving) -> tuple[Trap, ...]:
    """Counts below one, and heads, rows or columns that ranks would cut where nothing may be cut."""
    if serving.tensor_parallel < 1:
        return (Trap("tensor-parallel-size", "error", "the tensor parallel size must be 1 or more", "`--tp 1`"),)
    if serving.speculative_tokens < 1:
        return (Trap("speculative-tokens", "error", "at least one token must be drafted", "`-k 1`"),)
    found = tuple(_cuts(family, config, scheme, serving.tensor_parallel, whole_experts=serving.expert_parallel))
    if not found:
        return _of_the_device(scheme)
    fit = (
        n
        for n in range(serving.tensor_parallel - 1, 0, -1)
        if not tuple(_cuts(family, config, scheme, n, whole_experts=serving.expert_parallel))
    )
    fix = f"`--tp {next(fit, 1)}`"
    return tuple(Trap("not-divisible", "error", message, fix) for message in found)


def least_capability(scheme: Scheme) -> int:
    """The least compute capability, as 90 for 9.0, of Hopper or newer, on which SGLang takes a draft in a scheme."""
    return _BLACKWELL if any(rule.quantization.format in _ON_BLACKWELL for rule in scheme.rules) else _HOPPER


def _of_the_device(scheme: Scheme) -> tuple[Trap, ...]:
    if least_capability(scheme) == _HOPPER:
        return ()
    said = "SGLang takes MXFP8 on Blackwell and newer GPUs alone (`Minimum capability: 100`)"
    return (Trap("compute-capability", "note", said, "on Hopper `--scheme fp8-block128`"),)


def _cuts(
    family: Family, config: Mapping[str, object], scheme: Scheme, ranks: int, *, whole_experts: bool
) -> Iterator[str]:
    known, text = draft_class(family), family.text(config)
    for key in known.head_counts if ranks > 1 else ():
        heads, of_keys = text.get(key), key in known.repeated.values()
        if not isinstance(heads, int):
            continue
        # Fewer key and value heads than ranks are repeated, all equally often (QKVParallelLinear, 0.5.23).
        is_repeated = of_keys and ranks > heads
        if ranks % heads if is_repeated else heads % ranks:
            said = "repeated" if is_repeated else "split"
            yield f"{heads} {'key and value' if of_keys else 'attention'} heads cannot be {said} over {ranks} ranks"
    for module in family.modules(config, 1) if ranks > 1 else ():
        name = module.template.rpartition(".")[2]
        axis = known.split.get(name)
        if axis is None or (whole_experts and module.expert is not None):
            continue
        quantization = scheme.of(module.template).quantization
        size = module.shape[0 if axis == "out" else 1]
        if size % (_parts(known, text, name, ranks) * _unit(quantization, axis)):
            counted = f"{size} {'rows' if axis == 'out' else 'columns'}"
            yield f"`{module.template}`: {counted} over {ranks} ranks cut a scale or a word of {label(quantization)}"


def _parts(known: DraftClass, text: Mapping[str, object], name: str, ranks: int) -> int:
    """Into how many a split module is cut: heads that are repeated are cut no further than one by one."""
    heads = text.get(known.repeated.get(name, ""))
    return min(ranks, heads) if isinstance(heads, int) else ranks


def _unit(q: Quantization, axis: str) -> int:
    """Rows or columns that one rank must hold a multiple of."""
    if q.block is not None:
        return q.block[0 if axis == "out" else 1]
    return q.group_size if axis == "in" and q.group_size else whole(q)[0 if axis == "out" else 1]


def memory(family: Family, config: Mapping[str, object], specs: Mapping[str, Spec], serving: Serving) -> int:
    """Bytes of weights that a draft adds on one rank; its KV cache and the shared embedding and head not counted."""
    ranks, known, text = max(serving.tensor_parallel, 1), draft_class(family), family.text(config)

    def parts(name: str, spec: Spec) -> int:
        split = next((part for part in name.split(".") if part in known.split), "")
        return _parts(known, text, split, ranks) if split and spec.shape else 1

    return sum(-(-spec.n_bytes // parts(name, spec)) for name, spec in specs.items())
