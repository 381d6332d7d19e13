"""The layer stage by stage against a slow twin in float64, and against transformers' decoder layer with all experts."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from nextn.calibration import SEQUENCES, captured, twin
from nextn.odd_configs import ODD
from pruning.counting import CountingCheckpoint
from pruning.layers import pruned_copy
from slow_twins import decoder
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm

from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.nextn import layer as layers
from mtpforge.nextn.configuring import making
from mtpforge.nextn.embedding import embedding
from mtpforge.nextn.filling import fill

N_ROWS = sum(len(ids) - 1 for ids in SEQUENCES)
CLOSE = {"rtol": 1e-4, "atol": 1e-3}  # float32 against float64, of outputs of up to 100


def sequences(folder):
    return [
        SimpleNamespace(token_ids=torch.tensor(ids), positions=torch.tensor(positions), hidden=hidden)
        for ids, positions, hidden in captured(folder)
    ]


def reconfigured(folder, to, **changes):
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def attended(folder, like=None):
    """Our rows that attention was added to, and the twin's, sequence after sequence; `like`: whose inputs."""
    checkpoint, like = open_checkpoint(str(folder)), like or folder
    block = layers.block(checkpoint)
    rows = layers.enter(block, embedding(checkpoint, checkpoint, 128), sequences(like), N_ROWS)
    layers.attend(block, rows)
    tensors, config = twin(folder)
    theirs = []
    for ids, positions, hidden in captured(like):
        entered = decoder.mtp_rows(tensors, config, ids, hidden.double(), positions)
        theirs += decoder.attended(decoder.layer_of(tensors, 3), config, entered, positions[:-1])[0]
    return block, rows.x, torch.stack(theirs)


@pytest.fixture(scope="module")
def both(tinyglm):
    return attended(tinyglm("bf16"))


def test_attention_of_every_sequence_is_the_twins(both):
    _, ours, theirs = both
    torch.testing.assert_close(ours.double(), theirs, **CLOSE)


def test_routing_is_the_twins(both, tinyglm):
    block, ours, theirs = both
    tensors, config = twin(tinyglm("bf16"))
    w = decoder.layer_of(tensors, 3)
    routed = layers.route(block, ours)
    assert routed.experts.dtype is torch.int64
    for row, chosen, gates in zip(theirs, routed.experts.tolist(), routed.gates.tolist(), strict=True):
        wanted = decoder.gates(w, config, decoder.norm(row, w["post_attention_layernorm.weight"], config))
        assert dict(zip(chosen, gates, strict=True)) == pytest.approx(wanted, rel=1e-4)
        assert sum(gates) == pytest.approx(2.5, rel=1e-5)


def test_output_is_the_twins(both, tinyglm):
    block, ours, theirs = both
    tensors, config = twin(tinyglm("bf16"))
    w = decoder.layer_of(tensors, 3)
    output = layers.output(block, ours, layers.route(block, ours))
    wanted = torch.stack([decoder.fed(w, config, row) for row in theirs])
    torch.testing.assert_close(output.double(), wanted, **CLOSE)


def test_token_at_position_0_has_no_embedding_and_the_last_one_no_row(tinyglm):
    """Both sequences have two tokens more than they need to tell; the second begins at position 5."""
    checkpoint = open_checkpoint(str(tinyglm("bf16")))
    block, (first, second) = layers.block(checkpoint), sequences(tinyglm("bf16"))
    held = embedding(checkpoint, checkpoint, 128)
    rows = layers.enter(block, held, [first, second], N_ROWS)
    assert [len(at) for at in rows.positions] == [len(ids) - 1 for ids in SEQUENCES]
    assert (int(rows.positions[0][0]), int(rows.positions[1][0])) == (0, 5)
    other = SimpleNamespace(token_ids=first.token_ids.clone(), positions=first.positions, hidden=first.hidden)
    other.token_ids[1] += 1
    changed = layers.enter(block, held, [other, second], N_ROWS)
    assert torch.equal(changed.x, rows.x)  # the embedding of token 1 would stand at position 0
    other.token_ids[2] += 1
    assert not torch.equal(layers.enter(block, held, [other, second], N_ROWS).x[1], rows.x[1])


def decoder_layer(checkpoint, config, number):
    """transformers' own, with all experts; the epsilon of the latent norms as engines have it."""
    model = glm.GlmMoeDsaDecoderLayer(config, 0).float().eval()
    fill(model, checkpoint, f"model.layers.{number}.")
    layers.as_served(model.self_attn, config.rms_norm_eps)
    return model


# 600 rows attend in several pieces. Beyond index_topk rows that are equal but for rounding may choose otherwise.
@pytest.mark.parametrize(("length", "index_topk", "most_odd"), [(128, 128, 0), (600, 4096, 0), (600, 128, 30)])
def test_output_is_that_of_the_whole_decoder_layer_of_transformers(tinyglm, tmp_path, length, index_topk, most_odd):
    checkpoint = open_checkpoint(str(reconfigured(tinyglm("bf16"), tmp_path / "c", index_topk=index_topk)))
    block = layers.block(checkpoint)
    assert block.config.index_topk == index_topk
    x = torch.randn(length, 128, generator=torch.Generator().manual_seed(length)) * 3
    rows = layers.Rows(x.clone(), (torch.arange(length),))
    layers.attend(block, rows)
    output = layers.output(block, rows.x, layers.route(block, rows.x))
    whole = decoder_layer(checkpoint, block.config, 3)
    rotary = glm.GlmMoeDsaRotaryEmbedding(block.config)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    with torch.inference_mode():
        at = torch.arange(length)[None]
        wanted, _ = whole(x[None], mask, position_ids=at, position_embeddings=rotary(x[None], at))
    off = (output - wanted[0]).abs().amax(1)
    assert int((off > 1e-3).sum()) <= most_odd


def test_indexer_leaves_keys_out_as_the_twins_does(tinyglm, tmp_path):
    folder = reconfigured(tinyglm("bf16"), tmp_path / "few", index_topk=8)
    _, ours, theirs = attended(folder, like=tinyglm("bf16"))
    _, all_keys, _ = attended(tinyglm("bf16"))
    alike = (ours.double() - theirs).abs().amax(1) < 1e-3
    unlike_all = (ours - all_keys).abs().amax(1) > 1e-2
    assert float(alike.float().mean()) > 0.9  # equal index scores may leave out another key
    assert float(unlike_all.float().mean()) > 0.7


def test_latent_norms_have_the_models_epsilon(tinyglm, tmp_path):
    """transformers' default of 1e-6 would go unnoticed at the published 1e-5."""
    folder = reconfigured(tinyglm("bf16"), tmp_path / "eps", rms_norm_eps=0.5)
    _, ours, theirs = attended(folder, like=tinyglm("bf16"))
    torch.testing.assert_close(ours.double(), theirs, **CLOSE)
    assert layers.block(open_checkpoint(str(folder))).config.rms_norm_eps == 0.5


def test_experts_that_nobody_is_routed_to_are_not_read(tinyglm, tmp_path):
    def shun(tensors):
        tensors["mlp.gate.e_score_correction_bias"][[3, 9]] = -100.0

    checkpoint = CountingCheckpoint(pruned_copy(tinyglm("bf16"), tmp_path / "c", range(16), shun))
    block, seen = layers.block(checkpoint), set()
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    layers.each_expert(block, x, layers.route(block, x), lambda number, *_: seen.add(number))
    read = {int(m[1]) for name in checkpoint.read_names if (m := re.search(r"\.experts\.(\d+)\.", name))}
    assert seen == read
    assert not read & {3, 9}
    assert len(read) > 8


def test_every_layout_gives_nearly_the_same_output(tinyglm):
    """The embedding of a source without one is the target's."""
    dense = open_checkpoint(str(tinyglm("bf16")))
    outputs = {}
    for layout in ("bf16", "fp8", "nvfp4", "int4-int8mix"):
        checkpoint = open_checkpoint(str(tinyglm(layout)))
        block = layers.block(checkpoint)
        rows = layers.enter(block, embedding(dense, dense, 128), sequences(tinyglm("bf16")), N_ROWS)
        layers.attend(block, rows)
        outputs[layout] = layers.output(block, rows.x, layers.route(block, rows.x))
    for layout, output in outputs.items():
        off = float((output - outputs["bf16"]).norm() / outputs["bf16"].norm())
        assert off < 0.2
        assert (off == 0) == (layout == "bf16")


def test_tokens_that_do_not_fit_are_refused_by_number(both, monkeypatch):
    block, x, _ = both
    monkeypatch.setattr(layers, "_MOST_BYTES", 512 * 100)
    with pytest.raises(MtpforgeError, match="the inputs have 109 tokens") as caught:
        layers.enter(block, None, [], N_ROWS)
    assert caught.value.fix == "capture fewer tokens, at most 100"
    with pytest.raises(MtpforgeError, match="a sequence of the inputs has 69 tokens") as caught:
        layers.attend(block, layers.Rows(x, (torch.arange(69),)))
    assert caught.value.fix == "capture shorter sequences of tokens, at most 25"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"routed_scaling_factor": None}, "config.json has no `routed_scaling_factor`"),
        ({"rope_parameters": None}, "config.json has no `rope_parameters`"),
        ({"scoring_func": "softmax"}, "`scoring_func` is softmax"),
        ({"rope_interleave": False}, "`rope_interleave` is False"),
    ],
)
def test_config_of_another_computation_is_refused(tinyglm, tmp_path, changes, what):
    """A default of transformers' would be another model's."""
    checkpoint = open_checkpoint(str(reconfigured(tinyglm("bf16"), tmp_path / "c", **changes)))
    with pytest.raises(MtpforgeError, match=what) as caught:
        layers.block(checkpoint)
    assert caught.value.where == f"{tmp_path}/c/config.json"


@pytest.mark.parametrize(("changes", "what", "why"), ODD)
def test_odd_value_is_refused_by_key_value_and_what_is_possible(tinyglm, tmp_path, changes, what, why):
    assert layers.block(open_checkpoint(str(tinyglm("bf16")))).config.num_experts_per_tok == 4
    with pytest.raises(MtpforgeError) as caught:
        layers.block(open_checkpoint(str(reconfigured(tinyglm("bf16"), tmp_path / "c", **changes))))
    assert what in caught.value.what + caught.value.why
    assert why in caught.value.why
    assert (caught.value.where, caught.value.code) == (f"{tmp_path}/c/config.json", 3)
    assert "\\n" not in caught.value.why


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None, "rope_theta": 10000},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 10000.0},
        {"rope_parameters": None, "rope_scaling": {"rope_type": "default", "rope_theta": 10000}},
    ],
)
def test_base_of_the_positions_is_found_wherever_it_stands(tinyglm, tmp_path, changes):
    config = layers.block(open_checkpoint(str(reconfigured(tinyglm("bf16"), tmp_path / "c", **changes)))).config
    assert config.rope_parameters["rope_theta"] == 10000


def test_whole_number_will_do_for_a_float(tinyglm, tmp_path):
    whole = reconfigured(tinyglm("bf16"), tmp_path / "c", routed_scaling_factor=2)
    assert layers.block(open_checkpoint(str(whole))).config.routed_scaling_factor == 2.0


def test_error_of_several_lines_is_shown_in_one(tinyglm):
    from transformers import GlmMoeDsaConfig

    with pytest.raises(MtpforgeError) as caught, making(open_checkpoint(str(tinyglm("bf16"))), "it"):
        GlmMoeDsaConfig(hidden_size="many")
    assert caught.value.why.startswith("Validation error for field 'hidden_size': TypeError: Field")


@pytest.mark.parametrize("name", ["target-bf16", "target-nvfp4-lukealonso", "target-awq-int4-218-experts"])
def test_published_configs_are_understood(config_folder, name):
    config = layers.block(open_checkpoint(str(config_folder(name)))).config
    assert (config.hidden_size, config.qk_head_dim, config.head_dim, config.index_topk) == (6144, 256, 64, 2048)
