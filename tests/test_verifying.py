"""verify(): its bounds, its experts, its ways to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import whole_weights
from drafts import changed, copy_without_manifest, failed, reconfigured
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import mtpforge
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS, label
from mtpforge.planning import plan
from mtpforge.tensors import Quantization
from mtpforge.verifying import glance, verify
from mtpforge.weights import Reader

P = "model.layers.3."
ENCODED = (
    Quantization("dense", 16, "BF16"),
    Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32"),
    Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32"),
    Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="BF16"),
    Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3"),
    Quantization("modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3"),
    Quantization("pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="BF16"),
    Quantization("pack_quantized", 4, strategy="group", group_size=128, scale_dtype="BF16"),
    Quantization("pack_quantized", 8, strategy="channel", scale_dtype="BF16"),
    Quantization("int_quantized", 8, strategy="channel", scale_dtype="BF16"),
)


def beyond(weight, parts, quantization):
    """Elements whose decoding lies outside the bound."""
    decoded = whole_weights.decode(parts, tuple(weight.shape), quantization)
    limit = FORMATS[quantization.format].bound(parts, quantization, tuple(weight.shape))
    return int(limit.beyond(weight, (decoded - weight).abs()).sum())


def test_a_layer_that_is_copied_has_no_largest_error(tinyglm, tmp_path):
    out = mtpforge.build(tinyglm("nvfp4"), tinyglm("nvfp4"), out=tmp_path / "d", standalone=True, check="off").path
    report = verify(out, open_checkpoint(tinyglm("nvfp4")), open_checkpoint(tinyglm("nvfp4")))
    (values,) = (check for check in report.checks if check.name == "values")
    assert (values.verdict, values.detail) == ("passed", "1,031,696 weights equal to the source's")


@pytest.mark.parametrize("quantization", ENCODED, ids=label)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.sampled_from([1, 3, 7]), scale=st.sampled_from([1e-3, 1.0, 300.0]))
def test_what_is_encoded_stays_within_the_bound(quantization, seed, power, scale):
    """Heavy tails: odd powers of a normal keep their sign."""
    weight = torch.randn(160, 256, generator=torch.Generator().manual_seed(seed)) ** power * scale
    weight[3] = 0
    (parts,) = whole_weights.encode([weight], quantization)
    assert beyond(weight, parts, quantization) == 0


@pytest.mark.parametrize("quantization", [q for q in ENCODED if "int" in q.format or "pack" in q.format], ids=label)
def test_a_code_off_by_one_is_beyond_the_bound_of_integers(quantization):
    """Of a BF16 scale and 8 bits the bound is a whole step: only weights near half a step then show it."""
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    (parts,) = whole_weights.encode([weight], quantization)
    step = parts["weight_scale"].float() if quantization.bits == 4 else 1.6 * parts["weight_scale"].float()
    off = weight + step.repeat_interleave(256 // step.shape[1], 1)
    assert beyond(off, parts, quantization) > 0.9 * off.numel()


@pytest.fixture(scope="module")
def pruned(tinyglm, tmp_path_factory):
    """A draft of 12 of the source's 16 experts for the pruned target."""
    source, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4-12experts")))
    draft = tmp_path_factory.mktemp("pruned") / "draft"
    kept = (0, 1, 2, 4, 5, 7, 8, 9, 11, 12, 13, 15)
    build(plan(source, target, kept=kept), {"source": source, "target": target}, draft, check="off", workers=1)
    return draft, target, source


def test_kept_experts_are_found_by_their_router_rows(pruned):
    draft, target, source = pruned
    report = verify(draft, target, source)
    assert failed(report) == {}
    (router,) = [check for check in report.checks if check.name == "router"]
    assert router.detail == "12 of the source's 16 experts: 0, 1, 2 and 9 more"
    assert report.facts["n_experts"] == 12


def test_kept_experts_that_are_not_those_of_their_router_rows(pruned, tmp_path):
    draft, target, source = pruned

    def shift(tensors):
        for name in [name for name in tensors if ".mlp.experts.3." in name]:
            other = name.replace(".experts.3.", ".experts.10.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    found = failed(verify(changed(draft, tmp_path / "draft", shift), target, source))
    assert "holds the source's expert 13, its row of the router is expert 4's" in found["values"]


def test_more_experts_than_the_target(tinyglm, pruned, tmp_path):
    _, target, source = pruned
    wide = open_checkpoint(str(tinyglm("awq-int4")))
    draft = tmp_path / "draft"
    build(plan(source, wide), {"source": source, "target": wide}, draft, check="off", workers=1)
    assert "16 experts, the target has 12" in failed(verify(draft, target))["experts"]


def test_a_draft_for_another_scheme_is_not_the_targets(pruned, tinyglm):
    draft, _, _ = pruned
    found = failed(verify(draft, open_checkpoint(str(tinyglm("bf16")))))
    assert {"names"} <= found.keys()


def test_the_last_line_names_what_only_an_engine_can_tell(pruned):
    draft, target, _ = pruned
    last = verify(draft, target).checks[-1]
    assert (last.name, last.verdict, last.fix) == (
        "loader",
        "not checked",
        "`mtpforge validate DRAFT --target CKPT`",
    )


def test_codes_that_were_made_anew_because_gate_and_up_differed_are_not_held_to_be_copies(tinyglm, tmp_path):
    """A calibrated scale leaves 4 as the largest code of a block; encoding it anew rounds another way."""

    def calibrated(tensors):
        tensors[f"{P}mlp.experts.0.gate_proj.weight"][0, :8] = 0x66
        tensors[f"{P}mlp.experts.0.gate_proj.weight_scale"][0, 0] = 1.0
        tensors[f"{P}mlp.experts.0.up_proj.weight_scale_2"] *= 0.5

    whole = open_checkpoint(str(tinyglm("nvfp4")))
    names = sorted(name for name in whole.names if name.startswith(P))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(whole.config)))
    tensors = {name: Reader(whole.read).tensor(ref) for name, ref in whole.locate(names).items()}
    calibrated(tensors)
    save_file(tensors, folder / "model.safetensors")
    source = open_checkpoint(str(folder))
    build(plan(source, whole), {"source": source, "target": whole}, tmp_path / "draft", check="off", workers=1)
    report = verify(tmp_path / "draft", whole, source)
    assert failed(report) == {}
    assert report.facts["relative_error"]["mlp.experts.0.gate_proj"] > 0
    assert report.facts["relative_error"]["mlp.experts.1.gate_proj"] == 0


def test_a_path_that_the_engine_would_misread(pruned):
    draft, target, _ = pruned
    assert "path" in failed(verify(draft, target, served_as="/models/eagle3-draft"))


def test_a_tensor_parallel_size_that_does_not_divide(pruned):
    draft, target, _ = pruned
    assert "serving" in failed(verify(draft, target, serving=Serving(tensor_parallel=3)))


def test_facts_hold_error_and_digest_of_every_tensor(pruned):
    draft, target, source = pruned
    facts = verify(draft, target, source).facts
    told = json.loads((draft / "mtpforge.json").read_text())["tensors"]
    assert facts["sha256"] == {name: entry["sha256"] for name, entry in told.items()}
    assert facts["relative_error"]["self_attn.q_a_layernorm.weight"] == 0
    assert 0.05 < facts["relative_error"]["mlp.experts.0.gate_proj"] < 0.12


def test_progress_ends_at_its_total(pruned):
    draft, target, source = pruned
    seen = []
    verify(draft, target, source, on_progress=seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert (seen[-1].phase, seen[-1].done) == ("verify", seen[-1].total)


def test_a_file_that_changes_while_it_is_read_is_a_finding(pruned, monkeypatch):
    draft, target, _ = pruned
    held = open_checkpoint(str(draft))

    def refuse(ref, into):
        raise MtpforgeError("`model.safetensors` changed while it was being used", where=ref.file)

    held.read = refuse
    monkeypatch.setattr("mtpforge.verifying.open_checkpoint", lambda named: target if named is target else held)
    assert failed(verify(draft, target))["numbers"].startswith("`model.safetensors` changed")


def test_no_draft_is_the_users_mistake(pruned, tmp_path):
    _, target, _ = pruned
    with pytest.raises(MtpforgeError, match="is no checkpoint"):
        verify(Path(tmp_path / "absent"), target)


@pytest.fixture(scope="module")
def plain_pair(tinyglm, tmp_path_factory):
    """The layer as BF16, a copy of it for a target that is not quantized, and that target."""
    target = open_checkpoint(str(tinyglm("bf16")))
    draft = tmp_path_factory.mktemp("plain") / "draft"
    build(plan(target, target), {"source": target, "target": target}, draft, check="off", workers=1)
    return draft, target


@pytest.mark.parametrize("name", ["self_attn.q_a_proj", "enorm", "self_attn.indexer.k_norm"])
def test_a_weight_that_is_zero_in_the_source_too_is_named(plain_pair, tmp_path, name):
    draft, target = plain_pair

    def clear(tensors):
        tensors[f"{P}{name}.weight"].zero_()

    zero = changed(draft, tmp_path / "draft", clear)
    assert failed(verify(zero, target))["numbers"] == f"1 findings: {_module(name)}: every weight is zero"
    against = verify(zero, target, open_checkpoint(str(zero)))
    (check,) = [c for c in against.checks if c.name == "numbers"]
    assert (check.verdict, against.exit_code) == ("warning", 0)
    assert check.detail == f"1 weights are all zero, as in the source: {_module(name)}"
    other = failed(verify(zero, target, open_checkpoint(str(draft))))
    assert {"numbers", "values"} <= other.keys()


def _module(name: str) -> str:
    return name if name.endswith("_proj") else f"{name}.weight"


def test_a_bias_may_be_zero(plain_pair, tmp_path):
    draft, target = plain_pair

    def clear(tensors):
        tensors[f"{P}self_attn.indexer.k_norm.bias"].fill_(1)
        tensors[f"{P}mlp.gate.e_score_correction_bias"].zero_()

    assert "numbers" not in failed(verify(changed(draft, tmp_path / "draft", clear), target))


def test_a_build_from_a_source_with_zero_weights_says_so(plain_pair, tinyglm, tmp_path):
    """The draft is what was asked for; that it holds a dead projection must not go unsaid."""
    draft, _ = plain_pair
    source = changed(draft, tmp_path / "source", lambda tensors: tensors[f"{P}self_attn.q_a_proj.weight"].zero_())
    sides = {"source": open_checkpoint(str(source)), "target": open_checkpoint(str(tinyglm("awq-int4")))}
    made = build(
        plan(sides["source"], sides["target"]),
        sides,
        tmp_path / "draft",
        check="off",
        workers=1,
        judge=lambda folder: verify(folder, sides["target"], sides["source"]),
    )
    (check,) = [c for c in made.report.checks if c.name == "numbers"]
    assert (check.verdict, "self_attn.q_a_proj" in check.detail) == ("warning", True)


def test_a_draft_without_weights_is_judged(pruned, tmp_path):
    draft, target, source = pruned
    shutil.copytree(draft, tmp_path / "draft")
    (tmp_path / "draft" / "model.safetensors").unlink()
    report = verify(tmp_path / "draft", target, source)
    verdicts = {check.name: check.verdict for check in report.checks}
    assert (verdicts["names"], verdicts["numbers"], verdicts["values"]) == ("failed", "not checked", "not checked")
    assert report.exit_code == 1


def test_a_draft_is_no_target(pruned):
    draft, _, source = pruned
    report = verify(draft, open_checkpoint(str(draft)), source)
    assert failed(report)["target"] == "the target holds only the MTP layer: this is a draft"
    assert report.exit_code == 1


def test_a_draft_for_another_engine_is_not_advised_to_be_replaced(pruned, tmp_path):
    draft, target, _ = pruned
    shutil.copytree(draft, tmp_path / "draft")
    for file, change in (("mtpforge.json", {"engine": "sglang"}), ("config.json", {"moe_router_dtype": None})):
        path = tmp_path / "draft" / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (check,) = [c for c in glance(tmp_path / "draft", target).checks if c.verdict == "failed"]
    assert "name the engine that it was made for: `--engine sglang`; or build one for this: `" in check.fix
    assert "--force" not in check.fix


def test_a_draft_beside_the_target_is_not_told_to_build_one(pruned, tmp_path):
    draft, target, _ = pruned
    text = json.loads((Path(target.location) / "config.json").read_text())
    shutil.copytree(target.location, tmp_path / "target")
    (tmp_path / "target" / "config.json").write_text(json.dumps({**text, "mtp_quantization_config": {}}))
    report = glance(draft, open_checkpoint(str(tmp_path / "target")))
    (cured,) = [trap for trap in report.traps if trap.id == "mtp-quantization-config"]
    assert (cured.severity, cured.fix) == ("note", "")
    assert {c.name: c.verdict for c in report.checks}["target"] == "passed"


@pytest.mark.parametrize(
    ("name", "check"), [("enorm.weight", "names"), ("mlp.experts.3.up_proj.weight_scale", "experts")]
)
def test_a_glance_sees_what_headers_show(pruned, tmp_path, name, check):
    draft, target, _ = pruned
    assert failed(glance(draft, target)) == {}
    less = changed(draft, tmp_path / "draft", lambda tensors: tensors.pop(P + name))
    assert failed(glance(less, target))[check] == failed(verify(less, target))[check]


def test_a_glance_reads_no_weight(pruned, monkeypatch):
    draft, target, _ = pruned
    held = open_checkpoint(str(draft))

    def refuse(ref, into):
        raise MtpforgeError("it is read")

    held.read = refuse
    monkeypatch.setattr("mtpforge.verifying.open_checkpoint", lambda named: target if named is target else held)
    whole = verify(draft, target)
    assert failed(whole) == {"numbers": "it is read"}
    seen = glance(draft, target)
    assert failed(seen) == {}
    assert {c.name for c in whole.checks} - {c.name for c in seen.checks} == {"numbers", "loader"}


def test_a_manifest_that_is_gone_was_not_checked(pruned, tmp_path):
    draft, target, _ = pruned
    (there,) = [c for c in verify(draft, target).checks if c.name == "manifest"]
    copy_without_manifest(draft, tmp_path / "draft")
    (gone,) = [c for c in verify(tmp_path / "draft", target).checks if c.name == "manifest"]
    assert (there.verdict, gone.verdict) == ("passed", "not checked")


def test_a_hint_names_the_target_itself(pruned, tmp_path):
    draft, target, _ = pruned
    report = verify(reconfigured(draft, tmp_path / "draft", lambda c: c.pop("moe_router_dtype")), target)
    (check,) = [c for c in report.checks if c.verdict == "failed"]
    (trap,) = [t for t in report.traps if t.severity == "error"]
    assert check.fix == trap.fix
    assert trap.fix.endswith(f"`mtpforge build --target {target.label}`")  # the manifest is gone: nothing to replace
