"""`mtpforge serve`: the command for a pair that fits, and refusals of pairs whose headers show that they do not."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from drafts import reconfigured, unpruned

from mtpforge.cli.accept import command as accept


def test_printed_command_is_one_for_a_shell(run, demo, tinyglm):
    draft, target = demo / "out" / "demo", tinyglm("awq-int4")
    ran = run("serve", str(draft), "--target", str(target), "--print", "--tp", "2", "--ep")
    words = shlex.split(ran.out)
    assert (ran.code, ran.err) == (0, unread(draft, target, "--tp", "2", "--ep"))
    assert words[:3] == ["vllm", "serve", str(target)]
    assert json.loads(words[words.index("--speculative-config") + 1])["model"] == str(draft)
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert run("serve", str(draft), "--target", str(target), "--tp", "2", "--ep", "--print", "--json").document[
        "serve"
    ] == [word for word in words if word != "\n"]


def unread(draft, target, *served: str) -> str:
    """The note of a command that looked at configs and headers alone."""
    judge = shlex.join(["mtpforge", "verify", str(draft), "--target", str(target), *served])
    return f"note: no weight was read; `{judge}` reads them all\n"


def test_serve_of_damaged_weights_names_who_reads_them(run, demo, tinyglm, tmp_path):
    broken, target = shutil.copytree(demo / "out" / "demo", tmp_path / "broken"), str(tinyglm("awq-int4"))
    raw = bytearray((broken / "model.safetensors").read_bytes())
    raw[-5] ^= 1
    (broken / "model.safetensors").write_bytes(raw)
    ran = run("serve", str(broken), "--target", target, "--print")
    assert (ran.code, ran.err) == (0, unread(broken, target))
    assert run("serve", str(broken), "--target", target, "--print", "-q").err == ""
    judge = shlex.split(ran.err.split("`")[1])
    assert run(*judge[1:]).code == 1


def test_the_command_for_sglang_comes_with_what_it_reads_wrongly_of_the_target(run, tinyglm, in_folder):
    target = str(tinyglm("awq-int4"))
    made = run(
        "build", "--target", target, "--source", tinyglm("nvfp4"), "--scheme", "nvfp4", "--engine", "both", "-o", "d"
    )
    assert (made.code, made.err.count("warning: the target's experts have zero points")) == (0, 1)
    judged = run("verify", "d", "--target", target, "--engine", "both", "--json").document["report"]
    assert next(c for c in judged["checks"] if c["name"] == "target")["verdict"] == "warning"
    ran = run("serve", "d", "--target", target, "--engine", "both", "--print")
    assert (ran.code, ran.err.count("warning: the target's experts have zero points")) == (0, 1)
    assert "zero points" not in run("serve", "d", "--target", target, "--print").err


def test_a_depth_that_cannot_pay_is_warned_of(run, demo, tinyglm):
    asked = ("serve", demo / "out" / "demo", "--target", tinyglm("awq-int4"), "--print", "-k")
    measured = next(p.type.max for p in accept.params if p.name == "k")
    deep, usual = run(*asked, "99"), run(*asked, measured)
    assert f"`mtpforge accept` measures up to {measured}" in deep.err
    assert "warning: " in run(*asked, measured + 1).err
    assert (deep.code, 'num_speculative_tokens": 99' in deep.out) == (0, True)
    assert "warning: 99 tokens at a time: " in deep.err
    assert "hint: `-k 3`" in deep.err
    assert "warning" not in usual.err


@pytest.mark.parametrize("command", ["verify", "serve"])
def test_a_target_that_is_cut_short_is_warned_of(run, demo, tinyglm, tmp_path, command):
    """A draft fits beside it, by headers and config, and no engine loads the target."""
    target = tmp_path / "awq-int4"
    shutil.copytree(tinyglm("awq-int4"), target)
    words = (command, demo / "out/demo", "--target", target, *(("--print",) if command == "serve" else ()))
    assert "cut short" not in run(*words).err + run(*words).out
    file = min(target.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)
    ran = run(*words)
    warned = f"files of {target} are cut short ({file.name}): no engine loads it so"
    assert (ran.code, warned in ran.out + ran.err) == (0, True), ran.out + ran.err
    assert (ran.out + ran.err).count("copy or download them again before it is served") == 1


def refusal(run, *argv: str) -> tuple[int, str]:
    ran = run("serve", *argv, "--print")
    assert "vllm serve" not in ran.out
    return ran.code, ran.err


def test_serve_beside_another_target_is_refused(run, demo, tinyglm):
    draft, target = str(demo / "out" / "demo"), str(tinyglm("nvfp4"))
    code, err = refusal(run, draft, "--target", target)
    assert code == 1
    assert err.startswith("error: this draft cannot be served with this target\n")
    assert "cause: names: " in err
    assert "dtypes" not in err
    assert f" more; `mtpforge verify {draft} --target {target}` lists them\n" in err


def test_a_whole_checkpoint_is_no_draft(run, tinyglm):
    whole, target = str(tinyglm("nvfp4")), str(tinyglm("awq-int4"))
    code, err = refusal(run, whole, "--target", target)
    assert code == 3
    assert err == (
        "error: that is a whole checkpoint, no draft\n"
        f"where: {whole}\n"
        f" hint: `mtpforge build --target {target} --source {whole}` makes a draft of its layer\n"
    )


def test_serve_with_swapped_arguments_is_refused(run, demo, tinyglm):
    code, err = refusal(run, str(tinyglm("awq-int4")), "--target", str(demo / "out" / "demo"))
    assert code == 3
    assert err == (
        "error: the target holds only the MTP layer: this is a draft\n"
        f"where: {demo / 'out' / 'demo'}\n"
        f"cause: draft and target are swapped: `{tinyglm('awq-int4')}` is a whole checkpoint\n"
        f" hint: `mtpforge serve {demo / 'out' / 'demo'} --target {tinyglm('awq-int4')}`\n"
    )


def test_serve_on_ranks_that_do_not_divide_is_refused(run, demo, tinyglm):
    code, err = refusal(run, str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")), "--tp", "3")
    assert code == 1
    assert "serving: " in err


def test_serve_of_a_draft_without_weights_is_refused(run, demo, tinyglm, tmp_path):
    hollow = shutil.copytree(demo / "out" / "demo", tmp_path / "hollow")
    (hollow / "model.safetensors").unlink()
    assert refusal(run, str(hollow), "--target", str(tinyglm("awq-int4")))[0] == 1


def test_serve_with_a_field_of_the_draft_s_config_gone_is_refused(run, demo, tinyglm, tmp_path):
    broken = shutil.copytree(demo / "out" / "demo", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    assert config.pop("moe_router_dtype") == "float32"
    (broken / "config.json").write_text(json.dumps(config))
    code, err = refusal(run, str(broken), "--target", str(tinyglm("awq-int4")))
    assert code == 1
    assert err.count("moe_router_dtype` is missing") == 1  # as a check, not once more as a trap


def test_serve_of_an_empty_folder_is_an_unusable_input(run, tinyglm, tmp_path):
    code, err = refusal(run, str(tmp_path), "--target", str(tinyglm("awq-int4")))
    assert code == 3
    assert "has no config.json" in err


@pytest.mark.parametrize("draft", ["./nope", "nope", "/nope/at/all", "~/nope", "a/b/c"])
def test_serve_of_a_path_that_leads_nowhere_asks_no_hub(run, in_folder, tinyglm, draft):
    code, err = refusal(run, draft, "--target", str(tinyglm("awq-int4")))
    assert code == 3
    assert "cause: there is no such folder\n" in err
    assert "hf download" not in err


def test_serve_of_a_hub_id_says_how_to_get_it(run, in_folder, tinyglm):
    code, err = refusal(run, "org/draft@v1", "--target", str(tinyglm("awq-int4")))
    assert code == 5
    assert "`hf download org/draft --revision v1 --local-dir out/draft`" in err


def test_serve_of_a_target_s_own_layer_names_no_model(run, tinyglm):
    ran = run("serve", str(tinyglm("fp8")), "--target", str(tinyglm("fp8")), "--print")
    assert ran.code == 0
    assert '"model"' not in ran.out
    assert ran.err == ""  # there is no draft to verify
    bare = str(tinyglm("awq-int4"))
    code, err = refusal(run, bare, "--target", bare)
    assert code == 1
    assert f" hint: `mtpforge build --target {bare}`" in err


def test_serve_of_a_layer_with_more_experts_than_its_target_serves_is_refused(run, tinyglm, tmp_path):
    folder = unpruned(tinyglm("bf16"), tmp_path / "target")
    code, err = refusal(run, str(folder), "--target", str(folder))
    assert code == 1
    assert "loads as it is: vLLM would not load it: 16 experts, the target serves 12" in err
    assert f" hint: `mtpforge build --target {folder}`" in err


def test_serve_of_the_target_by_another_path_to_it_is_its_own_layer(run, tinyglm, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tinyglm("fp8"))
    monkeypatch.chdir(tmp_path)
    ran = run("serve", "./link", "--target", "link", "--print")
    assert (ran.code, '"model"' in ran.out) == (0, False)


def test_tokens_port_and_what_is_the_engine_s_reach_the_command(run, demo, tinyglm):
    pair = (str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")), "--print")
    engines = ("--max-model-len", "65536", "--json", "-q")
    ran = run("serve", *pair, "-k", "5", "--port", "8001", "--", *engines)
    words = shlex.split(ran.out)
    assert (ran.code, ran.err) == (0, unread(*pair[:3:2]))
    assert json.loads(words[words.index("--speculative-config") + 1])["num_speculative_tokens"] == 5
    assert words[words.index("--port") + 1] == "8001"
    assert tuple(w for w in words if w != "\n")[-len(engines) :] == engines
    plain = shlex.split(run("serve", *pair).out)
    assert json.loads(plain[plain.index("--speculative-config") + 1])["num_speculative_tokens"] == 3
    assert "--port" not in plain


def test_an_argument_that_is_not_behind_the_dashes_is_not_handed_on(run, demo, tinyglm):
    pair = (str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")))
    for words in (("another",), ("another", "--", "--max-model-len", "1")):
        code, err = refusal(run, *pair, *words)[0], run("serve", *pair, "--print", *words).err
        assert code == 2
        assert err.startswith("error: `another` is one argument too many\n")
        assert " hint: `mtpforge serve DRAFT --target CKPT -- another` hands it on" in err


@pytest.mark.parametrize(
    "word", ["--speculative-config", "--speculative-config={}", "--tensor-parallel-size", "--hf-overrides"]
)
def test_what_the_pair_needs_cannot_be_overwritten_behind_the_dashes(run, demo, tinyglm, tmp_path, word):
    """vLLM takes the last of two without a word."""
    target = reconfigured(tinyglm("awq-int4"), tmp_path / "t", lambda c: c.pop("num_nextn_predict_layers"))
    ran = run("serve", str(demo / "out" / "demo"), "--target", str(target), "--print", "--tp", "2", "--", word, "{}")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: `{word.partition('=')[0]}` is in the command already\n")


def test_serve_loads_no_torch(demo, tinyglm):
    argv = ["serve", str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")), "--print"]
    program = f"import sys; from mtpforge.cli import main; print(main({argv!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_serve_becomes_the_server(demo, tinyglm, tmp_path):
    server = tmp_path / "vllm"
    server.write_text('#!/bin/sh\necho "served: $2"\nexit 7\n')
    server.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "mtpforge", "serve", demo / "out" / "demo", "--target", tinyglm("awq-int4")],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert done.stdout.endswith(f"served: {tinyglm('awq-int4')}\n")


def test_serve_without_a_server_is_this_machine_s_fault(run, demo, tinyglm, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    ran = run("serve", str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")))
    assert ran.code == 5
    assert "error: `vllm` is not installed here\n" in ran.err


def test_explain_gives_a_reason_for_every_flag_and_key_and_runs_nothing(run, demo, tinyglm, tmp_path):
    target = reconfigured(tinyglm("awq-int4"), tmp_path / "t", lambda c: c.pop("num_nextn_predict_layers"))
    asked = ("serve", str(demo / "out" / "demo"), "--target", str(target), "--tp", "2", "--ep", "--port", "8001")
    asked += ("--kv-cache-dtype", "bfloat16", "--draft-option", "draft_lm_head_quantization=fp8", "--explain")
    ran, document = run(*asked), run(*asked, "--json").document
    argv = document["serve"]
    named = [flag["name"] for flag in document["flags"]]
    assert named == [word for word in argv if word.startswith("--")]
    for flag in document["flags"]:
        keys = flag["value"] if isinstance(flag["value"], list) else []
        if keys:
            assert [key["name"] for key in keys] == list(json.loads(argv[argv.index(flag["name"]) + 1]))
        for entry in (flag, *keys):
            assert entry["reason"]
            assert entry["source"]
            assert f"{entry['name']} " in ran.out
            assert f"{entry['reason']} [{entry['source']}]" in ran.out
    assert [offer["name"] for offer in document["offers"]] == ["num_speculative_tokens_per_batch_size"]
    assert shlex.split(ran.out.split("\n\n")[0].replace("\\\n", " ")) == argv


def test_an_offer_can_be_typed_as_it_is_printed(run, demo, tinyglm):
    pair = ("serve", str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")))
    lines = [line.split("   ")[0] for line in run(*pair, "--explain").out.splitlines() if "--draft-option " in line]
    words = [word for line in lines for word in shlex.split(line)]
    argv = run(*pair, *words, "--print", "--json").document["serve"]
    speculative = json.loads(argv[argv.index("--speculative-config") + 1])
    assert speculative["draft_lm_head_quantization"] == "fp8"
    assert speculative["num_speculative_tokens_per_batch_size"] == [[1, 32, 3], [33, 256, 1]]


def test_a_draft_option_without_a_value_is_refused(run, demo, tinyglm):
    pair = ("serve", str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")), "--explain")
    ran = run(*pair, "--draft-option", "draft_lm_head_quantization")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: `draft_lm_head_quantization` gives no value\n")
