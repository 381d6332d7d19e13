"""What build and prune-plan share: the experts that stay, by the options about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from mtpforge import errors
from mtpforge.cli.output import Screen
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.nextn.inputs import Inputs
    from mtpforge.planning import Plan
    from mtpforge.pruning.expert_choice import Pruned, Wish


@dataclass(frozen=True, slots=True)
class Asked:
    """The options as the library takes them.

    inputs: what `--inputs` names, opened; None where it is not given. fits: whether codes are fitted to them, so that
    they have an effect whatever chooses the experts.
    """

    wish: Wish
    inputs: Inputs | None = None
    fits: bool = False


def asked(
    screen: Screen, experts: int | str, prune_by: str | None, keep_experts: str | None, inputs: Path | None
) -> Asked:
    """The options read: a list or the inputs are opened, or a checkpoint that was pruned before."""
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.pruning import lists
    from mtpforge.pruning.expert_choice import Wish

    kept = copy = None
    if keep_experts is not None:
        is_list = keep_experts.endswith(".json") or Path(keep_experts).is_file()
        kept = lists.read(Path(keep_experts)) if is_list else None
        copy = None if is_list else open_checkpoint(keep_experts, offline=screen.offline)
    wish = Wish(cast("int | Literal['match', 'keep']", experts), prune_by or "", kept, copy)
    if inputs is None:
        return Asked(wish)
    from mtpforge.nextn import inputs as files

    opened = files.read(inputs)
    return Asked(replace(wish, measure=lambda *pair: _scores(screen, opened, *pair)), opened)


def refuse_idle_inputs(options: Asked) -> None:
    """MtpforgeError where the experts are chosen without the inputs that are given."""
    from mtpforge.pruning import METHODS

    wish = options.wish
    if options.inputs is None or options.fits or not (wish.lists or wish.experts == "keep" or wish.method):
        return
    if wish.lists:
        raise _idle("`--keep-experts` names the experts, `--inputs` would choose them")
    if wish.experts == "keep":
        raise _idle("`--experts keep` keeps all, `--inputs` would choose those that go")
    if METHODS[wish.method].needs != "inputs":
        raise _idle(f"`--prune-by {wish.method}` does not look at inputs")


def chosen(screen: Screen, source: Checkpoint, target: Checkpoint, options: Asked) -> Pruned:
    """The experts that a draft keeps, shown. MtpforgeError where inputs were given and no expert goes."""
    from mtpforge.pruning.expert_choice import pruned

    found = pruned(source, target, options.wish)
    if options.inputs is not None and found.keeps_all and not options.fits:
        what = f"all {found.n_stored} experts stay, `--inputs` has nothing to choose"
        fix = "leave `--inputs` out, or ask for fewer experts: `--experts N`; `--scales gptq` uses them too"
        raise _idle(what, fix)
    show(screen, found)
    return found


def show(screen: Screen, found: Pruned) -> None:
    """One line about the experts, where some go."""
    if not found.keeps_all:
        screen.line(f"experts {len(found.kept)} of {found.n_stored}   {found.reason}")


def noted(plan: Plan, found: Pruned, options: Asked) -> Plan:
    """The plan with what chose its experts, for mtpforge.json; as it is where all stay."""
    from mtpforge.pruning import METHODS

    if found.keeps_all:
        return plan
    inputs = options.inputs if METHODS[found.method].needs == "inputs" else None
    by = {"method": found.method, "inputs": measured_on(inputs)}
    return replace(plan, facts={**plan.facts, "kept_by": by})


def measured_on(inputs: Inputs | None) -> dict[str, object] | None:
    """The inputs as data: what they hold, not where they lie."""
    return {"sha256": inputs.digest, "tokens": inputs.n_tokens} if inputs else None


def _scores(screen: Screen, inputs: Inputs, source: Checkpoint, target: Checkpoint) -> Mapping[str, tuple[float, ...]]:
    """The layer run on the inputs, with its progress; what they were and what the experts saw of them is shown."""
    from mtpforge.nextn.scoring import scores

    of = f" of {inputs.target}" if inputs.target else ""
    n_sequences = f"{inputs.n_sequences:,} sequence{'s' if inputs.n_sequences > 1 else ''}"
    screen.line(f"inputs  {shown(inputs.path)}   {inputs.n_tokens:,} tokens in {n_sequences}{of}")
    note_foreign(screen, inputs, target)
    with screen.progress() as on_progress:
        found = scores(source, target, inputs, on_progress=on_progress)
    counts = found["frequency"]
    unseen = f"; {counts.count(0)} see none" if 0 in counts else ""
    screen.line(f"        an expert sees {min(counts):,.0f} to {max(counts):,.0f} of them{unseen}")
    return found


def note_foreign(screen: Screen, inputs: Inputs, target: Checkpoint) -> None:
    """Say where the inputs are of another target: one of the same model serves nearly as well, any other does not."""
    if inputs.target and inputs.target != shown(target.identity):
        name = target.identity
        screen.note(f"        captured from another target than {shown(name)}: right only if it is the same model")


def _idle(what: str, fix: str = "") -> MtpforgeError:
    show = "leave one of the two out; `mtpforge prune-plan --inputs FILE` shows what they would choose"
    return MtpforgeError(what, where="option `--inputs`", fix=fix or show, code=errors.USAGE)
