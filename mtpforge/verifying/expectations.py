"""What is judged: a draft, and what the engine expects of it, derived anew from target, family and engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mtpforge import errors, manifest
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine
from mtpforge.engines.expected import expected
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.families.counting import config_experts, expert_numbers, served_experts
from mtpforge.families.family import Module, Plain
from mtpforge.formats import FORMATS, split
from mtpforge.manifest import Manifest
from mtpforge.methods import METHODS, RTN, Method
from mtpforge.scheme import Scheme
from mtpforge.tensors import Quantization, Spec, TensorRef


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight matrix of the draft as the engine expects it: how it is stored, and suffix -> Spec of its parts."""

    module: Module
    quantization: Quantization
    specs: dict[str, Spec]


@dataclass(frozen=True, slots=True)
class Subject:
    """A draft beside the target that it is for.

    n_target: experts of the target, target_config: its config. A source that stands in for one has as many as the layer
    itself: its other layers may have been pruned without it. refs: every tensor of the draft, by full name. told: the
    manifest that came with the draft, why it cannot be read, or None. stored: module -> how the draft stores it, None
    where it does not, or in no known way. anew: what to do where it is not as expected, with
    the command that makes such a draft.
    """

    draft: Checkpoint
    target: Checkpoint
    family: Family
    engine: Engine
    scheme: Scheme
    prefix: str
    n_experts: int
    n_target: int
    target_config: Mapping[str, object]
    refs: dict[str, TensorRef]
    weights: tuple[Weight, ...]
    plain: tuple[Plain, ...]
    expected: dict[str, Spec]
    told: Manifest | MtpforgeError | None
    stored: dict[str, Quantization | None]
    anew: str

    @property
    def claimed(self) -> Method:
        """The method that the draft's manifest names; rtn where there is none, or none that can be read."""
        return METHODS.get(self.told.scales, RTN) if isinstance(self.told, Manifest) else RTN

    @property
    def is_claimed(self) -> bool:
        """Whether something that came with it says by which method it was made, or would, were it whole."""
        return bool(self.told.scales) if isinstance(self.told, Manifest) else self.told is not None

    @property
    def is_inside(self) -> bool:
        """Whether it is a target's own layer, judged where it lies."""
        return self.draft.identity == self.target.identity

    def fits(self, weight: Weight) -> bool:
        """Whether every part of a weight is there as expected, so that it can be decoded."""
        return all(self._is(f"{weight.module.name}.{suffix}", spec) for suffix, spec in weight.specs.items())

    def fits_plain(self, plain: Plain) -> bool:
        """Whether a tensor that is no matrix is there as expected."""
        return self._is(plain.name, Spec(plain.dtype, plain.shape))

    def parts(self, weight: Weight) -> dict[str, TensorRef]:
        """Suffix -> where it lies, of a weight that fits."""
        return {suffix: self.refs[f"{self.prefix}{weight.module.name}.{suffix}"] for suffix in weight.specs}

    def _is(self, local: str, spec: Spec) -> bool:
        ref = self.refs.get(self.prefix + local)
        return ref is not None and ref.spec == spec


def subject(
    draft: Checkpoint,
    target: Checkpoint,
    family: Family,
    engine: Engine,
    scheme: Scheme,
    anew: str,
    *,
    is_served: bool = True,
) -> Subject:
    """The draft with everything that is expected of it. Raises MtpforgeError where its headers cannot be read.

    is_served: whether the target is one, or a source that stands in for it.
    """
    layer = family.layer(target.config)
    prefix = family.prefix(layer)
    refs = draft.locate(sorted(draft.names))
    n_experts = _n_experts(family, draft, target, prefix, refs)
    modules = family.modules(target.config, n_experts)
    plain = family.plain(target.config, n_experts)
    decoded, held = engine.decoded_on_load(family), _by_module(refs, prefix, {prefix + row.name for row in plain})
    weights = tuple(_weight(decoded, scheme, draft, module, held.get(module.name, {})) for module in modules)
    stored = {module.name: _stored(draft, module, held.get(module.name, {})) for module in modules}
    wanted = expected(scheme, family, target.config, layer, n_experts)
    for weight in weights:
        if weight.module.template in decoded:
            own = f"{prefix}{weight.module.name}."
            wanted = {name: spec for name, spec in wanted.items() if not name.startswith(own)}
            wanted |= {own + suffix: spec for suffix, spec in weight.specs.items()}
    n_target = served_experts(family, target) if is_served else n_experts
    beside = target.config if is_served else family.with_experts(target.config, n_experts)
    return Subject(
        draft=draft,
        target=target,
        family=family,
        engine=engine,
        scheme=scheme,
        prefix=prefix,
        n_experts=n_experts,
        n_target=n_target,
        target_config=beside,
        refs=refs,
        weights=weights,
        plain=plain,
        expected=wanted,
        told=_told(draft),
        stored=stored,
        anew=anew,
    )


def _told(draft: Checkpoint) -> Manifest | MtpforgeError | None:
    try:
        return manifest.find(draft) or manifest.of_graft(draft)
    except MtpforgeError as error:
        if error.code == errors.REMOTE:
            raise
        return error


def _n_experts(
    family: Family, draft: Checkpoint, target: Checkpoint, prefix: str, refs: Mapping[str, TensorRef]
) -> int:
    """Experts by the rows of the correction bias, else by name, else by the configs: tensors before claims."""
    rows = [refs[prefix + row.name].spec for row in family.plain_rows if row.per_expert and prefix + row.name in refs]
    if rows and len(rows[0].shape) == 1 and rows[0].shape[0]:
        return rows[0].shape[0]
    numbers = expert_numbers(family, (name.removeprefix(prefix) for name in refs if name.startswith(prefix)))
    return max(numbers) + 1 if numbers else config_experts(family, draft.config) or family.n_experts(target.config)


def _by_module(refs: Mapping[str, TensorRef], prefix: str, plain: Collection[str]) -> dict[str, dict[str, Spec]]:
    """Module -> suffix -> Spec of what the draft holds of the layer's matrices; plain: names that belong to none."""
    held: dict[str, dict[str, Spec]] = {}
    for name, ref in refs.items():
        if name in plain:
            continue
        module, suffix = split(name.removeprefix(prefix))
        held.setdefault(module, {})[suffix] = ref.spec
    return held


def _stored(draft: Checkpoint, module: Module, held: Mapping[str, Spec]) -> Quantization | None:
    """How the draft stores a weight of this shape, whatever is asked for."""
    known = (form.recognise(held, module.shape, draft.quantization) for form in FORMATS.values())
    return next((found for found in known if found is not None), None)


def _weight(
    decoded: Mapping[str, frozenset[str]],
    scheme: Scheme,
    draft: Checkpoint,
    module: Module,
    held: Mapping[str, Spec],
) -> Weight:
    quantization = scheme.of(module.template).quantization
    for name in sorted(decoded.get(module.template, frozenset())):
        found = FORMATS[name].recognise(held, module.shape, draft.quantization)
        quantization = found or quantization
    return Weight(module, quantization, FORMATS[quantization.format].layout(module.shape, quantization))
