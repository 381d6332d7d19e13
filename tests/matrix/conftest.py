"""Good drafts to break, each built once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.planning import plan
from mtpforge.report import Report
from mtpforge.verifying import verify
from mtpforge.weights import compiling

NVFP4_BLOCK = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "format": "nvfp4-pack-quantized",
            "targets": ["Linear"],
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": 4,
                "type": "float",
                "strategy": "tensor_group",
                "group_size": 16,
                "symmetric": True,
                "dynamic": False,
            },
        }
    },
}


class Pair:
    """A good draft with its target and source."""

    def __init__(self, draft: Path, target: Path, source: Path) -> None:
        self.draft, self.target, self.source = draft, target, source

    def verify(self, draft: Path, *, with_source: bool = True) -> Report:
        source = open_checkpoint(str(self.source)) if with_source else None
        return verify(draft, open_checkpoint(str(self.target)), source)


@pytest.fixture(params=["plain", "compiled"])
def both_ways(request, monkeypatch):
    """Every trap is caught by the plain comparison, and by the compiled one that large drafts go through."""
    monkeypatch.setattr(compiling, "WORTH_COMPILING", 0 if request.param == "compiled" else 1 << 60)


@pytest.fixture(scope="module")
def made(tinyglm, tmp_path_factory):
    """Drafts by name of their target, each built once."""
    home = tmp_path_factory.mktemp("drafts")
    config = json.loads((tinyglm("bf16") / "config.json").read_text())
    ct_nvfp4 = home / "ct-nvfp4-target"
    ct_nvfp4.mkdir()
    (ct_nvfp4 / "config.json").write_text(json.dumps({**config, "quantization_config": NVFP4_BLOCK}))
    targets = {"int4": tinyglm("awq-int4"), "ct-nvfp4": ct_nvfp4, "nvfp4": tinyglm("nvfp4"), "fp8": tinyglm("fp8")}
    sources = {"int4": "bf16", "ct-nvfp4": "bf16", "nvfp4": "nvfp4", "fp8": "fp8"}
    pairs: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in pairs:
            source, target = open_checkpoint(str(tinyglm(sources[name]))), open_checkpoint(str(targets[name]))
            draft = home / name
            build(plan(source, target), {"source": source, "target": target}, draft, check="off", workers=1)
            pairs[name] = Pair(draft, targets[name], tinyglm(sources[name]))
        return pairs[name]

    return pair
