"""vLLM's forward pass on a CPU: `python vllm_without_gpu.py REQUEST REPORT`, beside the loader's package and Triton.

vLLM's classes for NVIDIA run as they are, their Triton kernels by Triton's interpreter. What is compiled for CUDA only
is done plainly here: three operators of routed experts, one product, and attention, which is not computed without
metadata.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_USE_FUSED_MOE_GROUPED_TOPK": "0"}

import torch

from mtpforge.engines.loading.answering import answer, leave
from mtpforge.engines.loading.verdict import Findings
from mtpforge.engines.vllm.loader import constructing, forward, stand_in
from mtpforge.engines.vllm.loader.request import Request

PRODUCT = torch.library.Library("aten", "IMPL")  # with another dtype than its factors'; gone when this is


def align_blocks(
    chosen: torch.Tensor,
    n_experts: int,
    block: int,
    rows: torch.Tensor,
    experts: torch.Tensor,
    n_rows: torch.Tensor,
    *_,
) -> None:
    """Rows sorted by their expert, each expert's filled up to whole blocks; the expert of every block."""
    flat, found, of_block = chosen.flatten(), [], []
    for expert in range(n_experts):
        own = (flat == expert).nonzero().flatten().tolist()
        own += [flat.numel()] * (-len(own) % block)
        found += own
        of_block += [expert] * (len(own) // block)
    rows.fill_(flat.numel())
    rows[: len(found)] = torch.tensor(found, dtype=rows.dtype)
    experts.fill_(-1)
    experts[: len(of_block)] = torch.tensor(of_block, dtype=experts.dtype)
    n_rows.fill_(len(found))


def silu_and_mul(into: torch.Tensor, both: torch.Tensor) -> None:
    """SiLU of the first half of every row times the second."""
    gate, up = both.float().chunk(2, -1)
    into.copy_(torch.nn.functional.silu(gate) * up)


def prepare(request: Request) -> None:
    """The stand-ins of the loader's check, and what a forward pass asks for besides."""
    make = stand_in._platform

    def platform_on_cpu(*asked: Any) -> Any:
        platform = make(*asked)
        type(platform).dispatch_key = "CPU"  # vLLM registers its own operators for it
        return platform

    stand_in._platform = platform_on_cpu
    stand_in.prepare(request.capability, "cpu")
    PRODUCT.impl("mm.dtype", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype), "CPU")
    torch.accelerator.empty_cache = lambda: None
    torch.accelerator.max_memory_allocated = lambda *_: 0
    import vllm._custom_ops as operators

    operators.moe_align_block_size = align_blocks
    operators.moe_sum = lambda rows, into, *_: into.copy_(rows.float().sum(1))
    torch.ops._C.silu_and_mul = silu_and_mul
    _without_attention()
    _plain_operators()
    _products_of_bfloat16()


def _without_attention() -> None:
    import vllm.models.deepseek_v32.attention as module

    module.fused_q = lambda *_, **__: (None, None, None)
    module.DeepseekV32Attention._sparse_indexer_and_attn = lambda _self, *given: given[-1].zero_()


def _products_of_bfloat16() -> None:
    """Triton's interpreter (3.9) keeps BF16 as uint16 and multiplies these as they are."""
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    multiply = InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot


def _plain_operators() -> None:
    from vllm.config.kernel import IrOpPriorityConfig
    from vllm.models.deepseek_v32.nvidia import mtp
    from vllm.v1.worker.workspace import is_workspace_manager_initialized

    configure = constructing.configure

    def plain(*asked: Any) -> Any:
        assert asked[-1] == "auto"  # on consumers' Blackwell no attention takes a cache in BF16
        engine = configure(*asked)
        engine.vllm.compilation_config.custom_ops = ["none"]
        engine.vllm.kernel_config.ir_op_priority = IrOpPriorityConfig.with_default(["native"])
        # Kernels of quantized experts are compiled; vLLM can decode them and multiply in BF16 instead.
        engine.vllm.kernel_config.moe_backend = "auto" if engine.vllm.quant_config is None else "emulation"
        return engine

    def construct(engine: Any) -> Any:
        assert is_workspace_manager_initialized()  # constructors of attention on Blackwell ask for it
        return construct_target(engine)

    def normed(states: torch.Tensor, residual: torch.Tensor, norm: Any) -> Any:
        out, added = last_norm(states, residual, norm)
        return states.copy_(out), added  # as the kernel on a GPU

    construct_target, last_norm = constructing.construct_target, mtp.fused_allreduce_rms_norm
    forward.configure, forward.construct_target, mtp.fused_allreduce_rms_norm = plain, construct, normed


def on_cpu(request: Request, findings: Findings) -> None:
    """The pass itself."""
    with forward.one_rank("gloo"):
        forward.forward(request, findings, torch.device("cpu"))


if __name__ == "__main__":
    leave(answer("vllm", Request, prepare, on_cpu, sys.argv[1:]))
