"""plan(): from a source's headers and a target's config to a Plan."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from mtpforge import errors, traps, versions
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import DEFAULT, engine_of
from mtpforge.engines.engine import Engine, Serving
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family, family_of
from mtpforge.families.counting import served_experts
from mtpforge.families.family import Module
from mtpforge.families.routing import routing
from mtpforge.formats import FORMATS, label
from mtpforge.methods import RTN, Method, method
from mtpforge.planning import activations
from mtpforge.planning.alone import refuse_unread
from mtpforge.planning.facts import facts, peak_bytes
from mtpforge.planning.savings import savings
from mtpforge.planning.steps import Carry, InputScaleMove, Move, Plan, Side, Step, Unused, Write
from mtpforge.report import Trap
from mtpforge.scheme import Scheme, sparing
from mtpforge.sourcing import StoredLayer, StoredModule, refuse_other_model, stored_layer
from mtpforge.tensors import Quantization, Spec, TensorRef

_WEIGHT: Final = "weight"


@dataclass(frozen=True, slots=True)
class _Draft:
    """What every part of the plan needs to know."""

    family: Family
    engine: Engine
    scheme: Scheme
    stored: StoredLayer
    prefix: str
    places: tuple[activations.ScaleSource, ...]
    kept: tuple[int, ...] | None
    method: Method


def plan(
    source: Checkpoint,
    target: Checkpoint | None,
    *,
    engine: str = DEFAULT,
    scheme: Scheme | None = None,
    own: Scheme | None = None,
    kept: tuple[int, ...] | None = None,
    serving: Serving | None = None,
    input_scales: Checkpoint | None = None,
    scales: str = RTN.name,
    inputs: str = "",
    notes: Mapping[str, object] | None = None,
) -> Plan:
    """Decide everything about a draft of `source`'s nextn layer for `target`.

    Without a target the source's own config stands in for it and a scheme is needed. `own`: the scheme that a restated
    target asks for as it stands, to say what the other one saves. `kept`: experts of the source that stay, ascending,
    as many of every group. `scales`: how the scales of what is encoded are found, where its format leaves a choice;
    `inputs`: sha256 of the calibration inputs, which gptq needs. `notes`: facts that the caller knows (`kept_by`,
    `fitted_to`), for the manifest. Raises MtpforgeError for what no draft can be made from, and for every trap of
    severity "error".
    """
    judge = engine_of(engine)
    served = target or source
    family = family_of(served.config)
    refuse_other_model(family, source, served)
    wanted = agreed_scheme(judge, family, source, target, scheme)
    stored = stored_layer(source, family)
    n_experts = _n_experts(judge, family, target, stored, kept)
    if kept is not None:
        _refuse_unpruned(family, served, source, stored, kept)
    layer = family.layer(served.config)
    places = activations.sources(family, source, stored, target, input_scales)
    config = judge.draft_config(served, source.config, family, wanted, n_experts)
    draft = _Draft(family, judge, wanted, stored, family.prefix(layer), places, kept, method(scales))
    steps = (*_weight_steps(draft, family.modules(config, n_experts)), *_plain_steps(draft, config, n_experts))
    _refuse_idle(draft.method, steps)
    _refuse_mismatched(draft.method, inputs)
    found = _traps(judge, family, source, target, config, wanted, serving or Serving())
    sizes = facts(judge, family, steps, source, target, input_scales, serving or Serving())
    saved = savings(judge, served, family, own, wanted, serving or Serving(), n_experts)
    return Plan(
        source=_side(source),
        target=None if target is None else _side(target),
        engine=engine,
        family=family.name,
        layer=layer,
        source_layer=stored.layer,
        n_experts=n_experts,
        kept_experts=kept,
        scheme=wanted,
        steps=steps,
        unused=_unused(stored, steps),
        changes=_changes(steps),
        config=config,
        traps=found,
        inputs=inputs,
        facts={**sizes, **saved, "stated": _stated(family, source, target), **(notes or {})},
    )


def _stated(family: Family, source: Checkpoint, target: Checkpoint | None) -> dict[str, list[dict[str, str]]]:
    """Which version each side says it is of, and by what; not in which words, which may hold a path."""
    sides = {"source": source, "target": target}
    return {
        side: [{"version": found.version, "by": found.by} for found in versions.stated(checkpoint, family)]
        for side, checkpoint in sides.items()
        if checkpoint is not None
    }


def _side(checkpoint: Checkpoint) -> Side:
    return Side(checkpoint.label, checkpoint.identity, checkpoint.location, checkpoint.revision)


def agreed_scheme(
    engine: Engine, family: Family, source: Checkpoint, target: Checkpoint | None, asked: Scheme | None
) -> Scheme:
    """The draft's scheme: the engine's own, or the one asked for, if the engine would build a draft made so as that."""
    if target is None:
        if asked is None:
            raise MtpforgeError("a draft without a target needs a scheme", fix="`--scheme bf16`", code=errors.USAGE)
        spared = sparing(asked, engine.never_quantized(family))
        if engine.decides == "draft":
            refuse_unread(engine, family, source, spared)
        return spared
    if asked is None:
        return engine.demands(target, None, family)
    config = engine.draft_config(target, source.config, family, asked, served_experts(family, target))
    demanded = engine.demands(target, config, family)
    for module in family.modules(target.config, 1):
        want, offered = demanded.of(module.template), asked.of(module.template)
        if want.quantization != offered.quantization:
            raise MtpforgeError(
                f"scheme {asked.name} contradicts the target at `{module.template}`",
                why=f"{engine.name} will build it as {label(want.quantization)} ({want.reason}), the scheme says"
                f" {label(offered.quantization)}: the draft would not load",
                fix="leave `--scheme` out: the target's own scheme is taken;"
                f" `mtpforge schemes --from {shlex.quote(target.label)}`",
            )
    return replace(demanded, name=asked.name)


def _refuse_idle(method: Method, steps: Iterable[Step]) -> None:
    """A method that would find no scale at all was meant for something else."""
    moves = [move for step in steps for move in step.moves]
    if not method.is_searched or any(move.scales == method.name for move in moves):
        return
    encoded = sorted({label(move.wanted) for move in moves if move.action == "encode"})
    of = f" of {' and '.join(sorted(method.kinds))}" if method.kinds else ""
    why = f"it has no meaning for {', '.join(encoded)}" if encoded else "nothing is encoded, only copied or cast"
    raise MtpforgeError(
        f"`{method.name}` would find no {method.finds} of this draft",
        where="option `--scales`",
        why=f"{why}; {method.finds}s{of} are {method.how} for integers",
        fix="leave `--scales` out",
        code=errors.USAGE,
    )


def _refuse_mismatched(method: Method, inputs: str) -> None:
    """Inputs go with a method that looks at them, and with no other."""
    if method.needs_inputs and not inputs:
        raise MtpforgeError(
            f"`{method.name}` needs calibration inputs",
            where="option `--scales`",
            why="it fits the codes of each expert to what the expert is given",
            fix="`mtpforge capture --target CKPT --text FILE -o FILE`, then `--inputs FILE`",
            code=errors.USAGE,
        )
    if inputs and not method.needs_inputs:
        raise ValueError(f"{method.name} looks at no inputs")


def _n_experts(
    judge: Engine, family: Family, target: Checkpoint | None, stored: StoredLayer, kept: tuple[int, ...] | None
) -> int:
    """Experts of the draft, of which the engine must be able to load as many beside the target."""
    n_draft = stored.n_experts if kept is None else len(kept)
    if target is not None:
        refuse_other_count(judge, family, target, n_draft, chosen=kept is not None)
    return n_draft


def refuse_other_count(judge: Engine, family: Family, target: Checkpoint, n_draft: int, *, chosen: bool) -> None:
    """MtpforgeError where a draft of so many experts could not be loaded. chosen: from more, else they are all."""
    n_target = served_experts(family, target)
    fix = f"keep {n_target} of them: `--experts match`; `mtpforge prune-plan` shows which"
    if n_draft > n_target:
        why = judge.most_experts.format(n=n_target)
    elif n_draft < n_target and (why := judge.fewer_experts(family)):
        fix = fix if chosen else f"name a source that has {n_target}, {versions.example_for(target, family)}"
    else:
        return
    what = f"the layer has {n_draft} experts, the target {n_target}"
    what = f"{n_draft} experts are to be kept, the target has {n_target}" if chosen else what
    raise MtpforgeError(what, where=target.label, why=why, fix=fix)


def _refuse_unpruned(
    family: Family, served: Checkpoint, source: Checkpoint, stored: StoredLayer, kept: tuple[int, ...]
) -> None:
    """A list that is no choice of the source's experts, or that the routing or the stored router does not allow."""
    routing(family.text(served.config), family.text(source.config)).refuse_list(kept, stored.n_experts)
    routers = [module for module in stored.modules.values() if module.module.kind == "router"]
    for router in routers:
        if not router.quantization.is_dense:
            raise MtpforgeError(
                f"`{router.module.name}` is stored as {label(router.quantization)}: its rows cannot be dropped singly",
                where=source.label,
                fix="name a source whose router is dense: `--source ORG/NAME`",
            )


def _weight_steps(draft: _Draft, modules: tuple[Module, ...]) -> list[Step]:
    """One step per module, or per fused set where the engine keeps one scale for all of it."""
    sets: dict[str, list[Module]] = {}
    for module in modules:
        quantization = draft.scheme.of(module.template).quantization
        tied = module.fused and quantization.format in draft.engine.tied_formats
        sets.setdefault(module.fused if tied else module.name, []).append(module)
    partners: dict[str, list[Module]] = {}
    for module in modules:
        partners.setdefault(module.fused or module.name, []).append(module)
    return [_step(draft, members, partners) for members in sets.values()]


def _step(draft: _Draft, members: list[Module], partners: Mapping[str, list[Module]]) -> Step:
    moves, carries, scales = [], [], []
    for module in members:
        rule = draft.scheme.of(module.template)
        stored = draft.stored.modules[_source_name(draft, module)]
        quantization, reason = rule.quantization, rule.reason
        if _stays(draft, module, stored):
            quantization, reason = stored.quantization, "stored as FP8, which the engine decodes while loading"
        if quantization.is_dense and stored.quantization.is_dense:
            rows = draft.kept if module.kind == "router" else None
            carries.append(_carry(draft, module.kind, stored.parts[_WEIGHT], module.name, quantization, rows, reason))
            continue
        moves.append(_move(draft, module, stored, quantization, reason))
        if quantization.input_scale == "static":
            scales.append(_input_scale(draft, partners[module.fused or module.name], module, quantization))
    ties = len(moves) > 1
    tied = _global_suffix(moves[0]) if ties else ""
    step = Step(tuple(moves), tuple(carries), tuple(scales), ties, tied)
    return replace(step, peak_bytes=peak_bytes(step))


def _stays(draft: _Draft, module: Module, stored: StoredModule) -> bool:
    """Whether the engine reads this module as it is stored, although it would build it dense."""
    method = {rule.quantization.format for rule in draft.scheme.rules}
    return (
        stored.quantization.format in draft.engine.decoded_on_load(draft.family).get(module.template, frozenset())
        and stored.quantization.format in method
    )


def _source_name(draft: _Draft, module: Module) -> str:
    if module.expert is None or draft.kept is None:
        return module.name
    return module.template.replace("*", str(draft.kept[module.expert]))


def _carry(
    draft: _Draft,
    kind: str,
    read: TensorRef,
    local: str,
    wanted: Quantization,
    rows: tuple[int, ...] | None,
    reason: str,
) -> Carry:
    shape = read.spec.shape if rows is None else (len(rows), *read.spec.shape[1:])
    write = Write(_WEIGHT, f"{draft.prefix}{local}.{_WEIGHT}", Spec(wanted.dtype, shape))
    return Carry(kind, read, write, rows, reason)


def _move(draft: _Draft, module: Module, stored: StoredModule, wanted: Quantization, reason: str) -> Move:
    form = FORMATS[wanted.format]
    specs = form.layout(module.shape, wanted)
    scale = form.input_scale.suffix if form.input_scale and wanted.input_scale == "static" else None
    codes = {suffix: spec for suffix, spec in specs.items() if suffix != scale}
    held = stored.weight_parts
    copied = (
        (stored.quantization.format, stored.quantization.bits) == (wanted.format, wanted.bits)
        and held.keys() == codes.keys()
        and all(_widens(stored.parts[suffix].spec, spec) for suffix, spec in codes.items())
    )
    if not copied and form.encode is None:
        raise MtpforgeError(
            f"mtpforge reads {label(wanted)} and does not write it",
            where=module.name,
            fix="`mtpforge schemes` lists what it writes",
        )
    return Move(
        module=_source_name(draft, module),
        kind=module.kind,
        shape=module.shape,
        reads=held,
        stored=stored.quantization,
        wanted=wanted,
        action="copy" if copied else "encode",
        writes=tuple(Write(suffix, f"{draft.prefix}{module.name}.{suffix}", spec) for suffix, spec in codes.items()),
        reason=reason,
        scales=draft.method.name if not copied and draft.method.serves(form, module.kind) else RTN.name,
    )


def _widens(stored: Spec, wanted: Spec) -> bool:
    """Whether the stored part is the wanted one, but for a BF16 scale that F32 holds without loss."""
    return stored == wanted or ((stored.dtype, wanted.dtype) == ("BF16", "F32") and stored.shape == wanted.shape)


def _global_suffix(move: Move) -> str:
    """Suffix of the matrix-wide scale: the floating-point part that has no rows."""
    parts = {w.suffix: w.spec for w in move.writes}
    rows = FORMATS[move.wanted.format].rows_in_parts(move.shape, move.wanted, parts)
    alone = [w.suffix for w in move.writes if w.suffix not in rows and w.spec.dtype.startswith(("F", "BF"))]
    return alone[0] if alone else ""


def _input_scale(draft: _Draft, partners: Iterable[Module], module: Module, wanted: Quantization) -> InputScaleMove:
    form = FORMATS[wanted.format]
    assert form.input_scale is not None  # noqa: S101 -- static schemes name formats that have one
    suffix = form.input_scale.suffix
    write = Write(suffix, f"{draft.prefix}{module.name}.{suffix}", form.layout(module.shape, wanted)[suffix])
    numbers = None if draft.kept is None else dict(enumerate(draft.kept))
    return activations.move(partners, wanted, write, draft.places, numbers)


def _plain_steps(draft: _Draft, config: Mapping[str, object], n_experts: int) -> list[Step]:
    steps = []
    for plain in draft.family.plain(config, n_experts):
        read = draft.stored.plain[plain.name]
        rows = draft.kept if plain.per_expert else None
        write = Write(plain.name.rpartition(".")[2], draft.prefix + plain.name, Spec(plain.dtype, plain.shape))
        carry = Carry(plain.kind, read, write, rows, f"{draft.engine.name} keeps it in {plain.dtype}")
        step = Step(carries=(carry,))
        steps.append(replace(step, peak_bytes=peak_bytes(step)))
    return steps


def _unused(stored: StoredLayer, steps: Iterable[Step]) -> tuple[Unused, ...]:
    """Every tensor of the source's layer that no step reads, with the rule that drops it."""
    read = {ref.name for step in steps for ref in step.reads if ref.origin == "source"}
    unused = [Unused(name, n_bytes, reason) for name, n_bytes, reason in stored.dropped]
    for module in stored.modules.values():
        scale = FORMATS[module.quantization.format].input_scale
        gone = all(ref.name not in read for ref in module.parts.values())
        for suffix, ref in module.parts.items():
            if ref.name not in read:
                weight_only = not gone and scale is not None and suffix == scale.suffix
                reason = "the draft's activations are not quantized" if weight_only else "its expert is dropped"
                unused.append(Unused(ref.name, ref.stop - ref.start, reason))
    return tuple(sorted(unused, key=lambda u: u.name))


def _changes(steps: Iterable[Step]) -> tuple[str, ...]:
    """Dense tensors whose dtype differs from the source's, as sentences."""
    return tuple(
        f"{c.write.name}: {c.read.spec.dtype} -> {c.write.spec.dtype}"
        for step in steps
        for c in step.carries
        if c.read.spec.dtype != c.write.spec.dtype
    )


def _traps(
    engine: Engine,
    family: Family,
    source: Checkpoint,
    target: Checkpoint | None,
    config: Mapping[str, object],
    scheme: Scheme,
    serving: Serving,
) -> tuple[Trap, ...]:
    """Everything found; the first of severity "error" is raised, what this very draft cures is a note."""
    found: list[Trap] = []
    if target is not None:
        found += engine.target_traps(target, family)
        found += traps.found(target, source, family, engine)
    found += engine.serving_traps(family, config, scheme, serving)
    for trap in found:
        if trap.severity == "error":
            raise MtpforgeError(trap.message, where=trap.where, fix=trap.fix)
    return tuple(dict.fromkeys(replace(trap, severity="note", fix="") if trap.draft_cures else trap for trap in found))
