"""explain(): which format a weight's parts almost are, and what is wrong with them. Headers only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

from mtpforge.errors import MtpforgeError, shown
from mtpforge.formats import blocks, modelopt_nvfp4, nvfp4
from mtpforge.formats.format import Format, Specs, declared_weights
from mtpforge.tensors import BF16, Quantization, Shape, Spec

_SHOWN: Final = 3
_OPTIONAL: Final = frozenset({"weight_g_idx"})
_INT_BITS: Final = (4, 8, 2, 3, 5, 6, 7)


def nearest_miss(formats: Mapping[str, Format], parts: Specs, shape: Shape, block: Mapping[str, object]) -> str:
    """One sentence: the format and quantization with the fewest differences, and the first few of them."""
    best: list[str] | None = None
    name = ""
    for quantization in _guesses(parts, shape, block):
        try:
            expected = formats[quantization.format].layout(shape, quantization)
        except MtpforgeError:  # a group size or block that this shape does not allow
            continue
        differences = _differences(parts, expected)
        if best is None or len(differences) < len(best):
            best, name = differences, f"{quantization.format} ({quantization})"
    listed = ", ".join(f"{shown(suffix)} {spec}" for suffix, spec in sorted(parts.items()))
    if not best:
        return f"no format has these parts: {listed}"
    more = f", and {len(best) - _SHOWN} more" if len(best) > _SHOWN else ""
    return f"nearest is {name}: {', '.join(best[:_SHOWN])}{more}"


def _differences(parts: Specs, expected: Specs) -> list[str]:
    found = [f"missing {suffix}" for suffix in expected if suffix not in parts]
    found += [
        f"unexpected {shown(suffix)}" for suffix in sorted(parts) if suffix not in expected and suffix not in _OPTIONAL
    ]
    for suffix, spec in expected.items():
        stored = parts.get(suffix, spec)
        if stored.dtype != spec.dtype:
            found.append(f"{suffix} is {stored.dtype} instead of {spec.dtype}")
        if stored.shape != spec.shape:
            found.append(f"{suffix} is {list(stored.shape)} instead of {list(spec.shape)}")
    return found


def _guesses(parts: Specs, shape: Shape, block: Mapping[str, object]) -> Iterator[Quantization]:
    """Quantizations worth a comparison, likelier ones first: of equals the first is named."""
    scale = parts.get("weight_scale", parts.get("weight_scale_inv", Spec("", ())))
    dense = parts["weight"].dtype if "weight" in parts else ""
    yield Quantization("dense", dtype=dense if dense in {"F16", "F32"} else BF16.dtype)
    stored = "BF16" if scale.dtype == "BF16" else "F32"
    yield Quantization("fp8_block", 8, strategy="block", block=blocks.USUAL, scale_dtype=stored)
    yield from _floats(parts, scale)
    yield from _integers(parts, scale, shape, block)


def _floats(parts: Specs, scale: Spec) -> Iterator[Quantization]:
    stored = "BF16" if scale.dtype == "BF16" else "F32"
    for static in ("input_scale" in parts, False):
        for strategy in ("channel", "tensor", "block"):
            yield Quantization(
                "fp8_scaled",
                8,
                strategy=strategy,
                block=blocks.USUAL if strategy == "block" else None,
                scale_dtype=stored,
                input_scale="static" if static else "none",
            )
    yield modelopt_nvfp4.quantization(static="input_scale" in parts)
    yield nvfp4.quantization(static="input_global_scale" in parts)


def _integers(parts: Specs, scale: Spec, shape: Shape, block: Mapping[str, object]) -> Iterator[Quantization]:
    stored = scale.dtype if scale.dtype in {"F16", "F32"} else "BF16"
    symmetric = "weight_zero_point" not in parts
    declared = list(declared_weights(block))
    named = [bits for w in declared if isinstance(bits := w.get("num_bits"), int) and bits in _INT_BITS]
    sizes = [size for w in declared if isinstance(size := w.get("group_size"), int) and size > 0]
    if len(scale.shape) > 1 and scale.shape[1] and shape[1] % scale.shape[1] == 0:
        sizes.insert(0, shape[1] // scale.shape[1])
    asymmetric = any(w.get("symmetric") is False for w in declared)
    for bits in (*named, *_INT_BITS):
        for size in (*sizes, None, 32, 128):
            for even in (symmetric, *((False,) if asymmetric else ())):
                strategy: Literal["group", "channel"] = "group" if size else "channel"
                yield Quantization("pack_quantized", bits, "", strategy, size, symmetric=even, scale_dtype=stored)
    yield Quantization("int_quantized", 8, strategy="channel", symmetric=symmetric, scale_dtype=stored)
