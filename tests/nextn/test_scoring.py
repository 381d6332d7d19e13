"""reap and frequency against plain loops, and against what llm-compressor's own modifier gives the same layer."""

from __future__ import annotations

import math

import pytest
import torch
from nextn.calibration import SEQUENCES, STORED, captured, twin, write
from pruning.counting import CountingCheckpoint
from pruning.layers import pruned_copy
from slow_twins import decoder

from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.nextn import inputs, layer, scoring
from mtpforge.nextn.hessians import Calibration
from mtpforge.pruning import METHODS

N_ROUTED = 4 * sum(len(ids) - 1 for ids in SEQUENCES)
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def file(tinyglm, tmp_path):
    return inputs.read(write(tmp_path / "inputs.safetensors", captured(tinyglm("bf16"))))


@pytest.fixture
def opened(tinyglm):
    return lambda layout: open_checkpoint(str(tinyglm(layout)))


def test_scores_are_those_of_plain_loops(tinyglm, opened, file):
    tensors, config = twin(tinyglm("bf16"))
    w, rows = decoder.layer_of(tensors, 3), []
    for ids, positions, hidden in captured(tinyglm("bf16")):
        entered = decoder.mtp_rows(tensors, config, ids, hidden.double(), positions)
        rows += decoder.attended(w, config, entered, positions[:-1])[0]
    reap, frequency = decoder.saliency(w, config, rows)
    found = scoring.scores(opened("bf16"), opened("awq-int4"), file)
    assert list(found) == [name for name in ("reap", "frequency") if METHODS[name].needs == "inputs"]
    assert found["reap"] == pytest.approx(reap, rel=1e-5)
    assert found["frequency"] == tuple(frequency)
    assert sum(frequency) == N_ROUTED


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_scores_of_a_main_layer_are_llm_compressors(tinyglm, opened, number):
    """Its REAP modifier ran on the whole model: tests/data/saliency/make.py."""
    tensors, config = twin(tinyglm("bf16"))
    rows = []
    for ids in STORED["token_ids"]:
        rows += attention_of(tensors, config, ids, number)
    found = scoring.of_rows(layer.block(opened("bf16"), number), torch.stack(rows).float())
    name = f"model.layers.{number}.mlp"
    assert found["frequency"] == tuple(STORED["tokens"][name])
    assert found["reap"] == pytest.approx(STORED["saliency"][name], rel=1e-5)


def attention_of(tensors, config, ids, number):
    """Rows of a main layer that attention was added to; layer 2 attends to the keys that layer 1 chose."""
    rows, chosen = [tensors[EMBEDDING][token] for token in ids], None
    for n in range(number + 1):
        w = decoder.layer_of(tensors, n)
        rows, chosen = decoder.attended(w, config, rows, range(len(rows)), chosen)
        if n < number:
            rows = [decoder.fed(w, config, row) for row in rows]
    return rows


def test_expert_that_nobody_is_routed_to_scores_nothing(tinyglm, opened, file, tmp_path):
    def shun(tensors):
        tensors["mlp.gate.e_score_correction_bias"][5] = -100.0

    before = scoring.scores(opened("bf16"), opened("bf16"), file)
    assert before["frequency"][5] > 0
    copy = pruned_copy(tinyglm("bf16"), tmp_path / "c", range(16), shun)
    found = scoring.scores(copy, opened("bf16"), file)
    assert (found["reap"][5], found["frequency"][5]) == (0.0, 0.0)
    assert sum(found["frequency"]) == N_ROUTED


def test_embedding_is_read_row_by_row_and_taken_from_whoever_has_it(tinyglm, opened, file, tmp_path):
    tokens = {token for ids in SEQUENCES for token in ids}
    layer_alone = pruned_copy(tinyglm("bf16"), tmp_path / "c", range(16))
    assert EMBEDDING not in layer_alone.names
    target = CountingCheckpoint(opened("bf16"))
    found = scoring.scores(layer_alone, target, file)
    assert set(target.read_names) == target.fetched == {EMBEDDING}
    assert target.read_names[EMBEDDING] <= 2 * 256 * len(tokens) < 512 * 256 * 2
    source = CountingCheckpoint(opened("bf16"))
    assert scoring.scores(source, opened("awq-int4"), file) == found
    assert EMBEDDING in source.read_names

    def add(tensors):
        tensors["embed_tokens.weight"] = twin(tinyglm("bf16"))[0][EMBEDDING].bfloat16()

    with_copy = pruned_copy(tinyglm("bf16"), tmp_path / "d", range(16), add)
    assert scoring.scores(with_copy, layer_alone, file) == found


def test_nobody_has_an_embedding(tinyglm, file, tmp_path):
    alone = pruned_copy(tinyglm("bf16"), tmp_path / "c", range(16))
    with pytest.raises(MtpforgeError, match="the token embedding is missing") as caught:
        scoring.scores(alone, alone, file)
    assert "`--prune-by bias`" in caught.value.fix


def test_embedding_that_is_not_as_wide_as_the_layer_is_refused(tinyglm, file, tmp_path):
    def add(tensors):
        tensors["embed_tokens.weight"] = torch.ones(512, 127).bfloat16()

    alone = pruned_copy(tinyglm("bf16"), tmp_path / "c", range(16), add)
    with pytest.raises(MtpforgeError, match=r"is BF16 \[512, 127\], plain numbers \[tokens, 128\] are needed"):
        scoring.scores(alone, alone, file)


def test_inputs_of_another_model_are_refused(tinyglm, opened, tmp_path):
    ((ids, positions, hidden), *_) = captured(tinyglm("bf16"))
    narrow = inputs.read(write(tmp_path / "narrow", [(ids, positions, hidden[:, :100].contiguous())]))
    with pytest.raises(MtpforgeError, match="captured from another model") as caught:
        scoring.scores(opened("bf16"), opened("bf16"), narrow)
    assert caught.value.why == "its hidden states have 100 columns, the layer's model has 128"
    foreign = inputs.read(write(tmp_path / "foreign", [((512, *ids[1:]), positions, hidden)]))
    with pytest.raises(MtpforgeError, match="captured from another model") as caught:
        scoring.scores(opened("bf16"), opened("bf16"), foreign)
    assert caught.value.why == "it holds token 512, the layer's model has 512"


@pytest.mark.parametrize("more", [4096, 10**15, 2**62])
def test_positions_that_the_model_does_not_have_are_refused(tinyglm, opened, tmp_path, more):
    """By the scores and by what codes are fitted to; the second sequence ends at the last position that there is."""
    first, (ids, _, hidden) = captured(tinyglm("bf16"))
    last = tuple(range(4096 - len(ids), 4096))
    file = inputs.read(write(tmp_path / "fits", [first, (ids, last, hidden)]))
    assert sum(scoring.scores(opened("bf16"), opened("bf16"), file)["frequency"]) == N_ROUTED
    assert Calibration(opened("bf16"), opened("bf16"), file).kept == tuple(range(16))
    off = tuple(range(more - len(ids) + 1, more + 1))
    file = inputs.read(write(tmp_path / "off", [first, (ids, off, hidden)]))
    for use in (scoring.scores, Calibration):
        with pytest.raises(MtpforgeError) as caught:
            use(opened("bf16"), opened("bf16"), file)
        limit = "`max_position_embeddings` of the model is 4,096"
        assert caught.value.why == f"rows 70 to 111 reach position {more:,}, {limit}"
        assert caught.value.where == f"{tmp_path}/off, tensor positions"


def test_single_tokens_have_nothing_to_run(tinyglm, opened, tmp_path):
    ((ids, _, hidden), *_) = captured(tinyglm("bf16"))
    alone = [(ids[n : n + 1], (n,), hidden[n : n + 1]) for n in range(3)]
    file = inputs.read(write(tmp_path / "single", alone))
    with pytest.raises(MtpforgeError, match="the inputs hold sequences of one token alone"):
        scoring.scores(opened("bf16"), opened("bf16"), file)
    mixed = inputs.read(write(tmp_path / "mixed", [alone[0], (ids[:9], tuple(range(9)), hidden[:9]), alone[1]]))
    assert sum(scoring.scores(opened("bf16"), opened("bf16"), mixed)["frequency"]) == 4 * 8


def test_layer_without_one_of_its_tensors_is_refused(tinyglm, opened, file, tmp_path):
    copy = pruned_copy(tinyglm("bf16"), tmp_path / "c", range(16), lambda tensors: tensors.pop("hnorm.weight"))
    with pytest.raises(MtpforgeError, match=r"`model.layers.3.hnorm.weight` is missing"):
        scoring.scores(copy, opened("bf16"), file)


def test_progress_ends_with_the_last_expert(opened, file):
    seen = []
    scoring.scores(opened("bf16"), opened("bf16"), file, on_progress=seen.append)
    assert [(p.phase, p.total) for p in seen if p.done == p.total] == [("attend", 109), ("experts", 16)]
    assert all(math.isfinite(p.done) and p.unit == "items" for p in seen)
