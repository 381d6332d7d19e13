"""Merges of tiny checkpoints: which tensors lie in them, what the config says, what is refused."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil

import pytest
from grafted import check_index, digests, state, tensors
from safetensors.torch import load_file, save_file

import mtpforge
from mtpforge.engines.vllm import installed, merging
from mtpforge.errors import MtpforgeError

EXPERTS = "model.layers.[0-2].mlp.experts.*"
# base, pattern, who gives it, formats that the merged block states
MERGES = (
    ("int4-int8mix", EXPERTS, "awq-int4", {"pack-quantized"}),
    ("nvfp4", "model.layers.1.mlp.experts.*", "bf16", None),
    pytest.param("fp8", EXPERTS, "bf16", None, marks=pytest.mark.slow),
    pytest.param("bf16", "model.layers.3.*", "fp8", None, marks=pytest.mark.slow),
)


def expected(base, pattern, other):
    """Tensor -> dtype, shape and hash, by the plain rule."""
    ours = {n: row for n, row in digests(tensors(base)).items() if not fnmatch.fnmatchcase(n, pattern)}
    theirs = {n: row for n, row in digests(tensors(other)).items() if fnmatch.fnmatchcase(n, pattern)}
    return ours | theirs


@pytest.mark.parametrize(("base", "pattern", "other", "formats"), MERGES)
def test_merge_holds_every_module_of_the_checkpoint_that_gives_it(tinyglm, tmp_path, base, pattern, other, formats):
    before = state(tinyglm(base)), state(tinyglm(other))
    made = mtpforge.merge(tinyglm(base), {pattern: tinyglm(other)}, out=tmp_path / "merged", link="sym")
    assert made.report.ok
    assert digests(tensors(made.path)) == expected(tinyglm(base), pattern, tinyglm(other))
    check_index(made.path)
    assert (state(tinyglm(base)), state(tinyglm(other))) == before
    block = json.loads((made.path / "config.json").read_text())["quantization_config"]
    if formats is not None:
        assert {group["format"] for group in block["config_groups"].values()} == formats
    assert mtpforge.inspect(made.path).facts["drafts_for_itself"]


def test_whole_files_are_shared_under_names_of_their_own(tinyglm, tmp_path):
    base, other = tinyglm("nvfp4"), tinyglm("bf16")
    made = mtpforge.merge(base, {"model.layers.3.*": other}, out=tmp_path / "merged")
    names = {path.name for path in made.path.glob("*.safetensors")}
    assert "model-mtp.safetensors" not in names  # all of it gave way
    assert (made.path / "tokenizer.json").samefile(base / "tokenizer.json")
    assert any(name.startswith("take-1-") for name in names)
    copied = mtpforge.merge(base, {"model.layers.3.*": other}, out=tmp_path / "copied", link="copy")
    assert tensors(copied.path) == tensors(made.path)


def test_a_merge_is_merged_again_and_loses_nothing(tinyglm, tmp_path):
    """Both hold a file called `take-1-...`: the second has to be called otherwise."""
    first = mtpforge.merge(tinyglm("int4-int8mix"), {EXPERTS: tinyglm("awq-int4")}, out=tmp_path / "1", link="sym").path
    again = mtpforge.merge(first, {EXPERTS: tinyglm("awq-int4")}, out=tmp_path / "2", link="sym").path
    assert digests(tensors(again)) == digests(tensors(first))


def test_a_block_of_the_side_file_alone_goes_into_the_config(tinyglm, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tinyglm("nvfp4"), base)
    config = json.loads((base / "config.json").read_text())
    block = config.pop("quantization_config")
    (base / "config.json").write_text(json.dumps(config))
    (base / "hf_quant_config.json").write_text(json.dumps(block))
    made = mtpforge.merge(base, {"model.layers.3.mlp.experts.*": tinyglm("nvfp4")}, out=tmp_path / "out", link="sym")
    head = "model.layers.3.head"  # vLLM stops over it in NVFP4
    stated = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert stated == block | {"ignore": [*block["ignore"], head]}


def test_a_copy_that_the_index_passes_over_stays_behind(tinyglm, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tinyglm("bf16"), base)
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    name, file = next(iter(sorted(index.items())))
    other = next(other for other in sorted(set(index.values())) if other != file)
    held = load_file(base / other)
    held[name] = load_file(base / file)[name]
    save_file(held, base / other)
    made = mtpforge.merge(base, {"lm_head": tinyglm("bf16")}, out=tmp_path / "out", link="sym")
    found = [f for f in made.path.glob("*.safetensors") if name in load_file(f)]
    assert len(found) == 1


def refusal(base, takes, tmp_path):
    with pytest.raises(MtpforgeError) as caught:
        mtpforge.merge(base, takes, out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    return caught.value


# base, pattern, who gives it, what is said
REFUSED = (
    ("int4-int8mix", EXPERTS, "nvfp4", "no one quantization block can state this merge"),
    ("fp8", "model.layers.*.self_attn.q_a_proj", "bf16", "fused_qkv_a_proj` would come from two checkpoints"),
    (
        "fp8",
        "model.layers.1.mlp.experts.3.*",
        "bf16",
        "experts `model.layers.1.mlp.experts.*.down_proj` would",
    ),
    ("awq-int4", "model.layers.*.mlp.experts.*", "int4-int8mix", "half an MTP layer"),
    ("int4-int8mix", "model.layers.*.self_attn.*", "awq-int4", "would be taken from a checkpoint that lacks it"),
    ("bf16", "model.layers.9.*", "fp8", "`model.layers.9.*` takes nothing"),
    ("bf16", EXPERTS, "awq-int4-12experts", "has 12 experts"),
)


@pytest.mark.parametrize(("base", "pattern", "other", "said"), REFUSED)
def test_what_cannot_be_merged_is_refused(tinyglm, tmp_path, base, pattern, other, said):
    assert said in refusal(tinyglm(base), {pattern: tinyglm(other)}, tmp_path).what


def test_module_that_is_stored_otherwise_than_its_block_says_is_named(tinyglm, tmp_path):
    """A config that leaves the experts of layer 2 dense, over files in which they are not."""
    other = tmp_path / "other"
    shutil.copytree(tinyglm("awq-int4"), other)
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"]["ignore"].append("re:model[.]layers[.]2[.]mlp[.]experts.*")
    (other / "config.json").write_text(json.dumps(config))
    error = refusal(tinyglm("int4-int8mix"), {EXPERTS: other}, tmp_path)
    assert "is stored otherwise than its config says" in error.what
    assert "model.layers.2.mlp.experts" in error.what


@pytest.mark.parametrize(
    "stated", [{"kv_cache_quant_algo": "FP8"}, {"kv_cache_scheme": {"type": "float", "num_bits": 8}}]
)
def test_scales_of_the_cache_that_mixed_precision_would_lose_refuse_the_merge(tinyglm, tmp_path, stated):
    base = tmp_path / "base"
    shutil.copytree(tinyglm("nvfp4"), base)
    (base / "hf_quant_config.json").unlink(missing_ok=True)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] |= stated
    (base / "config.json").write_text(json.dumps(config))
    error = refusal(base, {"model.layers.1.mlp.experts.*": tinyglm("bf16")}, tmp_path)
    assert "reads no scales of the KV cache" in error.what


@pytest.mark.engine
@pytest.mark.skipif(not os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON"), reason="no interpreter with vLLM is named")
def test_merge_is_accepted_by_vllm_as_its_own_target_and_draft(tinyglm, tmp_path):
    made = mtpforge.merge(tinyglm("int4-int8mix"), {EXPERTS: tinyglm("awq-int4")}, out=tmp_path / "merged", link="sym")
    report = installed.check(made.path, made.path, python=os.environ["MTPFORGE_TEST_ENGINE_PYTHON"])
    assert report.ok, report.facts["errors"]


def test_command_says_what_is_taken_and_writes_nothing_when_asked_to(tinyglm, tmp_path, capfd, monkeypatch):
    from mtpforge.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["merge", "--base", str(tinyglm("int4-int8mix")), "--take", f"{EXPERTS}={tinyglm('awq-int4')}", "-o", "out"]
    assert main([*words, "--dry-run", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["taken"] == {EXPERTS: 96}
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "-q"]) == 0
    assert capfd.readouterr().out == "out\n"
    assert main(["merge", "--base", "x", "--take", "y", "-o", "out"]) == 2


def test_block_that_says_otherwise_of_any_matrix_is_none(tinyglm, tmp_path, monkeypatch):
    """One that is the base's own, though experts come from elsewhere."""
    monkeypatch.setattr(merging, "_METHODS", ((lambda _: True, lambda base, _: {**base}),))
    error = refusal(tinyglm("int4-int8mix"), {EXPERTS: tinyglm("awq-int4")}, tmp_path)
    assert error.what == "no one quantization block can state this merge"
    assert "`model.layers.1.mlp.experts` would be INT4 g128" in error.why
