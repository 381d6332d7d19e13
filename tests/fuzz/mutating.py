"""Structured mutations of JSON: a good document in, the text of one that is wrong in a few places out.

A mutation is a tuple of plain values, so that a failing example can be written down as `@example`:

    (path, "set", value)     path: numbers that choose a key or an index at each level; they wrap around
    (path, "drop", None)
    (path, "rename", key)
    (path, "twice", value)   the key stands there a second time, with another value
    (path, "bury", depth)    the value lies under that many lists

A `Raw` value stands in the text as it is: NaN, numbers without end, what json.dumps would not write.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    """JSON text, or what pretends to be."""

    text: str


ODD_TEXTS = (
    "", " ", "x", "3", "nan", "None", "\x1b[31mred", "a\nb", "\ud800", "\0", "\u202e", "../../etc/passwd",
    "/etc/passwd", "a" * 5000, "é" * 300, "re:(", "re:" + "(" * 300, "re:(a+)+$", "re:(.*)*$", "re:(.*.*.*.*.*)*x",
    "re:" + ".*" * 30 + "x", r"re:(\w+[.]?)+!", "re:(?:.|.|.)*!", "re:[[a", "re:(?i)x", "re:a(?i)", r"re:(.)\1*",
    "re:(?>.*)x", "re:.{4294967296}", "re:a{99999999999}", "re:(?P<x>.)(?P<x>.)", "re:(?=.*a)(?!.*b).*", "re:", "*",
    "**" * 40 + "x", "[!", "[z-a]*", "model.layers.1.mlp.experts", "model.layers.1.mlp.gate", "Linear", "Attention",
    "{0}", "{found}", "%s",
)  # fmt: skip
ODD_NUMBERS = (
    0, -1, 1, 2, 3, 7, 8, 16, 32, 48, 100, 128, 10**5, 65537, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63,
    2**64, -(2**63), 10**30, 10**4000, 1.5, 16.0, -0.0, 1e-320, 1e308,
)  # fmt: skip
ODD_RAW = tuple(
    Raw(text)
    for text in (
        "NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 5000, "[" * 60 + "]" * 60, "[" * 300 + "]" * 300,
        "[" * 900 + "]" * 900, "[" * 100_000, '{"a":' * 300 + "1" + "}" * 300, '{"a":1,"a":2}', "01", "'x'", "tru", "",
        '"\\ud800\\udc00"', '"\\u0000"', '"\t"', '"\\x"', "[" + "0," * 5000 + "0]", "[[],{},[[]],null]",
    )
)  # fmt: skip
ODD = st.one_of(
    st.sampled_from(
        [None, True, False, (), {}, ((),), ({},), (None,), ("x",), (0, 0), (1, 2, 3), {"": None}, {"a": ()}]
    ),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_RAW),
)
# What quantization blocks are made of, so that many of the mutated ones mean something.
WORDS = st.one_of(
    st.sampled_from(
        ["group", "channel", "tensor", "block", "token", "tensor_group", "int", "float", "local", "static"]
    ),
    st.sampled_from(["pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized", "mixed-precision"]),
    st.sampled_from(
        ["fp8", "modelopt", "compressed-tensors", "awq", "gptq", "quark", "mxfp4", "nonsense", "FP8", "NVFP4"]
    ),
    st.sampled_from(["W4A16_NVFP4", "MIXED_PRECISION", "torch.bfloat16", "torch.float32", "float8_e4m3fn", "uint8"]),
    st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, -1]),
    st.sampled_from([(32, 32), (128, 128), (1, 1), (96, 128), (3, 5), (128, 7), (256, 256), (10**9, 1), (64, 10**9)]),
    st.sampled_from(
        [("Linear",), ("re:.*",), ("re:.*experts.*", "Linear"), ("model.layers.1.mlp.experts",), ("re:(a+)+$",)]
    ),
    ODD,
)
PATHS = st.lists(st.integers(0, 200), min_size=1, max_size=5).map(tuple)


def mutations(values: st.SearchStrategy = ODD, most: int = 3) -> st.SearchStrategy:
    """One to a few mutations; `values`: what is put in."""
    one = st.one_of(
        st.tuples(PATHS, st.just("set"), values),
        st.tuples(PATHS, st.just("set"), values),
        st.tuples(PATHS, st.just("drop"), st.none()),
        st.tuples(PATHS, st.just("rename"), st.sampled_from(ODD_TEXTS)),
        st.tuples(PATHS, st.just("twice"), values),
        st.tuples(PATHS, st.just("bury"), st.sampled_from([1, 2, 40, 250])),
    )
    return st.lists(one, min_size=1, max_size=most)


def mutated(document: dict, changes: list[tuple]) -> str:
    """The document's text after the changes; the document itself is left alone."""
    whole = json.loads(json.dumps(document))
    for path, what, value in changes:
        _change(whole, path, what, value)
    return text(whole)


def _change(whole: dict, path: tuple[int, ...], what: str, value: object) -> None:
    holder: dict | list = whole
    value = copy.deepcopy(value)  # a later change may lie inside it
    for number in path[:-1]:
        inner = [
            v for v in (holder.values() if isinstance(holder, dict) else holder) if isinstance(v, dict | list) and v
        ]
        if not inner:
            break
        holder = inner[number % len(inner)]
    if not holder:
        return
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = keys[path[-1] % len(keys)]
    if what == "set":
        holder[key] = value
    elif what == "drop":
        del holder[key]
    elif what == "rename" and isinstance(holder, dict):
        holder[value] = holder.pop(key)
    elif what == "twice" and isinstance(holder, dict):
        holder[_Key(key)] = value
    elif what == "bury":
        holder[key] = Raw("[" * value + text(holder[key]) + "]" * value)


class _Key:
    """A key that is equal to no other, written like one that is there."""

    def __init__(self, name: object) -> None:
        self.name = name.name if isinstance(name, _Key) else name


def text(value: object) -> str:
    """JSON, with everything in it that json.dumps cannot write."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        pairs = (f"{json.dumps(k.name if isinstance(k, _Key) else k)}: {text(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text, value)) + "]"
    return json.dumps(value)
