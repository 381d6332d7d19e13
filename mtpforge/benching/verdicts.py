"""What it comes to: is the layer right, does drafting pay, at how many requests; and what was not looked at.

The levels are those of `judging.verdicts`: a first token accepted 0.70 of the time, nothing below 0.05, a second one
half as often as the first at least. A published curve of the release adds its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtpforge.benching.found import Cell
from mtpforge.engines.counters import Cause, Counters
from mtpforge.families.curves import Curve
from mtpforge.judging.verdicts import FALL, LOW, NONE
from mtpforge.report import Check, Verdict

_OTHERS = 1.05  # as many tokens as ours: above, somebody else's are among them
_SHARED = (
    Cause(
        "weights, order of experts, scales or config are not the source's",
        "`mtpforge verify DRAFT --target CKPT --source SOURCE` compares every weight",
    ),
    Cause(
        "the source belongs to another version of the model than the target",
        "`mtpforge inspect SOURCE` and `mtpforge inspect CKPT` name both versions",
    ),
    Cause(
        "the layer predicts, the engine does not run it as it should",
        "`mtpforge fidelity DRAFT --reference SOURCE` runs it without one; then serve the official layer beside its own"
        " target: if that is bad too, it is not the draft",
    ),
)


def is_near_zero(total: Cell) -> bool:
    """Whether hardly a drafted token is accepted."""
    return first_of(total) < NONE


def first_of(total: Cell) -> float:
    """How often the first drafted token is accepted; at most that, where positions are not told."""
    return total.positions[0] if total.positions else total.length.mean - 1


def falls(total: Cell) -> bool:
    """Whether second tokens are rejected where first ones were accepted."""
    return len(total.positions) > 1 and not is_near_zero(total) and total.conditional[1] < FALL


def causes(total: Cell, counters: Counters) -> tuple[Cause, ...]:
    """What is known to do that, the likeliest first; () where nothing is wrong."""
    if is_near_zero(total):
        return (_SHARED[0], counters.near_zero[0], *_SHARED[1:], *counters.near_zero[1:])
    return counters.falling if falls(total) else ()


def of_acceptance(total: Cell) -> Iterator[Check]:
    """The layer, by what is accepted of it."""
    told = f"{total.length} tokens a round"
    if total.positions:
        told = f"{total.positions[0]:.3f} of first tokens accepted; {told}"
    if is_near_zero(total):
        yield Check("acceptance", "failed", f"{told}: the layer is wrong, or is not run as it should be", _BELOW)
    elif first_of(total) < LOW:
        fix = "`mtpforge fidelity DRAFT --reference SOURCE --inputs FILE` says which module costs it"
        yield Check("acceptance", "warning", f"{told}; a healthy draft has {LOW} and more on natural text", fix)
    else:
        yield Check("acceptance", "passed", told)
    if falls(total):
        detail = f"{total.conditional[1]:.3f} of second tokens accepted after a first one"
        yield Check("later tokens", "warning", detail, _BELOW)


_BELOW = "the likeliest causes are listed, each with the command that tells"


def of_curve(total: Cell, curve: Curve | None, k: int) -> Check:
    """Beside what healthy drafts of the release give."""
    expected = curve.at(k) if curve else None
    if curve is None or expected is None:
        why = f"none is known for {k} draft steps" if curve else "none is known for this model"
        return Check("published curve", "not checked", why)
    told = f"{total.length.mean:.2f} tokens a round; {curve.name} gave {expected:.2f} at k = {k} ({curve.conditions})"
    if total.length.mean < curve.alarm_share * expected:
        return Check("published curve", "warning", f"{told}, below {curve.alarm_share * expected:.2f} look for a cause")
    return Check("published curve", "passed", told)


def of_speed(totals: Sequence[Cell]) -> Iterator[Check]:
    """Whether drafting pays: at each number of requests, and at all."""
    gains = [(total.concurrency, total.gain) for total in totals if total.gain is not None]
    if not gains:
        how = "serve the same target without its draft, and name it: `--baseline URL`"
        yield Check("speed", "not checked", "nothing to compare with: whether drafting pays is not known", how)
        return
    pays = any(gain.is_above(1) for _, gain in gains)
    loses = any(gain.is_below(1) for _, gain in gains)
    for n, gain in gains:
        if gain.is_above(1):
            yield Check(f"speed, {n} at a time", "passed", f"{gain} times as fast")
        elif gain.is_below(1):
            fix = "stop drafting there: the schedule below, or a server without a draft"
            yield Check(
                f"speed, {n} at a time", "warning" if pays else "failed", f"{gain} times as fast: it loses", fix
            )
        else:
            verdict: Verdict = "warning" if pays or not loses else "failed"
            fix = "more prompts narrow the interval: `--prompts N`"
            yield Check(f"speed, {n} at a time", verdict, f"{gain} times as fast: no gain is proven", fix)


def loses_from(totals: Sequence[Cell]) -> int | None:
    """The fewest requests at a time at which drafting is slower."""
    losing = [total.concurrency for total in totals if total.gain is not None and total.gain.is_below(1)]
    return min(losing, default=None)


def of_depths(wanted: Sequence[int], k: int) -> Iterator[Check]:
    """Depths of which nothing is known."""
    beyond = [depth for depth in wanted if depth > k]
    if beyond:
        detail = f"{', '.join(map(str, beyond))}: the server says how {k or 'no'} drafted tokens fare"
        yield Check("depths", "not checked", detail, f"start it with {max(beyond)} draft steps, and measure again")


def of_others(counted: float, ours: int) -> Check:
    """Whether somebody else used the server meanwhile."""
    if counted > _OTHERS * ours:
        detail = f"it made {counted:,.0f} tokens, of which {ours:,} are ours: others shared speed and counters"
        return Check("other users", "warning", detail, "measure again when it is idle")
    return Check("other users", "passed", f"it made {counted:,.0f} tokens, {ours:,} are ours")


def unchecked(counters: Counters, *, is_told: bool) -> Iterator[Check]:
    """What no bench sees."""
    if not is_told:
        yield Check("made-up acceptance", "not checked", f"cannot be seen from here: {counters.unseen}")
    yield Check("answers", "not checked", "whether they are right: only how many tokens come, and how fast")
