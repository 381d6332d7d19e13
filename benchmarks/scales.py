"""What `--scales` gains, on the trained tiny model: weight error, and tokens that the target accepts.

    python benchmarks/scales.py                 the table of docs/scales.md, a few minutes
    python benchmarks/scales.py --windows 8     a quick look

Every method builds the BF16 layer in each scheme; the target is the INT4 one. All drafts are measured on the same text
and the same continuations, so that differences to rtn are paired. Intervals are 95 %, over windows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import torch
from acceptance import Draft, Target, first_step, mean_length, weights, windows
from torch import Tensor

from mtpforge import scheme
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.planning import plan
from mtpforge.tensors import ScaleMethod

_HOME: Final = Path(__file__).parents[1]
_SOURCE: Final = _HOME / "tests/data/tinyglm/bf16"
_TARGET: Final = _HOME / "mtpforge/_demo/awq-int4"
_TEXT: Final = _HOME / "tests/data/tinyglm/eval.txt"
_SCHEMES: Final = ("int4-g32-asym", "int4-g128-sym")
_PROMPT, _GENERATED, _STEPS = 192, 128, 3
_HEAD: Final = "| scheme | scales | weight error | first token | against rtn | mean length | against rtn |"

Row = tuple[str, Tensor, Tensor, float]


def main() -> None:
    """Print the table."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--windows", type=int, default=1000, help="of 320 tokens each; default: all of the text's")
    asked = asked.parse_args()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), asked.windows)


def _measure(folder: Path, n_windows: int) -> None:
    target = Target(_TARGET)
    text = windows(_TARGET, _TEXT.read_text(), _PROMPT + _GENERATED)[:n_windows]
    made = target.sampled(text[:, :_PROMPT], _GENERATED, torch.Generator().manual_seed(0))
    hidden = [target.forward(ids)[0] for ids in (text, made)]
    print(f"{len(text)} windows of {_PROMPT} + {_GENERATED} tokens, {_STEPS} steps, temperature 1\n")
    print(_HEAD, "|---|---|---|---|---|---|---|", sep="\n")

    def measured(draft_folder: Path) -> tuple[Tensor, Tensor]:
        draft = Draft(draft_folder, target)
        return (
            first_step(target, draft, text, hidden[0]),
            mean_length(target, draft, made, hidden[1], _PROMPT, _STEPS),
        )

    first, length = measured(_SOURCE)
    print(f"| BF16 | | 0 | {_interval(first)} | | {_interval(length)} | |", flush=True)
    for name in _SCHEMES:
        baseline: tuple[Tensor, Tensor] | None = None
        for method, draft_folder in _drafts(folder, name):
            now = measured(draft_folder)
            baseline = baseline or now
            gains = [_interval(a - b) if method != "rtn" else "" for a, b in zip(now, baseline, strict=True)]
            error = f"{_weight_error(draft_folder):.4f}"
            cells = (name, method, error, _interval(now[0]), gains[0], _interval(now[1]), gains[1])
            print(f"| {' | '.join(cells)} |", flush=True)


def _drafts(folder: Path, name: str) -> Iterator[tuple[ScaleMethod, Path]]:
    """A draft by each method."""
    source = open_checkpoint(str(_SOURCE))
    for method in get_args(ScaleMethod):
        out = folder / f"{name}-{method}"
        build(plan(source, None, scheme=scheme.load(name), scales=method), {"source": source}, out, check="off")
        yield method, out


def _weight_error(folder: Path) -> float:
    """Frobenius norm of the difference to the source over that of the source: of all weights that were encoded."""
    source, draft = weights(_SOURCE), weights(folder)
    pairs = [(source[name], tensor) for name, tensor in draft.items() if not torch.equal(source[name], tensor)]
    squares = sum(float((a - b).double().pow(2).sum()) for a, b in pairs)
    return float((squares / sum(float(a.double().pow(2).sum()) for a, _ in pairs)) ** 0.5)


def _interval(values: Tensor) -> str:
    """Mean over windows and half the width of its 95 % interval."""
    x = values.double()
    return f"{float(x.mean()):.4f} ± {float(1.96 * x.std() / len(x) ** 0.5):.4f}"


if __name__ == "__main__":
    main()
