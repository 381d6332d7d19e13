"""Draft steps beside a target's states against a slow twin in float64, and against transformers' whole model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from nextn.copies import changed, twin
from slow_twins import speculating as slow
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM

from mtpforge.checkpoint import open_checkpoint
from mtpforge.nextn import layer as layers
from mtpforge.nextn.embedding import embedding
from mtpforge.nextn.heads import head_of
from mtpforge.nextn.speculating import steps

IDS = (3, 77, 12, 200, 45, 9, 131)
ROWS = len(IDS) - 1
SOME = (0, 3, 5)  # the twin takes its time
CLOSE = {"rtol": 1e-4, "atol": 1e-3}


def sequence(length=7):
    hidden = torch.randn(length, 128, generator=torch.Generator().manual_seed(1))
    return SimpleNamespace(token_ids=torch.tensor(IDS[:length]), positions=torch.arange(length), hidden=hidden)


def ours(folder, dense, sequences, k, **how):
    checkpoint, beside = open_checkpoint(str(folder)), open_checkpoint(str(dense))
    return list(steps(layers.block(checkpoint), embedding(beside, beside, 128), sequences, k, **how))


def theirs(folder, dense, k, **how):
    """Row -> states of the twin, step after step; embedding and head are the dense folder's."""
    tensors, config = twin(folder)
    around = {n: t for n, t in twin(dense)[0].items() if "layers" not in n}
    given = sequence()
    return {
        row: slow.cycle({**tensors, **around}, config, IDS, given.hidden.double(), row, min(k, ROWS - row), **how)
        for row in SOME
    }


@pytest.mark.parametrize("layout", ["bf16", "fp8", "nvfp4", "int4-int8mix"])
def test_states_of_three_steps_are_the_twins(tinyglm, layout):
    dense = tinyglm("bf16")
    made, wanted = ours(tinyglm(layout), dense, [sequence()], 3), theirs(tinyglm(layout), dense, 3)
    for number, step in enumerate(made):
        assert step.is_known.tolist() == [row <= ROWS - 1 - number for row in range(ROWS)]
        for row in [row for row in SOME if row < ROWS - number]:
            torch.testing.assert_close(step.states[row].double(), wanted[row][number], **CLOSE)


@pytest.mark.parametrize(("recycled", "shares"), [("pre-norm", True), ("post-norm", False)])
def test_other_ways_to_go_on_are_the_twins(tinyglm, tmp_path, recycled, shares):
    """Without index_share_for_mtp_iteration a row attends to its own drafted rows and chooses anew: 2 of up to 7."""
    few = {"index_topk": 2} if not shares else {}
    to = changed(
        tinyglm("bf16"), tmp_path / "c", None, lambda c: c.update(index_share_for_mtp_iteration=shares, **few, seen=1)
    )
    made = ours(to, to, [sequence()], 3, recycled=recycled)
    wanted = theirs(to, to, 3, post_norm=recycled == "post-norm", shares=shares)
    usual = ours(tinyglm("bf16"), to, [sequence()], 3)
    for number in (1, 2):
        assert not torch.allclose(made[number].states, usual[number].states, atol=1e-2)
        off = [
            (made[number].states[row].double() - wanted[row][number]).abs().max() for row in SOME if row < ROWS - number
        ]
        assert sum(float(each) < 1e-3 for each in off) >= len(off) - (
            not shares
        )  # equal index scores may fall otherwise


def test_sequences_do_not_see_each_other_and_workers_change_no_bit(tinyglm):
    folder = tinyglm("bf16")
    alone = ours(folder, folder, [sequence()], 2)
    both = ours(folder, folder, [sequence(4), sequence()], 2, workers=3)
    for one, two in zip(alone, both, strict=True):
        assert torch.equal(one.states, two.states[3:]) or torch.allclose(one.states, two.states[3:], atol=1e-5)
    again = ours(folder, folder, [sequence(4), sequence()], 2, workers=1)
    assert all(torch.equal(one.states, two.states) for one, two in zip(both, again, strict=True))


def test_drafted_tokens_are_what_the_next_step_is_given(tinyglm):
    """Drawn tokens that are the text's change nothing; others do, from the next step on."""
    folder = tinyglm("bf16")
    text = ours(folder, folder, [sequence()], 2)
    drawn = ours(folder, folder, [sequence()], 2, draw=lambda _: torch.tensor([*IDS[2:], 0]))
    other = ours(folder, folder, [sequence()], 2, draw=lambda states: torch.full((len(states),), 5))
    known = text[1].is_known
    assert torch.equal(text[1].states[known], drawn[1].states[known])
    assert torch.equal(text[0].states, other[0].states)
    assert not torch.allclose(text[1].states[known], other[1].states[known], atol=1e-2)


def test_layer_that_copies_a_main_one_predicts_what_transformers_model_does(tinyglm, tmp_path):
    """eh_proj lets the normed state through alone: then the layer is main layer 2, norm and head, on these states."""

    def copy(tensors):
        for name in [n for n in tensors if n.startswith("model.layers.2.")]:
            tensors[name.replace("layers.2.", "layers.3.")] = tensors[name].clone()
        tensors["model.layers.3.eh_proj.weight"] = torch.cat((torch.zeros(128, 128), torch.eye(128)), 1).bfloat16()
        tensors["model.layers.3.hnorm.weight"] = torch.ones(128).bfloat16()
        tensors["model.layers.3.shared_head.norm.weight"] = tensors["model.norm.weight"].clone()

    # 1e-6 is what transformers gives the latent norms whatever the config says
    folder = changed(tinyglm("bf16"), tmp_path / "c", copy, lambda c: c.update(rms_norm_eps=1e-6))
    checkpoint, given = open_checkpoint(str(folder)), sequence()
    (step,) = ours(folder, folder, [given], 1)
    logits = head_of(checkpoint, hidden_size=128).logits([step.states])[0]

    tensors, config = twin(folder)
    left_out = ("architectures", "model_type", "quantization_config", "dtype", "indexer_types", "mlp_layer_types")
    known = {key: value for key, value in config.items() if key not in left_out}
    known |= {
        "num_hidden_layers": 1,
        "mlp_layer_types": ["sparse"],
        "indexer_types": ["full"],
        "first_k_dense_replace": 0,
    }
    model = GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**known)).float().eval()
    local = {
        n.removeprefix("model.layers.3."): t.float() for n, t in tensors.items() if n.startswith("model.layers.3.")
    }
    experts = [[local.pop(f"mlp.experts.{e}.{p}_proj.weight") for p in ("gate", "up", "down")] for e in range(16)]
    state = {f"model.layers.0.{n}": t for n, t in local.items() if n.startswith(("self_attn", "mlp", "input", "post"))}
    state["model.layers.0.mlp.experts.gate_up_proj"] = torch.stack([torch.cat((g, u)) for g, u, _ in experts])
    state["model.layers.0.mlp.experts.down_proj"] = torch.stack([down for _, _, down in experts])
    state |= {n: tensors[n].float() for n in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight")}
    model.load_state_dict(state)
    hidden = given.hidden[:-1]
    entered = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    with torch.inference_mode():
        wanted = model(inputs_embeds=entered[None]).logits[0]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert json.loads((folder / "config.json").read_text())["rms_norm_eps"] == 1e-6
