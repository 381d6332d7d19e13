"""Asks an installed SGLang's own loader about a draft (written for and run with 0.5.23)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import child, installed
from mtpforge.engines.engine import Serving, own_config
from mtpforge.engines.sglang.demands import scheme_of
from mtpforge.engines.sglang.draft_classes import draft_class
from mtpforge.engines.sglang.loader.request import Request
from mtpforge.engines.sglang.serving import least_capability, serve
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.report import Report
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint

LOADER: Final = child.Loader(
    shown="SGLang",
    package="sglang",
    folder="sglang",
    # Where a home may not be written nothing is: SGLang's libraries keep caches of kernels there.
    environment=lambda home: {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
)
# What a draft that our rules refuse is served with: nothing is known that needs a flag.
_UNKNOWN: Final = Scheme("unknown", (Rule("*", BF16, "what SGLang builds is not known"),))


def is_installed() -> bool:
    """Whether SGLang can be found in this interpreter; it is not imported."""
    return LOADER.is_installed


def tables(capability: int, python: str | None) -> Mapping[str, object]:
    """What its own tables take at a compute capability, by an interpreter, None for this one: `loader/tables.py`."""
    return installed.tables(LOADER, capability, python)


def ask(draft: Path, target: Checkpoint, serving: Serving, python: str | None) -> Report:
    """What `check` says of a draft folder, loaded by the very command that `serve` prints.

    On the least device that takes its formats, of Hopper and newer ones.
    """
    try:
        scheme = scheme_of(own_config(open_checkpoint(draft)), family_of(target.config))
    except MtpforgeError:
        scheme = _UNKNOWN
    command = serve(target, str(draft), serving, scheme)
    arguments = [word for flag in command.flags if flag.name != "--revision" for word in flag.words]
    return check(
        draft,
        target,
        python=python,
        ranks=serving.tensor_parallel,
        arguments=arguments,
        capability=least_capability(scheme),
    )


def check(
    draft: Path,
    target: installed.Target,
    *,
    python: str | None = None,
    meta: bool = True,
    ranks: int = 1,
    arguments: Sequence[str] = (),
    capability: int = 90,
    same_config: bool = True,
    timeout_seconds: float = child.TIMEOUT_SECONDS,
) -> Report:
    """The verdict of SGLang's own loader on a draft folder.

    target: a folder, a config.json, its content, or an open Checkpoint. python: an interpreter in which SGLang is
    installed, None for this one. meta: headers only, and the values of input scales. ranks: tensor parallel size; each
    is played. arguments: more words of `sglang serve`, which SGLang's own parser reads. capability: of the device that
    SGLang believes in; it decides on shared-expert fusion and kernels. same_config: differences between the configs
    that do not stop the loading are errors.

    The Report (command "validate") passes only if SGLang accepts the draft, loads every parameter and uses every
    tensor. Facts: versions, class, tensors, parameters, quantization, "shared experts fused", errors, notes, defaulted,
    seconds.
    Raises MtpforgeError with code MACHINE where no engine is found, it does not finish, or it dies.
    """

    def request(served: Path) -> Request:
        return Request(
            target=str(served),
            draft=str(draft.absolute()),
            meta=meta,
            tensor_parallel=ranks,
            capability=capability,
            arguments=list(arguments),
            same_config=same_config,
            compared=_compared(served),
        )

    return installed.check(LOADER, target, request, python, timeout_seconds)


def _compared(target: Path) -> dict[str, object]:
    """Fields that the draft class of a target's family reads; none where none is known: what is wrong, SGLang says."""
    try:
        known = draft_class(family_of(json.loads((target / "config.json").read_text())))
    except (MtpforgeError, OSError, ValueError):
        return {}
    return dict.fromkeys((*known.required, *known.optional)) | dict(known.defaults)
