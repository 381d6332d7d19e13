"""Every format that is read, as the tiny layer stored in it: name -> how it is written.

SOURCES     folders, by the writers of `writers.py`
FILES       GGUF, by the gguf package
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import gguf_files
import numpy as np
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType as Type
from matrix import writers
from matrix.tiny_layer import DENSE, LINEARS, P, config, folder, weights
from safetensors.torch import load_file

CT = "compressed-tensors"


@dataclass(frozen=True)
class Source:
    """One way to store the layer: the format's name in FORMATS, a writer, what config.json says of it."""

    format: str
    write: Callable[..., writers.Stored]
    block: Mapping[str, object] = field(default_factory=dict)
    key: str = "quantization_config"


@dataclass(frozen=True)
class Made:
    """values, bound: of every tensor of the layer by name, float32; bound None where nothing was rounded to codes."""

    path: object
    values: dict[str, torch.Tensor]
    bound: dict[str, torch.Tensor]


def gptq(bits, size, *, stated=(), **how):
    block = {"quant_method": "gptq", "bits": bits, "group_size": size, **dict(stated)}
    kind = how.get("kind", "gptq")
    if kind != "gptq":
        block["checkpoint_format"] = kind
    return Source(kind, lambda w: writers.gptq(w, bits, size or w.shape[1], **how), block)


def rounded(packing, bits, size, form, write):
    block = {"quant_method": "auto-round", "packing_format": packing, "bits": bits, "group_size": size, "sym": False}
    return Source(form, write, block | {"extra_config": {f"{P}eh_proj": {"bits": 16}}})


def quark_int4(form, pack_method, dtype, size, **how):
    symmetric = dtype == "int4"
    weight = {"dtype": dtype, "symmetric": symmetric, "qscheme": "per_group", "group_size": size}
    block = {"quant_method": "quark", "export": {"pack_method": pack_method}, "global_quant_config": {"weight": weight}}
    return Source(form, lambda w: writers.quark_int4(w, size, symmetric=symmetric, **how), block)


MODELOPT = {"quant_method": "modelopt"}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
SCALED = partial(writers.fp8, names=("weight", "weight_scale"))
INVERSE = ("weight", "weight_scale_inv")
SOURCES = {
    "BF16": Source("dense", lambda w: writers.plain(w, torch.bfloat16)),
    "F16": Source("dense", lambda w: writers.plain(w, torch.float16)),
    "F32": Source("dense", lambda w: writers.plain(w, torch.float32)),
    "FP8 of DeepSeek": Source("fp8_block", lambda w: writers.fp8(w, (128, 128), INVERSE), BLOCKS),
    "FP8 in blocks of 64x32": Source(
        "fp8_block",
        lambda w: writers.fp8(w, (64, 32), INVERSE),
        {"quant_method": "fp8", "weight_block_size": [64, 32]},
    ),
    "FP8 per tensor": Source(
        "fp8_scaled", lambda w: SCALED(w, tuple(w.shape), shape=lambda _: (1,)), {"quant_method": CT}
    ),
    "FP8 per channel": Source(
        "fp8_scaled", lambda w: SCALED(w, (1, w.shape[1]), dtype=torch.bfloat16), {"quant_method": CT}
    ),
    "FP8 in blocks of compressed-tensors": Source("fp8_scaled", lambda w: SCALED(w, (128, 128)), {"quant_method": CT}),
    "FP8 of ModelOpt, per tensor": Source(
        "fp8_scaled", lambda w: SCALED(w, tuple(w.shape), shape=lambda _: ()), MODELOPT
    ),
    "FP8 of ModelOpt, per channel": Source(
        "modelopt_fp8", lambda w: SCALED(w, (1, w.shape[1]), shape=lambda s: (len(s),)), MODELOPT
    ),
    "FP8 of ModelOpt, in blocks": Source(
        "modelopt_fp8", lambda w: SCALED(w, (128, 128), shape=lambda s: (s.shape[0], 1, s.shape[1], 1)), MODELOPT
    ),
    "FP8 of Quark": Source(
        "modelopt_fp8", lambda w: SCALED(w, (1, w.shape[1]), shape=lambda s: (len(s),)), {"quant_method": "quark"}
    ),
    "NVFP4 of compressed-tensors": Source(
        "nvfp4", lambda w: writers.nvfp4(w, 2.0, modelopt=False), {"quant_method": CT}
    ),
    "NVFP4 of ModelOpt": Source(
        "modelopt_nvfp4", lambda w: writers.nvfp4(w, 2.0, modelopt=True), MODELOPT | {"quant_algo": "NVFP4"}
    ),
    "NVFP4 of Quark": Source("modelopt_nvfp4", lambda w: writers.quark_nvfp4(w, 2.0), {"quant_method": "quark"}),
    "MXFP4 of compressed-tensors": Source("mxfp4", writers.mxfp4, {"quant_method": CT}),
    "MXFP4 of Quark": Source("quark_mxfp4", lambda w: writers.mxfp4(w, "weight"), {"quant_method": "quark"}),
    "MXFP8": Source("mxfp8", writers.mxfp8, {"quant_method": CT}),
    "MXFP8 of Quark": Source("mxfp8", writers.mxfp8, {"quant_method": "quark"}),
    **{
        f"INT{bits} of compressed-tensors": Source(
            "pack_quantized", partial(writers.packed, bits=bits, size=32), {"quant_method": CT}
        )
        for bits in range(2, 9)
    },
    "INT4 per channel": Source(
        "pack_quantized", partial(writers.packed, bits=4, dtype=torch.float32), {"quant_method": CT}
    ),
    "INT3 of whole codes": Source(
        "pack_quantized",
        partial(writers.packed, bits=3, size=64, dtype=torch.float16, symmetric=True, whole=True),
        {
            "quant_method": CT,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 3, "group_size": 64}}},
        },
    ),
    "INT8 in bytes": Source(
        "int_quantized", partial(writers.bytes_of_int8, dtype=torch.bfloat16), {"quant_method": CT}
    ),
    "INT8 in bytes, asymmetric": Source(
        "int_quantized", partial(writers.bytes_of_int8, dtype=torch.float32, symmetric=False), {"quant_method": CT}
    ),
    "INT8 of Quark": Source(
        "quark_int8", partial(writers.bytes_of_int8, dtype=torch.float32, flat=True), {"quant_method": "quark"}
    ),
    "INT4 of Quark": quark_int4("quark_int4", "reorder", "int4", 128),
    "UINT4 of Quark": quark_int4("quark_int4", "reorder", "uint4", 32),
    "UINT4 of Quark, in order": quark_int4("quark_int4_in_order", "order", "uint4", 128, places=range(8)),
    "INT8 of ModelOpt": Source(
        "modelopt_int8", partial(writers.bytes_of_int8, dtype=torch.float32, flat=True), MODELOPT
    ),
    "INT4 of ModelOpt": Source("modelopt_int4", writers.modelopt_int4, MODELOPT | {"quant_algo": "W4A16_AWQ"}),
    "W4AFP8": Source("w4afp8", writers.w4afp8, {"quant_method": "w4afp8"}),
    "AWQ": Source("awq", lambda w: writers.awq(w, 128), {"quant_method": "awq", "bits": 4, "group_size": 128}),
    "AWQ of AutoRound": rounded("auto_round:auto_awq", 4, 64, "awq", lambda w: writers.awq(w, 64)),
    "GPTQ of 2 bits": gptq(2, 32),
    "GPTQ of 3 bits": gptq(3, 64),
    "GPTQ of 4 bits": gptq(4, 128, symmetric=True),
    "GPTQ of 4 bits, desc_act": gptq(4, 32, stated={"desc_act": True}, shuffled=True),
    "GPTQ v2 of 8 bits": gptq(8, 32, kind="gptq_v2", symmetric=True),
    "GPTQ in planes of 5 bits": gptq(5, None, kind="gptq_p"),
    "AutoRound of 6 bits": rounded("auto_round", 6, 32, "auto_round", lambda w: writers.gptq(w, 6, 32, kind="gptq_v2")),
    "AutoRound as GPTQ": rounded(
        "auto_round:auto_gptq", 4, 32, "gptq", lambda w: writers.gptq(w, 4, 32, kind="auto_gptq")
    ),
    "MLX of 4 bits": Source("mlx", lambda w: writers.mlx(w, 4, 64), {"bits": 4, "group_size": 64}, "quantization"),
    "MLX of 6 bits": Source("mlx", lambda w: writers.mlx(w, 6, 32), {"bits": 6, "group_size": 32}, "quantization"),
}


def stored(source, home, tiny):
    """A folder that holds the layer so: `DENSE` and vectors as they are."""
    tensors, values, bound = {}, {}, {}
    for name, tensor in weights().items():
        if (module := name.removeprefix(P).removesuffix(".weight")) not in LINEARS:
            whole = source.format == "dense" and module in DENSE
            one = (
                writers.Stored({"weight": tensor}, tensor.float(), torch.zeros(tensor.shape))
                if not whole
                else source.write(tensor.float())
            )
            tensors[name] = one.parts["weight"]
        else:
            one = source.write(tensor.float())
            tensors |= {f"{P}{module}.{suffix}": part for suffix, part in one.parts.items()}
        values[name], bound[name] = one.values, one.bound
    stated = {source.key: dict(source.block)} if source.block else {}
    return Made(folder(home, tensors, config(tiny) | stated), values, bound)


# GGUF: types that the package encodes; and those that it only decodes, of bytes that it decoded for the vectors: no
# weight was rounded there. The keys of kv_b are turned, to rows of 32 columns: too few for blocks of 256.
EXPS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
SHARED = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
ATTENTION = ("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_output", "indexer.attn_q_b", "attn_v_b")
HALVES = {"attn_k_b": Type.Q8_0}
FILES = {
    "GGUF, encoded by the package": ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"),
    "GGUF of K and ternary": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "NVFP4"),
    "GGUF by tables": ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
}


def in_file(name, home, tiny, vectors):
    """A GGUF file that holds the layer in these types, taken in turn by the matrices of GGUF."""
    home.mkdir()
    plain = folder(home / "plain", weights(), config(tiny))
    types = [Type[kind] for kind in FILES[name]]
    kinds = {part: types[i % len(types)] for i, part in enumerate((*EXPS, *SHARED, *ATTENTION))}
    rows = load_file(vectors)

    def encode(tensor, kind):
        try:
            return quants.quantize(tensor, kind)
        except NotImplementedError:
            pass
        known = rows[f"disk.{kind.name}"].numpy()
        places = np.random.default_rng(tensor.size).integers(0, len(known), tensor.size // 256)
        return known[places].reshape(*tensor.shape[:-1], -1)

    made = gguf_files.convert(plain, home / "tiny.gguf", HALVES | kinds | {"": Type.BF16}, encode=encode)
    return Made(made.first, made.values, {})
