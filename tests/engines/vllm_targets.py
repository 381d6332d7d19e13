"""Run by an interpreter with vLLM: what our rules and vLLM's own classes make of random targets.

Every target is a folder, as a user has one: config.json and, for some, side files. Of each our engine is asked for the
scheme; then vLLM's own configs read the folder, its draft class is built at GLM-5.2's sizes (four experts, no values),
and its loader is given exactly the tensors that we expect. Then a scheme drawn by lot is asked for beside it:
where our engine restates the target, the loader must take that draft's tensors too, and vLLM must build the main layers
as before. Prints one JSON object: how often both said what, and the first targets where they differ.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from mtpforge.engines.vllm.loader import stand_in

stand_in.prepare(90, "cpu")

import vllm.model_executor.layers.fused_moe.experts.fused_humming_moe  # noqa: E402
import vllm.utils.humming  # noqa: E402
import vllm_answers  # noqa: E402
from target_blocks import KINDS, NAMED, write, write_headers  # noqa: E402
from target_blocks_by_inputs import BY_INPUTS  # noqa: E402
from vllm.model_executor.layers.quantization.utils.humming import priority  # noqa: E402
from vllm.model_executor.model_loader.utils import configure_quant_config, get_model_architecture  # noqa: E402

from mtpforge import scheme as schemes  # noqa: E402
from mtpforge.checkpoint import open_checkpoint  # noqa: E402
from mtpforge.engines import ENGINES, overlay  # noqa: E402
from mtpforge.engines.expected import expected  # noqa: E402
from mtpforge.engines.loading.refusing import RefusedError  # noqa: E402
from mtpforge.engines.loading.verdict import Findings  # noqa: E402
from mtpforge.engines.vllm.loader import check as loader  # noqa: E402
from mtpforge.engines.vllm.loader.request import Request  # noqa: E402
from mtpforge.errors import MtpforgeError  # noqa: E402
from mtpforge.families import family_of  # noqa: E402
from mtpforge.scheme import Rule, Scheme  # noqa: E402
from mtpforge.tensors import BF16, Spec  # noqa: E402

VLLM = ENGINES["vllm"]
DENSE = Scheme("dense", (Rule("*", BF16, "-"),))
MAIN = (0, 3, 7, 40, 77)  # layers that are asked about


def of_kind(preset, **stored):
    """A preset whose quantized modules are stored otherwise."""
    rules = (
        rule if rule.quantization.is_dense else replace(rule, quantization=replace(rule.quantization, **stored))
        for rule in schemes.load(preset).rules
    )
    return Scheme(preset, tuple(rules))


WANTED = (
    *map(schemes.load, schemes.names()),
    *map(schemes.load, ("bf16", "fp8-block128") * 2),  # method fp8 can state no others, and is to state some
    of_kind("nvfp4", input_scale="none"),
    of_kind("fp8-block128", format="fp8_scaled", strategy="tensor", block=None, input_scale="static"),
    of_kind("fp8-block128", format="fp8_scaled", strategy="channel", block=None, scale_dtype="BF16"),
)


def ours(target, family):
    """(scheme, draft's config, its tensors) as we make them, or how we refuse: in vLLM's name, or in our own."""
    try:
        scheme = VLLM.demands(target, None, family)
        draft = VLLM.draft_config(target, target.config, family, scheme, 4)
        return (scheme, draft, expected(scheme, family, draft, 78, 4)), ""
    except MtpforgeError as error:
        said = f"{error.what} ({error.why})"
        return None, ("vLLM refuses: " if "vLLM" in said else "not made yet: ") + said


def theirs(target, draft, overrides=None):
    """What vLLM says: "" for a draft that it loads whole, how it refuses the target, or what it misses in the draft."""
    findings = Findings()
    try:
        loader.check(Request(str(target), str(draft), overrides=overrides or {}), findings)
    except RefusedError as error:
        kind = "vLLM misses" if str(error).startswith("load_weights") else "vLLM refuses"
        return f"{kind}: {error}"
    return f"vLLM misses: {findings.errors[0]}" if findings.errors else ""


def lay_out(config, side_files, folder):
    """The target's folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, held in side_files.items():
        if name.endswith(".safetensors"):
            write_headers(folder / name, {tensor: Spec(dtype, (8, 8)) for tensor, dtype in held.items()})
        else:
            (folder / name).write_text(json.dumps(held))


def compared(config, folder):
    """(agree | honest | differ, what we say, what vLLM says) for one target."""
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


def restated(config, folder, wanted, kept):
    """(stated | as it is | not stated, what is wrong with what we state) for a scheme beside one target."""
    target = open_checkpoint(str(folder / "target"))
    try:
        told, scheme = overlay.beside(target, VLLM, wanted)
    except MtpforgeError:
        return "not stated", ""
    if told is target:
        return "as it is", ""
    family = family_of(config)
    draft = VLLM.draft_config(told, told.config, family, scheme, 4)
    write(folder / "overlay", draft, expected(scheme, family, draft, 78, 4))
    overrides = {"quantization_config": dict(told.quantization)}
    said = theirs(folder / "target", folder / "overlay", overrides)
    asked = kept.of_layers(config["first_k_dense_replace"], MAIN)
    before, after = (vllm_answers.answers(folder / "target", each, asked) for each in ({}, overrides))
    disturbed = vllm_answers.differences(before, after)
    wrong = said or (f"main layers: {list(disturbed.items())[:2]}" if disturbed else "")
    return "stated", f"{wrong} under {json.dumps(told.quantization)}" if wrong else ""


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
    kept = vllm_answers.Questions(base["first_k_dense_replace"])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), kept.kept():
        config = base | {"quantization_config": block}
        lay_out(config, {}, Path(folder) / "target")
        verdict, _, said = compared(config, Path(folder))
    assert verdict == "agree", said
    stand_in_for_humming()
    loader.construct_target = fused_names_alone
    return kept


def answered(base, stated, side_files, wanted, kept):
    """(verdict, made | refused | not made, what we say, what vLLM says) for a block and its side files; `restated`."""
    config = base | ({} if stated is None else {"quantization_config": stated})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        lay_out(config, side_files, Path(folder) / "target")
        verdict, we, they = compared(json.loads(json.dumps(config)), Path(folder))
        overlaid = restated(config, Path(folder), wanted, kept)
    how = "refused" if we.startswith("vLLM refuses") else "not made" if we.startswith("not made") else "made"
    return (verdict, how, we, they), overlaid


def main():
    """Ask, compare, print."""
    base = json.loads(sys.stdin.read())
    kept = prepare(base)
    counts, different = {}, []

    def ask(name, drawn, wanted):
        stated, side_files = drawn
        (verdict, how, we, they), (overlaid, wrong) = answered(base, stated, side_files, wanted, kept)
        facts = {"n": name, "block": stated, "side files": side_files}
        if wrong:
            different.append(facts | {"restated for": str(wanted.name), "wrong": wrong})
        return (verdict, how), facts | {"ours": we, "vllm": they}, overlaid

    for i, (name, (stated, side_files, outcome)) in enumerate(NAMED.items()):
        found, facts, _ = ask(name, (stated, side_files), WANTED[i % len(WANTED)])
        if found != ("agree", outcome):
            different.append(facts)
    seed, n_targets = (int(os.environ.get(f"MTPFORGE_TEST_{key}", default)) for key, default in
                       (("SEED", 0), ("TARGETS", 200)))  # fmt: skip
    for n in range(seed * 1_000_000, seed * 1_000_000 + n_targets):
        rng = random.Random(n)
        kind = rng.choice(KINDS + BY_INPUTS)
        (verdict, how), facts, overlaid = ask(n, kind(rng), rng.choice(WANTED))
        for key in (f"{kind.__name__}, {verdict}, {how}", f"{kind.__name__}, {overlaid}"):
            counts[key] = counts.get(key, 0) + 1
        if verdict == "differ":
            different.append(facts)
    json.dump({"counts": counts, "different": different}, sys.stdout)


main()
