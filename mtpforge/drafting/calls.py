"""The functions of `import mtpforge`: one for what each command does, for names, paths and opened checkpoints alike.

Options are called as on the command line, `_` for `-`, and mean the same. Nothing is printed: `on_remark` is given what
is decided on the way, `on_progress` how far long phases are. What a user can cause is an MtpforgeError; what spoils a
result that has no room to say so is a Python warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

from mtpforge import errors, inspecting
from mtpforge import scheme as presets
from mtpforge.checkpoint import Named, open_checkpoint, open_served
from mtpforge.drafting import deciding
from mtpforge.drafting.deciding import Job, Needless
from mtpforge.drafting.request import CheckMode, Count, OnRemark, Request, Watching
from mtpforge.drafting.serving import serving_command
from mtpforge.engines import DEFAULT, engine_of
from mtpforge.engines.command import Command
from mtpforge.engines.engine import Serving
from mtpforge.engines.hardware import deployment, ranks
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.nextn import texts
from mtpforge.nextn.inputs import Inputs
from mtpforge.planning import Plan
from mtpforge.report import OnProgress, Report, advice
from mtpforge.scheme import Scheme

if TYPE_CHECKING:
    from mtpforge.building import Draft
    from mtpforge.pruning.expert_choice import Comparison


# Options of the command line that have another name here.
_CALLED_OTHERWISE: Final = {
    "dry_run": "`mtpforge.plan` is what would be built",
    "k": "it is called `speculative_tokens`",
    "max_shard_size": "it is called `max_shard_bytes`, a number",
}


class Options(TypedDict, total=False):
    """What may be said of a draft besides its two sides and its place; `Request` says what each means."""

    engine: str
    scheme: Scheme | str | Path | None
    input_scales: Named | None
    experts: Count
    prune_by: str
    keep_experts: Named | Sequence[int] | None
    inputs: str | Path | None
    scales: str
    tp: int
    ep: bool
    kv_cache_dtype: str
    overlay: str | Path | None
    standalone: bool
    workers: int
    memory: int
    check: CheckMode
    force: bool
    max_shard_bytes: int | None
    device: str
    offline: bool


def plan(
    target: Named,
    source: Named | None = None,
    *,
    out: str | Path | None = None,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[Options],
) -> Plan:
    """What `build` would do, from headers and configs; refused where the build would be. Writes nothing."""
    _refuse_unknown("plan", options, Options)
    request = Request(target=target, source=source, out=out, **options)
    return _job(request, on_remark, on_progress).plan


def build(
    target: Named,
    source: Named | None = None,
    *,
    out: str | Path | None = None,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[Options],
) -> Draft:
    """A draft that fits the target, verified, in the folder `out`; a source and a place are chosen where none is named.

    MtpforgeError with code 0 where the target's own layer loads as it is, unless `standalone`.
    """
    _refuse_unknown("build", options, Options)
    return _made(Request(target=target, source=source, out=out, **options), on_remark, on_progress)


def extract(
    source: Named,
    *,
    out: str | Path,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[Options],
) -> Draft:
    """The MTP layer of a checkpoint on its own, in BF16 unless a scheme is named."""
    _refuse_unknown("extract", options, Options)
    given: Options = {"scheme": "bf16", **options}
    return _made(Request(target=None, source=source, out=out, **given), on_remark, on_progress)


def prune_plan(
    target: Named,
    source: Named | None = None,
    *,
    compare: Sequence[str] = (),
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[Options],
) -> Comparison:
    """Which experts a draft would keep beside this target, by which scores, and how far the methods agree."""
    _refuse_unknown("prune_plan", options, Options)
    request = Request(target=target, source=source, **options)
    return deciding.compare(request, compare, Watching.by(on_remark, on_progress))


def inspect(
    checkpoint: Named,
    *,
    engine: str = DEFAULT,
    scheme: Scheme | str | None = None,
    tp: int = 1,
    ep: bool = False,
    kv_cache_dtype: str = "auto",
    offline: bool = False,
) -> Report:
    """What a checkpoint holds, and what a draft for it must be, from its config and headers alone."""
    opened = open_checkpoint(checkpoint, offline=offline)
    serving = Serving(tp, ep, kv_cache_dtype=kv_cache_dtype)
    return inspecting.inspect(opened, engine=engine, scheme=_scheme(scheme), serving=serving)


def diff(draft: Named, other: Named, *, offline: bool = False, on_progress: OnProgress | None = None) -> Report:
    """Where two drafts, or a draft and a published layer, differ: config, names, formats, values."""
    from mtpforge.comparing import compare  # torch

    one, two = (open_checkpoint(name, offline=offline) for name in (draft, other))
    return compare(one, two, on_progress=on_progress)


class ServeOptions(TypedDict, total=False):
    """How a draft is to be served; `explain_serve` has the defaults."""

    engine: str
    tp: int | None
    ep: bool
    speculative_tokens: int
    kv_cache_dtype: str
    draft_options: Mapping[str, object] | None
    port: int | None
    overlay: str | Path | None
    hardware: str
    fork: str
    node_rank: int
    head_node: str
    offline: bool


def serve_command(draft: Named, target: Named, **options: Unpack[ServeOptions]) -> list[str]:
    """The words of the command that serves a target with a draft, with every flag that the pair needs.

    What would spoil the drafts all the same is a Python warning: words have no room for it.
    """
    _refuse_unknown("serve_command", options, ServeOptions)
    command = explain_serve(draft, target, **options)
    for line in advice(command.traps):
        warnings.warn(line, stacklevel=2)
    return command.argv


def explain_serve(
    draft: Named,
    target: Named,
    *,
    engine: str = DEFAULT,
    tp: int | None = None,
    ep: bool = False,
    speculative_tokens: int = 3,
    kv_cache_dtype: str = "auto",
    draft_options: Mapping[str, object] | None = None,
    port: int | None = None,
    overlay: str | Path | None = None,
    hardware: str = "",
    fork: str = "",
    node_rank: int = 0,
    head_node: str = "",
    offline: bool = False,
) -> Command:
    """The same command, each flag and key with its reason, and what could be added: `print` shows it.

    tp: ranks; the machine's where not said, 1 without one. hardware: the machine that it is for,
    `mtpforge.engines.hardware.machines()` has the names; with a fork of the engine's, and for machines of several nodes
    which node this is and where node 0 is reached.
    """
    placed = deployment(hardware, fork, node_rank, head_node)
    asked = Serving(ranks(placed, tp), ep, speculative_tokens, {}, port, kv_cache_dtype, dict(draft_options or {}))
    served = open_served(target, offline=offline)
    place = open_checkpoint(draft, offline=True).location
    return serving_command(place, served, engine, asked, None if overlay is None else Path(overlay), placed)


def capture(
    target: Named,
    text: str | Path | None = None,
    *,
    states: str | Path | None = None,
    out: str | Path | None = None,
    length: int | None = None,
    tokens: int = texts.USUAL_TOKENS,
    force: bool = False,
    offline: bool = False,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Inputs:
    """Calibration inputs: what a target hands to its MTP layer for a text, or of what an engine stored, as a file."""
    from mtpforge.drafting import capture as capturing

    text, states, out = (None if place is None else Path(place) for place in (text, states, out))
    asked = capturing.Capture(target, text, states, out, length, tokens, force, offline)
    return capturing.capture(asked, Watching.by(on_remark, on_progress)).inputs


def demanded_scheme(target: Named, *, engine: str = DEFAULT, offline: bool = False) -> Scheme:
    """The scheme that the engine would build a draft with beside this target."""
    served = open_served(target, offline=offline)
    return engine_of(engine).demands(served, None, family_of(served.config))


def schemes() -> tuple[Scheme, ...]:
    """The presets, in alphabetical order."""
    return tuple(presets.load(name) for name in presets.names())


def load_scheme(named: str | Path) -> Scheme:
    """A preset by its name, or a scheme of one's own by its file."""
    return presets.load(str(named))


def dump_scheme(scheme: Scheme) -> str:
    """The TOML text of a scheme, which `load_scheme` takes back from a file."""
    return presets.dumps(scheme)


def _refuse_unknown(function: str, options: Mapping[str, object], known: type) -> None:
    """TypeError for an option that a function does not have, by the name that was called."""
    for name in options:
        if name not in known.__annotations__:
            instead = _CALLED_OTHERWISE.get(name)
            hint = f": {instead}" if instead else ""
            raise TypeError(f"mtpforge.{function}() has no option {name!r}{hint}")


def _made(request: Request, on_remark: OnRemark | None, on_progress: OnProgress | None) -> Draft:
    job = _job(request, on_remark, on_progress)
    from mtpforge.drafting.making import make  # torch

    return make(job, on_progress)


def _job(request: Request, on_remark: OnRemark | None, on_progress: OnProgress | None) -> Job:
    found = deciding.decide(request, Watching.by(on_remark, on_progress))
    if isinstance(found, Needless):
        raise MtpforgeError(
            f"nothing to build: {found.reason}",
            where=found.target.label,
            fix="`standalone=True` builds a draft all the same",
            code=errors.DONE,
        )
    return found


def _scheme(named: Scheme | str | None) -> Scheme | None:
    return presets.load(named) if isinstance(named, str) else named
