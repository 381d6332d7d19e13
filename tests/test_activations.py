"""Where the scales of static activations come from, and what is said when there are none."""

from __future__ import annotations

import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from mtpforge.checkpoint import open_checkpoint, open_scales
from mtpforge.errors import MtpforgeError
from mtpforge.planning import plan


@pytest.fixture
def config_alone(tinyglm, tmp_path):
    shutil.copy(tinyglm("nvfp4") / "config.json", tmp_path)
    return open_checkpoint(str(tmp_path))


def scale_moves(made):
    return [scale for step in made.steps for scale in step.input_scales]


def test_no_scale_anywhere_is_an_error_that_names_the_option(tinyglm, config_alone):
    with pytest.raises(MtpforgeError, match=r"no input scale for .*experts\.0\.gate_proj") as caught:
        plan(open_checkpoint(str(tinyglm("bf16"))), config_alone)
    assert "--input-scales" in caught.value.fix


def test_named_checkpoint_gives_the_scales_of_its_own_layer(tinyglm, config_alone):
    given = open_checkpoint(str(tinyglm("nvfp4")))
    moves = scale_moves(plan(open_checkpoint(str(tinyglm("bf16"))), config_alone, input_scales=given))
    assert {ref.origin for move in moves for ref in move.reads} == {"scales"}
    assert {move.reason for move in moves} == {"input scale from the `--input-scales` checkpoint's own MTP layer"}


def test_file_of_scales_alone_is_taken_as_written_for_the_draft(tinyglm, config_alone, tmp_path):
    scales = {}
    for file in sorted(tinyglm("nvfp4").glob("*.safetensors")):
        with safe_open(file, "pt") as held:
            scales |= {n: held.get_tensor(n) for n in held.keys() if n.endswith("input_scale")}  # noqa: SIM118
    file = tmp_path / "measured.safetensors"
    save_file(scales, file)
    given = open_scales(str(file), config_alone.config)
    assert given.names == scales.keys()
    moves = scale_moves(plan(open_checkpoint(str(tinyglm("bf16"))), config_alone, input_scales=given))
    assert moves
    assert all(move.read_divisor == move.write_divisor and not move.read_reciprocal for move in moves)
