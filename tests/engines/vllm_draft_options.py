"""What vLLM's own SpeculativeConfig, scheduler and runners make of `--speculative-config`.

    PYTHON vllm_draft_options.py < [[FOLDER, {key: value}, {key: value of the target's config}], ...]

Prints a list: "" where it is accepted, else vLLM's words. The folder's config.json is target and draft.
"""

from __future__ import annotations

import json
import sys

from mtpforge.engines.vllm.loader import stand_in


def refusal(folder: str, speculative: dict[str, object], overrides: dict[str, object]) -> str:
    from vllm.config import ModelConfig, ParallelConfig
    from vllm.config.speculative import SpeculativeConfig
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    target = ModelConfig(model=folder, skip_tokenizer_init=True, hf_overrides=overrides)
    target.hf_config.update(overrides)
    try:
        made = SpeculativeConfig(**speculative, target_model_config=target, target_parallel_config=ParallelConfig())
        if made.uses_dynamic_speculative_decoding():
            schedule = made.num_speculative_tokens_per_batch_size
            build_dynamic_sd_schedule_lookup(schedule, 256, made.num_speculative_tokens)
    except ValueError as error:
        return str(error)
    asked = made.index_share_for_mtp_iteration
    if asked is not None and made.draft_model_config.hf_config.index_share_for_mtp_iteration is not asked:
        return "index_share_for_mtp_iteration did not reach the draft"
    return "" if made.method == "mtp" else f"method {made.method}"


def facts() -> dict[str, object]:
    """Of the head's copy and the draft classes, what no config says."""
    from types import SimpleNamespace

    import torch
    from vllm.model_executor.layers.quantization.online.lm_head import _quantize_copy
    from vllm.model_executor.models.glm4_moe_mtp import Glm4MoeMultiTokenPredictor
    from vllm.models.deepseek_v32.nvidia.mtp import DeepseekV32MultiTokenPredictor

    quantized = SimpleNamespace(quant_method=object(), bias=None, weight=torch.zeros(1, dtype=torch.bfloat16))
    try:
        _quantize_copy(quantized, "fp8")
        said = ""
    except ValueError as error:
        said = str(error)
    classes = {"glm_moe_dsa": DeepseekV32MultiTokenPredictor, "glm4_moe": Glm4MoeMultiTokenPredictor}
    return {
        "copy of a quantized head": said,
        "shares": {name: hasattr(found, "set_skip_topk") for name, found in classes.items()},
    }


if __name__ == "__main__":
    stand_in.prepare(90, "meta")
    stand_in.set_groups(1, 0)
    cases = json.loads(sys.stdin.read())
    sys.stdout.write(json.dumps({"said": [refusal(*case) for case in cases], "facts": facts()}))
