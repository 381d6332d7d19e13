"""The metrics page that an engine writes, by its own definitions: `PYTHON_OF_THE_ENGINE make.py vllm|sglang > PAGE`.

Three rounds of three drafted tokens: 3, 1 and 0 accepted; two requests of 4 and 3 tokens. No server runs; the records
that a server would hand to these classes are handed to them here.
"""

from __future__ import annotations

import re
import sys

K = 3


def vllm() -> str:
    """0.33.0: v1/metrics/loggers.py, and v1/spec_decode/metrics.py, which it asks."""
    from types import SimpleNamespace
    from unittest.mock import MagicMock

    import prometheus_client
    from vllm.v1.metrics.loggers import PrometheusStatLogger
    from vllm.v1.metrics.prometheus import get_prometheus_registry
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats
    from vllm.v1.spec_decode.metrics import SpecDecodingStats

    config = MagicMock()
    config.model_config.served_model_name = "tiny"
    config.model_config.max_model_len = 4096
    config.model_config.is_diffusion = False
    config.kv_transfer_config = config.ec_transfer_config = config.lora_config = None
    config.observability_config.custom_histogram_buckets = None
    config.speculative_config = SimpleNamespace(num_speculative_tokens=K)
    logger = PrometheusStatLogger(config, [0])
    drafting = SpecDecodingStats.new(K)
    for accepted in (3, 1, 0):
        drafting.observe_draft(K, accepted)
    scheduled = SchedulerStats(num_running_reqs=2, num_waiting_reqs=1, spec_decoding_stats=drafting)
    stepped = IterationStats()
    stepped.num_generation_tokens = 7
    logger.record(scheduled, stepped)
    return prometheus_client.generate_latest(get_prometheus_registry()).decode()


def sglang() -> str:
    """0.5.23: srt/observability/metrics_collector.py; what its import asks for beside is not needed for counting."""
    from types import SimpleNamespace
    from unittest.mock import MagicMock

    import prometheus_client

    from mtpforge.engines.sglang.loader.stand_in import prepare

    prepare(90)  # as on an H100: what it imports beside asks for a device
    from sglang.srt.observability import metrics_collector

    usual = SimpleNamespace(prompt_tokens_buckets=None, generation_tokens_buckets=None)
    metrics_collector.get_observability = lambda: usual
    labels = {"model_name": "tiny", "engine_type": "unified"}
    collector = metrics_collector.TokenizerMetricsCollector(labels=labels)
    for tokens, rounds in ((4, 1), (3, 2)):
        collector.observe_one_finished_request(
            labels, 5, tokens, 0, 0.1, has_grammar=False, spec_verify_ct=rounds, is_streaming=True
        )
    own_registry = prometheus_client.generate_latest().decode()
    asked = {"prefill_delayer_max_delay_passes": 1, "enable_priority_scheduling": False}
    buckets = {f"prefill_delayer_{name}_buckets": None for name in ("forward_passes", "wait_seconds")}
    metrics_collector.get_schedule = lambda: SimpleNamespace(**asked, **buckets)
    scheduler = metrics_collector.SchedulerMetricsCollector({**labels, "moe_ep_rank": "0"}, MagicMock())
    scheduler._log_gauge(scheduler.spec_num_steps, K)
    told = prometheus_client.generate_latest().decode().splitlines(keepends=True)
    return own_registry + "".join(line for line in told if "sglang:spec_num_steps" in line)


def own(text: str, prefix: str) -> str:
    """Only the engine's counters and gauges; moments are this run's, so they are all one."""
    lines = [line for line in text.splitlines() if re.match(rf"(# (HELP|TYPE) )?{prefix}", line)]
    kept = [line for line in lines if "_bucket" not in line]
    return "".join(re.sub(r"^(\w+:\w+_created(?:{.*})?) .*", r"\1 1.7e+09", line) + "\n" for line in kept)


if __name__ == "__main__":
    sys.stdout.write(own({"vllm": vllm, "sglang": sglang}[sys.argv[1]](), f"{sys.argv[1]}:"))
