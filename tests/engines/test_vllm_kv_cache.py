"""What a token takes in vLLM's KV cache, and how many of them a lighter draft makes room for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import mtpforge
from mtpforge import scheme as schemes
from mtpforge.engines import ENGINES, Serving
from mtpforge.engines.vllm.kv_cache import DTYPES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning.savings import savings

VLLM = ENGINES["vllm"]
PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
# GLM-5.2: 78 layers and the MTP layer keep 512 + 64 values; layers 0, 1, 2, 6, 10, ..., 74 and the MTP layer have an
# indexer: 128 bytes of FP8 and one float32.
KEYS = (2 + 19 + 1) * (128 + 4)
BY_HAND = {
    "bfloat16": 79 * 576 * 2 + KEYS,
    "fp8_e4m3": 79 * 576 + KEYS,
    "fp8_ds_mla": 79 * 656 + KEYS,
    "nvfp4_ds_mla": 79 * 352 + KEYS,
}


def bytes_of(target, dtype="auto"):
    return VLLM.kv_cache(target, family_of(target.config), Serving(kv_cache_dtype=dtype))


@pytest.mark.parametrize(
    ("name", "dtype", "kept"),
    [
        *(("target-bf16", dtype, dtype) for dtype in BY_HAND),
        ("target-bf16", "auto", "bfloat16"),
        ("target-bf16", "fp8", "fp8_ds_mla"),
        ("target-nvfp4-nvidia", "auto", "fp8_e4m3"),  # its kv_cache_scheme says so
        ("target-nvfp4-nvidia", "bfloat16", "bfloat16"),
    ],
)
def test_bytes_of_a_token_by_hand(name, dtype, kept, release_config, target_of):
    found = bytes_of(target_of(release_config(name)), dtype)
    assert (found.dtype, found.token_bytes) == (kept, BY_HAND[kept])


# Values of a layer on one rank, layers with the MTP layer.
OTHERS = {
    ("target-glm-4.5", 1): (2 * 128 * 8, 93),
    ("target-glm-4.5", 4): (2 * 128 * 2, 93),
    ("target-glm-4.5", 16): (2 * 128, 93),  # more ranks than heads: each has one
    ("target-glm-4.5-air", 1): (2 * 128 * 8, 47),
    ("target-glm-4.7-flash", 4): (512 + 64, 48),
    ("target-deepseek-v3", 8): (512 + 64, 62),
}


@pytest.mark.parametrize(("name", "ranks"), OTHERS)
@pytest.mark.parametrize(("dtype", "width"), [("auto", 2), ("fp8", 1)])
def test_bytes_of_a_token_without_an_indexer_by_hand(name, ranks, dtype, width, release_config, target_of):
    """Heads are dealt out over ranks, latent vectors are not."""
    target = target_of({k: v for k, v in release_config(name).items() if k != "quantization_config"})
    values, n_layers = OTHERS[name, ranks]
    found = VLLM.kv_cache(target, family_of(target.config), Serving(ranks, kv_cache_dtype=dtype))
    assert found.token_bytes == values * n_layers * width


def test_layouts_of_sparse_attention_are_refused_without_it(release_config, target_of):
    for dtype in ("fp8_ds_mla", "nvfp4_ds_mla"):
        with pytest.raises(MtpforgeError, match=f"keeps nothing of this model as {dtype}") as refused:
            bytes_of(target_of(release_config("target-deepseek-v3")), dtype)
        assert refused.value.code == 2


def test_every_layer_has_an_indexer_where_the_config_names_no_schedule(release_config, target_of):
    schedule = ("index_topk_freq", "index_skip_topk_offset", "index_topk_pattern")
    config = {key: value for key, value in release_config("target-bf16").items() if key not in schedule}
    assert bytes_of(target_of(config)).token_bytes == 79 * (576 * 2 + 132)


def test_a_pattern_goes_before_a_schedule(release_config, target_of):
    config = release_config("target-bf16") | {"index_topk_pattern": "F" + "S" * 77}
    assert bytes_of(target_of(config)).token_bytes == 79 * 576 * 2 + 2 * 132


@pytest.mark.parametrize(("engine", "known"), [("vllm", ", ".join(DTYPES)), ("sglang", "auto")])
def test_dtypes_that_an_engine_is_not_known_to_take_are_refused(engine, known, tinyglm):
    asked = {"engine": engine, "kv_cache_dtype": "nvfp4"}
    for call in (
        lambda: mtpforge.inspect(tinyglm("bf16"), **asked),
        lambda: mtpforge.plan(tinyglm("awq-int4"), tinyglm("bf16"), **asked),
        lambda: mtpforge.serve_command(tinyglm("bf16"), tinyglm("bf16"), **asked),
    ):
        with pytest.raises(MtpforgeError, match="`--kv-cache-dtype nvfp4` is nothing that") as refused:
            call()
        assert (refused.value.code, refused.value.why) == (2, f"known: {known}")


def test_vectors_of_another_size_are_packed_by_no_kernel(tinyglm, target_of):
    with pytest.raises(MtpforgeError, match="keeps no vectors of 160 values as fp8_ds_mla") as refused:
        mtpforge.inspect(tinyglm("bf16"), kv_cache_dtype="fp8")
    assert refused.value.fix == "`--kv-cache-dtype bfloat16`"


@pytest.mark.parametrize(("ranks", "whole_experts"), [(1, False), (8, False), (8, True)])
@pytest.mark.parametrize("dtype", ["auto", "fp8_ds_mla"])
def test_what_nvfp4_experts_save_beside_nvidias_target(ranks, whole_experts, dtype, release_config, target_of):
    """Its own draft is BF16. Each of 256 experts has three matrices of 2048 x 6144, cut over the ranks."""
    target = target_of(release_config("target-nvfp4-nvidia"))
    family, serving = family_of(target.config), Serving(ranks, whole_experts, kv_cache_dtype=dtype)
    own = VLLM.demands(target, None, family)
    wanted = VLLM.demands(
        target_of({**target.config, "quantization_config": VLLM.restate(target, family, schemes.load("nvfp4"))}),
        None,
        family,
    )
    weights = 2048 * 6144
    bf16 = weights * 2 // ranks
    nvfp4 = weights // 2 // ranks + weights // 16 // ranks + 4 + 4  # codes, scales of 16, weight_scale_2, input_scale
    by_hand = 256 * 3 * (bf16 - nvfp4)
    found = savings(VLLM, target, family, own, wanted, serving, 256)
    assert found["saves_against"] == "bf16"
    assert found["saves_bytes_per_rank"] == by_hand
    assert found["saves_kv_tokens"] == by_hand // BY_HAND["fp8_e4m3" if dtype == "auto" else dtype]


def test_plan_says_what_another_scheme_saves_and_nothing_beside_the_targets_own(tinyglm):
    small = mtpforge.plan(tinyglm("bf16"), tinyglm("nvfp4"), scheme="int4-g32-asym", kv_cache_dtype="bfloat16").facts
    assert small["kv_bytes_per_token"] == 4 * 160 * 2 + 3 * 64
    assert small["saves_against"] == "bf16"
    assert small["saves_kv_tokens"] == small["saves_bytes_per_rank"] // 1472
    own = mtpforge.plan(tinyglm("bf16"), tinyglm("nvfp4"), standalone=True).facts
    assert not any(key.startswith("saves_") for key in own)


def test_a_heavier_draft_is_said_to_take_more(tinyglm):
    facts = mtpforge.plan(tinyglm("awq-int4"), tinyglm("bf16"), scheme="bf16").facts
    assert facts["saves_bytes_per_rank"] < 0
    assert 0 <= facts["saves_bytes_per_rank"] - 1472 * facts["saves_kv_tokens"] < 1472  # rounded to the dear side


@pytest.mark.engine
@pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("target-bf16", DTYPES),
        ("target-nvfp4-nvidia", ("auto", "bfloat16", "fp8_ds_mla")),
        *((f"target-{name}", DTYPES[:3]) for name in ("glm-4.5", "glm-4.7-flash", "deepseek-v3")),
    ],
)
def test_bytes_of_a_token_are_those_of_vllms_own_specs(name, dtypes, release_config, target_of, tmp_path):
    target = target_of(release_config(name))
    (tmp_path / "config.json").write_text(json.dumps(target.config))
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("vllm_kv_cache.py")), str(tmp_path), *dtypes],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.rindex('{"') :])
    assert {dtype: n_bytes for dtype, (_, n_bytes) in found.items()} == {
        dtype: bytes_of(target, dtype).token_bytes for dtype in dtypes
    }
    became = {dtype: kept for dtype, (kept, _) in found.items() if kept != "auto"}  # "auto": the model's own dtype
    assert became == {dtype: bytes_of(target, dtype).dtype for dtype in became}
