"""vLLM's own KV cache specs of a target and its MTP layer: bytes of a token on one rank, by dtype.

    PYTHON vllm_kv_cache.py FOLDER DTYPE ...   a folder with config.json; prints {dtype: [dtype that it became, bytes]}

Runs in the engine's environment, as on a Hopper GPU. Both models are built on meta, as `engines/vllm/loader` builds
them; the sum goes over every module that asks for a cache: `get_kv_cache_spec`, `page_size_bytes`.
"""

from __future__ import annotations

import json
import sys

from mtpforge.engines.vllm.loader import stand_in

CAPABILITY = 90
ELSEWHERE = ("fp8_e4m3", "nvfp4_ds_mla")  # served by FlashInfer, or on Blackwell: attention is told once it is built


def token_bytes(folder: str, dtype: str) -> tuple[str, float]:
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, ParallelConfig, VllmConfig
    from vllm.config.speculative import SpeculativeConfig
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import resolve_kv_cache_dtype_string, set_default_torch_dtype
    from vllm.v1.worker.workspace import init_workspace_manager

    stand_in.set_groups(1, 0)
    init_workspace_manager(torch.device("meta"))
    parallel = ParallelConfig()
    target = ModelConfig(model=folder, skip_tokenizer_init=True)
    speculative = SpeculativeConfig(
        model=folder,
        method="mtp",
        num_speculative_tokens=3,
        target_model_config=target,
        target_parallel_config=parallel,
    )
    taken = resolve_kv_cache_dtype_string(dtype, target)
    elsewhere = taken in ELSEWHERE
    config = VllmConfig(
        model_config=target,
        parallel_config=parallel,
        speculative_config=speculative,
        cache_config=CacheConfig(cache_dtype="bfloat16" if elsewhere else taken, block_size=64),
        device_config=DeviceConfig(device="cpu"),
    )
    for model in (target, speculative.draft_model_config):
        with set_default_torch_dtype(model.dtype), torch.device("meta"):
            initialize_model(vllm_config=config, model_config=model)
    modules = config.compilation_config.static_forward_context.values()
    for module in modules:
        if elsewhere and hasattr(module, "kv_cache_dtype"):
            module.kv_cache_dtype = taken
    asked = [module.get_kv_cache_spec(config) for module in modules if hasattr(module, "get_kv_cache_spec")]
    specs = [spec for spec in asked if spec is not None]
    kept = {name for spec in specs if (name := getattr(spec, "cache_dtype_str", None))}
    return next(iter(kept), taken), sum(spec.page_size_bytes / spec.block_size for spec in specs)


def main(folder: str, *dtypes: str) -> None:
    stand_in.prepare(CAPABILITY, "meta")
    import torch

    torch.accelerator.empty_cache = lambda: None
    stand_in._plain_cache = lambda value: value  # which kernel serves a dtype decides what it becomes
    sys.stdout.write(json.dumps({dtype: token_bytes(folder, dtype) for dtype in dtypes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
