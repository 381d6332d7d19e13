"""DeepSeek V3 and V3.2 as their user meets them: what is shown, what is asked for, what cannot be done."""

from __future__ import annotations

import json

import deepseek
import glm4_moe
import pytest
from nextn.calibration import captured, write

UNRUN = (
    "error: layers of {family} cannot be run here\n"
    "where: {config}\n"
    "cause: inputs, scores and gptq need transformers' modules, which are laid out for glm_moe_dsa only\n"
    " hint: build without: `--prune-by bias` chooses experts, `--scales mse` finds scales, neither runs a layer\n"
)
# release -> family, tensors of its layer, matrices of its attention and indexer in INT4, by [out, in]
RELEASES = {
    "deepseek-v3": ("deepseek_v3", 1564, ()),
    "deepseek-v3.2": ("deepseek_v32", 1571, ((64 * 128, 1536),)),
}
ATTENTION = ((1536, 7168), (512 + 64, 7168), (128 * 192, 1536), (128 * 256, 512), (7168, 128 * 128))


@pytest.fixture(scope="module", params=deepseek.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def source(family, tmp_path_factory):
    return deepseek.write(tmp_path_factory.mktemp(family) / "source", family)


@pytest.fixture
def target(source, tmp_path):
    return glm4_moe.target(tmp_path / "target", source, glm4_moe.int4())


@pytest.mark.parametrize("release", RELEASES)
def test_inspect_and_plan_of_a_release_as_published(run, census_folder, release_config, tmp_path, release):
    family, n_tensors, indexer = RELEASES[release]
    source = census_folder(release, f"target-{release}")
    shown = run("inspect", source)
    assert shown.code == 0
    assert f"{family}, 61 layers, 256 experts, quantization: fp8" in shown.out
    assert f"layer 61, 256 experts, {n_tensors} tensors" in shown.out
    assert "loads as it is   passed   every tensor is what vLLM would build it as" in shown.out
    target = tmp_path / "int4"
    target.mkdir()
    block = {"quantization_config": glm4_moe.int4()}
    (target / "config.json").write_text(json.dumps(release_config(f"target-{release}") | block))
    planned = run("build", "--target", target, "--source", source, "-o", tmp_path / "d", "--dry-run", "--memory", "4GB")
    assert planned.code == 0
    assert "  attention          5   FP8 block 128x128   INT4 g32   encoded" in planned.out
    # 4 bits a weight, a BF16 scale for 32 of them and two I64 for the shape; BF16 is eh_proj, router, norms, and of the
    # indexer wk, weights_proj and k_norm; F32 the correction bias.
    matrices = [*ATTENTION, *indexer, *[(2048, 7168)] * (3 * 257)]
    n_codes = sum(rows * columns for rows, columns in matrices)
    dense = 7168 * 14336 + 256 * 7168 + 5 * 7168 + 1536 + 512 + (7168 * 128 + 64 * 7168 + 2 * 128 if indexer else 0)
    n_bytes = n_codes // 2 + n_codes // 16 + 16 * len(matrices) + 2 * dense + 4 * 256
    assert f"write {n_bytes / 1e9:.2f} GB" in planned.out
    assert "left out: 2 tensors of the source, 3.71 GB: the engine uses the target's embedding" in planned.out


def test_beside_a_release_of_fp8_the_layer_is_copied(run, census_folder, release_config, tmp_path):
    source = census_folder("deepseek-v3.2", "target-deepseek-v3.2")
    (tmp_path / "fp8").mkdir()
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(release_config("target-deepseek-v3.2")))
    planned = run("build", "--target", tmp_path / "fp8", "--source", source, "-o", tmp_path / "d", "--dry-run")
    assert planned.code == 0
    assert "  routed experts   768   FP8 block 128x128   FP8 block 128x128   copied" in planned.out
    assert "encoded" not in planned.out


def test_without_a_version_a_source_is_asked_for(run, target, family):
    ran = run("build", "--target", target, "--dry-run")
    assert ran.code == 3
    assert "cause: no name, card or config says which DeepSeek the target is: heads of several fit its shape" in ran.err
    base = {"deepseek_v3": "V3", "deepseek_v32": "V3.2"}[family]
    assert f" hint: name it, e.g. `--source deepseek-ai/DeepSeek-{base}` for DeepSeek-{base}, " in ran.err


RUNS = {
    "gptq": ("build", "--scales", "gptq"),
    "reap": ("build", "--experts", "12", "--prune-by", "reap"),
    "prune-plan": ("prune-plan", "--experts", "12", "--inputs", "inputs.safetensors"),
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_whatever_runs_the_layer_is_refused_by_name(run, in_folder, tinyglm, source, target, words, family):
    write(in_folder / "inputs.safetensors", captured(tinyglm("bf16")))
    command, *rest = words
    ran = run(command, "--target", target, "--source", source, *rest)
    assert ran.code == 3
    assert ran.err.endswith(UNRUN.format(family=family, config=target / "config.json"))


def test_capture_is_refused_by_name(run, in_folder, source, family):
    (in_folder / "text").write_text("the cat sat on the mat\n")
    ran = run("capture", "--target", source, "--text", "text", "-o", "inputs")
    assert (ran.code, ran.err) == (3, UNRUN.format(family=family, config=source / "config.json"))


def test_experts_are_pruned_by_groups_or_not_at_all(run, source, target, tmp_path):
    ran = run("build", "--target", target, "--source", source, "--experts", "14", "--prune-by", "bias")
    assert ran.code == 3
    assert "error: 14 experts cannot be shared equally by 4 groups\n" in ran.err
    assert "hint: keep a multiple of 4: `--experts 12`" in ran.err
    asked = ("build", "--target", target, "--source", source, "--experts", "12", "--prune-by", "bias")
    ran = run(*asked, "-o", tmp_path / "draft")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "draft" / "config.json").read_text())["n_routed_experts"] == 12
