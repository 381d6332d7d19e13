"""Fields of config.json that vLLM reads from the draft's and does not compare with the target's (vLLM 0.33.0)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mtpforge.engines.loading import comparing

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from mtpforge.engines.loading.verdict import Findings


def compare(
    target: object, draft: object, compared: Mapping[str, object], findings: Findings, *, same_config: bool
) -> None:
    """Note every difference between two PreTrainedConfigs as an error, or as a note where `same_config` is off.

    compared: field that the draft's class reads -> what it takes for an absent one.
    """
    doubts = findings.errors if same_config else findings.notes

    def pair(name: str) -> tuple[object, object]:
        return getattr(target, name, None), getattr(draft, name, None)

    comparing.compare("vLLM", target, draft, compared, doubts)
    ours, theirs = pair("max_position_embeddings")
    if ours != theirs:
        findings.notes.append(
            f"config max_position_embeddings: target {ours}, draft {theirs} (vLLM raises a smaller one)"
        )
    if not getattr(target, "num_nextn_predict_layers", None):
        doubts.append(
            "the TARGET's config has no num_nextn_predict_layers (vLLM counts MTP layers there, not in the draft's); "
            "serve with --hf-overrides '{\"num_nextn_predict_layers\": 1}', and give it here too"
        )
    ours, theirs = pair("n_routed_experts")
    if ours != theirs:
        findings.notes.append(f"config n_routed_experts: draft {theirs}, target {ours}")


def check_built(model: torch.nn.Module, built: Mapping[str, tuple[str, object]], doubts: list[str]) -> None:
    """Note what the built model shows otherwise than it must be. built: attribute of a module -> field, value."""
    for name, module in model.named_modules():
        for attribute, (field, value) in built.items():
            shown = str(getattr(module, attribute, value)).removeprefix("torch.")
            if shown != value:
                doubts.append(
                    f"{name}: {attribute} is {shown}, it must be {value}: the draft's config.json lacks "
                    f"{json.dumps(field)}: {json.dumps(value)}"
                )
