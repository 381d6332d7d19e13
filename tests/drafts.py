"""Drafts for tests: built once, then changed on disk tensor by tensor, as a careless tool would."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mtpforge.report import Report

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"


def weight_file(draft: Path) -> Path:
    """The one file that holds the tensors."""
    (found,) = draft.glob("*.safetensors")
    return found


def digests(draft: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(draft.iterdir())}


def changed(draft: Path, to: Path, change: Callable[[Tensors], None]) -> Path:
    """A copy of a draft with changed tensors and no manifest, so that no digest gives the change away."""
    copy_without_manifest(draft, to)
    file = weight_file(to)
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    assert hashlib.sha256(file.read_bytes()).hexdigest() != before, "the change changed nothing"
    index = to / "model.safetensors.index.json"
    if index.exists():
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        body = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(sorted(tensors), file.name)}
        index.write_text(json.dumps(body))
    return to


def reconfigured(draft: Path, to: Path, change: Callable[[dict], None]) -> Path:
    """A copy of a draft with a changed config.json."""
    copy_without_manifest(draft, to)
    path = to / "config.json"
    config = json.loads(path.read_text())
    before = json.dumps(config, sort_keys=True)
    change(config)
    assert json.dumps(config, sort_keys=True) != before, "the change changed nothing"
    path.write_text(json.dumps(config))
    return to


def recast(checkpoint: Path, name: str, dtype: torch.dtype) -> None:
    """Store one tensor of a checkpoint in another dtype, in place."""
    (file,) = (f for f in checkpoint.glob("*.safetensors") if name in load_file(f))
    tensors = load_file(file)
    assert tensors[name].dtype != dtype, "the change changed nothing"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, file, metadata={"format": "pt"})


def unpruned(whole: Path, to: Path) -> Path:
    """A copy of a checkpoint with 12 experts in its main layers, by index and config; its MTP layer keeps 16."""
    shutil.copytree(whole, to)
    index = to / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    gone = [n for n in body["weight_map"] if re.search(r"layers\.[12]\.mlp\.experts\.1[2-5]\.", n)]
    assert gone
    for name in gone:
        del body["weight_map"][name]
    index.write_text(json.dumps(body))
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"n_routed_experts": 12, "num_experts": 12}))
    return to


def copy_without_manifest(draft: Path, to: Path) -> None:
    shutil.copytree(draft, to)
    (to / "mtpforge.json").unlink(missing_ok=True)


def failed(report: Report) -> dict[str, str]:
    """Failed checks: name -> detail."""
    return {check.name: check.detail for check in report.checks if check.verdict == "failed"}


def nibbles(words: torch.Tensor) -> torch.Tensor:
    """Eight 4-bit codes of each int32 word, low first: [..., n] -> [..., 8 n]."""
    shifts = torch.arange(0, 32, 4)
    return ((words[..., None].long() >> shifts) & 15).flatten(-2)


def words(codes: torch.Tensor) -> torch.Tensor:
    """The reverse of `nibbles`."""
    grouped = codes.long().unflatten(-1, (-1, 8)) << torch.arange(0, 32, 4)
    total = grouped.sum(-1)
    return torch.where(total >= 1 << 31, total - (1 << 32), total).int()
