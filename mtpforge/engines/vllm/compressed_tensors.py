"""vLLM's reading of a compressed-tensors config: ignore list first, then targets by name, by parts, by class.

Source: vllm quantization/compressed_tensors/compressed_tensors.py, utils.py, compressed_tensors_moe.py (0.33.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mtpforge.checkpoint.quantization import Group, QuantConfig, quantization_of
from mtpforge.engines.expressions import exact_or_regex, quoted
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import listed
from mtpforge.engines.vllm.refusals import refused
from mtpforge.engines.vllm.weight_schemes import OF_ACTIVATIONS, PACKED, RefusalError, Stored, experts, linear
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.tensors import BF16, Quantization


def decide(block: QuantConfig, asked: Asked) -> tuple[Quantization, str]:
    """How vLLM would build a matrix. Of the experts, expert 0 is asked for all; its three projections must agree."""
    _refuse_whole(block)
    if not asked.experts:
        return _quantized(block, asked, _group(block, asked))
    answers = [_group(block, Asked(part, (part,), asked.templates, asked.class_name)) for part in asked.parts]
    if any(_meaning(group) != _meaning(answers[0][0]) for group, _ in answers):
        found = ", ".join(
            f"{part.rpartition('.')[2]} {reason}" for part, (_, reason) in zip(asked.parts, answers, strict=True)
        )
        raise MtpforgeError(
            "the target gives the projections of its experts different schemes",
            where=Where("config.json", inside="quantization_config"),
            why=f"vLLM refuses that (`All MoE projections need to have same quantization scheme`): {found}",
            fix="make the entries of gate_proj, up_proj and down_proj alike in the target's config.json",
        )
    return _quantized(block, asked, answers[0])


def _refuse_whole(block: QuantConfig) -> None:
    """What stops vLLM whatever the matrix: CompressedTensorsConfig.from_config. And transforms, which are not made."""
    if block.raw.get("transform_config"):
        raise MtpforgeError(
            "the target's weights are stored transformed",
            where=Where("config.json", inside="quantization_config.transform_config"),
            why="vLLM applies the transforms to the draft's matrices too: untransformed ones would draft nonsense",
            fix="name a target without `transform_config`",
        )
    sparsity = block.raw.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("targets"):
        raise refused(
            "the target is stored sparse",
            "sparsity_config",
            "`Sparsity support has been removed from compressed-tensors`",
            "name a target without `sparsity_config`",
        )
    for group in block.groups:
        if not _of_attention(group) and group.targets and (why := _unreadable(group, block)):
            raise refused(f"config group `{shown(group.name)}` is none that vLLM reads", _place(group), why)


def _unreadable(group: Group, block: QuantConfig) -> str:
    """Why vLLM reads no such group: CompressedTensorsConfig._quantization_scheme_map_from_config."""
    weights = group.weights
    if weights is None:
        return "a group needs `weights`"
    if weights.actorder in ("group", "dynamic"):
        return "`group/dynamic activation ordering is no longer supported`"
    if group.input_activations is None and weights.type == "int" and _format(group, block) in OF_ACTIVATIONS:
        return f"integers in format {_format(group, block)} need `input_activations`"
    return ""


def _format(group: Group, block: QuantConfig) -> str:
    return group.format or block.format


def _place(group: Group) -> str:
    return f"config_groups.{shown(group.name)}"


def _group(block: QuantConfig, asked: Asked) -> tuple[Group | None, str]:
    """The group that a matrix falls under, None for dense, and why: CompressedTensorsConfig.get_scheme_dict."""
    if entry := listed(asked, block.ignore, exact_or_regex, "ignore"):
        return None, f"ignore entry `{quoted(entry)}`"
    # A target named by two groups belongs to the later one, but keeps its place.
    targets = {target: group for group in block.groups if not _of_attention(group) for target in group.targets}
    entry = _named(asked.name, tuple(targets)) or _all_parts(asked, tuple(targets)) or _class(asked, tuple(targets))
    if entry is None:
        return None, "no config group targets it"
    group = targets[entry]
    return group, f'config {shown(group.name)} matches "{quoted(entry)}"'


def _named(name: str, targets: tuple[str, ...]) -> str | None:
    return next((target for target in targets if exact_or_regex(name, target)), None)


def _all_parts(asked: Asked, targets: tuple[str, ...]) -> str | None:
    if not asked.is_fused:
        return None
    found = [_named(part, targets) for part in asked.parts]
    return found[0] if all(found) else None


def _class(asked: Asked, targets: tuple[str, ...]) -> str | None:
    """The first target that is a part of the class's name, whatever the case, or an expression that matches it."""
    expert, name = ".experts." in asked.name, asked.class_name
    for target in targets:
        if exact_or_regex(name, target) if target.startswith("re:") else target.lower() in name.lower():
            return target
    # A group for "Linear" counts for the experts too: _add_fused_moe_to_target_scheme_map.
    return "Linear" if expert and "Linear" in targets else None


def _of_attention(group: Group) -> bool:
    return len(group.targets) == 1 and group.targets[0].endswith("Attention")


def _meaning(group: Group | None) -> object:
    return None if group is None else (group.weights, group.input_activations, group.output_activations, group.format)


def _quantized(block: QuantConfig, asked: Asked, answer: tuple[Group | None, str]) -> tuple[Quantization, str]:
    group, reason = answer
    if group is None or group.weights is None:
        return BF16, reason
    inputs, what = group.input_activations, f"the target's scheme for `{asked.name}` is none that vLLM can build"
    stored = Stored(group.weights, inputs, group.output_activations, _format(group, block), asked.columns)
    try:
        stored_as = experts(stored) if asked.experts else linear(stored)
    except RefusalError as error:
        raise refused(what, _place(group), str(error)) from None
    size = group.weights.group_size
    if size and (cut := next((n for n in asked.columns if n % size), None)):
        raise refused(what, _place(group), f"groups of {size} do not divide its {cut} columns")
    # Dynamic activations beside packed weights store nothing: the draft is the one for activations left alone.
    inputs = None if stored_as == PACKED else inputs
    return quantization_of(replace(group, input_activations=inputs), stored_as), reason
