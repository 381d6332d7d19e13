"""GLM-4.x on more ranks than it has key and value heads: both engines repeat them, all equally often."""

from __future__ import annotations

import json

import pytest
from safetensors_headers import store
from sglang_asked import in_sglang, verdicts

from mtpforge.engines import ENGINES, Serving
from mtpforge.engines.expected import expected
from mtpforge.engines.sglang.loader.request import Request
from mtpforge.families import family_of
from mtpforge.scheme import load
from mtpforge.tensors import Spec

HEADS, KEYS, SIZE, WIDTH = 96, 8, 128, 5120


@pytest.fixture
def config(release_config):
    """GLM-4.5's: 96 heads, 8 of keys and values, 128 each."""
    found = release_config("target-glm-4.5")
    found.pop("quantization_config", None)
    assert (found["num_attention_heads"], found["num_key_value_heads"], found["head_dim"]) == (HEADS, KEYS, SIZE)
    return found | {"dtype": "bfloat16", "n_routed_experts": 8}


def said(engine, config, ranks, preset="bf16"):
    return [trap.message for trap in engine.serving_traps(family_of(config), config, load(preset), Serving(ranks))]


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_heads_are_repeated_where_ranks_are_a_multiple_of_them(engine, config):
    few = config | {"num_key_value_heads": 3}
    assert said(engine, config, 16) == said(engine, config, 32) == said(engine, config, 8) == []
    assert "3 key and value heads cannot be repeated over 4 ranks" in said(engine, few, 4)
    assert "3 key and value heads cannot be split over 2 ranks" in said(engine, few, 2)
    assert "96 attention heads cannot be split over 64 ranks" in said(engine, config, 64)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_a_repeated_head_is_cut_no_further(engine, config):
    """On 16 ranks each has one head of keys: 128 rows, a block of FP8, of which half would be none."""
    assert not [text for text in said(engine, config, 16, "fp8-block128") if "k_proj" in text or "v_proj" in text]


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("ranks", [1, 4, 8, 16, 32])
def test_a_rank_holds_one_head_of_keys_at_least(engine, config, ranks):
    rows = {"q_proj": HEADS * SIZE, "k_proj": KEYS * SIZE, "v_proj": KEYS * SIZE}
    specs = {f"model.layers.92.self_attn.{name}.weight": Spec("BF16", (n, WIDTH)) for name, n in rows.items()}
    held = HEADS // ranks + 2 * max(KEYS // ranks, 1)
    assert engine.memory(family_of(config), config, specs, Serving(ranks)) == held * SIZE * WIDTH * 2


@pytest.mark.engine
@in_sglang
def test_sglang_loads_it_on_more_ranks_than_key_heads(config, tmp_path):
    config |= {"num_attention_heads": 8, "num_key_value_heads": 2}
    engine, family = ENGINES["sglang"], family_of(config)
    served = tmp_path / "target"
    served.mkdir()
    (served / "config.json").write_text(json.dumps(config))
    target = type("Target", (), {"config": config, "quantization": {}, "location": str(served), "label": "t"})()
    requests = {}
    for preset in ("bf16", "fp8-block128"):
        for ranks in (4, 6):
            scheme, draft = load(preset), tmp_path / f"{preset}-{ranks}"
            draft.mkdir()
            told = engine.draft_config(target, config, family, scheme, 8)
            (draft / "config.json").write_text(json.dumps(told))
            store(draft / "model.safetensors", expected(scheme, family, told, family.layer(told), 8))
            requests[preset, ranks] = Request(str(served), str(draft), tensor_parallel=ranks, same_config=False)
    found = verdicts({f"{preset} {ranks}": asked for (preset, ranks), asked in requests.items()})
    assert [found[f"{preset} 4"].get("errors", found[f"{preset} 4"]) for preset in ("bf16", "fp8-block128")] == [[], []]
    assert all(found[f"{preset} 6"]["errors"] for preset in ("bf16", "fp8-block128"))
