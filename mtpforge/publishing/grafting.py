"""decide(): the graft of a layer, from headers and configs alone: what goes in, and what configs say then.

The layer is taken byte for byte where an engine can be told of it as it is stored. Where it cannot, or where a scheme
is asked for, it is planned as `build` plans a draft for this target, and that draft goes in.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from mtpforge import errors, manifest, traps, versions
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting import deciding, remarks
from mtpforge.drafting.deciding import Job
from mtpforge.drafting.request import Request, Watching
from mtpforge.engines import engine_of, named, overlay
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family, family_of
from mtpforge.publishing import patches
from mtpforge.publishing.graft import LINKS, Addition, Asked, Graft, Layer, laid_out
from mtpforge.publishing.layers import Taken, stated_hashes, taken
from mtpforge.publishing.side_file import side_file
from mtpforge.publishing.target_files import target_files
from mtpforge.scheme import Scheme
from mtpforge.sourcing import refuse_other_model, stored_layer
from mtpforge.verifying.remaking import as_typed, where_absent
from mtpforge.writing import preflight
from mtpforge.writing.claim import hidden_folder
from mtpforge.writing.folder import DELTA, GRAFT, kind


def decide(asked: Asked, watching: Watching | None = None) -> Graft:
    """The graft of a layer into a target. MtpforgeError for every refusal that needs no writing."""
    watching = watching or Watching.by(None, None)
    preflight.refuse_unwritable(Path(asked.out), kind(DELTA if asked.is_delta else GRAFT))
    engine = engine_of(asked.engine)
    target, family = opened(asked, engine, watching)
    assert asked.layer is not None  # noqa: S101 -- a delta has a function of its own
    held = open_checkpoint(asked.layer, offline=asked.offline)
    watching.on_remark(remarks.of_checkpoint("layer", held))
    refuse_other_model(family, held, target)
    files = target_files(target, engine)
    found = _taken(asked, held, target, family, engine)
    if isinstance(found, Taken):
        layer, told, scheme, n_experts = Layer(held, found.refs), found.told, found.scheme, found.n_experts
        specs, why = {name: ref.spec for name, ref in found.refs.items()}, ""
    else:
        job, told, scheme = _built(asked, held, target, engine, watching)
        layer, n_experts = Layer(held, {}, job), job.plan.n_experts
        specs, why = job.plan.specs, found
    config = patches.difference(target.config, engine.carrying_config(told))
    restated = told.is_restated
    side, goes = side_file(
        target, told, engine, lambda s: engine.carry(target.restated(s), family, scheme) if restated else s
    )
    addition = Addition(
        engine=asked.engine,
        target=target.identity,
        content=files.content,
        layer_of=held.identity,
        number=family.layer(target.config),
        scheme=scheme.name,
        n_experts=n_experts,
        config=config,
        side=side,
        side_goes=goes,
        tensors={files.spelled(name): spec for name, spec in specs.items()},
        documents={f"mtp-{name}": data for name, data in sorted(held.documents().items())},
        stated={
            side: [asdict(s) for s in versions.stated(of, family)] for side, of in (("target", target), ("layer", held))
        },
        scales=layer.job.plan.scales if layer.job else _scales(held),
    )
    found_traps = traps.of_other_version(target, held, family, "layer")
    stated = {files.spelled(name): sha256 for name, sha256 in stated_hashes(held, layer.refs).items()}
    return replace(laid_out(asked, files, addition, layer, None, found_traps, why), stated=stated)


def _scales(held: Checkpoint) -> str:
    """How the scales of a draft that goes in as it is were found; "" of what says nothing of it."""
    with suppress(MtpforgeError):
        told = manifest.find(held) or manifest.of_graft(held)
        return told.scales if told else ""
    return ""


def opened(asked: Asked, engine: Engine, watching: Watching) -> tuple[Checkpoint, Family]:
    """The target. MtpforgeError where it is none."""
    target = open_checkpoint(asked.target, offline=asked.offline)
    watching.on_remark(remarks.of_checkpoint("target", target))
    family = family_of(target.config)
    for trap in traps.only_layer(target, family):
        raise MtpforgeError(trap.message, where=trap.where, fix="name the checkpoint that is served: `--into CKPT`")
    engine.refuse_misstated(target, target.config, family)
    return target, family


def _taken(asked: Asked, held: Checkpoint, target: Checkpoint, family: Family, engine: Engine) -> Taken | str:
    """The layer as it is stored, or why it is not taken so; MtpforgeError for a draft that cannot be."""
    is_draft = bool(traps.only_layer(held, family))
    if asked.scheme is not None and is_draft:
        raise MtpforgeError(
            "a draft goes in as it is stored: `--scheme` would make another one",
            where="option `--scheme`",
            fix="leave it out, or name what the draft was made from",
            code=errors.USAGE,
        )
    if asked.scheme is not None:
        return f"scheme {getattr(asked.scheme, 'name', asked.scheme)} is asked for"
    found = taken(held, stored_layer(held, family), target, family, engine)
    if isinstance(found, str) and is_draft:
        raise MtpforgeError(
            "this draft cannot go into this target as it is stored",
            where=held.label,
            why=found,
            fix=f"name what it was made from: {_from_source(asked, held, target)}",
        )
    return found


def _from_source(asked: Asked, draft: Checkpoint, target: Checkpoint) -> str:
    """The command that was typed, with what the draft was made from in its place."""
    told = None
    with suppress(MtpforgeError):
        told = manifest.find(draft)
    source = as_typed(told.source if told else "", draft, "SOURCE", target.location)
    words = ["mtpforge", "delta" if asked.is_delta else "graft", source]
    words += ["--against" if asked.is_delta else "--into", target.label, *named(asked.engine)]
    words += ["--link", asked.link] if asked.link != LINKS[0] else []
    words += [*(["--force"] if asked.force else []), "-o", str(asked.out)]
    return f"`{shlex.join(words)}`{where_absent(words)}"


def _built(
    asked: Asked, held: Checkpoint, target: Checkpoint, engine: Engine, watching: Watching
) -> tuple[Job, Checkpoint, Scheme]:
    """The draft that is built first, the target under the block that says so, and how the layer is stored then.

    Where the draft's own block may be of another method than the target's, it is planned again as the target's has it.
    """
    job = _job(asked, held, watching, asked.scheme)
    try:
        told, scheme = overlay.carried(target, engine, job.plan.scheme)
    except MtpforgeError as error:
        fix = error.fix or f"another `--scheme`; or a draft beside it: `mtpforge build --target {target.label}`"
        raise MtpforgeError(error.what, where=error.place, why=error.why, fix=fix, code=error.code) from error
    templates = {module.template for module in family_of(target.config).modules(target.config, 1)}
    if any(scheme.of(t).quantization != job.plan.scheme.of(t).quantization for t in templates):
        job = _job(asked, held, watching, scheme)
    return job, told, scheme


def _job(asked: Asked, held: Checkpoint, watching: Watching, scheme: Scheme | str | Path | None) -> Job:
    """The draft that is built first, as `build` would for this target."""
    request = Request(
        target=asked.target,
        source=held,
        out=hidden_folder(Path(asked.out)) / "layer",
        scheme=scheme,
        engine=asked.engine,
        standalone=True,
        force=True,
        offline=asked.offline,
    )
    job = deciding.decide(request, Watching(lambda _: None, watching.on_progress))
    assert isinstance(job, Job)  # noqa: S101 -- it is asked for
    return job
