"""The steps in order: headers, configs, the target's class, the draft's class, load_weights for every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtpforge.engines.loading import verdict
from mtpforge.engines.loading.coverage import Coverage
from mtpforge.engines.loading.files import tensors_of
from mtpforge.engines.loading.headers import without_values
from mtpforge.engines.loading.refusing import refused, stage
from mtpforge.engines.loading.verdict import Findings, Rank
from mtpforge.engines.loading.watch import Watch

from . import configs, stand_in
from .constructing import PACKAGE, Engine, configure, construct_target
from .habits import HABITS, HELD_BACK
from .request import Request


def check(request: Request, findings: Findings) -> None:
    """Fill `findings`; returns when vLLM accepts the draft, RefusedError with its words when it does not."""
    from vllm.model_executor.model_loader import default_loader

    on_disk = tensors_of(Path(request.draft), findings)
    stand_in.set_groups(request.tensor_parallel, 0)
    engine = configure(request, findings)
    context = construct_target(engine)
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
    with stage(PACKAGE, f"construction of the draft model{at}"), set_default_torch_dtype(engine.draft.dtype), device:
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
        raise refused(PACKAGE, f"load_weights{at}, at {next(reversed(watch.reads), None)}", error) from error
