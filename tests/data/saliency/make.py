"""Writes llm-compressor.json: the saliency that llm-compressor's REAP modifier gives the experts of the tiny model.

    python make.py ../tinyglm/bf16 ../tinyglm/eval.txt

Needs llmcompressor (0.14.0.1 wrote the stored file) with transformers. Its own code splits the experts, its own hooks
collect gate weights and norms during plain forward passes in float32; the epsilon of the latent norms is set to
rms_norm_eps, as engines have it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from llmcompressor.core import State
from llmcompressor.modeling.moe.linearize import linearize_moe
from llmcompressor.modifiers.pruning.reap.base import REAPPruningModifier
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

WINDOWS, SIZE = 2, 128  # no longer than index_topk: equal index scores decide nothing


def main(folder: str, text: str) -> None:
    ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(Path(text).read_text()).ids[: WINDOWS * SIZE]
    model = linearize_moe(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    for name, module in model.named_modules():
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
            module.variance_epsilon = model.config.rms_norm_eps
    modifier, state = REAPPruningModifier(sparsity=0.25), State(model=model)
    modifier.on_initialize(state)
    modifier.on_calibration_start(state, None)
    with torch.inference_mode():
        for window in torch.tensor(ids).view(WINDOWS, SIZE):
            model(window[None], use_cache=False)
    trackers = modifier._saliency_trackers
    body = {
        "llmcompressor": version("llmcompressor"),
        "transformers": version("transformers"),
        "token_ids": torch.tensor(ids).view(WINDOWS, SIZE).tolist(),
        "saliency": {name: tracker.mean_saliency.tolist() for name, tracker in trackers.items()},
        "tokens": {name: tracker.count.int().tolist() for name, tracker in trackers.items()},
    }
    Path(__file__).with_name("llm-compressor.json").write_text(json.dumps(body) + "\n")


main(*sys.argv[1:])
