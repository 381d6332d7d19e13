"""A small model of transformers, stored as a release whose last layer is the MTP layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# What transformers 5 writes and no release of these families has.
NEWER = ("rope_parameters", "num_mtp_layers", "mlp_layer_types", "layer_types", "dtype")


def store(model: torch.nn.Module, folder: Path, published: Mapping[str, object]) -> Path:
    """The model in BF16 by transformers; what is around its last layer by torch, copies of embedding and head within.

    published: what the config of a release says beside what transformers' class writes, or otherwise.
    """
    model.to(torch.bfloat16).save_pretrained(folder)
    width, held = model.config.hidden_size, model.state_dict()
    norm, prefix = type(model.model.norm), f"model.layers.{published['num_hidden_layers']}."
    around = {
        "eh_proj": torch.nn.Linear(2 * width, width, bias=False),
        "enorm": norm(width),
        "hnorm": norm(width),
        "shared_head.norm": norm(width),
        "shared_head.head": model.lm_head,
        "embed_tokens": model.model.embed_tokens,
    }
    stored = dict(load_file(folder / "model.safetensors")) | {
        f"{prefix}{name}.{key}": value.detach().to(torch.bfloat16).clone()
        for name, module in around.items()
        for key, value in module.state_dict().items()
    }
    biases = {name: torch.randn(len(held[name])) for name in held if name.endswith("e_score_correction_bias")}
    save_file(stored | biases, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in written.items() if key not in NEWER} | published
    (folder / "config.json").write_text(json.dumps(config))
    return folder
