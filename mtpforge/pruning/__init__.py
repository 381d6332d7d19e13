"""Which experts of a nextn layer stay, where the target has fewer: the table of methods."""

from __future__ import annotations

from typing import Final

from mtpforge.pruning import methods
from mtpforge.pruning.methods import Method

# Of the methods that need no data the one that keeps most on the tiny trained model: docs/pruning.md has the figures.
DEFAULT_METHOD: Final = "bias"
# Where there are calibration inputs.
INPUTS_METHOD: Final = "reap"

METHODS: Final[dict[str, Method]] = {
    method.name: method
    for method in (
        Method(
            "file",
            needs="list",
            drops="",
            what="the experts that `--keep-experts` lists, or that a checkpoint pruned before still has",
            origin="the list's",
        ),
        Method(
            "bias",
            needs="router",
            drops="highest",
            what="e_score_correction_bias: what training had to add so that an expert is chosen at all",
            origin="the 218-expert draft of CosmicRaisins/glm-5.2-gb10",
            of_router=methods.bias,
        ),
        Method(
            "router-norm",
            needs="router",
            drops="lowest",
            what="Euclidean norm of the expert's row of the router",
            origin="router magnitudes, as in Chowdhury et al. 2024 (arXiv 2405.16646), which take their change",
            of_router=methods.router_norm,
        ),
        Method(
            "aimer",
            needs="experts",
            drops="highest",
            what="mean |w| / root mean square of the expert's weights: how evenly they are spread",
            origin="AIMER, Liu et al. 2026 (arXiv 2603.18492)",
            of_expert=methods.aimer,
        ),
        Method(
            "frequency",
            needs="inputs",
            drops="lowest",
            what="how many tokens of the calibration inputs are routed to the expert",
            origin="the usual baseline",
        ),
        Method(
            "reap",
            needs="inputs",
            drops="lowest",
            what="mean of gate weight times norm of the output, over the tokens routed to the expert",
            origin="REAP, Lasby et al. 2025 (arXiv 2510.13999)",
        ),
    )
}
