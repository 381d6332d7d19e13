"""Sources as other quantizers write them: the whole way from a tiny checkpoint to a draft that verify accepts."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from drafts import failed
from safetensors.torch import load_file, save_file
from slow_twins import layouts, packers

from mtpforge import formats
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import plan
from mtpforge.sourcing import stored_layer
from mtpforge.verifying import verify

P = "model.layers.3."
WHOLE = 32  # rows that fill a word of zero points in any number of bits


def gptq(**stated):
    return {"quantization_config": {"quant_method": "gptq", **stated}}


def auto_round(packing_format, bits):
    block = {"quant_method": "auto-round", "packing_format": packing_format, "bits": bits, "sym": False}
    return {"quantization_config": block | {"extra_config": {f"{P}eh_proj": {"bits": 16}}}}


def quark(dtype, pack_method):
    weight = {"dtype": dtype, "symmetric": dtype == "int4", "qscheme": "per_group", "group_size": 32}
    block = {"quant_method": "quark", "export": {"pack_method": pack_method}, "global_quant_config": {"weight": weight}}
    return {"quantization_config": block}


# name -> (what config.json says, the packer, how the experts are shown)
SOURCES = {
    "gptq v1, 4 bits, desc_act": (
        gptq(bits=4, group_size=32, desc_act=True, sym=False),
        lambda w: packers.gptq(w, 4, 32, shuffled=True),
        "INT4 g32 asymmetric",
    ),
    "gptq v1, 3 bits": (
        gptq(bits=3, group_size=64, sym=False),
        lambda w: packers.gptq(w, 3, 64),
        "INT3 g64 asymmetric",
    ),
    "gptq v1, 2 bits": (
        gptq(bits=2, group_size=32, sym=False),
        lambda w: packers.gptq(w, 2, 32),
        "INT2 g32 asymmetric",
    ),
    "gptq v2, 8 bits, symmetric": (
        gptq(bits=8, group_size=32, sym=True, checkpoint_format="gptq_v2"),
        lambda w: packers.gptq(w, 8, 32, kind="gptq_v2", symmetric=True),
        "INT8 g32",
    ),
    "gptq in planes, 5 bits": (
        gptq(bits=5, group_size=-1, sym=False, checkpoint_format="gptq_p"),
        lambda w: packers.gptq(w, 5, w.shape[1], kind="gptq_p"),
        "INT5 channel asymmetric",
    ),
    "autoround": (
        auto_round("auto_round", 6),
        lambda w: packers.gptq(w, 6, 32, kind="gptq_v2"),
        "INT6 g32 asymmetric",
    ),
    "autoround as gptq": (
        auto_round("auto_round:auto_gptq", 4),
        lambda w: packers.gptq(w, 4, 32, kind="auto_gptq"),
        "INT4 g32 asymmetric",
    ),
    "autoround as awq": (auto_round("auto_round:auto_awq", 4), lambda w: packers.awq(w, 64), "INT4 g64 asymmetric"),
    "quark, int4": (quark("int4", "reorder"), lambda w: packers.quark_int4(w, 32, symmetric=True), "INT4 g32"),
    "quark, uint4 in order": (
        quark("uint4", "order"),
        lambda w: packers.quark_int4(w, 32, places=range(8)),
        "INT4 g32 asymmetric",
    ),
    "mlx, 4 bits": (
        {"quantization": {"bits": 4, "group_size": 64, "mode": "affine"}},
        lambda w: packers.mlx(w, 4, 64),
        "INT4 g64 asymmetric",
    ),
    "mlx, 6 bits": (
        {"quantization": {"bits": 6, "group_size": 32, f"{P}eh_proj": False}},
        lambda w: packers.mlx(w, 6, 32),
        "INT6 g32 asymmetric",
    ),
}


@pytest.fixture(scope="module")
def source(tinyglm, tmp_path_factory):
    """name -> folder, and the values of its MTP layer's tensors as a reader must find them, float32."""
    dense = {}
    for file in sorted(tinyglm("bf16").glob("*.safetensors")):
        dense |= {name: tensor for name, tensor in load_file(file).items() if name.startswith(P)}
    made = {}

    def write(name):
        if name not in made:
            stated, pack, _ = SOURCES[name]
            folder, tensors, values = tmp_path_factory.mktemp("source"), {}, {}
            for key, tensor in dense.items():
                module, values[key] = key.removesuffix(".weight"), tensor.float()
                is_left = tensor.dim() == 1 or len(tensor) % WHOLE or module.endswith(("eh_proj", "mlp.gate"))
                parts = {"weight": tensor}
                if not is_left:
                    parts, values[key] = pack(tensor)
                joined = f"{module}." if key.endswith(".weight") else ""
                tensors |= {f"{module}.{s}" if joined else key: part.contiguous() for s, part in parts.items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            config = json.loads((tinyglm("bf16") / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | stated))
            made[name] = folder, values
        return made[name]

    return write


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SOURCES)
def test_a_dense_draft_holds_the_source_s_values(source, tinyglm, tmp_path, name):
    folder, values = source(name)
    opened, target = open_checkpoint(str(folder)), open_checkpoint(str(tinyglm("bf16")))
    expert = stored_layer(opened, family_of(opened.config)).modules["mlp.experts.3.up_proj"]
    assert formats.label(expert.quantization) == SOURCES[name][2]
    draft = build(plan(opened, target), {"source": opened, "target": target}, tmp_path / "draft", check="off")
    (file,) = draft.path.glob("*.safetensors")
    written = load_file(file)
    assert written.keys() == values.keys()
    for key, tensor in written.items():
        assert torch.equal(tensor.float(), values[key].to(tensor.dtype).float()), key
    assert failed(verify(draft.path, target, opened)) == {}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SOURCES)
def test_an_int4_draft_is_within_its_rounding_of_the_source(source, tinyglm, tmp_path, name):
    folder, values = source(name)
    opened, target = open_checkpoint(str(folder)), open_checkpoint(str(tinyglm("awq-int4")))
    draft = build(plan(opened, target), {"source": opened, "target": target}, tmp_path / "draft", check="off")
    assert failed(verify(draft.path, target, opened)) == {}
    (file,) = draft.path.glob("*.safetensors")
    written, held = load_file(file), layouts.weights(draft.path)
    module = f"{P}mlp.experts.3.up_proj"
    steps = written[f"{module}.weight_scale"].float().repeat_interleave(32, 1)
    off = (held[f"{module}.weight"] - values[f"{module}.weight"]).abs()
    assert bool((off <= steps * (0.5 + 15 / 256 + 0.05)).all())  # 0.05: BF16 of the decoded values


def test_a_group_that_is_not_there_ends_the_build(source, tinyglm, tmp_path):
    folder, _ = source("gptq v1, 4 bits, desc_act")
    spoiled = shutil.copytree(folder, tmp_path / "source")
    tensors = load_file(spoiled / "model.safetensors")
    tensors[f"{P}mlp.experts.3.up_proj.g_idx"][5] = 4
    save_file(tensors, spoiled / "model.safetensors", metadata={"format": "pt"})
    for target in (open_checkpoint(str(tinyglm(layout))) for layout in ("bf16", "awq-int4")):
        opened = open_checkpoint(str(spoiled))
        with pytest.raises(MtpforgeError, match="the source holds a number that no weight may hold") as caught:
            build(plan(opened, target), {"source": opened, "target": target}, tmp_path / "draft", check="off")
        assert f"{P}mlp.experts.3.up_proj.g_idx" in str(caught.value)
