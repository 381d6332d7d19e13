"""Drafts as a picture: what each takes, and what of its first step it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mtpforge.judging.fidelity import Fidelity
from mtpforge.pruning import picture as pictures

_BOUND, _LOST = "#0072b2", "#d55e00"  # told apart by every kind of colour vision (Okabe and Ito)
_SIZE: Final = (8.0, 5.0)  # inches


def draw(path: Path, found: Fidelity) -> None:
    """Size of the layer to the right, total variation of the first step upwards, below it what was lost in fact."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    drafts = [draft for draft in found.drafts if draft.steps]
    sizes = [draft.n_bytes / 1e9 for draft in drafts]
    far = [draft.steps[0].total_variation for draft in drafts]
    axes.plot(sizes, far, "o", color=_BOUND, label="total variation: the most that any target can lose")
    lost = [
        (s, d.steps[0].acceptance_reference - d.steps[0].acceptance)
        for s, d in zip(sizes, drafts, strict=True)
        if d.steps[0].acceptance is not None and d.steps[0].acceptance_reference is not None
    ]
    if lost:
        axes.plot(*zip(*lost, strict=True), "x", color=_LOST, label="acceptance lost beside the captured target")
    for draft, size, height in zip(drafts, sizes, far, strict=True):
        name = Path(draft.draft).name
        axes.annotate(name, (size, height), textcoords="offset points", xytext=(6, 4), fontsize="small")
    axes.axvline(found.reference_bytes / 1e9, color="black", linewidth=0.8, linestyle="--", label="the dense layer")
    axes.set_xlabel("layer, GB")
    axes.set_ylabel("of the first token's acceptance")
    axes.set_title("synthetic inputs" if found.is_synthetic else f"{found.n_tokens:,} captured tokens", loc="left")
    axes.legend(fontsize="small")
    axes.margins(0.15)
    pictures.save(figure, path)
