"""The scheme that SGLang would build a draft with: the draft's own block decides, never the target's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mtpforge import scheme as schemes
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.sglang import quantization_block
from mtpforge.engines.sglang.draft_classes import DraftClass, draft_class, unloadable
from mtpforge.engines.sglang.matrices import DECODER, Asked, Decision, questions
from mtpforge.engines.sglang.quantization_methods import decide
from mtpforge.engines.sglang.refusals import refused
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.formats import label
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization

_JOINED: Final = "self_attn.q_a_proj"
_AS_OTHERS: Final = "build both as the block says, or `--scheme bf16`"


def demands(target: Checkpoint, draft_config: Mapping[str, object] | None, family: Family) -> Scheme:
    """One rule per module template.

    Of a draft's config: what SGLang builds by its block. Without one: the target's own scheme for the layer, dense
    where SGLang could not load a draft made so. Raises MtpforgeError for a draft that SGLang refuses.
    """
    if draft_config is None:
        with errors_of(target):
            return _stated(family, target.config, _wanted(target, family))
    return scheme_of(draft_config, family)


def scheme_of(config: Mapping[str, object], family: Family) -> Scheme:
    """What SGLang builds for a draft's config, with the quantization block in force."""
    block, known = config.get("quantization_config"), draft_class(family)
    stated = known.named(parse(block if isinstance(block, Mapping) else {}), family.layer(config), DECODER)
    decided = {}
    for asked in questions(family, config, DECODER):
        quantization, reason = decide(stated, asked)
        for template in asked.templates:
            if why := known.refusal(template, quantization):
                raise unloadable(template, quantization, why)
            decided[template] = quantization, f"the draft's {reason}"
        if quantization.is_dense and _JOINED in asked.templates and (joined := known.joined.get(stated.method)):
            what = f"{' and '.join(asked.templates)} are dense in a block of {stated.method}"
            raise refused(what, "", joined, _AS_OTHERS)
    return _scheme(family, config, decided)


def _wanted(target: Checkpoint, family: Family) -> dict[str, Decision]:
    """Template -> the target's scheme for its own MTP layer, dense with the reason where that would not load."""
    known, layer = draft_class(family), family.layer(target.config)
    prefix = family.prefix(layer)
    block = known.named(parse(target.quantization), layer, prefix)
    wanted: dict[str, Decision] = {}
    for asked in questions(family, target.config, prefix):
        try:
            quantization, reason = decide(block, asked)
        except MtpforgeError as error:
            wanted |= dict.fromkeys(asked.templates, (BF16, f"dense: {error.what}"))
            continue
        why = _first_refusal(known, asked, quantization)
        for template in asked.templates:
            wanted[template] = (
                (BF16, f"dense, not {label(quantization)} as the target: {why}")
                if why
                else (
                    quantization,
                    f"as the target: {reason}",
                )
            )
    return wanted


def _stated(family: Family, config: Mapping[str, object], wanted: Mapping[str, Decision]) -> Scheme:
    """The scheme that is wanted where one block tells it to SGLang, else the dense one."""
    scheme = _scheme(family, config, wanted)
    try:
        told = scheme_of({**config, "quantization_config": quantization_block.block(config, family, scheme)}, family)
    except MtpforgeError as error:
        why = error.what
    else:
        if all(told.of(rule.pattern).quantization == rule.quantization for rule in scheme.rules):
            return scheme
        why = "no block tells SGLang what of the layer is dense"
    return _scheme(family, config, dict.fromkeys(wanted, (BF16, f"dense: {why}")))


def _first_refusal(known: DraftClass, asked: Asked, quantization: Quantization) -> str:
    return next(filter(None, (known.refusal(template, quantization) for template in asked.templates)), "")


def _scheme(family: Family, config: Mapping[str, object], decided: Mapping[str, Decision]) -> Scheme:
    dense = draft_class(family).dense
    templates = dict.fromkeys(module.template for module in family.modules(config, 1))
    rules = tuple(Rule(t, BF16, dense[t]) if t in dense else Rule(t, *decided[t]) for t in templates)
    return Scheme(schemes.name_of(rules), rules)
