"""W4AFP8 against a plain loop, packed as SGLang's kernel test packs: even columns low, two's complement."""

from __future__ import annotations

import pytest
import torch

import mtpforge
from mtpforge import formats
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS, w4afp8
from mtpforge.tensors import Quantization, Spec

Q = Quantization("w4afp8", 4, strategy="group", group_size=128, scale_dtype="BF16")
FORM = FORMATS["w4afp8"]


def packed(codes):
    """pack_int4_values_to_int8 of test_cutlass_w4a8_moe.py, in plain numbers: (odd << 4) | (even & 15)."""
    rows = [[((row[i + 1] << 4) | (row[i] & 15)) & 255 for i in range(0, len(row), 2)] for row in codes.tolist()]
    return torch.tensor(rows, dtype=torch.uint8).view(torch.int8)


def test_every_code_is_read_and_written_as_the_kernel_packs_it():
    codes = torch.tensor([[(3 * row + column) % 16 - 8 for column in range(256)] for row in range(5)])
    scale = torch.tensor([[0.5, 2.0]] * 5).bfloat16()
    parts = {"weight": packed(codes), "weight_scale_inv": scale}
    values = codes.float() * scale.float().repeat_interleave(128, 1)
    assert torch.equal(FORM.decode(parts, (5, 256), Q), values)
    made = FORM.encode(values, Q, {})
    error = (FORM.decode(made, (5, 256), Q) - values).abs().amax(1)
    assert bool((error <= 2.0).all())
    # Largest magnitude 8 * 2: the scale is 16 / 7.5, and -8 is the code of -16.
    assert made["weight_scale_inv"][0].tolist() == [torch.tensor(n).bfloat16().item() for n in (4 / 7.5, 16 / 7.5)]
    assert made["weight"].dtype == torch.int8


@pytest.mark.parametrize("seed", range(3))
def test_codes_are_those_of_symmetric_integers(seed):
    weight = torch.randn(3, 256, generator=torch.Generator().manual_seed(seed))
    made = FORM.encode(weight, Q, {})
    as_words = FORMATS["pack_quantized"].encode(weight, Quantization("pack_quantized", 4, "", "group", 128), {})
    assert torch.equal(made["weight_scale_inv"], as_words["weight_scale"])
    as_ct = FORMATS["pack_quantized"].decode(as_words, (3, 256), Quantization("pack_quantized", 4, "", "group", 128))
    assert torch.equal(FORM.decode(made, (3, 256), Q), as_ct)


def test_it_is_told_by_its_parts():
    parts = {"weight": Spec("I8", (64, 128)), "weight_scale_inv": Spec("F32", (64, 2))}
    found = w4afp8.recognise(parts, (64, 256), {})
    assert formats.label(found) == "INT4 for FP8 activations g128"
    assert (found.scale_dtype, found.input_scale) == ("F32", "none")
    static = w4afp8.recognise(parts | {"input_scale": Spec("BF16", (1,))}, (64, 256), {})
    assert static.input_scale == "static"
    assert w4afp8.recognise(parts | {"weight": Spec("U8", (64, 128))}, (64, 256), {}) is None
    assert w4afp8.recognise(parts | {"weight_scale_inv": Spec("F32", (1, 2))}, (64, 256), {}) is None


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(MtpforgeError, match="groups of 128 columns do not divide 192"):
        FORM.layout((64, 192), Q)


def test_a_published_layer_is_copied_beside_its_own_target(census_folder, config_folder):
    """PhalaCloud's layer: 768 input scales named w1, w2 and w3 are left out, nothing is encoded again."""
    source, target = census_folder("w4afp8", "target-w4afp8"), config_folder("target-w4afp8")
    made = mtpforge.plan(str(target), str(source), engine="sglang")
    assert made.scheme.name == "w4afp8"
    assert made.config["quantization_config"]["quant_method"] == "w4afp8"
    assert len([unused for unused in made.unused if unused.name.endswith(".input_scale")]) == 768
    encoded = {move.module for step in made.steps for move in step.moves if move.action == "encode"}
    assert encoded == set()
