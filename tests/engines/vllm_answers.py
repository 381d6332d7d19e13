"""Under an interpreter with vLLM: what vLLM's own configs answer for every matrix of the model before the MTP layer.

The questions are vLLM's own: the target's class is constructed once, without values, and every module that asks a
quantization config for its method is kept. Under other blocks the same modules ask again, by the name of every layer.
"""

from __future__ import annotations

import contextlib
import re

import torch
from vllm.config import LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.utils import configure_quant_config, get_model_architecture

# What a method holds of how a matrix is stored; kernels, sizes and the config that made it say nothing of it.
_TELLING = re.compile(
    r"bits|quant|strategy|group_size|symmetric|block|scheme|spec|dynamic|static|a16|input_dtype|activation|pack|format|"
    r"has_zp|actorder|type|key|algo|store"
)
_UNTOLD = (
    "moe_quant_config", "moe_config", "quant_config", "quantization_config", "layer_name", "kernel", "fp8_linear",
)  # fmt: skip
_OF_CONFIG = ("group_size", "quant_method", "weight_block_size", "activation_scheme")
# How the configs keep what a block says of the KV cache: its scales are stored where one of them says something.
_OF_CACHE = ("kv_cache_quant_method", "kv_cache_quant_algo", "kv_cache_scheme")
_PLAIN = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod, UnquantizedFusedMoEMethod)
_DEPTH = 4


class Questions:
    """(name, module) of everything that asked, one layer of each kind standing for all of its kind."""

    def __init__(self, n_dense: int) -> None:
        self.asked: dict[str, torch.nn.Module] = {}
        self.n_dense = n_dense

    @contextlib.contextmanager
    def kept(self):
        """While a model with a compressed-tensors block is constructed."""
        ask = CompressedTensorsConfig.get_quant_method

        def keep(config, layer, prefix):
            self.asked[prefix] = layer
            return ask(config, layer, prefix)

        CompressedTensorsConfig.get_quant_method = keep
        try:
            yield
        finally:
            CompressedTensorsConfig.get_quant_method = ask

    def of_layers(self, n_dense, layers):
        """name -> module for each of these layers: of an attention every part that some layer has."""
        found = {}
        for name, module in self.asked.items():  # of the target's first layers, and of a draft that was built after it
            parts = re.fullmatch(r"(.*\.)?layers\.(\d+)\.(.*)", name)
            for layer in layers if parts and int(parts[2]) <= self.n_dense else ():
                if ".self_attn." in name or (layer < n_dense) == (int(parts[2]) < self.n_dense):
                    found.setdefault(f"{parts[1]}layers.{layer}.{parts[3]}", module)
            if not parts:
                found[name] = module
        return found


def quant_config(folder, overrides=None):
    """vLLM's own config of a target's folder, as `vllm serve` makes it, and the whole config around it."""
    model = ModelConfig(model=str(folder), skip_tokenizer_init=True, max_model_len=4096, hf_overrides=overrides or {})
    made = VllmConfig._get_quantization_config(model, LoadConfig(use_tqdm_on_load=False))
    if made is not None:
        configure_quant_config(made, get_model_architecture(model)[0])
    return model, made


def answers(folder, overrides, asked):
    """name -> what vLLM would build it as; a text where it refuses that matrix, or the block whole."""
    try:
        model, config = quant_config(folder, overrides)
    except Exception as error:  # noqa: BLE001  whatever vLLM raises is its refusal
        return {"": f"refused: {error}"}
    found = {}
    with set_current_vllm_config(VllmConfig(model_config=model)):
        for name, module in asked.items():
            try:
                found[name] = _told(config, module, name)
            except Exception as error:  # noqa: BLE001
                found[name] = f"refused: {type(error).__name__}"
    return found


def _told(config, module, name):
    """The method's class and what it knows of the weights; "plain" for what no block at all would give."""
    module.__dict__.pop("scheme", None)
    method = None if config is None else config.get_quant_method(module, prefix=name)
    if method is None or isinstance(method, _PLAIN):
        return "plain"
    if isinstance(method, BaseKVCacheMethod):
        cache = [getattr(config, key) for key in _OF_CACHE if hasattr(config, key)]
        return "scales of the KV cache" if any(cache) or not cache else "plain"
    return repr((plain(method), plain(getattr(module, "scheme", None))))


def plain(value, depth=0):
    """What an object says of how weights are stored, as text and numbers."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return tuple(plain(each, depth + 1) for each in value)
    if isinstance(value, type):
        return value.__name__
    if depth >= _DEPTH:
        return type(value).__name__
    held = {key: getattr(value, key) for key in dir_of(value)}
    told = {
        key: plain(each, depth + 1)
        for key, each in sorted(held.items())
        if _TELLING.search(key) and not key.startswith("__") and key not in _UNTOLD and not callable(each)
    }
    of_config = getattr(value, "quant_config", None)
    told |= {f"config.{key}": plain(getattr(of_config, key)) for key in _OF_CONFIG if hasattr(of_config, key)}
    return type(value).__name__, tuple(told.items())


def dir_of(value):
    """Names of an object's own attributes, those of slots and named tuples too."""
    fields = getattr(type(value), "model_fields", None) or getattr(type(value), "__dataclass_fields__", None)
    return [*(vars(value) if hasattr(value, "__dict__") else ()), *(fields or ()), *getattr(value, "_fields", ())]


def differences(before, after):
    """name -> (answer before, answer after) of every matrix whose answer is another one.

    What vLLM refuses today, a matrix or a whole target, is nothing that could be disturbed.
    """
    asked = {name: said for name, said in before.items() if not said.startswith("refused")}
    return {name: (said, after.get(name, after.get(""))) for name, said in asked.items() if said != after.get(name)}
