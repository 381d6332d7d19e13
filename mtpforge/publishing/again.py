"""verify(): a draft as `verifying` judges it; of a graft or a merge that is named as its own target, all around it too.

What is around the layer is compared with what it was taken from, where that is on this machine: found by identity here,
beside the folder, or behind its links. What could not be compared is said.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mtpforge import verifying
from mtpforge.checkpoint import Named, metadata, open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.folder import Folder
from mtpforge.engines import DEFAULT, ENGINES
from mtpforge.engines.engine import Serving
from mtpforge.errors import REMOTE, MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.publishing import judging, judging_merges
from mtpforge.publishing.judging_merges import Taken
from mtpforge.publishing.merging import Side, origins_of, side_of
from mtpforge.publishing.target_files import target_files
from mtpforge.report import Check, OnProgress, Report
from mtpforge.scheme import Scheme
from mtpforge.sourcing import has_layer
from mtpforge.verifying.remaking import found_at, identity_of, record, takes_of

_KINDS: Final = {metadata.GRAFT: "graft", metadata.MERGE: "merge"}
_LAST: Final = "loader"  # of verify's checks: the advice to ask the engine


def verify(
    draft: Named,
    target: Named,
    source: Named | None = None,
    *,
    engine: str = DEFAULT,
    serving: Serving | None = None,
    scheme: Scheme | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """What `verifying.verify` says; of a graft or merge whether the rest is what it was made of, byte for byte.

    MtpforgeError for one beside another checkpoint: it is served alone.
    """
    held, served = open_checkpoint(draft), open_checkpoint(target)
    is_alone = held.location == served.location
    if not is_alone:
        _refuse_whole(held)
    known = None if source is None else open_checkpoint(source)
    layer = known if known is None or not is_alone or _may_give_the_layer(known, served) else None
    report = verifying.verify(
        held, served, layer, engine=engine, serving=serving, scheme=scheme, on_progress=on_progress
    )
    around = tuple(_around(served, known)) if is_alone and isinstance(served, Folder) else ()
    if not around:
        return report
    is_merge = served.small_file(metadata.MERGE) is not None and served.small_file(metadata.GRAFT) is None
    kept = tuple(c for c in report.checks if c.name != _LAST and not (is_merge and c.name == "manifest"))
    last = tuple(c for c in report.checks if c.name == _LAST)
    fix = verifying.remaking.advice(served)
    around = tuple(replace(c, fix=fix) if c.verdict == "failed" else c for c in around)
    failed = next((c for c in around if c.verdict == "failed"), None)
    summary = report.summary if failed is None else f"is not what it was made of: {failed.name}"
    return replace(report, checks=(*kept, *around, *last), summary=summary)


def _refuse_whole(held: Checkpoint) -> None:
    for file, kind in _KINDS.items():
        if held.small_file(file) is not None:
            typed = shlex.join(["mtpforge", "verify", held.label, "--target", held.label])
            raise MtpforgeError(
                f"that is a {kind}, no draft: it is served alone",
                where=shown(held.location),
                fix=f"`{typed}` judges the layer in it, and all around it",
            )


def _may_give_the_layer(known: Checkpoint, served: Checkpoint) -> bool:
    """Whether values of the layer are compared with this: not with what is named to be found, and gave all but that."""
    try:
        family = family_of(served.config)
        has_one = has_layer(known, family_of(known.config))
    except MtpforgeError:
        return True  # verify says what it is
    if (body := record(served, metadata.GRAFT)) is not None:
        layer, sides = identity_of(body, "layer"), {identity_of(body, "target")}
    elif (body := record(served, metadata.MERGE)) is not None:
        wanted = [("", identity_of(body, "base")), *takes_of(body)]
        name = f"{family.prefix(family.layer(served.config))}eh_proj"  # half a layer no merge takes
        giver = origins_of([pattern for pattern, _ in wanted[1:]], [name])[name]
        layer, sides = wanted[giver][1], {identity for _, identity in wanted}
    else:
        return True
    return has_one and (known.identity == layer or known.identity not in sides)


def _around(served: Folder, known: Checkpoint | None) -> Iterator[Check]:
    """The checks of what is around the layer; none for what neither graft nor merge made."""
    if (body := record(served, metadata.GRAFT)) is not None:
        family = family_of(served.config)
        yield judging.index(served)
        target, why = _source(identity_of(body, "target"), served, known)
        prefix = family.prefix(family.layer(served.config))
        yield Check("main model", "not checked", why) if target is None else _main_model(target, served, prefix)
    elif (body := record(served, metadata.MERGE)) is not None:
        wanted = [("", identity_of(body, "base")), *takes_of(body)]
        found = [_source(identity, served, known) for _, identity in wanted]
        sides = [None if folder is None else _side(folder) for folder, _ in found]
        unread = "; ".join(dict.fromkeys(why for _, why in found if why))
        yield judging.index(served)
        yield from judging_merges.again(Taken(tuple(p for p, _ in wanted[1:]), tuple(sides), unread), _side(served))


def _main_model(target: Folder, served: Folder, prefix: str) -> Check:
    """Whether all around the layer is the target's: names, dtypes, shapes, files, and bytes of what is not shared."""
    found = judging.rest(target, served, prefix)
    if found.verdict != "passed":
        return found
    alone = _side(served)
    origins = {module: 0 for module in alone.modules if not module.startswith(prefix)}
    values = judging_merges.values(origins, [_side(target)], alone)
    return replace(
        values,
        name=found.name,
        detail=values.detail if values.verdict == "failed" else f"{found.detail}; {values.detail}",
    )


def _side(folder: Checkpoint) -> Side:
    return side_of(folder, target_files(folder, ENGINES[DEFAULT]))


def _source(identity: str, served: Folder, known: Checkpoint | None) -> tuple[Folder | None, str]:
    """One of the checkpoints that it was made of, whole on this machine; None and why it could not be compared."""
    place = found_at(identity, served, known) if identity else ""
    if not place:
        name = identity.rpartition("#")[0] or identity
        gone = f"{shown(name) or 'what it was made of'} is not here, nor beside it, as it was then"
        return None, f"{gone}; `--source DIR` names it, or what lies beside it" if known is None else gone
    try:
        return target_files(open_checkpoint(place, offline=True), ENGINES[DEFAULT]).folder, ""
    except MtpforgeError as error:
        if error.code == REMOTE:
            return None, f"{shown(place)} is not on this machine"
        return None, f"{error.what}: {error.why}" if error.why else error.what
