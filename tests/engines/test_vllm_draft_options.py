"""Keys for cheaper drafts: offered where vLLM takes them, refused where it does not, with the numbers of the pair."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import mtpforge
from mtpforge import scheme as schemes
from mtpforge.engines import ENGINES, Serving
from mtpforge.engines.vllm.draft_options import OPTIONS
from mtpforge.errors import MtpforgeError

VLLM = ENGINES["vllm"]
PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
HEAD, SCHEDULE, SHARE = OPTIONS
ODD_SCHEDULES = (
    [],
    3,
    [[1, 2]],
    [[2, 8, 3]],
    [[1, 8, 3], [8, 9, 1]],
    [[4, 1, 3]],
    [[0, 4, 3]],
    [[1, 4, -1]],
)


@pytest.fixture
def command(release_config, target_of):
    """A release, changes of its config, options -> the command with a draft of BF16."""

    def make(name="target-bf16", *, k=3, preset="bf16", changed=(), **asked):
        config = {**release_config(name), **dict(changed)}
        serving = Serving(speculative_tokens=k, draft_options=asked)
        return VLLM.serve(target_of(config, location="/models/glm"), "/drafts/d", serving, schemes.load(preset))

    return make


def offered(command):
    return {flag.name: flag.value for flag in command.offers}


def speculative(command):
    return json.loads(command.argv[command.argv.index("--speculative-config") + 1])


def test_offers_beside_a_dense_target_and_no_flag_unasked(command):
    """GLM-5.2's own config says that iterations share indices: nothing is to be asked for."""
    found = command()
    assert offered(found) == {HEAD: "fp8", SCHEDULE: [[1, 32, 3], [33, 256, 1]]}
    assert speculative(found) == {"model": "/drafts/d", "method": "mtp", "num_speculative_tokens": 3}


def test_bytes_of_a_drafted_token_by_hand(command):
    """154880 x 6144 of the head; of the layer eh_proj, attention, indexer, router, shared and eight routed experts."""
    head = 154880 * 6144
    attention = 2048 * 6144 + 576 * 6144 + 64 * 256 * 2048 + 64 * (192 + 256) * 512 + 6144 * 64 * 256
    indexer = 32 * 128 * 2048 + 128 * 6144 + 32 * 6144
    layer = 2 * 6144 * 6144 + attention + indexer + 256 * 6144 + (1 + 8) * 3 * 2048 * 6144
    assert f"{2 * (head + layer) / 1e9:.2f}" == "3.09"
    (offer,) = (flag for flag in command().offers if flag.name == HEAD)
    assert "a drafted token reads 3.09 GB, 1.90 GB of it the head: 952 MB as fp8, 535 MB as nvfp4" in offer.reason


def test_one_token_at_a_time_leaves_nothing_to_share_or_to_cut(command):
    assert offered(command(k=1, changed={SHARE: False})) == {HEAD: "fp8"}


def test_sharing_is_offered_where_the_config_does_not_say_it(command):
    assert offered(command(changed={SHARE: False}))[SHARE] is True
    assert offered(command("target-glm-4.5")).keys() == {HEAD, SCHEDULE}


def test_what_is_asked_for_is_in_the_command_and_no_longer_offered(command):
    found = command(**{HEAD: "nvfp4", SCHEDULE: [[1, 8, 3], [9, 64, 0]]})
    assert speculative(found)[HEAD] == "nvfp4"
    assert speculative(found)[SCHEDULE] == [[1, 8, 3], [9, 64, 0]]
    assert offered(found) == {}


QUANTIZED_HEAD = {
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "ignore": ["model.layers.*"],
        "config_groups": {},
    }
}


@pytest.mark.parametrize(
    ("changed", "asked", "why"),
    [
        ({"head_dtype": "float32"}, {HEAD: "fp8"}, "`head_dtype` of the target is float32, not the model's bfloat16"),
        ({"dtype": "float32"}, {HEAD: "fp8"}, "the target's dtype is float32"),
        (QUANTIZED_HEAD, {HEAD: "fp8"}, "the target's lm_head is quantized already"),
        ({}, {HEAD: "int8"}, "one of fp8, nvfp4"),
        ({}, {SHARE: 1}, "true or false"),
        *(({}, {SCHEDULE: value}, "") for value in ODD_SCHEDULES),
    ],
)
def test_what_vllm_would_not_take_is_refused(changed, asked, why, command):
    with pytest.raises(MtpforgeError) as refused:
        command(changed=changed, **asked)
    assert refused.value.where == "option `--draft-option`"
    assert why in refused.value.why
    assert refused.value.code == 2


@pytest.mark.parametrize(("engine", "known"), [("vllm", ", ".join(OPTIONS)), ("sglang", "none")])
def test_keys_that_are_no_draft_options_are_refused(engine, known, tinyglm):
    asked = {"num_speculative_tokens": 5}
    with pytest.raises(MtpforgeError, match="`--draft-option num_speculative_tokens` is nothing that") as refused:
        mtpforge.serve_command(tinyglm("bf16"), tinyglm("bf16"), engine=engine, draft_options=asked)
    assert (refused.value.code, refused.value.why) == (2, f"known: {known}")


def test_sharing_is_refused_where_nothing_would_be_shared(command):
    with pytest.raises(MtpforgeError, match="does not apply") as refused:
        command("target-glm-4.5", index_share_for_mtp_iteration=True)
    assert "no indexer" in refused.value.why


@pytest.mark.engine
@pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
def test_vllm_takes_what_is_offered_and_refuses_what_we_refuse(command, release_config, tmp_path):
    folders = {}
    for name, changed in (("target-bf16", {SHARE: False}), ("target-nvfp4-nvidia", {}), ("target-glm-4.5", {})):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_text(json.dumps({**release_config(name), **changed}))
    cases, expected = [], []
    for name, folder in folders.items():
        said = {**speculative(command(name)), "model": str(folder)}
        offers = offered(command(name, changed=json.loads((folder / "config.json").read_text())))
        assert offers
        cases += [(str(folder), said | {key: value}, {}) for key, value in offers.items()]
        cases.append((str(folder), {**said, **offers, HEAD: "nvfp4"}, {}))
    expected += [""] * len(cases)
    plain = {"model": str(folders["target-bf16"]), "method": "mtp", "num_speculative_tokens": 3}
    odd = [(plain["model"], {**plain, SCHEDULE: value}, {}) for value in ODD_SCHEDULES]
    odd += [(plain["model"], {**plain, HEAD: "int8"}, {})]
    heads = tmp_path / "head"
    heads.mkdir()
    (heads / "config.json").write_text(json.dumps(release_config("target-bf16") | {"head_dtype": "float32"}))
    odd += [(str(heads), {**plain, "model": str(heads), HEAD: "fp8"}, {})]
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("vllm_draft_options.py"))],
        input=json.dumps(cases + odd),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.rindex('{"said"') :])
    assert found["said"][: len(cases)] == expected
    assert all(found["said"][len(cases) :]), found["said"][len(cases) :]
    assert "needs an unquantized fp16/bf16 lm_head" in found["facts"]["copy of a quantized head"]
    assert found["facts"]["shares"] == {"glm_moe_dsa": True, "glm4_moe": False}
