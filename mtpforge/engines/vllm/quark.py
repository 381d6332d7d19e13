"""vLLM's reading of a Quark block: the list of dense modules, then a config by name, else the one for all.

Of what a config may ask for, MXFP4 alone is made: weights in groups of 32 under exponents, activations as they are or
quantized at run time in another OCP MX format.
Source: vllm quantization/quark/quark.py, quark/utils.py, quark/quark_moe.py, utils/ocp_mx_utils.py (0.33.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Final

from mtpforge.checkpoint.config_groups import MX_GROUP, microscaled
from mtpforge.checkpoint.quantization import QuantConfig
from mtpforge.engines.expressions import exact_or_regex, quoted
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import below, listed
from mtpforge.engines.vllm.refusals import refused, unmade
from mtpforge.tensors import BF16, Quantization

_MXFP4: Final = {"dtype": "fp4", "qscheme": "per_group", "group_size": MX_GROUP, "scale_format": "e8m0"}
_INPUTS: Final = ("fp4", "fp6_e3m2", "fp6_e2m3")


def decide(block: QuantConfig, asked: Asked) -> tuple[Quantization, str]:
    """How vLLM would build a matrix, and which entry decided. For experts any excluded name below theirs counts."""
    if block.raw.get("export") is None:
        raise refused("vLLM takes no such Quark block", "export", "`The export key should be included`")
    entry = (below(asked, block.ignore) if asked.experts else None) or listed(
        asked, block.ignore, exact_or_regex, "exclude"
    )
    if entry is not None:
        return BF16, f"exclude entry `{quoted(entry)}`"
    found = [_config(block, name) for name in (asked.parts if asked.is_fused else (asked.name,))]
    (config, key), *others = found
    if any(other != config for other, _ in others):
        raise refused(
            f"the target gives the parts of `{asked.name}` different configs",
            "layer_quant_config",
            "`Found a different quantization configuration`",
            "make their entries alike in the target's config",
        )
    return _quantization(asked, config), key


def _config(block: QuantConfig, name: str) -> tuple[object, str]:
    """QuarkConfig.get_layer_quant_config_from_name: an entry without `*` names whatever it contains the name of."""
    layers = block.raw.get("layer_quant_config")
    for entry, config in layers.items() if isinstance(layers, Mapping) else ():
        if fnmatch(name, entry) if "*" in entry else name in entry:
            return config, f"layer_quant_config entry `{quoted(entry)}`"
    return block.raw.get("global_quant_config"), "global_quant_config, no exclude entry"


def _quantization(asked: Asked, config: object) -> Quantization:
    said = config if isinstance(config, Mapping) else {}
    weight, inputs = (_one(said.get(key)) for key in ("weight", "input_tensors"))
    is_mxfp4 = all(weight.get(key) == value for key, value in _MXFP4.items()) and not weight.get("is_dynamic")
    is_known = not inputs or (inputs.get("is_dynamic") is True and inputs.get("dtype") in _INPUTS)
    if not is_mxfp4 or not is_known or said.get("output_tensors") or said.get("bias"):
        raise unmade(f"`{asked.name}` quantized by Quark in another way than MXFP4", "global_quant_config")
    return microscaled("quark_mxfp4", 4, "dynamic" if inputs else "none")


def _one(config: object) -> Mapping[str, object]:
    """A list of one entry is that entry; one of several is none of what is made here."""
    if isinstance(config, list):
        config = config[0] if len(config) == 1 else {"dtype": "several"}
    return config if isinstance(config, Mapping) else {}
