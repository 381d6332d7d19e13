"""pruned(): which experts of the source's layer a draft for this target keeps, and by what scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from mtpforge import errors
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family, family_of
from mtpforge.families.counting import served_experts
from mtpforge.families.routing import Routing, routing
from mtpforge.pruning import DEFAULT_METHOD, INPUTS_METHOD, METHODS, ranking, reading
from mtpforge.pruning.methods import Router
from mtpforge.sourcing import StoredLayer, stored_layer
from mtpforge.weights import Reader

if TYPE_CHECKING:
    from torch import Tensor

_FILE: Final = "file"
_DATA_FREE: Final = tuple(name for name, method in METHODS.items() if method.needs in ("router", "experts"))


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks for.

    experts: "match" the target's count where it is smaller, "keep" all, or so many. method: a name of METHODS, "" for
    `file` where a list is given, else the default. kept: the list itself, ascending; or `copy`, a checkpoint that was
    pruned before. given: scores by method, one per expert, of methods that need inputs; measure: makes them for a
    source beside a target, called once and only where they are needed. Either makes INPUTS_METHOD the default.
    """

    experts: int | Literal["match", "keep"] = "match"
    method: str = ""
    kept: tuple[int, ...] | None = None
    copy: Checkpoint | None = None
    given: Mapping[str, Sequence[float]] = field(default_factory=dict)
    measure: Callable[[Checkpoint, Checkpoint], Mapping[str, Sequence[float]]] | None = None

    @property
    def has_inputs(self) -> bool:
        """Whether methods that need inputs can be asked."""
        return bool(self.given) or self.measure is not None

    @property
    def is_default(self) -> bool:
        """Whether nothing is asked for that a layer which loads as it is would not fulfil."""
        return self.experts in ("match", "keep") and not (self.method or self.lists or self.has_inputs)

    @property
    def lists(self) -> bool:
        """Whether the experts are named, by a list or by a copy."""
        return self.kept is not None or self.copy is not None


@dataclass(frozen=True, slots=True)
class Pruned:
    """The experts that stay.

    method: what chose them. kept: their numbers in the source, ascending. n_stored: experts of the source. reason: how
    they were chosen, for people. scores: of the method, one per expert of the source, empty for a list.
    """

    method: str
    kept: tuple[int, ...]
    n_stored: int
    reason: str
    scores: tuple[float, ...] = ()

    @property
    def keeps_all(self) -> bool:
        """Whether no expert goes."""
        return len(self.kept) == self.n_stored


def pruned(source: Checkpoint, target: Checkpoint, wish: Wish | None = None) -> Pruned:
    """The experts of the source's layer that stay beside this target.

    Reads what the method needs and nothing where all stay: for `bias` one vector. MtpforgeError for a wish that
    contradicts itself, the source or the routing; more experts than the target has are the plan's to refuse.
    """
    wish = wish or Wish()
    family = family_of(target.config)
    layer = stored_layer(source, family)
    route = routing(family.text(target.config), family.text(source.config))
    method = _method(wish)
    if wish.lists:
        return _listed(source, layer, family, route, wish)
    n_kept = _n_kept(wish, layer, served_experts(family, target))
    if n_kept == layer.n_experts:
        return Pruned(method, tuple(range(n_kept)), n_kept, "all stay")
    route.refuse_count(n_kept)
    if METHODS[method].needs == "inputs":
        wish = _measured(wish, source, target)
    found = scores(source, layer, (method,), wish.given)[method]
    kept = choice(method, found, n_kept, route)
    drops = METHODS[method].drops
    return Pruned(method, kept, layer.n_experts, f"by {method}, {drops} scores dropped", found)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What several methods say about one layer.

    chosen: what a build would keep. scores: by method, one per expert of the source. choices: the experts that each
    would keep, of the same number. agreement: method -> method -> how many experts both drop. inputs: sha256 and tokens
    of what scores were measured on.
    """

    chosen: Pruned
    scores: dict[str, tuple[float, ...]]
    choices: dict[str, tuple[int, ...]]
    agreement: dict[str, dict[str, int]]
    inputs: dict[str, object] | None = None
    command: ClassVar = "prune-plan"

    def document(self) -> dict[str, object]:
        """What `--json` holds of it."""
        return {
            "kept": self.chosen.kept,
            "method": self.chosen.method,
            "n_stored": self.chosen.n_stored,
            "scores": self.scores,
            "choices": self.choices,
            "agreement": self.agreement,
            "inputs": self.inputs,
        }


def compared(source: Checkpoint, target: Checkpoint, wish: Wish, names: Sequence[str] = ()) -> Comparison:
    """The choice that a build would make, beside those of the methods that read the router alone, and of `names`.

    Where there are inputs, the methods that need some are beside it too.
    """
    wish = _measured(wish, source, target)
    chosen = pruned(source, target, wish)
    family = family_of(target.config)
    layer = stored_layer(source, family)
    route = routing(family.text(target.config), family.text(source.config))
    found = {chosen.method: chosen.scores} if chosen.scores else {}
    names = (*names, *wish.given, wish.method)
    asked = [name for name, method in METHODS.items() if method.needs == "router" or name in names]
    rest = [name for name in asked if name not in found and METHODS[name].needs != "list"]
    found |= scores(source, layer, rest, wish.given)
    ordered = {name: found[name] for name in METHODS if name in found}
    kept = {name: choice(name, own, len(chosen.kept), route) for name, own in ordered.items()}
    listed = {_FILE: chosen.kept} if chosen.method == _FILE else {}
    return Comparison(chosen, ordered, listed | kept, ranking.agreement(listed | kept, chosen.n_stored))


def scores(
    source: Checkpoint, layer: StoredLayer, names: Iterable[str], given: Mapping[str, Sequence[float]] | None = None
) -> dict[str, tuple[float, ...]]:
    """Scores by method, one per expert of the layer; fetches and reads only what these methods need."""
    found: dict[str, tuple[float, ...]] = {}
    for name in names:
        method = METHODS[name]
        if given and name in given:
            found[name] = _given(name, given[name], layer)
        elif method.of_router is not None:
            found[name] = tuple(method.of_router(_router(source, layer)))
        elif method.of_expert is not None:
            found[name] = tuple(method.of_expert(weights) for weights in _experts(source, layer))
        else:
            raise _needy(name)
    return found


def choice(method: str, found: Sequence[float], n_kept: int, route: Routing) -> tuple[int, ...]:
    """The experts that a method keeps, ascending, given its scores."""
    drops = METHODS[method].drops
    assert drops  # noqa: S101 -- only a list has no scores
    return ranking.keep(found, n_kept, route, drops)


def _method(wish: Wish) -> str:
    if wish.lists and wish.method not in ("", _FILE):
        raise MtpforgeError(
            f"`--keep-experts` names the experts, `--prune-by {wish.method}` would choose them",
            fix="leave one of the two out",
            code=errors.USAGE,
        )
    if wish.method == _FILE and not wish.lists:
        raise MtpforgeError(
            "`--prune-by file` needs the list", fix="`--keep-experts FILE`, a JSON list", code=errors.USAGE
        )
    if wish.method and METHODS[wish.method].needs == "inputs" and not wish.has_inputs:
        raise _needy(wish.method)
    return wish.method or (_FILE if wish.lists else INPUTS_METHOD if wish.has_inputs else DEFAULT_METHOD)


def _needy(name: str) -> MtpforgeError:
    """A method that cannot score, whether or not experts go."""
    return MtpforgeError(
        f"`{name}` needs {METHODS[name].needs} to score experts",
        where="option `--prune-by`",
        fix="; ".join(["`--inputs FILE`", *(f"`--prune-by {free}`" for free in _DATA_FREE)]),
        code=errors.USAGE,
    )


def _measured(wish: Wish, source: Checkpoint, target: Checkpoint) -> Wish:
    """The wish with the scores that its inputs give."""
    return replace(wish, given=wish.measure(source, target), measure=None) if wish.measure else wish


def _n_kept(wish: Wish, layer: StoredLayer, n_target: int) -> int:
    if wish.experts == "keep":
        return layer.n_experts
    if wish.experts == "match":
        return min(layer.n_experts, n_target)
    if wish.experts > layer.n_experts:
        raise MtpforgeError(
            f"the source has {layer.n_experts} experts, {wish.experts} are asked for",
            where="option `--experts`",
            fix=f"`--experts {min(layer.n_experts, n_target)}`, or leave the option out",
            code=errors.USAGE,
        )
    return wish.experts


def _listed(source: Checkpoint, layer: StoredLayer, family: Family, route: Routing, wish: Wish) -> Pruned:
    """The list that was given, or the one that a copy pruned before stands for."""
    kept, reason = wish.kept or (), "as listed"
    if wish.copy is not None:
        from mtpforge.pruning.recovering import recover

        found = recover(source, layer, wish.copy, stored_layer(wish.copy, family))
        kept, reason = found.kept, f"those of {wish.copy.label}, told {found}"
    if isinstance(wish.experts, int) and wish.experts != len(kept):
        raise MtpforgeError(
            f"`--keep-experts` names {len(kept)} experts, `--experts` asks for {wish.experts}",
            fix="leave `--experts` out",
            code=errors.USAGE,
        )
    route.refuse_list(kept, layer.n_experts)
    return Pruned(_FILE, kept, layer.n_experts, reason)


def _router(source: Checkpoint, layer: StoredLayer) -> Router:
    matrix = next(stored for stored in layer.modules.values() if stored.module.kind == "router")
    bias = next(ref for name, ref in layer.plain.items() if name.startswith(f"{matrix.module.name}."))

    def rows() -> Tensor:
        import torch

        source.fetch(matrix.weight_parts.values())
        return torch.cat(list(matrix.weight(Reader(source.read)).decoded()))

    return Router(reading.vector(source, bias), rows)


def _experts(source: Checkpoint, layer: StoredLayer) -> Iterable[Iterable[Tensor]]:
    """Of every expert in turn its weights, in bands."""
    members: dict[int, list[str]] = {}
    for name, stored in layer.modules.items():
        if stored.module.expert is not None:
            members.setdefault(stored.module.expert, []).append(name)
    read = [layer.modules[name] for names in members.values() for name in names]
    source.fetch(ref for stored in read for ref in stored.weight_parts.values())
    reader = Reader(source.read)
    for _, names in sorted(members.items()):
        yield (band for name in names for band in layer.modules[name].weight(reader).decoded())


def _given(name: str, values: Sequence[float], layer: StoredLayer) -> tuple[float, ...]:
    if len(values) != layer.n_experts or not all(math.isfinite(value) for value in values):
        raise MtpforgeError(
            f"the scores of `{name}` are {len(values)} numbers, the source has {layer.n_experts} experts",
            why="one finite number per expert is needed",
            fix="measure them anew on this source",
        )
    return tuple(float(value) for value in values)
