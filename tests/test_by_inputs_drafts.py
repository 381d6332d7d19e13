"""Drafts beside targets of AWQ, GPTQ and AutoRound: built, verified, and what a careless tool makes of them found."""

from __future__ import annotations

import json

import pytest
import torch
from drafts import changed, failed, nibbles, words
from safetensors.torch import load_file
from slow_twins import packers

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.planning import plan
from mtpforge.verifying import verify

P = "model.layers.3."


def quark(packing, dtype, size):
    weight = {"dtype": dtype, "qscheme": "per_group", "group_size": size, "symmetric": dtype == "int4"}
    return {
        "quant_method": "quark",
        "export": {"kv_cache_group": [], "pack_method": packing},
        "exclude": ["lm_head"],
        "layer_type_quant_config": {},
        "global_quant_config": {"weight": weight | {"is_dynamic": False}},
    }


BLOCKS = {
    "quark": quark("reorder", "int4", 32),
    "quark in order": quark("order", "uint4", 64),
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["lm_head", "kv_b_proj"]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
             "modules_in_block_to_quantize": [P], "dynamic": {"+:.*experts$": {"bits": 8, "group_size": 64}}},
    "auto-round": {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int",
                   "packing_format": "auto_round:auto_gptq", "extra_config": {"o_proj": {"bits": 16}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tinyglm, tmp_path_factory):
    """Method of the target (and of the scales) -> draft, target, source."""
    made = {}
    source = open_checkpoint(str(tinyglm("bf16")))

    def make(method, scales="rtn"):
        if (method, scales) not in made:
            home = tmp_path_factory.mktemp(method)
            (home / "target").mkdir()
            config = json.loads((tinyglm("bf16") / "config.json").read_text()) | {"quantization_config": BLOCKS[method]}
            (home / "target" / "config.json").write_text(json.dumps(config))
            target = open_checkpoint(str(home / "target"))
            planned = plan(source, target, scales=scales)
            build(planned, {"source": source, "target": target}, home / "draft", check="off", workers=1)
            made[method, scales] = home / "draft", target, source
        return made[method, scales]

    return make


@pytest.mark.parametrize(
    ("method", "scales"),
    [("awq", "rtn"), ("gptq", "mse"), ("auto-round", "rtn"), ("quark", "rtn"), ("quark in order", "mse")],
)
def test_a_draft_passes(built, method, scales):
    draft, target, source = built(method, scales)
    assert failed(verify(draft, target, source)) == {}


def test_a_draft_reads_as_its_own_source(built, tmp_path):
    """What was written is read again, by its own config: the way back to BF16 within a step of each."""
    draft, _, source = built("gptq", "mse")
    opened, plain = open_checkpoint(str(draft)), open_checkpoint(source.location)
    build(plan(opened, plain), {"source": opened, "target": plain}, tmp_path / "dense", check="off", workers=1)
    (file,) = (tmp_path / "dense").glob("*.safetensors")
    again, (stored,) = load_file(file), draft.glob("*.safetensors")
    parts = {
        n.rpartition(".")[2]: t for n, t in load_file(stored).items() if n.startswith(f"{P}mlp.experts.3.up_proj.")
    }
    codes, zeros = packers.unpacked(parts, 8, "gptq")
    steps = (codes.unflatten(1, (-1, 64)) - zeros.unsqueeze(-1)) * parts["scales"].t().float().unsqueeze(-1)
    assert torch.equal(again[f"{P}mlp.experts.3.up_proj.weight"], steps.flatten(1).bfloat16())


def up(tensors, suffix):
    return f"{P}mlp.experts.3.up_proj.{suffix}", tensors[f"{P}mlp.experts.3.up_proj.{suffix}"]


def rows_in_plain_order(tensors):
    """AWQ's eight rows of a word in the order of GPTQ's."""
    name, held = up(tensors, "qweight")
    tensors[name] = words(nibbles(held).unflatten(-1, (-1, 8))[..., [0, 4, 1, 5, 2, 6, 3, 7]].flatten(-2))


def columns_backwards(tensors):
    name, held = up(tensors, "qweight")
    tensors[name] = words(nibbles(held.t()).unflatten(-1, (-1, 8)).flip(-1).flatten(-2)).t().contiguous()


def zero_points_one_higher(tensors):
    name, held = up(tensors, "qzeros")
    tensors[name] = words((nibbles(held) + 1) % 16)


def codes_and_zero_points_one_higher(tensors):
    """The same values to a reader of both, others to vLLM, which takes 8 for granted."""
    zero_points_one_higher(tensors)
    name, held = up(tensors, "qweight")
    tensors[name] = words((nibbles(held.t()) + 1).clamp(max=15)).t().contiguous()


def a_zero_point_that_is_not_read(tensors):
    """The same values to a reader of both, others to vLLM, which reads none of `int4`."""
    name, held = up(tensors, "weight_zero_point")
    assert not held.any()
    tensors[name] = words((nibbles(held) + 1) % 16)
    name, held = up(tensors, "weight")
    tensors[name] = words((((nibbles(held) ^ 8) + 1).clamp(max=15)) ^ 8)


def words_in_two_complement(tensors):
    name, held = up(tensors, "weight")
    tensors[name] = words(nibbles(held) ^ 8)


def gate_and_up_swapped(tensors):
    for suffix in ("qweight", "qzeros", "scales"):
        name, held = up(tensors, suffix)
        other = name.replace("up_proj", "gate_proj")
        tensors[name], tensors[other] = tensors[other], held


SPOILED = [
    ("awq", rows_in_plain_order),
    ("awq", zero_points_one_higher),
    ("awq", gate_and_up_swapped),
    ("quark", a_zero_point_that_is_not_read),
    ("quark in order", words_in_two_complement),
    ("auto-round", columns_backwards),
    ("auto-round", codes_and_zero_points_one_higher),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("method", "spoil"), SPOILED, ids=lambda of: getattr(of, "__name__", of))
def test_a_layout_that_was_mistaken_is_named(built, tmp_path, method, spoil):
    draft, target, source = built(method)
    found = failed(verify(changed(draft, tmp_path / "spoiled", spoil), target, source))
    assert len(found) == 1
    assert "mlp.experts.3.up_proj" in next(iter(found.values())), found
