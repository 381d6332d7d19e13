"""Full-size layers to measure with: GLM-5.2's shapes, random weights, as many experts as asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from mtpforge.families import family_of
from mtpforge.nextn.inputs import Sequence, write
from mtpforge.tensors import DTYPES

CONFIG = Path(__file__).parents[1] / "tests" / "data" / "configs" / "target-bf16.config.json"
EXPERTS_OF_A_SHARD = 16  # 1.2 GB in memory while it is written

# Routed experts as compressed-tensors stores NVFP4, the rest dense.
NVFP4 = """
description = "routed experts in NVFP4"
[[rules]]
pattern = "mlp.experts.*"
format = "nvfp4"
bits = 4
strategy = "group"
group_size = 16
scale_dtype = "F8_E4M3"
reason = "the routed experts"
[[rules]]
pattern = "*"
format = "dense"
dtype = "BF16"
reason = "everything else"
"""
SCHEMES = {"bf16": "bf16", "int4": "int4-g32-asym", "fp8": "fp8-block128", "nvfp4": NVFP4}


def scheme(name: str, folder: Path) -> str:
    """What `--scheme` takes: a preset's name, or a file that is written into `folder`."""
    if "\n" not in SCHEMES[name]:
        return SCHEMES[name]
    file = folder / f"{name}.toml"
    file.write_text(SCHEMES[name])
    return str(file)


def source(name: str, folder: Path, n_experts: int) -> Path:
    """A checkpoint that holds the layer, made if it is not there: `bf16` at random, the others from that."""
    made = folder / f"{name}-{n_experts}"
    if (made / "config.json").exists():
        return made
    if name == "bf16":
        _random(made, n_experts)
    else:
        dense = source("bf16", folder, n_experts)
        command = [
            sys.executable,
            "-m",
            "mtpforge",
            "extract",
            "--source",
            str(dense),
            "--scheme",
            scheme(name, folder),
        ]
        subprocess.run([*command, "-o", str(made), "--check", "off", "--quiet"], check=True)
    return made


def whole(name: str, folder: Path, n_experts: int) -> Path:
    """`source` with an embedding and a head around it, at random: what `fidelity` asks of a reference."""
    made = source(name, folder, n_experts)
    file = made / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    text = json.loads((made / "config.json").read_text())
    for seed, around in enumerate(("model.embed_tokens.weight", "lm_head.weight"), 1):
        if around in index["weight_map"]:
            continue
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(text["vocab_size"], text["hidden_size"], dtype=torch.bfloat16)
        shard = f"{around.split('.')[-2]}.safetensors"
        save_file({around: weight.normal_(0, 0.02, generator=generator)}, made / shard, metadata={"format": "pt"})
        index["weight_map"][around] = shard
    file.write_text(json.dumps(index))
    return made


def inputs(folder: Path, n_tokens: int, length: int = 512) -> Path:
    """A file of captured inputs as `capture` writes them, of random tokens and states."""
    made = folder / f"inputs-{n_tokens}.safetensors"
    if made.exists():
        return made
    config = json.loads(CONFIG.read_text())
    generator = torch.Generator().manual_seed(3)
    sequences = []
    for first in range(0, n_tokens, length):
        some = min(length, n_tokens - first)
        ids = torch.randint(config["vocab_size"], (some,), generator=generator)
        states = torch.randn(some, config["hidden_size"], generator=generator)
        sequences.append(Sequence(ids, torch.arange(some), states))
    write(made, sequences, target="random", dtype="BF16")
    return made


def _random(folder: Path, n_experts: int) -> None:
    folder.mkdir(parents=True)
    config = json.loads(CONFIG.read_text()) | {"n_routed_experts": n_experts}
    config.pop("num_experts", None)
    family = family_of(config)
    prefix = family.prefix(family.layer(config))
    generator = torch.Generator().manual_seed(0)
    shards: dict[int, dict[str, torch.Tensor]] = {}
    index: dict[str, str] = {}

    def flush() -> None:
        for number, tensors in shards.items():
            file = f"model-{number:05}.safetensors"
            save_file(tensors, folder / file, metadata={"format": "pt"})
            index.update(dict.fromkeys(tensors, file))
        shards.clear()

    for plain in family.plain(config, n_experts):
        dtype = getattr(torch, DTYPES[plain.dtype].torch)
        shards.setdefault(0, {})[prefix + plain.name] = torch.ones(plain.shape).to(dtype)
    for module in family.modules(config, n_experts):
        shard = 0 if module.expert is None else 1 + module.expert // EXPERTS_OF_A_SHARD
        if shard not in shards:
            flush()
        weight = torch.empty(module.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        shards.setdefault(shard, {})[f"{prefix}{module.name}.weight"] = weight
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
