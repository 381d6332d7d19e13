"""choose(): which rows of which weights are compared. Pure; the same steps give the same samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from mtpforge.formats import FORMATS
from mtpforge.tensors import Quantization, Shape, TensorRef
from mtpforge.weights.bands import bands

if TYPE_CHECKING:
    from mtpforge.planning import Move, Step

Mode: TypeAlias = Literal["full", "sample", "off"]
Key: TypeAlias = tuple[str, int, int]

SMALL: Final = 64 << 20  # weights that a check of every row decodes in about two seconds
LITTLE: Final = 8 << 20  # weights, 4.5 MB of NVFP4: a plain decoder takes half a second for them
_BANDS_OF_A_KIND: Final = 3  # the first rows, some in the middle, the last


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows [first, last) of one weight [out, in], to be decoded by two sides.

    reads: suffix -> the whole part, not cut. first is a multiple of 128.
    """

    module: str
    format: str
    quantization: Quantization
    shape: Shape
    reads: dict[str, TensorRef]
    rows: tuple[int, int]

    @property
    def key(self) -> Key:
        """Module, first row, row after the last."""
        return self.module, *self.rows

    @property
    def n_elements(self) -> int:
        """Weights that the rows hold."""
        return (self.rows[1] - self.rows[0]) * self.shape[1]


@dataclass(frozen=True, slots=True)
class Selection:
    """What is compared, and what cannot be: `uncompared` counts weights by reason."""

    mode: Mode
    samples: tuple[Sample, ...]
    uncompared: dict[str, int] = field(default_factory=dict)

    @property
    def is_little(self) -> bool:
        """Whether all that is compared is so little that a plain decoder is done before a library is imported."""
        return self.mode == "full" and sum(sample.n_elements for sample in self.samples) <= LITTLE

    @property
    def bands(self) -> dict[str, list[tuple[int, int]]]:
        """Module -> its rows that are compared, for whoever decodes them anyway."""
        drawn: dict[str, list[tuple[int, int]]] = {}
        for sample in self.samples:
            drawn.setdefault(sample.module, []).append(sample.rows)
        return drawn


def choose(steps: Iterable[Step], mode: Mode) -> Selection:
    """The samples of a plan's steps.

    full: every row of every quantized weight. sample: bands of rows that cover every kind of module, each of its
    projections and every stored format, spread over the experts; everything where the layer is small (64 M weights).
    A sample is one band of `weights.bands`, as a build decodes them.
    """
    if mode == "off":
        return Selection("off", ())
    moves = [move for step in steps for move in step.moves]
    reasons = {move.module: _uncomparable(move) for move in moves}
    comparable = [move for move in moves if not reasons[move.module]]
    if mode == "sample" and sum(move.shape[0] * move.shape[1] for move in comparable) <= SMALL:
        mode = "full"
    chosen = [s for move in comparable for s in _all_bands(move)] if mode == "full" else _spread(comparable)
    return Selection(mode, tuple(chosen), dict(Counter(reason for reason in reasons.values() if reason)))


def _uncomparable(move: Move) -> str:
    """Why no library can be asked about a weight, "" where one can."""
    form = FORMATS[move.stored.format]
    if not form.reader:
        return form.reference
    return form.unread({suffix: ref.spec for suffix, ref in move.reads.items()}, move.shape, move.stored)


def _all_bands(move: Move) -> list[Sample]:
    return [
        Sample(move.module, move.stored.format, move.stored, move.shape, dict(move.reads), rows)
        for rows in bands(move.shape)
    ]


def _spread(moves: list[Move]) -> list[Sample]:
    kinds: dict[tuple[str, str, Quantization], list[Move]] = {}
    for move in moves:
        stored = replace(move.stored, input_scale="none")
        kinds.setdefault((move.kind, move.module.rpartition(".")[2], stored), []).append(move)
    chosen = []
    for members in kinds.values():
        bands = [sample for move in members for sample in _all_bands(move)]
        places = {i * (len(bands) - 1) // (_BANDS_OF_A_KIND - 1) for i in range(_BANDS_OF_A_KIND)}
        chosen += [bands[place] for place in sorted(places)]
    return chosen
