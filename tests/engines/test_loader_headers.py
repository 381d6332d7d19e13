"""The loader's own reader of safetensors headers, against files written by the library."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mtpforge.engines.loading.headers import read_header, without_values

TENSORS = {
    "b": torch.zeros(3, 4, dtype=torch.bfloat16),
    "a": torch.zeros((), dtype=torch.float32),
    "c": torch.zeros(5, dtype=torch.float8_e4m3fn),
}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_tensors_without_values_have_the_stored_dtypes_and_shapes(file):
    found = dict(without_values([str(file)]))
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {n: (t.dtype, t.shape) for n, t in TENSORS.items()}
    assert all(t.is_meta for t in found.values())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:5], "model.safetensors: not a safetensors file"),
        (lambda raw: raw[:20], "model.safetensors: header longer than the file"),
        (lambda raw: b"\xff" * 8 + raw[8:], "model.safetensors: header longer than the file"),
        (lambda raw: raw[:-3], "model.safetensors: truncated, 3 bytes missing"),
    ],
    ids=["no length", "header cut", "absurd length", "data cut"],
)
def test_damaged_file_is_named_with_its_damage(file, damage, message):
    raw = file.read_bytes()
    assert damage(raw) != raw
    file.write_bytes(damage(raw))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is compared
        read_header(file)
    assert str(caught.value) == message
