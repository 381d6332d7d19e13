"""The nextn layer as stored: every tensor is kept, dropped by a named rule, or an error."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from drafts import changed, reconfigured
from safetensors.torch import load_file, save_file

from mtpforge import formats as stored_as
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.sourcing import has_layer, mismatches, stored_layer
from mtpforge.tensors import Quantization

P = "model.layers.3."


@pytest.fixture(scope="module")
def single(tinyglm, tmp_path_factory):
    """Layer 3 of a tiny layout in one file without an index."""
    made = {}

    def folder(layout):
        if layout not in made:
            home = tmp_path_factory.mktemp(layout)
            shutil.copy(tinyglm(layout) / "config.json", home)
            tensors = {}
            for file in sorted(tinyglm(layout).glob("*.safetensors")):
                tensors |= {name: t for name, t in load_file(file).items() if name.startswith(P)}
            save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})
            made[layout] = home
        return made[layout]

    return folder


def layer_of(folder):
    checkpoint = open_checkpoint(str(folder))
    return stored_layer(checkpoint, family_of(checkpoint.config))


@pytest.mark.parametrize(
    ("layout", "formats"),
    [
        ("bf16", {"dense": 61}),
        ("fp8", {"fp8_block": 58, "dense": 3}),
        ("nvfp4", {"modelopt_nvfp4": 48, "dense": 13}),
        ("int4-int8mix", {"pack_quantized": 56, "dense": 5}),
    ],
)
def test_every_layout_is_recognised_module_by_module(tinyglm, layout, formats):
    layer = layer_of(tinyglm(layout))
    assert (layer.layer, layer.n_experts, layer.config_experts) == (3, 16, 16)
    assert Counter(m.quantization.format for m in layer.modules.values()) == formats
    assert len(layer.plain) == 10
    assert layer.dropped == ()


def test_copies_of_head_and_embedding_are_dropped_by_a_named_rule(single, tmp_path):
    def add(tensors):
        tensors[f"{P}shared_head.head.weight"] = torch.zeros(512, 128, dtype=torch.bfloat16)

    layer = layer_of(changed(single("bf16"), tmp_path / "s", add))
    assert layer.dropped == ((f"{P}shared_head.head.weight", 131072, "the engine uses the target's lm_head"),)


def test_more_experts_than_the_config_says_are_counted_by_name(single, tmp_path):
    folder = reconfigured(single("bf16"), tmp_path / "s", lambda config: config.update(n_routed_experts=9))
    layer = layer_of(folder)
    assert (layer.n_experts, layer.config_experts) == (16, 9)


def without(*names):
    def change(tensors):
        for name in [name for name in tensors if any(part in name for part in names)]:
            del tensors[name]

    return change


def add(name, tensor):
    return lambda tensors: tensors.update({P + name: tensor})


def reshaped(tensors):
    tensors[f"{P}enorm.weight"] = torch.ones(64, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("bf16", without(".experts.5."), "expert 5 of the MTP layer is missing"),
        ("bf16", without(".experts.15."), "expert 15 of the MTP layer is missing"),
        ("bf16", without(".experts.5.up_proj"), "`mlp.experts.5.up_proj` of the MTP layer is missing"),
        ("bf16", without("enorm"), "`enorm.weight` of the MTP layer is missing"),
        ("bf16", without("e_score"), "`mlp.gate.e_score_correction_bias` of the MTP layer is missing"),
        ("bf16", without("o_proj"), "`self_attn.o_proj` of the MTP layer is missing"),
        ("bf16", reshaped, "`enorm.weight` is BF16 [64], by config.json it is [128]"),
        ("bf16", add("mlp.bias", torch.ones(4)), "1 tensors of the MTP layer are covered by no rule: `mlp.bias`"),
        ("fp8", without("o_proj.weight_scale_inv"), "`self_attn.o_proj` of the MTP layer is stored in no known way"),
        (
            "nvfp4",
            without("0.up_proj.weight_scale_2"),
            "`mlp.experts.0.up_proj` of the MTP layer is stored in no known way",
        ),
    ],
)
def test_a_layer_that_is_not_whole_is_refused_by_name(single, tmp_path, layout, change, message):
    with pytest.raises(MtpforgeError) as error:
        layer_of(changed(single(layout), tmp_path / "s", change))
    assert error.value.what == message
    assert error.value.fix


def in_place_of_o_proj(*suffixes):
    def change(tensors):
        without("o_proj")(tensors)
        tensors |= {f"{P}self_attn.o_proj.{suffix}": torch.zeros(4, dtype=torch.uint8) for suffix in suffixes}

    return change


@pytest.mark.parametrize(
    ("suffixes", "named", "whose"),
    [
        (
            ("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"),
            "weight.absmax",
            "bitsandbytes' FP4 or NF4",
        ),
        (("weight", "SCB", "weight_format"), "SCB", "bitsandbytes' LLM.int8"),
        (("codes", "codebooks", "scales"), "codebooks", "AQLM"),
        (("indices", "centroids.weight", "weight_scale", "weight_bias"), "centroids.weight", "VPTQ"),
        (("trellis", "suh", "svh", "mcg"), "trellis", "EXL3"),
        (("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups"), "q_weight", "EXL2"),
    ],
)
def test_formats_that_are_not_read_are_named(single, tmp_path, suffixes, named, whose):
    folder = changed(single("bf16"), tmp_path / "s", in_place_of_o_proj(*suffixes))
    with pytest.raises(MtpforgeError) as error:
        layer_of(folder)
    assert str(error.value).startswith(
        f"error: the MTP layer of {folder} is stored as {whose}, which is not read\n"
        f"where: `self_attn.o_proj.{named}` of the MTP layer\n"
        "cause: its own library alone decodes it, and what it was made from is nearer to the trained weights\n"
        " hint: name what it was made from, e.g. `--source zai-org/GLM-5.3`"
    )


def test_a_layer_left_dense_beside_such_a_model_is_read(single, tmp_path):
    """bitsandbytes and others leave modules out: what counts are the layer's own tensors."""
    block = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    folder = reconfigured(single("bf16"), tmp_path / "s", lambda config: config.update(block))
    assert {m.quantization.format for m in layer_of(folder).modules.values()} == {"dense"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickle_of_any_name_is_called_pickle(tmp_path, tinyglm, name):
    (tmp_path / "config.json").write_bytes((tinyglm("bf16") / "config.json").read_bytes())
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(MtpforgeError) as error:
        layer_of(tmp_path)
    assert error.value.why == f"`{name}` is pickle, only safetensors are read"
    assert error.value.fix.startswith("name a source that holds it, e.g. `--source ")


def test_an_expert_that_lost_its_zero_points_is_not_taken_for_symmetric(single, tinyglm, tmp_path):
    packed = {
        name.replace("layers.2.", "layers.3."): tensor
        for file in tinyglm("awq-int4").glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if "layers.2.mlp.experts." in name
    }

    def with_packed_experts(tensors):
        without(".experts.")(tensors)
        tensors.update(packed)

    def without_one(tensors):
        with_packed_experts(tensors)
        del tensors[f"{P}mlp.experts.7.up_proj.weight_zero_point"]

    whole = layer_of(changed(single("bf16"), tmp_path / "whole", with_packed_experts))
    assert not whole.modules["mlp.experts.7.up_proj"].quantization.symmetric
    with pytest.raises(MtpforgeError, match=r"`mlp.experts.7.up_proj` of the MTP layer has no zero points"):
        layer_of(changed(single("bf16"), tmp_path / "s", without_one))


def test_a_router_with_fewer_rows_than_experts(single, tmp_path):
    def cut(tensors):
        tensors[f"{P}mlp.gate.e_score_correction_bias"] = torch.zeros(12)

    with pytest.raises(MtpforgeError, match="the router has 12 rows for 16 experts"):
        layer_of(changed(single("bf16"), tmp_path / "s", cut))


def test_no_layer_is_told_from_a_layer_elsewhere(single, tinyglm, tmp_path):
    def refusal(folder):
        checkpoint = open_checkpoint(str(folder))
        family = family_of(checkpoint.config)
        assert not has_layer(checkpoint, family)
        with pytest.raises(MtpforgeError) as error:
            stored_layer(checkpoint, family)
        return error.value.why

    assert refusal(tinyglm("awq-int4")).startswith("it was dropped when the checkpoint was saved")
    moved = reconfigured(single("bf16"), tmp_path / "moved", lambda config: config.update(num_hidden_layers=4))
    assert refusal(moved).endswith("are named `model.layers.3.*`")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(single("bf16") / "config.json", alone)
    assert refusal(alone) == "it has a config and no tensors"
    outside = tmp_path / "outside"
    shutil.copytree(single("bf16"), outside)
    (outside / "model.safetensors").rename(outside / "mtp.safetensors")
    save_file({"lm_head.weight": torch.ones(2)}, outside / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors"}}
    (outside / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(outside) == "its tensors lie in files that the index does not name: mtp.safetensors"


def test_a_tensor_in_two_files_is_refused(single, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(single("bf16"), folder)
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")})
    )
    save_file({f"{P}enorm.weight": names[f"{P}enorm.weight"]}, folder / "old.safetensors")
    with pytest.raises(MtpforgeError) as error:
        layer_of(folder)
    assert error.value.where == f"{P}enorm.weight in model.safetensors, old.safetensors"


@pytest.mark.parametrize(("layout", "n_differing"), [("bf16", 0), ("fp8", 0), ("nvfp4", 0), ("int4-int8mix", 0)])
def test_a_target_that_is_its_own_source_has_no_mismatch(tinyglm, layout, n_differing):
    checkpoint = open_checkpoint(str(tinyglm(layout)))
    family, engine = family_of(checkpoint.config), ENGINES["vllm"]
    layer = stored_layer(checkpoint, family)
    assert len(mismatches(layer, checkpoint, family, engine)) == n_differing


def test_what_the_engine_keeps_in_float32_is_no_match_in_bf16(single, tmp_path):
    """Where it keeps BF16 it takes any float."""
    name = f"{P}mlp.gate.e_score_correction_bias"

    def cast(tensors):
        tensors[name] = tensors[name].bfloat16()
        tensors[f"{P}enorm.weight"] = tensors[f"{P}enorm.weight"].float()

    target = open_checkpoint(str(changed(single("bf16"), tmp_path / "s", cast)))
    family, engine = family_of(target.config), ENGINES["vllm"]
    found = mismatches(stored_layer(target, family), target, family, engine)
    assert found == (f"{name} is BF16 [16], expected F32 [16]",)


def test_fewer_experts_than_the_target_serves_are_a_mismatch(single, tmp_path):
    def prune(tensors):
        without(*(f".experts.{number}." for number in range(12, 16)))(tensors)
        for name in ("weight", "e_score_correction_bias"):
            tensors[f"{P}mlp.gate.{name}"] = tensors[f"{P}mlp.gate.{name}"][:12].clone()

    target = open_checkpoint(str(changed(single("bf16"), tmp_path / "s", prune)))
    family, engine = family_of(target.config), ENGINES["vllm"]
    found = mismatches(stored_layer(target, family), target, family, engine)
    assert found == ("12 experts, the target serves 16",)


def test_mismatches_name_what_another_target_would_not_load(tinyglm):
    source, target = (open_checkpoint(str(tinyglm(name))) for name in ("bf16", "awq-int4"))
    family, engine = family_of(target.config), ENGINES["vllm"]
    scheme = engine.demands(target, None, family)
    found = mismatches(stored_layer(source, family), target, family, engine, scheme)
    assert f"{P}mlp.experts.0.gate_proj.weight is BF16 [128, 128], expected none" in found
    assert f"{P}mlp.experts.0.gate_proj.weight_packed is absent, expected I32 [128, 16]" in found


def test_a_format_whose_suffixes_have_dots_says_so_and_nothing_else_must_know(single, tmp_path, monkeypatch):
    """Its parts are its module's, not those of a module `up_proj.weight`."""
    dense = stored_as.FORMATS["dense"]

    def recognise(parts, shape, _):
        return Quantization("dotted", 16, "BF16") if set(parts) == {"weight.codes", "weight"} else None

    form = replace(dense, name="dotted", recognise=recognise, dotted=("weight.codes",))
    monkeypatch.setitem(stored_as.FORMATS, "dotted", form)
    monkeypatch.setattr(stored_as, "_DOTTED", form.dotted)
    module = f"{P}mlp.experts.0.up_proj"

    def codes_beside(tensors):
        tensors[f"{module}.weight.codes"] = tensors[f"{module}.weight"].clone()

    held = layer_of(changed(single("bf16"), tmp_path / "s", codes_beside)).modules["mlp.experts.0.up_proj"]
    assert held.quantization.format == "dotted"
    assert set(held.parts) == {"weight", "weight.codes"}
    assert stored_as.split("m.up.weight.codes") == ("m.up", "weight.codes")
    assert stored_as.split("m.upweight.codes") == ("m.upweight", "codes")
    assert stored_as.split("weight") == ("", "weight")


def test_parts_of_a_weight_are_all_but_the_scale_of_its_inputs(single):
    stored = layer_of(single("nvfp4")).modules["mlp.experts.0.up_proj"]
    assert set(stored.parts) == {"weight", "weight_scale", "weight_scale_2", "input_scale"}
    assert stored.weight_parts == {s: ref for s, ref in stored.parts.items() if s != "input_scale"}
    dense = layer_of(single("bf16")).modules["mlp.experts.0.up_proj"]
    assert dense.weight_parts == dense.parts
