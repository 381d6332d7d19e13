"""accept(): how many tokens of each draft a target accepts that fits on this machine, on what it says itself.

The target goes on with windows of a text, with its likeliest tokens and by sampling; every draft is measured beside the
same continuations (`acceptance.py`). Means over windows with 95 % intervals; differences to the first draft are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.checkpoint import Named, open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting.remarks import Remark, of_checkpoint, title
from mtpforge.drafting.request import Watching
from mtpforge.errors import MtpforgeError
from mtpforge.judging import roles, verdicts
from mtpforge.judging.fidelity import refuse_steps, refuse_unrunnable
from mtpforge.nextn import texts
from mtpforge.nextn.speculating import Recycled
from mtpforge.report import Check, Report
from mtpforge.units import counted
from mtpforge.verifying.tensor_hashes import layer_identity

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.judging.acceptance import Accepted, Text
    from mtpforge.nextn.heads import Head
    from mtpforge.nextn.layer import Block
    from mtpforge.nextn.target import Target

WINDOWS, PROMPT, GENERATE = 48, 192, 128
_Z: Final = 1.96  # of a normal distribution, 95 %
_SEED: Final = 0
_SPREAD: Final = 64  # times as many tokens as are used are looked at, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is measured. length: tokens of a prompt. generate: that the target adds. workers: they change no bit."""

    drafts: tuple[Named, ...]
    target: Named
    text: Path
    windows: int = WINDOWS
    length: int = PROMPT
    generate: int = GENERATE
    temperature: float = 1.0
    k: int = 3
    recycled: Recycled = "post-norm"
    workers: int = 1
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over windows. half_width: of its 95 % interval, None for one window."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        """For people."""
        return f"{self.mean:.3f}" + ("" if self.half_width is None else f" ± {self.half_width:.3f}")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One way of the target to go on.

    positions: how often step 1, 2, ... is reached and accepted, of all cycles. tokens: a cycle, the target's own
    counted: the mean acceptance length. against_first: of `tokens`, less the first draft's, paired by window; None for
    that one. variation: total variation of step 1 and the first draft's, at the same rows; greedy has none.
    """

    positions: tuple[Estimate, ...]
    tokens: Estimate
    against_first: Estimate | None
    variation: float | None

    @property
    def conditional(self) -> tuple[float, ...]:
        """How often each step is accepted once it is reached."""
        reached = (1.0, *(each.mean for each in self.positions))
        return tuple(
            each.mean / before if before else 0.0 for each, before in zip(self.positions, reached, strict=False)
        )


@dataclass(frozen=True, slots=True)
class DraftAcceptance:
    """One draft, beside both kinds of text. identity: its place, and a hash of its config and its layer, every byte."""

    draft: str
    identity: str
    sampled: Drawn
    greedy: Drawn
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """All drafts, in the order in which they were named."""

    target: str
    n_windows: int
    length: int
    generate: int
    temperature: float
    k: int
    recycled: str
    drafts: tuple[DraftAcceptance, ...]

    @property
    def report(self) -> Report:
        """The checks of all."""
        return Report("accept", tuple(check for draft in self.drafts for check in draft.checks))

    def document(self) -> dict[str, object]:
        """What `--json` holds of it."""
        return {"acceptance": self, "report": self.report}

    def __str__(self) -> str:
        """The checks as a table."""
        return str(self.report)


def accept(asked: Asked, watching: Watching) -> Acceptance:
    """Every draft beside the target. MtpforgeError before the first layer for what is known to end it."""
    refuse_steps(asked.k, asked.recycled)
    _refuse(asked)
    texts.refuse_unusable(asked.text)
    served = open_checkpoint(asked.target, offline=asked.offline)
    drafts = [open_checkpoint(name, offline=asked.offline) for name in asked.drafts]
    for each in (served, *drafts):
        refuse_unrunnable(each)
    for each in drafts:
        roles.refuse_draft_of_other_model(each, served)
        roles.refuse_no_draft(each)
    from mtpforge.nextn import layer as layers
    from mtpforge.nextn.heads import head_of
    from mtpforge.nextn.hessians import one_thread
    from mtpforge.nextn.target import open_target

    model = open_target(served)
    head = head_of(served, hidden_size=model.config.hidden_size)
    windows = _windows(asked, model)
    blocks = [layers.block(each) for each in drafts]
    watching.on_remark(of_checkpoint("target", served))
    for each in drafts:
        watching.on_remark(of_checkpoint("draft", each))
    what = f"{counted(len(windows), 'window')} of {asked.length:,} tokens, {asked.generate:,} more by the target"
    watching.on_remark(Remark("text", f"{what}; {asked.k} steps, {asked.recycled}, temperature {asked.temperature:g}"))
    with one_thread():
        found = _measured(asked, model, head, blocks, windows, watching)
    return Acceptance(
        title(served), len(windows), asked.length, asked.generate, asked.temperature, asked.k, asked.recycled,
        tuple(_judged(each, *pair) for each, pair in zip(drafts, found, strict=True)),
    )  # fmt: skip


def _refuse(asked: Asked) -> None:
    """Values that leave nothing to measure."""
    if asked.generate < asked.k + 2:
        what = f"{asked.generate} tokens leave no cycle of {asked.k} steps"
        raise MtpforgeError(what, fix=f"`--generate {asked.k + 2}` or more", code=errors.USAGE)
    if not asked.temperature > 0:
        what = f"temperature {asked.temperature:g} draws nothing"
        raise MtpforgeError(what, fix="one above 0; the likeliest tokens are measured anyway", code=errors.USAGE)


def _windows(asked: Asked, model: Target) -> list[list[int]]:
    """Whole windows, spread evenly over the text."""
    size, most = asked.length + asked.generate, model.config.max_position_embeddings
    if size > most:
        raise MtpforgeError(
            f"{size:,} tokens are more than the target takes",
            why=f"`max_position_embeddings` of its config.json is {most:,}",
            fix=f"`--length {most // 2} --generate {most // 4}`",
            code=errors.USAGE,
        )
    looked_at = _SPREAD * asked.windows * asked.length
    found = texts.windows(asked.text, model.folder, asked.length, looked_at, model.config.vocab_size)
    found = [each for each in found if len(each) == asked.length]
    if not found:
        raise MtpforgeError(
            f"the text has no window of {asked.length:,} tokens",
            where=str(asked.text),
            fix="name a longer text, or take shorter prompts with `--length`",
        )
    n = min(asked.windows, len(found))
    return [found[number * len(found) // n] for number in range(n)]


def _measured(
    asked: Asked, model: Target, head: Head, blocks: Sequence[Block], windows: list[list[int]], watching: Watching
) -> Iterator[tuple[Drawn, Drawn]]:
    """Of every draft what both texts gave."""
    import torch

    from mtpforge.judging import acceptance
    from mtpforge.judging.acceptance import Beside
    from mtpforge.nextn.embedding import embedding
    from mtpforge.nextn.whole import drawn, likeliest, whole

    held, prompts = whole(model, head), torch.tensor(windows)
    beside = Beside(
        embedding(model.checkpoint, model.checkpoint, model.config.hidden_size),
        head,
        asked.k,
        asked.recycled,
        asked.workers,
    )
    made: list[Text] = []
    for draw in (drawn(asked.temperature, _SEED), likeliest):
        ids = held.continued(prompts, asked.generate, draw, watching.on_progress)
        made.append(acceptance.Text(ids, held.states(ids), asked.length))
    sampled = acceptance.sampled(blocks, beside, made[0], asked.temperature, watching.on_progress)
    greedy = [acceptance.greedy(block, beside, made[1], watching.on_progress) for block in blocks]
    pairs = zip(sampled, greedy, strict=True)
    return iter([(_drawn(one, sampled[0]), _drawn(two, greedy[0])) for one, two in pairs])


def _drawn(found: Accepted, first: Accepted) -> Drawn:
    return Drawn(
        tuple(estimate(each) for each in found.positions),
        estimate(found.length),
        None if found is first else estimate(found.length - first.length),
        None if found.variation is None else float(found.variation.mean()),
    )


def estimate(values: Tensor) -> Estimate:
    """Mean over windows and half the width of its 95 % interval."""
    n = len(values)
    return Estimate(float(values.mean()), float(_Z * values.std() / n**0.5) if n > 1 else None)


def _judged(draft: Checkpoint, sampled: Drawn, greedy: Drawn) -> DraftAcceptance:
    checks = verdicts.of_acceptance(title(draft), sampled)
    return DraftAcceptance(title(draft), layer_identity(draft), sampled, greedy, tuple(checks))
