"""A graft, judged as a stranger would: the layer in it by `verify`, the rest tensor by tensor beside the target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.folder import Folder, open_folder
from mtpforge.engines import engine_of
from mtpforge.engines.engine import Serving
from mtpforge.families import family_of
from mtpforge.publishing.graft import Graft
from mtpforge.report import Check, OnProgress, Report
from mtpforge.sourcing import mismatches, stored_layer
from mtpforge.verifying import verify

_SHOWN = 3


def judge(graft: Graft, folder: Path, layer: Checkpoint | None, on_progress: OnProgress | None = None) -> Report:
    """What verify says of the layer beside the graft it lies in, and whether all else is the target's, unchanged.

    layer: what it comes from, to compare values with; None where that is not at hand.
    """
    held = open_folder(folder)
    family = family_of(held.config)
    engine = engine_of(graft.addition.engine)
    prefix = family.prefix(family.layer(held.config))
    alone = held.layer_alone(prefix)
    found = verify(
        alone,
        held,
        layer,
        engine=graft.addition.engine,
        serving=Serving(),
        served_as=str(graft.out.absolute()),
        on_progress=on_progress,
    )
    stored = stored_layer(held, family)
    wrong = mismatches(stored, held, family, engine)
    detail = f"{len(alone.names)} tensors, each as {engine.name} builds it by the graft's own config.json"
    loads = Check("loads as it is", "failed" if wrong else "passed", "; ".join(wrong[:_SHOWN]) or detail)
    # The manifest of drafts is none of a graft's: it has a document of its own.
    kept = tuple(check for check in found.checks if check.name != "manifest")
    checks = (*kept, loads, rest(graft.files.folder, held, prefix), index(held))
    ok = all(check.verdict != "failed" for check in checks)
    summary = f"fits: layer {graft.addition.number} is {graft.addition.scheme}, and the config says so" if ok else ""
    return replace(found, command="graft", checks=checks, summary=summary)


def rest(target: Checkpoint, held: Folder, prefix: str) -> Check:
    """Every tensor around the layer is in the graft with the target's dtype, shape and file; none was added."""
    ours = {name for name in held.names if not name.startswith(prefix)}
    theirs = {name for name in target.names if not name.startswith(prefix)}
    found, wanted = held.locate(sorted(ours)), target.locate(sorted(theirs))
    wrong = sorted(ours ^ theirs)
    wrong += [n for n in sorted(ours & theirs) if (found[n].spec, found[n].file) != (wanted[n].spec, wanted[n].file)]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if wrong[_SHOWN:] else ""
        return Check("main model", "failed", f"differs from the target: {', '.join(wrong[:_SHOWN])}{more}")
    return Check("main model", "passed", f"{len(ours):,} tensors, each in the target's file of that name")


def index(held: Folder) -> Check:
    """The index names every tensor of every file, once, and counts their bytes."""
    raw = held.small_file(metadata.INDEX)
    stated = metadata.total_size(raw or b"{}")
    total = sum(ref.spec.n_bytes for ref in held.locate(sorted(metadata.index(raw or b"{}"))).values())
    if stated != total:
        return Check(
            "index",
            "failed",
            f"total_size is {'no count of bytes' if stated is None else stated}, the tensors have {total} bytes",
        )
    return Check("index", "passed", f"total_size is the {total:,} bytes of all tensors")
