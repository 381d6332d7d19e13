"""vLLM's configs for one pair, as `vllm serve` would make them, and the target's class that is constructed first."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mtpforge.engines.loading.refusing import RefusedError, stage
from mtpforge.engines.loading.verdict import Findings

from . import configs
from .request import Request

PACKAGE = "vllm"


class Engine(NamedTuple):
    """vLLM's configs for one pair, as `vllm serve` would make them."""

    vllm: Any
    target: Any  # ModelConfig
    draft: Any  # ModelConfig
    speculative: Any
    parallel: Any


def configure(request: Request, findings: Findings, device: str = "cpu", cache_dtype: str = "bfloat16") -> Engine:
    """The configs, RefusedError with vLLM's words where it takes one of them not; `findings` says how they differ.

    cache_dtype: of the KV cache, on which no weights depend; "auto" has vLLM choose by the device, as it serves.
    """
    from vllm.config import CacheConfig, DeviceConfig, LoadConfig, ModelConfig, ParallelConfig, VllmConfig
    from vllm.config.kernel import KernelConfig
    from vllm.config.speculative import SpeculativeConfig

    with stage(PACKAGE, "target config"):
        parallel = ParallelConfig(
            tensor_parallel_size=request.tensor_parallel,
            enable_expert_parallel=request.expert_parallel,
            distributed_executor_backend="external_launcher" if request.tensor_parallel > 1 else None,
        )
        target = ModelConfig(
            model=request.target,
            skip_tokenizer_init=True,
            quantization=request.quantization,
            max_model_len=request.max_model_len,
            enforce_eager=True,  # nothing is compiled for one pass
            trust_remote_code=False,
            hf_overrides=request.overrides,
        )
    with stage(PACKAGE, "draft config"):
        speculative = SpeculativeConfig(
            model=request.draft,
            method="mtp",
            num_speculative_tokens=request.speculative_tokens,
            target_model_config=target,
            target_parallel_config=parallel,
        )
    draft = speculative.draft_model_config
    if speculative.method != "mtp":
        raise RefusedError(
            f"draft config: vLLM chose method {speculative.method!r} instead of 'mtp' (the draft's path is read)"
        )
    with stage(PACKAGE, "vLLM config"):
        vllm = VllmConfig(
            model_config=target,
            parallel_config=parallel,
            speculative_config=speculative,
            load_config=LoadConfig(use_tqdm_on_load=False),
            cache_config=CacheConfig(cache_dtype=cache_dtype),
            device_config=DeviceConfig(device=device),
            kernel_config=KernelConfig(enable_jit_warmup=False),
            additional_config={"kda_prefill_backend": "triton"},  # no other kernel of linear attention opens here
        )
    findings.facts["own quantization"] = draft.quantization
    findings.facts["quantization"] = vllm.quant_config.get_name() if vllm.quant_config is not None else None
    configs.compare(
        target.hf_text_config, draft.hf_text_config, request.compared, findings, same_config=request.same_config
    )
    return Engine(vllm, target, draft, speculative, parallel)


def construct_target(engine: Engine) -> dict[str, object]:
    """What the target's class leaves in the static forward context.

    It is constructed first, as in serving: it hands its table of fused modules to the quantization config that the
    draft then uses. The first layers are enough.
    """
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    hf = engine.target.hf_text_config
    keep, n_layers = hf.num_hidden_layers, min(hf.num_hidden_layers, getattr(hf, "first_k_dense_replace", 0) + 1)
    try:
        hf.num_hidden_layers = n_layers
        with (
            stage(PACKAGE, f"target model, layers 0-{n_layers - 1}"),
            set_default_torch_dtype(engine.target.dtype),
            torch.device("meta"),
        ):
            initialize_model(vllm_config=engine.vllm, model_config=engine.target)
    finally:
        hf.num_hidden_layers = keep
    return dict(engine.vllm.compilation_config.static_forward_context)
