"""What vLLM 0.33.0 does with parameters and tensors beside loading them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mtpforge.engines.loading.verdict import Habits

if TYPE_CHECKING:
    import torch

# Held back in FP8 until their scales have come. `indexer.wk` of DeepSeek's class; the others of
# models/glm5next/common/model.py, _FP8_ATTN_PROJS.
HELD_BACK = re.compile(r"\.(indexer\.wk|q_a_proj|kv_a_proj_with_mqa|q_b_proj|o_proj)\.")
# Parameters with a defined value when the checkpoint has none.
_DEFAULTED = re.compile(
    r"\.(k_scale|v_scale|q_scale|prob_scale|[kvq]_zero_point|w13_bias|w2_bias|(w13_|w2_)?(weight_)?g_idx(_sort_indices)?)$"
)
_INPUT_SCALES = ("input_global_scale", "input_scale")


def keeps_default(model: torch.nn.Module, parameter: str) -> bool:
    """Whether a parameter has a defined value when the checkpoint has none."""
    return (
        bool(_DEFAULTED.search(parameter))
        or (parameter.endswith(_INPUT_SCALES) and _is_weight_only(model, parameter))
        or (parameter.endswith("_zero_point") and _is_quarks_int8(model, parameter))
    )


def _is_weight_only(model: torch.nn.Module, parameter: str) -> bool:
    """Weight-only NVFP4: vLLM makes the input scale and does not use it.

    Experts say so by `use_a16`, ModelOpt's linears by a spec without an activation (quantization/modelopt.py:2710,
    `resolve`, 0.33.0).
    """
    method = getattr(model.get_submodule(parameter.rpartition(".")[0]), "quant_method", None)
    spec = getattr(method, "spec", None)
    return bool(getattr(method, "use_a16", False)) or (spec is not None and getattr(spec, "activation", "") is None)


def _is_quarks_int8(model: torch.nn.Module, parameter: str) -> bool:
    """Quark's INT8 is symmetric: vLLM makes places for zero points and removes them after loading.

    quark/schemes/quark_w8a8_int8.py and quark_moe.py, process_weights_after_loading (0.33.0).
    """
    layer = model.get_submodule(parameter.rpartition(".")[0])
    makers = {type(getattr(layer, name, None)).__name__ for name in ("scheme", "quant_method")}
    return not makers.isdisjoint({"QuarkW8A8Int8", "QuarkW8A8Int8MoEMethod"})


HABITS = Habits(
    engine="vLLM",
    shared=re.compile(r"(^|\.)(embed_tokens|lm_head|shared_head\.head)\."),
    # compressed-tensors' record of the unpacked shape.
    unread=re.compile(r"weight_shape$"),
    # One place per expert for gate_proj's and up_proj's input scale (vLLM wants them equal).
    once_a_set=re.compile(r"(weight_shape|w13_input_scale)$"),
    passed_over=re.compile(r"(?!)"),
    keeps_default=keeps_default,
)
