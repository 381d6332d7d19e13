"""What `--scales` gains, on the trained tiny model: weight error, output error, and tokens that the target accepts.

    python benchmarks/scales.py                 the tables of docs/scales.md, ten minutes
    python benchmarks/scales.py --windows 24    a quick look

Every method builds the BF16 layer in each scheme; the target is the INT4 one. The first 21 windows of the text are for
calibration (gptq alone looks at them), the others are measured, for all methods alike: on the same text and the same
continuations, so that differences to rtn are paired. Intervals are 95 %, over windows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch
from acceptance import Target, draft_of, first_step, mean_length, windows
from torch import Tensor

from mtpforge import scheme
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.judging.acceptance import Text
from mtpforge.judging.pairs import Side, ratio
from mtpforge.methods import METHODS
from mtpforge.nextn import hessians, inputs
from mtpforge.nextn import layer as layers
from mtpforge.nextn.hessians import Calibration
from mtpforge.nextn.layer import Block
from mtpforge.planning import plan

_HOME: Final = Path(__file__).parents[1]
_SOURCE: Final = _HOME / "tests/data/tinyglm/bf16"
_TARGET: Final = _HOME / "mtpforge/_demo/awq-int4"
_TEXT: Final = _HOME / "tests/data/tinyglm/eval.txt"
_SCHEMES: Final = ("int4-g32-asym", "int4-g128-sym")
_PROMPT, _GENERATED, _STEPS = 192, 128, 3
_CALIBRATE: Final = 21
_SIZES: Final = (80, 320, 5 * 320, 21 * 320)  # tokens
_HEAD: Final = (
    "| scheme | scales | weight error | output error | first token | against rtn | mean length | against rtn |"
)


def main() -> None:
    """Print the tables."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--windows", type=int, default=1000, help="of 320 tokens each; default: all of the text's")
    asked = asked.parse_args()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), asked.windows)


def _measure(folder: Path, n_windows: int) -> None:
    target = Target(_TARGET)
    text = windows(_TARGET, _TEXT.read_text(), _PROMPT + _GENERATED)[:n_windows]
    hidden = target.states(text)
    before, (text, states) = (text[:_CALIBRATE], hidden[:_CALIBRATE]), (text[_CALIBRATE:], hidden[_CALIBRATE:])
    made = target.sampled(text[:, :_PROMPT], _GENERATED)
    continued = target.states(made)
    print(f"calibrated on {_CALIBRATE} windows, measured on {len(text)} others")
    print(f"of {_PROMPT} + {_GENERATED} tokens, {_STEPS} steps, temperature 1\n")
    print(_HEAD, "|---|---|---|---|---|---|---|---|", sep="\n")
    source = draft_of(_SOURCE)
    rows = _expert_rows(target, source, text, states)

    def measured(draft: Block) -> tuple[Tensor, Tensor]:
        return (
            first_step(target, draft, text, states),
            mean_length(target, draft, made, continued, _PROMPT, _STEPS),
        )

    first, length = measured(source)
    print(f"| BF16 | | 0 | 0 | {_interval(first)} | | {_interval(length)} | |", flush=True)
    for name in _SCHEMES:
        baseline: tuple[Tensor, Tensor] | None = None
        for method in METHODS:
            built = _built(folder, name, method, _written(folder, *before) if method == "gptq" else None)
            draft = draft_of(built)
            now = measured(draft)
            baseline = baseline or now
            gains = [_interval(a - b) if method != "rtn" else "" for a, b in zip(now, baseline, strict=True)]
            errors = f"{_weight_error(built):.4f}", f"{_output_error(source, draft, rows):.4f}"
            cells = (name, method, *errors, _interval(now[0]), gains[0], _interval(now[1]), gains[1])
            print(f"| {' | '.join(cells)} |", flush=True)
    _by_tokens(folder, before, lambda built: _output_error(source, draft_of(built), rows))


def _by_tokens(folder: Path, before: tuple[Tensor, Tensor], error: Callable[[Path], float]) -> None:
    """Output error by tokens that calibrate, with the term for what they do not show, and without."""
    name, own = _SCHEMES[0], hessians.hessian
    by_rtn = error(_built(folder, name, "rtn", None))
    print(f"\n{name}: output error of the same windows, {by_rtn:.4f} by rtn\n")
    print("| tokens | rows an expert sees | gptq | llm-compressor's dampening alone |", "|---|---|---|---|", sep="\n")
    for n_tokens in _SIZES:
        count = max(n_tokens // before[0].shape[1], 1)
        file = _written(folder, *(each[:count, : n_tokens // count] for each in before))
        cells = []
        for made in (own, _undampened):
            hessians.hessian = made
            cells.append(f"{error(_built(folder, name, 'gptq', file)):.4f}")
        hessians.hessian = own
        print(f"| {n_tokens:,} | {_rows_seen(file)} | {' | '.join(cells)} |", flush=True)


def _undampened(x: Tensor) -> Tensor:
    return (x.T @ x).mul_(2 / len(x))


def _rows_seen(file: Path) -> str:
    calibration = _calibration(file)
    calibration.run()
    counts = [len(calibration.seen(f"mlp.experts.{n}.gate_proj")) for n in calibration.kept]
    return f"{min(counts):,} to {max(counts):,}"


def _calibration(file: Path) -> Calibration:
    source = open_checkpoint(str(_SOURCE))
    return Calibration(source, source, inputs.read(file))


def _written(folder: Path, ids: Tensor, hidden: Tensor) -> Path:
    """An inputs file of windows [n, length] and their hidden states."""

    def sequences() -> Iterator[inputs.Sequence]:
        for tokens, states in zip(ids, hidden, strict=True):
            yield inputs.Sequence(tokens.contiguous(), torch.arange(len(tokens)), states.contiguous())

    path = folder / "inputs.safetensors"
    inputs.write(path, sequences(), target="tinyglm", force=True)
    return path


def _built(folder: Path, name: str, method: str, file: Path | None) -> Path:
    source, out = open_checkpoint(str(_SOURCE)), folder / f"{name}-{method}"
    calibration = _calibration(file) if file else None
    digest = calibration.inputs.digest if calibration else ""
    decided = plan(source, None, scheme=scheme.load(name), scales=method, inputs=digest)
    build(decided, {"source": source}, out, check="off", force=True, calibration=calibration)
    return out


def _expert_rows(target: Target, draft: Block, ids: Tensor, states: Tensor) -> Tensor:
    """What the second half of the layer is given in the first step."""
    rows = layers.enter(draft, target.embedding, Text(ids, states, 1).windows, ids[:, 1:].numel())
    layers.attend(draft, rows)
    return rows.x


def _output_error(source: Block, draft: Block, rows: Tensor) -> float:
    """Frobenius norm of the difference of what all experts add to these rows, over that of the source."""
    wanted, made = (layers.output(each, rows, layers.route(each, rows)) - rows for each in (source, draft))
    return float((made - wanted).double().norm() / wanted.double().norm())


def _weight_error(folder: Path) -> float:
    """Frobenius norm of the difference to the source over that of the source: of all weights that were encoded."""
    source, draft = (Side.of(draft_of(each)) for each in (_SOURCE, folder))
    both = ([_matrix(side, name) for side in (draft, source)] for name in draft.stored.modules)
    return ratio((ours, theirs) for ours, theirs in both if not torch.equal(ours, theirs))


def _matrix(side: Side, name: str) -> Tensor:
    """The weight, without what else is named after its module."""
    return torch.cat([rows for rows in side.values(name) if rows.ndim > 1])


def _interval(values: Tensor) -> str:
    """Mean over windows and half the width of its 95 % interval."""
    x = values.double()
    return f"{float(x.mean()):.4f} ± {float(1.96 * x.std() / len(x) ** 0.5):.4f}"


if __name__ == "__main__":
    main()
