"""Random blocks of AWQ, GPTQ and AutoRound, and headers of targets whose block has no list of modules."""

from __future__ import annotations

from target_blocks import EXPERTS, LINEARS, P

SUBSTRINGS = (
    None, None, None, [], ["lm_head"], ["model.layers.78."], ["self_attn"], ["experts"], ["mlp.experts"], ["indexer"],
    ["layers.7"], EXPERTS, LINEARS, LINEARS[:2], LINEARS[:1], [LINEARS[2]], ["o_proj", "mlp.gate"], ["q_a_proj"],
    ["kv_b_proj", "shared_experts"],
)  # fmt: skip
SIZES = (32, 64, 128, 128, 128, 128, 128, 128, -1, 16, 256, 1024)


def headers(rng, codes):
    """Tensors of the target that tell which modules are quantized: some of layer 3, some of the MTP layer."""
    found = {}
    for prefix in ("model.layers.3.", P):
        for name in LINEARS + EXPERTS:
            if "fused" in name or "gate_up" in name or (prefix == P and rng.random() < 0.5):
                continue
            module = name.replace(P, prefix)
            quantized = prefix != P or rng.random() < 0.7
            found |= {f"{module}.qweight": "I32", f"{module}.scales": "F16"} if quantized and codes else {}
            found |= {} if quantized else {f"{module}.weight": rng.choice(("BF16", "F16", "F32", "F8_E4M3"))}
    found |= {f"{prefix}mlp.gate.weight": "BF16", "model.norm.weight": "BF16", "lm_head.weight": "BF16"}
    return {"model.safetensors": found}


def beside(rng, block, key):
    """The headers, for most blocks without a list."""
    if block.get(key) and rng.random() < 0.9:
        return {}
    return headers(rng, rng.random() < 0.9) if rng.random() < 0.8 else {}


def awq(rng):
    """An AutoAWQ export, some with a hand edit."""
    block = {"quant_method": rng.choice(("awq",) * 6 + ("AWQ", "auto_awq")), "version": "gemm"}
    block[rng.choice(("bits",) * 5 + ("w_bit",))] = rng.choice((4,) * 12 + (8, 3))
    block[rng.choice(("group_size",) * 5 + ("q_group_size",))] = rng.choice(SIZES)
    block["zero_point"] = rng.random() < 0.92
    if rng.random() < 0.05:
        del block[rng.choice([key for key in block if key != "quant_method"])]
    if (listed := rng.choice(SUBSTRINGS)) is not None or rng.random() < 0.5:
        block["modules_to_not_convert"] = listed
    if rng.random() < 0.1:
        block["lm_head"] = True
    return block, beside(rng, block, "modules_to_not_convert")


def rules(rng):
    """`dynamic` of GPTQModel: what is skipped, what has other bits."""
    patterns = (
        "-:.*layers\\.78\\..*", "-:.*self_attn.*", "-:.*mlp\\.experts.*", "-:.*experts\\.0\\..*", "-:.*indexer.*",
        f"-:{P}self_attn\\.q_a_proj", "-:.*fused_qkv_a_proj", "-:lm_head", "+:.*o_proj", "+:.*experts$", ".*gate_up.*",
        "+:.*down_proj", "-:.*\\.7[0-7]\\..*", "+:.*layers.78.*", "-:layers.78.*",
    )  # fmt: skip
    of = ({}, {"bits": 8}, {"bits": 8, "group_size": 64}, {"group_size": 32}, {"sym": False}, {"bits": 3},
          {"desc_act": True}, {"group_size": -1}, {"bits": 4, "sym": True})  # fmt: skip
    return {
        pattern: {} if pattern[0] == "-" else dict(rng.choice(of)) for pattern in rng.sample(patterns, rng.randrange(4))
    }


def gptq(rng):
    """A GPTQModel or AutoGPTQ export, some with a hand edit."""
    block = {
        "quant_method": rng.choice(("gptq",) * 6 + ("GPTQ", "auto_gptq")),
        "bits": rng.choice((4,) * 8 + (8,) * 4 + (3,)),
        "group_size": rng.choice(SIZES),
        "desc_act": rng.random() < 0.06,
        "sym": rng.random() < 0.95,
    }
    if rng.random() < 0.05:
        del block[rng.choice(sorted(block)[:-2])]
    if rng.random() < 0.6:
        block["dynamic"] = rng.choice((rules(rng), rules(rng), rules(rng), None))
    if rng.random() < 0.4:
        block["checkpoint_format"] = rng.choice(("gptq", "gptq", "gptq_v2", "gptq_v2"))
    if (listed := rng.choice(SUBSTRINGS)) is not None:
        block["modules_in_block_to_quantize"] = [[each] for each in listed] if rng.random() < 0.3 else listed
    if rng.random() < 0.1:
        block["lm_head"] = True
    return block, beside(rng, block, "modules_in_block_to_quantize")


def auto_round(rng):
    """An AutoRound export, some with a hand edit."""
    packing = rng.choice(("auto_round:auto_gptq",) * 5 + ("auto_round:auto_awq",) * 4 + (None, "auto_round"))
    block = {
        "quant_method": rng.choice(("auto-round",) * 8 + ("inc",)),
        "bits": rng.choice((4,) * 9 + (8, 8, 8, 3, 16)),
        "group_size": rng.choice(SIZES),
        "sym": rng.random() < (0.3 if packing == "auto_round:auto_awq" else 0.95),
        "data_type": rng.choice(("int",) * 12 + ("fp", "nonsense")),
    }
    block |= {"packing_format": packing} if packing else {}
    if rng.random() < 0.03:
        del block[rng.choice(("bits", "group_size"))]
    if rng.random() < 0.1:
        block["backend"] = rng.choice(("auto", "gptq:marlin", "marlin", "gptq", "awq", "exllama"))
    if rng.random() < 0.4:
        block[rng.choice(("block_name_to_quantize",) * 4 + ("to_quant_block_names",))] = rng.choice(
            (
                "model.layers",
                ["model.layers"],
                "model.layers.3,model.layers.78",
                "model.layers.3",
                ["model.layers.7"],
                None,
            )
        )
    names = (
        *LINEARS, *EXPERTS, f"{P}mlp.experts", "lm_head", ".*self_attn.*", ".*layers\\.78\\..*", "experts", "o_proj",
        ".*q_a_proj", "mlp.experts$", "model.layers.78.mlp.gate", "^(", ".*indexer.*", f"{P}self_attn", ".*shared.*",
    )  # fmt: skip
    of = ({"bits": 16, "data_type": "float"}, {"bits": 16}, {"bits": 8}, {}, {"bits": 8, "group_size": 64},
          {"sym": False}, {"data_type": "float"}, {"bits": 4, "group_size": 128, "sym": True})  # fmt: skip
    if rng.random() < 0.7:
        block["extra_config"] = {name: dict(rng.choice(of)) for name in rng.sample(names, rng.randrange(4))}
    return block, {}


BY_INPUTS = (awq, gptq, auto_round) * 2
