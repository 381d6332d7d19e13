"""Which experts of the source's layer stay, by what a request says about them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mtpforge import errors
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting import remarks
from mtpforge.drafting.request import Request, Watching
from mtpforge.engines import engine_of
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import refuse_other_count
from mtpforge.pruning import METHODS, expert_choice, lists
from mtpforge.pruning.expert_choice import Comparison, Pruned, Wish

if TYPE_CHECKING:
    from mtpforge.nextn.inputs import Inputs


def wish(request: Request, inputs: Inputs | None, watching: Watching) -> Wish:
    """What the request says of experts: a list is read, a checkpoint that was pruned before is opened."""
    named, kept, copy = request.keep_experts, None, None
    if isinstance(named, Sequence) and not isinstance(named, str):
        kept = tuple(named)
    elif isinstance(named, str | os.PathLike) and (
        str(named).endswith(".json") or os.path.isfile(named)  # noqa: PTH113 -- Path's raises for a long name
    ):
        kept = lists.read(Path(named))
    elif named is not None:
        copy = open_checkpoint(named, offline=request.offline)
    asked = Wish(request.experts, request.prune_by, kept, copy)
    if inputs is None:
        return asked
    given = inputs

    def measure(source: Checkpoint, target: Checkpoint) -> Mapping[str, tuple[float, ...]]:
        return _scores(given, source, target, watching)

    return replace(asked, measure=measure)


def takes_long(asked: Wish) -> bool:
    """Whether choosing reads more than the router: the experts, or the layer run on inputs."""
    return asked.has_inputs or (bool(asked.method) and METHODS[asked.method].needs == "experts")


def choose(
    request: Request, asked: Wish, inputs: Inputs | None, source: Checkpoint, target: Checkpoint, watching: Watching
) -> Pruned:
    """The experts that a draft keeps. MtpforgeError where inputs were given and no expert goes."""
    _refuse_other_count(request, asked.experts, target)
    found = expert_choice.pruned(source, target, asked)
    if inputs is not None and found.keeps_all and not request.fits_codes:
        what = f"all {found.n_stored} experts stay, `--inputs` has nothing to choose"
        fix = "leave `--inputs` out, or ask for fewer experts: `--experts N`; `--scales gptq` uses them too"
        raise _idle(what, fix)
    for remark in remarks.of_experts(found, request.prune_by):
        watching.on_remark(remark)
    return found


def compare(
    request: Request,
    asked: Wish,
    inputs: Inputs | None,
    names: Sequence[str],
    source: Checkpoint,
    target: Checkpoint,
    watching: Watching,
) -> Comparison:
    """The same choice beside those of other methods; refused where a build would refuse it."""
    _refuse_other_count(request, asked.experts, target)
    found = expert_choice.compared(source, target, asked, names)
    _refuse_other_count(request, len(found.chosen.kept), target)
    for remark in remarks.of_experts(found.chosen):
        watching.on_remark(remark)
    return replace(found, inputs=measured_on(inputs))


def refuse_idle_inputs(request: Request) -> None:
    """MtpforgeError where the experts are chosen without the inputs that are given."""
    if request.inputs is None or request.fits_codes:
        return
    if request.keep_experts is not None:
        raise _idle("`--keep-experts` names the experts, `--inputs` would choose them")
    if request.experts == "keep":
        raise _idle("`--experts keep` keeps all, `--inputs` would choose those that go")
    if request.prune_by and METHODS[request.prune_by].needs != "inputs":
        raise _idle(f"`--prune-by {request.prune_by}` does not look at inputs")


def kept_by(found: Pruned, inputs: Inputs | None) -> dict[str, object]:
    """What chose the experts, for mtpforge.json."""
    return {"method": found.method, "inputs": measured_on(inputs if METHODS[found.method].needs == "inputs" else None)}


def measured_on(inputs: Inputs | None) -> dict[str, object] | None:
    """The inputs as data: what they hold, not where they lie."""
    return {"sha256": inputs.digest, "tokens": inputs.n_tokens} if inputs else None


def _refuse_other_count(request: Request, n_experts: int | str, target: Checkpoint) -> None:
    """Before scores are made: they can take minutes."""
    if isinstance(n_experts, int):
        refuse_other_count(engine_of(request.engine), family_of(target.config), target, n_experts, chosen=True)


def _scores(
    inputs: Inputs, source: Checkpoint, target: Checkpoint, watching: Watching
) -> Mapping[str, tuple[float, ...]]:
    """The layer run on the inputs; what they were and what the experts saw of them is said."""
    from mtpforge.nextn.scoring import scores

    for remark in remarks.of_inputs(inputs, target):
        watching.on_remark(remark)
    found = scores(source, target, inputs, on_progress=watching.on_progress)
    watching.on_remark(remarks.of_counts(found["frequency"]))
    return found


def _idle(what: str, fix: str = "") -> MtpforgeError:
    show = "leave one of the two out; `mtpforge prune-plan --inputs FILE` shows what they would choose"
    return MtpforgeError(what, where="option `--inputs`", fix=fix or show, code=errors.USAGE)
