"""What is clearly broken, and what cannot be.

ALARM    0.14    a healthy GLM-5.2 draft has its first token accepted 0.84 of the time on code and mixed text
                 (SemiAnalysisAI/InferenceX, golden_al_distribution/glm5.2_mtp.yaml, 2026-08); 0.70 is worth a
                 message. A draft that accepts so much less than the dense layer does is broken. One whose first
                 step is no further from the dense layer's than this cannot be, beside any target.
HALF     0.5     where no target's states are known: more than half of what it predicts lies elsewhere
FOREIGN  0.8     weight error of one module: zeros have 1, the weight of another module has 1.4; codes of 2 bits
                 in groups of 32 stay below 0.62
LOW      0.70    accepted first tokens, on natural text, below which something is wrong
NONE     0.05    and below which the layer is wrong
FALL     0.5     second tokens after an accepted first one: below, another state goes on than the draft was
                 trained with, or later steps choose their keys anew
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from mtpforge.errors import shown
from mtpforge.report import Check

if TYPE_CHECKING:
    from mtpforge.judging.accepting import Drawn
    from mtpforge.judging.fidelity import StepFidelity
    from mtpforge.judging.swapping import Swap

ALARM: Final = 0.14
HALF: Final = 0.5
FOREIGN: Final = 0.8
LOW: Final = 0.70
NONE: Final = 0.05
FALL: Final = 0.5
_SHOWN: Final = 3
_ROUTING: Final = ("scoring_func", "topk_method", "norm_topk_prob", "routed_scaling_factor", "num_experts_per_tok")
_TURNING: Final = ("rope_theta", "rope_interleave", "index_topk", "indexer_rope_interleave")
_OF: Final = {**dict.fromkeys((*_ROUTING, "n_group", "topk_group"), "mlp.gate"), **dict.fromkeys(_TURNING, "self_attn")}


def of_config(differing: Mapping[str, tuple[object, object]]) -> Check:
    """Whether both layers are computed in one way."""
    if not differing:
        return Check("config", "passed", "every key that decides the computation is the reference's")
    told = [
        f"`{key}` is {shown(ours)}, the reference's {shown(theirs)}"
        + (f": `{_OF[key]}` computes otherwise" if key in _OF else "")
        for key, (ours, theirs) in differing.items()
    ]
    return Check("config", "failed", "; ".join(told), "correct the draft's config.json, or build the draft again")


def of_modules(swaps: Sequence[Swap]) -> Check:
    """Whether every module is the reference's, give or take the rounding of a format."""
    foreign = [each for each in swaps if each.module and (each.weight_error or 0.0) >= FOREIGN]
    foreign.sort(key=lambda each: -each.state_error)
    if not foreign:
        worst = max((each.weight_error or 0.0 for each in swaps if each.module), default=0.0)
        return Check("modules", "passed", f"the largest weight error is {worst:.3f}")
    listed = ", ".join(f"`{each.module}` by {each.weight_error:.2f} of its size" for each in foreign[:_SHOWN])
    more = f", and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
    fix = "`mtpforge verify DRAFT --target CKPT --source SOURCE` says what it looks like; build the draft again"
    return Check("modules", "failed", f"{listed}{more} off the reference's", fix)


def of_steps(steps: Sequence[StepFidelity], *, is_synthetic: bool) -> Iterator[Check]:
    """The first step decides: later ones count only where it was accepted."""
    if not steps:
        return
    first = steps[0]
    far = f"total variation {first.total_variation:.4f}"
    if first.acceptance is not None and first.acceptance_reference is not None:
        lost = first.acceptance_reference - first.acceptance
        detail = f"{first.acceptance:.3f} accepted, of the dense layer's {first.acceptance_reference:.3f}; {far}"
        broken = lost > ALARM
    else:
        detail, broken = f"{far}, so no more acceptance is lost", first.total_variation > HALF
    verdict = "failed" if broken else "warning" if first.total_variation > ALARM else "passed"
    fix = "look at the worst modules above, and at a heavier head: docs/heads.md" if verdict != "passed" else ""
    yield Check("first step", verdict, detail, fix)  # type: ignore[arg-type]
    if is_synthetic:
        how = "capture some: `mtpforge capture`, then `--inputs FILE`"
        yield Check("inputs", "not checked", "synthetic: they show what differs, not what a target would accept", how)


def of_acceptance(draft: str, sampled: Drawn) -> Iterator[Check]:
    """By what a healthy draft has accepted."""
    first = sampled.positions[0]
    verdict, detail, fix = "passed", f"{first} of first tokens accepted", ""
    if first.mean < LOW:
        verdict, detail = "warning", f"{detail}, a healthy draft has {LOW} and more on natural text"
        fix = "`mtpforge fidelity DRAFT --reference SOURCE --inputs FILE` says which module costs it"
    if first.mean < NONE:
        verdict, detail = "failed", f"{first} of first tokens accepted: the layer is wrong, or another model's"
    yield Check(draft, verdict, detail, fix)  # type: ignore[arg-type]
    if len(sampled.positions) > 1 and sampled.conditional[1] < FALL and first.mean >= NONE:
        detail = f"{sampled.conditional[1]:.3f} of second tokens accepted after a first one"
        fix = "measure what the engine does, `--recycle pre-norm` or post-norm: docs/fidelity.md says which does what"
        yield Check(draft, "warning", detail, fix)
