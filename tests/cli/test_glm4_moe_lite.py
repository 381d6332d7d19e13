"""GLM-4.7-Flash as its user meets it: what is shown of the release, what is planned from it, what cannot be done."""

from __future__ import annotations

import json

import glm4_moe
import pytest

RELEASE = "glm-4.7-flash"
MATRICES = [(768, 2048), (512 + 64, 2048), (20 * 256, 768), (20 * 448, 512), (2048, 20 * 256), *[(1536, 2048)] * 3 * 65]


@pytest.fixture
def source(census_folder):
    return census_folder(RELEASE, f"target-{RELEASE}")


@pytest.fixture
def target(release_config, tmp_path):
    folder = tmp_path / "int4"
    folder.mkdir()
    block = {"quantization_config": glm4_moe.int4()}
    (folder / "config.json").write_text(json.dumps(release_config(f"target-{RELEASE}") | block))
    return folder


def test_release_is_shown_as_it_loads(run, source):
    shown = run("inspect", source)
    assert shown.code == 0
    assert "glm4_moe_lite, 47 layers, 64 experts, quantization: none" in shown.out
    assert "layer 47, 64 experts, 212 tensors" in shown.out
    assert "loads as it is   passed   every tensor is what vLLM would build it as" in shown.out


def test_plan_beside_int4_counts_every_byte(run, source, target, tmp_path):
    planned = run("build", "--target", target, "--source", source, "-o", tmp_path / "d", "--dry-run")
    assert planned.code == 0
    # 4 bits a weight, a BF16 scale for 32 of them and two I64 for the shape; BF16 is eh_proj, router and norms; F32 the
    # correction bias.
    n_codes = sum(rows * columns for rows, columns in MATRICES)
    dense = 2048 * 4096 + 64 * 2048 + 5 * 2048 + 768 + 512
    n_bytes = n_codes // 2 + n_codes // 16 + 16 * len(MATRICES) + 2 * dense + 4 * 64
    assert f"write {n_bytes / 1e6:.0f} MB" in planned.out
    assert "left out: 2 tensors of the source, 1.27 GB: the engine uses the target's embedding" in planned.out


def test_without_a_source_the_release_is_named(run, target):
    ran = run("build", "--target", target, "--dry-run")
    assert ran.code == 3
    assert (
        "cause: no name, card or config says which GLM the target is: one base model of its shape is known, and a head"
        " of any other drafts badly\n"
    ) in ran.err
    assert " hint: name it, e.g. `--source zai-org/GLM-4.7-Flash` for GLM-4.7-Flash\n" in ran.err


def test_what_runs_the_layer_is_refused_by_name(run, source, target):
    ran = run("build", "--target", target, "--source", source, "--scales", "gptq")
    assert ran.code == 3
    assert "error: layers of glm4_moe_lite cannot be run here\n" in ran.err
