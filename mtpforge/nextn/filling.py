"""fill(): a transformers module gets its weights from a checkpoint, by our own formats, or an error says why not.

    parameter of the module               tensors of the checkpoint
    [out, in], `<stem>.weight`            the parts of one stored matrix, `<stem>.<suffix>`, in any format
    [experts, 2 * width, in]              `<stem>.<n>.gate_proj.*` above `<stem>.<n>.up_proj.*`, expert by expert
    [experts, in, width]                  `<stem>.<n>.down_proj.*`
    anything else, buffers too            one plain tensor of the same name and shape

transformers itself reads some quantized layouts wrong, and leaves what it does not find at random values with a
warning. Here every parameter and every buffer that belongs into a checkpoint is filled, or nothing is returned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, TypeAlias

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import place_in
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.families.family import Module
from mtpforge.formats import label, split
from mtpforge.sourcing import StoredModule, recognised
from mtpforge.tensors import Spec, TensorRef
from mtpforge.weights import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtpforge.weights.kernels import RowKernels

ByStem: TypeAlias = Mapping[str, Sequence[str]]

_FLOATS: Final = frozenset({"BF16", "F16", "F32"})
_MATRIX: Final = 2
_STACK: Final = 3
# transformers models/glm_moe_dsa (5.23.0), GlmMoeDsaExperts: gate above up in one matrix an expert.
_FUSED: Final = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_EXPERT: Final = re.compile(r"\.experts\.\d+\.")
_LAYER: Final = re.compile(r"model\.layers\.\d+\.")


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place for one stored tensor or matrix. name: in the checkpoint, of a matrix without its last part."""

    name: str
    into: Tensor
    is_matrix: bool


def fill(
    module: nn.Module,
    checkpoint: Checkpoint,
    prefix: str,
    *,
    without: Collection[str] = (),
    kernels: RowKernels | None = None,
    names: ByStem | None = None,
) -> frozenset[str]:
    """Fill a module from the tensors `<prefix><name>`; the checkpoint's names that were used come back.

    Values are those that an engine computes with: weights and norms rounded to BF16, in the float dtype and on the
    device of the module; what is stored as F32 (e_score_correction_bias) stays as it is. Parts that only concern
    activations (input_scale) are used up and not read. Peak memory is the module's own and a band of rows.

    `without`: submodules that stay as they are (`mlp.experts`). kernels: decode by compiled kernels where a format has
    one; the values are the same. names: `by_stem(checkpoint)`, for whoever fills many modules from one checkpoint.

    MtpforgeError where a tensor is missing, of another shape, of no known format or holds a NaN or Inf. What of the
    checkpoint's tensors under the prefix was not used is the caller's to judge.
    """
    import torch

    slots = _slots(module, prefix, without)
    parts = _parts(checkpoint, names or by_stem(checkpoint), slots)
    located = checkpoint.locate(sorted({name for held in parts for name in held.values()}))
    stored = [_stored(checkpoint, slot, held, located) for slot, held in zip(slots, parts, strict=True)]
    _refuse_odd_experts(checkpoint, stored)
    checkpoint.fetch(ref for matrix in stored for ref in _read(matrix))
    with torch.no_grad():
        for slot, matrix in zip(slots, stored, strict=True):
            _fill(slot.into, checkpoint, matrix, kernels)
    return frozenset(located)


def by_stem(checkpoint: Checkpoint) -> ByStem:
    """The checkpoint's tensor names, those that differ in their last part alone together: the parts of one matrix."""
    found: dict[str, list[str]] = {}
    for name in sorted(checkpoint.names):
        found.setdefault(split(name)[0], []).append(name)
    return found


def empty(make: Callable[[], nn.Module], device: str = "cpu") -> nn.Module:
    """The module that `make` makes, float32, with memory that nothing was written to: for `fill`.

    For modules whose every buffer is in checkpoints; ValueError for another, since it would stay undefined.
    """
    import torch

    with torch.device("meta"):
        module = make()
    stored = module.state_dict().keys()
    if strays := [name for name, _ in module.named_buffers() if name not in stored]:
        raise ValueError(f"{strays[0]} is computed, not stored")
    return module.to_empty(device=device).float().eval().requires_grad_(requires_grad=False)


def _slots(module: nn.Module, prefix: str, without: Collection[str]) -> list[_Slot]:
    """The places of a module: parameters, and the buffers that checkpoints hold."""
    own = module.state_dict(keep_vars=True)
    found: list[_Slot] = []
    for name, tensor in own.items():
        if any(name == left or name.startswith(f"{left}.") for left in without):
            continue
        whole = prefix + name
        if tensor.ndim == _STACK:
            found += _stacked(whole, tensor)
        elif tensor.ndim == _MATRIX and whole.endswith(".weight"):
            found.append(_Slot(whole.removesuffix(".weight"), tensor, is_matrix=True))
        else:
            found.append(_Slot(whole, tensor, is_matrix=False))
    return found


def _stacked(name: str, stack: Tensor) -> Iterator[_Slot]:
    stem, _, last = name.rpartition(".")
    if last not in _FUSED:
        raise ValueError(f"{name} is no stack of experts that is known")
    for number in range(len(stack)):
        rows = stack.data[number].chunk(len(_FUSED[last]))
        for part, into in zip(_FUSED[last], rows, strict=True):
            yield _Slot(f"{stem}.{number}.{part}", into, is_matrix=True)


def _parts(checkpoint: Checkpoint, names: ByStem, slots: list[_Slot]) -> list[dict[str, str]]:
    """Of every slot: suffix -> tensor name. Names of other slots are no parts (a bias, a correction bias)."""
    plain = {slot.name for slot in slots if not slot.is_matrix}
    dropped = [rule.pattern for rule in family_of(checkpoint.config).dropped]
    found = []
    for slot in slots:
        near = names.get(slot.name if slot.is_matrix else split(slot.name)[0], ())
        held = [name for name in near if (name not in plain if slot.is_matrix else name == slot.name)]
        held = [name for name in held if not _is(name, dropped)]
        if not held:
            raise MtpforgeError(
                f"`{shown(slot.name)}` is missing",
                where=checkpoint.label,
                why="the layer cannot be computed without it: it would stay at random values",
                fix="download the checkpoint again, or name another one",
            )
        found.append({split(name)[1] if slot.is_matrix else "": name for name in held})
    return found


def _is(name: str, patterns: list[str]) -> bool:
    local = _LAYER.sub("", name, count=1)
    return local != name and any(fnmatchcase(local, pattern) for pattern in patterns)


def _stored(
    checkpoint: Checkpoint, slot: _Slot, held: dict[str, str], located: dict[str, TensorRef]
) -> StoredModule | TensorRef:
    """What is read for a slot: a matrix of a known format, or a plain tensor of its shape."""
    shape = tuple(slot.into.shape)
    parts = {suffix: located[name] for suffix, name in held.items()}
    if slot.is_matrix:
        module = Module(slot.name, slot.name, "", shape)
        return recognised(checkpoint, module, parts, what=f"`{shown(slot.name)}`")
    ref = parts[""]
    if ref.spec.shape != shape or ref.spec.dtype not in _FLOATS:
        raise MtpforgeError(
            f"`{shown(slot.name)}` is {ref.spec}, by config.json it is {Spec('BF16', shape)}",
            where=f"{checkpoint.label}, {shown(ref.file)}",
            why="config.json and tensors are of different models, or a header lies",
            fix="download the checkpoint again, or name another one",
        )
    return ref


def _refuse_odd_experts(checkpoint: Checkpoint, stored: list[StoredModule | TensorRef]) -> None:
    """MtpforgeError where an expert is stored in another way than its likes: a lost zero point makes it symmetric."""
    first: dict[str, StoredModule] = {}
    for matrix in stored:
        if isinstance(matrix, TensorRef):
            continue
        like = first.setdefault(_EXPERT.sub(".experts.*.", matrix.module.name), matrix)
        if like.quantization != matrix.quantization:
            name, other = shown(matrix.module.name), shown(like.module.name)
            raise MtpforgeError(
                f"`{name}` is {label(matrix.quantization)}, `{other}` {label(like.quantization)}",
                where=checkpoint.label,
                why="engines run all experts of a layer in one scheme: a tensor of one of the two is missing",
                fix="download the checkpoint again, or name another one",
            )


def _read(stored: StoredModule | TensorRef) -> list[TensorRef]:
    return [stored] if isinstance(stored, TensorRef) else list(stored.weight_parts.values())


def _fill(into: Tensor, checkpoint: Checkpoint, stored: StoredModule | TensorRef, kernels: RowKernels | None) -> None:
    import torch

    reader = Reader(checkpoint.read)
    if isinstance(stored, TensorRef):
        values = reader.tensor(stored).float()
        exact = stored.spec.dtype == "F32"
        into.copy_(_finite(checkpoint, stored, values if exact else values.to(torch.bfloat16)))
        return
    exact, first = stored.quantization.dtype == "F32", 0
    for band in stored.weight(reader).decoded(kernels):
        ref = next(iter(stored.parts.values()))
        values = _finite(checkpoint, ref, band if exact else band.to(torch.bfloat16))
        into[first : first + len(band)].copy_(values)
        first += len(band)


def _finite(checkpoint: Checkpoint, ref: TensorRef, values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise MtpforgeError(
            f"`{shown(ref.name)}` holds values that are no numbers",
            where=place_in(checkpoint, ref.file),
            fix="download the checkpoint again, or name another one",
        )
    return values
