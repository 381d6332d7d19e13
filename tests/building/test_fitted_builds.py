"""Builds whose codes are fitted to inputs: only codes of experts change, for less error in what the experts put out."""

from __future__ import annotations

import json

import pytest
import torch
from nextn.calibration import captured, twin, write
from safetensors.torch import load_file
from slow_twins import decoder
from test_device import Late
from torch.nn.functional import silu

from mtpforge import scheme
from mtpforge.building import build, device
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.nextn import inputs
from mtpforge.nextn.hessians import Calibration
from mtpforge.planning import plan
from mtpforge.verifying import verify
from mtpforge.weights import compiling
from mtpforge.writing import folder

PRESETS = ["int4-g32-asym", "int4-g128-sym", "int8-channel"]
KEPT = (0, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15)
EXPERTS = [f"model.layers.3.mlp.experts.{n}." for n in range(16)] + ["model.layers.3.mlp.shared_experts."]


@pytest.fixture(scope="module")
def file(tinyglm, tmp_path_factory):
    return write(tmp_path_factory.mktemp("inputs") / "calib.safetensors", captured(tinyglm("bf16")))


@pytest.fixture
def made(tinyglm, tmp_path, file):
    def make(scales, preset="int4-g32-asym", *, name="draft", kept=None, given=None, judge=None, **options):
        source = open_checkpoint(str(tinyglm("bf16")))
        held = inputs.read(given or file) if scales == "gptq" else None
        decided = plan(
            source,
            None,
            scheme=scheme.load(preset),
            scales=scales,
            kept=kept,
            inputs=held.digest if held else "",
        )
        calibration = Calibration(source, source, held, kept) if held else None
        out = tmp_path / name
        options = {"check": "off", "calibration": calibration, "judge": judge, **options}
        return build(decided, {"source": source}, out, **options)

    return make


def weights(draft):
    return load_file(draft.path / "model.safetensors")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("preset", PRESETS)
def test_only_codes_of_experts_change(made, preset):
    ours, rtn = weights(made("gptq", preset, name="ours")), weights(made("rtn", preset, name="rtn"))
    assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {n: (t.dtype, t.shape) for n, t in rtn.items()}
    differing = {name for name in ours if not torch.equal(ours[name], rtn[name])}
    codes = {name for name in ours if name.endswith((".weight_packed", ".weight"))}
    stems = tuple(EXPERTS)
    assert differing == {name for name in codes if name.startswith(stems)}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", [{"kernels": True}, {"workers": 1}, {"workers": 5}])
def test_kernels_and_workers_change_no_byte(made, monkeypatch, options):
    monkeypatch.setattr(compiling, "WORTH_COMPILING", 1 << 60)
    plain, other = made("gptq", name="plain"), made("gptq", name="other", **options)
    assert (plain.path / "model.safetensors").read_bytes() == (other.path / "model.safetensors").read_bytes()


def test_a_device_changes_no_byte(made, monkeypatch):
    """It takes the rest of the layer; codes are fitted on the CPU."""
    plain = made("gptq", name="plain")
    late = Late()
    monkeypatch.setattr(device, "choose", lambda name, steps: late.record)
    other = made("gptq", name="other", device="cuda")
    assert late.copies
    assert (plain.path / "model.safetensors").read_bytes() == (other.path / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kept", [None, KEPT])
def test_outputs_are_nearer_on_the_inputs(made, tinyglm, kept):
    """By the slow twin's rows and plain products, of every expert."""
    tensors, config = twin(tinyglm("bf16"))
    w, rows = decoder.layer_of(tensors, 3), []
    for ids, positions, hidden in captured(tinyglm("bf16")):
        entered = decoder.mtp_rows(tensors, config, ids, hidden.double(), positions)
        rows += decoder.attended(w, config, entered, positions[:-1])[0]
    rows = [decoder.norm(row, w["post_attention_layernorm.weight"], config) for row in rows]
    numbers = kept or tuple(range(16))
    router = {name: w[name][list(numbers)] for name in ("mlp.gate.weight", "mlp.gate.e_score_correction_bias")}
    sent = [decoder.gates(router, config, x) for x in rows]
    ours, rtn = (unpacked(weights(made(m, kept=kept, name=m))) for m in ("gptq", "rtn"))
    n_better = 0
    for own, number in enumerate(numbers):
        x = torch.stack([row for row, gates in zip(rows, sent, strict=True) if own in gates])
        source = {part: w[f"mlp.experts.{number}.{part}_proj.weight"] for part in ("gate", "up", "down")}
        errors = []
        for draft in (ours, rtn):
            held = {part: draft[f"model.layers.3.mlp.experts.{own}.{part}_proj"] for part in ("gate", "up", "down")}
            errors.append(float((put_out(held, x) - put_out(source, x)).norm()))
        n_better += errors[0] < errors[1]
    assert n_better == len(numbers)


def put_out(w, x):
    return (silu(x @ w["gate"].T) * (x @ w["up"].T)) @ w["down"].T


def unpacked(tensors):
    """Module -> float64 [out, in] of INT4 in groups of 32 with zero points, both packed eight to a word."""

    def nibbles(words):
        return ((words.unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15).flatten(-2)

    found = {}
    for name in tensors:
        if name.endswith(".weight_packed"):
            stem = name.removesuffix(".weight_packed")
            scale = tensors[f"{stem}.weight_scale"].double().unsqueeze(-1)
            zero = nibbles(tensors[f"{stem}.weight_zero_point"].t()).t()[: len(scale)].unsqueeze(-1)
            codes = nibbles(tensors[name]).view(*scale.shape[:2], 32)
            found[stem] = ((codes - zero) * scale).flatten(1)
    return found


def test_an_expert_that_sees_nothing_is_rounded_to_nearest(made, tinyglm, monkeypatch):
    real = Calibration.seen
    unseen = "mlp.experts.9."
    monkeypatch.setattr(
        Calibration, "seen", lambda self, module: real(self, module)[: 0 if module.startswith(unseen) else None]
    )
    source = open_checkpoint(str(tinyglm("bf16")))
    ours, rtn = (
        made("gptq", name="ours", judge=lambda p: verify(p, source, source, scheme=scheme.load("int4-g32-asym"))),
        made("rtn", name="rtn"),
    )
    for part in ("gate", "up", "down"):
        name = f"model.layers.3.{unseen}{part}_proj.weight_packed"
        assert torch.equal(weights(ours)[name], weights(rtn)[name])
    assert "mlp.experts.9" not in ours.report.facts["output_error"]
    assert len(ours.report.facts["output_error"]) == 16


def test_report_and_manifest_tell_what_was_gained(made, tinyglm):
    source = open_checkpoint(str(tinyglm("bf16")))
    wanted = scheme.load("int4-g32-asym")
    draft = made("gptq", judge=lambda path: verify(path, source, source, scheme=wanted))
    (outputs,) = [c for c in draft.report.checks if c.name == "outputs"]
    assert outputs.verdict == "passed"
    assert "less in 17 of 17 experts" in outputs.detail
    body = json.loads((draft.path / "mtpforge.json").read_text())
    assert body["scales"] == "gptq"
    assert body["output_error"].keys() == body["rtn_output_error"].keys()
    assert all(0 < error < body["rtn_output_error"][name] for name, error in body["output_error"].items())
    assert all(body["relative_error"][name] > error for name, error in body["rtn_relative_error"].items())
    assert len(body["rtn_relative_error"]) == 51


def interrupt_at(monkeypatch, n):
    calls, real = [], folder.DraftFolder.put

    def put(draft, name, offset, data):
        calls.append(name)
        if len(calls) == n:
            raise KeyboardInterrupt
        real(draft, name, offset, data)

    monkeypatch.setattr(folder.DraftFolder, "put", put)
    return calls


def test_interrupted_build_goes_on_to_the_same_bytes(made, monkeypatch, tinyglm):
    source = open_checkpoint(str(tinyglm("bf16")))
    wanted = scheme.load("int4-g32-asym")
    options = {"workers": 1, "judge": lambda path: verify(path, source, source, scheme=wanted)}
    whole = made("gptq", name="whole", **options)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 120)
        with pytest.raises(MtpforgeError, match="interrupted"):
            made("gptq", **options)
    with monkeypatch.context() as patch:
        calls = interrupt_at(patch, 0)
        draft = made("gptq", **options)
    assert 0 < len(calls) < 150  # of 242 tensors
    for name in ("model.safetensors", "mtpforge.json"):
        assert (whole.path / name).read_bytes().replace(b"whole", b"draft") == (draft.path / name).read_bytes()


def test_other_inputs_are_another_plan_and_resume_nothing(made, monkeypatch, tinyglm, tmp_path):
    (first, second) = captured(tinyglm("bf16"))
    other = write(tmp_path / "other.safetensors", [second, first])
    with monkeypatch.context() as patch:
        interrupt_at(patch, 120)
        with pytest.raises(MtpforgeError, match="interrupted"):
            made("gptq", workers=1)
    with monkeypatch.context() as patch:
        calls = interrupt_at(patch, 0)
        made("gptq", workers=1, given=other)
    assert len(calls) >= 242


def test_plan_needs_inputs_and_names_them(tinyglm, file):
    source = open_checkpoint(str(tinyglm("bf16")))
    wanted = scheme.load("int4-g32-asym")
    with pytest.raises(MtpforgeError, match="`gptq` needs calibration inputs") as refused:
        plan(source, None, scheme=wanted, scales="gptq")
    assert refused.value.code == 2
    assert "mtpforge capture" in refused.value.fix
    digests = {plan(source, None, scheme=wanted, scales="gptq", inputs=name).digest for name in ("a", "b")}
    assert len(digests) == 2
    made = plan(source, None, scheme=wanted, scales="gptq", inputs="a")
    methods = {(move.kind, move.scales) for step in made.steps for move in step.moves if move.action == "encode"}
    assert methods == {
        ("routed experts", "gptq"),
        ("shared experts", "gptq"),
        ("attention", "rtn"),
        ("indexer", "rtn"),
    }
    assert made.scales == "gptq"


def test_formats_without_codes_to_fit_are_refused(tinyglm):
    source = open_checkpoint(str(tinyglm("bf16")))
    with pytest.raises(MtpforgeError, match="`gptq` would find no code") as refused:
        plan(source, None, scheme=scheme.load("fp8-block128"), scales="gptq", inputs="a")
    assert "for integers" in refused.value.why


def test_other_inputs_or_experts_than_the_plans_are_a_mistake(tinyglm, file, tmp_path):
    source = open_checkpoint(str(tinyglm("bf16")))
    wanted, held = scheme.load("int4-g32-asym"), inputs.read(file)
    calibration = Calibration(source, source, held)
    for decided in (
        plan(source, None, scheme=wanted, scales="gptq", inputs="others"),
        plan(source, None, scheme=wanted, scales="gptq", inputs=held.digest, kept=KEPT),
        plan(source, None, scheme=wanted),
    ):
        with pytest.raises(ValueError, match=r"not the inputs|other experts"):
            build(decided, {"source": source}, tmp_path / "draft", calibration=calibration)
