"""choose_source(): which checkpoint the layer comes from when the user names none.

In this order: the target itself where it holds the layer at no lower precision than its scheme asks for; the base
model of its card, and that one's; the published base of the family, where it has only one. The first that holds the
layer is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mtpforge import errors, traps
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.scheme import Scheme
from mtpforge.sourcing import StoredLayer, has_layer, mismatches, stored_layer

_CARD_DEPTH = 3  # a card's base model may itself be a quantized release that names its base


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen source, why, and what else was considered: (hub id or folder, remark).

    self_sufficient: the target's own layer loads as it is and no silent trap applies: nothing has to be built.
    """

    source: Checkpoint
    reason: str
    alternatives: tuple[tuple[str, str], ...]
    self_sufficient: bool = False


def choose_source(
    target: Checkpoint, family: Family, engine: Engine, open_checkpoint: Callable[[str], Checkpoint]
) -> Choice:
    """The source for a target's draft. Raises MtpforgeError when no candidate holds the layer."""
    bases = tuple(name for name in _bases(family) if name != target.label.split("@")[0])
    if has_layer(target, family):
        scheme = engine.demands(target, None, family)
        layer = stored_layer(target, family)
        if not _too_coarse(layer, family, engine, scheme):
            others = tuple((name, "published base of the family") for name in bases)
            if drafts_for_itself(target, layer, family, engine):
                return Choice(target, "the target's own layer loads as it is", others, self_sufficient=True)
            return Choice(target, "the target carries the layer itself, at the precision that it asks for", others)
    return _from_bases(target, family, open_checkpoint)


def _from_bases(target: Checkpoint, family: Family, open_checkpoint: Callable[[str], Checkpoint]) -> Choice:
    tried: list[tuple[str, str]] = []
    candidates = dict(_candidates(target, family, open_checkpoint, tried))
    for name, reason in candidates.items():
        try:
            source = open_checkpoint(name)
            if has_layer(source, family):
                others = [(n, r) for n, r in candidates.items() if n != name and n not in dict(tried)]
                return Choice(source, reason, (*others, *tried))
            tried.append((name, "holds no MTP layer"))
        except MtpforgeError as error:
            tried.append((name, error.what))
            last = error
    code = last.code if tried and all(remark != "holds no MTP layer" for _, remark in tried) else errors.INPUT
    named = "name one: `--source ORG/NAME` or a folder" if family.base_model else f"name it, {family.example}"
    raise MtpforgeError(
        f"no source for the MTP layer of {target.label} was found",
        why="; ".join((*(f"{name}: {remark}" for name, remark in tried), *_many(family))),
        fix=f"{last.fix}; or name a folder that holds it: `--source FOLDER`" if code == errors.REMOTE else named,
        code=code,
    )


def _many(family: Family) -> Iterator[str]:
    """Why no published base was tried."""
    if not family.base_model:
        n = len(family.base_models)
        unasked = f"none of the {n} published models of {family.name} is taken unasked"
        yield f"{unasked}: some share one shape, and the layer of another drafts badly"


def _candidates(
    target: Checkpoint,
    family: Family,
    open_checkpoint: Callable[[str], Checkpoint],
    tried: list[tuple[str, str]],
) -> Iterator[tuple[str, str]]:
    """(name, reason) in order: the cards' base models, breadth first, then the family's published bases."""
    seen = {target.label.split("@")[0]}
    level = list(target.base_models())
    for depth in range(_CARD_DEPTH):
        deeper: list[str] = []
        for name in level:
            if name in seen:
                continue
            seen.add(name)
            yield name, "base model of the target's card" if depth == 0 else "base model of the base model's card"
            if depth + 1 < _CARD_DEPTH and name not in family.base_models:
                try:
                    deeper += open_checkpoint(name).base_models()
                except MtpforgeError as error:
                    tried.append((name, error.what))
        level = deeper
    for name in _bases(family):
        if name not in seen:
            yield name, "published base of the family"


def has_candidate(target: Checkpoint, family: Family) -> bool:
    """Whether there is anything to choose from without `--source`; nothing but the target is opened."""
    return bool(has_layer(target, family) or target.base_models() or family.base_model)


def _bases(family: Family) -> tuple[str, ...]:
    """The published base of a family, none where there are several: only the card or the user knows which is meant."""
    return (family.base_model,) if family.base_model else ()


def _too_coarse(layer: StoredLayer, family: Family, engine: Engine, scheme: Scheme) -> bool:
    """Whether some module is stored in fewer bits than the scheme asks for; what the engine decodes itself is not."""
    decoded = engine.decoded_on_load(family)
    return any(
        stored.quantization.bits < scheme.of(stored.module.template).quantization.bits
        and stored.quantization.format not in decoded.get(stored.module.template, frozenset())
        for stored in layer.modules.values()
    )


def drafts_for_itself(
    target: Checkpoint, layer: StoredLayer, family: Family, engine: Engine, asked: Scheme | None = None
) -> bool:
    """Whether the engine would load this layer as it is, and no silent trap would spoil its drafts."""
    if mismatches(layer, target, family, engine, asked):
        return False
    found = (*engine.target_traps(target, family), *traps.found(target, target, family, engine))
    return not any(trap.silent or trap.severity == "error" for trap in found)
