"""What the engines' records say of a scheme: a target of the very method that states it, and what is built so."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field

from matrix.tiny_layer import EXPERTS

from mtpforge import scheme as schemes
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.formats import FORMATS, refusal
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization

ALWAYS_DENSE = ("eh_proj", "mlp.gate", "self_attn.indexer.wk", "self_attn.indexer.weights_proj")
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
# Sizes of groups that are tried; a scale's dtype as it is written where it is not the first.
GROUPS = (32, 128)
WRITTEN = {"quark_int8": "F32", "awq": "F16", "gptq": "F16", "gptq_v2": "F16"}


@dataclass(frozen=True)
class Alone:
    """A checkpoint that is a config."""

    config: dict
    names: frozenset = frozenset()
    label: str = "org/target"
    location: str = "org/target"
    revision: str = ""
    is_restated: bool = False
    quantization: dict = field(default_factory=dict)


def alone(config):
    return Alone(config, quantization=config.get("quantization_config") or {})


def target_of(scheme, config, home):
    """A target in `home` whose config asks for the scheme, by the first engine that can state it."""
    family, plain = family_of(config), alone(config)
    for engine in ENGINES.values():
        spared = schemes.sparing(scheme, engine.never_quantized(family))
        try:
            block = engine.draft_config(plain, config, family, spared, EXPERTS).get("quantization_config")
        except MtpforgeError:
            continue
        home.mkdir()
        (home / "config.json").write_text(json.dumps({**config, **({"quantization_config": block} if block else {})}))
        return open_checkpoint(str(home))
    raise AssertionError(f"no engine states {scheme.name}")


def quantizations(name):
    """One of every choice of bits, strategy, symmetry and input scale that a format takes."""
    takes = {"strategy": ("",), "symmetric": (True,), "input_scale": ("none",), "dtype": ("",), "group_size": GROUPS}
    takes |= FORMATS[name].takes
    scale = WRITTEN.get(name) or takes.get("scale_dtype", ("",))[0]
    choices = [takes[key] for key in ("bits", "strategy", "symmetric", "input_scale", "dtype")]
    for bits, strategy, symmetric, inputs, dtype in itertools.product(*choices):
        for size in takes["group_size"] if strategy == "group" else (None,):
            block = (128, 128) if strategy == "block" else None
            q = Quantization(name, bits, dtype, strategy, size, block, symmetric, scale, inputs)
            if refusal(q) is None:
                yield q


def takes(engine, quantization, config):
    """Whether the engine builds routed experts so by a block of its own, the other linears dense or in FP8.

    Or q_a and kv_a as the experts: SGLang joins them as AWQ's wherever the experts are.
    """
    family, plain = family_of(config), alone(config)
    for rest, joined in ((BF16, BF16), (FP8, FP8), (BF16, quantization)):
        always = [Rule(pattern, BF16, "") for pattern in ALWAYS_DENSE]
        named = [Rule("mlp.experts.*", quantization, ""), Rule("self_attn.*_a_proj*", joined, "")]
        scheme = Scheme("given", (*always, *named, Rule("*", rest, "")))
        try:
            stated = engine.draft_config(plain, config, family, scheme, EXPERTS)
            found = engine.demands(alone(stated), stated, family)
        except MtpforgeError:
            continue
        templates = [m.template for m in family.modules(config, 1)]
        if all(found.of(template).quantization == scheme.of(template).quantization for template in templates):
            return True
    return False
