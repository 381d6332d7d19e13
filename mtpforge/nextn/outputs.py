"""output_errors(): what the experts of a draft make of calibration inputs, beside the source's and round-to-nearest's.

    error = |y - y_source| / |y_source|     Frobenius norms over the rows that an expert is given

At most ROWS of them, evenly spaced; gate weights are not counted. Weights are rounded to BF16 once decoded, as an
engine computes with them; the arithmetic is float32, the sums float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.families import family_of
from mtpforge.formats import FORMATS
from mtpforge.nextn.hessians import Calibration, one_thread
from mtpforge.report import OnProgress, Progress
from mtpforge.sourcing import stored_layer
from mtpforge.tensors import Quantization
from mtpforge.weights import Reader

if TYPE_CHECKING:
    from torch import Tensor

ROWS: Final = 1024
_ROUTED, _SHARED = "mlp.experts.{}.", "mlp.shared_experts."

# Bands of one projection of an expert: `gate_proj`, `up_proj`, `down_proj`; float32 [rows, in] of BF16 values.
Weights: TypeAlias = Callable[[str], "Iterator[Tensor]"]


@dataclass(frozen=True, slots=True)
class OutputErrors:
    """By expert as the draft numbers it (`mlp.experts.3`), those that saw a row. n_rows: how many were run."""

    draft: dict[str, float] = field(default_factory=dict)
    rtn: dict[str, float] = field(default_factory=dict)
    n_rows: int = 0


def output_errors(
    calibration: Calibration,
    draft: Checkpoint,
    wanted: Mapping[str, Quantization],
    on_progress: OnProgress | None = None,
) -> OutputErrors:
    """Relative errors of every expert's output. wanted: how what was fitted is stored, by the source's module."""
    family = family_of(draft.config)
    held = stored_layer(draft, family).modules
    pairs = [(_ROUTED.format(own), _ROUTED.format(theirs)) for own, theirs in enumerate(calibration.kept)]
    pairs.append((_SHARED, _SHARED))
    ours, rtn, n_rows = dict[str, float](), dict[str, float](), 0
    for number, (own, theirs) in enumerate(pairs):

        def stored(part: str, own: str = own) -> Iterator[Tensor]:
            return _served(held[own + part].weight(Reader(draft.read)).decoded())

        def nearest(part: str, own: str = own, theirs: str = theirs) -> Iterator[Tensor]:
            form = wanted.get(theirs + part)
            return stored(part, own) if form is None else _served(_rounded(calibration, theirs + part, form))

        def source(part: str, theirs: str = theirs) -> Iterator[Tensor]:
            return calibration.weight(theirs + part)

        with one_thread():
            x = _some(calibration.seen(f"{theirs}gate_proj"))
            found = _errors(calibration, x, source, (stored, nearest))
        if found:
            ours[own.rstrip(".")], rtn[own.rstrip(".")] = found
            n_rows += len(x)
        if on_progress:
            on_progress(Progress("outputs", number + 1, len(pairs), "items"))
    return OutputErrors(ours, rtn, n_rows)


def _errors(calibration: Calibration, x: Tensor, source: Weights, others: tuple[Weights, ...]) -> list[float]:
    """Relative error of each; none where there is no row, or nothing comes out."""
    import torch

    if not len(x):
        return []
    with torch.inference_mode():
        wanted = calibration.output(x, source)
        size = float(wanted.double().norm())
        return [float((calibration.output(x, each) - wanted).double().norm()) / size for each in others] if size else []


def _some(x: Tensor) -> Tensor:
    return x[:: -(-len(x) // ROWS)] if len(x) > ROWS else x


def _served(bands: Iterator[Tensor]) -> Iterator[Tensor]:
    import torch

    return (band.to(torch.bfloat16).float() for band in bands)


def _rounded(calibration: Calibration, module: str, form: Quantization) -> Iterator[Tensor]:
    """The source's weight through round-to-nearest and back."""
    wanted = FORMATS[form.format]
    assert wanted.encode is not None  # noqa: S101 -- what was fitted was written
    for band in calibration.stored[module].weight(Reader(calibration.source.read)).decoded():
        yield wanted.decode(wanted.encode(band, form, {}), (band.shape[0], band.shape[1]), form)
