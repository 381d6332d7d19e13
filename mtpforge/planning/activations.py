"""Where the scales of static activations come from.

In this order: the checkpoint that `--input-scales` names, the source's own layer, the target's own layer, the target's
last main layer. Of a main layer the maximum over its experts is taken: expert numbers of different layers mean nothing
to each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mtpforge.checkpoint import quantization
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.families.family import Module
from mtpforge.formats import FORMATS
from mtpforge.formats.format import InputScale
from mtpforge.planning.steps import InputScaleMove, Write
from mtpforge.sourcing import StoredLayer, under_layer_block
from mtpforge.tensors import Quantization, TensorRef

_SUFFIXES = frozenset(f.input_scale.suffix for f in FORMATS.values() if f.input_scale)


@dataclass(frozen=True, slots=True)
class ScaleSource:
    """A layer that may hold activation scales: of which checkpoint, under which prefix, and how the plan names it.

    held: full name -> tensor of a layer that is known already, which may be one expert's share of a stack. shared: what
    was found for all experts of some templates at once; every one of them asks for the same hundreds of scales.
    """

    checkpoint: Checkpoint
    origin: str
    prefix: str
    own_layer: bool
    description: str
    held: Mapping[str, TensorRef] = field(default_factory=dict)
    shared: dict[tuple[str, ...], dict[str, TensorRef]] = field(default_factory=dict, compare=False)

    def __contains__(self, name: str) -> bool:
        return name in self.held or name in self.checkpoint.names

    def locate(self, names: Iterable[str]) -> dict[str, TensorRef]:
        """Where tensors lie, in refs that name the origin."""
        asked = list(names)
        known = {name: self.held[name] for name in asked if name in self.held}
        found = known | self.checkpoint.locate(name for name in asked if name not in known)
        return {name: replace(ref, origin=self.origin) for name, ref in found.items()}


def sources(
    family: Family, source: Checkpoint, stored: StoredLayer, target: Checkpoint | None, given: Checkpoint | None
) -> tuple[ScaleSource, ...]:
    """The layers to look into, in order. stored: the source's own."""
    found: list[ScaleSource] = []
    if given is not None:
        found += _layers(family, given, "scales", "the `--input-scales` checkpoint's")
    layer = family.prefix(stored.layer)
    held = {f"{layer}{name}.{s}": ref for name, module in stored.modules.items() for s, ref in module.parts.items()}
    found.append(
        ScaleSource(
            under_layer_block(source),
            "source",
            layer,
            own_layer=True,
            description="the source's own MTP layer",
            held=held,
        )
    )
    if target is not None and target.has_headers:
        found += _layers(family, target, "target", "the target's")
    return tuple(found)


def _layers(family: Family, checkpoint: Checkpoint, origin: str, whose: str) -> list[ScaleSource]:
    layer = family.layer(checkpoint.config)
    own = under_layer_block(checkpoint)
    return [
        ScaleSource(own, origin, family.prefix(layer), own_layer=True, description=f"{whose} own MTP layer"),
        ScaleSource(
            checkpoint,
            origin,
            family.prefix(layer - 1),
            own_layer=False,
            description=f"{whose} last main layer, maximum over its experts",
        ),
    ]


def move(
    partners: Iterable[Module],
    wanted: Quantization,
    write: Write,
    places: tuple[ScaleSource, ...],
    n_kept: Mapping[int, int] | None = None,
) -> InputScaleMove:
    """The activation scale of one module; `partners` are all modules that the engine feeds with the same input.

    n_kept: draft expert number -> source expert number, where experts were dropped. Raises MtpforgeError where no layer
    holds a scale for it.
    """
    convention = FORMATS[wanted.format].input_scale
    if convention is None:
        raise ValueError(f"{wanted.format} has no input scale")
    modules = tuple(partners)
    for place in places:
        refs = _scales(place, modules, n_kept or {})
        if refs:
            read = _convention(place, next(iter(refs)), convention)
            return InputScaleMove(
                reads=tuple(refs.values()),
                read_divisor=read.divisor,
                read_reciprocal=read.reciprocal,
                write=write,
                write_divisor=convention.divisor,
                write_reciprocal=convention.reciprocal,
                reason=f"input scale from {place.description}",
            )
    raise MtpforgeError(
        f"no input scale for `{modules[0].name}`",
        why="the target quantizes activations with stored scales, and neither the source's MTP layer nor the target's"
        " tensors hold one that fits",
        fix="name a checkpoint that was calibrated: `--input-scales ORG/NAME`, or a safetensors file of such scales",
    )


def _scales(place: ScaleSource, modules: tuple[Module, ...], kept: Mapping[int, int]) -> dict[str, TensorRef]:
    """Every stored scale that feeds these modules in this layer, by name; none unless all are there."""
    if place.own_layer or any(module.expert is None for module in modules):
        return _located(place, modules, kept)
    of = tuple(module.template for module in modules)
    if of not in place.shared:
        place.shared[of] = _located(place, modules, kept)
    return place.shared[of]


def _located(place: ScaleSource, modules: tuple[Module, ...], kept: Mapping[int, int]) -> dict[str, TensorRef]:
    names: list[str] = []
    for module in modules:
        found = _names(place, module, kept)
        if not found:
            return {}
        names += found
    return place.locate(names)


def _names(place: ScaleSource, module: Module, kept: Mapping[int, int]) -> list[str]:
    if place.own_layer:
        expert = module.expert
        own = module.name if expert is None else module.template.replace("*", str(kept.get(expert, expert)))
        candidates = [own]
    elif module.expert is None:
        candidates = [module.name]
    else:
        candidates = _experts_of(place, module.template)
    return [
        name
        for candidate in candidates
        for suffix in sorted(_SUFFIXES)
        if (name := f"{place.prefix}{candidate}.{suffix}") in place
    ]


def _experts_of(place: ScaleSource, template: str) -> list[str]:
    head = template.split("*", maxsplit=1)[0]
    numbers = {
        rest.split(".", 1)[0]
        for name in place.checkpoint.names
        if name.startswith(place.prefix + head)
        for rest in (name[len(place.prefix + head) :],)
    }
    return [template.replace("*", number) for number in sorted((n for n in numbers if n.isdigit()), key=int)]


def _convention(place: ScaleSource, name: str, wanted: InputScale) -> InputScale:
    """What the stored number means: told by the suffix, by codes and scales beside it, and by what the config names.

    A file of scales alone has no codes; it is taken to be written for the draft that it is given to.
    """
    module, _, suffix = name.rpartition(".")
    suffixes = {form.codes.suffix for form in FORMATS.values() if form.codes}
    beside = [n for s in sorted(suffixes) if (n := f"{module}.{s}") in place]
    if not beside and place.origin == "scales" and suffix == wanted.suffix:
        return wanted
    dtype = place.locate(beside)[beside[0]].spec.dtype if beside else ""
    of_weight = f"{module}.weight_scale"
    scaled = {place.locate([of_weight])[of_weight].spec.dtype} if of_weight in place else set()
    block = quantization.parse(place.checkpoint.quantization)
    algorithms = {block.quant_algo, *(layer.quant_algo for layer in block.quantized_layers.values())}
    for form in FORMATS.values():
        scale = form.input_scale
        if scale is None or scale.suffix != suffix or form.codes is None or form.codes.dtype != dtype:
            continue
        if scaled <= set(form.takes["scale_dtype"]) and not scale.not_under & algorithms:
            return scale
    raise MtpforgeError(
        f"cannot tell what `{suffix}` means here",
        where=f"{place.locate([name])[name].file}, {shown(name)}",
        why=f"the weight beside it is {dtype or 'absent'}; formats divide the same amax by different numbers",
        fix="name another checkpoint: `--input-scales ORG/NAME`",
    )
