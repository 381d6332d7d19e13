"""Writes the censuses of the MTP layers of DeepSeek V3 and V3.2: `python make_deepseek.py`, with transformers 5.23.0.

Derived, not read from releases: names and shapes of transformers' decoder layer on the meta device under the
published configs, and around it what vLLM's DeepSeekMultiTokenPredictorLayer (deepseek_mtp.py, 0.33.0) loads. Dtypes
are those of the releases' FP8: E4M3 with F32 `weight_scale_inv` for every block of 128 x 128, also those at the edges;
never the router, eh_proj, the indexer's weights_proj, embedding and head, which are BF16, as the norms are. R1 and V3.1
have V3's layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32DecoderLayer

HERE = Path(__file__).parent
RELEASES = {
    "deepseek-v3": (transformers.DeepseekV3Config, DeepseekV3DecoderLayer),
    "deepseek-v3.2": (transformers.DeepseekV32Config, DeepseekV32DecoderLayer),
}
PLAIN = ("eh_proj", "mlp.gate", "self_attn.indexer.weights_proj", "embed_tokens", "shared_head.head")
BLOCK = 128

Row = tuple[str, str, tuple[int, ...]]


def tensors(config: transformers.PretrainedConfig, block: torch.nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the unquantized layer, its prefix left out."""
    width, vocabulary = config.hidden_size, config.vocab_size
    yield from ((f"{norm}.weight", (width,)) for norm in ("enorm", "hnorm", "shared_head.norm"))
    yield "eh_proj.weight", (width, 2 * width)
    yield from ((f"{copy}.weight", (vocabulary, width)) for copy in ("embed_tokens", "shared_head.head"))
    for name, tensor in block.state_dict().items():
        shape = tuple(tensor.shape)
        if name == "mlp.experts.gate_up_proj":  # [experts, 2 * width of one, hidden]: gate above up
            for half in ("gate", "up"):
                yield from ((f"mlp.experts.{n}.{half}_proj.weight", (shape[1] // 2, shape[2])) for n in range(shape[0]))
        elif name == "mlp.experts.down_proj":
            yield from ((f"mlp.experts.{n}.down_proj.weight", shape[1:]) for n in range(shape[0]))
        else:
            yield name, shape


def stored(name: str, shape: tuple[int, ...]) -> Iterator[Row]:
    """One tensor as the release stores it."""
    module, _, last = name.rpartition(".")
    if last == "e_score_correction_bias":
        yield name, "F32", shape
    elif len(shape) != 2 or module in PLAIN:
        yield name, "BF16", shape
    else:
        yield name, "F8_E4M3", shape
        yield f"{name}_scale_inv", "F32", tuple(-(-n // BLOCK) for n in shape)


def census(release: str) -> str:
    """The file of a release."""
    told = json.loads((HERE.parent / "configs" / f"target-{release}.config.json").read_text())
    made, kind = RELEASES[release]
    config = made(**{key: value for key, value in told.items() if key != "quantization_config"})
    layer = config.num_hidden_layers
    if hasattr(config, "mlp_layer_types"):
        config.mlp_layer_types = [*config.mlp_layer_types, "sparse"]
    with torch.device("meta"):
        block = kind(config, layer)
    rows = sorted(row for name, shape in tensors(config, block) for row in stored(name, shape))
    lines = (f"model.layers.{layer}.{name}\t{dtype}\t{','.join(map(str, shape))}" for name, dtype, shape in rows)
    return "\n".join((f"# {release}, layer {layer} (MTP), derived: {len(rows)} tensors.", *lines, ""))


if __name__ == "__main__":
    for name in RELEASES:
        (HERE / f"{name}.tsv").write_text(census(name))
