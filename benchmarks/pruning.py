"""What each way to drop experts keeps, on the trained tiny model: tokens that the target accepts.

    python benchmarks/pruning.py                 the tables of docs/pruning.md, about ten minutes
    python benchmarks/pruning.py --windows 8     a quick look

Drafts are built in BF16 with 12 and 8 of 16 experts, beside the INT4 target and beside its build with 12 experts. The
first windows of the text calibrate, the others are measured, for all methods alike; random drops, by ten seeds, are the
floor. Intervals are 95 %, over windows; differences are paired, window by window.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import torch
from acceptance import Target, draft_of, first_step, mean_length, windows
from torch import Tensor

from mtpforge import scheme
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.families import family_of
from mtpforge.families.routing import routing
from mtpforge.nextn import inputs, scoring
from mtpforge.planning import plan
from mtpforge.pruning import DEFAULT_METHOD, METHODS, expert_choice
from mtpforge.sourcing import stored_layer

_HOME: Final = Path(__file__).parents[1]
_SOURCE: Final = _HOME / "tests/data/tinyglm/bf16"
_TARGETS: Final = (_HOME / "mtpforge/_demo/awq-int4", _HOME / "tests/data/tinyglm/awq-int4-12experts")
_TEXT: Final = _HOME / "tests/data/tinyglm/eval.txt"
_PROMPT, _GENERATED, _STEPS = 192, 128, 3
_CALIBRATION: Final = 21  # of 69 windows
_SEEDS: Final = 10
_HEAD: Final = (
    f"| kept | method | first token | total variation | over random | over {DEFAULT_METHOD} |"
    f" mean length | over random | over {DEFAULT_METHOD} |"
)

Pair: TypeAlias = tuple[Tensor, Tensor]  # acceptance of the first token, tokens a cycle: [windows] each


@dataclass(frozen=True, slots=True)
class Texts:
    """What is measured beside one target: token ids [windows, tokens] and the target's final-normed states."""

    target: Target
    text: Tensor
    states: Tensor
    made: Tensor
    made_states: Tensor


def main() -> None:
    """Print a table for each target."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--windows", type=int, default=1000, help="to measure, of 320 tokens each; default: all left")
    given = asked.parse_args()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for served in _TARGETS:
            _table(served, given.windows, Path(folder))


def _table(served: Path, n_windows: int, folder: Path) -> None:
    target = Target(served)
    rows = windows(served, _TEXT.read_text(), _PROMPT + _GENERATED)
    calibration, text = rows[:_CALIBRATION], rows[_CALIBRATION:][:n_windows]
    made = target.sampled(text[:, :_PROMPT], _GENERATED)
    texts = Texts(target, text, target.states(text), made, target.states(made))
    scores = _scores(served, target, calibration, folder)
    n_served = target.n_experts
    print(f"\nTarget {served.name}, {len(calibration)} windows calibrate, {len(text)} are measured\n")
    print(_HEAD, "|---" * 9 + "|", sep="\n")
    whole = range(len(next(iter(scores.values()))))
    if n_served == len(whole):
        _print(f"{n_served}", "all", _measured(texts, tuple(whole), folder))
    for n_kept in (12, 8):
        by_seed = [_measured(texts, kept, folder) for kept in _at_random(whole, n_kept)]
        floor = _mean(by_seed)
        best = max(by_seed, key=lambda values: float(values[0].mean()))
        found = {f"random, mean of {_SEEDS}": floor, f"random, best of {_SEEDS}": best}
        found |= {name: _measured(texts, kept, folder) for name, kept in _choices(served, scores, n_kept)}
        for name, values in found.items():
            _print(f"{n_kept}", name, values, floor, found[DEFAULT_METHOD])


def _scores(served: Path, target: Target, ids: Tensor, folder: Path) -> dict[str, tuple[float, ...]]:
    """Scores of every method; the inputs hold the target's states on the calibration windows."""
    states, positions = target.states(ids), torch.arange(ids.shape[1])
    file = folder / f"{served.name}.safetensors"
    sequences = (inputs.Sequence(row, positions, hidden) for row, hidden in zip(ids, states, strict=True))
    inputs.write(file, sequences, target=served.name, dtype="F32")
    source, beside = open_checkpoint(str(_SOURCE)), open_checkpoint(str(served))
    measured = scoring.scores(source, beside, inputs.read(file))
    names = [name for name, method in METHODS.items() if method.needs != "list"]
    return expert_choice.scores(source, stored_layer(source, family_of(source.config)), names, measured)


def _choices(served: Path, scores: dict[str, tuple[float, ...]], n_kept: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    route = routing(open_checkpoint(str(served)).config)
    for name, values in scores.items():
        yield name, expert_choice.choice(name, values, n_kept, route)


def _at_random(whole: Sequence[int], n_kept: int) -> list[tuple[int, ...]]:
    return [tuple(sorted(random.Random(seed).sample(whole, n_kept))) for seed in range(_SEEDS)]


def _measured(texts: Texts, kept: tuple[int, ...], folder: Path) -> Pair:
    """Acceptance of the first token, and tokens a cycle, of a draft with these experts: [windows] each."""
    source, out = open_checkpoint(str(_SOURCE)), folder / "draft"
    decided = plan(source, None, scheme=scheme.load("bf16"), kept=kept)
    build(decided, {"source": source}, out, check="off", force=True)
    draft = draft_of(out)
    return (
        first_step(texts.target, draft, texts.text, texts.states),
        mean_length(texts.target, draft, texts.made, texts.made_states, _PROMPT, _STEPS),
    )


def _mean(found: Sequence[Pair]) -> Pair:
    first, length = (torch.stack(values).mean(0) for values in zip(*found, strict=True))
    return first, length


def _print(kept: str, name: str, values: Pair, *others: Pair) -> None:
    """A row: both measures, and each against every other's, paired."""
    cells = [kept, name]
    for measure, mine in enumerate(values):
        cells.append(_interval(mine))
        if not measure:
            cells.append(f"{1 - float(mine.mean()):.4f}")
        differences = [mine - other[measure] for other in others] or [torch.zeros(0)] * 2
        cells += [_interval(difference) if difference.any() else "" for difference in differences]
    print(f"| {' | '.join(cells)} |", flush=True)


def _interval(values: Tensor) -> str:
    """Mean over windows and half the width of its 95 % interval."""
    x = values.double()
    return f"{float(x.mean()):.4f} ± {float(1.96 * x.std() / len(x) ** 0.5):.4f}"


if __name__ == "__main__":
    main()
