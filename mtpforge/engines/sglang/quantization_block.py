"""A scheme as the quantization_config that SGLang builds a draft by.

Names are asked about under `model.decoder.`; the expressions fit `model.layers.N.` too, for engines that ask so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mtpforge.checkpoint import stating
from mtpforge.engines.sglang.draft_classes import NEVER, DraftClass, draft_class, unloadable
from mtpforge.engines.sglang.quantization_methods import BESIDE_W4AFP8, W4AFP8
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family, Module
from mtpforge.formats import label
from mtpforge.scheme import Scheme
from mtpforge.tensors import Quantization

EXPERTS = "mlp.experts"


@dataclass(frozen=True, slots=True)
class Layer:
    """The modules of one layer that SGLang asks about, of the experts expert 0. stored: how, by template."""

    number: int
    modules: tuple[Module, ...]
    stored: Mapping[str, Quantization]
    known: DraftClass

    @property
    def dense(self) -> list[Module]:
        return [m for m in self.modules if self.stored[m.template].is_dense]

    @property
    def kinds(self) -> set[Quantization]:
        """How its modules are stored, those that are not dense."""
        return {q for m in self.modules if not (q := self.stored[m.template]).is_dense}

    @property
    def sets(self) -> dict[Quantization, list[Module]]:
        """Quantization -> the modules that are stored so, the experts' first."""
        sets: dict[Quantization, list[Module]] = {}
        for module in sorted(self.modules, key=lambda m: m.expert is None):
            if not self.stored[module.template].is_dense:
                sets.setdefault(self.stored[module.template], []).append(module)
        return sets

    @property
    def prefix(self) -> str:
        """How the names of its modules begin, as SGLang asks and as they lie on disk: an expression."""
        return f"model[.](?:decoder|layers[.]{self.number})[.]"

    def pattern(self, modules: Iterable[Module]) -> str:
        """One anchored expression for modules and their fused names."""
        ends: dict[str, list[str]] = {}
        for module in modules:
            stem, _, last = module.template.rpartition(".")
            ends.setdefault(stem, []).extend([*self._fused(module), last])
        local = "|".join(
            f"{_escaped(stem)}{'[.]' if stem else ''}(?:{'|'.join(dict.fromkeys(last))})" for stem, last in ends.items()
        )
        return f"re:{self.prefix}(?:{local})$"

    def names(self, modules: Iterable[Module]) -> list[str]:
        """Names within the layer, the experts' stack once; of matrices that are asked about whole, theirs too."""
        found: dict[str, None] = {}
        for module in modules:
            stem = module.template.rpartition(".")[0]
            found |= dict.fromkeys(f"{stem}.{name}" for name in self._fused(module) if name in self.known.asked_whole)
            found[module.template if module.expert is None else EXPERTS] = None
        return list(found)

    def whole_names(self, modules: Iterable[Module]) -> list[str]:
        """Names of the matrices that SGLang runs, the experts' stack once."""
        found: dict[str, None] = {}
        for module in modules:
            stem = module.template.rpartition(".")[0]
            fused = [f"{stem}.{name}" for name in self._fused(module)]
            found |= dict.fromkeys([EXPERTS] if module.expert is not None else fused or [module.template])
        return list(found)

    def _fused(self, module: Module) -> list[str]:
        last = module.template.rpartition(".")[2]
        return [name for name, parts in self.known.fused.items() if module.fused and last in parts]


def block(config: Mapping[str, object], family: Family, scheme: Scheme) -> dict[str, object]:
    """The quantization_config of a draft, {} for a dense one. MtpforgeError for a scheme that no method states."""
    layer = layer_of(config, family, scheme)
    modules, stored, kinds = layer.modules, layer.stored, layer.kinds
    if not kinds:
        return {}
    for template, q in stored.items():
        if q.format in NEVER:
            raise unloadable(template, q, NEVER[q.format])
    if {q.format for q in kinds} == {"mxfp8"}:
        return _mxfp8(layer, next(iter(kinds)))
    if stating.is_compressed(kinds) and all(q.format != "mxfp8" for q in kinds):
        return _compressed_tensors(layer)
    if stating.is_fp8(kinds):
        return _fp8(layer, next(iter(kinds)))
    if stating.is_awq(kinds):
        return _awq(layer, next(iter(kinds)))
    if stating.is_gptq(kinds) and not stored[_one_expert(modules).template].is_dense:
        return _gptq(layer)
    if all(stored[m.template] == (BESIDE_W4AFP8 if m.expert is None else W4AFP8) for m in modules):
        return _w4afp8()
    raise MtpforgeError(
        "no quantization method of SGLang states all formats of the scheme in one checkpoint",
        where=f"scheme {scheme.name}",
        why=", ".join(sorted(f"{label(q)} ({q.format})" for q in kinds)),
        fix="`mtpforge schemes` lists the presets",
    )


def layer_of(config: Mapping[str, object], family: Family, scheme: Scheme) -> Layer:
    """The layer of a config as a scheme stores it."""
    known = draft_class(family)
    modules = tuple(m for m in family.modules(config, 1) if m.template not in known.dense)
    stored = {m.template: scheme.of(m.template).quantization for m in modules}
    return Layer(family.layer(config), modules, stored, known)


def _compressed_tensors(layer: Layer) -> dict[str, object]:
    """The experts' group is for the class, which SGLang looks for to keep shared experts apart; others go by name.

    The format of the whole is the experts': where they are packed, nothing else loads (get_moe_scheme, 0.5.23).
    """
    sets = layer.sets
    first, *others = sets
    dense = layer.dense
    return {
        "quant_method": "compressed-tensors",
        "format": stating.compressed_format(first),
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": stating.group(first, ["Linear"]),
            **{f"group_{n}": stating.group(q, [layer.pattern(sets[q])]) for n, q in enumerate(others, 1)},
        },
        "ignore": ["lm_head", *([layer.pattern(dense)] if dense else [])],
        "kv_cache_scheme": None,
    }


def _fp8(layer: Layer, q: Quantization) -> dict[str, object]:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": q.input_scale,
        "modules_to_not_convert": ["lm_head", *layer.names(layer.dense)],
        "weight_block_size": list(q.block or ()),
    }


def _mxfp8(layer: Layer, q: Quantization) -> dict[str, object]:
    """As ModelOpt says it: for compressed-tensors' words SGLang has no scheme. Names are matched as method fp8 does."""
    return {
        "quant_method": "modelopt",
        "producer": {"name": "modelopt"},
        **stating.algorithm(q),
        "ignore": ["lm_head", *layer.names(layer.dense)],
    }


def _awq(layer: Layer, q: Quantization) -> dict[str, object]:
    return {
        "quant_method": "awq",
        "bits": q.bits,
        "group_size": q.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", *layer.whole_names(layer.dense)],
    }


def _gptq(layer: Layer) -> dict[str, object]:
    """The block says how the experts are stored: no rule changes that."""
    first = layer.stored[_one_expert(layer.modules).template]
    sets: dict[Quantization, list[Module]] = {}
    for module in layer.modules:
        sets.setdefault(layer.stored[module.template], []).append(module)
    rules: dict[str, object] = {}
    for q, modules in sets.items():
        if q != first:
            sign, changed = ("-:", {}) if q.is_dense else ("+:", stating.integers(q))
            rules[sign + layer.pattern(modules).removeprefix("re:")] = changed
    return {
        "quant_method": "gptq",
        **stating.integers(first),
        "desc_act": False,
        "checkpoint_format": first.format,
        "lm_head": False,
        "dynamic": rules,
    }


def _one_expert(modules: Iterable[Module]) -> Module:
    return next(module for module in modules if module.expert is not None)


def _w4afp8() -> dict[str, object]:
    """SGLang reads the method alone; the rest tells others what the layer holds."""
    return {
        "quant_method": "w4afp8",
        "activation_scheme": "dynamic",
        "group_size": W4AFP8.group_size,
        "weight_block_size": list(BESIDE_W4AFP8.block or ()),
    }


def _escaped(name: str) -> str:
    return name.replace(".", "[.]").replace("*", "[0-9]+")
