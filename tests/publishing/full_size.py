"""GLM-5.2 whole, at full size, as tables of names, dtypes and shapes, and as folders of which only headers exist.

All of it follows from the published layer 78 and config.json, nothing from mtpforge: layers of the model have the
modules of layer 78 but for what joins it to them, the first ones a plain MLP, and an indexer where config.json says so.
Number and bytes of the tensors are those of the release (zai-org/GLM-5.2 at b4734de4: 59,585 and 1,506,659,919,872).
"""

from __future__ import annotations

import json
import math

WIDTHS = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I32": 4, "I64": 8}
LAYER = "model.layers.78."
_JOINTS = ("eh_proj.", "enorm.", "hnorm.", "shared_head.")


def model(config, layer):
    """Name -> (dtype, shape) of the whole model in BF16. layer: those of layer 78."""
    hidden, wide, words = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    found = {**layer, "model.norm.weight": ("BF16", (hidden,))}
    found |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), ("BF16", (words, hidden)))
    for number, (indexer, mlp) in enumerate(zip(config["indexer_types"], config["mlp_layer_types"], strict=True)):
        prefix = f"model.layers.{number}."
        for name, spec in layer.items():
            local = name.removeprefix(LAYER)
            is_odd = ".indexer." in local and indexer != "full"
            if not (local.startswith(_JOINTS) or is_odd or (local.startswith("mlp.") and mlp == "dense")):
                found[prefix + local] = spec
        if mlp == "dense":
            up = ("BF16", (wide, hidden))
            found |= {f"{prefix}mlp.gate_proj.weight": up, f"{prefix}mlp.up_proj.weight": up}
            found[f"{prefix}mlp.down_proj.weight"] = ("BF16", (hidden, wide))
    return found


def packed(shape, bits, group):
    """Parts of a symmetric integer weight as compressed-tensors packs it; group None: one scale a row."""
    out, width = shape
    scales = ("BF16", (out, width // group if group else 1))
    return {"weight_packed": ("I32", (out, width * bits // 32)), "weight_scale": scales, "weight_shape": ("I64", (2,))}


def nvfp4(shape):
    """Parts of an NVFP4 weight as compressed-tensors stores it."""
    out, width = shape
    one = ("F32", (1,))
    return {
        "weight_packed": ("U8", (out, width // 2)),
        "weight_scale": ("F8_E4M3", (out, width // 16)),
        "weight_global_scale": one,
        "input_global_scale": one,
    }


def restored(whole, parts_of):
    """The same model otherwise stored. parts_of: module and shape -> its parts, None where it stays as it is."""
    found = {}
    for name, (dtype, shape) in whole.items():
        module, _, suffix = name.rpartition(".")
        parts = parts_of(module, shape) if suffix == "weight" and len(shape) == 2 else None
        found |= {name: (dtype, shape)} if parts is None else {f"{module}.{s}": spec for s, spec in parts.items()}
    return found


def n_bytes(tensors):
    return sum(math.prod(shape) * WIDTHS[dtype] for dtype, shape in tensors.values())


def write(folder, config, tensors, file_of):
    """A folder of sparse files, every tensor of which reads as zeros. file_of: name -> the file that it lies in."""
    files = {}
    for name in tensors:
        files.setdefault(file_of(name), []).append(name)
    folder.mkdir()
    for file, names in files.items():
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            dtype, shape = tensors[name]
            start, end = end, end + math.prod(shape) * WIDTHS[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder
