"""Searched scales: the best of their candidates, never worse than round-to-nearest, the same by kernel and by torch."""

import numpy as np
import pytest
import torch
from slow_twins import searching as slow

from mtpforge.arithmetic import affine, bits, rows, searching

CASES = [(4, 32, False), (4, 128, True), (8, 64, False), (8, 128, True), (2, 32, False), (3, 40, False), (4, 20, True)]
KERNEL_CASES = [(4, 32, False), (4, 32, True), (4, 128, True), (8, 64, False), (8, 384, True)]


def weights(n_rows, columns, seed=0):
    """Normal rows, then: zeros, tiny, subnormal, huge, heavy tails, all positive, exact multiples of a scale."""
    made = torch.randn(n_rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    made[-1], made[-2], made[-3], made[-4] = 0, made[-2] * 1e-25, made[-3] * 1e-37, made[-4] * 1e30
    made[-5] **= 5
    made[-6] = made[-6].abs()
    made[-7] = (torch.arange(columns) % 15 - 7) * 0.125
    return made


SEARCHES = {"rtn": searching.whole_range, "mse": searching.mse, "hqq": searching.hqq}


def found(weight, n_bits, size, method, *, symmetric):
    groups = weight.view(len(weight), -1, size)
    scale, zero = SEARCHES[method](groups, n_bits, torch.bfloat16, symmetric)
    signed = torch.zeros_like(scale) if zero is None else zero.float() - 2 ** (n_bits - 1)
    return [
        (group.tolist(), float(s), int(z))
        for group, s, z in zip(groups.flatten(0, 1), scale.flatten(), signed.flatten(), strict=True)
    ]


@pytest.mark.parametrize(("n_bits", "size", "symmetric"), CASES)
def test_mse_takes_the_best_of_its_ranges(n_bits, size, symmetric):
    n_shrunk = 0
    for group, scale, zero in found(weights(12, 2 * size), n_bits, size, "mse", symmetric=symmetric):
        tried = slow.candidates(group, n_bits, symmetric)
        if max(map(abs, group)) > 1e-30:  # below, BF16 itself is subnormal, which the twin does not know
            assert scale in [s for _, s in tried]
            tiny = len(group) * (1e-4 * scale) ** 2
            assert slow.squared(group, scale, zero, n_bits) <= min(tried)[0] * (1 + 1e-4) + tiny
            n_shrunk += scale != tried[0][1]
    assert n_shrunk > 5 or n_bits == 8  # 8 bits seldom gain by clipping


@pytest.mark.parametrize(("n_bits", "size", "symmetric"), CASES)
@pytest.mark.parametrize(("method", "power"), [("mse", 2), ("hqq", 0.7)])
def test_no_group_gets_worse_than_by_rtn(n_bits, size, symmetric, method, power):
    weight, n_better = weights(24, 4 * size, seed=1), 0
    ours = found(weight, n_bits, size, method, symmetric=symmetric)
    rtn = found(weight, n_bits, size, "rtn", symmetric=symmetric)
    for (group, scale, zero), (_, plain_scale, plain_zero) in zip(ours, rtn, strict=True):
        error, plain = (
            sum(e**power for e in slow.errors(group, s, z, n_bits))
            for s, z in [(scale, zero), (plain_scale, plain_zero)]
        )
        assert error <= plain * (1 + 1e-4) + len(group) * (1e-4 * scale) ** power
        n_better += error < plain * 0.999
    assert n_better > len(ours) // 4 or n_bits == 8


@pytest.mark.parametrize("method", ["mse", "hqq"])
def test_what_rtn_holds_exactly_is_kept(method):
    weight = (torch.arange(64) % 16 - 8).float().view(1, 2, 32) * 0.25
    scale, zero = SEARCHES[method](weight, 4, torch.bfloat16, False)
    plain, plain_zero = affine.qparams(weight, 4, torch.bfloat16, symmetric=False)
    assert torch.equal(scale, plain)
    assert torch.equal(zero, plain_zero)


@pytest.mark.parametrize("method", ["mse", "hqq"])
def test_scales_are_stored_numbers_above_zero(method):
    scale, _ = SEARCHES[method](weights(24, 256).view(24, -1, 32), 4, torch.bfloat16, False)
    assert torch.equal(scale, scale.bfloat16().float())
    assert bool((scale > 0).all())
    assert bool(torch.isfinite(scale).all())


def test_blocks_change_nothing(monkeypatch):
    groups = weights(24, 256).view(24, -1, 32)
    for method in ("mse", "hqq"):
        whole = SEARCHES[method](groups, 4, torch.bfloat16, False)
        monkeypatch.setattr(searching, "_BLOCK", 3 * 256)
        parts = SEARCHES[method](groups, 4, torch.bfloat16, False)
        assert torch.equal(whole[0], parts[0])
        assert torch.equal(whole[1], parts[1])


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("n_bits", "size", "symmetric"), KERNEL_CASES)
def test_the_kernel_finds_what_torch_finds(n_bits, size, symmetric):
    weight = torch.cat([weights(24, 3 * size, seed) for seed in range(4)])
    n_rows, columns, n = len(weight), weight.shape[1], weight.shape[1] // size
    out = tuple(np.zeros((n_rows, width), np.uint8) for width in (columns * n_bits // 8, 2 * n, 0 if symmetric else n))
    band = (weight.view(torch.uint8).numpy(), np.zeros((n_rows, 0), np.float32), 1, columns)
    numbers, work = np.array([n_bits, 0, 0, 0], np.float32), np.empty((3, columns + 80), np.float32)
    rows.encode_rows("f32", "affine_mse", band, numbers, size, out, work)
    groups = weight.view(n_rows, -1, size)
    scale, zero = searching.mse(groups, n_bits, torch.bfloat16, symmetric)
    codes = affine.quantize(groups, scale, zero, n_bits).flatten(1)
    assert torch.equal(torch.from_numpy(out[1]).view(torch.bfloat16), scale.bfloat16())
    assert torch.equal(torch.from_numpy(out[0]).view(torch.int32), bits.pack(codes, n_bits))
    assert symmetric or torch.equal(torch.from_numpy(out[2]), zero)
