"""One draft that two engines take: made by the rules of the first, held to those of the second, no rule of its own.

The first builds a draft by the target's config, the second by the draft's own: the tensors are as the first wants them,
and the block in the draft's config.json tells the second so. What the second cannot load is an error with its reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.child import Findings, is_absent, not_asked
from mtpforge.engines.command import Command
from mtpforge.engines.engine import Engine, Serving, own_config
from mtpforge.engines.overlay import presets
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.formats import label
from mtpforge.report import Check, Report, Trap
from mtpforge.scheme import Scheme
from mtpforge.tensors import Spec

_TWO_DRAFTS: Final = "make two drafts, one by `--engine` of each"


def together(first: Engine, second: Engine) -> Engine:
    """The record by which both are asked. first: builds a draft by the target's config, second: by the draft's own."""
    both = (first, second)

    def draft_config(
        target: Checkpoint, source_config: Mapping[str, object], family: Family, scheme: Scheme, n_experts: int
    ) -> dict[str, object]:
        ours, theirs = (e.draft_config(target, source_config, family, scheme, n_experts) for e in both)
        # The block is the second's, and its absence too: the first takes the scheme from the target.
        kept = {key: value for key, value in ours.items() if key != "quantization_config"}
        return _merged(theirs, kept)

    def agreed(target: Checkpoint, draft_config: Mapping[str, object] | None, family: Family) -> Scheme:
        wanted = first.demands(target, draft_config, family)
        if draft_config is None:
            _refuse_unloadable(both, target, family, wanted)
        else:
            _refuse_contradiction(both, wanted, second.demands(target, draft_config, family))
        return wanted

    def refuse_misstated(target: Checkpoint, source_config: Mapping[str, object], family: Family) -> None:
        for engine in both:
            engine.refuse_misstated(target, source_config, family)

    def memory(family: Family, config: Mapping[str, object], specs: Mapping[str, Spec], serving: Serving) -> int:
        return max(engine.memory(family, config, specs, serving) for engine in both)

    untold = replace(
        first,
        name=" and ".join(engine.name for engine in both),
        versions=" and ".join(engine.versions for engine in both),
        demands=agreed,
        runs=lambda family: all(engine.runs(family) for engine in both),
        carry=partial(_carried, both),
        disturbed=lambda *asked: next(filter(None, (engine.disturbed(*asked) for engine in both)), ""),
        refuse_misstated=refuse_misstated,
        stated=second.stated,
        draft_config=draft_config,
        target_traps=_all_traps(lambda e: e.target_traps, both),
        draft_traps=_all_traps(lambda e: e.draft_traps, both),
        block_traps=second.block_traps,  # whose block it is
        serving_traps=_all_traps(lambda e: e.serving_traps, both),
        path_traps=_all_traps(lambda e: e.path_traps, both),
        serve=_serve(both),
        memory=memory,
        never_quantized=lambda family: dict.fromkeys(t for e in both for t in e.never_quantized(family)).keys(),
        decoded_on_load=lambda family: _common(*(engine.decoded_on_load(family) for engine in both)),
        is_installed=lambda: all(engine.is_installed() for engine in both),
        ask=_ask(both),
        forward=_forward(both),
        tied_formats=first.tied_formats | second.tied_formats,
        kv_cache_dtypes=tuple(dtype for dtype in first.kv_cache_dtypes if dtype in second.kv_cache_dtypes),
        draft_options=(),
        counters=None,
        hiding_files={**first.hiding_files, **second.hiding_files},
    )
    return _proposing(untold)


def _merged(theirs: Mapping[str, object], ours: Mapping[str, object]) -> dict[str, object]:
    """Both sets of keys, of a text model within another too; of a key that both state ours."""
    made = dict(theirs)
    for key, value in ours.items():
        other = theirs.get(key)
        if key == "text_config" and isinstance(value, Mapping) and isinstance(other, Mapping):
            made[key] = _merged(other, value)
        else:
            made[key] = value
    return dict(sorted(made.items()))


def _proposing(untold: Engine) -> Engine:
    """The record whose refusal of a target's scheme names the presets that both take."""

    def demands(target: Checkpoint, draft_config: Mapping[str, object] | None, family: Family) -> Scheme:
        try:
            return untold.demands(target, draft_config, family)
        except MtpforgeError as error:
            able = presets(target, untold) if draft_config is None else ""
            if not able or error.fix != _TWO_DRAFTS:
                raise
            fix = f"`--scheme` with one of: {able}; or {_TWO_DRAFTS}"
            raise MtpforgeError(error.what, where=error.place, why=error.why, fix=fix, code=error.code) from error

    return replace(untold, demands=demands, untold=untold)


def _carried(both: tuple[Engine, Engine], target: Checkpoint, family: Family, wanted: Scheme) -> Mapping[str, object]:
    """One block by which either engine builds the layer that a checkpoint carries as wanted, and all else as before.

    What one engine would be told is told to the other on top; the second's own block may say it to both, too.
    """
    first = both[0]
    try:
        return _told_both(both, target, _told(target, first.carry(target, family, wanted)), family, wanted)
    except MtpforgeError as error:
        try:
            return _told_both(both, target, target, family, wanted)
        except MtpforgeError:
            raise error from None


def _told_both(
    both: tuple[Engine, Engine], target: Checkpoint, start: Checkpoint, family: Family, wanted: Scheme
) -> Mapping[str, object]:
    """What the second engine would be told, on top of `start`, where it is right for the first as well."""
    first, second = both
    told = _told(start, second.carry(start, family, wanted))
    ours, theirs = (engine.demands(told, own_config(told), family) for engine in both)
    _refuse_contradiction(both, ours, theirs)
    why = next(filter(None, (engine.disturbed(target, told, family) for engine in both)), "")
    if first.carry(told, family, wanted) != told.quantization:
        why = f"{first.name} would build the layer otherwise"
    if why:
        raise MtpforgeError(f"no one block tells both of scheme {wanted.name}", where=target.label, why=why)
    return told.quantization


def _told(target: Checkpoint, block: Mapping[str, object]) -> Checkpoint:
    return target if block == target.quantization else target.restated(block)


def _refuse_unloadable(both: tuple[Engine, Engine], target: Checkpoint, family: Family, wanted: Scheme) -> None:
    """MtpforgeError where the second engine loads no draft in the scheme that the first demands."""
    first, second = both
    try:
        config = second.draft_config(target, target.config, family, wanted, 1)
        _refuse_contradiction(both, wanted, second.demands(target, config, family))
    except MtpforgeError as error:
        raise MtpforgeError(
            f"no draft beside this target loads in both: {error.what}",
            where=error.place,
            why=f"{first.name} demands it, by the target's config; {second.name}: {error.why}",
            fix=_TWO_DRAFTS,
        ) from error


def _refuse_contradiction(both: tuple[Engine, Engine], ours: Scheme, theirs: Scheme) -> None:
    for rule in ours.rules:
        other = theirs.of(rule.pattern)
        if other.quantization != rule.quantization:
            first, second = both
            raise MtpforgeError(
                f"`{rule.pattern}` is {label(rule.quantization)} for {first.name}, and {label(other.quantization)} for"
                f" {second.name}",
                why=f"{first.name}: {rule.reason}; {second.name}: {other.reason}",
                fix=_TWO_DRAFTS,
            )


def _all_traps(
    of: Callable[[Engine], Callable[..., tuple[Trap, ...]]], both: tuple[Engine, Engine]
) -> Callable[..., tuple[Trap, ...]]:
    """What either finds; said once where both say the same of one place."""

    def found(*asked: object) -> tuple[Trap, ...]:
        traps = (trap for engine in both for trap in of(engine)(*asked))
        return tuple({(trap.id, trap.where, trap.severity): trap for trap in traps}.values())

    return found


def _serve(both: tuple[Engine, Engine]) -> Callable[[Checkpoint, str, Serving, Scheme], Command]:
    def serve(target: Checkpoint, draft_path: str, serving: Serving, scheme: Scheme) -> Command:
        first, second = (engine.serve(target, draft_path, serving, scheme) for engine in both)
        return replace(first, offers=(), beside=second)

    return serve


def _ask(both: tuple[Engine, Engine]) -> Callable[[Path, Checkpoint, Serving, str | None], Report]:
    """Both loaders; `python` holds an interpreter for each, with the path separator between, or one that has both.

    Where one is not there the other is asked all the same.
    """

    def ask(draft: Path, target: Checkpoint, serving: Serving, python: str | None) -> Report:
        reports: list[Report | MtpforgeError] = []
        for engine, own in zip(both, _pythons(python), strict=True):
            try:
                reports.append(engine.ask(draft, target, serving, own))
            except MtpforgeError as error:
                if error.code != errors.MACHINE:
                    raise
                reports.append(error)
        named = _interpreters(both, python, reports)
        for each in reports:
            if isinstance(each, MtpforgeError) and is_absent(each):
                each.fix = f"name an interpreter for each: `--engine-python {named}`"
        return _joined(both, reports)

    return ask


def _joined(both: tuple[Engine, Engine], found: Sequence[Report | MtpforgeError]) -> Report:
    """What each says, or why it gave no answer; MtpforgeError where neither did."""
    mute = [each for each in found if isinstance(each, MtpforgeError)]
    if len(mute) == len(found):
        raise _neither(both, mute)
    checks: list[Check] = []
    facts: dict[str, object] = {}
    traps: list[Trap] = []
    for engine, each in zip(both, found, strict=True):
        if isinstance(each, MtpforgeError):
            check = not_asked(each)
            checks.append(_of(engine, replace(check, detail=each.why) if is_absent(each) else check))
        else:
            checks += [_of(engine, check) for check in each.checks]
            traps += each.traps
            facts[engine.package] = each.facts
    return Report("validate", tuple(checks), tuple(traps), facts)


def _neither(both: tuple[Engine, Engine], mute: Sequence[MtpforgeError]) -> MtpforgeError:
    """Why each gave no answer, and every way out of it."""
    are_absent = all(is_absent(each) for each in mute)
    causes = []
    for engine, each in zip(both, mute, strict=True):
        cause = each.why if is_absent(each) else not_asked(each).detail
        causes.append(cause if cause.startswith(engine.name) else f"{engine.name}: {cause}")
    return MtpforgeError(
        mute[0].what if are_absent else "neither of two engines gave an answer",
        where=mute[0].place if mute[0].where == mute[-1].where else "",
        why="; ".join(causes),
        fix="; ".join(dict.fromkeys(filter(None, (each.fix for each in mute)))),
        code=errors.MACHINE,
    )


def _interpreters(both: tuple[Engine, Engine], python: str | None, found: Sequence[Report | MtpforgeError]) -> str:
    """PATH:PATH with those that answered, and a word for each that did not."""
    able = [not (isinstance(each, MtpforgeError) and is_absent(each)) for each in found]
    given = _pythons(python or sys.executable)
    words = (
        own if is_able else f"{engine.name.upper()}/bin/python"
        for engine, own, is_able in zip(both, given, able, strict=True)
    )
    return os.pathsep.join(map(str, words))


def _pythons(named: str | None) -> list[str | None]:
    each: list[str | None] = [] if named is None else [*named.split(os.pathsep)]
    return each if len(each) == 2 else [named, named]  # noqa: PLR2004  one for each engine


def _forward(both: tuple[Engine, Engine]) -> Callable[..., Findings] | None:
    """The pass of whichever has one, by its own interpreter."""
    for number, engine in enumerate(both):
        if (run := engine.forward) is not None:
            return partial(_by_own, run, number)
    return None


def _by_own(
    run: Callable[..., Findings],
    number: int,
    draft: Path,
    target: Checkpoint,
    serving: Serving,
    python: str | None,
    *files: Path,
) -> Findings:
    return run(draft, target, serving, _pythons(python)[number], *files)


def _of(engine: Engine, check: Check) -> Check:
    return replace(check, name=f"{check.name} ({engine.name})")


def _common(ours: Mapping[str, frozenset[str]], theirs: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    return {template: ours[template] & theirs[template] for template in ours.keys() & theirs.keys()}
