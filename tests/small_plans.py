"""Plans by hand over a small folder, for tests of what executes them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from mtpforge.checkpoint import open_checkpoint
from mtpforge.formats import FORMATS
from mtpforge.planning.steps import Carry, InputScaleMove, Move, Plan, Side, Step, Write
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import DTYPES, Quantization, Spec

DENSE = Quantization("dense", 16, "BF16")
INT4 = Quantization("pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="BF16")
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32")
NVFP4 = Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3")
MODELOPT = Quantization("modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3")


def checkpoint(folder, tensors, documents=()):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "glm_moe_dsa"}))
    for name, text in dict(documents).items():
        (folder / name).write_text(text)
    return open_checkpoint(str(folder))


def plan(source, steps, config=None):
    return Plan(
        source=Side(source.label, source.identity, source.location),
        target=Side("T", "org/target@0123", "org/target"),
        engine="vllm",
        family="glm_moe_dsa",
        layer=3,
        source_layer=3,
        n_experts=12,
        kept_experts=None,
        scheme=Scheme("made-up", (Rule("*", DENSE, "because"),)),
        steps=tuple(steps),
        unused=(),
        changes=(),
        config=config or {"model_type": "glm_moe_dsa"},
        traps=(),
    )


def carry(source, name, dtype=None, rows=None, to=None):
    ref = source.locate([name])[name]
    shape = ref.spec.shape if rows is None else (len(rows), *ref.spec.shape[1:])
    return Step(carries=(Carry("norm", ref, Write("", to or name, Spec(dtype or ref.spec.dtype, shape)), rows),))


def move(source, module, shape, stored, wanted, *, action="encode"):
    suffixes = FORMATS[stored.format].layout(shape, stored)
    refs = source.locate([f"{module}.{s}" for s in suffixes])
    writes = FORMATS[wanted.format].layout(shape, wanted)
    return Move(
        module=module,
        kind="routed experts",
        shape=shape,
        reads={s: refs[f"{module}.{s}"] for s in suffixes},
        stored=stored,
        wanted=wanted,
        action=action,
        writes=tuple(Write(s, f"{module}.{s}", spec) for s, spec in writes.items()),
        reason="because",
    )


def scale(source, names, write, read=(2688.0, False), made=(2688.0, False)):
    refs = source.locate(names)
    step = InputScaleMove(
        tuple(refs[n] for n in names), *read, Write("input_scale", write, Spec("F32", ())), *made, "because"
    )
    return Step(input_scales=(step,))


def weight(rows, columns, seed=0, dtype=torch.bfloat16):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights_of(steps):
    return {w.name: w.spec for s in steps for w in s.writes}


def torch_dtype(name):
    return getattr(torch, DTYPES[name].torch)
