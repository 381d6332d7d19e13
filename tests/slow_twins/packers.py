"""Weights as GPTQ, AutoRound, AWQ, Quark and MLX store them, number by number. Imports nothing of mtpforge.

Each packer takes a weight, float [out, in], and gives its parts by suffix and the values that a reader must find,
float32 [out, in]. Integers are rounded to nearest under scales of a plain range; order: the group of every column.
"""

import torch

AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # which of its eight rows each nibble of a word is, lowest bits first


def rounded(weight, bits, size, order, symmetric):
    """Codes [out, in], zero points and F16 scales [out, groups] as lists of numbers, and the values."""
    n_groups, most = weight.shape[1] // size, 2**bits - 1
    codes = torch.empty(weight.shape, dtype=torch.int64)
    zeros = torch.empty(len(weight), n_groups, dtype=torch.int64)
    scales = torch.empty(len(weight), n_groups, dtype=torch.float16)
    for group in range(n_groups):
        inside = weight[:, order == group].float()
        if symmetric:
            scale = (inside.abs().amax(1) / (2 ** (bits - 1) - 1)).half().clamp(min=1e-4)
            zero = torch.full((len(weight),), 2 ** (bits - 1))
        else:
            low, high = inside.amin(1).clamp(max=0), inside.amax(1).clamp(min=0)
            scale = ((high - low) / most).half().clamp(min=1e-4)
            zero = (-low / scale.float()).round().long().clamp(0, most)
        scales[:, group], zeros[:, group] = scale, zero
        steps = (inside / scale.float()[:, None]).round().long()
        codes[:, order == group] = (steps + zero[:, None]).clamp(0, most)
    values = (codes - zeros[:, order]).float() * scales[:, order].float()
    return codes, zeros, scales, values


def streams(rows, bits):
    """One dense stream a row, bit by bit: int32 [rows, n * bits / 32]."""
    single = ((rows.long()[..., None] >> torch.arange(bits)) & 1).flatten(1)
    return signed((single.unflatten(1, (-1, 32)) << torch.arange(32)).sum(-1))


def signed(words):
    return torch.where(words >= 2**31, words - 2**32, words).int()


def planes(rows, bits):
    """Bit planes of 32 values each, lowest bits first: int32 [rows, n * bits / 32]."""
    made = []
    for chunk in rows.long().split(32, 1):
        below = 0
        for width in {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}[bits]:
            made.append(streams((chunk >> below) % 2**width, width))
            below += width
    return torch.cat(made, 1)


def less_one(zeros, bits):
    """Zero points as GPTQ v1 stores them, of whole words; 3 bits: of each field."""
    if bits == 3:
        return streams((zeros - 1) % 8, 3)
    ones = sum(1 << place for place in range(0, 32, bits))
    return signed((streams(zeros, bits).long() - ones) % 2**32)


def gptq(weight, bits, size, *, kind="gptq", symmetric=False, shuffled=False):
    """kind: gptq, gptq_v2, gptq_p, auto_gptq. shuffled: columns in groups by no rule, told by `g_idx`."""
    order = torch.arange(weight.shape[1]) // size
    if shuffled:
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(len(order)))]
    codes, zeros, scales, values = rounded(weight, bits, size, order, symmetric)
    pack = planes if kind == "gptq_p" else streams
    stored = zeros.t()
    if kind == "gptq":
        qzeros = less_one(stored, bits)
    elif kind == "auto_gptq":
        qzeros = streams((stored - 1).clamp(min=0), bits)
        read = zeros.clamp(min=1)  # what was 0 is read as 1
        values = (codes - read[:, order]).float() * scales[:, order].float()
    else:
        qzeros = pack(stored, bits)
    parts = {"qweight": pack(codes, bits).t(), "qzeros": qzeros, "scales": scales.t()}
    return parts | ({"g_idx": order.int()} if shuffled else {}), values


def across(numbers, places):
    """Eight rows of [rows, n] to a word, int32 [n, rows / 8]; places: the row of each nibble, lowest first."""
    return streams(numbers.t().unflatten(1, (-1, 8))[..., places].flatten(1), 4)


def awq(weight, size):
    """Four bits, eight rows to a word."""
    order = torch.arange(weight.shape[1]) // size
    codes, zeros, scales, values = rounded(weight, 4, size, order, symmetric=False)
    words = {"qweight": across(codes, AWQ_PLACES), "qzeros": across(zeros, AWQ_PLACES)}
    return words | {"scales": scales.t()}, values


def quark_int4(weight, size, *, symmetric=False, places=AWQ_PLACES):
    """Quark's uint4; symmetric: its int4, codes in two's complement and zero points of 0."""
    order = torch.arange(weight.shape[1]) // size
    codes, zeros, scales, values = rounded(weight, 4, size, order, symmetric=symmetric)
    if symmetric:
        codes, zeros = (codes - 8) & 15, zeros * 0
    words = {"weight": across(codes, places), "weight_zero_point": across(zeros, places)}
    return words | {"weight_scale": scales.t()}, values


def unpacked(parts, bits, kind):
    """Codes [out, in] and zero points [out, groups] of parts as `awq`, `gptq` and the other kinds hold them."""
    if kind == "awq":
        codes, zeros = (_in_order(parts[suffix]) for suffix in ("qweight", "qzeros"))
        return codes.t(), zeros.t()
    words = parts["qzeros"].long() % 2**32
    if kind == "gptq" and bits != 3:
        words = (words + sum(1 << place for place in range(0, 32, bits))) % 2**32
    zeros = _numbers(words, bits)
    if kind == "gptq" and bits == 3:
        zeros = (zeros + 1) % 8
    return _numbers(parts["qweight"].t(), bits), zeros.t()


def quark_codes(parts, *, in_order):
    """Codes [out, in] and zero points [out, groups], 0 to 15 both, of Quark's words."""
    read = (lambda words: _numbers(words.long() % 2**32, 4)) if in_order else _in_order
    return tuple(read(parts[suffix]).t() for suffix in ("weight", "weight_zero_point"))


def _numbers(words, bits):
    """Of dense streams, one a row, bit by bit: int64 [rows, 32 / bits * words]."""
    single = ((words.long()[..., None] >> torch.arange(32)) & 1).flatten(1)
    return (single.unflatten(1, (-1, bits)) << torch.arange(bits)).sum(-1)


def _in_order(words):
    found = torch.empty(len(words), words.shape[1], 8, dtype=torch.int64)
    found[..., AWQ_PLACES] = _numbers(words, 4).unflatten(1, (-1, 8))
    return found.flatten(1)


def mlx(weight, bits, size):
    """BF16 scale and bias for every group; product and sum are rounded to BF16 when it is read."""
    groups = weight.float().unflatten(1, (-1, size))
    low, high = groups.amin(-1), groups.amax(-1)
    scale, bias = ((high - low) / (2**bits - 1)).clamp(min=1e-4).bfloat16(), low.bfloat16()
    steps = (groups - bias.float()[..., None]) / scale.float()[..., None]
    codes = steps.round().long().clamp(0, 2**bits - 1)
    product = (codes.float() * scale.float()[..., None]).bfloat16().float()
    values = (product + bias.float()[..., None]).bfloat16().float().flatten(1)
    return {"weight": streams(codes.flatten(1), bits).view(torch.uint32), "scales": scale, "biases": bias}, values
