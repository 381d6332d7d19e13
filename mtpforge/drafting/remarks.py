"""What a job says on the way: checkpoints, choices and inputs, a line each."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.engines import engine_of
from mtpforge.errors import shown
from mtpforge.families import Family, family_of
from mtpforge.sourcing import has_layer
from mtpforge.units import counted

if TYPE_CHECKING:
    from mtpforge.nextn.inputs import Inputs
    from mtpforge.pruning.expert_choice import Pruned
    from mtpforge.scheme import Scheme
    from mtpforge.source_choice import Choice

_LONG_WORD = 80  # difflib takes seconds for a word of a megabyte
_COMMIT = 7  # digits of a commit that people compare


@dataclass(frozen=True, slots=True)
class Remark:
    """One line: what it is about (`target`, `source`, `inputs`, `experts`, `codes`, "" to go on), and what is said.

    aside: no part of the result, a doubt about it.
    """

    about: str
    text: str
    aside: bool = False

    def __str__(self) -> str:
        """The line, texts below one another."""
        return f"{self.about:<7} {self.text}"


def title(checkpoint: Checkpoint) -> str:
    """`org/name @ 1a2b3c4`, or the folder as it was typed."""
    name = checkpoint.label.split("@")[0] if checkpoint.revision else checkpoint.label
    return f"{name} @ {checkpoint.revision[:_COMMIT]}" if checkpoint.revision else name


def summary(checkpoint: Checkpoint) -> str:
    """`glm_moe_dsa, compressed-tensors, 256 experts, no layer 78`."""
    with errors_of(checkpoint):
        family = family_of(checkpoint.config)
        layer = family.layer(checkpoint.config)
        n_experts = family.n_experts(checkpoint.config)
    method = str(checkpoint.quantization.get("quant_method") or "unquantized")
    held = f"layer {layer}" if has_layer(checkpoint, family) else f"no layer {layer}"
    if not checkpoint.names:
        held = "config only"
    return ", ".join((family.name, method, f"{n_experts} experts", held))


def of_restating(target: Checkpoint, wanted: Scheme, engine: str) -> Iterator[Remark]:
    """That the engine has to be told of a draft that is none of the target's own scheme."""
    if target.is_restated:
        name = engine_of(engine).name
        text = f"{wanted.name}, which the target as it stands does not ask for: the command to serve tells {name} of it"
        yield Remark("scheme", text)


def of_idle_rules(scheme: Scheme, family: Family) -> Iterator[Remark]:
    """Rules that no matrix of the layer is meant by: most are misspelt, and the next rule decides in their place."""
    templates = [row.template for row in family.module_rows]
    for rule in scheme.rules:
        if not fnmatch.filter(templates, rule.pattern) and rule.pattern not in templates:
            near = get_close_matches(rule.pattern[:_LONG_WORD], templates, n=1)
            meant = f": `{near[0]}`?" if near else ""
            text = f"the rule for `{shown(rule.pattern)}` fits no matrix of {family.name}{meant}"
            yield Remark("scheme", text, aside=True)


def of_checkpoint(role: str, checkpoint: Checkpoint) -> Remark:
    """A checkpoint in its role."""
    return Remark(role, f"{title(checkpoint)}   {summary(checkpoint)}")


def of_choice(choice: Choice) -> Iterator[Remark]:
    """The source that was chosen, why, and what else could be."""
    yield Remark("source", f"{title(choice.source)}   {choice.reason}")
    if choice.spoiled:
        first, *rest = choice.spoiled
        more = f"; and {len(rest)} more" if rest else ""
        yield Remark("", f"a draft of it is needed: {first}{more}")
    for name, remark in choice.alternatives:
        yield Remark("", f"also: `--source {name}`, {remark}")


def of_experts(found: Pruned, asked: str = "") -> Iterator[Remark]:
    """The experts that stay, where some go, or where a method was asked for that then had nothing to do."""
    if asked and found.keeps_all:
        yield Remark("experts", f"all {found.n_stored} stay: `--prune-by {asked}` has nothing to choose")
    if not found.keeps_all:
        yield Remark("experts", f"{len(found.kept)} of {found.n_stored}   {found.reason}")


def of_inputs(inputs: Inputs, target: Checkpoint) -> Iterator[Remark]:
    """The inputs that choose experts."""
    of = f" of {inputs.target}" if inputs.target else ""
    yield Remark("inputs", f"{shown(inputs.path)}   {_size(inputs)}{of}")
    yield from _foreign(inputs, target)


def of_fit(inputs: Inputs, target: Checkpoint) -> Iterator[Remark]:
    """The inputs that codes are fitted to."""
    yield Remark("codes", f"fitted to {shown(inputs.path)}   {_size(inputs)}")
    yield from _foreign(inputs, target)


def of_counts(counts: tuple[float, ...]) -> Remark:
    """How many tokens of the inputs the experts see."""
    unseen = f"; {counts.count(0)} see none" if 0 in counts else ""
    return Remark("", f"an expert sees {min(counts):,.0f} to {max(counts):,.0f} of them{unseen}")


def _size(inputs: Inputs) -> str:
    return f"{counted(inputs.n_tokens, 'token')} in {counted(inputs.n_sequences, 'sequence')}"


def _foreign(inputs: Inputs, target: Checkpoint) -> Iterator[Remark]:
    """Inputs of another target: one of the same model serves nearly as well, any other does not."""
    if inputs.target and inputs.target != shown(target.identity):
        name = shown(target.identity)
        yield Remark("", f"captured from another target than {name}: right only if it is the same model", aside=True)
