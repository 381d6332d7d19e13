"""Run by an interpreter with vLLM: our matching of module names against vLLM's own, on random lists.

Prints one JSON object: how many questions were asked, and the first that got two answers.
"""

from __future__ import annotations

import json
import random
import sys

import torch
from vllm.model_executor.layers.quantization.compressed_tensors.utils import find_matched_target, should_ignore_layer
from vllm.model_executor.layers.quantization.modelopt import ModelOptQuantConfigBase
from vllm.model_executor.layers.quantization.quark.utils import should_ignore_layer as quark_ignores
from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

from mtpforge.checkpoint.quantization import Group, QuantConfig
from mtpforge.engines import expressions
from mtpforge.engines.vllm import compressed_tensors, name_matching
from mtpforge.engines.vllm.matrices import Asked, questions
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of

FUSED = {"gate_up_proj": ["gate_proj", "up_proj"], "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"]}
LISTS = 3000


class Excluding(ModelOptQuantConfigBase):
    """ModelOpt's exclusion alone."""

    packed_modules_mapping = FUSED

    def __init__(self, entries):
        self.exclude_modules = entries


for _abstract in list(getattr(Excluding, "__abstractmethods__", ())):
    setattr(Excluding, _abstract, None)
Excluding.__abstractmethods__ = frozenset()


def module(name):
    """A module whose class is called `name`."""
    return type(name, (torch.nn.Module,), {})()


def outcome(function):
    """What a function answers; how it refuses counts as one answer."""
    try:
        return function()
    except (ValueError, MtpforgeError):
        return "refused"


def entries(asked, rng):
    """A list of entries of the kinds that configs hold: names, parts, pieces, wildcards, expressions."""
    names = [n for a in asked for n in (a.name, *a.parts)] + ["lm_head", "Linear", "model.layers.7", "model.layers.78"]
    names += [n.replace(".78.", ".77.") for n in names[:6]]
    made = []
    for _ in range(rng.randrange(1, 6)):
        name = rng.choice(names)
        start, stop = sorted(rng.sample(range(len(name) + 1), 2))
        escaped, last = name.replace(".", "[.]"), name.rpartition(".")[2]
        cut = name[:-3].replace(".", "[.]")
        kinds = (
            name, name, name, f"{name}*", f"{name[:stop]}*", name[start:stop] or name, f"*{name[start:]}",
            f"re:{escaped}", f"re:{cut}", f"re:.*{last}", f"re:.*{last}$",
            f"{name}.weight", "re:.*_proj", "re:.*(gate|up)_proj", "re:.*[Ll]inear", "Linear", "linear", "RowParallel",
        )  # fmt: skip
        made.append(rng.choice(kinds))
    return made


def both(question, listed):
    """(rule, vLLM's answer, ours) for every rule of matching."""
    name, ours = question.name, question
    if not question.experts:
        yield (
            "compressed-tensors ignore",
            outcome(lambda: should_ignore_layer(name, listed, FUSED)),
            outcome(lambda: name_matching.listed(ours, listed, expressions.exact_or_regex, "ignore") is not None),
        )
        group = Group("g", tuple(listed), "", None)
        block = QuantConfig("compressed-tensors", groups=(group,))
        yield (
            "compressed-tensors targets",
            find_matched_target(name, module(question.class_name), listed, FUSED) is not None,
            compressed_tensors._group(block, ours)[0] is not None,
        )
    else:
        scheme_map = list(dict.fromkeys(listed))
        if "Linear" in scheme_map and "RoutedExperts" not in scheme_map:
            scheme_map.append("RoutedExperts")
        for part in question.parts:
            block = QuantConfig("compressed-tensors", groups=(Group("g", tuple(listed), "", None),))
            single = Asked(part, (part,), question.templates, question.class_name)
            yield (
                "compressed-tensors expert targets",
                find_matched_target(part, module("RoutedExperts"), scheme_map, FUSED) is not None,
                compressed_tensors._group(block, single)[0] is not None,
            )
    plain = [entry for entry in listed if not entry.startswith("re:")]
    yield (
        "fp8",
        outcome(lambda: is_layer_skipped(name, plain, FUSED)),
        outcome(lambda: name_matching.skipped(ours, plain, "x") is not None),
    )
    yield (
        "modelopt",
        outcome(lambda: Excluding(plain).is_layer_excluded(name)),
        outcome(lambda: name_matching.excluded(ours, plain, "x") is not None),
    )
    yield (
        "quark",
        outcome(lambda: quark_ignores(name, listed, FUSED, check_children=question.experts)),
        outcome(
            lambda: (
                (
                    (name_matching.below(ours, listed) if question.experts else None)
                    or name_matching.listed(ours, listed, expressions.exact_or_regex, "exclude")
                )
                is not None
            )
        ),
    )


def main():
    """Ask, compare, print."""
    config = json.loads(sys.stdin.read())
    asked = questions(family_of(config), config)
    rng = random.Random(0)
    counts, different = {}, []
    for _ in range(LISTS):
        listed = entries(asked, rng)
        for question in asked:
            for rule, theirs, ours in both(question, listed):
                key = f"{rule}: {theirs}"
                counts[key] = counts.get(key, 0) + 1
                if theirs != ours:
                    different.append(
                        {"rule": rule, "name": question.name, "list": listed, "vllm": theirs, "ours": ours}
                    )
    json.dump({"counts": counts, "different": len(different), "first": different[:3]}, sys.stdout)


main()
