"""Foreign names end here: tensors and keys of a GGUF file as the family's own names and fields of config.json.

architecture_of(values)        the table for the file, one TOML of this folder
Architecture.refs(stored)      one tensor as refs under the family's names: one an expert of a stack
Architecture.config(...)       what planning needs of config.json

A weight that is stored in codes is a part named by its type, uint8 [out, bytes of a row]: `weight_q4_k`; plain numbers
are `weight`. What a table does not name keeps its own name in its layer, where families refuse what they do not know.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from mtpforge.checkpoint.gguf.header import Header, Listed, Stored, Value
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.ggml import GgmlType
from mtpforge.tensors import Shape, Spec, TensorRef

_ARCHITECTURE: Final = "general.architecture"
_BLOCK: Final = re.compile(r"blk\.(\d{1,9})\.(.+)")
_OUTSIDE: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_SCALE, _INPUT_SCALE = "scale", "input_scale"  # of NVFP4; the second is 1 where there was none, so it tells nothing
_WEIGHT: Final = "weight"
_MOST_EXPERTS: Final = 1 << 16  # no model has as many; each becomes a ref of its own
_STACK: Final = 3  # dimensions of [experts, out, in]


@dataclass(frozen=True, slots=True)
class Model:
    """A `[[models]]` table: model_type of an architecture, where the key has this value ("" for whatever it has)."""

    architecture: str
    model_type: str
    key: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One TOML of this folder, for one model; mla.toml says what its tables mean."""

    model: Model
    names: Mapping[str, str]
    stacked: Mapping[str, str]
    halves: Mapping[str, list[str]]
    split: Mapping[str, list[str]]
    required: Mapping[str, str]
    optional: Mapping[str, str]
    flags: Mapping[str, str]
    constants: Mapping[str, object]

    def refs(self, stored: Stored, file: str) -> Iterator[TensorRef]:
        """The tensor under the family's names."""
        block = _BLOCK.fullmatch(stored.name)
        if block is None:
            base, _, end = stored.name.rpartition(".")
            yield _ref(f"{_OUTSIDE[base]}.{_part(stored.type, end)}" if base in _OUTSIDE else stored.name, stored, file)
            return
        prefix, local = f"model.layers.{int(block[1])}.", block[2]
        base, _, end = local.rpartition(".")
        modules = self._of_experts(base, end, stored)
        for number, module in enumerate(modules):
            for ref in _experts(f"{prefix}{module}.{_part(stored.type, end)}", stored, file):
                if len(modules) > 1 and end != _SCALE:
                    height = stored.shape[1] // len(modules)
                    yield ref.rows(number * height, (number + 1) * height)
                else:
                    yield ref
        if not modules and end != _INPUT_SCALE:
            yield _ref(prefix + self._single(local, stored), stored, file)

    def _of_experts(self, base: str, end: str, stored: Stored) -> Sequence[str]:
        """The modules of which every expert's are in the tensor, () for one that is no stack of experts."""
        modules = self.halves.get(base) or [self.stacked[base]] if base in self.stacked or base in self.halves else []
        if not modules or (stored.shape or (0,))[0] > _MOST_EXPERTS:
            return ()
        is_scale = end == _SCALE and len(stored.shape) == 1
        is_stack = end == _WEIGHT and len(stored.shape) == _STACK and not stored.shape[1] % len(modules)
        return modules if is_scale or is_stack else ()

    def _single(self, local: str, stored: Stored) -> str:
        """Local name of a tensor that is one."""
        base, _, end = local.rpartition(".")
        part = _part(stored.type, end)
        if base in self.split and end == _WEIGHT:
            module, half = self.split[base]
            return f"{module}.{part.replace(_WEIGHT, half)}"
        if local in self.names:
            return self.names[local]
        return f"{self.names[base]}.{part}" if base in self.names else local

    def config(self, header: Header, tensors: Iterable[str], file: str) -> dict[str, object]:
        """Fields of config.json, by the file's keys. One that the sizes need and the file lacks is an error."""
        blocks = {found[2] for name in tensors if (found := _BLOCK.fullmatch(name))}
        config: dict[str, object] = {"model_type": self.model.model_type, **self.constants}
        for field, expression in self.required.items():
            config[field] = self._number(header.values, expression, file)
        for field, key in self.optional.items():
            value = header.values.get(f"{self.model.architecture}.{key}")
            if value is not None and not isinstance(value, Listed):
                config[field] = value
        return config | {field: tensor in blocks for field, tensor in self.flags.items()}

    def _number(self, values: Mapping[str, Value], expression: str, file: str) -> int:
        key, _, less = expression.partition(" - ")
        number = _whole(values, f"{self.model.architecture}.{key}", file)
        taken = f"{self.model.architecture}.{less}"
        number -= _whole(values, taken, file) if less and taken in values else 0
        if number <= 0:
            raise _odd(file, f"{self.model.architecture}.{expression}", f"it is {number}")
        return number


def architecture_of(values: Mapping[str, Value], file: str) -> Architecture:
    """The table of a file's architecture. One that none names, or of a model that cannot be told, is an error."""
    named = values.get(_ARCHITECTURE)
    ours = [a for a in architectures() if a.model.architecture == named]
    fitting = [a for a in ours if not a.model.key or values.get(a.model.key) == a.model.value]
    if fitting:
        return fitting[0]
    if not ours:
        known = ", ".join(sorted({a.model.architecture for a in architectures()}))
        raise MtpforgeError(
            f"no MTP layer is known for GGUF's architecture `{shown(named)}`",
            where=Where(file, inside=f"key {_ARCHITECTURE}"),
            why=f"known: {known}",
            fix="name a checkpoint of one of them",
        )
    key = ours[0].model.key
    models = ", ".join(f"{a.model.model_type} has `{a.model.value}`" for a in ours)
    raise MtpforgeError(
        f"which model `{shown(file)}` is of, it does not tell",
        where=Where(file, inside=f"key {key}"),
        why=f"architecture {shown(named)} is shared by several; here the key is `{shown(values.get(key))}`, {models}",
        fix="name the checkpoint that it was converted from: `--source ORG/NAME`",
    )


@cache
def architectures() -> tuple[Architecture, ...]:
    """Every model of every table."""
    found = sorted(file.name for file in files(__package__).iterdir() if file.name.endswith(".toml"))
    tables = (tomllib.loads((files(__package__) / name).read_text(encoding="utf-8")) for name in found)
    return tuple(
        Architecture(
            Model(**model), table["names"], table["stacked"], table["halves"], table["split"],
            table["config"], table["optional"], table["flags"], table["constants"],
        )
        for table in tables
        for model in table["models"]
    )  # fmt: skip


def _part(stored_as: GgmlType, end: str) -> str:
    """How the part is called: by its type where it is a weight."""
    return stored_as.part if end == _WEIGHT else end


def _ref(name: str, stored: Stored, file: str) -> TensorRef:
    return TensorRef(name, _spec(stored.type, stored.shape), file, stored.start, stored.stop)


def _experts(name: str, stored: Stored, file: str) -> Iterator[TensorRef]:
    """One ref an expert: its share of the bytes, in order."""
    first, (before, _, after) = _ref(name, stored, file).part(0), name.partition("*")
    share = first.stop - first.start
    for number in range(stored.shape[0]):
        start = first.start + number * share
        yield TensorRef(f"{before}{number}{after}", first.spec, file, start, start + share)


def _spec(stored_as: GgmlType, shape: Shape) -> Spec:
    if stored_as.dtype:
        return Spec(stored_as.dtype, shape)
    return Spec("U8", (*shape[:-1], shape[-1] // stored_as.block * stored_as.n_bytes))


def _whole(values: Mapping[str, Value], key: str, file: str) -> int:
    value = values.get(key)
    if value is None:
        raise _odd(file, key, "the file has no such key")
    if type(value) is not int:
        raise _odd(file, key, "it is a list" if isinstance(value, Listed) else f"it is {shown(repr(value))}")
    return value


def _odd(file: str, key: str, why: str) -> MtpforgeError:
    return MtpforgeError(
        f"`{shown(key)}` of `{shown(file)}` must be a positive whole number",
        where=Where(file, inside=f"key {shown(key)}"),
        why=f"{why}; the sizes of the MTP layer depend on it",
        fix="name a file that llama.cpp's converter wrote, or the checkpoint that it was converted from",
    )
