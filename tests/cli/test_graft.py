"""`mtpforge graft` and `mtpforge delta`: what they print, in words and as JSON, and how they end."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from mtpforge.cli.showing import beside


def test_dry_run_says_what_becomes_of_which_files_and_writes_nothing(run, tinyglm, in_folder):
    ran = run("graft", tinyglm("bf16"), "--into", tinyglm("nvfp4"), "-o", "graft", "--dry-run")
    assert (ran.code, list(in_folder.iterdir())) == (0, [])
    assert "graft   graft   layer 3 as bf16" in ran.out
    assert "the layer's    1   2.07 MB   written: 71 tensors" in ran.out
    assert "left out: they held nothing but that layer" in ran.out
    assert "config.json: quantization_config, moe_router_dtype" in ran.out
    document = run("graft", tinyglm("bf16"), "--into", tinyglm("nvfp4"), "-o", "graft", "--dry-run", "--json").document
    assert document["left_out"] == ["model-mtp-inputscales.safetensors", "model-mtp.safetensors"]
    assert (document["superseded"], document["n_tensors"], document["built_first"]) == (215, 71, "")
    assert list(in_folder.iterdir()) == []


def test_delta_and_its_graft_by_command_line(run, tinyglm, in_folder):
    layer, target = tinyglm("fp8"), tinyglm("awq-int4")
    ran = run("delta", layer, "--against", target, "-o", "delta", "-q")
    assert (ran.code, ran.out) == (0, "delta\n")
    ran = run("graft", "--delta", "delta", "--into", target, "-o", "graft", "--json")
    assert (ran.code, ran.document["graft"], ran.document["report"]["command"]) == (0, "graft", "graft")
    assert ran.document["document"]["scheme"] == "fp8-block128"
    ran = run("graft", "--delta", "delta", "--into", target, "-o", "graft")
    assert ran.code == 5
    assert "error: the output exists already" in ran.err
    ran = run("graft", "--delta", "delta", "--into", tinyglm("nvfp4"), "-o", "other")
    assert ran.code == 3
    assert ran.err.endswith(" hint: name the folder that it was made for, awq-int4\n")
    ran = run("serve", "graft", "--target", "graft", "--print")
    assert ran.code == 0
    assert "--hf-overrides" not in ran.out


def test_layer_that_is_built_first_is_said_to_be_and_why(run, tinyglm, in_folder):
    ran = run("graft", tinyglm("bf16"), "--into", tinyglm("awq-int4"), "-o", "graft", "--scheme", "nvfp4", "--dry-run")
    assert ran.code == 3  # static scales of activations are nowhere
    ran = run("graft", tinyglm("nvfp4"), "--into", tinyglm("awq-int4"), "-o", "graft", "--scheme", "nvfp4", "--dry-run")
    assert ran.code == 0
    assert "layer 3 as nvfp4" in ran.out
    assert "note: the layer is built first: scheme nvfp4 is asked for" in ran.err


def test_neither_layer_nor_delta_is_an_error_of_usage(run, tinyglm, in_folder):
    ran = run("graft", "--into", tinyglm("awq-int4"), "-o", "graft")
    assert ran.code == 2
    assert "a graft takes either a layer or a delta" in ran.err


def test_what_comes_next_of_a_graft_is_served_alone_and_of_a_source_is_built(run, tinyglm, in_folder):
    target, source = str(tinyglm("awq-int4")), str(tinyglm("nvfp4"))
    assert run("graft", tinyglm("bf16"), "--into", target, "--link", "sym", "-o", "grafted").code == 0
    assert run("build", "--target", target, "--source", source, "-o", "draft").code == 0

    def words(draft):
        return beside("serve", draft, target, "--print", offline=True)

    assert words("grafted") == ("serve", "grafted", "--target", "grafted", "--print")
    assert words("draft") == ("serve", "draft", "--target", target, "--print")
    assert words(target) == ("serve", target, "--target", target, "--print")
    assert words(source) == ("build", "--target", target, "--source", source)
    for draft in ("grafted", "draft"):
        assert run(*words(draft)).code == 0


@pytest.mark.parametrize(("command", "target"), [("graft", "--into"), ("delta", "--against")])
def test_hints_call_the_layer_what_the_command_calls_it(run, tinyglm, in_folder, command, target):
    layer, name = shutil.copytree(tinyglm("bf16"), "layer"), "model.layers.3.eh_proj.weight"
    index = json.loads((in_folder / "layer/model.safetensors.index.json").read_text())
    shard = in_folder / "layer" / index["weight_map"].pop(name)
    (in_folder / "layer/model.safetensors.index.json").write_text(json.dumps(index))
    save_file({key: tensor for key, tensor in load_file(shard).items() if key != name}, shard)
    ran = run(command, layer, target, tinyglm("awq-int4"), "-o", "out")
    assert "`eh_proj` of the MTP layer is missing" in ran.err
    assert ran.err.endswith("hint: download the checkpoint again, or name another `DRAFT`\n")
    assert (
        run(command, layer, target, tinyglm("awq-int4"), "-o", "out", "--json")
        .document["error"]["hint"]
        .endswith("name another `DRAFT`")
    )
    other = json.loads((in_folder / "layer/config.json").read_text())
    (in_folder / "layer/config.json").write_text(json.dumps(other | {"hidden_size": 4096}))
    assert (
        "name a source of the target's model: `ORG/NAME`, e.g. `"
        in run(command, layer, target, tinyglm("awq-int4"), "-o", "out").err
    )
