"""The types of a plan: pure data, made without a tensor loaded.

Plan            what is read, written and dropped, with reasons; prints as JSON
  Step          the unit of work: modules whose codes depend on each other
    Move        one module: its parts in the source, its tensors in the draft
    Carry       one tensor that is copied or cast, row by row
    InputScaleMove  one static activation scale, from stored ones
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal

from mtpforge.formats.format import BAND_ROWS
from mtpforge.report import Trap
from mtpforge.scheme import Scheme
from mtpforge.tensors import Quantization, ScaleMethod, Shape, Spec, TensorRef

BAND_ELEMENTS: Final = 4 << 20  # weights decoded at a time: 16 MiB of float32 stay near the caches and bound the memory


def band_rows(shape: Shape) -> int:
    """Rows of one band of a weight [out, in]: a multiple of BAND_ROWS, about BAND_ELEMENTS weights."""
    return max(BAND_ELEMENTS // max(shape[1], 1) // BAND_ROWS, 1) * BAND_ROWS


@dataclass(frozen=True, slots=True)
class Write:
    """One tensor of the draft: full name, what it looks like, and the suffix of the part it is."""

    suffix: str
    name: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Move:
    """One weight on its way from source to draft.

    module: local name in the source. shape: [out, in]. reads: suffix -> part. stored, wanted: how it is stored, and how
    the draft must store it. action "copy": every write is the read of the same suffix, byte for byte, but for a scale
    that is widened without loss (BF16 to F32); a static input scale has an InputScaleMove of its own. action "encode":
    decode, then encode, the scales found by `scales`.
    """

    module: str
    kind: str
    shape: Shape
    reads: dict[str, TensorRef]
    stored: Quantization
    wanted: Quantization
    action: Literal["copy", "encode"]
    writes: tuple[Write, ...]
    reason: str
    scales: ScaleMethod = "rtn"


@dataclass(frozen=True, slots=True)
class Carry:
    """One dense tensor on its way: read whole, or only the kept rows, cast to the write's dtype where it differs.

    rows: kept rows of the leading axis, ascending, None for all.
    """

    kind: str
    read: TensorRef
    write: Write
    rows: tuple[int, ...] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class InputScaleMove:
    """One static activation scale: max over `reads` of the amax that each states, written by the target's convention.

    amax = stored * read_divisor, or read_divisor / stored where read_reciprocal. Where both conventions are the same
    the largest amax is picked, not computed: its stored bytes are written as they are.
    """

    reads: tuple[TensorRef, ...]
    read_divisor: float
    read_reciprocal: bool
    write: Write
    write_divisor: float
    write_reciprocal: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """The unit of work, resume and progress.

    ties: the moves share one amax (NVFP4's global scale of gate and up). With action "copy" and ties, the stored global
    scales (`tied_suffix`) must be equal; where they are not, the moves are encoded anew.
    peak_bytes: memory that running it takes, in bands of rows.
    """

    moves: tuple[Move, ...] = ()
    carries: tuple[Carry, ...] = ()
    input_scales: tuple[InputScaleMove, ...] = ()
    ties: bool = False
    tied_suffix: str = ""
    peak_bytes: int = 0

    @property
    def writes(self) -> tuple[Write, ...]:
        """Every tensor that this step writes."""
        return (
            *(w for m in self.moves for w in m.writes),
            *(c.write for c in self.carries),
            *(s.write for s in self.input_scales),
        )

    @property
    def reads(self) -> tuple[TensorRef, ...]:
        """Every tensor that this step reads."""
        return (
            *(r for m in self.moves for r in m.reads.values()),
            *(c.read for c in self.carries),
            *(r for s in self.input_scales for r in s.reads),
        )

    @property
    def read_bytes(self) -> int:
        """Bytes that this step reads."""
        return sum(r.stop - r.start for r in self.reads)


@dataclass(frozen=True, slots=True)
class Side:
    """A checkpoint as the plan names it."""

    label: str
    identity: str
    location: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Unused:
    """A tensor of the source's layer that the draft does not carry, and the rule that drops it."""

    name: str
    n_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A draft, decided. `target` is None for an extract without a target.

    layer: index in the draft; source_layer: index in the source. kept_experts: numbers in the source, None for all.
    config: the draft's config.json. changes: every dtype that differs from the source's, as sentences. inputs: sha256
    of the calibration inputs that codes are fitted to, "" for none.
    """

    source: Side
    target: Side | None
    engine: str
    family: str
    layer: int
    source_layer: int
    n_experts: int
    kept_experts: tuple[int, ...] | None
    scheme: Scheme
    steps: tuple[Step, ...]
    unused: tuple[Unused, ...]
    changes: tuple[str, ...]
    config: dict[str, object]
    traps: tuple[Trap, ...]
    inputs: str = ""
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def specs(self) -> dict[str, Spec]:
        """Every tensor of the draft, in plan order."""
        return {w.name: w.spec for step in self.steps for w in step.writes}

    @property
    def scales(self) -> ScaleMethod:
        """How the scales are found where there is a choice."""
        return next((m.scales for step in self.steps for m in step.moves if m.scales != "rtn"), "rtn")

    @property
    def digest(self) -> str:
        """sha256 of everything that decides a byte of the draft; where the files lie does not."""
        sides = [None if side is None else side.identity for side in (self.source, self.target)]
        body = asdict(
            replace(self, facts={}, traps=(), target=None, source=replace(self.source, label="", location=""))
        )
        text = json.dumps([sides, body], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()
