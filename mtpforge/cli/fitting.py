"""What build and extract share about `--scales gptq`: the inputs that codes are fitted to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mtpforge import errors
from mtpforge.cli.experts import note_foreign
from mtpforge.cli.making import Job
from mtpforge.cli.output import Screen
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.nextn.inputs import Inputs
    from mtpforge.tensors import ScaleMethod


def opened(path: Path | None, scales: ScaleMethod) -> Inputs | None:
    """The inputs that `--inputs` names, where they are for codes alone. MtpforgeError where nothing looks at them."""
    if path is None:
        return None
    if scales != "gptq":
        raise MtpforgeError(
            f"`--scales {scales}` looks at no inputs",
            where="option `--inputs`",
            fix="`--scales gptq`, or leave `--inputs` out",
            code=errors.USAGE,
        )
    from mtpforge.nextn import inputs

    return inputs.read(path)


def fitted(screen: Screen, job: Job, inputs: Inputs | None) -> Job:
    """The job with its calibration, where codes are fitted to inputs. MtpforgeError for inputs of another model."""
    if job.scales != "gptq" or inputs is None:
        return job
    from mtpforge.nextn.hessians import Calibration

    n_sequences = f"{inputs.n_sequences:,} sequence{'s' if inputs.n_sequences > 1 else ''}"
    screen.line(f"codes   fitted to {shown(inputs.path)}   {inputs.n_tokens:,} tokens in {n_sequences}")
    note_foreign(screen, inputs, job.served)
    return replace(job, calibration=Calibration(job.source, job.served, inputs, job.kept))
