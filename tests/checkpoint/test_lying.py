from __future__ import annotations

import pytest
from checkpoint.lying import LyingCheckpoint

from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import Spec

NAME = "model.layers.3.mlp.gate.weight"


@pytest.fixture
def real(tinyglm):
    return open_checkpoint(str(tinyglm("bf16")))


def content(checkpoint, ref):
    buffer = bytearray(ref.stop - ref.start)
    checkpoint.read(ref, memoryview(buffer))
    return bytes(buffer)


def test_without_a_lie_it_is_the_real_one(real):
    told = LyingCheckpoint(real)
    assert told.names == real.names
    assert told.identity == real.identity
    assert content(told, told.locate([NAME])[NAME]) == content(real, real.locate([NAME])[NAME])


def test_one_bit_differs_in_the_whole_tensor_and_in_a_band_of_it(real):
    ref = real.locate([NAME])[NAME]
    truth = content(real, ref)
    told = LyingCheckpoint(real, flip_bit={NAME: 8 * 300 + 2})
    lie = content(told, told.locate([NAME])[NAME])
    assert [i for i in range(len(truth)) if truth[i] != lie[i]] == [300]
    assert truth[300] ^ lie[300] == 4
    row_bytes = len(truth) // ref.spec.shape[0]
    row = 300 // row_bytes
    assert content(told, ref.rows(row, row + 1)) == lie[row * row_bytes : (row + 1) * row_bytes]
    assert content(told, ref.rows(0, 1)) == truth[:row_bytes]


def test_other_lies(real):
    spec = Spec("F16", (1, 1))
    assert LyingCheckpoint(real, specs={NAME: spec}).locate([NAME])[NAME].spec == spec
    assert NAME not in LyingCheckpoint(real, hidden={NAME}).names
    with pytest.raises(MtpforgeError, match="no tensor"):
        LyingCheckpoint(real, hidden={NAME}).locate([NAME])
    ref = real.locate([NAME])[NAME]
    for lie, message in (({"short": {NAME}}, "cut short"), ({"changed": {NAME}}, "changed while")):
        with pytest.raises(MtpforgeError, match=message):
            content(LyingCheckpoint(real, **lie), ref)
    zeros = bytes(ref.stop - ref.start)
    assert content(LyingCheckpoint(real, content={NAME: zeros}), ref) == zeros
