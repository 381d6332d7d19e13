"""The groups of compressed-tensors: what `config_groups` says, and how a weight of a group is stored.

read(name, object) -> Group
quantization_of(group, format) -> Quantization
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mtpforge.checkpoint.json_fields import Fields
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.tensors import Quantization

Strategy: TypeAlias = Literal["tensor", "channel", "group", "block", "token", "tensor_group", "attn_head"]
STRATEGIES: Final = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")
NVFP4_GROUP: Final = 16
MX_GROUP: Final = 32
MAX_DIGITS: Final = 8  # of the size of a block
SCALE_DTYPES: Final = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float8_e4m3fn": "F8_E4M3",
    "uint8": "U8",
}


@dataclass(frozen=True, slots=True)
class Args:
    """How compressed-tensors quantizes weights or activations: QuantizationArgs of its 0.20.0, `strategy` inferred.

    group_size: None unless the strategy is a group's. dynamic: "no", "yes" or "local". scale_dtype as safetensors
    spells it, "" where the config leaves it open. actorder as written, "" for none.
    """

    bits: int = 8
    type: Literal["int", "float"] = "int"
    strategy: Strategy = "tensor"
    group_size: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    dynamic: Literal["no", "yes", "local"] = "no"
    scale_dtype: str = ""
    actorder: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """One of compressed-tensors' `config_groups`. format: "" where the group leaves it to the whole block."""

    name: str
    targets: tuple[str, ...]
    format: str
    weights: Args | None
    input_activations: Args | None = None
    output_activations: Args | None = None


def read(name: str, group: Fields) -> Group:
    """One of `config_groups`, from its JSON object."""
    activations = (_args(group.within(f"{side}_activations")) for side in ("input", "output"))
    return Group(name, group.texts("targets"), group.text("format"), _args(group.within("weights")), *activations)


def _args(args: Fields | None) -> Args | None:
    if args is None:
        return None
    bits, kind = args.whole("num_bits"), args.text("type", "int").lower()
    if kind not in ("int", "float"):
        args.refuse("type", '"int" or "float"')
    if bits is not None and bits < 1:
        args.refuse("num_bits", "a positive whole number")
    return Args(
        8 if bits is None else bits,
        "float" if kind == "float" else "int",
        strategy := _strategy(args),
        args.whole("group_size") if strategy in ("group", "tensor_group") else None,
        _block(args),
        args.flag("symmetric", default=True),
        _dynamic(args),
        _scale_dtype(args),
        "group" if args.values.get("actorder") is True else str(args.values.get("actorder") or ""),
    )


def _block(args: Fields) -> tuple[int, int] | None:
    """Rows and columns of a block; `128x128` as well: QuantizationArgs.validate_block_structure (0.20.0)."""
    written = args.values.get("block_structure")
    sizes = written.split("x") if isinstance(written, str) else ()
    if len(sizes) == 2 and all(size.isdecimal() and len(size) <= MAX_DIGITS for size in sizes):  # noqa: PLR2004
        return Fields({"block_structure": [int(size) for size in sizes]}, args.path, args.file).pair("block_structure")
    return args.pair("block_structure")


def _strategy(args: Fields) -> Strategy:
    """The strategy, or what compressed-tensors infers: QuantizationArgs.validate_model_after (0.20.0)."""
    size, named = args.whole("group_size"), args.text("strategy").lower()
    for strategy in STRATEGIES:
        if named == strategy:
            if strategy in ("group", "tensor_group") and (size is None or size < 1):
                args.refuse("group_size", f"a positive whole number for strategy {strategy}")
            return strategy
    if named:
        args.refuse("strategy", f"one of {', '.join(STRATEGIES)}")
    if size is None:
        return "tensor"
    if size > 0:
        return "group"
    return "channel" if size == -1 else args.refuse("group_size", "positive, or -1 for one scale a channel")


def _dynamic(args: Fields) -> Literal["no", "yes", "local"]:
    if args.values.get("dynamic") == "local":
        return "local"
    return "yes" if args.flag("dynamic", default=False) else "no"


def _scale_dtype(args: Fields) -> str:
    named = args.text("scale_dtype").removeprefix("torch.")
    if named and named not in SCALE_DTYPES:
        args.refuse("scale_dtype", f"one of {', '.join(SCALE_DTYPES)}")
    return SCALE_DTYPES.get(named, "")


def quantization_of(group: Group, stored_as: str) -> Quantization:
    """How compressed-tensors stores a weight of a group in one of its formats; the engine says in which.

    Weight scales of integers are BF16, as llm-compressor writes them from BF16 checkpoints; of FP8 they are F32, the
    dtype of vLLM's parameter (create_fp8_scale_parameter, 0.33.0), which also takes BF16. A `scale_dtype` wins.
    A format or a combination that mtpforge does not write is an error.
    """
    weights = group.weights
    if weights is None:
        raise unsupported(group.name, "it quantizes no weights")
    match stored_as:
        case "pack-quantized" if weights.type == "int":
            return _integers(group, weights, "pack_quantized")
        case "int-quantized" if weights.type == "int":
            return _integers(group, weights, "int_quantized")
        case "float-quantized" if weights.type == "float" and weights.bits == 8:  # noqa: PLR2004
            return _floats(group, weights)
        case "nvfp4-pack-quantized" if _isnvfp4(weights):
            static: Literal["static", "none"] = "static" if group.input_activations else "none"
            return nvfp4("nvfp4", static)
        case "mxfp4-pack-quantized" | "mxfp8-quantized" if _is_microscaled(weights, stored_as):
            return _microscaled(group, weights)
    raise unsupported(group.name, f"format {stored_as} with {weights.bits}-bit {weights.type} weights is not written")


def _isnvfp4(weights: Args) -> bool:
    return weights.type == "float" and weights.bits == 4 and weights.group_size == NVFP4_GROUP  # noqa: PLR2004


def nvfp4(format_name: str, input_scale: Literal["static", "none"]) -> Quantization:
    """NVFP4 under either name: groups of 16 columns, scales in E4M3 under one global scale."""
    return Quantization(
        format_name, 4, strategy="group", group_size=NVFP4_GROUP, scale_dtype="F8_E4M3", input_scale=input_scale
    )


def _is_microscaled(weights: Args, stored_as: str) -> bool:
    told = weights.type, weights.group_size, weights.symmetric, weights.scale_dtype or "U8"
    return stored_as.startswith(f"mxfp{weights.bits}-") and told == ("float", MX_GROUP, True, "U8")


def _microscaled(group: Group, weights: Args) -> Quantization:
    inputs = _input_scale(group)
    if inputs == "static":
        raise unsupported(group.name, f"static activations beside MXFP{weights.bits} are not written")
    return microscaled(f"mxfp{weights.bits}", weights.bits, inputs)


def microscaled(format_name: str, bits: int, input_scale: Literal["none", "dynamic"]) -> Quantization:
    """MXFP4 or MXFP8 under any name: groups of 32 columns, exponents for scales."""
    return Quantization(
        format_name, bits, strategy="group", group_size=MX_GROUP, scale_dtype="U8", input_scale=input_scale
    )


def _integers(group: Group, weights: Args, format_name: str) -> Quantization:
    if weights.strategy not in ("group", "channel") or (format_name == "int_quantized" and weights.strategy == "group"):
        raise unsupported(group.name, f"format {format_name} with strategy {weights.strategy} is not written")
    if not 2 <= weights.bits <= 8 or (format_name == "int_quantized" and weights.bits != 8):  # noqa: PLR2004
        raise unsupported(group.name, f"format {format_name} with {weights.bits} bits is not written")
    if weights.actorder in ("group", "dynamic"):
        raise unsupported(group.name, "activation ordering of groups (g_idx) is not written")
    if _input_scale(group) == "static":
        raise unsupported(group.name, "static integer activations are not written")
    return Quantization(
        format_name,
        weights.bits,
        strategy=weights.strategy,
        group_size=weights.group_size,
        symmetric=weights.symmetric,
        scale_dtype=weights.scale_dtype or "BF16",
        input_scale=_input_scale(group),
    )


def _floats(group: Group, weights: Args) -> Quantization:
    if weights.strategy not in ("tensor", "channel", "block"):
        raise unsupported(group.name, f"FP8 weights with strategy {weights.strategy} are not written")
    if (weights.block is not None) != (weights.strategy == "block"):
        raise unsupported(group.name, "block_structure and strategy block go together")
    if not weights.symmetric:
        raise unsupported(group.name, "asymmetric FP8 weights are not written")
    return Quantization(
        "fp8_scaled",
        8,
        strategy=weights.strategy,
        block=weights.block,
        scale_dtype=weights.scale_dtype or "F32",
        input_scale=_input_scale(group),
    )


def _input_scale(group: Group) -> Literal["none", "dynamic", "static"]:
    if group.input_activations is None:
        return "none"
    return "static" if group.input_activations.dynamic == "no" else "dynamic"


def unsupported(where: str, why: str) -> MtpforgeError:
    """The error for a quantization that mtpforge does not write."""
    return MtpforgeError(
        "the quantization asked for cannot be written",
        where=Where("config.json", inside=f"quantization_config, {shown(where)}"),
        why=why,
        fix="`mtpforge extract --source S -o DIR` writes the layer in BF16; list its modules as not quantized in the "
        "target's config to use it",
    )
