"""Pruned drafts: what they hold against plain slices of the source, and which bytes were never asked for."""

from __future__ import annotations

import json
import re

import pytest
import torch
from drafts import weight_file
from faults.hub_server import serving
from pruning.counting import CountingCheckpoint
from pruning.layers import PREFIX, pruned_copy, tensors_of
from safetensors.torch import load_file

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.cli import main
from mtpforge.planning import plan
from mtpforge.pruning.expert_choice import pruned
from mtpforge.verifying import verify

KEPT = (0, 1, 3, 5, 6, 8, 9, 11, 12, 13, 14, 15)
GONE = tuple(n for n in range(16) if n not in KEPT)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        yield server


def expert_of(name):
    match = re.search(r"\.experts\.(\d+)\.", name)
    return int(match[1]) if match else None


@pytest.mark.parametrize("layout", ["bf16", "fp8", "nvfp4", "int4-int8mix"])
def test_pruned_draft_is_the_draft_of_a_layer_that_was_sliced_before(tinyglm, tmp_path, layout):
    """Prune, then quantize: every byte as if the source had never had more experts."""
    target = open_checkpoint(str(tinyglm("awq-int4-12experts")))
    whole = open_checkpoint(str(tinyglm(layout)))
    sliced = pruned_copy(tinyglm(layout), tmp_path / "sliced", KEPT)
    build(plan(whole, target, kept=KEPT), {"source": whole, "target": target}, tmp_path / "a", check="off")
    build(plan(sliced, target), {"source": sliced, "target": target}, tmp_path / "b", check="off")
    assert weight_file(tmp_path / "a").read_bytes() == weight_file(tmp_path / "b").read_bytes()


def test_order_is_kept_and_rows_of_router_and_bias_go_with_their_experts(tinyglm, tmp_path):
    """Against the tensors as safetensors' own reader gives them; a dense target stores them as they are."""
    source, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("bf16")))
    build(plan(source, target, kept=KEPT), {"source": source, "target": target}, tmp_path / "draft", check="off")
    held, whole = load_file(weight_file(tmp_path / "draft")), tensors_of(tinyglm("bf16"))
    for name in ("mlp.gate.weight", "mlp.gate.e_score_correction_bias"):
        assert torch.equal(held[PREFIX + name], whole[name][list(KEPT)])
    assert held[PREFIX + "mlp.gate.e_score_correction_bias"].dtype is torch.float32
    for new, old in enumerate(KEPT):
        for part in ("gate_proj", "up_proj", "down_proj"):
            name = "mlp.experts.{}." + f"{part}.weight"
            assert torch.equal(held[PREFIX + name.format(new)], whole[name.format(old)])
    assert {expert_of(name) for name in held} - {None} == set(range(12))
    config = json.loads((tmp_path / "draft" / "config.json").read_text())
    assert config["n_routed_experts"] == 12
    assert not {"num_experts", "num_local_experts"} & config.keys()
    manifest = json.loads((tmp_path / "draft" / "mtpforge.json").read_text())
    assert manifest["kept_experts"] == list(KEPT)


@pytest.mark.parametrize("layout", ["bf16", "nvfp4"])
def test_bytes_of_dropped_experts_are_never_read(tinyglm, tmp_path, layout):
    """Choosing, building and verifying; what is read of the rest adds up to the plan's own sum."""
    source = CountingCheckpoint(open_checkpoint(str(tinyglm(layout))))
    target = open_checkpoint(str(tinyglm("awq-int4-12experts")))
    chosen = pruned(source, target)
    assert source.read_names.keys() == {f"{PREFIX}mlp.gate.e_score_correction_bias"}
    made = plan(source, target, kept=chosen.kept)
    build(made, {"source": source, "target": target}, tmp_path / "draft", check="off")
    report = verify(tmp_path / "draft", target, source)
    assert report.ok
    touched = set(source.read_names) | source.fetched
    assert {expert_of(name) for name in touched} - {None} == set(chosen.kept)
    unused = {u.name: u.reason for u in made.unused}
    dropped = [n for n in source.names if n.startswith(PREFIX) and expert_of(n) not in {None, *chosen.kept}]
    assert len(dropped) == {"bf16": 12, "nvfp4": 48}[layout]
    assert {unused[name] for name in dropped} == {"its expert is dropped"}


def test_bytes_of_dropped_experts_are_never_fetched_from_a_hub(tinyglm, tmp_path, hub, monkeypatch, capfd):
    """By what the hub was asked for, from the first look to the verification."""
    folder = tinyglm("bf16")
    hub.add("org/tiny-GLM", folder)
    monkeypatch.chdir(tmp_path)
    line = ["build", "--target", str(tinyglm("awq-int4-12experts")), "--source", "org/tiny-GLM", "-o", "d", "--json"]
    assert main(line) == 0
    kept = json.loads(capfd.readouterr().out)["manifest"]["kept_experts"]
    checkpoint = open_checkpoint(str(folder))
    refs = checkpoint.locate(name for name in checkpoint.names if name.startswith(PREFIX))
    asked = [
        (r.path.rpartition("/")[2], *map(int, r.range.removeprefix("bytes=").split("-")))
        for r in hub.requests
        if r.kind == "range" and r.range
    ]
    reached = {
        name
        for name, ref in refs.items()
        if any(file == ref.file and first < ref.stop and ref.start <= last for file, first, last in asked)
    }
    assert {expert_of(name) for name in reached} - {None} == set(kept)
    assert len(kept) == 12


def test_verification_passes_with_the_source_and_fails_where_two_experts_changed_places(tinyglm, tmp_path):
    from drafts import changed, failed

    source, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4-12experts")))
    draft = tmp_path / "draft"
    build(plan(source, target, kept=KEPT), {"source": source, "target": target}, draft, check="off")
    report = verify(draft, target, source)
    assert report.ok
    (router,) = [check for check in report.checks if check.name == "router"]
    assert router.detail.startswith("12 of the source's 16 experts")

    def swap(tensors):
        for name in [n for n in tensors if ".experts.2." in n]:
            other = name.replace(".experts.2.", ".experts.7.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    wrong = failed(verify(changed(draft, tmp_path / "swapped", swap), target, source))
    assert "holds the source's expert 11, its row of the router is expert 3's" in wrong["values"]
