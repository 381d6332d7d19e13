"""Hints are commands that work: each one that a command prints is run as it stands, and ends otherwise than before."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from drafts import digests, reconfigured, unpruned

from mtpforge import scheme as schemes
from mtpforge.engines import child
from mtpforge.engines import installed as shared
from mtpforge.engines.vllm import installed

PLACEHOLDERS = {"CKPT", "DRAFT", "FILE", "DIR", "ORG/NAME", "S", "ENGINE"}


def hinted(text: str) -> list[list[str]]:
    """Words of every `mtpforge ...` in hints and next steps."""
    lines = [line for line in text.splitlines() if re.match(r" *hint: |Next: ", line)]
    spelled = [c for line in lines for c in re.findall(r"`(mtpforge [^`]+)`|Next: (mtpforge .+)", line)]
    return [shlex.split(quoted or bare) for quoted, bare in spelled]


def options(text: str) -> list[list[str]]:
    """Words of every `--option value` in hints."""
    return [shlex.split(o) for line in text.splitlines() if "hint: " in line for o in re.findall(r"`(-[^`]+)`", line)]


@pytest.fixture(autouse=True)
def _without_reference_checks(run, monkeypatch):
    """Other tests compare with libraries, whose import takes seconds."""
    monkeypatch.setenv("MTPFORGE_BUILD_CHECK", "off")


@pytest.fixture
def follow(run):
    """Run a command, then each command that it names: none fails in the same way, or as a wrong line."""

    def follow_(*argv: object) -> dict[str, int]:
        first = run(*map(str, argv))
        said = re.findall(r"^ *error: .*", first.err, re.MULTILINE)
        found = {}
        for words in hinted(first.err):
            assert not PLACEHOLDERS & set(words)
            then = run(*words[1:])
            assert then.code not in (2, 70), then.err
            assert not set(said) & set(re.findall(r"^ *error: .*", then.err, re.MULTILINE))
            found[shlex.join(words)] = then.code
        return found

    return follow_


@pytest.fixture
def draft(demo, in_folder) -> Path:
    """A draft of our own in the current folder, for awq-int4."""
    return Path(shutil.copytree(demo / "out" / "demo", in_folder / "a draft").name)


def test_verify_of_a_broken_draft_names_a_build_that_mends_it(run, follow, draft, tinyglm):
    config = json.loads((draft / "config.json").read_text())
    assert config.pop("moe_router_dtype") == "float32"
    (draft / "config.json").write_text(json.dumps(config))
    sides = ("--target", tinyglm("awq-int4"), "--source", tinyglm("bf16"))
    (command,) = follow("verify", draft, *sides)
    assert command == shlex.join(["mtpforge", "build", *map(str, sides), "--force", "-o", "a draft"])
    assert run("verify", str(draft), *map(str, sides)).code == 0


@pytest.mark.parametrize("command", ["verify", "validate"])
def test_swapped_arguments_are_put_right(run, monkeypatch, draft, tinyglm, command):
    monkeypatch.setattr(child.importlib.util, "find_spec", lambda name: None)  # no engine here
    first = run(command, str(tinyglm("awq-int4")), "--target", str(draft))
    assert (first.code, first.out) == (3, "")
    assert "cause: draft and target are swapped: " in first.err
    (words,) = hinted(first.err)
    assert words == ["mtpforge", command, str(draft), "--target", str(tinyglm("awq-int4"))]


def test_a_draft_for_another_engine_is_built_with_the_words_that_were_typed(run, draft, tinyglm):
    ran = run("verify", str(draft), "--target", str(tinyglm("awq-int4")), "--engine", "sglang")
    (words,) = hinted(ran.err)
    assert words[:4] == ["mtpforge", "build", "--target", str(tinyglm("awq-int4"))]
    assert words[words.index("--engine") + 1] == "sglang"


def test_next_after_build_keeps_the_source(run, in_folder, tinyglm):
    sides = ("--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("nvfp4")))
    ran = run("build", *sides, "-o", "made")
    assert hinted(ran.err) == [["mtpforge", "validate", "made", *sides]]


def test_what_is_in_the_way_is_said_without_an_id(run, in_folder, tinyglm):
    sides = ("--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("nvfp4")))
    ran = run("build", *sides, "--tp", "3", "--dry-run")
    assert ran.code == 3
    assert "heads cannot be split over 3 ranks" in ran.err
    assert "cause: " not in ran.err


def test_a_rule_that_fits_no_module_is_warned_of(run, in_folder, tinyglm):
    text = run("schemes", "int4-g32-asym", "-q").out
    for name, lines in (("mine", text), ("misspelt", text.replace('"eh_proj"', '"eh_prj"'))):
        Path(f"{name}.toml").write_text(lines)
    sides = ("--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("nvfp4")))
    ran = run("build", *sides, "--scheme", "misspelt.toml", "--dry-run")
    assert "the rule for `eh_prj` fits no matrix of glm_moe_dsa: `eh_proj`?" in ran.out + ran.err
    ran = run("build", *sides, "--scheme", "mine.toml", "--dry-run")
    assert "fits no matrix" not in ran.out + ran.err


def test_inputs_that_are_none_are_refused_before_a_checkpoint_is_opened(run, in_folder):
    ran = run("fidelity", "no-draft", "--reference", "no-reference", "--inputs", "nope.safetensors")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: there is no inputs file `nope.safetensors`\n")


def test_a_draft_for_another_target_is_made_anew_from_that_target_s_layer(run, follow, draft, tinyglm):
    target = tinyglm("fp8")  # whose own layer loads: without --standalone there would be nothing to build
    before = digests(draft)
    (command,) = follow("verify", draft, "--target", target)
    assert command == shlex.join(["mtpforge", "build", "--target", str(target), "--standalone"])
    assert run("verify", "out/fp8-MTP-fp8-block128", "--target", str(target)).code == 0
    assert digests(draft) == before  # it is good beside the target that it was made for
    assert run("verify", str(draft), "--target", str(tinyglm("awq-int4"))).code == 0


def test_a_broken_draft_is_made_anew_from_the_folder_that_it_was_made_from(run, follow, draft, tinyglm):
    """mtpforge.json knows its name and hash: it is found beside the target."""
    (draft / "config.json").write_text((draft / "config.json").read_text().replace('"moe_router_dtype"', '"gone"'))
    sides = ("--target", str(tinyglm("awq-int4")))
    made = shlex.join(["mtpforge", "build", *sides, "--source", str(tinyglm("nvfp4")), "--force", "-o", "a draft"])
    assert follow("serve", draft.resolve(), *sides, "--print") == {
        made.replace("'a draft'", shlex.quote(str(draft.resolve()))): 0
    }
    assert run("serve", str(draft), *sides, "--print").code == 0


def test_a_source_that_is_not_found_is_named_and_nothing_is_harmed(run, follow, draft, tinyglm, in_folder):
    (draft / "config.json").write_text((draft / "config.json").read_text().replace('"moe_router_dtype"', '"gone"'))
    target = shutil.copytree(tinyglm("awq-int4"), in_folder / "elsewhere" / "awq-int4")
    before = digests(draft)
    ((command, code),) = follow("verify", draft, "--target", target).items()
    assert (code, "--source SOURCE " in command) == (3, True)
    assert (
        "`, where `SOURCE` is the folder `nvfp4` that it was made from" in run("verify", draft, "--target", target).err
    )
    assert digests(draft) == before


def test_a_foreign_draft_stays_where_it_is(run, follow, draft, tinyglm):
    (draft / "mtpforge.json").unlink()
    sides = ("--target", tinyglm("fp8"), "--source", tinyglm("bf16"))
    before = sorted(draft.iterdir())
    (command,) = follow("verify", draft, *sides)
    assert command == shlex.join(["mtpforge", "build", *map(str, sides)])
    assert sorted(draft.iterdir()) == before
    assert run("verify", "out/fp8-MTP-fp8-block128", *map(str, sides)).code == 0


def test_a_foreign_draft_that_lies_where_build_would_write_stays_too(run, follow, draft, tinyglm, in_folder):
    sides = ("--target", tinyglm("fp8"), "--source", tinyglm("bf16"))
    (draft / "mtpforge.json").unlink()
    usual = Path("out") / "fp8-MTP-fp8-block128"
    usual.parent.mkdir()
    draft.rename(usual)
    (command,) = follow("verify", usual, *sides)
    assert command == shlex.join(["mtpforge", "build", *map(str, sides), "-o", f"{usual}-2"])
    assert run("verify", f"{usual}-2", *map(str, sides)).code == 0
    assert not (usual / "mtpforge.json").exists()


def test_serve_beside_another_target_names_the_build_for_it(run, follow, draft, tinyglm):
    before, target = digests(draft), str(tinyglm("nvfp4"))
    commands = follow("serve", draft, "--target", target, "--print")
    assert set(commands.values()) == {0}
    assert digests(draft) == before
    (made,) = Path("out").iterdir()
    assert run("serve", str(made), "--target", target, "--print").code == 0
    assert (
        "hint: name the target that it was made for, awq-int4; or build"
        in run("serve", str(draft), "--target", target, "--print").err
    )


def test_validate_names_the_build_that_verify_names(follow, draft, tinyglm, monkeypatch):
    refused = {"accepted": False, "complete": False, "errors": ["KeyError"], "notes": [], "defaulted": [], "facts": {}}
    report = shared._report(installed.LOADER, refused, 0.0)
    monkeypatch.setattr(installed, "check", lambda *_, **__: report)
    sides = ("--target", tinyglm("awq-int4"), "--source", tinyglm("nvfp4"))
    assert follow("validate", draft, *sides) == {
        shlex.join(["mtpforge", "build", *map(str, sides), "--force", "-o", "a draft"]): 0
    }


def test_next_after_inspect_of_the_demo_s_target_needs_no_hub(run, in_folder, tinyglm, monkeypatch):
    monkeypatch.setattr("mtpforge.checkpoint.hub.repository.open_hub", lambda *_, **__: pytest.fail("the hub is asked"))
    (words,) = hinted(run("inspect", str(tinyglm("awq-int4"))).err)
    assert words[1] == "build"
    assert run(*words[1:]).code == 0
    (words,) = hinted(run("inspect", str(tinyglm("awq-int4-12experts"))).err)
    assert words[-2:] == ["--source", "ORG/NAME"]  # the demo's source is of the demo's target alone


@pytest.mark.parametrize(
    ("layout", "next_command"),
    [("awq-int4-12experts", "build"), ("fp8", "serve"), ("nvfp4", "build")],
)
def test_inspect_names_the_step_that_is_next(run, in_folder, tinyglm, layout, next_command):
    *_, words = hinted(run("inspect", str(tinyglm(layout))).err)
    assert words[1] == next_command
    if next_command == "serve":
        assert run(*words[1:], "--print").code == 0
    elif layout == "nvfp4":
        assert run(*words[1:], "--dry-run").code == 0


def test_inspect_of_a_pruned_target_names_a_build_that_prunes_its_layer(run, in_folder, tinyglm):
    target = unpruned(tinyglm("bf16"), in_folder / "target")
    for words in hinted(run("inspect", "target").err):
        assert words[1:4] == ["build", "--target", target.name]
        ran = run(*words[1:])
        assert (ran.code, "experts 12 of 16" in ran.out) == (0, True)
        shutil.rmtree("out")


@pytest.mark.parametrize(
    ("typed", "near"), [("int4-g32-sym", "int4-g128-sym"), ("int4-g128-asym", "int4-g32-asym"), ("bf61", "bf16")]
)
def test_a_scheme_that_is_not_there_leads_to_one_of_the_same_symmetry(run, tinyglm, typed, near):
    for argv in (("schemes", typed), ("extract", "--source", str(tinyglm("bf16")), "-o", "x", "--scheme", typed)):
        ran = run(*argv)
        assert ran.code == 2
        assert f" hint: did you mean `{near}`?\n" in ran.err
    assert run("schemes", near).code == 0


def test_schemes_by_name_and_from_a_target_lead_to_either(follow, tinyglm):
    assert set(follow("schemes", "bf16", "--from", tinyglm("fp8")).values()) == {0}


def test_next_after_verify_and_schemes_parse(run, draft, tinyglm, monkeypatch):
    monkeypatch.setattr(installed, "is_installed", lambda: False)
    (words,) = hinted(run("verify", str(draft), "--target", str(tinyglm("awq-int4"))).err)
    assert run(*words[1:]).code == 5  # no engine here
    (words,) = hinted(run("schemes").err)
    assert run(*words[1:]).code == 0


def test_a_tensor_parallel_size_that_does_not_divide_leads_to_one_that_does(run, draft, tinyglm):
    pair = ("serve", str(draft), "--target", str(tinyglm("awq-int4")), "--print")
    ran = run(*pair, "--tp", "3")
    (words,) = options(ran.err)
    assert (ran.code, words[0]) == (1, "--tp")
    assert run(*pair, *words).code == 0


def test_a_target_that_needs_a_draft_is_told_which_build(run, in_folder, tinyglm):
    """Traps of a target: each names a build that works."""
    target = reconfigured(tinyglm("fp8"), in_folder / "a t", lambda c: c.pop("moe_router_dtype"))
    words = hinted(run("serve", "a t", "--target", "a t", "--print").err) + hinted(run("inspect", "a t").err)
    assert words
    for each in words:
        assert run(*each[1:], "--dry-run").code == 0, each
    assert target.is_dir()


def test_a_draft_as_its_own_target_is_refused(run, draft):
    """It has no main model that an engine could run, whatever its configs say."""
    ran = run("serve", str(draft), "--target", str(draft), "--print")
    assert (ran.code, ran.out) == (3, "")
    assert "error: the target holds only the MTP layer: this is a draft\n" in ran.err


@pytest.mark.parametrize("command", [("serve", "--print"), ("validate",)])
def test_a_mistyped_folder_is_never_a_repository_to_download(run, draft, tinyglm, command):
    name, *rest = command
    home = Path("out")
    home.mkdir()
    draft.rename(home / "draft-1")
    ran = run(name, "out/draft1", "--target", str(tinyglm("awq-int4")), *rest)
    assert (ran.code, ran.out) == (3, "")
    assert "cause: `out` is a folder here and holds no `draft1`; the hub was not asked\n" in ran.err
    assert "hf download" not in ran.err
    assert "hint: did you mean `out/draft-1`? " in ran.err


def test_a_draft_of_the_hub_is_downloaded_over_no_other(run, draft, tinyglm):
    Path("out").mkdir()
    draft.rename("out/draft")
    ran = run("serve", "org/draft", "--target", str(tinyglm("awq-int4")), "--print")
    assert "`hf download org/draft --local-dir out/draft-2`, then name `out/draft-2`" in ran.err


@pytest.mark.parametrize("command", [("graft", "--into"), ("delta", "--against")])
def test_a_graft_of_what_has_no_layer_names_no_option_of_another_command(run, in_folder, tinyglm, command):
    name, option = command
    bare = str(tinyglm("awq-int4"))
    ran = run(name, bare, option, bare, "-o", "made")
    assert ran.code == 3
    assert "hint: name a source that holds it, e.g. `zai-org/GLM-5" in ran.err
    assert not options(ran.err)


@pytest.mark.parametrize("typed", ["--source", "--forse", "--for"])
def test_no_typo_is_taken_for_force(run, in_folder, tinyglm, typed):
    ran = run("graft", "--into", str(tinyglm("awq-int4")), typed, "x", "-o", "made")
    assert ran.code == 2
    assert "--force" not in ran.err


def test_the_warning_of_zero_points_names_no_option(run, draft, tinyglm):
    """Commands call the checkpoint that is served `--target`, `--into`, `--against`, or nothing."""
    ran = run("inspect", str(tinyglm("awq-int4")), "--engine", "sglang")
    assert "the target's experts have zero points" in ran.out + ran.err
    assert "name one with symmetric experts in its place" in ran.err
    assert not [words for words in options(ran.err) if words[0] == "--target"]


def test_a_scheme_that_the_engine_does_not_load_leads_to_all_that_it_does(run, in_folder, tinyglm):
    sides = ("build", "--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("nvfp4")), "--engine", "sglang")
    ran = run(*sides, "--scheme", "int4-g128-sym", "--dry-run")
    assert "error: SGLang cannot load `self_attn.q_a_proj` as INT4 g128\n" in ran.err
    (listed,) = re.findall(r"hint: `--scheme` with one of: (.*)", ran.err)
    takes = [name for name in schemes.names() if run(*sides, "--scheme", name, "--dry-run").code == 0]
    assert listed.split(", ") == takes
    assert {"bf16", "fp8-block128"} < set(takes)


def test_a_layer_that_lies_beside_the_target_is_found_there_and_grafted_again(run, in_folder, tinyglm):
    for name in ("awq-int4", "bf16"):
        shutil.copytree(tinyglm(name), in_folder / "models" / name)
    assert run("graft", "models/bf16", "--into", "models/awq-int4", "--link", "sym", "-o", "made/graft").code == 0
    (layer,) = (path for path in Path("made/graft").glob("model-mtp*") if not path.is_symlink())
    raw = bytearray(layer.read_bytes())
    raw[-5] ^= 1
    layer.write_bytes(raw)
    again = ("verify", "made/graft", "--target", "made/graft")
    ran = run(*again)
    (words,) = hinted(ran.err)
    assert (ran.code, words[2]) == (1, str(in_folder / "models" / "bf16"))
    assert run(*words[1:]).code == 0
    assert run(*again).code == 0


@pytest.mark.parametrize("command", [("graft", "--into"), ("delta", "--against")])
def test_a_draft_for_another_engine_is_grafted_from_what_it_was_made_of(run, follow, draft, tinyglm, command):
    name, option = command
    target = str(tinyglm("awq-int4"))
    typed = (name, draft, option, target, "--engine", "sglang", "-o", "made")
    made_of = str(tinyglm("nvfp4"))
    assert follow(*typed) == {shlex.join(["mtpforge", name, made_of, *map(str, typed[2:])]): 0}
    assert Path("made").is_dir()


@pytest.mark.parametrize("words", [("graft", "L", "--into", "T"), ("merge", "--base", "T", "--take", "x=L")])
def test_a_way_of_linking_that_is_none_leads_to_one_that_can_be_typed(run, in_folder, words):
    ran = run(*words, "-o", "x", "--link", "foo")
    assert (ran.code, " hint: e.g. `--link hard`\n" in ran.err) == (2, True)
    assert " hint: did you mean `--link copy`?\n" in run(*words, "-o", "x", "--link", "copi").err


def test_the_scheme_of_a_graft_may_be_the_lightest_as_its_help_says(run, in_folder, tinyglm):
    """For a delta too."""
    for command, into in (("graft", "--into"), ("delta", "--against")):
        assert "Preset, TOML file, or `lightest`" in " ".join(run(command, "--help").out.split())
        ran = run(command, tinyglm("bf16"), into, tinyglm("awq-int4"), "-o", "x", "--scheme", "lightest", "--dry-run")
        assert ran.code == 0, ran.err
