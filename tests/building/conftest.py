"""A small dense source with its plan; low bands for every build."""

from __future__ import annotations

import pytest
import torch
from small_plans import carry, checkpoint, plan, weight

from mtpforge.weights import bands


@pytest.fixture(autouse=True)
def low_bands(monkeypatch):
    """Five bands a matrix, so that what bands may break is seen on small ones."""
    monkeypatch.setattr(bands, "band_rows", lambda _: 128)


@pytest.fixture
def dense(tmp_path):
    """A source of BF16 tensors and a plan that carries them all."""
    tensors = {f"layer.{i}.weight": weight(64, 32, i) for i in range(6)} | {
        "bias": torch.arange(12, dtype=torch.float32)
    }
    source = checkpoint(tmp_path / "source", tensors, {"LICENSE": "MIT", "NOTICE": "theirs\n"})
    return source, plan(source, [carry(source, n) for n in tensors]), tensors
