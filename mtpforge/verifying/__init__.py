"""verify(): judges a draft as a stranger would, from the files alone.

The expectation is derived anew from the engine's rules, the target's config and the family: neither the plan nor the
manifest that came with the draft is believed. Every byte is read from disk once.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mtpforge import errors, manifest, traps
from mtpforge.checkpoint import Named, open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.folder import Folder
from mtpforge.engines import DEFAULT, engine_of, named, overlay
from mtpforge.engines.engine import Engine, Serving, own_config
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family, family_of
from mtpforge.report import Check, OnProgress, Report, Trap
from mtpforge.scheme import Scheme
from mtpforge.sourcing import StoredLayer, refuse_other_model, stored_layer
from mtpforge.verifying import config_checks, names, rebuilding, summing_up
from mtpforge.verifying.expectations import Subject, subject

if TYPE_CHECKING:
    from mtpforge.verifying.values import Values

_COMMAND = "verify"
_FOR_ANY = "--target CKPT"  # in the hint of an engine, which knows no checkpoint's name
_SCHEME = "`--scheme`"  # in the same: the option of `mtpforge build`
_LOADER = Check(
    "loader",
    "not checked",
    "whether the installed engine's own loader takes the draft",
    "`mtpforge validate DRAFT --target CKPT`",
)


def verify(
    draft: Named,
    target: Named | None,
    source: Named | None = None,
    *,
    engine: str = DEFAULT,
    serving: Serving | None = None,
    scheme: Scheme | None = None,
    served_as: str | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Whether this draft is what the engine expects beside this target, and holds the source's weights.

    draft: a folder or hub id. target: None for a layer that was extracted: its source and a scheme are needed then, and
    nothing is said of serving. scheme: instead of the one that the engine demands. served_as: the path that the engine
    will be given, where it is not the draft's own. What is wrong with the draft is in the report, facts
    `relative_error` (module -> Frobenius error against the source), `sha256`, `n_experts`, `scheme`, `n_tensors`,
    `n_bytes`. MtpforgeError is for a draft that is no checkpoint, and for a target or source that cannot be used.
    """
    origin = None if source is None else open_checkpoint(source)
    served = origin if target is None else open_checkpoint(target)
    if served is None or (target is None and scheme is None):
        raise ValueError("without a target, source and scheme are needed")
    with errors_of(served):
        family = family_of(served.config)
    if origin is not None and target is not None:
        refuse_other_model(family, origin, served)
    layer = None if origin is None else (origin, stored_layer(origin, family))
    ranks = None if target is None else serving or Serving()
    held = open_checkpoint(draft)
    if target is not None:
        traps.refuse_swapped(_COMMAND, held, served, family)
        held = _layer_of(held, served, family)
        served = as_served(held, served, engine_of(engine))
    is_build = target is None or served_as is not None  # which would only make the same draft again
    anew = rebuilding.IN_GENERAL if is_build else rebuilding.advice(held, served, origin, engine, serving)
    looked = _look(held, served, engine, ranks, scheme, served_as, anew)
    if target is not None:
        looked = looked.of_version(served, family, {} if served_as else {"draft": held}, origin)
    rest = (_LOADER,) if target is not None else ()
    if looked.judged is None:
        return Report(_COMMAND, (*looked.headers, *rest), summary=f"does not fit: {looked.why}")
    beside, around, asking = looked.beside, looked.around, _asking(engine_of(engine), served, scheme)
    try:
        read = _read(looked.judged, layer, on_progress)
    except MtpforgeError as error:
        cut = Check("numbers", "failed", _said(error), error.fix)
        checks = (*looked.headers, cut, *beside, *around, *rest)
        return Report(_COMMAND, checks, looked.traps, summary=summing_up.sentence(looked.judged, checks, asking))
    written = config_checks.fingerprints(looked.judged, read.sha256)
    checks = (*looked.headers, *read.checks, *beside, written, *around, *rest)
    summary = summing_up.sentence(looked.judged, checks, asking)
    return Report(_COMMAND, checks, looked.traps, _facts(looked.judged, read), summary)


def _layer_of(draft: Checkpoint, target: Checkpoint, family: Family) -> Checkpoint:
    """What is judged: of a target that is named as its own draft the layer in it, as if that lay there alone."""
    if isinstance(draft, Folder) and draft.location == target.location:
        return draft.layer_alone(family.prefix(family.layer(target.config)))
    return draft


def _asking(judge: Engine, target: Checkpoint, scheme: Scheme | None) -> str:
    """Who wants the scheme that a draft is held to."""
    if scheme is not None:
        return "the scheme asks"
    if judge.decides == "draft":
        return "its own config asks"
    return "the target, restated by the command that `serve` prints, asks" if target.is_restated else "the target asks"


def rebuild_advice(
    draft: Named, target: Checkpoint, source: Checkpoint | None, engine: str, serving: Serving | None
) -> str:
    """What to do about this draft, with the `mtpforge build` that makes one: in its place where that harms nothing."""
    return rebuilding.advice(open_checkpoint(draft), target, source, engine, serving)


def glance(
    draft: Named,
    target: Checkpoint,
    *,
    engine: str = DEFAULT,
    serving: Serving | None = None,
) -> Report:
    """What `verify` finds without reading a weight: path, target, way of serving, then names, dtypes, shapes, config.

    A target that is none explains what follows, so it comes first.
    """
    held = open_checkpoint(draft)
    target = as_served(held, target, engine_of(engine))
    anew = rebuilding.advice(held, target, None, engine, serving)
    looked = _look(held, target, engine, serving or Serving(), None, None, anew)
    looked = looked.of_version(target, family_of(target.config), {"draft": held})
    return Report("glance", (*looked.around, *looked.headers, *looked.beside), looked.traps)


def as_served(draft: Checkpoint, target: Checkpoint, engine: Engine) -> Checkpoint:
    """The target as it is told to the engine beside this draft: restated where the draft was made for that."""
    try:
        told = manifest.find(draft)
        if target.is_restated or told is None or not told.body.get("restated"):
            return target
        with errors_of(draft):
            wanted = engine.stated(own_config(draft), family_of(target.config))
        return overlay.attempt(target, engine, wanted)[0]
    except MtpforgeError as error:
        if error.code == errors.REMOTE:
            raise
        return target  # the draft is then judged beside the target as it is


@dataclass(frozen=True, slots=True)
class _Looked:
    """What is known from configs and headers. judged: None where nothing more can be told of the draft, and why."""

    judged: Subject | None
    headers: tuple[Check, ...]
    beside: tuple[Check, ...] = ()
    around: tuple[Check, ...] = ()
    traps: tuple[Trap, ...] = ()
    why: str = ""

    def of_version(
        self, target: Checkpoint, family: Family, drafts: dict[str, Checkpoint], source: Checkpoint | None = None
    ) -> _Looked:
        """The same, and whether draft and source are of the target's version. A draft in the making has no name yet."""
        sides = drafts | ({} if source is None else {"source": source})
        check, traps = config_checks.version(target, family, sides)
        return replace(self, around=(*self.around, check), traps=(*self.traps, *traps))


def _look(
    held: Checkpoint,
    target: Checkpoint,
    engine: str,
    serving: Serving | None,
    scheme: Scheme | None,
    served_as: str | None,
    anew: str,
) -> _Looked:
    """serving: None where nothing is served, and the target stands in for one."""
    with errors_of(target):
        family = family_of(target.config)
        prefix = family.prefix(family.layer(target.config))
    judge = engine_of(engine)
    judge.refuse_misstated(target, target.config, family)
    try:
        wanted = scheme or judge.demands(target, own_config(held), family)
    except MtpforgeError as error:
        _refuse_undemanding(target, engine, family)  # a target that has no draft at all is no fault of this one
        refused = Check(
            "scheme", "failed", f"{judge.name} refuses it: {_said(error)}", anew if _FOR_ANY in error.fix else error.fix
        )
        return _Looked(None, (refused,), why=f"{judge.name} would not build it")
    try:
        files = names.files(held, prefix)
        judged = subject(held, target, family, judge, wanted, anew, is_served=serving is not None)
    except MtpforgeError as error:  # a draft whose headers lie is a finding
        unread = Check("files", "failed", _said(error), error.fix)
        return _Looked(None, (unread,), why="its files do not tell what it holds")
    headers = (files, names.names(judged), names.dtypes(judged), names.shapes(judged), names.experts(judged))
    config, traps = config_checks.config(judged)
    if serving is None:
        return _Looked(judged, headers, (config, *config_checks.block(judged)))
    around, more = config_checks.surroundings(judged, serving, served_as or held.location)
    found = tuple(dict.fromkeys((*traps, *more)))
    return _Looked(judged, headers, (config, *config_checks.block(judged)), tuple(around), found)


def _refuse_undemanding(target: Checkpoint, engine: str, family: Family) -> None:
    """MtpforgeError where no draft is made beside this target by its own scheme; another is an option of build."""
    try:
        engine_of(engine).demands(target, None, family)
    except MtpforgeError as error:
        build = shlex.join(["mtpforge", "build", "--target", shown(target.label), *named(engine), "--scheme", "NAME"])
        fix = error.fix.replace(_SCHEME, f"`{build}`,")
        raise MtpforgeError(error.what, where=error.place, why=error.why, fix=fix, code=error.code) from error


def _read(judged: Subject, layer: tuple[Checkpoint, StoredLayer] | None, on_progress: OnProgress | None) -> Values:
    """Everything that takes the bytes of draft and source; loads torch."""
    from mtpforge.verifying import values

    judged.draft.fetch(judged.refs.values(), on_progress)
    return values.checked(judged, layer, on_progress)


def _facts(judged: Subject, read: Values) -> dict[str, object]:
    return {
        "engine": judged.engine.name,
        "scheme": judged.scheme.name,
        "n_experts": judged.n_experts,
        "n_tensors": len(judged.refs),
        "n_bytes": sum(ref.stop - ref.start for ref in judged.refs.values()),
        "relative_error": read.relative_error,
        "rtn_relative_error": read.rtn_relative_error,
        "sha256": read.sha256,
    }


def _said(error: MtpforgeError) -> str:
    return "; ".join(text for text in (error.what, error.where, error.why) if text)
