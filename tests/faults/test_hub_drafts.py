"""A draft that was published is judged as the one on disk: what its manifest says is read over the network too."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

from gguf_files import Type, convert

import mtpforge
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.planning import plan
from mtpforge.verifying import verify
from mtpforge.verifying.tensor_hashes import layer_identity


def test_published_draft_with_searched_scales_is_judged_by_its_manifest(hub, tinyglm, tmp_path):
    source, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4")))
    made = plan(source, target, scales="mse")
    out = build(made, {"source": source, "target": target}, tmp_path / "draft", check="off").path
    hub.add("org/draft", out)
    reports = [verify(open_checkpoint(draft), target, source) for draft in (str(out), "org/draft")]
    here, there = ({check.name: check.verdict for check in report.checks} for report in reports)
    assert here["manifest"] == "passed"
    assert there == here
    assert reports[0].facts == reports[1].facts


def test_what_was_measured_of_a_published_draft_goes_on_the_card_of_the_folder_downloaded_from_it(
    hub, tinyglm, tmp_path
):
    """Where the bytes are the same, and not where one code is another."""
    out = mtpforge.build(tinyglm("awq-int4"), tinyglm("nvfp4"), out=tmp_path / "draft", check="off").path
    commit = hub.add("ann/draft", out)
    measured = mtpforge.fidelity("ann/draft", tinyglm("nvfp4"), k=1)
    assert measured.drafts[0].identity.startswith(f"ann/draft@{commit}#")
    file = tmp_path / "fidelity.json"
    file.write_text(json.dumps({"command": "fidelity", "fidelity": asdict(measured)}))
    shutil.copytree(out, tmp_path / "downloaded")
    assert "`mtpforge fidelity`" in mtpforge.card(tmp_path / "downloaded", reports=[file])
    weights = tmp_path / "downloaded" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    hub.add("ann/draft", tmp_path / "downloaded")
    other = open_checkpoint("ann/draft")
    assert layer_identity(other).rpartition("#")[2] != measured.drafts[0].identity.rpartition("#")[2]


def test_layers_in_gguf_are_told_apart_by_one_byte_in_their_middle(tinyglm, tmp_path):
    (tmp_path / "one").mkdir()
    one = convert(tinyglm("bf16"), tmp_path / "one" / "tiny.gguf", {"": Type.Q8_0}).first
    other = tmp_path / "other" / "tiny.gguf"
    shutil.copytree(one.parent, other.parent)
    assert layer_identity(open_checkpoint(one)) == layer_identity(open_checkpoint(other))
    held = open_checkpoint(other)
    ref = next(
        iter(held.locate(n for n in held.names if n.startswith("model.layers.3.mlp.experts.5.up_proj.")).values())
    )
    raw = bytearray(other.read_bytes())
    raw[ref.start + 100] ^= 1
    other.write_bytes(raw)
    one, other = open_checkpoint(one), open_checkpoint(other)
    assert one.identity == other.identity, "its ends alone do not tell"
    assert layer_identity(one) != layer_identity(other)
