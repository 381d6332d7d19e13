"""verify(): judges a draft as a stranger would, from the files alone.

The expectation is derived anew from the engine's rules, the target's config and the family: neither the plan nor the
manifest that came with the draft is believed. Every byte is read from disk once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.report import Check, OnProgress, Report
from mtpforge.scheme import Scheme
from mtpforge.sourcing import StoredLayer, stored_layer
from mtpforge.verifying import names, settings
from mtpforge.verifying.subject import Subject, subject

if TYPE_CHECKING:
    from mtpforge.verifying.values import Values

_COMMAND = "verify"
_LOADER = Check(
    "loader",
    "not checked",
    "whether the installed engine's own loader takes the draft",
    "run `mtpforge validate`",
)


def verify(
    draft: str | Path,
    target: Checkpoint,
    source: Checkpoint | None = None,
    *,
    engine: str = "vllm",
    serving: Serving | None = None,
    scheme: Scheme | None = None,
    served_as: str | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Whether this draft is what the engine expects beside this target, and holds the source's weights.

    draft: a folder or hub id. scheme: instead of the one that the engine demands. served_as: the path that the engine
    will be given, where it is not the draft's own. What is wrong with the draft is in the report, facts
    `relative_error` (module -> Frobenius error against the source), `sha256`, `n_experts`, `scheme`, `n_tensors`,
    `n_bytes`. MtpforgeError is for a draft that is no checkpoint, and for a target or source that cannot be used.
    """
    judge = ENGINES[engine]
    family = family_of(target.config)
    wanted = scheme or judge.scheme(target, family)
    held = open_checkpoint(str(draft))
    layer = None if source is None else (source, stored_layer(source, family))
    try:
        files = names.files(held, family.prefix(family.layer(target.config)))
        judged = subject(held, target, family, judge, wanted)
    except MtpforgeError as error:  # a draft whose headers lie is a finding
        return Report(_COMMAND, (Check("files", "failed", _said(error), error.fix), _LOADER))
    headers = (files, names.names(judged), names.dtypes(judged), names.shapes(judged), names.experts(judged))
    config, traps = settings.config(judged)
    around, more = settings.surroundings(judged, serving or Serving(), served_as or held.location)
    found = tuple(dict.fromkeys((*traps, *more)))
    beside = (config, settings.block(judged))
    try:
        read = _read(judged, layer, on_progress)
    except MtpforgeError as error:
        cut = Check("numbers", "failed", _said(error), error.fix)
        return Report(_COMMAND, (*headers, cut, *beside, *around, _LOADER), found)
    written = settings.fingerprints(judged, read.sha256)
    return Report(_COMMAND, (*headers, *read.checks, *beside, written, *around, _LOADER), found, _facts(judged, read))


def _read(judged: Subject, layer: tuple[Checkpoint, StoredLayer] | None, on_progress: OnProgress | None) -> Values:
    """Everything that takes the bytes of draft and source; loads torch."""
    from mtpforge.verifying import values

    judged.draft.fetch(judged.refs.values(), on_progress)
    if layer is not None:
        source, stored = layer
        refs = [ref for module in stored.modules.values() for ref in module.parts.values()]
        source.fetch([*refs, *stored.plain.values()], on_progress)
    return values.checked(judged, layer, on_progress)


def _facts(judged: Subject, read: Values) -> dict[str, object]:
    return {
        "engine": judged.engine.name,
        "scheme": judged.scheme.name,
        "n_experts": judged.n_experts,
        "n_tensors": len(judged.refs),
        "n_bytes": sum(ref.stop - ref.start for ref in judged.refs.values()),
        "relative_error": read.relative_error,
        "sha256": read.sha256,
    }


def _said(error: MtpforgeError) -> str:
    return "; ".join(text for text in (error.what, error.where, error.why) if text)
