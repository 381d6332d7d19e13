"""Each silent trap injected into a good draft: the engine would load it, `verify` with a source must name it."""

from __future__ import annotations

import pytest
import torch
from drafts import Tensors, changed, failed, nibbles, words

pytestmark = pytest.mark.usefixtures("both_ways")
P = "model.layers.3."


@pytest.mark.parametrize("name", ["int4", "ct-nvfp4", "nvfp4", "fp8"])
def test_the_good_draft_passes(made, name):
    report = made(name).verify(made(name).draft)
    assert failed(report) == {}
    assert {c.name for c in report.checks if c.verdict == "not checked"} == {"loader", "version"}


def expert(number: int, projection: str, suffix: str) -> str:
    return f"{P}mlp.experts.{number}.{projection}.{suffix}"


def swap(tensors: Tensors, one: str, other: str) -> None:
    for name in [name for name in tensors if name.startswith(one)]:
        partner = other + name.removeprefix(one)
        tensors[name], tensors[partner] = tensors[partner], tensors[name]


def gate_and_up_of_an_expert(tensors: Tensors) -> None:
    swap(tensors, expert(5, "gate_proj", ""), expert(5, "up_proj", ""))


def gate_and_up_of_the_shared_expert(tensors: Tensors) -> None:
    swap(tensors, f"{P}mlp.shared_experts.gate_proj.", f"{P}mlp.shared_experts.up_proj.")


def experts_rotated(tensors: Tensors) -> None:
    old = dict(tensors)
    for name in old:
        if ".mlp.experts." in name:
            number = int(name.split(".")[5])
            tensors[name] = old[name.replace(f".experts.{number}.", f".experts.{(number + 1) % 16}.")]


def zero_points_shifted(tensors: Tensors) -> None:
    name = expert(3, "down_proj", "weight_zero_point")
    tensors[name] = words((nibbles(tensors[name]) + 1) % 16)


def zero_points_ignored(tensors: Tensors) -> None:
    name = expert(3, "up_proj", "weight_zero_point")
    tensors[name] = torch.full_like(tensors[name], 0x88888888 - (1 << 32))


def codes_at_the_zero_point(tensors: Tensors) -> None:
    for projection in ("gate_proj", "up_proj", "down_proj"):
        zero_points = nibbles(tensors[expert(7, projection, "weight_zero_point")].t()).t()
        tensors[expert(7, projection, "weight_packed")] = words(zero_points.repeat_interleave(32, 1))


def scales_doubled(tensors: Tensors) -> None:
    tensors[expert(0, "gate_proj", "weight_scale")] *= 2


def scales_hugely_too_large(tensors: Tensors) -> None:
    """The bound in units of the stored scale is then so wide that only the whole error tells."""
    codes_at_the_zero_point(tensors)
    tensors[expert(7, "gate_proj", "weight_scale")] *= 1e4


def codes_in_big_endian_order(tensors: Tensors) -> None:
    name = expert(2, "gate_proj", "weight_packed")
    tensors[name] = words(nibbles(tensors[name]).unflatten(-1, (-1, 8)).flip(-1).flatten(-2))


def router_rows_swapped(tensors: Tensors) -> None:
    for name in (f"{P}mlp.gate.weight", f"{P}mlp.gate.e_score_correction_bias"):
        tensors[name] = tensors[name][[1, 0, *range(2, 16)]]


def router_row_of_another_model(tensors: Tensors) -> None:
    tensors[f"{P}mlp.gate.weight"][4] += 1


def bias_shifted(tensors: Tensors) -> None:
    tensors[f"{P}mlp.gate.e_score_correction_bias"] = tensors[f"{P}mlp.gate.e_score_correction_bias"].roll(1)


def norm_of_another_place(tensors: Tensors) -> None:
    tensors[f"{P}hnorm.weight"] = tensors[f"{P}enorm.weight"].clone()


def halves_of_eh_proj_swapped(tensors: Tensors) -> None:
    tensors[f"{P}eh_proj.weight"] = tensors[f"{P}eh_proj.weight"].roll(128, 1)


def last_bit_of_a_dense_weight(tensors: Tensors) -> None:
    tensors[f"{P}eh_proj.weight"].view(torch.int16)[7, 7] ^= 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (
            gate_and_up_of_an_expert,
            "values",
            "experts.5.gate_proj: holds the source's up_proj: gate_proj and up_proj are swapped",
        ),
        (gate_and_up_of_the_shared_expert, "values", "gate_proj and up_proj are swapped"),
        (
            experts_rotated,
            "values",
            "experts.0.gate_proj: holds the source's expert 1, its row of the router is expert 0's",
        ),
        (zero_points_shifted, "values", "experts.3.down_proj: zero points are shifted by -1"),
        (zero_points_ignored, "values", "experts.3.up_proj: zero points are shifted by group"),
        (codes_at_the_zero_point, "numbers", "experts.7.gate_proj: every weight is zero"),
        (codes_at_the_zero_point, "values", "experts.7.gate_proj: every weight is zero"),
        (scales_doubled, "values", "experts.0.gate_proj: decodes to 2.0"),
        (scales_hugely_too_large, "values", "experts.7.gate_proj: every weight is zero"),
        (codes_in_big_endian_order, "values", "experts.2.gate_proj"),
        (
            router_rows_swapped,
            "values",
            "experts.0.gate_proj: holds the source's expert 0, its row of the router is expert 1's",
        ),
        (router_row_of_another_model, "router", "rows 4 of the router are not the source's"),
        (bias_shifted, "values", "mlp.gate.e_score_correction_bias: 16 of 16 differ"),
        (norm_of_another_place, "values", "hnorm.weight: 123 of 128 differ"),
        (halves_of_eh_proj_swapped, "values", "eh_proj: "),
        (last_bit_of_a_dense_weight, "values", "eh_proj: 1 of 32768 weights are not equal: [7, 7]"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_that_are_not_the_sources(made, tmp_path, change, check, said):
    pair = made("int4")
    found = failed(pair.verify(changed(pair.draft, tmp_path / "draft", change)))
    assert said in found[check]


def dropped(name: str):
    def change(tensors: Tensors) -> None:
        del tensors[P + name]

    return change


def zero_points_dropped(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("weight_zero_point")]:
        del tensors[name]


def expert_dropped(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".mlp.experts.9." in name]:
        del tensors[name]


def scale_with_too_few_groups(tensors: Tensors) -> None:
    tensors[expert(1, "gate_proj", "weight_scale")] = tensors[expert(1, "gate_proj", "weight_scale")][:, :3]


def bias_in_bf16(tensors: Tensors) -> None:
    tensors[f"{P}mlp.gate.e_score_correction_bias"] = tensors[f"{P}mlp.gate.e_score_correction_bias"].bfloat16()


def scale_in_f16(tensors: Tensors) -> None:
    tensors[expert(1, "gate_proj", "weight_scale")] = tensors[expert(1, "gate_proj", "weight_scale")].half()


def tensor_of_another_layer(tensors: Tensors) -> None:
    tensors["model.layers.2.input_layernorm.weight"] = torch.ones(128, dtype=torch.bfloat16)


def tensor_under_a_foreign_name(tensors: Tensors) -> None:
    tensors["mtp.norm.weight"] = torch.ones(128, dtype=torch.bfloat16)


def tensor_that_nobody_asks_for(tensors: Tensors) -> None:
    tensors[f"{P}mlp.experts.0.gate_proj.bias"] = torch.ones(128, dtype=torch.bfloat16)


def infinite_weight(tensors: Tensors) -> None:
    tensors[f"{P}eh_proj.weight"][0, 0] = float("inf")


def nan_in_a_norm(tensors: Tensors) -> None:
    tensors[f"{P}enorm.weight"][0] = float("nan")


def nan_scale(tensors: Tensors) -> None:
    tensors[expert(1, "gate_proj", "weight_scale")][0, 0] = float("nan")


def zero_scale(tensors: Tensors) -> None:
    tensors[expert(1, "gate_proj", "weight_scale")][5, 2] = 0


def negative_scale(tensors: Tensors) -> None:
    tensors[expert(1, "gate_proj", "weight_scale")][5, 2] *= -1


def wrong_weight_shape(tensors: Tensors) -> None:
    tensors[expert(1, "gate_proj", "weight_shape")] = torch.tensor([128, 64])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (dropped("shared_head.norm.weight"), "names", "1 missing: model.layers.3.shared_head.norm.weight"),
        (dropped("enorm.weight"), "names", "enorm.weight"),
        (dropped("self_attn.indexer.k_norm.bias"), "names", "k_norm.bias"),
        (dropped("mlp.gate.e_score_correction_bias"), "names", "e_score_correction_bias"),
        (dropped("mlp.experts.4.up_proj.weight_scale"), "experts", "mlp.experts.4.up_proj lacks weight_scale"),
        (zero_points_dropped, "experts", "mlp.experts.0.gate_proj lacks weight_zero_point"),
        (expert_dropped, "experts", "experts 9 are missing"),
        (scale_with_too_few_groups, "shapes", "weight_scale is [128, 3], expected [128, 4]"),
        (bias_in_bf16, "dtypes", "e_score_correction_bias is BF16, expected F32"),
        (scale_in_f16, "dtypes", "weight_scale is F16, expected BF16"),
        (tensor_of_another_layer, "files", "1 tensors are not of the layer model.layers.3.*"),
        (tensor_under_a_foreign_name, "files", "mtp.norm.weight"),
        (tensor_that_nobody_asks_for, "names", "1 too many: model.layers.3.mlp.experts.0.gate_proj.bias"),
        (infinite_weight, "numbers", "eh_proj: weights decode to NaN or Inf"),
        (nan_in_a_norm, "numbers", "enorm.weight: NaN or Inf"),
        (nan_scale, "numbers", "weight_scale holds NaN or Inf"),
        (zero_scale, "numbers", "scales are zero under codes that are not"),
        (negative_scale, "numbers", "weight_scale is below zero"),
        (wrong_weight_shape, "numbers", "weight_shape says [128, 64], the weight is [128, 128]"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_files_that_an_engine_reads_without_a_word(made, tmp_path, change, check, said):
    pair = made("int4")
    draft = changed(pair.draft, tmp_path / "draft", change)
    for with_source in (True, False):
        assert said in failed(pair.verify(draft, with_source=with_source))[check]


def inverted(suffix: str):
    def invert(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".mlp.experts.6." in name and name.endswith(suffix)]:
            tensors[name] = 1 / tensors[name]

    return invert


def untied(suffix: str):
    def untie(tensors: Tensors) -> None:
        tensors[expert(6, "up_proj", suffix)] *= 2

    return untie


def zeroed(suffix: str):
    def zero(tensors: Tensors) -> None:
        tensors[expert(6, "down_proj", suffix)] *= 0

    return zero


def nibbles_swapped(tensors: Tensors) -> None:
    name = next(n for n in (expert(6, "down_proj", s) for s in ("weight_packed", "weight")) if n in tensors)
    tensors[name] = (tensors[name] >> 4) | (tensors[name] << 4)


def codes_zeroed(tensors: Tensors) -> None:
    name = next(n for n in (expert(6, "down_proj", s) for s in ("weight_packed", "weight")) if n in tensors)
    tensors[name] = torch.zeros_like(tensors[name])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "change", "finding"),
    [
        (
            "ct-nvfp4",
            inverted("weight_global_scale"),
            ("values", "its global scale is inverted, left out or another's"),
        ),
        ("nvfp4", inverted("weight_scale_2"), ("values", "its global scale is inverted, left out or another's")),
        ("ct-nvfp4", untied("weight_global_scale"), ("tied scales", "experts.6.gate_up_proj: weight_global_scale")),
        ("nvfp4", untied("weight_scale_2"), ("tied scales", "mlp.experts.6.gate_up_proj: weight_scale_2")),
        ("nvfp4", untied("input_scale"), ("tied scales", "mlp.experts.6.gate_up_proj: input_scale")),
        ("ct-nvfp4", zeroed("weight_global_scale"), ("numbers", "weight_global_scale is not above zero")),
        ("nvfp4", zeroed("weight_scale_2"), ("numbers", "weight_scale_2 is not above zero")),
        ("nvfp4", zeroed("input_scale"), ("numbers", "input_scale is not above zero")),
        ("nvfp4", nibbles_swapped, ("values", "experts.6.down_proj")),
        ("ct-nvfp4", nibbles_swapped, ("values", "experts.6.down_proj")),
        ("ct-nvfp4", codes_zeroed, ("numbers", "experts.6.down_proj: every weight is zero")),
        ("nvfp4", dropped("mlp.experts.6.down_proj.input_scale"), ("experts", "down_proj lacks input_scale")),
    ],
)
def test_scales_of_nvfp4(made, tmp_path, name, change, finding):
    pair, (check, said) = made(name), finding
    assert said in failed(pair.verify(changed(pair.draft, tmp_path / "draft", change)))[check]


def scale_of_wk_dropped(tensors: Tensors) -> None:
    assert tensors[f"{P}self_attn.indexer.wk.weight"].dtype == torch.float8_e4m3fn
    del tensors[f"{P}self_attn.indexer.wk.weight_scale_inv"]


def dense_in_an_fp8_parameter(tensors: Tensors) -> None:
    name = f"{P}self_attn.o_proj.weight"
    tensors[name] = tensors[name].to(torch.bfloat16)


def scale_divided(tensors: Tensors) -> None:
    name = f"{P}self_attn.o_proj.weight_scale_inv"
    tensors[name] = 1 / tensors[name]


def one_code(tensors: Tensors) -> None:
    tensors[f"{P}self_attn.o_proj.weight"].view(torch.uint8)[3, 3] ^= 1


def nan_code(tensors: Tensors) -> None:
    tensors[f"{P}self_attn.o_proj.weight"].view(torch.uint8)[3, 3] = 0x7F


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (scale_of_wk_dropped, "dtypes", "indexer.wk.weight is F8_E4M3, expected BF16"),
        (dense_in_an_fp8_parameter, "dtypes", "o_proj.weight is BF16, expected F8_E4M3"),
        (scale_divided, "values", "o_proj: decodes to"),
        (one_code, "values", "self_attn.o_proj: 1 of 16384 weights are not equal: [3, 3]"),
        (nan_code, "numbers", "self_attn.o_proj: weights decode to NaN or Inf"),
    ],
)
def test_fp8(made, tmp_path, change, check, said):
    pair = made("fp8")
    assert said in failed(pair.verify(changed(pair.draft, tmp_path / "draft", change)))[check]
