"""A target as an engine has to be told of it, so that a draft of another scheme than the target's own fits beside it.

No file of the target changes: the command says it (`serving`), or a folder of links with another config.json.
"""

from __future__ import annotations

from dataclasses import replace

from mtpforge import scheme as schemes
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine, own_config
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.scheme import Scheme


def beside(target: Checkpoint, engine: Engine, wanted: Scheme) -> tuple[Checkpoint, Scheme]:
    """What `attempt` gives; its refusal with the presets that the engine could be told of, or is told of already."""
    try:
        return attempt(target, engine, wanted)
    except MtpforgeError as error:
        if error.fix:
            raise
        able = presets(target, engine)
        fix = f"`--scheme` with one of: {able}" if able else "leave `--scheme` out: the target's own is taken"
        raise MtpforgeError(error.what, where=error.place, why=error.why, fix=fix, code=error.code) from error


def presets(target: Checkpoint, engine: Engine) -> str:
    """Names of the presets that a draft beside this target may be made by, with commas between."""

    def is_taken(wanted: Scheme) -> bool:
        try:
            attempt(target, engine.untold or engine, wanted)
        except MtpforgeError:
            return False
        return True

    return ", ".join(name for name in schemes.names() if is_taken(schemes.load(name)))


def attempt(target: Checkpoint, engine: Engine, wanted: Scheme) -> tuple[Checkpoint, Scheme]:
    """The target, restated where it has to be, and the wanted scheme in the formats of the target's method.

    MtpforgeError where the engine cannot be told to build such a draft beside it. Where a draft's own config decides,
    nothing has to be told.
    """
    family = family_of(target.config)
    wanted = _as_built(wanted, target, engine)
    if engine.decides == "draft":
        return target, wanted
    block = engine.restate(target, family, wanted)
    told = target if block == target.quantization else target.restated(block)
    return told, replace(engine.demands(told, None, family), name=wanted.name)


def carried(target: Checkpoint, engine: Engine, wanted: Scheme) -> tuple[Checkpoint, Scheme]:
    """The target as its config has to be where the layer lies in it, and the scheme as the engine would find it there.

    MtpforgeError where the engine cannot be told of a layer of that scheme, or loads none.
    """
    family = family_of(target.config)
    block = engine.carry(target, family, _as_built(wanted, target, engine))
    told = target if block == target.quantization else target.restated(block)
    return told, replace(engine.demands(told, own_config(told), family), name=wanted.name)


def _as_built(wanted: Scheme, target: Checkpoint, engine: Engine) -> Scheme:
    return schemes.sparing(wanted, engine.never_quantized(family_of(target.config)))
