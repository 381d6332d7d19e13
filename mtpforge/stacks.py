"""unstacked(): experts that are stored as one tensor for all of them, as one tensor each. Headers only.

    mlp.experts.gate_up_proj          [E, 2 * width, in]    gate above up: transformers' own modules (5.23.0,
                                                            models/glm_moe_dsa, GlmMoeDsaExperts), compressed-tensors
    mlp.experts.down_proj             [E, in, width]
    mlp.experts.gate_proj.SUFFIX      [E, ...]              a stack of any format's parts; `_SUFFIX` is read too
    mlp.experts.gate_up_proj_blocks   U8 [E, 2 * width, in / 32, 16]   OpenAI's MXFP4: rows are gate, up, gate, up
    mlp.experts.gate_up_proj_scales   U8 [E, 2 * width, in / 32]       (transformers 5.23.0 integrations/mxfp4.py)

What comes back are ranges of the same files: an expert that is not asked for is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from mtpforge import formats
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.families.family import MOST_EXPERTS, Module
from mtpforge.formats.format import PartRows
from mtpforge.tensors import Shape, Spec, TensorRef

Parts = dict[str, TensorRef]

_SPELLED: Final = {"": "weight", "scale_inv": "weight_scale_inv", "scale": "weight_scale"}  # as transformers says it
_OPENAI: Final = {"blocks": "weight_packed", "scales": "weight_scale"}
_SHAPE: Final = "weight_shape"
_BLOCK_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class _Stack:
    """Parts that hold every expert's `members`, whose rows lie above each other, or take turns."""

    name: str
    members: tuple[Module, ...]
    parts: Mapping[str, TensorRef]
    take_turns: bool

    @property
    def shape(self) -> Shape:
        """[out, in] of one expert's matrix."""
        return sum(member.shape[0] for member in self.members), self.members[0].shape[1]


def unstacked(
    family: Family, config: Mapping[str, object], block: Mapping[str, object], refs: Mapping[str, TensorRef]
) -> dict[str, TensorRef]:
    """The tensors of a layer by local name, those of stacks replaced by parts of each expert under its own name.

    block: the raw quantization config. MtpforgeError where a stack does not fit the config, is in no known format, has
    parts for different numbers of experts, or where an expert is stored beside it once more.
    """
    members = _members(family, config)
    pattern = re.compile(rf"({'|'.join(map(re.escape, members))})(?:_([^.]+))?")
    stacks: dict[str, dict[str, TensorRef]] = {}
    left: dict[str, TensorRef] = {}
    for name, ref in refs.items():
        module, suffix = formats.split(name)
        if module in members:
            stacks.setdefault(module, {})[suffix] = ref
        elif found := pattern.fullmatch(name):
            stacks.setdefault(found[1], {})[found[2] or ""] = ref
        else:
            left[name] = ref
    for name, parts in stacks.items():
        for local, ref in _experts(_stack(name, members[name], parts), block):
            if local in left:
                raise _wrong(ref, f"`{shown(local)}` is stored twice", f"alone, and in the stack `{shown(name)}`")
            left[local] = ref
    return left


def _members(family: Family, config: Mapping[str, object]) -> dict[str, tuple[Module, ...]]:
    """Name of a stack -> the modules of an expert that it may hold: one projection, or those that run as one."""
    named: dict[str, tuple[Module, ...]] = {}
    for module in family.modules(config, 1):
        if module.expert is not None:
            named[module.template.replace(".*.", ".")] = (module,)
            if module.fused:
                fused = module.fused.replace(".0.", ".")
                named[fused] = (*named.get(fused, ()), module)
    return named


def _stack(name: str, members: tuple[Module, ...], parts: Mapping[str, TensorRef]) -> _Stack:
    is_openai = parts.keys() >= _OPENAI.keys()
    spelled = _OPENAI if is_openai else _SPELLED
    named = {spelled.get(suffix, suffix): ref for suffix, ref in parts.items()}
    if is_openai:
        named["weight_packed"] = _joined_blocks(named["weight_packed"])
    return _Stack(name, members, named, take_turns=is_openai)


def _joined_blocks(ref: TensorRef) -> TensorRef:
    """[E, out, in / 32, 16] as [E, out, in / 2]: the same bytes."""
    *lead, n_blocks, n_bytes = ref.spec.shape if len(ref.spec.shape) > 1 else (*ref.spec.shape, 0, 0)
    if n_bytes != _BLOCK_BYTES:
        raise _wrong(ref, f"`{shown(ref.name)}` is {ref.spec}", f"blocks of MXFP4 are {_BLOCK_BYTES} bytes each")
    return replace(ref, spec=Spec(ref.spec.dtype, (*lead, n_blocks * n_bytes)))


def _experts(stack: _Stack, block: Mapping[str, object]) -> Iterator[tuple[str, TensorRef]]:
    n_experts = _count(stack)
    for number in range(n_experts):
        parts = {suffix: _of_expert(suffix, ref, number, n_experts) for suffix, ref in stack.parts.items()}
        rows = _rows_in_parts(stack, parts, block) if len(stack.members) > 1 else {}
        first = 0
        for at, member in enumerate(stack.members):
            span = first, first + member.shape[0]
            own = member.template.replace("*", str(number))
            for suffix, ref in parts.items():
                yield f"{own}.{suffix}", _cut(stack, suffix, ref, rows.get(suffix), at, span)
            first = span[1]


def _count(stack: _Stack) -> int:
    """Experts of the stack, which all of its parts must agree on."""
    counts = {
        suffix: ref.spec.shape[0] for suffix, ref in stack.parts.items() if suffix != _SHAPE and ref.spec.count > 1
    }
    ref = next(iter(stack.parts.values()))
    if not counts or len(set(counts.values())) > 1 or not min(counts.values()):
        said = ", ".join(f"{shown(suffix)} {n}" for suffix, n in sorted(counts.items())) or str(ref.spec)
        raise _wrong(ref, f"`{shown(stack.name)}` is no stack of experts", f"its parts hold: {said}")
    count = next(iter(counts.values()))
    if count * len(stack.parts) > MOST_EXPERTS:  # each becomes a ref of its own
        what = f"`{shown(stack.name)}` holds more experts than any model has"
        raise _wrong(ref, what, f"its parts are {len(stack.parts):,}, of {count:,} experts")
    return count


def _of_expert(suffix: str, ref: TensorRef, number: int, n_experts: int) -> TensorRef:
    """One expert's part. `weight_shape` [E, out, in] is of the whole stack, a single number of all experts."""
    shape = ref.spec.shape
    named = replace(ref, name=f"{ref.name}[{number}]")
    if suffix == _SHAPE and len(shape) == 1:
        return replace(ref.rows(1, 3), name=named.name) if shape[0] > 2 else named  # noqa: PLR2004 -- E, out, in
    if ref.spec.count == 1 < n_experts or not shape:
        return named
    return named.part(number)


def _rows_in_parts(stack: _Stack, parts: Parts, block: Mapping[str, object]) -> Mapping[str, PartRows]:
    """How rows of one expert's joint matrix lie in its parts."""
    specs = {suffix: ref.spec for suffix, ref in parts.items()}
    for form in formats.FORMATS.values():
        if quantization := form.recognise(specs, stack.shape, block):
            return form.rows_in_parts(stack.shape, quantization, specs)
    ref = next(iter(parts.values()))
    why = formats.explain(specs, stack.shape, block)
    raise _wrong(ref, f"`{shown(stack.name)}` is stored in no known way", f"of one expert, [out, in] {why}")


def _cut(stack: _Stack, suffix: str, ref: TensorRef, lie: PartRows | None, at: int, rows: tuple[int, int]) -> TensorRef:
    """Rows of a member in a part of the joint matrix; what has no rows belongs to all members."""
    if lie is None:
        return ref
    if stack.take_turns:
        turns = len(stack.members)
        return replace(ref.every(turns, at), name=f"{ref.name}[{at}::{turns}]")
    if rows[1] % lie.rows:  # members are of one height: where the first may be cut, all may
        why = f"{lie.rows} rows share an entry of {shown(suffix)}, and {stack.members[at].name} ends at row {rows[1]}"
        raise _wrong(ref, f"`{shown(stack.name)}` cannot be cut into its projections", why)
    first, last = lie.span(*rows)
    cut = ref.columns(first, last) if lie.axis else ref.rows(first, last)
    return replace(cut, name=f"{ref.name}[{':, ' if lie.axis else ''}{first}:{last}]")


def _wrong(ref: TensorRef, what: str, why: str) -> MtpforgeError:
    return MtpforgeError(
        what,
        where=ref.place,
        why=why,
        fix="store each expert by itself, as the published release does, or name another `--source`",
    )
