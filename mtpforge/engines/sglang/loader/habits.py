"""What SGLang 0.5.23 does with parameters and tensors beside loading them.

Source: srt/layers/quantization: create_weights and process_weights_after_loading of each method.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mtpforge.engines.loading.verdict import Habits

if TYPE_CHECKING:
    import torch

# q_a_proj waits for kv_a_proj_with_mqa, wk for its scale and for weights_proj (deepseek_weight_loader.py).
HELD_BACK = re.compile(r"\.self_attn\.")
# Parameters of the KV cache, 1.0 where the checkpoint has none.
_CACHE = re.compile(r"\.(k_scale|v_scale|q_scale)$")
# Method and scheme of a module -> parameters that it declares and never reads, or that are 1.0 unless stored.
_UNUSED = (
    (re.compile(r"/CompressedTensorsWNA16"), re.compile(r"\.(w13_|w2_)?weight_shape$")),
    (re.compile(r"/CompressedTensorsWNA16.*MoE"), re.compile(r"\.w(13|2)_(weight_g_idx|g_idx_sort_indices)$")),
    (re.compile(r"GPTQMarlin"), re.compile(r"\.(w13_|w2_)?g_idx(_sort_indices)?$")),
    (re.compile(r"W4AFp8MoEMethod"), re.compile(r"\.w(13|2)_input_scale$")),
)


def keeps_default(model: torch.nn.Module, parameter: str) -> bool:
    """Whether a parameter has a defined value when the checkpoint has none."""
    if _CACHE.search(parameter):
        return True
    module = model.get_submodule(parameter.rpartition(".")[0])
    scheme = getattr(module, "scheme", None)
    kind = f"{type(getattr(module, 'quant_method', None)).__name__}/{type(scheme).__name__}"
    act_order = getattr(getattr(getattr(module, "quant_method", None), "quant_config", None), "desc_act", False)
    if "g_idx" in parameter and (act_order or getattr(scheme, "actorder", None) == "group"):
        return False
    if any(method.search(kind) and names.search(parameter) for method, names in _UNUSED):
        return True
    # A dense checkpoint that SGLang quantizes by itself: it computes the scales.
    stored = getattr(getattr(model, "quant_config", None), "is_checkpoint_fp8_serialized", True)
    return stored is False and parameter.endswith(("_scale", "_scale_inv"))


HABITS = Habits(
    engine="SGLang",
    shared=re.compile(r"(^model\.embed_tokens|^lm_head)\."),
    # Zero points of GPTQ's experts: for symmetric ones, which it takes alone, it has a place of another dtype.
    unread=re.compile(r"weight_shape$|layers\.\d+\.mlp\.(experts\.\d+|shared_experts)\.\w+\.qzeros$"),
    # One value for gate and up.
    once_a_set=re.compile(r"(weight_shape|input_scale|input_global_scale)$"),
    # The layer's own embedding and head: the target's are used.
    passed_over=re.compile(r"(^|\.)(embed_tokens|shared_head\.head|lm_head)\.weight$"),
    keeps_default=keeps_default,
)
