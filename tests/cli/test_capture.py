"""capture as it is typed: what it prints, its document, its exit codes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from golden_text import GOLDEN, compare, tidy
from safetensors.torch import load_file, save_file

from mtpforge.checkpoint import open_checkpoint


@pytest.fixture
def typed(tinyglm, in_folder):
    """The words of a capture of a few tokens, and the text beside it."""
    (in_folder / "text.txt").write_text("the cat sat on the mat.\n" * 40)
    return "capture", "--target", str(tinyglm("awq-int4")), "--text", "text.txt", "--length", "50", "--tokens", "120"


def test_capture_for_people(run, in_folder, typed, tinyglm):
    ran = run(*typed)
    assert ran.code == 0
    *_, then = ran.err.splitlines()  # before it progress, as often as time went by
    compare(GOLDEN / "output" / "capture.txt", tidy(f"{ran.out}--- stderr\n{then}\n", demo=tinyglm("awq-int4").parent))
    made = load_file(in_folder / "out" / "awq-int4-inputs.safetensors")
    assert made["sequence_starts"].tolist() == [0, 50, 100, 120]
    assert (made["hidden_states"].dtype, made["hidden_states"].shape) == (torch.bfloat16, (120, 128))


def test_document_says_what_the_file_holds(run, in_folder, typed):
    document = run(*typed, "-o", "a.safetensors", "--json").document
    assert document["ok"]
    assert document["inputs"] == "a.safetensors"
    assert document["digest"] == hashlib.sha256((in_folder / "a.safetensors").read_bytes()).hexdigest()
    assert (document["n_tokens"], document["n_sequences"], document["hidden_size"]) == (120, 3, 128)
    assert document["target"].startswith("awq-int4#")
    assert document["first_layer"] == 0


def test_quiet_prints_the_path(run, typed):
    assert run(*typed, "-q").out == "out/awq-int4-inputs.safetensors\n"


def test_targets_of_one_name_get_files_of_their_own(run, in_folder, typed, tinyglm):
    words = [*typed, "-q"]
    usual = run(*words).out
    words[2] = str(shutil.copytree(tinyglm("awq-int4"), in_folder / "b" / "awq-int4"))
    config = in_folder / "b" / "awq-int4" / "config.json"
    config.write_text(config.read_text() + "\n")
    content = open_checkpoint(words[2]).identity.partition("#")[2]
    assert run(*words).out == f"out/awq-int4-{content[:7]}-inputs.safetensors\n" != usual
    assert [run(*words).code, run(*typed).code] == [5, 5]  # each has its own


def test_same_capture_gives_the_same_bytes(run, in_folder, typed):
    for name in ("a", "b"):
        assert run(*typed, "-o", name).code == 0
    assert (in_folder / "a").read_bytes() == (in_folder / "b").read_bytes()


def test_existing_file_is_kept_unless_forced(run, in_folder, typed):
    (in_folder / "a").write_text("mine")
    ran = run(*typed, "-o", "a")
    assert ran.code == 5
    assert ran.err.startswith("error: the output exists already\nwhere: a\n hint: `--force` replaces it")
    assert (in_folder / "a").read_text() == "mine"
    (in_folder / "a").unlink()
    assert run(*typed, "-o", "a").code == 0
    before = (in_folder / "a").stat().st_ino
    assert run(*typed, "-o", "a", "--force").code == 0
    assert (in_folder / "a").stat().st_ino != before


@pytest.mark.parametrize("content", [b"mine", b"", b"\xff" * 100, b"        [1]", b'        {"__metadata__": 3}'])
def test_forcing_replaces_no_file_but_ours(run, in_folder, typed, content):
    (in_folder / "a").write_bytes(content)
    ran = run(*typed, "-o", "a", "--force")
    assert ran.code == 5
    assert "the output exists and holds no calibration inputs" in ran.err
    assert (in_folder / "a").read_bytes() == content


def test_output_that_no_file_can_have_is_called_what_it_is(run, in_folder, typed):
    (in_folder / "a folder").mkdir()
    (in_folder / "link").symlink_to("gone")
    ran = run(*typed, "-o", "a folder")
    assert ran.code == 5
    assert ran.err.startswith("error: the output is no plain file\nwhere: a folder\ncause: it is a folder\n")
    assert ran.err.endswith(" hint: name a file in it: `--out 'a folder/inputs.safetensors'`\n")
    assert "\ncause: it is a link\n" in run(*typed, "-o", "link").err


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("name", ["model.safetensors", "new.safetensors"])
def test_nothing_is_written_among_the_files_of_the_target(run, in_folder, typed, tinyglm, force, name):
    shutil.copytree(tinyglm("awq-int4"), in_folder / "target", ignore=lambda *_: {"README.md"})
    before = {file.name: file.read_bytes() for file in (in_folder / "target").iterdir()}
    again = [word if word != str(tinyglm("awq-int4")) else "target" for word in typed]
    ran = run(*again, "-o", f"target/{name}", *force)
    assert ran.code == 5
    assert ran.err.startswith("error: the inputs file would lie in the folder of a checkpoint\n")
    assert {file.name: file.read_bytes() for file in (in_folder / "target").iterdir()} == before


@pytest.mark.parametrize("place", ["draft/in.safetensors", "draft/below/in.safetensors", "link/in.safetensors"])
def test_nothing_is_written_into_a_draft(run, in_folder, typed, tinyglm, place):
    draft = in_folder / "draft"
    assert run("build", "--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("bf16")), "-o", "draft").code == 0
    (in_folder / "link").symlink_to("draft")
    before = sorted(draft.iterdir())
    ran = run(*typed, "-o", place)
    assert (ran.code, ran.err.splitlines()[:2]) == (
        5, ["error: the inputs file would lie in the folder of a checkpoint", f"where: {place}"],
    )  # fmt: skip
    assert "choose a place beside it with `--out`" in ran.err
    assert sorted(draft.iterdir()) == before


def test_verify_names_the_file_that_spoils_a_draft(run, in_folder, typed, tinyglm):
    target, draft = str(tinyglm("awq-int4")), in_folder / "draft"
    assert run("build", "--target", target, "--source", str(tinyglm("bf16")), "-o", "draft").code == 0
    save_file({"hidden_states": torch.zeros(2, 2)}, draft / "in.safetensors")
    ran = run("verify", "draft", "--target", target)
    assert ran.code == 1
    assert f"move `{draft / 'in.safetensors'}` elsewhere, or delete it" in ran.err
    assert "mtpforge build" not in ran.err  # nothing is wrong with the draft's own tensors
    (draft / "in.safetensors").unlink()
    assert run("verify", "draft", "--target", target).code == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "error: the text is empty\nwhere: text.txt\n"),
        (b"a", "error: the text is too short\nwhere: text.txt\ncause: a sequence has at least 2 tokens\n"),
        (
            b"caf\xe9 au lait",
            "error: the text is not UTF-8\nwhere: text.txt\ncause: invalid continuation byte near byte 3",
        ),
    ],
)
def test_text_that_cannot_be_used(run, in_folder, typed, content, says):
    (in_folder / "text.txt").write_bytes(content)
    ran = run(*typed)
    assert (ran.code, ran.err.startswith(says)) == (3, True), ran.err
    assert [path.name for path in in_folder.iterdir()] == ["text.txt"]


def test_what_cannot_be_used_is_refused_before_torch_is_loaded(in_folder, typed):
    """A wrong file is said at once: importing torch and transformers takes ten seconds."""
    kept = {"blank": b" \n\f\n" * 10, "utf-16": "the cat".encode("utf-16-le"), "cut": b"caf\xc3", "out": b"mine"}
    for name, content in kept.items():
        (in_folder / name).write_bytes(content)
    program = (
        "import sys; from mtpforge.cli import main\n"
        f"words = {typed!r}\n"
        "for name in ('blank', 'utf-16', 'cut', 'nowhere'):\n"
        "    main([name if word == 'text.txt' else word for word in words])\n"
        "main([*words, '-o', 'out'])\n"
        "main([word if word != '50' else '5000' for word in words])\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [
        "error: the text is empty",
        "error: the text is not plain text",
        "error: the text is not UTF-8",
        "error: the text cannot be read",
        "error: the output exists already",
        "error: a window of 5,000 tokens is longer than the target takes",
    ]


def test_target_that_is_not_made_yet_is_a_missing_folder_as_everywhere(run, in_folder, typed):
    (in_folder / "out").mkdir()
    again = ["out/nope" if word == typed[2] else word for word in typed]
    ran = run(*again)
    assert (ran.code, ran.err) == (3, run("build", "--target", "out/nope").err)
    assert "`out` is a folder here and holds no `nope`" in ran.err
    assert "hf download" not in ran.err
    again = ["org/nope" if word == typed[2] else word for word in typed]
    assert "`hf download org/nope --local-dir DIR`" in run(*again).err


def test_text_shorter_than_a_window_is_one_short_window(run, in_folder, typed):
    (in_folder / "text.txt").write_text("the cat sat")
    document = run(*typed, "--json").document
    assert (document["ok"], document["n_sequences"], document["n_tokens"] < 50) == (True, 1, True)


def test_absent_text_is_named(run, in_folder, typed):
    (in_folder / "text.txt").unlink()
    ran = run(*typed)
    assert (ran.code, ran.err.splitlines()[:2]) == (3, ["error: the text cannot be read", "where: text.txt"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--states", "states"), "`--text` and `--states` exclude each other"),
        (("--length", "5000"), "a window of 5,000 tokens is longer than the target takes"),
    ],
)
def test_words_that_contradict_are_refused(run, typed, more, says):
    at = typed.index("--length")
    ran = run(*typed[:at], *typed[at + 2 :], *more)
    assert (ran.code, ran.err.splitlines()[0]) == (2, f"error: {says}")


def test_one_origin_is_needed(run, tinyglm):
    target = ("capture", "--target", str(tinyglm("awq-int4")))
    assert (run(*target).code, run(*target, "--states", "d", "--length", "9").code) == (2, 2)


def test_hub_repository_is_refused_without_asking_the_hub(run, monkeypatch, typed):
    monkeypatch.setattr("mtpforge.checkpoint.hub.repository.open_hub", None)
    ran = run("capture", "--target", "org/GLM-5.2@main", *typed[3:])
    assert ran.code == 3
    assert "there is no folder `org/GLM-5.2@main`, capture needs every weight on this machine" in ran.err
    assert "hint: `hf download org/GLM-5.2 --local-dir DIR`" in ran.err


def test_too_little_memory_is_said_before_the_first_layer(run, in_folder, typed, monkeypatch):
    from mtpforge.nextn import capturing

    monkeypatch.setattr(capturing.os, "sysconf", lambda name: 1000)
    ran = run(*typed)
    assert ran.code == 5
    assert "of memory are needed, this machine has 977 KiB" in ran.err
    assert not (in_folder / "out").exists()


def test_states_of_vllm_are_finished_here(run, in_folder, tinyglm):
    states = {"hidden_states": torch.ones(7, 1, 128).bfloat16(), "token_ids": torch.arange(7)}
    (in_folder / "states").mkdir()
    save_file(states, in_folder / "states" / "cmpl-0.safetensors")
    typed = ("capture", "--target", str(tinyglm("bf16")), "--states", "states", "-o", "a")
    document = run(*typed, "--json").document
    assert (document["ok"], document["first_layer"], document["n_tokens"]) == (True, 1, 7)


def test_target_that_lacks_a_tensor_ends_before_anything_is_written(run, in_folder, typed, tinyglm):
    copy = in_folder / "copy"
    shutil.copytree(tinyglm("awq-int4"), copy)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    name = "model.layers.2.self_attn.o_proj.weight"
    file = index["weight_map"].pop(name)
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = load_file(copy / file)
    del tensors[name]
    save_file(tensors, copy / file, {"format": "pt"})
    ran = run("capture", "--target", "copy", *typed[3:])
    assert (ran.code, ran.err.splitlines()[0]) == (3, "error: `model.layers.2.self_attn.o_proj` is missing")
    assert not (in_folder / "out").exists()


@pytest.mark.slow
def test_no_code_of_a_checkpoint_is_run(in_folder, typed, tinyglm):
    """A config that names code of its own, in the way that transformers would import it."""
    copy = in_folder / "copy"
    shutil.copytree(tinyglm("awq-int4"), copy)
    config = json.loads((copy / "config.json").read_text())
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    (copy / "tokenizer_config.json").write_text(json.dumps({"auto_map": names, "tokenizer_class": "Own"}))
    (copy / "own.py").write_text("open('run', 'w').close()\n")
    words = [sys.executable, "-m", "mtpforge", "capture", "--target", "copy", *typed[3:], "-q"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, (in_folder / "run").exists()) == (0, False), done.stderr


def test_absent_text_is_said_before_the_target_is_opened(run, in_folder):
    ran = run("capture", "--target", "./nowhere", "--text", "absent.txt")
    assert ran.code == 3
    assert ran.err.startswith("error: the text cannot be read\nwhere: absent.txt\ncause: No such file or directory\n")
    (in_folder / "folder").mkdir()
    assert "cause: Is a directory\n" in run("capture", "--target", "./nowhere", "--text", "folder").err
