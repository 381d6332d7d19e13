"""The MTP layer of unsloth/GLM-5.2-GGUF (UD-IQ2_M) by its published inventory: names, shapes and types, no numbers.

The file itself is 238 GB in six parts, of which the first holds keys and no tensor. The inventory is written out in
public notes on porting it (names and shapes of all tensors, types of most); where it leaves the type open, one of those
that it says the release uses stands here. Shapes are in GGUF's order, the innermost axis first.
"""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.families import family_of
from mtpforge.planning import plan

BLOCK = "blk.78."
TENSORS = {
    "attn_norm.weight": ([6144], Type.F32),
    "attn_q_a.weight": ([6144, 2048], Type.Q5_K),
    "attn_q_a_norm.weight": ([2048], Type.F32),
    "attn_q_b.weight": ([2048, 16384], Type.Q8_0),
    "attn_kv_a_mqa.weight": ([6144, 576], Type.Q8_0),
    "attn_kv_a_norm.weight": ([512], Type.F32),
    "attn_k_b.weight": ([192, 512, 64], Type.Q8_0),
    "attn_v_b.weight": ([512, 256, 64], Type.Q8_0),
    "attn_output.weight": ([16384, 6144], Type.Q6_K),
    "indexer.attn_k.weight": ([6144, 128], Type.Q5_K),
    "indexer.attn_q_b.weight": ([2048, 4096], Type.Q5_K),
    "indexer.k_norm.weight": ([128], Type.F32),
    "indexer.k_norm.bias": ([128], Type.F32),
    "indexer.proj.weight": ([6144, 32], Type.F32),
    "ffn_norm.weight": ([6144], Type.F32),
    "exp_probs_b.bias": ([256], Type.F32),
    "ffn_gate_inp.weight": ([6144, 256], Type.F32),
    "ffn_gate_exps.weight": ([6144, 2048, 256], Type.IQ2_XXS),
    "ffn_up_exps.weight": ([6144, 2048, 256], Type.IQ2_XXS),
    "ffn_down_exps.weight": ([2048, 6144, 256], Type.IQ3_XXS),
    "ffn_gate_shexp.weight": ([6144, 2048], Type.Q5_K),
    "ffn_up_shexp.weight": ([6144, 2048], Type.Q5_K),
    "ffn_down_shexp.weight": ([2048, 6144], Type.Q6_K),
    "nextn.eh_proj.weight": ([12288, 6144], Type.Q8_0),
    "nextn.enorm.weight": ([6144], Type.F32),
    "nextn.hnorm.weight": ([6144], Type.F32),
    "nextn.shared_head_norm.weight": ([6144], Type.F32),
}
OTHERS = {
    "token_embd.weight": ([6144, 154880], Type.Q5_K),
    "output_norm.weight": ([6144], Type.F32),
    "output.weight": ([6144, 154880], Type.Q4_K),
}
NUMBERS = {
    "block_count": 79, "nextn_predict_layers": 1, "context_length": 1_048_576, "embedding_length": 6144,
    "feed_forward_length": 12288, "attention.head_count": 64, "attention.head_count_kv": 1,
    "attention.q_lora_rank": 2048, "attention.kv_lora_rank": 512, "attention.key_length": 576,
    "attention.value_length": 512, "attention.key_length_mla": 256, "attention.value_length_mla": 256,
    "rope.dimension_count": 64, "vocab_size": 154880, "leading_dense_block_count": 3, "expert_count": 256,
    "expert_used_count": 8, "expert_shared_count": 1, "expert_feed_forward_length": 2048, "expert_group_count": 1,
    "expert_group_used_count": 1, "attention.indexer.head_count": 32, "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 2048,
}  # fmt: skip
FLOATS = {"rope.freq_base": 8e6, "attention.layer_norm_rms_epsilon": 1e-5, "expert_weights_scale": 2.5}


def part(folder, number, tensors, keys):
    """One of two parts; its tensors read as zeros."""
    path = folder / f"GLM-5.2-UD-IQ2_M-{number + 1:05d}-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "glm-dsa")
    if keys:
        for name, value in NUMBERS.items():
            writer.add_uint32(f"glm-dsa.{name}", value)
        for name, value in FLOATS.items():
            writer.add_float32(f"glm-dsa.{name}", value)
        writer.add_bool("glm-dsa.expert_weights_norm", val=True)
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", 2)
    writer.add_int32("split.tensors.count", len(TENSORS) + len(OTHERS))
    n_bytes = 0
    for name, (shape, kind) in tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = math.prod(shape) // block * size
        stored = [*shape[:0:-1], shape[0] // block * size] if kind is not Type.F32 else shape[::-1]
        writer.add_tensor_info(name, stored, np.dtype(np.uint8 if kind is not Type.F32 else np.float32), raw, kind)
        n_bytes += -(-raw // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + n_bytes)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    part(folder, 1, {**OTHERS, **{BLOCK + name: of for name, of in TENSORS.items()}}, keys=False)
    return open_checkpoint(str(part(folder, 0, {}, keys=True)))


@pytest.mark.parametrize(
    ("target", "n_tensors"), [("target-bf16", 791), ("target-awq-int4-ignore-to-77", 3122), ("target-fp8", 1568)]
)
def test_a_published_gguf_holds_the_whole_layer(published, config_folder, census, target, n_tensors):
    made = plan(published, open_checkpoint(str(config_folder(target))))
    writes = {write.name: write.spec for step in made.steps for write in step.writes}
    assert len(writes) == n_tensors
    if target == "target-bf16":
        found = {name: (spec.dtype, spec.shape) for name, spec in writes.items()}
        assert found == census("bf16-zai-org")


def test_its_keys_are_the_release_s_config(published, release_config):
    stated = release_config("target-bf16")
    family = family_of(published.config)
    assert (family.layer(published.config), ENGINES["vllm"].runs(family)) == (78, True)
    odd = {key: value for key, value in published.config.items() if stated.get(key, value) != value}
    assert odd == {}
