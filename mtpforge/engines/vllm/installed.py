"""Asks an installed vLLM's own loader about a draft (written for and run with 0.33.0)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge.engines import child, installed
from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm.draft_classes import DraftClass, draft_class
from mtpforge.engines.vllm.loader.request import Request
from mtpforge.engines.vllm.serving import overrides
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.report import Report

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint

LOADER: Final = child.Loader(
    shown="vLLM",
    package="vllm",
    folder="vllm",
    environment=lambda home: {"VLLM_CACHE_ROOT": str(home / "cache")},
    # vLLM reads these targets' headers where the config lists no modules (auto_awq.py, auto_gptq.py).
    reads_headers=("awq", "gptq"),
)


def is_installed() -> bool:
    """Whether vLLM can be found in this interpreter; it is not imported."""
    return LOADER.is_installed


def tables(capability: int, python: str | None) -> Mapping[str, object]:
    """What its own tables take at a compute capability, by an interpreter, None for this one: `loader/tables.py`."""
    return installed.tables(LOADER, capability, python)


def ask(draft: Path, target: Checkpoint, serving: Serving, python: str | None) -> Report:
    """What `check` says of a draft folder, loaded as it would be served."""
    return check(
        draft,
        target,
        python=python,
        tensor_parallel=serving.tensor_parallel,
        expert_parallel=serving.expert_parallel,
        overrides={**overrides(target), **serving.overrides},
    )


def check(
    draft: Path,
    target: Path | Mapping[str, object] | Checkpoint,
    *,
    python: str | None = None,
    meta: bool = True,
    tensor_parallel: int = 1,
    expert_parallel: bool = False,
    overrides: Mapping[str, object] | None = None,
    capability: int = 90,
    same_config: bool = True,
    timeout_seconds: float = child.TIMEOUT_SECONDS,
) -> Report:
    """The verdict of vLLM's own loader on a draft folder.

    target: a folder, a config.json, its content, or an open Checkpoint (of a hub repository config and, where the
    engine reads them, headers are laid out in a temporary folder). python: an interpreter in which vLLM is installed,
    None for this one. meta: headers only, no values. overrides: as for `--hf-overrides`. capability: of the device that
    the engine believes in. same_config: differences between the configs that do not stop the loading are errors.

    The Report (command "validate") passes only if the engine accepts the draft, loads every parameter and uses every
    tensor. Facts: versions, class, tensors, parameters, quantization, errors, notes, defaulted, seconds.
    Raises MtpforgeError with code MACHINE where no engine is found, it does not finish, or it dies.
    """

    def request(served: Path) -> Request:
        known = _class_of(served)
        return Request(
            target=str(served),
            draft=str(draft.absolute()),
            meta=meta,
            tensor_parallel=tensor_parallel,
            expert_parallel=expert_parallel,
            overrides=dict(overrides or {}),
            capability=capability,
            same_config=same_config,
            compared={} if known is None else dict.fromkeys(known.required) | dict(known.defaults),
            built={}
            if known is None
            else {f.attribute: (name, f.value) for name, f in known.fixed.items() if f.attribute},
        )

    return installed.check(LOADER, target, request, python, timeout_seconds)


def forward(
    draft: Path, target: Checkpoint, serving: Serving, python: str | None, inputs: Path, outputs: Path
) -> child.Findings:
    """One pass of the draft by vLLM on the GPU that it is shown, one rank: `loader/forward.py`.

    inputs, outputs: safetensors files, as that says. Facts: versions, class, device, processed. Raises as `check` does.
    """

    def request(served: Path) -> Request:
        return Request(
            target=str(served),
            draft=str(draft.absolute()),
            meta=False,
            expert_parallel=serving.expert_parallel,
            overrides={**overrides(target), **serving.overrides},
            inputs=str(inputs),
            outputs=str(outputs),
        )

    return installed.forward(LOADER, target, request, python)


def _class_of(target: Path) -> DraftClass | None:
    """The draft class of a target's family; None where there is none: what is wrong with it, the engine says."""
    try:
        return draft_class(family_of(json.loads((target / "config.json").read_text())))
    except (MtpforgeError, OSError, ValueError):
        return None
