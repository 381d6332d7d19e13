"""decide(): from a request to a job: source, experts, calibration and plan, with every refusal that needs no build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtpforge import errors, heads
from mtpforge import scheme as schemes
from mtpforge.checkpoint import open_base_model, open_checkpoint, open_scales, open_served
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting import experts, overlaying, refusals, remarks
from mtpforge.drafting.request import Request, Watching
from mtpforge.engines import ENGINES, Engine, engine_of
from mtpforge.engines.engine import own_config, refuse_unknown
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.heads import LIGHTEST, lightest
from mtpforge.places import default_out
from mtpforge.planning import Plan, agreed_scheme, plan
from mtpforge.scheme import Scheme
from mtpforge.source_choice import choose_source

if TYPE_CHECKING:
    from mtpforge.nextn.hessians import Calibration
    from mtpforge.nextn.inputs import Inputs
    from mtpforge.pruning.expert_choice import Comparison, Pruned


@dataclass(frozen=True, slots=True)
class Job:
    """A draft, decided. calibration: what codes are fitted to, where `scales` is gptq."""

    request: Request
    source: Checkpoint
    target: Checkpoint | None
    input_scales: Checkpoint | None
    calibration: Calibration | None
    plan: Plan
    out: Path

    @property
    def served(self) -> Checkpoint:
        """What the draft is for: the target, or what stands in for it."""
        return self.target or self.source

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """By the origin that a plan's reads name."""
        return _by_origin(self.source, self.target, self.input_scales)


@dataclass(frozen=True, slots=True)
class Needless:
    """There is nothing to make: the target's own layer loads as it is."""

    request: Request
    target: Checkpoint
    scheme: Scheme
    reason: str


@dataclass(frozen=True, slots=True)
class _Sides:
    source: Checkpoint
    target: Checkpoint | None
    input_scales: Checkpoint | None
    scheme: Scheme | None
    own: Scheme | None = None


def decide(request: Request, watching: Watching | None = None) -> Job | Needless:
    """The job that a request is. Reads headers and configs, and what choosing experts by their weights takes.

    Writes nothing. MtpforgeError for everything that is known to end the build.
    """
    watching = watching or Watching.by(None, None)
    refusals.of_values(request)
    refusals.of_machine(request)
    refuse_unknown(engine_of(request.engine), request.serving)
    if request.out is not None:
        refusals.of_output(Path(request.out), request)
    given = None if request.scheme in (None, LIGHTEST) else _scheme(request.scheme)
    inputs = _inputs(request)
    if request.target is None:
        refusals.of_scheme(request)
        source = _source(request, watching)
        refusals.of_family(request, source)
        refusals.of_source_alone(source)
        _warn_of_rules(given, source, watching)
        return _decided(request, _Sides(source, None, None, given), None, inputs, watching)
    asked = experts.wish(request, inputs, watching)
    experts.refuse_idle_inputs(request)
    target = _target(request, watching)
    _warn_of_rules(given, target, watching)
    if request.scheme == LIGHTEST:
        given = lightest(target, engine_of(request.engine))
    own = None if given is None else _own(request, target)
    if given is not None:
        target, given = heads.beside(target, engine_of(request.engine), given)
        for remark in remarks.of_restating(target, given, request.engine):
            watching.on_remark(remark)
    if request.overlay is not None:
        overlaying.refuse(target, engine_of(request.engine), Path(request.overlay), force=request.force)
    source, reason = source_of(request, target, watching)
    if reason and asked.is_default and not request.standalone:
        loaded = engine_of(request.engine).demands(target, own_config(target), family_of(target.config))
        return Needless(request, target, loaded, reason)
    named = request.input_scales
    scales = None if named is None else open_scales(named, target.config, offline=request.offline)
    sides = _Sides(source, target, scales, given, own)
    out = _out(request, sides)
    refusals.of_inputs(_by_origin(source, target, scales), out)
    if experts.takes_long(asked):
        refusals.of_existing(out, request)
    kept = experts.choose(request, asked, inputs, source, target, watching)
    return _decided(request, sides, kept, inputs, watching)


def compare(request: Request, names: Sequence[str] = (), watching: Watching | None = None) -> Comparison:
    """Which experts that draft would keep, by which scores, beside the choices of other methods."""
    watching = watching or Watching.by(None, None)
    inputs = _inputs(request)
    asked = experts.wish(request, inputs, watching)
    target = _target(request, watching)
    source, _ = source_of(request, target, watching)
    return experts.compare(request, asked, inputs, names, source, target, watching)


def source_of(request: Request, target: Checkpoint, watching: Watching) -> tuple[Checkpoint, str]:
    """Where the layer comes from: as named, or chosen; and why nothing has to be made, "" where it has to."""
    if request.source is not None:
        return _source(request, watching), ""

    def opened(name: str) -> Checkpoint:
        return open_base_model(name, offline=request.offline)

    choice = choose_source(target, family_of(target.config), engine_of(request.engine), opened)
    for remark in remarks.of_choice(choice):
        watching.on_remark(remark)
    return choice.source, choice.reason if choice.self_sufficient else ""


def _decided(request: Request, sides: _Sides, pruned: Pruned | None, inputs: Inputs | None, watching: Watching) -> Job:
    kept = None if pruned is None or pruned.keeps_all else pruned.kept
    calibration = _calibration(request, sides, kept, inputs, watching)
    notes: dict[str, object] = {"restated": True} if sides.target and sides.target.is_restated else {}
    if pruned is not None and kept is not None:
        notes["kept_by"] = experts.kept_by(pruned, inputs)
    if calibration is not None:
        notes["fitted_to"] = experts.measured_on(calibration.inputs)
    decided = plan(
        sides.source,
        sides.target,
        engine=_engine(request, sides),
        scheme=sides.scheme,
        own=sides.own,
        kept=kept,
        serving=request.serving,
        input_scales=sides.input_scales,
        scales=request.scales,
        inputs=calibration.inputs.digest if calibration else "",
        notes=notes,
    )
    out = _out(request, sides)
    job = Job(request, sides.source, sides.target, sides.input_scales, calibration, decided, out)
    refusals.of_plan(request, decided, job.checkpoints, out, calibration)
    return job


def _engine(request: Request, sides: _Sides) -> str:
    """Key of the engine that decides; none for a plain layer.

    How a quantized layer is stated is an engine's business: the one that is asked for, or, of a layer on its own, the
    first that has words for its scheme.
    """
    scheme = sides.scheme
    if request.target is not None or scheme is None:
        return request.engine
    if all(rule.quantization.is_dense for rule in scheme.rules):
        return ""
    asked, source = engine_of(request.engine), sides.source
    if _states(asked, source, scheme) or not _states(asked, source, schemes.load("bf16")):
        return request.engine
    return next((key for key, engine in ENGINES.items() if _states(engine, source, scheme)), request.engine)


def _states(engine: Engine, source: Checkpoint, scheme: Scheme) -> bool:
    """Whether an engine has words for a layer of a source in a scheme."""
    family = family_of(source.config)
    try:
        spared = schemes.sparing(scheme, engine.never_quantized(family))
        engine.draft_config(source, source.config, family, spared, family.n_experts(source.config))
    except MtpforgeError:
        return False
    return True


def _out(request: Request, sides: _Sides) -> Path:
    """Where the draft will be; one that nobody named is held to the same rules."""
    if request.out is not None:
        return Path(request.out)
    served, engine = sides.target or sides.source, engine_of(request.engine)
    scheme = agreed_scheme(engine, family_of(served.config), sides.source, sides.target, sides.scheme)
    out = default_out(served, scheme.name)
    refusals.of_output(out, request)
    return out


def _own(request: Request, target: Checkpoint) -> Scheme | None:
    """The scheme that the target asks for as it stands; None where no draft can be made for it so."""
    try:
        return engine_of(request.engine).demands(target, None, family_of(target.config))
    except MtpforgeError:
        return None


def _target(request: Request, watching: Watching) -> Checkpoint:
    """The target, opened. MtpforgeError where its config.json cannot be right, or its layer not be run as asked."""
    assert request.target is not None  # noqa: S101 -- asked before
    target = open_served(request.target, offline=request.offline)
    watching.on_remark(remarks.of_checkpoint("target", target))
    refusals.of_family(request, target)
    engine_of(request.engine).refuse_misstated(target, target.config, family_of(target.config))
    return target


def _source(request: Request, watching: Watching) -> Checkpoint:
    assert request.source is not None  # noqa: S101 -- a request without a target names its source
    checkpoint = open_checkpoint(request.source, offline=request.offline)
    watching.on_remark(remarks.of_checkpoint("source", checkpoint))
    return checkpoint


def _warn_of_rules(given: Scheme | None, served: Checkpoint, watching: Watching) -> None:
    """Presets have rules for modules that not every family has; in a file of one's own such a rule is a mistake."""
    if given is not None and given.name not in schemes.names():
        for remark in remarks.of_idle_rules(given, family_of(served.config)):
            watching.on_remark(remark)


def _scheme(named: Scheme | str | Path) -> Scheme:
    return named if isinstance(named, Scheme) else schemes.load(str(named))


def _inputs(request: Request) -> Inputs | None:
    """The inputs, opened. MtpforgeError where nothing looks at them."""
    if request.inputs is None:
        return None
    if request.target is None and not request.fits_codes:
        raise MtpforgeError(
            f"`--scales {request.scales}` looks at no inputs",
            where="option `--inputs`",
            fix="`--scales gptq`, or leave `--inputs` out",
            code=errors.USAGE,
        )
    from mtpforge.nextn import inputs

    return inputs.read(Path(request.inputs))


def _calibration(
    request: Request, sides: _Sides, kept: tuple[int, ...] | None, inputs: Inputs | None, watching: Watching
) -> Calibration | None:
    """What codes are fitted to; None where none are. MtpforgeError for inputs of another model."""
    if not request.fits_codes or inputs is None:
        return None
    from mtpforge.nextn.hessians import Calibration

    served = sides.target or sides.source
    for remark in remarks.of_fit(inputs, served):
        watching.on_remark(remark)
    return Calibration(sides.source, served, inputs, kept)


def _by_origin(source: Checkpoint, target: Checkpoint | None, scales: Checkpoint | None) -> dict[str, Checkpoint]:
    given = {"source": source, "target": target, "scales": scales}
    return {origin: checkpoint for origin, checkpoint in given.items() if checkpoint is not None}
