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
import sys
import tempfile
from pathlib import Path

from mtpforge.engines.vllm.loader import stand_in

stand_in.prepare(90, "cpu")

import vllm.model_executor.layers.fused_moe.experts.fused_humming_moe  # noqa: E402
import vllm.utils.humming  # noqa: E402
from target_blocks import KINDS, NAMED, write  # noqa: E402
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


def answered(base, stated, side_files):
    """(verdict, made | refused | not made, what we say, what vLLM says) for a block and its side files."""
    config = base | ({} if stated is None else {"quantization_config": stated})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        verdict, we, they = compared(json.loads(json.dumps(config)), side_files, Path(folder))
    how = "refused" if we.startswith("vLLM refuses") else "not made" if we.startswith("not made") else "made"
    return verdict, how, we, they


def main():
    """Ask, compare, print."""
    base = json.loads(sys.stdin.read())
    prepare(base)
    counts, different = {}, []
    for name, (stated, side_files, wanted) in NAMED.items():
        verdict, how, we, they = answered(base, stated, side_files)
        if (verdict, how) != ("agree", wanted):
            different.append({"n": name, "block": stated, "side files": side_files, "ours": we, "vllm": they})
    seed, n_targets = (int(os.environ.get(f"MTPFORGE_TEST_{key}", default)) for key, default in
                       (("SEED", 0), ("TARGETS", 300)))  # fmt: skip
    for n in range(seed * 1_000_000, seed * 1_000_000 + n_targets):
        rng = random.Random(n)
        kind = rng.choice(KINDS)
        stated, side_files = kind(rng)
        verdict, how, we, they = answered(base, stated, side_files)
        counts[f"{kind.__name__}, {verdict}, {how}"] = counts.get(f"{kind.__name__}, {verdict}, {how}", 0) + 1
        if verdict == "differ":
            different.append({"n": n, "block": stated, "side files": side_files, "ours": we, "vllm": they})
    json.dump({"counts": counts, "different": different}, sys.stdout)


main()
