"""Tiny releases in forms that are published and not stored here: the same numbers under other names.

An FP8 layer inside an INT4 model, told by a block of its own, is dnhkng's. NVFP4 as compressed-tensors stores it is
ModelOpt's with these names:

ModelOpt            compressed-tensors
weight              weight_packed
weight_scale        weight_scale
weight_scale_2      weight_global_scale, 1 / x, [1]
input_scale         input_global_scale, 1 / x, [1]
"""

from __future__ import annotations

import json
import shutil

from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
_FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
BLOCK = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": [r"re:.*mlp\.experts\.\d+\..*"],
            "weights": {**_FP4, "dynamic": False},
            "input_activations": {**_FP4, "dynamic": "local"},
        }
    },
    "ignore": [
        "lm_head",
        r"re:.*self_attn\..*",
        r"re:.*shared_experts\..*",
        r"re:model\.layers\.0\..*",
        "re:.*eh_proj",
    ],
}
_NAMES = {"weight": "weight_packed", "weight_scale_2": "weight_global_scale", "input_scale": "input_global_scale"}


def nvfp4_of_compressed_tensors(modelopt, out):
    """The folder, written to `out`; experts alone are quantized, as in `modelopt`."""
    out.mkdir()
    for path in modelopt.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("config.json", "hf_quant_config.json", INDEX):
            shutil.copy(path, out)
    weight_map = {}
    for path in sorted(modelopt.glob("*.safetensors")):
        held = dict(_respelled(load_file(path)))
        save_file(held, out / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, path.name)
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = json.loads((modelopt / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": BLOCK}))
    return out


def layer_under_its_own_block(model, fp8, out, size=128):
    """The model with the FP8 release's layer 3 in a shard of its own. size: of its blocks, 128 as released or 64."""
    shutil.copytree(model, out)
    held = {}
    for path in sorted(fp8.glob("*.safetensors")):
        held |= {name: tensor for name, tensor in load_file(path).items() if name.startswith("model.layers.3.")}
    for name in [name for name in held if name.endswith("weight_scale_inv")] if size == 64 else ():
        # The same values: every block of 128 becomes up to four of one scale.
        rows, columns = (-(-n // 64) for n in held[name.removesuffix("_scale_inv")].shape)
        held[name] = held[name].repeat_interleave(2, 0).repeat_interleave(2, 1)[:rows, :columns].contiguous()
    save_file(held, out / "model-mtp.safetensors", metadata={"format": "pt"})
    index = json.loads((out / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(held, "model-mtp.safetensors")
    (out / INDEX).write_text(json.dumps(index))
    block = json.loads((fp8 / "config.json").read_text())["quantization_config"]
    config = json.loads((out / "config.json").read_text())
    config["mtp_quantization_config"] = block | {"weight_block_size": [size, size]}
    (out / "config.json").write_text(json.dumps(config))
    return out


def _respelled(tensors):
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".")
        if ".experts." not in name:
            yield name, tensor
            continue
        inverse = suffix in ("weight_scale_2", "input_scale")
        yield f"{module}.{_NAMES.get(suffix, suffix)}", tensor.float().reciprocal().reshape(1) if inverse else tensor
