"""GGUF headers that lie: any number of theirs, any length, any end. A checkpoint comes out, or an error that is shown.

The file has the header of the tiny model's and a hole where its weights were.
"""

from __future__ import annotations

import pytest
from fuzz.bounds import cases, outcome
from gguf_files import Type, convert
from hypothesis import example, given
from hypothesis import strategies as st

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.gguf import header
from mtpforge.inspecting import inspect
from mtpforge.planning import plan

NUMBERS = st.one_of(
    st.sampled_from(
        [0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 30, 32, 40, 64, 99, 255, 256, 1 << 16, (1 << 16) + 1, 10**6, 10**7]
    ),
    st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]),
    st.integers(0, 300),
)
BYTES = st.sampled_from(
    [b"\0", b"\n", b"\x1b[31m", b"\xff\xfe", b"../../x", b"general.alignment", b"weight", b"blk.9."]
)
CHANGES = st.lists(st.tuples(st.integers(0, 5_000), st.one_of(NUMBERS, BYTES)), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tinyglm):
    """The file, its header, the size of the whole, and where the header's numbers lie: (byte, width)."""
    folder = tmp_path_factory.mktemp("gguf")
    kinds = {"_exps": Type.Q4_0, "attn_k_b": Type.F16, "": Type.Q8_0}
    path = convert(tinyglm("bf16"), folder / "x.gguf", kinds).first
    raw, fields = path.read_bytes(), []

    class Watched(header._Window):
        def bytes(self, n_bytes, of):
            fields.append((self.at, n_bytes))
            return super().bytes(n_bytes, of)

    usual, header._Window = header._Window, Watched
    try:
        read = header.read(lambda start, stop: (raw[start:stop], len(raw)), "x.gguf")
    finally:
        header._Window = usual
    return path, raw[: read.tensors[0].start], len(raw), [f for f in fields if f[1] in (1, 4, 8)]


@pytest.fixture(scope="module")
def beside(tinyglm):
    return open_checkpoint(str(tinyglm("awq-int4")))


def spoil(place, changes, tail):
    """Write the file with other numbers, other text before them, and another end."""
    path, raw, n_bytes, fields = place
    changed = bytearray(raw)
    for number, value in changes:
        at, width = fields[number % len(fields)]
        if isinstance(value, int):
            changed[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        else:
            changed[max(at - len(value), 0) : at] = value
    with path.open("wb") as file:
        file.write(changed)
        file.truncate(max(n_bytes + tail, 0))
    return path


TAILS = st.one_of(st.just(0), st.sampled_from([-1, 1, -4096, -(10**9), 1 << 40]), st.integers(-3_000_000, 0))


@cases(80)
@given(CHANGES, TAILS)
@example([(2, 2**64 - 1)], 0)
@example([(0, b"\0")], 0)
@example([(40, 2**63)], 1 << 40)
def test_a_header_that_lies_is_a_checkpoint_or_an_error(place, changes, tail):
    path = spoil(place, changes, tail)
    outcome(lambda: open_checkpoint(str(path)).names)


@cases(12)
@given(CHANGES)
def test_a_header_that_lies_ends_in_a_plan_or_an_error(place, beside, changes):
    path = spoil(place, changes, 0)

    def use():
        opened = open_checkpoint(str(path))
        inspect(opened)
        return plan(opened, beside)

    outcome(use)
