"""A layer that is planned without a target: what its own block would be read as."""

from __future__ import annotations

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.formats import label
from mtpforge.scheme import Scheme


def refuse_unread(engine: Engine, family: Family, source: Checkpoint, asked: Scheme) -> None:
    """MtpforgeError where an engine that builds by a draft's own block would not build this scheme from it."""
    config = engine.draft_config(source, source.config, family, asked, family.n_experts(source.config))
    read = engine.stated(config, family)
    for module in family.modules(source.config, 1):
        want, offered = read.of(module.template), asked.of(module.template)
        if want.quantization != offered.quantization:
            raise MtpforgeError(
                f"{engine.name} would build `{module.template}` as {label(want.quantization)}",
                why=f"scheme {asked.name} says {label(offered.quantization)}; {want.reason}",
                fix="name another scheme: `--scheme NAME`",
            )
