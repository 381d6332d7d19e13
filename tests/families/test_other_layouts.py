"""Models that draft otherwise: refused by name, each with what is different there and what its user can type."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mtpforge.errors import MtpforgeError
from mtpforge.families import families, family_of
from mtpforge.families.other_layouts import other_layouts

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
# As the releases spell them: model_type, and words of the answer that no other model's has.
TYPES = {
    "deepseek_v4": "e_proj and h_proj in the place of eh_proj",
    "deepseek_v41": "DSpark stages",
    "kimi_k2": "published without an MTP layer",
    "kimi_k25": "published without an MTP layer",
    "kimi_k3": "latent attention without positions",
    "qwen3_next": "`mtp.fc`",
    "qwen3_5": "`mtp.fc`",
    "qwen3_5_moe": "`mtp.fc`",
    "qwen3_5_text": "`mtp.fc`",
    "qwen3_5_moe_text": "`mtp.fc`",
    "qwen4_exp": "hyper-connection streams",
    "mimo": "`model.mtp_layers.*`",
    "mimo_v2_flash": "`model.mtp.layers.*`",
    "step3p5": "`shared_head.output`",
    "step3p7": "`shared_head.output`",
    "step5": "`shared_head.output`",
    "ernie4_5_moe": "`model.mtp_block.0.*`",
    "nemotron_h": "`mtp_hybrid_override_pattern`",
    "longcat_flash": "`model.mtp.*`",
    "bailing_hybrid": "`final_layernorm`",
    "minimax_m3_vl": "block-sparse attention",
}


def refusal(config):
    with pytest.raises(MtpforgeError) as caught:
        family_of(config)
    return caught.value


@pytest.mark.parametrize(("model_type", "words"), TYPES.items())
def test_is_refused_by_name_with_the_reason(model_type, words):
    error = refusal({"model_type": model_type})
    assert error.what.startswith("no draft is made for ")
    assert words in error.why
    assert "model_type" in str(error)


@pytest.mark.parametrize("layout", other_layouts(), ids=lambda layout: layout.models)
def test_what_is_used_there_can_be_typed(layout):
    (command,) = re.findall(r"`(vllm [^`]+)`", layout.instead)
    *words, config = shlex.split(command)
    assert words == ["vllm", "serve", "CKPT", "--speculative-config"]
    assert json.loads(config)["num_speculative_tokens"] > 0
    assert layout.source
    assert refusal({"model_type": layout.model_types[0]}).fix == layout.instead


def test_no_model_type_is_both_made_and_refused():
    made = [name for family in families() for name in family.model_types]
    refused = [name for layout in other_layouts() for name in layout.model_types]
    assert len({*made, *refused}) == len(made) + len(refused)


def test_a_text_config_is_refused_too():
    error = refusal({"model_type": "some_vision_model", "text_config": {"model_type": "qwen3_5_text"}})
    assert error.what == "no draft is made for Qwen3.5"


def test_kimi_is_no_deepseek_whatever_its_text_config_says(release_config):
    """transformers' Kimi_K25Config turns the `kimi_k2` of the release into `deepseek_v3`."""
    error = refusal({"model_type": "kimi_k25", "text_config": release_config("target-deepseek-v3")})
    assert error.what == "no draft is made for Kimi K2, K2.5 and K2.6"


@pytest.mark.engine
@pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
def test_sources_are_files_of_vllm():
    find = "import importlib.util; print(importlib.util.find_spec('vllm').submodule_search_locations[0])"
    home = Path(subprocess.run([PYTHON, "-c", find], capture_output=True, text=True, check=True).stdout.strip())
    named = [file for layout in other_layouts() for file in layout.source.split(", ")]
    assert [file for file in named if not (home / file).is_file()] == []
