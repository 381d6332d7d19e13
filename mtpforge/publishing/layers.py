"""The layer that goes into a target: as it is stored, where the target's block can be made to say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mtpforge import manifest
from mtpforge import scheme as schemes
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import overlay
from mtpforge.engines.engine import Engine, own_config
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.formats import FORMATS, label
from mtpforge.scheme import Rule, Scheme
from mtpforge.sourcing import StoredLayer, StoredModule, mismatches, under_layer_block
from mtpforge.tensors import BF16, Quantization, TensorRef


@dataclass(frozen=True, slots=True)
class Taken:
    """A layer as it is stored. told: the target under the block that says so. refs: its tensors, by plain name."""

    checkpoint: Checkpoint
    told: Checkpoint
    scheme: Scheme
    n_experts: int
    refs: Mapping[str, TensorRef]


def taken(held: Checkpoint, stored: StoredLayer, target: Checkpoint, family: Family, engine: Engine) -> Taken | str:
    """The layer, byte for byte; or why the engine would not load it so, whatever the target's block said."""
    own = _scheme(held, stored, family, engine)
    if isinstance(own, str):
        return own
    try:
        told, scheme = overlay.carried(target, engine, own)
    except MtpforgeError as error:
        return error.why or error.what
    stored = _respelled(stored, scheme, family.prefix(stored.layer))
    if wrong := mismatches(stored, told, family, engine):
        return wrong[0]
    refs = [*(ref for m in stored.modules.values() for ref in m.parts.values()), *stored.plain.values()]
    if any(ref.stride for ref in refs):
        return "the rows of one expert do not lie together in its stack"
    named = {ref.name: ref for ref in sorted(refs, key=lambda ref: ref.name)}
    return Taken(held, told, scheme, stored.n_experts, named)


def stated_hashes(held: Checkpoint, refs: Mapping[str, TensorRef]) -> dict[str, str]:
    """Plain name -> the sha256 that the document of a draft or a graft gives for these tensors; {} where it has none.

    refs: by the names that they get. Names may be respelled on the way, so that a tensor is known by where it lies.
    """
    told = manifest.find(held) or manifest.of_graft(held)
    if told is None:
        return {}
    places = {(ref.file, ref.start): name for name, ref in refs.items()}
    found = held.locate(name for name in told.tensors if name in held.names)
    at = {name: places.get((ref.file, ref.start)) for name, ref in found.items() if ref.spec.n_bytes}
    return {to: told.tensors[name].sha256 for name, to in at.items() if to is not None}


def _respelled(stored: StoredLayer, scheme: Scheme, prefix: str) -> StoredLayer:
    """The layer with its parts called as the scheme's formats call the same bytes."""
    modules: dict[str, StoredModule] = {}
    for name, module in stored.modules.items():
        wanted = scheme.of(module.module.template).quantization
        names = FORMATS[module.quantization.format].same_bytes.get(wanted.format, {})
        parts = {names.get(suffix, suffix): ref for suffix, ref in module.parts.items()}
        named = {suffix: replace(ref, name=f"{prefix}{name}.{suffix}") for suffix, ref in parts.items()}
        modules[name] = replace(module, parts=named, quantization=wanted) if names else module
    return replace(stored, modules=modules)


def _scheme(held: Checkpoint, stored: StoredLayer, family: Family, engine: Engine) -> Scheme | str:
    """How the layer is stored: as its own config says, which knows of activations, else as its tensors look."""
    held = under_layer_block(held)
    try:
        own = engine.demands(held, own_config(held), family)
        if not mismatches(stored, held, family, engine, own):
            return own
    except MtpforgeError:
        pass  # it is no target of this engine, or says nothing of the layer
    decoded = engine.decoded_on_load(family)
    rules: dict[str, Rule] = {}
    for module in stored.modules.values():
        template, found = module.module.template, module.quantization
        if found.is_dense or found.format in decoded.get(template, frozenset()):
            found = BF16
        rule = rules.setdefault(template, Rule(template, found, "as it is stored"))
        if rule.quantization != found:
            return f"`{template}` is stored in more than one way: {_both(rule.quantization, found)}"
    return Scheme(schemes.name_of(tuple(rules.values())), tuple(rules.values()))


def _both(one: Quantization, other: Quantization) -> str:
    return f"{label(one)} and {label(other)}"
