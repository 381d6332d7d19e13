"""The heads that a target can have, as it stands and with the engine told of another scheme, and the lightest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from mtpforge import scheme as schemes
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import overlay
from mtpforge.engines.engine import Engine
from mtpforge.engines.expected import expected
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family, family_of
from mtpforge.families.counting import served_experts
from mtpforge.families.family import Module
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization

LIGHTEST: Final = "lightest"

# Lightest first. Below four bits a head loses more tokens than its memory is worth, so it ends there. Activations stay
# as they are where they may: static scales have to be measured, and are asked for where the method knows nothing else.
_RUNGS: Final = (
    Quantization("pack_quantized", 4, strategy="group", group_size=128, scale_dtype="BF16"),
    Quantization("pack_quantized", 4, strategy="group", group_size=128, symmetric=False, scale_dtype="BF16"),  # AWQ's
    Quantization("mxfp4", 4, strategy="group", group_size=32, scale_dtype="U8"),
    Quantization("modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3"),
    Quantization("modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3", input_scale="static"),
    Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic"),
    Quantization("pack_quantized", 8, strategy="channel", scale_dtype="BF16"),
)


@dataclass(frozen=True, slots=True)
class Head:
    """One head. told: whether the engine has to be told of it. n_bytes: of its tensors, with the target's experts."""

    scheme: Scheme
    told: bool
    n_bytes: int


def heads(target: Checkpoint, engine: Engine) -> Iterator[Head]:
    """The target's own head first, then the presets that its method can state, then the lightest; none twice."""
    family = family_of(target.config)
    seen: list[Scheme] = []
    for wanted in (None, *map(schemes.load, schemes.names()), LIGHTEST):
        try:
            head = _head(target, engine, family, wanted)
        except MtpforgeError:
            continue  # the target refuses any, or its method has no words for this one
        if not any(_alike(head.scheme, other, family, target) for other in seen):
            seen.append(head.scheme)
            yield head


def lightest(target: Checkpoint, engine: Engine) -> Scheme:
    """The smallest scheme that the target's method can state and the engine can run: each kind of module for itself.

    MtpforgeError where not even a dense head can be stated.
    """
    family = family_of(target.config)
    modules = family.modules(target.config, 1)
    open_groups, chosen = _groups(modules, engine.never_quantized(family)), dict[str, Quantization]()
    for rung in _RUNGS:
        # All at once, as they mostly can; else each for itself.
        for tried in ([*chain.from_iterable(open_groups)], *open_groups):
            trial = {**chosen, **dict.fromkeys(tried, rung)}
            if not chosen.keys() >= set(tried) and _can_state(target, engine, family, _scheme(modules, trial)):
                chosen = trial
        open_groups = [group for group in open_groups if not chosen.keys() >= set(group)]
    return _stated(target, engine, family, _scheme(modules, chosen))[1]


def beside(target: Checkpoint, engine: Engine, wanted: Scheme) -> tuple[Checkpoint, Scheme]:
    """What `overlay.beside` gives; where a draft's own config decides, a scheme that does not load is refused as there.

    A config that lacks something under every scheme is no fault of this one: whoever plans the draft says so.
    """
    told, scheme = overlay.beside(target, engine, wanted)
    if engine.decides == "draft":
        try:
            _demanded(told, engine, scheme)
        except MtpforgeError as error:
            able = [
                name
                for name in schemes.names()
                if _can_state(target, engine, family_of(target.config), schemes.load(name))
            ]
            if able:
                fix = f"`--scheme` with one of: {', '.join(able)}"
                raise MtpforgeError(error.what, where=error.place, why=error.why, fix=fix, code=error.code) from error
    return told, scheme


def _demanded(target: Checkpoint, engine: Engine, scheme: Scheme) -> Scheme:
    """What an engine that goes by the draft's own config would build of a draft that is made so."""
    family = family_of(target.config)
    config = engine.draft_config(target, target.config, family, scheme, served_experts(family, target))
    return engine.demands(target, config, family)


def _head(target: Checkpoint, engine: Engine, family: Family, wanted: Scheme | str | None) -> Head:
    if wanted is None:
        told, scheme = target, engine.demands(target, None, family)
    else:
        asked = lightest(target, engine) if isinstance(wanted, str) else wanted
        told, scheme = _stated(target, engine, family, asked)
    layer, n_experts = family.layer(target.config), served_experts(family, target)
    specs = expected(scheme, family, target.config, layer, n_experts)
    return Head(scheme, told.is_restated, sum(spec.n_bytes for spec in specs.values()))


def _groups(modules: Iterable[Module], dense: Collection[str]) -> list[list[str]]:
    """Templates that are tried together, by kind; of an indexer what runs as one matrix."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        if module.template not in dense:
            groups.setdefault(module.fused if module.kind == "indexer" else module.kind, []).append(module.template)
    return list(groups.values())


def _scheme(modules: Iterable[Module], chosen: dict[str, Quantization]) -> Scheme:
    why = "the lightest that can be stated and run"
    rules = (Rule(t, chosen.get(t, BF16), why if t in chosen else "it stays dense") for t in _templates(modules))
    return Scheme(LIGHTEST, tuple(rules))


def _templates(modules: Iterable[Module]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(module.template for module in modules))


def _stated(target: Checkpoint, engine: Engine, family: Family, wanted: Scheme) -> tuple[Checkpoint, Scheme]:
    """Target and scheme as `overlay.attempt` has them. MtpforgeError where the engine would build another head."""
    told, scheme = overlay.attempt(target, engine, wanted)
    if engine.decides == "draft" and not _alike(_demanded(target, engine, scheme), scheme, family, target):
        raise MtpforgeError(f"{engine.name} would build another head than {scheme.name}")
    return told, scheme


def _can_state(target: Checkpoint, engine: Engine, family: Family, wanted: Scheme) -> bool:
    try:
        _stated(target, engine, family, wanted)
    except MtpforgeError:
        return False
    return True


def _alike(one: Scheme, other: Scheme, family: Family, target: Checkpoint) -> bool:
    templates = _templates(family.modules(target.config, 1))
    return all(one.of(t).quantization == other.of(t).quantization for t in templates)
