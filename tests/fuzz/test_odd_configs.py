"""A target's config.json with one key replaced: inspect and a plan answer alike, and no other exception is raised."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtpforge
from mtpforge.errors import INPUT, MtpforgeError

IS_LONG = bool(os.environ.get("MTPFORGE_LONG"))  # `make fuzz` asks about every key
ODD = ("abc", -1, 0, None, [])
# Absent keys that vLLM has a default for: only a source that says otherwise shows that it is wrong.
BY_SOURCE = (
    *("index_share_for_mtp_iteration", "indexer_rope_interleave", "num_experts_per_tok", "scoring_func", "topk_method"),
)
# What the layer is built from, and what must be a number of it; by hand, from the layer's own code in transformers.
SIZES = (
    *("hidden_size", "moe_intermediate_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim"),
    *("qk_rope_head_dim", "v_head_dim", "n_shared_experts", "n_routed_experts", "index_topk", "index_n_heads"),
    *("index_head_dim", "vocab_size", "num_hidden_layers"),
)
COUNTS = ("num_experts_per_tok", "n_group", "topk_group", "moe_layer_freq", "num_experts")
NUMBERS = ("routed_scaling_factor", "rms_norm_eps", "rope_parameters.rope_theta")


def paths(config: dict, at: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield at + key
        if isinstance(value, dict):
            yield from paths(value, f"{at}{key}.")


def ends(function, *args: object) -> MtpforgeError | None:
    """What it raises; any other exception is a traceback for a user, and fails."""
    try:
        function(*args)
    except MtpforgeError as error:
        return error
    return None


@pytest.fixture
def odd(tinyglm, tmp_path):
    """A target of which one key, by its dotted path, holds a value."""
    whole = tinyglm("awq-int4")
    for file in whole.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)

    def write(path: str, value: object) -> str:
        config = json.loads((whole / "config.json").read_text())
        *outer, key = path.split(".")
        inside = config
        for name in outer:
            inside = inside[name]
        assert inside[key] != value
        inside[key] = value
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("key", [*SIZES, *COUNTS, *NUMBERS])
def test_no_number_is_refused_by_its_key_and_file(odd, tinyglm, key):
    for value in ODD:
        if value is None and key not in SIZES:
            continue
        target = odd(key, value)
        for error in (ends(mtpforge.inspect, target), ends(mtpforge.plan, target, tinyglm("nvfp4"))):
            assert (key, value, getattr(error, "code", 0)) == (key, value, INPUT)
            assert key.rpartition(".")[2] in error.what
            assert str(error.place).startswith(f"{target}/config.json")


def test_a_model_without_dense_layers_is_no_odd_one(odd, tinyglm):
    assert ends(mtpforge.inspect, odd("first_k_dense_replace", 0)) is None
    assert ends(mtpforge.inspect, odd("first_k_dense_replace", -1)).code == INPUT


def every_key() -> list[str]:
    config = Path(mtpforge.__file__).parent / "_demo" / "awq-int4" / "config.json"
    return list(paths(json.loads(config.read_text())))


@pytest.mark.slow
@pytest.mark.parametrize("key", [*every_key()][:: 1 if IS_LONG else 3])
def test_inspect_and_plan_agree_on_every_key(odd, tinyglm, key):
    original = json.loads((tinyglm("awq-int4") / "config.json").read_text())
    for name in key.split("."):
        original = original[name]
    for value in (value for value in ODD if value != original):
        target = odd(key, value)
        planned = ends(mtpforge.plan, target, tinyglm("nvfp4"))
        refused = ends(mtpforge.inspect, target)
        if planned is None or refused is not None:
            assert (key, value, getattr(refused, "code", 0)) == (key, value, getattr(planned, "code", 0))
            continue
        # what the engine does not take is an answer of inspect, in the plan's words
        said = [check.detail for check in mtpforge.inspect(target).checks if check.name == "scheme"]
        told = said[0].startswith(f"no draft can be made for it: {planned.what}; ")
        assert told or (value is None and key in BY_SOURCE), (key, value, said, planned)
