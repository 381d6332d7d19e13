"""The scheme that vLLM would build a draft with: the target's config decides, never the draft's."""

from __future__ import annotations

from collections.abc import Mapping

from mtpforge import scheme as schemes
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.engines.vllm.header_lists import in_force
from mtpforge.engines.vllm.matrices import questions
from mtpforge.engines.vllm.quantization_methods import decide
from mtpforge.engines.vllm.target_names import as_asked
from mtpforge.families import Family
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16


def demands(target: Checkpoint, _draft_config: Mapping[str, object] | None, family: Family) -> Scheme:
    """The scheme that vLLM builds the draft's modules with, one rule per module template.

    Raises MtpforgeError for a target that vLLM refuses, or that no draft can be made for.
    """
    with errors_of(target):
        return scheme_under(target.config, in_force(target, family), family)


def stated(draft_config: Mapping[str, object], family: Family) -> Scheme:
    """The scheme that a draft's own block states, read as a target's."""
    block = draft_config.get("quantization_config")
    return scheme_under(draft_config, block if isinstance(block, Mapping) else {}, family)


def scheme_under(config: Mapping[str, object], quantization: Mapping[str, object], family: Family) -> Scheme:
    """The same for a config and its raw quantization block ({} for none)."""
    block = parse(as_asked(quantization, family, config))
    asked, dense = questions(family, config), draft_class(family).dense
    decided = {template: decide(block, question) for question in asked for template in question.templates}
    templates = tuple(dict.fromkeys(m.template for m in family.modules(config, 1)))
    rules = tuple(Rule(t, BF16, dense[t]) if t in dense else Rule(t, *decided[t]) for t in templates)
    return Scheme(schemes.name_of(rules), rules)
