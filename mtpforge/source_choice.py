"""choose_source(): which checkpoint the layer comes from when the user names none.

In this order: the target itself where it holds the layer at no lower precision than its scheme asks for; the base
model of its card, and that one's; the published base model of the version that the target, or one of these, says it is
of. The first that holds the layer is taken, and none that says it is of another version. Where no version is stated, or
more than one, nobody is taken for the right one: the user is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mtpforge import errors, traps, versions
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.scheme import Scheme
from mtpforge.sourcing import StoredLayer, has_layer, mismatches, stored_layer
from mtpforge.versions import Statement, stated

_CARD_DEPTH = 3  # a card's base model may itself be a quantized release that names its base


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen source, why, and what else was considered: (hub id or folder, remark).

    self_sufficient: the target's own layer loads as it is and no silent trap applies: nothing has to be built. spoiled:
    where a draft of that layer has to be, what is wrong with the layer as it lies in the target, in a sentence each.
    """

    source: Checkpoint
    reason: str
    alternatives: tuple[tuple[str, str], ...]
    self_sufficient: bool = False
    spoiled: tuple[str, ...] = ()


def choose_source(
    target: Checkpoint, family: Family, engine: Engine, open_checkpoint: Callable[[str], Checkpoint]
) -> Choice:
    """The source for a target's draft. Raises MtpforgeError when no candidate holds the layer."""
    if has_layer(target, family):
        scheme = engine.demands(target, None, family)
        layer = stored_layer(target, family)
        if not _too_coarse(layer, family, engine, scheme):
            others = tuple(_published(target, family, stated(target, family)).items())
            if not (spoiled := _spoiled(target, layer, family, engine)):
                return Choice(target, "the target's own layer loads as it is", others, self_sufficient=True)
            reason = "the target carries the layer itself, at the precision that it asks for"
            return Choice(target, reason, others, spoiled=spoiled)
    return _from_bases(target, family, open_checkpoint)


def has_candidate(target: Checkpoint, family: Family) -> bool:
    """Whether there is anything to choose from without `--source`; nothing but the target is opened."""
    if has_layer(target, family):
        return True
    said = stated(target, family)
    return len(versions.versions(said)) <= 1 and bool(target.base_models() or versions.bases(family, said))


@dataclass(slots=True)
class _Search:
    """What candidates were found to be. said: all that states the target's version; unfit: why it is not the source."""

    said: list[Statement]
    failed: dict[str, MtpforgeError] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)

    @property
    def remarks(self) -> dict[str, str]:
        """Why each that was looked at is not the source."""
        return {name: error.what for name, error in self.failed.items()} | self.unfit


def _from_bases(target: Checkpoint, family: Family, open_checkpoint: Callable[[str], Checkpoint]) -> Choice:
    search = _Search(list(stated(target, family)))
    of_cards = dict(_lineage(target, family, open_checkpoint, search))
    if len(versions.versions(search.said)) > 1:
        raise _nothing_found(target, family, search)
    published = _published(target, family, search.said)
    candidates = of_cards | {name: reason for name, reason in published.items() if name not in of_cards}
    for name, reason in candidates.items():
        source = _usable(name, family, open_checkpoint, search)
        if source is not None:
            others = [(n, r) for n, r in candidates.items() if n != name and n not in search.remarks]
            return Choice(source, reason, (*others, *search.remarks.items()))
    raise _nothing_found(target, family, search)


def _lineage(
    target: Checkpoint, family: Family, open_checkpoint: Callable[[str], Checkpoint], search: _Search
) -> Iterator[tuple[str, str]]:
    """(name, reason) of the cards' base models, breadth first; what they state is of the target's version too."""
    published = {name for names in family.base_models.values() for name in names}
    seen = {target.label.split("@")[0]}
    level = list(target.base_models())
    for depth in range(_CARD_DEPTH):
        deeper: list[str] = []
        for name in level:
            if name in seen:
                continue
            seen.add(name)
            yield name, "base model of the target's card" if depth == 0 else "base model of the base model's card"
            if depth + 1 < _CARD_DEPTH and name not in published:
                try:
                    opened = open_checkpoint(name)
                    deeper += opened.base_models()
                    search.said += stated(opened, family, f"{name}'s")
                except MtpforgeError as error:
                    search.failed[name] = error
        level = deeper


def _published(target: Checkpoint, family: Family, said: Iterable[Statement]) -> dict[str, str]:
    """Name -> reason of the published base models of the one version that is stated."""
    reason = f"published base of {versions.told(family, said)}"
    return {name: reason for name in versions.bases(family, said) if name != target.label.split("@")[0]}


def _usable(
    name: str, family: Family, open_checkpoint: Callable[[str], Checkpoint], search: _Search
) -> Checkpoint | None:
    """The checkpoint, if it can be had, holds the layer, and says nothing of another version."""
    try:
        source = open_checkpoint(name)
        says = stated(source, family)
        if versions.contradict(says, search.said):
            search.unfit[name] = f"is {versions.told(family, says)}"
        elif not has_layer(source, family):
            search.unfit[name] = "holds no MTP layer"
        else:
            return source
    except MtpforgeError as error:
        search.failed[name] = error
    return None


def _nothing_found(target: Checkpoint, family: Family, search: _Search) -> MtpforgeError:
    """Every candidate and why it is none; where the version is the question, the base models of each."""
    is_open = len(versions.versions(search.said)) != 1
    unread = None if search.unfit or not search.failed else list(search.failed.values())[-1]
    fix = (
        f"name it, {versions.example(family, search.said)}" if is_open else "name one: `--source ORG/NAME` or a folder"
    )
    if unread is not None and unread.code == errors.REMOTE:
        fix = f"{unread.fix}; or name a folder that holds it: `--source FOLDER`"
    return MtpforgeError(
        f"no source for the MTP layer of {target.label} was found",
        why="; ".join((*(f"{name}: {remark}" for name, remark in search.remarks.items()), *_doubts(family, search))),
        fix=fix,
        code=unread.code if unread else errors.INPUT,
    )


def _doubts(family: Family, search: _Search) -> Iterator[str]:
    """Why no published base model was tried."""
    of = versions.versions(search.said)
    if not of:
        yield versions.unsaid(family)
    elif len(of) > 1:
        yield f"it states more than one version: {versions.told(family, search.said)}"
    elif not versions.bases(family, search.said):
        yield f"it is {versions.told(family, search.said)}, of which no base model is known"


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
    return not _spoiled(target, layer, family, engine, asked)


def _spoiled(
    target: Checkpoint, layer: StoredLayer, family: Family, engine: Engine, asked: Scheme | None = None
) -> tuple[str, ...]:
    """What the engine would not load of the layer as it is, else what would spoil its drafts; a sentence each."""
    if wrong := mismatches(layer, target, family, engine, asked):
        return wrong
    found = (*engine.target_traps(target, family), *traps.found(target, target, family, engine))
    return tuple(dict.fromkeys(trap.message for trap in found if trap.silent or trap.severity == "error"))
