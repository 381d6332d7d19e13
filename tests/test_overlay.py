"""Drafts of another scheme than their target's: built, judged and served with what the engine has to be told."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import mtpforge
from mtpforge import cli
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines import overlay as overlays
from mtpforge.errors import MtpforgeError


@pytest.fixture(scope="module")
def draft(tinyglm, tmp_path_factory):
    """NVFP4 experts beside a target that asks for INT4 everywhere."""
    out = tmp_path_factory.mktemp("overlay") / "draft"
    return mtpforge.build(tinyglm("awq-int4"), tinyglm("nvfp4"), out=out, scheme="nvfp4", check="off").path


def block_of(argv):
    overrides = json.loads(argv[argv.index("--hf-overrides") + 1])
    return overrides["quantization_config"]


def test_draft_fits_beside_the_target_as_the_command_states_it(draft, tinyglm):
    report = mtpforge.verify(draft, tinyglm("awq-int4"), tinyglm("nvfp4"))
    assert report.ok
    assert "restated by the command" in report.summary


def test_an_overlay_at_a_place_that_takes_none_is_told_with_its_own_option(draft, tinyglm):
    with pytest.raises(MtpforgeError, match="cannot write the overlay") as caught:
        mtpforge.serve_command(draft, tinyglm("awq-int4"), overlay=Path("/proc/x"))
    assert caught.value.fix == "choose a folder that you may write to with `--overlay`"


def test_command_tells_the_engine(draft, tinyglm):
    argv = mtpforge.serve_command(draft, tinyglm("awq-int4"))
    groups = block_of(argv)["config_groups"]
    assert [group["format"] for group in groups.values()] == ["nvfp4-pack-quantized", "pack-quantized"]


def test_plan_says_that_the_target_does_not_ask_for_it(tinyglm):
    said = []
    mtpforge.plan(tinyglm("awq-int4"), tinyglm("nvfp4"), scheme="nvfp4", on_remark=lambda r: said.append(str(r)))
    assert any("scheme  nvfp4, which the target as it stands does not ask for" in line for line in said)


def test_scheme_of_the_targets_own_needs_no_telling(tinyglm, tmp_path):
    made = mtpforge.build(
        tinyglm("awq-int4"), tinyglm("nvfp4"), out=tmp_path / "draft", scheme="int4-g32-asym", check="off"
    )
    argv = mtpforge.serve_command(made.path, tinyglm("awq-int4"))
    assert "--hf-overrides" not in argv


def test_draft_that_was_not_made_for_an_overlay_is_judged_by_the_target_alone(draft, tinyglm, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(draft, foreign)
    (foreign / "mtpforge.json").unlink()
    report = mtpforge.verify(foreign, tinyglm("awq-int4"))
    assert not report.ok
    with pytest.raises(MtpforgeError, match="cannot be served"):
        mtpforge.serve_command(foreign, tinyglm("awq-int4"))


def test_target_that_cannot_state_it_refuses_the_plan(tinyglm):
    with pytest.raises(MtpforgeError) as refused:
        mtpforge.plan(tinyglm("nvfp4"), tinyglm("bf16"), scheme="int4-g128-sym")
    assert refused.value.fix.startswith("`--scheme` with one of: bf16, ")
    assert "nvfp4" in refused.value.fix
    assert "int4" not in refused.value.fix


def test_a_refusal_that_knows_its_own_way_out_is_passed_on(tinyglm):
    def refuse(*_):
        raise MtpforgeError("no", fix="its own")

    engine = replace(ENGINES["vllm"], restate=refuse)
    with pytest.raises(MtpforgeError) as refused:
        overlays.beside(open_checkpoint(str(tinyglm("nvfp4"))), engine, mtpforge.load_scheme("int4-g128-sym"))
    assert refused.value.fix == "its own"


def test_where_a_draft_s_own_block_decides_nothing_is_told_and_the_scheme_stays(tinyglm):
    target, engine, wanted = (
        open_checkpoint(str(tinyglm("bf16"))),
        ENGINES["sglang"],
        mtpforge.load_scheme("fp8-block128"),
    )
    assert engine.decides == "draft"
    told, scheme = overlays.attempt(target, engine, wanted)
    assert told is target
    assert scheme.of("mlp.experts.*.up_proj").quantization == wanted.of("mlp.experts.*.up_proj").quantization


def test_a_list_by_its_older_name_keeps_it(tinyglm, tmp_path):
    """VLLM reads `modules_to_not_convert` only where `ignored_layers` is empty."""
    config = json.loads((tinyglm("fp8") / "config.json").read_text())
    block = config["quantization_config"]
    block["ignored_layers"] = block.pop("modules_to_not_convert", None) or ["lm_head"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    target = open_checkpoint(str(tmp_path))
    told, scheme = overlays.attempt(target, ENGINES["vllm"], mtpforge.load_scheme("bf16"))
    others = {name for name in block["ignored_layers"] if ".layers.3." not in name}
    assert others <= set(told.quantization["ignored_layers"])
    assert "modules_to_not_convert" not in told.quantization
    assert all(rule.quantization.is_dense for rule in scheme.rules)


def links_of(folder):
    return {entry.name: entry.readlink() for entry in folder.iterdir() if entry.is_symlink()}


@pytest.fixture
def overlay(draft, tinyglm, tmp_path):
    """The folder that says what the override says."""
    mtpforge.serve_command(draft, tinyglm("awq-int4"), overlay=tmp_path / "told")
    return tmp_path / "told"


def test_overlay_is_the_target_with_another_config(overlay, draft, tinyglm):
    target = tinyglm("awq-int4")
    names = {entry.name for entry in target.iterdir()}
    assert {entry.name for entry in overlay.iterdir()} == {*names, "mtpforge-overlay.json"}
    assert links_of(overlay) == {name: (target / name).resolve() for name in names - {"config.json"}}
    told, own = (json.loads((folder / "config.json").read_text()) for folder in (overlay, target))
    assert told["quantization_config"] == block_of(mtpforge.serve_command(draft, target))
    assert {**told, "quantization_config": own["quantization_config"]} == own


def test_overlay_takes_the_targets_place(overlay, draft, tinyglm):
    assert mtpforge.verify(draft, overlay, tinyglm("nvfp4")).ok
    argv = mtpforge.serve_command(draft, tinyglm("awq-int4"), overlay=overlay)
    assert argv[:3] == ["vllm", "serve", str(overlay)]
    assert "--hf-overrides" not in argv
    assert mtpforge.serve_command(draft, overlay) == argv


def test_overlay_leads_behind_links_and_leaves_the_side_file_out(draft, tinyglm, tmp_path):
    cached = tmp_path / "cached"
    cached.mkdir()
    for entry in tinyglm("awq-int4").iterdir():
        (cached / entry.name).symlink_to(entry)
    (cached / "hf_quant_config.json").write_text("{}")
    mtpforge.serve_command(draft, cached, overlay=tmp_path / "told")
    assert "hf_quant_config.json" not in {entry.name for entry in (tmp_path / "told").iterdir()}
    assert links_of(tmp_path / "told")["tokenizer.json"] == (tinyglm("awq-int4") / "tokenizer.json").resolve()


def test_nothing_but_an_overlay_is_replaced(draft, tinyglm, tmp_path):
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "notes.txt").write_text("mine")
    with pytest.raises(MtpforgeError, match="the output exists and is no overlay"):
        mtpforge.serve_command(draft, tinyglm("awq-int4"), overlay=tmp_path / "told")
    with pytest.raises(MtpforgeError, match="the output is the target"):
        mtpforge.serve_command(draft, tinyglm("awq-int4"), overlay=tinyglm("awq-int4"))
    assert (tmp_path / "told" / "notes.txt").read_text() == "mine"


def test_overlay_that_nothing_needs_is_refused_before_anything(tinyglm, tmp_path):
    with pytest.raises(MtpforgeError, match="needs no overlay"):
        mtpforge.build(
            tinyglm("awq-int4"), tinyglm("nvfp4"), out=tmp_path / "draft", overlay=tmp_path / "told", check="off"
        )
    assert list(tmp_path.iterdir()) == []


def test_build_writes_the_overlay_beside_the_draft(tinyglm, tmp_path):
    mtpforge.build(
        tinyglm("awq-int4"),
        tinyglm("nvfp4"),
        out=tmp_path / "draft",
        scheme="nvfp4",
        overlay=tmp_path / "told",
        check="off",
    )
    assert mtpforge.verify(tmp_path / "draft", tmp_path / "told").ok


@pytest.fixture(scope="module")
def own(tinyglm, tmp_path_factory):
    """A draft of the target's own scheme, NVFP4 of ModelOpt, whose list does not exclude the draft's head."""
    out = tmp_path_factory.mktemp("own") / "draft"
    return mtpforge.build(tinyglm("nvfp4"), tinyglm("nvfp4"), out=out, standalone=True, check="off").path


HEAD = "model.layers.3.head"


def test_a_list_without_the_draft_s_head_is_told_by_an_overlay_too(own, tinyglm, tmp_path):
    """No scheme was asked for, and the command carries the whole list all the same."""
    target, told = tinyglm("nvfp4"), tmp_path / "told"
    before, overridden = state_of(target), block_of(mtpforge.serve_command(own, target))
    assert overridden == before | {"ignore": [*before["ignore"], HEAD]}
    argv = mtpforge.serve_command(own, target, overlay=told)
    assert argv[:3] == ["vllm", "serve", str(told)]
    assert "--hf-overrides" not in argv
    assert state_of(told) == overridden
    assert "hf_quant_config.json" not in {entry.name for entry in told.iterdir()}
    assert mtpforge.serve_command(own, target, overlay=told) == argv
    assert state_of(target) == before
    report = mtpforge.verify(own, told)
    assert report.ok
    assert "quantized-head" not in {trap.id for trap in report.traps}
    built = {"out": tmp_path / "draft", "overlay": tmp_path / "built", "standalone": True, "check": "off"}
    mtpforge.build(target, target, **built)
    assert state_of(tmp_path / "built") == overridden


def test_whoever_types_a_command_of_their_own_is_warned_of_the_head(own, tinyglm):
    """A draft beside the target does not cure it: vLLM stops unless the command, or a file, excludes the head."""
    target = tinyglm("nvfp4")
    planned, verified = mtpforge.plan(target, target, standalone=True), mtpforge.verify(own, target)
    for found in (planned.traps, verified.traps, mtpforge.inspect(target).traps):
        (trap,) = [trap for trap in found if trap.id == "quantized-head"]
        assert trap.severity == "warning"
        assert "vLLM builds it in NVFP4" in trap.message
        assert trap.fix == (
            "start vLLM by the command that `mtpforge serve` prints, which excludes it by --hf-overrides; or add"
            f' "{HEAD}" to the target\'s exclusion list'
        )
    assert verified.ok
    (check,) = [check for check in verified.checks if check.name == "target"]
    assert (check.verdict, check.fix) == ("warning", trap.fix)


def state_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def test_no_overlay_where_the_draft_s_own_block_decides(tinyglm, tmp_path):
    pair = tinyglm("nvfp4"), tinyglm("bf16")
    with pytest.raises(MtpforgeError, match="needs no overlay"):
        mtpforge.build(*pair, out=tmp_path / "draft", overlay=tmp_path / "told", engine="sglang", standalone=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def dense(tinyglm, tmp_path_factory):
    """A BF16 draft beside the same target, which has to be restated for it."""
    out = tmp_path_factory.mktemp("dense") / "draft"
    return mtpforge.build(tinyglm("nvfp4"), tinyglm("bf16"), out=out, scheme="bf16", check="off").path


def test_an_overlay_of_an_older_version_is_told_what_it_lacks(dense, tinyglm, tmp_path):
    target, told = tinyglm("nvfp4"), tmp_path / "told"
    argv = mtpforge.serve_command(dense, target, overlay=told)
    config = json.loads((told / "config.json").read_text())
    listed = config["quantization_config"]["ignore"]
    assert listed.pop() == HEAD  # what was not told then
    (told / "config.json").write_text(json.dumps(config))
    (told / "notes.txt").write_text("mine")
    assert HEAD not in state_of(told)["ignore"]
    assert mtpforge.serve_command(dense, target, overlay=told) == argv
    assert "--hf-overrides" not in argv
    assert state_of(told)["ignore"] == [*listed, HEAD]
    assert (told / "notes.txt").read_text() == "mine"


def test_an_overlay_of_another_draft_is_refused_with_what_serve_can_be_told(dense, own, tinyglm, tmp_path):
    target, told = tinyglm("nvfp4"), tmp_path / "told"
    mtpforge.serve_command(dense, target, overlay=told)
    (tmp_path / "empty").mkdir()
    for folder, why in (
        (told, "it is the overlay of another draft, target or engine"),
        (tmp_path / "empty", "it is an empty folder"),
    ):
        with pytest.raises(MtpforgeError, match="the output exists already") as refused:
            mtpforge.serve_command(own, target, overlay=folder)
        assert refused.value.why == why
        assert refused.value.fix == f"choose another folder with `--overlay`, or remove this one: `rm -r {folder}`"
        assert refused.value.code == 5
    assert HEAD in state_of(told)["ignore"]


def damaged(draft):
    """One bit turned over."""
    weights = next(draft.glob("*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    return draft


def anew(draft, target, source, **more):
    """What verify says to do, once."""
    report = mtpforge.verify(draft, target, source, **more)
    (fix,) = {check.fix for check in report.checks if check.verdict == "failed" and check.fix}
    return fix


def test_command_that_makes_it_anew_keeps_what_was_asked_for(draft, tinyglm, tmp_path):
    fix = anew(damaged(shutil.copytree(draft, tmp_path / "draft")), tinyglm("awq-int4"), tinyglm("nvfp4"))
    assert "--scheme nvfp4 --force -o" in fix


def test_command_that_makes_it_anew_names_the_scheme_file(tinyglm, tmp_path, monkeypatch):
    """Where it lay is not recorded: one that is not found here is said to be a file."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(mtpforge.dump_scheme(mtpforge.load_scheme("nvfp4")))
    pair = tinyglm("awq-int4"), tinyglm("nvfp4")
    made = damaged(mtpforge.build(*pair, out="draft", scheme="./mine.toml", check="off").path)
    command = f"--scheme ./mine.toml --force -o {tmp_path / 'draft'}`"
    assert anew(made, *pair).endswith(command)
    Path("mine.toml").unlink()
    assert anew(made, *pair).endswith(f"{command}, where `mine.toml` is the scheme file that it was made with")


def test_command_that_makes_it_anew_keeps_a_scheme_that_only_the_draft_states(tinyglm, tmp_path):
    pair = tinyglm("bf16"), tinyglm("bf16")
    for asked in ("fp8-block128", "bf16"):
        made = mtpforge.build(*pair, out=tmp_path / asked, scheme=asked, check="off", engine="sglang", standalone=True)
        fix = anew(damaged(made.path), *pair, engine="sglang")
        assert ("--scheme fp8-block128" in fix, "--scheme" in fix) == (asked != "bf16",) * 2


def test_the_page_s_commands_run_in_their_order(tinyglm, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "heads.md").read_text()
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^\$ mtpforge (.*)$", text, re.MULTILINE)
    assert len(lines) > 3
    for line in lines:
        words = line.replace("org/GLM-5.2-AWQ-INT4", str(tinyglm("awq-int4")))
        words = words.replace("org/GLM-5.2-NVFP4", str(tinyglm("nvfp4"))).split()
        assert cli.main([*words, "--print"] if words[0] == "serve" else words) == 0
    assert mtpforge.verify("out/draft", "out/told").ok
