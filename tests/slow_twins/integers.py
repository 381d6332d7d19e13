"""Bit streams of small integers, one value at a time. Imports nothing of mtpforge."""


def unpack_dense(words, bits, count):
    """Unsigned values 0..count-1 of a stream: value i has bits [i*b, i*b+b) of the words, least significant first."""
    stream = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))
    return [(stream >> (bits * i)) & ((1 << bits) - 1) for i in range(count)]


def pack_dense(values, bits):
    stream = sum(value << (bits * i) for i, value in enumerate(values))
    n_words = -(-len(values) * bits // 32)
    return [_signed((stream >> (32 * place)) & 0xFFFFFFFF) for place in range(n_words)]


def pack_legacy(values, bits):
    """32 // bits values a word, top bits unused."""
    per_word = 32 // bits
    starts = range(0, len(values), per_word)
    return [_signed(sum(v << (bits * k) for k, v in enumerate(values[start : start + per_word]))) for start in starts]


def _signed(word):
    return word - (1 << 32) if word >> 31 else word
