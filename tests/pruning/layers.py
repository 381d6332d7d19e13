"""Layers of the tiny model, and copies of it that were pruned by plain slicing, as a careful script would.

from pruning.layers import layer_of, pruned_copy
"""

from __future__ import annotations

import json
import re

from safetensors.torch import load_file, save_file

from mtpforge.checkpoint import open_checkpoint
from mtpforge.families import family_of
from mtpforge.sourcing import stored_layer

PREFIX = "model.layers.3."


def layer_of(checkpoint):
    return stored_layer(checkpoint, family_of(checkpoint.config))


def tensors_of(folder):
    """Every tensor of the MTP layer, by local name."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: t for name, t in load_file(file).items() if name.startswith(PREFIX)}
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def pruned_copy(folder, to, kept, change=None):
    """The layer with these experts alone, in this order; `change` gets the tensors by local name."""
    made = {}
    for name, tensor in tensors_of(folder).items():
        match = re.fullmatch(r"mlp\.experts\.(\d+)\.(.+)", name)
        if match is None:
            made[name] = tensor[list(kept)] if name.startswith("mlp.gate.") else tensor
        elif int(match[1]) in kept:
            made[f"mlp.experts.{list(kept).index(int(match[1]))}.{match[2]}"] = tensor
    if change:
        change(made)
    to.mkdir()
    save_file({PREFIX + n: t.contiguous() for n, t in made.items()}, to / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"n_routed_experts": len(kept)}
    config.pop("num_experts", None)
    (to / "config.json").write_text(json.dumps(config))
    return open_checkpoint(str(to))
