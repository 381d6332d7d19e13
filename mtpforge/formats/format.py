"""The Format record: everything that mtpforge knows about one way to store a weight.

A weight `[out, in]` is stored as *parts*, tensors named by suffix (`weight_packed`, `weight_scale`, ...). Some parts
have rows as the weight has (codes, scales of a row): *row parts*. The others belong to the whole matrix (a global
scale, `weight_shape`): *matrix parts*. Everything here works on a band of rows, so that a matrix of any size needs
little memory; a band starts at a multiple of BAND_ROWS, the last one may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

BAND_ROWS: Final = 128  # FP8 blocks span 128 rows, packed zero points 32 at most

Specs: TypeAlias = Mapping[str, Spec]
# (weight float32 [rows, groups, size], bits, dtype of the scale, symmetric) -> codes, scale, zero point
Finder: TypeAlias = Callable[["Tensor", int, "torch.dtype", bool], tuple["Tensor", "Tensor", "Tensor | None"]]
Search: TypeAlias = Callable[["Tensor", Quantization, Mapping[str, "Tensor"], Finder], dict[str, "Tensor"]]


@dataclass(frozen=True, slots=True)
class PartRows:
    """How rows of a weight lie in a part: every `rows` of them take `entries` entries of its axis `axis`.

    Codes: an entry a row. Scales of FP8 blocks: one for 128 rows. Zero points of 3 bits, packed along the rows: 3 words
    for 32. `rows` divides BAND_ROWS, unless the whole weight is one band.
    """

    axis: int = 0
    rows: int = 1
    entries: int = 1

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Entries [start, stop) of rows [first, last), which begin where an entry does."""
        if first % self.rows:
            raise ValueError(f"row {first} is inside an entry of {self.rows} rows")
        return first * self.entries // self.rows, -(-last * self.entries // self.rows)


@dataclass(frozen=True, slots=True)
class InputScale:
    """How a format stores the scale of static activations: suffix, and what the number means.

    stored = amax / divisor, or divisor / amax where `reciprocal`. not_under: what a config calls weights of the same
    parts whose activations are quantized in another way, so that the number means something else.
    """

    suffix: str
    divisor: float
    reciprocal: bool = False
    not_under: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Codes:
    """The part that holds the codes.

    least, largest: what an element of it is where every code in it is the least, the largest; equal where scales of
    groups and channels do not decide how far a weight may be off. of_symmetric: the two of symmetric weights, where
    they are others. scale(parts): as stored, [rows, groups]; of formats that have a search.
    """

    suffix: str
    dtype: str
    least: int = 0
    largest: int = 0
    of_symmetric: tuple[int, int] | None = None
    scale: Callable[[Mapping[str, Tensor]], Tensor] = lambda parts: parts["weight_scale"]

    def ends(self, quantization: Quantization) -> tuple[int, int]:
        """An element of least codes, and one of largest."""
        return self.of_symmetric if quantization.symmetric and self.of_symmetric else (self.least, self.largest)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """A band as a compiled decoder takes it.

    kernel: name in arithmetic.rows.DECODERS. codes: uint8 [rows, bytes of a row]. factors: float32 [ceil(rows /
    rows_per_factor), factors of a row], what the numbers of the codes are multiplied by; [.., 0] for plain floats.
    """

    kernel: str
    codes: Tensor
    factors: Tensor
    rows_per_factor: int = 1


@dataclass(frozen=True, slots=True)
class RowPacking:
    """How a compiled encoder packs rows.

    kernel: name in arithmetic.rows.ENCODERS, and the numbers that it wants. size: columns that share a scale. widths:
    bytes of a row of codes, of scales, of zero points (one each, not yet packed along the rows). parts(codes, scales,
    zeros): the row parts of the format, from uint8 [rows, width] each.
    """

    kernel: str
    numbers: tuple[float, ...]
    size: int
    widths: tuple[int, int, int]
    parts: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a weight.

    recognise(parts, shape, block): the quantization if these parts of one module with a weight of `shape` [out, in] are
        this format, else None. `block` is the checkpoint's raw quantization config (may be empty): a hint where bytes
        leave a choice; where they disagree the bytes win.
    layout(shape, quantization): suffix -> Spec of what a weight [out, in] is stored as, the input scale included when
        it is static. Pure Python. MtpforgeError where the format cannot hold the shape.
    rows_in_parts(shape, quantization, parts): how rows of a weight [out, in] lie in each part that has rows; the others
        belong to the whole matrix. `parts` is what is stored, where an older packing is not `layout`'s. Pure Python.
    decode(parts, shape, quantization): float32 [rows, in] of a band; `parts` holds the row parts of the band and the
        matrix parts; `shape` is the band's [rows, in].
    matrix_parts(shape, quantization, amax): the matrix parts of a weight of the *whole* shape [out, in], the input
        scale left out; `amax` (float32 scalar: largest magnitude of the weight, of all weights that share the scale) is
        given when `needs_amax(quantization)`. None where the format is only read.
    encode(rows, quantization, matrix): the row parts of a band of float32 [rows, in]; where it is left out, `search` by
        the whole range of the numbers.
    search(rows, quantization, matrix, find): the same, codes and scales by a method's finder (methods/method.py); None
        where the range of the numbers decides.
    packed_rows(parts, shape, quantization), row_packing(columns, quantization, matrix): the same decoder and encoder as
        compiled kernels take them, for formats that are worth it; None where the kernel does not cover the case.
    shown(quantization): the family's name in tables: `NVFP4`, `INT4`, `BF16`.
    takes: field of Quantization -> values that it may have; a field that is not named keeps its default. How fields
        hang together is told by `formats.refusal`.
    bound(parts, quantization, shape): how far a band of decoded weights [rows, in] may lie from those that were encoded
        to nearest under these parts' scales.
    guesses(parts, shape, block): what parts that no format recognises may have been meant to be, likelier ones first.
    codes: where the codes are; None for plain numbers.
    reader: the function of checking/libraries.py that decodes the same bytes by the format's own library; "" where no
        library can be asked.
    reference: library and function that it asks, or why there is none.
    implied: matrix parts that follow from the shape of the weight; a copy makes them anew, and believes no stored one.
    same_bytes: other formats whose parts are these very bytes under other names: format -> suffix here -> suffix there.
    dotted: suffixes of parts that have a dot in them, as `weight.absmax`; `formats.split` cuts names by them.
    unread(parts, shape, quantization): why the reader cannot be asked about just these parts, "" where it can.
    package(quantization): what `decode` imports that is no requirement of mtpforge, and the extra that brings it; ""
        for nothing.
    """

    name: str
    shown: Callable[[Quantization], str]
    takes: Mapping[str, tuple[object, ...]]
    recognise: Callable[[Specs, Shape, Mapping[str, object]], Quantization | None]
    layout: Callable[[Shape, Quantization], dict[str, Spec]]
    rows_in_parts: Callable[[Shape, Quantization, Specs], Mapping[str, PartRows]]
    decode: Callable[[Mapping[str, Tensor], Shape, Quantization], Tensor]
    bound: Callable[[Mapping[str, Tensor], Quantization, Shape], Limit]
    guesses: Callable[[Specs, Shape, Mapping[str, object]], Iterable[Quantization]]
    codes: Codes | None
    reader: str
    reference: str
    unread: Callable[[Specs, Shape, Quantization], str] = lambda *_: ""
    package: Callable[[Quantization], str] = lambda _: ""
    needs_amax: Callable[[Quantization], bool] = lambda _: False
    matrix_parts: Callable[[Shape, Quantization, Tensor | None], dict[str, Tensor]] | None = None
    encode: Callable[[Tensor, Quantization, Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    search: Search | None = None
    packed_rows: Callable[[Mapping[str, Tensor], Shape, Quantization], PackedRows | None] | None = None
    row_packing: Callable[[int, Quantization, Mapping[str, Tensor]], RowPacking | None] | None = None
    input_scale: InputScale | None = None
    implied: frozenset[str] = frozenset()
    same_bytes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dotted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Let a format that is searched be encoded so without a method."""
        if self.encode is None and self.search is not None:
            object.__setattr__(self, "encode", partial(_by_whole_range, self.search))


def _by_whole_range(
    search: Search, rows: Tensor, quantization: Quantization, matrix: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    from mtpforge.arithmetic import searching

    return search(rows, quantization, matrix, searching.nearest(searching.whole_range))


def only_rows(_shape: Shape, _quantization: Quantization, _amax: Tensor | None) -> dict[str, Tensor]:
    """No matrix parts: every part of the format has rows."""
    return {}


def declared_weights(block: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """`weights` of every config group of a compressed-tensors config, in its order; anything odd is passed over."""
    groups = block.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            yield weights
