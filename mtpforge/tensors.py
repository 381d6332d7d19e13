"""The shared nouns: dtypes, Spec, TensorRef, Quantization. Plain Python, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from mtpforge.errors import Where

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype as safetensors names it: bits of one element, and torch's name ("" where torch has none)."""

    name: str
    bits: int
    torch: str


# In the order of safetensors' own enum (safetensors/src/tensor.rs, 0.8.0): the writer sorts by it, descending.
DTYPES: Final[dict[str, Dtype]] = {
    d.name: d
    for d in (
        Dtype("BOOL", 8, "bool"),
        Dtype("F4", 4, ""),
        Dtype("F6_E2M3", 6, ""),
        Dtype("F6_E3M2", 6, ""),
        Dtype("U8", 8, "uint8"),
        Dtype("I8", 8, "int8"),
        Dtype("F8_E5M2", 8, "float8_e5m2"),
        Dtype("F8_E4M3", 8, "float8_e4m3fn"),
        Dtype("F8_E8M0", 8, "float8_e8m0fnu"),
        Dtype("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
        Dtype("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
        Dtype("I16", 16, "int16"),
        Dtype("U16", 16, "uint16"),
        Dtype("F16", 16, "float16"),
        Dtype("BF16", 16, "bfloat16"),
        Dtype("I32", 32, "int32"),
        Dtype("U32", 32, "uint32"),
        Dtype("F32", 32, "float32"),
        Dtype("C64", 64, "complex64"),
        Dtype("F64", 64, "float64"),
        Dtype("I64", 64, "int64"),
        Dtype("U64", 64, "uint64"),
    )
}


@dataclass(frozen=True, slots=True)
class Spec:
    """What a stored tensor looks like: dtype in safetensors' spelling, shape."""

    dtype: str
    shape: Shape

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return self.count * DTYPES[self.dtype].bits // 8

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where the bytes of one tensor lie: file of the checkpoint `origin`, absolute byte range [start, stop).

    stride: bytes from one entry of the leading axis to the next where others lie between them, else 0: the range then
    holds more than the tensor, and `weights.Reader` leaves the rest out.
    """

    name: str
    spec: Spec
    file: str
    start: int
    stop: int
    origin: str = "source"
    stride: int = 0

    @property
    def place(self) -> Where:
        """The tensor as errors name it."""
        return Where(self.file, self.name, origin=self.origin)

    @property
    def step(self) -> int:
        """Bytes from one entry of the leading axis to the next."""
        return self.stride or (self.stop - self.start) // self.spec.shape[0]

    def rows(self, first: int, last: int) -> TensorRef:
        """Rows [first, last) of the leading axis: a contiguous part of the same bytes."""
        n_rows, rest = self.spec.shape[0], self.spec.shape[1:]
        if not 0 <= first <= last <= n_rows:
            raise ValueError(f"rows {first}:{last} of {n_rows}")
        spec, start = Spec(self.spec.dtype, (last - first, *rest)), self.start + first * self.step
        skipped = self.step - Spec(self.spec.dtype, rest).n_bytes if self.stride and first < last else 0
        return replace(self, spec=spec, start=start, stop=start + (last - first) * self.step - skipped)

    def part(self, number: int) -> TensorRef:
        """One entry of the leading axis, such as one expert of a stack, without that axis."""
        entry = self.rows(number, number + 1)
        return replace(entry, spec=Spec(self.spec.dtype, self.spec.shape[1:]), stride=0)

    def every(self, step: int, first: int) -> TensorRef:
        """Rows first, first + step, first + 2 * step and so on."""
        n_rows, entry = len(range(first, self.spec.shape[0], step)), Spec(self.spec.dtype, self.spec.shape[1:]).n_bytes
        start, stride = self.start + first * self.step, step * self.step
        spec = Spec(self.spec.dtype, (n_rows, *self.spec.shape[1:]))
        return replace(self, spec=spec, start=start, stop=start + (n_rows - 1) * stride + entry, stride=stride)

    def columns(self, first: int, last: int) -> TensorRef:
        """Columns [first, last) of a matrix."""
        n_rows, n_columns = self.spec.shape
        width, step = Spec(self.spec.dtype, (1,)).n_bytes, self.step
        start, stop = self.start + first * width, self.stop - (n_columns - last) * width
        return replace(self, spec=Spec(self.spec.dtype, (n_rows, last - first)), start=start, stop=stop, stride=step)


@dataclass(frozen=True, slots=True)
class Quantization:
    """How one weight is stored. Hashable; one table of a scheme file.

    format: a name of formats.FORMATS. dtype: of dense formats, as safetensors spells it; of GGUF's, its type. strategy:
    what one scale covers. group_size: columns that share a scale (strategy group). block: (rows, columns) that share
    one (strategy block). scale_dtype: dtype of the stored weight scale. input_scale: whether activations are quantized
    with a stored scale ("static"), one made at run time ("dynamic"), or not at all ("none").
    """

    format: str
    bits: int = 16
    dtype: str = ""
    strategy: Literal["", "tensor", "channel", "group", "block"] = ""
    group_size: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    scale_dtype: str = ""
    input_scale: Literal["none", "dynamic", "static"] = "none"

    @property
    def is_dense(self) -> bool:
        """Whether the weight is stored as plain floating-point numbers."""
        return self.format == "dense"


BF16: Final = Quantization("dense", 16, "BF16")
