"""GLM-5.3-Flash as its user meets it: a language model in a wrapper, published in FP8, run by no code of ours."""

from __future__ import annotations

import json

import glm4_moe
import glm5_next
import pytest
from nextn.calibration import captured, write

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.families import family_of
from mtpforge.source_choice import choose_source

CONFIG = "target-glm-5.3-flash-fp8"
UNRUN = "error: layers of glm5_next cannot be run here\n"


@pytest.fixture
def source(tmp_path):
    return glm5_next.write(tmp_path / "source")


def test_inspect_of_the_release_as_published(run, census_folder):
    shown = run("inspect", census_folder("glm-5.3-flash-fp8", CONFIG))
    assert shown.code == 0
    assert "glm5_next, 45 layers, 288 experts, quantization: fp8" in shown.out
    assert "  attention            4   FP8 block 128x128   101 MB" in shown.out
    assert "loads as it is   passed   every tensor is what vLLM would build it as" in shown.out


def test_plan_of_a_lighter_layer_for_a_target_that_leaves_it_out(run, census_folder, release_config, tmp_path):
    source = census_folder("glm-5.3-flash-bf16", CONFIG)
    target = tmp_path / "GLM-5.3-Flash-NVFP4"
    target.mkdir()
    block = glm5_next.modelopt("*layers.45.*")
    (target / "config.json").write_text(json.dumps(release_config(CONFIG) | {"quantization_config": block}))
    light = tmp_path / "light.toml"
    light.write_text("""[[rules]]
pattern = "mlp.*experts.*"
format = "modelopt_nvfp4"
bits = 4
strategy = "group"
group_size = 16
scale_dtype = "F8_E4M3"
input_scale = "none"
reason = "all experts"

[[rules]]
pattern = "*"
format = "dense"
dtype = "BF16"
reason = "the rest"
""")
    plan = ("build", "--target", target, "--source", source, "-o", tmp_path / "d", "--dry-run", "--memory", "4GB")
    planned = run(*plan)
    assert planned.code == 0
    assert "write 14.9 GB" in planned.out
    planned = run(*plan, "--scheme", light)
    assert planned.code == 0, planned.err
    assert "  routed experts   864   BF16               NVFP4 g16   encoded" in planned.out
    # Codes of 4 bits with an FP8 scale for 16 and an F32 scale a matrix; the rest as it is.
    n_codes = 867 * 2048 * 4096
    dense = 14_865_185_408 - 2 * n_codes
    assert f"write {(n_codes // 2 + n_codes // 16 + 4 * 867 + dense) / 1e9:.2f} GB" in planned.out


@pytest.mark.parametrize("words", [
    ("build", "--scales", "gptq"), ("build", "--experts", "2", "--prune-by", "reap"),
    ("build", "--experts", "2"), ("prune-plan", "--experts", "2"),
], ids=["gptq", "reap", "inputs", "prune-plan"])  # fmt: skip
def test_whatever_runs_the_layer_is_refused_by_name(run, in_folder, tinyglm, source, words):
    write(in_folder / "inputs.safetensors", captured(tinyglm("bf16")))
    target = glm4_moe.target(in_folder / "target", source, glm5_next.fp8_blocks())
    ran = run(*words, "--target", target, "--source", source, "--inputs", "inputs.safetensors")
    assert ran.code == 3
    assert UNRUN in ran.err


def test_capture_is_refused_by_name(run, in_folder, source):
    (in_folder / "text").write_text("the cat sat on the mat\n")
    ran = run("capture", "--target", source, "--text", "text", "-o", "inputs")
    assert ran.code == 3
    assert UNRUN in ran.err


def test_build_from_the_release_serves_the_target_by_the_override_that_it_needs(run, in_folder, source):
    target = glm4_moe.target(in_folder / "target", source, glm5_next.nvfp4())
    ran = run("build", "--target", target, "--source", source, "-o", "draft", "--experts", "2", "--prune-by", "bias")
    assert ran.code == 0, ran.err
    shown = run("serve", "draft", "--target", target, "--print")
    assert shown.code == 0, shown.err
    assert "vllm serve" in shown.out


def test_the_one_published_model_is_the_base_of_a_target_that_says_its_version(in_folder, source):
    held = open_checkpoint(str(glm4_moe.target(in_folder / "GLM-5.3-Flash-INT4", source, None)))
    asked = []

    def opened(name):
        asked.append(name)
        return open_checkpoint(str(source))

    choose_source(held, family_of(held.config), ENGINES["vllm"], opened)
    assert set(asked) == {"zai-org/GLM-5.3-Flash"}


def test_no_head_of_the_layer_is_warned_of_where_the_class_builds_none(in_folder, source):
    target = open_checkpoint(str(glm4_moe.target(in_folder / "target", source, glm5_next.modelopt())))
    assert "quantized-head" not in {trap.id for trap in ENGINES["vllm"].target_traps(target, family_of(target.config))}
