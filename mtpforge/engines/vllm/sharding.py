"""How vLLM splits the layer over ranks: what refuses to divide, and how many bytes one rank holds.

Source: vllm model_executor/layers: linear.py, fused_moe, quantization/{fp8,compressed_tensors} (0.33.0). Which modules
are split along which axis is the draft class's; the rest lies on every rank. With expert parallelism whole experts are
dealt out instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm.draft_classes import Axis, DraftClass, draft_class
from mtpforge.families import Family, Module
from mtpforge.formats import label, whole
from mtpforge.report import Trap
from mtpforge.scheme import Scheme
from mtpforge.tensors import Quantization, Spec


def serving_traps(family: Family, config: Mapping[str, object], scheme: Scheme, serving: Serving) -> tuple[Trap, ...]:
    """Ways to serve that vLLM refuses for this layer and scheme; a fix is the nearest way that it does not refuse."""
    if counts := tuple(_counts(serving)):
        return counts
    found = _refusals(family, config, scheme, serving)
    if not found:
        return ()
    fewer = (replace(serving, tensor_parallel=n) for n in range(serving.tensor_parallel - 1, 0, -1))
    ways = [f"`--tp {s.tensor_parallel}`" for s in fewer if not _refusals(family, config, scheme, s)][:1]
    whole = replace(serving, expert_parallel=True)
    if whole != serving and not _refusals(family, config, scheme, whole):
        ways.insert(0, "`--ep`")
    return tuple(replace(trap, fix=", or ".join(ways)) for trap in found)


def memory(family: Family, config: Mapping[str, object], specs: Mapping[str, Spec], serving: Serving) -> int:
    """Bytes of weights that a draft adds on one rank; its KV cache and the shared embedding and head not counted."""
    ranks, known, text = max(serving.tensor_parallel, 1), draft_class(family), family.text(config)

    def parts(name: str, spec: Spec) -> int:
        split = next((part for part in name.split(".") if part in known.split), "")
        return _parts(known, text, split, ranks) if split and spec.shape else 1

    return sum(-(-spec.n_bytes // parts(name, spec)) for name, spec in specs.items())


def _counts(serving: Serving) -> Iterator[Trap]:
    if serving.tensor_parallel < 1:
        yield Trap("tensor-parallel-size", "error", "the tensor parallel size must be 1 or more", "`--tp 1`")
    if serving.speculative_tokens < 1:
        yield Trap(
            "speculative-tokens", "error", "at least one token must be drafted", "num_speculative_tokens 1 or more"
        )


def _refusals(family: Family, config: Mapping[str, object], scheme: Scheme, serving: Serving) -> tuple[Trap, ...]:
    """Heads that do not divide, else axes that do not; no fix is named yet."""
    known, text = draft_class(family), family.text(config)
    return tuple(_heads(known, text, serving.tensor_parallel)) or tuple(
        _axes(known, text, family.modules(config, 1), scheme, serving)
    )


def _heads(known: DraftClass, text: Mapping[str, object], ranks: int) -> Iterator[Trap]:
    for key in known.head_counts:
        heads = text.get(key)
        if not isinstance(heads, int):
            continue
        # Fewer key and value heads than ranks are repeated, all equally often (QKVParallelLinear).
        repeated = key in known.repeated.values() and ranks > heads
        if ranks % heads if repeated else heads % ranks:
            yield Trap(
                "heads-not-divisible",
                "error",
                f"{heads} {'key and value' if key in known.repeated.values() else 'attention'} heads cannot be"
                f" {'repeated' if repeated else 'split'} over {ranks} ranks",
            )


def _axes(
    known: DraftClass, text: Mapping[str, object], modules: tuple[Module, ...], scheme: Scheme, serving: Serving
) -> Iterator[Trap]:
    last = {module.fused: module.name for module in modules if module.fused}
    for module in modules:
        quantization = scheme.of(module.template).quantization
        axis, ranks = _split(known, text, module, serving)
        if not _must_divide(module, quantization, ranks, last):
            continue
        size = module.shape[0 if axis == "out" else 1]
        unit, what = _unit(quantization, axis)
        if size % (ranks * unit):
            counted = f"{size} {'rows' if axis == 'out' else 'columns'}"
            yield Trap(
                "not-divisible",
                "error",
                f"`{module.template}`: {counted} over {ranks} ranks cut {what}"
                if ranks > 1
                else f"`{module.template}`: {counted} cut {what}, and the next matrix of `{module.fused}` begins there",
                where=label(quantization),
            )


def _split(known: DraftClass, text: Mapping[str, object], module: Module, serving: Serving) -> tuple[Axis, int]:
    """The axis along which a module is cut, and into how many parts; one part where it lies whole on every rank."""
    name = module.template.rpartition(".")[2]
    axis = known.split.get(name)
    if axis is None or (module.expert is not None and serving.expert_parallel):
        return axis or "out", 1
    return axis, _parts(known, text, name, serving.tensor_parallel)


def _parts(known: DraftClass, text: Mapping[str, object], name: str, ranks: int) -> int:
    """Into how many a split module is cut: heads that are repeated are cut no further than one by one."""
    heads = text.get(known.repeated.get(name, ""))
    return min(ranks, heads) if isinstance(heads, int) else ranks


def _must_divide(module: Module, quantization: Quantization, ranks: int, last: Mapping[str, str]) -> bool:
    """Whether vLLM looks at all: at what is cut, and at FP8 blocks where another matrix begins behind this one.

    The last block of a matrix may be cut short, but for gate and up of the experts (validate_fp8_block_shape and
    validate_fp8_block_shape_moe in quantization/utils/fp8_utils.py).
    """
    if ranks > 1:
        return True
    begins = module.expert is not None or module.name != last.get(module.fused)
    return quantization.block is not None and bool(module.fused) and begins


def _unit(q: Quantization, axis: Axis) -> tuple[int, str]:
    """Rows or columns that one rank must hold a multiple of, and what would be cut otherwise."""
    if q.block is not None:
        return q.block[0 if axis == "out" else 1], f"the {q.block[0]} x {q.block[1]} blocks of a scale"
    if axis == "in" and q.group_size:
        return q.group_size, f"the groups of {q.group_size} that share a scale"
    packed = whole(q)[0 if axis == "out" else 1]
    if packed > 1:
        return packed, "the words of 32 bits that hold several numbers"
    return 1, "a row" if axis == "out" else "a column"
