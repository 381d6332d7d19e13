"""What a calibration gives each projection, against plain loops over the slow twin's rows."""

from __future__ import annotations

import threading

import pytest
import torch
from nextn.calibration import captured, twin, write
from pruning.counting import CountingCheckpoint
from slow_twins import decoder

from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.nextn import inputs, scoring
from mtpforge.nextn import layer as layers
from mtpforge.nextn.hessians import Calibration, hessian

CLOSE = {"rtol": 1e-4, "atol": 1e-3}  # float32 against float64
KEPT = (0, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15)


@pytest.fixture(scope="module")
def file(tinyglm, tmp_path_factory):
    return write(tmp_path_factory.mktemp("inputs") / "calib.safetensors", captured(tinyglm("bf16")))


def calibration(tinyglm, file, kept=None, source=None):
    source = source or open_checkpoint(str(tinyglm("bf16")))
    made = Calibration(source, source, inputs.read(file), kept)
    made.run()
    return made


@pytest.fixture(scope="module")
def ours(tinyglm, file):
    return calibration(tinyglm, file)


@pytest.fixture(scope="module")
def layer(tinyglm):
    """The twin's tensors of the MTP layer, its config, and the normed rows that its experts are given."""
    tensors, config = twin(tinyglm("bf16"))
    w, rows = decoder.layer_of(tensors, 3), []
    for ids, positions, hidden in captured(tinyglm("bf16")):
        entered = decoder.mtp_rows(tensors, config, ids, hidden.double(), positions)
        rows += decoder.attended(w, config, entered, positions[:-1])[0]
    return w, config, [decoder.norm(row, w["post_attention_layernorm.weight"], config) for row in rows]


def plain_hessian(rows):
    n, total = len(rows[0]), torch.zeros(len(rows[0]), len(rows[0]), dtype=torch.float64)
    for row in rows:
        total += torch.outer(row, row)
    total *= 2 / len(rows)
    share = float(sum(total[i, i] for i in range(n))) / n * n / len(rows)
    for i in range(n):
        total[i, i] += share
    return total


def middle(w, expert, row):
    gate, up = (w[f"{expert}.{part}_proj.weight"] @ row for part in ("gate", "up"))
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("number", [0, 7, 15])
def test_hessians_of_an_expert_are_those_of_a_plain_loop(ours, layer, number):
    w, config, rows = layer
    own, name = [x for x in rows if number in decoder.gates(w, config, x)], f"mlp.experts.{number}"
    assert 5 < len(own) < len(rows)
    for part in ("gate_proj", "up_proj"):
        seen = ours.seen(f"{name}.{part}")
        torch.testing.assert_close(seen.double(), torch.stack(own), **CLOSE)
        torch.testing.assert_close(hessian(seen).double(), plain_hessian(own), **CLOSE)
    between = [middle(w, name, x) for x in own]
    torch.testing.assert_close(
        hessian(ours.seen(f"{name}.down_proj")).double(), plain_hessian(between), rtol=1e-3, atol=1e-2
    )


def test_shared_experts_see_every_row(ours, layer):
    w, _, rows = layer
    torch.testing.assert_close(ours.seen("mlp.shared_experts.up_proj").double(), torch.stack(rows), **CLOSE)
    wanted = torch.stack([middle(w, "mlp.shared_experts", x) for x in rows])
    torch.testing.assert_close(ours.seen("mlp.shared_experts.down_proj").double(), wanted, **CLOSE)


def test_rows_go_to_the_experts_that_stay(tinyglm, file, layer):
    """Tokens of a dropped expert are the others' then, and it is never read."""
    w, config, rows = layer
    source = CountingCheckpoint(open_checkpoint(str(tinyglm("bf16"))))
    pruned = calibration(tinyglm, file, KEPT, source)
    fewer = {name: w[name][list(KEPT)] for name in ("mlp.gate.weight", "mlp.gate.e_score_correction_bias")}
    for place, number in enumerate(KEPT):
        own = [x for x in rows if place in decoder.gates(fewer, config, x)]
        seen = pruned.seen(f"mlp.experts.{number}.gate_proj")
        torch.testing.assert_close(seen.double(), torch.stack(own), **CLOSE)
        pruned.seen(f"mlp.experts.{number}.down_proj")
    read = {int(name.split(".experts.")[1].split(".")[0]) for name in source.read_names if ".experts." in name}
    assert read == set(KEPT)


def test_gate_and_up_share_a_factor_that_is_made_once(ours, monkeypatch):
    made, seen = [], ours.seen

    def counting(module):
        made.append(module)
        return seen(module)

    monkeypatch.setattr(ours, "seen", counting)
    ours._factors.clear()
    modules = [f"mlp.experts.4.{part}_proj" for part in ("gate", "up") * 4]
    found = []
    threads = [threading.Thread(target=lambda m=m: found.append(ours.factor(m))) for m in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(each is found[0] for each in found)


def test_no_more_than_two_factors_are_held(ours):
    for number in range(5):
        for part in ("gate_proj", "up_proj", "down_proj"):
            assert ours.factor(f"mlp.experts.{number}.{part}") is not None
    assert list(ours._factors) == ["mlp.experts.4", "mlp.experts.4.down_proj"]


def test_an_expert_that_sees_nothing_has_no_factor(ours, monkeypatch):
    routed = ours._routed
    monkeypatch.setattr(ours, "_routed", type(routed)(routed.experts.clamp(max=8), routed.gates))
    ours._factors.clear()
    assert ours.seen("mlp.experts.12.down_proj").shape == (0, 128)
    assert ours.factor("mlp.experts.12.down_proj") is None
    ours._factors.clear()


def test_everything_runs_on_one_thread_and_the_caller_keeps_his(tinyglm, file, monkeypatch):
    """How a product is split among threads may change its last bits, and so a code."""
    seen, attended, route = [], scoring.attended, layers.route
    monkeypatch.setattr(scoring, "attended", lambda *a: (seen.append(torch.get_num_threads()), attended(*a))[1])
    monkeypatch.setattr(layers, "route", lambda *a: (seen.append(torch.get_num_threads()), route(*a))[1])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        calibration(tinyglm, file)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]


def test_inputs_of_another_model_are_refused_before_anything_is_run(tinyglm, tmp_path):
    ((ids, positions, hidden), *_) = captured(tinyglm("bf16"))
    narrow = write(tmp_path / "narrow.safetensors", [(ids, positions, hidden[:, :64].contiguous())])
    source = open_checkpoint(str(tinyglm("bf16")))
    with pytest.raises(MtpforgeError, match="captured from another model"):
        Calibration(source, source, inputs.read(narrow))
