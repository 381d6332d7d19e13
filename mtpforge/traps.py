"""Silent failures that need source and target together, or that a half-broken checkpoint hides. One row each.

What concerns the target, the draft's config or the command line alone is the engine's: `engines/`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from mtpforge import versions
from mtpforge.checkpoint.checkpoint import Checkpoint, Stray
from mtpforge.checkpoint.folder import Folder
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.families.counting import config_experts, expert_numbers, served_experts
from mtpforge.report import Trap
from mtpforge.versions import Statement

if TYPE_CHECKING:
    from mtpforge.engines.engine import Engine

# Keys on which a head of another version differs from the target without a tensor of another shape.
_VERSION_KEYS: Final = ("num_hidden_layers", "rope_theta", "routed_scaling_factor")
_SHOWN: Final = 3

ONLY_LAYER: Final = "only-the-layer"  # ids of traps
_OTHER_VERSION: Final = "other-version"
_DRAFTS_BADLY: Final = "a head trained for another version drafts badly (2.7 tokens a step where 3.6 were due)"


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and the source of its draft. strays: of the nextn layer, once where the target is its own source.

    stated: of which version each of them says it is, once too.
    """

    target: Checkpoint
    source: Checkpoint
    family: Family
    engine: Engine
    strays: tuple[tuple[Checkpoint, tuple[Stray, ...]], ...]
    stated: tuple[tuple[Checkpoint, tuple[Statement, ...]], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One trap. test: yields (where, what was found), which `message` and `fix` quote as {where} and {found}."""

    id: str
    severity: Literal["error", "warning", "note"]
    silent: bool
    test: Callable[[Pair], Iterator[tuple[str, str]]]
    message: str
    fix: str
    draft_cures: bool = False


def found(target: Checkpoint, source: Checkpoint, family: Family, engine: Engine) -> tuple[Trap, ...]:
    """Every trap that this pair falls into: a target that is none, or not whole, then in the order of TRAPS."""
    sides = (target,) if target.identity == source.identity else (target, source)
    strays = tuple((side, side.strays(_prefix(family, side))) for side in sides)
    stated = tuple((side, versions.stated(side, family)) for side in sides)
    pair = Pair(target, source, family, engine, strays, stated)
    return (
        only_layer(target, family)
        + of_cut_short(target)
        + tuple(
            Trap(
                row.id,
                row.severity,
                row.message.format(where=where, found=what),
                row.fix.format(where=shlex.quote(where), found=what),
                where=where,
                silent=row.silent,
                draft_cures=row.draft_cures,
            )
            for row in TRAPS
            for where, what in row.test(pair)
        )
    )


def only_layer(target: Checkpoint, family: Family) -> tuple[Trap, ...]:
    """A target without a main layer cannot be served: somebody named a draft, or swapped two arguments."""
    prefix = _prefix(family, target)
    if not target.names or any(not name.startswith(prefix) for name in target.names):
        return ()
    message = "the target holds only the MTP layer: this is a draft"
    return (Trap(ONLY_LAYER, "error", message, "name the checkpoint that is served: `--target CKPT`", target.label),)


def of_cut_short(target: Checkpoint) -> tuple[Trap, ...]:
    """A folder with weight files that end early: a draft is judged by headers, and an engine reads all.

    It is called by its name: whoever inspects it may mean it for a draft, or for a source.
    """
    cut = target.cut_short() if isinstance(target, Folder) else ()
    if not cut:
        return ()
    files = ", ".join(map(shown, cut[:_SHOWN])) + (f" and {len(cut) - _SHOWN} more" if cut[_SHOWN:] else "")
    message = f"files of {shown(target.label)} are cut short ({files}): no engine loads it so"
    return (Trap("cut-short", "warning", message, "copy or download them again before it is served", target.label),)


def is_whole(checkpoint: Checkpoint, family: Family) -> bool:
    """Whether it holds main layers; drafts of others may come with head and embedding."""
    return any(name.startswith(family.prefix(0)) for name in checkpoint.names)


def refuse_swapped(command: str, draft: Checkpoint, target: Checkpoint, family: Family) -> None:
    """MtpforgeError where the target is a draft and the draft has main layers: all else that is wrong follows from it.

    command: of ours, in which the two are to change places.
    """
    swapped = only_layer(target, family)
    if swapped and is_whole(draft, family):
        right = shlex.join(["mtpforge", command, target.label, "--target", draft.label])
        why = f"draft and target are swapped: `{shown(draft.label)}` is a whole checkpoint"
        raise MtpforgeError(swapped[0].message, where=swapped[0].where, why=why, fix=f"`{right}`")


def of_other_version(target: Checkpoint, held: Checkpoint, family: Family, role: str = "draft") -> tuple[Trap, ...]:
    """A draft, or its source, that says it is of another version than the target that it is to be judged beside."""
    ours, theirs = versions.stated(held, family), versions.stated(target, family)
    if not versions.contradict(ours, theirs):
        return ()
    found = f"the {role} is {versions.told(family, ours)}, the target {versions.told(family, theirs)}"
    fix = "build from a source of the target's version: `mtpforge build --target CKPT --source ORG/NAME`"
    return (Trap(_OTHER_VERSION, "warning", f"{found}: {_DRAFTS_BADLY}", fix, where=held.label, silent=True),)


def _other_version(pair: Pair) -> Iterator[tuple[str, str]]:
    (_, theirs), (source, ours) = pair.stated[0], pair.stated[-1]
    if versions.contradict(ours, theirs):
        yield source.label, f"{versions.told(pair.family, ours)}, the target {versions.told(pair.family, theirs)}"


def _two_versions(pair: Pair) -> Iterator[tuple[str, str]]:
    for checkpoint, stated in pair.stated:
        if len(versions.versions(stated)) > 1:
            yield checkpoint.label, versions.told(pair.family, stated)


def _other_numbers(pair: Pair) -> Iterator[tuple[str, str]]:
    source, target = (_comparable(pair.family, c.config) for c in (pair.source, pair.target))
    differing = [key for key in _VERSION_KEYS if key in source and key in target and source[key] != target[key]]
    if differing:
        both = (f"{key} {shown(source[key])} against {shown(target[key])}" for key in differing)
        yield pair.source.label, ", ".join(both)


def _comparable(family: Family, config: Mapping[str, object]) -> dict[str, object]:
    text = family.text(config)
    rope = text.get("rope_parameters")
    return {**text, **rope} if isinstance(rope, Mapping) else dict(text)


def _stale_count(pair: Pair) -> Iterator[tuple[str, str]]:
    """A config whose expert count is not the layer's: prunings that left the MTP layer out, or its config behind."""
    prefix = _prefix(pair.family, pair.source)
    stored = len(
        expert_numbers(pair.family, (n.removeprefix(prefix) for n in pair.source.names if n.startswith(prefix)))
    )
    stated = config_experts(pair.family, pair.source.config)
    if stored and stated is not None and stored != stated:
        yield pair.source.label, f"says {stated}, {stored} are stored"


def _fewer_experts(pair: Pair) -> Iterator[tuple[str, str]]:
    """A source whose layer was pruned further than the target: what is missing cannot be had from it."""
    prefix = _prefix(pair.family, pair.source)
    names = (n.removeprefix(prefix) for n in pair.source.names if n.startswith(prefix))
    n_source, n_target = len(expert_numbers(pair.family, names)), served_experts(pair.family, pair.target)
    if 0 < n_source < n_target:
        yield pair.source.label, f"{n_source} experts, the target's layers {n_target}"


def _coarse_bias(pair: Pair) -> Iterator[tuple[str, str]]:
    if not pair.source.has_headers:
        return
    prefix = _prefix(pair.family, pair.source)
    names = [f"{prefix}{row.name}" for row in pair.family.plain_rows if row.dtype == "F32"]
    for name, ref in pair.source.locate(name for name in names if name in pair.source.names).items():
        if ref.spec.dtype != "F32":
            yield name, ref.spec.dtype


def _config_only(pair: Pair) -> Iterator[tuple[str, str]]:
    if not pair.target.names:
        yield pair.target.label, "config.json alone"


def _outside_index(pair: Pair) -> Iterator[tuple[str, str]]:
    for checkpoint, found_strays in pair.strays:
        strays = [s for s in found_strays if not s.indexed and len(s.files) == 1]
        if strays:
            files = sorted({shown(file) for s in strays for file in s.files})
            yield checkpoint.label, f"{len(strays)} tensors in {', '.join(files[:_SHOWN])}"


def _superseded(pair: Pair) -> Iterator[tuple[str, str]]:
    for checkpoint, found_strays in pair.strays:
        strays = [s for s in found_strays if len(s.files) > 1]
        if strays:
            other = sorted({shown(file) for s in strays for file in s.files if file != s.indexed})
            yield checkpoint.label, f"{len(strays)} tensors, also in {', '.join(other[:_SHOWN])}"


def _without_weights(pair: Pair) -> Iterator[tuple[str, str]]:
    for checkpoint, _ in pair.strays:
        stated = pair.family.text(checkpoint.config).get("num_nextn_predict_layers")
        prefix = _prefix(pair.family, checkpoint)
        if stated and checkpoint.names and not any(name.startswith(prefix) for name in checkpoint.names):
            yield checkpoint.label, f"num_nextn_predict_layers {shown(stated)}, no tensor `{prefix}*`"


def _prefix(family: Family, checkpoint: Checkpoint) -> str:
    return family.prefix(family.layer(checkpoint.config))


TRAPS: Final[tuple[Row, ...]] = (
    Row(
        _OTHER_VERSION,
        "warning",
        True,
        _other_version,
        "the source is {found}: " + _DRAFTS_BADLY,
        "name a source of the target's version: `--source ORG/NAME`",
    ),
    Row(
        "two-versions",
        "warning",
        False,
        _two_versions,
        "more than one version is stated: {found}",
        "find out of which its weights are, and name a source of that version: `--source ORG/NAME`",
    ),
    Row(
        "other-numbers",
        "warning",
        True,
        _other_numbers,
        "source and target are not the same model: {found}",
        "name a source of the target's model: `--source ORG/NAME`",
    ),
    Row(
        "stale-expert-count",
        "warning",
        False,
        _stale_count,
        "config.json is not about the MTP layer: it {found}; the stored count is used",
        "nothing for the draft, whose config states the stored count",
    ),
    Row(
        "fewer-experts",
        "warning",
        True,
        _fewer_experts,
        "the source's layer has {found}: it loads, and fewer of its drafts are accepted than of the whole layer's",
        "name a source whose layer is whole: `--source ORG/NAME`",
    ),
    Row(
        "coarse-correction-bias",
        "warning",
        True,
        _coarse_bias,
        "the correction bias is stored as {found}: rounding (1/64 from 2 to 4) can change which experts are chosen",
        "name a source that keeps it in F32: `--source ORG/NAME`",
    ),
    Row(
        "config-only-target",
        "note",
        False,
        _config_only,
        "of the target only {found} is known: whether it carries an MTP layer of its own, which of its tensors are"
        " stored dense, and its activation scales could not be read",
        "give the whole checkpoint as `--target` where that matters",
    ),
    Row(
        "layer-without-weights",
        "note",
        True,
        _without_weights,
        "the config promises an MTP layer that the files lack: {found}; an engine may draft from random weights",
        "serve with a draft: `mtpforge build --target {where}`",
        draft_cures=True,
    ),
    Row(
        "weights-outside-index",
        "warning",
        True,
        _outside_index,
        "tensors of the MTP layer lie outside the index ({found}): some engines read them, some do not",
        "add them to model.safetensors.index.json, or move the files out of the folder",
    ),
    Row(
        "superseded-copies",
        "warning",
        True,
        _superseded,
        "the MTP layer is stored twice ({found}): engines read whole files, so the older copy may win",
        "rewrite the older files without these tensors, or remove them",
    ),
)
