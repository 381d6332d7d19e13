"""Where the layer comes from when no source is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mtpforge import errors
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.source_choice import Choice, choose_source


def choose(folder: Path, hub: dict[str, Path] | None = None) -> Choice:
    target = open_checkpoint(str(folder))
    return choose_source(target, family_of(target.config), ENGINES["vllm"], hub_of(hub or {}))


def hub_of(repositories: dict[str, Path]) -> Callable[[str], Checkpoint]:
    def opened(name: str) -> Checkpoint:
        if name not in repositories:
            raise MtpforgeError(f"{name} does not exist", fix="look there", code=errors.REMOTE)
        return open_checkpoint(str(repositories[name]))

    return opened


def with_card(folder: Path, copy: Path, base: str) -> Path:
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text(f"---\nbase_model: {base}\n---\n")
    return copy


def with_router_dtype(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"moe_router_dtype": "float32"}))
    return copy


@pytest.mark.parametrize("layout", ["bf16", "fp8"])
def test_target_whose_layer_loads_needs_no_draft(tinyglm, layout):
    choice = choose(tinyglm(layout))
    assert choice.self_sufficient
    assert choice.reason == "the target's own layer loads as it is"


@pytest.mark.parametrize("layout", ["nvfp4", "int4-int8mix"])
def test_silent_trap_means_a_draft_from_the_targets_own_bytes(tinyglm, tmp_path, layout):
    choice = choose(tinyglm(layout))
    assert choice.source.location == str(tinyglm(layout).resolve())
    assert not choice.self_sufficient
    assert choose(with_router_dtype(tinyglm(layout), tmp_path / "stated")).self_sufficient


def test_base_model_of_the_card_comes_before_the_familys(tinyglm, tmp_path):
    target = with_card(tinyglm("awq-int4"), tmp_path / "target", "org/base")
    choice = choose(target, {"org/base": tinyglm("bf16"), "zai-org/GLM-5.2": tinyglm("fp8")})
    assert choice.source.location == str(tinyglm("bf16").resolve())
    assert choice.reason == "base model of the target's card"
    assert choice.alternatives == ()  # of which version it is, nothing says


def test_base_model_without_the_layer_is_passed_over(tinyglm, tmp_path):
    target = with_card(tinyglm("awq-int4"), tmp_path / "target", "org/quantized")
    middle = with_card(tinyglm("awq-int4"), tmp_path / "middle", "org/base")
    choice = choose(target, {"org/quantized": middle, "org/base": tinyglm("bf16")})
    assert choice.source.location == str(tinyglm("bf16").resolve())
    assert ("org/quantized", "holds no MTP layer") in choice.alternatives


def test_no_source_names_every_candidate_and_why(tinyglm, tmp_path):
    target = with_card(tinyglm("awq-int4"), tmp_path / "GLM-5.2-AWQ", "org/gone")
    with pytest.raises(MtpforgeError) as refused:
        choose(target)
    assert refused.value.code == errors.REMOTE
    assert "org/gone: org/gone does not exist" in refused.value.why
    assert "zai-org/GLM-5.2: zai-org/GLM-5.2 does not exist" in refused.value.why
    assert (
        refused.value.fix == "look there; or name a folder that holds it: `--source FOLDER`"
    )  # nothing that was tried
