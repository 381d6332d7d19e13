"""Compiled kernels change no byte of a draft, and are looked at by the reference check like everything else."""

import pytest
import torch

from mtpforge.building import build, encoding, executing
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.planning import plan
from mtpforge.weights import compiling
from mtpforge.weights.kernels import RowKernels


def made(tinyglm, source, target, folder, *, kernels, **how):
    stored, served = open_checkpoint(str(tinyglm(source))), open_checkpoint(str(tinyglm(target)))
    draft = build(plan(stored, served), {"source": stored, "target": served}, folder, kernels=kernels, **how)
    return draft, (folder / "model.safetensors").read_bytes()


@pytest.fixture
def encoded(monkeypatch):
    """Counts the bands that kernels encode."""
    counted, encode = [], executing.compiled

    def counting(kernels, move, band, matrix):
        parts = encode(kernels, move, band, matrix)
        counted.append(parts is not None)
        return parts

    monkeypatch.setattr(executing, "compiled", counting)
    return counted


@pytest.mark.sampled(3)
@pytest.mark.parametrize("target", ["awq-int4", "nvfp4", "int4-int8mix", "bf16"])
@pytest.mark.parametrize("source", ["bf16", "fp8", "nvfp4"])
def test_kernels_change_no_byte(tinyglm, tmp_path, encoded, source, target):
    _, plain = made(tinyglm, source, target, tmp_path / "plain", kernels=False, check="off")
    assert not encoded
    _, fast = made(tinyglm, source, target, tmp_path / "fast", kernels=True, check="off")
    assert fast == plain
    assert all(encoded)
    assert bool(encoded) == (source != target)


def test_workers_change_no_byte(tinyglm, tmp_path):
    _, one = made(tinyglm, "nvfp4", "awq-int4", tmp_path / "one", kernels=True, check="off", workers=1)
    _, five = made(tinyglm, "nvfp4", "awq-int4", tmp_path / "five", kernels=True, check="off", workers=5)
    assert one == five


def test_what_kernels_decode_is_compared_with_the_reference(tinyglm, tmp_path, monkeypatch):
    draft, _ = made(tinyglm, "nvfp4", "awq-int4", tmp_path / "good", kernels=True, check="full")
    assert "786,432 values of 48 weights equal" in draft.report.checks[0].detail
    decode = RowKernels.decode
    monkeypatch.setattr(
        RowKernels, "decode", lambda *band: decode(*band).view(torch.int32).add(1 << 16).view(torch.float32)
    )
    with pytest.raises(MtpforgeError, match="a plain decoder of NVFP4"):
        made(tinyglm, "nvfp4", "awq-int4", tmp_path / "wrong", kernels=True, check="full")


def test_small_layers_do_not_wait_for_the_compiler(tinyglm):
    served = open_checkpoint(str(tinyglm("awq-int4")))
    steps = plan(open_checkpoint(str(tinyglm("nvfp4"))), served).steps
    assert compiling.kernels_for(encoding.encoded_weights(steps))() is None


def test_full_size_layers_are_compiled(census_folder, config_folder):
    source = open_checkpoint(str(census_folder("nvfp4-experts-lukealonso", "target-nvfp4-lukealonso")))
    target = open_checkpoint(str(config_folder("target-awq-int4-ignore-to-77")))
    assert encoding.encoded_weights(plan(source, target).steps) >= compiling.WORTH_COMPILING
