"""Writes the censuses of GLM-5.3-Flash's MTP layer, BF16 and FP8: `python make_glm5_next.py`, with transformers 5.23.0.

Derived, not read from the releases: names and shapes of transformers' decoder layer on the meta device under the
published config, without the streams that the MTP layer has none of (vLLM 0.33.0, models/glm5next/common/model.py,
Glm5NextDecoderLayer), and around it what Glm5NextMultiTokenPredictorLayer (mtp.py) loads. BF16, but for the correction
bias, which transformers keeps in float32. FP8 of the modules that vLLM decodes (_FP8_ATTN_PROJS) or builds
in FP8: 1,760 tensors, as many as the release has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Glm5NextTextConfig
from transformers.models.glm5_next.modeling_glm5_next import Glm5NextTextDecoderLayer, Glm5NextTextRMSNorm

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "target-glm-5.3-flash-fp8.config.json"
DENSE = ("eh_proj", "mlp.gate", "self_attn.kv_b_proj", "self_attn.indexer.")
STREAMS = ("attn_hc.", "ffn_hc.")


def layer(config: Glm5NextTextConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor, the layer's prefix left out."""
    width = config.hidden_size
    with torch.device("meta"):
        block = Glm5NextTextDecoderLayer(config, config.num_hidden_layers - 2)  # the last one with latent attention
        norms = {name: Glm5NextTextRMSNorm(width) for name in ("enorm", "hnorm", "shared_head.norm")}
        around = {**norms, "eh_proj": torch.nn.Linear(2 * width, width, bias=False)}
    for stem, module in around.items():
        yield from ((f"{stem}.{name}", "BF16", tuple(t.shape)) for name, t in module.state_dict().items())
    for name, tensor in block.state_dict().items():
        shape = tuple(tensor.shape)
        if name == "mlp.experts.gate_up_proj":  # [experts, 2 * width of one, hidden]: gate above up
            halves = (shape[1] // 2, shape[2])
            yield from (
                (f"mlp.experts.{n}.{half}_proj.weight", "BF16", halves)
                for n in range(shape[0])
                for half in ("gate", "up")
            )
        elif name == "mlp.experts.down_proj":
            yield from ((f"mlp.experts.{n}.down_proj.weight", "BF16", shape[1:]) for n in range(shape[0]))
        elif not name.startswith(STREAMS):
            yield name, "F32" if name.endswith("e_score_correction_bias") else "BF16", shape


def in_fp8(name: str, dtype: str, shape: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The tensors of one in FP8: blocks of 128 x 128 and a scale for each."""
    if (not name.endswith("_proj.weight") and not name.endswith("_with_mqa.weight")) or name.startswith(DENSE):
        yield name, dtype, shape
    else:
        yield name, "F8_E4M3", shape
        yield f"{name}_scale_inv", "F32", tuple(-(-n // 128) for n in shape)


def census(*, fp8: bool) -> str:
    """The file of a release."""
    config = Glm5NextTextConfig(**json.loads(CONFIG.read_text())["text_config"])
    prefix = f"model.language_model.layers.{config.num_hidden_layers}."
    rows = list(layer(config))
    rows = sorted(row for each in rows for row in in_fp8(*each)) if fp8 else sorted(rows)
    lines = (f"{prefix}{name}\t{dtype}\t{','.join(map(str, shape))}" for name, dtype, shape in rows)
    kind = "FP8" if fp8 else "BF16"
    head = f"# GLM-5.3-Flash, {kind}, layer {config.num_hidden_layers} (MTP), derived: {len(rows)} tensors."
    return "\n".join((head, *lines, ""))


if __name__ == "__main__":
    for kind, fp8 in {"bf16": False, "fp8": True}.items():
        (HERE / f"glm-5.3-flash-{kind}.tsv").write_text(census(fp8=fp8))
