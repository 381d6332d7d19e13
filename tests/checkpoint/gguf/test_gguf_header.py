"""The header as the gguf package reads it, by few bytes; and every way in which it may lie."""

import re
import struct

import gguf
import numpy as np
import pytest

from mtpforge.checkpoint.gguf import header
from mtpforge.checkpoint.gguf.header import Listed
from mtpforge.errors import MtpforgeError

SCALARS = {
    "u8": (0, "B", 200), "i8": (1, "b", -3), "u16": (2, "H", 60000), "i16": (3, "h", -4), "u32": (4, "I", 2**31),
    "i32": (5, "i", -5), "f32": (6, "f", 1.8), "bool": (7, "B", True), "u64": (10, "Q", 2**60),
    "i64": (11, "q", -(2**60)), "f64": (12, "d", 1e-5),
}  # fmt: skip


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name, number, raw):
    return text(name) + struct.pack("<I", number) + raw


def tensor(name="blk.0.x.weight", dims=(32, 2), number=0, offset=0):
    sizes = struct.pack(f"<{len(dims)}Q", *dims)
    return text(name) + struct.pack("<I", len(dims)) + sizes + struct.pack("<IQ", number, offset)


def file_of(keys=(), tensors=(), data=b"", *, version=3, n_tensors=None, n_keys=None, alignment=32):
    n_tensors, n_keys = len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    raw = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join((*keys, *tensors))
    return raw + bytes(-len(raw) % alignment) + data


class Asked:
    """A file in memory, and which bytes were asked for."""

    def __init__(self, raw, n_bytes=None):
        self.raw, self.n_bytes, self.spans = raw, n_bytes or len(raw), []

    def __call__(self, start, stop):
        self.spans.append((start, stop))
        return self.raw[start:stop], self.n_bytes


def read(raw, n_bytes=None):
    return header.read(Asked(raw, n_bytes), "x.gguf")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of the package's own writer, with a tokenizer and matrices in several types."""
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = gguf.GGUFWriter(path, "glm-dsa")
    writer.add_array("tokenizer.ggml.tokens", [f"token {n} é" * (n % 97) for n in range(2_000)])
    writer.add_array("tokenizer.ggml.scores", [float(n) for n in range(2_000)])
    writer.add_string("tokenizer.chat_template", "x" * 100_000)
    writer.add_uint32("glm-dsa.block_count", 79)
    for name, kind in (("a", "Q8_0"), ("b", "F32"), ("c", "BF16"), ("d", "Q4_0")):
        raw = gguf.quants.quantize(np.ones((3, 5, 64), np.float32), gguf.GGMLQuantizationType[kind])
        writer.add_tensor(f"blk.1.{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_says_what_the_package_reads(written):
    raw = written.read_bytes()
    found, theirs = read(raw), gguf.GGUFReader(written)
    assert found.values["glm-dsa.block_count"] == 79
    assert found.values["general.architecture"] == "glm-dsa"
    assert found.values["tokenizer.ggml.tokens"] == found.values["tokenizer.ggml.scores"] == Listed(2_000)
    assert found.values["tokenizer.chat_template"] == "", "too long to be a name"
    ours = {t.name: (t.type.number, t.shape, t.start, t.stop - t.start) for t in found.tensors}
    assert ours == {
        t.name: (t.tensor_type.value, tuple(int(n) for n in t.shape[::-1]), t.data_offset, t.n_bytes)
        for t in theirs.tensors
    }


def test_of_a_large_file_little_more_than_the_header_is_asked_for(written):
    asked = Asked(written.read_bytes(), 300 << 30)
    length = header.read(asked, "x.gguf").tensors[0].start
    assert sum(stop - start for start, stop in asked.spans) < 2 * length


def test_long_lists_of_numbers_are_passed_over():
    asked = Asked(file_of([key("k", 9, struct.pack("<IQ", 4, 10**6) + bytes(4 * 10**6)), key("n", 0, b"\7")]))
    assert header.read(asked, "x.gguf").values == {"k": Listed(10**6), "n": 7}
    assert sum(stop - start for start, stop in asked.spans) < 300_000


@pytest.mark.parametrize("name", SCALARS)
def test_numbers_of_every_type(name):
    number, code, value = SCALARS[name]
    raw = file_of([key("k", number, struct.pack(f"<{code}", value))])
    assert read(raw).values == {"k": value}


LONG = struct.pack("<Q", 2**63)
LIES = {
    "nothing": (b"", "it ends inside its first bytes|does not begin with `GGUF`"),
    "four bytes": (b"GGUF", "it is of version 0"),
    "safetensors": (b"\x10\0\0\0\0\0\0\0{}", "it does not begin with `GGUF`"),
    "version 1": (file_of(version=1), "it is of version 1"),
    "version 4": (file_of(version=4), "it is of version 4"),
    "big-endian": (file_of(version=3 << 24), "it is big-endian, version 3"),
    "tensors without end": (file_of(n_tensors=2**62), "it claims 4,611,686,018,427,387,904 tensors"),
    "fewer tensors than none": (file_of(n_tensors=2**64 - 1), "it claims -1 tensors"),
    "keys without end": (file_of(n_keys=2**40), "keys, at most 10,000"),
    "more than there are": (file_of(tensors=[tensor()], n_tensors=4, data=bytes(256)), "a name has 0 characters"),
    "a key without end": (file_of([struct.pack("<Q", 2**63)]), "a key claims 9,223,372,036,854,775,808 bytes"),
    "a key that ends with the file": (file_of([struct.pack("<Q", 60_000)]), "it ends inside a key"),
    "a key that is no text": (file_of([key(b"\xff\xfe", 4, bytes(4))]), "a key is not UTF-8 text"),
    "a key twice": (file_of([key("k", 4, bytes(4))] * 2), "the key appears twice"),
    "a value of no type": (file_of([key("k", 13, bytes(4))]), "the unknown type 13"),
    "a text without end": (file_of([key("k", 8, struct.pack("<Q", 2**63))]), "it ends inside key `k`"),
    "a list without end": (file_of([key("k", 9, struct.pack("<IQ", 4, 2**61))]), "claims 2,305,843,009,213,693,952"),
    "a list beyond the file": (file_of([key("k", 9, struct.pack("<IQ", 4, 10**6))]), "it ends inside key `k`"),
    "a list of texts beyond the file": (file_of([key("k", 9, struct.pack("<IQ", 8, 10**6))]), "it ends inside key `k`"),
    "a text in a list without end": (file_of([key("k", 9, struct.pack("<IQ", 8, 1) + LONG)]), "it ends inside key `k`"),
    "a list of lists": (file_of([key("k", 9, struct.pack("<IQ", 9, 1) * 1000)]), "lists of lists"),
    "a list of nothing known": (file_of([key("k", 9, struct.pack("<IQ", 77, 1))]), "values of the unknown type 77"),
    "an alignment of 0": (file_of([key("general.alignment", 4, bytes(4))]), "no power of two"),
    "an alignment of 48": (file_of([key("general.alignment", 4, struct.pack("<I", 48))]), "no power of two"),
    "an alignment in words": (file_of([key("general.alignment", 8, text("32"))]), "no power of two"),
    "a name without end": (file_of(tensors=[struct.pack("<Q", 2**50)]), "the name of a tensor claims"),
    "no name": (file_of(tensors=[tensor("")]), "a name has 0 characters"),
    "a name with a bell": (file_of(tensors=[tensor("a\a")], data=bytes(256)), "control characters"),
    "a name twice": (file_of(tensors=[tensor(), tensor(offset=256)], data=bytes(512)), "it holds the tensor twice"),
    "five dimensions": (file_of(tensors=[tensor(dims=(1,) * 5)]), "it has 5 dimensions"),
    "dimensions without end": (file_of(tensors=[text("a") + struct.pack("<I", 2**32 - 1)]), "4294967295 dimensions"),
    "an empty tensor": (file_of(tensors=[tensor(dims=(32, 0))]), "its sizes are"),
    "sizes that overflow": (file_of(tensors=[tensor(dims=(2**32, 2**32, 2**32))]), "its sizes are"),
    "an unknown type": (file_of(tensors=[tensor(number=99)]), "its type is number 99, which is unknown"),
    "a type that was given up": (file_of(tensors=[tensor(number=4)]), "its type is number 4, which is unknown"),
    "half a block": (file_of(tensors=[tensor(dims=(48, 2), number=8)]), "rows of 48 numbers do not fill blocks of 32"),
    "a gap": (file_of(tensors=[tensor(offset=32)], data=bytes(512)), "is said to begin at 32, it must at 0"),
    "an overlap": (file_of(tensors=[tensor(), tensor("b", offset=0)], data=bytes(512)), "begin at 0, it must at 256"),
    "no data": (file_of(tensors=[tensor()]), "the file is cut short"),
    "data that ends early": (file_of(tensors=[tensor()], data=bytes(255)), "the file is cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_what_lies_is_refused_by_name(name):
    raw, why = LIES[name]
    with pytest.raises(MtpforgeError) as caught:
        read(raw)
    assert re.search(why, caught.value.why), caught.value.why
    assert "x.gguf" in str(caught.value)


def test_a_pointer_of_git_lfs_is_told_as_such():
    with pytest.raises(MtpforgeError, match="is a Git LFS pointer"):
        read(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def test_half_a_million_texts_take_a_moment(written):
    """By the clock of the processor: GLM's tokenizer has 475,000."""
    import time

    raw = file_of([key("k", 9, struct.pack("<IQ", 8, 475_000) + text("token") * 475_000)])
    began = time.process_time()
    assert read(raw).values == {"k": Listed(475_000)}
    assert time.process_time() - began < 5


def test_more_values_than_any_tokenizer_has_are_refused():
    lists = [key(f"k{n}", 9, struct.pack("<IQ", 0, 1_500_000) + bytes(1_500_000)) for n in range(2)]
    with pytest.raises(MtpforgeError) as caught:
        read(file_of(lists))
    assert "more than 2,000,000 values" in caught.value.why
