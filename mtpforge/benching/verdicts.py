"""What it comes to: is the layer right, does drafting pay, at how many requests; and what was not looked at.

The levels are those of `judging.verdicts`: a first token accepted 0.70 of the time, nothing below 0.05, a second one
half as often as the first at least. A published curve of the release adds its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtpforge.benching import corpus, depths
from mtpforge.benching.counting import Counts
from mtpforge.benching.depths import Advice
from mtpforge.benching.found import Cell
from mtpforge.engines.counters import Cause, Counters
from mtpforge.errors import shown
from mtpforge.families.curves import Curve
from mtpforge.judging.verdicts import FALL, LOW, NONE
from mtpforge.report import Check, Verdict

FEWEST = 100  # rounds: of fewer nothing is said of the layer
_CONSTANT = 3  # units of text that hardly accept exactly the same by chance
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


def is_enough(total: Cell) -> bool:
    """Whether so few rounds are no chance: a layer with 0.05 accepted has none in 100 once in 170 times."""
    return total.n_rounds >= FEWEST


def is_near_zero(total: Cell) -> bool:
    """Whether hardly a drafted token is accepted."""
    return is_enough(total) and first_of(total) < NONE


def by_load(totals: Sequence[Cell]) -> list[Cell]:
    """The fewest requests at a time first."""
    return sorted(totals, key=lambda total: total.concurrency)


def first_of(total: Cell) -> float:
    """How often the first drafted token is accepted; at most that, where positions are not told."""
    return total.positions[0] if total.positions else total.length.mean - 1


def falls(total: Cell) -> bool:
    """Whether second tokens are rejected where first ones were accepted, often enough to tell."""
    if len(total.positions) < 2 or not is_enough(total) or is_near_zero(total):  # noqa: PLR2004 -- two positions
        return False
    return total.positions[0] * total.n_rounds >= FEWEST / 2 and total.conditional[1] < FALL


def causes(totals: Sequence[Cell], counters: Counters) -> tuple[Cause, ...]:
    """What is known to do that, the likeliest first; () where nothing is wrong."""
    fewest, *others = by_load(totals)
    of_weights = (_SHARED[0], *counters.near_zero[:1], *_SHARED[1:], *counters.near_zero[1:])
    if is_near_zero(fewest):
        return of_weights
    if any(is_near_zero(total) for total in others):
        # weights that draft well for few requests are the right ones
        of_load = (*counters.near_zero[1:], _SHARED[2]) if is_enough(fewest) else of_weights
        return (*counters.under_load, *of_load)
    return counters.falling if falls(fewest) else ()


def of_baseline(engine: str, other: str) -> Iterator[Check]:
    """Two engines differ in more than a draft."""
    if other and other != engine:
        detail = f"is {other}, the server that drafts {engine}: a gain is that of the engine too"
        yield Check("baseline", "warning", detail, "serve both by the same engine")


def of_folders(name: str, root: str, other: str) -> Check:
    """One name at both, and another checkpoint behind it by its path: whoever named them says that it is the same."""
    detail = f"both serve `{shown(name)}`, here from `{shown(other)}`, the server that drafts from `{shown(root)}`"
    return Check("baseline", "warning", detail, "see that both folders hold the same target")


def of_acceptance(total: Cell) -> Iterator[Check]:
    """The layer, by what is accepted of it."""
    told = f"{total.length} tokens a round"
    if total.positions:
        told = f"{total.positions[0]:.3f} of first tokens accepted; {told}"
    if not is_enough(total):
        few = f"{told}; {total.n_rounds} rounds are too few to judge it, {FEWEST} are not"
        yield Check("acceptance", "not checked", few, "more or longer replies: `--prompts N`, `--generate N`")
    elif is_near_zero(total):
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


def of_load(totals: Sequence[Cell]) -> Iterator[Check]:
    """Acceptance hangs on the text, not on how many requests run beside it."""
    first, *others = by_load(totals)
    for total in others:
        low, high = first.length.low, total.length.high
        if is_near_zero(total) and not is_near_zero(first):
            detail = f"{total.length} tokens a round at {total.concurrency} at a time, from {first.length}"
            yield Check(
                "acceptance under load", "failed", f"{detail}: the layer is not run there as it should be", _BELOW
            )
        elif low is not None and high is not None and high < low and is_enough(first) and is_enough(total):
            detail = f"falls to {total.length} tokens a round at {total.concurrency} at a time, from {first.length}"
            fix = (
                "kernels or captured graphs treat larger batches otherwise: start it without graphs, and measure again"
            )
            yield Check("acceptance under load", "warning", detail, fix)


def of_curve(alike: Cell | None, curve: Curve | None, k: int, known: Sequence[str], instead: str) -> Check:
    """Beside what healthy drafts of the release give, on the content and at the temperature that they gave it.

    known: classes of content that could be asked for here. instead: the option to leave out for those of the corpus.
    """
    expected = curve.at(k) if curve else None
    if curve is None or expected is None:
        why = f"none is known for {k} draft steps" if curve else "none is known for this model"
        return Check("published curve", "not checked", why)
    if alike is None:
        where = f"that of {curve.name} is of {' or '.join(curve.content)} at temperature {curve.temperature:g} alone"
        return Check("published curve", "not checked", f"{where}, which was not measured", _like(curve, known, instead))
    told = f"{alike.length.mean:.2f} tokens a round; {curve.name} gave {expected:.2f} at k = {k} ({curve.conditions})"
    if not is_enough(alike):
        return Check("published curve", "not checked", f"{told}; {alike.n_rounds} rounds are too few")
    if alike.length.mean < curve.alarm_share * expected:
        return Check("published curve", "warning", f"{told}, below {curve.alarm_share * expected:.2f} look for a cause")
    return Check("published curve", "passed", told)


def _like(curve: Curve, known: Sequence[str], instead: str) -> str:
    """What to type to be measured as it was."""
    own = next((name for name in curve.content if name in known), None)
    names = (name for name in curve.content if name in corpus.classes())
    words = f"`--content {own or next(names)} --temperature {curve.temperature:g}`"
    return words if own else f"leave `{instead}` out: {words}"


def of_speed(totals: Sequence[Cell]) -> Iterator[Check]:
    """Whether drafting pays: at each number of requests, and at all."""
    odd = [total for total in totals if not depths.is_possible(total)]
    for total in odd:
        detail = (
            f"{total.gain} times as fast, decoding {total.decode_gain:.2f} times, with {total.length.mean:.2f} tokens a"
            " round: no draft gives that, the servers differ in something else"
        )
        fix = "start both by the same command, one of them without its draft"
        yield Check(f"speed, {total.concurrency} at a time", "warning", detail, fix)
    gains = [(total.concurrency, total.gain) for total in totals if total.gain is not None and total not in odd]
    if not gains and not odd:
        how = "serve the same target without its draft, and name it: `--baseline URL`"
        yield Check("speed", "not checked", "nothing to compare with: whether drafting pays is not known", how)
        return
    pays = any(gain.is_above(1) for _, gain in gains)
    loses = any(gain.is_below(1) for _, gain in gains)
    for n, gain in gains:
        if gain.is_above(1):
            yield Check(f"speed, {n} at a time", "passed", f"{gain} times as fast")
        elif gain.is_below(1):
            fix = "do not draft there; whether fewer draft steps pay tells a server that is started with fewer"
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


def of_advice(advice: Sequence[Advice], *, is_scheduled: bool) -> Iterator[Check]:
    """Numbers of requests at which no depth is advised. is_scheduled: whether the engine takes depths by batch size."""
    unknown = sorted(each.concurrency for each in advice if each.best is None)
    if unknown:
        times = ", ".join(map(str, unknown))
        detail = f"none at {times} at a time: neither gain nor loss is proven there"
        if is_scheduled:
            detail += "; nor one by batch size, which needs each of them"
        yield Check("advised depth", "not checked", detail, "more prompts narrow the interval: `--prompts N`")


def of_others(counted: float, ours: int) -> Check:
    """Whether somebody else used the server meanwhile."""
    told = f"it made {counted:,.0f} tokens"
    if counted > _OTHERS * ours:
        detail = f"{told}, of which {ours:,} are ours: others shared speed and counters"
        return Check("other users", "warning", detail, "measure again when it is idle")
    if counted < ours:
        detail = f"{told}, and gave us {ours:,}: it does not count all of them, or counts late"
        return Check("other users", "warning", detail, "name one engine itself, not what stands before several")
    return Check("other users", "passed", f"{told}, {ours:,} are ours")


def of_made_up(units: Sequence[Counts], counters: Counters, *, is_told: bool) -> Iterator[Check]:
    """Whether acceptance may be drawn by lot. Where the server tells that it is, nothing was measured at all."""
    if is_told:
        return
    some = [unit for unit in units if unit.rounds]
    is_constant = len(some) >= _CONSTANT and len({unit.length for unit in some}) == 1 and some[0].accepted > 0
    if is_constant:
        detail = f"exactly {some[0].length:.3f} tokens a round in each of {len(some)} pieces of different text"
        why = f"so does {counters.unseen}; so do replies that only repeat themselves"
        yield Check("made-up acceptance", "warning", f"{detail}: {why}", "look at its command, and at some replies")
    else:
        yield Check("made-up acceptance", "not checked", f"cannot be seen from here: {counters.unseen}")


ANSWERS = Check("answers", "not checked", "whether they are right: only how many tokens come, and how fast")
