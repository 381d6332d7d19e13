from __future__ import annotations

import json
import struct
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from mtpforge.errors import MtpforgeError
from mtpforge.families import families, family_of
from mtpforge.families.counting import config_experts, expert_numbers
from mtpforge.families.sizes import evaluate, flag

FILES = (Path(__file__).parents[2] / "mtpforge" / "families").glob("*.toml")
KNOWN = [name for file in FILES for name in tomllib.loads(file.read_text())["model_types"]]


def described(config, n_experts=None):
    """Name -> (dtype, shape) of a dense layer, as the family describes it."""
    family = family_of(config)
    n = family.n_experts(config) if n_experts is None else n_experts
    prefix = family.prefix(family.layer(config))
    rows = {f"{prefix}{m.name}.weight": ("BF16", m.shape) for m in family.modules(config, n)}
    return rows | {prefix + p.name: (p.dtype, p.shape) for p in family.plain(config, n)}


def layer_headers(folder, prefix):
    rows = {}
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
        rows |= {k: (v["dtype"], tuple(v["shape"])) for k, v in header.items() if k.startswith(prefix)}
    return rows


def test_layer_of_the_published_model_has_its_791_tensors(release_config, census):
    rows = described(release_config("target-bf16"))
    assert len(rows) == 791
    assert rows == census("bf16-zai-org")


def test_layer_of_the_tiny_model_is_what_its_headers_say(tinyglm):
    folder = tinyglm("bf16")
    rows = described(json.loads((folder / "config.json").read_text()))
    assert rows == layer_headers(folder, "model.layers.3.")


def test_experts_of_another_count_change_router_and_bias(release_config):
    rows = described(release_config("target-bf16"), n_experts=168)
    assert len(rows) == 527
    assert rows["model.layers.78.mlp.gate.weight"] == ("BF16", (168, 6144))
    assert rows["model.layers.78.mlp.gate.e_score_correction_bias"] == ("F32", (168,))


def test_head_dim_of_the_config_is_not_believed(release_config):
    config = release_config("target-bf16")
    assert described(config) == described(config | {"head_dim": 999, "qk_head_dim": 999})


def test_fused_sets_name_the_modules_that_engines_run_as_one(release_config):
    sets = {}
    config = release_config("target-bf16")
    for module in family_of(config).modules(config, 1):
        if module.fused:
            sets.setdefault(module.fused, []).append(module.name.rsplit(".", 1)[1])
    assert sets == {
        "self_attn.fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"],
        "self_attn.indexer.wk_weights_proj": ["wk", "weights_proj"],
        "mlp.shared_experts.gate_up_proj": ["gate_proj", "up_proj"],
        "mlp.experts.0.gate_up_proj": ["gate_proj", "up_proj"],
    }


def test_a_config_nested_in_text_config_is_read(release_config):
    config = release_config("target-bf16")
    assert described({"model_type": "glm_vision", "text_config": config}) == described(config)


def test_unknown_model_type_names_what_is_known():
    with pytest.raises(MtpforgeError) as caught:
        family_of({"model_type": "llama\x1b[31m"})
    assert str(caught.value) == (
        "error: no MTP layer is known for model_type `llama\\x1b[31m`\n"
        f"where: config.json, `model_type`\ncause: known: {', '.join(sorted(KNOWN))}\n"
        " hint: name a checkpoint of one of them"
    )


@pytest.mark.parametrize(("name", "fix"), [
    ("target-deepseek-v3", "deepseek_v32"), ("target-glm-4.7-flash", "delete `index_topk`"),
])  # fmt: skip
@pytest.mark.parametrize("value", [2048, None])
def test_an_indexers_key_in_a_family_without_one_is_refused(release_config, name, fix, value):
    """VLLM builds an indexer wherever the key stands, null or not, and its tensors would be missing."""
    config = release_config(name)
    assert family_of(config).name == config["model_type"]
    with pytest.raises(MtpforgeError, match=f"a config of {config['model_type']} has `index_topk`") as caught:
        family_of(config | {"index_topk": value})
    assert fix in caught.value.fix


@pytest.mark.parametrize("key", ["hidden_size", "kv_lora_rank", "num_hidden_layers", "n_routed_experts"])
def test_missing_size_names_the_key(release_config, key):
    config = {k: v for k, v in release_config("target-bf16").items() if k != key}
    with pytest.raises(MtpforgeError, match=f"the config has no `{key}`"):
        described(config)


@pytest.mark.parametrize("value", [0, -1, "6144", 2.5, None, True])
def test_size_that_is_no_positive_number_names_the_key(release_config, value):
    with pytest.raises(MtpforgeError, match=r"`hidden_size` is .*, not a positive whole number"):
        described(release_config("target-bf16") | {"hidden_size": value})


def test_absurd_sizes_are_refused_before_anything_is_listed(release_config):
    with pytest.raises(MtpforgeError, match="experts cannot be right"):
        described(release_config("target-bf16") | {"n_routed_experts": 10**12})
    with pytest.raises(MtpforgeError, match="the config gives a layer size of"):
        described(release_config("target-bf16") | {"hidden_size": 10**12})


def test_sizes_and_counts_of_the_limit_itself_are_taken(release_config):
    """One more is absurd: an axis of 2^31 + 1, a layer of 65,537 experts."""
    assert evaluate("rows", {"rows": 2**31}) == 2**31
    with pytest.raises(MtpforgeError, match="a layer size of 2147483649"):
        evaluate("rows", {"rows": 2**31 + 1})
    config = release_config("target-bf16")
    family = family_of(config)
    bias = [plain.shape for plain in family.plain(config, 65536) if plain.per_expert]
    assert bias == [(65536,)]
    with pytest.raises(MtpforgeError, match="65537 experts cannot be right"):
        family.plain(config, 65537)


def test_a_config_that_counts_no_experts_states_no_count(release_config):
    config = release_config("target-bf16")
    family = family_of(config)
    assert config_experts(family, config) == 256
    for key in family.expert_keys:
        config.pop(key, None)
    assert config_experts(family, config) is None


def test_experts_are_counted_by_the_parts_of_their_own_matrices(release_config):
    """With the prefix of a layer or without; what lies deeper, as an adapter does, counts nothing."""
    names = ("mlp.experts.3.down_proj.weight", "model.layers.7.mlp.experts.12.up_proj.weight_packed")
    others = ("mlp.experts.4.up_proj.lora_A.weight", "mlp.experts.5.bias", "mlp.shared_experts.up_proj.weight")
    assert expert_numbers(family_of(release_config("target-bf16")), (*names, *others)) == {3, 12}


@pytest.mark.parametrize("value", [None, 0, 1, "", "true"])
def test_a_flag_that_is_neither_true_nor_false_is_not_called_absent(value):
    with pytest.raises(MtpforgeError) as caught:
        flag({"key": value}, "key")
    assert caught.value.what == f"`key` is {value!r}, not true or false"
    with pytest.raises(MtpforgeError, match="the config has no `key`"):
        flag({}, "key")


def test_size_expressions_know_sums_and_products_only():
    assert evaluate("2 * (a + 3)", {"a": 4}) == 14
    for bad in ("a - 1", "__import__('os')", "a ** 9", "a.b", "1.5"):
        with pytest.raises(ValueError, match="no size expression"):
            evaluate(bad, {"a": 1})


def test_no_tensor_is_both_described_and_dropped(release_config):
    config = release_config("target-bf16")
    for family in families():
        local = [n.removeprefix("model.layers.78.") for n in described(config, 1)]
        assert not [n for n in local for d in family.dropped if fnmatchcase(n, d.pattern)]
