"""The server's arguments and the configs of target and draft, as SGLang 0.5.23's server and draft worker make them."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, NamedTuple

from mtpforge.engines.loading import comparing
from mtpforge.engines.loading.refusing import RefusedError, stage
from mtpforge.engines.loading.verdict import Findings

from .request import Request

PACKAGE = "sglang"
# A text model that is a part of another is configured there.
_TEXT = "hf_text_config"


class Configs(NamedTuple):
    """What SGLang makes of the command."""

    server: Any  # ServerArgs
    target: Any  # ModelConfig
    draft: Any  # ModelConfig
    load: Any  # LoadConfig


def arguments(request: Request) -> list[str]:
    """The words of the server's command, without its name."""
    usual = {
        "--speculative-algorithm": "EAGLE",
        "--speculative-draft-model-path": request.draft,
        "--tp-size": str(request.tensor_parallel),
    }
    words = ["--model-path", request.target, "--skip-tokenizer-init", *request.arguments]
    return [*words, *(word for name, value in usual.items() if name not in words for word in (name, value))]


def publish(request: Request, rank: int) -> Any:  # noqa: ANN401  ServerArgs
    """The arguments as the server resolves them, in force for one rank."""
    from sglang.srt import runtime_context as rc
    from sglang.srt.server_args import prepare_server_args

    words = arguments(request)
    try:
        with stage(PACKAGE, "server arguments"):
            server = prepare_server_args(words)
            rc.publish(server, role="scheduler", ranks=rc.SpawnRanks(world_rank=rank, gpu_id=0))
    except SystemExit as error:
        raise RefusedError(f"server arguments: SGLang's parser refuses {' '.join(words)}") from error
    return server


def configure(server: Any, rank: int) -> Configs:  # noqa: ANN401  ServerArgs
    """ModelConfig of both, and how weights are loaded; the process groups must stand."""
    from sglang.srt import runtime_context as rc
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.model_executor.model_runner_components.load_model_utils import build_load_config

    initialize_moe_config()
    for module, name in (("fp8_utils", "initialize_fp8_gemm_config"), ("fp4_utils", "initialize_fp4_gemm_config")):
        with contextlib.suppress(ImportError, AttributeError):
            getattr(importlib.import_module(f"sglang.srt.layers.quantization.{module}"), name)()
    with stage(PACKAGE, "target config"):
        target = ModelConfig.from_server_args(server)
    speculative = rc.get_spec()
    with stage(PACKAGE, "draft config"):
        draft = ModelConfig.from_server_args(
            server,
            model_path=speculative.speculative_draft_model_path,
            model_revision=speculative.speculative_draft_model_revision,
            is_draft_model=True,
            context_length=target.context_len,
        )
    load = build_load_config(
        server_args=server,
        tp_rank=rank,
        load_format=speculative.speculative_draft_load_format,
        remote_instance_weight_transporter_engine=None,
        remote_instance_weight_transporter_session_id="",
        draft_model_idx=None,
        weight_cache_mode="off",
        weight_cache_socket=None,
    )
    return Configs(server, target, draft, load)


def compare(request: Request, configs: Configs, findings: Findings) -> None:
    """Note every difference that changes what is computed."""
    target, draft = (getattr(config, _TEXT, config.hf_config) for config in (configs.target, configs.draft))
    doubts = findings.errors if request.same_config else findings.notes
    comparing.compare("SGLang", target, draft, request.compared, doubts)
    if configs.draft.dtype != configs.target.dtype:
        ours, theirs = (str(config.dtype).removeprefix("torch.") for config in (configs.target, configs.draft))
        doubts.append(f"config dtype: the draft runs in {theirs}, the target in {ours} (float16 where it says nothing)")
    counts = [getattr(config, "n_routed_experts", None) for config in (draft, target)]
    if counts[0] != counts[1]:
        findings.notes.append("config n_routed_experts: draft {}, target {}".format(*counts))
    findings.facts["quantization"] = configs.target.quantization
    findings.facts["own quantization"] = configs.draft.quantization
    findings.facts["layer"] = getattr(draft, "num_hidden_layers", None)
