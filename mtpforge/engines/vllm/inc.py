"""vLLM's reading of an AutoRound block (`inc`): integers packed as GPTQ or AWQ pack them, bits and groups by name.

    extra_config             name or expression -> bits, group_size, sym of its own; 16 bits are dense. A name counts
                             for the matrix itself, for every matrix that ends in it, for a part of a fused one; an
                             expression wherever it is found. What is below the stack of experts is not asked for
    block_name_to_quantize   starts of the names that are quantized

Source: vllm quantization/inc/{inc,config_parser}.py, inc/schemes/inc_wna16_*.py (0.33.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from mtpforge.checkpoint.quantization import QuantConfig
from mtpforge.engines.expressions import found_in, quoted
from mtpforge.engines.vllm import auto_awq, auto_gptq
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.refusals import needed, refused, unmade
from mtpforge.errors import shown
from mtpforge.tensors import BF16, Quantization

Stated: TypeAlias = tuple[object, object, object]  # bits, group size, symmetric

_WHAT: Final = "vLLM takes no such AutoRound block"
BLOCKS: Final = ("block_name_to_quantize", "to_quant_block_names")
GPTQ: Final = "auto_round:auto_gptq"
AWQ: Final = "auto_round:auto_awq"
_FORMATS: Final = (GPTQ, AWQ, "auto_round:fp8", "auto_round:llm_compressor")
_BACKENDS: Final = ("auto", "gptq", "gptq:marlin", "awq", "awq:marlin", "marlin")
_DENSE_BITS: Final = 16
_BITS: Final = (4, 8)
_SPECIAL: Final = frozenset(r"*+?^$()[]{}|\\")  # what makes a key of extra_config an expression


def decide(block: QuantConfig, asked: Asked) -> tuple[Quantization, str]:
    """How vLLM would build a matrix, and which entry decided."""
    packing, backend = _validated(block.raw)
    (bits, size, symmetric), reason = _stated(block.raw, asked)
    if not isinstance(bits, int):
        raise refused(_WHAT, "extra_config", f"bits {shown(bits)} are no number")
    if bits >= _DENSE_BITS:
        return BF16, reason
    if bits in range(2, 8) and bits not in _BITS:
        raise unmade(f"AutoRound weights of {bits} bits", "bits")
    if "gptq" in packing or "gptq" in backend:
        if bits not in _BITS or not symmetric:
            if asked.experts and bits in _BITS:
                raise unmade("AutoRound experts with zero points in GPTQ's packing", "sym")
            raise _unsupported(bits, symmetric)
        if backend != "auto" and "marlin" not in backend and not asked.experts:
            raise refused(_WHAT, "backend", "`is not supported`: a backend without Marlin kernels")
        return auto_gptq.quantization(asked, bits, size), reason
    if bits != auto_awq.BITS:
        raise refused(_WHAT, "bits", f"`Unsupported num_bits = {bits}. Supported: 4` in AWQ's packing")
    if symmetric:
        raise unmade("symmetric AutoRound weights in AWQ's packing", "sym")
    return auto_awq.quantization(asked, size), reason


def _unsupported(bits: object, symmetric: object) -> Exception:
    why = f"`INC quantization with bits={shown(bits)}, sym={shown(symmetric)} is not supported`"
    return refused(_WHAT, "bits", why)


def _validated(raw: Mapping[str, object]) -> tuple[str, str]:
    """Packing and backend; INCConfig.__init__ and its validation."""
    bits, size = needed(raw, "bits"), needed(raw, "group_size")
    kind = str(raw.get("data_type", "int"))
    packing = str(raw["packing_format"]) if raw.get("packing_format") is not None else GPTQ
    backend = str(raw.get("backend", raw.get("vllm_backend", "auto")))
    if bits not in range(2, 9):
        raise refused(_WHAT, "bits", f"`Unsupported weight_bits: {shown(bits)}`")
    if kind != "int":
        if kind in ("fp", "fp8") or "mx_fp" in kind:
            raise unmade(f"AutoRound weights of data_type {shown(kind)}", "data_type")
        raise refused(_WHAT, "data_type", f"`Unsupported data_type: {shown(kind)}`")
    if packing not in _FORMATS:
        raise refused(_WHAT, "packing_format", f"`Unsupported packing_format: {shown(packing)}`")
    if packing not in (GPTQ, AWQ):
        raise refused(
            _WHAT, "packing_format", "`INC int quantization only supports packing_format` auto_gptq, auto_awq"
        )
    if backend not in _BACKENDS:
        raise refused(_WHAT, "backend", f"`Unsupported backend: {shown(backend)}`")
    if not isinstance(size, int):
        raise refused(_WHAT, "group_size", "`INC int quantization requires scalar group_size`")
    return packing, backend


def _stated(raw: Mapping[str, object], asked: Asked) -> tuple[Stated, str]:
    """INCConfig.get_quant_method and INCConfigParser._resolve_raw: what holds for a matrix, and what says so."""
    extra = raw.get("extra_config")
    named = {str(k): v for k, v in extra.items() if isinstance(v, Mapping)} if isinstance(extra, Mapping) else {}
    for entry in (asked.name, f"model.{asked.name}"):
        bits = named.get(entry, {}).get("bits", _DENSE_BITS)
        if entry in named and isinstance(bits, int) and bits >= _DENSE_BITS:
            return (bits, -1, True), _by(entry)
    ending = [entry for entry in named if asked.name == entry or asked.name.endswith(f".{entry}")]
    if ending:
        entry = asked.name if asked.name in named else ending[0]
        return _of(raw, named[entry], quantized=True), _by(entry)
    quantized, reason = _by_default(raw, asked)
    if asked.is_fused and (found := [next(_entries(named, part), "") for part in asked.parts]) and any(found):
        stated = [_of(raw, named.get(entry, {}), quantized=quantized) for entry in found]
        if len(set(stated)) > 1:
            raise refused(
                f"the target gives the parts of `{asked.name}` different configs",
                "extra_config",
                "`Fused module requires consistent quant config`",
                "make their entries alike in the target's config",
            )
        return stated[0], _by(next(filter(None, found)))
    entry = next(_entries(named, asked.name), "")
    return _of(raw, named.get(entry, {}), quantized=quantized), _by(entry) if entry else reason


def _by(entry: str) -> str:
    return f"extra_config entry `{quoted(entry)}`"


def _by_default(raw: Mapping[str, object], asked: Asked) -> tuple[bool, str]:
    key = next((key for key in BLOCKS if key in raw), BLOCKS[0])
    blocks = raw.get(key)
    if not blocks:
        return not asked.is_head, "lm_head is not quantized" if asked.is_head else "method auto-round, no extra_config"
    names = blocks.split(",") if isinstance(blocks, str) else [*map(str, blocks if isinstance(blocks, list) else ())]
    start = next((name for name in names if asked.name.startswith(name)), None)
    return start is not None, f"{key} entry `{quoted(start)}`" if start is not None else f"no {key} entry"


def _of(raw: Mapping[str, object], entry: Mapping[str, object], *, quantized: bool) -> Stated:
    bits, size, symmetric = (raw["bits"], raw["group_size"], raw.get("sym", True)) if quantized else (16, -1, True)
    return entry.get("bits", bits), entry.get("group_size", size), entry.get("sym", symmetric)


def _entries(named: Mapping[str, Mapping[str, object]], name: str) -> Iterator[str]:
    """Entries for a name: its own, else the expressions that are found in it; one that cannot be followed is none."""
    if name in named:
        yield name
        return
    for entry in named:
        if _SPECIAL.intersection(entry) and found_in(entry, name):
            yield entry
