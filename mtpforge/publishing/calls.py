"""The functions of `import mtpforge` that publish, for names, paths and opened checkpoints alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtpforge import errors
from mtpforge.checkpoint import Named
from mtpforge.drafting.request import OnRemark, Watching
from mtpforge.errors import MtpforgeError
from mtpforge.publishing import deltas, grafting, judging, making, merging
from mtpforge.publishing.assembling import Made
from mtpforge.publishing.grafting import Asked, Graft, Link
from mtpforge.report import OnProgress
from mtpforge.scheme import Scheme


def graft(
    layer: Named | None,
    into: Named,
    *,
    out: str | Path,
    delta: str | Path | None = None,
    scheme: Scheme | str | Path | None = None,
    link: Link = "hard",
    force: bool = False,
    max_shard_bytes: int | None = None,
    offline: bool = False,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Made:
    """A target once more, with this layer inside: links to the target's files, and the layer's tensors beside them.

    layer: a draft, or a checkpoint that has it, of which the layer goes in as it is stored where an engine can be told
    so; else, and with a scheme, it is built first. delta: instead of a layer, what an earlier graft added.
    """
    asked = Asked(
        layer=layer,
        target=into,
        out=out,
        delta=delta,
        scheme=scheme,
        link=link,
        force=force,
        max_shard_bytes=max_shard_bytes,
        offline=offline,
    )
    return carry_out(decide(asked, Watching.by(on_remark, on_progress)), on_progress)


def delta(
    layer: Named,
    against: Named,
    *,
    out: str | Path,
    scheme: Scheme | str | Path | None = None,
    force: bool = False,
    max_shard_bytes: int | None = None,
    offline: bool = False,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Made:
    """What a graft of this layer adds to the target, alone: `graft(None, into, delta=out)` gives that graft."""
    asked = Asked(
        layer=layer,
        target=against,
        out=out,
        scheme=scheme,
        force=force,
        max_shard_bytes=max_shard_bytes,
        offline=offline,
    )
    return making.make_delta(decide(asked, Watching.by(on_remark, on_progress)), on_progress)


def merge(
    base: Named,
    takes: Mapping[str, Named],
    *,
    out: str | Path,
    link: Link = "hard",
    force: bool = False,
    offline: bool = False,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Made:
    """The base, with modules of other checkpoints of the same model in place of its own, under one config.

    takes: pattern of module names -> the checkpoint that gives them; the first that fits wins.
    """
    asked = merging.Asked(base=base, takes=tuple(takes.items()), out=out, link=link, force=force, offline=offline)
    return merging.make(merging.decide(asked, Watching.by(on_remark, on_progress)), on_progress)


def decide(asked: Asked, watching: Watching) -> Graft:
    """The graft of a layer, or of a delta; one of the two, and nothing with a delta that it would not heed."""
    if (asked.layer is None) == (asked.delta is None):
        raise MtpforgeError(
            "a graft takes either a layer or a delta",
            where="option `--delta`",
            fix="`mtpforge graft DRAFT --into TARGET -o DIR`, or `mtpforge graft --delta DIR --into TARGET -o DIR`",
            code=errors.USAGE,
        )
    if asked.delta is None:
        return grafting.decide(asked, watching)
    for option, given in (("--scheme", asked.scheme), ("--max-shard-size", asked.max_shard_bytes)):
        if given is not None:
            raise MtpforgeError(
                f"`{option}` has no meaning with `--delta`: what a delta adds is made already",
                where=f"option `{option}`",
                fix="leave it out",
                code=errors.USAGE,
            )
    return deltas.decide(asked, watching)


def carry_out(decided: Graft, on_progress: OnProgress | None = None) -> Made:
    """A decided graft, made and judged."""
    layer = decided.layer.checkpoint if decided.asked.delta is None else None
    return making.make(decided, lambda folder: judging.judge(decided, folder, layer, on_progress), on_progress)
