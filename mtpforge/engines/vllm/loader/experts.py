"""Which kernel vLLM chooses for routed experts of GLM-5.2's widths at the capability that it believes in.

Asked of the functions that its quantization methods ask while a model is built (0.33.0, fused_moe/oracle): one rank,
256 experts of which 8 are chosen, [2048, 6144]. A kernel whose library is not there, or that asks a driver, says no.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

_N_EXPERTS, _CHOSEN = 256, 8
_HIDDEN, _INTERMEDIATE = 6144, 2048


def kernels() -> dict[str, list[str]]:
    """Kind of experts -> the backend's name in vLLM, or none."""
    from vllm.config import VllmConfig, set_current_vllm_config

    config = VllmConfig()
    # Some look there for the model's name, and for what a user asked for.
    config.model_config = SimpleNamespace(
        hf_text_config=SimpleNamespace(model_type="glm_moe_dsa"), quantization_config=None
    )
    with set_current_vllm_config(config):
        layer = _layer()
        return {f"experts, {kind}": _chosen(ask, layer) for kind, ask in _asked().items()}


def _layer() -> Any:  # noqa: ANN401  vLLM's record
    from vllm.model_executor.layers.fused_moe import config as records
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    alone = records.FusedMoEParallelConfig(
        **dict.fromkeys(("tp_size", "pcp_size", "dp_size", "ep_size", "sp_size"), 1),
        **dict.fromkeys(("tp_rank", "pcp_rank", "dp_rank", "ep_rank"), 0),
        use_ep=False,
        all2all_backend="",
        enable_eplb=False,
    )
    return records.FusedMoEConfig(
        num_experts=_N_EXPERTS,
        experts_per_token=_CHOSEN,
        hidden_dim=_HIDDEN,
        intermediate_size=_INTERMEDIATE,
        num_local_experts=_N_EXPERTS,
        num_logical_experts=_N_EXPERTS,
        activation=MoEActivation.SILU,
        device="cuda",
        routing_method=records.RoutingMethodType.DeepSeekV3,
        moe_parallel_config=alone,
        in_dtype=torch.bfloat16,
    )


def _asked() -> dict[str, Callable[[Any], tuple[Any, Any]]]:
    from vllm.model_executor.layers.fused_moe.oracle import fp8, int8, int_wna16, mxfp4, mxfp8, nvfp4, unquantized
    from vllm.model_executor.layers.quantization.utils import quant_utils as keys

    def integers(key: Any, bits: int, group_size: int, zero_points: bool) -> Callable[[Any], tuple[Any, Any]]:  # noqa: ANN401
        from compressed_tensors.quantization import QuantizationArgs

        args = QuantizationArgs(num_bits=bits, strategy="group", group_size=group_size, symmetric=not zero_points)
        return lambda layer: int_wna16.select_wna16_moe_backend(layer, key, args, zero_points, False, True)

    return {
        "bf16": unquantized.select_unquantized_moe_backend,
        "fp8, blocks of 128": lambda layer: fp8.select_fp8_moe_backend(
            layer, keys.kFp8Static128BlockSym, keys.kFp8Dynamic128Sym
        ),
        "int4, groups of 32, zero points": integers(keys.kInt4Static32Asym, 4, 32, True),
        "int4, groups of 128": integers(keys.kInt4Static, 4, 128, False),
        "int8, groups of 128": integers(keys.kInt8Static, 8, 128, False),
        "int8, rows, dynamic": int8.select_int8_moe_backend,
        "nvfp4": lambda layer: nvfp4.select_nvfp4_moe_backend(layer, keys.kNvfp4Static, keys.kNvfp4Dynamic),
        "nvfp4, weights alone": lambda layer: nvfp4.select_nvfp4_moe_backend(layer, keys.kNvfp4Static, None),
        "mxfp4": mxfp4.select_mxfp4_moe_backend,
        "mxfp8": mxfp8.select_mxfp8_moe_backend,
    }


def _chosen(ask: Callable[[Any], tuple[Any, Any]], layer: Any) -> list[str]:  # noqa: ANN401
    try:
        backend, _ = ask(layer)
    except (ValueError, NotImplementedError):  # how vLLM says that there is none
        return []
    return [str(backend.value)]
