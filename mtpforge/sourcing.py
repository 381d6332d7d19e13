"""stored_layer(): how a checkpoint stores its nextn layer, module by module, every tensor accounted for.

Headers and config only: no tensor is read, torch is not imported. The bytes decide: formats are recognised by suffix,
dtype and shape, experts are counted by name; what the config says is kept beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from mtpforge import formats, versions
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.engines.engine import Engine, own_config
from mtpforge.engines.expected import expected
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family, family_of
from mtpforge.families.counting import config_experts, expert_numbers, served_experts
from mtpforge.families.family import Module, Plain
from mtpforge.scheme import Scheme
from mtpforge.stacks import unstacked
from mtpforge.tensors import Quantization, Spec, TensorRef
from mtpforge.weights import Reader, StoredWeight

_FLOATS: Final = frozenset({"BF16", "F16", "F32"})
_SHOWN: Final = 3
_DENSE: Final = 16  # bits, and more
_OF_LAYER: Final = "mtp_quantization_config"
_TRAINED_WITH: Final = "a draft layer works beside the model that it was trained with"
_FOREIGN_NEXTN: Final = re.compile(r"(model\.layers\.\d+\.)eh_proj\.|((?:model\.)?mtp\.)")  # Qwen and Mimo say `mtp.`


@dataclass(frozen=True, slots=True)
class StoredModule:
    """One weight matrix as stored: suffix -> tensor, and the format that these parts are."""

    module: Module
    parts: dict[str, TensorRef]
    quantization: Quantization

    @property
    def weight_parts(self) -> dict[str, TensorRef]:
        """Its parts without the scale of static activations, which no weight depends on."""
        scale = formats.FORMATS[self.quantization.format].input_scale
        return {suffix: ref for suffix, ref in self.parts.items() if scale is None or suffix != scale.suffix}

    def weight(self, reader: Reader) -> StoredWeight:
        """The weight, ready to be read."""
        return StoredWeight(reader, self.weight_parts, self.module.shape, self.quantization)


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A whole nextn layer as stored.

    n_experts: counted by the tensors' names; config_experts: what the config says, None where it says nothing.
    modules, plain: by local name. dropped: (full name, bytes, reason) of tensors that a draft does not carry.
    """

    layer: int
    n_experts: int
    config_experts: int | None
    modules: dict[str, StoredModule]
    plain: dict[str, TensorRef]
    dropped: tuple[tuple[str, int, str], ...]


def has_layer(checkpoint: Checkpoint, family: Family) -> bool:
    """Whether the names hold any tensor of the nextn layer."""
    prefix = family.prefix(family.layer(checkpoint.config))
    return any(name.startswith(prefix) for name in checkpoint.names)


def refuse_other_model(
    family: Family, source: Checkpoint, target: Checkpoint, parts: tuple[str, str] = ("source", "target"), fix: str = ""
) -> None:
    """MtpforgeError for a source of another family than the target, or of other sizes.

    parts: what the command calls each of them. fix: what to do instead where naming another `--source` is none.
    """
    ours_is, theirs_is = (f"{part} {side.label}" for part, side in zip(parts, (source, target), strict=True))
    with errors_of(source):
        other = family_of(source.config)
    what, why = f"{ours_is} is {other.name}, {theirs_is} is {family.name}", _TRAINED_WITH
    if other.name == family.name:
        ours, theirs = family.dimensions(source.config), family.dimensions(target.config)
        differing = [key for key in ours if key in theirs and ours[key] != theirs[key]]
        if not differing:
            return
        both = ", ".join(f"`{key}` {shown(ours[key])} against {shown(theirs[key])}" for key in differing)
        what = f"{ours_is} and {theirs_is} are not the same model: {both}"
        why = f"{_TRAINED_WITH}, on its hidden states and between its embedding and its head"
    raise MtpforgeError(
        what,
        where="config.json",
        why=why,
        fix=fix or f"name a source of the target's model: `--source ORG/NAME`, {versions.example_for(target, family)}",
    )


def under_layer_block(checkpoint: Checkpoint) -> Checkpoint:
    """A source under the block that says how its MTP layer is stored: one of the layer's own, where it has one.

    dnhkng's FP8 layer inside an INT4 model is told so, for a patched vLLM; the block of the rest says nothing of it.
    """
    block = checkpoint.config.get(_OF_LAYER)
    return checkpoint.restated(block) if isinstance(block, Mapping) and block else checkpoint


def stored_layer(checkpoint: Checkpoint, family: Family) -> StoredLayer:
    """The nextn layer as this checkpoint stores it.

    Raises MtpforgeError where there is none, where an expert, scale or norm is missing, a tensor is stored twice, a
    shape contradicts the config, or a tensor is covered by no rule.
    """
    with errors_of(checkpoint):
        return _stored_layer(under_layer_block(checkpoint), family)


def _stored_layer(checkpoint: Checkpoint, family: Family) -> StoredLayer:
    layer = family.layer(checkpoint.config)
    prefix = family.prefix(layer)
    local = frozenset(name.removeprefix(prefix) for name in checkpoint.names if name.startswith(prefix))
    if not local:
        raise _absent(checkpoint, family, layer)
    _refuse_foreign(checkpoint, family, local)
    _refuse_duplicates(checkpoint, prefix)
    dropped = {name: reason for name in local if (reason := _dropped(family, name))}
    located = checkpoint.locate(prefix + name for name in sorted(local))
    refs = unstacked(
        family, checkpoint.config, checkpoint.quantization, {name: located[prefix + name] for name in sorted(local)}
    )
    n_experts = _count_experts(checkpoint, family, refs)
    plain = _plain(checkpoint, family.plain(checkpoint.config, n_experts), refs)
    parts = _parts(checkpoint, family, refs.keys() - dropped.keys() - plain.keys(), n_experts)
    modules = {
        module.name: recognised(checkpoint, module, {s: refs[name] for s, name in parts[module.name].items()})
        for module in family.modules(checkpoint.config, n_experts)
    }
    _refuse_lost_zero_points(checkpoint, modules)
    unread = tuple((prefix + n, refs[n].stop - refs[n].start, reason) for n, reason in sorted(dropped.items()))
    return StoredLayer(layer, n_experts, config_experts(family, checkpoint.config), modules, plain, unread)


def mismatches(
    layer: StoredLayer, target: Checkpoint, family: Family, engine: Engine, asked: Scheme | None = None
) -> tuple[str, ...]:
    """What an engine would not load of a target's own layer as it is stored: sentences, tensors in name order.

    Empty means: it loads as it is, as a draft of the target's own config, or of the scheme asked for.
    Modules that the engine decodes by itself while loading may be stored so.
    """
    prefix = family.prefix(layer.layer)
    try:
        scheme = asked or engine.demands(target, own_config(target), family)
    except MtpforgeError as error:
        return (f"{engine.name} refuses it: {error.what}; {error.why}",)
    wanted = expected(scheme, family, target.config, layer.layer, layer.n_experts)
    decoded = engine.decoded_on_load(family)
    held = {ref.name: ref.spec for ref in layer.plain.values()}
    for name, stored in layer.modules.items():
        own = {ref.name: ref.spec for ref in stored.parts.values()}
        held |= own
        if stored.quantization.format in decoded.get(stored.module.template, frozenset()):
            for tensor in [n for n in wanted if n.startswith(f"{prefix}{name}.")]:
                del wanted[tensor]
            wanted |= own
    differing = sorted(n for n in wanted.keys() | held.keys() if not _fits(held.get(n), wanted.get(n)))
    tensors = [f"{shown(n)} is {held.get(n, 'absent')}, expected {wanted.get(n, 'none')}" for n in differing]
    n_served = served_experts(family, target)
    counts = [f"{layer.n_experts} experts, the target serves {n_served}"] if layer.n_experts != n_served else []
    return (*counts, *tensors)


def _fits(held: Spec | None, expected: Spec | None) -> bool:
    """Whether the engine takes a tensor as it is: any float where it keeps BF16, else the very dtype."""
    if held is None or expected is None or held.shape != expected.shape:
        return held is expected
    return held.dtype == expected.dtype or (expected.dtype == "BF16" and held.dtype in _FLOATS)


def _dropped(family: Family, name: str) -> str:
    return next((rule.reason for rule in family.dropped if fnmatchcase(name, rule.pattern)), "")


def _absent(checkpoint: Checkpoint, family: Family, layer: int) -> MtpforgeError:
    """Why there is no layer: dropped on save, outside the index, or under another name."""
    prefix = family.prefix(layer)
    hint = f"name a source that holds it, {versions.example_for(checkpoint, family)}"
    what = f"{checkpoint.label} holds no MTP layer"
    where = f"no tensor name starts with `{prefix}`"
    if not checkpoint.names:
        return MtpforgeError(what, where=where, why=checkpoint.unread or "it has a config and no tensors", fix=hint)
    if strays := checkpoint.strays(prefix):
        files = ", ".join(sorted({shown(file) for stray in strays for file in stray.files}))
        why = f"its tensors lie in files that the index does not name: {files}"
        return MtpforgeError(what, where=where, why=why, fix="add them to model.safetensors.index.json, or " + hint)
    foreign = sorted({found[1] or found[2] for name in checkpoint.names if (found := _FOREIGN_NEXTN.match(name))})
    if foreign:
        why = (
            f"config.json puts the layer at {layer} (`{family.nextn}`), the tensors of an MTP layer are named"
            f" `{shown(foreign[0])}*`"
        )
        return MtpforgeError(what, where=where, why=why, fix=f"correct `{family.nextn}` in config.json, or {hint}")
    why = checkpoint.unread or "it was dropped when the checkpoint was saved, whatever `num_nextn_predict_layers` says"
    return MtpforgeError(what, where=where, why=why, fix=hint)


def _refuse_foreign(checkpoint: Checkpoint, family: Family, names: Iterable[str]) -> None:
    """MtpforgeError for a layer in a format that is known by its names and not read."""
    if found := formats.foreign(names):
        raise MtpforgeError(
            f"the MTP layer of {checkpoint.label} is stored as {found[1]}, which is not read",
            where=f"`{shown(found[0])}` of the MTP layer",
            why="its own library alone decodes it, and what it was made from is nearer to the trained weights",
            fix=f"name what it was made from, {versions.example_for(checkpoint, family)}",
        )


def _refuse_duplicates(checkpoint: Checkpoint, prefix: str) -> None:
    twice = [stray for stray in checkpoint.strays(prefix) if len(stray.files) > 1]
    if twice:
        first = twice[0]
        raise MtpforgeError(
            f"{len(twice)} tensors of the MTP layer are stored in more than one file",
            where=f"{shown(first.name)} in {', '.join(shown(f) for f in first.files)}",
            why="engines read whole files and the last one wins; which copy is right cannot be told",
            fix=f"remove the outdated files or rewrite them without `{prefix}*`",
        )


def _count_experts(checkpoint: Checkpoint, family: Family, refs: Mapping[str, TensorRef]) -> int:
    """Experts of the layer, by name; the rows of the correction bias must say the same."""
    config = checkpoint.config
    numbers = expert_numbers(family, refs)
    n_experts = max(numbers, default=-1) + 1
    biases = [refs[p.name].spec.shape for p in family.plain(config, 1) if p.per_expert and p.name in refs]
    n_rows = biases[0][0] if biases and biases[0] else n_experts  # one without rows is refused with its shape
    gaps = [number for number in range(n_experts) if number not in numbers]
    gaps += range(n_experts, min(n_rows, n_experts + _SHOWN + 1))
    if gaps:
        listed = ", ".join(map(str, gaps[:_SHOWN])) + (" and more" if len(gaps) > _SHOWN else "")
        raise MtpforgeError(
            f"expert {listed} of the MTP layer is missing",
            where=checkpoint.label,
            why=f"{len(numbers)} experts are stored, the router has {n_rows} rows",
            fix="download the checkpoint again, or name another `--source`",
        )
    if n_rows < n_experts:
        raise MtpforgeError(
            f"the router has {n_rows} rows for {n_experts} experts",
            where=checkpoint.label,
            why="experts are left from before the layer was pruned",
            fix="name another `--source`",
        )
    return n_experts


def _plain(checkpoint: Checkpoint, wanted: tuple[Plain, ...], refs: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    found = {}
    for plain in wanted:
        if plain.name not in refs:
            raise _missing(checkpoint, plain.name)
        spec = refs[plain.name].spec
        if spec.shape != plain.shape or spec.dtype not in _FLOATS:
            raise MtpforgeError(
                f"`{plain.name}` is {spec}, by config.json it is {list(plain.shape)}",
                where=f"{checkpoint.label}, {shown(refs[plain.name].file)}",
                why="config.json and tensors are of different models, or a header lies",
                fix="download the checkpoint again, or name another `--source`",
            )
        found[plain.name] = refs[plain.name]
    return found


def _missing(checkpoint: Checkpoint, name: str) -> MtpforgeError:
    return MtpforgeError(
        f"`{name}` of the MTP layer is missing",
        where=checkpoint.label,
        why="engines would leave it uninitialised, most without a word",
        fix="download the checkpoint again, or name another `--source`",
    )


def _parts(checkpoint: Checkpoint, family: Family, names: Iterable[str], n_experts: int) -> dict[str, dict[str, str]]:
    """Module -> suffix -> local tensor name. A name under no module is an error, a module without names too."""
    parts: dict[str, dict[str, str]] = {m.name: {} for m in family.modules(checkpoint.config, n_experts)}
    unknown = []
    for name in sorted(names):
        module, suffix = formats.split(name)
        if module in parts:
            parts[module][suffix] = name
        else:
            unknown.append(name)
    if unknown:
        listed = ", ".join(f"`{shown(name)}`" for name in unknown[:_SHOWN])
        raise MtpforgeError(
            f"{len(unknown)} tensors of the MTP layer are covered by no rule: {listed}",
            where=checkpoint.label,
            why=f"the family {family.name} has no such module; leaving them out could change what the layer computes",
            fix="name another `--source`",
        )
    for module, held in parts.items():
        if not held:
            raise _missing(checkpoint, module)
    return parts


def _refuse_lost_zero_points(checkpoint: Checkpoint, modules: Mapping[str, StoredModule]) -> None:
    """MtpforgeError where one expert's weight has no zero points and another's of the same projection has some.

    Without them it would be read as symmetric, and be wrong without a word.
    """
    asymmetric = {m.module.template for m in modules.values() if not m.quantization.symmetric}
    for stored in modules.values():
        if stored.module.template in asymmetric and stored.quantization.symmetric and stored.quantization.bits < _DENSE:
            raise MtpforgeError(
                f"`{stored.module.name}` of the MTP layer has no zero points",
                where=f"{checkpoint.label}, {shown(next(iter(stored.parts.values())).file)}",
                why=f"others of `{stored.module.template}` have some; without its own it would be decoded wrongly",
                fix="download the checkpoint again, or name another `--source`",
            )


def recognised(checkpoint: Checkpoint, module: Module, parts: dict[str, TensorRef], what: str = "") -> StoredModule:
    """The weight matrix that these parts are. MtpforgeError where no format knows them; `what` names it there."""
    specs = {suffix: ref.spec for suffix, ref in parts.items()}
    for form in formats.FORMATS.values():
        quantization = form.recognise(specs, module.shape, checkpoint.quantization)
        if quantization is not None:
            return StoredModule(module, parts, quantization)
    named = what or f"`{module.name}` of the MTP layer"
    raise MtpforgeError(
        f"{named} is stored in no known way",
        where=f"{checkpoint.label}, {shown(next(iter(parts.values())).file)}",
        why=formats.explain(specs, module.shape, checkpoint.quantization),
        fix=f"download the checkpoint again, or name another {'one' if what else '`--source`'}",
    )
