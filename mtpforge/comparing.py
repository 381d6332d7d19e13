"""compare(): two layers beside each other: drafts, or a draft and a published one of which only ranges are read.

Nothing is judged: it says where two checkpoints hold other configs, tensors or values. Weights of two formats are
decoded and compared as float32; where both store the same bytes, the bytes are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

import torch
from torch import Tensor

from mtpforge import formats
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family, family_of
from mtpforge.report import Check, OnProgress, Progress, Report
from mtpforge.sourcing import StoredLayer, StoredModule, has_layer, stored_layer
from mtpforge.tensors import Shape, TensorRef
from mtpforge.units import counted
from mtpforge.weights import Buffers, Reader, StoredWeight
from mtpforge.weights.bands import bands

_SHOWN: Final = 6
_EXPERTS: Final = "experts"


@dataclass(frozen=True, slots=True)
class Difference:
    """One module, or tensor that is none: whether its bytes are the same, and how far the other's values are off.

    kind: as `inspect` groups them. relative_error: Frobenius norm of the difference over that of the first.
    """

    name: str
    kind: str
    forms: tuple[str, str]
    is_same: bool
    relative_error: float


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two."""

    checkpoint: Checkpoint
    layer: StoredLayer

    def parts(self, name: str) -> Mapping[str, TensorRef]:
        """What is read of a module, or of a tensor that is none."""
        return self.layer.modules[name].weight_parts if name in self.layer.modules else {"": self.layer.plain[name]}


def _said_of_config(config: Mapping[str, object]) -> str:
    differ = "differs" if len(config) == 1 else "differ"
    return f"{counted(len(config), 'key')} {differ}: {_some(config)}" if config else ""


def compare(one: Checkpoint, other: Checkpoint, *, on_progress: OnProgress | None = None) -> Report:
    """The differences of two checkpoints' nextn layers.

    Facts: `config` (key -> both values, None where absent), `only` (modules and tensors that one side alone holds),
    `kinds` (one row for each kind of module) and `differences` (every module that is not the same). A check fails for
    each question to which the answer is no. MtpforgeError where a side has no such layer, or is of another model.
    """
    family = family_of(one.config)
    for checkpoint in (one, other):
        if not has_layer(checkpoint, family):
            fix = "name two drafts, or checkpoints that kept their MTP layer"
            raise MtpforgeError(f"{checkpoint.label} holds no MTP layer", where=checkpoint.location, fix=fix)
    _refuse_others(one, other, family)
    sides = [_Side(checkpoint, stored_layer(checkpoint, family)) for checkpoint in (one, other)]
    shared = _shared(sides)
    for side in sides:
        side.checkpoint.fetch([ref for name in shared for ref in side.parts(name).values()], on_progress)
    found = [*_differences(sides, shared, family, on_progress)]
    config, only = _config(one, other), _only(sides)
    differing = [d for d in found if not d.is_same]
    checks = (
        _check("config", _said_of_config(config), "the same keys and values"),
        _check("names", _said_of(only), f"{len(shared)} modules and tensors on both sides"),
        _check("formats", _forms(found), "stored the same way"),
        _check("values", _worst(differing, len(found)), f"{len(found)} modules and tensors, byte for byte"),
    )
    facts: dict[str, object] = {
        "one": one.label,
        "other": other.label,
        "config": config,
        "only": only,
        "kinds": [*_kinds(found)],
        "differences": [asdict(d) for d in differing],
    }
    same = all(check.verdict == "passed" for check in checks)
    return Report("diff", checks, facts=facts, summary="the same" if same else "not the same")


def _refuse_others(one: Checkpoint, other: Checkpoint, family: Family) -> None:
    """Layers of two families, or of other sizes, have no module in common."""
    theirs = family_of(other.config)
    ours, sizes = family.dimensions(one.config), theirs.dimensions(other.config)
    differing = [key for key in ours if key in sizes and ours[key] != sizes[key]]
    if theirs.name == family.name and not differing:
        return
    why = ", ".join(f"`{key}` {shown(ours[key])} against {shown(sizes[key])}" for key in differing)
    raise MtpforgeError(
        f"{one.label} and {other.label} are no layers of one model",
        where="config.json",
        why=why or f"one is {family.name}, the other {theirs.name}",
        fix="compare layers of the same model",
    )


def _shared(sides: Sequence[_Side]) -> list[str]:
    """Names on both sides in the first one's order, experts only where both have as many: numbers mean nothing else."""
    one, other = (side.layer for side in sides)
    both = [n for n in (*one.modules, *one.plain) if n in other.modules or n in other.plain]
    return [n for n in both if one.n_experts == other.n_experts or not _counts_experts(n, one)]


def _counts_experts(name: str, layer: StoredLayer) -> bool:
    """Whether a module belongs to one expert, or holds a row or a value of each."""
    module = layer.modules.get(name)
    if module is not None:
        return module.module.expert is not None or module.module.kind == "router"
    return layer.plain[name].spec.shape == (layer.n_experts,)


def _differences(
    sides: Sequence[_Side], names: Sequence[str], family: Family, on_progress: OnProgress | None
) -> Iterator[Difference]:
    one = sides[0]
    kinds = {plain.name: plain.kind for plain in family.plain(one.checkpoint.config, one.layer.n_experts)}
    readers = [Reader(side.checkpoint.read, Buffers()) for side in sides]
    for done, name in enumerate(names):
        if on_progress is not None:
            on_progress(Progress("compare", done, len(names)))
        modules = [side.layer.modules.get(name) for side in sides]
        if all(modules):
            yield _of_modules([m for m in modules if m], readers)
        else:
            yield _of_plain(name, kinds.get(name, ""), [side.layer.plain[name] for side in sides], readers)


def _of_modules(modules: Sequence[StoredModule], readers: Sequence[Reader]) -> Difference:
    """The bytes where both have the same parts; float32 where these, or the parts, are not the same."""
    weights = [module.weight(reader) for module, reader in zip(modules, readers, strict=True)]
    module, forms = modules[0].module, (formats.label(modules[0].quantization), formats.label(modules[1].quantization))
    is_same = _has_same_parts(modules) and _has_same_bytes(weights, module.shape)
    error = 0.0 if is_same else _distance(weights, module.shape)
    return Difference(module.name, module.kind, forms, is_same, error)


def _has_same_bytes(weights: Sequence[StoredWeight], shape: Shape) -> bool:
    one, other = (weight.open() for weight in weights)
    if not _equal(one.matrix, other.matrix):
        return False
    return all(_equal(one.band(*span).row_parts, other.band(*span).row_parts) for span in bands(shape))


def _distance(weights: Sequence[StoredWeight], shape: Shape) -> float:
    """Frobenius norm of the difference over that of the first, in float64."""
    one, other = (weight.open() for weight in weights)
    difference, norm = 0.0, 0.0
    for span in bands(shape):
        held, theirs = (weight.band(*span).decoded().double() for weight in (one, other))
        difference, norm = difference + float((held - theirs).square().sum()), norm + float(held.square().sum())
    return math.sqrt(difference / norm) if norm else math.inf


def _of_plain(name: str, kind: str, refs: Sequence[TensorRef], readers: Sequence[Reader]) -> Difference:
    held, other = (reader.kept({"": ref})[""] for reader, ref in zip(readers, refs, strict=True))
    forms = (refs[0].spec.dtype, refs[1].spec.dtype)
    if held.shape != other.shape:
        return Difference(name, kind, forms, is_same=False, relative_error=float("inf"))
    is_same = held.dtype == other.dtype and _bytes_equal(held, other)
    distance = (held.double() - other.double()).norm() / held.double().norm().clamp_min(1e-30)
    return Difference(name, kind, forms, is_same, 0.0 if is_same else float(distance))


def _has_same_parts(modules: Sequence[StoredModule]) -> bool:
    one, other = ({suffix: ref.spec for suffix, ref in m.weight_parts.items()} for m in modules)
    return one == other and modules[0].quantization == modules[1].quantization


def _equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return all(_bytes_equal(part, theirs[suffix]) for suffix, part in ours.items())


def _bytes_equal(one: Tensor, other: Tensor) -> bool:
    """Bits, so that NaN equals itself and 0.0 not -0.0. Flat: torch views no scalar as its bytes."""
    ours, theirs = (part.contiguous().flatten().view(torch.uint8) for part in (one, other))
    return torch.equal(ours, theirs)


def _config(one: Checkpoint, other: Checkpoint) -> dict[str, tuple[object, object]]:
    ours, theirs = ({**c.config, "quantization_config": dict(c.quantization) or None} for c in (one, other))
    keys = sorted({*ours, *theirs})
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def _only(sides: Sequence[_Side]) -> list[dict[str, object]]:
    """What one side alone holds, and the counts of experts where they are not the same."""
    held = [{*side.layer.modules, *side.layer.plain} for side in sides]
    rows: list[dict[str, object]] = [
        {"in": side.checkpoint.label, "names": sorted(held[n] - held[1 - n])}
        for n, side in enumerate(sides)
        if held[n] - held[1 - n]
    ]
    counts = [side.layer.n_experts for side in sides]
    return [*rows, {_EXPERTS: f"{counts[0]} experts against {counts[1]}"}] if counts[0] != counts[1] else rows


def _said_of(only: Sequence[Mapping[str, object]]) -> str:
    said = []
    for row in only:
        if _EXPERTS in row:
            said.append(f"{row[_EXPERTS]}: experts and router are not compared")
        else:
            names = [str(name) for name in row["names"]]  # type: ignore[attr-defined]  # a list of names
            said.append(f"{len(names)} only in {row['in']}: {_some(names)}")
    return "; ".join(said)


def _forms(found: Sequence[Difference]) -> str:
    """`768 experts: NVFP4 g16 against INT4 g32`, each pair once."""
    pairs: dict[tuple[str, tuple[str, str]], int] = {}
    for difference in found:
        if difference.forms[0] != difference.forms[1]:
            key = (difference.kind, difference.forms)
            pairs[key] = pairs.get(key, 0) + 1
    return "; ".join(f"{n} {kind}: {one} against {other}" for (kind, (one, other)), n in pairs.items())


def _worst(differing: Sequence[Difference], n: int) -> str:
    if not differing:
        return ""
    worst = max(differing, key=lambda d: d.relative_error)
    if not worst.relative_error:
        return f"{len(differing)} of {n} differ in how they are stored, none in its values"
    return f"{len(differing)} of {n} differ, most {worst.name}: {worst.relative_error:.3g} of its norm"


def _kinds(found: Sequence[Difference]) -> Iterator[dict[str, object]]:
    """One row for each kind: how many, how many differ, the median and the largest error, and whose that is."""
    for kind in dict.fromkeys(d.kind for d in found):
        of_kind = [d for d in found if d.kind == kind]
        worst = max(of_kind, key=lambda d: d.relative_error)
        yield {
            "kind": kind,
            "n": len(of_kind),
            "one": _some({d.forms[0]: None for d in of_kind}),
            "other": _some({d.forms[1]: None for d in of_kind}),
            "differ": sum(not d.is_same for d in of_kind),
            "median_error": median(d.relative_error for d in of_kind),
            "worst_error": worst.relative_error,
            "worst": worst.name if worst.relative_error else "",
        }


def _check(name: str, wrong: str, right: str) -> Check:
    return Check(name, "failed" if wrong else "passed", wrong or right)


def _some(names: Mapping[str, object] | Sequence[str]) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
