"""One draft for both engines: the first one's scheme, the second one's block, and no draft where they contradict."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from sglang_asked import in_sglang, verdicts

import mtpforge
from mtpforge import scheme as schemes
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES, Serving, engine_of, overlay
from mtpforge.engines.sglang.loader.request import Request
from mtpforge.engines.together import together
from mtpforge.engines.vllm import installed as vllm
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.report import Check, Report, Trap

VLLM_PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
in_vllm = pytest.mark.skipif(not VLLM_PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
BOTH = engine_of("both")
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["re:.*mlp[.]experts[.].*"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp[.]gate$", "re:.*eh_proj.*"],
}


@pytest.fixture
def targets(tinyglm, tmp_path):
    """Dense, FP8 and symmetric INT4."""
    folder = tmp_path / "int4"
    folder.mkdir()
    config = json.loads((tinyglm("bf16") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": INT4}))
    return {"dense": tinyglm("bf16"), "FP8": tinyglm("fp8"), "INT4": folder}


METHODS = {"dense": None, "FP8": "fp8", "INT4": "compressed-tensors"}


@pytest.mark.parametrize("name", METHODS)
def test_tensors_are_the_first_engine_s_and_the_block_tells_the_second(targets, name):
    target = open_checkpoint(str(targets[name]))
    family = family_of(target.config)
    wanted = BOTH.demands(target, None, family)
    assert wanted.rules == ENGINES["vllm"].demands(target, None, family).rules
    config = BOTH.draft_config(target, target.config, family, wanted, 16)
    assert config.get("quantization_config", {}).get("quant_method") == METHODS[name]
    assert config["moe_router_dtype"] == "float32"  # vLLM's alone
    assert BOTH.draft_traps(target.config, config, family, wanted) == ()
    found = ENGINES["sglang"].demands(target, config, family)
    for module in family.modules(target.config, 1):
        assert found.of(module.template).quantization == wanted.of(module.template).quantization


def test_both_commands_are_told(targets):
    target = open_checkpoint(str(targets["dense"]))
    family = family_of(target.config)
    made = BOTH.serve(target, "/drafts/one", Serving(), BOTH.demands(target, None, family))
    assert [command.argv[:2] for command in made.each] == [["vllm", "serve"], ["sglang", "serve"]]
    assert "sglang serve" in str(made)


def pair(first, second):
    """Both engines with fields that say something else."""
    return together(replace(ENGINES["vllm"], **first), replace(ENGINES["sglang"], **second))


@pytest.mark.parametrize("both", [(True, True), (True, False), (False, True), (False, False)])
def test_what_one_engine_lacks_the_pair_lacks(both):
    first, second = ({"runs": lambda _, has=has: has, "is_installed": lambda has=has: has} for has in both)
    made = pair(first, second)
    assert made.runs(None) is all(both)
    assert made.is_installed() is all(both)


def says(*answers):
    """What both answer, each by an answer or an error of its own."""

    def asked(answer):
        def ask(*_):
            if isinstance(answer, Exception):
                raise answer
            return answer

        return {"ask": ask}

    return pair(*map(asked, answers)).ask(Path("draft"), None, Serving(), None)


def dead(why, what="the engine's loader ended without a verdict", fix="try it by hand"):
    return MtpforgeError(what, why=why, fix=fix, code=5)


def absent(engine):
    return dead(f"{engine} is not installed beside python", "no engine found to ask")


def test_where_neither_answers_both_causes_and_ways_out_are_told():
    with pytest.raises(MtpforgeError) as refused:
        says(absent("vLLM"), dead("exit -9: Killed"))
    error = refused.value
    assert (error.what, error.code) == ("neither of two engines gave an answer", 5)
    vllm_s, sglang_s = error.why.split("; ")
    assert vllm_s == "vLLM is not installed beside python"
    assert sglang_s == "SGLang: the engine's loader ended without a verdict: exit -9: Killed"
    assert "--engine-python VLLM/bin/python:" in error.fix
    assert error.fix.endswith("; try it by hand")
    with pytest.raises(MtpforgeError) as refused:
        says(absent("vLLM"), absent("SGLang"))
    assert refused.value.what == "no engine found to ask"
    assert refused.value.why == "vLLM is not installed beside python; SGLang is not installed beside python"
    assert refused.value.fix.count("--engine-python") == 1


def test_one_engine_that_dies_leaves_the_other_s_answer():
    checks = (Check("engine loads the draft", "passed", "vLLM 0: as told"),)
    report = says(Report("validate", checks), dead("exit -9: Killed"))
    assert [(c.name, c.verdict) for c in report.checks] == [
        ("engine loads the draft (vLLM)", "passed"), ("engine loads the draft (SGLang)", "not checked"),
    ]  # fmt: skip
    assert report.checks[1].detail.endswith("exit -9: Killed")


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1)])
def test_a_rank_needs_room_for_the_engine_that_takes_more(sizes):
    assert pair(*({"memory": lambda *_, n=n: n} for n in sizes)).memory(None, {}, {}, Serving()) == 2


def test_what_either_ties_is_tied_and_what_both_take_is_taken():
    made = pair(
        {
            "tied_formats": frozenset({"a"}),
            "kv_cache_dtypes": ("auto", "x", "y"),
            "never_quantized": lambda _: {"gate"},
            "decoded_on_load": lambda _: {"one": frozenset("ab"), "two": frozenset("a")},
        },
        {
            "tied_formats": frozenset({"b"}),
            "kv_cache_dtypes": ("y", "auto"),
            "never_quantized": lambda _: {"head"},
            "decoded_on_load": lambda _: {"one": frozenset("bc"), "three": frozenset("a")},
        },
    )
    assert (made.tied_formats, made.kv_cache_dtypes) == ({"a", "b"}, ("auto", "y"))
    assert made.never_quantized(None) == {"gate", "head"}
    assert made.decoded_on_load(None) == {"one": {"b"}}


def test_a_trap_that_both_find_in_one_place_is_said_once():
    here, there = (Trap("id", "warning", "said", where=where) for where in ("here", "there"))
    made = pair({"path_traps": lambda _: (here,)}, {"path_traps": lambda _: (here, there)})
    assert made.path_traps("draft") == (here, there)


def test_of_a_key_that_both_state_the_first_engine_s_value_stands():
    config = {"one": 1, "quantization_config": "first"}, {"one": 2, "two": 2, "quantization_config": "second"}
    made = pair(*({"draft_config": lambda *_, said=said: said} for said in config))
    assert made.draft_config(None, {}, None, None, 1) == {"one": 1, "two": 2, "quantization_config": "second"}


def test_zero_points_contradict_and_what_both_take_is_offered(tinyglm, targets):
    config = json.loads((targets["INT4"] / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = False
    (targets["INT4"] / "config.json").write_text(json.dumps(config))
    target, source = str(targets["INT4"]), str(tinyglm("bf16"))
    with pytest.raises(MtpforgeError, match="no draft beside this target loads in both") as refused:
        mtpforge.plan(target, source, engine="both")
    assert "its experts take no zero points" in refused.value.why
    offered = refused.value.fix.partition("one of: ")[2].partition(";")[0].split(", ")
    assert "bf16" in offered
    assert "int4-g32-asym" not in offered
    assert "quantization_config" not in mtpforge.plan(target, source, engine="both", scheme="bf16").config


def test_a_whole_draft_is_built_and_verified_for_both(targets, tmp_path):
    made = mtpforge.build(str(targets["FP8"]), str(targets["FP8"]), engine="both", out=tmp_path / "out", check="off")
    report = mtpforge.verify(made.path, str(targets["FP8"]), engine="both")
    assert report.ok, report
    for engine in ENGINES:
        assert mtpforge.verify(made.path, str(targets["FP8"]), engine=engine).ok


@pytest.mark.engine
@in_sglang
@in_vllm
def test_both_loaders_take_the_drafts(targets, tinyglm, tmp_path):
    """Dense, FP8 and symmetric INT4, each built from the dense layer."""
    requests = {}
    for name, folder in targets.items():
        made = mtpforge.build(str(folder), str(tinyglm("bf16")), engine="both", out=tmp_path / name)
        requests[name] = Request(str(folder), str(made.path))
        report = vllm.check(made.path, folder, python=VLLM_PYTHON)
        assert report.ok, report.facts["errors"]
    assert {name: found.get("errors") for name, found in verdicts(requests).items()} == {name: [] for name in targets}


@pytest.mark.parametrize("name", ["target-fp8", "target-w4a16-mtp-canada-quant"])
def test_a_preset_is_proposed_exactly_if_a_draft_can_be_planned_by_it(name, release_config, tmp_path):
    """Of what one engine alone could be told, the other would load less: w4a16's INT4 attention."""
    (tmp_path / "config.json").write_text(json.dumps(release_config(name)))
    target = open_checkpoint(str(tmp_path))
    family = family_of(target.config)
    with pytest.raises(MtpforgeError) as refused:
        overlay.beside(target, BOTH, schemes.load("w4afp8"))
    proposed = refused.value.fix.removeprefix("`--scheme` with one of: ").split(", ")
    for preset in schemes.names():
        try:
            told, scheme = overlay.attempt(target, BOTH, schemes.load(preset))
            BOTH.demands(told, BOTH.draft_config(told, target.config, family, scheme, 8), family)
            is_taken = True
        except MtpforgeError:
            is_taken = False
        assert is_taken is (preset in proposed), preset


def test_what_both_refuse_by_the_target_proposes_the_same_presets(release_config, tmp_path):
    config = release_config("target-w4a16-mtp-canada-quant")
    config["quantization_config"]["ignore"] = ["lm_head"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    target = open_checkpoint(str(tmp_path))
    with pytest.raises(MtpforgeError) as refused:
        BOTH.demands(target, None, family_of(target.config))
    with pytest.raises(MtpforgeError) as other:
        overlay.beside(target, BOTH, schemes.load("w4afp8"))
    assert refused.value.fix == f"{other.value.fix}; or make two drafts, one by `--engine` of each"
