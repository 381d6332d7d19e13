"""Weight files that lie: header, length, and what follows. A plan comes out, or an error that can be shown."""

from __future__ import annotations

import json
import math

import pytest
from fuzz import tiny
from fuzz.bounds import cases, outcome
from fuzz.mutating import ODD, mutated, mutations
from hypothesis import example, given
from hypothesis import strategies as st

from mtpforge.checkpoint import open_checkpoint
from mtpforge.inspecting import inspect
from mtpforge.planning import plan

P = tiny.PREFIX
WORDS = st.one_of(
    st.sampled_from(
        ["U8", "I8", "I32", "I64", "F32", "F64", "F4", "F8_E4M3", "F8_E8M0", "BF16", "BOOL", "C64", "bf16"]
    ),
    st.sampled_from([(), (0,), (1,), (2,), (1, 1), (2, 64), (64,), (2**32, 2**32), (0, 2**62, 2**62), (1,) * 65]),
    st.sampled_from([(0, 0), (0, 1), (1, 0), (0, 2**62), (2**63, 2**64), (5, 5), (-1, 4), (True, False)]),
    ODD,
)
WIDTHS = {
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "U8": 1,
    "I8": 1,
    "I32": 4,
    "I64": 8,
    "C64": 8,
}
NAMES = st.sampled_from(sorted(tiny.tensors("pack_quantized")))
TAILS = ("", "shorter", "longer", "empty")
LENGTHS = (None, 0, 1, 7, 2**20, 10**8, 10**8 + 1, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory, target):
    """A source whose weight file is rewritten, its header, and its bytes."""
    path = tiny.folder(tmp_path_factory.mktemp("headers") / "source", "pack_quantized")
    whole = (path / "model.safetensors").read_bytes()
    n_bytes = int.from_bytes(whole[:8], "little")
    return path, json.loads(whole[8 : 8 + n_bytes]), whole[8 + n_bytes :], open_checkpoint(str(target("int4")))


def use(path, target):
    """Everything that reads headers."""
    opened = open_checkpoint(str(path))
    inspect(opened)
    return plan(opened, target)


@cases(200)
@given(mutations(WORDS, most=2), st.sampled_from(TAILS), st.one_of(st.none(), st.sampled_from(LENGTHS)))
@example([((0,), "set", {"dtype": "F32", "shape": (), "data_offsets": (0, 4)})], "", None)
def test_a_header_that_lies_ends_in_a_plan_or_an_error(place, changes, tail, length):
    path, header, data, target = place
    write(
        path,
        mutated(header, changes),
        {"": data, "shorter": data[:-1], "longer": data + b"\0", "empty": b""}[tail],
        length,
    )
    outcome(lambda: use(path, target))


@cases(80)
@given(NAMES, st.sampled_from(sorted(WIDTHS)), st.lists(st.sampled_from([0, 1, 2, 4, 32, 64]), max_size=3))
@example(f"{P}mlp.gate.e_score_correction_bias", "F64", [])
@example(f"{P}mlp.gate.e_score_correction_bias", "F32", [])
@example(f"{P}mlp.gate.e_score_correction_bias", "F32", [0])
@example(f"{P}mlp.experts.0.up_proj.weight_scale", "BF16", [])
@example(f"{P}mlp.experts.0.up_proj.weight_packed", "I32", [0])
@example(f"{P}mlp.experts.0.up_proj.weight_shape", "I64", [1, 2])
@example(f"{P}enorm.weight", "BF16", [64, 1])
def test_a_valid_file_with_one_tensor_of_another_dtype_or_shape_ends_in_a_plan_or_an_error(place, name, dtype, shape):
    path, header, data, target = place
    changed, body = {}, b""
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        fields, raw = {"dtype": entry["dtype"], "shape": entry["shape"]}, data[start:stop]
        if tensor == name:
            fields, raw = {"dtype": dtype, "shape": shape}, b"\1" * (math.prod(shape) * WIDTHS[dtype])
        changed[tensor] = {**fields, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    write(path, json.dumps(changed), body, None)
    outcome(lambda: use(path, target))


def write(path, header, data, length):
    """The weight file; length: what the first eight bytes say, None for the truth."""
    raw = header.encode("utf-8", "surrogatepass")
    claimed = len(raw) if length is None else length
    (path / "model.safetensors").write_bytes(claimed.to_bytes(8, "little") + raw + data)
