"""Integers of 2 to 8 bits in 32-bit words.

dense     value i occupies bits [i*b, i*b + b) of the row's words, least significant first; values may straddle words,
          so 8 values are b bytes and 32 values are b words:

              b = 3   byte 0 = 22111000   byte 1 = 54443332... (digits: number of the value, high bit left)

legacy    32 // b values a word, the top bits unused. The same for 2, 4 and 8 bits.

planes    the codes' bits apart, lowest first: planes of 4, 2 and 1 bits as they make up b, each dense. Of 32 values all
          that belongs together is b words: 3 bits are two words of 2 bits, then one of 1 bit. GPTQ's alone.

across    a word of 4 bits holds eight rows of one column, in an order that the format names.

Codes are unsigned; places past the last value hold code 0. dense is pack_to_int32 of compressed-tensors 0.18.0 and
later, legacy that of 0.17.1 and earlier. Words are read as bytes, so hosts must be little-endian, as torch's are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def pack(codes: Tensor, bits: int) -> Tensor:
    """Dense words, int32 [rows, ceil(columns * bits / 32)], of codes uint8 [rows, columns]."""
    rows, columns = codes.shape
    # 32 values are b whole words, so with whole 32s every row begins at a word, and words past its end are cut off
    whole = pad(codes, (0, -columns % 32)) if columns % 32 else codes
    stream = _bytes_of_fields(whole, bits) if 8 % bits == 0 else _bytes_of_streams(whole, bits)
    words = stream.view(torch.int32).view(rows, -1)
    return compact(words[:, : -(-columns * bits // 32)])


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """Codes, uint8 [rows, columns], of dense words int32 [rows, ceil(columns * bits / 32)]."""
    rows = words.shape[0]
    whole = compact(pad(words, (0, -words.shape[1] % bits)) if words.shape[1] % bits else words)
    stream = whole.view(torch.uint8)
    codes = _fields_of_bytes(stream, bits) if 8 % bits == 0 else _streams_of_bytes(stream, bits)
    return codes.view(rows, -1)[:, :columns]


def unpack_legacy(words: Tensor, bits: int, columns: int) -> Tensor:
    """Codes, uint8 [rows, columns], of legacy words int32 [rows, ceil(columns / (32 // bits))]."""
    shifts = torch.arange(32 // bits, dtype=torch.int32, device=words.device) * bits
    # words are signed: the shift draws the sign along, the mask takes it off again
    codes = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(-2)[:, :columns]


def unpack_planes(words: Tensor, bits: int, columns: int) -> Tensor:
    """Codes, uint8 [rows, columns], of bit planes int32 [rows, columns * bits / 32]; whole 32s of columns."""
    chunks = compact(words).view(-1, bits)
    codes, below = torch.full((len(chunks), 32), 0, dtype=torch.uint8, device=words.device), 0
    for width in (width for width in (4, 2, 1) if bits & width):
        codes |= unpack(chunks[:, below : below + width], width, 32) << below
        below += width
    return codes.view(words.shape[0], columns)


def add_to_fields(words: Tensor, bits: int, number: int) -> Tensor:
    """Dense words int32 with a number added to every field of them.

    Of 2, 4 and 8 bits to the words as they are, so that a field which overflows carries into the next one; of others
    to each field by itself, modulo 2^bits.
    """
    if not number:
        return words
    if 8 % bits == 0:
        ones: int = 0xFFFFFFFF // (2**bits - 1)
        return words + number * ones
    fields = unpack(words, bits, words.shape[1] * 32 // bits)
    return pack((fields + number) & ((1 << bits) - 1), bits)


def unpack_across(words: Tensor, places: Sequence[int]) -> Tensor:
    """Codes, uint8 [rows, n], of words int32 [n, rows / 8] of 4 bits; places: the row of its eight in each nibble.

    Words are turned, not codes: there are eight times fewer.
    """
    turned = words.t().contiguous()
    codes = torch.empty(len(turned), len(places), turned.shape[1], dtype=torch.uint8, device=words.device)
    for nibble, row in enumerate(places):
        codes[:, row] = (turned >> (4 * nibble)) & 15
    return codes.flatten(0, 1)


def pack_across(codes: Tensor, places: Sequence[int]) -> Tensor:
    """Words int32 [n, rows / 8] of codes uint8 [n, rows], as `unpack_across` takes them."""
    return pack(codes.reshape(len(codes), -1, len(places))[..., list(places)].flatten(1), 4)


def compact(tensor: Tensor) -> Tensor:
    """The same values with plain strides, so that they can be viewed as bytes.

    `contiguous()` keeps the odd strides of an axis of length 1, and `view` then refuses: a transposed [1, groups].
    """
    plain = tensor.is_contiguous() and tensor.stride(-1) == 1
    return tensor if plain else tensor.clone(memory_format=torch.contiguous_format)


def _bytes_of_fields(codes: Tensor, bits: int) -> Tensor:
    """8 // bits codes in every byte, the first one lowest."""
    stream = codes[:, 0 :: 8 // bits].clone(memory_format=torch.contiguous_format)
    for place in range(1, 8 // bits):
        stream |= codes[:, place :: 8 // bits] << (place * bits)
    return stream


def _fields_of_bytes(stream: Tensor, bits: int) -> Tensor:
    places = 8 // bits
    codes = torch.empty(*stream.shape, places, dtype=torch.uint8, device=stream.device)
    for place in range(places):
        torch.bitwise_and(stream >> (place * bits), (1 << bits) - 1, out=codes[..., place])
    return codes


def _bytes_of_streams(codes: Tensor, bits: int) -> Tensor:
    """8 codes in every `bits` bytes, by way of a 64-bit word that holds the 8 codes."""
    eights = codes.view(codes.shape[0], -1, 8)
    words = eights[..., 0].to(torch.int64)
    for place in range(1, 8):
        words |= eights[..., place].to(torch.int64) << (place * bits)
    return words.unsqueeze(-1).view(torch.uint8)[..., :bits].reshape(codes.shape[0], -1)


def _streams_of_bytes(stream: Tensor, bits: int) -> Tensor:
    # the bytes of 8 codes become the low ones of a 64-bit word; at most 7 * 8 bits are used, so the sign stays out
    held = pad(stream.view(stream.shape[0], -1, bits), (0, 8 - bits))
    words = held.view(torch.int64).squeeze(-1)
    codes = torch.empty(*words.shape, 8, dtype=torch.uint8, device=words.device)
    for place in range(8):
        codes[..., place] = (words >> (place * bits)) & ((1 << bits) - 1)
    return codes
