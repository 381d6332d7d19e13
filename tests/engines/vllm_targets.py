"""Run by an interpreter with vLLM: what our rules and vLLM's own classes make of random targets.

Every target is a folder, as a user has one: config.json and, for some, side files. Of each our engine is asked for the
scheme; then vLLM's own configs read the folder, its draft class is built at GLM-5.2's sizes (four experts, no values),
and its loader is given exactly the tensors that we expect. Prints one JSON object: how often both said what, and the
first targets where they differ.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import random
import struct
import sys
import tempfile
from pathlib import Path

from mtpforge.engines.vllm.loader import stand_in

stand_in.prepare(90, "cpu")

import vllm.model_executor.layers.fused_moe.experts.fused_humming_moe  # noqa: E402
import vllm.utils.humming  # noqa: E402
from vllm.model_executor.layers.quantization.utils.humming import priority  # noqa: E402
from vllm.model_executor.model_loader.utils import configure_quant_config, get_model_architecture  # noqa: E402

from mtpforge.checkpoint import open_checkpoint  # noqa: E402
from mtpforge.engines import ENGINES  # noqa: E402
from mtpforge.engines.expected import expected  # noqa: E402
from mtpforge.engines.vllm.loader import check as loader  # noqa: E402
from mtpforge.engines.vllm.loader.request import Request  # noqa: E402
from mtpforge.engines.vllm.loader.verdict import Findings  # noqa: E402
from mtpforge.errors import MtpforgeError  # noqa: E402
from mtpforge.families import family_of  # noqa: E402
from mtpforge.scheme import Rule, Scheme  # noqa: E402
from mtpforge.tensors import BF16  # noqa: E402

VLLM = ENGINES["vllm"]
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
            {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
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


KINDS = (compressed_tensors,) * 6 + (modelopt,) * 4 + (fp8,) * 2 + (others,)


DENSE = Scheme("dense", (Rule("*", BF16, "-"),))


def ours(target, family):
    """(scheme, draft's config, its tensors) as we make them, or how we refuse: in vLLM's name, or in our own."""
    try:
        scheme = VLLM.demands(target, None, family)
        draft = VLLM.draft_config(target, target.config, family, scheme, 4)
        return (scheme, draft, expected(scheme, family, draft, 78, 4)), ""
    except MtpforgeError as error:
        said = f"{error.what} ({error.why})"
        return None, ("vLLM refuses: " if "vLLM" in said else "not made yet: ") + said


def write(folder, config, specs):
    """A checkpoint of a config and headers alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, spec in specs.items():
        offsets = [end, end := end + spec.n_bytes]
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


def theirs(target, draft):
    """What vLLM says: "" for a draft that it loads whole, how it refuses the target, or what it misses in the draft."""
    findings = Findings()
    try:
        loader.check(Request(str(target), str(draft)), findings)
    except loader.RefusedError as error:
        kind = "vLLM misses" if str(error).startswith("load_weights") else "vLLM refuses"
        return f"{kind}: {error}"
    return f"vLLM misses: {findings.errors[0]}" if findings.errors else ""


def compared(config, side_files, folder):
    """(agree | honest | differ, what we say, what vLLM says) for one target."""
    (folder / "target").mkdir()
    (folder / "target" / "config.json").write_text(json.dumps(config))
    for name, block in side_files.items():
        (folder / "target" / name).write_text(json.dumps(block))
    target = open_checkpoint(str(folder / "target"))
    family = family_of(config)
    made, refusal = ours(target, family)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    _, draft, specs = made or (DENSE, plain, expected(DENSE, family, plain, 78, 4))
    write(folder / "draft", draft, specs)
    said = theirs(folder / "target", folder / "draft")
    if made is not None:
        return ("agree" if not said else "differ"), made[0].name, said
    if said.startswith("vLLM refuses"):
        return "agree" if refusal.startswith("vLLM") else "honest", refusal, said
    return "honest" if refusal.startswith("not made") else "differ", refusal, said or "vLLM builds it dense"


def fused_names_alone(engine):
    """In the place of the target's class, which would take most of the time: it hands its fused names on."""
    if engine.vllm.quant_config is not None:
        configure_quant_config(engine.vllm.quant_config, get_model_architecture(engine.target)[0])
    return {}


class GemmType(enum.Enum):
    """humming.config.GemmType of humming-kernels 0.1.19, in the order that vLLM tries them."""

    GROUPED_MASKED = "grouped_masked"
    GROUPED_CONTIGUOUS = "grouped_contiguous"
    INDEXED = "indexed"


def stand_in_for_humming():
    """vLLM's wheel requires humming-kernels, which has kernels for every integer and needs triton to be imported.

    Hopper prefers it to Marlin for experts too, and then takes none with one scale a channel; other GPUs do not, nor
    does Hopper with `--moe-backend marlin`.
    """
    vllm.utils.humming.GemmType = GemmType
    priority.prefers_humming = lambda *_: False
    for module in list(sys.modules.values()):
        if module.__name__.startswith("vllm.") and "has_humming" in vars(module):
            module.has_humming = lambda: True


def prepare(base):
    """Construct one target: its class adds to the table of fused names when it is constructed, and imports the rest."""
    block = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": [], "config_groups": {
        "all": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        verdict, _, said = compared(base | {"quantization_config": block}, {}, Path(folder))
    assert verdict == "agree", said
    stand_in_for_humming()
    loader._construct_target = fused_names_alone


def main():
    """Ask, compare, print."""
    base = json.loads(sys.stdin.read())
    prepare(base)
    seed, n_targets = (int(os.environ.get(f"MTPFORGE_TEST_{key}", default)) for key, default in
                       (("SEED", 0), ("TARGETS", 300)))  # fmt: skip
    counts, different = {}, []
    for n in range(seed * 1_000_000, seed * 1_000_000 + n_targets):
        rng = random.Random(n)
        kind = rng.choice(KINDS)
        block, side_files = kind(rng)
        config = base | ({} if block is None else {"quantization_config": block})
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            verdict, we, they = compared(json.loads(json.dumps(config)), side_files, Path(folder))
        how = "refused" if "refuses" in we else "not made" if "not made" in we else "made"
        counts[f"{kind.__name__}, {verdict}, {how}"] = counts.get(f"{kind.__name__}, {verdict}, {how}", 0) + 1
        if verdict == "differ":
            different.append({"n": n, "block": block, "side files": side_files, "ours": we, "vllm": they})
    json.dump({"counts": counts, "different": different}, sys.stdout)


main()
