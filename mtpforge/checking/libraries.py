"""The child's side: every format decoded by its own library, to BF16, in small bands of rows.

Nothing of mtpforge's decoders, layouts or row arithmetic is used here. How each library must be called so that BF16 is
equal to float32 rounded once:

    modelopt NVFP4QTensor.dequantize(dtype=bfloat16)   computes in float32, rounds at the end
    compressed-tensors decompress, BF16 scale          products of small integers and BF16 round as float32 does
                                   F32 scale           float32, rounded here; an F16 scale is widened first
    compressed-tensors FP8BlockDequantizer             float32, rounds at the end
Seen with nvidia-modelopt 0.47.0 and compressed-tensors 0.20.0, random and extreme weights: no element differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor

from mtpforge.checking.parts import Part, Parts, Rows
from mtpforge.tensors import DTYPES


def load(names: list[str]) -> None:
    """Import what these formats' readers need: seconds, so begin before there is anything to decode."""
    for name in names:
        import_module(_READERS[name][0][1])


def decode(name: str, facts: dict[str, Any], parts: Parts, columns: int, rows: Rows) -> bytes:
    """The weight's rows as BF16 bytes, by the format's library. facts: the fields of its Quantization."""
    with torch.no_grad():
        values = _READERS[name][1](facts, parts, columns, rows).to(torch.bfloat16)
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _modelopt_nvfp4(_facts: dict[str, Any], parts: Parts, columns: int, rows: Rows) -> Tensor:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    shape = torch.Size((rows[1] - rows[0], columns))
    values: Tensor = NVFP4QTensor(shape, torch.bfloat16, _rows(parts["weight"], *rows)).dequantize(
        dtype=torch.bfloat16,
        scale=_rows(parts["weight_scale"], *rows),
        double_scale=_whole(parts["weight_scale_2"]),
        block_sizes={-1: 16},
    )
    return values


def _nvfp4(_facts: dict[str, Any], parts: Parts, _columns: int, rows: Rows) -> Tensor:
    state = {
        "weight_packed": _rows(parts["weight_packed"], *rows),
        "weight_scale": _rows(parts["weight_scale"], *rows),
        "weight_global_scale": _whole(parts["weight_global_scale"]).reshape(1),  # [] would keep the library in BF16
    }
    return _decompress("nvfp4-pack-quantized", state, num_bits=4, type="float", strategy="tensor_group", group_size=16)


def _quark_mxfp4(_facts: dict[str, Any], parts: Parts, columns: int, rows: Rows) -> Tensor:
    from modelopt.torch.quantization.qtensor import MXFP4QTensor

    shape = torch.Size((rows[1] - rows[0], columns))
    values: Tensor = MXFP4QTensor(shape, torch.bfloat16, _rows(parts["weight"], *rows)).dequantize(
        dtype=torch.bfloat16, scale=_exponents(parts, rows), block_sizes={-1: 32}
    )
    return values


def _mxfp4(_facts: dict[str, Any], parts: Parts, _columns: int, rows: Rows) -> Tensor:
    state = {"weight_packed": _rows(parts["weight_packed"], *rows), "weight_scale": _exponents(parts, rows)}
    return _decompress("mxfp4-pack-quantized", state, num_bits=4, **_MICROSCALED)


def _mxfp8(_facts: dict[str, Any], parts: Parts, _columns: int, rows: Rows) -> Tensor:
    state = {"weight": _rows(parts["weight"], *rows), "weight_scale": _exponents(parts, rows)}
    return _decompress("mxfp8-quantized", state, num_bits=8, **_MICROSCALED)


def _exponents(parts: Parts, rows: Rows) -> Tensor:
    return _rows(parts["weight_scale"], *rows).view(torch.uint8)


def _pack_quantized(facts: dict[str, Any], parts: Parts, columns: int, rows: Rows) -> Tensor:
    bits = facts["bits"]
    state = {
        "weight_packed": _rows(parts["weight_packed"], *rows),
        "weight_scale": _widened(_rows(parts["weight_scale"], *rows)),
        "weight_shape": torch.tensor([rows[1] - rows[0], columns]),
    }
    if not facts["symmetric"]:
        packed = _rows(parts["weight_zero_point"], rows[0] * bits // 32, -(-rows[1] * bits // 32))
        # laid out by columns, else the library fails on one row of words (stride(-1) must be 1)
        state["weight_zero_point"] = packed.t().clone(memory_format=torch.contiguous_format).t()
    return _decompress(
        "pack-quantized",
        state,
        num_bits=bits,
        type="int",
        symmetric=facts["symmetric"],
        strategy=facts["strategy"],
        group_size=facts["group_size"],
    )


def _int_quantized(facts: dict[str, Any], parts: Parts, _columns: int, rows: Rows) -> Tensor:
    state = {"weight": _rows(parts["weight"], *rows), "weight_scale": _widened(_rows(parts["weight_scale"], *rows))}
    if not facts["symmetric"]:
        state["weight_zero_point"] = _rows(parts["weight_zero_point"], *rows)
    symmetric = facts["symmetric"]
    return _decompress("int-quantized", state, num_bits=8, type="int", symmetric=symmetric, strategy="channel")


def _fp8_scaled(facts: dict[str, Any], parts: Parts, columns: int, rows: Rows) -> Tensor:
    scale, block = parts["weight_scale"], facts["block"]
    if facts["strategy"] == "tensor":
        held = _whole(scale).reshape(1)
    elif facts["strategy"] == "channel":
        held = _rows(scale, *rows).reshape(-1, 1)  # ModelOpt's [out] would be taken for columns
    else:
        held = _rows(scale, rows[0] // block[0], -(-rows[1] // block[0])).reshape(-1, -(-columns // block[1]))
    return _decompress(
        "float-quantized",
        {"weight": _rows(parts["weight"], *rows), "weight_scale": held},
        num_bits=8,
        type="float",
        strategy=facts["strategy"],
        block_structure=block,
    )


def _fp8_block(facts: dict[str, Any], parts: Parts, _columns: int, rows: Rows) -> Tensor:
    from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer

    height, width = facts["block"]
    named = {
        "m.weight": _rows(parts["weight"], *rows),
        "m.weight_scale_inv": _rows(parts["weight_scale_inv"], rows[0] // height, -(-rows[1] // height)),
    }
    values: Tensor = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=(height, width)).process(named)[
        "m.weight"
    ]
    return values


def _awq(facts: dict[str, Any], parts: Parts, _columns: int, rows: Rows) -> Tensor:
    """Rows lie along the second axis, eight to a word: the library is given whole columns of words."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    spans = {"qweight": (rows[0] // 8, rows[1] // 8), "qzeros": (rows[0] // 8, rows[1] // 8), "scales": rows}
    named = {f"m.{suffix}": _kept(parts[suffix])[:, slice(*span)] for suffix, span in spans.items()}
    made = AutoAWQConverter(group_size=facts["group_size"]).process(named)
    state = {name.removeprefix("m."): part for name, part in made.items()}
    state["weight_scale"] = _widened(state["weight_scale"])
    # laid out by columns, as in _pack_quantized
    state["weight_zero_point"] = state["weight_zero_point"].t().clone(memory_format=torch.contiguous_format).t()
    return _decompress(
        "pack-quantized",
        state,
        num_bits=4,
        type="int",
        symmetric=False,
        strategy="group",
        group_size=facts["group_size"],
    )


@lru_cache(maxsize=3)  # the parts of one weight: its bands follow each other
def _kept(part: Part) -> Tensor:
    return _whole(part)


def _rows(part: Part, first: int, last: int) -> Tensor:
    raw, shape = part.rows(first, last)
    dtype: torch.dtype = getattr(torch, DTYPES[part.dtype].torch)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).view(shape)


def _whole(part: Part) -> Tensor:
    return _rows(part, 0, part.shape[0] if part.shape else 1)


def _widened(scale: Tensor) -> Tensor:
    """F16 scales as F32: the library would compute in F16."""
    return scale.float() if scale.dtype == torch.float16 else scale


def _decompress(name: str, state: dict[str, Tensor], **arguments: object) -> Tensor:
    codec, scheme = _codec(
        name, tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in arguments.items()))
    )
    values: Tensor = codec.decompress(state, scheme)["weight"]
    return values


@cache
def _codec(name: str, arguments: tuple[tuple[str, object], ...]) -> tuple[Any, Any]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    given = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments if v is not None}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**given))
    return BaseCompressor.get_value_from_registry(name), scheme


_MICROSCALED: Final[dict[str, Any]] = {
    "type": "float",
    "strategy": "group",
    "group_size": 32,
    "scale_dtype": torch.uint8,
}
# A distribution, as importlib.metadata and pip name it, and the module that takes long to import.
_MODELOPT: Final = ("nvidia-modelopt", "modelopt.torch.quantization.qtensor")
_COMPRESSED: Final = ("compressed-tensors", "compressed_tensors.compressors")
_READERS: Final[dict[str, tuple[tuple[str, str], Callable[[dict[str, Any], Parts, int, Rows], Tensor]]]] = {
    "modelopt_nvfp4": (_MODELOPT, _modelopt_nvfp4),
    "nvfp4": (_COMPRESSED, _nvfp4),
    "pack_quantized": (_COMPRESSED, _pack_quantized),
    "int_quantized": (_COMPRESSED, _int_quantized),
    "fp8_scaled": (_COMPRESSED, _fp8_scaled),
    "fp8_block": (_COMPRESSED, _fp8_block),
    "awq": (_COMPRESSED, _awq),
    "mxfp4": (_COMPRESSED, _mxfp4),
    "quark_mxfp4": (_MODELOPT, _quark_mxfp4),
    "mxfp8": (_COMPRESSED, _mxfp8),
}
DISTRIBUTIONS: Final = {name: distribution for name, ((distribution, _), _) in _READERS.items()}
