"""What to do about a draft that is not as expected: the command that makes it anew, with its arguments."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from mtpforge import manifest
from mtpforge import scheme as schemes
from mtpforge.checkpoint.checkpoint import Checkpoint, is_one
from mtpforge.checkpoint.folder import open_folder
from mtpforge.engines import engine_of, named
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.heads import LIGHTEST
from mtpforge.manifest import Manifest
from mtpforge.methods import METHODS
from mtpforge.places import default_out
from mtpforge.sourcing import has_layer
from mtpforge.verifying import remaking

_AGAIN: Final = "build the draft again: `{}"
IN_GENERAL: Final = _AGAIN.format("mtpforge build --target CKPT --force -o DRAFT`")
_SOURCE: Final = "SOURCE"  # in a command, for a folder of which nobody knows where it lies
_HASH: Final = "#"  # in the identity of a folder


def advice(
    draft: Checkpoint, target: Checkpoint, source: Checkpoint | None, engine: str, serving: Serving | None
) -> str:
    """`mtpforge build` for this target, from the source that is known, over a draft that was made for this target.

    Any other draft is left alone, one for another engine too, and so is a folder without our manifest: what they were
    made for they may fit.
    """
    if again := remaking.advice(target) if draft.location == target.location else "":
        return again
    told = _told(draft)
    is_its = told is not None and is_one(told.target, target.identity)
    words = ["mtpforge", "build", "--target", target.label]
    known = source.label if source else _source(told, target, is_its=is_its)
    if known:
        words += ["--source", known]
    elif has_layer(target, family_of(target.config)):
        words += ["--standalone"]  # else there may be nothing to build
    asked = _scheme(told, target, engine) if is_its and told is not None else ""
    words += [*named(engine), *_ranks(serving or Serving()), *(("--scheme", asked) if asked else ())]
    words += _search(told) if is_its and told is not None else ()
    other = _other_engine(told, engine) if is_its and told is not None else ""
    if is_its and not other and not draft.revision:
        words += ["--force", "-o", draft.label]
    else:
        words += _elsewhere(target, engine)
    typed = f"{shlex.join(words)}`"
    if told is not None and known == _SOURCE:
        typed += f", where `{_SOURCE}` is the folder `{shown(told.source.rpartition(_HASH)[0])}` that it was made from"
    if other:
        return f"name the engine that it was made for: `--engine {other}`; or build one for this: `{typed}"
    if told is None or is_its or not told.target:
        return _AGAIN.format(typed) + _which(asked)
    made_for = told.target.rpartition(_HASH)[0] or told.target
    return f"name the target that it was made for, {shown(made_for)}; or build one for this: `{typed}"


def _other_engine(told: Manifest, engine: str) -> str:
    """Key of the engine that a draft was made for, "" where it is this one or none that is known."""
    made_for = told.body.get("engine")
    with suppress(MtpforgeError):
        if isinstance(made_for, str) and made_for != engine:
            engine_of(made_for)
            return made_for
    return ""


def _scheme(told: Manifest, target: Checkpoint, engine: str) -> str:
    """What `--scheme` was given: "" for the target's own scheme, a preset, or a file by the name that the scheme has.

    Where the file lay is not recorded: nothing of this machine is.
    """
    body = told.body.get("scheme")
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not name or not (told.body.get("restated") or _chosen(name, told, target, engine)):
        return ""
    return name if name in (*schemes.names(), LIGHTEST) else f"./{shown(name)}.toml"


def _chosen(name: str, told: Manifest, target: Checkpoint, engine: str) -> bool:
    """Whether a draft whose own config decides is of another scheme than the engine's choice beside this target."""
    judge = engine_of(engine)
    if judge.decides == "target" or told.body.get("engine") != engine:
        return False
    with suppress(MtpforgeError):
        return name != judge.demands(target, None, family_of(target.config)).name
    return True


def _which(asked: str) -> str:
    """Which file is meant by a scheme that lies elsewhere, or nowhere."""
    is_missing = asked.startswith("./") and not Path(asked).is_file()
    return f", where `{asked[2:]}` is the scheme file that it was made with" if is_missing else ""


def _search(told: Manifest) -> list[str]:
    """How scales were found, where no calibration inputs are needed for it."""
    searched = METHODS[told.scales]
    return [] if searched.needs_inputs or not searched.is_searched else ["--scales", told.scales]


def _elsewhere(target: Checkpoint, engine: str) -> list[str]:
    """`-o` with a place that is free, where the one that build would take is not."""
    with suppress(MtpforgeError):
        usual = default_out(target, engine_of(engine).demands(target, None, family_of(target.config)).name)
        if os.path.lexists(usual):
            places = (usual.with_name(f"{usual.name}-{number}") for number in count(2))
            return ["-o", str(next(place for place in places if not os.path.lexists(place)))]
    return []


def _ranks(serving: Serving) -> list[str]:
    tp = ["--tp", str(serving.tensor_parallel)] if serving.tensor_parallel != 1 else []
    return [*tp, "--ep"] if serving.expert_parallel else tp


def _told(draft: Checkpoint) -> Manifest | None:
    try:
        return manifest.find(draft)
    except MtpforgeError:
        return None


def _source(told: Manifest | None, target: Checkpoint, *, is_its: bool) -> str:
    """What our manifest says it was made from: a repository, or a folder that is found here or beside the target.

    For one that is not found stands a word to fill in, for a draft of this target: from another it would be another.
    """
    if told is None or is_one(told.source, target.identity):
        return ""
    name, mark, _ = told.source.rpartition(_HASH)
    if not mark:
        return told.source
    for place in (Path(name), Path(target.location).parent / name):
        with suppress(MtpforgeError):
            if open_folder(place).identity == told.source:
                return str(place)
    return _SOURCE if is_its else ""
