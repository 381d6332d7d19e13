"""What a draft's scheme saves on each rank against the target's own, and how many tokens of KV cache fit in there."""

from __future__ import annotations

from collections.abc import Mapping

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine, Serving
from mtpforge.engines.expected import expected
from mtpforge.families import Family
from mtpforge.scheme import Scheme


def savings(
    engine: Engine, target: Checkpoint, family: Family, own: Scheme | None, wanted: Scheme, serving: Serving, n: int
) -> dict[str, object]:
    """Facts of the plan, for a draft of `n` experts; bytes on one rank.

    kv_cache_dtype, kv_bytes_per_token: of target and draft together, where the engine's rules say. saves_against (the
    target's own scheme), saves_bytes_per_rank and saves_kv_tokens: only where the draft is of another; negative where
    it takes more.
    """
    cache = engine.kv_cache(target, family, serving)
    found: dict[str, object] = {}
    if cache is not None:
        found |= {"kv_cache_dtype": cache.dtype, "kv_bytes_per_token": cache.token_bytes}
    if own is None or _same(own, wanted, family, target.config):
        return found
    config, layer = target.config, family.layer(target.config)
    taken = [engine.memory(family, config, expected(s, family, config, layer, n), serving) for s in (own, wanted)]
    saved = taken[0] - taken[1]
    found |= {"saves_against": own.name, "saves_bytes_per_rank": saved}
    return found if cache is None else {**found, "saves_kv_tokens": saved // cache.token_bytes}


def _same(own: Scheme, wanted: Scheme, family: Family, config: Mapping[str, object]) -> bool:
    templates = {module.template for module in family.modules(config, 1)}
    return all(own.of(t).quantization == wanted.of(t).quantization for t in templates)
