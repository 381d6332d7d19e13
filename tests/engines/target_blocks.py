"""Quantization blocks of targets: edits that were answered wrongly once, and random ones of every kind.

A function of KINDS takes a random.Random and gives the block of config.json (None: no key) and the side files by name.
"""

from __future__ import annotations

import json
import struct

P = "model.layers.78."
LINEARS = [
    f"{P}{name}"
    for name in (
        "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.fused_qkv_a_proj", "self_attn.q_b_proj",
        "self_attn.kv_b_proj", "self_attn.o_proj", "self_attn.indexer.wq_b", "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj", "mlp.shared_experts.gate_up_proj",
    )
]  # fmt: skip
EXPERTS = [f"{P}mlp.experts.0.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
# Layers that a hand edit leaves alone, each as somebody would write it.
IGNORED = (
    [], [], [], ["lm_head"], ["re:.*layers\\.78\\..*"], ["re:.*[[:digit:]]+[.]self_attn.*"], [f"{P}mlp.experts"],
    [f"re:{P}self_attn[.].*"], ["re:.*indexer.*"], ["re:.*mlp[.]experts[.].*"], EXPERTS, EXPERTS[:2],
    ["re:.*shared_experts.*"], LINEARS[:2], LINEARS[:1], [LINEARS[5]], LINEARS, [f"{P}mlp.shared_experts.down_proj"],
)  # fmt: skip
WILD = (
    None, None, [], ["lm_head"], ["model.layers.78*"], ["model.layers.78"], ["*self_attn*"], [f"{P}mlp.experts*"],
    ["*indexer*"], ["*.mlp.experts.*"], ["model.layers.7"], LINEARS[:2], LINEARS[:1], [f"{P}self_attn.o_proj"],
)  # fmt: skip


def weights(rng):
    """Arguments of weights: most are what is published, some no engine takes."""
    kinds = (
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": rng.choice((32, 64, 128, 128, 256, 2048))},
        {"num_bits": 8, "type": "int", "strategy": "group", "group_size": rng.choice((32, 128))},
        {"num_bits": rng.choice((2, 3, 5, 6, 7)), "type": "int", "strategy": "group", "group_size": 128},
        {"num_bits": rng.choice((2, 3, 4, 5, 6, 7, 8, 8)), "type": "int", "strategy": "channel"},
        {"num_bits": 4, "type": "int", "group_size": rng.choice((-1, 128))},
        {"num_bits": 8, "type": "float", "strategy": "tensor"},
        {"num_bits": 8, "type": "float", "strategy": "channel"},
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": rng.choice(
            ([128, 128], [128, 128], "128x128", [1, 128], [64, 64]))},
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "scale_dtype": rng.choice(
            (None, "torch.float8_e4m3fn"))},
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": rng.choice((16, 32))},
        {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    )  # fmt: skip
    made = dict(rng.choice(kinds), symmetric=rng.random() < 0.8)
    if rng.random() < 0.1:
        made["actorder"] = rng.choice((None, "static", "weight", "group"))
    return made


ACTIVATIONS = (
    None,
    {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": True},
    {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False},
    {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128, "dynamic": True},
    {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False},
    {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local"},
)


def activations(rng, of):
    """What stands beside such weights, or anything."""
    if rng.random() < 0.25:
        found = rng.choice(ACTIVATIONS)
    elif of["type"] == "int":
        found = rng.choice((None, None, ACTIVATIONS[1], ACTIVATIONS[5]))
    else:
        found = rng.choice(ACTIVATIONS[:5] if of["num_bits"] == 8 else (None, ACTIVATIONS[7]))
    return found and dict(found, symmetric=rng.random() < 0.9)


def stored_as(rng, of, inputs):
    """The format that llm-compressor would name, or another."""
    if rng.random() < 0.15:
        return rng.choice(
            ("pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized", "naive-quantized", "dense",
             "mixed-precision", None)
        )  # fmt: skip
    if of["type"] == "int":
        return "int-quantized" if of["num_bits"] == 8 and inputs and rng.random() < 0.7 else "pack-quantized"
    return "nvfp4-pack-quantized" if of["num_bits"] == 4 else "float-quantized"


def group(rng, targets):
    """One config group."""
    of = weights(rng)
    inputs = activations(rng, of)
    return {"targets": targets, "weights": of, "input_activations": inputs, "format": stored_as(rng, of, inputs)}


def compressed_tensors(rng):
    """A compressed-tensors block of one or two groups."""
    first = group(rng, rng.choice((["Linear"], ["Linear"], ["Linear"], [f"re:{P}.*"], LINEARS + EXPERTS, EXPERTS)))
    groups = {"group_0": first}
    if rng.random() < 0.3:
        groups["group_1"] = group(
            rng, rng.choice((["re:.*experts.*"], [f"re:{P}self_attn[.].*"], ["re:.*shared_experts.*"], ["Attention"]))
        )
    whole = first["format"] if len(groups) == 1 or rng.random() < 0.3 else "mixed-precision"
    if rng.random() < 0.5 and len(groups) == 1:
        del first["format"]
    elif rng.random() < 0.15:
        for each in groups.values():
            each["format"] = None
    method = rng.choice(("compressed-tensors",) * 12 + ("compressed_tensors", "sparseml", "Compressed-Tensors"))
    return {
        "quant_method": method,
        "format": whole,
        "ignore": list(rng.choice(IGNORED)),
        "config_groups": groups,
    }, {}


def fp8(rng):
    """A block of method fp8."""
    block = {"quant_method": "fp8", "activation_scheme": rng.choice(("dynamic", "dynamic", "dynamic", "static", None))}
    if block["activation_scheme"] is None and rng.random() < 0.7:
        del block["activation_scheme"]
    size = rng.choice(([128, 128], [128, 128], None, [1, 128], [64, 64], [128], [256, 128]))
    block |= {"weight_block_size": size} if size or rng.random() < 0.5 else {}
    for key in ("ignored_layers", "modules_to_not_convert"):
        if rng.random() < 0.4:
            block[key] = rng.choice(
                ([], LINEARS[:2], LINEARS[:1], [LINEARS[5]], [f"{P}mlp.experts"], EXPERTS, [P[:-1]])
            )
    if rng.random() < 0.03:
        block["store_dtype"] = "mxfp4"
    return block, {}


ALGOS = ("NVFP4", "NVFP4", "FP8", "W4A16_NVFP4", "MIXED_PRECISION", "nvfp4", "FP8_PB_WO", "FP8_PER_CHANNEL_PER_TOKEN",
         "MXFP8", "NVFP4_AWQ", "")  # fmt: skip


def layers(rng):
    """quantized_layers of mixed precision: whole parts of the layer, some with a mistake."""
    algo = {"quant_algo": rng.choice(("NVFP4", "W4A16_NVFP4", "FP8", "FP8", "nvfp4")), "group_size": 16}
    other = {"quant_algo": rng.choice(("NVFP4", "FP8", "MXFP8"))}
    chosen = rng.sample(LINEARS, rng.randrange(0, 6)) + rng.choice(([], EXPERTS, EXPERTS[:1], [f"{P}mlp.experts"]))
    made = {name: dict(algo if rng.random() < 0.85 else other) for name in chosen}
    return made or rng.choice(({}, {"model.layers.3.self_attn.o_proj": algo}))


def modelopt_pair(rng):
    """The same facts as config.json says them, and as hf_quant_config.json does."""
    algo = rng.choice(ALGOS)
    flat = {"quant_method": rng.choice(("modelopt",) * 6 + ("modelopt_fp4", "modelopt_mixed")), "quant_algo": algo}
    nested = {"quant_algo": algo, "kv_cache_quant_algo": None, "group_size": 16}
    for block, key in ((flat, "ignore"), (flat, "exclude_modules"), (nested, "exclude_modules"), (nested, "ignore")):
        if (wild := rng.choice(WILD)) is not None and rng.random() < 0.8:
            block[key] = [*wild, ""] if rng.random() < 0.05 else list(wild)
    if rng.random() < 0.7:
        nested.setdefault("exclude_modules", [])
    for block in (flat, nested):
        if algo == "MIXED_PRECISION" and rng.random() < 0.6:
            block["quantized_layers"] = layers(rng)
    return flat, nested


def modelopt(rng):
    """A ModelOpt export: config.json, hf_quant_config.json or both, as its versions and hand edits leave them."""
    flat, nested = modelopt_pair(rng)
    if "NVFP4" in flat["quant_algo"] and rng.random() < 0.4:
        inputs = rng.choice((None, {"num_bits": 4, "type": "float", "group_size": 16}))
        args = {"num_bits": 4, "type": "float", "group_size": 16}
        flat["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": args, "input_activations": inputs}}
    if rng.random() < 0.4:
        flat["group_size"] = rng.choice((16, 16, 16, 32))
    side = {"producer": {"name": rng.choice(("modelopt",) * 8 + ("other",))}, "quantization": nested}
    where = rng.random()
    if where < 0.4:
        return flat, {}
    if where < 0.5:
        return {"quant_method": "modelopt", "quantization": nested}, {}
    return (flat if where < 0.75 else None), {"hf_quant_config.json": side}


def others(rng):
    """Methods that are not made, are none, or are named nowhere."""
    block = rng.choice(
        (
            {"quant_method": "fbgemm_fp8"},
            {"quant_method": "w4afp8"},
            {
                "quant_method": "quark",
                "export": {"kv_cache_group": [], "pack_method": "reorder"},
                "exclude": [f"{P}mlp.experts.0.gate_proj", *LINEARS],
            },
            {},
            None,
        )
    )
    made = [compressed_tensors(rng)[0], fp8(rng)[0]]
    for each in made:
        each.pop("quant_method")
    if rng.random() < 0.3:
        return rng.choice(made), {}
    if rng.random() < 0.3:
        return None, {rng.choice(("quantization_config.json", "quantize_config.json")): compressed_tensors(rng)[0]}
    return block, {}


def block(of, inputs=None, form="pack-quantized", targets=("Linear",), **more):
    """A compressed-tensors block of one group."""
    args = {"targets": list(targets), "weights": of, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": args}} | more


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
FP8 = {"num_bits": 8, "type": "float"}
FP4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "is_dynamic": False}
FP8_IN_32 = FP4 | {"dtype": "fp8_e4m3"}
QUARK_INT4 = {"dtype": "int4", "qscheme": "per_group", "group_size": 128, "symmetric": True, "is_dynamic": False}
QUARK_UINT4 = QUARK_INT4 | {"dtype": "uint4", "symmetric": False}
MXFP8 = {"weight": FP8_IN_32, "input_tensors": FP8_IN_32 | {"is_dynamic": True}}


def quark(inputs=None, **more):
    """A Quark block that leaves what its releases leave: every attention."""
    return {
        "quant_method": "quark",
        "export": {"kv_cache_group": [], "pack_method": "reorder"},
        "global_quant_config": {"weight": FP4, "input_tensors": inputs, "output_tensors": None, "bias": None},
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "exclude": ["re:.*self_attn.*", "lm_head"],
    } | more


def spec(dtype, qscheme, dynamic, **more):
    """Weights or activations, in Quark's words."""
    return {"dtype": dtype, "qscheme": qscheme, "symmetric": True, "is_dynamic": dynamic} | more


PTPC = {
    "weight": spec("fp8_e4m3", "per_channel", False, ch_axis=0),
    "input_tensors": spec("fp8_e4m3", "per_channel", True, ch_axis=1),
}


def quark_config(rng):
    """Weights and activations: most are what Quark makes, some no engine takes."""
    weights = rng.choice((
        FP4, FP4, FP8_IN_32, QUARK_INT4, QUARK_UINT4 | {"group_size": rng.choice((32, 64, 128, 1024))},
        spec("fp8_e4m3", "per_tensor", False), spec("fp8_e4m3", "per_channel", False, ch_axis=0),
        spec("fp8_e4m3", "per_block", False, block_size=rng.choice(([128, 128], [128, 128], [64, 64], None))),
        spec("int8", "per_channel", False, ch_axis=0), spec("int8", "per_tensor", False),
    ))  # fmt: skip
    kind = weights["dtype"] if weights["dtype"] != "fp4" or rng.random() < 0.7 else "fp8_e4m3"
    inputs = rng.choice((
        None, spec(kind, "per_tensor", False), spec(kind, "per_tensor", True), spec(kind, "per_channel", True),
        spec(kind, "per_group", True, group_size=128), FP4 | {"is_dynamic": True},
    ))  # fmt: skip
    if rng.random() < 0.6:  # what belongs together
        match weights["qscheme"]:
            case "per_channel":
                inputs = spec(kind, "per_channel", True)
            case "per_block":
                inputs = spec(kind, "per_group", True, group_size=128)
            case "per_group" if "int" in kind:
                inputs = None
            case "per_group":
                inputs = rng.choice((None, weights | {"is_dynamic": True}))
    return {"weight": weights, "input_tensors": inputs, "output_tensors": None, "bias": None}


def quarks(rng):
    """A Quark export, or a hand edit of one."""
    made = quark()
    made["global_quant_config"] = quark_config(rng)
    made["exclude"] = ["lm_head", *rng.choice(([], ["re:.*self_attn.*"], ["re:.*self_attn.*"], *IGNORED))]
    if rng.random() < 0.5:
        names = ("*mlp.experts*", "*self_attn*", "*shared_experts*", *LINEARS, f"{P}mlp.experts", "*")
        made["layer_quant_config"] = {name: quark_config(rng) for name in rng.sample(names, rng.randrange(1, 4))}
    if rng.random() < 0.1:
        made["layer_type_quant_config"] = {"Linear": quark_config(rng)}
    if rng.random() < 0.15:
        del made[rng.choice(("export", "exclude", "layer_quant_config", "layer_type_quant_config"))]
    elif rng.random() < 0.1:
        made["export"] = rng.choice(({}, {"kv_cache_group": ["*kv_b_proj"]}, {"kv_cache_group": None}))
    return made, {}


MIXED = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "ignore": ["model.layers.78*"]}
OF_EXPERTS = {EXPERTS[0]: {"quant_algo": "NVFP4", "group_size": 16}}
SIDE = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": OF_EXPERTS},
}
# Hand edits and rare schemes that were answered wrongly once, always asked: (block, side files, what both must say).
NAMED = {
    "mxfp4 of quark": (quark(), {}, "made"),
    "mxfp4 of quark beside mxfp4 activations": (quark(FP4 | {"is_dynamic": True}), {}, "made"),
    "mxfp4 of quark, experts by name": (
        quark(global_quant_config={"weight": None},
              layer_quant_config={"*mlp.*experts*": quark()["global_quant_config"]}), {}, "made"),
    "mxfp4 experts and fp8 attention of quark": (
        quark(exclude=["lm_head"], layer_quant_config={"*self_attn*": PTPC, "*shared_experts*": PTPC}), {}, "made"),
    "fp8 of quark": (quark(global_quant_config=PTPC), {}, "made"),
    "int4 of quark": (quark(exclude=["lm_head"], global_quant_config={"weight": QUARK_INT4}), {}, "made"),
    "uint4 of quark, not reordered": (
        quark(exclude=["lm_head"], global_quant_config={"weight": [QUARK_UINT4 | {"group_size": 32}]},
              export={"kv_cache_group": [], "pack_method": "order"}), {}, "made"),
    "int4 of quark without groups": (
        quark(global_quant_config={"weight": {"dtype": "int4", "symmetric": True}}), {}, "refused"),
    "mxfp8 of quark": (quark(global_quant_config=MXFP8), {}, "made"),
    "mxfp8 of quark's attention, activations as they are": (
        quark(exclude=["re:.*mlp.*", "lm_head"], global_quant_config=MXFP8 | {"input_tensors": None}), {}, "made"),
    "mxfp8 of quark's experts, activations as they are": (
        quark(global_quant_config=MXFP8 | {"input_tensors": None}), {}, "refused"),
    "int8 of quark": (
        quark(global_quant_config={
            "weight": spec("int8", "per_channel", False), "input_tensors": spec("int8", "per_channel", True)}),
        {}, "made"),
    "quark with an export that says nothing": (quark(export={"pack_method": "reorder"}), {}, "refused"),
    "quark without types of layers": (
        {key: value for key, value in quark().items() if key != "layer_type_quant_config"}, {}, "refused"),
    "mixed precision, layers in the side file": (MIXED, {"hf_quant_config.json": SIDE}, "made"),
    "fp8 rows of modelopt": (
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "ignore": [f"{P}mlp.experts*"]},
        {}, "made"),
    "fp8 blocks of modelopt": (
        {"quant_method": "modelopt", "quant_algo": "fp8_pb_wo", "ignore": [f"{P}mlp.experts*"]}, {}, "made"),
    "mixed precision of three algorithms": (
        MIXED | {"ignore": [], "quantized_layers": OF_EXPERTS | {
            LINEARS[5]: {"quant_algo": "FP8_PB_WO"}, LINEARS[3]: {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}}},
        {}, "made"),
    "mixed precision without layers": (MIXED, {}, "refused"),
    "int4 g128 beside fp8 activations": (block(INT4, ACTIVATIONS[1]), {}, "made"),
    "int4 beside int8 activations": (block(INT4, ACTIVATIONS[5], targets=["re:.*self_attn.*"]), {}, "made"),
    "int8 packed beside int8 activations": (
        block(INT4 | {"num_bits": 8}, ACTIVATIONS[5], targets=["re:.*shared_experts.*"]), {}, "made"),
    "int8 experts with zero points": (block(INT4 | {"num_bits": 8, "symmetric": False}), {}, "refused"),
    "fp8 experts tensor x token": (
        block(FP8 | {"strategy": "tensor"}, ACTIVATIONS[1], "float-quantized"), {}, "refused"),
    "fp8 experts channel x dynamic tensor": (
        block(FP8 | {"strategy": "channel"}, ACTIVATIONS[2], "float-quantized"), {}, "refused"),
    "int6 experts per channel": (block({"num_bits": 6, "type": "int", "strategy": "channel"}), {}, "refused"),
    "fp8 without activation_scheme": ({"quant_method": "fp8"}, {}, "refused"),
    "fp8 rows of 128 on experts": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [1, 128]}, {}, "refused"),
    "weight-only nvfp4 in the side file alone": (
        None, {"hf_quant_config.json": SIDE | {"quantization": {"quant_algo": "W4A16_NVFP4"}}}, "refused"),
    "mixed-precision, no format in the group": (block(INT4, form="mixed-precision"), {}, "refused"),
    "groups of 2048 on kv_b_proj": (block(INT4 | {"group_size": 2048}, targets=["re:.*kv_b_proj"]), {}, "refused"),
    "an empty entry": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [""]}, {}, "made"),
    "a file that is not read": (None, {"quantization_config.json": block(INT4)}, "made"),
    "no method": ({"config_groups": block(INT4)["config_groups"]}, {}, "made"),
    "sparseml": (block(INT4, quant_method="sparseml"), {}, "refused"),
    "a class of digits": (block(INT4, ignore=["re:.*layers[.][[:digit:]]+[.]mlp[.].*"]), {}, "made"),
    "a block as text": (
        block(FP8 | {"strategy": "block", "block_structure": "128x128"}, ACTIVATIONS[1], "float-quantized"),
        {}, "made"),
}  # fmt: skip


KINDS = (compressed_tensors,) * 6 + (modelopt,) * 4 + (fp8,) * 2 + (others,) + (quarks,) * 3


def write(folder, config, specs):
    """A checkpoint of a config and headers alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_headers(folder / "model.safetensors", specs)


def write_headers(path, specs):
    """A file of headers alone."""
    header, end = {}, 0
    for name, spec in specs.items():
        offsets = [end, end := end + spec.n_bytes]
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
