"""What vLLM keeps of a token on every rank: of each layer a latent vector, or keys and values; and of indexers a key.

Latent vectors and keys of indexers are not dealt out over tensor-parallel ranks: `max_tp_shards` is 1 in
MLAAttention.get_kv_cache_spec (model_executor/layers/attention/mla_attention.py) and in DeepseekV32IndexerCache
(models/deepseek_v2.py, both 0.33.0). Key and value heads are, down to one a rank (models/glm4_moe.py, num_kv_heads).
Sizes and layouts of a class are data of its file in `classes/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.engines.engine import KvCache, Serving
from mtpforge.engines.vllm.draft_classes import CacheClass, draft_class
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.families.sizes import evaluate, whole_number

# What a user may ask for, as `vllm serve --kv-cache-dtype` spells it (config/cache.py, 0.33.0); MLA takes no others.
# The last two are layouts of sparse attention.
DTYPES: Final = ("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_ds_mla", "nvfp4_ds_mla")


def kv_cache(target: Checkpoint, family: Family, serving: Serving) -> KvCache | None:
    """What a token takes on one rank beside this target, its MTP layer included; None for a class without such facts.

    MtpforgeError for a dtype that vectors of this size are not kept in.
    """
    known = draft_class(family).cache
    if known is None:
        return None
    text = family.text(target.config)
    dtype = _taken(serving.kv_cache_dtype, known, target.quantization)
    with errors_of(target):
        n_layers = family.layer(target.config)
        values = evaluate(known.values, text) * _heads(known, text, serving)
        kept = (n_layers + 1) * _value_bytes(dtype, known, values)
        if known.key:
            key = evaluate(known.key, text)
            n_keys = sum(_has_indexer(layer, n_layers, text) for layer in range(n_layers + 1))
            kept += n_keys * (key + key // known.key_block * known.key_scale_bytes)
    return KvCache(dtype, kept)


def _heads(known: CacheClass, text: Mapping[str, object], serving: Serving) -> int:
    """How many heads' values one rank keeps: 1 where they are no head's."""
    return max(whole_number(text, known.heads) // max(serving.tensor_parallel, 1), 1) if known.heads else 1


def _value_bytes(dtype: str, known: CacheClass, n_values: int) -> int:
    """So many values of a layer; MtpforgeError where they cannot be kept so."""
    if dtype not in known.packed and dtype not in known.widths:
        raise MtpforgeError(
            f"vLLM keeps nothing of this model as {dtype}",
            where="option `--kv-cache-dtype`",
            why="it is a layout of sparse attention, which the model has none of",
            fix="`--kv-cache-dtype fp8`",
            code=errors.USAGE,
        )
    if dtype not in known.packed:
        return known.widths[dtype] * n_values
    if n_values != known.packed_values:
        raise MtpforgeError(
            f"vLLM keeps no vectors of {n_values} values as {dtype}",
            where="option `--kv-cache-dtype`",
            why=f"its kernels pack {known.packed_values}, `{known.values}` of GLM-5.2",
            fix="`--kv-cache-dtype bfloat16`",
            code=errors.USAGE,
        )
    return known.packed[dtype]


def _taken(asked: str, known: CacheClass, block: Mapping[str, object]) -> str:
    """The layout that vLLM makes of what is asked for."""
    stated = _stated(block) if asked == "auto" else ""
    return stated or known.taken_as.get(asked, asked)


def _stated(block: Mapping[str, object]) -> str:
    """What a block of ModelOpt says of the cache, "" for nothing.

    Source: utils/torch_utils.py, get_kv_cache_quant_algo_string (0.33.0).
    """
    if not str(block.get("quant_method", "")).startswith("modelopt"):
        return ""
    inner = block.get("quantization")
    stated = [
        where.get(key)
        for key in ("kv_cache_scheme", "kv_cache_quant_algo")
        for where in ((inner if isinstance(inner, Mapping) else block), block)
    ]
    scheme = next(filter(None, stated), None)
    if isinstance(scheme, Mapping):
        found = (scheme.get("dynamic"), scheme.get("num_bits"), scheme.get("type"))
        return "fp8_e4m3" if found == (False, 8, "float") else ""
    return "fp8_e4m3" if isinstance(scheme, str) and scheme.lower() == "fp8" else ""


def _has_indexer(layer: int, n_layers: int, text: Mapping[str, object]) -> bool:
    """Whether a layer has its own indexer (models/deepseek_v32/attention.py); an MTP layer always has.

    `indexer_types` says the same to transformers; vLLM does not read it.
    """
    if layer >= n_layers:
        return True
    pattern = text.get("index_topk_pattern")
    if pattern is not None:
        return not (isinstance(pattern, str | list) and layer < len(pattern) and pattern[layer] == "S")
    every = whole_number(text, "index_topk_freq") if text.get("index_topk_freq") is not None else 1
    offset = text.get("index_skip_topk_offset")
    return max(layer - (offset if isinstance(offset, int) else 2) + 1, 0) % every == 0
