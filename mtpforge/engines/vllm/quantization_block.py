"""A scheme as a quantization_config that names the modules of one layer, fused names and `mtp_block.` included.

vLLM takes a draft's quantization from its target and parses this block only; forks and other engines read it. Resolving
it with vLLM's rules gives the same scheme again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from mtpforge.checkpoint import stating
from mtpforge.checkpoint.quantization import QuantConfig
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family, Module
from mtpforge.formats import label
from mtpforge.scheme import Scheme
from mtpforge.tensors import Quantization


def block(
    config: Mapping[str, object], family: Family, scheme: Scheme, target: QuantConfig, *, decoded: Collection[str]
) -> dict[str, object]:
    """The quantization_config of a draft, {} for a dense one. By the target's method where that can state the scheme.

    decoded: modules that the source stores as vLLM decodes them while loading; method fp8 does not list them as dense.
    """
    layer = layer_of(config, family, scheme)
    kinds = set(layer.sets)
    if not kinds:
        return {}
    if target.method == "fp8":
        layer = replace(layer, modules=tuple(m for m in layer.modules if m.template not in decoded))
    for method in sorted(_METHODS, key=lambda name: name != target.method):
        can, state = _METHODS[method]
        if can(kinds):
            return state(layer) | {"packed_modules_mapping": layer.packed}
    raise MtpforgeError(
        "no quantization method stores all formats of the scheme in one checkpoint",
        where=f"scheme {scheme.name}",
        why=", ".join(sorted(f"{label(q)} ({q.format})" for q in kinds)),
        fix="`mtpforge schemes` lists the presets",
    )


def layer_of(config: Mapping[str, object], family: Family, scheme: Scheme) -> Layer:
    """The nextn layer of a config as a scheme stores it."""
    modules = family.modules(config, 1)
    stored = {m.template: scheme.of(m.template).quantization for m in modules}
    return Layer(family.prefix(family.layer(config)), modules, stored, draft_class(family).packed)


@dataclass(frozen=True, slots=True)
class Layer:
    """The modules of one layer (of the experts, expert 0) and how each is stored, by template."""

    prefix: str
    modules: tuple[Module, ...]
    stored: Mapping[str, Quantization]
    packed: Mapping[str, list[str]]

    @property
    def dense(self) -> tuple[Module, ...]:
        return tuple(m for m in self.modules if self.stored[m.template].is_dense)

    @property
    def sets(self) -> dict[Quantization, list[Module]]:
        """Quantization -> the modules that are stored so."""
        sets: dict[Quantization, list[Module]] = {}
        for module in self.modules:
            if not self.stored[module.template].is_dense:
                sets.setdefault(self.stored[module.template], []).append(module)
        return sets

    @property
    def heads(self) -> tuple[str, str]:
        """The layer's head, as vLLM's class and as checkpoints name it."""
        return f"{self.prefix}head", f"{self.prefix}shared_head.head"

    def names(self, modules: Iterable[Module]) -> list[str]:
        """Full names; the routed experts once, by the name of their stack."""
        local = (m.name if m.expert is None else m.template.partition(".*.")[0] for m in modules)
        return list(dict.fromkeys(self.prefix + name for name in local))

    def pattern(self, modules: Iterable[Module]) -> str:
        """One anchored expression for modules, their fused names, and the spelling of forks under `mtp_block.`."""
        ends: dict[str, list[str]] = {}
        for module in modules:
            stem, _, last = module.template.rpartition(".")
            ends.setdefault(stem, []).extend([*self._fused(module), last])
        local = "|".join(
            f"{_escaped(stem)}{'[.]' if stem else ''}(?:{'|'.join(dict.fromkeys(last))})" for stem, last in ends.items()
        )
        return f"re:{self._whole(local)}"

    def expression(self, modules: Iterable[Module]) -> str:
        """The same without `re:`, of methods that ask for the routed experts by the name of their stack alone."""
        local: list[str] = []
        for module in modules:
            stem, dot, _ = module.template.rpartition(".")
            own = [module.template.partition(".*.")[0]] if module.expert is not None else [module.template]
            local += [f"{stem}{dot}{name}" for name in self._fused(module)] + own
        return self._whole("|".join(_escaped(name) for name in dict.fromkeys(local)))

    def _fused(self, module: Module) -> list[str]:
        last = module.template.rpartition(".")[2]
        return [name for name, parts in self.packed.items() if module.fused and last in parts]

    def _whole(self, local: str) -> str:
        return f"{_escaped(self.prefix)}(?:mtp_block[.])?(?:{local})$"


def _escaped(name: str) -> str:
    return name.replace(".", "[.]").replace("*", "[0-9]+")


def groups(layer: Layer, name: str) -> dict[str, dict[str, object]]:
    """config_groups of compressed-tensors for a layer, one for each way that a weight is stored: `<name>_0` and on."""
    sets = enumerate(layer.sets.items())
    return {f"{name}_{i}": stating.group(q, [layer.pattern(members)]) for i, (q, members) in sets}


def _compressed_tensors(layer: Layer) -> dict[str, object]:
    formats = {stating.compressed_format(q) for q in layer.sets}
    alone = layer.names(m for m in layer.dense if m.expert is None)
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups(layer, "group"),
        "ignore": ["lm_head", *layer.heads, *alone, layer.pattern(layer.dense)],
        "kv_cache_scheme": None,
    }


def _fp8(layer: Layer) -> dict[str, object]:
    (q,) = layer.sets
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": q.input_scale,
        "modules_to_not_convert": ["lm_head", *layer.names(layer.dense)],
    } | ({} if q.block is None else {"weight_block_size": list(q.block)})


def _modelopt(layer: Layer) -> dict[str, object]:
    stated: dict[str, object] = {
        "quant_method": "modelopt",
        "producer": {"name": "modelopt"},
        "ignore": ["lm_head", f"{layer.prefix}head", f"{layer.prefix}shared_head*", *layer.names(layer.dense)],
    }
    if len(layer.sets) > 1:
        layers = {name: stating.algorithm(q) for q, members in layer.sets.items() for name in layer.names(members)}
        return {**stated, "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    (q,) = layer.sets
    weights: dict[str, object] = {"num_bits": q.bits, "type": "float", "dynamic": False}
    weights |= {} if q.group_size is None else {"group_size": q.group_size}
    inputs = None if q.input_scale == "none" else weights
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {**stated, "quant_algo": stating.algorithm(q)["quant_algo"], "config_groups": groups}


def _quark(layer: Layer) -> dict[str, object]:
    first, *others = layer.sets.items()
    return {
        "quant_method": "quark",
        "export": {"kv_cache_group": [], "pack_method": stating.quark_packing(layer.sets)},
        "global_quant_config": stating.quark(first[0]),
        "layer_quant_config": {n: stating.quark(q) for q, members in others for n in layer.names(members)},
        "layer_type_quant_config": {},
        "exclude": ["lm_head", *layer.heads, *layer.names(layer.dense)],
    }


def _awq(layer: Layer) -> dict[str, object]:
    (q,) = layer.sets
    return {
        "quant_method": "awq",
        "bits": q.bits,
        "group_size": q.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", *layer.names(layer.dense)],
    }


def _gptq(layer: Layer) -> dict[str, object]:
    first, *others = layer.sets
    rules: dict[str, object] = {f"-:{layer.expression(layer.dense)}": {}} if layer.dense else {}
    rules |= {f"+:{layer.expression(layer.sets[q])}": stating.integers(q) for q in others}
    return {
        "quant_method": "gptq",
        **stating.integers(first),
        "desc_act": False,
        "checkpoint_format": first.format,
        "lm_head": False,
        "dynamic": rules,
        "modules_in_block_to_quantize": [layer.prefix],
    }


def _auto_round(layer: Layer) -> dict[str, object]:
    first, *others = layer.sets
    extra: dict[str, object] = (
        {f"^{layer.expression(layer.dense)}": {"bits": 16, "data_type": "float"}} if layer.dense else {}
    )
    extra |= {f"^{layer.expression(layer.sets[q])}": {**stating.integers(q), "data_type": "int"} for q in others}
    return {
        "quant_method": "auto-round",
        **stating.integers(first),
        "data_type": "int",
        "packing_format": _PACKINGS[first.format],
        "extra_config": extra,
    }


_PACKINGS: Final = {"gptq": "auto_round:auto_gptq", "awq": "auto_round:auto_awq"}

# quant_method -> whether it can state a set of quantizations, and how it does. The target's own method is tried first.
_METHODS: Final[dict[str, tuple[Callable[[set[Quantization]], bool], Callable[[Layer], dict[str, object]]]]] = {
    "auto-round": (stating.is_auto_round, _auto_round),
    "awq": (stating.is_awq, _awq),
    "compressed-tensors": (stating.is_compressed, _compressed_tensors),
    "fp8": (stating.is_fp8, _fp8),
    "gptq": (stating.is_gptq, _gptq),
    "quark": (stating.is_quark, _quark),
    "modelopt": (stating.is_modelopt, _modelopt),
}
