"""StoredWeight: the one place that knows which bytes of a weight's parts belong to which of its rows.

Formats say how rows lie in each part (`Format.rows_in_parts`); from that follows how a part is read:

    rows one after the other in the file        the band's bytes alone, again for every band
    rows along another axis (AWQ: [in, out/8])  once, whole; a band is cut out of it in memory
    no rows (a global scale, `weight_shape`)    once, whole

So every byte of a weight is read once in a pass over its bands, each part's in the order of the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtpforge.formats import FORMATS
from mtpforge.formats.format import BAND_ROWS, PartRows
from mtpforge.tensors import Quantization, Shape, TensorRef
from mtpforge.weights import bands
from mtpforge.weights.reading import Reader

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.weights.kernels import RowKernels


@dataclass(frozen=True, slots=True)
class Band:
    """Rows [first, last) of a weight: [rows, in], as they are stored.

    parts: suffix -> tensor, what the weight's parts were if it had these rows alone. starts: of the parts that have
    rows, the axis that they lie along and the place on it where the band begins; the others are the whole matrix's.
    around: rows before and after the band that the parts have too, as no entry of theirs ends where the band does.
    """

    first: int
    shape: Shape
    quantization: Quantization
    parts: Mapping[str, Tensor]
    starts: Mapping[str, tuple[int, int]]
    around: tuple[int, int] = (0, 0)

    @property
    def last(self) -> int:
        """The row after the band."""
        return self.first + self.shape[0]

    @property
    def row_parts(self) -> dict[str, Tensor]:
        """The parts that have rows: codes, scales of groups, blocks and rows."""
        return {suffix: self.parts[suffix] for suffix in self.starts}

    def decoded(self, kernels: RowKernels | None = None) -> Tensor:
        """Float32 [rows, in]. By compiled kernels, where they take it, it is valid until they are used again."""
        values = None if kernels is None else kernels.decode(self)
        if values is not None:
            return values
        before, after = self.around
        rows, columns = self.shape
        whole = (before + rows + after, columns)
        return FORMATS[self.quantization.format].decode(self.parts, whole, self.quantization)[before : before + rows]


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight [out, in] as a checkpoint holds it: suffix -> where the part lies, and what the parts are."""

    reader: Reader
    refs: Mapping[str, TensorRef]
    shape: Shape
    quantization: Quantization

    def open(self) -> OpenWeight:
        """The weight with everything in memory that no single band holds."""
        return OpenWeight(self)

    def bands(self, height: int = 0) -> Iterator[Band]:
        """All of it, from the first row on. height: as in `bands.bands`."""
        opened = self.open()
        return (opened.band(first, last) for first, last in bands.bands(self.shape, height))

    def decoded(self, kernels: RowKernels | None = None) -> Iterator[Tensor]:
        """All of it as float32 [rows, in]; each valid until the next where the reader has buffers, or with kernels."""
        return (band.decoded(kernels) for band in self.bands())

    def matrix_parts(self) -> dict[str, Tensor]:
        """The parts without rows; they stay."""
        rows = self.rows_in_parts()
        return self.reader.kept({suffix: ref for suffix, ref in self.refs.items() if suffix not in rows})

    def rows_in_parts(self) -> Mapping[str, PartRows]:
        """Suffix -> how rows lie in the part, of those that have rows."""
        parts = {suffix: ref.spec for suffix, ref in self.refs.items()}
        return FORMATS[self.quantization.format].rows_in_parts(self.shape, self.quantization, parts)

    def first_rows(self, last: int) -> Iterator[TensorRef]:
        """Where everything lies that rows [0, last) need."""
        rows = self.rows_in_parts()
        for suffix, ref in self.refs.items():
            lie = rows.get(suffix)
            yield ref if lie is None or lie.axis else ref.rows(*lie.span(0, last))


class OpenWeight:
    """A weight being read. matrix: its parts without rows; they stay."""

    def __init__(self, weight: StoredWeight) -> None:
        self._weight, self._rows = weight, weight.rows_in_parts()
        self.matrix = weight.matrix_parts()
        self._held = weight.reader.kept({s: weight.refs[s] for s, lie in self._rows.items() if lie.axis})

    def band(self, first: int, last: int) -> Band:
        """Rows [first, last); `first` is a multiple of BAND_ROWS, `last` too or the end.

        The parts that were read for it are valid as long as the reader's buffers are.
        """
        begin, end = self._whole_entries(first, last)
        spans = {suffix: lie.span(begin, end) for suffix, lie in self._rows.items()}
        refs = {s: self._weight.refs[s].rows(*spans[s]) for s, lie in self._rows.items() if not lie.axis}
        cut = {s: part.narrow(*self._place(s, spans[s])).contiguous() for s, part in self._held.items()}
        return Band(
            first,
            (last - first, self._weight.shape[1]),
            self._weight.quantization,
            self._weight.reader.tensors(refs) | cut | self.matrix,
            {suffix: (lie.axis, spans[suffix][0]) for suffix, lie in self._rows.items()},
            (first - begin, end - last),
        )

    def _whole_entries(self, first: int, last: int) -> tuple[int, int]:
        """The rows, and those before and after them that share entries which no band's edge falls between."""
        step = math.lcm(*(lie.rows for lie in self._rows.values() if BAND_ROWS % lie.rows))
        return first // step * step, max(last, min(-(-last // step) * step, self._weight.shape[0]))

    def _place(self, suffix: str, span: tuple[int, int]) -> tuple[int, int, int]:
        return self._rows[suffix].axis, span[0], span[1] - span[0]
