"""Modules of transformers filled from every layout, and what must not stay at random values."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from nextn.calibration import twin
from pruning.counting import CountingCheckpoint
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm
from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.hub import cache
from mtpforge.errors import MtpforgeError
from mtpforge.nextn.filling import empty, fill

PREFIX = "model.layers.3."


def changed(folder, to, change):
    """A copy in one file whose tensors `change` edits in place, by full name."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    change(tensors)
    to.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to / "model.safetensors")
    shutil.copy(folder / "config.json", to)
    return open_checkpoint(str(to))


def model_of(folder):
    config = json.loads((folder / "config.json").read_text())
    left_out = ("quantization_config", "num_experts")
    return glm.GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**{k: v for k, v in config.items() if k not in left_out})).float()


def filled(folder):
    model = model_of(folder)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(math.nan)
    return model, fill(model, open_checkpoint(str(folder)), "")


@pytest.fixture(scope="module")
def dense(tinyglm):
    return filled(tinyglm("bf16"))[0].state_dict()


def test_every_parameter_holds_the_tensor_of_its_name(tinyglm, dense):
    tensors, _ = twin(tinyglm("bf16"))
    seen = 0
    for name, held in dense.items():
        stem, _, last = name.rpartition(".")
        if last in ("gate_up_proj", "down_proj") and held.ndim == 3:
            parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
            for number, matrix in enumerate(held):
                wanted = torch.cat([tensors[f"{stem}.{number}.{part}.weight"] for part in parts])
                assert torch.equal(matrix.double(), wanted)
                seen += len(parts)
        else:
            assert torch.equal(held.double(), tensors[name])
            seen += 1
    assert seen == sum(not name.startswith(PREFIX) for name in tensors)


@pytest.mark.parametrize("layout", ["fp8", "nvfp4", "int4-int8mix", "awq-int4", "awq-int4-12experts"])
def test_quantized_layouts_come_close_to_the_dense_one_in_every_matrix(tinyglm, dense, layout):
    """A swap of two experts, of gate and up, or of two layers would be off by more than the matrix itself."""
    model, used = filled(tinyglm(layout))
    for name, held in model.state_dict().items():
        assert torch.equal(held, held.bfloat16().float()) or name.endswith("e_score_correction_bias")
        wanted = dense[name]
        if layout == "awq-int4-12experts" and held.shape != wanted.shape:
            continue
        off = (held - wanted).flatten(1).norm(dim=1) if held.ndim == 3 else (held - wanted).norm()
        size = wanted.flatten(1).norm(dim=1) if held.ndim == 3 else wanted.norm()
        assert bool((off <= 0.15 * size).all()), name
    names = open_checkpoint(str(tinyglm(layout))).names
    assert {name for name in names - used if not name.startswith(PREFIX)} == set()


def test_names_that_were_used_come_back_and_nothing_else_is_read(tinyglm):
    checkpoint = CountingCheckpoint(open_checkpoint(str(tinyglm("nvfp4"))))
    config = GlmMoeDsaConfig(hidden_size=128, moe_intermediate_size=128)
    expert = empty(lambda: glm.GlmMoeDsaMLP(config, 128))
    used = fill(expert, checkpoint, f"{PREFIX}mlp.experts.7.")
    assert used == {name for name in checkpoint.names if name.startswith(f"{PREFIX}mlp.experts.7.")}
    assert set(checkpoint.read_names) == {name for name in used if not name.endswith("input_scale")}
    assert checkpoint.fetched == set(checkpoint.read_names)


def test_f32_stays_and_other_floats_are_rounded_to_bf16(tinyglm, tmp_path):
    values = torch.linspace(0.1, 0.2, 16)
    assert not torch.equal(values, values.bfloat16().float())
    name = "model.layers.1.input_layernorm.weight"
    norm = torch.linspace(0.1, 0.2, 128).half()

    def change(tensors):
        tensors["model.layers.1.mlp.gate.e_score_correction_bias"] = values
        tensors[name] = norm

    checkpoint = changed(tinyglm("bf16"), tmp_path / "c", change)
    model = model_of(tinyglm("bf16"))
    fill(model, checkpoint, "")
    state = model.state_dict()
    assert torch.equal(state["model.layers.1.mlp.gate.e_score_correction_bias"], values)
    assert torch.equal(state[name], norm.bfloat16().float())
    assert not torch.equal(state[name], norm.float())


@pytest.mark.parametrize(
    ("layout", "name", "what"),
    [
        ("bf16", "model.norm.weight", "`model.norm.weight` is missing"),
        ("bf16", "model.layers.2.mlp.gate.e_score_correction_bias", "e_score_correction_bias` is missing"),
        ("bf16", "model.layers.2.mlp.experts.15.up_proj.weight", "`model.layers.2.mlp.experts.15.up_proj` is missing"),
        ("awq-int4", "model.layers.1.mlp.experts.3.down_proj.weight_scale", "3.down_proj` is stored in no known way"),
        ("awq-int4", "model.layers.1.mlp.experts.3.down_proj.weight_zero_point", "3.down_proj` is INT4 g32, `"),
    ],
)
def test_missing_tensor_is_an_error_that_names_it(tinyglm, tmp_path, layout, name, what):
    checkpoint = changed(tinyglm(layout), tmp_path / "c", lambda tensors: tensors.pop(name))
    assert name not in checkpoint.names
    with pytest.raises(MtpforgeError, match=what):
        fill(model_of(tinyglm(layout)), checkpoint, "")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.norm.weight", r"`model.norm.weight` is BF16 \[127\], by config.json it is BF16 \[128\]"),
        ("model.layers.0.mlp.up_proj.weight", "`model.layers.0.mlp.up_proj` is stored in no known way"),
        ("model.layers.1.mlp.gate.weight", "`model.layers.1.mlp.gate` is stored in no known way"),
        ("model.layers.1.mlp.experts.0.up_proj.weight", "experts.0.up_proj` is stored in no known way"),
    ],
)
def test_wrong_shape_is_an_error(tinyglm, tmp_path, name, what):
    def change(tensors):
        tensors[name] = tensors[name][:-1]

    checkpoint = changed(tinyglm("bf16"), tmp_path / "c", change)
    with pytest.raises(MtpforgeError, match=what):
        fill(model_of(tinyglm("bf16")), checkpoint, "")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.experts.4.up_proj.weight"])
def test_nan_is_an_error(tinyglm, tmp_path, name):
    def change(tensors):
        tensors[name].view(-1)[77] = math.nan

    checkpoint = changed(tinyglm("bf16"), tmp_path / "c", change)
    with pytest.raises(MtpforgeError, match="holds values that are no numbers"):
        fill(model_of(tinyglm("bf16")), checkpoint, "")


def test_bias_beside_a_matrix_is_a_tensor_of_its_own_and_scales_of_a_cache_are_nothing(tinyglm, tmp_path):
    stem = f"{PREFIX}self_attn.q_a_proj"

    def change(tensors):
        tensors[f"{stem}.bias"] = torch.arange(128).bfloat16()
        tensors[f"{stem}.k_scale"] = torch.ones(1)

    checkpoint = changed(tinyglm("fp8"), tmp_path / "c", change)
    linear = nn.Linear(128, 128)
    used = fill(linear, checkpoint, f"{stem}.")
    assert used == {f"{stem}.{suffix}" for suffix in ("weight", "weight_scale_inv", "bias")}
    assert torch.equal(linear.bias, torch.arange(128.0))
    plain = nn.Linear(128, 128, bias=False)
    with pytest.raises(MtpforgeError, match="stored in no known way"):  # a bias that the module would not add
        fill(plain, checkpoint, f"{stem}.")


def test_submodules_that_are_left_out_stay_as_they_are(tinyglm):
    model = model_of(tinyglm("bf16"))
    layer, before = model.model.layers[1], model.model.layers[1].mlp.experts.down_proj.clone()
    checkpoint = CountingCheckpoint(open_checkpoint(str(tinyglm("bf16"))))
    fill(layer, checkpoint, "model.layers.1.", without=("mlp.experts",))
    assert torch.equal(layer.mlp.experts.down_proj, before)
    assert not [name for name in checkpoint.read_names if ".experts." in name]


def test_compiled_kernels_fill_in_the_same_values(tinyglm):
    from mtpforge.weights.kernels import RowKernels

    config = GlmMoeDsaConfig(hidden_size=128, moe_intermediate_size=128)
    kernels = RowKernels(cache.home() / "kernels")  # where builds keep them
    for layout in ("bf16", "nvfp4"):
        checkpoint = open_checkpoint(str(tinyglm(layout)))
        plain, compiled = (empty(lambda: glm.GlmMoeDsaMLP(config, 128)) for _ in range(2))
        fill(plain, checkpoint, f"{PREFIX}mlp.experts.2.")
        fill(compiled, checkpoint, f"{PREFIX}mlp.experts.2.", kernels=kernels)
        for name, tensor in plain.state_dict().items():
            assert torch.equal(compiled.state_dict()[name], tensor)


def test_module_with_computed_buffers_is_not_made_empty():
    with pytest.raises(ValueError, match="inv_freq is computed, not stored"):
        empty(lambda: glm.GlmMoeDsaRotaryEmbedding(GlmMoeDsaConfig()))
