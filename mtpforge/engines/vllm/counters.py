"""vLLM's metrics of drafting, and what it tells of how it was started (0.33.0).

v1/spec_decode/metrics.py, v1/metrics/loggers.py    names; a counter's sample ends in `_total`
config/speculative.py                               rejection_sample_method, synthetic_acceptance_*
entrypoints/serve/dev/server_info/api_router.py     `/server_info`, only under VLLM_SERVER_DEV_MODE=1
v1/spec_decode/dynamic/utils.py                     the schedule: ranges of batch sizes, the first from 1, 0 allowed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from mtpforge.engines.counters import Cause, Counters, steps_in

_SYNTHETIC: Final = ("synthetic_acceptance_rates", "synthetic_acceptance_length")


def _drafting(answer: Mapping[str, object]) -> Mapping[str, object]:
    """The speculative config in it, empty where there is none."""
    config = answer.get("vllm_config")
    drafting = config.get("speculative_config") if isinstance(config, Mapping) else None
    return drafting if isinstance(drafting, Mapping) else {}


def _made_up(answer: Mapping[str, object]) -> str | None:
    """Of `/server_info?config_format=json`: what of the speculative config draws acceptance by lot."""
    drafting = _drafting(answer)
    if not drafting:
        return None
    if drafting.get("rejection_sample_method") == "synthetic":
        return "`rejection_sample_method` is `synthetic`"
    return next((f"`{key}` is set" for key in _SYNTHETIC if drafting.get(key) is not None), "")


def _schedule(rows: Sequence[tuple[int, int, int]]) -> str:
    """The keys of `--speculative-config` that set these depths; "" for none at all: `gt=0` in config/speculative.py."""
    most = max((k for *_, k in rows), default=0)
    if not most:
        return ""
    keys = {
        "num_speculative_tokens": most,
        "num_speculative_tokens_per_batch_size": [list(row) for row in rows],
    }
    return json.dumps(keys)


_NEAR_ZERO: Final = (
    Cause(
        "head or embedding of the draft were never filled",
        "`grep 'not initialized from checkpoint' server.log` names them; `mtpforge serve DRAFT --target CKPT --print`"
        " has the flags that share the target's",
    ),
    Cause(
        "kernels: AITER's batched products on ROCm",
        "start it with `VLLM_ROCM_USE_AITER_FP8BMM=0 VLLM_ROCM_USE_AITER_FP4BMM=0` and measure again",
    ),
    Cause(
        "decode context parallelism or separate prefill that the draft knows nothing of",
        "start it without `--decode-context-parallel-size` and `--kv-transfer-config`, and measure again",
    ),
    Cause(
        "long prompts alone: config.json lost `index_topk_pattern`, so that layers run indexers of their own",
        "`mtpforge serve DRAFT --target CKPT --print` has the `--hf-overrides` for it; measure short and long `--text`",
    ),
    Cause("prefix caching gives drafts stale states", "start it with `--no-enable-prefix-caching`, and measure again"),
)
_FALLING: Final = (
    Cause(
        "the state before the last norm goes on to the next step (vLLM 0.23 and older)",
        "`vllm --version`; `mtpforge accept DRAFT --target CKPT --text FILE --recycle pre-norm` shows the same fall",
    ),
    Cause(
        "later steps choose their keys anew, or reuse the target's: `index_share_for_mtp_iteration` is not what the"
        " draft was trained with",
        "`mtpforge serve DRAFT --target CKPT --explain`",
    ),
    Cause(
        "decode context parallelism is not handed on to the draft",
        "start it without `--decode-context-parallel-size`, and measure again",
    ),
)
_UNDER_LOAD: Final = (
    Cause(
        "graphs that were captured for larger batches, or their kernels, compute something else",
        "start it with `--enforce-eager`, and measure again",
    ),
)

COUNTERS: Final = Counters(
    prefix="vllm:",
    rounds="vllm:spec_decode_num_drafts_total",
    drafted="vllm:spec_decode_num_draft_tokens_total",
    accepted="vllm:spec_decode_num_accepted_tokens_total",
    by_position="vllm:spec_decode_num_accepted_tokens_per_pos_total",
    generated="vllm:generation_tokens_total",
    finished="vllm:request_success_total",
    enable="vLLM has them unless it was started with `--disable-log-stats`",
    drafts_by="--speculative-config",
    info="/server_info?config_format=json",
    made_up=_made_up,
    depth=lambda answer: steps_in(_drafting(answer).get("num_speculative_tokens")),
    unseen="`synthetic_acceptance_length` of the speculative config, unless vLLM runs under `VLLM_SERVER_DEV_MODE=1`",
    schedule=_schedule,
    near_zero=_NEAR_ZERO,
    falling=_FALLING,
    under_load=_UNDER_LOAD,
)
