"""`python -m loader.forward REQUEST REPORT`: one forward pass of the draft by vLLM itself, on the GPU that is here.

vLLM's own `load_model`: construction, load_weights and process_weights_after_loading, which repacks what was loaded for
the kernels of the device. Then the MTP module's forward as vLLM profiles it (v1/spec_decode/llm_base_proposer.py,
`dummy_run`, 0.33.0): without attention metadata, so that attention puts out zeros; its projections run. The rows of the
embedding are given, and the head, which is the target's, is left out. Nothing is stood in for.
Exit 0 with a report, 2 where there is no vLLM, 3 where it cannot be imported or sees no GPU.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mtpforge.engines.loading.answering import answer, leave
from mtpforge.engines.loading.refusing import stage
from mtpforge.engines.loading.verdict import Findings

from .constructing import PACKAGE, Engine, configure, construct_target
from .request import Request

_EMBEDDING = "embed_tokens"
_MLP = ".mtp_block.mlp"  # of the layer, in vLLM's draft classes of GLM and DeepSeek


class Given(NamedTuple):
    """What the pass is given: token ids int64 [n], positions int64 [n], their embeddings and the states [n, hidden]."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    embeddings: torch.Tensor
    states: torch.Tensor


def forward(request: Request, findings: Findings, device: torch.device) -> None:
    """Run the pass on `request.inputs` and write what came out to `request.outputs`, float32 [n, hidden] each.

    `states`: what the next step is handed. `mlp`: what router and experts put out, where the class has them.
    RefusedError with vLLM's words where it does not come so far.
    """
    from safetensors.torch import load_file, save_file

    given = Given(**load_file(request.inputs))
    engine = configure(request, findings, device.type, "auto")
    _as_a_worker(engine.vllm, device)
    construct_target(engine)
    _forget_rotary_tables()  # vLLM keeps them, and those of the target lie nowhere
    config = getattr(engine.speculative, "apply_draft_overrides", lambda same: same)(engine.vllm)
    draft = _loaded(engine, config)
    findings.facts["class"] = f"{type(draft).__module__}.{type(draft).__name__}"
    findings.facts["processed"] = _processed(draft)
    with stage(PACKAGE, "forward pass of the MTP module"):
        _embed(draft, given, device)
        made = _run(draft, config, given, device)
        out = {name: tensor.float().cpu().contiguous() for name, tensor in made.items()}  # a kernel's fault shows here
    save_file(out, request.outputs)


def _as_a_worker(config: Any, device: torch.device) -> None:  # noqa: ANN401  vLLM's config, untyped here
    """What vLLM's worker sets before it makes a model (v1/worker/worker_base.py and gpu_worker.py, 0.33.0).

    Which kernel of a norm runs, and the workspace that constructors of attention on Blackwell ask for.
    """
    import vllm.ir
    from vllm.v1.worker.workspace import init_workspace_manager

    config.kernel_config.ir_op_priority.set_default()
    vllm.ir.set_default_torch_wrap(config.compilation_config.ir_enable_torch_wrap)
    init_workspace_manager(device)


def _loaded(engine: Engine, config: Any) -> Any:  # noqa: ANN401  vLLM's config and model, untyped here
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader

    config.compilation_config.static_forward_context.clear()  # the target's layers would be in it
    with stage(PACKAGE, "loading onto the device, and processing for its kernels"), set_current_vllm_config(config):
        return get_model_loader(config.load_config).load_model(config, engine.draft)


def _forget_rotary_tables() -> None:
    from vllm.model_executor.layers import rotary_embedding

    rotary_embedding._ROPE_DICT.clear()  # noqa: SLF001  vLLM's own cache has no other door


def _processed(draft: torch.nn.Module) -> dict[str, int]:
    """Quantization methods that were given their weights to process: class -> how many modules."""
    found: dict[str, int] = {}
    for module in draft.modules():
        method = getattr(module, "quant_method", None)
        if hasattr(method, "process_weights_after_loading"):
            name = type(method).__name__
            found[name] = found.get(name, 0) + 1
    return found


def _embed(draft: torch.nn.Module, given: Given, device: torch.device) -> None:
    """Put the given rows into the embedding: served, it is the target's."""
    for name, module in draft.named_modules():
        if name.rpartition(".")[2] == _EMBEDDING:
            rows = given.embeddings.to(device, module.weight.dtype)
            module.weight.data[given.token_ids.to(device)] = rows


def _run(draft: Any, config: Any, given: Given, device: torch.device) -> dict[str, torch.Tensor]:  # noqa: ANN401
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import set_forward_context

    out: dict[str, torch.Tensor] = {}
    for name, module in draft.named_modules():
        if name.endswith(_MLP):
            # A copy: the norm that comes next writes into what it is given.
            module.register_forward_hook(lambda _module, _given, made: out.update(mlp=made.clone()))
    n = len(given.token_ids)
    with (
        torch.inference_mode(),
        set_current_vllm_config(config),
        set_forward_context(None, config, num_tokens=n),
    ):
        made = draft(
            input_ids=given.token_ids.to(device),
            positions=given.positions.to(device),
            hidden_states=given.states.to(device, config.model_config.dtype),
        )
    out["states"] = made[1] if isinstance(made, tuple) else made  # the second is what the next step is handed
    return out


def _prepare(_request: Request) -> None:
    """Quiet, off the network, one rank; ImportError where there is no GPU to run on."""
    for name, value in (("VLLM_LOGGING_LEVEL", "ERROR"), ("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1")):
        os.environ.setdefault(name, value)
    os.environ["VLLM_DISABLE_SHARED_EXPERTS_STREAM"] = "1"
    if not torch.cuda.is_available():
        raise ImportError(
            f"torch {torch.__version__} of this interpreter sees no CUDA device: it is a build for CPUs, or"
            f" CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r} hides it"
        )


def _on_gpu(request: Request, findings: Findings) -> None:
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    major, minor = torch.cuda.get_device_capability(device)
    findings.facts["device"] = f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"
    with one_rank("nccl"):
        forward(request, findings, device)


@contextmanager
def one_rank(backend: str) -> Iterator[None]:
    """VLLM's process groups, of this process alone. backend: of torch.distributed."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    with tempfile.TemporaryDirectory(prefix="mtpforge-rank-") as folder:
        with stage(PACKAGE, "one rank"), set_current_vllm_config(VllmConfig()):
            init_distributed_environment(1, 0, f"file://{Path(folder) / 'rank'}", 0, backend)
            initialize_model_parallel(1, 1)
        yield


if __name__ == "__main__":
    leave(answer("vllm", Request, _prepare, _on_gpu, sys.argv[1:]))
