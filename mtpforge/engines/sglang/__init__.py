"""SGLang: what it demands of a separate MTP draft, as read in version 0.5.23 and run with its loader on a CPU."""

from __future__ import annotations

from typing import Final

from mtpforge.engines.engine import Engine
from mtpforge.engines.sglang.carrying import carry, carrying_config, disturbed
from mtpforge.engines.sglang.counters import COUNTERS
from mtpforge.engines.sglang.demands import demands, scheme_of
from mtpforge.engines.sglang.draft_classes import decoded_on_load, never_quantized, runs
from mtpforge.engines.sglang.draft_config import draft_config, refuse_misstated
from mtpforge.engines.sglang.installed import ask, is_installed, tables
from mtpforge.engines.sglang.serving import memory, path_traps, serve, serving_traps
from mtpforge.engines.sglang.traps import block_traps, draft_traps, target_traps

SGLANG: Final = Engine(
    name="SGLang",
    versions="0.5.23",
    package="sglang",
    demands=demands,
    restate=lambda target, _family, _wanted: target.quantization,
    told_config=lambda target: target.config,
    carrying_config=carrying_config,
    carry=carry,
    disturbed=disturbed,
    merged=lambda sides, _family, _origin: (sides[0].quantization, {}),
    stated=scheme_of,
    runs=runs,
    refuse_misstated=refuse_misstated,
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
    decides="draft",
    most_experts="mtpforge has not tried a draft with more than the target's {n} in SGLang",
    fewer_experts=lambda _: "",
    without_layer=lambda _: "SGLang starts, and drafts from weights that nothing was read into",
    # Of an expert's gate and up only the gate's global scale is used (compressed_tensors, W4A4Nvfp4MoE, 0.5.23).
    tied_formats=frozenset(("nvfp4",)),
    counters=COUNTERS,
)
