"""Tensors whose numbers are NaN, infinite, zero, negative, tiny, huge or noise: a right draft comes out, or an error.

Whether a draft is right is told by plain float64 code (fuzz/oracle.py), which reads source and draft by itself.
"""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from fuzz import oracle, tiny
from fuzz.bounds import cases, outcome
from fuzz.mutating import WORDS, Raw, mutated, mutations, text
from hypothesis import assume, example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.planning import plan
from mtpforge.verifying import verify

P = tiny.PREFIX
FLOATS = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, 1e-40, -1e-30, 1e-9, 0.5, -1.0, 3e4, 7e4, 3e38]
WHOLE = [0, 1, -1, 2, 32, 63, 64, 65, 127, -128, 2**31 - 1, -(2**31), 0x7F7F7F7F, 0x01234567]
# where the odd numbers go: one element, one row, everything
SPREADS = ("one", "row", "all")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("numbers")


def spoiled(tensor: torch.Tensor, number: float, spread: str, at: int) -> torch.Tensor:
    """The tensor with an odd number in some places, in its own dtype."""
    changed = tensor.clone()
    n_rows = tensor.shape[0] if tensor.dim() else 1
    rows = changed.reshape(n_rows, -1)
    part = {"all": rows, "row": rows[at % n_rows], "one": rows[at % n_rows, at % rows.shape[1] :][:1]}[spread]
    if tensor.is_floating_point():
        part.copy_(torch.full(part.shape, number, dtype=torch.float64).to(tensor.dtype))
    else:
        info = torch.iinfo(tensor.dtype)
        part.fill_(max(min(WHOLE[at % len(WHOLE)], info.max), info.min))
    return changed


CHANGES = st.lists(
    st.tuples(st.integers(0, 10**4), st.sampled_from(FLOATS), st.sampled_from(SPREADS), st.integers(0, 10**4)),
    min_size=1,
    max_size=3,
)


@cases(60)
@given(st.sampled_from(sorted(tiny.FORMS)), st.sampled_from(sorted(tiny.BLOCKS)), st.booleans(), CHANGES)
@example("fp8_block", "fp8-blocks", True, [(0, 1e-45, "one", 0)])
def test_odd_numbers_end_in_a_right_draft_or_an_error(home, target, form, block, scales_only, changes):
    whole = tiny.tensors(form)
    names = [n for n in whole if "scale" in n.rpartition(".")[2]] if scales_only else []
    names = names or list(whole)
    path = tiny.folder(fresh(home / "source"), form)
    held = dict(whole)
    for number, value, spread, at in changes:
        name = names[number % len(names)]
        held[name] = spoiled(held[name], value, spread, at)
    assume(any(not same_bytes(held[n], whole[n]) for n in held))
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    told = outcome(lambda: built(path, target(block), fresh(home / "draft")))
    if not isinstance(told, MtpforgeError):
        check(load_file(home / "draft" / "model.safetensors"), held)


@cases(60)
@given(
    st.sampled_from(["bf16", "fp8_block", "modelopt_nvfp4", "pack_quantized"]),
    st.sampled_from(sorted(tiny.BLOCKS)),
    mutations(WORDS, most=2),
)
@example("bf16", "fp8-blocks", [((2,), "set", (96, 128))])
@example("bf16", "fp8-blocks", [((2,), "set", (3, 5))])
@example("fp8_block", "fp8-blocks", [((2,), "set", (64, 32))])
def test_a_target_whose_quantization_block_lies_gets_a_right_draft_or_an_error(home, source, form, block, changes):
    lying = home / "target"
    lying.mkdir(exist_ok=True)
    stated = Raw(mutated(tiny.BLOCKS[block] or {"quant_method": ""}, changes))
    (lying / "config.json").write_bytes(
        text({**tiny.config(), "quantization_config": stated}).encode("utf-8", "surrogatepass")
    )
    told = outcome(lambda: built(source(form), lying, fresh(home / "draft")))
    if not isinstance(told, MtpforgeError):
        demanded = plan(open_checkpoint(str(source(form))), open_checkpoint(str(lying))).scheme
        check(load_file(home / "draft" / "model.safetensors"), tiny.tensors(form), demanded)


def built(source, target, out):
    """As `mtpforge build` does it: what does not pass verify is an error."""
    ours, theirs = open_checkpoint(str(source)), open_checkpoint(str(target))
    decided = plan(ours, theirs)
    judge = lambda path: verify(path, theirs, ours)  # noqa: E731
    return build(decided, {"source": ours, "target": theirs}, out, check="off", workers=1, judge=judge)


def check(draft, source, scheme=None):
    """Every matrix and every norm of a draft is the source's, as far as its format allows."""
    for module, shape in tiny.MATRICES.items():
        parts = oracle.parts_of(draft, P + module)
        wanted = oracle.decoded(oracle.parts_of(source, P + module), shape)
        asked = scheme.of(re.sub(r"[.]\d+[.]", ".*.", module)).quantization if scheme else None
        stored = oracle.Stored(asked.bits, asked.block or (32, 32)) if asked else oracle.USUAL
        assert oracle.rounded_from(parts, wanted, stored), module
    for name in [n for n in source if "norm" in n or "bias" in n]:
        assert torch.equal(draft[name].double(), source[name].double()), name


def same_bytes(a, b):
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def fresh(path):
    shutil.rmtree(path, ignore_errors=True)
    return path


def test_the_plain_decoder_agrees_on_good_input_and_not_on_a_swapped_pair(home, source, target):
    forms = [*tiny.FORMS, "bf16", "fp8_block", "bf16"]
    for form, block in [*zip(forms, tiny.BLOCKS, strict=True), ("bf16", "int4")]:
        built(source(form), target(block), fresh(home / "good"))
        draft = load_file(home / "good" / "model.safetensors")
        check(draft, tiny.tensors(form))
    gate, up = (oracle.parts_of(draft, f"{P}mlp.experts.0.{p}_proj") for p in ("gate", "up"))
    assert not oracle.rounded_from(gate, oracle.decoded(up, (tiny.INNER, tiny.HIDDEN)))
