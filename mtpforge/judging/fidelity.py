"""fidelity(): does a draft predict what the dense layer predicts, on the same inputs; which of several does best.

Both layers run k steps in float32, on weights as an engine holds them once they are decoded, rounded to BF16; each by
its own config. Activations are not quantized here, as W4A4 and FP8 engines do it. One head, the target's, for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.checkpoint import Named, open_checkpoint, open_served
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.drafting.remarks import Remark, of_checkpoint, title
from mtpforge.drafting.request import Watching
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import families, family_of
from mtpforge.judging import roles
from mtpforge.judging.swapping import Swap
from mtpforge.nextn.inputs import refuse_no_file
from mtpforge.nextn.speculating import RECYCLED, Recycled
from mtpforge.report import Check, Report
from mtpforge.units import duration, memory_size
from mtpforge.verifying.tensor_hashes import layer_identity

if TYPE_CHECKING:
    from mtpforge.judging.distances import Distances
    from mtpforge.judging.pairs import Pair, Side
    from mtpforge.judging.sampling import Sample
    from mtpforge.nextn.embedding import Embedding
    from mtpforge.nextn.heads import Head
    from mtpforge.nextn.speculating import Step

USUAL_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is compared with what. target: whose head and embedding are used; None where the reference has them.

    inputs: a captured file, None for synthetic ones. tokens: of it, at most. workers: threads; they change no bit.
    """

    drafts: tuple[Named, ...]
    reference: Named
    target: Named | None = None
    inputs: Path | None = None
    tokens: int = USUAL_TOKENS
    k: int = 3
    recycled: Recycled = "post-norm"
    workers: int = 1
    offline: bool = False


@dataclass(frozen=True, slots=True)
class StepFidelity:
    """One step, means over its rows.

    total_variation: of next-token distributions at temperature 1; no target can lose more acceptance in this step on
    these inputs. divergence: KL, nats, from the reference. agreement: share of rows with the same likeliest token.
    state_error: relative, of what the head is given. routing: share of experts chosen that the reference chose too.
    acceptance, acceptance_reference: beside the target whose states the inputs hold, the step's tokens so far being the
    text's; None without one.
    """

    step: int
    n_rows: int
    total_variation: float
    divergence: float
    agreement: float
    state_error: float
    routing: float
    acceptance: float | None
    acceptance_reference: float | None


@dataclass(frozen=True, slots=True)
class DraftFidelity:
    """One draft. identity: its place, and a hash of config and layer, every byte. n_bytes: of its layer.

    steps: none where it cannot be computed. swaps: which module costs what.
    """

    draft: str
    identity: str
    n_bytes: int
    n_experts: int
    steps: tuple[StepFidelity, ...]
    swaps: tuple[Swap, ...]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is clearly broken."""
        return all(check.verdict != "failed" for check in self.checks)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """All drafts, in the order in which they were named. inputs: sha256 of the file, "" for synthetic ones."""

    reference: str
    reference_bytes: int
    is_synthetic: bool
    inputs: str
    captured_from: str
    n_tokens: int
    n_sequences: int
    k: int
    recycled: str
    drafts: tuple[DraftFidelity, ...]

    @property
    def ranked(self) -> tuple[DraftFidelity, ...]:
        """Nearest first, by the first step; those that were not computed last."""
        return tuple(sorted(self.drafts, key=lambda d: d.steps[0].total_variation if d.steps else 2.0))

    @property
    def report(self) -> Report:
        """The checks of all."""
        several = len(self.drafts) > 1
        checks = [replace(c, name=f"{d.draft}: {c.name}") if several else c for d in self.drafts for c in d.checks]
        return Report("fidelity", tuple(checks))

    def document(self) -> dict[str, object]:
        """What `--json` holds of it."""
        return {"fidelity": self, "ranked": [each.draft for each in self.ranked], "report": self.report}

    def __str__(self) -> str:
        """The checks as a table."""
        return str(self.report)


def fidelity(asked: Asked, watching: Watching) -> Fidelity:
    """Both layers on the same inputs. MtpforgeError before anything runs for what is known to end it."""
    _refuse(asked)
    reference = open_checkpoint(asked.reference, offline=asked.offline)
    drafts = [open_checkpoint(name, offline=asked.offline) for name in asked.drafts]
    target = None if asked.target is None else open_served(asked.target, offline=asked.offline)
    for each in (reference, *drafts):
        refuse_unrunnable(each)
    for each in drafts:
        roles.refuse_draft_of_other_layer(each, reference)
    if target is not None:
        roles.refuse_target_of_other_layer(target, reference)
    roles.refuse_no_reference(reference)
    for each in drafts:
        roles.refuse_no_draft(each)
    from mtpforge.nextn.hessians import one_thread

    with one_thread():
        return _Comparison(asked, reference, drafts, target, watching).run()


def _refuse(asked: Asked) -> None:
    """What the command line alone is wrong about."""
    if len(asked.drafts) > 1 and asked.inputs is None:
        raise MtpforgeError(
            "drafts are not ranked on synthetic inputs",
            where="option `--compare`",
            why="random tokens and states misstate acceptance several times over, either way",
            fix="capture some: `mtpforge capture --target CKPT --text FILE`, then `--inputs FILE`",
            code=errors.USAGE,
        )
    refuse_steps(asked.k, asked.recycled)
    if asked.inputs is not None:
        refuse_no_file(asked.inputs)


def refuse_steps(k: int, recycled: str) -> None:
    """MtpforgeError for a number of steps, or a state that goes on, that is none."""
    if recycled not in RECYCLED or k < 1:
        raise MtpforgeError(
            f"`{shown(recycled)}` is no state to go on from" if k >= 1 else f"{k} steps are none",
            fix=f"`--recycle {RECYCLED[0]}`, `--k 3`",
            code=errors.USAGE,
        )


def refuse_unrunnable(checkpoint: Checkpoint) -> None:
    """MtpforgeError for a family whose layers are not laid out for transformers' modules."""
    with errors_of(checkpoint):
        family = family_of(checkpoint.config)
    if not family.is_runnable:
        known = ", ".join(each.name for each in families() if each.is_runnable)
        raise MtpforgeError(
            f"layers of {family.name} cannot be run here",
            where=shown(checkpoint.label),
            why=f"they are computed by transformers' modules, which are laid out for {known} only",
            fix="`mtpforge verify DRAFT --target CKPT --source SOURCE` compares the weights",
        )


class _Comparison:
    """One run."""

    def __init__(
        self,
        asked: Asked,
        reference: Checkpoint,
        drafts: list[Checkpoint],
        target: Checkpoint | None,
        watching: Watching,
    ) -> None:
        from mtpforge.judging.pairs import Side
        from mtpforge.nextn import configuring
        from mtpforge.nextn import layer as layers
        from mtpforge.nextn.embedding import embedding
        from mtpforge.nextn.heads import head_of

        self._asked, self._watching, self._drafts = asked, watching, drafts
        self._differing = [configuring.differing(reference, each) for each in drafts]
        self._reference: Side = Side.of(layers.block(reference))
        runs = [configuring.computes(each) for each in drafts]
        self._sides = [Side.of(layers.block(each)) if runs_ else None for each, runs_ in zip(drafts, runs, strict=True)]
        width = self._reference.block.config.hidden_size
        others = [each for each in (target, *drafts) if each is not None]
        self._head: Head = head_of(*([target] if target else []), reference, *drafts, hidden_size=width)
        self._embedding: Embedding = embedding(reference, target or others[0], width)
        self._sample: Sample = self._sampled()
        self._refuse_foreign()
        watching.on_remark(of_checkpoint("dense", reference))
        for each in drafts:
            watching.on_remark(of_checkpoint("draft", each))
        watching.on_remark(Remark("inputs", str(self._sample), aside=self._sample.is_synthetic))

    def run(self) -> Fidelity:
        """Everything, the costs told first."""
        from mtpforge.judging.cost import cost

        sides, sample, asked = [side for side in self._sides if side is not None], self._sample, self._asked
        beside = not sample.is_synthetic
        need = cost(*(self._reference, sides, self._head, sample.n_rows, asked.k, asked.workers), beside_target=beside)
        steps = f"{asked.k} step{'s' if asked.k > 1 else ''} of {1 + len(sides)} layers, {asked.recycled}"
        what = f"{steps}; about {duration(need.seconds)}, memory about {memory_size(need.memory_bytes)}"
        self._watching.on_remark(Remark("steps", what))
        self._fetch()
        measured = self._measured()
        made = []
        for draft, side, differing in zip(self._drafts, self._sides, self._differing, strict=True):
            made.append(self._judged(draft, side, differing, measured.get(id(side), ())))
        return Fidelity(
            reference=title(self._reference.block.checkpoint),
            reference_bytes=self._reference.n_bytes,
            is_synthetic=sample.is_synthetic,
            inputs=sample.digest,
            captured_from=sample.target,
            n_tokens=sample.n_tokens,
            n_sequences=len(sample.sequences),
            k=asked.k,
            recycled=asked.recycled,
            drafts=tuple(made),
        )

    def _judged(
        self,
        draft: Checkpoint,
        side: Side | None,
        differing: dict[str, tuple[object, object]],
        steps: Sequence[StepFidelity],
    ) -> DraftFidelity:
        from mtpforge.judging import verdicts
        from mtpforge.judging.pairs import paired
        from mtpforge.judging.swapping import swaps

        checks, found = [verdicts.of_config(differing)], list[Swap]()
        if side is None:
            return DraftFidelity(title(draft), layer_identity(draft), 0, 0, (), (), tuple(checks))
        found = swaps(
            *(paired(self._reference, side), self._embedding, self._head, self._sample),
            workers=self._asked.workers,
            on_progress=self._watching.on_progress,
        )
        checks += [verdicts.of_modules(found), *verdicts.of_steps(steps, is_synthetic=self._sample.is_synthetic)]
        n_experts = side.stored.n_experts
        return DraftFidelity(
            title(draft), layer_identity(draft), side.n_bytes, n_experts, tuple(steps), tuple(found), tuple(checks)
        )

    def _sampled(self) -> Sample:
        from mtpforge.judging import sampling
        from mtpforge.nextn import inputs

        width = self._reference.block.config.hidden_size
        if self._asked.inputs is None:
            return sampling.synthetic(width, self._head.n_tokens, self._asked.tokens)
        read = inputs.read(self._asked.inputs, hidden_size=width, vocab_size=self._head.n_tokens)
        read.refuse_beyond(self._reference.block.config.max_position_embeddings)
        return sampling.captured(read, self._asked.tokens, self._asked.k)

    def _refuse_foreign(self) -> None:
        highest = max(int(each.token_ids.max()) for each in self._sample.sequences)
        if highest >= self._embedding.n_tokens:
            raise MtpforgeError(
                f"the inputs hold token {highest:,}, the embedding has {self._embedding.n_tokens:,}",
                where=self._sample.path,
                why="they were captured from another model",
                fix="capture them from a target of this model: `mtpforge capture --help`",
            )

    def _fetch(self) -> None:
        """Everything that is read, once and in large pieces."""
        import torch

        self._embedding.fetch(torch.unique(torch.cat([each.token_ids for each in self._sample.sequences])))
        self._head.fetch()
        for side in (self._reference, *self._sides):
            if side is not None:
                refs = [ref for module in side.stored.modules.values() for ref in module.weight_parts.values()]
                side.block.checkpoint.fetch([*refs, *side.stored.plain.values()], self._watching.on_progress)

    def _steps(self, side: Side) -> list[Step]:
        from mtpforge.nextn.speculating import steps

        asked = self._asked
        return list(
            steps(
                *(side.block, self._embedding, self._sample.sequences, asked.k),
                recycled=asked.recycled,
                workers=asked.workers,
                on_progress=self._watching.on_progress,
            )
        )

    def _measured(self) -> dict[int, list[StepFidelity]]:
        """By the identity of its side, every draft's steps."""
        from mtpforge.judging.distances import distances
        from mtpforge.judging.pairs import paired

        sides = [side for side in self._sides if side is not None]
        own = self._steps(self._reference)
        pairs = [paired(self._reference, side) for side in sides]
        theirs = [self._steps(side) for side in sides]
        found: dict[int, list[StepFidelity]] = {id(side): [] for side in sides}
        for number, reference in enumerate(own, 1):
            known = reference.is_known
            far = distances(
                *(self._head, reference.states[known], [each[number - 1].states[known] for each in theirs]),
                None if self._sample.is_synthetic else self._sample.states_ahead(number)[known],
                workers=self._asked.workers,
                on_progress=self._watching.on_progress,
            )
            for pair, steps, each in zip(pairs, theirs, far, strict=True):
                found[id(pair.draft)].append(_step(number, pair, steps[number - 1], reference, each))
        return found


def _step(number: int, pair: Pair, step: Step, reference: Step, far: Distances) -> StepFidelity:
    """Means over the rows that are known."""
    off, overlap = _apart(pair, step, reference)
    return StepFidelity(
        step=number,
        n_rows=len(far.total_variation),
        total_variation=float(far.total_variation.mean()),
        divergence=float(far.divergence.mean()),
        agreement=float(far.agreement.mean()),
        state_error=off,
        routing=overlap,
        acceptance=None if far.accepted is None else float(far.accepted.mean()),
        acceptance_reference=None if far.accepted_reference is None else float(far.accepted_reference.mean()),
    )


def _apart(pair: Pair, step: Step, reference: Step) -> tuple[float, float]:
    """Relative error of the states, and the share of chosen experts that the reference chose too."""
    import torch

    from mtpforge.judging.pairs import ratio

    known = reference.is_known
    named = torch.tensor(pair.kept)[step.routed.experts[known]]
    both = (named[:, :, None] == reference.routed.experts[known][:, None]).any(-1)
    return ratio([(step.states[known], reference.states[known])]), float(both.double().mean())
