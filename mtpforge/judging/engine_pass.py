"""engine_pass(): the draft as an engine computes it on the GPU that is here, beside the layer as it is computed here.

What loading does not show: that weights which were repacked for a device's kernels are multiplied as what they are. The
engine leaves attention out, as when it measures its memory, so the same is done here: what is compared is the entrance,
the router, the experts and the last norm.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting.devices import gpus
from mtpforge.engines import engine_of
from mtpforge.engines.child import LOADS, Findings
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.nextn import layer as nextn
from mtpforge.report import Check, OnProgress, Report
from mtpforge.verifying import as_served

if TYPE_CHECKING:
    from torch import Tensor

NAME: Final = "forward pass"
ROWS: Final = 64  # with 8 experts of 256 each, seven experts in eight are met
# Of the size of what is right, the median of all rows. BF16 is off by 0.01; activations of four bits by 0.1 to 0.2, by
# what their rounding comes to; another layer by 1 and more.
MOST_OFF: Final = 0.5


def engine_pass(
    draft: Path,
    target: Checkpoint,
    engine: str,
    serving: Serving,
    python: str | None,
    workers: int,
    on_progress: OnProgress | None = None,
) -> Report:
    """One pass by the engine and one here on the same random rows; a check that says why where there is none.

    Facts: `forward`: device, class, processed (quantization method -> modules whose weights it processed), rows,
    `off`: by how much of their size `mlp` and `states` differ, the median of the rows.
    """
    found, judge = gpus(), engine_of(engine)
    run, held = judge.forward, open_checkpoint(draft)
    if isinstance(found, str):
        return _not_run(f"there is no GPU to run it on: {found}")
    if run is None:
        return _not_run(f"{judge.name} is not run by mtpforge; its loader was asked")
    with tempfile.TemporaryDirectory(prefix="mtpforge-rows-") as folder:
        inputs, outputs = Path(folder) / "inputs.safetensors", Path(folder) / "outputs.safetensors"
        given = rows(held)
        _write(given, inputs)
        try:
            said = run(draft, as_served(held, target, judge), serving, python, inputs, outputs)
        except MtpforgeError as error:
            if error.code != errors.MACHINE:
                raise
            return _not_run(": ".join(filter(None, (error.what, error.why))), error.fix)
        return judged(held, given, said, outputs, workers, on_progress)


def beside(answer: Report, asked: Callable[[], Report]) -> Report:
    """What the loader answered, and of a draft that it takes what a pass comes to: `asked`, which takes longer."""
    passed = asked() if answer.ok else _not_run(_why_not(answer))
    return replace(answer, checks=answer.checks + passed.checks, facts={**answer.facts, **passed.facts})


def _why_not(answer: Report) -> str:
    failed = [check.name for check in answer.checks if check.verdict == "failed"]
    if not failed or any(name.startswith(LOADS) for name in failed):
        return "the loader does not take the draft"
    return f"the loader takes the draft, but `{failed[0]}` failed"


def _not_run(why: str, fix: str = "") -> Report:
    return Report("validate", (Check(NAME, "not checked", why, fix),))


@dataclass(frozen=True, slots=True)
class Given:
    """Token ids and positions, int64 [n]; their embeddings and the states before, BF16 [n, hidden]."""

    token_ids: Tensor
    positions: Tensor
    embeddings: Tensor
    states: Tensor

    def rows(self, token_ids: Tensor) -> Tensor:
        """Their embeddings, float32 [n, hidden]: token i is the i-th."""
        return self.embeddings.float()[token_ids]


def rows(draft: Checkpoint, n: int = ROWS) -> Given:
    """Random rows, always the same."""
    import torch

    family, generator = family_of(draft.config), torch.Generator().manual_seed(0)
    width = int(str(family.text(draft.config)["hidden_size"]))
    embeddings, states = (torch.randn(n, width, generator=generator).to(torch.bfloat16) for _ in range(2))
    return Given(torch.arange(n), torch.arange(1, n + 1), embeddings, states)


def _write(given: Given, file: Path) -> None:
    from safetensors.torch import save_file

    names = ("token_ids", "positions", "embeddings", "states")
    save_file({name: getattr(given, name) for name in names}, file)


def judged(
    draft: Checkpoint,
    given: Given,
    said: Findings,
    outputs: Path,
    workers: int,
    on_progress: OnProgress | None = None,
) -> Report:
    """What the engine put out beside what is right."""
    from safetensors.torch import load_file

    n_rows, facts = len(given.token_ids), {**said["facts"], "rows": len(given.token_ids)}
    by = f"{facts.get('engine', 'the engine')} on {facts.get('device', 'the GPU')}"
    if not said["accepted"]:
        fix = "free the GPU's memory and run it again, or serve it and see whether the server ends so too"
        why = f"{by} does not come through it: {said['errors'][0]}"
        return _answer(Check(NAME, "warning", why, fix), facts | {"errors": said["errors"]})
    by += f", {n_rows} random rows, attention left out"
    theirs = load_file(outputs)
    if not all(bool(tensor.isfinite().all()) for tensor in theirs.values()):
        return _answer(Check(NAME, "failed", f"{by}: it puts out what is no number", _DO_NOT), facts)
    try:
        ours = computed(draft, given, workers, on_progress)
    except MtpforgeError as error:
        return _answer(Check(NAME, "passed", f"{by}; not held against anything: {error.what}"), facts)
    off = _off(theirs, ours)
    told = ", ".join(f"{_SHOWN[name]} off by {100 * value:.2g} %" for name, value in off.items())
    if max(off.values()) <= MOST_OFF:
        return _answer(Check(NAME, "passed", f"{by}: {told}"), facts | {"off": off})
    return _answer(
        Check(NAME, "failed", f"{by}: {told}: the engine computes another layer", _DO_NOT), facts | {"off": off}
    )


def _answer(check: Check, facts: Mapping[str, object]) -> Report:
    return Report("validate", (check,), facts={"forward": facts})


_DO_NOT: Final = "do not serve it: `mtpforge verify` names a tensor that is off; another engine version may compute it"
_SHOWN: Final = {"mlp": "router and experts", "states": "states"}


def _off(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, float]:
    """Median over the rows of |theirs - ours| / |ours|."""
    both = {name: (theirs[name], right) for name, right in ours.items() if name in theirs}
    return {name: float(((a - b).norm(dim=-1) / b.norm(dim=-1)).median()) for name, (a, b) in both.items()}


def computed(
    draft: Checkpoint, given: Given, workers: int = 1, on_progress: OnProgress | None = None
) -> dict[str, Tensor]:
    """The layer without attention, by decoded weights: `mlp` and `states`, float32 [n, hidden]."""
    import torch

    layer = nextn.block(draft)
    with torch.inference_mode():
        x = nextn.entrance(layer, given).rows(given.token_ids, given.positions, given.states.float())
        out = nextn.output(layer, x, nextn.route(layer, x), on_progress, workers=workers)
        return {"mlp": out - x, "states": layer.norm("shared_head.norm")(out)}
