"""Writes the derived censuses of MTP layers: `python make.py`, with transformers 5.23.0. A release is a line of COPIES.

Derived, not read from releases: names and shapes of transformers' decoder layer on the meta device under the release's
config in `../configs`, and around it what every draft class of vLLM 0.33.0 with such a layer loads (glm4_moe_mtp.py,
glm4_moe_lite_mtp.py, deepseek_mtp.py). Dtypes: BF16, but for the correction bias, which transformers keeps in float32.
Where the config says FP8, matrices are E4M3 with F32 `weight_scale_inv` for every block of 128 x 128, also those at the
edges; never the router, eh_proj, the indexer's weights_proj, embedding and head.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

HERE = Path(__file__).parent
# Whether the release repeats embedding and head inside its layer.
COPIES = {"deepseek-v3": True, "deepseek-v3.2": True, "glm-4.5": True, "glm-4.5-air": False, "glm-4.7-flash": True}
PLAIN = ("eh_proj", "mlp.gate", "self_attn.indexer.weights_proj", "embed_tokens", "shared_head.head")
BLOCK = 128

Row = tuple[str, str, tuple[int, ...]]


def layer(told: dict[str, object]) -> torch.nn.Module:
    """transformers' first layer with routed experts, without weights."""
    config = CONFIG_MAPPING[told["model_type"]](**told | {"num_hidden_layers": told["first_k_dense_replace"] + 1})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).model.layers[-1]


def tensors(told: dict[str, object], *, copies: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the unquantized layer, its prefix left out."""
    width, vocabulary = told["hidden_size"], told["vocab_size"]
    yield from ((f"{norm}.weight", (width,)) for norm in ("enorm", "hnorm", "shared_head.norm"))
    yield "eh_proj.weight", (width, 2 * width)
    if copies:
        yield from ((f"{copy}.weight", (vocabulary, width)) for copy in ("embed_tokens", "shared_head.head"))
    for name, tensor in layer(told).state_dict().items():
        shape = tuple(tensor.shape)
        if name == "mlp.experts.gate_up_proj":  # [experts, 2 * width of one, hidden]: gate above up
            for half in ("gate", "up"):
                yield from ((f"mlp.experts.{n}.{half}_proj.weight", (shape[1] // 2, shape[2])) for n in range(shape[0]))
        elif name == "mlp.experts.down_proj":
            yield from ((f"mlp.experts.{n}.down_proj.weight", shape[1:]) for n in range(shape[0]))
        else:
            yield name, shape


def stored(name: str, shape: tuple[int, ...], *, fp8: bool) -> Iterator[Row]:
    """One tensor as the release stores it."""
    module, _, last = name.rpartition(".")
    if last == "e_score_correction_bias":
        yield name, "F32", shape
    elif not fp8 or len(shape) != 2 or module in PLAIN:
        yield name, "BF16", shape
    else:
        yield name, "F8_E4M3", shape
        yield f"{name}_scale_inv", "F32", tuple(-(-n // BLOCK) for n in shape)


def census(release: str) -> str:
    """The file of a release."""
    told = json.loads((HERE.parent / "configs" / f"target-{release}.config.json").read_text())
    fp8, index = told.pop("quantization_config", None) is not None, told["num_hidden_layers"]
    found = tensors(told, copies=COPIES[release])
    rows = sorted(row for name, shape in found for row in stored(name, shape, fp8=fp8))
    lines = (f"model.layers.{index}.{name}\t{dtype}\t{','.join(map(str, shape))}" for name, dtype, shape in rows)
    return "\n".join((f"# {release}, layer {index} (MTP), derived: {len(rows)} tensors.", *lines, ""))


if __name__ == "__main__":
    for name in COPIES:
        (HERE / f"{name}.tsv").write_text(census(name))
