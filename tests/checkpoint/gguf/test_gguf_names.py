"""Names against the gguf package's own map, and what a file's keys say of config.json."""

import gguf
import pytest
from gguf.constants import MODEL_ARCH

from mtpforge.checkpoint.gguf import checkpoint, names
from mtpforge.checkpoint.gguf.header import Header, Listed, Stored
from mtpforge.errors import MtpforgeError
from mtpforge.families import families
from mtpforge.ggml import TYPES

N = 3
# architectures that the package knows; deepseek32 has deepseek2's names and glm-dsa's indexer
KNOWN = {"glm-dsa": MODEL_ARCH.GLM_DSA, "deepseek2": MODEL_ARCH.DEEPSEEK2, "glm4moe": MODEL_ARCH.GLM4_MOE}
BY_TYPE = {name: family for family in families() for name in family.model_types}


def table(model_type):
    return next(a for a in names.architectures() if a.model.model_type == model_type)


def ours(architecture, name, shape=(4, 32), kind=0):
    stored = Stored(name, TYPES[kind], shape, 0, 0)
    return [ref.name for ref in architecture.refs(stored, "x.gguf")]


def local_names(family):
    """Every tensor of the family's layer, experts as the converter names their stack."""
    stacked = {row.template.replace(".*", "") for row in family.module_rows if "*" in row.template}
    single = {row.template for row in family.module_rows if "*" not in row.template}
    return [f"{t}.weight" for t in sorted(stacked | single)] + [row.name for row in family.plain_rows]


@pytest.mark.parametrize("model_type", sorted({a.model.model_type for a in names.architectures()}))
def test_every_tensor_of_a_family_is_found_under_the_package_s_name(model_type):
    architecture = table(model_type)
    arch = KNOWN.get(architecture.model.architecture, MODEL_ARCH.GLM_DSA)
    theirs = gguf.get_tensor_name_map(arch, N)
    wider = gguf.get_tensor_name_map(MODEL_ARCH.GLM_DSA, N)
    n_found = 0
    for local in local_names(BY_TYPE[model_type]):
        asked = f"model.layers.2.{local}".replace("e_score_correction_bias", "e_score_correction.bias")
        named = theirs.get_name(asked, (".weight", ".bias")) or wider.get_name(asked, (".weight", ".bias"))
        assert named, local
        is_stack = ".experts." in local
        expected = local.replace(".experts.", ".experts.1.") if is_stack else local
        assert f"model.layers.2.{expected}" in ours(architecture, named, (2, 4, 32) if is_stack else (4, 32)), named
        n_found += 1
    assert n_found > 15


def test_a_type_is_part_of_a_weight_s_name_and_a_matrix_of_experts_is_one_ref_each():
    dsa = table("glm_moe_dsa")
    assert ours(dsa, "blk.78.attn_output.weight", (4, 64), 8) == ["model.layers.78.self_attn.o_proj.weight_q8_0"]
    stored = Stored("blk.78.ffn_down_exps.weight", TYPES[8], (3, 4, 64), 1000, 1000 + 3 * 4 * 68)
    refs = list(dsa.refs(stored, "x.gguf"))
    assert [(ref.name, ref.spec.shape, ref.start, ref.stop) for ref in refs] == [
        (f"model.layers.78.mlp.experts.{n}.down_proj.weight_q8_0", (4, 68), 1000 + 272 * n, 1272 + 272 * n)
        for n in range(3)
    ]


def test_gate_and_up_in_one_stack_are_the_first_rows_and_the_others():
    stored = Stored("blk.5.ffn_gate_up_exps.weight", TYPES[8], (2, 6, 32), 0, 2 * 6 * 34)
    refs = {ref.name: ref for ref in table("glm_moe_dsa").refs(stored, "x.gguf")}
    spans = {name.removeprefix("model.layers.5.mlp.experts."): (ref.start, ref.stop) for name, ref in refs.items()}
    assert spans == {
        "0.gate_proj.weight_q8_0": (0, 102), "0.up_proj.weight_q8_0": (102, 204),
        "1.gate_proj.weight_q8_0": (204, 306), "1.up_proj.weight_q8_0": (306, 408),
    }  # fmt: skip
    scale = Stored("blk.5.ffn_gate_up_exps.scale", TYPES[0], (2,), 0, 8)
    found = {ref.name: (ref.start, ref.spec.shape) for ref in table("glm_moe_dsa").refs(scale, "x.gguf")}
    assert found["model.layers.5.mlp.experts.1.gate_proj.scale"] == (4, ())
    assert found["model.layers.5.mlp.experts.1.up_proj.scale"] == (4, ())


@pytest.mark.parametrize(
    ("theirs", "shape", "expected"),
    [
        ("token_embd.weight", (4, 32), ["model.embed_tokens.weight"]),
        ("rope_freqs.weight", (4,), ["rope_freqs.weight"]),
        ("blk.7.attn_k_b.weight", (2, 4, 32), ["model.layers.7.self_attn.kv_b_proj.k_b"]),
        ("blk.7.attn_v_b.weight", (2, 4, 32), ["model.layers.7.self_attn.kv_b_proj.v_b"]),
        ("blk.7.attn_output.scale", (1,), ["model.layers.7.self_attn.o_proj.scale"]),
        ("blk.7.attn_output.input_scale", (1,), []),
        ("blk.7.ffn_up_exps.input_scale", (8,), []),
        ("blk.7.something_new.weight", (4, 32), ["model.layers.7.something_new.weight"]),
        ("blk.7.ffn_up_exps.weight", (4, 32), ["model.layers.7.ffn_up_exps.weight"]),
        ("blk.7.ffn_gate_up_exps.weight", (2, 3, 32), ["model.layers.7.ffn_gate_up_exps.weight"]),
        ("blk.7", (4, 32), ["blk.7"]),
        ("blk.7.weight", (4, 32), ["model.layers.7.weight"]),
        ("blk.x.attn_output.weight", (4, 32), ["blk.x.attn_output.weight"]),
    ],
)
def test_what_is_no_matrix_of_a_layer(theirs, shape, expected):
    assert ours(table("glm_moe_dsa"), theirs, shape) == expected


KEYS = {
    "general.architecture": "glm4moe", "glm4moe.block_count": 47, "glm4moe.nextn_predict_layers": 1,
    "glm4moe.embedding_length": 4096, "glm4moe.attention.head_count": 96, "glm4moe.attention.head_count_kv": 8,
    "glm4moe.attention.key_length": 128, "glm4moe.expert_count": 128, "glm4moe.expert_used_count": 8,
    "glm4moe.expert_shared_count": 1, "glm4moe.expert_feed_forward_length": 1408,
}  # fmt: skip


def config(values, tensors=()):
    return names.architecture_of(values, "x.gguf").config(Header(values, ()), tensors, "x.gguf")


def test_fields_of_config_json_come_of_the_keys_and_of_what_is_there():
    found = config(KEYS, ["blk.46.attn_q.bias"])
    assert found == {
        "model_type": "glm4_moe", "num_hidden_layers": 46, "num_nextn_predict_layers": 1, "hidden_size": 4096,
        "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "n_routed_experts": 128,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 1408, "attention_bias": True,
        "use_qk_norm": False, "hidden_act": "silu",
    }  # fmt: skip
    assert config(KEYS, ["blk.46.attn_q_norm.weight"])["use_qk_norm"] is True
    without = {key: value for key, value in KEYS.items() if "nextn" not in key}
    assert config(without)["num_hidden_layers"] == 47


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"glm4moe.embedding_length": None}, "the file has no such key"),
        ({"glm4moe.embedding_length": "4096"}, "it is '4096'"),
        ({"glm4moe.embedding_length": True}, "it is True"),
        ({"glm4moe.attention.head_count": Listed(47)}, "it is a list"),
        ({"glm4moe.nextn_predict_layers": 47}, "it is 0"),
        ({"glm4moe.nextn_predict_layers": 1.0}, "it is 1.0"),
        ({"glm4moe.block_count": -1}, "it is -2"),
    ],
)
def test_keys_that_say_no_size_are_named(change, why):
    values = {key: value for key, value in {**KEYS, **change}.items() if value is not None}
    with pytest.raises(MtpforgeError) as caught:
        config(values)
    assert caught.value.why == f"{why}; the sizes of the MTP layer depend on it"


def test_an_architecture_of_several_models_is_told_by_its_tokenizer():
    of = {"general.architecture": "deepseek2"}
    for value, model in (("glm4", "glm4_moe_lite"), ("deepseek-v3", "deepseek_v3")):
        assert names.architecture_of(of | {"tokenizer.ggml.pre": value}, "x").model.model_type == model
    with pytest.raises(MtpforgeError) as caught:
        names.architecture_of(of | {"tokenizer.ggml.pre": "kimi-k2"}, "x.gguf")
    assert "the key is `kimi-k2`" in caught.value.why
    for other in ("llama", None, Listed(3)):
        with pytest.raises(MtpforgeError) as caught:
            names.architecture_of({"general.architecture": other}, "x.gguf")
        assert caught.value.why == "known: deepseek2, deepseek32, glm-dsa, glm4moe"


def test_glm_5_3_flash_is_refused_by_the_name_that_a_file_gives_it():
    """The package has no such architecture yet: once it has one, a table of its names belongs here."""
    assert not [name for name in gguf.MODEL_ARCH_NAMES.values() if "glm5" in name or "glm-next" in name]
    for named in ("glm5-next", "glm5_next"):
        with pytest.raises(MtpforgeError) as caught:
            names.architecture_of({"general.architecture": named}, "x.gguf")
        assert caught.value.what == f"no MTP layer is known for GGUF's architecture `{named}`"


def test_stacks_that_no_model_has_are_no_experts_and_all_of_them_are_bounded(monkeypatch):
    """A sparse file may claim any size: a million experts of a byte each are one short entry of the header."""
    dsa, name = table("glm_moe_dsa"), "blk.{}.ffn_up_exps.weight"
    assert ours(dsa, name.format(5), (1 << 20, 1, 1)) == ["model.layers.5.ffn_up_exps.weight"]
    monkeypatch.setattr(checkpoint, "_MOST_WEIGHTS", 1_000)
    stacks = tuple(Stored(name.format(n), TYPES[1], (400, 1, 1), 0, 800) for n in range(3))
    with pytest.raises(MtpforgeError) as caught:
        checkpoint._located(dsa, ["x.gguf"], [Header({}, stacks)])
    assert caught.value.why == "with it there are more than 1,000 weights"
