"""The two NVFP4 formats store one amax as reciprocals: compressed-tensors 448 * 6 / amax, ModelOpt amax / (448 * 6)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_plans import checkpoint, plan

from mtpforge.building import build
from mtpforge.formats import FORMATS, modelopt_nvfp4, nvfp4
from mtpforge.planning import activations
from mtpforge.planning.steps import Step, Write

AMAX = 5.25
GLOBAL = {"input_global_scale": torch.tensor([448 * 6 / AMAX]), "weight_packed": torch.zeros(16, 8, dtype=torch.uint8)}
SCALE = {"input_scale": torch.tensor(AMAX / (448 * 6)), "weight": torch.zeros(16, 8, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("held", "wanted", "made"),
    [
        (GLOBAL, modelopt_nvfp4.quantization(static=True), SCALE),
        (SCALE, nvfp4.quantization(static=True), GLOBAL),
    ],
    ids=["compressed-tensors to ModelOpt", "ModelOpt to compressed-tensors"],
)
def test_a_static_activation_scale_is_turned_over(tmp_path, held, wanted, made):
    source = checkpoint(tmp_path / "source", {f"m.{suffix}": part for suffix, part in held.items()})
    suffix = FORMATS[wanted.format].input_scale.suffix
    write = Write(suffix, f"m.{suffix}", FORMATS[wanted.format].layout((16, 16), wanted)[suffix])
    place = activations.ScaleSource(source, "source", "", own_layer=True, description="the source's own MTP layer")
    moved = activations.move([SimpleNamespace(name="m", expert=None)], wanted, write, (place,))
    draft = build(plan(source, [Step(input_scales=(moved,))]), {"source": source}, tmp_path / "draft", check="off")
    (found,) = load_file(draft.path / "model.safetensors").values()
    assert found.shape == made[suffix].shape
    assert found.item() == pytest.approx(made[suffix].item(), rel=1e-6)
