"""mtpforge: builds the MTP draft layer of GLM models in exactly the scheme that a quantized target asks for.

    inspect(checkpoint)             what a checkpoint holds, and what a draft for it must be
    plan(target, source=None)       decide everything about a draft, from headers and configs
    build(target, source=None)      make it, and verify it
    extract(source, out=...)        the layer on its own
    prune_plan(target)              which experts would stay beside a smaller target
    verify(draft, target)           open a draft again and judge it
    validate(draft, target)         the same, and the loader of an installed engine
    fidelity(draft, reference)      does it predict what the dense layer predicts
    accept(draft, target, text)     how many of its tokens a target accepts
    bench(url, baseline=...)        what drafting is worth on a live server
    diff(draft, other)              where two layers differ
    serve_command(draft, target)    what to type
    explain_serve(draft, target)    the same, each flag with its reason
    graft(layer, into, out=...)     the target once more, with the layer inside
    delta(layer, against, out=...)  only what a graft adds
    card(draft)                     its model card, as text
    push(draft, repo)               to the hub, with its card
    merge(base, takes, out=...)     modules of several checkpoints under one config
    write_page(result, path)        a result as one HTML page

Checkpoints are named as on the command line, or opened once: `open_checkpoint(name)`. More: docs/reference/python.md.
Each name is loaded on first use: `import mtpforge` costs nothing and brings no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mtpforge.benching.calls import bench
    from mtpforge.benching.found import Bench
    from mtpforge.building import Draft
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.drafting.calls import (
        build,
        capture,
        demanded_scheme,
        diff,
        dump_scheme,
        explain_serve,
        extract,
        inspect,
        load_scheme,
        plan,
        prune_plan,
        schemes,
        serve_command,
    )
    from mtpforge.drafting.machine import doctor
    from mtpforge.engines.command import Command
    from mtpforge.errors import MtpforgeError
    from mtpforge.judging.accepting import Acceptance
    from mtpforge.judging.calls import accept, fidelity, validate
    from mtpforge.judging.fidelity import Fidelity
    from mtpforge.planning import Plan
    from mtpforge.pruning.expert_choice import Comparison
    from mtpforge.publishing.assembling import Made
    from mtpforge.publishing.calls import card, delta, graft, merge, push, verify
    from mtpforge.report import Progress, Report
    from mtpforge.reporting.calls import write_page
    from mtpforge.scheme import Scheme

    __version__: str

__all__ = [
    "Acceptance",
    "Bench",
    "Checkpoint",
    "Command",
    "Comparison",
    "Draft",
    "Fidelity",
    "Made",
    "MtpforgeError",
    "Plan",
    "Progress",
    "Report",
    "Scheme",
    "__version__",
    "accept",
    "bench",
    "build",
    "capture",
    "card",
    "delta",
    "demanded_scheme",
    "diff",
    "doctor",
    "dump_scheme",
    "explain_serve",
    "extract",
    "fidelity",
    "graft",
    "inspect",
    "load_scheme",
    "merge",
    "open_checkpoint",
    "plan",
    "prune_plan",
    "push",
    "schemes",
    "serve_command",
    "validate",
    "verify",
    "write_page",
]

_PLACES: Final = {
    **dict.fromkeys(__all__, "mtpforge.drafting.calls"),
    "Acceptance": "mtpforge.judging.accepting",
    "Bench": "mtpforge.benching.found",
    "Checkpoint": "mtpforge.checkpoint.checkpoint",
    "Command": "mtpforge.engines.command",
    "Comparison": "mtpforge.pruning.expert_choice",
    "Draft": "mtpforge.building",
    "Fidelity": "mtpforge.judging.fidelity",
    "Made": "mtpforge.publishing.assembling",
    "MtpforgeError": "mtpforge.errors",
    "Plan": "mtpforge.planning",
    "Progress": "mtpforge.report",
    "Report": "mtpforge.report",
    "Scheme": "mtpforge.scheme",
    "delta": "mtpforge.publishing.calls",
    "doctor": "mtpforge.drafting.machine",
    **dict.fromkeys(("accept", "fidelity", "validate"), "mtpforge.judging.calls"),
    "bench": "mtpforge.benching.calls",
    "card": "mtpforge.publishing.calls",
    "graft": "mtpforge.publishing.calls",
    "push": "mtpforge.publishing.calls",
    "verify": "mtpforge.publishing.calls",
    "merge": "mtpforge.publishing.calls",
    "open_checkpoint": "mtpforge.checkpoint",
    "write_page": "mtpforge.reporting.calls",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    """The installed version; a source tree on the path without an installation has none."""
    from importlib.metadata import PackageNotFoundError, version  # a third of the time that `--help` takes

    try:
        return version("mtpforge")
    except PackageNotFoundError:
        return "0+source"
