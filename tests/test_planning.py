"""The plan against censuses of published layers, from headers alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.planning import plan

PAIRS = [
    (
        "nvfp4-experts-lukealonso",
        "target-nvfp4-lukealonso",
        "target-awq-int4-ignore-to-77",
        "int4-g32-asym-cosmicraisins",
    ),
    ("nvfp4-experts-lukealonso", "target-nvfp4-lukealonso", "target-awq-int4-mtp-ignored", "bf16-zai-org"),
    ("fp8-zai-org", "target-fp8", "target-awq-int4-ignore-to-77", "int4-g32-asym-cosmicraisins"),
    ("fp8-zai-org", "target-fp8", "target-awq-int4-mtp-ignored", "bf16-zai-org"),
    ("fp8-zai-org", "target-fp8", "target-fp8", "fp8-zai-org"),
    ("bf16-zai-org", "target-bf16", "target-int4-int8mix-quanttrio", "int8-channel-quanttrio"),
    ("bf16-zai-org", "target-bf16", "target-nvfp4-nvidia", "bf16-zai-org"),
    ("nvfp4-experts-lukealonso", "target-nvfp4-lukealonso", "target-nvfp4-lukealonso", "nvfp4-experts-lukealonso"),
    ("int8-channel-quanttrio", "target-int4-int8mix-quanttrio", "target-bf16", "bf16-zai-org"),
]


@pytest.mark.parametrize(("stored", "source_config", "target_config", "expected"), PAIRS)
def test_writes_are_the_published_layer(
    census_folder, config_folder, census, stored, source_config, target_config, expected
):
    source = open_checkpoint(str(census_folder(stored, source_config)))
    target = open_checkpoint(str(config_folder(target_config)))
    made = plan(source, target)
    writes = {w.name: (w.spec.dtype, w.spec.shape) for step in made.steps for w in step.writes}
    assert writes == census(expected)


def test_every_source_tensor_is_read_or_dropped_by_a_rule(census_folder, config_folder, census):
    source = open_checkpoint(str(census_folder("nvfp4-experts-lukealonso", "target-nvfp4-lukealonso")))
    made = plan(source, open_checkpoint(str(config_folder("target-awq-int4-ignore-to-77"))))
    read = {ref.name for step in made.steps for ref in step.reads}
    unused = {u.name for u in made.unused}
    assert read | unused == set(census("nvfp4-experts-lukealonso"))
    assert not read & unused
    assert {u.name.rpartition(".")[2] for u in made.unused} == {"input_scale"}


def test_what_two_steps_read_is_counted_once(tinyglm):
    """Gate and up take the larger of their activation scales, so each reads both."""
    source, target = (open_checkpoint(str(tinyglm("nvfp4"))) for _ in range(2))
    made = plan(source, target)
    refs = [(ref.origin, ref.name, ref.stop - ref.start) for step in made.steps for ref in step.reads]
    assert len(set(refs)) < len(refs)
    assert made.facts["read_bytes"] == sum(n_bytes for *_, n_bytes in set(refs))


def test_layer_already_stored_as_demanded_is_copied(census_folder, config_folder):
    source = open_checkpoint(str(census_folder("nvfp4-experts-lukealonso", "target-nvfp4-lukealonso")))
    made = plan(source, open_checkpoint(str(config_folder("target-nvfp4-lukealonso"))))
    assert {m.action for step in made.steps for m in step.moves} == {"copy"}
    tied = [step for step in made.steps if step.ties]
    assert len(tied) == 256
    assert {step.tied_suffix for step in tied} == {"weight_scale_2"}


def test_experts_are_counted_by_headers_not_by_config(census_folder, config_folder):
    source = open_checkpoint(str(census_folder("nvfp4-experts-lukealonso", "source-nvfp4-reap-469b-156-experts")))
    made = plan(source, open_checkpoint(str(config_folder("target-awq-int4-ignore-to-77"))))
    assert made.n_experts == 256
    assert any("156" in trap.message and "256" in trap.message for trap in made.traps)


def test_more_experts_than_the_target_are_refused(census_folder, config_folder):
    source = open_checkpoint(str(census_folder("bf16-zai-org", "target-bf16")))
    with pytest.raises(MtpforgeError, match="the layer has 256 experts, the target 218"):
        plan(source, open_checkpoint(str(config_folder("target-awq-int4-218-experts"))))


def test_digest_changes_with_the_target_and_not_with_the_folder(tinyglm, tmp_path):
    source = tinyglm("bf16")
    moved = tmp_path / "bf16"
    shutil.copytree(source, moved)
    target = open_checkpoint(str(tinyglm("awq-int4")))
    here = plan(open_checkpoint(str(source)), target)
    there = plan(open_checkpoint(str(moved)), target)
    other = plan(open_checkpoint(str(source)), open_checkpoint(str(tinyglm("nvfp4"))), input_scales=None)
    assert here.digest == there.digest
    assert here.digest != other.digest


def test_planning_imports_no_torch(tinyglm):
    code = (
        "import json, sys; from mtpforge.checkpoint import open_checkpoint; from mtpforge.planning import plan;"
        f"plan(open_checkpoint({str(tinyglm('nvfp4'))!r}), open_checkpoint({str(tinyglm('awq-int4'))!r}));"
        "print(json.dumps(sorted({'torch', 'transformers', 'compressed_tensors', 'modelopt'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_asymmetric_source_is_encoded_anew_for_a_symmetric_target(
    census_folder, config_folder, release_config, tmp_path
):
    source = open_checkpoint(str(census_folder("int4-g32-asym-cosmicraisins", "draft-int4-cosmicraisins")))
    config = release_config("target-awq-int4-ignore-to-77")
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    moves = [m for s in plan(source, open_checkpoint(str(tmp_path))).steps for m in s.moves]
    assert {m.action for m in moves} == {"encode"}
    assert all("weight_zero_point" in m.reads for m in moves)
    same = plan(source, open_checkpoint(str(config_folder("target-awq-int4-ignore-to-77"))))
    assert {m.action for s in same.steps for m in s.moves} == {"copy"}
