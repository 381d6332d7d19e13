"""decide(): a model whose modules come from several checkpoints of it.

The base gives everything that no pattern takes, its config and its small files. A module comes whole from one
checkpoint; where an engine runs several as one matrix, all of them do. One quantization block says of every module what
it is stored as, and every module is held against it, tensor by tensor, before anything is written.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from mtpforge import errors, formats
from mtpforge.checkpoint import Named, metadata, open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.tensor_names import plain
from mtpforge.drafting import remarks
from mtpforge.drafting.request import Watching
from mtpforge.engines import DEFAULT, ENGINES
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family, family_of
from mtpforge.families.counting import served_experts
from mtpforge.publishing import patches
from mtpforge.publishing.graft import Link
from mtpforge.publishing.patches import Patch
from mtpforge.publishing.target_files import Shard, TargetFiles, target_files, without
from mtpforge.sourcing import refuse_other_model, under_layer_block
from mtpforge.tensors import Quantization, Spec, TensorRef
from mtpforge.writing.folder import DELTA, GRAFT, MERGE, OVERLAY
from mtpforge.writing.layout import ShardLayout, index_of

_EXPERT: Final = re.compile(r"[.]experts[.]\d+[.]")
_FLOATS: Final = ("F32", "BF16", "F16")
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for. takes: (pattern of module names, the checkpoint that gives them); the first that fits wins."""

    base: Named
    takes: Sequence[tuple[str, Named]]
    out: str | Path
    link: Link = "hard"
    force: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """One checkpoint: module -> its tensors, by plain names."""

    checkpoint: Checkpoint
    files: TargetFiles
    modules: Mapping[str, Mapping[str, TensorRef]]


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge, decided.

    sides: the base, then one for each pattern, as they are read. linked: name -> file. rewritten: side, what of a shard
    is taken, how it will lie. taken: pattern -> modules. patch: of the base's config.json. origins: each module -> the
    number of its side.
    """

    asked: Asked
    sides: tuple[Side, ...]
    linked: Mapping[str, Path]
    rewritten: tuple[tuple[int, Shard, ShardLayout], ...]
    taken: Mapping[str, int]
    patch: Patch
    origins: Mapping[str, int]
    index: bytes

    @property
    def out(self) -> Path:
        """Where it will lie."""
        return Path(self.asked.out)


def decide(asked: Asked, watching: Watching | None = None) -> Merge:
    """The merge. MtpforgeError for modules that are not there, halves of a matrix, and what no one block can state."""
    watching = watching or Watching.by(None, None)
    engine = ENGINES[DEFAULT]
    if not asked.takes:
        raise MtpforgeError("nothing is taken", where="option `--take`", fix="`--take PATTERN=CKPT`", code=errors.USAGE)
    sides = [_side(asked.base, asked, "base", watching), *(_side(c, asked, "take", watching) for _, c in asked.takes)]
    base, family = sides[0], family_of(sides[0].checkpoint.config)
    for side in sides[1:]:
        refuse_other_model(family, side.checkpoint, base.checkpoint)
        _refuse_other_count(family, side.checkpoint, base.checkpoint)
    origins = _origins(asked, sides)
    _refuse_half_a_layer(family, base.checkpoint, origins)
    block, stored = engine.merged([side.checkpoint for side in sides], family, origins.get)
    refuse_unproved(family, sides, origins, stored)
    whole = base.checkpoint
    # Side files stay behind, so the config states whatever block is in force.
    told = whole if not block or block == whole.config.get("quantization_config") else whole.restated(block)
    has_layer = any(name.startswith(family.prefix(family.layer(whole.config))) for name in origins)
    config = dict(engine.carrying_config(told) if has_layer else told.config)
    if not block:
        config.pop("quantization_config", None)
    linked, rewritten, places = _files(sides, origins)
    taken = {pattern: sum(of == i for of in origins.values()) for i, (pattern, _) in enumerate(asked.takes, 1)}
    return Merge(
        asked,
        tuple(sides),
        linked,
        rewritten,
        taken,
        patches.difference(whole.config, config),
        origins,
        _index(places),
    )


def _side(named: Named, asked: Asked, role: str, watching: Watching) -> Side:
    checkpoint = open_checkpoint(named, offline=asked.offline)
    watching.on_remark(remarks.of_checkpoint(role, checkpoint))
    return side_of(checkpoint, target_files(checkpoint, ENGINES[DEFAULT]))


def side_of(checkpoint: Checkpoint, files: TargetFiles) -> Side:
    """A checkpoint with its tensors by module."""
    modules: dict[str, dict[str, TensorRef]] = {}
    for name, ref in files.folder.locate(sorted(files.folder.names)).items():
        module, suffix = formats.split(name)
        modules.setdefault(module, {})[suffix] = ref
    return Side(checkpoint, files, modules)


def _refuse_other_count(family: Family, other: Checkpoint, base: Checkpoint) -> None:
    ours, theirs = served_experts(family, base), served_experts(family, other)
    if ours != theirs:
        raise MtpforgeError(
            f"{other.label} has {theirs} experts, {base.label} {ours}",
            where="option `--take`",
            why="one router chooses among the experts of a layer",
            fix="take from a checkpoint that was pruned alike",
        )


def origins_of(patterns: Sequence[str], modules: Iterable[str]) -> dict[str, int]:
    """Module -> the side that gives it: 0 the base, else the number of the first pattern that fits, from 1."""

    def of(module: str) -> int:
        return next((i for i, pattern in enumerate(patterns, 1) if fnmatchcase(module, pattern)), 0)

    return {module: of(module) for module in modules}


def _origins(asked: Asked, sides: Sequence[Side]) -> dict[str, int]:
    """Module -> the side that it comes from. MtpforgeError for a pattern that takes nothing, or what is not there."""
    patterns = [pattern for pattern, _ in asked.takes]
    origins = origins_of(patterns, sides[0].modules)
    for i, pattern in enumerate(patterns, 1):
        origins |= {module: of for module, of in origins_of(patterns, sides[i].modules).items() if of == i}
        if i not in origins.values():
            raise MtpforgeError(
                f"`{shown(pattern)}` takes nothing",
                where="option `--take`",
                why=f"no module of {sides[i].checkpoint.label} is called so that no earlier pattern takes",
                fix="patterns are of module names: `--take 'model.layers.*.mlp.experts.*=CKPT'`",
                code=errors.USAGE,
            )
    if absent := sorted(module for module, i in origins.items() if module not in sides[i].modules):
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise MtpforgeError(
            f"`{shown(absent[0])}`{more} would be taken from a checkpoint that lacks it",
            where=sides[origins[absent[0]]].checkpoint.label,
            fix="a narrower pattern leaves it to the base",
        )
    stacks: dict[str, set[int]] = {}
    for module, i in origins.items():
        stacks.setdefault(_EXPERT.sub(".experts.*.", module), set()).add(i)
    if split := next((stack for stack, of in stacks.items() if len(of) > 1), None):
        raise MtpforgeError(
            f"experts `{shown(split)}` would come from several checkpoints",
            why="engines build all experts of a layer in one way",
            fix="take all of them, or none",
        )
    return origins


def _refuse_half_a_layer(family: Family, base: Checkpoint, origins: Mapping[str, int]) -> None:
    """MtpforgeError for an MTP layer of which only some modules are there: engines leave the rest as memory was."""
    prefix = family.prefix(family.layer(base.config))
    if not any(module.startswith(prefix) for module in origins):
        return
    n_experts = served_experts(family, base)
    wanted = [module.name for module in family.modules(base.config, n_experts)]
    wanted += [row.name.rpartition(".")[0] for row in family.plain(base.config, n_experts)]
    if absent := [name for name in wanted if prefix + name not in origins]:
        raise MtpforgeError(
            f"the merge would hold half an MTP layer: no `{prefix}{absent[0]}`",
            where="option `--take`",
            fix=f"`--take '{prefix}*=CKPT'` takes it whole, a narrower pattern leaves it out",
        )


def refuse_unproved(
    family: Family, sides: Sequence[Side], origins: Mapping[str, int], stored: Mapping[str, Quantization]
) -> None:
    """MtpforgeError for a module that is stored otherwise than the block says."""
    config = sides[0].checkpoint.config
    shapes = {m.template: m.shape for m in (*family.main_modules(config), *family.modules(config, 1))}
    for module, i in origins.items():
        q = stored.get(_EXPERT.sub(".experts.0.", module))
        local = re.sub(r"^model[.]layers[.]\d+[.]", "", _EXPERT.sub(".experts.*.", module))
        if q is None or local not in shapes:
            continue
        held = {suffix: ref.spec for suffix, ref in sides[i].modules[module].items()}
        wanted = formats.FORMATS[q.format].layout(shapes[local], q)
        if held.keys() != wanted.keys() or any(not _fits(held[s], wanted[s], dense=q.is_dense) for s in held):
            raise MtpforgeError(
                f"`{shown(module)}` is stored otherwise than its config says",
                where=sides[i].checkpoint.label,
                why=f"it holds {_listed(held)}, the block says {_listed(wanted)}",
                fix=_advice(sides[i].checkpoint, family, module),
            )


def _advice(checkpoint: Checkpoint, family: Family, module: str) -> str:
    """How a checkpoint that is stored otherwise than it says can be taken from all the same, where that is known."""
    is_of_layer = module.startswith(family.prefix(family.layer(checkpoint.config)))
    if is_of_layer and under_layer_block(checkpoint) is not checkpoint:
        typed = shlex.join(["mtpforge", "graft", checkpoint.label, "--into", checkpoint.label, "-o"])
        return f"its layer has a block of its own, for patched engines: `{typed} PATH` states it in the one, name that"
    return "`mtpforge inspect` shows what the checkpoint holds"


def _fits(held: Spec, wanted: Spec, *, dense: bool) -> bool:
    return held == wanted or (dense and held.shape == wanted.shape and held.dtype in _FLOATS)


def _listed(specs: Mapping[str, Spec]) -> str:
    return ", ".join(f"{suffix} {spec}" for suffix, spec in sorted(specs.items())) or "nothing"


def _files(
    sides: Sequence[Side], origins: Mapping[str, int]
) -> tuple[dict[str, Path], tuple[tuple[int, Shard, ShardLayout], ...], dict[str, Shard]]:
    """Whole files to link, shards to write, and file -> shard of all that will hold tensors."""
    linked = {n: p for n, p in sides[0].files.places.items() if not n.endswith(metadata.SUFFIX)}
    for name in (metadata.CONFIG, metadata.SIDE_FILE, metadata.INDEX, GRAFT, DELTA, OVERLAY, MERGE):
        linked.pop(name, None)
    rewritten: list[tuple[int, Shard, ShardLayout]] = []
    places: dict[str, Shard] = {}
    for i, side in enumerate(sides):
        lies = {f"{module}.{suffix}": ref.file for module, refs in side.modules.items() for suffix, ref in refs.items()}
        for file in sorted({ref.file for parts in side.modules.values() for ref in parts.values()}):
            shard = side.files.shard(file)
            names = {plain(t.name) for t in shard.tensors}
            # A copy that the index passes over would lie there twice.
            gone = {n for n in names if origins.get(formats.split(n)[0]) != i or lies.get(n) != file}
            kept, layout = without(shard, gone)
            if not kept.tensors:
                continue
            name = _free(f"take-{i}-{file}" if i else file, {*places, *linked})
            if gone:
                rewritten.append((i, kept, ShardLayout(name, layout.header, layout.starts, layout.n_bytes)))
            else:
                linked[name] = side.files.places[file]
            places[name] = kept
    return linked, tuple(rewritten), places


def _free(name: str, used: Collection[str]) -> str:
    """The name, or one like it that no file has: the base may be a merge itself."""
    return next(n for n in (name, *(f"take-{i}-{name}" for i in range(2, len(used) + 3))) if n not in used)


def _index(places: Mapping[str, Shard]) -> bytes:
    weight_map = {tensor.name: file for file, shard in places.items() for tensor in shard.tensors}
    total = sum(shard.data_bytes for shard in places.values())
    return index_of(weight_map, total)
