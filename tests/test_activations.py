"""Where the scales of static activations come from, and what is said when there are none."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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


def scale_names(folder):
    """Full names of the stored activation scales of a checkpoint, with their values."""
    held = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            held |= {n: opened.get_tensor(n) for n in opened.keys() if n.endswith("input_scale")}  # noqa: SIM118
    return held


def some_scales(tinyglm, tmp_path, config, wanted):
    """A file of scales alone: those whose name `wanted` takes."""
    held = {n: t for n, t in scale_names(tinyglm("nvfp4")).items() if wanted(n)}
    assert held
    save_file(held, tmp_path / "some.safetensors")
    return open_scales(str(tmp_path / "some.safetensors"), config)


def test_a_pruned_expert_takes_the_scale_of_the_expert_that_it_was(tinyglm, config_alone):
    kept = (0, 2, 3, 5, 6, 7, 8, 10, 11, 12, 14, 15)
    source = open_checkpoint(str(tinyglm("nvfp4")))
    number = lambda name: int(name.split(".experts.")[1].split(".")[0])  # noqa: E731
    moves = [m for m in scale_moves(plan(source, config_alone, kept=kept)) if ".mlp.experts." in m.write.name]
    assert {number(m.write.name) for m in moves} == set(range(len(kept)))
    assert all({number(ref.name) for ref in m.reads} == {kept[number(m.write.name)]} for m in moves)


def test_a_target_without_the_layer_gives_its_last_main_layer_s_scales(tinyglm, tmp_path):
    """Of that very layer, over all its experts: expert numbers of two layers mean nothing to each other."""
    target = tmp_path / "target"
    target.mkdir()
    shutil.copy(tinyglm("nvfp4") / "config.json", target)
    held = {n: t for n, t in scale_names(tinyglm("nvfp4")).items() if ".layers.3." not in n}
    save_file(held, target / "model.safetensors")
    save_file(held | codes(tinyglm, held), target / "model.safetensors")
    moves = scale_moves(plan(open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(target))))
    assert {m.reason for m in moves} == {"input scale from the target's last main layer, maximum over its experts"}
    assert {ref.name.split(".")[2] for m in moves for ref in m.reads} == {"2"}
    expert = next(m for m in moves if m.write.name.endswith("experts.4.down_proj.input_scale"))
    assert {ref.name for ref in expert.reads} == {
        n for n in held if ".layers.2." in n and "s.experts" not in n and ".experts." in n and "down_proj" in n
    }


def codes(tinyglm, scales):
    """The codes beside these scales: they tell what the scales mean."""
    held = {}
    for file in sorted(tinyglm("nvfp4").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names = {n.replace("input_scale", "weight") for n in scales} & set(opened.keys())
            held |= {n: opened.get_tensor(n) for n in names}
    return held


def test_half_a_fused_pair_of_scales_is_none(tinyglm, config_alone, tmp_path):
    """Gate and up share an input: one of two stored scales is no maximum of both."""
    given = some_scales(tinyglm, tmp_path, config_alone.config, lambda n: "up_proj" not in n)
    with pytest.raises(MtpforgeError, match="no input scale for"):
        plan(open_checkpoint(str(tinyglm("bf16"))), config_alone, input_scales=given)


def test_scales_without_codes_beside_them_mean_nothing_in_a_target(tinyglm, tmp_path):
    """Only a file that is given for the draft is taken at its word; FP8 and NVFP4 divide by different numbers."""
    target = tmp_path / "target"
    target.mkdir()
    shutil.copy(tinyglm("nvfp4") / "config.json", target)
    save_file(scale_names(tinyglm("nvfp4")), target / "model.safetensors")
    with pytest.raises(MtpforgeError, match="cannot tell what `input_scale` means here"):
        plan(open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(target)))


def scales_and_codes(tinyglm, folder, algorithm, dtype):
    """The tiny NVFP4 layer, under another algorithm's name and with block scales of another dtype."""
    tensors = {}
    for file in sorted(tinyglm("nvfp4").glob("*.safetensors")):
        tensors |= load_file(file)
    folder.mkdir()
    cast = {n: t.to(dtype) if n.endswith("weight_scale") else t for n, t in tensors.items()}
    save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tinyglm("nvfp4") / "config.json").read_text())
    config["quantization_config"]["quant_algo"] = algorithm
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("algorithm", "dtype", "is_known"),
    [
        ("NVFP4", torch.float8_e4m3fn, True),
        ("W4A8_NVFP4_FP8", torch.float8_e4m3fn, False),
        ("W4A8_AWQ", torch.float32, False),
    ],
)
def test_scales_of_fp8_activations_are_not_taken_for_those_of_nvfp4(
    tinyglm, config_alone, tmp_path, algorithm, dtype, is_known
):
    """ModelOpt 0.47.0 stores codes as U8 in all three; in the last two `input_scale` is amax / 448, six times more."""
    given = scales_and_codes(tinyglm, tmp_path / "given", algorithm, dtype)
    source = open_checkpoint(str(tinyglm("bf16")))
    if is_known:
        assert scale_moves(plan(source, config_alone, input_scales=given))[0].read_divisor == 2688
        return
    with pytest.raises(MtpforgeError, match="cannot tell what `input_scale` means here"):
        plan(source, config_alone, input_scales=given)
