"""restate(): a target's quantization block, changed so that the MTP layer is built as wanted and all else as before.

vLLM builds a draft by the target's block, and takes that block from the command line too: `--hf-overrides
'{"quantization_config": {...}}'` (config/model.py, _apply_dict_overrides, 0.33.0), so no file of the target changes.
Every proposal is asked about every matrix of the model; one that answers otherwise for any of them is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import QuantConfig, parse
from mtpforge.engines.vllm.demands import scheme_under
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.engines.vllm.header_lists import in_force
from mtpforge.engines.vllm.matrices import Asked, main_questions, questions
from mtpforge.engines.vllm.quantization_block import layer_of
from mtpforge.engines.vllm.quantization_methods import decide
from mtpforge.engines.vllm.restatements import METHODS, Method
from mtpforge.engines.vllm.target_names import as_asked
from mtpforge.engines.vllm.wish import Wish
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family, family_of
from mtpforge.scheme import Rule, Scheme, built_otherwise


def restate(target: Checkpoint, family: Family, wanted: Scheme) -> Mapping[str, object]:
    """The raw quantization block under which vLLM builds the layer as wanted, and the rest of the model as before.

    Formats are taken as the target's method spells them: NVFP4 is NVFP4 in ModelOpt's tensors or compressed-tensors'.
    MtpforgeError without a fix where no block of that method says it: what could be said takes as long again to find.
    One with a fix where the scheme itself has no rule for a matrix: no target's method is to blame for that.
    """
    for template in dict.fromkeys(t for asked in questions(family, target.config) for t in asked.templates):
        wanted.of(template)
    with errors_of(target):
        found, why = _found(target, family, wanted)
    if found is not None:
        return found
    method = parse(target.quantization).method
    raise MtpforgeError(
        f"method `{shown(method) or 'none'}` of the target cannot state scheme {wanted.name} for the MTP layer alone",
        where=target.label,
        why=why,
    )


def _found(target: Checkpoint, family: Family, wanted: Scheme) -> tuple[Mapping[str, object] | None, str]:
    """The block, or None and why there is none."""
    config, block = target.config, in_force(target, family)
    method = METHODS.get(parse(block).method)
    if method is None:
        return None, f"blocks of method `{shown(parse(block).method)}` are not restated"
    rules = _spelled(wanted, method, block)
    try:
        if not _contradiction(block, config, family, rules):
            return target.quantization, ""
        answers = _as_it_is(json.dumps(config), json.dumps(block))
        wish = Wish(layer_of(config, family, rules), draft_class(family).attention, questions(family, config), answers)
        why = ""
        for proposal in method.proposals(block, wish):
            told = parse(as_asked(proposal, family, config))
            why = _contradiction(proposal, config, family, rules) or _changed(answers, told)
            if not why:
                return proposal, ""
    except (MtpforgeError, KeyError) as error:  # a format that the method has no word for
        why = error.what if isinstance(error, MtpforgeError) else f"it has no word for format {error.args[0]}"
    return None, why


def _spelled(wanted: Scheme, method: Method, block: Mapping[str, object]) -> Scheme:
    """The scheme in the method's own formats."""
    rules = tuple(Rule(rule.pattern, method.spelled(rule.quantization, block), rule.reason) for rule in wanted.rules)
    return Scheme(wanted.name, rules, wanted.description)


def _contradiction(block: Mapping[str, object], config: Mapping[str, object], family: Family, wanted: Scheme) -> str:
    """What the layer would be built as otherwise than wanted, "" where all of it is."""
    try:
        built = scheme_under(config, block, family)
    except MtpforgeError as error:
        return "; ".join(filter(None, (error.what, error.why)))
    return built_otherwise(built, wanted)


@lru_cache(maxsize=2)
def _as_it_is(config_text: str, block_text: str) -> dict[Asked, object]:
    """Every question about the model around the layer, and its answer under the target's own block."""
    config, block = json.loads(config_text), parse(json.loads(block_text))
    return {asked: _answer(block, asked) for asked in main_questions(family_of(config), config)}


def disturbed(target: Checkpoint, told: Checkpoint, family: Family) -> str:
    """The first matrix around the layer that another block has built otherwise than the target's, "" for none."""
    answers = _as_it_is(json.dumps(target.config), json.dumps(in_force(target, family)))
    return _changed(answers, parse(in_force(told, family)))


def _changed(answers: Mapping[Asked, object], block: QuantConfig) -> str:
    """The first matrix of the model around the layer that another block would change, "" for none."""
    changed = next((asked for asked, answer in answers.items() if _answer(block, asked) != answer), None)
    return f"`{changed.name}` would no longer be built as it is stored" if changed else ""


def _answer(block: QuantConfig, asked: Asked) -> object:
    """How a matrix is built, or what stops it: a target that no draft can be made for in full may still be restated."""
    try:
        return decide(block, asked)[0]
    except MtpforgeError as error:
        return error.what, error.why
