"""Modules of the nextn layer, as one family of models has them.

Family          names and shapes of the layer, from a config
  Module        one weight matrix
  Plain         one tensor that is no matrix
  Dropped       tensors that a draft does not carry
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mtpforge.errors import MtpforgeError, Where
from mtpforge.families import sizes
from mtpforge.tensors import Shape

MOST_EXPERTS: Final = 1 << 16  # keeps a damaged config from asking for a list without end


@dataclass(frozen=True, slots=True)
class Module:
    """One weight matrix of the layer.

    name: local, without the layer's prefix: `mlp.experts.17.gate_proj`. template: `mlp.experts.*.gate_proj`.
    kind: row of a table: `routed experts`, `shared experts`, `attention`, `indexer`, `router`, `projection`.
    shape: [out, in]. fused: name of the set that an engine runs as one matrix (`mlp.experts.17.gate_up_proj`), or "".
    expert: number, or None.
    """

    name: str
    template: str
    kind: str
    shape: Shape
    fused: str = ""
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Plain:
    """One tensor of the layer that is no matrix: a norm or a bias, never quantized.

    name: local, whole: `input_layernorm.weight`. dtype: what engines keep it in. per_expert: one value per expert.
    """

    name: str
    kind: str
    shape: Shape
    dtype: str
    per_expert: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """Tensors of the layer that a draft does not carry: local name pattern (fnmatch), and why.

    shape: of those that a draft shares with its target, whose sizes then have to agree.
    """

    pattern: str
    reason: str
    shape: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """A `[[modules]]` table of a family file: `*` in template and fused stands for the number of an expert."""

    template: str
    kind: str
    shape: tuple[str, ...]
    fused: str = ""


@dataclass(frozen=True, slots=True)
class PlainRow:
    """A `[[plain]]` table of a family file. when: config key that says whether the tensor is there, "" for always."""

    name: str
    kind: str
    shape: tuple[str, ...]
    dtype: str
    per_expert: bool = False
    when: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of models names and shapes its nextn layer.

    model_types: values of `model_type` in config.json. architecture: class name for `architectures`. stem:
    what a model's name has before its version. base_models: version -> hub ids of its published base, in the order to
    try. nextn: config expression of the layer's index. expert_keys: config keys that count routed experts, the one that
    decides first; the others are twins that some writers add. main_rows: matrices of the layers before the nextn layer
    that it has none of. is_runnable: whether `nextn` has it laid out for transformers' modules. foreign: config keys of
    another family's layer -> `why` and `fix` of their refusal. Every method takes a whole config.json, nested or not.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: str
    stem: str
    base_models: Mapping[str, tuple[str, ...]]
    nextn: str
    expert_keys: tuple[str, ...]
    module_rows: tuple[ModuleRow, ...]
    plain_rows: tuple[PlainRow, ...]
    dropped: tuple[Dropped, ...]
    main_rows: tuple[ModuleRow, ...] = ()
    is_runnable: bool = False
    foreign: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def text(self, config: Mapping[str, object]) -> Mapping[str, object]:
        """The part of a config that describes the language model: `text_config` where that, or only that, is of it."""
        nested = config.get("text_config")
        if not isinstance(nested, Mapping):
            return config
        is_nested = nested.get("model_type") in self.model_types or config.get("model_type") not in self.model_types
        return nested if is_nested else config

    def layer(self, config: Mapping[str, object]) -> int:
        """Index of the nextn layer."""
        return sizes.evaluate(self.nextn, self.text(config))

    def prefix(self, layer: int) -> str:
        """What the name of every tensor of a layer starts with: `model.layers.78.`."""
        return f"model.layers.{layer}."

    def n_experts(self, config: Mapping[str, object]) -> int:
        """Routed experts that the config states, by the first of `expert_keys` that it has."""
        text = self.text(config)
        key = next((k for k in self.expert_keys if k in text), self.expert_keys[0])
        return sizes.whole_number(text, key)

    def with_experts(self, config: Mapping[str, object], n_experts: int) -> Mapping[str, object]:
        """The config, stating so many routed experts and no other number of them."""
        text = {key: value for key, value in self.text(config).items() if key not in self.expert_keys}
        text[self.expert_keys[0]] = n_experts
        return text if self.text(config) is config else {**config, "text_config": text}

    def modules(self, config: Mapping[str, object], n_experts: int) -> tuple[Module, ...]:
        """Every weight matrix of the layer: experts by number, projections of one expert together."""
        known = self._sizes(config, n_experts)
        shaped = [(row, _shape(row.shape, known)) for row in self.module_rows]
        single = [Module(r.template, r.template, r.kind, s, r.fused) for r, s in shaped if "*" not in r.template]
        stacked = [Module(r.template, r.template, r.kind, s, r.fused) for r, s in shaped if "*" in r.template]
        return (*single, *(_of_expert(m, expert) for expert in range(n_experts) for m in stacked))

    def main_modules(self, config: Mapping[str, object]) -> tuple[Module, ...]:
        """The weight matrices that a layer before the nextn layer may have; of the experts those of the first."""
        known = self._sizes(config, 1)
        shared = (module for module in self.modules(config, 1) if module.kind != "projection")
        rows = ((row, _shape(row.shape, known)) for row in self.main_rows)
        return (*shared, *(Module(row.template, row.template, row.kind, shape, row.fused) for row, shape in rows))

    def plain(self, config: Mapping[str, object], n_experts: int) -> tuple[Plain, ...]:
        """Every tensor of the layer that is no matrix."""
        known = self._sizes(config, n_experts)
        there = (row for row in self.plain_rows if not row.when or sizes.flag(known, row.when))
        return tuple(Plain(r.name, r.kind, _shape(r.shape, known), r.dtype, r.per_expert) for r in there)

    def dimensions(self, config: Mapping[str, object]) -> dict[str, object]:
        """Config key -> value of every size and switch of the layer, and of what it shares with the model around it."""
        text = self.text(config)
        rows = (self.module_rows, self.plain_rows, self.dropped)
        shapes = (row.shape for table in rows for row in table)
        known = dict.fromkeys(key for shape in shapes for expression in shape for key in sizes.keys(expression))
        known |= dict.fromkeys(row.when for row in self.plain_rows if row.when)
        return {key: text[key] for key in known if key in text}

    def _sizes(self, config: Mapping[str, object], n_experts: int) -> dict[str, object]:
        if n_experts > MOST_EXPERTS:
            raise MtpforgeError(
                f"{n_experts} experts cannot be right",
                where=Where("config.json", inside=f"`{self.expert_keys[0]}`"),
                why="no model has as many",
            )
        return {**self.text(config), "n_experts": n_experts}


def _shape(expressions: tuple[str, ...], known: Mapping[str, object]) -> Shape:
    return tuple(sizes.evaluate(expression, known) for expression in expressions)


def _of_expert(module: Module, expert: int) -> Module:
    number = str(expert)
    name, fused = module.template.replace("*", number), module.fused.replace("*", number)
    return replace(module, name=name, fused=fused, expert=expert)
