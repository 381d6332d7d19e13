"""Each command on the tiny model: what people read, what scripts get, exit codes."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drafts import reconfigured
from golden_text import GOLDEN, compare, tidy

from mtpforge.cli import main
from mtpforge.drafting import machine
from mtpforge.engines.vllm import installed

FORBIDDEN = ("torch", "transformers", "compressed_tensors", "modelopt")


@pytest.fixture
def pair(tinyglm) -> tuple[str, ...]:
    return "--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("nvfp4"))


def test_plan_for_people(run, in_folder, pair, tinyglm):
    ran = run("build", *pair, "--dry-run")
    assert ran.code == 0
    text = tidy(f"{ran.out}--- stderr\n{ran.err}", models=tinyglm("awq-int4").parent)
    compare(GOLDEN / "output" / "plan.txt", text)
    assert not list(in_folder.iterdir())


def test_inspect_for_people(run, tinyglm):
    ran = run("inspect", str(tinyglm("nvfp4")))
    assert ran.code == 0
    compare(GOLDEN / "output" / "inspect.txt", tidy(f"{ran.out}--- stderr\n{ran.err}", models=tinyglm("nvfp4").parent))


def test_inspect_quiet_is_the_scheme_that_a_draft_needs(run, tinyglm):
    assert run("inspect", str(tinyglm("awq-int4")), "-q").out == "int4-g32-asym\n"


def test_inspect_as_json_holds_the_report(run, tinyglm):
    document = run("inspect", str(tinyglm("fp8")), "--json").document
    assert document["report"]["facts"]["scheme"] == "fp8-block128"


def test_plan_as_json_is_the_plan(run, in_folder, pair):
    ran = run("build", *pair, "--dry-run", "--json")
    document = ran.document
    assert (ran.code, ran.err) == (0, "")
    assert len(document["digest"]) == 64
    assert document["plan"]["scheme"]["name"] == "int4-g32-asym"
    assert document["draft"] == "out/awq-int4-MTP-int4-g32-asym"


def test_plan_as_json_is_by_kind_and_by_tensor_with_v(run, in_folder, pair):
    short, whole = (run("build", *pair, "--dry-run", "--json", *more).document["plan"] for more in ((), ("-v",)))
    assert short.keys() - whole.keys() == {"n_steps", "left_out"}
    assert whole.keys() - short.keys() == {"steps", "unused"}
    assert short["n_steps"] == len(whole["steps"])
    assert short["left_out"] == {"the draft's activations are not quantized": len(whole["unused"])}
    assert short["facts"] == whole["facts"]


def test_next_after_a_plan_is_the_user_s_own_line(run, in_folder, pair):
    ran = run("build", "--dry-run", *pair, "--tp", "2")
    assert ran.err.splitlines()[-1] == "Next: " + shlex.join(["mtpforge", "build", *pair, "--tp", "2"])


def test_dry_run_ends_like_the_build_where_the_output_exists(run, in_folder, pair):
    (in_folder / "there").mkdir()
    ran = run("build", *pair, "-o", "there", "--dry-run")
    assert ran.code == 5
    assert ran.err.endswith(
        "error: the output exists already\nwhere: there\n"
        "cause: it is an empty folder, whose place the draft would take\n"
        " hint: `--force` replaces it, `--out` chooses another\n"
    )


def test_dry_run_ends_like_the_build_where_the_disk_is_too_small(run, in_folder, pair, monkeypatch):
    monkeypatch.setattr("mtpforge.writing.preflight.room", lambda out: 1000)
    ran = run("build", *pair, "--dry-run")
    assert ran.code == 5
    assert "error: not enough disk: 661 kB are needed, 1.00 kB are free\n" in ran.err


def test_target_that_drafts_for_itself_needs_no_build(run, in_folder, tinyglm):
    ran = run("build", "--target", str(tinyglm("fp8")))
    assert ran.code == 0
    assert "nothing to build" in ran.out
    command = ran.out[ran.out.index("vllm serve") :]
    assert shlex.split(command)[2] == str(tinyglm("fp8"))
    assert '"model"' not in command  # vLLM then takes the target's own layer, at the target's revision
    assert not list(in_folder.iterdir())


def test_standalone_plans_a_draft_all_the_same(run, in_folder, tinyglm):
    ran = run("build", "--target", str(tinyglm("fp8")), "--standalone", "--dry-run")
    assert ran.code == 0
    assert "draft   out/fp8-MTP-fp8-block128" in ran.out


def test_more_experts_than_the_target_are_refused(run, in_folder, tinyglm):
    argv = ("build", "--target", str(tinyglm("awq-int4-12experts")), "--source", str(tinyglm("nvfp4")))
    ran = run(*argv, "--experts", "keep")
    assert ran.code == 3
    assert "error: the layer has 16 experts, the target 12\n" in ran.err
    assert not list(in_folder.iterdir())


@pytest.mark.parametrize("lost", ["vocab_size", "rope_parameters", "index_topk", "num_attention_heads"])
def test_target_that_lost_what_a_draft_must_state_is_named_before_anything(run, in_folder, demo, tinyglm, lost):
    reconfigured(tinyglm("awq-int4"), in_folder / "t", lambda c: c.pop(lost))
    sides = "--target", "t", "--source", str(tinyglm("nvfp4"))
    draft = str(demo / "out" / "demo")
    for argv in (
        ("inspect", "t"),
        ("build", *sides, "--dry-run"),
        ("verify", draft, *sides),
        ("serve", draft, *sides[:2]),
    ):
        ran = run(*argv)
        assert ran.code == 3
        assert f"error: the config has no `{lost}`\nwhere: {in_folder}/t/config.json, `{lost}`\n" in ran.err
    assert [place.name for place in in_folder.iterdir()] == ["t"]


def test_target_that_lost_what_vllm_would_guess_wrong_is_told_the_source_s_value(run, in_folder, tinyglm):
    reconfigured(tinyglm("awq-int4"), in_folder / "t", lambda c: c.pop("scoring_func"))
    ran = run("build", "--target", "t", "--source", str(tinyglm("nvfp4")), "--dry-run")
    assert (ran.code, 'vLLM would take "softmax", the source\'s config says "sigmoid"' in ran.err) == (3, True)
    assert ' hint: add `"scoring_func": "sigmoid"` to config.json' in ran.err


def test_unknown_scheme_names_the_nearest(run, tinyglm):
    ran = run("extract", "--source", str(tinyglm("nvfp4")), "-o", "x", "--scheme", "bf61")
    assert ran.code == 2
    assert " hint: did you mean `bf16`?" in ran.err


def test_path_that_leads_nowhere_is_an_unusable_input(run):
    assert run("inspect", "./nothing-here").code == 3


def test_demo_leaves_a_verified_draft(demo):
    assert {f.name for f in (demo / "out" / "demo").iterdir()} >= {"config.json", "model.safetensors", "mtpforge.json"}


def test_demo_goes_where_it_is_told(run, in_folder, monkeypatch):
    """So that the hint of a folder that may not be written works when it is typed."""
    monkeypatch.setattr("mtpforge.cli.demo._CHECK", "off")
    (in_folder / "out").write_text("in the way")
    ran = run("demo")
    assert (ran.code, " hint: choose a folder that you may write to with `--out`\n" in ran.err) == (5, True)
    assert run("demo", "--out", "elsewhere").code == 0
    assert (in_folder / "elsewhere" / "mtpforge.json").exists()


def test_demo_runs_twice(run, demo, monkeypatch):
    monkeypatch.chdir(demo)
    monkeypatch.setattr("mtpforge.cli.demo._CHECK", "off")  # the first run had it
    ran = run("demo")
    assert ran.code == 0
    assert "wrote   out/demo" in ran.out
    assert "vllm serve" in ran.out


def test_demo_replaces_a_draft_that_somebody_named_only_when_told(run, demo, in_folder, monkeypatch):
    monkeypatch.setattr("mtpforge.cli.demo._CHECK", "off")
    mine = shutil.copytree(demo / "out" / "demo", in_folder / "mine")
    (mine / "notes.txt").write_text("weeks of work")
    ran = run("demo", "-o", "mine")
    assert (ran.code, "error: the output exists already\nwhere: mine\n" in ran.err) == (5, True)
    assert (mine / "notes.txt").read_text() == "weeks of work"
    assert run("demo", "-o", "mine", "--force").code == 0
    assert not (mine / "notes.txt").exists()


def test_demo_replaces_no_folder_that_is_no_draft(run, in_folder):
    (in_folder / "out" / "demo").mkdir(parents=True)
    (in_folder / "out" / "demo" / "mine.txt").write_text("mine")
    ran = run("demo")
    assert ran.code == 5
    assert "the output exists and is no draft" in ran.err
    assert (in_folder / "out" / "demo" / "mine.txt").read_text() == "mine"


def test_build_as_json_names_draft_report_and_command(run, in_folder, pair):
    document = run("build", *pair, "--json", "-o", "draft", "--check", "off").document
    assert document["draft"] == "draft"
    assert document["report"]["command"] == "verify"
    assert document["serve"][:2] == ["vllm", "serve"]
    assert document["manifest"]["scheme"]["name"] == "int4-g32-asym"


def test_build_quiet_is_the_path(run, in_folder, pair):
    assert run("build", *pair, "-q", "-o", "draft", "--check", "off").out == "draft\n"


def test_extract_writes_the_layer_as_bf16(run, in_folder, tinyglm):
    ran = run("extract", "--source", str(tinyglm("nvfp4")), "--out", "layer", "--check", "off")
    assert ran.code == 0
    assert "quantization_config" not in json.loads((in_folder / "layer" / "config.json").read_text())


def test_verify_passes_and_points_to_the_next_rung(run, demo, tinyglm):
    draft, target = str(demo / "out" / "demo"), str(tinyglm("awq-int4"))
    ran = run("verify", draft, "--target", target)
    assert ran.code == 0
    assert ran.err.endswith("Next: " + shlex.join(["mtpforge", "validate", draft, "--target", target]) + "\n")


def test_verify_quiet_says_nothing(run, demo, tinyglm):
    ran = run("verify", str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")), "-q")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_verify_of_a_damaged_draft_is_no(run, demo, tinyglm, tmp_path):
    broken = shutil.copytree(demo / "out" / "demo", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    assert config.pop("moe_router_dtype") == "float32"
    (broken / "config.json").write_text(json.dumps(config))
    ran = run("verify", str(broken), "--target", str(tinyglm("awq-int4")))
    assert ran.code == 1
    assert "moe_router_dtype" in ran.out + ran.err


def break_config(draft: Path, to: Path) -> Path:
    broken = shutil.copytree(draft, to)
    config = json.loads((broken / "config.json").read_text())
    assert config.pop("moe_router_dtype") == "float32"
    (broken / "config.json").write_text(json.dumps(config))
    return broken


def test_verify_quiet_does_not_hide_a_failure(run, demo, tinyglm, tmp_path):
    broken = break_config(demo / "out" / "demo", tmp_path / "broken")
    ran = run("verify", str(broken), "--target", str(tinyglm("awq-int4")), "-q")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: config: the draft's `moe_router_dtype` is missing")
    assert ran.err.count("moe_router_dtype` is missing") == ran.err.count("hint:") == 1


def test_hint_of_a_check_and_of_its_trap_is_given_once(run, demo, tinyglm, tmp_path):
    broken = break_config(demo / "out" / "demo", tmp_path / "broken")
    ran = run("verify", str(broken), "--target", str(tinyglm("awq-int4")))
    assert ran.err.count("hint: correct `moe_router_dtype`") == 1


def test_inspect_of_half_a_layer_is_no_and_leads_nowhere(run, tinyglm, tmp_path):
    folder = shutil.copytree(tinyglm("nvfp4"), tmp_path / "half")
    index = folder / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    assert body["weight_map"].pop("model.layers.3.enorm.weight")
    index.write_text(json.dumps(body))
    ran = run("inspect", str(folder))
    assert ran.code == 1
    assert "Next:" not in ran.err


def test_inspect_of_a_draft_does_not_lead_to_a_build_for_it(run, demo):
    ran = run("inspect", str(demo / "out" / "demo"))
    assert ran.code == 0
    assert "Next:" not in ran.err


def test_narrow_terminal_shows_that_a_cell_was_cut():
    """A pseudo terminal of 30 columns."""
    program = (
        "import os, pty, sys, termios, fcntl, struct\n"
        "pid, fd = pty.fork()\n"
        "if pid == 0:\n"
        "    os.environ.pop('COLUMNS', None)\n"
        "    from mtpforge.cli.output import Screen\n"
        "    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 30, 0, 0))\n"
        "    Screen(color='never').table(('a', 'b'), [('x' * 60, 'y' * 60)])\n"
        "    sys.stdout.flush()\n"
        "    os._exit(0)\n"
        "out = b''\n"
        "try:\n"
        "    while piece := os.read(fd, 1000): out += piece\n"
        "except OSError: pass\n"
        "sys.stdout.buffer.write(out)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    shown = done.stdout.decode()
    assert "x" * 60 not in shown
    assert "x…" in shown


def test_validate_without_an_engine_is_verify_and_exit_5(run, demo, tinyglm, monkeypatch):
    monkeypatch.setattr(installed, "is_installed", lambda: False)
    argv = ("validate", str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")))
    ran = run(*argv)
    assert ran.code == 5
    assert "names" in ran.out
    assert "error: no engine found to ask\n" in ran.err
    document = run(*argv, "--json").document
    assert document["exit_code"] == 5
    assert document["report"]["checks"]
    assert document["error"]["what"] == "no engine found to ask"


def test_schemes_of_a_folder_names_the_option_that_derives_one(run, tinyglm):
    ran = run("schemes", tinyglm("awq-int4"))
    assert (ran.code, f"hint: `mtpforge schemes --from {tinyglm('awq-int4')}` derives" in ran.err) == (2, True)


def test_schemes_lists_every_preset(run):
    names = run("schemes", "-q").out.split()
    assert names == sorted(path.stem for path in (Path(__file__).parents[2] / "schemes").glob("*.toml"))
    text = run("schemes").out
    assert all(name in text for name in names)


def test_derived_scheme_is_a_file_that_loads(run, tinyglm, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(run("schemes", "--from", str(tinyglm("awq-int4")), "-q").out)
    ran = run("schemes", str(file))
    assert ran.code == 0
    assert "INT4 g32 asymmetric" in ran.out


def test_scheme_by_name_and_from_a_target_exclude_each_other(run, tinyglm):
    assert run("schemes", "bf16", "--from", str(tinyglm("fp8"))).code == 2


def test_doctor_fails_on_a_missing_library(run, monkeypatch):
    monkeypatch.setattr(machine, "versions", lambda: {"torch": "", "vllm": ""})
    ran = run("doctor")
    assert ran.code == 1
    assert " hint: `pip install torch`\n" in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run, shell):
    ran = run("completion", shell)
    assert ran.code == 0
    assert "_MTPFORGE_COMPLETE" in ran.out


def test_completion_knows_commands_and_values(capfd, monkeypatch):
    monkeypatch.setenv("_MTPFORGE_COMPLETE", "zsh_complete")
    for words, expected in (("mtpforge ins", "inspect"), ("mtpforge build --check s", "sample")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        main([])
        assert expected in capfd.readouterr().out.split()


@pytest.mark.parametrize("argv", [("--help",), ("inspect",), ("build", "--dry-run")])
def test_what_needs_no_tensor_imports_no_torch(argv, tinyglm, tmp_path):
    named = {
        "--help": (),
        "inspect": (str(tinyglm("nvfp4")),),
        "build": ("--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("nvfp4"))),
    }[argv[0]]
    program = (
        f"import sys; from mtpforge.cli import main; code = main({[*argv, *named]!r})\n"
        f"print(code, [m for m in {FORBIDDEN!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_name_of_a_scheme_comes_before_a_folder_that_is_called_so(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bf16").mkdir()
    assert run("schemes", "bf16").code == 0
