"""A server command for a machine: its ranks, flags and variables, and whether the target's weights fit there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import behind, hardware
from mtpforge.engines.command import Command
from mtpforge.engines.engine import Serving
from mtpforge.engines.hardware import Deployment, Machine
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.report import Trap
from mtpforge.scheme import Scheme
from mtpforge.units import file_size

_INDEX: Final = "model.safetensors.index.json"
_EXPERTS: Final = "mlp.experts.*.gate_proj"


def serving_on(machine: Machine, asked: Deployment, target: Checkpoint, serving: Serving) -> Serving:
    """How it is served there: over the machine's ranks unless another number is asked for, and what a fork is told.

    MtpforgeError for a number of ranks that cannot be dealt out over the nodes.
    """
    told = hardware.topk_pattern(asked, machine, family_of(target.config).text(target.config))
    ranks = machine.ranks if serving.tensor_parallel == 1 else serving.tensor_parallel
    if ranks % machine.nodes:
        raise MtpforgeError(
            f"{ranks} ranks cannot be dealt out over the {machine.nodes} nodes of {machine.name}",
            where="option `--tp`",
            fix=f"`--tp {machine.ranks}`, or leave `--tp` out",
            code=errors.USAGE,
        )
    return replace(serving, tensor_parallel=ranks, overrides={**told, **serving.overrides})


def placed(
    command: Command, machine: Machine, asked: Deployment, engine: str, target: Checkpoint, scheme: Scheme
) -> Command:
    """The command with the machine's flags, variables and notes; what was asked for by option stays as it is."""
    stored = scheme.of(_EXPERTS).quantization
    facts = {
        "method": str(target.quantization.get("quant_method", "")),
        "experts": f"{stored.format} {stored.strategy}".strip(),
        "family": family_of(target.config).name,
    }
    remarks = tuple(_remarks(machine, target))
    made: Command | None = None
    for key, each in reversed([*zip(behind(engine), command.each, strict=True)]):
        given, variables = hardware.flags(machine, asked, key, facts)
        there = {flag.name for flag in each.flags}
        made = replace(
            each,
            flags=(*each.flags, *(flag for flag in given if flag.name not in there)),
            environment=(*each.environment, *variables),
            traps=(*each.traps, *remarks),
            beside=made,
        )
    return command if made is None else made


def _remarks(machine: Machine, target: Checkpoint) -> Iterator[Trap]:
    stored = _stored_bytes(target)
    if stored > machine.holds_bytes:
        held = f"{machine.title} hold{'s' * (machine.ranks == 1)} {file_size(machine.holds_bytes)}"
        fix = "`mtpforge validate DRAFT --target CKPT` checks a draft where the target does not fit"
        yield Trap("machine-too-small", "warning", f"the target's weights take {file_size(stored)}; {held}", fix)
    for text in hardware.notes(machine):
        yield Trap("machine-note", "warning", text)


def _stored_bytes(target: Checkpoint) -> int:
    """Bytes of all tensors, as the target's index counts them; 0 where there is no index, or one without a count."""
    try:
        index = json.loads(target.small_file(_INDEX) or b"{}")
        return int(index["metadata"]["total_size"])
    except (KeyError, TypeError, ValueError, MtpforgeError):
        return 0
