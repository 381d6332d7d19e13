"""SGLang's metrics of drafting (0.5.23), which it has under `--enable-metrics`.

srt/observability/metrics_collector.py    names: `sglang:spec_verify_calls_total` is the only counter of drafting,
                                          `sglang:spec_accept_length` and `_rate` are gauges of the last interval;
                                          `sglang:spec_num_steps` is the depth in force, of each rank
srt/entrypoints/http_server.py            `/server_info` has every field of ServerArgs, speculative_num_steps among them
srt/managers/tokenizer_manager.py         a request's acceptance length is its tokens by its verify calls
srt/entrypoints/openai/protocol.py        `return_spec_tokens_details`: a reply's histogram of accepted tokens, as long
                                          as the most that a round accepted, so that it does not tell the depth
srt/speculative/spec_utils.py             SGLANG_SIMULATE_ACC_LEN, which no page of the server tells
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mtpforge.engines.counters import MOST_STEPS, Cause, Counters, is_count, steps_in
from mtpforge.errors import shown

_SIMULATED: Final = "SGLANG_SIMULATE_ACC_LEN"


def _made_up(answer: Mapping[str, object]) -> str | None:
    """Of `/server_info`: whether the command that started it names the variable. It says nothing of its environment."""
    return f"`{_SIMULATED}` is set" if _SIMULATED in str(answer.get("launch_command", "")) else None


def _histogram(event: Mapping[str, object]) -> tuple[int, ...]:
    """Of an event's `sglext`; the tokens of the first choice. ValueError for what cannot be counts."""
    extension = event.get("sglext")
    details = extension.get("spec_tokens_details") if isinstance(extension, Mapping) else None
    if isinstance(details, list):
        details = details[0] if details else None
    found = details.get("spec_correct_drafts_histogram") if isinstance(details, Mapping) else None
    if found is None:
        return ()
    if not (isinstance(found, list) and len(found) <= MOST_STEPS + 1 and all(map(is_count, found))):
        raise ValueError(f"`spec_correct_drafts_histogram` is `{shown(found)}`")
    return tuple(found)


COUNTERS: Final = Counters(
    prefix="sglang:",
    rounds="sglang:spec_verify_calls_total",
    generated="sglang:generation_tokens_total",
    finished="sglang:num_requests_total",
    enable="SGLang has them when it is started with `--enable-metrics`",
    drafts_by="--speculative-algorithm",
    info="/server_info",
    made_up=_made_up,
    steps="sglang:spec_num_steps",
    depth=lambda answer: steps_in(answer.get("speculative_num_steps")),
    unseen=f"`{_SIMULATED}` in the server's environment",
    body={"return_spec_tokens_details": True},
    histogram=_histogram,
    near_zero=(
        Cause(
            "the draft's own layer was never read: SGLang drafts from weights that nothing was read into",
            "`mtpforge validate DRAFT --target CKPT --engine sglang --engine-python PATH`",
        ),
        Cause(
            "prefill and decode on separate servers that hand no draft state on",
            "start it without `--disaggregation-mode`, and measure again",
        ),
    ),
    under_load=(
        Cause(
            "graphs that were captured for larger batches, or their kernels, compute something else",
            "start it with `--cuda-graph-backend-decode disabled`, and measure again",
        ),
    ),
    falling=(
        Cause(
            "later steps choose their keys anew, or reuse the target's",
            "`mtpforge serve DRAFT --target CKPT --engine sglang --explain`",
        ),
    ),
)
