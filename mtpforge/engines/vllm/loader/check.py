"""The steps in order: headers, configs, the target's class, the draft's class, load_weights for every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from mtpforge.engines.loading import verdict
from mtpforge.engines.loading.coverage import Coverage
from mtpforge.engines.loading.files import tensors_of
from mtpforge.engines.loading.headers import without_values
from mtpforge.engines.loading.refusing import RefusedError, refused, stage
from mtpforge.engines.loading.verdict import Findings, Rank
from mtpforge.engines.loading.watch import Watch

from . import configs, stand_in
from .habits import HABITS, HELD_BACK
from .request import Request

_PACKAGE = "vllm"


class Engine(NamedTuple):
    """vLLM's configs for one pair, as `vllm serve` would make them."""

    vllm: Any
    target: Any  # ModelConfig
    draft: Any  # ModelConfig
    speculative: Any
    parallel: Any


def check(request: Request, findings: Findings) -> None:
    """Fill `findings`; returns when vLLM accepts the draft, RefusedError with its words when it does not."""
    from vllm.model_executor.model_loader import default_loader

    on_disk = tensors_of(Path(request.draft), findings)
    stand_in.set_groups(request.tensor_parallel, 0)
    engine = _configure(request, findings)
    context = _construct_target(engine)
    if request.meta:
        default_loader.safetensors_weights_iterator = without_values
    used: dict[str, Coverage] = {}
    for rank in range(request.tensor_parallel):
        for name, cover in _load_rank(request, engine, context, rank, findings).items():
            if name in used:
                used[name].join(cover)
            else:
                used[name] = cover
    hf = engine.target.hf_text_config
    n_nextn = getattr(hf, "num_nextn_predict_layers", 0) or 0
    verdict.judge_dropped(on_disk, used, HABITS, (hf.num_hidden_layers, n_nextn), findings)


def _configure(request: Request, findings: Findings) -> Engine:
    from vllm.config import CacheConfig, DeviceConfig, LoadConfig, ModelConfig, ParallelConfig, VllmConfig
    from vllm.config.kernel import KernelConfig
    from vllm.config.speculative import SpeculativeConfig

    with stage(_PACKAGE, "target config"):
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
            trust_remote_code=False,
            hf_overrides=request.overrides,
        )
    with stage(_PACKAGE, "draft config"):
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
    with stage(_PACKAGE, "vLLM config"):
        vllm = VllmConfig(
            model_config=target,
            parallel_config=parallel,
            speculative_config=speculative,
            load_config=LoadConfig(use_tqdm_on_load=False),
            cache_config=CacheConfig(cache_dtype="bfloat16"),  # no weights depend on it
            device_config=DeviceConfig(device="cpu"),
            kernel_config=KernelConfig(enable_jit_warmup=False),
            additional_config={"kda_prefill_backend": "triton"},  # no other kernel of linear attention opens here
        )
    findings.facts["own quantization"] = draft.quantization
    findings.facts["quantization"] = vllm.quant_config.get_name() if vllm.quant_config is not None else None
    configs.compare(
        target.hf_text_config, draft.hf_text_config, request.compared, findings, same_config=request.same_config
    )
    return Engine(vllm, target, draft, speculative, parallel)


def _construct_target(engine: Engine) -> dict[str, object]:
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
            stage(_PACKAGE, f"target model, layers 0-{n_layers - 1}"),
            set_default_torch_dtype(engine.target.dtype),
            torch.device("meta"),
        ):
            initialize_model(vllm_config=engine.vllm, model_config=engine.target)
    finally:
        hf.num_hidden_layers = keep
    return dict(engine.vllm.compilation_config.static_forward_context)


def _load_rank(
    request: Request, engine: Engine, context: dict[str, object], rank: int, findings: Findings
) -> dict[str, Coverage]:
    """Build and load one rank: how much of each tensor it used."""
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    stand_in.set_groups(request.tensor_parallel, rank)
    engine.parallel.rank = rank
    engine.vllm.compilation_config.static_forward_context.clear()
    engine.vllm.compilation_config.static_forward_context.update(context)
    at = f" (rank {rank} of {request.tensor_parallel})" if request.tensor_parallel > 1 else ""
    overridden = getattr(engine.speculative, "apply_draft_overrides", lambda config: config)(engine.vllm)
    device = torch.device("meta" if request.meta else "cpu")
    with stage(_PACKAGE, f"construction of the draft model{at}"), set_default_torch_dtype(engine.draft.dtype), device:
        model = initialize_model(vllm_config=overridden, model_config=engine.draft)
    if rank == 0:
        findings.facts["class"] = f"{type(model).__module__}.{type(model).__name__}"
        doubts = findings.errors if request.same_config else findings.notes
        configs.check_built(model, request.built, doubts)
    watch = Watch(model, HELD_BACK)
    _load(model, engine.draft, overridden, watch, at)
    watch.settle()
    verdict.judge_rank(Rank(watch, model, at, HABITS, first=rank == 0), findings)
    for prefix, have in (getattr(model, "_pending_indexer_wk_fp8", None) or {}).items():
        findings.errors.append(
            f"{prefix}.wk: only its {'/'.join(have)} came; vLLM still waits for the other half and never loads this "
            "projection"
        )
    return {name: read.used for name, read in watch.reads.items()}


def _load(model: torch.nn.Module, draft: Any, vllm_config: Any, watch: Watch, at: str) -> None:  # noqa: ANN401  vLLM's
    """Run vLLM's default loader on the model, every tensor passing by the watch."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.utils.torch_utils import set_default_torch_dtype

    loader = get_model_loader(vllm_config.load_config)
    read_all = loader.get_all_weights
    loader.get_all_weights = lambda config, into: watch.feed(read_all(config, into))
    try:
        with set_default_torch_dtype(draft.dtype), watch, set_current_vllm_config(vllm_config):
            loader.load_weights(model, draft)
    except Exception as error:
        raise refused(_PACKAGE, f"load_weights{at}, at {next(reversed(watch.reads), None)}", error) from error
