"""Formats: the table by name, and what is said of any of them. A format is one file and one line here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from mtpforge.formats import (
    awq,
    dense,
    explaining,
    fp8_block,
    fp8_scaled,
    gguf,
    gguf_split,
    gptq,
    int_quantized,
    microscaled,
    mlx,
    modelopt_integers,
    modelopt_nvfp4,
    nvfp4,
    pack_quantized,
    quark_int4,
    w4afp8,
)
from mtpforge.formats.foreign import foreign
from mtpforge.formats.format import BAND_ROWS, Format, InputScale, Specs
from mtpforge.tensors import DTYPES, Quantization, Shape

__all__ = ["BAND_ROWS", "FORMATS", "Format", "InputScale", "explain", "foreign", "label", "refusal", "split", "whole"]

FORMATS: Final[dict[str, Format]] = {
    form.name: form
    for form in (
        dense.FORMAT,
        fp8_block.FORMAT,
        fp8_scaled.FORMAT,
        fp8_scaled.MODELOPT,
        nvfp4.FORMAT,
        modelopt_nvfp4.FORMAT,
        pack_quantized.FORMAT,
        int_quantized.FORMAT,
        int_quantized.QUARK,
        awq.FORMAT,
        microscaled.MXFP4,
        microscaled.QUARK_MXFP4,
        microscaled.MXFP8,
        *quark_int4.FORMATS,
        w4afp8.FORMAT,
        *gptq.FORMATS,
        *modelopt_integers.FORMATS,
        mlx.FORMAT,
        gguf.FORMAT,
        gguf_split.FORMAT,
    )
}


def explain(parts: Specs, shape: Shape, block: Mapping[str, object]) -> str:
    """Why no format recognises these parts: the nearest format, and what is missing, odd or of another shape."""
    return explaining.nearest_miss(FORMATS, label, parts, shape, block)


def label(quantization: Quantization) -> str:
    """Short text for tables: `INT4 g32 asymmetric`, `FP8 block 128x128`, `BF16`."""
    cover = {
        "group": f"g{quantization.group_size}",
        "block": "block {}x{}".format(*quantization.block or (0, 0)),
        "channel": "channel",
        "tensor": "tensor",
        "": "",
    }[quantization.strategy]
    family = FORMATS[quantization.format].shown(quantization)
    words = (family, cover, "" if quantization.symmetric else "asymmetric")
    return " ".join(filter(None, (*words, "static" if quantization.input_scale == "static" else "")))


def split(name: str) -> tuple[str, str]:
    """Module and suffix of a tensor: cut at the last dot, or before the longest suffix with dots that a format has."""
    for suffix in _DOTTED:
        if name.endswith(f".{suffix}"):
            return name.removesuffix(f".{suffix}"), suffix
    module, _, suffix = name.rpartition(".")
    return module, suffix


def refusal(quantization: Quantization) -> tuple[str, str] | None:
    """The first field that its format cannot have so, and what it must be; None where it can."""
    takes = FORMATS[quantization.format].takes
    for field in fields(Quantization):
        value = getattr(quantization, field.name)
        if field.name in _SIZES:
            if (value is not None) != (quantization.strategy == _SIZES[field.name]):
                return field.name, f'it goes together with `strategy = "{_SIZES[field.name]}"`'
            if field.name == "block" and value is not None and BAND_ROWS % value[0]:
                return field.name, f"its rows must divide {BAND_ROWS}: weights pass in bands of so many"
        allowed = takes.get(field.name, () if field.name in {"format", *_SIZES} else (field.default,))
        if allowed and value not in allowed:
            return field.name, _one_of(allowed)
    return None


def whole(quantization: Quantization) -> tuple[int, int]:
    """The fewest rows and columns of a weight that fill whole elements of its parts: where a matrix may be cut.

    (8, 8) for packed INT4 with zero points: eight codes of a row are a word, and so are eight zero points of a column.
    """
    form = FORMATS[quantization.format]
    shape = BAND_ROWS, math.lcm(quantization.group_size or 1, BAND_ROWS)
    parts = form.layout(shape, quantization)
    lie = form.rows_in_parts(shape, quantization, parts)
    rows = math.lcm(*(part.rows // math.gcd(part.rows, part.entries) for part in lie.values()))
    if form.codes is None:
        return rows, 1
    if lie[form.codes.suffix].axis:  # stored input by input: so many entries for all columns
        return rows, shape[1] // math.gcd(shape[1], parts[form.codes.suffix].shape[0])
    bits = DTYPES[form.codes.dtype].bits
    return rows, bits // math.gcd(bits, quantization.bits)


def _one_of(values: tuple[object, ...]) -> str:
    given = [v for v in values if v not in {"", None}]
    numbers = [v for v in given if type(v) is int]
    ordered = sorted(numbers) if len(numbers) == len(given) else given
    known = [str(v).lower() if isinstance(v, bool) else str(v) for v in ordered]
    if not known:
        return "this format has none"
    return f"it must be {', '.join(known[:-1])} or {known[-1]}" if known[1:] else f"it must be {known[0]}"


# Suffixes with dots, longest first.
_DOTTED: Final = tuple(sorted((suffix for form in FORMATS.values() for suffix in form.dotted), key=len, reverse=True))
# A size and the strategy that it belongs to: with another it would say nothing.
_SIZES: Final = {"group_size": "group", "block": "block"}
