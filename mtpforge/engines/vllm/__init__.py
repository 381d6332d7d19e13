"""vLLM: what it demands of a separate MTP draft, as read in and run with version 0.33.0."""

from __future__ import annotations

from typing import Final

from mtpforge.engines.engine import Engine
from mtpforge.engines.vllm.counters import COUNTERS
from mtpforge.engines.vllm.demands import demands, stated
from mtpforge.engines.vllm.draft_classes import decoded_on_load, draft_class, fewer_experts, never_quantized, runs
from mtpforge.engines.vllm.draft_config import draft_config, refuse_misstated
from mtpforge.engines.vllm.draft_options import OPTIONS
from mtpforge.engines.vllm.installed import ask, forward, is_installed, tables
from mtpforge.engines.vllm.kv_cache import DTYPES, kv_cache
from mtpforge.engines.vllm.merging import merged
from mtpforge.engines.vllm.restating import disturbed, restate
from mtpforge.engines.vllm.serving import carrying_config, path_traps, serve, told_config
from mtpforge.engines.vllm.sharding import memory, serving_traps
from mtpforge.engines.vllm.traps import block_traps, draft_traps, target_traps

VLLM: Final = Engine(
    name="vLLM",
    versions="0.24 to 0.33",
    package="vllm",
    demands=demands,
    runs=runs,
    refuse_misstated=refuse_misstated,
    restate=restate,
    told_config=told_config,
    carrying_config=carrying_config,
    carry=restate,
    disturbed=disturbed,
    merged=merged,
    stated=stated,
    draft_config=draft_config,
    target_traps=target_traps,
    draft_traps=draft_traps,
    block_traps=block_traps,
    serving_traps=serving_traps,
    path_traps=path_traps,
    serve=serve,
    memory=memory,
    never_quantized=never_quantized,
    decoded_on_load=decoded_on_load,
    is_installed=is_installed,
    ask=ask,
    tables=tables,
    forward=forward,
    most_experts="vLLM names experts by the target's count: expert {n} of the draft would end the load with a KeyError",
    fewer_experts=fewer_experts,
    without_layer=lambda family: draft_class(family).without_layer,
    # Of an expert's gate and up only the first one's global scale is used; of a fused linear the largest.
    tied_formats=frozenset(("nvfp4", "modelopt_nvfp4")),
    kv_cache=kv_cache,
    kv_cache_dtypes=DTYPES,
    draft_options=tuple(OPTIONS),
    counters=COUNTERS,
    hiding_files={
        "consolidated*.safetensors": "where a folder holds consolidated*.safetensors, vLLM reads these alone"
        " (0.33.0, default_loader.py)"
    },
)
