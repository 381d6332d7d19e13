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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal, TypeAlias, cast

from mtpforge import tables
from mtpforge.errors import shown
from mtpforge.methods import RTN
from mtpforge.report import Trap, advice
from mtpforge.scheme import Scheme
from mtpforge.tensors import Quantization, Shape, Spec, TensorRef
from mtpforge.units import file_size

COLUMNS: Final = ("modules", "n", "stored in source", "in draft", "", "decided by")
Row: TypeAlias = tuple[str, int, str, str, str, str]


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
    that is widened without loss (BF16 to F32) and what follows from the shape (`Format.implied`); a static input scale
    has an InputScaleMove of its own. action "encode": decode, then encode, the scales found by `scales`.
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
    scales: str = RTN.name


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


@dataclass(frozen=True, slots=True, repr=False)
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
    def scales(self) -> str:
        """How the scales are found where there is a choice."""
        return next((m.scales for step in self.steps for m in step.moves if m.scales != RTN.name), RTN.name)

    def rows(self, *, unfold: bool = False) -> list[Row]:
        """One row per kind and storage, under COLUMNS; `unfold` keeps rows apart that differ by what decided."""
        merged: dict[tuple[str, ...], list[Row]] = {}
        for fact in cast("list[dict[str, object]]", self.facts.get("stored", [])):
            kind, stored, wanted, how, reason = (str(fact[k]) for k in ("kind", "stored", "wanted", "action", "reason"))
            key = (kind, stored, wanted, how, reason) if unfold else (kind, stored, wanted, how)
            merged.setdefault(key, []).append((kind, cast("int", fact["n"]), stored, wanted, how, reason))
        return [_merged(rows) for rows in merged.values()]

    def __repr__(self) -> str:
        """One line: a full-size plan is 3 MB."""
        return f"<{self._shown()[0]}>"

    def __str__(self) -> str:
        """What it makes, and what becomes of the source's modules."""
        return tables.text(*self._shown())

    def _repr_html_(self) -> str:
        return tables.html(*self._shown())

    def _shown(self) -> tuple[str, tuple[str, ...], list[Row], list[str]]:
        beside = f" beside {shown(self.target.label)}" if self.target else ""
        size = file_size(sum(spec.n_bytes for spec in self.specs.values()))
        made = f"draft of layer {self.source_layer} of {shown(self.source.label)}{beside}"
        line = f"{made}: {self.scheme.name}, {self.n_experts} experts, {size}"
        return line, COLUMNS, self.rows(unfold=True), advice(self.traps)

    @property
    def digest(self) -> str:
        """sha256 of everything that decides a byte of the draft; where the files lie does not."""
        sides = [None if side is None else side.identity for side in (self.source, self.target)]
        body = asdict(
            replace(self, facts={}, traps=(), target=None, source=replace(self.source, label="", location=""))
        )
        text = json.dumps([sides, body], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _merged(rows: Sequence[Row]) -> Row:
    kind, _, stored, wanted, how, reason = rows[0]
    more = len({row[5] for row in rows}) - 1
    return (
        kind,
        sum(row[1] for row in rows),
        stored,
        wanted,
        how,
        f"{reason} (and {more} more, `-v`)" if more else reason,
    )
