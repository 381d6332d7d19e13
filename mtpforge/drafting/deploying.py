"""A server command for a machine: its ranks, flags and variables, and whether the target's weights fit there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint import metadata
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

_EXPERTS: Final = "mlp.experts.*.gate_proj"


def serving_on(machine: Machine, asked: Deployment, engine: str, target: Checkpoint, serving: Serving) -> Serving:
    """How it is served there: with what a fork must be told.

    MtpforgeError for a fork of another engine, and a number of ranks that cannot be dealt out over the nodes.
    """
    hardware.refuse_fork(machine, asked, engine)
    told = hardware.topk_pattern(asked, machine, family_of(target.config).text(target.config))
    if serving.tensor_parallel % machine.nodes:
        raise MtpforgeError(
            f"{serving.tensor_parallel} ranks cannot be dealt out over the {machine.nodes} nodes of {machine.name}",
            where="option `--tp`",
            fix=f"`--tp {machine.ranks}`, or leave `--tp` out",
            code=errors.USAGE,
        )
    return replace(serving, overrides={**told, **serving.overrides})


def placed(
    command: Command,
    machine: Machine,
    asked: Deployment,
    engine: str,
    target: Checkpoint,
    scheme: Scheme,
    serving: Serving,
) -> Command:
    """The command with the machine's flags, variables and notes; what was asked for by option stays as it is."""
    stored = scheme.of(_EXPERTS).quantization
    facts = {
        "method": str(target.quantization.get("quant_method", "")),
        "experts": f"{stored.format} {stored.strategy}".strip(),
        "algo": str(target.quantization.get("quant_algo", "")),
        "family": family_of(target.config).name,
        "tp": serving.tensor_parallel,
    }
    remarks = tuple(_remarks(machine, target, serving.tensor_parallel))
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


def _remarks(machine: Machine, target: Checkpoint, ranks: int) -> Iterator[Trap]:
    stored, room = _stored_bytes(target), machine.holds_bytes(ranks)
    if stored > room:
        on = "" if ranks >= machine.ranks else f", on {ranks} of its ranks"
        held = f"{machine.title} hold{'s' * (machine.ranks == 1)} {file_size(room)}{on}"
        fix = "`mtpforge validate DRAFT --target CKPT` checks a draft where the target does not fit"
        yield Trap("machine-too-small", "warning", f"the target's weights take {file_size(stored)}; {held}", fix)
    for text in hardware.notes(machine):
        yield Trap("machine-note", "warning", text)


def _stored_bytes(target: Checkpoint) -> int:
    """Bytes of all tensors, as the target's index counts them; 0 where there is no index, or one without a count."""
    try:
        return metadata.total_size(target.small_file(metadata.INDEX) or b"{}") or 0
    except MtpforgeError:
        return 0
