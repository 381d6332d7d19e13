"""The functions of `import mtpforge` that publish, for names, paths and opened checkpoints alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtpforge import errors, manifest
from mtpforge import scheme as schemes
from mtpforge.checkpoint import Named, open_checkpoint, open_served
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.metadata import CARD
from mtpforge.drafting.request import OnRemark, Watching
from mtpforge.drafting.validating import folder_of
from mtpforge.engines import DEFAULT
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError
from mtpforge.publishing import again, deltas, grafting, judging, kinds, making, making_merges, merging
from mtpforge.publishing.assembling import Made
from mtpforge.publishing.graft import Asked, Graft, Link
from mtpforge.publishing.pushing import Upload
from mtpforge.report import OnProgress, Report
from mtpforge.scheme import Scheme


def graft(
    layer: Named | None,
    into: Named,
    *,
    out: str | Path,
    delta: str | Path | None = None,
    scheme: Scheme | str | Path | None = None,
    engine: str = DEFAULT,
    link: Link = "hard",
    force: bool = False,
    max_shard_bytes: int | None = None,
    offline: bool = False,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Made:
    """A target once more, with this layer inside: links to the target's files, and the layer's tensors beside them.

    layer: a draft, or a checkpoint that has it, of which the layer goes in as it is stored where an engine can be told
    so; else, and with a scheme, it is built first. delta: instead of a layer, what an earlier graft added. engine: as
    of `build`; a delta says it itself.
    """
    asked = Asked(
        layer=layer,
        target=into,
        out=out,
        delta=delta,
        scheme=scheme,
        engine=engine,
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
    engine: str = DEFAULT,
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
        engine=engine,
        force=force,
        max_shard_bytes=max_shard_bytes,
        offline=offline,
        is_delta=True,
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
    return making_merges.make(merging.decide(asked, Watching.by(on_remark, on_progress)), on_progress)


def card(
    draft: Named,
    *,
    source: Named | None = None,
    target: Named | None = None,
    name: str = "",
    reports: Sequence[str | Path] = (),
    offline: bool = False,
) -> str:
    """The model card of a draft, README.md as text. name: hub id under which the draft will be found.

    source, target: what it was made from and for; the hub repositories of its manifest where they are not named.
    reports: files that `fidelity`, `accept`, `bench` or `validate` wrote of this draft with `--json`.
    """
    from mtpforge.publishing import card as writing
    from mtpforge.publishing import pushing

    if name:
        pushing.refuse_names(name, "option `--name`")
    kinds.refuse_no_draft(draft, "only drafts get a card", name or writing.NAMELESS)
    held = open_checkpoint(draft, offline=True)
    sides = lineage(held, source, target, offline=offline)
    return writing.card(held, source=sides[0], target=sides[1], name=name, reports=reports)


def push(
    draft: Named,
    repo: str,
    *,
    source: Named | None = None,
    target: Named | None = None,
    private: bool = True,
    dry_run: bool = False,
    offline: bool = False,
    on_progress: OnProgress | None = None,
) -> Upload:
    """Send a draft that verifies to a repository of the hub, with a model card where it has none.

    A card of `card` that has no name yet gets this one. private: where the repository is made by this; one that is
    there stays as it is. dry_run: verify, and say what would be sent. MtpforgeError for a draft that
    does not verify, and where the hub does not take it.
    """
    from mtpforge.publishing import card as writing
    from mtpforge.publishing import pushing

    pushing.refuse_names(repo)
    kinds.refuse_no_draft(draft, "only drafts are pushed", repo)
    held = open_checkpoint(folder_of(draft), offline=True)
    origin, served = lineage(held, source, target, offline=offline)
    pushing.refuse_unverified(pushing.verified(held, served, on_progress))
    own = held.small_file(CARD)
    pushing.refuse_local_card(held, own, repo)
    made = writing.named(own, repo) if own else writing.card(held, source=origin, target=served, name=repo).encode()
    text = None if made == own else made
    upload = pushing.decide(held, repo, private=private, card=text)
    return upload if dry_run else pushing.send(held, upload, text)


def verify(
    draft: Named,
    target: Named,
    source: Named | None = None,
    *,
    engine: str = DEFAULT,
    scheme: Scheme | str | None = None,
    tp: int = 1,
    ep: bool = False,
    offline: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Whether a draft is what the engine expects beside this target, and holds the source's weights.

    Of a graft or merge, named as its own target: also whether the rest is what it was made of, where that is at hand.
    """
    return again.verify(
        draft,
        open_served(target, offline=offline),
        None if source is None else open_checkpoint(source, offline=offline),
        engine=engine,
        serving=Serving(tp, ep),
        scheme=scheme if scheme is None or isinstance(scheme, Scheme) else schemes.load(scheme),
        on_progress=on_progress,
    )


def lineage(
    draft: Checkpoint, source: Named | None, target: Named | None, *, offline: bool
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Source and target of a draft: as named, else the hub repositories of its manifest; None where neither is."""
    told = manifest.read(draft)
    found = []
    for named, identity in ((source, told.source), (target, told.target)):
        place = named if named is not None else identity if identity and "#" not in identity else None
        found.append(None if place is None else open_checkpoint(place, offline=offline))
    return found[0], found[1]


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
    given_of = {"--scheme": asked.scheme, "--max-shard-size": asked.max_shard_bytes}
    given_of["--engine"] = None if asked.engine == DEFAULT else asked.engine
    for option, given in given_of.items():
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
