"""`--scales`: decided by the plan, the same bytes by kernel and by torch, and nothing else about a draft changes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mtpforge import scheme
from mtpforge.building import build, executing
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.methods import METHODS
from mtpforge.planning import plan

SEARCHED = [m.name for m in METHODS.values() if m.is_searched and not m.needs_inputs]
MIXED = """
description = "FP8 attention, INT8 experts"

[[rules]]
pattern = "mlp.experts.*"
format = "pack_quantized"
bits = 8
strategy = "channel"
symmetric = true
scale_dtype = "BF16"
reason = "because"

[[rules]]
pattern = "self_attn.o_proj"
format = "fp8_scaled"
bits = 8
strategy = "channel"
scale_dtype = "BF16"
reason = "because"

[[rules]]
pattern = "*"
format = "dense"
dtype = "BF16"
reason = "because"
"""


@pytest.fixture
def made(tinyglm, tmp_path):
    def make(scales, preset="int4-g32-asym", *, kernels=False, check="off", name="draft"):
        source = open_checkpoint(str(tinyglm("bf16")))
        decided = plan(source, None, scheme=scheme.load(preset), scales=scales)
        return build(decided, {"source": source}, tmp_path / name, kernels=kernels, check=check)

    return make


@pytest.mark.sampled(3)
@pytest.mark.parametrize("preset", ["int4-g32-asym", "int4-g128-sym", "int8-channel"])
def test_kernels_find_the_same_scales(made, monkeypatch, preset):
    encoded, encode = [], executing.compiled

    def counting(kernels, move, band, matrix):
        parts = encode(kernels, move, band, matrix)
        encoded.append(parts is not None)
        return parts

    plain = made("mse", preset, name="plain")
    monkeypatch.setattr(executing, "compiled", counting)
    fast = made("mse", preset, kernels=True, name="fast")
    assert encoded
    assert all(encoded)
    weights = [(draft.path / "model.safetensors").read_bytes() for draft in (plain, fast)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("method", SEARCHED)
def test_only_codes_and_scales_change(made, method):
    ours, rtn = (load_file(made(m, name=m).path / "model.safetensors") for m in (method, "rtn"))
    assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {n: (t.dtype, t.shape) for n, t in rtn.items()}
    differing = {n.rpartition(".")[2] for n in ours if not torch.equal(ours[n], rtn[n])}
    assert {"weight_packed", "weight_scale"} <= differing <= {"weight_packed", "weight_scale", "weight_zero_point"}


@pytest.mark.parametrize("method", [m for m in SEARCHED if not METHODS[m].kernel("affine")])
def test_a_method_without_a_kernel_takes_the_plain_path(made, method):
    plain, fast = (made(method, kernels=kernels, name=str(kernels)).path for kernels in (False, True))
    assert (plain / "model.safetensors").read_bytes() == (fast / "model.safetensors").read_bytes()


def test_the_reference_check_holds_beside_a_search(made):
    checked = made("mse", kernels=True, check="full").report.checks[0]
    assert checked.verdict in {"passed", "not checked"}


def test_the_manifest_names_the_method(made):
    for method in ("rtn", "mse"):
        body = json.loads((made(method, name=method).path / "mtpforge.json").read_text())
        assert body["scales"] == method


def test_the_digest_depends_on_the_method(tinyglm):
    source = open_checkpoint(str(tinyglm("bf16")))
    plans = [plan(source, None, scheme=scheme.load("int4-g32-asym"), scales=m) for m in ("rtn", *SEARCHED)]
    assert [p.scales for p in plans] == ["rtn", *SEARCHED]
    assert len({p.digest for p in plans}) == len(plans)


def test_a_copy_stays_a_copy(tinyglm, made):
    """Codes that are copied have no error that a search could lessen."""
    first = open_checkpoint(str(made("rtn").path))
    with pytest.raises(MtpforgeError, match="`mse` would find no scale") as refused:
        plan(first, None, scheme=scheme.load("int4-g32-asym"), scales="mse")
    assert "only copied" in refused.value.why


def test_formats_without_a_search_are_refused(tinyglm):
    source = open_checkpoint(str(tinyglm("bf16")))
    with pytest.raises(MtpforgeError, match="`mse` would find no scale") as refused:
        plan(source, None, scheme=scheme.load("fp8-block128"), scales="mse")
    assert "FP8 block 128x128" in refused.value.why
    assert refused.value.code == 2


def test_what_cannot_be_searched_is_rounded_and_said_so(tinyglm, tmp_path):
    """A scheme of FP8 and integers: rtn for the one, mse for the other."""
    mixed = tmp_path / "mixed.toml"
    mixed.write_text(MIXED)
    decided = plan(open_checkpoint(str(tinyglm("bf16"))), None, scheme=scheme.load(str(mixed)), scales="mse")
    methods = {(m.wanted.format, m.scales) for step in decided.steps for m in step.moves}
    assert methods == {("pack_quantized", "mse"), ("fp8_scaled", "rtn")}
    rows = {(row["wanted"], row["action"]) for row in decided.facts["stored"]}
    assert {("INT8 channel", "encoded, mse"), ("FP8 channel", "encoded")} <= rows
