"""The scheme that vLLM would build a draft with, and the tensors that a draft of a scheme must hold."""

from __future__ import annotations

from collections.abc import Mapping

from mtpforge import scheme as schemes
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.vllm.matrices import DENSE, questions
from mtpforge.engines.vllm.quantization_methods import decide
from mtpforge.families import Family
from mtpforge.formats import FORMATS
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Spec


def scheme(target: Checkpoint, family: Family) -> Scheme:
    """The scheme that vLLM builds the draft's modules with: the target's config decides, never the draft's.

    One rule per module template. Raises MtpforgeError for a target that vLLM refuses, or that no draft can be made for.
    """
    with errors_of(target):
        return scheme_under(target.config, target.quantization, family)


def scheme_under(config: Mapping[str, object], quantization: Mapping[str, object], family: Family) -> Scheme:
    """The same for a config and its raw quantization block ({} for none)."""
    block = parse(quantization)
    asked = questions(family, config)
    decided = {template: decide(block, question) for question in asked for template in question.templates}
    templates = tuple(dict.fromkeys(m.template for m in family.modules(config, 1)))
    rules = tuple(Rule(t, BF16, DENSE[t]) if t in DENSE else Rule(t, *decided[t]) for t in templates)
    return Scheme(schemes.name_of(rules), rules)


def expected(
    scheme: Scheme, family: Family, config: Mapping[str, object], layer: int, n_experts: int
) -> dict[str, Spec]:
    """Every tensor that a draft must hold: full name -> dtype and shape."""
    prefix = family.prefix(layer)
    specs: dict[str, Spec] = {}
    for module in family.modules(config, n_experts):
        quantization = scheme.of(module.template).quantization
        for suffix, spec in FORMATS[quantization.format].layout(module.shape, quantization).items():
            specs[f"{prefix}{module.name}.{suffix}"] = spec
    for plain in family.plain(config, n_experts):
        specs[prefix + plain.name] = Spec(plain.dtype, plain.shape)
    return specs
