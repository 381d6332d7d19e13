from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from mtpforge.checkpoint import header
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import Spec

NUMPY = {"bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "float16": "F16", "int32": "I32",
         "uint32": "U32", "float32": "F32", "float64": "F64", "int64": "I64", "uint64": "U64"}  # fmt: skip


def file_of(text: str | bytes | dict, data: bytes = b"", claimed: int | None = None) -> bytes:
    raw = json.dumps(text).encode() if isinstance(text, dict) else text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if claimed is None else claimed) + raw + data


def entry(dtype="U8", shape=(2,), offsets=(0, 2)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def read(file: bytes):
    n = header.length(file[:8], "m.safetensors", len(file))
    return header.parse(file[8 : 8 + n], "m.safetensors", len(file))


def library_accepts(file: bytes) -> bool:
    try:
        safetensors.deserialize(file)
    except safetensors.SafetensorError:
        return False
    return True


BAD = {
    "no bytes": (b"", "it has 0 bytes, a header needs at least 8"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "it has 7 bytes, a header needs at least 8"),
    "header longer than the file": (file_of("{}", claimed=3), "its header claims 3 bytes, the file ends after 10"),
    "header beyond the limit": (
        file_of("{}", claimed=100_000_001),
        "its header claims 100,000,001 bytes, at most 100,000,000 are allowed",
    ),
    "header of all ones": (b"\xff" * 16, "its header claims 18,446,744,073,709,551,615 bytes, at most 100,000,000 are"),
    "empty header": (file_of(""), "its header does not begin with `{`"),
    "list": (file_of("[]"), "its header does not begin with `{`"),
    "space before": (file_of(" {}"), "its header does not begin with `{`"),
    "byte order mark": (file_of("\ufeff{}"), "its header does not begin with `{`"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "its header is not UTF-8 text: invalid start byte at byte 2"),
    "cut JSON": (file_of('{"a": '), "its header is not valid JSON: Expecting value: line 1 column 7 (char 6)"),
    "two objects": (file_of("{}{}"), "its header is not valid JSON: Extra data: line 1 column 3 (char 2)"),
    "raw control character": (file_of('{"a\n": 1}'), "its header is not valid JSON: Invalid control character at"),
    "NaN": (file_of('{"a": NaN}'), "its header is not valid JSON: NaN is no whole number"),
    "deep": (file_of('{"a": ' * 100_000), "its header is nested too deeply"),
    "a name twice": (
        file_of(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}', b"12"),
        "its header is not valid JSON: 'a' appears twice",
    ),
    "a field twice": (
        file_of('{"a": {"dtype": "U8", "dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}', b"12"),
        "its header is not valid JSON: 'dtype' appears twice",
    ),
    "metadata of numbers": (file_of('{"__metadata__": {"a": 1}}'), "`__metadata__` must map strings to strings"),
    "metadata text": (file_of('{"__metadata__": "a"}'), "`__metadata__` must map strings to strings"),
    "entry is a list": (file_of({"a": ["U8", [2], [0, 2]]}, b"12"), "its entry is no object"),
    "entry is null": (file_of({"a": None}), "its entry is no object"),
    "no dtype": (file_of({"a": {"shape": [2], "data_offsets": [0, 2]}}, b"12"), "unknown dtype None"),
    "unknown dtype": (file_of({"a": entry("Q4")}, b"12"), "unknown dtype 'Q4'"),
    "dtype in lower case": (file_of({"a": entry("u8")}, b"12"), "unknown dtype 'u8'"),
    "dtype a list": (file_of({"a": entry(["U8"])}, b"12"), "unknown dtype ['U8']"),
    "no shape": (file_of({"a": {"dtype": "U8", "data_offsets": [0, 2]}}, b"12"), "shape must be a list of whole"),
    "shape a number": (file_of('{"a":{"dtype":"U8","shape":2,"data_offsets":[0,2]}}', b"12"), "shape must be a list"),
    "shape of texts": (
        file_of({"a": entry(shape=("2",))}, b"12"),
        "shape must be a list of whole numbers, it is ['2']",
    ),
    "shape of truth": (file_of({"a": entry(shape=(True, 2))}, b"12"), "shape must be a list of whole numbers"),
    "negative shape": (
        file_of({"a": entry(shape=(-2, -1))}, b"12"),
        "its shape has a negative number: [-2, -1]",
    ),
    "minus zero": (
        file_of('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'),
        "its header is not valid JSON: negative number -0",
    ),
    "fraction": (file_of({"a": entry(shape=(2.0,))}, b"12"), "its header is not valid JSON: 2.0 is no whole number"),
    "endless number": (file_of('{"a": ' + "9" * 5000 + "}"), "its header is not valid JSON: a number of 5000 digits"),
    "65 dimensions": (file_of({"a": entry(shape=(1,) * 64 + (2,))}, b"12"), "it has 65 dimensions, at most 64"),
    "overflow": (file_of({"a": entry(shape=(2**40, 2**40), offsets=(0, 0))}), "overflows"),
    "overflow before a zero": (file_of({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}), "overflows"),
    "half a byte": (file_of({"a": entry("F4", (3,))}, b"12"), "F4 [3] does not end at a byte"),
    "no offsets": (file_of({"a": {"dtype": "U8", "shape": [2]}}, b"12"), "data_offsets must be two whole numbers"),
    "one offset": (file_of({"a": entry(offsets=(2,))}, b"12"), "data_offsets must be two whole numbers, they are [2]"),
    "three offsets": (file_of({"a": entry(offsets=(0, 1, 2))}, b"12"), "data_offsets must be two whole numbers"),
    "offsets of truth": (file_of({"a": entry("U8", (1,), (False, True))}, b"1"), "data_offsets must be two whole"),
    "offsets turned round": (
        file_of({"a": entry(offsets=(2, 0))}, b"12"),
        "its data begins at 2 and ends before, at 0",
    ),
    "beyond the file": (file_of({"a": entry()}, b"1"), "the file is cut short"),
    "size too small": (file_of({"a": entry("F32")}, b"12"), "F32 [2] takes 8 bytes, its data has 2"),
    "size too large": (file_of({"a": entry("U8", (1,))}, b"12"), "U8 [1] takes 1 bytes, its data has 2"),
    "overlap": (file_of({"a": entry(), "b": entry(offsets=(1, 3))}, b"123"), "its data overlaps with that of `a`"),
    "same bytes twice": (file_of({"a": entry(), "b": entry()}, b"12"), "its data overlaps with that of `a`"),
    "hole": (
        file_of({"a": entry(), "b": entry(offsets=(3, 5))}, b"12345"),
        "1 bytes before its data belong to no tensor",
    ),
    "hole at the start": (file_of({"a": entry(offsets=(1, 3))}, b"123"), "1 bytes before its data belong to no tensor"),
    "bytes left over": (file_of({"a": entry()}, b"123"), "1 bytes at its end belong to no tensor"),
    "bytes and no tensor": (file_of("{}", b"123"), "3 bytes at its end belong to no tensor"),
    "escape in a name": (file_of({"a\x1b[31m": entry()}, b"12"), "a name holds control characters"),
    "lone surrogate": (file_of('{"\\ud800": ' + json.dumps(entry()) + "}", b"12"), "a name holds control characters"),
    "empty name": (file_of({"": entry()}, b"12"), "a name has 0 characters, 1 to 1024 are allowed"),
    "long name": (file_of({"a" * 1025: entry()}, b"12"), "a name has 1025 characters, 1 to 1024 are allowed"),
}
STRICTER = {"a name twice", "65 dimensions", "escape in a name", "empty name", "long name", "space before",
            "entry is a list"}  # fmt: skip

GOOD = {
    "nothing": file_of("{}"),
    "one": file_of({"a": entry()}, b"12"),
    "scalar": file_of({"a": entry("F32", (), (0, 4))}, b"1234"),
    "empty tensors": file_of(
        {"a": entry(shape=(0,), offsets=(0, 0)), "b": entry(), "c": entry("F32", (2, 0), (2, 2))}, b"12"
    ),
    "out of order": file_of({"b": entry(offsets=(2, 4)), "a": entry()}, b"1234"),
    "metadata": file_of({"__metadata__": {"format": "pt"}, "a": entry()}, b"12"),
    "metadata null": file_of({"__metadata__": None, "a": entry()}, b"12"),
    "padding": file_of(json.dumps({"a": entry()}) + "    ", b"12"),
    "further fields": file_of({"a": {**entry(), "note": "x"}}, b"12"),
    "packed floats": file_of({"a": entry("F4", (2, 2))}, b"12"),
    "scales": file_of({"a": entry("F8_E8M0"), "b": entry("F8_E4M3", (2,), (2, 4))}, b"1234"),
    "name in Chinese": file_of({"权 重": entry()}, b"12"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_header_is_refused_with_its_reason(case):
    file, why = BAD[case]
    with pytest.raises(MtpforgeError) as caught:
        read(file)
    assert caught.value.what == "`m.safetensors` is not a valid safetensors file"
    assert why in caught.value.why
    assert caught.value.where.startswith("m.safetensors")
    assert caught.value.fix


@pytest.mark.parametrize("case", BAD)
def test_what_the_library_refuses_is_refused_and_the_stricter_cases_are_known(case):
    assert library_accepts(BAD[case][0]) == (case in STRICTER)


@pytest.mark.parametrize("case", GOOD)
def test_what_the_library_accepts_is_accepted_with_the_same_bytes(case):
    file = GOOD[case]
    refs = read(file)
    theirs = dict(safetensors.deserialize(file))
    assert refs.keys() == theirs.keys()
    for name, ref in refs.items():
        assert (ref.spec.dtype, list(ref.spec.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
        assert file[ref.start : ref.stop] == bytes(theirs[name]["data"])


def test_the_error_names_the_tensor_with_control_characters_escaped():
    with pytest.raises(MtpforgeError) as caught:
        read(file_of({"a\x1b[31m": entry()}, b"12"))
    assert caught.value.where == "m.safetensors, tensor a\\x1b[31m"


@pytest.mark.parametrize(
    ("start", "kind"), [(b"PK\x03\x04", "pickle in a zip archive"), (b"\x80\x02", "pickle"), (b"GGUF\3\0\0\0", "GGUF")]
)
def test_weights_of_another_kind_are_called_by_it(start, kind):
    with pytest.raises(MtpforgeError) as caught:
        read(start + bytes(range(1, 64)))
    assert caught.value.what == f"`m.safetensors` is {kind}, not safetensors"


def test_a_negative_shape_is_told_of_its_tensor():
    with pytest.raises(MtpforgeError) as caught:
        read(file_of({"a": entry(shape=(-2, -1))}, b"12"))
    assert caught.value.where == "m.safetensors, tensor a"


def test_too_many_tensors_are_refused(monkeypatch):
    monkeypatch.setattr(header, "MAX_TENSORS", 1)
    with pytest.raises(MtpforgeError, match="not a valid") as caught:
        read(file_of({"a": entry(shape=(0,), offsets=(0, 0)), "b": entry(shape=(0,), offsets=(0, 0))}))
    assert caught.value.why == "it lists 2 tensors, at most 1 are allowed"


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    return np.zeros(shape, draw(st.sampled_from(sorted(NUMPY))))


names = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1).filter(lambda n: n != "__metadata__")


@given(st.dictionaries(names, arrays(), max_size=6))
def test_what_the_library_writes_is_read_back(tensors):
    refs = read(save(tensors))
    assert {n: r.spec for n, r in refs.items()} == {n: Spec(NUMPY[str(a.dtype)], a.shape) for n, a in tensors.items()}


VALUES = st.sampled_from([0, 1, 2, 3, 4, 8, -1, 2**63, 2**64, 1.5, None, True, "2"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F4", "F32", "BF16", "X", None, 1]),
        "shape": st.lists(VALUES, max_size=3) | VALUES,
        "data_offsets": st.lists(VALUES, min_size=1, max_size=3),
    }
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), ENTRIES | VALUES, max_size=3),
    st.binary(max_size=9),
)
def test_never_laxer_than_the_library(entries, data):
    file = file_of(json.dumps(entries), data)
    try:
        read(file)
    except MtpforgeError:
        return
    assert library_accepts(file)


@given(st.binary(max_size=64), st.integers(0, 40))
def test_arbitrary_bytes_raise_only_our_error(tail, n):
    with contextlib.suppress(MtpforgeError):
        read(struct.pack("<Q", n) + tail)
