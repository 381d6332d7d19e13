"""Writes llm-compressor.safetensors: what llm-compressor's GPTQ makes of small weights, by its own `quantize_weight`.

    python make.py

Needs llmcompressor (0.14.0.1 wrote the stored file). Of each case: `weight` float32 [rows, in], `hessian` [in, in] as
GPTQModifier would have accumulated it, `scale` float32 [rows, groups] of BF16 values and `zero_point` by
compressed-tensors from the weight, `quantized`: the values that come back. The inputs of `dead` are zero in 3 columns,
those of `few` are fewer than columns.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.gptq.helpers import accumulate_hessian
from safetensors.torch import save_file

# name: bits, group, symmetric, rows, columns, tokens
CASES = {
    "int4-g32-asym": (4, 32, False, 24, 160, 1000),
    "int4-g128-sym": (4, 128, True, 24, 256, 1000),
    "int8-g32-asym": (8, 32, False, 16, 160, 1000),
    "int8-channel": (8, 160, True, 16, 160, 1000),
    "dead": (4, 32, False, 16, 160, 500),
    "few": (4, 32, False, 16, 160, 20),
}


def correlated(tokens: int, columns: int) -> torch.Tensor:
    """Inputs of which a few directions hold most, as those of a trained layer."""
    mixed = torch.randn(tokens, columns) @ torch.randn(columns, columns) * torch.rand(columns) ** 3
    return mixed @ torch.randn(columns, columns) / columns + 0.2 * torch.randn(tokens, columns)


def made(bits: int, group: int, symmetric: bool, rows: int, columns: int, tokens: int, n_dead: int) -> dict:
    weight = torch.randn(rows, columns) * 0.02
    weight[1, :32], weight[2, 5] = 0, 0.2
    x = correlated(tokens, columns)
    x[:, [7, 40, 41][:n_dead]] = 0
    linear = torch.nn.Linear(columns, rows, bias=False)
    hessian, n = accumulate_hessian(x, linear, torch.zeros(columns, columns), torch.zeros(()))
    args = QuantizationArgs(
        num_bits=bits, group_size=group, symmetric=symmetric, strategy="group", scale_dtype=torch.bfloat16
    )
    groups = weight.view(rows, -1, group)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale = scale.to(torch.bfloat16).float()
    stored = {"weight": weight, "hessian": hessian / n, "scale": scale, "zero_point": zero}
    batch = {name: tensor.clone()[None] for name, tensor in stored.items()}
    quantized, _, fallback = quantize_weight(
        batch["weight"], batch["hessian"], batch["scale"], batch["zero_point"], None, args
    )
    assert not fallback.any()
    return {**stored, "quantized": quantized[0]}


def main() -> None:
    tensors = {}
    for seed, (name, case) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        parts = made(*case, n_dead=3 if name == "dead" else 0)
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    made_by = {name: version(name) for name in ("llmcompressor", "compressed-tensors", "torch")}
    save_file(tensors, Path(__file__).with_name("llm-compressor.safetensors"), made_by)


main()
