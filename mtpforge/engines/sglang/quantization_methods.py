"""What each quantization method says about one matrix: dense, or a quantization, and which entry decided.

METHODS     quant_method -> function of (parsed block, question)
Source: sglang srt/layers/quantization: compressed_tensors/compressed_tensors.py, fp8.py, w4afp8.py;
srt/models/deepseek_nextn.py (0.5.23).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from mtpforge.checkpoint.quantization import (
    Group,
    QuantConfig,
    fp8_quantization,
    modelopt_quantization,
    quantization_of,
)
from mtpforge.engines.expressions import quoted
from mtpforge.engines.sglang import integer_methods
from mtpforge.engines.sglang.draft_classes import NEVER
from mtpforge.engines.sglang.matrices import Asked, Decision
from mtpforge.engines.sglang.name_matching import ignored, skipped, targeted
from mtpforge.engines.sglang.refusals import DENSE, refused
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.tensors import BF16, Quantization

_CLASS: Final = "Linear"  # counts for the experts too
_A_CLASS: Final = "ReplicatedLinear"  # stands for the classes of linears, whose names all end so
_WEIGHT_ONLY: Final = "pack-quantized"
_MXFP8: Final = "mxfp8-quantized"
# Merged matrices, and kv_b_proj, are cut by the one `weight_block_size` that CompressedTensorsConfig has: that of the
# target "Linear" (layers/linear.py, models/deepseek_common/deepseek_weight_loader.py). Others go by their own group.
_CUT_BY_CLASS: Final = ("gate_up_proj", "qkv_proj", "kv_b_proj")
_PACKED_BITS: Final = (4, 8)  # WNA16_SUPPORTED_BITS, schemes/compressed_tensors_wNa16.py
# All that W4AFp8Config has (w4afp8.py): integers for the experts, DeepSeek's FP8 for every other linear.
W4AFP8: Final = Quantization("w4afp8", 4, strategy="group", group_size=128, scale_dtype="BF16")
BESIDE_W4AFP8: Final = Quantization(
    "fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic"
)


def decide(block: QuantConfig, asked: Asked) -> Decision:
    """How SGLang would build a matrix under a quantization block. MtpforgeError for one that it does not build."""
    method = METHODS.get(block.method)
    if method is None:
        raise MtpforgeError(
            f"nothing is known of drafts of method `{shown(block.method)}`",
            where=Where("config.json", inside="quantization_config.quant_method"),
            why=f"known: {', '.join(sorted(filter(None, METHODS)))}",
            fix=DENSE,
        )
    return method(block, asked)


def _unquantized(block: QuantConfig, _asked: Asked) -> Decision:
    return BF16, "block, which quantizes none of the layer" if block.raw else "no quantization_config"


def _compressed_tensors(block: QuantConfig, asked: Asked) -> Decision:
    """CompressedTensorsConfig.get_scheme_dict and get_moe_scheme: the ignore list first, then targets."""
    names = asked.names if asked.experts or len(asked.shards) == 1 else _asked_by(asked)
    entries = [ignored(name, block.ignore) for name in names]
    if any(entries):
        return _agreed(asked, "ignore", names, entries)
    targets = {target: group for group in block.groups for target in group.targets}
    found = [_target(asked, name, tuple(targets)) for name in asked.names]
    if None in found:
        raise refused(
            f"no config group targets `{asked.names[found.index(None)]}`",
            "config_groups",
            "`Unable to find matching target`",
        )
    groups = [targets[entry] for entry in found if entry is not None]
    if any(replace(group, name="", targets=()) != replace(groups[0], name="", targets=()) for group in groups):
        raise refused(
            "the projections of the experts have different schemes",
            "config_groups",
            "`All MoE projections need to have same quantization scheme`",
        )
    return _stored(block, asked, groups[0]), f'config {shown(groups[0].name)} matches "{quoted(found[0] or "")}"'


def _asked_by(asked: Asked) -> tuple[str, ...]:
    """Names by which the ignore list is asked: the attention's fused matrix by its parts, gate and up as one."""
    return asked.shards if asked.names[0].rpartition(".")[2] == "fused_qkv_a_proj_with_mqa" else asked.names


def _target(asked: Asked, name: str, targets: tuple[str, ...]) -> str | None:
    """find_matched_target: by name, by class, at last by every part."""
    if entry := targeted(name, targets):
        return entry
    if asked.experts:
        return _CLASS if _CLASS in targets else None
    of_class = (
        t for t in targets if (targeted(_A_CLASS, (t,)) if t.startswith("re:") else t.lower() in _CLASS.lower())
    )
    if entry := next(of_class, None):
        return entry
    parts = [targeted(shard, targets) for shard in asked.shards]
    return parts[0] if all(parts) else None


def _stored(block: QuantConfig, asked: Asked, group: Group) -> Quantization:
    stored_as = group.format or block.format
    if asked.experts and stored_as == _WEIGHT_ONLY and block.format != _WEIGHT_ONLY:
        raise refused("the experts are packed, the block as a whole is not", "format", f"it must be {_WEIGHT_ONLY}")
    if stored_as == _MXFP8:
        raise refused("compressed-tensors says MXFP8", "format", "`No compressed-tensors compatible scheme was found`")
    if stored_as == _WEIGHT_ONLY and group.weights and group.weights.bits not in _PACKED_BITS:
        raise refused("the integers are not of 4 or 8 bits", "config_groups", "it has kernels for no others")
    if not asked.experts and asked.names[0].rpartition(".")[2] in _CUT_BY_CLASS:
        _same_blocks_as_the_class(block, asked, group)
    # Activations beside packed weights store nothing.
    inputs = None if stored_as == _WEIGHT_ONLY else group.input_activations
    return quantization_of(replace(group, input_activations=inputs), stored_as)


def _same_blocks_as_the_class(block: QuantConfig, asked: Asked, group: Group) -> None:
    size = group.weights and group.weights.block
    of_class = next((other.weights for other in block.groups if _CLASS in other.targets), None)
    if size and size != (of_class and of_class.block):
        raise refused(
            f"`{asked.templates[0]}` is in FP8 blocks, the group of all linears is not",
            "config_groups",
            f'it takes the size of blocks from the group whose target is "{_CLASS}", which is that of the experts',
            "give them FP8 channels or BF16: docs/schemes.md says how to write a scheme, `--scheme FILE`",
        )


def _fp8(block: QuantConfig, asked: Asked) -> Decision:
    """Fp8Config.get_quant_method and is_layer_skipped: fused matrices by their parts."""
    if listed := _listed_in_fp8(block, asked, "modules_to_not_convert"):
        return listed
    if block.block is None:
        raise refused("FP8 with one scale a tensor was not tried with SGLang's loader", "weight_block_size", "unknown")
    return fp8_quantization(block), f"method fp8, blocks of {'x'.join(map(str, block.block))}"


def _listed_in_fp8(block: QuantConfig, asked: Asked, key: str) -> Decision | None:
    """Dense by entries of the list, None where no entry names the matrix."""
    names = ("".join(asked.names[0].partition(".experts")[:2]),) if asked.experts else asked.shards
    entries = [skipped(name, block.ignore) for name in names]
    return _agreed(asked, key, names, entries) if any(entries) else None


def _mxfp8(block: QuantConfig, asked: Asked) -> Decision:
    """Fp8Config with `use_mxfp8`: the lists of method fp8, blocks of 1 x 32 whatever the config says of them."""
    return _listed_in_fp8(block, asked, "modules_to_not_convert") or (modelopt_quantization("MXFP8"), "method mxfp8")


def _w4afp8(_block: QuantConfig, asked: Asked) -> Decision:
    """W4AFp8Config.from_config reads `quant_method` alone: no list leaves anything dense."""
    return (W4AFP8, "method w4afp8") if asked.experts else (BESIDE_W4AFP8, "method w4afp8, which reads no list")


def _modelopt(block: QuantConfig, asked: Asked) -> Decision:
    """DeepseekModelNextN drops a block of ModelOpt's NVFP4: the whole layer is built dense. MXFP8 is method mxfp8."""
    if block.quant_algo == "MXFP8":
        return _listed_in_fp8(block, asked, "ignore") or (modelopt_quantization("MXFP8"), "ModelOpt's MXFP8")
    if "NVFP4" not in block.quant_algo:
        raise refused(
            f"ModelOpt's {shown(block.quant_algo)} was not tried with SGLang's loader", "quant_algo", "unknown"
        )
    return BF16, f"SGLang drops ModelOpt's {block.quant_algo} for an MTP layer"


def _quark(block: QuantConfig, _asked: Asked) -> Decision:
    """QuarkConfig; the runner of its MXFP4 experts is AITER, which is AMD's (quark_w4a4_mxfp4_moe.py)."""
    stated = block.raw.get("global_quant_config")
    weight = stated.get("weight") if isinstance(stated, Mapping) else None
    if isinstance(weight, Mapping) and weight.get("dtype") == "fp4":
        raise refused("Quark says MXFP4", "global_quant_config", NEVER["quark_mxfp4"], DENSE)
    raise refused("a block of Quark was not tried with SGLang's loader", "quant_method", "unknown", DENSE)


def _agreed(asked: Asked, key: str, names: tuple[str, ...], entries: list[str | None]) -> Decision:
    """Dense by entries that list every name; some but not all is an error."""
    if None in entries:
        outside = names[entries.index(None)]
        raise refused(
            f"only a part of `{asked.names[0]}` is listed as unquantized, not `{outside}`",
            key,
            "SGLang runs its parts as one matrix (`Found different quantization schemes`)",
        )
    return BF16, f"{key} entry `{quoted(entries[0] or '')}`"


METHODS: Final[dict[str, Callable[[QuantConfig, Asked], Decision]]] = {
    "": _unquantized,
    "awq": integer_methods.awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "gptq": integer_methods.gptq,
    "modelopt": _modelopt,
    "mxfp8": _mxfp8,
    "quark": _quark,
    "w4afp8": _w4afp8,
}
