"""What a target hands to its MTP layer, against transformers' own model, and in every layout against plain code."""

from __future__ import annotations

import json
import logging
import shutil
import sys

import pytest
import torch
from nextn.copies import changed, opened, twin
from nextn.odd_configs import ODD, OF_A_TARGET
from slow_twins import decoder
from tokenizers import Tokenizer

from mtpforge.errors import MtpforgeError
from mtpforge.nextn import capturing
from mtpforge.nextn import layer as stages

LAYOUTS = ("awq-int4", "nvfp4", "fp8", "int4-int8mix", "awq-int4-12experts")


@pytest.fixture(scope="module")
def tokens(tinyglm):
    """Token ids of the evaluation text, by the tokenizer's own library."""
    text = (tinyglm("bf16").parent / "eval.txt").read_text().split("\f")[0]
    return Tokenizer.from_file(str(tinyglm("bf16") / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def model(tinyglm):
    """The tiny model in transformers' own loader, latent norms with the epsilon that engines give them."""
    from transformers import GlmMoeDsaForCausalLM

    logging.disable(logging.WARNING)  # it reports the MTP layer as unexpected
    loaded = GlmMoeDsaForCausalLM.from_pretrained(tinyglm("bf16"), dtype=torch.float32, attn_implementation="eager")
    logging.disable(logging.NOTSET)
    for layer in loaded.model.layers:
        for norm in (layer.self_attn.q_a_layernorm, layer.self_attn.kv_a_layernorm):
            norm.variance_epsilon = loaded.config.rms_norm_eps
    return loaded.eval()


def captured(folder, windows):
    target = opened(folder)
    return list(capturing.finish(target, capturing.embed(target, windows), 0))


# The states


@pytest.mark.parametrize("length", [5, 128, 250])  # index_topk is 128: beyond it, keys are chosen and shared
def test_states_are_those_of_transformers_own_model(tinyglm, tokens, model, length):
    windows = [tokens[:length], tokens[1000 : 1000 + length]]
    with torch.inference_mode():
        for found, ids in zip(captured(tinyglm("bf16"), windows), windows, strict=True):
            expected = model.model(torch.tensor([ids])).last_hidden_state[0]
            torch.testing.assert_close(found.hidden, expected, rtol=0, atol=2e-5)
            assert (found.token_ids.tolist(), found.positions.tolist()) == (ids, list(range(length)))


@pytest.mark.slow
def test_rows_that_attend_a_few_at_a_time_change_nothing(tinyglm, tokens, monkeypatch):
    windows = [tokens[:200], tokens[500:700]]
    whole = captured(tinyglm("bf16"), windows)
    monkeypatch.setattr(stages, "ROWS", 128)
    for one, other in zip(whole, captured(tinyglm("bf16"), windows), strict=True):
        torch.testing.assert_close(one.hidden, other.hidden, rtol=0, atol=2e-5)


def test_mode_of_torch_stays_the_callers(tinyglm, tokens):
    target = opened(tinyglm("bf16"))
    for _ in capturing.finish(target, capturing.embed(target, [tokens[:4]]), 0):
        assert not torch.is_inference_mode_enabled()


def test_epsilon_of_the_latent_norms_is_the_engines(tinyglm, tokens, model, tmp_path):
    """With transformers' own 1e-6 the states would differ by more than any tolerance here."""
    large = changed(tinyglm("bf16"), tmp_path / "eps", config=lambda c: c.update(rms_norm_eps=1e-2))
    tensors, config = twin(large)
    (found,) = captured(large, [tokens[:12]])
    expected = torch.stack(decoder.hidden_states(tensors, config, tokens[:12]))
    torch.testing.assert_close(found.hidden.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_of_every_layout_are_those_of_plain_code(tinyglm, tokens, layout):
    tensors, config = twin(tinyglm(layout))
    ids = tokens[300:316]
    (found,) = captured(tinyglm(layout), [ids])
    expected = torch.stack(decoder.hidden_states(tensors, config, ids))
    torch.testing.assert_close(found.hidden.double(), expected, rtol=0, atol=5e-5)


def test_keys_that_earlier_layers_chose_are_those_of_transformers(tinyglm, tokens, model, tmp_path, monkeypatch):
    """With an index_topk of 16 a layer without an indexer sees what the layer before it chose, and nothing else."""
    few = changed(tinyglm("bf16"), tmp_path / "few", config=lambda c: c.update(index_topk=16))
    assert opened(few).config.indexer_types == ["full", "full", "shared"]
    ids = tokens[300:400]
    (found,), (all_keys,) = captured(few, [ids]), captured(tinyglm("bf16"), [ids])
    for layer in model.model.layers[:2]:
        monkeypatch.setattr(layer.self_attn.indexer, "index_topk", 16)
    with torch.inference_mode():
        expected = model.model(torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(found.hidden, expected, rtol=0, atol=2e-5)
    assert float((all_keys.hidden - expected).abs().max()) > 1e-2


def test_count_of_experts_is_that_of_the_tensors(tinyglm, tokens, tmp_path):
    """A config whose `num_experts` is from before pruning: transformers would take that number."""
    stale = changed(tinyglm("awq-int4-12experts"), tmp_path / "stale", config=lambda c: c.update(num_experts=16))
    (found,) = captured(stale, [tokens[:20]])
    (plain,) = captured(tinyglm("awq-int4-12experts"), [tokens[:20]])
    assert torch.equal(found.hidden, plain.hidden)


# What is refused before anything is computed


def gone(name):
    return lambda tensors: tensors.pop(name)


def renamed(old, new):
    def change(tensors):
        tensors[new] = tensors.pop(old)

    return change


LAYER = "model.layers.1."
MADE_UP = {"rope_type": "made up", "rope_theta": 10000}


@pytest.mark.parametrize(
    ("layout", "change", "what"),
    [
        ("bf16", gone(LAYER + "mlp.experts.7.up_proj.weight"), f"`{LAYER}mlp.experts.7.up_proj` is missing"),
        ("bf16", gone(LAYER + "input_layernorm.weight"), f"`{LAYER}input_layernorm.weight` is missing"),
        ("bf16", gone("model.layers.2.mlp.gate.e_score_correction_bias"), "e_score_correction_bias` is missing"),
        ("bf16", gone(LAYER + "self_attn.indexer.k_norm.bias"), f"`{LAYER}self_attn.indexer.k_norm.bias` is missing"),
        (
            "bf16",
            lambda t: t.update({LAYER + "self_attn.sinks": torch.zeros(4)}),
            f"`{LAYER}self_attn.sinks` is taken by nothing",
        ),
        (
            "bf16",
            renamed(LAYER + "mlp.experts.7.up_proj.weight", LAYER + "mlp.experts.7.up.weight"),
            f"`{LAYER}mlp.experts.7.up_proj` is missing",
        ),
        (
            "bf16",
            lambda t: t.update({LAYER + "mlp.experts.16.up_proj.weight": torch.zeros(128, 128)}),
            f"`{LAYER}mlp.experts.16.up_proj` is taken by nothing",
        ),
    ],
)
def test_target_with_other_tensors_is_refused_at_once(tinyglm, tmp_path, layout, change, what):
    assert opened(tinyglm(layout)).n_layers == 3
    with pytest.raises(MtpforgeError) as error:
        opened(changed(tinyglm(layout), tmp_path / "copy", change))
    assert what.replace("up_proj` is taken", "up_proj.weight` is taken") in error.value.what


@pytest.mark.parametrize("suffix", ["", ".weight", "_blocks"])
def test_experts_in_one_tensor_are_refused_by_name(tinyglm, tmp_path, suffix):
    """As transformers' own modules and compressed-tensors may store them; a source with such experts is read."""

    def stack(tensors):
        names = [f"{LAYER}mlp.experts.{n}.down_proj.weight" for n in range(16)]
        tensors[f"{LAYER}mlp.experts.down_proj{suffix}"] = torch.stack([tensors.pop(name) for name in names])

    with pytest.raises(MtpforgeError) as error:
        opened(changed(tinyglm("bf16"), tmp_path / "copy", stack))
    assert error.value.what == f"the experts of `{LAYER}mlp` are stored in one tensor for all of them"
    assert str(error.value.where) == f"`{LAYER}mlp.experts.down_proj{suffix}`"


def test_suffix_that_no_format_has_is_an_error(tinyglm, tokens, tmp_path):
    name = LAYER + "mlp.experts.3.up_proj.weight_scale"
    copy = changed(tinyglm("awq-int4"), tmp_path / "copy", renamed(name, name + "s"))
    with pytest.raises(MtpforgeError, match=r"`model\.layers\.1\.mlp\.experts\.3\.up_proj`"):
        captured(copy, [tokens[:64]])


def test_scales_of_a_quantized_cache_change_nothing(tinyglm, tokens, tmp_path):
    more = {LAYER + "self_attn.k_scale": torch.ones(1), LAYER + "self_attn.rotary_emb.inv_freq": torch.ones(16)}
    copy = changed(tinyglm("bf16"), tmp_path / "copy", lambda t: t.update(more))
    (found,) = captured(copy, [tokens[:8]])
    (plain,) = captured(tinyglm("bf16"), [tokens[:8]])
    assert torch.equal(found.hidden, plain.hidden)


def test_shard_cut_short_is_an_error(tinyglm, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tinyglm("bf16"), copy)
    shard = max(copy.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(MtpforgeError, match="is not a valid safetensors file"):
        captured(copy, [[1, 2, 3]])


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (lambda c: c.pop("routed_scaling_factor"), "config.json has no `routed_scaling_factor`"),
        (lambda c: c.pop("rope_parameters"), "config.json has no `rope_parameters`"),
        (lambda c: c.update(scoring_func="softmax"), "`scoring_func` is softmax"),
        (lambda c: c.update(rope_interleave=False), "`rope_interleave` is False"),
        (lambda c: c.update(rope_parameters=MADE_UP), "transformers cannot make the model"),
        (lambda c: c.update(indexer_types=["shared", "full", "full"]), "`indexer_types` does not say"),
        (lambda c: c.update(indexer_types=["full"]), "`indexer_types` does not say"),
        (lambda c: c.update(mlp_layer_types=["dense"] * 5), "transformers cannot make the model from this config"),
        (lambda c: c.update(model_type="llama"), "no MTP layer is known for model_type `llama`"),
    ],
)
def test_config_that_asks_for_something_else_is_refused(tinyglm, tmp_path, config, what):
    with pytest.raises(MtpforgeError) as error:
        opened(changed(tinyglm("bf16"), tmp_path / "copy", config=config))
    assert error.value.what.startswith(what)
    assert "config.json" in error.value.where


@pytest.mark.parametrize(("changes", "what", "why"), ODD + OF_A_TARGET)
def test_odd_value_is_refused_by_key_value_and_what_is_possible(tinyglm, tmp_path, changes, what, why):
    assert opened(tinyglm("bf16")).config.num_experts_per_tok == 4
    with pytest.raises(MtpforgeError) as error:
        opened(changed(tinyglm("bf16"), tmp_path / "copy", config=lambda c: c.update(changes)))
    assert what in error.value.what + error.value.why
    assert why in error.value.why
    assert (error.value.where, error.value.code) == (f"{tmp_path}/copy/config.json", 3)
    assert "\\n" not in error.value.why


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.layers.1.mlp.experts.3.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weight_that_is_no_number_is_named_with_its_file(tinyglm, tokens, tmp_path, name, value):
    def spoil(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[5] = value

    assert bool(captured(tinyglm("bf16"), [tokens[:64]])[0].hidden.isfinite().all())
    with pytest.raises(MtpforgeError, match="holds values that are no numbers") as error:
        captured(changed(tinyglm("bf16"), tmp_path / "copy", spoil), [tokens[:64]])
    assert name.removesuffix(".weight") in error.value.what
    assert error.value.where == f"{tmp_path}/copy/model.safetensors"


def test_embedding_smaller_than_the_vocabulary_is_refused(tinyglm, tmp_path):
    target = opened(changed(tinyglm("bf16"), tmp_path / "copy", config=lambda c: c.update(vocab_size=600)))
    with pytest.raises(MtpforgeError, match=r"the embedding has 512 tokens, config\.json says 600"):
        capturing.embed(target, [[1, 599]])


def test_dense_layer_stored_as_experts_is_refused(tinyglm, tmp_path):
    copy = changed(
        tinyglm("bf16"),
        tmp_path / "copy",
        config=lambda c: c.update(mlp_layer_types=["dense"] * 3, first_k_dense_replace=3),
    )
    with pytest.raises(MtpforgeError, match=r"`model\.layers\.1\.mlp\.down_proj` is missing, and 2 more"):
        opened(copy)


def test_transformers_without_the_modules_is_named(tinyglm, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.models.glm_moe_dsa.modeling_glm_moe_dsa", None)
    with pytest.raises(MtpforgeError, match=r"transformers [\d.]+ cannot compute GLM-5\.2") as error:
        opened(tinyglm("bf16"))
    assert error.value.code == 5


def test_config_alone_is_no_target_to_capture(tmp_path, release_config):
    (tmp_path / "config.json").write_text(json.dumps(release_config("target-fp8")))
    with pytest.raises(MtpforgeError, match="the target has no weights"):
        opened(tmp_path)
