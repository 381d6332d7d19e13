"""Writes the censuses of GLM-4.5's and GLM-4.5-Air's MTP layers: `python make_glm4_moe.py`, with transformers 5.23.0.

Derived, not read from releases: names and shapes of transformers' decoder layer on the meta device under the
published configs, and around it what vLLM's Glm4MoeMultiTokenPredictorLayer (glm4_moe_mtp.py, 0.33.0) loads. BF16, but
for the correction bias, which transformers keeps in float32. GLM-4.5 repeats embedding and head inside its layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Glm4MoeConfig
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeDecoderLayer, Glm4MoeRMSNorm

HERE = Path(__file__).parent
COPIES = {"glm-4.5": True, "glm-4.5-air": False}


def layer(config: Glm4MoeConfig, *, copies: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor, the layer's prefix left out."""
    width, vocabulary = config.hidden_size, config.vocab_size
    with torch.device("meta"):
        block = Glm4MoeDecoderLayer(config, config.num_hidden_layers)
        around = {"enorm": Glm4MoeRMSNorm(width), "hnorm": Glm4MoeRMSNorm(width)}
        around |= {"shared_head.norm": Glm4MoeRMSNorm(width), "eh_proj": torch.nn.Linear(2 * width, width, bias=False)}
        if copies:
            around["embed_tokens"] = torch.nn.Embedding(vocabulary, width)
            around["shared_head.head"] = torch.nn.Linear(width, vocabulary, bias=False)
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
        else:
            yield name, "F32" if name.endswith("e_score_correction_bias") else "BF16", shape


def census(release: str) -> str:
    """The file of a release."""
    config = Glm4MoeConfig(**json.loads((HERE.parent / "configs" / f"target-{release}.config.json").read_text()))
    prefix = f"model.layers.{config.num_hidden_layers}."
    rows = sorted(layer(config, copies=COPIES[release]))
    lines = (f"{prefix}{name}\t{dtype}\t{','.join(map(str, shape))}" for name, dtype, shape in rows)
    return "\n".join(
        (f"# {release}, layer {config.num_hidden_layers} (MTP), derived: {len(rows)} tensors.", *lines, "")
    )


if __name__ == "__main__":
    for name in COPIES:
        (HERE / f"{name}.tsv").write_text(census(name))
