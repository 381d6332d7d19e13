"""Grafts for SGLang, which takes a layer from the target's own folder: what our rules say, what its loader says."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from sglang_asked import in_sglang, verdicts

import mtpforge
from mtpforge import cli
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import engine_of, overlay
from mtpforge.engines.engine import own_config
from mtpforge.engines.sglang import SGLANG
from mtpforge.engines.sglang.loader.request import Request
from mtpforge.engines.sglang.serving import least_capability
from mtpforge.engines.vllm import VLLM, installed
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.scheme import Rule, Scheme, load
from mtpforge.tensors import BF16, Quantization

VLLM_PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
CHANNEL = Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic")
INT4 = Quantization("pack_quantized", 4, strategy="group", group_size=32, scale_dtype="BF16")
DENSE = ("eh_proj", "mlp.gate", "self_attn.indexer.wk", "self_attn.indexer.weights_proj")


def scheme(name, **kinds):
    rows = [*dict.fromkeys(DENSE, BF16).items(), ("mlp.experts.*", kinds["experts"]), ("*", kinds["rest"])]
    return Scheme(name, tuple(Rule(pattern, q, "") for pattern, q in rows))


FP8_CHANNEL = scheme("fp8-channel", experts=CHANNEL, rest=CHANNEL)
INT4_EXPERTS = scheme("int4-experts", experts=INT4, rest=BF16)
# layer, target, scheme that is asked for, engine, name of what goes in
MADE = (
    ("bf16", "awq-int4", None, "sglang", "bf16"),
    ("bf16", "nvfp4", None, "sglang", "bf16"),
    ("bf16", "fp8", None, "sglang", "bf16"),
    ("fp8", "bf16", None, "sglang", "fp8-block128"),
    ("fp8", "fp8", None, "sglang", "fp8-block128"),
    ("nvfp4", "int4-int8mix", None, "sglang", "int8-channel"),
    ("bf16", "awq-int4", INT4_EXPERTS, "sglang", "int4-experts"),
    ("bf16", "bf16", FP8_CHANNEL, "sglang", "fp8-channel"),
    ("bf16", "awq-int4", FP8_CHANNEL, "sglang", "fp8-channel"),
    ("bf16", "bf16", INT4_EXPERTS, "sglang", "int4-experts"),
    ("bf16", "bf16", "mxfp8", "sglang", "mxfp8"),
    ("bf16", "awq-int4", None, "both", "bf16"),
    ("bf16", "nvfp4", None, "both", "bf16"),
    ("bf16", "fp8", None, "both", "bf16"),
    ("bf16", "int4-int8mix", None, "both", "bf16"),
    ("fp8", "bf16", None, "both", "fp8-block128"),
    ("bf16", "awq-int4", INT4_EXPERTS, "both", "int4-experts"),
)
FOR_BOTH = [row for row in MADE if row[3] == "both"]
# layer, target, scheme, words of ours, words of the loader on what vLLM takes
REFUSED = (
    ("fp8", "awq-int4", "fp8-block128", "is in FP8 blocks, the group of all linears is not", "is not subscriptable"),
    ("bf16", "awq-int4", "int8-channel", "`self_attn.q_a_proj` as INT8 channel", "no attribute 'weight'"),
    ("fp8", "nvfp4", "mxfp8", "ModelOpt's", ""),
)


def made_of(tinyglm, home, row):
    layer, target, wanted, engine, _ = row
    return mtpforge.graft(tinyglm(layer), tinyglm(target), out=home, scheme=wanted, engine=engine, link="sym")


def opened(tinyglm, name):
    checkpoint = open_checkpoint(str(tinyglm(name)))
    return checkpoint, family_of(checkpoint.config)


@pytest.mark.parametrize("row", MADE, ids=lambda row: f"{row[0]} in {row[1]} by {row[3]}, {row[4]}")
def test_block_says_the_layer_and_leaves_the_model_alone(tinyglm, row):
    """By the rules alone: the layer under `model.decoder.`, and every matrix around it by both engines."""
    target, family = opened(tinyglm, row[1])
    wanted = load(row[4]) if row[2] in (None, row[4]) and row[4] != "int8-channel" else row[2]
    wanted = wanted or SGLANG.demands(target, None, family)
    told, found = overlay.carried(target, engine_of(row[3]), wanted)
    built = SGLANG.demands(told, own_config(told), family)
    for module in family.modules(target.config, 1):
        assert built.of(module.template).quantization == found.of(module.template).quantization
    assert SGLANG.disturbed(target, told, family) == ""
    if row[3] == "both":
        assert VLLM.disturbed(target, told, family) == ""
        ours = VLLM.demands(told, None, family)
        assert all(ours.of(r.pattern).quantization == built.of(r.pattern).quantization for r in built.rules)


def test_entries_for_the_layer_alone_are_added(tinyglm):
    """What stood in the block stands there still, or as an expression that leaves out the layer."""
    target, _ = opened(tinyglm, "int4-int8mix")
    told, _ = overlay.carried(target, SGLANG, load("bf16"))
    before, after = target.quantization, told.quantization
    assert after["config_groups"] == before["config_groups"]
    assert after["format"] == before["format"]
    assert set(after["ignore"]) > set(before["ignore"])
    assert all("decoder" in entry for entry in set(after["ignore"]) - set(before["ignore"]))


def test_entry_that_would_leave_the_layer_dense_is_freed_of_it(tinyglm, tmp_path):
    config = json.loads((tinyglm("awq-int4") / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["lm_head", "re:.*mlp[.]experts.*", "self_attn.o_proj"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    target = open_checkpoint(str(tmp_path))
    family = family_of(config)
    told, _ = overlay.carried(target, SGLANG, INT4_EXPERTS)
    assert SGLANG.demands(told, own_config(told), family).of("mlp.experts.*.up_proj").quantization == INT4
    ignore = told.quantization["ignore"]
    assert "re:.*mlp[.]experts.*" not in ignore
    assert "re:(?!model[.](?:decoder|layers[.]3)[.])(?:.*mlp[.]experts.*)" in ignore


def test_block_that_changes_a_matrix_around_the_layer_is_seen(tinyglm):
    target, family = opened(tinyglm, "int4-int8mix")
    other = target.restated({})
    for engine in (SGLANG, VLLM, engine_of("both")):
        assert engine.disturbed(target, target, family) == ""
        assert "would no longer be built as it is stored" in engine.disturbed(target, other, family)


@pytest.mark.parametrize("engine", ["sglang", "both"])
@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row[2]} in {row[1]}")
def test_what_its_loader_does_not_take_is_refused_by_name(tinyglm, tmp_path, row, engine):
    with pytest.raises(MtpforgeError) as caught:
        mtpforge.graft(tinyglm("bf16"), tinyglm(row[1]), out=tmp_path / "graft", scheme=row[2], engine=engine)
    assert row[3] in f"{caught.value.what} {caught.value.why}"
    assert caught.value.fix
    assert not (tmp_path / "graft").exists()


@pytest.mark.parametrize(
    ("name", "method", "why"),
    [
        ("gptq-int4-g128", "gptq", "follows no rule of `dynamic` for experts"),
        ("w4afp8", "w4afp8", "reads no list"),
        ("awq-int4-g128", "awq", "joins q_a_proj and kv_a_proj_with_mqa"),
    ],
)
def test_block_that_leaves_nothing_dense_does_not_go_into_a_dense_target(tinyglm, name, method, why):
    target, _ = opened(tinyglm, "bf16")
    with pytest.raises(MtpforgeError) as caught:
        overlay.carried(target, SGLANG, load(name))
    assert caught.value.what == f"a block of {method} does not leave the model around the layer as it is"
    assert why in caught.value.why


@pytest.mark.parametrize("method", ["auto-round", "exl3"])
def test_target_of_a_method_that_was_not_tried_is_refused_with_the_reason(tinyglm, tmp_path, method):
    config = json.loads((tinyglm("bf16") / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MtpforgeError) as caught:
        overlay.carried(open_checkpoint(str(tmp_path)), SGLANG, load("bf16"))
    assert caught.value.what == f"SGLang would not load a layer of scheme bf16 from a target of method `{method}`"
    assert "nothing is known of drafts of method" in caught.value.why


def test_target_in_awq_takes_what_its_block_makes_of_the_layer_and_nothing_else(tinyglm, tmp_path):
    target = shutil.copytree(tinyglm("bf16"), tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    listed = ["lm_head", "kv_b_proj"]
    block = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "modules_to_not_convert": listed}
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": block}))
    made = mtpforge.graft(tinyglm("bf16"), target, out=tmp_path / "graft", engine="sglang", link="sym")
    assert made.report.ok
    assert json.loads((made.path / "config.json").read_text())["quantization_config"] == block
    with pytest.raises(MtpforgeError, match="would not load a layer of scheme bf16 from a target of method `awq`"):
        mtpforge.graft(tinyglm("bf16"), target, out=tmp_path / "dense", scheme="bf16", engine="sglang", link="sym")


def test_serve_prints_both_commands_of_a_graft(tinyglm, tmp_path, capfd):
    made = made_of(tinyglm, tmp_path / "graft", ("bf16", "awq-int4", None, "both", "bf16"))
    assert made.report.ok
    assert made.document["engine"] == "both"
    assert cli.main(["serve", str(made.path), "--target", str(made.path), "--engine", "both", "--print"]) == 0
    printed = capfd.readouterr().out
    assert "vllm serve" in printed
    assert "sglang serve" in printed
    assert "--speculative-draft-model-path" not in printed
    delta = mtpforge.delta(tinyglm("bf16"), tinyglm("awq-int4"), out=tmp_path / "delta", engine="both")
    again = mtpforge.graft(None, tinyglm("awq-int4"), delta=delta.path, out=tmp_path / "again", link="sym")
    assert (again.path / "config.json").read_bytes() == (made.path / "config.json").read_bytes()


@pytest.mark.engine
@in_sglang
@pytest.mark.filterwarnings("ignore:warning. the target's experts have zero points")  # of the target, not the graft
def test_loader_takes_every_graft_that_the_rules_make_and_none_that_they_refuse(tinyglm, tmp_path):
    requests, refused = {}, {}
    for number, row in enumerate(MADE):
        made = made_of(tinyglm, tmp_path / str(number), row)
        command = command_of(made.path)
        flags = [f for f in ("--disable-shared-experts-fusion",) if f in command]
        least = least_capability(load("mxfp8" if row[2] == "mxfp8" else "bf16"))
        requests[f"{row}"] = Request(
            str(made.path), str(made.path), arguments=flags, same_config=False, capability=least
        )
    for row in (row for row in REFUSED if row[4]):
        out = tmp_path / f"refused-{row[2]}"
        made = mtpforge.graft(tinyglm("bf16"), tinyglm(row[1]), out=out, scheme=row[2], link="sym")  # as vLLM takes it
        requests[f"{row}"] = Request(str(made.path), str(made.path), same_config=False)
        refused[f"{row}"] = row[4]
    wrong = {}
    for name, found in verdicts(requests).items():
        said = found.get("errors", [found.get("error")])
        if bool(said) != (name in refused):
            wrong[name] = said[:3]
    assert wrong == {}


def command_of(path):
    return str(mtpforge.serve_command(path, path, engine="sglang"))


@pytest.mark.engine
@pytest.mark.skipif(not VLLM_PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
@pytest.mark.parametrize(
    "row", [row for row in MADE if row[3] == "both"], ids=lambda row: f"{row[0]} in {row[1]}, {row[4]}"
)
def test_vllm_takes_every_graft_that_is_for_both(tinyglm, tmp_path, row):
    made = made_of(tinyglm, tmp_path / "graft", row)
    report = installed.check(made.path, made.path, python=VLLM_PYTHON)
    assert report.ok, report.facts["errors"]
