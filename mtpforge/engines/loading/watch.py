"""Sees every copy into a parameter: from which tensor, which part, with which change of dtype or shape."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .coverage import Box, Coverage, box_of

_ATEN = torch.ops.aten
_NOTHING = re.compile(r"(?!)")


@dataclass(slots=True, eq=False)
class Read:
    """A tensor that the loader was given: where it went, and how much of it."""

    name: str
    dtype: str
    used: Coverage
    times: int = 0
    parameters: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Origin:
    """A storage whose values come from the draft: read from it, or made from what was read."""

    root: torch.Tensor
    cover: Coverage
    reads: list[Read]
    dtype: torch.dtype


class Cast(NamedTuple):
    """A conversion on the way into a parameter."""

    source: str
    got: torch.dtype
    parameter: str
    want: torch.dtype


class Spread(NamedTuple):
    """A broadcast on the way into a parameter."""

    source: str
    got: tuple[int, ...]
    parameter: str
    want: tuple[int, ...]


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  the one identity that views share, on meta too


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """A dispatch mode around load_weights.

    held_back: names of tensors that the engine keeps until others have come, so that their values stay of interest
    after their turn.
    """

    def __init__(self, model: torch.nn.Module, held_back: re.Pattern[str] = _NOTHING) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held_back = held_back
        self.parameters = {_key(p): (name, p) for name, p in model.named_parameters()}
        self.written = {name: Coverage(p.shape) for name, p in model.named_parameters()}
        self.reads: dict[str, Read] = {}
        self.casts: list[Cast] = []
        self.spreads: list[Spread] = []
        self.orphans: list[str] = []
        self._origins: dict[int, Origin] = {}
        self._derived: list[tuple[Coverage, Coverage, Box | None]] = []  # made, made from, which part of it
        self._last_item: Origin | None = None

    def feed(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The loader's tensors, unchanged; each is known while it is in use."""
        for name, tensor in tensors:
            read = self.reads.setdefault(
                name, Read(name, str(tensor.dtype).removeprefix("torch."), Coverage(tensor.shape))
            )
            read.times += 1
            self._origins[_key(tensor)] = Origin(tensor, read.used, [read], tensor.dtype)
            yield name, tensor
            if not self._held_back.search(name):
                self._origins = {key: o for key, o in self._origins.items() if read not in o.reads}

    def settle(self) -> None:
        """Count a tensor as used when what was made from it (transposed, converted, decoded) was used.

        Of what was spread out, as scales over their blocks are, a part may be left: edge blocks are cut.
        """
        for made, cover, box in reversed(self._derived):
            is_spread = math.prod(made.shape) > math.prod(cover.shape)
            if made.unknown or (made.boxes and (is_spread or not made.missing())):
                cover.add(box)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  an OpOverload, untyped in torch
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  whatever the operator returns
        """Run the operator, note what it did to a parameter."""
        packet = func.overloadpacket
        if packet is _ATEN._local_scalar_dense:  # noqa: SLF001  Tensor.item()
            self._last_item = self._origins.get(_key(args[0]))
            if args[0].is_meta:  # comparisons of values that are not there: no difference
                return False if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        out = func(*args, **(kwargs or {}))
        if packet in (_ATEN.copy_, _ATEN.fill_):
            self._note_write(args[0], args[1], packet.__name__)
        elif isinstance(out, torch.Tensor) and _key(out) not in self.parameters and _key(out) not in self._origins:
            self._note_derived(out, args)
        return out

    def _note_derived(self, out: torch.Tensor, args: tuple[Any, ...]) -> None:
        tensors = [t for a in args for t in (a if isinstance(a, list | tuple) else (a,)) if isinstance(t, torch.Tensor)]
        origins = [(t, self._origins[_key(t)]) for t in tensors if _key(t) in self._origins]
        if not origins:
            return
        made = Coverage(out.shape)
        self._derived += [(made, origin.cover, box_of(t, origin.root)) for t, origin in origins]
        reads = list(dict.fromkeys(read for _, origin in origins for read in origin.reads))
        seen, origin = origins[0]
        # Bytes that were seen as another dtype begin as that: words of eight codes as pairs of them, say.
        dtype = origin.dtype if seen.dtype == origin.root.dtype else seen.dtype
        self._origins[_key(out)] = Origin(out, made, reads, dtype)

    def _note_write(self, to: torch.Tensor, value: object, operator: str) -> None:
        entry = self.parameters.get(_key(to))
        if entry is None:
            return
        name, parameter = entry
        self.written[name].add(box_of(to, parameter))
        origin = self._origins.get(_key(value)) if isinstance(value, torch.Tensor) else self._last_item
        if origin is None:
            self.orphans.append(f"{name} <- {operator}")
            return
        source = " + ".join(read.name for read in origin.reads)
        for read in origin.reads:
            read.parameters.add(name)
        got = origin.dtype
        if isinstance(value, torch.Tensor):
            origin.cover.add(box_of(value, origin.root))
            if value.numel() != to.numel():
                self.spreads.append(Spread(source, tuple(value.shape), name, tuple(to.shape)))
            # A view with another dtype is a reinterpretation, and meant; a conversion is judged by its start.
            if origin.dtype == origin.root.dtype:
                got = value.dtype
        else:
            origin.cover.add(tuple((0, n) for n in origin.root.shape))
        if got != to.dtype and len(origin.reads) == 1:
            self.casts.append(Cast(source, got, name, to.dtype))
