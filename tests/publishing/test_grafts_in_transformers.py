"""A graft's main model in transformers: loaded as the target's, with the very same logits.

Of the tiny targets transformers 5.23 loads the unquantized one alone: its conversion of experts stops at the others.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

import mtpforge

pytestmark = pytest.mark.slow


def logits(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(1, 24)[None] % 60).logits


def test_main_model_computes_what_the_target_computes(tinyglm, tmp_path):
    """Its layer gives way, so that the shard in which main tensors lie beside it is written anew."""
    layer = mtpforge.extract(tinyglm("nvfp4"), out=tmp_path / "layer", check="off").path
    made = mtpforge.graft(layer, tinyglm("bf16"), out=tmp_path / "graft", link="sym")
    assert not (made.path / "model-00003-of-00003.safetensors").is_symlink()
    ours, theirs = logits(made.path), logits(tinyglm("bf16"))
    assert torch.equal(ours, theirs)
    assert theirs.std() > 0.1
