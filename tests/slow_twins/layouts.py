"""Whole checkpoints of any layout as dense numbers, in plain torch: what an engine computes with. No mtpforge."""

from pathlib import Path

import torch
from safetensors import safe_open

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
SUFFIXES = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_global_scale",
    "weight_shape",
    "weight_zero_point",
    "input_scale",
    "input_global_scale",
)


def unpacked(words, bits):
    """[rows, n] int32 -> [rows, n * 32 / bits] unsigned codes of 4 or 8 bits, lowest bits first."""
    return ((words.long()[..., None] >> torch.arange(0, 32, bits)) & (2**bits - 1)).flatten(-2)


def integers(t):
    out, columns = t["weight_shape"].tolist()
    bits = t["weight_packed"].shape[1] * 32 // columns
    half, scale = 1 << (bits - 1), t["weight_scale"].float()
    code = (unpacked(t["weight_packed"], bits)[:, :columns].float() - half).view(out, scale.shape[1], -1)
    if "weight_zero_point" in t:  # packed along the rows
        zero = unpacked(t["weight_zero_point"].T.contiguous(), bits)[:, :out].T.float() - half
        code = code - zero[..., None]
    return (code * scale[..., None]).view(out, columns)


def nibbles(packed, scale, group=16):
    value = E2M1[torch.stack((packed & 15, packed >> 4), -1).flatten(-2).long()]
    return (value.view(len(value), -1, group) * scale[..., None]).flatten(-2)


def decoded(t):
    """One module's tensors by suffix -> float32 [out, in]."""
    if "weight_shape" in t:  # compressed-tensors, 4 or 8 bits
        return integers(t)
    if "weight_scale_inv" in t:  # DeepSeek FP8 blocks
        scale = t["weight_scale_inv"].float().repeat_interleave(128, 0).repeat_interleave(128, 1)
        rows, columns = t["weight"].shape
        return t["weight"].float() * scale[:rows, :columns]
    if "weight_scale_2" in t:  # NVFP4 of ModelOpt
        return nibbles(t["weight"], t["weight_scale"].float() * t["weight_scale_2"].float())
    if "weight_global_scale" in t:  # NVFP4 of compressed-tensors
        return nibbles(t["weight_packed"], t["weight_scale"].float() / t["weight_global_scale"].float())
    if "weight_scale" in t and t["weight_scale"].dtype == torch.uint8:  # OCP microscaling
        factors = 2.0 ** (t["weight_scale"].double() - 127)
        codes = t.get("weight_packed", t.get("weight"))
        if codes.dtype == torch.uint8:
            return nibbles(codes, factors, 32).float()
        return (codes.double().view(len(codes), -1, 32) * factors[..., None]).flatten(-2).float()
    if "weight_scale" in t:  # FP8 or INT8 per channel or per tensor
        scale = t["weight_scale"].float()
        return t["weight"].float() * (scale.view(-1, 1) if scale.numel() > 1 else scale)
    return t["weight"].float()


def weights(folder):
    """Every tensor by name, float32; weights rounded to BF16 once they are decoded."""
    modules, plain = {}, {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- not a dict
                stem, last = name.rsplit(".", 1)
                if last in SUFFIXES:
                    modules.setdefault(stem, {})[last] = opened.get_tensor(name)
                else:
                    plain[name] = opened.get_tensor(name).float()
    full = {stem: t for stem, t in modules.items() if "weight" in t or "weight_packed" in t}
    return {**plain, **{f"{stem}.weight": decoded(t).bfloat16().float() for stem, t in full.items()}}
