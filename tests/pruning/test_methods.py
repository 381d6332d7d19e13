"""Scores against slow plain loops over the tensors as safetensors' own reader gives them."""

from __future__ import annotations

import math

import pytest
import torch
from pruning.counting import CountingCheckpoint
from pruning.layers import PREFIX, layer_of, tensors_of

from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.pruning import DEFAULT_METHOD, INPUTS_METHOD, METHODS, methods
from mtpforge.pruning.expert_choice import scores

N = 16


@pytest.fixture
def counted(tinyglm):
    checkpoint = CountingCheckpoint(open_checkpoint(str(tinyglm("bf16"))))
    return checkpoint, layer_of(checkpoint), tensors_of(tinyglm("bf16"))


def test_bias_is_the_correction_bias_and_reads_nothing_else(counted):
    checkpoint, layer, tensors = counted
    found = scores(checkpoint, layer, ["bias"])["bias"]
    assert list(found) == tensors["mlp.gate.e_score_correction_bias"].tolist()
    assert checkpoint.read_names == {f"{PREFIX}mlp.gate.e_score_correction_bias": 4 * N}
    assert checkpoint.fetched == set(checkpoint.read_names)


def test_router_norm_is_the_length_of_each_row_and_reads_no_expert(counted):
    checkpoint, layer, tensors = counted
    found = scores(checkpoint, layer, ["router-norm"])["router-norm"]
    for row, score in zip(tensors["mlp.gate.weight"].tolist(), found, strict=True):
        assert score == pytest.approx(math.sqrt(sum(value * value for value in row)), rel=1e-12)
    assert checkpoint.read_names.keys() == {f"{PREFIX}mlp.gate.weight", f"{PREFIX}mlp.gate.e_score_correction_bias"}
    assert checkpoint.fetched == set(checkpoint.read_names)


def test_aimer_is_mean_magnitude_over_root_mean_square_of_all_three_matrices(counted):
    checkpoint, layer, tensors = counted
    found = scores(checkpoint, layer, ["aimer"])["aimer"]
    for expert in (0, 7, 15):
        values = []
        for part in ("gate_proj", "up_proj", "down_proj"):
            values += tensors[f"mlp.experts.{expert}.{part}.weight"].flatten().tolist()
        mean = sum(abs(v) for v in values) / len(values)
        assert found[expert] == pytest.approx(mean / math.sqrt(sum(v * v for v in values) / len(values)), rel=1e-9)
    assert len(found) == N


def test_aimer_does_not_depend_on_how_the_weights_come_in():
    weights = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    whole = methods.aimer([weights])
    assert methods.aimer(weights.split(128)) == pytest.approx(whole, rel=1e-12)
    assert methods.aimer([torch.ones(3, 4), -torch.ones(2, 4)]) == 1.0
    assert methods.aimer([torch.zeros(3, 4)]) == math.inf


@pytest.mark.parametrize("layout", ["fp8", "nvfp4", "int4-int8mix"])
def test_quantized_experts_score_close_to_the_dense_ones(tinyglm, counted, layout):
    dense = scores(*counted[:2], ["aimer"])["aimer"]
    checkpoint = open_checkpoint(str(tinyglm(layout)))
    found = scores(checkpoint, layer_of(checkpoint), ["aimer"])["aimer"]
    assert found == pytest.approx(dense, abs=0.03)
    assert found != dense


def test_bias_of_every_float_dtype_is_read_without_torch(tmp_path):
    from safetensors.torch import save_file

    from mtpforge.checkpoint import header
    from mtpforge.pruning.reading import vector

    values = torch.tensor([0.0, -1.5, 3.0625, 1e-3])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        file = tmp_path / "model.safetensors"
        save_file({"v": values.to(dtype)}, file)
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")

        class Held:
            def fetch(self, refs):
                pass

            def read(self, ref, into):
                into[:] = raw[ref.start : ref.stop]  # noqa: B023 -- used within the loop

        ref = header.parse(raw[8 : 8 + length], file.name, len(raw))["v"]
        assert list(vector(Held(), ref)) == values.to(dtype).float().tolist()


def test_method_that_needs_inputs_says_so_and_takes_scores_that_are_given(counted):
    checkpoint, layer, _ = counted
    with pytest.raises(MtpforgeError, match="`reap` needs inputs to score experts"):
        scores(checkpoint, layer, ["reap"])
    given = [float(n) for n in range(N)]
    assert scores(checkpoint, layer, ["reap"], {"reap": given}) == {"reap": tuple(given)}
    for wrong in (given[:-1], [*given[:-1], math.nan]):
        with pytest.raises(MtpforgeError, match="the scores of `reap` are"):
            scores(checkpoint, layer, ["reap"], {"reap": wrong})


def test_table_says_what_each_method_needs():
    needs = {name: method.needs for name, method in METHODS.items()}
    assert needs == {
        "file": "list",
        "bias": "router",
        "router-norm": "router",
        "aimer": "experts",
        "frequency": "inputs",
        "reap": "inputs",
    }
    assert METHODS[DEFAULT_METHOD].needs == "router"
    assert METHODS[INPUTS_METHOD].needs == "inputs"
    assert {name for name, m in METHODS.items() if m.drops == "highest"} == {"bias", "aimer"}
